"""Ablation-CAM (Desai and Ramaswamy, WACV 2020): how much the target drops without a feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.capture import Capture
from tubelens.clip import Clip
from tubelens.errors import HeadError, OptionError
from tubelens.explanation import Explanation
from tubelens.methods.fuse import Fuse, LayerNames, alone, explained
from tubelens.methods.protocol import Needs
from tubelens.methods.scorecam import strongest
from tubelens.methods.tubes import affine_head
from tubelens.target import Logit, Target, evaluate


@dataclass(frozen=True)
class AblationCAM:
    """`ReLU(sum_k w_k A_k)` with `w_k = (y - y_k) / |y|`, `y_k` the target with feature k set to zero.

    Only the head runs for each feature, on top of the clip's own forward (eqs. 2 and 3 of the paper). Where
    the head is affine from the layer on, which is tested as for tubes, `y - y_k = sum g_k A_k` over the cells
    and no pass is needed. The paper divides by y, which turns the map upside down where y is negative; here
    it is |y|, and 1 where y is zero.

    Attributes:
        layer: name; several names: one map each, fused; None: the model's default.
        channels: at most so many features, strongest mean activation first; the others get no weight.
        signed: keep what speaks against the target (the paper ends with a ReLU).
        fuse: how the maps of several layers become one.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit
    needs_probe: ClassVar[bool] = True

    layer: LayerNames = None
    channels: int | None = None
    signed: bool = False
    fuse: Fuse = "mean"

    __call__ = alone

    def from_capture(
        self, capture: Capture, clip: Clip, targets: Sequence[Target], start: float | None = None
    ) -> list[Explanation]:
        """The same from a capture (best made with `probe=True`) that other methods share."""
        if self.channels is not None and self.channels < 1:
            raise OptionError(f"AblationCAM: channels must be at least 1, not {self.channels}")
        passes: list[int] = []

        def maps(here: Capture, some: Sequence[Target]) -> Float[Tensor, "n t h w"]:
            a = here.activations[0]
            drops = self._drops(here, some, passes)
            y = here.values(some)[:, 0].detach().abs()
            weights = drops / torch.where(y == 0, 1, y)[:, None]
            return torch.einsum("nc,cthw->nthw", weights, a)

        def notes() -> tuple[str, ...]:
            return (f"The head ran {sum(passes)} times with a feature removed.",) if passes else ()

        return explained(self, capture, clip, targets, start, maps, differentiates=False, notes=notes)

    def _drops(self, capture: Capture, targets: Sequence[Target], passes: list[int]) -> Float[Tensor, "n c"]:
        """`y - y_k`."""
        a = capture.activations[0]
        kept = self._kept(a)
        drops = a.new_zeros(len(targets), len(a))
        if capture.probed:
            try:
                gradients, _, _ = affine_head(capture, targets)
            except HeadError:
                pass
            else:
                drops[:, kept] = torch.einsum("ncthw,cthw->nc", gradients[:, 0], a)[:, kept]
                return drops
        if not kept:
            return drops
        without = capture.answers(Without(a, kept))
        passes.append(len(kept))
        answers = evaluate(targets, without, capture.model.output)
        drops[:, kept] = capture.values(targets).detach() - answers.to(drops)
        return drops

    def _kept(self, a: Float[Tensor, "c t h w"]) -> list[int]:
        """The features that are removed in turn, strongest first; one that is zero is left out."""
        alive = set(a.flatten(1).any(dim=1).nonzero().flatten().tolist())
        return [k for k in strongest(a) if k in alive][: self.channels]


@dataclass(frozen=True, eq=False)
class Without:
    """The activations with one of the features at a time set to zero, made as they are read."""

    activations: Float[Tensor, "c t h w"]
    features: list[int]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice) -> Float[Tensor, "m c t h w"]:
        some = self.features[rows]
        found = self.activations.repeat(len(some), 1, 1, 1, 1)
        found[range(len(some)), some] = 0
        return found
