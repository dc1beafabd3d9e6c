"""Recipes for the networks of pytorchvideo's model zoo, which the extra `pytorchvideo` installs: Slow, C2D,
I3D, SlowFast, X3D, CSN, R(2+1)D and MViT, with their published Kinetics-400 weights.

The keys are the package's own, so that its files (`.pyth`, under `model_state`) load as they are. All of them
give logits here; the package's X3D and R(2+1)D end in a softmax, which is left out.

The heads of the CNNs average windows of a fixed number of cells, those of the training crop (224 pixels), and
then the answers of all windows. A larger clip gives several windows: cells at the border are in fewer of them
and weigh less, but the head stays affine and tubes exact. A smaller clip gives none and is refused.
SlowFast takes 32 frames and no others.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import get_model_weights

from tubelens.errors import CheckpointError
from tubelens.model import InputSpec, frozen_part
from tubelens.zoo.checkpoint import read_checkpoint
from tubelens.zoo.extras import need
from tubelens.zoo.official import downloaded, kept
from tubelens.zoo.recipe import Normalise, Recipe, Style
from tubelens.zoo.sized import Sized
from tubelens.zoo.torchvision_transformers import CLASS_TOKEN, FIXED, MVIT_ATTENTION, mvit_layouts

EXTRA = "pytorchvideo"
normalise = Normalise((0.45,) * 3, (0.225,) * 3)
SLOWFAST = "Feichtenhofer et al., SlowFast Networks for Video Recognition, ICCV 2019"
WANG = "Wang et al., Non-local Neural Networks, CVPR 2018"
CARREIRA = "Carreira & Zisserman, Quo Vadis, Action Recognition?, CVPR 2017"
X3D = "Feichtenhofer, X3D: Expanding Architectures for Efficient Video Recognition, CVPR 2020"
CSN = "Tran et al., Video Classification with Channel-Separated Convolutional Networks, ICCV 2019"
TRAN = "Tran et al., A Closer Look at Spatiotemporal Convolutions for Action Recognition, CVPR 2018"
MVIT = "Fan et al., Multiscale Vision Transformers, ICCV 2021"
SOFTMAX = ("x3d", "r2plus1d")


def build(name: str, classes: int, **options: Any) -> nn.Module:
    """A network of the package's hub, randomly initialised, with a head that gives logits.

    Args:
        name: of the hub's function.
        classes: how many.
        options: of that function, for other widths and depths.

    Raises:
        OptionError: the extra is not installed.
    """
    options["head_num_classes" if name.startswith("mvit") else "model_num_class"] = classes
    if name.startswith(SOFTMAX):
        options["head_activation"] = None
    module: nn.Module = getattr(_hub(name), name)(pretrained=False, **options)
    # the package's Swish has a backward of its own, which torch deprecates and cannot batch over targets
    for parent in list(module.modules()):
        for child, layer in parent.named_children():
            if type(layer).__name__ == "Swish":
                setattr(parent, child, nn.SiLU())
    return module


def _hub(who: str) -> Any:
    with warnings.catch_warnings():  # its dependencies use what torch has deprecated
        warnings.simplefilter("ignore")
        return need("pytorchvideo.models.hub", EXTRA, who)


# ── official weights ─────────────────────────────────────────────────────────────────────────────────────


def url(name: str) -> str:
    """Where the package says that a network's weights are.

    Raises:
        OptionError: the extra is not installed.
    """
    function = getattr(_hub(name), name)
    table: Mapping[str, str] = function.__globals__["checkpoint_paths"]
    return table[name]


def fetch(name: str, wanted: str) -> tuple[dict[str, Tensor], Sequence[str]]:
    """Official weights from the cache of torch.hub, downloaded into it if absent, and their labels.

    Raises:
        CheckpointError: they cannot be had.
        OptionError: the extra is not installed.
    """
    labels = get_model_weights("r3d_18")["KINETICS400_V1"].meta["categories"]  # of the same data, in order
    return read_checkpoint(downloaded(url(name), name, wanted)), list(labels)


def cached(name: str, wanted: str) -> Path:
    """Where official weights are kept."""
    return kept(url(name))


# ── two pathways ─────────────────────────────────────────────────────────────────────────────────────────

ALPHA = 4
PATHWAYS = ("blocks.4.multipathway_blocks.0", "blocks.4.multipathway_blocks.1")
"""Last layers of a SlowFast: the slow pathway's and the fast one's."""


@dataclass(frozen=True)
class Pathways:
    """What SlowFast is fed: the clip at a quarter of its frames, and all of it.

    The network writes its features into the list that it is given, so each call makes a new one.

    Attributes:
        pack: what the clips go through first.
        alpha: how many frames the slow pathway has one of.
    """

    pack: Callable[[Tensor], Tensor] = normalise
    alpha: int = ALPHA

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> list[Tensor]:
        """The slow and the fast clip."""
        fast = self.pack(clips)
        frames = slow_frames(clips.shape[2], self.alpha)
        return [fast.index_select(2, torch.tensor(frames, device=fast.device)), fast]

    def frozen(self, clips: Float[Tensor, "b c t h w"]) -> Pathways:
        """With the statistics of these intact clips, where `pack` takes any."""
        return replace(self, pack=frozen_part(self.pack, clips))


def slow_frames(frames: int, alpha: int = ALPHA) -> list[int]:
    """Which frames the slow pathway sees: as the networks were trained, from the first to the very last."""
    places = torch.linspace(0, frames - 1, frames // alpha)
    return [int(place) for place in places]


# ── files of mmaction2 ───────────────────────────────────────────────────────────────────────────────────

BRANCH = {"1": "a", "2": "b", "3": "c"}
LAYERS = {"conv": "conv", "bn": "norm"}
IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _is_mmaction(state: Mapping[str, Tensor]) -> bool:
    return "backbone.layer1.0.conv1.conv.weight" in state and "cls_head.fc_cls.weight" in state


def _from_mmaction(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's names for those of mmaction2, whose layers are pairs of a convolution and a norm."""
    return {_renamed(k): v for k, v in state.items() if not k.startswith("data_preprocessor.")}


