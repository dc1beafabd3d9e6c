"""The bundled network: a small 3-D CNN trained on the planted actions, with weights in the package.

It works offline, in milliseconds, and what it should look at is known. Trained by `tubelens.evaluate.train`.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tubelens.model import InputSpec, TorchModel
from tubelens.zoo.checkpoint import fit, read_checkpoint
from tubelens.zoo.recipe import Normalise

LABELS = (
    *("ring", "cross", "triangle", "star"),
    *("moves left", "moves right", "moves up", "moves down"),
)
"""The planted classes, in the order of `tubelens.planted.LABELS` (a test compares them)."""
WEIGHTS = "planted.safetensors"
WIDTHS = (16, 32, 48, 64, 64)
STRIDES = ((1, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))
SPEC = InputSpec(frames=16, size=(64, 64), resize=64)
pack = Normalise((0.5,) * 3, (0.5,) * 3)


class Block(nn.Sequential):
    """3x3x3 convolution, batch norm, ReLU. Padding 1 on both sides: cell `i` looks at place `stride i`."""

    def __init__(self, into: int, out: int, stride: tuple[int, int, int]) -> None:
        super().__init__(
            nn.Conv3d(into, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm3d(out),
            nn.ReLU(),
        )


class PlantedNet(nn.Module):
    """Five blocks, the mean over time and space, one linear layer: so tubes at `blocks` are exact.

    16 frames of 64 x 64 become a grid of 8 x 16 x 16.
    """

    def __init__(self, classes: int = len(LABELS)) -> None:
        super().__init__()
        into = (3, *WIDTHS[:-1])
        self.blocks = nn.Sequential(*(Block(*row) for row in zip(into, WIDTHS, STRIDES, strict=True)))
        self.head = nn.Linear(WIDTHS[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, clips: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b k"]:
        """Logits of normalised clips."""
        scores: Tensor = self.head(self.blocks(clips).mean(dim=(2, 3, 4)))
        return scores


def initialised(seed: int) -> PlantedNet:
    """A network with random weights of a seed; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PlantedNet()


def bundled(weights: str | Path = "bundled", seed: int = 0) -> TorchModel:
    """The bundled network as a model; frozen, in inference mode.

    Args:
        weights: `"bundled"`, `"random"`, or a safetensors file written by `tubelens.evaluate.train`.
        seed: of random weights.

    Raises:
        CheckpointError: a file that is missing, unreadable, or of another network.
    """
    net = initialised(seed)
    if weights == "bundled":
        fit(net, fetch(weights)[0], weights, "bundled")
    elif weights != "random":
        fit(net, read_checkpoint(weights), str(weights), "bundled")
    return TorchModel(
        module=net.eval().requires_grad_(False),
        pack=pack,
        spec=SPEC,
        labels=LABELS,
        layer="blocks",
        name="bundled",
        weights=f"random (seed {seed})" if weights == "random" else str(weights),
    )


def fetch(name: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights in the package, and their labels."""
    with as_file(files("tubelens.zoo").joinpath(WEIGHTS)) as path:
        return read_checkpoint(path), LABELS


def identify(path: str) -> tuple[str, ...] | None:
    """The planted labels if the file says that its network was trained on them."""
    try:
        with safe_open(path, framework="pt") as file:
            known = (file.metadata() or {}).get("labels")
    except (SafetensorError, OSError):
        return None
    return LABELS if known == str(LABELS) else None
