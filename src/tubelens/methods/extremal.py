"""Extremal perturbations over clips (Fong, Patrick, Vedaldi, "Understanding Deep Networks via Extremal
Perturbations and Smooth Masks", ICCV 2019; for video Li et al., "Towards Visually Explaining Video
Understanding Networks with Perturbation", WACV 2021: STEP, spatio-temporal extremal perturbation).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill, fill
from tubelens.layout import tiled
from tubelens.masks import Triple
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder
from tubelens.methods.spectrum import Spectrum, Split, apart, check
from tubelens.model import Scorer, frozen
from tubelens.pixels import differentiable
from tubelens.running import RUN, Passes, Run
from tubelens.target import Prob, Target, evaluate
from tubelens.upsample import fractional_index, spline_matrix

STEP = 0.1  # of Adam, per step, of a mask's range [0, 1]
FIRST, LAST = 10.0, 100.0  # weight of the volume's term, growing geometrically from step to step
JITTER = 0.01  # of the start, so that equal values do not all rank alike
LEAST = 20  # steps below which masks have not settled
BACKWARD = 3  # forwards that a forward and backward counts as (see `protocol.Scalable`)
TOGETHER = 8  # masks in one pass, unless `run.batch` says otherwise


@dataclass(frozen=True)
class Extremal:
    """The small part of the clip, of a given volume, that keeps the target highest.

    For a volume a, the mask m over the voxels maximises

        Phi(m x + (1 - m) fill) / |Phi(x) - Phi(fill)| - weight * mean((sort(m) - r_a)^2)

    where `r_a` is 0 for the first `(1 - a)` of the voxels and 1 for the others (Fong et al., eq. 5): once
    sorted, the mask has to be that step. Sorting ranks all voxels of the clip at once, so that the volume is
    shared over the frames as the target wants it (Li et al., section 3). The map is the mean of the masks
    over the volumes: in [0, 1], highest where even the smallest volume needs the voxel.

    The mask is smooth because it is the linear interpolation of a grid with few nodes in space and fewer in
    time; each node acts on a core one cell wide in every direction.

    Deviations from the papers: interpolation instead of their convolution with a smooth maximum (of an
    ellipsoid core in STEP); Adam instead of momentum; the target is divided by its range between the intact
    and the filled clip, so that one weight does for probabilities, logits and contrasts; the start is 1/2,
    not 1, where a saturated network has no gradient; the weight grows over the steps asked for.

    Each (target, volume) is a mask of its own, optimised independently of the others. The work cannot be cut
    short: `run.seconds` is not heeded, choose fewer steps (`afford` does).

    Groups of bands (`spectrum`) have maps of their own, and the map is their sum. `independent`: a mask for
    every group, all at once, that share one volume: sorted together they have to be that step, with a share a
    of the voxels of all groups, so that the group which needs more keeps more. `each`: a mask for one group
    after the other, the other bands being intact; the target is divided by its range without that group.

    Attributes:
        volumes: shares of the clip to keep, one mask each.
        steps: of the optimisation; each is one forward and backward a mask.
        cells: nodes of the mask along time, height and width, cut to the clip's own size.
        fill: what replaces what is removed: a name in `tubelens.fill.FILLS`, or a fill.
        seed: of the start, 1/2 up to a hundredth.
        spectrum: `"joint"`: a mask for all bands together; `"each"`, `"independent"`: see above.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "gradients"
    explains: ClassVar[type[Prob]] = Prob

    volumes: tuple[float, ...] = (0.05, 0.1, 0.2)
    steps: int = 50
    cells: Triple = (4, 8, 8)
    fill: str | Fill = "blur"
    seed: int = 0
    spectrum: Spectrum = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        fill(self.fill)
        if not self.volumes or not all(0 < a < 1 for a in self.volumes):
            raise OptionError(f"extremal masks need volumes between 0 and 1, not {self.volumes}")
        if self.steps < 1 or min(self.cells) < 1:
            raise OptionError(
                f"extremal masks need steps >= 1 and cells >= 1, not {self.steps} and {self.cells}"
            )

    def __call__(
        self, model: Scorer, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target.

        Raises:
            OptionError: see `tubelens.methods.spectrum.apart`.
            LayerError: a black box.
            ScoreError: NaN or infinity.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        model = frozen(model, clip.pixels[None])
        rounds = range(split.rounds)
        jobs = [(target, g, volume) for target in targets for g in rounds for volume in self.volumes]
        size = run.batch or TOGETHER
        masks, kept = [], []
        with differentiable(model) as score:
            pixels = clip.pixels.to(getattr(model, "device", "cpu"))
            blend = fill(self.fill).over(pixels)
            with torch.no_grad():
                whole = torch.ones_like(pixels[:1])
                none = torch.zeros_like(whole).expand(split.together, -1, -1, -1)
                scores = score(torch.cat([blend(whole), *(blend(spread(none, split, [g])) for g in rounds)]))
            ends = evaluate(targets, scores, model.output)
            ranges = (ends[:, :1] - ends[:, 1:]).abs().clamp_min(1e-6)
            ranges = ranges.flatten().repeat_interleave(len(self.volumes))
            for first in range(0, len(jobs), size):
                some = jobs[first : first + size]

                def answers(m: Float[Tensor, "m T H W"], some: Any = some) -> Float[Tensor, "b"]:
                    rows = score(blend(spread(m, split, [g for _, g, _ in some]))).split(1)
                    return torch.cat([t(row, model.output) for (t, *_), row in zip(some, rows, strict=True)])

                def tell(done: int, first: int = first, b: int = len(some)) -> None:
                    run.tell(first * self.steps + done * b, len(jobs) * self.steps)

                scales = ranges[first : first + size]
                found = self._optimise(answers, scales, [a for *_, a in some], whole, split.together, tell)
                with torch.no_grad():
                    kept.append(answers(found))
                masks.append(found)
        every = torch.cat(masks).unflatten(0, (len(targets), len(rounds), len(self.volumes), split.together))
        maps = list(every.mean(dim=2).flatten(1, 2).unbind(1))
        left = torch.cat(kept).view(len(targets), len(rounds), -1).tolist()
        facts = [
            [
                {"filled": empty} | {f"kept_{a:g}": v for a, v in zip(self.volumes, row[g], strict=True)}
                for empty, row in zip(ends[:, 1 + g].tolist(), left, strict=True)
            ]
            for g in rounds
        ]
        record = Recorder(
            self,
            model,
            scores[:1],
            seed=self.seed,
            forwards=1 + len(rounds) + len(jobs) * (1 + self.steps),
            backwards=len(jobs) * self.steps,
            start=start,
        )
        return split.write(record, maps, clip, targets, split.facts(facts))

    def passes(self, model: Scorer, clip: Clip) -> Passes:
        """Of one target: all ends and the masks found, and a forward and backward a step and mask."""
        rounds = apart(self, clip).rounds
        masks = rounds * len(self.volumes)
        return Passes(1 + rounds + masks, self.steps * masks)

    def afford(self, forwards: int, model: Scorer, clip: Clip) -> Extremal:
        """The same with as many steps as so many forwards buy, for one target.

        Raises:
            OptionError: fewer steps than masks need to settle.
        """
        once = self.passes(model, clip).forwards
        masks = apart(self, clip).rounds * len(self.volumes)
        steps = (forwards - once) // (BACKWARD * masks)
        if steps < LEAST:
            least = once + BACKWARD * masks * LEAST
            raise OptionError(
                f"{masks} extremal masks need at least {least} forwards ({LEAST} steps each), the budget is"
                f" {forwards}: ask for fewer volumes"
            )
        return replace(self, steps=steps)

    def _optimise(
        self,
        answers: Callable[[Float[Tensor, "m T H W"]], Float[Tensor, "b"]],
        scales: Float[Tensor, "b"],
        volumes: Sequence[float],
        like: Float[Tensor, "1 T H W"],
        own: int,
        tell: Callable[[int], None],
    ) -> Float[Tensor, "m T H W"]:
        """`own` masks for each volume, one after the other, which share it.

        Answers are the masks' own, so that their sum has each one's gradient.
        """
        _, *size = like.shape
        cells = [min(n, extent) for n, extent in zip(self.cells, size, strict=True)]
        reads = [reading(n, extent).to(like) for n, extent in zip(cells, size, strict=True)]
        generator = torch.Generator().manual_seed(self.seed)
        start = 0.5 + JITTER * (2 * torch.rand(own, *cells, generator=generator) - 1)
        grids = start.to(like).repeat(len(volumes), 1, 1, 1).requires_grad_()
        wanted = torch.stack([steps_at(a, own * prod(size)) for a in volumes]).to(like)
        adam = torch.optim.Adam([grids], lr=STEP)
        for i in range(self.steps):
            masks = read(grids, reads)
            weight = FIRST * (LAST / FIRST) ** (i / max(1, self.steps - 1))
            missed = ((masks.view(len(volumes), -1).sort(dim=1).values - wanted) ** 2).mean(dim=1)
            loss = (weight * missed - answers(masks) / scales).sum()
            (grids.grad,) = torch.autograd.grad(loss, grids)
            adam.step()
            with torch.no_grad():
                grids.clamp_(0, 1)
            tell(i + 1)
        return read(grids.detach(), reads)


def spread(masks: Float[Tensor, "m T H W"], split: Split, rounds: Sequence[int]) -> Float[Tensor, "b *mask"]:
    """Masks of groups over the bands: those of every group in turn, or each of the group of its round."""
    if split.spectrum == "joint":
        return masks
    bands = [torch.ones_like(masks[:1]).expand(len(rounds), *masks.shape[1:])] * split.bands
    for g, channels in enumerate(split.channels):
        if split.spectrum == "independent":
            own = masks[g :: len(split)]
        else:
            mine = torch.tensor([r == g for r in rounds], device=masks.device).view(-1, 1, 1, 1)
            own = torch.where(mine, masks, 1.0)
        for channel in channels:
            bands[channel] = own
    return torch.stack(bands, dim=1)


def reading(cells: int, extent: int) -> Float[Tensor, "extent cells"]:
    """The matrix that reads `cells` nodes, which tile an axis, linearly at each of its voxels."""
    index = fractional_index(range(extent), tiled(cells, extent))
    return torch.from_numpy(spline_matrix(index, cells, order=1))


def read(grids: Float[Tensor, "b t h w"], reads: Sequence[Tensor]) -> Float[Tensor, "b T H W"]:
    """Nodes to voxels; differentiable."""
    masks: Tensor = torch.einsum("bthw,Tt,Hh,Ww->bTHW", grids, *reads)
    return masks


def steps_at(volume: float, count: int) -> Float[Tensor, "count"]:
    """What a mask of this volume is once sorted: zeros, then `volume` of all voxels at one, at least one."""
    ones = max(1, round(volume * count))
    return torch.cat([torch.zeros(count - ones), torch.ones(ones)])
