"""Hara's 3D-ResNets: published sizes and names, blocks done slowly, type A shortcuts that pass gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tubelens as tl
from tests.conftest import order_one
from tests.zoo.registered import assert_registered, kept_outputs, randomise_norms
from tubelens import zoo
from tubelens.clip import Clip
from tubelens.errors import CheckpointError
from tubelens.model import TorchModel
from tubelens.zoo.hara_resnet import RECIPES, Basic, Bottleneck, ResNet3D, Subsample, _downsample

MODELS = {recipe.name: recipe for recipe in RECIPES}
PUBLISHED = {  # parameters, keys of the authors' state dicts
    "hara2018_resnet18": (33_235_280, 104),
    "hara2018_resnet34": (63_544_912, 200),
    "hara2018_resnet50": (47_018_576, 320),
    "hara2018_resnet101": (86_064_720, 626),
    "hara2018_resnet152": (118_223_440, 932),
    "hara2020_resnet18": (33_563_004, 122),
    "hara2020_resnet34": (63_872_636, 218),
    "hara2020_resnet50": (47_633_276, 320),
    "hara2020_resnet101": (86_679_420, 626),
    "hara2020_resnet152": (118_838_140, 932),
}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_keys(depth: int, shortcut: str) -> set[str]:
    """As the authors' files have them, written out."""
    keys = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{name}" for name in BN}
    for layer, count in enumerate(BLOCKS[depth], start=1):
        for block in range(count):
            at = f"layer{layer}.{block}"
            for i in (1, 2, 3) if depth >= 50 else (1, 2):
                keys |= {f"{at}.conv{i}.weight"} | {f"{at}.bn{i}.{name}" for name in BN}
            if shortcut == "B" and block == 0 and (layer > 1 or depth >= 50):
                keys |= {f"{at}.downsample.0.weight"} | {f"{at}.downsample.1.{name}" for name in BN}
    return keys


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, recipe in MODELS.items():
        monkeypatch.setitem(zoo.MODELS, name, recipe)


def shortcut_of(name: str) -> str:
    return "A" if name in ("hara2018_resnet18", "hara2018_resnet34") else "B"


@pytest.fixture(scope="module", params=["A", "B"])
def net(request: pytest.FixtureRequest) -> ResNet3D:
    return resnet18(request.param)


@cache
def resnet18(shortcut: Any) -> ResNet3D:
    """18 layers, five classes, activations of order one."""
    torch.manual_seed(0)
    made = ResNet3D(18, shortcut, 5)
    order_one(made, torch.rand(2, 3, 16, 64, 64))
    randomise_norms(made)
    return made


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_names_and_cells_are_the_published_ones(name: str):
    recipe, depth = MODELS[name], int(name.removeprefix("hara2018_resnet").removeprefix("hara2020_resnet"))
    parameters, count = PUBLISHED[name]
    with torch.device("meta"):
        made = recipe.build(recipe.classes).eval()
    assert sum(p.numel() for p in made.parameters()) == parameters == recipe.parameters
    state = made.state_dict()
    assert set(state) == published_keys(depth, shortcut_of(name))
    assert len(state) == count
    width = 512 if depth < 50 else 2048
    assert state[recipe.head].shape == (400 if "2018" in name else 700, width)
    # the 3x3x3 convolution strides, in a bottleneck too
    strided = "layer2.0.conv1" if depth < 50 else "layer2.0.conv2"
    assert made.get_submodule(strided).stride == (2, 2, 2)
    assert state[f"{strided}.weight"].shape == (128, 64 if depth < 50 else 128, 3, 3, 3)
    assert state["conv1.weight"].shape == (64, 3, 7, 7, 7)

    shapes = {}
    for layer in ("layer2", "layer3", recipe.layer):
        made.get_submodule(layer).register_forward_hook(
            lambda m, i, o, layer=layer: shapes.update({layer: tuple(o.shape)})
        )
    made(torch.zeros(1, 3, recipe.spec.frames, *recipe.spec.size, device="meta"))
    assert shapes == {
        "layer2": (1, width // 4, 4, 14, 14),
        "layer3": (1, width // 2, 2, 7, 7),
        "layer4": (1, width, 1, 4, 4),
    }


def test_classes_of_the_other_data_sets():
    """Kinetics-700 with Moments in Time (1039), and Moments alone (339)."""
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in MODELS["hara2020_resnet50"].build(k).parameters()) for k in (1039, 339)
        ]
    assert sizes == [47_633_276 + 339 * 2049, 47_633_276 - 361 * 2049]


