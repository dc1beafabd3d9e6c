"""Gradients of the scores down to the pixels, before normalisation, within bounded memory.

Everything that differentiates a network with respect to its clip goes through here. The parameters are frozen
for the time of a block, so that no graph is kept for them; in-place operations of `pack` and of the network
work on a copy of the clip. Several targets share the forward, and each has a backward of its own: batching
them (`vmap` over the backwards of convolutions) is no faster on a CPU and takes memory times the targets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.cut import first_tensor, hooked, recording, with_tensor
from tubelens.dryrun import default_layer, layers, readable
from tubelens.errors import LayerError, OptionError, ScoreError, WorkError
from tubelens.layout import Layout
from tubelens.model import Scorer, TorchModel, checked, is_out_of_memory, network, untouched
from tubelens.relu import Relus
from tubelens.running import RUN, Run
from tubelens.target import Target, evaluate
from tubelens.upsample import fractional_index, resample
from tubelens.where import Where

SAVED_PER_CLIP = 128  # bytes kept for the backward, per byte of the clip: r3d_18 keeps 70, deeper ones more
MAX_SAVED_BYTES = 2**29  # on a CPU, where larger batches buy nothing; on an accelerator half of what is free


@dataclass(frozen=True, eq=False)
class AtLayer:
    """A layer's output in the same pass, as grids.

    Attributes:
        activations: of every clip, detached.
        gradients: of every target at the layer.
        layout: where its cells look.
    """

    activations: Float[Tensor, "b c t h w"]
    gradients: Float[Tensor, "n b c t h w"]
    layout: Layout

    def over_clip(self, values: Float[Tensor, "t h w"], size: tuple[int, int, int]) -> Float[Tensor, "T H W"]:
        """A map over the layer's cells, interpolated to the clip where they look.

        Linear, because a map that is not negative has to stay so: a cubic spline overshoots.
        """
        indices = [
            fractional_index(range(extent), self.layout.place(axis, cells, extent))
            for axis, cells, extent in zip("thw", values.shape, size, strict=True)
        ]
        return resample(values, indices, order=1)


@dataclass(frozen=True, eq=False)
class Backward:
    """What a forward and the backwards of all targets gave.

    Attributes:
        gradients: of every target at the pixels in [0, 1], before normalisation.
        values: of every target on every clip.
        scores: of every clip.
        layer: the same at a layer, where one was asked for.
    """

    gradients: Float[Tensor, "n b c t h w"]
    values: Float[Tensor, "n b"]
    scores: Float[Tensor, "b k"]
    layer: AtLayer | None = None


@contextmanager
def differentiable(
    model: Scorer,
) -> Iterator[Callable[[Float[Tensor, "b c t h w"]], Float[Tensor, "b k"]]]:
    """Within the block, scores with a graph back to the clips, and to nothing else.

    Gradients are on and in fp32 whatever the caller's modes; when the block ends, also by an error, the model
    and those modes are as they were.

    Example:
        >>> with differentiable(model) as score:
        ...     scores = score(clips.requires_grad_())
        ...     (gradient,) = torch.autograd.grad(scores[:, 3].sum(), clips)

    Raises:
        LayerError: a black box.
        ScoreError: NaN or infinity, from the function that is yielded.
    """
    net = network(model, "a gradient method")

    def score(clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        # a copy, because `pack` and the network may write in place
        return checked(net.run(clips.clone()), net.name)

    with (
        untouched(net.module),
        recording(list(net.module.parameters())),
        torch.autocast(net.device.type, enabled=False),
    ):
        yield score


def layer_of(model: Scorer, clips: Float[Tensor, "b c t h w"], layer: str | None) -> tuple[str, int]:
    """The layer asked for, the model's own, or the default that a dry run finds; and the forwards it took."""
    net = network(model, "a gradient method")
    name = layer or net.layer
    return (name, 0) if name is not None else (default_layer(layers(net, clips)).name, 1)


def gradients(
    model: Scorer, clips: Float[Tensor, "b c t h w"], targets: Sequence[Target], run: Run = RUN
) -> tuple[Float[Tensor, "n b c t h w"], Float[Tensor, "n b"]]:
    """Gradient of every target at the pixels of every clip, and the targets' values.

    Args:
        model: a network.
        clips: canonical clips in [0, 1].
        targets: what is differentiated.
        run: `batch` clips at a time; else as many as fit.

    Raises:
        LayerError: a black box.
        OptionError: no gradient reaches the pixels.
        ScoreError: NaN or infinity, in the scores or in a gradient.
    """
    found = backward(model, clips, targets, run)
    return found.gradients, found.values


