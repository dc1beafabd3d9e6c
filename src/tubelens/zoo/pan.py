"""PAN: TSM networks that see what changes between neighbouring frames (Zhang et al., PAN: Towards Fast Action
Recognition via Learning Persistence of Appearance, 2020).

A clip is 8 segments of 4 consecutive frames. Persistence of appearance (PA) is how far the low-level features
of a place move from one frame to the next: three maps a segment. `lite` feeds them with the segment's first
frame to one network, `pa` feeds them alone, `rgb` is the network without them, and `full` is the mean of the
logits of a `pa` and an `rgb` network. Segments are pooled by maxima at several time scales (VAP), or, where
the weights were trained without, by their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.errors import CheckpointError, InputError
from tubelens.layout import Layout
from tubelens.model import InputSpec, LayoutOf
from tubelens.zoo.recipe import EXACT, Pack, Recipe, Style
from tubelens.zoo.tsm import MEAN, STD, consensus, features, trunk

ZHANG = "Zhang et al., PAN: Towards Fast Action Recognition via Learning Persistence of Appearance, 2020"
Kind = Literal["rgb", "pa", "lite"]
Frames = list[Float[Tensor, "b s c h w"]]
"""Normalised frames of a clip by their place in the snippet: the first of every segment, the second, ..."""
SNIPPET = 4  # consecutive frames in a segment
CHANNELS: dict[Kind, int] = {"rgb": 3, "pa": SNIPPET - 1, "lite": 3 + SNIPPET - 1}
LEVELS = 3  # time scales of VAP: 1, 2, 4
WIDTH = 2048
pack = Pack(MEAN, STD, axes="b (t c) h w")


class Persistence(nn.Module):
    """How far the features of each place move from each frame of a snippet to the next.

    The features are those of one shallow convolution, the distance is Euclidean over its 8 channels. A
    millionth is added to every difference, so that the gradient is finite where nothing moves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shallow_conv = nn.Conv2d(3, 8, 7, padding=3)

    def forward(self, snippets: Frames) -> Float[Tensor, "n d h w"]:
        """Maps of each two neighbouring frames; the segments of a clip follow each other."""
        seen = [self.shallow_conv(frames.flatten(0, 1)) for frames in snippets]
        moved = [torch.linalg.vector_norm(a - b + 1e-6, dim=1, keepdim=True) for a, b in pairwise(seen)]
        return torch.cat(moved, dim=1)


class VAP(nn.Module):
    """Various-timescale aggregation pooling, then the classifier.

    At scale `r` (1, 2, 4) there are `r` vectors: maxima over every `r`-th segment, from each of the first
    `r` on. The mean of each of the 7 vectors is put through two linear layers and a softmax, which says with
    which weight that vector enters the sum that is classified.
    """

    def __init__(self, classes: int, levels: int = LEVELS) -> None:
        super().__init__()
        self.scales = [2**i for i in range(levels)]
        n = sum(self.scales)
        self.TES = nn.Sequential(nn.Linear(n, 4 * n, bias=False), nn.ReLU(), nn.Linear(4 * n, n, bias=False))
        self.dropout = nn.Dropout(0.5)
        self.pred = nn.Linear(WIDTH, classes)

    def forward(self, pooled: Float[Tensor, "n d"], segments: int) -> Float[Tensor, "_ k"]:
        """Logits of the pooled features of every segment; the segments of a clip follow each other.

        Raises:
            InputError: the segments do not divide by the largest scale.
        """
        if segments % self.scales[-1]:
            raise InputError(
                f"VAP pools over every {self.scales[-1]}th segment: give a multiple of {self.scales[-1]}"
                f" segments, not {segments}"
            )
        x = pooled.unflatten(0, (-1, segments))
        vectors = torch.cat([x.unflatten(1, (-1, r)).amax(dim=1) for r in self.scales], dim=1)
        weights = self.TES(vectors.mean(dim=2)).softmax(dim=1)
        logits: Tensor = self.pred(self.dropout((weights[:, :, None] * vectors).sum(dim=1)))
        return logits


