"""The spectral ledger: what each band brought to the score, alone and together, in the clip and in its tubes.

found = tl.ledger(model, clip, tl.explain(model, clip, "rise", "unlike"))
print(found)
found.save("bands.png")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelens.accounts import WHOLE, Ledger, Region
from tubelens.clip import Clip
from tubelens.coalitions import Coalitions
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill
from tubelens.fill import fill as fill_named
from tubelens.methods import short_name
from tubelens.methods.record import predictions
from tubelens.metrics.edits import VOLUME, ScoreOf, map_of, scored_target, top_voxels, widened
from tubelens.metrics.options import checked, one_of
from tubelens.model import Model, TorchModel
from tubelens.running import RUN, Run
from tubelens.scoring import Scored, score_variants
from tubelens.spectra import told_apart
from tubelens.target import Contrast, Logit, Target, class_index, describe, index_of, probabilities
from tubelens.variants import Batch, Made, Make, Variants

SPECK = 0.1
"""Share of the first tube's mass below which a connected part is a speck and no tube."""
Of = Explanation | Sequence[Explanation] | Target | SupportsIndex | str | None
FLAT = "the map is the same everywhere or nowhere positive, so it has no tube"
KINDS = "a ledger is of a label, a class index, a target, or of explanations of one class"
Maps = Sequence[Explanation]


def ledger(
    model: Model,
    clip: Clip,
    of: Of = None,
    groups: str = "",
    *,
    fill: str | Fill = "mean",
    tubes: int = 3,
    volume: float | None = None,
    score: ScoreOf | None = None,
    seed: int = 0,
    run: Run = RUN,
) -> Ledger:
    """What each band brought to the score of a class: exact Shapley values, and what bands do together.

    The groups of bands are the players of a game: `v(S)` is the score of the clip in which the bands of S are
    as they are and the others are filled, everywhere or within a tube. Each band's Shapley value is divided
    into what it brings alone and half of what it brings together with each other band (see
    `tubelens.shapley.taylor`), and all of it adds up to what filling all of them costs. Where only two bands
    together tell the class (exclusive or), neither brings anything alone.

    Args:
        model: a network or a black box.
        clip: with at least two bands.
        of: a map, or several of one class, whose tubes are regions too; or a label, a class index or a target
            for the whole clip alone; None: the strongest class.
        groups: bands that are one player, as `RGB|IR`; empty: R, G and B together where there are others, and
            each other band by itself. Six players are the most.
        fill: what takes the place of bands.
        tubes: of each map, at most: the connected parts of its top voxels, widened by a pixel.
        volume: share of the voxels at the top; default 0.05.
        score: `logit` or `prob`; a contrast stays itself. Default the logit, because independent pieces of
            evidence add up in it, while a probability that is near 1 already makes them look redundant; but
            the probability where the model gives nothing else.
        seed: of ties.
        run: batch size and the like; precision `auto` is fp32.

    Returns:
        A ledger, for `2^n - 1` forwards a region with n groups, and one for the intact clip.

    Raises:
        OptionError: fewer than two groups, groups that do not fit the bands, bands that are copies of one,
            maps of several classes or of another size than the clip.
        TargetError: unknown label, index out of range.
        ScoreError: NaN or infinity.
    """
    terms = Terms(groups, fill, tubes, volume, score, seed)
    terms.players(clip)  # complains before anything is scored
    intact: Tensor | None = None
    given: Maps | Target
    of = index_of(of)
    if isinstance(of, int | str | None):
        intact = score_variants(model, clip, Made(()), [Logit(0)], run).scores
        given = Logit(int(intact.argmax()) if of is None else class_index(of, intact.shape[1], model.labels))
    elif isinstance(of, Target):
        given = of
    elif isinstance(of, Explanation | Sequence):
        given = [of] if isinstance(of, Explanation) else [*of]
    else:
        raise OptionError(f"{KINDS}, not of {type(of).__name__} {str(of)[:50]}")
    return ledgers(model, clip, [given], terms, run, intact)[0]