def backward(
    model: Scorer,
    clips: Float[Tensor, "b c t h w"],
    targets: Sequence[Target],
    run: Run = RUN,
    layer: str | None = None,
    relus: Relus | None = None,
) -> Backward:
    """As `gradients`, with the scores, and with a layer's activations and gradients from the same passes.

    Args:
        model: a network.
        clips: canonical clips in [0, 1].
        targets: what is differentiated.
        run: `batch` clips at a time; else as many as fit.
        layer: also read this layer.
        relus: a rule for the backward of ReLUs on the way to the pixels; the gradient at `layer` stays the
            true one.

    Raises:
        LayerError: no such layer, not reached, without time and space, or with a gradient that is zero.
    """
    chunks = list(stream(model, clips, len(clips), targets, run, layer, relus))
    found = Backward(
        torch.cat([c.gradients for c in chunks], dim=1),
        torch.cat([c.values for c in chunks], dim=1),
        torch.cat([c.scores for c in chunks]),
        _joined([c.layer for c in chunks if c.layer is not None]),
    )
    if relus is None:  # a rule may leave nothing of a gradient that is there
        alive(found.gradients, targets, model)
    if found.layer is not None and (dead := _dead(found.layer.gradients)):
        raise LayerError(
            f"the gradient of {targets[dead[0]]!r} is zero at layer {layer!r}: the scores do not depend on"
            " it; choose an earlier one",
            nothing=True,
        )
    return found


def stream(
    model: Scorer,
    clips: Iterable[Float[Tensor, "c t h w"]],
    total: int,
    targets: Sequence[Target],
    run: Run = RUN,
    layer: str | None = None,
    relus: Relus | None = None,
) -> Iterator[Backward]:
    """`backward` of many clips, a chunk at a time and in order: memory does not grow with their number.

    A chunk holds `run.batch` clips, or what a bound in bytes allows, and is halved when memory runs out. The
    result does not depend on it. No check that a gradient is not zero: that is for the sum (see `alive`).
    """
    net = network(model, "a gradient method")
    queue = iter(clips)
    size = run.batch
    done = 0
    while pending := list(islice(queue, size or 1)):
        if size is None:
            size = _fitting(pending[0], net.device)
            pending += islice(queue, size - 1)
        while pending:
            take = min(size, len(pending))
            try:
                chunk = _pass(net, torch.stack(pending[:take]), targets, layer, relus)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if take == 1:
                    raise WorkError(
                        f"out of memory in a backward of {net.name} through one clip of"
                        f" {'x'.join(map(str, pending[0].shape))}: use a shorter or smaller clip, or RISE"
                    ) from error
                size = take // 2
                continue
            done += take
            pending = pending[take:]
            run.tell(done, total)
            yield chunk


def weighted_sum(
    model: Scorer,
    clips: Iterable[Float[Tensor, "c t h w"]],
    weights: Sequence[float],
    targets: Sequence[Target],
    run: Run = RUN,
    power: int = 1,
    until: float | None = None,
) -> tuple[Float[Tensor, "n c t h w"], int]:
    """`sum_i w_i g_i^power` over the gradients of many clips, and how many were added; memory as `stream`.

    Args:
        model: a network.
        clips: canonical clips, made as they are needed.
        weights: one a clip.
        targets: what is differentiated.
        run: how.
        power: of each gradient, elementwise.
        until: moment of `time.perf_counter()` after which no further chunk is run (the first always is).

    Raises:
        OptionError: the sum of a target is zero throughout; see also `gradients`.
    """
    total: Tensor | None = None
    done = 0
    for chunk in stream(model, clips, len(weights), targets, run):
        g = chunk.gradients
        share = torch.tensor(weights[done : done + g.shape[1]], dtype=g.dtype, device=g.device)
        part = torch.einsum("b,nbcthw->ncthw", share, g**power)
        total = part if total is None else total + part
        done += g.shape[1]
        if until is not None and time.perf_counter() >= until:
            break
    if total is None:
        raise OptionError("no clip to differentiate at")
    alive(total, targets, model)
    return total, done


def alive(gradients: Float[Tensor, "n ..."], targets: Sequence[Target], model: Scorer) -> None:
    """Checks that every target has a gradient at the pixels.

    Raises:
        OptionError: one is zero throughout.
    """
    if dead := _dead(gradients):
        raise OptionError(
            f"the gradient of {targets[dead[0]]!r} is zero at every pixel: `pack` rounds or detaches, or the"
            f" scores of {getattr(model, 'name', 'the model')} are saturated; use RISE or occlusion",
            nothing=True,
        )


