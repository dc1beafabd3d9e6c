"""Where a video transformer's attention leads: rollout, and its gradient-weighted relative.

Both follow one row back through the blocks: how much what the head reads is made of each token. The head
reads the class token (start: 1 there), the mean of the tokens (1/N each), or an attentive pooler, whose one
query is followed through its own cross attention first. No N x N product is made.

Each call of attention is a matrix M over all tokens, added to a residual. Joint attention is M itself.
Divided attention (Bertasius et al., "Is Space-Time Attention All You Need?", ICML 2021) has two a block, with
M sparse: time, where every place attends over its T frames and the class token takes no part; then space,
where every frame attends over its places and a copy of the class token, and the copies' answers are averaged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelens.attention import Attended, Heads, attending
from tubelens.clip import Clip
from tubelens.errors import LayerError, OptionError
from tubelens.explanation import Explanation
from tubelens.methods.fuse import one_of
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder
from tubelens.model import Model
from tubelens.running import RUN, Run
from tubelens.target import Logit, Target

AGNOSTIC = "The map does not depend on the target: it shows where attention leads, whatever it is used for."
EMPTY = "The map of {!r} is zero: nothing that the head reads is attended to in favour of it."
Tokens = Float[Tensor, "n"]
Matrix = Float[Tensor, "m q k"]


@dataclass(frozen=True)
class AttentionRollout:
    """Attention rollout (Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, eq. 1).

    The readout's row of `P_L ... P_1`, with `P = (A + I) / 2`: A the mean of the heads' probabilities, I the
    residual. It is the same for every target, and not negative. Of a row over all tokens, which adds up to 1,
    the class token's own share is not shown.

    Attributes:
        heads: how the heads become one: the paper's `mean`, or `max` or `min` (Gildenblat, "Exploring
            Explainability for Vision Transformers", 2020, with `discard`).
        discard: share in [0, 1) of the smallest entries of each A that are set to 0. Where the rows of A no
            longer add up to 1, those of P are divided by their sums.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit

    heads: Heads = "mean"
    discard: float = 0.0

    def __post_init__(self) -> None:
        one_of(self, "heads", Heads)
        if not 0 <= self.discard < 1:
            raise OptionError(f"AttentionRollout's discard is a share in [0, 1), not {self.discard}")

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """The same map for every target, from one forward.

        Raises:
            LayerError, ScoreError: see `tubelens.attention.attending`.
        """
        start = time.perf_counter()
        with attending(model, clip.pixels[None], "rollout", self.heads) as attended:
            flow = Flow.of(attended)
            matrices = [smallest_dropped(a, self.discard) for a in attended.matrices]
            row = flow.start(matrices)
            for i in reversed(range(flow.blocks)):
                row = row / (1 + flow.sums(i, matrices[i], 1 / len(flow.cells)))
                row = row + flow.back(i, matrices[i], row, 1 / len(flow.cells))
            grid = attended.grid(row[flow.cells])
        record = Recorder(
            self, attended.model, attended.scores, layer=attended.blocks, notes=(AGNOSTIC,), start=start
        )
        return record.write([grid] * len(targets), clip, targets)


@dataclass(frozen=True)
class Chefer:
    """Gradient-weighted attention (Chefer et al., "Generic Attention-Model Explainability for Interpreting
    Bi-Modal and Encoder-Decoder Transformers", ICCV 2021, eqs. 5 and 6).

    `R <- R + M R` from `R = I`, block by block, with `M = mean_h max(0, dS/dA_h * A_h)`, S the target and A_h
    a head's probabilities; shown is the readout's row of `R - I`, not negative. A pooler's query reads
    `M (N + I)`, N being `R - I` with rows divided by their sums (eqs. 8 to 10). In divided attention A is the
    operator on all tokens (see the module): the gradient at the average of the class token's copies is T
    times that at one of them, so that M adds up the copies, which A averages.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from one forward and a backward each, down to the first attention.

        Raises:
            LayerError: also where a gradient is zero; see `tubelens.attention`.
            ScoreError: NaN or infinity.
        """
        start = time.perf_counter()
        with attending(model, clip.pixels[None], "chefer", gradients=True) as attended:
            flow = Flow.of(attended)
            read = queried if attended.attention.readout == "pooler" else relevance
            grids = [attended.grid(read(attended, flow, target)[flow.cells]) for target in targets]
        record = Recorder(
            self,
            attended.model,
            attended.scores,
            layer=attended.blocks,
            backwards=len(targets),
            notes=tuple(EMPTY.format(t) for t, g in zip(targets, grids, strict=True) if not g.values.any()),
            start=start,
        )
        return record.write(grids, clip, targets)


def relevance(attended: Attended, flow: Flow, target: Target) -> Tokens:
    """The readout's row of `R - I`: blocks are met from the last to the first, as the row needs them."""
    first = flow.start([])
    gained = torch.zeros_like(first)  # R - I by itself: taken as a difference, small values would be lost

    def visit(i: int, matrix: Matrix) -> None:
        gained.add_(flow.back(i, matrix, first + gained))

    attended.weighted(target, visit)
    return gained


