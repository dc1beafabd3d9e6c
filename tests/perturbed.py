"""Clips and small black boxes that tests of perturbation methods share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tubelens.clip import Clip


def clip(size: tuple[int, int, int], seed: int = 0) -> Clip:
    """Random pixels."""
    rng = np.random.default_rng(seed)
    return Clip.from_array(rng.random((*size, 3), dtype=np.float32))


class Box:
    """A black box: three logits, smooth but not linear in the pixels of a clip of one size."""

    output = "logits"

    def __init__(self, size: tuple[int, int, int], seed: int = 1, scale: float = 1.0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.first = torch.randn(3, *size, 6, generator=g) / 4
        self.second = torch.randn(6, 3, generator=g) * scale

    def __call__(self, clips: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("bcthw,cthwn->bn", clips - 0.5, self.first)) @ self.second


def indicator(size: tuple[int, int, int]) -> Tensor:
    """Where `sees` looks."""
    where = torch.zeros(size, dtype=torch.bool)
    where[size[0] // 2 :, size[1] // 4 : size[1] // 2, size[2] // 2 : 3 * size[2] // 4] = True
    return where


def sees(size: tuple[int, int, int]):
    """A black box whose probability of class 1 is the spread of the pixels within `indicator`."""

    class Sees:
        output = "probs"

        def __call__(self, clips: Tensor) -> Tensor:
            inside = clips[:, :, indicator(size)]
            p = (inside.std(dim=(1, 2)) * 2).clamp(0, 1)
            return torch.stack([1 - p, p], dim=1)

    return Sees()
