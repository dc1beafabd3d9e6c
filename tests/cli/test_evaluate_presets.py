"""`tubelens evaluate --preset`: methods and metrics of a study, where they are not given."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.cli.commands import tubelens
from tubelens.errors import OptionError
from tubelens.evaluate.job import asked
from tubelens.evaluate.presets import PRESETS, filled

QUICK = ("--model", "nets.py:make", "--workers", "0", "--threads", "1")


def test_a_preset_fills_what_is_not_given() -> None:
    study = PRESETS["multispectral"]
    assert filled("multispectral", (), ()) == (study.methods, study.metrics)
    assert filled("multispectral", ("gradcam",), ()) == (("gradcam",), study.metrics)
    assert filled("multispectral", (), ("ap",)) == (study.methods, ("ap",))
    assert filled(None, (), ()) == (("tubes",), ())
    assert filled(None, ("rise",), ("ap",)) == (("rise",), ("ap",))
    with pytest.raises(OptionError, match=r"unknown --preset 'multispectra' \(did you mean 'multispectral'"):
        filled("multispectra", (), ())


def test_all_that_a_preset_names_is_there() -> None:
    for preset in PRESETS.values():
        assert [asked("method", name).name for name in preset.methods] == list(preset.methods)
        assert [asked("metric", name).name for name in preset.metrics] == list(preset.metrics)


def test_metrics_of_a_preset_that_need_the_truth_are_no_failure(tmp_path: Path) -> None:
    """Energy is asked for by the preset, not by name: where nobody knows the evidence it is left out."""
    clips = tmp_path / "clips.csv"
    with clips.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), (str(Path("a.mp4").resolve()), "swimming")])
    command = ("evaluate", clips, *QUICK, "--preset", "multispectral", "--method", "gradcam")
    ran = tubelens(*command, "--out", tmp_path / "run")
    assert ran.code == 0
    assert "1 scores were left out: they need to know where the evidence is" in ran.err
    assert re.search(r"gradcam +energy +0 +no truth", ran.out)
    assert re.search(r"gradcam +insertion +1 +0\.\d{3}", ran.out)
    assert "no score at all" not in ran.err
    named = tubelens(*command, "--metric", "energy", "--out", tmp_path / "named")
    assert named.code == 1
    assert named.err.splitlines()[-1] == "tubelens: no score at all: gradcam, energy"


def test_an_unknown_preset_is_one_line(tmp_path: Path) -> None:
    ran = tubelens("evaluate", "planted:dir?n=1", "--preset", "paper", "--out", tmp_path / "run")
    assert ran.code == 2
    assert ran.err == "tubelens: unknown --preset 'paper': one of multispectral\n"
