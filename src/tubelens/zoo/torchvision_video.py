"""Recipes for torchvision's video networks: R3D, MC3 and R(2+1)D (Tran et al., CVPR 2018), S3D (Xie et al.,
ECCV 2018), with their official Kinetics-400 weights, labels and preprocessing.
"""

from __future__ import annotations

import hashlib
import urllib.error
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from tubelens.errors import CheckpointError, nearest
from tubelens.model import InputSpec
from tubelens.zoo.checkpoint import read_checkpoint
from tubelens.zoo.recipe import Normalise, Recipe

MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
TRAN = "Tran et al., A Closer Look at Spatiotemporal Convolutions for Action Recognition, CVPR 2018"
XIE = "Xie et al., Rethinking Spatiotemporal Feature Learning, ECCV 2018"


def _build(name: str, classes: int) -> nn.Module:
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


def _fetch(name: str, wanted: str) -> tuple[dict[str, Tensor], Sequence[str]]:
    """Official weights from the cache of torch.hub, downloaded into it if absent."""
    weights = _weights(name, wanted)
    url: str = weights.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=_hash_in_name(file), progress=False)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{name}: the weights {wanted} are not on this machine and cannot be downloaded"
                f" ({getattr(error, 'reason', error)}): fetch {url} elsewhere and put it at {file},"
                " or pass the file as weights"
            ) from error
    return read_checkpoint(file), list(weights.meta["categories"])


def _hash_in_name(file: Path) -> str:
    """Torchvision ends the name of a weights file with the first eight digits of its sha256."""
    return file.stem.rsplit("-", 1)[-1]


def _identify(name: str, path: str) -> Sequence[str] | None:
    """The labels, if the file is one of the official ones (by name and by hash)."""
    for weights in get_model_weights(name):
        if Path(weights.url).name == Path(path).name:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest.startswith(_hash_in_name(Path(path))):
                return list(weights.meta["categories"])
    return None


def _recipe(name: str, spec: InputSpec, layer: str, head: str, source: str, parameters: int) -> Recipe:
    build: Callable[[int], nn.Module] = partial(_build, name)
    return Recipe(
        name,
        build,
        spec,
        Normalise(MEAN, STD),
        layer,
        head,
        source,
        parameters,
        classes=400,
        official=("KINETICS400_V1",),
        fetch=partial(_fetch, name),
        identify=partial(_identify, name),
    )


# the official preprocessing resizes without a filter, to a fixed size whatever the aspect ratio
SMALL = InputSpec(16, (112, 112), resize=(128, 171), rate=15.0, antialias=False)
LARGE = InputSpec(128, (224, 224), resize=(256, 256), rate=15.0, antialias=False)

RECIPES = (
    _recipe("r3d_18", SMALL, "layer4", "fc.weight", TRAN, 33_371_472),
    _recipe("mc3_18", SMALL, "layer4", "fc.weight", TRAN, 11_695_440),
    _recipe("r2plus1d_18", SMALL, "layer4", "fc.weight", TRAN, 31_505_325),
    _recipe("s3d", LARGE, "features", "classifier.1.weight", XIE, 8_320_048),
)
