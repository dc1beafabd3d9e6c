"""How well a map finds evidence that is known voxel by voxel.

Each score is a pure function of a map and a truth mask of the same shape, and each is read beside the maps
that look at no model: random order, centre prior, frame difference (`random_order`, `centre_prior`,
`frame_difference`).

None of them depends on the order in which voxels are stored: voxels of equal value share their credit.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelens.errors import OptionError

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
    positive = saliency.double().clamp_min(0)
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
    values, order = saliency.flatten().sort(descending=True)
    hits = truth.flatten()[order].double().cumsum(0)
    last = torch.ones_like(values, dtype=torch.bool)  # the last voxel of each run of equal values
    last[:-1] = values[:-1] != values[1:]
    found = hits[last]
    taken = torch.arange(1, len(values) + 1, device=values.device, dtype=torch.double)[last]
    gained = found.diff(prepend=found.new_zeros(1))
    return float((gained * found / taken).sum()) / positives


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
    if not tolerance >= 0:
        raise OptionError(f"the tolerance must be 0 or more pixels, not {tolerance}")
    best = (saliency == saliency.max()).nonzero()
    if tolerance == 0:
        return float(truth[tuple(best.T)].double().mean())
    hits = 0.0
    for t in sorted(set(best[:, 0].tolist())):
        true = truth[t].nonzero().double()
        if len(true):
            here = best[best[:, 0] == t][:, 1:].double()
            hits += float((torch.cdist(here, true).amin(dim=1) <= tolerance).sum())
    return hits / len(best)


# ── maps that look at no model ───────────────────────────────────────────────────────────────────────────


def random_order(size: tuple[int, int, int], seed: int = 0) -> Saliency:
    """A random permutation of the voxels: values `1/n ... 1`, no ties, on the CPU."""
    t, h, w = size
    n = t * h * w
    ranks = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) + 1
    return (ranks.float() / n).view(t, h, w)


def centre_prior(size: tuple[int, int, int], sigma: float = 0.25) -> Saliency:
    """A Gaussian bump in the middle of every frame, 1 at its top.

    Args:
        size: frames, height and width.
        sigma: standard deviation as a share of the height and of the width.
    """
    t, h, w = size
    y, x = ((torch.arange(n) + 0.5) / n - 0.5 for n in (h, w))
    bump = torch.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * sigma**2))
    return bump.expand(t, h, w).clone()


def frame_difference(pixels: Float[Tensor, "c T H W"], sigma: float = 1.0) -> Saliency:
    """Where the picture changes: `|I_t - I_(t-1)|` summed over the bands, blurred in space.

    The first frame, which has none before it, takes the second's. A clip of one frame gives zeros.

    Args:
        pixels: clip in [0, 1].
        sigma: standard deviation of the blur in pixels; 0 for none. Borders repeat.
    """
    change = pixels.diff(dim=1).abs().sum(dim=0)
    if not len(change):
        return torch.zeros_like(pixels[0])
    change = torch.cat([change[:1], change])
    if sigma == 0:
        return change
    reach = int(3 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=change.dtype) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(change.device)
    padded = torch.nn.functional.pad(change[:, None], [reach] * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(padded, kernel[None, None, :, None])
    return torch.nn.functional.conv2d(rows, kernel[None, None, None, :])[:, 0]


def _same_shape(saliency: Tensor, mask: Tensor) -> None:
    if saliency.shape != mask.shape:
        raise OptionError(
            f"the map is {tuple(saliency.shape)} and the mask {tuple(mask.shape)}: upsample the map first"
        )
