"""Known networks: name -> recipe, and how a recipe becomes a model with weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tubelens.errors import CheckpointError, OptionError, nearest
from tubelens.model import TorchModel
from tubelens.zoo import (
    bundled,
    c3d,
    hara_densenet,
    hara_resnet,
    i3d,
    mfnet,
    pan,
    planted_names,
    pytorchvideo_hub,
    torchvision_transformers,
    torchvision_video,
    transformers_video,
    tsm,
)
from tubelens.zoo.checkpoint import fit, read_checkpoint
from tubelens.zoo.recipe import EXACT, Normalise, Pack, Recipe, Style

__all__ = ["MODELS", "Normalise", "Pack", "Recipe", "Style", "fit", "load", "read_checkpoint"]

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
    licence="MIT",
)
FAMILIES: tuple[tuple[Recipe, ...], ...] = (
    (BUNDLED,),
    planted_names.RECIPES,
    torchvision_video.RECIPES,
    torchvision_transformers.RECIPES,
    mfnet.RECIPES,
    hara_resnet.RECIPES,
    hara_densenet.RECIPES,
    i3d.RECIPES,
    c3d.RECIPES,
    tsm.RECIPES,
    pan.RECIPES,
    pytorchvideo_hub.RECIPES,
    transformers_video.RECIPES,
)
MODELS: dict[str, Recipe] = {recipe.name: recipe for family in FAMILIES for recipe in family}


def load(
    name: str,
    weights: str | Path | None = None,
    *,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    device: str = "cpu",
    trust: bool = False,
) -> TorchModel:
    """A known network with weights.

    Args:
        name: one of `MODELS`.
        weights: an official name, a file (several with commas between, where a network was published in
            parts), or `"random"` (seeded by `seed`). Only networks whose weights are in the package have a
            default.
        seed: of random weights; the global generator is left alone.
        labels: names of the classes, in place of those that come with official weights.
        device: where the network is put.
        trust: unpickle a weights file even where that runs code that is in it.

    Raises:
        OptionError: unknown name, no weights given, or an extra that is not installed.
        CheckpointError: weights that cannot be had, read, or fitted.
    """
    recipe = MODELS.get(name)
    if recipe is None:
        if Path(name).suffix in (".pt", ".pth", ".tar", ".safetensors", ".py", ".pyth"):
            raise OptionError(
                f"{name} is no network: give its name, or the function that makes it, and the weights"
                " apart, as in --model net.py:factory --weights net.pth"
            )
        raise OptionError(f"unknown model {name!r}{nearest(name, MODELS)}: `tubelens models` lists them")
    if weights is None and recipe.shipped:
        weights = recipe.official[0]
    if weights is None:
        raise OptionError(f"say which weights {name} shall have: {_choices(recipe)}")
    if recipe.checkpoint is not None and weights != "random":
        model = recipe.checkpoint(weights, seed=seed, labels=labels, device=device, trust=trust)
        if model is not None:
            return model
    known: Sequence[str] | None = None
    verified, style = "", None
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = recipe.build(recipe.classes)
        origin = f"random (seed {seed})"
        verified = "random"
    else:
        origin = str(weights)
        if _is_file(weights):
            state, known = _read(recipe, origin, trust), recipe.identify(origin)
            verified = "the hash of the official file" if known is not None else ""
        elif recipe.fetch is not None and weights in recipe.official:
            (state, known), verified = recipe.fetch(origin), "official weights"
        else:
            near = nearest(origin, recipe.official)
            raise CheckpointError(f"{name} has no weights {weights!r}{near}: give {_choices(recipe)}")
        state, style = _in_our_keys(recipe, state)
        with torch.random.fork_rng(devices=[]):  # what is drawn is replaced by the weights
            module = _built_for(recipe, state.get(recipe.head), origin)
        fit(module, state, origin, name)
    return TorchModel(
        module=module.eval().to(device),
        pack=(style and style.pack) or recipe.pack,
        unpack=recipe.unpack,
        spec=recipe.spec,
        output=(style and style.output) or recipe.output,
        labels=labels if labels is not None else known,
        layer=recipe.layer,
        layouts=recipe.layouts,
        attention=recipe.attention,
        tubes="" if recipe.tubes == EXACT else recipe.tubes,
        name=name,
        weights=origin,
        verified=verified,
    )


def _choices(recipe: Recipe) -> str:
    folder = ["a folder", "hf:OWNER/NAME"] if recipe.checkpoint is not None else []
    return ", ".join([*recipe.official, *folder, "a weights file", "or 'random'"])


def _is_file(weights: str | Path) -> bool:
    return isinstance(weights, Path) or "." in weights or "/" in weights


def _read(recipe: Recipe, weights: str, trust: bool) -> dict[str, Tensor]:
    """The state dict in a file, or in several with a comma between."""
    paths = weights.split(",")
    if len(paths) == 1 or recipe.merge is None:
        return read_checkpoint(weights, trust)
    return recipe.merge([read_checkpoint(path.strip(), trust) for path in paths])


def _in_our_keys(recipe: Recipe, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Style | None]:
    """The state dict with our own keys, and the style it was published in, if not ours."""
    for style in recipe.styles:
        if style.fits(state):
            return style.convert(state), style
    return state, None


def _built_for(recipe: Recipe, head: Tensor | None, name: str) -> nn.Module:
    """The network with as many classes as the checkpoint's head has."""
    if head is None:
        raise CheckpointError(
            f"{name}: these are not weights of {recipe.name}: no {recipe.head!r} among them"
        )
    if head.ndim == 0 or head.shape[0] == 0:
        raise CheckpointError(f"{name}: {recipe.head!r} has no classes (shape {tuple(head.shape)})")
    return recipe.build(head.shape[0])
