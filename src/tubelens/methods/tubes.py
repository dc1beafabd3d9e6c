"""Saliency Tubes (Stergiou et al., "Saliency Tubes: Visual Explanations for Spatio-Temporal Convolutions",
ICIP 2019), generalised to every head that is affine in the layer's activations.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.capture import Capture, capturing
from tubelens.clip import Clip
from tubelens.errors import HeadError, LayerError, OptionError
from tubelens.explanation import Explanation
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder
from tubelens.methods.select import Selection
from tubelens.model import TorchModel
from tubelens.running import RUN, Run
from tubelens.target import Logit, Target, evaluate
from tubelens.upsample import Align

AFFINE_TOLERANCE = 1e-3  # of the gradient's norm; heads that are not affine differ by tenths and more


@dataclass(frozen=True)
class Tubes:
    """Class weight times activation, summed over the features of the last layer.

    With `A_k(t,h,w)` feature k at the layer and `g_k` the gradient of the target there, a cell's contribution
    is `sum_k g_k A_k`. Where the head is affine from the layer on, `g` does not depend on the clip, and the
    contributions of all cells plus the head's constant *are* the target: the map is the decision, split over
    time and space, and not an estimate of it. For global average pooling and a linear head it is
    `w_ck A_k / (T'H'W')`, the published map (eq. 1) up to its scale. Whether the head is affine is tested on
    the network itself: the gradient at random activations must equal the gradient at the clip's.

    The map is signed and unnormalised; positive cells speak for the target. No ReLU, no bias.

    Attributes:
        layer: name; None: the model's default.
        select: which features count (`Strongest`, `AtLeast`, `Soft`); None: all, and only then do the
            contributions add up to the target.
        parity: `"paper"`: the published scale (times the number of cells) and alignment (the grid stretched
            from corner to corner).
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit
    needs_probe: ClassVar[bool] = True

    layer: str | None = None
    select: Selection | None = None
    parity: Literal["paper"] | None = None

    def __call__(
        self, model: TorchModel, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from one forward and one batched pass back through the head.

        Raises:
            HeadError: the head is not affine from the layer on.
            LayerError, ScoreError: see `tubelens.capture`.
        """
        start = time.perf_counter()
        one_layer(self.layer)
        count = len(targets)
        with capturing(model, clip.pixels[None], self.layer, probe=True, targets=count) as capture:
            return self.from_capture(capture, clip, targets, start)

    def from_capture(
        self, capture: Capture, clip: Clip, targets: Sequence[Target], start: float | None = None
    ) -> list[Explanation]:
        """The same from a capture (made with `probe=True`) that other methods share."""
        start = time.perf_counter() if start is None else start
        one_layer(self.layer)
        capture = capture.clip(0).at(self.layer)
        if capture.alone is None or self.select is not None:
            gradients, constants, error = affine_head(capture, targets)
            grids = self._maps(gradients[:, 0], capture.activations[0])
        else:
            grids, constants, error = cell_by_cell(capture, targets)
            grids = grids * grids[0].numel() if self.parity == "paper" else grids
        facts = [{"constant": c, "completeness_error": error} for c in constants.tolist()]
        align: Align = "endpoints" if self.parity == "paper" else "centres"
        record = Recorder(
            self,
            capture.model,
            capture.scores,
            layer=capture.layer,
            forwards=capture.forwards,
            backwards=capture.backwards,
            start=start,
        )
        return record.write([capture.grid(g) for g in grids.cpu()], clip, targets, facts, align, "range")

    def features(self, model: TorchModel, clip: Clip, target: Target) -> Float[Tensor, "c t h w"]:
        """The terms `z_k = g_k A_k` of every feature; their sum over k is the map's grid.

        With `parity="paper"` on a pooled linear head these are the published `z_ij = w_ij A_j`.
        """
        with capturing(model, clip.pixels[None], self.layer, probe=True) as capture:
            gradients, _, _ = affine_head(capture, [target])
            return self._terms(gradients[0, 0], capture.activations[0])

    def _terms(
        self, gradient: Float[Tensor, "c t h w"], activations: Float[Tensor, "c t h w"]
    ) -> Float[Tensor, "c t h w"]:
        terms = gradient * activations
        if self.select is not None:
            weights = gradient.sum(dim=(1, 2, 3))
            kept = self.select(weights, activations.mean(dim=(1, 2, 3)))
            terms = terms * kept[:, None, None, None]
        return terms * activations[0].numel() if self.parity == "paper" else terms

    def _maps(
        self, gradients: Float[Tensor, "n c t h w"], activations: Float[Tensor, "c t h w"]
    ) -> Float[Tensor, "n t h w"]:
        if self.select is not None:
            return torch.stack([self._terms(g, activations).sum(dim=0) for g in gradients])
        maps = torch.einsum("ncthw,cthw->nthw", gradients, activations)
        return maps * activations[0].numel() if self.parity == "paper" else maps


def one_layer(layer: object) -> None:
    """Check that one layer is named, or none.

    Raises:
        OptionError: several: their contributions are to different sums.
    """
    if layer is not None and not isinstance(layer, str):
        raise OptionError(
            "tubes explain one layer at a time, because each is split over its own cells: name one, or fuse"
            " several with gradcam or layercam"
        )


def affine_head(
    capture: Capture, targets: Sequence[Target]
) -> tuple[Float[Tensor, "n b c t h w"], Float[Tensor, "n"], float]:
    """Gradients of an affine head, its constants, and how exactly gradient x activation + constant = target.

    Returns:
        Gradients as grids, one constant a target, and the largest error of the sum over the targets, as a
        share of the largest |target - constant|.

    Raises:
        HeadError: the head is not affine.
    """
    gradients = capture.gradients(targets)
    mix, mixed, answers = _probed(capture, targets)
    check_affine(capture, torch.einsum("n,nbcthw->bcthw", mix, gradients), mixed)
    constants = (answers - torch.einsum("nbcthw,bcthw->nb", gradients, capture.probe))[:, 0]
    sums = torch.einsum("nbcthw,bcthw->nb", gradients, capture.activations)[:, 0]
    return gradients, constants, _error(capture, targets, sums, constants)


def cell_by_cell(
    capture: Capture, targets: Sequence[Target]
) -> tuple[Float[Tensor, "n t h w"], Float[Tensor, "n"], float]:
    """Contributions of every cell to every target, from the head's answers to the cells one at a time.

    For an affine head h, a cell's contribution `sum_k g_k A_k` is `h(this cell of A alone) - h(0)`: one wider
    batch through the head instead of one backward a target. Returns (with maps for gradients) and raises as
    `affine_head`.
    """
    assert capture.alone is not None, "capture with more targets than cells"
    mix, mixed, _ = _probed(capture, targets)
    check_affine(capture, capture.gradient_of(mix, targets), mixed)
    answers = evaluate(targets, capture.alone.detach(), capture.model.output)
    constants = answers[:, 0]
    maps = (answers[:, 1:] - constants[:, None]).view(-1, *capture.activations.shape[2:])
    return maps, constants, _error(capture, targets, maps.sum(dim=(1, 2, 3)), constants)


def check_affine(
    capture: Capture, at_clip: Float[Tensor, "b c t h w"], at_probe: Float[Tensor, "b c t h w"]
) -> None:
    """The head is affine if its gradient at random activations is the one at the clip's.

    All targets are tested at once, by the gradient of a random combination of them: it differs unless (with
    probability one) none does. Comparing `W mean(A) + b` with the logit instead would prove nothing, because
    biases dominate it.

    Raises:
        HeadError: the gradients differ.
        LayerError: there is none.
    """
    if float(at_clip.abs().amax()) == 0:
        raise LayerError(
            f"the scores of {capture.model.name} do not depend on layer {capture.layer!r}", nothing=True
        )
    difference = float((at_probe - at_clip).norm() / at_clip.norm())
    if not difference <= AFFINE_TOLERANCE:
        measured = f"its gradient changes by {difference:.0%} with the activations"
        why = f"{capture.model.tubes}; {measured}" if capture.model.tubes else measured
        advice = (
            "" if capture.model.tubes else "choose the layer that the pooling reads (`tubelens layers`), or "
        )
        raise HeadError(
            f"tubes need a head that is affine from layer {capture.layer!r} on, and that of"
            f" {capture.model.name} is not ({why}): {advice}use a method without this need, such as gradcam"
            " or rise"
        )


def _probed(
    capture: Capture, targets: Sequence[Target]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "b c t h w"], Float[Tensor, "n b"]]:
    """A random combination of the targets, its gradient at the probe, and the targets there."""
    answers = evaluate(targets, capture.probe_scores, capture.model.output).detach()
    mix = torch.randn(len(targets), generator=torch.Generator().manual_seed(len(targets))).to(answers)
    return mix, capture.probe_gradient_of(mix, targets), answers


def _error(capture: Capture, targets: Sequence[Target], sums: Tensor, constants: Tensor) -> float:
    """Largest |sum + constant - target| as a share of the largest |target - constant|."""
    values = capture.values(targets).detach()[:, 0]
    own = (values - constants).abs().max().clamp_min(1e-12)
    return float((sums + constants - values).abs().max() / own)
