"""The public face: what joins models, video, methods and drawings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex, overload

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.budget import one_forward, within
from tubelens.capture import capturing
from tubelens.clip import Clip
from tubelens.errors import InputError, OptionError, TargetError
from tubelens.explanation import Explanation
from tubelens.layout import Grid
from tubelens.loading import class_count
from tubelens.methods import method as method_named
from tubelens.methods.protocol import FromCapture, Method, refusal
from tubelens.methods.record import predictions
from tubelens.model import Model, TorchModel, network
from tubelens.running import RUN, Budget, Progress, Run
from tubelens.target import Logit, Target, class_index, index_of, probabilities
from tubelens.video import ClipViews, ClipWindows

TargetLike = Target | SupportsIndex | str
Many = ClipWindows | ClipViews
OVER_WINDOWS = "score and probabilities are means over the windows"
Targets = TargetLike | Sequence[TargetLike] | None


@overload
def explain(
    model: Model,
    clip: Clip | Many,
    method: Any = "tubes",
    target: TargetLike | None = None,
    *,
    budget: int | str | Budget | None = None,
    run: Run = RUN,
    progress: Progress | None = None,
    **options: Any,
) -> Explanation: ...
@overload
def explain(
    model: Model,
    clip: Clip | Many,
    method: Any = "tubes",
    target: Sequence[TargetLike] = ...,
    *,
    budget: int | str | Budget | None = None,
    run: Run = RUN,
    progress: Progress | None = None,
    **options: Any,
) -> list[Explanation]: ...
def explain(
    model: Model,
    clip: Clip | Many,
    method: Any = "tubes",
    target: Targets = None,
    *,
    budget: int | str | Budget | None = None,
    run: Run = RUN,
    progress: Progress | None = None,
    **options: Any,
) -> Explanation | list[Explanation]:
    """Where and when the model looked.

    Args:
        model: from `load_model`, `wrap` or `wrap_scorer`.
        clip: from `model.read`; or `model.windows(path)`: every window of a long video is explained, and the
            maps are stitched with overlaps averaged; or `model.views(path)`: clips and crops, likewise.
        method: a name (`tubelens methods`), with its `options`; or a method such as `RISE(n=500)`.
        target: a label, a class index, a `Target`; `None`: the strongest class; `"top3"`: the three
            strongest; or a sequence of these, all from the same passes. A label or an index stands for what
            the method explains: the logit or the probability.
        budget: what it may cost: so many forwards (`500`), or a time (`"30s"`); a method whose cost is fixed
            ignores it and says so in its notes.
        run: batch size, precision and the like.
        progress: told (done, total) after each batch where there are several; the same as `Run(progress=)`.
        **options: of a method given by name.

    Returns:
        One explanation, or a list where `target` is a sequence or `"topN"`.

    Raises:
        TargetError: unknown label, index out of range.
        OptionError: a budget that not even the method's least effort fits.
        HeadError, LayerError, ScoreError: see the method.
    """
    if options and not isinstance(method, str):
        raise OptionError("options go with a method's name; a method that is made already has its own")
    chosen = method_named(method, **options) if isinstance(method, str) else method
    run = run if progress is None else replace(run, progress=progress)
    found = explain_all(model, clip, [chosen], target, budget=budget, run=run)[0]
    return found if _several(target) else found[0]


def explain_all(
    model: Model,
    clip: Clip | Many,
    methods: Sequence[Any],
    target: Targets = None,
    *,
    budget: int | str | Budget | None = None,
    run: Run = RUN,
) -> list[list[Explanation]]:
    """Several methods in as few passes as possible: all that read one forward's activations share it.

    Args:
        model: as for `explain`.
        clip: likewise.
        methods: names or methods.
        target: as for `explain`; every method explains the same ones.
        budget: for each method.
        run: as for `explain`.

    Returns:
        A list a method, in the order given, of one explanation a target.
    """
    if not methods:
        raise OptionError("no method given (`tubelens methods` lists them)")
    if not isinstance(clip, Clip | Many):
        raise InputError(
            f"a clip is explained, not {type(clip).__name__}: read one with model.read(path), or make one of"
            " frames (t, h, w, c) with tubelens.Clip.from_array(frames)"
        )
    made = [method_named(m) if isinstance(m, str) else m for m in methods]
    for m in made:
        _possible(model, m)
    notes: list[tuple[str, ...]] = [()] * len(made)
    if budget is not None:
        made, notes, run = _within(made, Budget.of(budget), model, clip, target, run)
    if isinstance(clip, Many):
        found = _explain_windows(model, clip, made, target, run)
    else:
        found, _ = _explain_clip(model, clip, made, target, run)
    return [[_noted(e, note) for e in row] for row, note in zip(found, notes, strict=True)]


def _possible(model: Model, method: Any) -> None:
    """Whether the method can explain the model at all."""
    if isinstance(method, type) or not isinstance(method, Method):
        raise OptionError(f"{refusal(method)} (`tubelens methods` lists them; `explain_all` takes several)")
    if method.needs != "scorer":
        network(model, type(method).__name__)


def _within(
    methods: Sequence[Any], budget: Budget, model: Model, clip: Clip | Many, target: Targets, run: Run
) -> tuple[list[Any], list[tuple[str, ...]], Run]:
    first = next(iter(clip))[1] if isinstance(clip, Many) else clip
    windows = len(clip) if isinstance(clip, Many) else 1
    seconds = 0.0 if budget.seconds is None else one_forward(model, first)
    looked_up = int(_needs_scores(target) or model.labels is None)
    fitted = [within(m, budget, model, first, run, seconds, windows, looked_up) for m in methods]
    if budget.seconds is not None:
        run = replace(run, seconds=budget.seconds / windows)
    return [m for m, _ in fitted], [note for _, note in fitted], run


def _noted(e: Explanation, notes: tuple[str, ...]) -> Explanation:
    if not notes:
        return e
    return replace(e, provenance=replace(e.provenance, notes=(*e.provenance.notes, *notes)))


def _explain_clip(
    model: Model, clip: Clip, methods: Sequence[Any], target: Targets, run: Run
) -> tuple[list[list[Explanation]], Tensor | None]:
    """One forward for all methods that read a layer; it also tells the targets to the others.

    Returns:
        A row of explanations a method, and the clip's scores where they were needed.
    """
    start = time.perf_counter()
    scores: Tensor | None = None
    found: list[list[Explanation] | None] = [None] * len(methods)
    wanted: list[int | Target] | None = None
    shared, names, probe = _shared(model, methods)
    if shared and isinstance(model, TorchModel):
        with capturing(model, clip.pixels[None], names, probe, _count(target)) as capture:
            scores = capture.scores.detach().clone()
            wanted = _wanted(model, target, scores)
            for i in shared:
                found[i] = methods[i].from_capture(capture, clip, _targets(wanted, methods[i]), start)
    extra = 0
    if wanted is None and (_needs_scores(target) or model.labels is None):
        scores, extra = model(clip.pixels[None]), 1
    if wanted is None:
        wanted = _wanted(model, target, scores)
    for i, m in enumerate(methods):
        if found[i] is None:
            found[i] = [_counted(e, extra) for e in m(model, clip, _targets(wanted, m), run)]
            extra = 0
    return [row or [] for row in found], scores


def _shared(model: Model, methods: Sequence[Any]) -> tuple[list[int], tuple[str | None, ...], bool]:
    """Numbers of the methods that one forward can serve, the layers they read, whether the first is probed.

    A forward can be probed at one layer; who wants another one probed goes alone. None among the layers is
    the default of a model that names none.
    """
    reading = [i for i, m in enumerate(methods) if isinstance(m, FromCapture)]
    if not reading or not isinstance(model, TorchModel):
        return [], (), False
    asked = {i: m if isinstance(m := methods[i].layer, tuple) else (m,) for i in reading}
    asked = {i: tuple(name or model.layer for name in row) for i, row in asked.items()}
    probed = [asked[i] for i in reading if methods[i].needs_probe]
    shared = [i for i in reading if not methods[i].needs_probe or asked[i] == probed[0]]
    # the first is the one that is probed
    names = tuple(dict.fromkeys(n for row in (*probed[:1], *(asked[i] for i in shared)) for n in row))
    return shared, names, bool(probed)


def _counted(e: Explanation, forwards: int) -> Explanation:
    if not forwards:
        return e
    return replace(e, provenance=replace(e.provenance, forwards=e.provenance.forwards + forwards))


def _explain_windows(
    model: Model, windows: Many, methods: Sequence[Any], target: Targets, run: Run
) -> list[list[Explanation]]:
    """Window by window; where the target is the strongest class, a first pass finds it over all of them."""
    start = time.perf_counter()
    total = len(windows) * (2 if _needs_scores(target) else 1)
    scores: list[Tensor] = []
    if _needs_scores(target):
        for _, clip in windows:
            scores.append(model(clip.pixels[None]))
            run.tell(len(scores), total)
        target = list(_wanted(model, target, torch.cat(scores)))
    first_pass, scores = len(scores), []
    quiet = replace(run, progress=None)
    parts: list[list[list[Grid]]] = []  # a window: a list of parts for each explanation
    bands: list[list[list[tuple[str, Grid]]]] = []  # likewise, where the method tells bands apart
    values: list[list[float]] = []
    found: list[list[dict[str, float]]] = []
    notes: list[list[tuple[str, ...]]] = []
    last: list[list[Explanation]] = []
    place: Any  # of a window or of a view: what made it knows where it lies
    for place, clip in windows:
        last, seen = _explain_clip(model, clip, methods, target, quiet)
        scores.append(model(clip.pixels[None]) if seen is None else seen)
        every = [e for row in last for e in row]
        parts.append([[windows.put(place, part) for part in e.parts] for e in every])
        bands.append([[(name, windows.put(place, part)) for name, part in e.by_band] for e in every])
        values.append([e.provenance.score for e in every])
        found.append([e.provenance.facts for e in every])
        notes.append([e.provenance.notes for e in every])
        run.tell(first_pass + len(scores), total)
    whole = torch.cat(scores)
    predicted = predictions(model, whole)
    probs = probabilities(whole, model.output).mean(dim=0)
    n, seconds = len(whole), time.perf_counter() - start
    stitched = iter(
        replace(
            e,
            parts=tuple(part for window in parts for part in window[i]),
            by_band=tuple(band for window in bands for band in window[i]),
            size=windows.size,
            source=windows.source,
            provenance=replace(
                e.provenance,
                score=sum(row[i] for row in values) / n,
                prob=float(probs[e.target.classes[0]]),
                predicted=predicted,
                forwards=first_pass + n * e.provenance.forwards,
                backwards=n * e.provenance.backwards,
                seconds=seconds,
                facts=_means(facts[i] for facts in found) | {"windows": float(n)},
                notes=(*dict.fromkeys(line for rows in notes for line in rows[i]), OVER_WINDOWS),
            ),
        )
        for i, e in enumerate(e for row in last for e in row)
    )
    return [[next(stitched) for _ in row] for row in last]


def _means(facts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Of what a method says of every window: the constant and the like."""
    rows = list(facts)
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def _several(target: object) -> bool:
    return (isinstance(target, Sequence) and not isinstance(target, str)) or _top(target) is not None


