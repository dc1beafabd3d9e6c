"""The public face: what joins models, video, methods and drawings."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens import zoo
from tubelens.capture import capturing, default_layer, layers
from tubelens.clip import Clip
from tubelens.errors import InputError, OptionError, TargetError, TubelensError
from tubelens.explanation import Explanation
from tubelens.layout import Layout
from tubelens.methods import method as method_named
from tubelens.methods.record import predictions
from tubelens.model import InputSpec, TorchModel
from tubelens.target import Logit, ScoreKind, Target, class_index, probabilities
from tubelens.video import ClipWindows
from tubelens.zoo.checkpoint import fit, read_checkpoint

TargetLike = Target | int | str
Progress = Callable[[int, int], None]


def load_model(
    name: str | TorchModel | nn.Module,
    weights: str | Path | None = None,
    *,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> TorchModel:
    """A model by name, with weights.

    Args:
        name: a known network (`tubelens models`), or one's own: `package.module:factory` or
            `path.py:factory`, where the factory returns a module or the result of `tubelens.wrap`.
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
    if not isinstance(made, nn.Module | TorchModel):
        raise OptionError(
            f"{name}: the factory must return a module or a wrapped model, not {type(made).__name__}"
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
    model = TorchModel(
        module=module,
        pack=pack or zoo.Normalise(_per_band(mean, channels), _per_band(std, channels)),
        unpack=unpack or (lambda out: out),
        spec=InputSpec(
            frames, (size, size) if isinstance(size, int) else size, resize, stride, rate, tuple(bands)
        ),
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
    _classes(model, scores)
    found: ScoreKind = "logits"
    if scores.shape[1] > 1 and bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-4).all()):
        found = "probs"
    if layer is None:
        layer = default_layer(layers(model, black)).name
    return replace(model, layer=layer, output=output or found)


