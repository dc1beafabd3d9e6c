"""Checkpoints of `transformers`: older files, other weights, faults, and the cache of the hub."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.zoo.tiny_transformers import (
    NAMES,
    clips,
    config,
    copied,
    folder,
    lively,
    network,
    tf,
)
from tubelens import zoo
from tubelens.errors import CheckpointError, OptionError
from tubelens.loading import load_model
from tubelens.model import TorchModel
from tubelens.zoo import transformers_networks, transformers_video
from tubelens.zoo.transformers_video import RECIPES

OLD = {  # names before version 5, by names now
    "videomae": {
        "attention.attention.query.bias": "attention.attention.q_bias",
        "attention.attention.value.bias": "attention.attention.v_bias",
    },
    "vivit": {
        "vivit.layers.": "vivit.encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
}


@pytest.mark.parametrize("kind", ["safetensors", "bin", "float16"])
@pytest.mark.parametrize("name", OLD)
def test_checkpoints_of_older_versions_load(name: str, kind: str, tmp_path: Path):
    copied(folder(name), tmp_path, "model.safetensors")
    weights = {}
    for key, value in load_file(folder(name) / "model.safetensors").items():
        for now, then in OLD[name].items():
            key = key.replace(now, then)
        weights[key] = value.half() if kind == "float16" else value
    assert weights.keys() != network(name).state_dict().keys()
    if kind == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model = load_model(tmp_path)
    assert isinstance(model, TorchModel)
    with torch.no_grad():
        expected = network(name)(model.pack(clips(name))).logits
    near = 0.02 if kind == "float16" else 1e-6
    torch.testing.assert_close(model(clips(name)), expected, rtol=near, atol=near)
    assert next(model.module.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_files_of_older_versions_get_the_names_of_now(name: str):
    state = network(name).state_dict()
    older = {}
    for key, value in state.items():
        for now, then in OLD.get(name, {}).items():
            key = key.replace(now, then)
        older[key] = value
    older |= {"vivit.pooler.dense.weight": torch.zeros(2)} if name == "vivit" else {}
    recipe = zoo.MODELS[name]
    (style,) = recipe.styles
    expected = {key: value for key, value in state.items() if "predictor" not in key}
    assert style.fits(older) == (name != "timesformer")
    assert not style.fits(expected)
    for found in (style.convert(older), style.convert(dict(expected))):
        assert found.keys() == expected.keys()
        assert all(found[key] is value for key, value in expected.items())


def test_weights_of_a_file_and_random_ones(tmp_path: Path):
    other = lively(tf.VivitForVideoClassification(config("vivit")), seed=7)
    save_file(dict(other.state_dict()), tmp_path / "other.safetensors")
    model = load_model(folder("vivit"), tmp_path / "other.safetensors")
    assert isinstance(model, TorchModel)
    with torch.no_grad():
        expected = other(model.pack(clips("vivit"))).logits
    torch.testing.assert_close(model(clips("vivit")), expected)
    assert "other.safetensors" in model.weights
    before = torch.get_rng_state()
    first, again, third = (load_model(folder("vivit"), "random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first(clips("vivit")), again(clips("vivit")))
    assert not torch.equal(first(clips("vivit")), third(clips("vivit")))
    assert (first.weights, first.verified) == (f"{folder('vivit')}, random (seed 1)", "random")


class Evil:
    def __reduce__(self) -> Any:
        return print, ("ran",)


def fault(kind: str, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    says = json.loads((folder / "config.json").read_text())
    match kind:
        case "no classifier":
            weights = {key: value for key, value in weights.items() if not key.startswith("classifier")}
        case "another width":
            says["intermediate_size"] = 80
        case "another kind":
            says["model_type"] = "bert"
        case "no kind":
            del says["model_type"]
        case "frames apart":
            says |= {"model_type": "timesformer", "image_size": 32, "attention_type": "space_only"}
        case "channels":
            says["num_channels"] = 4
        case "no weights":
            (folder / "model.safetensors").unlink()
            return
        case "pickled code":
            (folder / "model.safetensors").unlink()
            torch.save({**weights, "x": Evil()}, folder / "pytorch_model.bin")
            return
        case "cut off":
            data = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
            return
    (folder / "config.json").write_text("{" if kind == "not json" else json.dumps(says))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no classifier", "2 missing: classifier.bias, classifier.weight"),
        ("another width", r"of another shape: vivit.layers.0.mlp.fc1.bias \(64,\) instead of \(80,\)"),
        ("another kind", "is a bert, not one of .* videomae, timesformer, vivit, vjepa2"),
        ("no kind", "is a None, not one of"),
        ("frames apart", "space_only"),
        ("channels", "4 channels|another shape"),
        ("no weights", "the weights cannot be loaded: .*no file named"),
        ("pickled code", "the weights cannot be loaded"),
        ("cut off", "the weights cannot be loaded"),
        ("not json", "cannot be had"),
    ],
)
def test_a_faulty_checkpoint_is_one_clear_line(
    kind: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fault(kind, copied(folder("vivit"), tmp_path))
    with pytest.raises(CheckpointError, match=said) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")  # neither bars, nor reports, nor what a pickle prints


def test_tensors_that_are_not_used_are_said(tmp_path: Path):
    weights = load_file(folder("vivit") / "model.safetensors") | {"vivit.pooler.dense.bias": torch.zeros(3)}
    copied(folder("vivit"), tmp_path)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_model(tmp_path).weights == f"{tmp_path}; 1 tensors not used: vivit.pooler.dense.bias"


@pytest.mark.parametrize("name", ["hf:nobody", "hf:a/b/c", "hf:no where/x"])
def test_a_name_that_is_none(name: str):
    with pytest.raises(CheckpointError, match=r"neither a folder with config.json nor hf:OWNER/NAME"):
        load_model(name)


def test_what_names_a_checkpoint_and_what_a_file():
    is_checkpoint = transformers_video.is_checkpoint
    for name in (folder("vivit"), "hf:acme/tiny", "acme/tiny-1.5"):
        assert is_checkpoint(name), name
    for name in (folder("vivit") / "model.safetensors", "random", "w.bin", "./a/b", "/a/b.bin"):
        assert not is_checkpoint(name), name
    for suffix in ("pth", "pt", "bin", "safetensors", "pth.tar", "ckpt", "pkl", "PTH"):
        assert not is_checkpoint(f"acme/mistyped.{suffix}"), suffix
        assert is_checkpoint(f"hf:acme/tiny.{suffix}"), suffix  # said to be one


def test_a_mistyped_file_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpts").mkdir()

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(tf.PreTrainedConfig, "get_config_dict", asked)
    for name in ("ckpts/mistyped.pth", "nowhere/mistyped.safetensors", "ckpts/mistyped"):
        with pytest.raises(CheckpointError, match=f"^{name}: no such weights file$"):
            load_model("videomae", name)


class Odd(dict[str, Any]):
    """Weights that only unpickling can read."""


@pytest.mark.parametrize("way", ["folder", "file", "recipe"])
def test_pickled_weights_are_read_where_they_are_trusted(way: str, tmp_path: Path):
    copied(folder("vivit"), tmp_path, "model.safetensors")
    file = tmp_path / "pytorch_model.bin"
    torch.save(Odd(load_file(folder("vivit") / "model.safetensors")), file)
    name, weights = {
        "folder": (tmp_path, None),
        "file": (folder("vivit"), file),
        "recipe": ("vivit", tmp_path),
    }[way]
    with pytest.raises(CheckpointError, match=r"would run code .*--trust \(trust=True\)") as caught:
        load_model(name, weights)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    model = load_model(name, weights, trust=True)
    torch.testing.assert_close(model(clips("vivit")), load_model(folder("vivit"))(clips("vivit")))


def test_another_family_than_asked_for():
    with pytest.raises(CheckpointError, match=r"is a vivit, not a vjepa2"):
        transformers_video.load(folder("vivit"), family="vjepa2")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache in a folder of its own, and no way to the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_name_of_the_hub_is_found_in_the_local_cache(offline: Path):
    held = offline / "models--acme--tiny"
    snapshot = held / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text("0" * 40)
    copied(folder("timesformer"), snapshot)
    model = load_model("hf:acme/tiny")
    assert isinstance(model, TorchModel)
    with torch.no_grad():
        expected = network("timesformer")(model.pack(clips("timesformer"))).logits
    torch.testing.assert_close(model(clips("timesformer")), expected)
    assert model.weights == "hf:acme/tiny"
    with pytest.raises(CheckpointError, match=r"hf:acme/other: cannot be had"):
        load_model("hf:acme/other")


def test_without_the_extra_one_line_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    calls: list[Callable[[], Any]] = [lambda: load_model(folder("vivit")), lambda: RECIPES[0].build(3)]
    for call in calls:
        with pytest.raises(OptionError, match=r"needs the extra 'hf' .*pip install 'tubelens\[hf\]'"):
            call()


def test_recipes_are_there_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it now fails
    for module in (transformers_networks, transformers_video):
        spec = importlib.util.spec_from_file_location("fresh", str(module.__file__))
        assert spec is not None
        assert spec.loader is not None
        fresh = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "fresh", fresh)
        spec.loader.exec_module(fresh)
    assert [recipe.name for recipe in fresh.RECIPES] == list(NAMES)


def test_settings_of_the_package_are_as_before():
    log = tf.utils.logging
    verbosity = log.get_verbosity()
    log.set_verbosity_info()
    try:
        load_model(folder("vivit"))
        assert (log.get_verbosity(), log.is_progress_bar_enabled()) == (log.INFO, True)
    finally:
        log.set_verbosity(verbosity)
