"""The head of a network, from a layer on: back through it for targets, forward for other activations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.cut import Replacement, hooked
from tubelens.dryrun import readable
from tubelens.errors import InputError, LayerError
from tubelens.layout import Layout
from tubelens.model import TorchModel, checked, is_out_of_memory, untouched
from tubelens.where import Where

MAX_ANSWER_BYTES = 2**27  # activations put at a layer at once; the head needs a few times as much
REPEATED_CLIPS = 8  # in a batch, where the prefix has to run for each


@runtime_checkable
class Rows(Protocol):
    """Activations `(m, c, t, h, w)` read in slices: a tensor, or what makes them as they are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


def nbytes(tensor: Tensor) -> int:
    """Of its values."""
    return int(tensor.numel() * tensor.element_size())


def vjp(values: Float[Tensor, "n"], leaf: Tensor) -> Float[Tensor, "n ..."]:
    """Gradients of `n` numbers at `leaf` in one batched pass; one by one where the head cannot be batched."""
    return vjps(values, [leaf])[0]


def vjps(values: Float[Tensor, "n"], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Likewise at several places, from the same pass."""
    rows = torch.eye(len(values), dtype=values.dtype, device=values.device)
    options = {"retain_graph": True, "materialize_grads": True}
    if len(values) > 1:
        try:
            return list(torch.autograd.grad(values, leaves, rows, is_grads_batched=True, **options))
        except RuntimeError:
            pass  # an operation of the head has no batched backward
    single = [torch.autograd.grad(values, leaves, row, **options) for row in rows]
    return [torch.stack(found) for found in zip(*single, strict=True)]


def answers(
    model: TorchModel,
    clips: Float[Tensor, "1 c t h w"],
    layer: str,
    activations: Rows,
) -> Float[Tensor, "m k"]:
    """The head's scores for other activations `(m, c, t, h, w)` put at the layer; no gradients.

    The clip itself runs up to the layer once for as many activations as fit, and the batch is widened there.
    Where the head cannot take that (a second branch at another batch size) the clip is repeated. What is
    beside the grid (class tokens, other branches) stays the clip's own. A layer that the forward calls more
    than once is replaced each time.

    Raises:
        LayerError: no such layer, not reached, without time and space, or in a scripted network.
        ScoreError: NaN or infinity.
    """
    return answer(model, clips, layer, activations, model.layout(layer, clips.shape), None)[0]


def answer(
    model: TorchModel, clips: Tensor, layer: str, rows: Rows, layout: Layout | None, call: int | None
) -> tuple[Tensor, int]:
    """The scores, and how often the clip ran up to the layer."""
    module = readable(model, layer)
    if len(clips) != 1:
        raise InputError(f"activations are answered for one clip at a time, not for {len(clips)}")
    total, done, runs, size, repeat = len(rows), 0, 0, 0, False
    scores: list[Tensor] = []
    with untouched(model.module), torch.no_grad():
        while done < total:
            size = size or max(1, MAX_ANSWER_BYTES // max(1, nbytes(rows[done : done + 1])))
            part = rows[done : done + size]
            where = Where() if layout is None else None
            replacement = Replacement(part, layout, where, call)
            pixels = (clips.expand(len(part), -1, -1, -1, -1) if repeat else clips).to(model.device)
            try:
                with hooked(module, replacement), where or nullcontext():
                    if where is not None:
                        where.start(pixels)
                    given = model.run(pixels, rows=part.__len__)
            except LayerError:
                raise
            except InputError:
                if repeat or len(part) == 1:
                    raise
                repeat, size = True, min(size, REPEATED_CLIPS)
                continue
            except Exception as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                size = size // 2
                continue
            layout = layout or replacement.layout
            if layout is None:
                raise LayerError(f"layer {layer!r} was not reached, or has no known place in time and space")
            scores.append(checked(given, model.name))
            done += len(part)
            runs += len(part) if repeat else 1
    return torch.cat(scores), runs