@overload
def explain(
    model: TorchModel,
    clip: Clip | ClipWindows,
    method: Any = "tubes",
    target: TargetLike | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Explanation: ...
@overload
def explain(
    model: TorchModel,
    clip: Clip | ClipWindows,
    method: Any = "tubes",
    target: Sequence[TargetLike] = ...,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[Explanation]: ...
def explain(
    model: TorchModel,
    clip: Clip | ClipWindows,
    method: Any = "tubes",
    target: TargetLike | Sequence[TargetLike] | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Explanation | list[Explanation]:
    """Where and when the model looked.

    Args:
        model: from `load_model` or `wrap`.
        clip: from `model.read`; or `model.windows(path)`: every window of a long video is explained, and the
            maps are stitched with overlaps averaged.
        method: a name (`tubelens methods`), with its `options`; or a method such as `Tubes(layer="layer4")`.
        target: a label, a class index, a `Target`; `None`: the strongest class; `"top3"`: the three
            strongest; or a sequence of these, all from the same forward.
        progress: told (done, total) after each forward where there are several.
        **options: of a method given by name.

    Returns:
        One explanation, or a list where `target` is a sequence or `"topN"`.

    Raises:
        TargetError: unknown label, index out of range.
        HeadError, LayerError, ScoreError: see the method.
    """
    chosen = method_named(method, **options) if isinstance(method, str) else method
    if options and not isinstance(method, str):
        raise OptionError("options go with a method's name; a method that is made already has its own")
    if isinstance(clip, ClipWindows):
        found = _explain_windows(model, clip, chosen, target, progress or (lambda done, total: None))
    else:
        start = time.perf_counter()
        with _capture(model, clip, chosen, target) as capture:
            targets = resolve_targets(model, target, capture.scores)
            found = chosen.from_capture(capture, clip, targets, start)
    return found if _several(target) else found[0]


@contextmanager
def _capture(model: TorchModel, clip: Clip, method: Any, target: object) -> Iterator[Any]:
    count = len(target) if isinstance(target, list | tuple) else _top(target) or 1
    with capturing(model, clip.pixels[None], method.layer, method.needs_probe, count) as capture:
        yield capture


def _explain_windows(
    model: TorchModel,
    windows: ClipWindows,
    method: Any,
    target: TargetLike | Sequence[TargetLike] | None,
    progress: Progress,
) -> list[Explanation]:
    """Window by window; where the target is the strongest class, a first pass finds it over all of them."""
    start = time.perf_counter()
    scores: list[Tensor] = []
    total = len(windows) * (2 if _needs_scores(target) else 1)
    if _needs_scores(target):
        for _, clip in windows:
            scores.append(model(clip.pixels[None]))
            progress(len(scores), total)
        target = list(resolve_targets(model, target, torch.cat(scores)))
    parts: list[list[Any]] = []
    last: list[Explanation] = []
    first_pass, scores = len(scores), []
    values: list[list[float]] = []
    for first, clip in windows:
        with _capture(model, clip, method, target) as capture:
            targets = resolve_targets(model, target, capture.scores)
            last = method.from_capture(capture, clip, targets)
            scores.append(capture.scores.detach().clone())
        del capture  # its activations would live into the next window, and what is kept would lie between
        parts.append([part.shifted(first) for e in last for part in e.parts])
        values.append([e.provenance.score for e in last])
        progress(first_pass + len(scores), total)
    every = torch.cat(scores)
    predicted = predictions(model, every)
    probs = probabilities(every, model.output).mean(dim=0)
    n = len(every)
    return [
        replace(
            e,
            parts=tuple(row[i] for row in parts),
            size=windows.size,
            source=windows.source,
            provenance=replace(
                e.provenance,
                score=sum(row[i] for row in values) / n,
                prob=float(probs[e.target.classes[0]]),
                predicted=predicted,
                forwards=first_pass + n * e.provenance.forwards,
                backwards=n * e.provenance.backwards,
                seconds=time.perf_counter() - start,
                facts={"windows": float(n)},
                notes=(*e.provenance.notes, "score and probabilities are means over the windows"),
            ),
        )
        for i, e in enumerate(last)
    ]


def _several(target: object) -> bool:
    return (isinstance(target, Sequence) and not isinstance(target, str)) or _top(target) is not None


def _top(target: object) -> int | None:
    if isinstance(target, str) and target.lower().startswith("top") and target[3:].isdigit():
        return int(target[3:])
    return None


def _needs_scores(target: object) -> bool:
    items = target if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    return any(item is None or _top(item) is not None for item in items)


def resolve_targets(
    model: TorchModel, target: TargetLike | Sequence[TargetLike] | None, scores: Float[Tensor, "b k"]
) -> list[Target]:
    """Targets from what a user writes; the strongest classes are by mean score over the batch.

    Raises:
        TargetError: unknown label (the nearest are named), index out of range, more than there are, or none.
    """
    k = _classes(model, scores)
    items = list(target) if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    if not items:
        raise TargetError("no target given: a label, a class index, or 'top3'")
    ranked = scores.detach().mean(dim=0).argsort(descending=True, stable=True).tolist()
    found: list[Target] = []
    for item in items:
        n = 1 if item is None else _top(item)
        if n is not None:
            if not 1 <= n <= k:
                raise TargetError(f"{item}: the model has {k} classes")
            found += [Logit(i) for i in ranked[:n]]
        elif isinstance(item, int | str):
            found.append(Logit(class_index(item, k, model.labels)))
        else:
            for index in item.classes:  # type: ignore[union-attr]
                class_index(index, k, model.labels)
            found.append(item)  # type: ignore[arg-type]
    return found


def predict(model: TorchModel, clip: Clip, n: int = 5) -> tuple[tuple[str, float], ...]:
    """The `n` strongest classes of a clip: (label, probability), strongest first."""
    scores = model(clip.pixels[None])
    _classes(model, scores)
    return predictions(model, scores, n)


def _classes(model: TorchModel, scores: Tensor) -> int:
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
