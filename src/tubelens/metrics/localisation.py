"""How well a map finds evidence that is known voxel by voxel.

Each score is a pure function of a map and a truth mask of the same shape; the metrics of `against_truth` read
it beside what maps get that look at no model.

None of them depends on the order in which voxels are stored: voxels of equal value share their credit. Voxels
that are NaN, because no crop looked there, count as the least salient.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelens.errors import OptionError
from tubelens.metrics.anchors import centre_prior, frame_difference, random_order, settled

__all__ = [
    "average_precision",
    "average_precision_by_chance",
    "centre_prior",
    "check_tolerance",
    "distractor_mass",
    "energy_in_tube",
    "frame_difference",
    "pointing",
    "random_order",
    "spatial_pointing",
    "temporal_iou",
    "tube_iou",
]

Saliency = Float[Tensor, "T H W"]
Mask = Bool[Tensor, "t h w"]  # other names than the map's, so that `_same_shape` does the complaining


def energy_in_tube(saliency: Saliency, truth: Mask) -> float:
    """Share of the positive mass that lies in the truth.

    The energy-based pointing game of Wang et al., "Score-CAM" (CVPRW 2020), over voxels in place of pixels;
    also called relevance mass accuracy (Arras et al., "CLEVR-XAI", 2022). Negative values count as zero.

    Returns:
        In [0, 1], higher is better; the share of true voxels for a flat map. 0 where nothing is positive.
    """
    _same_shape(saliency, truth)
    positive = _positive(saliency)
    total = float(positive.sum())
    return float(positive[truth].sum()) / total if total > 0 else 0.0


def distractor_mass(saliency: Saliency, distractor: Mask) -> float:
    """Share of the positive mass that lies on moving objects that decide nothing.

    Returns:
        In [0, 1], lower is better; compare it with the share of voxels that they cover, which is what a flat
        map gets. 0 where nothing is positive.
    """
    return energy_in_tube(saliency, distractor)


def average_precision(saliency: Saliency, truth: Mask) -> float:
    """Average precision of the map's values as a detector of true voxels.

    `sum_n (R_n - R_(n-1)) P_n` over the distinct values as thresholds, from the highest down, with recall `R`
    and precision `P`: no interpolation, as `sklearn.metrics.average_precision_score`. Equal values pass a
    threshold together, so a flat map scores exactly the share of true voxels.

    Returns:
        In (0, 1], higher is better; about the share of true voxels for a random order.

    Raises:
        OptionError: no true voxel, so that recall has no meaning.
    """
    _same_shape(saliency, truth)
    positives = int(truth.sum())
    if positives == 0:
        raise OptionError("average precision needs at least one true voxel")
    values, order = _least(saliency).flatten().sort(descending=True)
    hits = truth.flatten()[order].double().cumsum(0)
    last = torch.ones_like(values, dtype=torch.bool)  # the last voxel of each run of equal values
    last[:-1] = values[:-1] != values[1:]
    found = hits[last]
    taken = torch.arange(1, len(values) + 1, device=values.device, dtype=torch.double)[last]
    gained = found.diff(prepend=found.new_zeros(1))
    return float((gained * found / taken).sum()) / positives


def average_precision_by_chance(voxels: int, true: int) -> float:
    """Average precision of a random order of `voxels`, of which some are true, in the mean over all orders.

    `(H + (true - 1) / (voxels - 1) (voxels - H)) / voxels` with the harmonic number
    `H = 1 + 1/2 + ... + 1/voxels`, from the definition, because any two places are equally likely to hold two
    true voxels. It lies a little above `true / voxels`, which a flat map gets.
    """
    if voxels == 1:
        return float(true)
    harmonic = float((1 / torch.arange(1, voxels + 1, dtype=torch.double)).sum())
    return (harmonic + (true - 1) / (voxels - 1) * (voxels - harmonic)) / voxels


def pointing(saliency: Saliency, truth: Mask, tolerance: float = 0.0) -> float:
    """Whether the map's highest voxel hits the truth.

    The pointing game of Zhang et al., "Top-down neural attention by excitation backprop" (IJCV 2018), whose
    image version allows 15 pixels of slack; here none by default.

    Args:
        saliency: signed map.
        truth: true voxels.
        tolerance: pixels, within the same frame, by which the highest voxel may miss (Euclidean).

    Returns:
        1 for a hit, 0 for a miss, the share of hits where several voxels are highest; higher is better.

    Raises:
        OptionError: a negative tolerance.
    """
    _same_shape(saliency, truth)
    values = _least(saliency)
    return float(_near(truth, tolerance)[values == values.max()].double().mean())


def spatial_pointing(saliency: Saliency, truth: Mask, tolerance: float = 0.0) -> float:
    """Whether the highest voxel of a frame hits the truth, mean over the frames that hold any.

    The pointing game played frame by frame: it asks where, and leaves out when.

    Args:
        saliency: signed map.
        truth: true voxels.
        tolerance: pixels by which a frame's highest voxel may miss (Euclidean).

    Returns:
        In [0, 1], higher is better; voxels of equal value share their credit.

    Raises:
        OptionError: a negative tolerance, or no true voxel.
    """
    _same_shape(saliency, truth)
    frames = truth.any(dim=2).any(dim=1)
    if not bool(frames.any()):
        raise OptionError("pointing frame by frame needs at least one true voxel")
    values = _least(saliency)[frames].flatten(1)
    highest = values == values.amax(dim=1, keepdim=True)
    hits = highest & _near(truth[frames], tolerance).flatten(1)
    return float((hits.sum(dim=1).double() / highest.sum(dim=1)).mean())


def tube_iou(saliency: Saliency, truth: Mask) -> float:
    """Intersection over union of the truth and of the map's highest voxels, as many as are true.

    At matched volume no threshold has to be chosen, and intersection over union, precision and recall say the
    same. Where voxels of equal value compete for the last places, it is the mean over all ways to choose.

    Returns:
        In [0, 1], higher is better; about `v / (2 - v)` for a random order, where a share `v` is true.

    Raises:
        OptionError: no true voxel.
    """
    _same_shape(saliency, truth)
    return _matched_iou(_least(saliency).flatten(), truth.flatten())


def temporal_iou(saliency: Saliency, truth: Mask) -> float:
    """Intersection over union of the frames that hold truth and of the map's strongest frames, as many.

    A frame is as strong as the sum of the map's positive values on it, rounded to a 100,000th of the largest.

    Returns:
        In [0, 1], higher is better; frames that are equally strong share their credit. 1 for every map where
        the truth is on every frame.

    Raises:
        OptionError: no true voxel.
    """
    _same_shape(saliency, truth)
    strength = settled(_positive(saliency).sum(dim=(1, 2), keepdim=True)).flatten()
    return _matched_iou(strength, truth.any(dim=2).any(dim=1))


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────


def _matched_iou(values: Float[Tensor, "n"], truth: Bool[Tensor, "n"]) -> float:
    """Mean intersection over union of the truth and the `k` highest values, `k` being how many are true.

    With `sure` true ones above the k-th value and `x` of those that equal it among the `room` that is left,
    it is `(sure + x) / (2k - sure - x)`; `x` is hypergeometric.
    """
    k = int(truth.sum())
    if k == 0:
        raise OptionError("intersection over union at matched volume needs at least one true voxel")
    last = values.topk(k).values[-1]
    above, tied = values > last, values == last
    sure, room = int((above & truth).sum()), k - int(above.sum())
    true, false = int((tied & truth).sum()), int((tied & ~truth).sum())
    x = torch.arange(max(0, room - false), min(true, room) + 1, dtype=torch.double)
    log_odds = _log_choose(true, x) + _log_choose(false, room - x)
    found = sure + x
    return float((log_odds.softmax(dim=0) * found / (2 * k - found)).sum())


def _log_choose(n: int, k: Float[Tensor, "x"]) -> Float[Tensor, "x"]:
    whole = torch.tensor(n + 1.0, dtype=torch.double)
    return whole.lgamma() - (k + 1).lgamma() - (n - k + 1).lgamma()


def _least(saliency: Tensor) -> Tensor:
    """The map with NaN below everything."""
    return saliency.masked_fill(saliency.isnan(), -torch.inf)


def _positive(saliency: Tensor) -> Tensor:
    """The map's positive values, zero elsewhere."""
    return saliency.double().masked_fill(saliency.isnan(), 0).clamp_min(0)


def _near(truth: Mask, tolerance: float) -> Mask:
    """Voxels with a true one within `tolerance` pixels on their frame."""
    check_tolerance(tolerance)
    _, h, w = truth.shape
    near = torch.zeros_like(truth)
    for down in range(-min(int(tolerance), h - 1), min(int(tolerance), h - 1) + 1):
        along = min(int((tolerance**2 - down**2) ** 0.5), w - 1)
        wide = torch.nn.functional.max_pool1d(truth.float(), 2 * along + 1, stride=1, padding=along) > 0
        to, of = slice(max(0, down), h + min(0, down)), slice(max(0, -down), h - max(0, down))
        near[:, to] |= wide[:, of]
    return near


def _same_shape(saliency: Tensor, mask: Tensor) -> None:
    if saliency.shape != mask.shape:
        raise OptionError(
            f"the map is {tuple(saliency.shape)} and the mask {tuple(mask.shape)}: upsample the map first"
        )


def check_tolerance(tolerance: float) -> None:
    """Raise OptionError for a tolerance that is no distance."""
    if not 0 <= tolerance < float("inf"):
        raise OptionError(f"the tolerance must be 0 or more pixels, not {tolerance}")