@dataclass(frozen=True)
class Terms:
    """How ledgers are made; see `ledger`."""

    groups: str = ""
    fill: str | Fill = "mean"
    tubes: int = 3
    volume: float | None = None
    score: ScoreOf | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checked(self.volume, 0, self.seed)
        if self.score is not None:
            one_of(score=(self.score, ScoreOf))
        if not isinstance(index_of(self.tubes), int) or self.tubes < 0:
            raise OptionError(f"tubes must be at least 0, a whole number, not {self.tubes}")
        if not isinstance(self.groups, str):
            raise OptionError(f"groups are names of bands, as in RGB|IR, not {self.groups!r}")
        fill_named(self.fill)

    def players(self, clip: Clip) -> dict[str, list[int]]:
        """The groups of bands.

        Raises:
            OptionError: fewer than two, or they do not fit the clip's bands, or these are copies of one.
        """
        players = told_apart(clip.pixels, clip.bands, self.groups)
        if len(players) < 2:
            mend = "the clip has no other" if len(clip.bands) == 1 else "give two groups or more"
            raise OptionError(
                f"a ledger weighs bands against each other, and {next(iter(players))} stands alone: {mend}"
            )
        return players

    def most(self, clip: Clip, maps: int) -> int:
        """Forwards that ledgers of so many maps will take at most; one more below fp32."""
        return (1 + maps * self.tubes) * ((1 << len(self.players(clip))) - 1) + 1

    def scored(self, model: Model, target: Target) -> Target:
        """What is scored for a target of this model."""
        return scored_target(target, self.score or ("prob" if model.output == "probs" else "logit"))


def ledgers(
    model: Model,
    clip: Clip,
    of: Sequence[Maps | Target],
    terms: Terms,
    run: Run = RUN,
    intact: Float[Tensor, "1 k"] | None = None,
) -> list[Ledger]:
    """Several ledgers of one clip in one queue of forwards.

    The whole clip is a region of all of them and is scored once, and so are equal tubes.

    Args:
        model: see `ledger`.
        clip: likewise.
        of: for each ledger its maps or its target.
        terms: of all of them.
        run: see `ledger`.
        intact: scores of the clip itself, where one forward found them already.
    """
    players = terms.players(clip)
    books = [_opened(given, model, clip, terms) for given in of]
    masks: dict[bytes, Tensor] = {}
    for book in books:
        masks |= {_key(mask): mask for _, mask in book.regions}
    targets = list(dict.fromkeys(book.target for book in books))
    run = replace(run, seconds=None, precision="fp32" if run.precision == "auto" else run.precision)
    coalitions = Coalitions(list(masks.values()), list(players.values()), fill_named(terms.fill))
    # at a lower precision the whole clip too, or its rounding would pass for what bands bring
    lower = isinstance(model, TorchModel) and run.precision != "fp32"
    scored = score_variants(model, clip, _AndAll(coalitions) if lower else coalitions, targets, run, intact)
    values_of = torch.cat([part.values.double().cpu() for part in scored], dim=1)
    games = values_of[:, : len(coalitions)].view(len(targets), len(masks), -1)
    whole = values_of[:, -1] if lower else scored.intact.double().cpu()
    forwards = (scored.forwards + (intact is not None)) / len(books)
    found = []
    for book in books:
        row = targets.index(book.target)
        values = dict(zip(masks, games[row].tolist(), strict=True))
        regions = [
            Region(name, _seconds(clip, m), float(m.double().mean()), (*values[_key(m)], float(whole[row])))
            for name, m in book.regions
        ]
        found.append(_closed(book, regions, model, clip, players, terms, scored, forwards))
    return found


def tubes_of(
    saliency: Float[Tensor, "T H W"], most: int = 3, volume: float = VOLUME, seed: int = 0
) -> list[Bool[Tensor, "T H W"]]:
    """The connected parts of a map's top voxels, at most so many.

    Voxels touch also over edges and corners, so that what moves by a pixel a frame is one tube. The part with
    the largest positive mass comes first; those with less than a tenth of its mass are left out, and those
    with none.
    """
    from skimage import measure  # slow to import, and few need it

    top = top_voxels(saliency, volume, seed)
    label: Callable[..., np.ndarray] = measure.label
    parts = torch.from_numpy(label(top.numpy(), connectivity=3).astype(np.int64))
    weights = torch.nan_to_num(saliency.detach().cpu().double()).clamp_min(0).flatten()
    mass = torch.zeros(int(parts.max()) + 1, dtype=torch.float64).index_add_(0, parts.flatten(), weights)[1:]
    order = mass.argsort(descending=True, stable=True)[:most].tolist()
    return [parts == i + 1 for i in order if mass[i] >= SPECK * mass[order[0]] > 0]


