"""Recipes for torchvision's video CNNs: R3D, MC3 and R(2+1)D (Tran et al., CVPR 2018), S3D (Xie et al.,
ECCV 2018), with their official Kinetics-400 weights, labels and preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from tubelens.errors import CheckpointError, nearest
from tubelens.model import InputSpec
from tubelens.zoo.checkpoint import read_checkpoint
from tubelens.zoo.official import downloaded, is_official, kept
from tubelens.zoo.recipe import Normalise, Recipe

MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
TRAN = "Tran et al., A Closer Look at Spatiotemporal Convolutions for Action Recognition, CVPR 2018"
XIE = "Xie et al., Rethinking Spatiotemporal Feature Learning, ECCV 2018"
LICENCE = "BSD 3-Clause (code)"


def build(name: str, classes: int) -> nn.Module:
    """A network of torchvision, randomly initialised."""
    module: nn.Module = get_model(name, weights=None, num_classes=classes)
    return module


def _weights(name: str, wanted: str) -> Any:
    enum = get_model_weights(name)
    names = list(enum.__members__)
    if wanted not in names:
        raise CheckpointError(
            f"{name} has no weights {wanted!r}{nearest(wanted, names)}: give one of {', '.join(names)},"
            " a weights file, or 'random'"
        )
    return enum[wanted]


def fetch(name: str, wanted: str) -> tuple[dict[str, Tensor], Sequence[str]]:
    """Official weights from the cache of torch.hub, downloaded into it if absent, and their labels.

    Raises:
        CheckpointError: no such weights, or they cannot be had.
    """
    weights = _weights(name, wanted)
    return read_checkpoint(downloaded(weights.url, name, wanted)), list(weights.meta["categories"])


def cached(name: str, wanted: str) -> Path:
    """Where official weights are kept."""
    return kept(_weights(name, wanted).url)


def identify(name: str, path: str) -> Sequence[str] | None:
    """The labels, if the file is one of the official ones (by name and by hash)."""
    for weights in get_model_weights(name):
        if is_official(Path(path), weights.url):
            return list(weights.meta["categories"])
    return None


def official(name: str) -> dict[str, Any]:
    """What a recipe says of official weights, the same for all networks of torchvision."""
    return {
        "official": ("KINETICS400_V1",),
        "fetch": partial(fetch, name),
        "identify": partial(identify, name),
        "cached": partial(cached, name),
        "licence": LICENCE,
    }


def _recipe(name: str, spec: InputSpec, layer: str, head: str, source: str, parameters: int) -> Recipe:
    builder: Callable[[int], nn.Module] = partial(build, name)
    return Recipe(
        name,
        builder,
        spec,
        Normalise(MEAN, STD),
        layer,
        head,
        source,
        parameters,
        classes=400,
        **official(name),
    )


# the official preprocessing resizes without a filter, to a fixed size whatever the aspect ratio
SMALL = InputSpec(16, (112, 112), resize=(128, 171), rate=15.0, antialias=False, views=(5, 1))
LARGE = InputSpec(128, (224, 224), resize=(256, 256), rate=15.0, antialias=False)

RECIPES = (
    _recipe("r3d_18", SMALL, "layer4", "fc.weight", TRAN, 33_371_472),
    _recipe("mc3_18", SMALL, "layer4", "fc.weight", TRAN, 11_695_440),
    _recipe("r2plus1d_18", SMALL, "layer4", "fc.weight", TRAN, 31_505_325),
    _recipe("s3d", LARGE, "features", "classifier.1.weight", XIE, 8_320_048),
)
