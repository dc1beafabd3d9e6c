"""How each tensor operation moves the axes of a clip: one rule a kind of operation (see `tubelens.where`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tubelens.axes import Axis, Call, Dim, Dims, length, mean, plain, single

FRAME = "frame"  # role of a time axis of which one index was taken


def _window(call: Call, kernel: Any, stride: Any, padding: Any, dilation: Any, channels: Dim) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    n = call.out.ndim - 2
    kernel, padding, dilation = (_each(v, n) for v in (kernel, padding, dilation))
    stride = _each(stride, n) if stride else kernel
    out: list[Dim] = [dims[0], channels]
    for dim, size, k, s, p, d in zip(
        dims[-n:], call.out.shape[-n:], kernel, stride, padding, dilation, strict=True
    ):
        axis = single(dim)
        places = [i * s - p + d * (k - 1) / 2 for i in range(size)]
        # a folded dimension keeps its axes only where the window leaves it as it is
        untouched = k == 1 and s == 1 and p == 0
        out.append((axis.picked(places, s),) if axis else (dim if untouched else plain(size)))
    return tuple(out) if len(dims) == call.out.ndim else None


def _each(value: Any, n: int) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * n if len(values) == 1 else values


def _convolution(call: Call) -> Dims | None:
    if call.arg(6, "transposed", False):
        return None
    weight = call.args[1]
    channels = plain(call.out.shape[1])
    return _window(
        call, list(weight.shape[2:]), call.args[3], call.args[4], call.arg(5, "dilation", 1), channels
    )


def _max_pool(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    dilation = call.arg(4, "dilation", 1)
    return _window(
        call, call.args[1], call.arg(2, "stride", []), call.arg(3, "padding", 0), dilation, dims[1]
    )


def _avg_pool(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    return _window(call, call.args[1], call.arg(2, "stride", []), call.arg(3, "padding", 0), 1, dims[1])


def _adaptive_pool(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    n = len(_each(call.args[1], 1))
    out = list(dims[:-n])
    for dim, size in zip(dims[-n:], call.out.shape[-n:], strict=True):
        axis = single(dim)
        if axis is None:
            out.append(plain(size))
            continue
        bins = [((i * axis.size) // size, -((-(i + 1) * axis.size) // size)) for i in range(size)]
        out.append((axis.picked([(a + b - 1) / 2 for a, b in bins], axis.size / size),))
    return tuple(out)


def _reduce(call: Call) -> Dims | None:
    dims, over = call.dims, call.arg(1, "dim")
    if dims is None or over is None:
        return None
    gone = {d % len(dims) for d in _each(over, 1)}
    keep = call.out.ndim == len(dims)
    return tuple(plain(1) if i in gone else dim for i, dim in enumerate(dims) if keep or i not in gone)


def _cat(call: Call) -> Dims | None:
    tensors, dim = list(call.args[0]), call.arg(1, "dim", 0)
    records = [call.record(t) for t in tensors if t.ndim == call.out.ndim]
    given = [r for r in records if r is not None]
    dim %= call.out.ndim
    out: list[Dim] = []
    for place in range(call.out.ndim):
        here = [r[place] for r in given]
        if place != dim:
            # more channels from one origin count more
            marked = [(d, length(r[dim])) for d, r in zip(here, given, strict=True) if any(a.role for a in d)]
            ways, shares = [d for d, _ in marked], [share for _, share in marked]
            out.append(mean(ways, shares) if marked else plain(call.out.shape[place]))
            continue
        axes = [single(d) for d in here]
        if len(given) == len(tensors) and all(axes):
            joined = [a for a in axes if a]
            centres = tuple(c for a in joined for c in a.centres)
            out.append((Axis(joined[0].role, len(centres), centres, joined[0].step),))
        else:
            out.append(plain(call.out.shape[place]))
    return tuple(out)


def _stack(call: Call) -> Dims | None:
    """Frames that were taken out one by one (see `_taken`) make up the time axis again."""
    tensors, dim = list(call.args[0]), call.arg(1, "dim", 0) % call.out.ndim
    given = [r for t in tensors if (r := call.record(t)) is not None]
    frames = [axis for record in given for d in record for axis in d if axis.role == FRAME]
    dims, new = list(given[0]), plain(len(tensors))
    if len(frames) == len(tensors):
        centres = tuple(frame.centres[0] for frame in frames)
        new = (Axis("t", len(frames), centres, frames[0].step),)
        dims = [tuple(axis for axis in d if axis.role != FRAME) for d in dims]
    dims.insert(dim, new)
    return tuple(dims)


def _taken(dims: Dims, dim: int, index: int) -> Dims:
    """Without a dimension; a frame taken by itself is remembered beside the batch."""
    rest = [*dims[:dim], *dims[dim + 1 :]]
    axis = single(dims[dim])
    batch = next((i for i, d in enumerate(rest) if any(a.role == "b" for a in d)), None)
    if axis is not None and axis.role == "t" and batch is not None:
        frame = Axis(FRAME, 1, (axis.at(index % axis.size),), axis.step)
        rest[batch] = (frame, *rest[batch])
    return tuple(rest)


def _permute(call: Call) -> Dims | None:
    dims = call.dims
    return None if dims is None else tuple(dims[i % len(dims)] for i in call.args[1])


def _transpose(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None or len(dims) < 2:
        return dims
    order = list(range(len(dims)))
    i, j = (call.args[1] % len(dims), call.args[2] % len(dims)) if len(call.args) > 2 else (0, 1)
    order[i], order[j] = order[j], order[i]
    return tuple(dims[k] for k in order)


def _view(call: Call) -> Dims | None:
    """Regroup the axes into the new dimensions; a feature axis may be cut, an axis of the clip may not.

    An axis of the clip of length 1 goes to the next dimension that has room for it by itself, else it joins
    the dimension before.
    """
    dims = call.dims
    if dims is None:
        return None
    axes = [a for dim in dims for a in dim if a.size > 1 or a.role]
    shape = list(call.out.shape)
    out: list[Dim] = []
    for place, size in enumerate(shape):
        group: list[Axis] = []
        have = 1
        while axes and have < size:
            axis = axes[0]
            if size % (have * axis.size) == 0:
                group.append(axes.pop(0))
                have *= axis.size
            elif not axis.role and axis.size % (size // have) == 0:
                cut = size // have
                group.append(Axis("", cut))
                axes[0] = Axis("", axis.size // cut)
                have = size
            else:
                return None
        if have < size:
            return None
        # length-1 axes: as many as the remaining dimensions of length 1 cannot take must stay here
        ones = sum(1 for n in shape[place + 1 :] if n == 1)
        waiting = next((i for i, a in enumerate(axes) if a.size > 1), len(axes))
        if size == 1 and waiting and len(group) == 0:
            group.append(axes.pop(0))
            waiting -= 1
        while waiting > ones:
            group.append(axes.pop(0))
            waiting -= 1
        out.append(tuple(group) or plain(1))
    return tuple(out) if not axes else None


def _unsqueeze(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    at = call.args[1] % call.out.ndim
    return (*dims[:at], plain(1), *dims[at:])


def _squeeze(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    n = len(dims)
    chosen = {d % n for d in _each(call.args[1], 1)} if len(call.args) > 1 else set(range(n))
    return tuple(d for i, d in enumerate(dims) if not (i in chosen and length(d) == 1))


def _slice(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    dim = call.arg(1, "dim", 0) % len(dims)
    start, step = call.arg(2, "start") or 0, call.arg(4, "step", 1)
    size = length(dims[dim])
    start = max(0, start + size) if start < 0 else min(start, size)
    n = call.out.shape[dim]
    if n == size:
        return dims
    axis = single(dims[dim])
    new: Dim = (axis.picked([start + i * step for i in range(n)], step),) if axis and n else plain(n)
    return (*dims[:dim], new, *dims[dim + 1 :])


def _select(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    return _taken(dims, call.args[1] % len(dims), call.args[2])


def _gather_along(dims: Dims, dim: int, index: Tensor) -> Dims | None:
    axis = single(dims[dim])
    n = index.numel()
    wanted = [i % axis.size for i in index.flatten().tolist()] if axis else []
    stride = (wanted[-1] - wanted[0]) / (n - 1) if len(wanted) > 1 else 1.0
    new: Dim = (axis.picked(wanted, stride),) if axis and index.ndim == 1 else plain(n)
    return (*dims[:dim], new, *dims[dim + 1 :])


def _index_select(call: Call) -> Dims | None:
    dims = call.dims
    return None if dims is None else _gather_along(dims, call.args[1] % len(dims), call.args[2])


def _index(call: Call) -> Dims | None:
    dims = call.dims
    used = [(i, t) for i, t in enumerate(call.args[1]) if t is not None]
    if dims is None or len(used) != 1 or used[0][1].ndim != 1 or used[0][1].dtype == torch.bool:
        return None
    return _gather_along(dims, *used[0])


def _turned(dims: Dims, i: int, flip: bool) -> Dim:
    axis = single(dims[i])
    if not flip:
        return dims[i]
    if axis is None:
        return dims[i] if len(dims[i]) == 1 and not dims[i][0].role else plain(length(dims[i]))
    return (Axis(axis.role, axis.size, axis.centres[::-1], -axis.step),)


def _flip(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    flipped = {d % len(dims) for d in call.args[1]}
    return tuple(_turned(dims, i, i in flipped) for i in range(len(dims)))


def _rot90(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    turns, (i, j) = call.arg(1, "k", 1) % 4, (d % len(dims) for d in call.arg(2, "dims", [0, 1]))
    out = list(dims)
    # a quarter turn is flip j, then swap; a half turn flips both; three quarters swap, then flip j
    if turns == 1:
        out[i], out[j] = _turned(dims, j, True), dims[i]
    elif turns == 2:
        out[i], out[j] = _turned(dims, i, True), _turned(dims, j, True)
    elif turns == 3:
        out[i], out[j] = dims[j], _turned(dims, i, True)
    return tuple(out)


def _pad(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    out = list(dims)
    widths = list(call.args[1])
    for place in range(len(widths) // 2):
        before, i = widths[2 * place], len(dims) - 1 - place
        n = call.out.shape[i]
        axis = single(dims[i])
        if n != length(dims[i]) or before:
            out[i] = (axis.picked([j - before for j in range(n)]),) if axis else plain(n)
    return tuple(out)


def _split(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    dim = call.arg(2, "dim", 0) % len(dims)
    axis = single(dims[dim])
    sizes = call.args[1]
    first = sum(sizes[: call.number]) if isinstance(sizes, list | tuple) else sizes * call.number
    n = call.out.shape[dim]
    new: Dim = (axis.picked([first + i for i in range(n)]),) if axis else plain(n)
    return (*dims[:dim], new, *dims[dim + 1 :])


def _unbind(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    return _taken(dims, call.arg(1, "dim", 0) % len(dims), call.number)


def _expand(call: Call) -> Dims | None:
    dims = call.dims
    if dims is None:
        return None
    lead = call.out.ndim - len(dims)
    grown = tuple(
        dim if length(dim) == call.out.shape[lead + i] else plain(call.out.shape[lead + i])
        for i, dim in enumerate(dims)
    )
    return (*(plain(n) for n in call.out.shape[:lead]), *grown)


def _matrix_product(call: Call) -> Dims | None:
    """Rows keep their axes, columns are features: `mm(a, w)` and `addmm(bias, a, w)`."""
    left = call.args[-2] if isinstance(call.args[-2], Tensor) else call.args[1]
    dims = call.record(left)
    return None if dims is None else (dims[0], plain(call.out.shape[1]))


def _batch_product(call: Call) -> Dims | None:
    """A linear layer may arrive as `bmm` with repeated weights; tokens times tokens mixes places."""
    dims = call.dims
    if dims is None or call.record(call.args[1]) is not None:
        return None
    return (dims[0], dims[1], plain(call.out.shape[2]))


def _lost(call: Call) -> Dims | None:
    return None


RULES: dict[str, Callable[[Call], Dims | None]] = {
    "convolution": _convolution,
    "_convolution": _convolution,  # as traced modules call it
    "max_pool2d_with_indices": _max_pool,
    "max_pool3d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    "avg_pool3d": _avg_pool,
    "_adaptive_avg_pool2d": _adaptive_pool,
    "_adaptive_avg_pool3d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_pool,
    "adaptive_max_pool3d": _adaptive_pool,
    "mean": _reduce,
    "sum": _reduce,
    "amax": _reduce,
    "cat": _cat,
    "stack": _stack,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "view": _view,
    "_unsafe_view": _view,
    "reshape": _view,
    "_reshape_copy": _view,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "slice": _slice,
    "select": _select,
    "index_select": _index_select,
    "index": _index,
    "flip": _flip,
    "rot90": _rot90,
    "constant_pad_nd": _pad,
    "replication_pad2d": _pad,
    "replication_pad3d": _pad,
    "split": _split,
    "split_with_sizes": _split,
    "unbind": _unbind,
    "expand": _expand,
    "mm": _matrix_product,
    "addmm": _matrix_product,
    "bmm": _batch_product,
    "roll": _lost,
    "as_strided": _lost,
}