class PAN(nn.Module):
    """One network: on frames (`rgb`), on persistence (`pa`), or on both (`lite`).

    Args:
        depth: 50 or 101.
        kind: what the first convolution is fed.
        vap: whether segments are pooled by VAP, else by their mean.
        classes: how many.
    """

    def __init__(self, depth: int, kind: Kind, vap: bool, classes: int) -> None:
        super().__init__()
        self.kind = kind
        if kind != "rgb":
            self.PA = Persistence()
        self.base_model = trunk(depth, CHANNELS[kind])
        if vap:
            self.base_model.fc = VAP(classes)
        else:
            self.new_fc = nn.Linear(WIDTH, classes)

    def forward(self, frames: Float[Tensor, "b tc h w"]) -> Float[Tensor, "_ k"]:  # a hook may add rows
        """Logits of normalised frames `(segment, frame, band)`, stacked along the channels.

        An `rgb` network takes one frame a segment, the others take 4.

        Raises:
            InputError: the frames do not divide into segments.
        """
        snippets = in_snippets(frames, 1 if self.kind == "rgb" else SNIPPET, self.bands)
        return self.classify(self.see(snippets), snippets[0].shape[1])

    @property
    def bands(self) -> int:
        """Of a frame."""
        first = self.base_model.conv1 if self.kind == "rgb" else self.PA.shallow_conv
        return int(first.in_channels)

    def see(self, snippets: Frames) -> Float[Tensor, "n d i j"]:
        """Features of the last stage, one row a segment."""
        fed = [] if self.kind == "pa" else [snippets[0].flatten(0, 1)]
        if self.kind != "rgb":
            fed.append(self.PA(snippets))
        return features(self.base_model, torch.cat(fed, dim=1), snippets[0].shape[1])

    def classify(self, x: Float[Tensor, "n d i j"], segments: int) -> Float[Tensor, "_ k"]:
        """Logits of the features of the last stage."""
        if isinstance(self.base_model.fc, VAP):
            logits: Tensor = self.base_model.fc(self.base_model.avgpool(x).flatten(1), segments)
            return logits
        return consensus(self.base_model, self.new_fc, x, segments)


class Full(nn.Module):
    """The mean of the logits of an `rgb` and a `pa` network, which the authors run one after the other.

    `both` passes on the features of the last stages, those of `rgb` before those of `pa`: the one layer
    that all of the logit goes through.

    The authors sample the frames of the two networks apart. The frame that `rgb` would be given is one of
    the snippet that `pa` is given, a later one the later the segment; here it is the one that is nearest on
    average (0, 1, 1, 1, 2, 2, 2, 3).
    """

    def __init__(self, depth: int, vap: bool, classes: int) -> None:
        super().__init__()
        self.rgb = PAN(depth, "rgb", vap, classes)
        self.pa = PAN(depth, "pa", vap, classes)
        self.both = nn.Identity()

    def forward(self, frames: Float[Tensor, "b tc h w"]) -> Float[Tensor, "_ k"]:  # a hook may add rows
        """Logits of normalised frames `(segment, frame, band)`, 4 a segment, stacked along the channels.

        Raises:
            InputError: the frames do not divide into segments.
        """
        snippets = in_snippets(frames, SNIPPET, self.pa.bands)
        segments = snippets[0].shape[1]
        single = frames.unflatten(1, (-1, self.pa.bands))[:, nearest_frames(segments)]
        seen = [self.rgb.see([single]), self.pa.see(snippets)]
        rgb, pa = self.both(torch.cat(seen, dim=1)).split(WIDTH, dim=1)
        return (self.rgb.classify(rgb, segments) + self.pa.classify(pa, segments)) / 2


def nearest_frames(segments: int) -> list[int]:
    """The frame of every snippet that lies nearest to the middle of its segment.

    Of `n` frames a segment has `n / s`. Its middle is `(x + 1/2) n / s`, its snippet of `f` starts at
    `(x + 1/2) (n - f + 1) / s`: the former is `(x + 1/2) (f - 1) / s` into the latter.
    """
    return [SNIPPET * x + round((x + 0.5) * (SNIPPET - 1) / segments) for x in range(segments)]


def in_snippets(frames: Float[Tensor, "b tc h w"], snippet: int, bands: int = 3) -> Frames:
    """The first frame of every segment, the second of every segment, and so on.

    Raises:
        InputError: the frames do not divide into segments of `snippet`.
    """
    if frames.shape[1] % (bands * snippet):
        raise InputError(
            f"PAN takes {snippet} consecutive frames a segment: give a multiple of {snippet} frames,"
            f" not {frames.shape[1] / bands:g}"
        )
    every = frames.unflatten(1, (-1, bands))
    return [every[:, j::snippet] for j in range(snippet)]  # strides, which where a cell looks can follow


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────


