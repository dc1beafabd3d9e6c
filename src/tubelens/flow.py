"""Optical flow between the frames of a clip (Farnebäck, SCIA 2003, by OpenCV: the extra `flow`)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.errors import OptionError

SMALLEST = 8  # pixels; on less there is nothing to follow
WINDOW = 15
"""Pixels over which motion is averaged; in small frames a quarter of the short side, but at least 5."""
FAINTEST = 0.02
"""Range of values that is spread over the full range at most: on less there is noise to follow."""


def flows(
    pixels: Float[Tensor, "c T H W"],
) -> tuple[Float[Tensor, "s 2 H W"], Float[Tensor, "s 2 H W"]]:
    """Dense flow between neighbouring frames, both ways. Deterministic.

    Args:
        pixels: in [0, 1]; the mean over the bands is followed, spread over its full range: the method gives
            up where contrast is low, as that of a person in a measured infrared scene is.

    Returns:
        Forward, from frame t to t + 1, and backward, from frame t + 1 to t: `(T - 1, 2, H, W)`, in pixels,
        downwards and to the right.

    Raises:
        OptionError: OpenCV is not installed, or frames of less than 8 pixels a side.
    """
    grey, between = _prepared(pixels)
    pairs = list(pairwise(grey))
    return _stacked([between(a, b) for a, b in pairs], pixels), _stacked(
        [between(b, a) for a, b in pairs], pixels
    )


def forward_flow(pixels: Float[Tensor, "c T H W"]) -> Float[Tensor, "s 2 H W"]:
    """The first of the two alone."""
    grey, between = _prepared(pixels)
    return _stacked([between(a, b) for a, b in pairwise(grey)], pixels)


def _stacked(found: list[np.ndarray], pixels: Tensor) -> Float[Tensor, "s 2 H W"]:
    _, _, height, width = pixels.shape
    return torch.from_numpy(np.stack(found)) if found else torch.zeros(0, 2, height, width)


def _prepared(pixels: Tensor) -> tuple[np.ndarray, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Grey frames, and what finds the flow between two of them."""
    try:
        import cv2
    except ImportError as error:
        raise OptionError(
            'optical flow needs OpenCV: pip install "tubelens[flow]", or for occlusion use windows that stand'
            " still"
        ) from error
    _, _, height, width = pixels.shape
    if min(height, width) < SMALLEST:
        raise OptionError(
            f"optical flow needs frames of at least {SMALLEST}x{SMALLEST} pixels, not {height}x{width}"
        )
    mean = pixels.mean(dim=0).cpu()
    low, high = mean.amin(), mean.amax()
    grey = ((mean - low) * 255 / (high - low).clamp_min(FAINTEST)).float().numpy()
    window = min(WINDOW, max(5, min(height, width) // 4 | 1))

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        empty = np.zeros((height, width, 2), np.float32)
        found = cv2.calcOpticalFlowFarneback(
            a,
            b,
            empty,
            pyr_scale=0.5,
            levels=3,
            winsize=window,
            iterations=3,
            poly_n=5,
            poly_sigma=1.2,
            flags=0,
        )
        return np.ascontiguousarray(found[..., ::-1].transpose(2, 0, 1))

    return grey, between
