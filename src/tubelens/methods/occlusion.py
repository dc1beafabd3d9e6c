"""Occlusion (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014) by boxes
in time and space.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import ClassVar

import torch

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill, fill
from tubelens.flow import flows
from tubelens.masks import Tracked, Triple, Windows
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder
from tubelens.methods.spectrum import Apart, apart, check
from tubelens.model import Scorer
from tubelens.running import RUN, Passes, Run
from tubelens.scoring import score_masked
from tubelens.target import Prob, Target


@dataclass(frozen=True)
class Occlusion:
    """By how much the target drops when a box slides over the clip.

    A voxel's value is the mean drop over the boxes that cover it,

        S(v) = sum_w (f - f_w) [v in w] / sum_w [v in w]

    with `f` the target on the intact clip and `f_w` with box w replaced by the fill. (Zeiler and Fergus place
    each score at the middle of its box, section 4.2; spread over the box it is defined at every voxel. The
    same rule as captum's, which a test compares.) Boxes start at the first voxel, the last of an axis are cut
    off at the border. The map is signed, one value a voxel.

    With `spectrum="each"` every box removes one group of bands after the other, the other bands being intact;
    each group has a map of its own, and the map is their sum.

    Boxes are in raster order, so that stopping on the way would leave the end of the clip unseen:
    `run.seconds` is not heeded, choose a coarser stride (`afford` does).

    Attributes:
        window: frames, rows and columns of the box, cut to the clip; None: half the frames, a quarter of the
            height and of the width.
        stride: from one box to the next; None: half the window.
        fill: what replaces what is removed: a name in `tubelens.fill.FILLS`, or a fill.
        tracked: boxes follow the optical flow of what they cover through their frames (needs the extra
            `flow`), after adaptive occlusion (Uchiyama et al., "Visually explaining 3D-CNN predictions for
            video classification with an adaptive occlusion sensitivity analysis", WACV 2023), so that a
            moving object stays covered. Voxels that no box then covers are 0; the facts say how many are.
        spectrum: `"joint"`: boxes remove all bands together; `"each"`: see above.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "scorer"
    explains: ClassVar[type[Prob]] = Prob

    window: Triple | None = None
    stride: Triple | None = None
    fill: str | Fill = "mean"
    tracked: bool = False
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        fill(self.fill)
        if self.window is not None:
            Windows((1, 1, 1), self.window, self.stride or _halves(self.window))
        elif self.stride is not None and min(self.stride) < 1:
            raise OptionError(f"occlusion needs a stride of at least 1 on each axis, not {self.stride}")

    def __call__(
        self, model: Scorer, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, all from the same forwards.

        Raises:
            OptionError: a stride longer than the window, see also `tubelens.scoring`.
            ScoreError: NaN or infinity.
        """
        start = time.perf_counter()
        split, windows = apart(self, clip), self.windows(clip)
        masks = split.masks(lambda _: windows)
        scored = score_masked(model, clip, masks, fill(self.fill), targets, replace(run, seconds=None))
        drops = torch.zeros(len(split), len(targets), prod(clip.size), device=scored.device)
        cover = torch.zeros(len(split), prod(clip.size), device=scored.device)
        for part in scored:
            for group, values, own in split.of(part):
                removed = 1 - own.flatten(1)
                drops[group] += (scored.intact[:, None] - values) @ removed
                cover[group] += removed.sum(dim=0)
        maps = (drops / cover.clamp_min(1)[:, None]).view(len(split), -1, *clip.size)
        record = Recorder(
            self,
            model,
            scored.scores,
            precision=scored.precision,
            forwards=scored.forwards,
            notes=scored.notes,
            start=start,
        )
        covered = float((cover[0] > 0).float().mean())
        facts = [{"windows": float(len(masks)), "covered": covered} for _ in targets]
        return split.write(record, list(maps), clip, targets, facts)

    def windows(self, clip: Clip) -> Windows | Tracked:
        """The boxes over a clip.

        Raises:
            OptionError: a stride longer than the window: voxels would be left out; `tracked` without OpenCV.
        """
        plan = self._plan(clip.size)
        return Tracked(clip.size, *plan, *flows(clip.pixels)) if self.tracked else Windows(clip.size, *plan)

    def passes(self, model: Scorer, clip: Clip) -> Passes:
        """The boxes and the intact clip; a pilot of the precision, where there is one, comes on top."""
        return Passes(1 + boxes(clip.size, *self._plan(clip.size)) * apart(self, clip).rounds)

    def afford(self, forwards: int, model: Scorer, clip: Clip) -> Occlusion:
        """The same windows at the finest stride, the same share of the window on each axis, that fits.

        Raises:
            OptionError: not even windows side by side fit.
        """
        window, _ = self._plan(clip.size)
        finest, rounds = max(window), apart(self, clip).rounds
        for share in range(1, finest + 1):
            t, h, w = (max(1, round(extent * share / finest)) for extent in window)
            least = 1 + boxes(clip.size, window, (t, h, w)) * rounds
            if least <= forwards:
                return replace(self, window=window, stride=(t, h, w))
        raise OptionError(
            f"occlusion by windows of {window} needs at least {least} forwards, the budget is {forwards}:"
            " choose a larger window"
        )

    def _plan(self, size: Triple) -> tuple[Triple, Triple]:
        """Window and stride on such a clip; one box on an axis that the window covers."""
        shares = (2, 4, 4)
        wanted = self.window or tuple(
            ceil(extent / share) for extent, share in zip(size, shares, strict=True)
        )
        t, h, w = (min(own, extent) for own, extent in zip(wanted, size, strict=True))
        window = (t, h, w)
        if self.stride is None:
            return window, _halves(window)
        t, h, w = (
            min(stride, own) if own == extent else stride
            for stride, own, extent in zip(self.stride, window, size, strict=True)
        )
        return window, (t, h, w)


def boxes(size: Triple, window: Triple, stride: Triple) -> int:
    """How many windows there are, without making them."""
    return prod(ceil((e - w) / s) + 1 for e, w, s in zip(size, window, stride, strict=True))


def _halves(window: Triple) -> Triple:
    t, h, w = (max(1, extent // 2) for extent in window)
    return t, h, w