def merge(files: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of `full` out of those of an `rgb` and a `pa` network, in either order.

    Raises:
        CheckpointError: they are not one of each.
    """
    named = {"pa" if "PA.shallow_conv.weight" in state else "rgb": state for state in files}
    if len(files) != 2 or len(named) != 2:
        raise CheckpointError("PAN full takes two weights files, one of a PA and one of an RGB network")
    return {f"{name}.{key}": value for name, state in named.items() for key, value in state.items()}


def _wrong_head(vap: bool, name: str) -> Style:
    """Recognises weights whose segments are pooled otherwise, and says which network they are of."""
    key = "new_fc.weight" if vap else "base_model.fc.pred.weight"
    other = f"{name}_avg" if vap else name.removesuffix("_avg")

    def refuse(state: dict[str, Tensor]) -> dict[str, Tensor]:
        have = "no VAP" if vap else "VAP"
        raise CheckpointError(f"these weights have {have} and are not of {name}: load them as {other}")

    return Style("other head", lambda state: any(k.endswith(key) for k in state), refuse)


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────

SINGLE = InputSpec(8, (224, 224), resize=256, stride=SNIPPET, sampling="segments")
SNIPPETS = InputSpec(32, (224, 224), resize=256, sampling="segments", snippet=SNIPPET)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PARAMETERS = {  # with VAP, for 174 classes
    (50, "rgb"): 23_864_950,
    (50, "pa"): 23_866_134,
    (50, "lite"): 23_875_542,
    (50, "full"): 47_731_084,
    (101, "rgb"): 42_857_078,
    (101, "pa"): 42_858_262,
    (101, "lite"): 42_867_670,
    (101, "full"): 85_715_340,
}
TES = 2 * 7 * 28  # parameters that a network has for VAP


def snippet_layout(stride: int, size: tuple[int, int, int]) -> Layout:
    """Of a stage of `lite`: a cell sees a whole snippet and is placed at its middle, 1.5 frames in.

    Following the forward would place it 0.75 frames in, at the mean over the six channels that are fed, of
    which three are the snippet's first frame.
    """
    frames, height, width = size
    centres = {
        "t": tuple(i + (SNIPPET - 1) / 2 for i in range(0, frames, SNIPPET)),
        "h": tuple(map(float, range(0, height, stride))),
        "w": tuple(map(float, range(0, width, stride))),
    }
    return Layout("(b t) c h w", {axis: len(places) for axis, places in centres.items()}, 0, centres)


def _layouts(depth: int) -> dict[str, LayoutOf]:
    """Of the stages and their blocks."""
    known: dict[str, LayoutOf] = {}
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        name, layout = f"base_model.layer{stage}", partial(snippet_layout, 2 ** (stage + 1))
        known.update({name: layout} | {f"{name}.{block}": layout for block in range(blocks)})
    return known


def _recipe(depth: int, kind: Kind | Literal["full"], vap: bool) -> Recipe:
    name = f"pan_{kind}_r{depth}" + ("" if vap else "_avg")
    full = kind == "full"
    return Recipe(
        name,
        partial(Full, depth, vap) if kind == "full" else partial(PAN, depth, kind, vap),
        SINGLE if kind == "rgb" else SNIPPETS,
        pack,
        layer="both" if full else "base_model.layer4",
        head=("rgb." if full else "") + ("base_model.fc.pred.weight" if vap else "new_fc.weight"),
        source=ZHANG,
        parameters=PARAMETERS[depth, kind] - (0 if vap else TES * (2 if full else 1)),
        classes=174,
        styles=(_wrong_head(vap, name),),
        merge=merge if full else None,
        layouts=_layouts(depth) if kind == "lite" else {},
        licence="Apache-2.0 (code)",
        tubes="segments are pooled by maxima at several time scales (VAP)" if vap else EXACT,
    )


KINDS: tuple[Kind | Literal["full"], ...] = ("lite", "rgb", "pa", "full")
RECIPES: tuple[Recipe, ...] = tuple(
    _recipe(depth, kind, vap) for vap in (True, False) for depth in (50, 101) for kind in KINDS
)
