"""A Keras model, on torch, as what the methods explain.

A last softmax is passed over for the time of each forward, so that scores are logits: tubes are exact then,
and nothing is softmaxed twice. The model is as it was afterwards; threads run one model one after another.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tubelens.dryrun import default_layer, layers
from tubelens.errors import LayerError, OptionError
from tubelens.model import TorchModel
from tubelens.target import ScoreKind
from tubelens.zoo.extras import need
from tubelens.zoo.form import Input, kind_of
from tubelens.zoo.keras_input import agree, fed_to, input_shape, walk

AFTER_SCORES = ("Flatten", "Reshape", "Dropout", "SpatialDropout3D", "Identity", "GlobalAveragePooling3D")
_LOCKS: WeakKeyDictionary[Any, AbstractContextManager[bool]] = WeakKeyDictionary()
_LOCKS_OWN = threading.Lock()


def keras_on_torch(who: str) -> ModuleType:
    """Keras, on torch.

    Raises:
        OptionError: it is not installed, or already runs on something else.
    """
    if "keras" not in sys.modules:
        given = os.environ.get("KERAS_BACKEND")
        os.environ["KERAS_BACKEND"] = "torch"
        try:
            keras = need("keras", "keras", who)
        finally:
            if given is None:
                del os.environ["KERAS_BACKEND"]
            else:
                os.environ["KERAS_BACKEND"] = given
    else:
        keras = need("keras", "keras", who)
    backend = keras.config.backend()
    if backend != "torch":
        raise OptionError(
            f"{who} needs Keras on torch, and it was imported with the backend {backend!r}: set"
            " KERAS_BACKEND=torch before Python starts"
        )
    return keras


def wrap(
    model: Any,
    *,
    input: Input | None = None,
    labels: Sequence[str] | None = None,
    layer: str | None = None,
    name: str | None = None,
) -> TorchModel:
    """A Keras model object, which is left as it is. It is run on noise, to find its layer and its logits.

    Args:
        model: with one input of rank 5 (or what `input.axes` makes of a clip) and one output `(b, k)`.
        input: what it is fed; None: as its input shape and its layers say.
        labels: names of the classes.
        layer: to explain; `outer/inner` within nested models. None: the last with time and space.
        name: for captions and records.

    Raises:
        OptionError: Keras runs on another backend.
        InputError: `input` contradicts the input shape; several inputs or outputs.
        LayerError: no such layer.
    """
    who = name or str(getattr(model, "name", type(model).__name__))
    keras_on_torch(who)
    shape = input_shape(model, who)
    fed = fed_to(model, shape, input, who)
    if shape is not None:
        agree(fed, shape, who)
    network = KerasNetwork(model)
    made = TorchModel(
        module=network,
        pack=fed.pack(),
        spec=fed.spec(),
        output=fed.output or "logits",
        labels=labels,
        find=network.layer,
        walk=network.layers,
        tubes=_not_affine(model),
        name=who,
    )
    if layer is not None:
        made.submodule(layer)
    spec = made.spec
    size = (1, len(spec.bands), spec.frames, *spec.size)
    noise = torch.rand(size, generator=torch.Generator().manual_seed(0))
    with _alone(model):  # the activation that is looked for may be passed over elsewhere right now
        if fed.output in (None, "logits"):
            network.bare = _logits(network, made, noise)
        if fed.output is None:
            made = replace(made, output=_kind(network, made(noise)))
    if layer is None:
        with suppress(LayerError):  # a scorer then: no layer has time and space
            layer = default_layer(layers(made, noise)).name
    return replace(made, layer=layer)


def is_model(module: object) -> bool:
    """Whether it is a Keras model; Keras is not imported to find out."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(module, getattr(keras, "Model", ()))


