"""Recipes for torchvision's video transformers: MViT (Fan et al., ICCV 2021; Li et al., CVPR 2022) and Video
Swin (Liu et al., CVPR 2022), with their official Kinetics-400 weights, labels and preprocessing.

Swin pools its last tokens and is linear from there on: tubes are exact at `norm`. MViT reads a class token;
the patch tokens last speak to it inside the last block, so what enters that block's attention is explained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from tubelens.layout import Layout
from tubelens.model import Attention, InputSpec, LayoutOf
from tubelens.zoo.recipe import Normalise, Recipe
from tubelens.zoo.sized import Sized
from tubelens.zoo.torchvision_video import build, official

FAN = "Fan et al., Multiscale Vision Transformers, ICCV 2021"
LI = "Li et al., MViTv2: Improved Multiscale Vision Transformers for Classification and Detection, CVPR 2022"
LIU = "Liu et al., Video Swin Transformer, CVPR 2022"
SWIN_MEAN, SWIN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MVIT_MEAN, MVIT_STD = (0.45,) * 3, (0.225,) * 3
CLASS_TOKEN = "the head reads the class token"
FIXED = "its positions are learned for that size"
Triple = tuple[int, int, int]

MVIT_STRIDES = ((0, (2, 4, 4)), (2, (2, 8, 8)), (4, (2, 16, 16)), (15, (2, 32, 32)))
"""From which block on the tokens that enter have which strides; blocks 1, 3 and 14 halve their grid."""
MVIT_BLOCKS = 16


def _centres(clip: Triple, stride: Triple, first: Triple) -> dict[str, tuple[float, ...]]:
    """Where the cells along t, h and w look: one every `stride`, from half of `first` on."""
    return {
        axis: tuple(f / 2 + s * i for i in range(-(-n // s)))
        for axis, n, s, f in zip("thw", clip, stride, first, strict=True)
    }


def pooled_tokens(clip: Triple, stride: Triple = (2, 32, 32)) -> Layout:
    """Tokens of an MViT behind a class token: t outermost, then h, then w.

    Patches are cut, and tokens pooled, by odd kernels with half a kernel of padding, so cell `i` looks at
    `stride * i`.
    """
    centres = _centres(clip, stride, (0, 0, 0))
    return Layout("b (t h w) c", {axis: len(c) for axis, c in centres.items()}, 1, centres)


def merged_tokens(clip: Triple) -> Layout:
    """Tokens of a Swin's last stage: patches of 2 x 4 x 4 pixels, merged by twos three times in space."""
    return Layout("b t h w c", {}, 0, _centres(clip, (2, 32, 32), (1, 31, 31)))


def mvit_layouts(blocks: int = MVIT_BLOCKS) -> dict[str, LayoutOf]:
    """Layouts of what enters each block, by the name of its first norm."""
    found: dict[str, LayoutOf] = {}
    for i in range(blocks):
        stride = next(stride for start, stride in reversed(MVIT_STRIDES) if i >= start)
        found[f"blocks.{i}.norm1"] = partial(pooled_tokens, stride=stride)
    return found


MVIT_ATTENTION = Attention(
    tuple(f"blocks.{i}.attn" for i in range(MVIT_BLOCKS)), "pooled", "class", pooled_tokens
)


def _mvit(name: str, source: str, parameters: int) -> Recipe:
    builder: Callable[[int], nn.Module] = partial(build, name)
    return Recipe(
        name,
        builder,
        InputSpec(16, (224, 224), resize=256, rate=7.5, antialias=False, views=(5, 1)),
        Sized(Normalise(MVIT_MEAN, MVIT_STD), 16, 224, name, FIXED, exact="thw"),
        layer=f"blocks.{MVIT_BLOCKS - 1}.norm1",
        head="head.1.weight",
        source=source,
        parameters=parameters,
        classes=400,
        layouts=mvit_layouts(),
        tubes=CLASS_TOKEN,
        attention=MVIT_ATTENTION,
        **official(name),
    )


def _swin(name: str, depths: tuple[int, int, int, int], parameters: int) -> Recipe:
    builder: Callable[[int], nn.Module] = partial(build, name)
    # stages and the merging between them take turns
    blocks = tuple(f"features.{2 * stage}.{i}.attn" for stage, n in enumerate(depths) for i in range(n))
    return Recipe(
        name,
        builder,
        InputSpec(32, (224, 224), resize=256, rate=15.0, antialias=False, views=(12, 1)),
        Normalise(SWIN_MEAN, SWIN_STD),
        layer="norm",
        head="head.weight",
        source=LIU,
        parameters=parameters,
        classes=400,
        attention=Attention(blocks, "windows", "mean", merged_tokens),
        **official(name),
    )


RECIPES = (
    _mvit("mvit_v1_b", FAN, 36_610_672),
    _mvit("mvit_v2_s", LI, 34_537_744),
    _swin("swin3d_t", (2, 2, 6, 2), 28_158_070),
    _swin("swin3d_s", (2, 2, 18, 2), 49_816_678),
    replace(
        _swin("swin3d_b", (2, 2, 18, 2), 88_048_984),
        official=("KINETICS400_V1", "KINETICS400_IMAGENET22K_V1"),
    ),
)
