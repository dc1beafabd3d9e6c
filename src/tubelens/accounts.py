"""What a spectral ledger holds: the accounts of each region, as a table, as JSON, as CSV, as a figure."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from tubelens.errors import OptionError
from tubelens.files import replacing
from tubelens.shapley import LEAST, shapley, taylor
from tubelens.target import Target, begins

WHOLE = "whole clip"
NOTHING = "–"
"""In place of a share where there is nothing to share."""
DIGITS = {"logit": 2, "probability": 3, "difference of logits": 2}
"""After the point, where scores of a kind are written."""


@dataclass(frozen=True)
class Region:
    """The accounts of one region of the clip.

    Attributes:
        name: `whole clip`, `tube 1`, ...
        seconds: of the first and the last frame that it covers.
        share: of the clip's voxels.
        values: the score of every coalition of bands, in the order of `tubelens.shapley`: all filled within
            the region first, as it is last.
    """

    name: str
    seconds: tuple[float, float]
    share: float
    values: tuple[float, ...]

    @property
    def total(self) -> float:
        """What filling all bands within the region costs: `v(all) - v(none)`."""
        return self.values[-1] - self.values[0]

    @cached_property
    def shapley(self) -> Float64[np.ndarray, "n"]:
        """What each band brought in all; adds up to `total`. Each has half of what it does with another."""
        return shapley(np.array(self.values))

    @property
    def alone(self) -> Float64[np.ndarray, "n"]:
        """What each band brings where the others are filled."""
        return self._taylor[0]

    @property
    def synergy(self) -> Float64[np.ndarray, "n n"]:
        """What pairs bring beyond that (see `tubelens.shapley.taylor`); negative where they are redundant."""
        return self._taylor[1]

    @property
    def evidence(self) -> bool:
        """Whether there is anything to share: a `total` of at least 0.01."""
        return self.total >= LEAST

    @property
    def shares(self) -> Float64[np.ndarray, "n"] | None:
        """`shapley` as parts of the total; None where there is no evidence."""
        return self.shapley / self.total if self.evidence else None

    @property
    def together(self) -> float | None:
        """The part of the total that all pairs bring together; None where there is no evidence."""
        return float(self.synergy.sum() / 2 / self.total) if self.evidence else None

    @cached_property
    def _taylor(self) -> tuple[np.ndarray, np.ndarray]:
        return taylor(np.array(self.values))


@dataclass(frozen=True, repr=False)
class Ledger:
    """What each group of bands brought to a score. Printed, it is a table; `save` writes it.

    Attributes:
        label: what the target is called. `target`: what was scored.
        prob: probability of its class. `predicted`: the strongest classes, (label, probability).
        groups: each player's name and its bands.
        regions: the whole clip, then the tubes of the maps.
        score: `logit`, `probability` or `difference of logits`.
        fill: repr of what took the place of bands.
        model, weights, video: what was asked about what.
        forwards: clips that were scored for it.
        notes: what the user should know, one sentence each.
    """

    label: str
    target: Target
    prob: float
    predicted: tuple[tuple[str, float], ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    regions: tuple[Region, ...]
    score: str
    fill: str
    model: str
    weights: str
    video: str
    forwards: float
    notes: tuple[str, ...] = ()

    @property
    def players(self) -> tuple[str, ...]:
        """Names of the groups of bands."""
        return tuple(name for name, _ in self.groups)

    @property
    def title(self) -> str:
        """`unlike p=0.97`, and the predicted class where that is another one."""
        first, prob = self.predicted[0]
        other = "" if begins(self.label, first) else f" (predicted: {first} p={prob:.2f})"
        return f"{self.label} p={self.prob:.2f}{other}"

    @property
    def made(self) -> str:
        """`planted_xor (bundled), filled by mean`."""
        return f"{self.model} ({self.weights}), filled by {self.fill.removesuffix('()').lower()}"

    def amount(self, value: float, sign: bool = True) -> str:
        """A score as it is written here; `sign`: a difference."""
        digits = DIGITS[self.score]
        value = round(value, digits) + 0.0  # no minus zero
        return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"

    def said(self, region: Region) -> str:
        """One line: from which score to which, and what part of it bands brought together."""
        low, high = (self.amount(v, False) for v in (region.values[0], region.values[-1]))
        text = f"{self.score} {low} with all bands filled, {high} as it is: {self.amount(region.total)}"
        if region.together is None:
            return f"{text}; there is no evidence to share"
        return f"{text}, of which {percent(region.together)} together"

    def table(self, region: Region) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: a band a row; alone, half of what it does with each other, total, share."""
        n = len(self.players)
        columns = ["", "alone", *(f"with {name}" for name in self.players), "total", "share"]
        shares = region.shares
        rows = [
            [
                name,
                self.amount(region.alone[i]),
                *("" if i == j else self.amount(region.synergy[i, j] / 2) for j in range(n)),
                self.amount(region.shapley[i]),
                NOTHING if shares is None else percent(shares[i]),
            ]
            for i, name in enumerate(self.players)
        ]
        sums = [self.amount(v) for v in (region.alone.sum(), *region.synergy.sum(axis=0) / 2, region.total)]
        return columns, [*rows, ["sum", *sums, NOTHING if shares is None else "100%"]]

    def where(self, region: Region) -> str:
        """`tube 1 (0.25 to 1.50 s, 3.1% of the voxels)`."""
        start, end = region.seconds
        place = f"{start:.2f} to {end:.2f} s"
        part = "" if region.name == WHOLE else f", {region.share:.1%} of the voxels"
        return f"{region.name} ({place}{part})"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it; the suffix decides what: `.png` a figure, `.json` everything, `.csv` a line a number.

        Raises:
            OptionError: another suffix.
            OutputError: no room, no permission; nothing half-written is left.
        """
        path = Path(path)
        if path.suffix.lower() not in WRITERS:
            raise OptionError(f"{path}: a ledger is written as {', '.join(sorted(WRITERS))}")
        return WRITERS[path.suffix.lower()](self, path)

    def to_json(self) -> dict[str, Any]:
        """Every number, as lists and dictionaries."""
        told = asdict(self) | {"target": repr(self.target), "players": list(self.players)}
        told["predicted"] = [{"label": label, "prob": prob} for label, prob in self.predicted]
        told["groups"] = [{"name": name, "bands": list(own)} for name, own in self.groups]
        told["regions"] = [self._region(region) for region in self.regions]
        return told

    def _region(self, region: Region) -> dict[str, Any]:
        n, names = len(self.players), self.players
        shares = region.shares
        return {
            "name": region.name,
            "seconds": list(region.seconds),
            "share_of_voxels": region.share,
            "values": [
                {"as_they_are": [names[i] for i in range(n) if s >> i & 1], "score": value}
                for s, value in enumerate(region.values)
            ],
            "total": region.total,
            "shapley": dict(zip(names, region.shapley.tolist(), strict=True)),
            "shares": None if shares is None else dict(zip(names, shares.tolist(), strict=True)),
            "alone": dict(zip(names, region.alone.tolist(), strict=True)),
            "synergy": [
                {"bands": [names[i], names[j]], "score": float(region.synergy[i, j])}
                for i, j in combinations(range(n), 2)
            ],
            "together": region.together,
        }

    def __str__(self) -> str:
        lines = [f"{self.title} · {self.made}"]
        for region in self.regions:
            columns, rows = self.table(region)
            widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
            lines += ["", self.where(region), self.said(region)]
            for row in (columns, *rows):
                cells = [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
                lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return (
            f"<Ledger of {self.label!r} (p={self.prob:.3f}) over {', '.join(self.players)}:"
            f" {', '.join(region.name for region in self.regions)}>"
        )


def percent(part: float) -> str:
    """`47%`; never a negative nothing."""
    return f"{round(part, 2) + 0.0:.0%}"


def _write_json(found: Ledger, path: Path) -> Path:
    with replacing(path) as temporary:
        text = json.dumps(found.to_json(), indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def _write_csv(found: Ledger, path: Path) -> Path:
    """Lines of region, what, bands (separated by spaces), score."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["region", "what", "bands", "score"])
        for region in found.to_json()["regions"]:
            rows = [("value", " ".join(v["as_they_are"]), v["score"]) for v in region["values"]]
            for what in ("alone", "shapley"):
                rows += [(what, name, score) for name, score in region[what].items()]
            rows += [("synergy", " ".join(pair["bands"]), pair["score"]) for pair in region["synergy"]]
            out.writerows([region["name"], *row] for row in rows)
    return path


Writer = Callable[[Ledger, Path], Path]
WRITERS: dict[str, Writer] = {".json": _write_json, ".csv": _write_csv}
"""Suffix -> writer; `tubelens.render` adds the figure."""
