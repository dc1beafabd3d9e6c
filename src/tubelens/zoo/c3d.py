"""C3D (Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015): eight
convolutions and three fully connected layers. Names of parameters are those of the torch conversion of the
Sports-1M weights (`c3d.pickle`).

What the conversions were fed differs, and not always with the names: `c3d` is fed R, G, B in 0..255 without
any mean, `c3d_ucf101`, which has the same names, B, G, R less a mean. So for files with these names it is the
recipe asked for that decides, as `model.pack` shows; the two other ways of naming tell it themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from tubelens.errors import InputError
from tubelens.model import InputSpec
from tubelens.zoo.recipe import Pack, Recipe, Style

STAGES: tuple[tuple[tuple[str, ...], int], ...] = (  # convolutions between two pools, and their features
    (("1",), 64),
    (("2",), 128),
    (("3a", "3b"), 256),
    (("4a", "4b"), 512),
    (("5a", "5b"), 512),
)
HIDDEN = 4096
TAKES = (3, 16, 112, 112)
FLAT = 512 * 1 * 4 * 4  # features after pool5


class C3D(nn.Sequential):
    """3x3x3 convolutions with bias and ReLU, five maxima, three fully connected layers.

    `relu5b` is the last convolution with its ReLU: 2 x 7 x 7 cells. The first maximum spares time, the last
    one pads height and width. The fully connected layers fix the size of the clip.

    Args:
        classes: how many.
    """

    def __init__(self, classes: int = 487) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        width = TAKES[0]
        for number, (names, out) in enumerate(STAGES, start=1):
            for name in names:
                parts[f"conv{name}"] = nn.Conv3d(width, out, 3, padding=1)
                parts[f"relu{name}"] = nn.ReLU()
                width = out
            time = 1 if number == 1 else 2
            margin = 1 if number == len(STAGES) else 0
            parts[f"pool{number}"] = nn.MaxPool3d((time, 2, 2), padding=(0, margin, margin))
        parts["flat"] = nn.Flatten()
        for number, size in ((6, FLAT), (7, HIDDEN)):
            parts[f"fc{number}"] = nn.Linear(size, HIDDEN)
            parts[f"relu{number}"] = nn.ReLU()
            parts[f"drop{number}"] = nn.Dropout(0.5)
        parts["fc8"] = nn.Linear(HIDDEN, classes)
        super().__init__(parts)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "_ k"]:  # a hook may add rows
        """Logits of prepared clips.

        Raises:
            InputError: clips of another size than 16 frames of 112 x 112.
        """
        bands = int(self.get_submodule("conv1").in_channels)  # type: ignore[arg-type]
        if tuple(clips.shape[1:]) != (bands, *TAKES[1:]):
            c, t, h, w = clips.shape[1:]
            raise InputError(
                f"C3D takes {TAKES[1]} frames of {TAKES[2]}x{TAKES[3]} in {bands} bands, because of its"
                f" fully connected layers, got {t} of {h}x{w} in {c}"
            )
        x = clips
        for module in self:
            x = module(x)
        return x


CONVOLUTIONS = [f"conv{name}" for names, _ in STAGES for name in names]
PLACES = dict(zip((0, 3, 6, 8, 11, 13, 16, 18), CONVOLUTIONS, strict=True))
JFZHANG95 = {f"features.{i}": name for i, name in PLACES.items()} | {
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "classifier.6": "fc8",
}
MMACTION2 = (
    {f"backbone.{name}.conv": name for name in CONVOLUTIONS[2:]}
    | {f"backbone.conv{i}a.conv": f"conv{i}" for i in (1, 2)}
    | {"backbone.fc6": "fc6", "backbone.fc7": "fc7", "cls_head.fc_cls": "fc8"}
)


def _renamed(state: dict[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Keys whose module is known get our name; statistics of a preprocessor are dropped."""
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith("data_preprocessor."):
            module, _, parameter = key.rpartition(".")
            ours[f"{names.get(module, module)}.{parameter}"] = value
    return ours


BGR = Pack(mean=(90.0, 98.0, 102.0), scale=255.0, order=(2, 1, 0))
STYLES = (
    Style(
        "jfzhang95/pytorch-video-recognition",
        lambda state: "features.0.weight" in state and "features.18.weight" in state,
        lambda state: _renamed(state, JFZHANG95),
        BGR,
    ),
    Style(
        "mmaction2",
        lambda state: "backbone.conv1a.conv.weight" in state,
        lambda state: _renamed(state, MMACTION2),
        Pack(mean=(104.0, 117.0, 128.0), scale=255.0),
    ),
)


def _recipe(name: str, pack: Pack, parameters: int, classes: int) -> Recipe:
    return Recipe(
        name,
        C3D,
        InputSpec(16, (112, 112), resize=(128, 171), views=(10, 1)),
        pack,
        layer="relu5b",
        head="fc8.weight",
        source="Tran et al., Learning Spatiotemporal Features with 3D Convolutional Networks, ICCV 2015",
        parameters=parameters,
        classes=classes,
        styles=STYLES,
        licence="MIT",
        tubes="three fully connected layers follow the last convolution",
    )


RECIPES: tuple[Recipe, ...] = (
    _recipe("c3d", Pack(scale=255.0), 79_991_015, 487),
    _recipe("c3d_ucf101", BGR, 78_409_573, 101),
)
