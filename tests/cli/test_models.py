"""`tubelens models`: the table, one of them, and what of it is on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.commands import done, tubelens
from tubelens import zoo
from tubelens.cli import models
from tubelens.zoo import extras
from tubelens.zoo.recipe import EXACT


def test_a_machine_without_any_extra_lists_all(monkeypatch: pytest.MonkeyPatch) -> None:
    own = extras.importlib.import_module

    def absent(package: str) -> object:
        if package.split(".")[0] in models.PACKAGES.values():
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return own(package)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    monkeypatch.setattr(models, "installed", lambda package: False)
    for argument in ((), ("slowfast_r50",), ("--json",)):
        assert "slowfast_r50" in done("models", *argument).out


def test_the_table_names_all_within_100_columns() -> None:
    said = done("models").out
    lines = said.splitlines()
    assert max(map(len, lines)) <= 100
    for name, recipe in zoo.MODELS.items():
        (line,) = [x for x in lines if re.match(rf"  {re.escape(name)} ", x)]
        assert f" {recipe.parameters / 1e6:.2f}M " in line
        above = [x for x in lines[: lines.index(line)] if x and not x.startswith(" ")]
        assert above[-1].rstrip("…").rstrip() in recipe.source  # the paper that heads the family
    (bundled,) = [x for x in lines if x.startswith("  bundled ")]
    assert re.search(r"16x64x64 +0\.14M +blocks +yes +here", bundled)
    for word in ("net.keras", "net.onnx", "hf:OWNER/NAME", "path.py:factory"):
        assert word in said


def test_json_tells_all_that_a_recipe_says() -> None:
    entries = done("models", "--json").json
    assert [entry["name"] for entry in entries] == list(zoo.MODELS)
    (r3d,) = [entry for entry in entries if entry["name"] == "r3d_18"]
    assert (r3d["frames"], r3d["size"], r3d["classes"], r3d["layer"]) == (16, [112, 112], 400, "layer4")
    assert r3d["weights"] == ["KINETICS400_V1"]
    assert (r3d["tubes"], r3d["extra"], r3d["installed"]) == ("exact", None, True)
    for entry in entries:
        recipe = zoo.MODELS[entry["name"]]
        assert entry["licence"] == recipe.licence
        assert (entry["tubes"] == "exact") == (recipe.tubes == EXACT)
        assert entry["source"] == recipe.source


def test_a_part_of_a_name_filters_and_a_whole_one_tells_all() -> None:
    said = done("models", "r3d").out
    assert [e["name"] for e in done("models", "R3D", "--json").json] == [n for n in zoo.MODELS if "r3d" in n]
    assert "mc3_18" not in said
    said = done("models", "mc3_18").out
    for text in (
        "Tran et al.",
        "16 frames, 112x112",
        "11,695,440 for 400 classes",
        "KINETICS400_V1",
        "layer4",
    ):
        assert text in said
    ran = tubelens("models", "r3d_19")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "tubelens: no model whose name contains 'r3d_19' (did you mean" + ran.err.partition("did you mean")[2]
    )
    assert "'r3d_18'" in ran.err


def test_weights_in_the_cache_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (entry,) = done("models", "mc3_18", "--json").json
    assert entry["cached"] == {"KINETICS400_V1": None}
    assert "KINETICS400_V1 (not here)" in done("models", "mc3_18").out
    file = tmp_path / "hub" / "checkpoints" / "mc3_18-a90a0ba3.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    (entry,) = done("models", "mc3_18", "--json").json
    assert entry["cached"] == {"KINETICS400_V1": str(file)}
    assert f"KINETICS400_V1 ({file})" in done("models", "mc3_18").out


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def missing(package: str) -> bool:
        asked.append(package)
        return False

    monkeypatch.setattr(models, "installed", missing)
    said = done("models").out
    assert "extra keras: pip install 'tubelens[keras]'" in said
    assert {"keras", "onnxruntime", "transformers"} <= set(asked)
    for name, recipe in zoo.MODELS.items():
        (line,) = [x for x in said.splitlines() if x.startswith(f"  {name} ")]
        assert (f" no {recipe.extra}" in line) == (recipe.extra is not None)
    assert max(map(len, said.splitlines())) <= 100