def _renamed(key: str) -> str:
    if found := re.fullmatch(r"backbone\.conv1\.(conv|bn)\.(\w+)", key):
        return f"blocks.0.{LAYERS[found[1]]}.{found[2]}"
    if found := re.fullmatch(r"backbone\.layer(\d)\.(\d+)\.conv(\d)\.(conv|bn)\.(\w+)", key):
        layer, block, place, kind, what = found.groups()
        return f"blocks.{layer}.res_blocks.{block}.branch2.{LAYERS[kind]}_{BRANCH[place]}.{what}"
    if found := re.fullmatch(r"backbone\.layer(\d)\.(\d+)\.downsample\.(conv|bn)\.(\w+)", key):
        layer, block, kind, what = found.groups()
        return f"blocks.{layer}.res_blocks.{block}.branch1_{LAYERS[kind]}.{what}"
    return key.replace("cls_head.fc_cls.", "blocks.5.proj.")


def _refused(state: dict[str, Tensor]) -> NoReturn:
    raise CheckpointError(
        "these are weights of mmaction2's i3d_r50, a network with other strides than pytorchvideo's i3d_r50:"
        " the weights could be renamed and would fit, but the scores would be wrong"
    )


NOT_THE_SAME = Style("mmaction2", _is_mmaction, _refused)

# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────


def _recipe(
    name: str,
    official: str,
    spec: tuple[int, int, int],
    least: tuple[int, int],
    layer: str,
    source: str,
    parameters: int,
) -> Recipe:
    """A CNN of the hub.

    Args:
        name: of the hub's function.
        official: its weights, as their file is called.
        spec: frames, frames of a video at 30 a second from one to the next, pixels.
        least: the fewest frames and pixels of a side that give its head one window.
        layer: explained by default.
        source: the paper.
        parameters: how many.
    """
    frames, stride, side = spec
    head = 6 if layer.startswith("blocks.5") and not name.startswith("x3d") else 5
    builder: Callable[[int], nn.Module] = partial(build, name)
    return Recipe(
        name,
        builder,
        InputSpec(frames, (side, side), resize=side, rate=30 / stride, antialias=False, views=(10, 3)),
        Sized(normalise, *least, name, "its head averages windows of as many cells as these give"),
        layer=layer,
        head=f"blocks.{head}.proj.weight",
        source=source,
        parameters=parameters,
        classes=400,
        official=(official,),
        fetch=partial(fetch, name),
        cached=partial(cached, name),
        extra=EXTRA,
        licence="Apache 2.0 (code)",
    )


