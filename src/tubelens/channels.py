"""Follows channels through a forward pass: which kernels of which layers each channel of a tensor comes from.

As `tubelens.where` follows the clip's axes, this follows what is at the places of a tensor. A *label* names
a kernel of a layer and whether its values arrive reversed (a batch norm with a negative scale, a
subtraction). Operations that move values about (cat, split, reshape, permute, padding) are applied to the
labels themselves, so that branches, channel shuffles and flattened heads need no rule of their own; pointwise
ones keep the labels and join those of their arguments (a shortcut); pools and means keep them. What mixes
otherwise (attention, a product of two activations over channels) has every channel of its sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tubelens.axes import tensors

Key = tuple[str, int]
"""Where a label points: `("layer", i)`, `("site", i)` (a tensor with time and space), `("clip", 0)`."""
Flow = dict[Key, tuple[Tensor, ...]]
"""For each source the labels, as wide as the tensor or 1 along each dimension; several where they are added.

A label is `2 channel + reversed`, or `NONE` (nothing of this source), or `ANY` (any of its channels).
"""
NONE, ANY = -1, -2
ALTERNATIVES = 8  # added up in one place; more become ANY
LARGE = 2**16  # constant factors with more values are not looked at for their sign


@dataclass(frozen=True)
class Call:
    """One operation: how to look up flows, what it is, its arguments, one of its outputs and its number."""

    flow: Callable[[Tensor], Flow]
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor
    number: int

    def arg(self, i: int, name: str, default: Any = None) -> Any:
        return self.args[i] if i < len(self.args) else self.kwargs.get(name, default)

    @property
    def first(self) -> Flow:
        """Of the first argument."""
        return self.flow(self.args[0])


def labels(channels: int, ndim: int, dim: int) -> Tensor:
    """Every channel's own label along one dimension."""
    shape = [1] * ndim
    shape[dim] = channels
    return (2 * torch.arange(channels, dtype=torch.int32)).view(shape)