def _dead(gradients: Float[Tensor, "n ..."]) -> list[int]:
    """Targets whose gradient is zero throughout."""
    dead: list[int] = (gradients.flatten(1).abs().amax(dim=1) == 0).nonzero().flatten().tolist()
    return dead


def _fitting(clip: Float[Tensor, "c t h w"], device: torch.device) -> int:
    """Clips whose backward is expected to fit."""
    bound = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else MAX_SAVED_BYTES
    return max(1, bound // (SAVED_PER_CLIP * max(1, clip.numel() * 4)))


def _joined(parts: Sequence[AtLayer]) -> AtLayer | None:
    """The chunks of a layer as one."""
    if not parts:
        return None
    return AtLayer(
        torch.cat([p.activations for p in parts]),
        torch.cat([p.gradients for p in parts], dim=1),
        parts[0].layout,
    )


class _Keep:
    """The hook: keeps a layer's output, in the graph, and passes a copy on, which may be overwritten."""

    def __init__(self, where: Where, declared: Layout | None) -> None:
        self.where, self.layout = where, declared
        self.output: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        tensor = first_tensor(module, output)
        self.layout = self.layout or self.where.layout(tensor)
        self.output, onward = tensor, tensor.clone()
        return with_tensor(output, onward)


def _pass(
    model: TorchModel,
    clips: Float[Tensor, "b c t h w"],
    targets: Sequence[Target],
    layer: str | None,
    relus: Relus | None,
) -> Backward:
    """One forward and a backward a target."""
    with differentiable(model) as score:
        pixels = clips.to(model.device, torch.float32).detach().clone().requires_grad_()
        with relus or nullcontext():
            scores, kept = _forward(model, score, pixels, layer)
        if relus is not None and not relus.met:
            raise LayerError(
                f"no ReLU was met in the forward of {model.name}, and guided backpropagation changes nothing"
                " else: use saliency, SmoothGrad or integrated gradients"
            )
        values = evaluate(targets, scores, model.output)
        if not values.requires_grad:
            raise OptionError(
                f"no gradient flows from the scores of {model.name} back to the pixels: its `pack` or its"
                " forward leaves the graph (numpy, rounding, no_grad); use RISE or occlusion"
            )
        sums = list(values.sum(dim=1))
        inputs = [pixels] if kept is None else [pixels, kept[0]]
        found = [_grad(s, inputs, relus, last=s is sums[-1]) for s in sums]
    at_pixels = torch.stack([g[0] for g in found])
    if not bool(torch.isfinite(at_pixels).all()):
        raise ScoreError(f"the gradient of {model.name} at the pixels has NaN or infinity")
    at_layer = None
    if kept is not None:
        output, layout = kept
        grids = torch.stack([layout.to_grid(g[1]) for g in found])
        at_layer = AtLayer(layout.to_grid(output.detach()), grids, layout)
    return Backward(at_pixels, values.detach(), scores.detach(), at_layer)


def _forward(
    model: TorchModel,
    score: Callable[[Tensor], Tensor],
    pixels: Float[Tensor, "b c t h w"],
    layer: str | None,
) -> tuple[Tensor, tuple[Tensor, Layout] | None]:
    """The scores, and the layer's output with its layout."""
    if layer is None:
        return score(pixels), None
    module = readable(model, layer)
    where = Where()
    keep = _Keep(where, model.layout(layer, pixels.shape))
    with hooked(module, keep), where:
        where.start(pixels)
        scores = score(pixels)
    if keep.output is None:
        raise LayerError(f"layer {layer!r} was not reached in the forward of {model.name}")
    if keep.layout is None:
        shape = "x".join(map(str, keep.output.shape))
        raise LayerError(
            f"layer {layer!r} has no known place in time and space (output {shape}): choose one that"
            " `tubelens layers` lists, or declare its `layout`"
        )
    if not keep.output.requires_grad:
        raise LayerError(f"layer {layer!r} has no gradient back to the pixels: choose another")
    return scores, (keep.output, keep.layout)


def _grad(value: Tensor, inputs: Sequence[Tensor], relus: Relus | None, last: bool) -> list[Tensor]:
    """Gradients of one target at the pixels and at the layer; ReLUs are changed only on the way to pixels."""
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    if relus is None:
        return list(torch.autograd.grad(value, inputs, retain_graph=not last, **options))
    true = torch.autograd.grad(value, inputs[1:], retain_graph=True, **options) if inputs[1:] else ()
    relus.guided = True
    try:
        changed = torch.autograd.grad(value, inputs[:1], retain_graph=not last, **options)
    finally:
        relus.guided = False
    return [*changed, *true]
