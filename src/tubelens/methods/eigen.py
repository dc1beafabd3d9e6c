"""Maps from activations alone: no gradient, and the same map for every target."""

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
from tubelens.methods.fuse import Fuse, LayerNames, alone, explained, one_of
from tubelens.methods.protocol import Needs
from tubelens.target import Logit, Target

AGNOSTIC = ("The map does not depend on the target: it shows what the layer responds to.",)
Votes = Literal["mean", "share"]


@dataclass(frozen=True)
class EigenCAM:
    """Eigen-CAM (Muhammad and Yeasin, IJCNN 2020, eqs. 3 and 4), with time as a third axis.

    With the activations as a matrix `M` of cells by features, the map is `M v`, `v` being the first right
    singular vector of `M`: what the features have most in common. `v` is found from the smaller of the two
    Gram matrices, `M' M` or `M M'`.

    A singular vector has no sign. It is chosen so that the map goes with the sum of all features (their inner
    product is positive), so that for activations that are not negative the map is not negative either.

    Attributes:
        layer: name; several names: one map each, fused; None: the model's default.
        centred: subtract each feature's mean over the cells first. The paper does not; pytorch-grad-cam does.
        signed: keep negative values.
        fuse: how the maps of several layers become one.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit
    needs_probe: ClassVar[bool] = False

    layer: LayerNames = None
    centred: bool = False
    signed: bool = False
    fuse: Fuse = "mean"

    __call__ = alone

    def from_capture(
        self, capture: Capture, clip: Clip, targets: Sequence[Target], start: float | None = None
    ) -> list[Explanation]:
        """The same from a capture that other methods share."""
        return explained(
            self,
            capture,
            clip,
            targets,
            start,
            self._maps,
            differentiates=False,
            notes=lambda: AGNOSTIC,
        )

    def _maps(self, capture: Capture, targets: Sequence[Target]) -> Float[Tensor, "n t h w"]:
        a = capture.activations[0].double()  # Gram matrices square the range
        m = a.flatten(1).T
        m = m - m.mean(dim=0) if self.centred else m
        one = along_first_component(m).view(a.shape[1:]).float()
        return one.expand(len(targets), *one.shape)


def along_first_component(m: Float[Tensor, "cells c"]) -> Float[Tensor, "cells"]:
    """`m v`, v the first right singular vector of `m`, its sign such that the rows' sums go with it."""
    cells, c = m.shape
    if c <= cells:
        along: Tensor = m @ torch.linalg.eigh(m.T @ m).eigenvectors[:, -1]
    else:  # m v = s u: the first left singular vector times the singular value
        squares, vectors = torch.linalg.eigh(m @ m.T)
        along = vectors[:, -1] * squares[-1].clamp_min(0).sqrt()
    agreement = along @ m.sum(dim=1)
    if agreement == 0:  # nothing to go by: let the largest be positive
        agreement = along[along.abs().argmax()]
    return -along if agreement < 0 else along


@dataclass(frozen=True)
class FEM:
    """Feature explanation method (Fuad et al., "Features understanding in 3D CNNs", IPTA 2020).

    A feature counts for where it is strong for itself: `M_k = [A_k > mu_k + sigma * sd_k]`, with mean and
    standard deviation over its cells. Implementations differ in what is then summed, see `votes`.

    Attributes:
        layer: name; several names: one map each, fused; None: the model's default.
        sigma: standard deviations above the mean; the paper's is 2.
        votes: `"share"`: `sum_k m_k A_k`, a feature's weight being the share `m_k` of cells that survive, as
            in pytorch-grad-cam; `"mean"`: `sum_k mu_k M_k`, the survivors themselves, weighted by the mean
            activation, as in xplique. The second has few distinct values and places its peak less well.
        signed: keep negative values.
        fuse: how the maps of several layers become one.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit
    needs_probe: ClassVar[bool] = False

    layer: LayerNames = None
    sigma: float = 2.0
    votes: Votes = "share"
    signed: bool = False
    fuse: Fuse = "mean"

    __call__ = alone

    def from_capture(
        self, capture: Capture, clip: Clip, targets: Sequence[Target], start: float | None = None
    ) -> list[Explanation]:
        """The same from a capture that other methods share.

        Raises:
            OptionError: `sigma` is negative or not a number.
        """
        one_of(self, "votes", Votes)
        if not 0 <= self.sigma < float("inf"):
            raise OptionError(f"FEM: sigma must be 0 or more standard deviations, not {self.sigma}")
        return explained(
            self,
            capture,
            clip,
            targets,
            start,
            self._maps,
            differentiates=False,
            notes=lambda: AGNOSTIC,
        )

    def _maps(self, capture: Capture, targets: Sequence[Target]) -> Float[Tensor, "n t h w"]:
        a = capture.activations[0]
        mean = a.mean(dim=(1, 2, 3), keepdim=True)
        spread = a.std(dim=(1, 2, 3), keepdim=True, correction=0)
        strong = (a > mean + self.sigma * spread).to(a)
        if self.votes == "mean":
            one = (mean * strong).sum(dim=0)
        else:
            one = (strong.mean(dim=(1, 2, 3), keepdim=True) * a).sum(dim=0)
        return one.expand(len(targets), *one.shape)