def pairs(flow: tuple[Tensor, ...], channels: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Read along the channel dimension: (channel, label) pairs, and the channels that may be anything.

    Returns:
        Channels `(n,)`, labels `(n,)`, and channels `(m,)` with `ANY`.
    """
    rows = torch.cat([each.movedim(dim, 0).flatten(1).expand(channels, -1) for each in flow], dim=1).long()
    many = int(rows.max()) + 3
    both = torch.unique(torch.arange(channels)[:, None] * many + rows + 2)  # as one number: sorts faster
    into, label = both // many, both % many - 2
    return into[label >= 0], label[label >= 0], into[label == ANY]


def carried(call: Call) -> tuple[Flow, bool]:
    """The flow of an operation's output, and whether channels were mixed on the way."""
    name = call.func.overloadpacket.__name__.rstrip("_")
    statistics = call.number and "norm" in name
    if not call.out.is_floating_point() or name.startswith("new_") or statistics:
        return {}, False
    if name in MOVES:
        return _moved(call), False
    if rule := RULES.get(name):
        return rule(call), False
    if "batch_norm" in name or name == "native_group_norm":
        return _scaled(call.first, call.args[1], 1), False
    if any(kind in name for kind in ("pool", "upsample")):
        return _pooled(call, name), False
    if name in REDUCTIONS:
        return _reduced(call), False
    if name in MIXERS or (flow := _pointwise(call)) is None:
        return mixed(call), True
    return flow, False


def mixed(call: Call) -> Flow:
    """Every channel of all sources."""
    keys = {key for a in tensors((*call.args, *call.kwargs.values())) for key in call.flow(a)}
    every = torch.full((1,) * call.out.ndim, ANY, dtype=torch.int32)
    return dict.fromkeys(sorted(keys), (every,))


# ── values that move ─────────────────────────────────────────────────────────────────────────────────────

RESHAPES = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy"})
MOVES = RESHAPES | {
    *("permute", "transpose", "t", "expand", "squeeze", "unsqueeze", "slice", "select", "split", "flip"),
    *("split_with_sizes", "unbind", "roll", "index_select", "index", "repeat", "constant_pad_nd", "unfold"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "movedim", "chunk", "narrow", "gather"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d", "pixel_shuffle", "channel_shuffle"),
}
FLOATS = ("reflection_pad", "replication_pad")  # only for numbers with a point


def _moved(call: Call) -> Flow:
    name = call.func.overloadpacket.__name__.rstrip("_")
    x = call.args[0]
    found: Flow = {}
    for key, alternatives in call.first.items():
        moved = []
        for each in alternatives:
            full = each.to(x.device).expand(x.shape)
            if name in RESHAPES:
                out = full.reshape(call.out.shape)
            elif name == "constant_pad_nd":
                out = torch.constant_pad_nd(full, call.arg(1, "pad"), NONE)
            elif name.startswith(FLOATS):
                out = call.func(full.double(), *call.args[1:], **call.kwargs).int()
            else:
                out = list(tensors((call.func(full, *call.args[1:], **call.kwargs),)))[call.number]
            moved.append(compressed(out).cpu())
        found[key] = tuple(moved)
    return found


def _cat(call: Call) -> Flow:
    parts = [p for p in call.args[0] if p.ndim == call.out.ndim]
    return _joined(call, parts, [call.flow(p) for p in parts], call.arg(1, "dim", 0) % call.out.ndim)


def _stack(call: Call) -> Flow:
    dim = call.arg(1, "dim", 0) % call.out.ndim
    flows = [{k: tuple(a.unsqueeze(dim) for a in v) for k, v in call.flow(p).items()} for p in call.args[0]]
    return _joined(call, [p.unsqueeze(dim) for p in call.args[0]], flows, dim)


def _joined(call: Call, parts: Sequence[Tensor], flows: Sequence[Flow], dim: int) -> Flow:
    nothing = torch.full((1,) * call.out.ndim, NONE, dtype=torch.int32)
    found: Flow = {}
    for key in dict.fromkeys(key for flow in flows for key in flow):
        given = [flow.get(key, (nothing,)) for flow in flows]
        sums = []
        for i in range(max(map(len, given))):
            these = [each[min(i, len(each) - 1)] for each in given]
            shape = list(torch.broadcast_shapes(*(t.narrow(dim, 0, 1).shape for t in these)))
            wide = []
            for part, each in zip(parts, these, strict=True):
                shape[dim] = part.shape[dim]
                wide.append(each.expand(shape))
            sums.append(compressed(torch.cat(wide, dim)))
        found[key] = tuple(sums)
    return found


def compressed(full: Tensor) -> Tensor:
    """Along every dimension that does not matter, one label."""
    for dim in range(full.ndim):
        one = full.narrow(dim, 0, 1) if full.shape[dim] else full
        if full.shape[dim] > 1 and (full.stride(dim) == 0 or bool((full == one).all())):
            full = one
    return full.contiguous()


# ── values that stay in place ────────────────────────────────────────────────────────────────────────────


def _pointwise(call: Call) -> Flow | None:
    """Same shape, or broadcast: the flows of all arguments; None where the shapes do not fit."""
    return joined([call.flow(a) for a in tensors((*call.args, *call.kwargs.values()))], call.out)


def joined(flows: Iterable[Flow], out: Tensor) -> Flow | None:
    """Flows added up in a tensor; None where they do not fit its shape."""
    found: Flow = {}
    for flow in flows:
        for key, alternatives in flow.items():
            for each in alternatives:
                if each.ndim > out.ndim:
                    return None
                wide = each.view((1,) * (out.ndim - each.ndim) + tuple(each.shape))
                if any(n not in (1, m) for n, m in zip(wide.shape, out.shape, strict=True)):
                    return None
                known = found.get(key, ())
                if any(torch.equal(wide, other) for other in known):
                    continue
                found[key] = (*known, wide)
                if len(found[key]) > ALTERNATIVES:
                    found[key] = (torch.full((1,) * out.ndim, ANY, dtype=torch.int32),)
    return found


def _difference(call: Call) -> Flow:
    name = call.func.overloadpacket.__name__.rstrip("_")
    flows = [call.flow(a) if isinstance(a, Tensor) else {} for a in call.args[:2]]
    minus = 0 if name == "rsub" else 1
    flows[minus] = _reversed(flows[minus])
    return joined(flows, call.out) or {}


def _negative(call: Call) -> Flow:
    return _reversed(call.first)


def _times(call: Call) -> Flow:
    """A product: of two activations, both; with a constant, reversed where that is negative."""
    x, y = call.args[:2]
    if isinstance(x, Tensor) and call.flow(x) and isinstance(y, Tensor) and call.flow(y):
        return joined([call.flow(x), call.flow(y)], call.out) or mixed(call)
    active, factor = (x, y) if isinstance(x, Tensor) and call.flow(x) else (y, x)
    flow = joined([call.flow(active)], call.out) or {}
    if not isinstance(factor, Tensor):
        return _reversed(flow) if factor < 0 else flow
    if factor.numel() > LARGE or factor.is_complex():
        return flow
    return _scaled(flow, factor.reshape((1,) * (call.out.ndim - factor.ndim) + tuple(factor.shape)), None)


def _layer_norm(call: Call) -> Flow:
    weight = call.arg(2, "weight")
    if weight is None:
        return call.first
    return _scaled(call.first, weight.view((1,) * (call.out.ndim - weight.ndim) + tuple(weight.shape)), None)


def _scaled(flow: Flow, scale: Tensor | None, dim: int | None) -> Flow:
    """Reversed where the scale (along `dim`, or broadcast) is negative; nothing where it is zero."""
    if scale is None:
        return flow
    scale = scale.detach().cpu()

    def apply(each: Tensor) -> Tensor:
        own = scale if dim is None else scale.view([-1 if d == dim else 1 for d in range(each.ndim)])
        other = torch.where((own < 0) & (each >= 0), each ^ 1, each)
        return compressed(other.masked_fill(own == 0, NONE))

    return {key: tuple(map(apply, alternatives)) for key, alternatives in flow.items()}


def _reversed(flow: Flow) -> Flow:
    return {k: tuple(torch.where(each >= 0, each ^ 1, each) for each in v) for k, v in flow.items()}


# ── values that are summed ───────────────────────────────────────────────────────────────────────────────

REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "max", "min", "logsumexp", "median", "var", "std"})
MIXERS = frozenset({
    *("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "addbmm", "mv", "dot", "convolution", "cumsum"),
    *("sort", "topk", "lstm", "gru", "_scaled_dot_product_flash_attention_for_cpu", "fft_r2c", "einsum"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention", "grid_sampler_3d"),
    *("_scaled_dot_product_attention_math", "scaled_dot_product_attention"),
})  # fmt: skip


def _pooled(call: Call, name: str) -> Flow:
    spatial = next((n for n in (1, 2, 3) if f"{n}d" in name), call.out.ndim - 2)
    return _collapsed(call, list(range(call.out.ndim - spatial, call.out.ndim)), keep=True)


def _reduced(call: Call) -> Flow:
    x = call.args[0]
    given = call.arg(1, "dim")
    dims = list(range(x.ndim)) if given is None else [given] if isinstance(given, int) else list(given)
    dims = sorted(d % x.ndim for d in dims) or list(range(x.ndim))
    return _collapsed(call, dims, keep=call.out.ndim == x.ndim)


def _collapsed(call: Call, dims: Sequence[int], keep: bool) -> Flow:
    """One label along `dims`; where there are several, each is an alternative."""
    found: Flow = {}
    for key, alternatives in call.first.items():
        flows: list[Flow] = []
        for each in alternatives:
            rows = each.movedim(list(dims), list(range(len(dims)))).flatten(0, len(dims) - 1)
            for row in torch.unique(rows, dim=0):
                for dim in dims if keep else ():
                    row = row.unsqueeze(dim)
                flows.append({key: (row,)})
        found |= joined(flows, call.out) or {}
    return found


RULES: dict[str, Callable[[Call], Flow]] = {
    "cat": _cat,
    "stack": _stack,
    "sub": _difference,
    "rsub": _difference,
    "neg": _negative,
    "mul": _times,
    "div": _times,
    "native_layer_norm": _layer_norm,
}