def test_pixels_are_prepared_as_the_authors_do():
    pixels = torch.rand(1, 3, 2, 4, 4)
    old = pixels * 255 - torch.tensor([114.7748, 107.7354, 99.4750]).view(3, 1, 1, 1)
    new = (pixels - torch.tensor([0.4345, 0.4051, 0.3775]).view(3, 1, 1, 1)) / torch.tensor(
        [0.2768, 0.2713, 0.2737]
    ).view(3, 1, 1, 1)
    for name, recipe in MODELS.items():
        torch.testing.assert_close(recipe.pack(pixels), old if "2018" in name else new)
        assert (recipe.spec.frames, recipe.spec.size, recipe.spec.resize) == (16, (112, 112), 112)
        assert recipe.spec.stride == 1


def normed(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{key}"].view(-1, 1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def block(x: Tensor, state: dict[str, Tensor], stride: int, shortcut: str) -> Tensor:
    """One residual block from its parameters; 1-wide average pooling subsamples."""
    deep = "conv3.weight" in state
    y = x
    for i in (1, 2, 3) if deep else (1, 2):
        weight = state[f"conv{i}.weight"]
        own = stride if i == (2 if deep else 1) else 1
        y = normed(F.conv3d(y, weight, None, own, weight.shape[-1] // 2), state, f"bn{i}")
        if i < (3 if deep else 2):
            y = y.clamp_min(0)
    if shortcut == "A":
        x = F.avg_pool3d(x, 1, stride)
        x = torch.cat([x, torch.zeros(x.shape[0], y.shape[1] - x.shape[1], *x.shape[2:])], dim=1)
    elif shortcut == "B":
        x = normed(F.conv3d(x, state["downsample.0.weight"], None, stride), state, "downsample.1")
    return (y + x).clamp_min(0)


@pytest.mark.parametrize("kind", [Basic, Bottleneck])
@pytest.mark.parametrize(("shortcut", "stride"), [("A", 2), ("B", 2), ("B", 1), ("", 1)])
def test_a_block_is_the_papers(kind: type[Basic] | type[Bottleneck], shortcut: Any, stride: int):
    torch.manual_seed(2)
    width, into = 8, 12 if shortcut else 8 * kind.expansion
    out = width * kind.expansion
    if kind is Basic and shortcut == "A":
        into = 5
    made = kind(into, width, stride, _downsample(shortcut, into, out, stride) if shortcut else None)
    x = torch.randn(2, into, 5, 9, 8)
    order_one(made, x)
    randomise_norms(made)
    with torch.no_grad():
        expected = block(x, made.state_dict(), stride, shortcut)
        torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)
    assert expected.shape[2:] == ((3, 5, 4) if stride == 2 else (5, 9, 8))
    assert expected.std() > 0.3


def test_the_network_is_its_blocks_in_order(net: ResNet3D):
    state, x = net.state_dict(), torch.rand(1, 3, 19, 50, 70)
    kind = "B" if "layer2.0.downsample.0.weight" in state else "A"
    with torch.no_grad():
        y = normed(F.conv3d(x, state["conv1.weight"], None, (1, 2, 2), 3), state, "bn1").clamp_min(0)
        y = F.max_pool3d(y, 3, 2, 1)
        for layer in (1, 2, 3, 4):
            for i in (0, 1):
                prefix, first = f"layer{layer}.{i}.", layer > 1 and i == 0
                own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                y = block(y, own, 2 if first else 1, kind if first else "")
        expected = y.flatten(2).mean(dim=2) @ state["fc.weight"].T + state["fc.bias"]
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert (expected - state["fc.bias"]).abs().max() > 0.3


def test_type_a_gradient_is_that_of_finite_differences(monkeypatch: pytest.MonkeyPatch):
    """In float64. Where the shortcut is cut from the graph, scores are the same and the gradient is not."""
    torch.manual_seed(3)
    clips = torch.rand(1, 3, 6, 24, 24, dtype=torch.float64)
    net = order_one(ResNet3D(18, "A", 3).double(), torch.rand(4, 3, 8, 32, 32, dtype=torch.float64))

    def gradient() -> tuple[Tensor, Tensor]:
        leaf = clips.clone().requires_grad_()
        scores = net(leaf)
        (found,) = torch.autograd.grad(scores[0, 1], leaf)
        return scores.detach(), found

    scores, found = gradient()
    step = 1e-6
    with torch.no_grad():
        for _ in range(4):
            way = torch.randn_like(clips)
            slope = (net(clips + step * way) - net(clips - step * way))[0, 1] / (2 * step)
            assert float((found * way).sum()) == pytest.approx(float(slope), rel=1e-5)
            assert abs(slope) > 1e-3
    whole = Subsample.forward
    monkeypatch.setattr(Subsample, "forward", lambda self, x: whole(self, x).detach())
    same, cut = gradient()
    assert torch.equal(same, scores)
    assert float((cut - found).norm() / found.norm()) > 0.9


WRAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "2018": lambda s: {
        "epoch": 137,
        "arch": "resnet-18",
        "state_dict": {f"module.{k}": v for k, v in s.items() if not k.endswith("num_batches_tracked")},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    },
    "2018 for the CPU": lambda s: {"epoch": 1, "arch": "resnet-34", "state_dict": s},
    "2020": lambda s: {"epoch": 200, "arch": "resnet-18", "state_dict": s, "optimizer": {}, "scheduler": {}},
}


@pytest.mark.parametrize(
    ("net", "kind"), [("A", "2018"), ("A", "2018 for the CPU"), ("B", "2020")], indirect=["net"]
)
@pytest.mark.usefixtures("known")
def test_files_as_published_load(kind: str, net: ResNet3D, tmp_path: Path):
    name, made = f"hara{kind[:4]}_resnet18", net.state_dict()
    file = tmp_path / "weights.pth"
    torch.save(WRAPPINGS[kind](made), file)
    model = zoo.load(name, file)
    pixels = torch.rand(1, 3, 8, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), net(MODELS[name].pack(pixels)))
    assert model.layer == "layer4"


