"""What takes the place of removed evidence, in pixels, before normalisation.

A fill is bound to a clip once (`over`) and then blends batches of masks with it: 1 keeps a voxel, 0 replaces
it, and between them the two are mixed linearly. A mask is for all bands, `(t, h, w)`, or has one for each,
`(c, t, h, w)`. All but `Freeze` replace by one fixed clip, made once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.errors import OptionError, nearest

Blend = Callable[[Tensor], Tensor]
"""Masks `(b, t, h, w)` or `(b, c, t, h, w)`, 1 = kept, to masked clips `(b, c, t, h, w)`."""

BLUR = 1 / 22
"""Default blur as a share of the short side: 10 pixels at 224 (Fong and Vedaldi, ICCV 2017)."""


@runtime_checkable
class Fill(Protocol):
    """A frozen dataclass, so that its repr rebuilds it."""

    def over(self, pixels: Float[Tensor, "c t h w"]) -> Blend:
        """Bound to one clip: masks to masked clips, on the clip's device."""
        ...


@dataclass(frozen=True)
class Black:
    """Zeros."""

    def over(self, pixels: Float[Tensor, "c t h w"]) -> Blend:
        """`m x`."""

        def blend(masks: Float[Tensor, "b *mask"]) -> Float[Tensor, "b c t h w"]:
            return pixels * over_bands(masks)

        return blend


@dataclass(frozen=True)
class Grey:
    """The middle of the range, 1/2."""

    def over(self, pixels: Float[Tensor, "c t h w"]) -> Blend:
        """`m x + (1 - m) / 2`."""
        return _static(pixels, pixels.new_full((1, 1, 1, 1), 0.5))


@dataclass(frozen=True)
class Mean:
    """Each band's mean over the whole clip."""

    def over(self, pixels: Float[Tensor, "c t h w"]) -> Blend:
        """`m x + (1 - m) mean(x)`."""
        return _static(pixels, pixels.mean(dim=(1, 2, 3), keepdim=True))


@dataclass(frozen=True)
class Blur:
    """Each frame blurred by a Gaussian: over space only, so that motion stays where it was in time.

    At the borders the Gaussian is cut off and its weights rescaled to sum to one.

    Attributes:
        sigma: in pixels; None: a 22nd of the short side (10 at 224).
    """

    sigma: float | None = None

    def __post_init__(self) -> None:
        if self.sigma is not None and not self.sigma > 0:
            raise OptionError(f"a blur needs sigma > 0 pixels, not {self.sigma}")

    def over(self, pixels: Float[Tensor, "c t h w"]) -> Blend:
        """`m x + (1 - m) blur(x)`."""
        height, width = pixels.shape[2:]
        sigma = min(height, width) * BLUR if self.sigma is None else self.sigma
        rows, columns = _gaussian(height, sigma).to(pixels), _gaussian(width, sigma).to(pixels)
        return _static(pixels, rows @ (pixels @ columns.T))


@dataclass(frozen=True)
class Noise:
    """Independent normal noise with each band's mean and standard deviation, cut off at 0 and 1.

    Attributes:
        seed: of the noise; one clip has one noise.
    """

    seed: int = 0

    def over(self, pixels: Float[Tensor, "c t h w"]) -> Blend:
        """`m x + (1 - m) noise`."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(pixels.shape, generator=generator).to(pixels)
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        sd = pixels.std(dim=(1, 2, 3), keepdim=True, correction=0)
        return _static(pixels, (mean + sd * noise).clamp_(0, 1))


@dataclass(frozen=True)
class Freeze:
    """Holds each pixel's last kept value through time, so that what is removed is change, not appearance.

    Forwards, `y_t = m_t x_t + (1 - m_t) y_(t-1)`. What is removed before anything was kept takes the
    next kept value: the start is the same recurrence run backwards, from the clip's mean frame after its end.
    """

    def over(self, pixels: Float[Tensor, "c t h w"]) -> Blend:
        """The recurrence; the fill depends on the mask."""
        mean = pixels.mean(dim=1)

        def blend(masks: Float[Tensor, "b *mask"]) -> Float[Tensor, "b c t h w"]:
            frames, masks = pixels.shape[1], over_bands(masks)
            held = mean.expand(len(masks), *mean.shape)
            for t in reversed(range(frames)):
                held = torch.lerp(held, pixels[:, t], masks[:, :, t])
            out = pixels.new_empty(len(masks), *pixels.shape)
            for t in range(frames):
                held = torch.lerp(held, pixels[:, t], masks[:, :, t])
                out[:, :, t] = held
            return out

        return blend


FILLS: dict[str, Fill] = {
    "black": Black(),
    "grey": Grey(),
    "mean": Mean(),
    "blur": Blur(),
    "noise": Noise(),
    "freeze": Freeze(),
}
"""The fills by name, with their defaults."""


def fill(wanted: str | Fill) -> Fill:
    """A fill by name, or the one given.

    Raises:
        OptionError: no such fill; the nearest names are offered. Or something else than a fill.
    """
    if not isinstance(wanted, str):
        if isinstance(wanted, type) or not isinstance(wanted, Fill):
            raise OptionError(
                f"a fill is one of {', '.join(FILLS)}, or one such as Blur(sigma=5), not {wanted!r}"
            )
        return wanted
    if wanted not in FILLS:
        raise OptionError(
            f"no fill {wanted!r}{nearest(wanted, FILLS)}: choose one of {', '.join(FILLS)}, or give one such"
            " as Blur(sigma=5)"
        )
    return FILLS[wanted]


class Once:
    """A fill that is bound to a clip once, for versions of it that each ask for themselves.

    Attributes:
        fill: the one that is bound.
    """

    def __init__(self, fill: Fill) -> None:
        self.fill = fill
        self._bound: tuple[Tensor, Blend] | None = None

    def over(self, pixels: Float[Tensor, "c t h w"]) -> Blend:
        """As the fill, made anew only for other pixels than the last."""
        if self._bound is None or self._bound[0] is not pixels:
            self._bound = pixels, self.fill.over(pixels)
        return self._bound[1]


def _static(pixels: Float[Tensor, "c t h w"], base: Tensor) -> Blend:
    """`m x + (1 - m) base`; exactly `x` where m = 1 and exactly `base` where m = 0."""

    def blend(masks: Float[Tensor, "b *mask"]) -> Float[Tensor, "b c t h w"]:
        return torch.lerp(base, pixels, over_bands(masks))

    return blend


def over_bands(masks: Float[Tensor, "b *mask"]) -> Float[Tensor, "b _ t h w"]:
    """Masks with a dimension for the bands, of length 1 where they are for all."""
    return masks[:, None] if masks.ndim == 4 else masks


def _gaussian(size: int, sigma: float) -> Float[Tensor, "size size"]:
    """The matrix that blurs an axis."""
    x = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-((x[:, None] - x) ** 2) / (2 * sigma**2))
    return (weights / weights.sum(dim=1, keepdim=True)).float()
