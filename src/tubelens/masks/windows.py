"""Boxes that are removed: standing still, or moving with the picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelens.errors import OptionError
from tubelens.masks.family import AXES, Triple


@dataclass(frozen=True)
class Windows:
    """Sliding boxes that are removed, in raster order (width fastest).

    Boxes start every `stride` voxels until one reaches the end; that one is cut off at the border. So every
    voxel is in at least one box.

    Attributes:
        size: frames, height and width.
        window: of the box, cut to the clip.
        stride: from one box to the next, at most the window.
    """

    size: Triple
    window: Triple
    stride: Triple

    def __post_init__(self) -> None:
        for axis, window, stride in zip(AXES, self.window, self.stride, strict=True):
            if not 1 <= stride <= window:
                raise OptionError(
                    f"windows need 1 <= stride <= window along {axis}, or voxels are left out;"
                    f" got stride {stride} and window {window}"
                )

    @cached_property
    def boxes(self) -> Int[Tensor, "n 6"]:
        """First and one past the last voxel of each box: t0, t1, y0, y1, x0, x1."""
        spans = []
        for extent, window, stride in zip(self.size, self.window, self.stride, strict=True):
            starts = range(0, max(extent - window, 0) + stride, stride)
            spans.append(torch.tensor([(a, min(a + window, extent)) for a in starts if a < extent]))
        t, h, w = (torch.arange(len(s)) for s in spans)
        chosen = torch.cartesian_prod(t, h, w).reshape(-1, 3)
        return torch.cat([spans[axis][chosen[:, axis]] for axis in range(3)], dim=1)

    def __len__(self) -> int:
        return len(self.boxes)

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b T H W"]:
        """Masks `start` to `stop`: 0 inside the box, 1 outside."""
        boxes = self.boxes[start:stop].to(device)
        t, h, w = (_inside(boxes[:, 2 * axis], boxes[:, 2 * axis + 1], self.size[axis]) for axis in range(3))
        return 1 - t[:, :, None, None] * h[:, None, :, None] * w[:, None, None, :]


@dataclass(frozen=True, eq=False)
class Tracked:
    """The boxes of `Windows`, each following what it covers through its frames.

    A box has its place in the middle frame of its window. From there its centre moves, frame by frame, by the
    mean optical flow inside it: forwards with the flow to the next frame, backwards with the flow to the one
    before. A centre stays within the frame, so at least about a quarter of a box does. Unlike still windows,
    boxes that move may leave voxels uncovered.

    Attributes:
        size: frames, height and width.
        window, stride: see `Windows`.
        forward: flow from frame t to t + 1 in pixels, down and right.
        backward: flow from frame t + 1 to t (see `tubelens.flow`).
    """

    size: Triple
    window: Triple
    stride: Triple
    forward: Float[Tensor, "s 2 H W"]
    backward: Float[Tensor, "s 2 H W"]

    def __post_init__(self) -> None:
        Windows(self.size, self.window, self.stride)
        wanted = (self.size[0] - 1, 2, *self.size[1:])
        for flow in (self.forward, self.backward):
            if tuple(flow.shape) != wanted:
                raise OptionError(f"flow of shape {tuple(flow.shape)} does not fit: {wanted} is needed")

    @cached_property
    def boxes(self) -> Int[Tensor, "n T 4"]:
        """Of each window in each frame: y0, y1, x0, x1, one past the last; zeros where there is none."""
        still = Windows(self.size, self.window, self.stride).boxes
        first, last = still[:, 0], still[:, 1]
        corner, extent = still[:, [2, 4]].double(), still[:, [3, 5]] - still[:, [2, 4]]
        anchor = (first + last - 1) // 2
        boxes = torch.zeros(len(still), self.size[0], 4, dtype=torch.int64)
        every = torch.arange(len(still))
        boxes[every, anchor] = self._cut(corner, extent)
        for flow, step in ((_integral(self.forward), 1), (_integral(self.backward), -1)):
            at, place = anchor.clone(), corner.clone()
            while True:
                going = ((at + step >= first) & (at + step < last)).nonzero().flatten()
                if not len(going):
                    break
                pair = torch.minimum(at, at + step)[going]
                moved = place[going] + _mean_inside(flow, pair, boxes[going, at[going]])
                half = (extent[going] - 1) / 2
                limit = torch.tensor(self.size[1:]) - 1
                place[going] = (moved + half).clamp(torch.zeros(2), limit) - half
                at[going] += step
                boxes[going, at[going]] = self._cut(place[going], extent[going])
        return boxes

    def _cut(self, corner: Float[Tensor, "m 2"], extent: Int[Tensor, "m 2"]) -> Int[Tensor, "m 4"]:
        """Boxes on whole pixels, cut to the frame."""
        first = (corner + 0.5).floor().long()
        limit = torch.tensor(self.size[1:])
        return torch.stack([first.clamp_min(0), torch.minimum(first + extent, limit)], dim=2).flatten(1)

    def __len__(self) -> int:
        return len(self.boxes)

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b T H W"]:
        """Masks `start` to `stop`: 0 inside the moving box, 1 outside."""
        boxes = self.boxes[start:stop].to(device)
        flat = boxes.flatten(0, 1)
        rows, columns = (_inside(flat[:, 2 * i], flat[:, 2 * i + 1], self.size[i + 1]) for i in (0, 1))
        return 1 - (rows[:, :, None] * columns[:, None, :]).view(-1, *self.size)


def _inside(first: Int[Tensor, "b"], last: Int[Tensor, "b"], extent: int) -> Float[Tensor, "b extent"]:
    at = torch.arange(extent, device=first.device)
    return ((at >= first[:, None]) & (at < last[:, None])).float()


def _integral(flow: Float[Tensor, "s 2 H W"]) -> Float[Tensor, "s 2 H1 W1"]:
    """Sums over all pixels above and left of each corner, so that the sum in any box is four of them."""
    sums = flow.cpu().double().cumsum(2).cumsum(3)
    return torch.nn.functional.pad(sums, (1, 0, 1, 0))


def _mean_inside(
    integral: Float[Tensor, "s 2 H1 W1"], frame: Int[Tensor, "m"], boxes: Int[Tensor, "m 4"]
) -> Float[Tensor, "m 2"]:
    y0, y1, x0, x1 = boxes.unbind(1)
    total = (
        integral[frame, :, y1, x1]
        - integral[frame, :, y0, x1]
        - integral[frame, :, y1, x0]
        + integral[frame, :, y0, x0]
    )
    return total / ((y1 - y0) * (x1 - x0))[:, None]
