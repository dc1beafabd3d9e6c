"""The hooks that cut a forward at one or several layers, or put other activations there.

The first layer that is reached gives a leaf: a detached clone of its output that requires grad, and from
there on the graph is built. A later layer that depends on it is tapped in the graph; one on a branch of its
own, which nothing before it feeds, becomes a leaf of its own. What goes on is always a clone, because a later
in-place operation would otherwise overwrite what was captured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.errors import InputError, LayerError
from tubelens.layout import Layout
from tubelens.where import Where

PROBE_SEED = 20190922  # random activations for testing the head; fixed, so that runs repeat exactly
MAX_GRADIENT_BYTES = 2**29


@dataclass(eq=False)
class Tap:
    """What was captured at one layer.

    Attributes:
        tensor: its output in the graph, raw layout; rows beyond the clips' belong to a probe before it.
        layout: of the output.
        call: which of the module's calls it was, where it is called more than once.
    """

    tensor: Tensor
    layout: Layout
    call: int


class Cut:
    """Taps layers in one forward, and puts random activations at one of them.

    Attributes:
        taps: what was captured, by layer, in the order reached.
        probe: the random activations, a leaf, raw layout.
        cells: how many cells were put through the head alone, as further rows.
    """

    def __init__(
        self,
        where: Where,
        declared: Mapping[str, Layout],
        clips: int,
        probed: str | None = None,
        targets: int = 1,
        swap: bool = False,
    ) -> None:
        self.where, self.declared, self.clips = where, declared, clips
        self.probed, self.targets, self.swap = probed, targets, swap
        self.taps: dict[str, Tap] = {}
        self.seen: dict[str, tuple[int, ...]] = {}  # shape of what each layer gave
        self.calls: dict[str, int] = {}
        self.probe: Tensor | None = None
        self.cells = 0

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        """The forward hook for one layer."""
        return partial(self._tap, name)

    def _tap(self, name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        tensor = first_tensor(module, output)
        self.seen[name] = tuple(tensor.shape)
        self.calls[name] = self.calls.get(name, 0) + 1
        layout = self.declared.get(name) or self.where.layout(tensor)
        if layout is None:
            return output
        torch.set_grad_enabled(True)  # the network may have switched them off
        inside = tensor.requires_grad and any(other != name for other in self.taps)
        held = tensor if inside else tensor.detach().clone().requires_grad_()
        self.taps[name] = Tap(held, layout, self.calls[name])
        onward = held.clone()
        if name == self.probed:
            onward = self._probed(held, onward, layout)
        self._keep_axes(tensor, onward)
        return with_tensor(output, onward)

    def _probed(self, held: Tensor, onward: Tensor, layout: Layout) -> Tensor:
        if self.probe is not None and not self.swap:
            raise InputError("the layer is called more than once, so that its batch cannot be widened")
        self.probe = random_like(held)
        if self.swap:
            return self.probe.clone()
        return torch.cat([onward, self.probe, *self._alone(held, layout)], dim=batch_dimension(layout))

    def _alone(self, held: Tensor, layout: Layout) -> list[Tensor]:
        """Nothing, then every cell by itself, as further rows; none where that would not pay."""
        if layout.prefix:
            return []
        grid = layout.to_grid(held.detach())
        b, _, t, h, w = grid.shape
        cells = t * h * w
        too_large = cells * grid.numel() * grid.element_size() > MAX_GRADIENT_BYTES
        if b != 1 or self.targets <= cells or too_large:
            return []
        self.cells = cells
        rows = grid.new_zeros(1 + cells, *grid.shape[1:])
        rows[1:].flatten(2).diagonal(dim1=0, dim2=2).copy_(grid[0].flatten(1))
        return [layout.from_grid(rows)]

    def _keep_axes(self, old: Tensor, new: Tensor) -> None:
        """What is known of the output's axes also holds for what goes on, whose batch may be wider."""
        dims = self.where.records.get(old)
        if dims is None:
            return
        widened = new.numel() // max(1, old.numel())
        self.where.records[new] = tuple(
            tuple(replace(axis, size=axis.size * widened) if axis.role == "b" else axis for axis in dim)
            for dim in dims
        )

    def rows(self) -> int:
        """Scores to expect."""
        if self.swap or self.probe is None:
            return self.clips
        return 2 * self.clips + (1 + self.cells if self.cells else 0)


class Replacement:
    """Puts other activations at a layer, as many rows as there are.

    Attributes:
        layout: of the layer's output, found on the way where it was not given.
    """

    def __init__(
        self,
        activations: Float[Tensor, "m c t h w"],
        layout: Layout | None,
        where: Where | None,
        call: int | None,
    ) -> None:
        self.activations, self.layout, self.where, self.call = activations, layout, where, call
        self.calls = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """The forward hook."""
        tensor = first_tensor(module, output)
        self.calls += 1
        if self.call is not None and self.calls != self.call:
            return output
        if self.layout is None and self.where is not None:
            self.layout = self.where.layout(tensor)
        if self.layout is None:
            return output
        layout = replace(self.layout, prefix=0)
        rows = layout.from_grid(self.activations.to(tensor))
        if self.layout.prefix:
            tokens = tensor[:1, : self.layout.prefix].expand(len(rows), -1, -1)
            rows = torch.cat([tokens, rows], dim=1)
        return with_tensor(output, rows)


def first_tensor(module: nn.Module, output: Any) -> Tensor:
    """The output, or the first of several.

    Raises:
        LayerError: it is not a tensor of numbers.
    """
    tensor = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise LayerError(f"a {type(module).__name__} layer does not give a tensor of numbers")
    return tensor


def with_tensor(output: Any, tensor: Tensor) -> Any:
    """The output with another first tensor."""
    if not isinstance(output, tuple | list):
        return tensor
    items = (tensor, *output[1:])
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def batch_dimension(layout: Layout) -> int:
    """The dimension along which clips are stacked.

    Raises:
        InputError: the clips are not stacked along one: the batch cannot be widened there.
    """
    depth = place = 0
    for at, sign in enumerate(layout.pattern):
        if sign == "b":
            if depth and layout.pattern[at - 1] != "(":
                raise InputError(f"the batch is not outermost in {layout.pattern!r}")
            return place
        depth += (sign == "(") - (sign == ")")
        place += sign == " " and not depth
    raise InputError(f"no batch in {layout.pattern!r}")


def random_like(activations: Tensor) -> Tensor:
    """Activations of the same spread, positive and negative; the global generator is spared."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    noise = torch.randn(activations.shape, generator=generator, dtype=activations.dtype)
    spread = activations.detach().std(correction=0).clamp_min(1e-3)
    return (noise.to(activations.device) * spread).requires_grad_()


@contextmanager
def hooked(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """A forward hook for the time of the block."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recording(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Gradients are recorded, but none with respect to the parameters, for the time of the block.

    So nothing is kept for the backward until a leaf is made, also on branches that run beside it, and
    whatever requires grad depends on that leaf.
    """
    frozen = [p for p in parameters if p.requires_grad and p.is_leaf]
    for p in frozen:
        p.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for p in frozen:
            p.requires_grad_(True)