@dataclass(frozen=True, eq=False)
class _AndAll:
    """Versions of a clip, and last the clip as it is."""

    others: Variants

    def __len__(self) -> int:
        return len(self.others) + 1

    def over(self, pixels: Float[Tensor, "c T H W"]) -> Make:
        make, n = self.others.over(pixels), len(self.others)

        def made(start: int, stop: int) -> Batch:
            if stop <= n:
                return make(start, stop)
            before = [make(start, n)[0]] if start < n else []
            return torch.cat([*before, pixels[None]]), None

        return made


@dataclass(eq=False)
class _Book:
    """What one ledger asks for."""

    target: Target
    regions: list[tuple[str, Tensor]]
    notes: list[str] = field(default_factory=list)


def _opened(given: Maps | Target, model: Model, clip: Clip, terms: Terms) -> _Book:
    whole = (WHOLE, torch.ones(clip.size, dtype=torch.bool))
    if isinstance(given, Target):
        return _Book(terms.scored(model, given), [whole])
    if not given or not all(isinstance(e, Explanation) for e in given):
        raise OptionError(KINDS)
    targets = list(dict.fromkeys(terms.scored(model, e.target) for e in given))
    if len(targets) > 1:
        labels = ", ".join(dict.fromkeys(e.provenance.label for e in given))
        raise OptionError(f"a ledger is of one target, and these maps are of several: {labels}")
    book = _Book(targets[0], [whole])
    methods = [short_name(e.provenance.method) for e in given]
    for i, e in enumerate(given if terms.tubes else ()):
        count = methods[: i + 1].count(methods[i])
        prefix = f"{methods[i]}{f'-{count}' if count > 1 else ''} " if len(given) > 1 else ""
        parts = tubes_of(
            map_of(e, clip, None), terms.tubes, VOLUME if terms.volume is None else terms.volume, terms.seed
        )
        book.regions += [(f"{prefix}tube {k}", widened(part, 1)) for k, part in enumerate(parts, 1)]
        if not parts:
            book.notes.append(f"{prefix.strip()}: {FLAT}" if prefix else FLAT)
    return book


def _key(mask: Bool[Tensor, "T H W"]) -> bytes:
    return mask.numpy().tobytes()


def _seconds(clip: Clip, mask: Bool[Tensor, "T H W"]) -> tuple[float, float]:
    frames = mask.any(dim=2).any(dim=1).nonzero().flatten().tolist()
    start, end = clip.source.span
    times = [min(max(clip.source.times[t], start), end) for t in frames]  # padding lies after the span
    return min(times), max(times)


def _closed(
    book: _Book,
    regions: Sequence[Region],
    model: Model,
    clip: Clip,
    players: dict[str, list[int]],
    terms: Terms,
    scored: Scored,
    forwards: float,
) -> Ledger:
    scores, target = scored.scores.detach(), book.target
    kind = "logit" if isinstance(target, Logit) else "probability"
    return Ledger(
        label=describe(target, model.labels),
        target=target,
        prob=float(probabilities(scores, model.output)[0, target.classes[0]]),
        predicted=predictions(model, scores),
        groups=tuple((name, tuple(clip.bands[b] for b in own)) for name, own in players.items()),
        regions=tuple(regions),
        score="difference of logits" if isinstance(target, Contrast) else kind,
        fill=repr(fill_named(terms.fill)),
        model=model.name,
        weights=model.weights,
        video=clip.source.name,
        forwards=forwards,
        notes=tuple(dict.fromkeys((*clip.source.notes, *book.notes, *scored.notes))),
    )
