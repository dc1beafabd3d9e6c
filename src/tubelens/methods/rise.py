"""RISE (Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC
2018), with a time axis of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Black, Fill, fill
from tubelens.masks import Grids, Published, Triple
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder
from tubelens.methods.spectrum import Spectrum, apart, check, seed_of
from tubelens.model import Scorer
from tubelens.running import RUN, Passes, Run
from tubelens.scoring import score_masked
from tubelens.target import Logit, Prob, Target

Normaliser = Literal["density", "published"]


@dataclass(frozen=True)
class RISE:
    """Random masks, each weighted by the score that it leaves.

    With masks `M_i` (1 = kept), `f_i` the target on the clip under mask i and `f` their mean, the map is

        S(v) = sum_i (f_i - f) M_i(v) / sum_i M_i(v)

    which estimates `E[f | v kept] - E[f]`: by how much the target rises when voxel v is seen (section 3.1,
    less its mean over the masks). The published estimator `sum_i f_i M_i(v) / (N p)` (eq. 6) has the same
    expectation but for the constant `E[f]`, and more variance for two avoidable reasons: how often v was kept
    by chance is not `N p`, and a constant score should give a flat map. With independent binary masks and a
    voxel that matters little, the published variance is `(1 / N) ((1 - p) mean^2 + sd^2) / p` and this one's
    `(1 / N) (1 - p) sd^2 / p`; so the published map needs

        1 / (1 - p) + (mean / sd)^2

    times as many masks, with mean and sd those of the score over the masks (both are reported).

    All targets share the forwards. The map is signed, one value a voxel.

    Groups of bands g (`spectrum`) have maps of their own, and the map is their sum. `independent`: every
    group has masks `M^g` of its own, all at once, and `S_g(v) = sum_i (f_i - f) M_i^g(v) / sum_i M_i^g(v)`
    from the same n forwards: by how much the target rises when g is seen at v, whatever is seen of the
    others. `each`: the n masks are laid on one group after the other while the other bands are intact, `f`
    being the mean over that group's; mask by mask in turn, so that `run.seconds` leaves none out.

    Attributes:
        n: number of masks; with `each` of every group of bands.
        cells: of the mask grid across the clip, along time, height and width; cut to the clip's own size.
        p: probability that a node of the grid is kept.
        fill: what replaces what is removed: a name in `tubelens.fill.FILLS`, or a fill.
        seed: of the masks; the first group of bands has those of `joint`, others see `spectrum.seed_of`.
        normaliser: `"density"`: the formula above; `"published"`: `sum_i f_i M_i(v) / (N p)`.
        parity: `"icpr2022"`: as that code has it: its masks (s = 8, which take the place of `cells`), black,
            the published normaliser and, for the probability of a class, its logit.
        spectrum: `"joint"`: masks for all bands together; `"each"`, `"independent"`: see above.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "scorer"
    explains: ClassVar[type[Prob]] = Prob

    n: int = 2000
    cells: Triple = (4, 8, 8)
    p: float = 0.5
    fill: str | Fill = "mean"
    seed: int = 0
    normaliser: Normaliser = "density"
    parity: Literal["icpr2022"] | None = None
    spectrum: Spectrum = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        if min(self.cells) < 1:
            raise OptionError(f"RISE needs at least one cell along time, height and width, not {self.cells}")
        self.masks((1, 1, 1))
        fill(self.fill)
        if self.normaliser not in ("density", "published"):
            raise OptionError(f"normaliser is 'density' or 'published', not {self.normaliser!r}")
        if self.parity not in (None, "icpr2022"):
            raise OptionError(f"parity is None or 'icpr2022', not {self.parity!r}")
        check(self)
        if self.spectrum != "joint" and (self.parity or self.normaliser == "published"):
            raise OptionError(
                f"RISE with spectrum={self.spectrum!r} needs normaliser='density' and no parity: the"
                " published map has the mean score in it, once for every band"
            )

    def __call__(
        self, model: Scorer, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, all from the same forwards.

        `run.seconds` ends it early, with the masks scored by then; the facts say how many.

        Raises:
            OptionError: see `tubelens.scoring`.
            ScoreError: NaN or infinity.
        """
        start = time.perf_counter()
        published = self.parity is not None or self.normaliser == "published"
        split = apart(self, clip)
        masks = split.masks(lambda group: self.masks(clip.size, group))
        removed = Black() if self.parity else fill(self.fill)
        explained = [Logit(t.index) if self.parity and isinstance(t, Prob) else t for t in targets]
        scored = score_masked(model, clip, masks, removed, explained, run)
        sums = [Sums() for _ in split.names]
        for part in scored:
            for group, values, own in split.of(part):
                sums[group].add(values, own)
        maps = [own.published(self.p) if published else own.corrected() for own in sums]
        facts = split.facts([own.facts() for own in sums[: split.rounds]])
        record = Recorder(
            self,
            model,
            scored.scores,
            seed=self.seed,
            precision=scored.precision,
            forwards=scored.forwards,
            notes=scored.notes,
            start=start,
        )
        return split.write(record, maps, clip, explained, facts)

    def masks(self, size: Triple, group: int = 0) -> Grids | Published:
        """The masks for a clip of so many frames, rows and columns; of a group of bands, its number."""
        if self.parity == "icpr2022":
            return Published(self.n, size, p=self.p, seed=self.seed)
        t, h, w = (min(c, extent) for c, extent in zip(self.cells, size, strict=True))
        return Grids(self.n, size, (t, h, w), self.p, seed_of(self.seed, group))

    def passes(self, model: Scorer, clip: Clip) -> Passes:
        """The masks and the intact clip; a pilot of the precision, where there is one, comes on top."""
        return Passes(self.n * apart(self, clip).rounds + 1)

    def afford(self, forwards: int, model: Scorer, clip: Clip) -> RISE:
        """The same with as many masks as so many forwards buy.

        Raises:
            OptionError: fewer than one for the intact clip, and two for each group of bands that has masks.
        """
        rounds = apart(self, clip).rounds
        if forwards < 1 + 2 * rounds:
            raise OptionError(f"RISE needs at least {1 + 2 * rounds} forwards, not {forwards}")
        return replace(self, n=(forwards - 1) // rounds)


class Sums:
    """What the estimators need, added up in place as masks go by, on their device.

    Rows of one matrix: for each target `sum_i (f_i - c) M_i`, and last `sum_i M_i`; and of the scores alone
    the sums of `f_i - c` and of its square. The shift c is the mean of the first batch: it keeps the digits
    of scores that hardly vary, and drops out again. Nothing of a batch is kept: small tensors that outlive it
    would come to lie between the large ones and keep the allocator from using their space again.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shift = self.rows = self.moments = torch.empty(0)

    def add(self, values: Float[Tensor, "n b"], masks: Float[Tensor, "b T H W"]) -> None:
        """One batch."""
        if self.count == 0:
            self.shift = values.mean(dim=1, keepdim=True)
            self.rows = masks.new_zeros(len(values) + 1, *masks.shape[1:])
            self.moments = torch.zeros(2, len(values), dtype=torch.float64)
        above = values - self.shift
        weights = torch.cat([above, torch.ones_like(values[:1])])
        self.rows.view(len(weights), -1).addmm_(weights.to(masks), masks.flatten(1))
        above = above.double().cpu()
        self.moments += torch.stack([above.sum(dim=1), above.pow(2).sum(dim=1)])
        self.count += len(masks)

    def corrected(self) -> Float[Tensor, "n T H W"]:
        """`sum_i (f_i - f) M_i / sum_i M_i`; 0 where no mask kept anything."""
        sums, kept = self.rows[:-1], self.rows[-1]
        above = (self.moments[0] / self.count).to(kept)
        maps = sums / kept.clamp_min(torch.finfo(kept.dtype).tiny) - above.view(-1, 1, 1, 1)
        return torch.where(kept > 0, maps, 0.0)

    def published(self, p: float) -> Float[Tensor, "n T H W"]:
        """`sum_i f_i M_i / (N p)`."""
        sums, kept = self.rows[:-1], self.rows[-1]
        return (sums + self.shift.to(kept).view(-1, 1, 1, 1) * kept) / (self.count * p)

    def facts(self) -> list[dict[str, float]]:
        """Masks used, and mean and standard deviation of each target over them."""
        above, square = self.moments / self.count
        sd = (square - above**2).clamp_min(0).sqrt()
        mean = self.shift[:, 0].double().cpu() + above
        return [
            {"masks": float(self.count), "mean_score": m, "sd_score": s}
            for m, s in zip(mean.tolist(), sd.tolist(), strict=True)
        ]
