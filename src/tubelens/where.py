"""Follows the clip's axes through a forward pass, to know where each cell of a layer looks.

A dispatch mode sees every tensor operation of the network, whoever wrote it and however it is nested, and
passes on for each dimension which axis of the clip it is (batch, time, height, width) and the input
coordinate of every index along it. A convolution or a pool of kernel k, stride s, padding p and dilation d
turns centres x(i) into x(i s - p + d (k - 1) / 2), padding moves the origin, slices and gathers pick, folds
and permutations reorder. So token order and geometry are read off the network instead of being assumed, and
what `pack` does to the clip (segments, rotation, permutation) is included.

Operations that are not listed keep the axes where the shape stays the same, and lose them otherwise.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from tubelens.axes import Axis, Call, Dims, elementwise, tensors
from tubelens.axis_rules import RULES
from tubelens.layout import Layout

CLIP_AXES = ("b", "c", "t", "h", "w")


class Where(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """While active, records for each tensor which axes of the clip its dimensions are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.records: Any = WeakTensorKeyDictionary()

    def start(self, clips: Tensor) -> None:
        """Mark `clips` `(b, c, t, h, w)` as the origin."""
        self.records[clips] = tuple(
            (Axis(name if name != "c" else "", n, tuple(map(float, range(n))) if name in "thw" else ()),)
            for name, n in zip(CLIP_AXES, clips.shape, strict=True)
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then pass the axes on."""
        result = func(*args, **(kwargs or {}))
        known = [self.records.get(a) for a in tensors(args)]
        if any(known):
            name = func.overloadpacket.__name__.rstrip("_")
            rule = RULES.get(name) or RULES.get("_" + name) or elementwise
            outputs = list(tensors((result,)))
            for i, out in enumerate(outputs):
                dims = rule(Call(self.records.get, args, kwargs or {}, out, i))
                if dims is not None and tuple(math.prod(a.size for a in d) for d in dims) == tuple(out.shape):
                    self.records[out] = dims
                else:
                    self.records.pop(out, None)
        return result

    def layout(self, output: Tensor) -> Layout | None:
        """The layout of a tensor seen on the way, None unless it has time, height and width, once each."""
        return read_layout(self.records.get(output))

    def copy(self, old: Tensor, new: Tensor) -> None:
        """Let `new` have the record of `old`."""
        if (dims := self.records.get(old)) is not None:
            self.records[new] = dims


def read_layout(dims: Dims | None) -> Layout | None:
    """An einops layout from a record, None unless time, height and width each occur once."""
    if dims is None:
        return None
    axes = [axis for dim in dims for axis in dim]
    roles = [axis.role for axis in axes]
    if any(roles.count(r) != 1 for r in "bthw"):
        return None
    wide = [axis for axis in axes if not axis.role and axis.size > 1]
    if len(wide) > 1:
        return None
    features = wide[0] if wide else next((axis for axis in axes if not axis.role), None)
    if features is None:
        return None
    words = []
    for dim in dims:
        names = [axis.role or ("c" if axis is features else "1") for axis in dim]
        words.append(names[0] if len(names) == 1 else f"({' '.join(names)})")
    sizes = {axis.role: axis.size for axis in axes if axis.role in ("t", "h", "w")}
    centres = {axis.role: axis.centres for axis in axes if axis.role in ("t", "h", "w")}
    return Layout(" ".join(words), sizes, 0, centres)
