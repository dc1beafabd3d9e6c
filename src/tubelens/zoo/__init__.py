"""Known networks: name -> recipe, and how a recipe becomes a model with weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tubelens.errors import CheckpointError, OptionError, nearest
from tubelens.model import TorchModel
from tubelens.zoo import bundled, torchvision_video
from tubelens.zoo.checkpoint import fit, read_checkpoint
from tubelens.zoo.recipe import Normalise, Recipe

__all__ = ["MODELS", "Normalise", "Recipe", "fit", "load", "read_checkpoint"]

BUNDLED = Recipe(
    "bundled",
    bundled.PlantedNet,
    bundled.SPEC,
    bundled.pack,
    layer="blocks",
    head="head.weight",
    source="trained on the planted actions by `python -m tubelens.evaluate.train`",
    parameters=sum(p.numel() for p in bundled.PlantedNet().parameters()),
    classes=len(bundled.LABELS),
    official=("bundled",),
    fetch=bundled.fetch,
    identify=bundled.identify,
)
MODELS: dict[str, Recipe] = {recipe.name: recipe for recipe in (BUNDLED, *torchvision_video.RECIPES)}


def load(
    name: str,
    weights: str | Path | None = None,
    *,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    device: str = "cpu",
) -> TorchModel:
    """A known network with weights.

    Args:
        name: one of `MODELS`.
        weights: an official name, a file, or `"random"` (seeded by `seed`). Only the bundled network has a
            default.
        seed: of random weights; the global generator is left alone.
        labels: names of the classes, in place of those that come with official weights.
        device: where the network is put.

    Raises:
        OptionError: unknown name, or no weights given.
        CheckpointError: weights that cannot be had, read, or fitted.
    """
    recipe = MODELS.get(name)
    if recipe is None:
        raise OptionError(f"unknown model {name!r}{nearest(name, MODELS)}: `tubelens models` lists them")
    if weights is None and name == "bundled":
        weights = recipe.official[0]
    if weights is None:
        raise OptionError(
            f"say which weights {name} shall have: {', '.join(recipe.official)}, a weights file, or 'random'"
        )
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = recipe.build(recipe.classes)
        origin, known = f"random (seed {seed})", None
    elif isinstance(weights, Path) or "." in weights or "/" in weights:
        state = read_checkpoint(weights)
        module = _built_for(recipe, state.get(recipe.head), str(weights))
        fit(module, state, str(weights), name)
        origin, known = str(weights), recipe.identify(str(weights))
    else:
        if recipe.fetch is None or weights not in recipe.official:
            raise CheckpointError(
                f"{name} has no weights {weights!r}{nearest(weights, recipe.official)}: give one of"
                f" {', '.join(recipe.official)}, a weights file, or 'random'"
            )
        state, known = recipe.fetch(weights)
        module = recipe.build(recipe.classes)
        fit(module, state, weights, name)
        origin = weights
    return TorchModel(
        module=module.eval().to(device),
        pack=recipe.pack,
        spec=recipe.spec,
        labels=labels if labels is not None else known,
        layer=recipe.layer,
        name=name,
        weights=origin,
    )


def _built_for(recipe: Recipe, head: torch.Tensor | None, name: str) -> nn.Module:
    """The network with as many classes as the checkpoint's head has."""
    if head is None:
        raise CheckpointError(
            f"{name}: these are not weights of {recipe.name}: no {recipe.head!r} among them"
        )
    return recipe.build(head.shape[0])
