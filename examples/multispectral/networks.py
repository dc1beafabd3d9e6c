"""The two networks of the experiment, small enough for minutes on a core: a 3D-ResNet and a PAN-like one.

Both take clips of three channels, as the paper's do (infrared is repeated), and end in a mean over time and
space and one linear layer: saliency tubes are exact on them. Strided kernels are 4 wide, so that cells tile
the clip and a map lies where the network looked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tubelens as tl
from tubelens.files import replacing
from tubelens.zoo.pan import SNIPPET, Persistence, snippet_layout

FRAMES = 16
WIDTHS = (16, 32)


class Residual(nn.Module):
    """A basic block in two or three dimensions; where it halves, the shortcut takes means."""

    def __init__(self, into: int, out: int, halve: bool, dims: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        # time is halved by kernels of 2, space by kernels of 4
        kernel = ((2, 4, 4)[-dims:], 2, (0, 1, 1)[-dims:]) if halve else (3, 1, 1)
        self.body = nn.Sequential(
            conv(into, out, *kernel, bias=False),
            norm(out),
            nn.ReLU(),
            conv(out, out, 3, padding=1, bias=False),
            norm(out),
        )
        mean = (nn.AvgPool2d if dims == 2 else nn.AvgPool3d)(2) if halve else nn.Identity()
        plain = not halve and into == out
        self.shortcut = (
            nn.Identity() if plain else nn.Sequential(mean, conv(into, out, 1, bias=False), norm(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways, rectified."""
        return torch.relu(self.body(x) + self.shortcut(x))


def trunk(into: int, dims: int, halve: bool) -> nn.Sequential:
    """Stem and three blocks; 32 x 32 become 8 x 8 (`halve`), and so do 16 x 16 without halving in the stem.

    In three dimensions time is halved once.
    """
    narrow, wide = WIDTHS
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    kernel, stride, padding = (
        ((3, 4, 4), (1, 2, 2), (1, 1, 1)) if halve else ((3, 3, 3), (1, 1, 1), (1, 1, 1))
    )
    stem = conv(into, narrow, kernel[-dims:], stride[-dims:], padding[-dims:], bias=False)
    return nn.Sequential(
        *(stem, norm(narrow), nn.ReLU()),
        Residual(narrow, wide, halve=True, dims=dims),
        Residual(wide, wide, halve=False, dims=dims),
        Residual(wide, wide, halve=False, dims=dims),
    )


class ResNet3D(nn.Module):
    """Basic blocks in three dimensions (Hara et al., CVPR 2018), few and narrow."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.blocks = trunk(3, 3, halve=size > 16)
        self.head = nn.Linear(WIDTHS[1], classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits of normalised clips `(b, 3, t, h, w)`."""
        return self.head(self.blocks(clips).mean(dim=(2, 3, 4)))


class PAN(nn.Module):
    """Persistence of appearance beside the first frame of every four, in a network of images; mean over time.

    As `lite` of Zhang et al. (2020) with its segments pooled by their mean: of four neighbouring frames come
    three maps of how far the features of each place move from one frame to the next.
    """

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.persistence = Persistence()
        self.blocks = trunk(3 + SNIPPET - 1, 2, halve=size > 16)
        self.head = nn.Linear(WIDTHS[1], classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits of normalised clips `(b, 3, t, h, w)`, `t` a multiple of 4."""
        frames = clips.transpose(1, 2)
        snippets = [frames[:, j::SNIPPET] for j in range(SNIPPET)]
        fed = torch.cat([snippets[0].flatten(0, 1), self.persistence(snippets)], dim=1)
        seen = self.blocks(fed).mean(dim=(2, 3))
        return self.head(seen.unflatten(0, (-1, snippets[0].shape[1])).mean(dim=1))


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"3d-resnet": ResNet3D, "pan": PAN}


def untrained(network: str, classes: int, size: int, seed: int) -> nn.Module:
    """A network with random weights of a seed; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = NETWORKS[network](classes, size)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return net


def normalised(clips: Tensor) -> Tensor:
    """What both networks are fed: [0, 1] to [-1, 1]."""
    return 2 * clips - 1


def wrapped(network: str, net: nn.Module, labels: Sequence[str], size: int, name: str) -> tl.TorchModel:
    """The network as a model that can be explained at its last block."""
    layout = partial(snippet_layout, 4 if size > 16 else 2)((FRAMES, size, size))
    return tl.wrap(
        net.eval().requires_grad_(False),
        frames=FRAMES,
        size=size,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        output="logits",
        labels=labels,
        layer="blocks",
        layout=layout if network == "pan" else None,
        name=name,
    )


def save(net: nn.Module, path: Path, facts: dict[str, str]) -> None:
    """Weights as safetensors, with what is known of the training."""
    state = {name: value.detach().contiguous().clone() for name, value in net.state_dict().items()}
    with replacing(path) as new:
        save_file(state, new, metadata=facts)


def load(net: nn.Module, path: Path) -> nn.Module:
    """The network with the weights of a file."""
    net.load_state_dict(load_file(path))
    return net