def _top(target: object) -> int | None:
    if isinstance(target, str) and target.lower().startswith("top") and target[3:].isdigit():
        return int(target[3:])
    return None


def _count(target: object) -> int:
    """How many targets there will be, about."""
    return len(target) if isinstance(target, list | tuple) else _top(target) or 1


def _needs_scores(target: object) -> bool:
    items = target if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    return any(item is None or _top(item) is not None for item in items)


def _wanted(model: Model, target: Targets, scores: Float[Tensor, "b k"] | None) -> list[int | Target]:
    """Class indices, and targets where those were given, from what a user writes.

    The strongest classes are by mean score over the batch. Scores may be absent where none is asked for by
    its strength and the labels tell how many classes there are.

    Raises:
        TargetError: unknown label (the nearest are named), index out of range, more than there are, or none.
    """
    k = len(model.labels or ()) if scores is None else class_count(model, scores)
    items: list[Any] = [target]
    if isinstance(target, Sequence) and not isinstance(target, str):
        items = list(target)
    if not items:
        raise TargetError("no target given: a label, a class index, or 'top3'")
    found: list[int | Target] = []
    for item in map(index_of, items):
        n = 1 if item is None else _top(item)
        if n is not None:
            assert scores is not None
            if not 1 <= n <= k:
                raise TargetError(f"{item}: the model has {k} classes")
            found += scores.detach().mean(dim=0).argsort(descending=True, stable=True)[:n].tolist()
        elif isinstance(item, int | str):
            found.append(class_index(item, k, model.labels))
        elif not isinstance(item, Target):
            raise TargetError(f"a target is a label, a class index or, say, Logit(3), not {str(item)[:50]}")
        else:
            for index in item.classes:
                class_index(index, k, model.labels)
            found.append(item)
    return found


def _targets(wanted: Sequence[int | Target], method: Any) -> list[Target]:
    """A class stands for what the method explains: its logit or its probability."""
    return [method.explains(item) if isinstance(item, int) else item for item in wanted]


def resolve_targets(
    model: Model, target: Targets, scores: Float[Tensor, "b k"], explains: type[Any] = Logit
) -> list[Target]:
    """Targets from what a user writes; a class stands for its `explains` (`Logit` or `Prob`).

    Raises:
        TargetError: unknown label (the nearest are named), index out of range, more than there are, or none.
    """
    return [explains(item) if isinstance(item, int) else item for item in _wanted(model, target, scores)]


def predict(model: Model, clip: Clip, n: int = 5) -> tuple[tuple[str, float], ...]:
    """The `n` strongest classes of a clip: (label, probability), strongest first."""
    scores = model(clip.pixels[None])
    class_count(model, scores)
    return predictions(model, scores, n)
