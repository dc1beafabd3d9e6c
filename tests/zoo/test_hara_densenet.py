"""3D-DenseNet-121: against the network written out as formulas, names of both generations, tubes, places."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tubelens as tl
from tests.zoo.registered import clip_of, loaded, misplaced, varied
from tubelens.capture import capturing
from tubelens.errors import CheckpointError, InputError
from tubelens.model import TorchModel
from tubelens.zoo.hara_densenet import RECIPES, DenseNet121

OLD, NEW = RECIPES
LAYERS = {1: 6, 2: 12, 3: 24, 4: 16}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def names(year: int) -> list[str]:
    """Every name of the published checkpoints, written out."""
    stem, dot = ("0", ".") if year == 2018 else ("1", "")
    keys = [f"features.conv{stem}.weight", *(f"features.norm{stem}.{p}" for p in NORM)]
    for block, count in LAYERS.items():
        for i in range(1, count + 1):
            for j in "12":
                layer = f"features.denseblock{block}.denselayer{i}"
                keys += [f"{layer}.norm{dot}{j}.{p}" for p in NORM] + [f"{layer}.conv{dot}{j}.weight"]
        if block < 4:
            keys += [f"features.transition{block}.norm.{p}" for p in NORM]
            keys += [f"features.transition{block}.conv.weight"]
    return [*keys, *(f"features.norm5.{p}" for p in NORM), "classifier.weight", "classifier.bias"]


def reference(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """What the classifier's mean reads, and the logits, from parameters by name."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{p}"].view(-1, 1, 1, 1) for p in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    x = F.conv3d(x, state["features.conv1.weight"], stride=(1, 2, 2), padding=3)
    x = F.max_pool3d(norm(x, "features.norm1"), 3, 2, 1)
    for block, count in LAYERS.items():
        for i in range(1, count + 1):
            at = f"features.denseblock{block}.denselayer{i}"
            y = torch.einsum(
                "bcthw,nc->bnthw", norm(x, f"{at}.norm1"), state[f"{at}.conv1.weight"].flatten(1)
            )
            y = F.conv3d(norm(y, f"{at}.norm2"), state[f"{at}.conv2.weight"], padding=1)
            x = torch.cat([x, y], 1)
        if block < 4:
            at = f"features.transition{block}"
            y = F.conv3d(norm(x, f"{at}.norm"), state[f"{at}.conv.weight"])
            t, h, w = (n // 2 * 2 for n in y.shape[2:])
            y = y[:, :, :t, :h, :w]
            x = sum(y[:, :, i::2, j::2, k::2] for i in (0, 1) for j in (0, 1) for k in (0, 1)) / 8
    x = norm(x, "features.norm5")
    return x, x.mean((2, 3, 4)) @ state["classifier.weight"].T + state["classifier.bias"]


@pytest.fixture(scope="module")
def base() -> Tensor:
    return torch.rand((1, 3, 48, 96, 96), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model(base: Tensor) -> TorchModel:
    net = varied(DenseNet121(5), base[:, :, :32, :80, :80])
    return TorchModel(net, pack=lambda x: x, layer=NEW.layer)


@pytest.mark.parametrize(("recipe", "parameters"), [(OLD, 11_696_528), (NEW, 12_004_028)])
def test_parameters_and_names(recipe: tl.zoo.Recipe, parameters: int):
    with torch.device("meta"):
        net = recipe.build(recipe.classes)
    assert recipe.parameters == parameters == sum(p.numel() for p in net.parameters())
    assert len(names(2020)) == 727
    assert set(net.state_dict()) == set(names(2020))
    assert net.state_dict()[recipe.head].shape == (recipe.classes, 1024)


def test_it_is_the_network_of_the_paper(model: TorchModel):
    net = copy.deepcopy(model.module).double()
    clips = torch.rand((1, 3, 17, 36, 60), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    before, logits = reference(net.state_dict(), clips)
    with capturing(replace(model, module=net), clips) as capture:
        assert capture.layer == "features"
        torch.testing.assert_close(capture.activations, before, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(capture.scores, logits, rtol=1e-9, atol=1e-9)
    assert before.min() == 0
    assert before.std() > 0.1
    assert logits.std() > 0.1


@pytest.mark.parametrize("recipe", RECIPES, ids=["2018", "2020"])
def test_checkpoints_of_2018_load_and_are_fed_as_then(
    recipe: tl.zoo.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in DenseNet121(7).state_dict().items()}
    old = {
        new_name: (old_name, torch.full((1,), i / 1000).expand(shapes[new_name]))
        for i, (old_name, new_name) in enumerate(zip(names(2018), names(2020), strict=True))
        if not new_name.endswith("num_batches_tracked")
    }
    state = {f"module.{name}": value for name, value in old.values()}
    torch.save({"epoch": 200, "arch": "densenet-121", "state_dict": state}, tmp_path / "old.pth")
    model = loaded(recipe, tmp_path / "old.pth", monkeypatch)
    ours = model.module.state_dict()
    for new_name, (_, value) in old.items():
        assert torch.equal(ours[new_name], value), new_name
    torch.testing.assert_close(
        model.pack(torch.ones(1, 3, 1, 1, 1)).flatten(),
        torch.tensor([255 - 114.7748, 255 - 107.7354, 255 - 99.4750]),
    )


def test_new_checkpoints_load_and_each_recipe_has_its_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    state = DenseNet121(3).state_dict()
    torch.save({"state_dict": state}, tmp_path / "new.pth")
    model = loaded(NEW, tmp_path / "new.pth", monkeypatch)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, state[name]), name
    expected = [(1 - m) / s for m, s in ((0.4345, 0.2768), (0.4051, 0.2713), (0.3775, 0.2737))]
    torch.testing.assert_close(model.pack(torch.ones(1, 3, 1, 1, 1)).flatten(), torch.tensor(expected))
    assert float(loaded(OLD, tmp_path / "new.pth", monkeypatch).pack(torch.ones(1, 3, 1, 1, 1)).max()) > 100
    assert (model.spec.frames, model.spec.size, model.spec.resize) == (16, (112, 112), 112)
    state["features.conv5.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected: features\.conv5\.weight"):
        loaded(NEW, tmp_path / "other.pth", monkeypatch)


def test_tubes_are_the_classifier_at_every_cell(model: TorchModel, base: Tensor):
    clips, state = base[:, :, :33, :80], model.module.state_dict()
    why = tl.explain(model, clip_of(clips[0]), method="tubes", target=3)
    before, logits = reference(state, clips)
    assert why.grid.shape == (2, 2, 3)
    assert why.parts[0].t == pytest.approx((7, 23))
    assert why.parts[0].x == pytest.approx((14, 46, 78))
    expected = torch.einsum("cthw,c->thw", before[0], state["classifier.weight"][3]) / why.grid.numel()
    torch.testing.assert_close(why.grid, expected, rtol=1e-4, atol=1e-5)
    constant, bias, logit = why.provenance.facts["constant"], state["classifier.bias"][3], logits[0, 3]
    assert abs(constant - bias) <= 1e-4 * abs(logit - bias)
    assert abs(why.grid.sum() + constant - logit) <= 1e-4 * abs(logit - bias)


def test_cells_look_where_the_layout_says(model: TorchModel, base: Tensor):
    off = misplaced(model, base, "features")
    assert max(off.values()) <= 0.25, off


def test_the_smallest_clip_and_one_below(model: TorchModel):
    assert model(torch.rand(1, 3, 15, 29, 29)).shape == (1, 5)
    for size in ((14, 29, 29), (15, 28, 29), (15, 29, 28)):
        with pytest.raises(InputError, match=r"at least 15 frames of 29x29, got \d+ of") as caught:
            model(torch.rand(1, 3, *size))
        assert "\n" not in str(caught.value)
