"""The table of the test bench: means, order, what does not count, and how it is written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelens.errors import OptionError
from tubelens.evaluate.bench_table import Mean, Table
from tubelens.evaluate.bench_tasks import ANCHORS


def record(seed: int, **scores: float) -> dict[str, Any]:
    return {"seed": seed, "forwards": 2, "backwards": 1, "seconds": 0.5} | scores


@pytest.fixture
def made() -> Table:
    """Two methods and two tasks, of round numbers."""
    cells = {
        ("a|b", "dir"): [record(1, ap=0.5, distractor=0.4), record(2, ap=0.7, distractor=0.2)],
        ("a|b", "key"): [{"seed": 3, "error": "does not apply"}],
        ("good", "dir"): [record(1, ap=0.9, distractor=0.1), record(2, ap=0.9, distractor=0.1)],
        ("good", "key"): [record(3, ap=0.5, distractor=0.3)],
    }
    cells |= {(a, task): [record(1, ap=0.1, distractor=0.1)] for a in ANCHORS for task in ("dir", "key")}
    good, bad = {"reason": None}, {"reason": "misclassified"}
    checks = {"dir": [good, bad, good], "key": [good]}
    return Table(("a|b", "good"), ("dir", "key"), cells, checks)


def test_means_have_intervals(made: Table) -> None:
    mean = made.mean("a|b", "dir", "ap")
    assert mean.value == pytest.approx(0.6)
    assert (mean.low, mean.high) == pytest.approx((0.5, 0.7))  # the means of two values are three
    assert str(mean) == "0.600 ± 0.100"
    assert str(made.mean("good", "key", "ap")) == "0.500"  # of one clip there is no interval
    assert str(made.mean("a|b", "key", "ap")) == "–"
    many = Mean.of(np.random.default_rng(0).normal(0.5, 0.1, 400).tolist())
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.1)
    assert made.overall("good", "ap") == pytest.approx(0.7)
    assert made.overall("a|b", "ap") == pytest.approx(0.6)


def test_tables_are_in_order(made: Table) -> None:
    columns, rows = made.grid("ap")
    assert columns == ["AP", "dir", "key", "all"]
    assert [row[0] for row in rows] == ["good", "a|b", *ANCHORS]
    assert rows[1] == ["a|b", "0.600 ± 0.100", "–", "0.600 (1 of 2)"]
    assert [row[0] for row in made.grid("distractor")[1]][:2] == ["good", "a|b"]  # less is better
    assert made.costs()[1] == [["a|b", "2", "1", "0.50"], ["good", "2", "1", "0.50"]]
    assert made.notes() == [
        "dir: 1 of 3 clips do not count (1 misclassified)",
        "a|b: failed on key: does not apply",
    ]


def test_the_summary_holds_means_over_tasks(made: Table) -> None:
    columns, rows = made.summary()
    assert columns == ["means over tasks", "tasks", "AP", "distractor", "forwards", "backwards"]
    assert rows[0] == ["good", "2", "0.700", "0.200", "2", "1"]
    assert rows[1][:3] == ["a|b", "1", "0.600"]
    assert [row[0] for row in rows] == ["good", "a|b", *ANCHORS]


def test_a_table_falls_into_parts() -> None:
    cells = {(row, "dir"): [record(1, ap=0.5)] for row in ("a", "a, random weights", *ANCHORS)}
    table = Table(("a",), ("dir",), cells, {"dir": [{"reason": None}]})
    assert table.part(random_weights=True).rows == ("a, random weights", *ANCHORS)
    assert table.part(random_weights=False).rows == ("a", *ANCHORS)


def test_tables_are_written(made: Table, tmp_path: Path) -> None:
    for suffix in ("md", "csv", "json"):
        made.write(tmp_path / f"table.{suffix}", ["ap"])
    text = (tmp_path / "table.md").read_text()
    assert "| good | 0.900 ± 0.000 | 0.500 | 0.700 |" in text
    assert "| a\\|b | 0.600" in text
    assert "| *oracle* |" in text
    assert "- dir: 1 of 3 clips do not count" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    (row,) = [r for r in rows if (r["row"], r["task"], r["score"]) == ("a|b", "dir", "ap")]
    assert [row[c] for c in ("mean", "low", "high", "clips", "failed")] == ["0.6", "0.5", "0.7", "2", "0"]
    facts = json.loads((tmp_path / "table.json").read_text())
    assert facts["excluded"] == {"dir": {"misclassified": 1}, "key": {}}
    assert facts["tried"] == {"dir": 3, "key": 1}
    (cell,) = [c for c in facts["scores"] if (c["row"], c["task"]) == ("a|b", "key")]
    assert cell["ap"] == {"mean": None, "low": None, "high": None, "clips": 0}
    assert cell["failed"] == 1
    with pytest.raises(OptionError, match=r"written as .md, .csv or .json"):
        made.write(tmp_path / "table.txt")
