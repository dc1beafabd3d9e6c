"""From names, files and one's own networks to models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tubelens import zoo
from tubelens.capture import default_layer, layers
from tubelens.errors import InputError, OptionError, TubelensError, nearest
from tubelens.layout import Layout
from tubelens.model import BlackBox, Model, TorchModel, same
from tubelens.plugins import imported
from tubelens.zoo import files, keras_network
from tubelens.zoo.adapt import adapt_as_written
from tubelens.zoo.checkpoint import fit, read_checkpoint
from tubelens.zoo.form import Fed, Input, kind_of


def load_model(
    name: str | Path | Model | nn.Module,
    weights: str | Path | None = None,
    *,
    input: Input | str | None = None,  # the word of the field
    seed: int = 0,
    labels: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    trust: bool = False,
    adapt: str | None = None,
) -> Model:
    """A model by name, with weights; or a model in a file.

    Args:
        name: a known network (`tubelens models`); a Keras (`.keras`, `.h5`, `.json`) or ONNX file; a folder
            or `hf:OWNER/NAME` of a `transformers` checkpoint; or one's own, `package.module:factory` or
            `path.py:factory`, where the factory returns a module, or the result of `tubelens.wrap` or
            `tubelens.wrap_scorer`.
        weights: an official name such as `"KINETICS400_V1"`, a file (safetensors, or a torch file that needs
            no unpickling), or `"random"`.
        input: what a network in a file, or one's own module, is fed: an `Input`, words such as
            `"frames=20, size=64, axes=b t h w c"`, or a TOML file with these keys.
        seed: of random weights.
        labels: names of the classes, in place of the official ones.
        device: `cpu`, `cuda`, `cuda:1`, ...
        trust: unpickle a weights file even where that runs code that is in it.
        adapt: to which bands, and how, as in `"replicate:LWIR"` (see `tubelens.adapt`).

    Raises:
        OptionError: unknown name, no weights, a missing extra, bands that it cannot be adapted to, or a
            device that is not there.
        CheckpointError: weights that cannot be had, read or fitted; every fault is listed.
    """
    fed = Input.parse(input) if isinstance(input, str) else input
    model = _loaded(name, weights, fed, seed, labels, checked_device(device), trust)
    return model if adapt is None else adapt_as_written(model, adapt)


def _loaded(
    name: str | Path | Model | nn.Module,
    weights: str | Path | None,
    fed: Input | None,
    seed: int,
    labels: Sequence[str] | None,
    where: torch.device,
    trust: bool,
) -> Model:
    """The model as it was trained."""
    if isinstance(name, str | Path) and (kind := files.kind(name)) is not None:
        return kind(name, weights, input=fed, seed=seed, labels=labels, device=str(where), trust=trust)
    if isinstance(name, str | Path) and ":" not in str(name):
        if fed is not None:
            raise OptionError(f"{name} knows what it is fed: `input` is for networks in files and one's own")
        return zoo.load(str(name), weights, seed=seed, labels=labels, device=str(where), trust=trust)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _made(str(name)) if isinstance(name, str | Path) else name
    if isinstance(made, BlackBox):
        if weights not in (None, "random"):
            raise OptionError(f"{name} is a black box: it has no weights that could be loaded")
        return replace(made, labels=labels if labels is not None else made.labels)
    if not isinstance(made, nn.Module | TorchModel):
        kind_name = type(made).__name__
        raise OptionError(
            f"{name}: the factory must return a module, a wrapped model or a black box, not {kind_name}"
        )
    module = made.module if isinstance(made, TorchModel) else made
    given = str(name) if isinstance(name, str | Path) else type(module).__name__
    origin = f"as {given} made them"
    if weights not in (None, "random"):
        fit(module, read_checkpoint(str(weights), trust), str(weights), given)
        origin = str(weights)
    module.to(where)
    if isinstance(made, TorchModel):
        if fed is not None:
            raise OptionError(f"{given} is wrapped already: it knows what it is fed")
        model = made
    else:
        model = wrap(module, input=fed, name=given)
    return replace(model, weights=origin, labels=labels if labels is not None else model.labels)


def wrap(
    module: nn.Module,
    *,
    input: Input | None = None,
    labels: Sequence[str] | None = None,
    layer: str | None = None,
    layout: str | Layout | None = None,
    pack: Callable[[Tensor], Any] | None = None,
    unpack: Callable[[Any], Tensor] = same,
    name: str | None = None,
    **fields: Any,
) -> TorchModel:
    """One's own network as a model. It is run once on a black clip, to find its layer and check its sizes.

    Args:
        module: takes `(b, c, t, h, w)` unless `axes` or `pack` says otherwise.
        input: what it is fed.
        labels: names of the classes.
        layer: to explain; default: the last one whose output still has time and space.
        layout: of that layer, an einops pattern or a `Layout`; found by itself for most networks.
        pack: canonical clips in [0, 1] to what the network eats; replaces what `input` says of it.
        unpack: scores out of what it returns.
        name: for captions and records.
        **fields: of `Input`, in place of `input`: `frames`, `size`, `mean`, `std`, `axes`, ...

    Example:
        >>> model = tl.wrap(net, frames=16, size=112, mean=(.45, .45, .45), std=(.225, .225, .225))

    Raises:
        InputError: the network does not take such a clip.
        LayerError: no layer with time and space is found, or the one named does not exist.
    """
    if keras_network.is_model(module):
        if layout is not None or pack is not None or unpack is not same:
            raise OptionError("a Keras model is wrapped by its `input`, `labels`, `layer` and `name` alone")
        given = _input(input, fields, "wrap") if input is not None or fields else None
        return keras_network.wrap(module, input=given, labels=labels, layer=layer, name=name)
    fed = _input(input, fields, "wrap")
    model = TorchModel(
        module=module,
        pack=pack or fed.pack(),
        unpack=unpack,
        spec=fed.spec(),
        labels=labels,
        name=name or type(module).__name__,
    )
    black = torch.zeros(1, len(model.spec.bands), model.spec.frames, *model.spec.size)
    if layer is not None:
        model.submodule(layer)
    if layout is not None:
        if layer is None:
            raise OptionError("a `layout` is declared for a `layer`: give its name too")
        model = replace(model, layouts={layer: Layout(layout) if isinstance(layout, str) else layout})
    scores = model(black)
    class_count(model, scores)
    if layer is None:
        layer = default_layer(layers(model, black)).name
    return replace(model, layer=layer, output=fed.output or kind_of(scores))


def wrap_scorer(
    score: Callable[[Any], Any],
    *,
    input: Input | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    numpy: bool = False,
    **fields: Any,
) -> BlackBox:
    """Any function as a model, for the methods that need only scores (RISE, occlusion, LIME, SHAP).

    Args:
        score: clips to scores `(b, k)`, as a tensor or an array. Clips are `(b, c, t, h, w)` in [0, 1] unless
            `input` says otherwise.
        input: what it is fed, and what its scores are.
        labels: names of the classes.
        name: for captions and records.
        numpy: it takes numpy arrays.
        **fields: of `Input`, in place of `input`: `frames`, `size`, `axes`, `output`, ...

    Example:
        >>> model = tl.wrap_scorer(served, frames=20, size=64, axes="b t h w c", numpy=True, output="probs")
    """
    fed = _input(input, fields, "wrap_scorer")
    called = name or str(getattr(score, "__name__", "black box"))
    return BlackBox(Fed(score, fed.pack(), numpy), fed.spec(), fed.output or "logits", labels, called)


def _input(given: Input | None, named: dict[str, Any], who: str) -> Input:
    known = [f.name for f in dataclass_fields(Input)]
    for key in named:
        if key not in known:
            raise OptionError(f"{who}: unknown argument {key!r}{nearest(key, known)}")
    if given is not None and named:
        raise OptionError(f"{who}: give an `input` or its fields ({', '.join(named)}), not both")
    return given or Input(**named)


def class_count(model: Model, scores: Tensor) -> int:
    """How many classes there are, if there are as many labels."""
    k = scores.shape[1]
    if model.labels is not None and len(model.labels) != k:
        raise InputError(f"{model.name} has {k} classes, but {len(model.labels)} labels were given")
    return k


def checked_device(device: str | torch.device) -> torch.device:
    """The device, if it exists and computes.

    Raises:
        OptionError: no such device on this machine.
    """
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"device {str(device)!r} cannot be used: {str(error).splitlines()[0][:150]}"
        ) from error
    return where


def _made(spec: str) -> Any:
    """What the factory that `spec` names returns."""
    factory = imported(spec)
    try:
        return factory()
    except TubelensError:
        raise
    except Exception as error:
        raise OptionError(f"{spec}: the factory failed: {type(error).__name__}: {error}") from error