def queried(attended: Attended, flow: Flow, target: Target) -> Tokens:
    """Likewise of a pooler's query; matrices are kept, because rows are summed from the first block on."""
    kept: dict[int, Tensor] = {}
    attended.weighted(target, kept.__setitem__)
    sums = torch.zeros(flow.count, device=attended.scores.device)
    for i in range(flow.blocks):
        sums = sums + flow.onward(i, kept[i], 1 + sums)
    query = kept[flow.blocks][0, 0]
    share = torch.where(sums > 0, query / sums, 0)
    gained = torch.zeros_like(share)
    for i in reversed(range(flow.blocks)):
        gained = gained + flow.back(i, kept[i], share + gained)
    return gained + query


@dataclass(frozen=True, eq=False)
class Flow:
    """The blocks' matrices as operators on all tokens.

    Attributes:
        cells: the token of each cell.
        prefix: tokens before those of the grid.
        readout: see `tubelens.model.Attention`.
        divided: whether calls are of time (even) and of space (odd).
        blocks: calls that act on the tokens; a pooler's is the one after.
    """

    cells: Int[Tensor, "t h w"]
    prefix: int
    readout: str
    divided: bool
    blocks: int

    @classmethod
    def of(cls, attended: Attended) -> Flow:
        """From what was met.

        Raises:
            LayerError: not matrices of that kind, or of other sizes than the tokens' layout.
        """
        attention, layout, calls = attended.attention, attended.layout, attended.calls
        divided, pooled = attention.kind == "divided", attention.readout == "pooler"
        m, q, _ = calls[0].shape
        count = layout.prefix + m * q if divided else q
        numbers = torch.arange(count, dtype=torch.float64, device=attended.scores.device)
        cells = layout.to_grid(numbers[None, :, None])[0, 0].long()
        t, h, w = cells.shape
        both = [(h * w, t, t), (t, layout.prefix + h * w, layout.prefix + h * w)]
        expected = both if divided else [(1, count, count)]
        blocks = len(calls) - pooled
        for i, call in enumerate(calls):
            want = (1, 1, count) if i == blocks else expected[i % len(expected)]
            if call.shape != want:
                said, met = ("x".join(map(str, shape)) for shape in (want, call.shape))
                raise LayerError(
                    f"{attention.kind} attention over {t}x{h}x{w} tokens (readout: {attention.readout}) has"
                    f" matrices of {said} in {call.block!r} of {attended.model.name}, and {met} were met:"
                    " its `attention` is declared wrongly"
                )
        if blocks % len(expected) or (attention.readout == "class" and not layout.prefix):
            what = "space in the last block" if layout.prefix else "class token in the layout of tokens"
            raise LayerError(f"{attended.model.name} has no {what}: its `attention` is declared wrongly")
        return cls(cells, layout.prefix, attention.readout, divided, blocks)

    @property
    def count(self) -> int:
        """Of all tokens."""
        return self.prefix + self.cells.numel()

    def start(self, matrices: Sequence[Tensor]) -> Tokens:
        """What the head reads of each token; a pooler's from the last of the matrices."""
        row = torch.zeros(self.count, device=self.cells.device)
        if self.readout == "class":
            row[0] = 1
        elif self.readout == "mean":
            row[self.cells] = 1 / self.cells.numel()
        else:
            row = matrices[-1][0, 0] / matrices[-1].sum()
        return row

    def back(self, i: int, matrix: Matrix, row: Tokens, share: float = 1.0) -> Tokens:
        """`row M`.

        Args:
            i: number of the call.
            matrix: its matrices.
            row: one value a token.
            share: of each of the copies of the class token.
        """
        if not self.divided:
            return row.to(matrix) @ matrix[0]
        places = row[self.cells].flatten(1)
        if i % 2 == 0:
            return self._joined(row[: self.prefix] * 0, torch.einsum("tp,pts->sp", places, matrix))
        copies = (row[: self.prefix] * share).expand(len(places), -1)
        moved = torch.einsum("tq,tqk->tk", torch.cat([copies, places], dim=1), matrix)
        return self._joined(moved[:, : self.prefix].sum(dim=0), moved[:, self.prefix :])

    def onward(self, i: int, matrix: Matrix, column: Tokens, share: float = 1.0) -> Tokens:
        """`M column`, likewise."""
        if not self.divided:
            return matrix[0] @ column.to(matrix)
        places = column[self.cells].flatten(1)
        if i % 2 == 0:
            return self._joined(column[: self.prefix] * 0, torch.einsum("pts,sp->tp", matrix, places))
        copies = column[: self.prefix].expand(len(places), -1)
        moved = torch.einsum("tqk,tk->tq", matrix, torch.cat([copies, places], dim=1))
        return self._joined(moved[:, : self.prefix].sum(dim=0) * share, moved[:, self.prefix :])

    def sums(self, i: int, matrix: Matrix, share: float) -> Tokens:
        """Of the rows of M."""
        return self.onward(i, matrix, torch.ones(self.count, device=matrix.device), share)

    def _joined(self, first: Tensor, places: Float[Tensor, "t p"]) -> Tokens:
        """The first tokens and those of the cells, in order."""
        row = places.new_zeros(self.count)
        row[: self.prefix] = first
        row[self.cells] = places.reshape(self.cells.shape)
        return row


def smallest_dropped(matrix: Matrix, share: float) -> Matrix:
    """The smallest entries set to 0, as many as that share of all."""
    n = int(matrix.numel() * share)
    if n == 0:
        return matrix
    kept = matrix.flatten().clone()
    kept[kept.topk(n, largest=False).indices] = 0
    return kept.view_as(matrix)