class KerasNetwork(nn.Module):
    """A Keras model as a torch module: inference mode, on its own device, nothing left changed.

    Attributes:
        model: the Keras model.
        bare: the layer whose activation (a softmax) is passed over in each forward, if there is one.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.bare: tuple[Any, ...] = ()  # a tuple, or it would become a child of this module

    def forward(self, x: Tensor) -> Any:
        """What the model returns for an input that is laid out as it wants."""
        import keras

        # a subclassed model may know of no modes
        mode = {"training": False} if getattr(self.model, "_call_has_training_arg", True) else {}
        device = keras.device(str(x.device))
        with _alone(self.model), device, _kept(self.model), _without_activation(self.bare):
            return self.model(x, **mode)

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """All layers; those of nested models as `outer/inner`. A shared layer has its first name."""
        seen: set[int] = set()
        for name, layer in walk(self.model, ""):
            if id(layer) not in seen:
                seen.add(id(layer))
                yield name, layer

    def layer(self, name: str) -> nn.Module:
        """A layer by name.

        Raises:
            KeyError: there is none.
        """
        found: nn.Module = dict(walk(self.model, ""))[name]
        return found


def _alone(model: Any) -> AbstractContextManager[bool]:
    """The lock of a Keras model, however often it is wrapped: each forward changes it and puts it back."""
    with _LOCKS_OWN:
        return _LOCKS.setdefault(model, threading.RLock())


@contextmanager
def _kept(model: Any) -> Iterator[None]:
    """Variables that no training changes (statistics, states, seeds) are as before when the block ends."""
    import keras

    held = {id(v): (v, v.value.detach().clone()) for v in _untrained(model)}
    # a state that is written in place has no gradient any more: let Keras write it elsewhere
    remembers = next(_states(model), None) is not None
    try:
        with keras.StatelessScope() if remembers else nullcontext():
            yield
    finally:
        for variable, value in held.values():
            if not torch.equal(variable.value, value):
                variable.assign(value)
        for variable in _states(model):
            if id(variable) not in held:  # the block built the layer
                variable.assign(torch.zeros_like(variable.value))


def _untrained(model: Any) -> Iterator[Any]:
    # a frozen kernel is not trained either, but no forward changes it
    yield from (v for v in model.variables if not v.trainable and len(v.shape) <= 2)
    for layer in model._flatten_layers():
        yield from layer._non_trainable_variables
    yield from _states(model)


def _states(model: Any) -> Iterator[Any]:
    """What stateful recurrent layers remember of one batch for the next; not among a model's variables."""
    import keras

    for layer in model._flatten_layers():
        found = keras.tree.flatten(vars(layer).get("states"))
        yield from (v for v in found if isinstance(v, keras.Variable))


@contextmanager
def _without_activation(bare: tuple[Any, ...]) -> Iterator[None]:
    """A layer's activation is the identity for the time of the block; a Softmax layer gives its input.

    In this thread: others may be using the Keras model itself.
    """
    layer = bare[0] if bare else None
    thread = threading.get_ident()
    if layer is None:
        yield
    elif "activation" in vars(layer):
        given = vars(layer)["activation"]
        # past Keras's tracking of attributes
        vars(layer)["activation"] = lambda x: x if threading.get_ident() == thread else given(x)
        try:
            yield
        finally:
            vars(layer)["activation"] = given
    else:
        handle = layer.register_forward_hook(
            lambda module, inputs, output: inputs[0] if threading.get_ident() == thread else None
        )
        try:
            yield
        finally:
            handle.remove()


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────


def _logits(network: KerasNetwork, made: TorchModel, noise: Tensor) -> tuple[Any, ...]:
    """The layer whose softmax ends the network, if the scores without it are the logits of those with it."""
    probs = made(noise)
    for layer in _last(network.model):
        if _ends_in(layer, "softmax") or type(layer).__name__ == "Softmax":
            network.bare = (layer,)
            scores = made(noise)
            network.bare = ()
            if scores.shape == probs.shape and torch.allclose(scores.softmax(dim=1), probs, atol=1e-5):
                return (layer,)
    return ()


def _kind(network: KerasNetwork, scores: Tensor) -> ScoreKind:
    if network.bare:
        return "logits"
    end = next(iter(_last(network.model)), None)
    return "sigmoid" if _ends_in(end, "sigmoid") else kind_of(scores)


def _ends_in(layer: Any, activation: str) -> bool:
    return getattr(getattr(layer, "activation", None), "__name__", "") == activation


def _last(model: Any) -> Iterator[Any]:
    """The layer that gives the output, then those before it while they only pass scores on; innermost."""
    try:
        wanted = model.outputs[0]
    except (AttributeError, IndexError, TypeError):
        return  # not built of layers
    while (layer := next((m for m in model.layers if _gives(m, wanted)), None)) is not None:
        inner = getattr(layer, "layers", None)
        if isinstance(inner, list):
            yield from _last(layer)
            return
        yield layer
        passes = type(layer).__name__ in AFTER_SCORES or _ends_in(layer, "linear")
        if not passes or isinstance(layer.input, list):
            return
        wanted = layer.input


def _gives(layer: Any, tensor: Any) -> bool:
    try:
        return layer.output is tensor
    except AttributeError:  # called several times, or never
        return False


def _not_affine(model: Any) -> str:
    """Why tubes do not apply, where a layer says so."""
    for _, layer in walk(model, ""):
        kind = type(layer).__name__
        if kind.startswith("GlobalMaxPooling"):
            return f"the head takes a global maximum ({layer.name!r})"
        if kind in ("LSTM", "GRU", "SimpleRNN", "Bidirectional", "RNN"):
            return f"the head is recurrent ({layer.name!r})"
    return ""
