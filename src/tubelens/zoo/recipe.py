"""What a recipe is: everything about a known network but its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.errors import InputError
from tubelens.model import InputSpec


@dataclass(frozen=True)
class Normalise:
    """The `pack` of most networks: (clip - mean) / std for each band.

    Attributes:
        mean, std: one number a band, on the scale [0, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Normalised clips; a new tensor."""
        if clips.shape[1] != len(self.mean):
            raise InputError(f"the model takes {len(self.mean)} bands, the clip has {clips.shape[1]}")
        mean = torch.tensor(self.mean, dtype=clips.dtype, device=clips.device)
        std = torch.tensor(self.std, dtype=clips.dtype, device=clips.device)
        return (clips - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Recipe:
    """A known architecture.

    Attributes:
        name: what `load_model` calls it.
        build: the network for a number of classes, randomly initialised.
        spec: frames, size and so on that it was trained on.
        pack: canonical clips to its input.
        layer: the layer that is explained by default.
        head: the parameter whose first dimension counts the classes.
        source: the paper.
        parameters: how many, for the number of classes of its official weights.
        official: names of official weights, the default first.
        fetch: an official name -> (state dict, labels); may download.
        identify: a weights file -> the labels of the official weights it is, or None.
    """

    name: str
    build: Callable[[int], nn.Module]
    spec: InputSpec
    pack: Callable[[Tensor], Any]
    layer: str
    head: str
    source: str
    parameters: int
    classes: int
    official: tuple[str, ...] = ()
    fetch: Callable[[str], tuple[dict[str, Tensor], Sequence[str] | None]] | None = None
    identify: Callable[[str], Sequence[str] | None] = field(default=lambda path: None)
