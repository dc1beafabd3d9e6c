"""What a known network is but its weights: how to build it, what it is fed, how its files are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import EinopsError, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.errors import InputError, OptionError
from tubelens.model import Attention, InputSpec, Layouts, TorchModel, same
from tubelens.target import ScoreKind

Statistics = tuple[Float[Tensor, "n 1 1 1 1"], Float[Tensor, "n 1 1 1 1"]]
EXACT = "exact"
SHIPPED = "bundled"
"""What weights are called that are in this package."""


@dataclass(frozen=True)
class Pack:
    """Canonical clips to what a network is fed; differentiable, a new tensor each call.

    In this order: bands, rotation, scale, mean and standard deviation, order of the dimensions.

    Attributes:
        mean, std: one number a band, after `scale`; empty: none.
        scale: what pixels in [0, 1] are multiplied by first: 255 for networks that are fed 0..255.
        axes: einops names of the input's dimensions: `"b c t h w"`, `"b t h w c"`, `"b (t c) h w"`, ...
        order: band indices: `(2, 1, 0)` feeds B, G, R to a network whose clips are R, G, B.
        rotate: degrees counter-clockwise, a multiple of 90.
        zscore: each clip less its mean, over its standard deviation. Where a clip is perturbed, the
            statistics are those of the intact clip (`frozen`), or removing evidence would change all pixels.
        statistics: means and standard deviations that `frozen` has put down.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float = 1.0
    axes: str = "b c t h w"
    order: tuple[int, ...] = ()
    rotate: int = 0
    zscore: bool = False
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        if self.rotate % 90:
            raise OptionError(f"a clip is rotated by a multiple of 90 degrees, not by {self.rotate}")
        if sorted(self.axes.replace("(", " ").replace(")", " ").split()) != ["b", "c", "h", "t", "w"]:
            raise OptionError(f"axes {self.axes!r} must name b, c, t, h and w once each, as in 'b t h w c'")

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> Tensor:
        """The network's input.

        Raises:
            InputError: another number of bands than the network takes.
        """
        wanted = len(self.order) or len(self.mean)
        if wanted and clips.shape[1] != wanted:
            raise InputError(f"the model takes {wanted} bands, the clip has {clips.shape[1]}")
        x = clips[:, list(self.order)] if self.order else clips
        if self.rotate % 360:
            x = torch.rot90(x, self.rotate // 90, (3, 4))
        if self.scale != 1:
            x = x * self.scale
        if self.zscore:
            mean, std = self.statistics or _statistics(x)
            x = (x - mean.to(x)) / std.to(x)
        if self.mean:
            x = x - torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)
        if self.std:
            x = x / torch.tensor(self.std, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)
        try:
            fed: Tensor = rearrange(x, f"b c t h w -> {self.axes}")
        except EinopsError as error:
            raise OptionError(f"axes {self.axes!r} cannot be read: {str(error).splitlines()[0]}") from error
        return fed.clone() if fed is clips else fed

    def frozen(self, clips: Float[Tensor, "b c t h w"]) -> Pack:
        """With the statistics of these intact clips, where there are any."""
        if not self.zscore or self.statistics is not None:
            return self
        x = clips[:, list(self.order)] if self.order else clips
        return replace(self, statistics=_statistics(x * self.scale))


def _statistics(x: Float[Tensor, "b c t h w"]) -> Statistics:
    """Mean and standard deviation of each clip; constants as far as gradients go."""
    x = x.detach()
    mean = x.mean(dim=(1, 2, 3, 4), keepdim=True)
    std = x.std(dim=(1, 2, 3, 4), keepdim=True, correction=0)
    return mean, std.clamp_min(1e-7)


def Normalise(mean: Sequence[float], std: Sequence[float]) -> Pack:
    """The `pack` of most networks: (clip - mean) / std for each band."""
    return Pack(tuple(mean), tuple(std))


@dataclass(frozen=True)
class Style:
    """One way in which checkpoints of an architecture were published.

    Attributes:
        name: what it is called in messages.
        fits: whether a state dict (unwrapped, without `module.`) is of this style; looks at its keys.
        convert: to the keys of our own module.
        pack: where files of this style were trained with another preprocessing than the recipe's.
        output: likewise.
    """

    name: str
    fits: Callable[[Mapping[str, Tensor]], bool]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    pack: Callable[[Tensor], Any] | None = None
    output: ScoreKind | None = None


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
        parameters: how many, for `classes` classes.
        classes: of its official weights.
        official: names of official weights, the default first.
        fetch: an official name -> (state dict, labels); may download.
        identify: a weights file -> the labels of the official weights it is, or None.
        styles: ways in which its checkpoints were published, beside our own keys.
        unpack: scores out of what it returns.
        output: what its scores are.
        layouts: of layers that cannot be found by following the forward.
        extra: the extra of this package that it needs.
        licence: of the published code and weights.
        tubes: `"exact"`, or why tubes do not apply.
        attention: how its attention is composed, for the attention methods.
        cached: the file that an official name is kept in, whether or not it is there.
        checkpoint: loads weights that are a folder or a hub name, with the options of `zoo.load`; gives None
            where they are something else.
        merge: one state dict out of those of several files (`weights="rgb.pth,pa.pth"`).
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
    styles: tuple[Style, ...] = ()
    unpack: Callable[[Any], Tensor] = same
    output: ScoreKind = "logits"
    layouts: Layouts = field(default_factory=dict)
    extra: str | None = None
    licence: str = ""
    tubes: str = EXACT
    attention: Attention | None = None
    cached: Callable[[str], Any] | None = None
    checkpoint: Callable[..., TorchModel | None] | None = None
    merge: Callable[[Sequence[Mapping[str, Tensor]]], dict[str, Tensor]] | None = None

    @property
    def shipped(self) -> bool:
        """Whether its weights are in this package."""
        return self.official == (SHIPPED,)
