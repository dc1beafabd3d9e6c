"""The whole experiment in a few updates, on every data set."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.multispectral.conftest import Module
from tests.multispectral.layouts import dataset, recordings


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The experiment runs on one thread; what was set comes back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_planted_from_nothing_and_again(
    module: Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = module("run")
    assert run.main(["planted", "--quick", "--jobs", "1", "--out", str(tmp_path)]) == 0
    first, focus = ((tmp_path / name).read_text() for name in ("table.md", "focus.csv"))
    heads = [line for line in first.splitlines() if line.startswith("| |")]
    columns = [f"{n}, {t}" for n in ("3d-resnet", "pan") for t in ("visible", "infrared", "both")]
    assert heads == ["| | " + " | ".join(columns) + " |"] * 2
    rows = [
        line.split(" | ") for line in first.splitlines() if re.match(r"\| (Grad-CAM|RISE|SIDU|tubes)", line)
    ]
    assert [row[0] for row in rows] == ["| Grad-CAM", "| RISE", "| SIDU", "| tubes"] * 2
    assert all(re.match(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", cell) for row in rows for cell in row[1:])
    lines = list(csv.DictReader(focus.splitlines()))
    assert Counter(line["metric"] for line in lines) == dict.fromkeys(
        ("insertion", "deletion", "sparseness", "energy", "ap", "pointing"), 2 * 2 * 5 * 2
    )
    for name in ("summary.md", "contests.csv", "curves-insertion.png", "curves-deletion.png"):
        assert (tmp_path / name).stat().st_size > 100, name
    assert len(list(tmp_path.glob("maps-*.png"))) == 6
    assert (tmp_path / "report" / "report.html").is_file()
    weights = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "weights").iterdir()}
    assert len(weights) == 6
    make = partial(module("data_planted").plan, 0, True)
    networks = run.trained(make, make(), tmp_path, seed=0, jobs=1)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "weights").iterdir()} == weights
    capsys.readouterr()
    run.explained(make(), networks, tmp_path, seed=0)
    assert capsys.readouterr().err.count(" 0 scores") == 2  # all were there


def test_far_infrared_from_nothing(module: Module, tmp_path: Path) -> None:
    run = module("run")
    folder, out = recordings(tmp_path / "data"), tmp_path / "out"
    assert run.main(["fir", str(folder), "--quick", "--jobs", "1", "--out", str(out)]) == 0
    said = (out / "summary.md").read_text()
    assert "no person and no recording is on both" in said
    assert "Not asked: these recordings are of one spectrum." in said
    assert "| 3d-resnet | infrared | infrared | 24 |" in said
    heads = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("| |")]
    assert heads == ["| | 3d-resnet, infrared | pan, infrared |"] * 2


def test_a_folder_that_is_not_there(
    module: Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert module("run").main(["fir", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert re.fullmatch(r".*: .*none: no such folder\n", capsys.readouterr().err)


def test_ones_own_copy_by_one_command(module: Module, tmp_path: Path) -> None:
    run = module("run")
    folder, out = dataset(tmp_path / "data", lists=True), tmp_path / "out"
    assert run.main(["msad", str(folder), "--quick", "--jobs", "1", "--out", str(out)]) == 0
    said = (out / "summary.md").read_text()
    assert "2 classes; 8 clips for training, 4 for the test" in said
    assert said.count("| both | visible | 2 |") == said.count("| both | infrared | 2 |") == 2
    assert len(list((out / "weights").iterdir())) == 6
    metrics = {line["metric"] for line in csv.DictReader((out / "focus.csv").read_text().splitlines())}
    assert metrics == {"insertion", "deletion", "sparseness"}  # nobody knows where the evidence is
