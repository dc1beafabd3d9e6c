"""Telling the bands of a clip apart: what all methods that can share.

An option `spectrum` says how. `joint`: not at all, one map for all bands. `each`: a map of each group of
bands; methods that remove evidence deal with one group after the other, while the other bands are as they
are; those that take gradients read each group's part of one gradient (integrated gradients and SmoothGrad
change all bands at once). `independent`: all at once, each group of bands with pieces (masks, regions) of its
own. An option `groups` says which bands belong together, see `tubelens.spectra`. A method that has no such
options cannot tell, and one that has not all three values says so by its type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, get_type_hints, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.layout import Grid
from tubelens.masks import EachBand, Independent, Masks
from tubelens.methods.record import Recorder, voxels
from tubelens.scoring import Part
from tubelens.spectra import told_apart
from tubelens.target import Target

Spectrum = Literal["joint", "each", "independent"]
Apart = Literal["joint", "each"]
"""Of methods that cannot give the bands masks of their own at once."""
ByBand = list[list[tuple[str, Grid]]]
"""For each target the groups' names and maps; none where none is told apart."""

_ALONE = {
    "scorer": "it removes one box after the other, so no two bands lose something at once",
    "layers": "its masks are a layer's features, which are the same for every band",
    "gradients": "it takes the gradient of all bands from one pass and masks nothing",
}


@runtime_checkable
class Banded(Protocol):
    """A method that can tell bands apart."""

    @property
    def spectrum(self) -> str:
        """How."""
        ...

    @property
    def groups(self) -> str:
        """Which belong together."""
        ...


def ways(kind: type[Any]) -> tuple[str, ...]:
    """The values that `spectrum` may have for a class of methods; none where it has no such option."""
    return get_args(get_type_hints(kind).get("spectrum"))


def tells(method: Any) -> tuple[str, ...]:
    """The ways in which a method can tell bands apart: its own, or those of the method that it rests on."""
    return ways(type(getattr(method, "base", method)))[1:]


def check(method: Banded) -> None:
    """Raises: OptionError: a way that the method does not have, or groups that are not told apart."""
    known, name = ways(type(method)), type(method).__name__
    if not isinstance(method.groups, str):
        raise OptionError(f"{name}: groups are names of bands, as in RGB|IR, not {method.groups!r}")
    if method.spectrum not in known:
        raise OptionError(
            f"{name}: spectrum must be {' or '.join(known)}, not {method.spectrum!r}"
            f"{why_not(type(method), 'spectrum', method.spectrum)}"
        )
    if method.groups and method.spectrum == "joint":
        raise OptionError(
            f"{name}: groups={method.groups!r} says which bands belong together, and spectrum='joint' tells"
            f" none apart: give spectrum={known[1]!r} too"
        )


def why_not(kind: Callable[..., Any], option: str, value: Any) -> str:
    """What to add where a method has no such option, or not with this value: the reason and the way out."""
    if option not in ("spectrum", "groups") or not isinstance(kind, type):
        return ""
    needs = getattr(kind, "needs", None)
    if not ways(kind):
        if isinstance(needs, property):
            return ": it splits its base's maps, so say it there, as in base=inputxgradient(spectrum=each)"
        mixed = ": its layer has mixed the bands, so it cannot tell them apart" if needs == "layers" else ""
        return f"{mixed}; rise, occlusion, shap, integrated_gradients and others can (`tubelens methods`)"
    return f": {_ALONE[str(needs)]}; use spectrum='each'" if value == "independent" else ""


