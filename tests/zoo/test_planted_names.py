"""The networks of the planted tasks by name, and which of them a data set of planted clips gets by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tubelens as tl
from tests.cli.commands import done, tubelens
from tubelens import zoo
from tubelens.evaluate.lessons import BUNDLED, RECIPES, names
from tubelens.evaluate.planted_models import own_networks, planted_model
from tubelens.planted import generate
from tubelens.planted.generator import KINDS
from tubelens.store import RunStore
from tubelens.zoo import planted_names

SMALL = tuple(name for name in RECIPES if name != BUNDLED)


def test_every_file_of_weights_has_a_name() -> None:
    stems = {path.stem for path in Path(zoo.__file__).parent.glob("planted_*.safetensors")}
    assert stems == {recipe.name for recipe in planted_names.RECIPES} == {f"planted_{name}" for name in SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_a_name_is_the_network_of_its_task(name: str) -> None:
    model, settings = tl.load_model(f"planted_{name}"), RECIPES[name]
    assert (model.name, model.weights, model.layer) == (f"planted_{name}", "bundled", "blocks")
    assert settings.task is not None
    kind, recipe = KINDS[settings.task], zoo.MODELS[model.name]
    assert (model.labels, model.spec.bands) == (names(settings), kind.bands)
    assert (model.spec.size, recipe.classes) == ((kind.size, kind.size), len(names(settings)))
    assert recipe.parameters == sum(p.numel() for p in model.module.parameters())
    clip = generate(5, settings.task).clip()
    torch.testing.assert_close(
        model(clip.pixels[None]), planted_model(name)(clip.pixels[None]), rtol=0, atol=0
    )
    if name != "labels":
        seen = [generate(seed, settings.task).evidence_for(model.name) for seed in range(800_000, 800_020)]
        right = model(torch.stack([c.pixels for c in seen])).argmax(dim=1).tolist()
        assert sum(a == c.label for a, c in zip(right, seen, strict=True)) >= 19


def test_a_file_of_such_weights_tells_its_classes() -> None:
    path = Path(zoo.__file__).with_name("planted_xor.safetensors")
    assert tl.load_model("planted_xor", path).labels == ("alike", "unlike", "neither")
    with pytest.raises(tl.errors.CheckpointError):
        tl.load_model("planted_order", path)


def test_models_lists_them_as_here() -> None:
    lines = [line for line in done("models").out.splitlines() if line.startswith("  planted_")]
    assert len(lines) == len(SMALL)
    assert all(line.split()[-2:] == ["yes", "here"] for line in lines)
    told = done("models", "planted_xor").out
    assert "bundled (in this package)" in told
    assert "32x32 of 32, R G B IR" in told
    assert done("layers", "planted_xor").out.startswith("planted_xor on a clip of 16x32x32")


def test_planted_clips_get_the_networks_that_learned_them(tmp_path: Path) -> None:
    assert own_networks("planted:xor?n=3") == ("planted_xor",)
    assert own_networks("planted:transient") == ("planted_transient",)
    assert own_networks("planted:shortcut") == ("planted_honest", "planted_shortcut")
    assert own_networks("planted:key") == own_networks("clips.csv") == own_networks([]) == ("bundled",)
    quick = ("--workers", "0", "--threads", "1", "--metric", "ap")
    done("evaluate", "planted:infrared?n=1", *quick, "--out", tmp_path / "run")
    with RunStore.read(tmp_path / "run") as store:
        assert [row.facts["network"] for row in store.names("models")] == ["planted_infrared"]
    found = tl.evaluate("planted:xor?n=1", metric="ap", out=tmp_path / "own", workers=0)
    assert {line.model.split()[0] for line in found.table()} == {"planted_xor"}
    ran = tubelens("evaluate", "planted:spectra?n=1", *quick, "--out", tmp_path / "none")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "tubelens: planted:spectra: no network in the package learned it: name one (model)\n"
    assert not (tmp_path / "none").exists()


def test_loading_draws_nothing() -> None:
    """The network is built with random weights before its own are put in; nobody else may notice."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name in ("planted_xor", "bundled"):
        tl.load_model(name)
    assert torch.equal(torch.get_rng_state(), before)
