"""Activations at a layer and gradients of the scores there, at about the cost of one forward.

No graph is built before the layer: gradients are off until its hook, which puts a detached copy of its output
in its place and switches them on. Only the head is differentiated, for all targets at once. The copy is a
clone, because a later in-place operation would otherwise overwrite what was captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from tubelens.errors import InputError, LayerError
from tubelens.layout import Grid, Layout
from tubelens.model import TorchModel, checked, untouched
from tubelens.target import Target, evaluate
from tubelens.where import Where

PROBE_SEED = 20190922  # random activations for testing the head; fixed, so that runs repeat exactly
MAX_GRADIENT_BYTES = 2**29


@dataclass(frozen=True)
class LayerInfo:
    """One candidate layer, as a dry run found it.

    Attributes:
        name, kind: the module's name and class.
        shape: of its output.
        layout: where its cells look.
        default: whether it is the one that is explained unless another is asked for.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    layout: Layout
    default: bool = False


@dataclass(eq=False)
class Capture:
    """What one forward left at a layer. Valid inside the `capturing` block.

    Attributes:
        model, layer: what was run, and where it was cut.
        clip_size: frames, height and width of the clips.
        layout: of the layer's output.
        leaf: the layer's output, raw layout, requires grad.
        scores: `(b, k)`, differentiable back to `leaf`.
        probe: random activations in the same place, and `probe_scores` the head's answer to them.
        alone: the head's answer to no activations at all, then to each cell's alone, the others zero;
            only where `capturing` was asked for more targets than there are cells.
        forwards: forward passes of one clip that were needed.
        backwards: passes back through the head so far.
    """

    model: TorchModel
    layer: str
    clip_size: tuple[int, int, int]
    layout: Layout
    leaf: Tensor
    scores: Float[Tensor, "b k"]
    probe: Tensor | None = None
    probe_scores: Float[Tensor, "b k"] | None = None
    alone: Float[Tensor, "cells k"] | None = None
    forwards: int = 1
    backwards: int = 0

    @property
    def activations(self) -> Float[Tensor, "b c t h w"]:
        """The layer's output as a grid, detached."""
        return self.layout.to_grid(self.leaf.detach())

    def values(self, targets: Sequence[Target]) -> Float[Tensor, "n b"]:
        """The targets on each clip."""
        return evaluate(targets, self.scores, self.model.output)

    def gradients(self, targets: Sequence[Target]) -> Float[Tensor, "n b c t h w"]:
        """Gradient of every target at the layer, as grids; one batched pass back through the head.

        Raises:
            LayerError: a gradient is zero throughout: the scores do not depend on this layer's grid.
        """
        per_target = self.leaf.numel() * self.leaf.element_size()
        chunk = max(1, MAX_GRADIENT_BYTES // max(1, per_target))
        grids = [
            vjp(self.values(targets[i : i + chunk]).sum(dim=1), self.leaf)
            for i in range(0, len(targets), chunk)
        ]
        gradients = torch.stack([self.layout.to_grid(g) for g in torch.cat(grids)])
        self.backwards += len(targets)
        dead = (gradients.flatten(1).abs().amax(dim=1) == 0).nonzero().flatten().tolist()
        if dead:
            raise LayerError(
                f"the gradient of {targets[dead[0]]!r} is zero at layer {self.layer!r}: the scores do not"
                " depend on it; choose an earlier one (in a class-token transformer, the last block's input)"
            )
        return gradients

    def grid(self, values: Float[Tensor, "t h w"]) -> Grid:
        """A map over the layer's cells, placed where they look."""
        frames, height, width = self.clip_size
        t, h, w = values.shape
        return Grid(
            values.detach(),
            self.layout.place("t", t, frames),
            self.layout.place("h", h, height),
            self.layout.place("w", w, width),
            (0, frames),
        )


def vjp(values: Float[Tensor, "n"], leaf: Tensor) -> Float[Tensor, "n ..."]:
    """Gradients of `n` numbers at `leaf` in one batched pass; one by one where the head cannot be batched."""
    rows = torch.eye(len(values), dtype=values.dtype, device=values.device)
    if len(values) > 1:
        try:
            (batched,) = torch.autograd.grad(
                values, leaf, rows, retain_graph=True, is_grads_batched=True, materialize_grads=True
            )
        except RuntimeError:
            pass  # an operation of the head has no batched backward
        else:
            return batched
    single = [
        torch.autograd.grad(values, leaf, row, retain_graph=True, materialize_grads=True)[0] for row in rows
    ]
    return torch.stack(single)


@contextmanager
def capturing(
    model: TorchModel,
    clips: Float[Tensor, "b c t h w"],
    layer: str | None = None,
    probe: bool = False,
    targets: int = 1,
) -> Iterator[Capture]:
    """Run the model once and cut the graph at `layer`; the model is as it was when the block ends.

    Args:
        model: the network.
        clips: canonical clips.
        layer: name; None: the model's own, else the default that a dry run finds.
        probe: also put random activations at the layer, as extra rows of the same forward, so that the head
            can be tested (or in a second forward, where the head does not take a wider batch).
        targets: how many will be explained. Where a probe is wanted and there are more targets than cells,
            each cell of one clip is also put through the head alone: for an affine head that gives the
            contributions to all targets without a backward for each.

    Raises:
        LayerError: no such layer, not reached, or without time and space.
        ScoreError: NaN or infinity.
    """
    forwards = 1
    name = layer or model.layer
    if name is None:
        name = default_layer(layers(model, clips)).name
        forwards += 1
    module = model.submodule(name)
    with untouched(model.module):
        cut, scores, runs = _run(model, module, name, clips, probe, targets)
        layout = cut.layout
        if layout is None:
            shape = "x".join(map(str, cut.leaf.shape))
            raise LayerError(
                f"layer {name!r} has no known place in time and space (output {shape}): choose one that"
                " `tubelens layers` lists, or declare its `layout`"
            )
        b = clips.shape[0]
        checked(scores[:b], model.name)
        yield Capture(
            model,
            name,
            (clips.shape[2], clips.shape[3], clips.shape[4]),
            layout,
            cut.leaf,
            scores[:b],
            cut.probe,
            scores[b : 2 * b] if probe else None,
            scores[2 * b :] if cut.cells else None,
            forwards + runs - 1,
        )


class _Cut:
    """The hook: cuts the graph at a layer's output and goes on from a leaf, or from random activations."""

    def __init__(
        self, where: Where, declared: Layout | None, clips: int, probe: bool, targets: int, swap: bool
    ) -> None:
        self.where, self.clips = where, clips
        self.wants_probe, self.targets, self.swap = probe, targets, swap
        self.leaf = self.probe = None  # type: Any
        self.layout = declared
        self.cells = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise LayerError(f"a {type(module).__name__} layer does not give a tensor of numbers")
        self.layout = self.layout or self.where.layout(tensor)
        torch.set_grad_enabled(True)
        self.leaf = tensor.detach().clone().requires_grad_()
        onward = self.leaf.clone()
        if self.wants_probe:
            self.probe = _random_like(self.leaf)
            rows = [self.probe.clone()] if self.swap else [onward, self.probe, *self._alone()]
            onward = torch.cat(rows)
        self.where.copy(tensor, onward)
        if isinstance(output, tuple | list):
            return type(output)((onward, *output[1:]))
        return onward

    def _alone(self) -> list[Tensor]:
        """Nothing, then every cell by itself, as further rows; none where that would not pay."""
        layout = self.layout
        if layout is None or layout.prefix:
            return []
        grid = layout.to_grid(self.leaf.detach())
        b, _, t, h, w = grid.shape
        cells = t * h * w
        too_large = cells * grid.numel() * grid.element_size() > MAX_GRADIENT_BYTES
        if b != 1 or self.targets <= cells or too_large:
            return []
        self.cells = cells
        rows = grid.new_zeros(1 + cells, *grid.shape[1:])
        rows[1:].flatten(2).diagonal(dim1=0, dim2=2).copy_(grid[0].flatten(1))
        return [layout.from_grid(rows)]

    def rows(self) -> int:
        """Scores to expect."""
        if self.swap or not self.wants_probe:
            return self.clips
        return 2 * self.clips + (1 + self.cells if self.cells else 0)


def _random_like(activations: Tensor) -> Tensor:
    """Activations of the same spread, positive and negative; the global generator is spared."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    noise = torch.randn(activations.shape, generator=generator, dtype=activations.dtype)
    spread = activations.detach().std(correction=0).clamp_min(1e-3)
    return (noise.to(activations.device) * spread).requires_grad_()


def _run(
    model: TorchModel, module: nn.Module, name: str, clips: Tensor, probe: bool, targets: int
) -> tuple[_Cut, Tensor, int]:
    """The cut, the scores (those of the probe after the clips') and the forwards it took."""
    if not probe:
        return *_forward(model, module, name, clips), 1
    try:
        return *_forward(model, module, name, clips, probe=True, targets=targets), 1
    except InputError:
        # the head does not take a wider batch: a second forward with the probe in the layer's place
        cut, scores = _forward(model, module, name, clips)
        other, answer = _forward(model, module, name, clips, probe=True, swap=True)
        cut.probe = other.probe
        return cut, torch.cat([scores, answer]), 2


def _forward(
    model: TorchModel,
    module: nn.Module,
    name: str,
    clips: Tensor,
    probe: bool = False,
    targets: int = 1,
    swap: bool = False,
) -> tuple[_Cut, Tensor]:
    # a network that runs its backbone under its own no_grad comes out of it in the outer mode, which then
    # has to have gradients on
    for mode in (torch.no_grad, torch.enable_grad):
        where = Where()
        cut = _Cut(where, model.layouts.get(name), len(clips), probe, targets, swap)
        handle = module.register_forward_hook(cut)
        pixels = clips.to(model.device)
        try:
            with mode(), where:
                where.start(pixels)
                scores = model.run(pixels, rows=cut.rows)
        finally:
            handle.remove()
        if cut.leaf is None:
            raise LayerError(f"layer {name!r} was not reached in the forward of {model.name}")
        if scores.requires_grad:
            return cut, scores
    raise LayerError(f"no gradient flows from the scores back to layer {name!r}")


def layers(model: TorchModel, clips: Float[Tensor, "b c t h w"]) -> list[LayerInfo]:
    """Every layer whose output has time and space, in the order they finish, from one dry run.

    Where several modules give the same tensor (a block and the ReLU that ends it) only the outermost is
    listed. The default is the model's own layer, else the last one with more than one place in space.
    """
    where = Where()
    found: dict[str, tuple[int, LayerInfo]] = {}
    names = {id(m): n for n, m in model.module.named_modules() if n}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple | list) and output else output
        name = names[id(module)]
        if not isinstance(tensor, Tensor):
            return
        layout = model.layouts.get(name) or where.layout(tensor)
        if layout is not None:
            serial = serials.setdefault(tensor, next(fresh))
            for other in [n for n, (key, _) in found.items() if key == serial or n == name]:
                del found[other]
            found[name] = (serial, LayerInfo(name, type(module).__name__, tuple(tensor.shape), layout))

    # a number for each tensor, without keeping it alive: long clips would not fit
    serials: Any = WeakTensorKeyDictionary()
    fresh = count()
    handles = [m.register_forward_hook(note) for n, m in model.module.named_modules() if n]
    pixels = clips.to(model.device)
    try:
        with untouched(model.module), torch.no_grad(), where:
            where.start(pixels)
            model.run(pixels)
    finally:
        for handle in handles:
            handle.remove()
    infos = [info for _, info in found.values()]
    wide = [i for i in infos if i.layout.sizes.get("h", 2) * i.layout.sizes.get("w", 2) > 1]
    chosen = model.layer or (wide[-1].name if wide else None)
    return [LayerInfo(i.name, i.kind, i.shape, i.layout, i.name == chosen) for i in infos]


def default_layer(infos: Sequence[LayerInfo]) -> LayerInfo:
    """The default among candidates.

    Raises:
        LayerError: no layer has time and space.
    """
    for info in infos:
        if info.default:
            return info
    raise LayerError("no layer of this model has an output with time and space: give `layer` and `layout`")