@dataclass(frozen=True)
class Split:
    """The groups of bands of one clip, and how a method tells them apart.

    Attributes:
        spectrum: how.
        names: of the groups; one without a name where none is told apart.
        channels: of each group.
        bands: of the clip.
    """

    spectrum: str
    names: tuple[str, ...]
    channels: tuple[tuple[int, ...], ...]
    bands: int

    def __len__(self) -> int:
        """How many maps of bands there will be; one where none is told apart."""
        return len(self.names)

    @property
    def rounds(self) -> int:
        """How often the work is done: once a group with `each`, else once."""
        return len(self) if self.spectrum == "each" else 1

    @property
    def together(self) -> int:
        """Groups whose pieces are dealt with at once: all with `independent`, else one."""
        return len(self) // self.rounds

    def masks(self, make: Callable[[int], Masks]) -> Masks:
        """The family that `make` gives for group 0, on every group in turn (`each`), or a family a group."""
        if self.spectrum == "each":
            return EachBand(make(0), self.channels, self.bands)
        if self.spectrum == "independent":
            return Independent([make(g) for g in range(len(self))], self.channels)
        return make(0)

    def of(self, part: Part) -> Iterator[tuple[int, Float[Tensor, "n b"], Float[Tensor, "b T H W"]]]:
        """What a batch of such masks tells of each group: its number, the targets' values, its own masks."""
        if self.spectrum == "joint":
            yield 0, part.values, part.masks
            return
        for g, own in enumerate(self.channels):
            rows = slice(None)
            if self.spectrum == "each":
                rows = slice((g - part.first) % len(self), None, len(self))
            masks = part.masks[rows, own[0]]
            if len(masks):
                yield g, part.values[:, rows], masks

    def series(self, values: Float[Tensor, "n s"]) -> list[Float[Tensor, "n _"]]:
        """Values in the order of such masks, apart for each round."""
        return [values[:, g :: self.rounds] for g in range(self.rounds)]

    def facts(self, rounds: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
        """Facts of every round and target as one dictionary a target; `name:IR` is that of a group."""
        if len(rounds) == 1:
            return [dict(facts) for facts in rounds[0]]
        named = [
            [{f"{key}:{name}": value for key, value in facts.items()} for facts in row]
            for name, row in zip(self.names, rounds, strict=True)
        ]
        return [{key: value for row in named for key, value in row[i].items()} for i in range(len(named[0]))]

    def write(
        self,
        record: Recorder,
        maps: Sequence[Float[Tensor, "n t h w"]],
        clip: Clip,
        targets: Sequence[Target],
        facts: Sequence[dict[str, float]] | None = None,
        grid: Callable[[Tensor], Grid] = voxels,
    ) -> list[Explanation]:
        """One explanation a target from the maps of every group: their sum, and each of them."""
        whole = maps[0] if len(maps) == 1 else torch.stack(list(maps)).sum(dim=0)
        return record.write([grid(m) for m in whole], clip, targets, facts, by_band=self.by_band(maps, grid))

    def by_band(
        self, maps: Sequence[Float[Tensor, "n t h w"]], grid: Callable[[Tensor], Grid] = voxels
    ) -> ByBand:
        """The maps of every group, named, target by target."""
        if self.spectrum == "joint":
            return [[] for _ in maps[0]]
        return [
            [(name, grid(own[i])) for name, own in zip(self.names, maps, strict=True)]
            for i in range(len(maps[0]))
        ]

    def reduced(self, values: Float[Tensor, "n c t h w"], reduce: Callable[[Tensor], Tensor]) -> ByBand:
        """Values of every band, reduced within each group by the rule that makes the map of them all."""
        if self.spectrum == "joint":
            return [[] for _ in values]
        return self.by_band([reduce(values[:, list(own)]) for own in self.channels])


def apart(method: Banded, clip: Clip) -> Split:
    """How a method tells the bands of a clip apart.

    Raises:
        OptionError: groups that do not fit the clip, or only one, or bands that are copies of one.
    """
    bands = len(clip.bands)
    if method.spectrum == "joint":
        return Split("joint", ("",), (tuple(range(bands)),), bands)
    groups = told_apart(clip.pixels, clip.bands, method.groups)
    if len(groups) < 2:
        raise OptionError(
            f"{clip.source.name} has one group of bands, {next(iter(groups))}, so there is nothing to tell"
            " apart: leave spectrum at joint"
        )
    return Split(method.spectrum, tuple(groups), tuple(tuple(own) for own in groups.values()), bands)


def seed_of(seed: int, group: int) -> int:
    """Of a group's own draws: the first group's are those of all bands together.

    For others the first word that `numpy.random.SeedSequence((seed, group))` generates, so that no two groups
    and no two seeds share their draws.
    """
    if group == 0:
        return seed
    return int(np.random.SeedSequence((seed % 2**64, group)).generate_state(1, np.uint64)[0])