def _x3d(size: str, spec: tuple[int, int, int], least: tuple[int, int], parameters: int) -> Recipe:
    layer = "blocks.5.pool.pre_act"  # what the pooling reads
    recipe = _recipe(f"x3d_{size}", f"X3D_{size.upper()}", spec, least, layer, X3D, parameters)
    return replace(recipe, tubes="the head has a ReLU between the pooling and the classifier")


def _slowfast(depth: int, parameters: int) -> Recipe:
    """A SlowFast; the slow pathway is explained by default.

    The head is affine in both pathways together: tubes at one of them give its own contributions, and the
    other's are in the constant. A fused map of both is `layer=PATHWAYS`.
    """
    name = f"slowfast_r{depth}"
    least = (32, 193)
    recipe = _recipe(name, f"SLOWFAST_8x8_R{depth}", (32, 2, 256), least, PATHWAYS[0], SLOWFAST, parameters)
    why = "its head averages both pathways over as many cells as these give"
    return replace(recipe, pack=Sized(Pathways(), *least, name, why, exact="t"), head="blocks.6.proj.weight")


def _mvit(name: str, official: str, frames: int, stride: int, parameters: int) -> Recipe:
    recipe = _recipe(
        name, official, (frames, stride, 224), (frames, 224), "blocks.15.norm1", MVIT, parameters
    )
    return replace(
        recipe,
        spec=replace(recipe.spec, resize=256, views=(5, 1)),
        pack=Sized(normalise, frames, 224, name, FIXED, exact="thw"),
        head="head.proj.weight",
        layouts=mvit_layouts(),
        tubes=CLASS_TOKEN,
        attention=MVIT_ATTENTION,
    )


def _slow() -> Recipe:
    recipe = _recipe("slow_r50", "SLOW_8x8_R50", (8, 8, 256), (8, 193), "blocks.4", SLOWFAST, 32_454_096)
    assert isinstance(recipe.pack, Sized)
    # mmaction2 averages all cells alike: the same at 224 pixels, where there is one window
    style = Style("mmaction2", _is_mmaction, _from_mmaction, replace(recipe.pack, pack=IMAGENET))
    return replace(recipe, styles=(style,))


def _x3d_l() -> Recipe:
    recipe = _x3d("l", (16, 5, 312), (16, 289), 6_153_384)
    return replace(recipe, spec=replace(recipe.spec, resize=356))


RECIPES: tuple[Recipe, ...] = (
    _slow(),
    _recipe("c2d_r50", "C2D_8x8_R50", (8, 8, 256), (8, 193), "blocks.5", WANG, 24_327_632),
    replace(
        _recipe("i3d_r50", "I3D_8x8_R50", (8, 8, 256), (8, 193), "blocks.5", CARREIRA, 28_043_472),
        styles=(NOT_THE_SAME,),
    ),
    _slowfast(50, 34_566_488),
    _slowfast(101, 62_826_968),
    _x3d("xs", (4, 12, 182), (4, 129), 3_794_274),
    _x3d("s", (13, 6, 182), (13, 129), 3_794_274),
    _x3d("m", (16, 5, 256), (16, 193), 3_794_274),
    _x3d_l(),
    _recipe("csn_r101", "CSN_32x2_R101", (32, 2, 256), (25, 193), "blocks.4", CSN, 22_213_776),
    _recipe("r2plus1d_r50", "R2PLUS1D_16x4_R50", (16, 4, 256), (13, 193), "blocks.4", TRAN, 28_107_600),
    _mvit("mvit_base_16x4", "MVIT_B_16x4", 16, 4, 36_610_672),
    _mvit("mvit_base_32x3", "MVIT_B_32x3_f294077834", 32, 3, 36_611_440),
)
