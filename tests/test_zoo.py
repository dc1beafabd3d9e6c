"""Loading: names, weights in every published wrapping, and one clear line for each fault."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model, get_model_weights

from tubelens import zoo
from tubelens.errors import CheckpointError, InputError, OptionError
from tubelens.loading import load_model
from tubelens.zoo import torchvision_video

NAMES = [recipe.name for recipe in torchvision_video.RECIPES]


@pytest.fixture(scope="session")
def state() -> dict[str, torch.Tensor]:
    """Of an r3d_18 with five classes."""
    torch.manual_seed(1)
    return get_model("r3d_18", weights=None, num_classes=5).state_dict()


WRAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 0.1}},
    "model_state": lambda s: {"model_state": s, "epoch": 1},
    "module": lambda s: {f"module.{k}": v for k, v in s.items()},
    "state_dict of module": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "no step counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_loads_and_the_head_tells_the_classes(
    wrapping: str, state: dict[str, torch.Tensor], tmp_path: Path
):
    file = tmp_path / "weights.pth"
    torch.save(WRAPPINGS[wrapping](state), file)
    model = load_model("r3d_18", file)
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(model.module.state_dict()[key], value), key
    assert model(torch.rand(1, 3, 8, 64, 64)).shape == (1, 5)
    assert model.weights == str(file)
    assert model.labels is None


def test_safetensors_load(state: dict[str, torch.Tensor], tmp_path: Path):
    save_file(state, tmp_path / "w.safetensors")
    model = load_model("r3d_18", tmp_path / "w.safetensors", labels=list("abcde"))
    assert torch.equal(model.module.state_dict()["fc.weight"], state["fc.weight"])
    assert model.labels == list("abcde")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def faulty(kind: str, state: dict[str, torch.Tensor], file: Path) -> None:
    s = dict(state)
    match kind:
        case "another architecture":
            torch.save(get_model("mc3_18", weights=None, num_classes=5).state_dict(), file)
        case "missing":
            del s["layer1.0.conv1.0.weight"], s["fc.bias"]
            torch.save(s, file)
        case "unexpected":
            torch.save(s | {"extra.weight": torch.zeros(1)}, file)
        case "pickled code":
            torch.save({"state_dict": s, "x": Evil()}, file)
        case "not weights":
            file.write_text("hello")
        case "empty":
            file.write_bytes(b"")
        case "no state dict":
            torch.save({"epoch": 3}, file)
        case "truncated":
            torch.save(s, file)
            file.write_bytes(file.read_bytes()[:100_000])
        case "no head":
            torch.save({"conv.weight": torch.zeros(1)}, file)


FAULTS = {
    "another architecture": r"not weights of r3d_18: .*another shape: layer2.0.conv1.0.weight \(128, 64, 1",
    "missing": r"2 missing: layer1.0.conv1.0.weight, fc.bias",
    "unexpected": r"1 unexpected: extra.weight",
    "pickled code": r"would run code",
    "not weights": r"weights.pth: ",
    "empty": r"the weights file is empty",
    "no state dict": r"holds no state dict",
    "truncated": r"cannot be read as weights",
    "no head": r"no 'fc.weight' among them",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faulty_files_get_one_line(
    kind: str, state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    faulty(kind, state, file)
    with pytest.raises(CheckpointError, match=FAULTS[kind]) as caught:
        load_model("r3d_18", file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_missing_file_unknown_names_and_no_weights(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"nowhere.pth: no such weights file"):
        load_model("r3d_18", tmp_path / "nowhere.pth")
    with pytest.raises(OptionError, match=r"unknown model 'r3d_17' .did you mean 'r3d_18'"):
        load_model("r3d_17", "random")
    with pytest.raises(OptionError, match=r"KINETICS400_V1, a weights file, or 'random'"):
        load_model("r3d_18")
    with pytest.raises(CheckpointError, match=r"no weights 'KINETICS400' .did you mean 'KINETICS400_V1'"):
        load_model("r3d_18", "KINETICS400")
    with pytest.raises(OptionError, match=r"device 'cuda:77' cannot be used"):
        load_model("bundled", device="cuda:77")


def test_offline_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(
        CheckpointError, match=r"cannot be downloaded .*put it at .*r3d_18-b3b3357e.pth"
    ) as caught:
        load_model("r3d_18", "KINETICS400_V1")
    assert "\n" not in str(caught.value)


def test_official_file_in_the_cache_is_used_with_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file of the official name, made here: no network, no unpickling, Kinetics labels."""
    torch.manual_seed(4)
    twin = get_model("mc3_18", weights=None)
    weights = get_model_weights("mc3_18")["KINETICS400_V1"]
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    file = folder / Path(weights.url).name
    torch.save(twin.state_dict(), file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model = load_model("mc3_18", "KINETICS400_V1")
    assert torch.equal(model.module.state_dict()["fc.weight"], twin.fc.weight)
    assert model.labels is not None
    assert "surfing water" in model.labels
    # the same file by path: its hash is not the official one, so its labels are not claimed
    assert load_model("mc3_18", file).labels is None


@pytest.mark.parametrize("name", NAMES)
def test_recipes_agree_with_torchvision(name: str):
    recipe, weights = zoo.MODELS[name], get_model_weights(name)["KINETICS400_V1"]
    preset = weights.transforms()
    assert list(recipe.spec.size) == preset.crop_size
    assert list(recipe.spec.resize) == preset.resize_size  # type: ignore[arg-type]
    assert recipe.parameters == weights.meta["num_params"]
    assert recipe.spec.views == (int(re.findall(r"clips_per_video=(\d+)", weights.meta["_docs"])[0]), 1)
    assert recipe.parameters == sum(p.numel() for p in recipe.build(400).parameters())
    assert set(recipe.official) | {"DEFAULT"} == set(get_model_weights(name).__members__)
    video = torch.rand(1, 3, 2, *recipe.spec.size)
    expected = (video - torch.tensor(preset.mean).view(-1, 1, 1, 1)) / torch.tensor(preset.std).view(
        -1, 1, 1, 1
    )
    torch.testing.assert_close(recipe.pack(video), expected)


def test_random_weights_follow_the_seed_and_spare_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = load_model("mc3_18", "random", seed=1), load_model("mc3_18", "random", seed=1)
    other = load_model("mc3_18", "random", seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.module.fc.weight, two.module.fc.weight)
    assert not torch.equal(one.module.fc.weight, other.module.fc.weight)
    assert one.weights == "random (seed 1)"


def test_wrong_number_of_bands_is_one_line():
    with pytest.raises(InputError, match="takes 3 bands, the clip has 1"):
        load_model("bundled")(torch.rand(1, 1, 16, 64, 64))
