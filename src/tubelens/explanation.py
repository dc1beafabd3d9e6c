"""The saliency tube: what was asked, the answer at native resolution, and everything needed to redo it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Source
from tubelens.errors import OptionError, nearest
from tubelens.layout import Centres, Grid
from tubelens.target import Target
from tubelens.upsample import Align, fractional_index, matrices, resample

Writer = Callable[..., Path]
WRITERS: dict[str, Writer] = {}
"""Suffix -> writer, filled by `tubelens.render` and `tubelens.store`; `""` writes a folder of frames."""
Scale = Literal["range", "positive"]
"""What heat 0 and 1 stand for: the minimum and the maximum, or nothing and the strongest positive values."""
STRONGEST = 0.995
"""Quantile of the positive values that is drawn hottest: a few outliers must not darken all the rest."""
REPRS: dict[str, Callable[[Explanation], str]] = {}
"""MIME type -> how an explanation shows itself in a notebook; filled by `tubelens.render`."""


@dataclass(frozen=True)
class Provenance:
    """How an explanation was made: enough to redo it.

    Attributes:
        method: repr of the method; evaluating it rebuilds the method.
        model: name of the model. `weights`: where its weights came from.
        layer: the layer that was read, None for a black-box method.
        label: what the target is called.
        score: value of the target on this clip. `prob`: probability of its class.
        predicted: the strongest classes, (label, probability), strongest first.
        seed: of what was random, None where nothing was.
        precision: of the forward passes.
        forwards, backwards: passes of one clip through the network; a backward through the head only counts
            as a backward.
        seconds: wall time.
        device: where it ran. `versions`: of the libraries.
        facts: numbers that the method reports about itself, such as the head's constant.
        notes: what the user should know, one sentence each.
    """

    method: str
    model: str
    weights: str
    layer: str | None
    label: str
    score: float
    prob: float
    predicted: tuple[tuple[str, float], ...]
    seed: int | None = None
    precision: str = "fp32"
    forwards: float = 0
    backwards: float = 0
    seconds: float = 0.0
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Explanation:
    """A signed map over a clip.

    Attributes:
        parts: one grid for most models; several for pathways, views or windows.
        size: frames, height and width of the clip.
        source: the video that drawing streams its frames from.
        target: what is explained.
        provenance: how it was made.
        align: how `saliency`, `heat` and drawings place the cells: where they look (`"centres"`), or from
            corner to corner as published (`"endpoints"`).
        scale: what `heat` and drawings call cold and hot. `"range"`: the minimum and the maximum, as
            published for tubes. `"positive"`: zero and the strongest positive values, so that a voxel without
            effect is cold; for maps whose zero means that.
        by_band: where the method told the bands apart, the name and the grid of each group of bands (as many
            as there are parts); the map itself is then their sum, or what the method says. `band` and `bands`
            read them.
    """

    parts: tuple[Grid, ...]
    size: tuple[int, int, int]
    source: Source
    target: Target
    provenance: Provenance
    align: Align = "centres"
    scale: Scale = "range"
    by_band: tuple[tuple[str, Grid], ...] = ()

    @property
    def bands(self) -> tuple[str, ...]:
        """Groups of bands that the method told apart; empty where it did not."""
        return tuple(dict.fromkeys(name for name, _ in self.by_band))

    def band(self, name: str) -> Explanation:
        """The map of one group of bands, as an explanation of its own: its label names them.

        Raises:
            OptionError: the method did not tell them apart.
        """
        if name not in self.bands:
            known = (
                f"it has {', '.join(self.bands)}"
                if self.bands
                else ("this map is of all bands together: use a method that tells them apart")
            )
            raise OptionError(f"no map of band {name!r}{nearest(name, self.bands)}: {known}")
        parts = tuple(grid for own, grid in self.by_band if own == name)
        record = replace(self.provenance, label=f"{self.provenance.label} · {name}")
        return replace(self, parts=parts, provenance=record, by_band=())

    @property
    def grid(self) -> Float[Tensor, "t h w"]:
        """The first part's values: signed, unnormalised, at native resolution."""
        return self.parts[0].values

    @property
    def saliency(self) -> Float[Tensor, "T H W"]:
        """Signed, at the clip's resolution: `upsample()`."""
        return self.upsample()

    @property
    def heat(self) -> Float[Tensor, "T H W"]:
        """`saliency` scaled to [0, 1], once over the whole clip, as `scale` tells; zeros if constant."""
        return scaled(self.saliency, *self.limits)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """What heat 0 and 1 stand for; found frame by frame, so that long videos fit."""
        if self.scale == "positive":
            values = torch.cat([part.values.flatten() for part in self.parts])
            positive = values[values > 0].double()
            return 0.0, float(np.quantile(positive.numpy(), STRONGEST)) if len(positive) else 0.0
        _, h, w = self.size
        low, high = float("inf"), float("-inf")
        for frame in self._stream(np.arange(self.size[0], dtype=float), _axis(h, h), _axis(w, w)):
            seen = frame[~frame.isnan()]  # crops may leave places that none of them saw
            low, high = min(low, float(seen.min())), max(high, float(seen.max()))
        return low, high

    def upsample(
        self, size: tuple[int, int, int] | None = None, order: int = 3, align: Align | None = None
    ) -> Float[Tensor, "T H W"]:
        """The map interpolated to `size` (frames, height, width); by default the clip's.

        Args:
            size: output samples; they tile the clip evenly (half-pixel), whatever their number.
            order: 3 cubic spline, 1 linear, 0 nearest.
            align: `"centres"` puts each cell where it looks; `"endpoints"` stretches the grid from corner to
                corner and equals `scipy.ndimage.zoom`. Default: this explanation's own.
        """
        places = [_axis(n, extent) for n, extent in zip(size or self.size, self.size, strict=True)]
        if (align or self.align) == "endpoints":
            places = [_ends(n, extent) for n, extent in zip(size or self.size, self.size, strict=True)]
        if len(self.parts) == 1:
            part = self.parts[0]
            return resample(part.values, self._indices(part, places, align), order)
        tau, y, x = places
        return torch.stack(list(self._stream(tau, y, x, order, align)))

    def at(
        self, times: Sequence[float], size: tuple[int, int], order: int = 3
    ) -> Iterator[Float[Tensor, "H W"]]:
        """The map on source frames shown at `times` (seconds), drawn at `size` (height, width).

        Pixels outside the crop that the model saw are NaN. Before and after the clip's span the first and the
        last map are held: the caller decides what that means.
        """
        box, (_, h, w) = self.source.box, self.size
        full_h, full_w = self.source.size
        y = ((np.arange(size[0]) + 0.5) * full_h / size[0] - box.top) / box.height * h - 0.5
        x = ((np.arange(size[1]) + 0.5) * full_w / size[1] - box.left) / box.width * w - 0.5
        # what lies outside is always a run at either end, and slices are filled faster than masks
        down, along = _within(y, 0, h), _within(x, 0, w)
        for frame in self._stream(self.source.clip_index(times), y, x, order=order):
            frame[: down.start] = frame[down.stop :] = torch.nan
            frame[:, : along.start] = frame[:, along.stop :] = torch.nan
            yield frame

    def over_time(self, times: Sequence[float] | None = None) -> Float[Tensor, "n"]:
        """Mean heat of each frame of the clip, or of the source frames shown at `times`."""
        tau = np.arange(self.size[0], dtype=float) if times is None else self.source.clip_index(times)
        _, h, w = self.size
        y, x = _axis(min(h, 32), h), _axis(min(w, 32), w)
        low, high = self.limits
        # places that no crop saw count neither way
        return torch.stack([scaled(frame, low, high).nanmean() for frame in self._stream(tau, y, x)])

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write it; the suffix decides what: a drawing, a folder of frames (no suffix), or the numbers.

        Raises:
            OptionError: a suffix that nothing writes.
            OutputError: no room, no permission; nothing half-written is left.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in WRITERS:
            known = ", ".join(sorted(s for s in WRITERS if s))
            raise OptionError(
                f"{path}: cannot write {suffix!r}: use one of {known}, or no suffix for a folder"
            )
        try:
            signature(WRITERS[suffix]).bind(self, path, **options)
        except TypeError as error:
            raise OptionError(f"{path}: {error}") from error
        return WRITERS[suffix](self, path, **options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows: a small embedded video where drawing is available, and one line of text."""
        wanted = [m for m in REPRS if (not include or m in include) and not (exclude and m in exclude)]
        return {"text/plain": repr(self)} | {mime: REPRS[mime](self) for mime in wanted}

    def __repr__(self) -> str:
        p = self.provenance
        shapes = ", ".join("x".join(map(str, part.values.shape)) for part in self.parts[:3])
        more = f" and {len(self.parts) - 3} more" if len(self.parts) > 3 else ""
        return (
            f"<Explanation of {p.label!r} (p={p.prob:.3f}) by {p.method} on {self.source.name}: "
            f"grid {shapes}{more}, clip {'x'.join(map(str, self.size))}>"
        )

    def _indices(
        self, part: Grid, places: Sequence[np.ndarray], align: Align | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fractional cell numbers of places given in clip coordinates (see `_ends` for endpoints)."""
        _, h, w = self.size
        centres: tuple[Centres, ...] = (part.t, part.y, part.x)
        if (align or self.align) == "centres":
            t, y, x = (fractional_index(p, c) for p, c in zip(places, centres, strict=True))
            return t, y, x
        top, left, bottom, right = part.area or (0, 0, h, w)
        spans = (part.span, (top, bottom), (left, right))
        t, y, x = (
            np.clip((p - a) / (b - 1 - a) if b - 1 > a else p, 0, 1) * (len(c) - 1)
            for p, c, (a, b) in zip(places, centres, spans, strict=True)
        )
        return t, y, x

    def _stream(
        self, tau: np.ndarray, y: np.ndarray, x: np.ndarray, order: int = 3, align: Align | None = None
    ) -> Iterator[Float[Tensor, "H W"]]:
        """One map a moment `tau` (clip frames): the weighted mean of the parts that cover it.

        Each part's matrices are built once and only for the moments it covers, so that memory grows with the
        number of windows, not with its square.
        """
        covering: list[list[tuple[Grid, Tensor, Tensor, Tensor]]] = [[] for _ in tau]
        for part in self.parts:
            start, stop = part.span
            mine = np.flatnonzero((tau >= start - 0.5) & (tau <= stop - 0.5))
            if len(mine):
                places = self._indices(part, (tau[mine], y, x), align)
                when, rows, cols = matrices(part.values, places, order)
                for row, moment in zip(when, mine, strict=True):
                    covering[moment].append((part, row, rows, cols))
        for parts in covering:
            assert parts, "every clip frame is covered by a part"
            whole = sum(part.weight for part, *_ in parts)
            if any(part.area is not None for part, *_ in parts):
                yield self._pieced(parts, y, x)
                continue
            # weights go to the small grids: a product with every pixel would cost as much as the map itself
            maps = [
                rows
                @ ((row @ part.values.flatten(1)).view(part.values.shape[1:]) * (part.weight / whole))
                @ cols.T
                for part, row, rows, cols in parts
            ]
            yield maps[0] if len(maps) == 1 else torch.stack(maps).sum(dim=0)

    def _pieced(
        self, parts: Sequence[tuple[Grid, Tensor, Tensor, Tensor]], y: np.ndarray, x: np.ndarray
    ) -> Float[Tensor, "H W"]:
        """The weighted mean of parts that speak for areas of the clip; NaN where none does."""
        total = torch.zeros(len(y), len(x))
        weights = torch.zeros(len(y), len(x))
        _, h, w = self.size
        for part, row, rows, cols in parts:
            top, left, bottom, right = part.area or (0, 0, h, w)
            down, along = _within(y, top, bottom), _within(x, left, right)
            grid = (row @ part.values.flatten(1)).view(part.values.shape[1:])
            total[down, along] += (rows[down] @ grid @ cols[along].T) * part.weight
            weights[down, along] += part.weight
        return total / weights  # 0 / 0 is NaN


def _within(places: np.ndarray, start: float, stop: float) -> slice:
    """The run of increasing places that lie on the pixels `start` to `stop`."""
    first, last = np.searchsorted(places, start - 0.5, "left"), np.searchsorted(places, stop - 0.5, "right")
    return slice(int(first), int(last))


def scaled(saliency: Tensor, low: float, high: float) -> Tensor:
    """`(saliency - low) / (high - low)`, clipped to [0, 1]; zeros where high equals low. NaN stays NaN."""
    if high <= low:
        return torch.zeros_like(saliency).where(~saliency.isnan(), saliency)
    return ((saliency - low) / (high - low)).clamp(0, 1)


def _axis(samples: int, extent: int) -> np.ndarray:
    """Places of `samples` that tile an axis of `extent` pixels evenly (half-pixel convention)."""
    return (np.arange(samples) + 0.5) * extent / samples - 0.5


def _ends(samples: int, extent: int) -> np.ndarray:
    """Places of `samples` from the first pixel to the last, ends included."""
    if samples == 1:
        return np.zeros(1)
    fraction = np.arange(samples) / (samples - 1)
    return fraction * (extent - 1) if extent > 1 else fraction
