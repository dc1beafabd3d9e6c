"""Class activation maps: activations at a layer, weighted by the gradient of the target there.

`A_k(t,h,w)` is feature k at the layer, `g_k` the gradient of the target with respect to it, of the same
shape. All read the same forward and the same pass back through the head.

Attributes that several of the classes have:
    layer: name; several names: one map each, fused; None: the model's default.
    pool: over what a feature's weight is pooled: `"thw"`, one weight a feature, or `"hw"`, one a feature and
        time step, as some published code for video does.
    signed: keep what speaks against the target. The papers end with a ReLU over the sum; True leaves it out.
    fuse: how the maps of several layers become one (`tubelens.methods.fuse.fused`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.capture import Capture
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.methods.fuse import Fuse, LayerNames, alone, explained, one_of, shared
from tubelens.methods.protocol import Needs
from tubelens.target import Logit, Target

Pool = Literal["thw", "hw"]
Parity = Literal["icpr2022"]
Activations = Float[Tensor, "c t h w"]
Gradients = Float[Tensor, "n c t h w"]
Weights = Float[Tensor, "n c _"]
Maps = Float[Tensor, "n t h w"]


@dataclass(frozen=True)
class GradCAM:
    """Grad-CAM (Selvaraju et al., "Grad-CAM", ICCV 2017, eqs. 1 and 2), with time as a third axis.

    `ReLU(sum_k alpha_k A_k)`, `alpha_k` the mean of `g_k`. On a pooled linear head it is `ReLU(tubes)`.

    Attributes:
        layer, pool, signed, fuse: see the module.
        parity: `"icpr2022"`: as the code of an ICPR 2022 study of video explanations computes it: `alpha_k`
            is the sum of `g_k`, not the mean, each feature goes through a ReLU before the sum,
            `sum_k ReLU(alpha_k A_k)`, and the grid is stretched from corner to corner (there linearly:
            `upsample(order=1)`). It is not Grad-CAM: a feature that speaks against the class is left out
            instead of being subtracted.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit
    needs_probe: ClassVar[bool] = False

    layer: LayerNames = None
    pool: Pool = "thw"
    signed: bool = False
    fuse: Fuse = "mean"
    parity: Parity | None = None

    __call__ = alone

    def from_capture(
        self, capture: Capture, clip: Clip, targets: Sequence[Target], start: float | None = None
    ) -> list[Explanation]:
        """The same from a capture that other methods share."""
        if self.parity is None:
            return explained(self, capture, clip, targets, start, self.maps)
        one_of(self, "parity", Parity)
        if self.signed or self.pool != "thw":
            raise OptionError("GradCAM: parity='icpr2022' pools over thw and is not signed: leave both out")
        return explained(
            self, capture, clip, targets, start, self._published, align="endpoints", scale="range"
        )

    def maps(self, capture: Capture, targets: Sequence[Target]) -> Maps:
        a, g = read(capture, targets)
        return weighted(pooled(self, g) / pooled(self, torch.ones_like(g[:1])), a)

    def _published(self, capture: Capture, targets: Sequence[Target]) -> Maps:
        a, g = read(capture, targets)
        alpha = pooled(self, g)[..., 0]
        # alpha_k splits by sign, so that no target needs a map a feature: ReLU(x y) = x+ y+ + x- y-
        positive = torch.einsum("nc,cthw->nthw", alpha.relu(), a.relu())
        return positive + torch.einsum("nc,cthw->nthw", (-alpha).relu(), (-a).relu())


