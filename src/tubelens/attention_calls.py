"""Meets the attention of a network while it runs: a torch function mode (see `tubelens.attention`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from tubelens.errors import LayerError

Heads = Literal["mean", "max", "min"]
Visit = Callable[[int, Tensor], None]
"""Told the number of a call, and its fused matrices `(m, q, k)`: one, or one a place or a frame."""

SOFTMAX = frozenset({F.softmax, torch.softmax, Tensor.softmax})
_MULTIHEAD: Any = F.multi_head_attention_forward
# the same code without its check for modes: entered from one, it runs with the mode on and is not sent back
_multihead: Any = FunctionType(
    _MULTIHEAD.__code__,
    {**_MULTIHEAD.__globals__, "has_torch_function": lambda tensors: False},
    _MULTIHEAD.__name__,
    _MULTIHEAD.__defaults__,
)


@dataclass(frozen=True)
class Call:
    """One call of attention.

    Attributes:
        block: within which it was met.
        shape: matrices, queries, keys.
    """

    block: str
    shape: tuple[int, int, int]


@contextmanager
def entered(module: nn.Module, name: str, inside: list[str]) -> Iterator[None]:
    """While the module is called, its name is the last of `inside`."""

    def enter(module: nn.Module, args: Any) -> None:
        inside.append(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if name in inside:  # not where a hook before ours raised
            inside.remove(name)

    handles = [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),  # a network may catch what it raises
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Watch(TorchFunctionMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """While active, meets the attention that is computed inside blocks.

    Attributes:
        inside: the blocks that are being called.
        calls, matrices: see `Attended`.
        leaves: where the graph begins: the values (or the probabilities) of the first call.
        order, dead, finite: what the present backward has met, whether its gradients are zero throughout and
            whether they are numbers.
    """

    def __init__(self, heads: Heads, gradients: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.heads, self.gradients = heads, gradients
        self.inside: list[str] = []
        self.calls: list[Call] = []
        self.matrices: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self.folded: int | None = None  # heads of the `nn.MultiheadAttention` that is being called
        self.begin(lambda i, matrix: None)

    def begin(self, visit: Visit) -> None:
        """Make ready for a backward."""
        self.visit = visit
        self.order: list[int] = []
        self.dead, self.finite = True, True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function; where it is attention, look at it."""
        kwargs = kwargs or {}
        if self.inside and func is _MULTIHEAD:
            self.folded = args[4] if len(args) > 4 else kwargs["num_heads"]
            try:
                with self:
                    return _multihead(*args, **kwargs)
            finally:
                self.folded = None
        if self.inside and func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        result = func(*args, **kwargs)
        if self.inside and func in SOFTMAX and _over_keys(args, kwargs, result):
            return self._written_out(result)
        return result

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`scaled_dot_product_attention`, with its own arguments."""
        if query.ndim == 3:  # heads without a batch
            mask = attn_mask[None] if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
            rest = (mask, dropout_p, is_causal, scale, enable_gqa)
            return self._fused(query[None], key[None], value[None], *rest)[0]
        if dropout_p or (attn_mask is not None and attn_mask.requires_grad):
            what = "draws dropout in inference" if dropout_p else "has a mask that is computed from the clip"
            raise LayerError(f"the attention of {self.inside[-1]!r} {what}: it cannot be explained")
        if enable_gqa:  # several heads share their keys
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        m, h, rows, _ = _four(query, self.inside[-1]).shape
        i = self._call((m, rows, key.shape[2]))
        head = _Head(scale or query.shape[3] ** -0.5, attn_mask, is_causal)
        kernel = partial(
            F.scaled_dot_product_attention, attn_mask=attn_mask, is_causal=is_causal, scale=scale
        )
        if not self.gradients:
            self.matrices.append(_fuse((head(query, key, n) for n in range(h)), self.heads))
            return kernel(query, key, value)
        if not any(x.requires_grad for x in (query, key, value)):
            value = self._leaf(value)
        out: Tensor = _Attend.apply(query, key, value, kernel, head, partial(self._met, i))  # type: ignore[no-untyped-call, unused-ignore]
        return out

    def _written_out(self, probabilities: Tensor) -> Tensor:
        """Attention whose softmax is a function call of its own."""
        if not self.gradients:
            four = self._heads_of(probabilities)
            self._call((four.shape[0], four.shape[2], four.shape[3]))
            self.matrices.append(_fuse(four.unbind(1), self.heads))
            return probabilities
        if not probabilities.requires_grad:
            probabilities = self._leaf(probabilities)
        held = self._heads_of(probabilities.detach())  # or the hook would keep its own tensor alive
        i = self._call((held.shape[0], held.shape[2], held.shape[3]))

        def hook(gradient: Tensor) -> None:
            pairs = zip(held.unbind(1), gradient.view_as(held).unbind(1), strict=True)
            positive = _fuse((_positive(p, g) for p, g in pairs), "mean")
            self._met(i, positive, float(gradient.abs().amax()))

        probabilities.register_hook(hook)
        return probabilities

    def _heads_of(self, x: Tensor) -> Tensor:
        """As `(matrices, heads, rows, columns)`; the first of three dimensions is heads, or both."""
        return _four(x if x.ndim == 4 else x.unflatten(0, (-1, self.folded or x.shape[0])), self.inside[-1])

    def _call(self, shape: tuple[int, int, int]) -> int:
        """Note a call; its number."""
        if self.gradients:
            torch.set_grad_enabled(True)  # the network may have switched them off
        self.calls.append(Call(self.inside[-1], shape))
        return len(self.calls) - 1

    def _leaf(self, x: Tensor) -> Tensor:
        """The graph begins here."""
        leaf = x.detach().requires_grad_()
        self.leaves.append(leaf)
        return leaf

    def _met(self, i: int, matrix: Tensor, largest: float) -> None:
        """A call, on the way back, and the largest of its gradients."""
        self.order.append(i)
        self.finite = self.finite and math.isfinite(largest)
        self.dead = self.dead and largest == 0
        self.visit(i, matrix)


@dataclass(frozen=True, eq=False)
class _Head:
    """The probabilities of one head, `softmax(scale Q K' + mask)`, at least in single precision."""

    scale: float
    mask: Tensor | None
    causal: bool

    def __call__(self, query: Tensor, key: Tensor, n: int) -> Tensor:
        q, k = _single(query[:, n]), _single(key[:, n])
        scores = (q * self.scale) @ k.transpose(-2, -1)
        if self.causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill_(future, -math.inf)
        if self.mask is not None:
            mask = self.mask.expand(*query.shape[:2], *scores.shape[-2:])[:, n]
            scores = scores.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(dim=-1)


class _Attend(torch.autograd.Function):
    """The network's own kernel, and a backward that shows the gradient at the probabilities.

    With `P = softmax(scale Q K')`, `O = P V` and `G = dS/dO`: `dS/dP = G V'`, `dS/dV = P' G`, and through
    the softmax `D = P * (dS/dP - rowsum(P * dS/dP))`, `dS/dQ = scale D K`, `dS/dK = scale D' Q`. P is
    computed again, a head at a time.
    """

    @staticmethod
    def forward(  # type: ignore[override, unused-ignore]
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel: Callable[[Tensor, Tensor, Tensor], Tensor],
        head: _Head,
        met: Callable[[int, Tensor, float], None],
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.head, ctx.met = head, met
        return kernel(query, key, value)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override, unused-ignore]
        query, key, value = ctx.saved_tensors
        (above,) = gradients
        grads = [torch.empty_like(x) for x in (query, key, value)]
        largest = 0.0

        def heads() -> Iterator[Tensor]:
            nonlocal largest
            for n in range(query.shape[1]):
                p = ctx.head(query, key, n)
                q, k, v, g = (_single(x[:, n]) for x in (query, key, value, above))
                at_p = g @ v.transpose(-2, -1)
                peak = float(at_p.abs().amax())
                largest = peak if math.isnan(peak) else max(largest, peak)
                product = p * at_p
                through = product - p * product.sum(dim=-1, keepdim=True)
                grads[0][:, n] = ctx.head.scale * through @ k
                grads[1][:, n] = ctx.head.scale * through.transpose(-2, -1) @ q
                grads[2][:, n] = p.transpose(-2, -1) @ g
                yield product.relu_()

        matrix = _fuse(heads(), "mean")
        ctx.met(matrix, largest)
        return *grads, None, None, None


def _single(x: Tensor) -> Tensor:
    """In single precision, where it is not in double."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _positive(p: Tensor, gradient: Tensor) -> Tensor:
    """`max(0, p dS/dp)`."""
    return _single(p * gradient).relu_()


def _fuse(heads: Iterable[Tensor], how: Heads) -> Float[Tensor, "m q k"]:
    """The heads' matrices as one, never all in memory; whoever yields them gives them away."""
    total, n = None, 0
    for head in heads:
        n += 1
        if total is None:
            total = head.clone()  # it may be a view of the network's own
        elif how == "mean":
            total += head
        else:
            torch.maximum(total, head, out=total) if how == "max" else torch.minimum(total, head, out=total)
    assert total is not None, "attention has a head"
    return total.div_(n) if how == "mean" else total


def _four(x: Tensor, block: str) -> Tensor:
    """Checks the dimensions of attention."""
    if x.ndim != 4:
        raise LayerError(
            f"the attention of {block!r} has {x.ndim} dimensions: three or four are understood, heads before"
            " rows and columns"
        )
    return x


def _over_keys(args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> bool:
    """Whether a softmax is one of attention: over the last of three or more dimensions."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return isinstance(result, Tensor) and result.ndim > 2 and dim in (-1, result.ndim - 1)
