"""From names, files and one's own networks to models."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tubelens import zoo
from tubelens.capture import default_layer, layers
from tubelens.errors import InputError, OptionError, TubelensError
from tubelens.layout import Layout
from tubelens.model import BlackBox, InputSpec, Model, TorchModel
from tubelens.target import ScoreKind
from tubelens.zoo.checkpoint import fit, read_checkpoint


def load_model(
    name: str | Model | nn.Module,
    weights: str | Path | None = None,
    *,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> Model:
    """A model by name, with weights.

    Args:
        name: a known network (`tubelens models`), or one's own: `package.module:factory` or
            `path.py:factory`, where the factory returns a module, or the result of `tubelens.wrap` or
            `tubelens.black_box`.
        weights: an official name such as `"KINETICS400_V1"`, a file (safetensors, or a torch file that needs
            no unpickling), or `"random"`.
        seed: of random weights.
        labels: names of the classes, in place of the official ones.
        device: `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        OptionError: unknown name, no weights, or a device that is not there.
        CheckpointError: weights that cannot be had, read or fitted; every fault is listed.
    """
    where = checked_device(device)
    if isinstance(name, str) and ":" not in name:
        return zoo.load(name, weights, seed=seed, labels=labels, device=str(where))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _made(name) if isinstance(name, str) else name
    if isinstance(made, BlackBox):
        if weights not in (None, "random"):
            raise OptionError(f"{name} is a black box: it has no weights that could be loaded")
        return replace(made, labels=labels if labels is not None else made.labels)
    if not isinstance(made, nn.Module | TorchModel):
        kind = type(made).__name__
        raise OptionError(
            f"{name}: the factory must return a module, a wrapped model or a black box, not {kind}"
        )
    module = made.module if isinstance(made, TorchModel) else made
    given = str(name) if isinstance(name, str) else type(module).__name__
    origin = f"as {given} made them"
    if weights not in (None, "random"):
        fit(module, read_checkpoint(str(weights)), str(weights), given)
        origin = str(weights)
    module.to(where)
    model = made if isinstance(made, TorchModel) else wrap(module, name=given)
    return replace(model, weights=origin, labels=labels if labels is not None else model.labels)


def wrap(
    module: nn.Module,
    *,
    mean: Sequence[float] | float = 0.0,
    std: Sequence[float] | float = 1.0,
    frames: int = 16,
    size: int | tuple[int, int] = 112,
    resize: int | tuple[int, int] | None = None,
    stride: int = 1,
    rate: float | None = None,
    bands: str | Sequence[str] = "RGB",
    labels: Sequence[str] | None = None,
    layer: str | None = None,
    layout: str | Layout | None = None,
    output: ScoreKind | None = None,
    pack: Callable[[Tensor], Any] | None = None,
    unpack: Callable[[Any], Tensor] | None = None,
    name: str | None = None,
) -> TorchModel:
    """One's own network as a model. It is run once on a black clip, to find its layer and check its sizes.

    Args:
        module: takes `(b, c, t, h, w)` unless `pack` says otherwise.
        mean: of the normalisation, one number or one a band, on the scale [0, 1].
        std: likewise.
        frames: clip length.
        size: height and width of the centre crop.
        resize: before it: the short side, or height and width; None: just covers the crop.
        stride: frames from one sampled frame to the next in training.
        rate: frames a second in training, in place of `stride`.
        bands: one letter or one name a channel.
        labels: names of the classes.
        layer: to explain; default: the last one whose output still has time and space.
        layout: of that layer, an einops pattern or a `Layout`; found by itself for most networks.
        output: what the scores are; default: softmax probabilities where they sum to one, else logits.
        pack: canonical clips in [0, 1] to what the network eats; replaces mean and std.
        unpack: scores out of what it returns.
        name: for captions and records.

    Raises:
        InputError: the network does not take such a clip.
        LayerError: no layer with time and space is found, or the one named does not exist.
    """
    channels = len(tuple(bands))
    spec = _spec(frames, size, resize, stride, rate, bands)
    model = TorchModel(
        module=module,
        pack=pack or zoo.Normalise(_per_band(mean, channels), _per_band(std, channels)),
        unpack=unpack or (lambda out: out),
        spec=spec,
        labels=labels,
        name=name or type(module).__name__,
    )
    black = torch.zeros(1, channels, frames, *model.spec.size)
    if layer is not None:
        model.submodule(layer)
    if layout is not None:
        if layer is None:
            raise OptionError("a `layout` is declared for a `layer`: give its name too")
        model = replace(model, layouts={layer: Layout(layout) if isinstance(layout, str) else layout})
    scores = model(black)
    class_count(model, scores)
    found: ScoreKind = "logits"
    if scores.shape[1] > 1 and bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-4).all()):
        found = "probs"
    if layer is None:
        layer = default_layer(layers(model, black)).name
    return replace(model, layer=layer, output=output or found)


def black_box(
    score: Callable[[Tensor], Any],
    *,
    output: ScoreKind = "logits",
    frames: int = 16,
    size: int | tuple[int, int] = 112,
    resize: int | tuple[int, int] | None = None,
    stride: int = 1,
    rate: float | None = None,
    bands: str | Sequence[str] = "RGB",
    labels: Sequence[str] | None = None,
    name: str | None = None,
) -> BlackBox:
    """Any function as a model, for the methods that need only scores (RISE, occlusion, LIME, SHAP).

    Args:
        score: clips `(b, c, t, h, w)` in [0, 1] to scores `(b, k)`, as a tensor or an array.
        output: what the scores are.
        frames: clip length.
        size: height and width of the clip.
        resize: as of `wrap`, like those that follow.
        stride: likewise.
        rate: likewise.
        bands: likewise.
        labels: likewise.
        name: likewise.
    """
    called = name or str(getattr(score, "__name__", "black box"))
    spec = _spec(frames, size, resize, stride, rate, bands)
    return BlackBox(score, spec, output, labels, called)


def _spec(
    frames: int,
    size: int | tuple[int, int],
    resize: int | tuple[int, int] | None,
    stride: int,
    rate: float | None,
    bands: str | Sequence[str],
) -> InputSpec:
    both = (size, size) if isinstance(size, int) else size
    return InputSpec(frames, both, resize, stride, rate, tuple(bands))


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


def _per_band(value: Sequence[float] | float, bands: int) -> tuple[float, ...]:
    values = (float(value),) * bands if isinstance(value, int | float) else tuple(map(float, value))
    if len(values) != bands:
        raise OptionError(f"mean and std need one number or {bands}, one a band, got {len(values)}")
    return values


def _made(spec: str) -> Any:
    """What the factory that `spec` names returns."""
    factory = _factory(spec)
    try:
        return factory()
    except TubelensError:
        raise
    except Exception as error:
        raise OptionError(f"{spec}: the factory failed: {type(error).__name__}: {error}") from error


def _factory(spec: str) -> Callable[[], Any]:
    """What `package.module:name` or `path.py:name` names."""
    where, _, name = spec.rpartition(":")
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise OptionError(f"{where}: no such file")
            loaded = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert loaded is not None
            assert loaded.loader is not None
            module = importlib.util.module_from_spec(loaded)
            sys.modules.setdefault(Path(where).stem, module)  # dataclasses look themselves up there
            beside = str(Path(where).resolve().parent)
            if beside not in sys.path:
                sys.path.append(beside)  # for the modules beside it, as when Python runs the file
            loaded.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except TubelensError:
        raise
    except Exception as error:  # whatever the user's file does
        raise OptionError(f"{spec}: cannot be imported: {type(error).__name__}: {error}") from error
    made = getattr(module, name, None)
    if not callable(made):
        raise OptionError(f"{spec}: {where} has no function {name!r}")
    return made  # type: ignore[no-any-return]
