"""MFNet-3D: published sizes and names, a unit done slowly, files as published, where its cells look."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tubelens as tl
from tests.conftest import order_one
from tests.zoo.registered import assert_registered, kept_outputs, randomise_norms
from tubelens import zoo
from tubelens.clip import Clip
from tubelens.errors import CheckpointError
from tubelens.model import TorchModel
from tubelens.zoo.mfnet import RECIPES, MFNet3D, MultiFiberUnit

(RECIPE,) = RECIPES
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
STRIDES = {"conv2": (2, 1, 1), "conv3": (1, 2, 2), "conv4": (1, 2, 2), "conv5": (1, 2, 2)}


def published_keys() -> set[str]:
    """As the authors' files have them, written out."""
    keys = {"conv1.conv.weight", "classifier.weight", "classifier.bias"}
    keys |= {f"{norm}.bn.{name}" for norm in ("conv1", "tail") for name in BN}
    for stage, units in (("conv2", 3), ("conv3", 4), ("conv4", 6), ("conv5", 3)):
        for unit in range(1, units + 1):
            convs = ["conv_i1", "conv_i2", "conv_m1", "conv_m2", *(["conv_w1"] if unit == 1 else [])]
            for conv in convs:
                keys |= {
                    f"{stage}.B{unit:02d}.{conv}.{name}" for name in ("conv.weight", *(f"bn.{n}" for n in BN))
                }
    return keys


@pytest.fixture(scope="module")
def net() -> MFNet3D:
    """Five classes, activations of order one."""
    torch.manual_seed(0)
    made = MFNet3D(5)
    order_one(made, torch.rand(2, 3, 8, 64, 64))
    randomise_norms(made)
    return made


@pytest.mark.parametrize(("classes", "parameters"), [(400, 7_996_368), (101, 7_766_437), (51, 7_727_987)])
def test_parameters_and_names_are_the_published_ones(classes: int, parameters: int):
    with torch.device("meta"):
        made = RECIPE.build(classes)
    assert sum(p.numel() for p in made.parameters()) == parameters
    state = made.state_dict()
    assert set(state) == published_keys()
    assert len(state) == 421
    assert (RECIPE.parameters, RECIPE.classes) == (7_996_368, 400)
    assert state[RECIPE.head].shape == (classes, 768)
    # fibers: 16 groups, except where the first unit of a stage mixes them
    assert state["conv2.B01.conv_m1.conv.weight"].shape == (96, 1, 3, 3, 3)
    assert state["conv2.B01.conv_i1.conv.weight"].shape == (24, 16, 1, 1, 1)
    assert state["conv3.B01.conv_m2.conv.weight"].shape == (192, 192, 1, 1, 1)
    assert state["conv3.B04.conv_m2.conv.weight"].shape == (192, 12, 1, 3, 3)
    assert state["conv5.B01.conv_w1.conv.weight"].shape == (768, 384, 1, 1, 1)


@pytest.mark.parametrize(
    ("size", "cells"), [((16, 224, 224), (8, 7, 7)), ((32, 224, 256), (16, 7, 8)), ((9, 100, 90), (5, 4, 3))]
)
def test_layer_explained_by_default(size: tuple[int, int, int], cells: tuple[int, int, int]):
    with torch.device("meta"):
        made = RECIPE.build(3).eval()
        shapes = []
        made.get_submodule(RECIPE.layer).register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
        assert made(torch.zeros(1, 3, *size)).shape == (1, 3)
    assert shapes == [(1, 768, *cells)]