@pytest.mark.usefixtures("known")
def test_a_shortcut_of_the_other_type_is_named(tmp_path: Path):
    """Names alone: the file is refused before shapes are looked at."""
    a = [
        "conv1.weight",
        "layer1.0.conv1.weight",
        "layer1.0.conv2.weight",
        "layer2.0.conv1.weight",
        "fc.weight",
    ]
    b = [*a, "layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight"]
    deep = [*b, "layer1.0.conv3.weight"]
    for stem, keys in (("a", a), ("b", b), ("deep", deep)):
        torch.save({f"module.{k}": torch.zeros(2, 1) for k in keys}, tmp_path / f"{stem}.pth")
    for depth in (18, 34):
        with pytest.raises(CheckpointError, match=rf"has layer2.* type B, .*hara2020_resnet{depth},"):
            zoo.load(f"hara2018_resnet{depth}", tmp_path / "b.pth")
        with pytest.raises(CheckpointError, match=rf"has no layer2.* type A, .*hara2018_resnet{depth},"):
            zoo.load(f"hara2020_resnet{depth}", tmp_path / "a.pth")
    # another depth is no question of shortcuts: what is missing is listed
    for name in ("hara2018_resnet18", "hara2020_resnet18"):
        with pytest.raises(CheckpointError, match=r"not weights of .* unexpected: .*layer1.0.conv3.weight"):
            zoo.load(name, tmp_path / "deep.pth")


@pytest.mark.usefixtures("known")
def test_random_weights_look_at_the_clip():
    """Activations of 16 blocks neither vanish nor grow, whichever the weights."""
    model = zoo.load("hara2020_resnet50", "random", seed=2)
    one, two = model(torch.cat([torch.rand(1, 3, 8, 48, 48), torch.zeros(1, 3, 8, 48, 48)]))
    assert 0.01 < one.std() < 10
    assert (one - two).std() > 0.01


def test_nothing_rewrites_what_a_layer_gave(net: ResNet3D):
    layer4 = kept_outputs(net, torch.rand(1, 3, 8, 48, 48))["layer4"]
    assert layer4.min() == 0
    assert layer4.max() > 0.5


@pytest.mark.parametrize("size", [(16, 64, 64), (33, 40, 70)])
def test_tubes_are_the_logit(size: tuple[int, int, int], net: ResNet3D):
    torch.manual_seed(4)
    clip = Clip.from_array(torch.rand(*size, 3).numpy())
    model = TorchModel(net, lambda x: x, layer="layer4", name="hara")
    logits, bias = model(clip.pixels[None])[0], net.fc.bias.detach()
    for k in (0, 3):
        why = tl.explain(model, clip, method="tubes", target=k)
        own = abs(float(logits[k] - bias[k]))
        assert own > 1e-2
        total = float(why.grid.double().sum()) + why.provenance.facts["constant"]
        assert abs(total - float(logits[k])) <= 1e-4 * own
        assert why.provenance.facts["constant"] == pytest.approx(float(bias[k]), abs=1e-4 * own)


@pytest.mark.parametrize(
    ("depth", "shortcut", "layer", "size"),
    [
        (18, "A", "layer4", (48, 96, 96)),
        (18, "A", "layer3", (40, 80, 70)),
        (50, "B", "layer3", (40, 80, 80)),
    ],
)
def test_cells_look_where_their_layout_says(
    depth: int, shortcut: Any, layer: str, size: tuple[int, int, int]
):
    torch.manual_seed(5)
    net: nn.Module = ResNet3D(depth, shortcut, 4)
    assert_registered(net, layer, size)
