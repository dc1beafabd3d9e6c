"""`tubelens planted`: the table on a terminal, as JSON and in files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.commands import tubelens
from tubelens import cli
from tubelens.cli.planted import DEFAULT, Planted
from tubelens.evaluate.bench_tasks import MEASURES, TASKS
from tubelens.methods import method

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method.py"
SMALL = ("--task", "whitebox", "--clips", "2")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "planted", Planted)


def test_the_table_names_methods_tasks_and_anchors() -> None:
    ran = tubelens("planted", "--method", "saliency", "rise(n=20)", *SMALL, "--metric", "ap", "distractor")
    assert ran.code == 0
    assert ran.err == ""
    assert "AP: average precision; higher is better" in ran.out
    assert "lower is better" in ran.out
    for row in ("saliency", "rise(n=20)", "random", "centre", "difference", "oracle"):
        assert f"\n  {row} " in ran.out
    assert "whitebox" in ran.out
    assert "1.000 ± 0.000" in ran.out  # the oracle
    assert "bootstrap" in ran.out


def test_json_holds_the_numbers(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    ran = tubelens("planted", "--method", "saliency", *SMALL, "--json", "--out", out, "--metric", "energy")
    facts = ran.json
    assert facts == json.loads(out.read_text())
    assert facts["tried"] == {"whitebox": 2}
    (cell,) = [c for c in facts["scores"] if c["row"] == "oracle"]
    assert cell["energy"]["mean"] == 1.0
    assert "ap" not in cell


def test_the_example_is_a_method_of_the_bench(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    ran = tubelens("planted", "--method", f"{EXAMPLE}:TimeProfile", *SMALL, "--out", out)
    assert ran.code == 0
    assert "own_method.py:TimeProfile | 0." in out.read_text()


def test_what_works_nowhere_fails_and_says_why() -> None:
    ran = tubelens("planted", "--method", "saliency", "rollout", *SMALL)
    assert ran.code == 1
    assert "note: rollout: failed on whitebox: whitebox has no attention" in ran.err
    assert "\n  saliency " in ran.out


def test_what_is_kept_is_not_computed_again(tmp_path: Path) -> None:
    keep = tmp_path / "kept.jsonl"
    asked = ("planted", "--method", "saliency", *SMALL, "--keep", keep)
    first = tubelens(*asked)
    lines = keep.read_text()
    assert tubelens(*asked).out == first.out  # with the seconds of the first time
    assert keep.read_text() == lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "risse"), "did you mean 'rise'"),
        (("--task", "whitebocks"), "did you mean 'whitebox'"),
        (("--metric", "app"), "did you mean 'ap'"),
        (("--out", "table.txt"), "written as .md, .csv or .json"),
        (("--clips", "0"), "clips >= 1"),
        (("--keep", "nets.py"), "holds no results"),
    ],
)
def test_nonsense_is_one_line(options: tuple[str, ...], message: str) -> None:
    ran = tubelens("planted", *options)
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1
    assert ran.out == ""


def test_the_help_names_what_there_is() -> None:
    ran = tubelens("planted", "--help")
    assert ran.code == 0
    for name in (*MEASURES, *TASKS):
        assert name in ran.out
    for written in DEFAULT:
        method(written)