@dataclass(frozen=True)
class GradCAMpp:
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, eqs. 5, 7 and 19), with time as a third axis.

    `ReLU(sum_k w_k A_k)` with `w_k = sum alpha_k ReLU(g_k)` over the cells and
    `alpha_k = g_k^2 / (2 g_k^2 + (sum A_k) g_k^3) = 1 / (2 + (sum A_k) g_k)`; the short form does not
    underflow. The paper's score is exp(logit), whose gradient is `exp(logit) g`: that factor, one for the
    whole map, is left out.

    Attributes:
        layer, pool, signed, fuse: see the module.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit
    needs_probe: ClassVar[bool] = False

    layer: LayerNames = None
    pool: Pool = "thw"
    signed: bool = False
    fuse: Fuse = "mean"

    __call__ = alone
    from_capture = shared

    def maps(self, capture: Capture, targets: Sequence[Target]) -> Maps:
        a, g = read(capture, targets)
        below = 2 + pooled(self, a[None])[..., None, None] * g
        alpha = torch.where(below == 0, 0, 1 / below)
        return weighted(pooled(self, alpha * g.relu()), a)


@dataclass(frozen=True)
class XGradCAM:
    """XGrad-CAM (Fu et al., "Axiom-based Grad-CAM", BMVC 2020, eq. 8), with time as a third axis.

    `ReLU(sum_k w_k A_k)` with `w_k = sum g_k A_k / sum A_k` over the cells: the gradient, averaged by where
    the feature is active. A feature whose activations add up to zero has no weight.

    Attributes:
        layer, pool, signed, fuse: see the module.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit
    needs_probe: ClassVar[bool] = False

    layer: LayerNames = None
    pool: Pool = "thw"
    signed: bool = False
    fuse: Fuse = "mean"

    __call__ = alone
    from_capture = shared

    def maps(self, capture: Capture, targets: Sequence[Target]) -> Maps:
        a, g = read(capture, targets)
        whole = pooled(self, a[None])
        return weighted(torch.where(whole == 0, 0, pooled(self, g * a) / whole), a)


@dataclass(frozen=True)
class HiResCAM:
    """HiResCAM (Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations", 2020).

    `ReLU(sum_k g_k A_k)`, cell by cell: nothing is pooled. Where the head is affine from the layer on, the
    signed map is that of tubes, and its sum plus the head's constant is the target.

    Attributes:
        layer, signed, fuse: see the module.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit
    needs_probe: ClassVar[bool] = False

    layer: LayerNames = None
    signed: bool = False
    fuse: Fuse = "mean"

    __call__ = alone
    from_capture = shared

    def maps(self, capture: Capture, targets: Sequence[Target]) -> Maps:
        a, g = read(capture, targets)
        return torch.einsum("ncthw,cthw->nthw", g, a)


@dataclass(frozen=True)
class LayerCAM:
    """LayerCAM (Jiang et al., IEEE TIP 2021, eqs. 6 and 7), made for layers well before the last.

    `ReLU(sum_k ReLU(g_k) A_k)`, cell by cell.

    Attributes:
        layer, signed, fuse: see the module. The paper takes several layers by their maximum.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit
    needs_probe: ClassVar[bool] = False

    layer: LayerNames = None
    signed: bool = False
    fuse: Fuse = "mean"

    __call__ = alone
    from_capture = shared

    def maps(self, capture: Capture, targets: Sequence[Target]) -> Maps:
        a, g = read(capture, targets)
        return torch.einsum("ncthw,cthw->nthw", g.relu(), a)


def read(capture: Capture, targets: Sequence[Target]) -> tuple[Activations, Gradients]:
    """Activations of the first clip, and the gradients of every target at them."""
    return capture.activations[0], capture.gradients(targets)[:, 0]


def pooled(method: GradCAM | GradCAMpp | XGradCAM, values: Gradients) -> Weights:
    """Sums over what the method pools: `(n, c, 1)`, or `(n, c, t)` where each time step is by itself."""
    one_of(method, "pool", Pool)
    return values.sum(dim=(3, 4)) if method.pool == "hw" else values.sum(dim=(2, 3, 4))[..., None]


def weighted(weights: Weights, a: Activations) -> Maps:
    """`sum_k w_k A_k`, the weights one a feature or one a feature and time step."""
    if weights.shape[2] == 1:
        return torch.einsum("nc,cthw->nthw", weights[..., 0], a)
    return torch.einsum("nct,cthw->nthw", weights, a)
