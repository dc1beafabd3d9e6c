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
    *("ring", "cross", "triangle", "bars"),
    *("moves left", "moves right", "moves up", "moves down"),
)
"""The planted classes, in the order of `tubelens.planted.LABELS` (a test compares them)."""
WEIGHTS = "planted.safetensors"
Triple = tuple[int, int, int]
Blocks = tuple[tuple[int, Triple, Triple], ...]
"""Channels, kernel, stride of each block."""
BLOCKS: Blocks = (
    (24, (3, 4, 4), (1, 2, 2)),
    (48, (2, 4, 4), (2, 2, 2)),
    (64, (1, 3, 3), (1, 1, 1)),
    (64, (1, 3, 3), (1, 1, 1)),
    (64, (1, 3, 3), (1, 1, 1)),
)
SMALL: Blocks = (
    (24, (3, 4, 4), (1, 2, 2)),
    (32, (2, 4, 4), (2, 2, 2)),
    (40, (1, 3, 3), (1, 1, 1)),
    (40, (3, 1, 1), (1, 1, 1)),
    (40, (1, 3, 3), (1, 1, 1)),
    (40, (3, 1, 1), (1, 1, 1)),
)
"""Of the networks of single tasks: 16 frames of 32 x 32 become 8 x 8 x 8, and two blocks more look across
frames, because which of two events came first is seen over several of them."""
SPEC = InputSpec(frames=16, size=(64, 64), resize=64)
pack = Normalise((0.5,) * 3, (0.5,) * 3)


class Block(nn.Sequential):
    """Convolution, batch norm, ReLU; the same padding on both sides.

    Where it strides by 2 the kernel is 4 wide (2 in time), so that cells tile the input: cell `i` of total
    stride `s` looks at `s i + (s - 1) / 2`. (With kernel 3 its receptive field is centred on `s i`, but the
    last pixels are then seen by outer taps alone, and training moves what a cell responds to by half a cell.)
    """

    def __init__(self, into: int, out: int, kernel: Triple, stride: Triple) -> None:
        t, h, w = ((k - 1) // 2 for k in kernel)
        super().__init__(
            nn.Conv3d(into, out, kernel, stride, padding=(t, h, w), bias=False),
            nn.BatchNorm3d(out),
            nn.ReLU(),
        )


class PlantedNet(nn.Module):
    """A few blocks, the mean over time and space, one linear layer: so tubes at `blocks` are exact.

    With `BLOCKS`, 16 frames of 64 x 64 become a grid of 8 x 16 x 16. Shapes need no time and directions
    little, so only the first two blocks look across frames.
    """

    def __init__(self, classes: int = len(LABELS), bands: int = 3, blocks: Blocks = BLOCKS) -> None:
        super().__init__()
        widths = [bands, *(out for out, _, _ in blocks)]
        self.blocks = nn.Sequential(*(Block(n, *row) for n, row in zip(widths, blocks, strict=False)))
        self.head = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "_ k"]:  # a hook may add rows
        """Logits of normalised clips."""
        return self.score(self.blocks(clips))

    def score(self, activations: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """Logits of the last block's activations; affine."""
        logits: Tensor = self.head(activations.mean(dim=(2, 3, 4)))
        return logits


def initialised(seed: int, classes: int = len(LABELS), bands: int = 3, blocks: Blocks = BLOCKS) -> PlantedNet:
    """A network with random weights of a seed; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PlantedNet(classes, bands, blocks)


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


def identify(path: str, labels: tuple[str, ...] = LABELS) -> tuple[str, ...] | None:
    """The labels if the file says that its network was trained on them."""
    try:
        with safe_open(path, framework="pt") as file:
            known = (file.metadata() or {}).get("labels")
    except (SafetensorError, OSError):
        return None
    return labels if known == str(labels) else None