def conv(x: Tensor, state: dict[str, Tensor], name: str, stride: tuple[int, int, int], fibers: int) -> Tensor:
    """Batch norm by its formula, ReLU, then one convolution a fiber."""
    column = {key: state[f"{name}.bn.{key}"].view(-1, 1, 1, 1) for key in BN[:4]}
    x = (x - column["running_mean"]) / (column["running_var"] + 1e-5).sqrt() * column["weight"]
    x = (x + column["bias"]).clamp_min(0)
    weight = state[f"{name}.conv.weight"]
    padding = tuple(k // 2 for k in weight.shape[2:])
    parts = zip(x.chunk(fibers, dim=1), weight.chunk(fibers, dim=0), strict=True)
    return torch.cat([F.conv3d(part, w, None, stride, padding) for part, w in parts], dim=1)


def unit(x: Tensor, state: dict[str, Tensor], stride: tuple[int, int, int], first: bool) -> Tensor:
    one = (1, 1, 1)
    mixed = conv(conv(x, state, "conv_i1", one, 1), state, "conv_i2", one, 1) + x
    y = conv(mixed, state, "conv_m1", stride, 16)
    y = conv(y, state, "conv_m2", one, 1 if first else 16)
    return y + (conv(x, state, "conv_w1", stride, 1) if first else x)


@pytest.mark.parametrize(("stride", "first"), [((2, 1, 1), True), ((1, 2, 2), True), ((1, 1, 1), False)])
def test_a_unit_is_the_papers(stride: tuple[int, int, int], first: bool):
    torch.manual_seed(2)
    into, out = (32, 64) if first else (64, 64)
    made = MultiFiberUnit(into, out, stride, first)
    x = torch.randn(2, into, 5, 9, 8)
    order_one(made, x)
    randomise_norms(made)
    with torch.no_grad():
        expected = unit(x, made.state_dict(), stride, first)
        torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.5


def test_the_network_is_its_units_in_order(net: MFNet3D):
    """From the stem to the logits by plain formulas, at a length and size that the authors' code refuses."""
    state = net.state_dict()
    x = torch.rand(1, 3, 6, 40, 72)

    def norm(x: Tensor, name: str) -> Tensor:
        values = [state[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *values))

    with torch.no_grad():
        y = norm(F.conv3d(x, state["conv1.conv.weight"], None, (1, 2, 2), (1, 2, 2)), "conv1")
        y = F.max_pool3d(y, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        for stage, units in (("conv2", 3), ("conv3", 4), ("conv4", 6), ("conv5", 3)):
            for i in range(1, units + 1):
                prefix = f"{stage}.B{i:02d}."
                own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                y = unit(y, own, STRIDES[stage] if i == 1 else (1, 1, 1), i == 1)
        pooled = norm(y, "tail").flatten(2).mean(dim=2)
        expected = pooled @ state["classifier.weight"].T + state["classifier.bias"]
        found = net(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected - state["classifier.bias"]).abs().max() > 0.3


def test_pixels_are_prepared_as_the_authors_do():
    pixels = torch.rand(1, 3, 2, 4, 4)
    expected = (pixels * 255 - torch.tensor([124.0, 117.0, 104.0]).view(3, 1, 1, 1)) * 0.0167
    torch.testing.assert_close(RECIPE.pack(pixels), expected)
    assert (RECIPE.spec.frames, RECIPE.spec.size, RECIPE.spec.resize) == (16, (224, 224), (256, 256))
    assert (RECIPE.spec.stride, RECIPE.spec.antialias) == (2, False)


@pytest.mark.parametrize("kind", ["published", "published without step counters", "plain"])
def test_files_as_published_load(kind: str, net: MFNet3D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(zoo.MODELS, RECIPE.name, RECIPE)
    state = dict(net.state_dict())
    if "without" in kind:
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    wrapped = {
        "epoch": 80,
        "state_dict": {f"module.{k}": v for k, v in state.items()},
        "optimizer": {"lr": 0.1},
    }
    file = tmp_path / "MFNet3D_Kinetics-400_72.8.pth"
    torch.save(state if kind == "plain" else wrapped, file)
    model = zoo.load("mfnet3d", file)
    pixels = torch.rand(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), net(RECIPE.pack(pixels)))
    assert model.layer == "tail"


def test_a_file_that_lacks_a_unit_is_refused(net: MFNet3D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(zoo.MODELS, RECIPE.name, RECIPE)
    file = tmp_path / "w.pth"
    torch.save({k: v for k, v in net.state_dict().items() if not k.startswith("conv4.B06.")}, file)
    with pytest.raises(CheckpointError, match=r"20 missing: conv4.B06.conv_i1.bn.weight"):
        zoo.load("mfnet3d", file)


def test_nothing_rewrites_what_a_layer_gave(net: MFNet3D):
    """Outputs kept by hooks are, after the forward, what they were when they were given."""
    tail = kept_outputs(net, torch.rand(1, 3, 4, 32, 32), once=True)["tail"]
    assert tail.min() == 0
    assert tail.max() > 0.5


@pytest.mark.parametrize("size", [(8, 64, 64), (11, 96, 70)])
def test_tubes_are_the_logit(size: tuple[int, int, int], net: MFNet3D):
    torch.manual_seed(4)
    clip = Clip.from_array(torch.rand(*size, 3).numpy())
    model = TorchModel(net, RECIPE.pack, spec=RECIPE.spec, layer=RECIPE.layer, name="mfnet3d")
    logits, bias = model(clip.pixels[None])[0], net.classifier.bias.detach()
    for k in (0, 3):
        why = tl.explain(model, clip, method="tubes", target=k)
        own = abs(float(logits[k] - bias[k]))
        assert own > 1e-2
        total = float(why.grid.double().sum()) + why.provenance.facts["constant"]
        assert abs(total - float(logits[k])) <= 1e-4 * own
        assert why.provenance.facts["constant"] == pytest.approx(float(bias[k]), abs=1e-4 * own)


@pytest.mark.parametrize(("layer", "size"), [("tail", (22, 160, 160)), ("conv3", (14, 96, 80))])
def test_cells_look_where_their_layout_says(layer: str, size: tuple[int, int, int]):
    torch.manual_seed(5)
    assert_registered(MFNet3D(4), layer, size)
