"""An axis of the clip inside a tensor, and what an operation does to it unless a rule says otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis inside a dimension.

    Attributes:
        role: b, t, h or w; "" for anything else (features, heads).
        size: its length.
        centres: input coordinate of each index, for t, h and w.
        step: input distance from one index to the next, used beyond the ends and where there is one index.
    """

    role: str
    size: int
    centres: tuple[float, ...] = ()
    step: float = 1.0

    def at(self, index: float) -> float:
        """Input coordinate of a fractional index; beyond the ends it goes on in steps."""
        last = self.size - 1
        if index <= 0 or last == 0:
            return self.centres[0] + index * self.step
        if index >= last:
            return self.centres[last] + (index - last) * self.step
        low = math.floor(index)
        high = min(low + 1, last)
        return self.centres[low] + (index - low) * (self.centres[high] - self.centres[low])

    def picked(self, indices: Sequence[float], stride: float = 1.0) -> Axis:
        """The axis read at fractional indices."""
        centres = tuple(self.at(i) for i in indices)
        return Axis(self.role, len(centres), centres, self.step * stride)


Dim = tuple[Axis, ...]  # one dimension may fold several axes, outermost first
Dims = tuple[Dim, ...]


def plain(size: int) -> Dim:
    """A dimension that belongs to no axis of the clip."""
    return (Axis("", size),)


def length(dim: Dim) -> int:
    """Size of a dimension: the product of its axes."""
    return math.prod(axis.size for axis in dim)


def single(dim: Dim) -> Axis | None:
    """The axis of time or space that this dimension is, if it is just one."""
    return dim[0] if len(dim) == 1 and dim[0].role in ("t", "h", "w") else None


@dataclass(frozen=True)
class Call:
    """One operation: how to look up records, its arguments, one of its outputs and that one's number."""

    record: Callable[[Tensor], Dims | None]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor
    number: int

    def arg(self, i: int, name: str = "", default: Any = None) -> Any:
        return self.args[i] if i < len(self.args) else self.kwargs.get(name, default)

    @property
    def dims(self) -> Dims | None:
        """Record of the first argument."""
        return self.record(self.args[0]) if isinstance(self.args[0], Tensor) else None


def tensors(items: Iterable[Any]) -> Iterable[Tensor]:
    """Every tensor in arguments or results, lists and tuples looked into."""
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from tensors(item)


def elementwise(call: Call) -> Dims | None:
    """Same shape, or broadcast: per dimension the mean of the centres that the arguments bring."""
    given = [d for a in tensors(call.args) if (d := call.record(a)) is not None]
    dims: list[Dim] = []
    for place in range(1, call.out.ndim + 1):
        size = call.out.shape[-place]
        here = [d[-place] for d in given if len(d) >= place and length(d[-place]) == size]
        marked = [dim for dim in here if any(axis.role for axis in dim)]
        dims.append(mean(marked) if marked else plain(size))
    given_roles = [{a.role for dim in d for a in dim if a.role} for d in given]
    kept = {a.role for dim in dims for a in dim if a.role}
    return tuple(reversed(dims)) if any(kept >= roles for roles in given_roles) else None


def mean(dims: list[Dim], weights: Sequence[float] = ()) -> Dim:
    """One dimension out of several that are joined: the mean of the centres of those laid out alike.

    Args:
        dims: what is joined.
        weights: of each in the mean; none: equal ones.
    """
    first = dims[0]
    if all(dim == first for dim in dims[1:]):
        return first
    layout = [(a.role, a.size) for a in first]
    shares = weights or [1.0] * len(dims)
    alike = [(d, s) for d, s in zip(dims, shares, strict=True) if [(a.role, a.size) for a in d] == layout]
    total = sum(share for _, share in alike)
    return tuple(
        replace(
            axis,
            centres=tuple(
                sum(d[i].centres[j] * share for d, share in alike) / total for j in range(len(axis.centres))
            ),
        )
        for i, axis in enumerate(first)
    )
