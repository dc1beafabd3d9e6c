"""Attention probabilities of a transformer, and their gradients, read while the network runs as ever.

A torch function mode (`tubelens.attention_calls`) watches the calls of `tubelens.model.Attention.blocks`. The
network's own code computes its own scores: no setting is changed, so there is none to change back. Asking an
implementation for its weights instead is different in every library, takes another path through the network,
and says nothing where a fused kernel gives none (transformers returns an empty tuple). What is met:

- `scaled_dot_product_attention`: it runs unchanged, and `softmax(scale Q K' + mask)` is computed beside it,
  a head at a time. Its backward is our own, so that Q, K and V are kept and no probabilities are.
- a softmax over the last of three or four dimensions: its result is the attention of implementations that
  are written out (TimeSformer, transformers' eager mode).
- `nn.MultiheadAttention`: a mode keeps it off its fused fast path, and ends in one of the above.

Heads are fused as they are met. Memory, for N tokens, H heads and L calls of attention in a network that
uses the fused kernel: the fused matrices, 4 L N^2 bytes, in a forward; in a backward what any backward of
such a network keeps, and half a dozen matrices of 4 N^2 bytes at a time. Where the softmax is written out,
autograd keeps every head, 4 L H N^2 bytes. VideoMAE-B (N = 1568) on a CPU: .23 GB for a forward with
matrices, .13 without; .88 GB for a backward with them, .83 without, 2.5 in eager mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.attention_calls import Call, Heads, Visit, Watch, entered
from tubelens.cut import recording
from tubelens.errors import LayerError, ScoreError
from tubelens.layout import Grid, Layout
from tubelens.model import Attention, Scorer, TorchModel, checked, network, resolved, untouched
from tubelens.target import Target, evaluate

__all__ = ["Attended", "Call", "Heads", "Visit", "attending", "composed"]


@dataclass(eq=False)
class Attended:
    """What one forward left. Valid inside the `attending` block.

    Attributes:
        model: what was run.
        attention: how its calls are composed.
        clip_size: frames, height, width.
        scores: of the clip.
        calls: in the order met.
        matrices: fused probabilities, one a call; none where gradients were asked for.
    """

    model: TorchModel
    attention: Attention
    clip_size: tuple[int, int, int]
    scores: Float[Tensor, "1 k"]
    calls: list[Call]
    matrices: list[Tensor]
    watch: Watch

    @property
    def layout(self) -> Layout:
        """Of the tokens between blocks."""
        return resolved(self.attention.tokens, self.clip_size)

    @property
    def blocks(self) -> str:
        """First and last block, for the record."""
        return " to ".join(dict.fromkeys((self.attention.blocks[0], self.attention.blocks[-1])))

    def weighted(self, target: Target, visit: Visit) -> None:
        """One backward; `visit` is told `mean_h max(0, dS/dA_h * A_h)` of every call, the last one first.

        Raises:
            LayerError: no gradient reaches a call, or all are zero.
            ScoreError: a gradient has NaN or infinity.
        """
        who = f"the attention of {self.model.name}"
        with torch.inference_mode(False), torch.enable_grad():
            value = evaluate([target], self.scores, self.model.output)[0, 0]
            if not value.requires_grad:
                raise LayerError(f"no gradient flows from the scores back to {who}")
            self.watch.begin(visit)
            torch.autograd.grad(value, self.watch.leaves, retain_graph=True, allow_unused=True)
        if not self.watch.finite:
            raise ScoreError(f"the gradient of {self.model.name} at its attention has NaN or infinity")
        missing = set(range(len(self.calls))) - set(self.watch.order)
        if missing:
            block = self.calls[min(missing)].block
            raise LayerError(
                f"no gradient of {target!r} flows back to the attention of {block!r} in {self.model.name}"
            )
        if self.watch.order != sorted(self.watch.order, reverse=True):
            raise LayerError(f"{who} is not one chain of blocks, so that it cannot be composed")
        if self.watch.dead:
            raise LayerError(
                f"the gradient of {target!r} is zero at {who}: the scores do not depend on it", nothing=True
            )

    def grid(self, values: Float[Tensor, "t h w"]) -> Grid:
        """A map over the tokens, placed where they look."""
        return self.layout.grid(values, self.clip_size)


@contextmanager
def attending(
    model: Scorer,
    clips: Float[Tensor, "1 c t h w"],
    who: str,
    heads: Heads = "mean",
    gradients: bool = False,
) -> Iterator[Attended]:
    """Run a transformer once and read its attention; the model is as it was when the block ends.

    Args:
        model: a network whose `attention` is known.
        clips: one canonical clip.
        who: the method, for messages.
        heads: how the heads of a call become one matrix.
        gradients: whether `weighted` will be asked, and the matrices are not.

    Raises:
        LayerError: a black box, no attention, of a kind that is not composed, or none met within a block.
        ScoreError: NaN or infinity.
    """
    net = network(model, who)
    attention = composed(net, who)
    watch = Watch(heads, gradients)
    with ExitStack() as stack:
        stack.enter_context(untouched(net.module))
        stack.enter_context(torch.autocast(net.device.type, enabled=False))
        stack.enter_context(recording([*net.module.parameters(), *net.module.buffers()]))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for name in attention.blocks:
            stack.enter_context(entered(net.submodule(name), name, watch.inside))
        with watch:
            scores = checked(net.run(clips), net.name)
        met = {call.block for call in watch.calls}
        for name in attention.blocks:
            if name not in met:
                raise LayerError(
                    f"{who} met no attention within {name!r} of {net.name}: it was not reached, or a kernel"
                    " computes it that shows no probabilities; load the model with eager or sdpa attention"
                )
        yield Attended(net, attention, clip_size(clips), scores, watch.calls, watch.matrices, watch)


def composed(model: TorchModel, who: str) -> Attention:
    """How the model's attention is composed.

    Raises:
        LayerError: it is not known, or of a kind that is not composed.
    """
    attention = model.attention
    instead = "gradcam" + (f" at layer {model.layer!r}" if model.layer else "")
    if attention is None:
        raise LayerError(
            f"{model.name} has no attention that Tubelens knows; rollout and chefer need a transformer whose"
            f" `attention` is declared: use {instead}"
        )
    kinds = {
        "windows": "within windows, whose tokens are shifted and merged from block to block",
        "pooled": "between pooled queries and keys, so that no two blocks speak of the same tokens",
    }
    if attention.kind in kinds:
        raise LayerError(
            f"{who} composes attention between all tokens, and that of {model.name} is"
            f" {kinds[attention.kind]}: use {instead}"
        )
    return attention


def clip_size(clips: Float[Tensor, "b c t h w"]) -> tuple[int, int, int]:
    """Frames, height, width."""
    t, h, w = clips.shape[-3:]
    return t, h, w
