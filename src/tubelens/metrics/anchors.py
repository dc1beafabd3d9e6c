"""Maps that every metric is read beside, because a bare value misleads.

All but two look at no model: a random order, a centre prior, the frame difference. The time-mean of a map
says what the timing of the map is worth, and the truth, where it is known, how much there is to gain.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.agreement import EQUAL
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.metrics.protocol import normalised
from tubelens.truth import Truth

Saliency = Float[Tensor, "T H W"]
RANDOM, CENTRE, DIFFERENCE, TIME_MEAN, ORACLE = "random", "centre", "difference", "time_mean", "oracle"
ROUNDING = 1e-9
RIVALS = {
    RANDOM: "a random order",
    CENTRE: "a centre prior",
    DIFFERENCE: "the frame difference",
    TIME_MEAN: "its own mean over time",
}
"""Anchors that a map should beat, as they are called in notes; the oracle is no rival."""
NO_SCALE = "the truth is no better than a random order here: no normalised score"


def anchor_maps(
    saliency: Saliency, clip: Clip | None = None, truth: Truth | None = None, seed: int = 0
) -> dict[str, Saliency]:
    """The anchors of one map, by name, as maps of its size.

    Args:
        saliency: the map; NaN where no crop looked.
        clip: without it there is no `difference`.
        truth: without it there is no `oracle`, nor where it is empty or the whole clip: that orders nothing.
        seed: of the random order.

    Raises:
        OptionError: a clip or a truth of another size than the map.
    """
    maps = common_maps(_size(saliency), clip, truth, seed)
    return maps | {TIME_MEAN: time_mean(saliency)}


def common_maps(
    size: tuple[int, int, int], clip: Clip | None = None, truth: Truth | None = None, seed: int = 0
) -> dict[str, Saliency]:
    """Those of the anchors that all maps of a clip share: all but the mean over time."""
    maps = {RANDOM: random_order(size, seed), CENTRE: centre_prior(size)}
    if clip is not None:
        _check(clip.size, size, "clip")
        maps[DIFFERENCE] = frame_difference(clip.pixels.cpu())
    if truth is not None:
        _check(_size(truth.mask), size, "truth")
        if bool(truth.mask.any()) and not bool(truth.mask.all()):
            maps[ORACLE] = truth.mask.float().cpu()
    return maps


def settled(saliency: Saliency) -> Saliency:
    """The map in multiples of a 100,000th of its largest absolute value, so that equal values are equal.

    Interpolation rounds: a coarse map that is flat, or stands still, is so only to some 1e-7 once it has the
    size of its clip, and to rank by the rest would be an order as arbitrary as that of storage. A place whose
    values agree to one such step through all frames has their mean in each, so that none of them falls on the
    other side of a step. NaN and infinity stay.
    """
    values = saliency.double()
    seen = values.isfinite()
    unit = EQUAL * float(values.where(seen, 0.0).abs().max())
    if unit == 0:
        return saliency
    low, high = values.where(seen, torch.inf).amin(dim=0), values.where(seen, -torch.inf).amax(dim=0)
    mean = values.where(seen, 0.0).sum(dim=0) / seen.sum(dim=0).clamp_min(1)
    values = torch.where(high - low <= unit, mean, values)
    return torch.where(seen, (values / unit).round() * unit, saliency.double()).to(saliency.dtype)


def between(
    value: float, anchors: Mapping[str, float], higher_is_better: bool | None
) -> tuple[float | None, tuple[str, ...]]:
    """The value normalised between a random order and the truth, and a note where the truth does not win."""
    if ORACLE not in anchors or higher_is_better is None or value != value:
        return None, ()
    found = normalised(value, anchors[RANDOM], anchors[ORACLE], higher_is_better)
    return found, (NO_SCALE,) if found is None else ()


def loses(value: float, anchor: float, higher_is_better: bool | None) -> bool:
    """Whether a value is worse than an anchor's: not where only rounding tells them apart, nor with NaN."""
    sign = 0 if higher_is_better is None else 1 if higher_is_better else -1
    return sign * (anchor - value) > ROUNDING * max(1.0, abs(value))


def warnings_for(
    value: float,
    anchors: Mapping[str, float],
    higher_is_better: bool | None,
    what: str = "map",
    called: Mapping[str, str] = RIVALS,
) -> tuple[str, ...]:
    """One note for all the anchors that a map loses to; none where it loses to none of them.

    An equal value is no loss, nor one that only rounding tells apart, nor NaN, nor one below the oracle's.

    Args:
        value: of the map.
        anchors: values of others, by name.
        higher_is_better: direction; None: nothing can lose.
        what: is scored, where that is no map.
        called: anchors that it should beat, and what they are called.
    """
    lost = [
        f"{words} ({anchors[name]:.3f})"
        for name, words in called.items()
        if name in anchors and loses(value, anchors[name], higher_is_better)
    ]
    return (f"the {what} ({value:.3f}) does worse than {' and '.join(lost)}",) if lost else ()


# ── the maps ─────────────────────────────────────────────────────────────────────────────────────────────


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


def time_mean(saliency: Saliency) -> Saliency:
    """The same picture in every frame: the mean over the frames that a crop saw, NaN where there are none."""
    return saliency.nanmean(dim=0).expand_as(saliency).clone()


def _size(volume: Tensor) -> tuple[int, int, int]:
    t, h, w = volume.shape
    return t, h, w


def _check(given: tuple[int, int, int], size: tuple[int, int, int], what: str) -> None:
    if given != size:
        found, wanted = ("x".join(map(str, s)) for s in (given, size))
        raise OptionError(f"the {what} is {found} and the map {wanted} (frames, height, width)")
