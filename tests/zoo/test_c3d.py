"""C3D: against the network written out as formulas, four kinds of files and what each is fed, no tubes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tubelens as tl
from tests.zoo.registered import clip_of, loaded, misplaced
from tubelens.capture import capturing
from tubelens.errors import CheckpointError, HeadError, InputError
from tubelens.model import TorchModel
from tubelens.zoo.c3d import C3D, RECIPES

SPORTS, UCF = RECIPES
# the same module in the three publications: DavideA, jfzhang95's source, mmaction2
MODULES = [
    ("conv1", "features.0", "backbone.conv1a.conv"),
    ("conv2", "features.3", "backbone.conv2a.conv"),
    ("conv3a", "features.6", "backbone.conv3a.conv"),
    ("conv3b", "features.8", "backbone.conv3b.conv"),
    ("conv4a", "features.11", "backbone.conv4a.conv"),
    ("conv4b", "features.13", "backbone.conv4b.conv"),
    ("conv5a", "features.16", "backbone.conv5a.conv"),
    ("conv5b", "features.18", "backbone.conv5b.conv"),
    ("fc6", "classifier.0", "backbone.fc6"),
    ("fc7", "classifier.3", "backbone.fc7"),
    ("fc8", "classifier.6", "cls_head.fc_cls"),
]


def empty(classes: int) -> C3D:
    """Without initial values: drawing 80 million of them takes longer than the tests."""
    with torch.device("meta"):
        net = C3D(classes)
    net.to_empty(device="cpu")
    return net


def reference(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """conv5b with its ReLU, and the logits, from parameters by name."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).clamp(min=0)

    def halved(x: Tensor, time: int = 2) -> Tensor:
        for axis, n in ((2, time), (3, 2), (4, 2)):
            pairs = x.narrow(axis, 0, x.shape[axis] // n * n).unflatten(axis, (-1, n))
            x = pairs.amax(axis + 1)
        return x

    x = halved(conv(x, "conv1"), time=1)
    x = halved(conv(x, "conv2"))
    x = halved(conv(conv(x, "conv3a"), "conv3b"))
    x = halved(conv(conv(x, "conv4a"), "conv4b"))
    last = conv(conv(x, "conv5a"), "conv5b")
    x = halved(F.pad(last, (1, 1, 1, 1))).flatten(1)  # zeros around: nothing is below zero after ReLU
    for name in ("fc6", "fc7"):
        x = (x @ state[f"{name}.weight"].T + state[f"{name}.bias"]).clamp(min=0)
    return last, x @ state["fc8.weight"].T + state["fc8.bias"]


@pytest.fixture(scope="module")
def model() -> TorchModel:
    """With random weights that keep activations of order one."""
    net = empty(5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for m in net:
            if isinstance(m, nn.Conv3d | nn.Linear):
                m.weight.copy_(_random(m.weight.shape, generator) * (2 / m.weight[0].numel()) ** 0.5)
                m.bias.copy_(torch.randn(m.bias.shape, generator=generator) / 4)
    pack = replace(SPORTS.pack, scale=4.0)  # type: ignore[type-var]
    return TorchModel(
        net.eval(), pack=pack, layer=SPORTS.layer, name="c3d", tubes=SPORTS.tubes, labels=list("abcde")
    )


def _random(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Normal; a large one by picking from a small one, which is much faster."""
    if shape.numel() < 2**22:
        return torch.randn(shape, generator=generator)
    pool = torch.randn(2**20 + 7, generator=generator)
    return pool.repeat(-(-shape.numel() // len(pool)))[: shape.numel()].view(shape)


@pytest.mark.parametrize(("recipe", "parameters"), [(SPORTS, 79_991_015), (UCF, 78_409_573)])
def test_parameters_and_names(recipe: tl.zoo.Recipe, parameters: int):
    with torch.device("meta"):
        net = recipe.build(recipe.classes)
    assert recipe.parameters == parameters == sum(p.numel() for p in net.parameters())
    assert list(net.state_dict()) == [f"{m}.{p}" for m, _, _ in MODULES for p in ("weight", "bias")]
    assert net.state_dict()[recipe.head].shape == (recipe.classes, 4096)
    without = sum(v.numel() for k, v in net.state_dict().items() if not k.startswith("fc8"))
    assert without == 77_995_776


def test_it_is_the_network_of_the_paper(model: TorchModel):
    clips = torch.rand((1, 3, 16, 112, 112), generator=torch.Generator().manual_seed(5))
    last, logits = reference(model.module.state_dict(), clips * 4)
    with capturing(model, clips) as capture:
        torch.testing.assert_close(capture.activations, last, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(capture.scores.detach(), logits, rtol=1e-4, atol=1e-4)
        assert capture.layout.centres["t"] == pytest.approx((3.5, 11.5))
        assert capture.layout.centres["h"] == pytest.approx([7.5 + 16 * i for i in range(7)])
    assert last.std() > 0.3
    assert (logits - model.module.fc8.bias.detach()).abs().max() > 0.3
    assert logits.min() < 0


FEEDS = {  # of a pixel (R, G, B) = (1, 0.5, 0)
    "DavideA": (255.0, 127.5, 0.0),
    "jfzhang95": (0.0 - 90, 127.5 - 98, 255.0 - 102),
    "mmaction2": (255.0 - 104, 127.5 - 117, 0.0 - 128),
}


@pytest.mark.parametrize("style", FEEDS)
@pytest.mark.parametrize("recipe", RECIPES, ids=["c3d", "c3d_ucf101"])
def test_published_files_load_and_are_fed_as_published(
    style: str, recipe: tl.zoo.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in C3D(9).state_dict().items()}
    theirs: dict[str, Tensor] = {}
    expected: dict[str, float] = {}
    for i, row in enumerate(MODULES):
        for j, parameter in enumerate(("weight", "bias")):
            value, ours = i + j / 2, f"{row[0]}.{parameter}"
            # one number, stretched: the file stays small
            theirs[f"{row[list(FEEDS).index(style)]}.{parameter}"] = torch.tensor(value).expand(shapes[ours])
            expected[ours] = value
    if style == "mmaction2":
        theirs["data_preprocessor.mean"] = torch.zeros(3, 1, 1, 1)
    torch.save({"state_dict": theirs} if style == "mmaction2" else theirs, tmp_path / "c3d.pickle")
    model = loaded(replace(recipe, build=empty), tmp_path / "c3d.pickle", monkeypatch)
    for key, value in model.module.state_dict().items():
        assert value.shape == shapes[key]
        assert bool((value == expected[key]).all()), key
    pixel = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1, 1)
    # names that are ours do not tell what was fed: the recipe does
    feed = FEEDS["jfzhang95"] if style == "DavideA" and recipe is UCF else FEEDS[style]
    assert model.pack(pixel).flatten().tolist() == pytest.approx(feed)
    assert model.output == "logits"


def test_a_file_without_a_classifier_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As jfzhang95's initial weights, which end with fc7."""
    torch.save({f"{row[1]}.weight": torch.zeros(1) for row in MODULES[:-1]}, tmp_path / "source.pth")
    with pytest.raises(CheckpointError, match=r"not weights of c3d: no 'fc8.weight' among them"):
        loaded(SPORTS, tmp_path / "source.pth", monkeypatch)


def test_tubes_do_not_apply_and_other_methods_do(model: TorchModel):
    assert SPORTS.tubes == "three fully connected layers follow the last convolution"
    clip = clip_of(torch.rand((3, 16, 112, 112), generator=torch.Generator().manual_seed(6)))
    with capturing(model, clip.pixels[None], probe=True) as capture:
        with pytest.raises(HeadError, match=r"c3d is not \(three fully connected.*such as gradcam") as caught:
            tl.Tubes().from_capture(capture, clip, [tl.Logit(2)])
        (why,) = tl.GradCAM().from_capture(capture, clip, [tl.Logit(2)])
        gradient = capture.gradients([tl.Logit(2)])[0, 0]
        activations = capture.activations[0]
    assert "\n" not in str(caught.value)
    expected = torch.einsum("c,cthw->thw", gradient.mean((1, 2, 3)), activations).clamp(min=0)
    torch.testing.assert_close(why.grid, expected, rtol=1e-4, atol=1e-6)
    assert why.grid.max() > 0


def test_cells_look_where_the_layout_says(model: TorchModel):
    """The convolutions on a longer, smaller clip, so that one cell is in the middle and all of it is seen."""
    base = torch.rand((1, 3, 24, 80, 80), generator=torch.Generator().manual_seed(3))
    parts = dict(model.module.named_children())
    trunk = OrderedDict((name, parts[name]) for name in list(parts)[: list(parts).index("relu5b") + 1])
    net = nn.Sequential(nn.Sequential(trunk), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    off = misplaced(TorchModel(net.eval(), pack=model.pack), base, "0.relu5b")
    assert max(off.values()) <= 0.25, off


@pytest.mark.parametrize("size", [(3, 16, 112, 113), (3, 16, 128, 112), (3, 8, 112, 112), (1, 16, 112, 112)])
def test_other_sizes_get_one_line(model: TorchModel, size: tuple[int, int, int, int]):
    with pytest.raises(InputError, match=r"takes 16 frames of 112x112 in 3 bands, .*, got \d+ of") as caught:
        model(torch.rand(1, *size))
    assert "\n" not in str(caught.value)


def test_what_the_recipes_read():
    for recipe in RECIPES:
        assert (recipe.spec.frames, recipe.spec.size, recipe.spec.resize) == (16, (112, 112), (128, 171))
