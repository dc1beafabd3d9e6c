"""What methods share that read activations at one or several layers: the capture, and maps made one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.capture import Capture, capturing
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation, Scale
from tubelens.layout import Grid
from tubelens.methods.record import Recorder
from tubelens.model import Scorer, network
from tubelens.running import RUN, Run
from tubelens.target import Target
from tubelens.upsample import Align, fractional_index, resample

LayerNames = str | tuple[str, ...] | None
Fuse = Literal["mean", "max", "product"]
Maps = Callable[[Capture, Sequence[Target]], Float[Tensor, "n t h w"]]
"""The maps of one clip's capture, one a target."""


def alone(
    self: Any, model: Scorer, clip: Clip, targets: Sequence[Target], run: Run = RUN
) -> list[Explanation]:
    """One explanation a target, from a capture of the method's own: the `__call__` of these methods.

    One forward, and where the formula has gradients one batched pass back through the head.

    Raises:
        LayerError: no such layer, a zero gradient, or a black box.
        OptionError, ScoreError: see the class and `tubelens.capture`.
    """
    start = time.perf_counter()
    net = network(model, type(self).__name__)
    with capturing(net, clip.pixels[None], self.layer, probe=self.needs_probe) as capture:
        found: list[Explanation] = self.from_capture(capture, clip, targets, start)
    return found


def shared(
    self: Any, capture: Capture, clip: Clip, targets: Sequence[Target], start: float | None = None
) -> list[Explanation]:
    """The same from a capture that other methods share: the `from_capture` of those with `maps` alone."""
    return explained(self, capture, clip, targets, start, self.maps)


def one_of(method: object, option: str, allowed: Any) -> None:
    """Check an option against the values of a Literal.

    Raises:
        OptionError: another value.
    """
    value = getattr(method, option)
    if value not in get_args(allowed):
        known = ", ".join(map(repr, get_args(allowed)))
        raise OptionError(f"{type(method).__name__}: {option} must be one of {known}, not {value!r}")


def explained(
    method: Any,
    capture: Capture,
    clip: Clip,
    targets: Sequence[Target],
    start: float | None,
    maps: Maps,
    *,
    differentiates: bool = True,
    align: Align = "centres",
    scale: Scale = "positive",
    notes: Callable[[], tuple[str, ...]] = tuple,
) -> list[Explanation]:
    """One explanation a target, from maps at each of the method's layers.

    Args:
        method: with `layer`, `signed` (whether negative values stay) and `fuse`.
        capture: holds the method's layers; its first clip is read.
        clip: what was captured.
        targets: in as few backwards as memory allows.
        start: when the work began.
        maps: the formula.
        differentiates: whether it asks for gradients, which are then taken at all layers in one pass.
        align: how drawings place the cells.
        scale: what drawings call cold and hot.
        notes: asked afterwards what the user should know.
    """
    start = time.perf_counter() if start is None else start
    one_of(method, "fuse", Fuse)
    names = method.layer if isinstance(method.layer, tuple) else (method.layer,)
    if not names:
        raise OptionError(
            f"{type(method).__name__}: layer must name at least one, or be None for the default"
        )
    if len(names) > 1 and method.signed and method.fuse == "product":
        raise OptionError(
            f"{type(method).__name__}: a product of signed maps makes two negatives a positive: choose"
            " fuse='mean' or 'max', or signed=False"
        )
    captures = [capture.clip(0).at(name) for name in names]
    chunk = min(c.chunk() for c in captures) if differentiates else len(targets)
    grids: list[Grid] = []
    for i in range(0, len(targets), max(1, chunk)):
        some = targets[i : i + chunk]
        if differentiates:
            capture.prepare(names, some)
        found = [maps(c, some).cpu() for c in captures]
        kept = [m if method.signed else m.relu() for m in found]
        grids.extend(
            fused([c.grid(m[k]) for c, m in zip(captures, kept, strict=True)], method.fuse)
            for k in range(len(some))
        )
    record = Recorder(
        method,
        capture.model,
        captures[0].scores,
        layer=", ".join(dict.fromkeys(c.layer for c in captures)),
        forwards=capture.forwards,
        backwards=capture.backwards,
        notes=notes(),
        start=start,
    )
    return record.write(grids, clip, targets, align=align, scale=scale)


def fused(grids: Sequence[Grid], how: Fuse) -> Grid:
    """Maps at several layers as one; a single map stays as it is.

    Each is read, linearly, at the cells of the grid that is finest along each axis, where those look, and
    divided by its largest absolute value there, because the scales of layers cannot be compared. Then the
    mean is taken (as pytorch-grad-cam does for several target layers), the maximum (as LayerCAM, Jiang et
    al. 2021, section III-C, and torchcam do; of signed maps the value furthest from zero) or the product (an
    AND, offered by torchcam).
    """
    if len(grids) == 1:
        return grids[0]
    t = max((g.t for g in grids), key=len)
    y = max((g.y for g in grids), key=len)
    x = max((g.x for g in grids), key=len)
    placed = []
    for g in grids:
        cells = [fractional_index(a, c) for a, c in zip((t, y, x), (g.t, g.y, g.x), strict=True)]
        values = resample(g.values, cells, order=1)
        largest = values.abs().amax()
        placed.append(values / largest if largest > 0 else values)
    stack = torch.stack(placed)
    if how == "mean":
        one = stack.mean(dim=0)
    elif how == "max":
        one = stack.gather(0, stack.abs().argmax(dim=0, keepdim=True))[0]
    else:
        one = stack.prod(dim=0)
    return Grid(one, t, y, x, grids[0].span)
