"""The backward rule of ReLUs, exchanged for the time of a block without touching the network.

A function mode sees every call of ReLU, as a module or as a function, in place or not, and puts in its place
one whose backward can be switched. So nothing is registered on the network that could be left there, and
networks that call `F.relu` in their forward are covered too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

IN_PLACE = frozenset({torch.relu_, Tensor.relu_})
OUT_OF_PLACE = frozenset({torch.relu, Tensor.relu, F.relu})


class Relus(TorchFunctionMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """While active, ReLUs are computed as ever, but pass gradients back as `guided` says at that time.

    Attributes:
        guided: True: `R = 1[output > 0] 1[R' > 0] R'`, where R' is what comes back from above (Springenberg
            et al., "Striving for Simplicity", ICLR 2015 workshop, section 3.4); False: the true gradient
            `1[output > 0] R'`.
        met: ReLUs met so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.guided = False
        self.met = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function; a ReLU as one whose backward looks at `guided`."""
        kwargs = kwargs or {}
        if func not in IN_PLACE and func not in OUT_OF_PLACE:
            return func(*args, **kwargs)
        self.met += 1
        x = args[0] if args else kwargs["input"]
        in_place = func in IN_PLACE or bool(kwargs.get("inplace", False))  # `F.relu` always names it here
        return _Relu.apply(x, self, in_place)  # type: ignore[no-untyped-call, unused-ignore]


class _Relu(torch.autograd.Function):
    """ReLU with a backward that looks at the mode's switch when it runs, not when it was recorded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mode: Relus, in_place: bool) -> Tensor:
        if in_place:
            # as the original: somebody may rely on `x` being overwritten
            ctx.mark_dirty(x)
            y = x.relu_()
        else:
            y = x.relu()
        ctx.save_for_backward(y)
        ctx.mode = mode
        return y

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        passed = above * (y > 0)
        return passed.clamp_min(0) if ctx.mode.guided else passed, None, None
