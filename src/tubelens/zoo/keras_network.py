"""A Keras model, on torch, as what the methods explain.

A last softmax is passed over for the time of each forward, so that scores are logits: tubes are exact then,
and nothing is softmaxed twice. The model is as it was afterwards.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tubelens.dryrun import default_layer, layers
from tubelens.errors import InputError, LayerError, OptionError
from tubelens.model import TorchModel
from tubelens.target import ScoreKind
from tubelens.zoo.extras import need
from tubelens.zoo.form import Input, kind_of

AFTER_SCORES = ("Flatten", "Reshape", "Dropout", "SpatialDropout3D", "Identity", "GlobalAveragePooling3D")
BANDS = {1: ("grey",), 3: ("R", "G", "B")}


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
    shape = _input_shape(model, who)
    fed = input or _read_off(model, shape, who)
    if shape is not None:
        _agree(fed, shape, who)
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
        with keras.device(str(x.device)), _kept(self.model), _without_activation(self.bare):
            return self.model(x, **mode)

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """All layers; those of nested models as `outer/inner`. A shared layer has its first name."""
        seen: set[int] = set()
        for name, layer in _walk(self.model, ""):
            if id(layer) not in seen:
                seen.add(id(layer))
                yield name, layer

    def layer(self, name: str) -> nn.Module:
        """A layer by name.

        Raises:
            KeyError: there is none.
        """
        found: nn.Module = dict(_walk(self.model, ""))[name]
        return found


def _walk(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(model, "layers", None)
    if not isinstance(inner, list):  # a layer that someone wrote, with layers as its attributes
        inner = [m for m in model.children() if hasattr(m, "get_config")]
    for layer in inner:
        yield prefix + layer.name, layer
        yield from _walk(layer, f"{prefix}{layer.name}/")


@contextmanager
def _kept(model: Any) -> Iterator[None]:
    """Variables that no training changes (statistics, states, seeds) are as before when the block ends."""
    # a frozen kernel is not trained either, but no forward changes it
    own = [v for v in model.variables if not v.trainable and len(v.shape) <= 2]
    held = [(v, v.value.detach().clone()) for v in own]
    try:
        yield
    finally:
        for variable, value in held:
            if not torch.equal(variable.value, value):
                variable.assign(value)


@contextmanager
def _without_activation(bare: tuple[Any, ...]) -> Iterator[None]:
    """A layer's activation is the identity for the time of the block; a Softmax layer gives its input."""
    layer = bare[0] if bare else None
    if layer is None:
        yield
    elif "activation" in vars(layer):
        given = vars(layer)["activation"]
        vars(layer)["activation"] = _identity  # past Keras's tracking of attributes
        try:
            yield
        finally:
            vars(layer)["activation"] = given
    else:
        handle = layer.register_forward_hook(lambda module, inputs, output: inputs[0])
        try:
            yield
        finally:
            handle.remove()


def _identity(x: Any) -> Any:
    return x


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
    for _, layer in _walk(model, ""):
        kind = type(layer).__name__
        if kind.startswith("GlobalMaxPooling"):
            return f"the head takes a global maximum ({layer.name!r})"
        if kind in ("LSTM", "GRU", "SimpleRNN", "Bidirectional", "RNN"):
            return f"the head is recurrent ({layer.name!r})"
    return ""


# ── the input ────────────────────────────────────────────────────────────────────────────────────────────


def _input_shape(model: Any, who: str) -> tuple[int | None, ...] | None:
    """Of the one input, without the batch; None where the model does not say."""
    try:
        inputs, outputs = model.inputs, model.outputs
    except AttributeError:
        return None
    if not inputs or not outputs:
        return None
    for what, found in (("inputs", inputs), ("outputs", outputs)):
        if len(found) != 1:
            raise InputError(
                f"{who} has {len(found)} {what}, one is needed: make a keras.Model of the part to explain and"
                " give it to `tubelens.wrap`"
            )
    return tuple(inputs[0].shape[1:])


def _read_off(model: Any, shape: tuple[int | None, ...] | None, who: str) -> Input:
    """Frames, size and order of dimensions, where the shape fixes them; time is first unless it cannot be.

    Raises:
        InputError: the input is not of rank 5.
    """
    if shape is None or len(shape) != 4:
        rank = "has no fixed input" if shape is None else f"takes {_sizes(shape)}"
        raise InputError(
            f"{who} {rank}: say what it is fed, as in input='frames=16, size=112, axes=b t h w c'"
        )
    first = _channels_first(model, shape)
    places = shape[1:] if first else shape[:3]
    order = "thw"
    if places[0] is not None and places[0] == places[1] != places[2]:
        order = "hwt"  # frames are square far oftener than clips are as long as they are high
    sizes = dict(zip(order, places, strict=True))
    channels = (shape[0] if first else shape[3]) or 3
    usual = Input()
    height, width = (sizes[side] or sizes[other] or usual.size for side, other in ("hw", "wh"))
    spaced = " ".join(order)
    return Input(
        frames=sizes["t"] or usual.frames,
        size=(int(str(height)), int(str(width))),
        bands=BANDS.get(channels) or tuple(f"band {i + 1}" for i in range(channels)),
        scale=255.0 if _rescales(model) else 1.0,
        axes=f"b c {spaced}" if first else f"b {spaced} c",
    )


def _channels_first(model: Any, shape: Sequence[int | None]) -> bool:
    for _, layer in _walk(model, ""):
        inner = getattr(layer, "layer", layer)  # what a wrapper wraps
        if (order := getattr(inner, "data_format", None)) is not None:
            return bool(order == "channels_first")
    return shape[0] in BANDS and shape[3] not in BANDS


def _rescales(model: Any) -> bool:
    """Whether the model itself brings pixels from 0..255 to about one."""
    found = (m for _, m in _walk(model, "") if type(m).__name__ == "Rescaling")
    return any(isinstance(m.scale, int | float) and 0 < m.scale < 0.02 for m in found)


def _agree(fed: Input, shape: tuple[int | None, ...], who: str) -> None:
    """Complain where what is fed is not what the network takes.

    Raises:
        InputError: naming both.
    """
    spec = fed.spec()
    clip = torch.zeros(1, len(spec.bands), spec.frames, *spec.size)
    given = tuple(fed.pack()(clip).shape[1:])
    if len(given) == len(shape) and all(n is None or n == m for n, m in zip(shape, given, strict=True)):
        return
    height, width = spec.size
    said = f"{spec.frames} frames of {height}x{width}x{len(spec.bands)} ({fed.axes})"
    raise InputError(f"{who} takes {_expected(fed, shape)}, the input says {said}: change `input`")


def _expected(fed: Input, shape: Sequence[int | None]) -> str:
    axes = fed.axes.split()[1:]
    if sorted(axes) != ["c", "h", "t", "w"] or len(shape) != 4:
        return f"an input of {_sizes(shape)}"
    sizes = {axis: "any" if n is None else n for axis, n in zip(axes, shape, strict=True)}
    height, width = (sizes["w"], sizes["h"]) if fed.rotate % 180 else (sizes["h"], sizes["w"])
    return f"{sizes['t']} frames of {height}x{width}x{sizes['c']} ({fed.axes})"


def _sizes(shape: Sequence[int | None]) -> str:
    return "x".join("any" if n is None else str(n) for n in shape)
