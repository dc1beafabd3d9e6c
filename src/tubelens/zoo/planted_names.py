"""The networks of the planted tasks, whose weights are in the package: `planted_xor`, `planted_infrared`, ...

Each is a small 3-D CNN for 16 frames of 32 x 32 of one task's clips. `planted_honest` and `planted_shortcut`
see the same clips; `planted_labels` learned random labels of the clips of `transient` by heart. The tasks
`key` and `dir` are the bundled network's. Trained by `tubelens.evaluate.train`.
"""

from __future__ import annotations

from functools import partial
from importlib.resources import as_file, files

import torch
from torch import Tensor

from tubelens.model import InputSpec
from tubelens.zoo.bundled import SMALL, PlantedNet, identify
from tubelens.zoo.checkpoint import read_checkpoint
from tubelens.zoo.recipe import Normalise, Recipe

PREFIX = "planted_"
RGB, RGBIR = ("R", "G", "B"), ("R", "G", "B", "IR")
SIDE = 32
_WAYS = ("left", "right", "up", "down")
_MOVES = tuple(f"moves {way}" for way in _WAYS)
_COLOURS = ("yellow appears", "green appears", "cyan appears", "neither")
NETWORKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "order": (RGB, ("red then blue", "blue then red", "neither")),
    "transient": (RGB, _COLOURS),
    "infrared": (RGBIR, tuple(f"warm {way}" for way in _MOVES)),
    "xor": (RGBIR, ("alike", "unlike", "neither")),
    "honest": (RGB, _MOVES),
    "shortcut": (RGB, _MOVES),
    "labels": (RGB, _COLOURS),
}
"""Bands and classes of each, in the order of `tubelens.planted.labels` (a test compares them)."""


def _recipe(name: str, bands: tuple[str, ...], labels: tuple[str, ...]) -> Recipe:
    def fetch(official: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        with as_file(files("tubelens.zoo").joinpath(f"{PREFIX}{name}.safetensors")) as path:
            return read_checkpoint(path), labels

    n = len(bands)
    return Recipe(
        PREFIX + name,
        partial(PlantedNet, bands=n, blocks=SMALL),
        InputSpec(frames=16, size=(SIDE, SIDE), resize=SIDE, bands=bands),
        Normalise((0.5,) * n, (0.5,) * n),
        layer="blocks",
        head="head.weight",
        source="trained on the planted task by `python -m tubelens.evaluate.train --task NAME`",
        parameters=_parameters(len(labels), n),
        classes=len(labels),
        official=("bundled",),
        fetch=fetch,
        identify=partial(identify, labels=labels),
        licence="MIT",
    )


def _parameters(classes: int, bands: int) -> int:
    with torch.device("meta"):  # nothing is drawn
        return sum(p.numel() for p in PlantedNet(classes, bands, SMALL).parameters())


RECIPES: tuple[Recipe, ...] = tuple(_recipe(name, *told) for name, told in NETWORKS.items())
