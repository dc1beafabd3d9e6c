"""The store of a run by itself: what is committed, what is read back, and what becomes of failures."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tubelens as tl
from tests.evaluate.runs import contents, item, model
from tubelens.errors import InputError
from tubelens.evaluate.summary import Evaluation
from tubelens.store import Cell, Failure, Prediction, RunStore, Unit, reading
from tubelens.store.cells import FILE
from tubelens.target import Logit

SETTINGS = {"target": "predicted"}


@pytest.fixture(scope="module")
def explanation() -> tl.Explanation:
    net = model()
    return tl.explain(net, net.read(item(0).array), "gradcam", 1)


def test_a_unit_comes_back_as_it_was(tmp_path: Path, explanation: tl.Explanation) -> None:
    cells = [
        Cell(1, 1, 0, 0.5, 0.25, 7.5, {"random": 0.1, "odd": 3.0}, ([0, 1], [0.25, 0.75]), {"notes": ["n"]}),
        Cell(1, 2, 3, float("nan")),
        Cell(2, 1, 0, 0.125, None, 2, {"oracle": 1.0}, ([0, 1], [0.5, 1.0])),
    ]
    said = Prediction(2, 1, 0.75, {"explained": 1})
    with RunStore.write(tmp_path / "run", SETTINGS) as store:
        assert store.enter("clips", [("a", {"label": "x"}), ("b", {})]) == [(1, {"label": "x"}), (2, {})]
        assert store.enter("clips", [("b", {"label": "y"}), ("c", {})]) == [(2, {}), (3, {})]
        assert store.ids("clips") == {"a": 1, "b": 2, "c": 3}
        assert store.id("models", "net", {"k": 1}) == 1
        assert store.prediction(2, 1) is None
        store.commit(Unit(2, 1, cells, [(1, 0, explanation)], said))
        store.commit(Unit(2, 1, [replace(cells[0], value=9.0)]))  # what is there stays
        assert store.done(2, 1) == {(1, 1, 0), (1, 2, 3), (2, 1, 0)}
        assert store.done(1, 1) == set()
        assert store.mapped(2, 1) == {(1, 0)}
        assert store.prediction(2, 1) == said
    with RunStore.read(tmp_path / "run") as store:
        assert len(store.done(2, 1)) == 3
        columns = store.cells(seconds=True)
        np.testing.assert_array_equal(columns["value"], [0.5, np.nan, 0.125])
        np.testing.assert_array_equal(columns["normalised"], [0.25, np.nan, np.nan])
        np.testing.assert_array_equal(columns["forwards"], [7.5, 0, 2])
        np.testing.assert_array_equal(columns["random"], [0.1, np.nan, np.nan])
        np.testing.assert_array_equal(columns["oracle"], [np.nan, np.nan, 1.0])
        assert columns["seconds"][0] == explanation.provenance.seconds
        assert np.isnan(columns["seconds"][1])
        assert store.cells(metric=2)["seed"].tolist() == [3]
        ids, places, values = store.curves(1)
        assert ids["method"].tolist() == [1, 2]
        np.testing.assert_array_equal(places, [[0, 1], [0, 1]])
        np.testing.assert_array_equal(values, [[0.25, 0.75], [0.5, 1.0]])
        assert dict(store.details(1))[2, 1, 1, 1, 0] == {"notes": ["n"], "anchors": {"odd": 3.0}}
        assert store.predictions()["label"].tolist() == [2]
        back = store.explanation(2, 1, 1, 0)
        assert back is not None
        assert (back.grid == explanation.grid).all()
        assert back.provenance == explanation.provenance
        assert store.explanation(2, 1, 2, 0) is None
        assert (store.meta["settings"], store.count("maps")) == (SETTINGS, 1)


def failures(store: RunStore) -> dict[tuple[int, ...], int]:
    return {(c, m, f.method, f.metric, f.seed): n for c, m, f, n in store.failures()}


def test_failures_are_counted_up_and_made_good(tmp_path: Path, explanation: tl.Explanation) -> None:
    def failed(method: int, metric: int = 0) -> Failure:
        return Failure(method, metric, 0, "method", "no")

    with RunStore.write(tmp_path / "run", SETTINGS) as store:
        clip = Unit(1, 0, failures=[Failure(0, 0, 0, "clip", "torn")])
        store.commit(clip)
        store.commit(clip)
        assert failures(store) == {(1, 0, 0, 0, 0): 2}
        assert store.failed(1, 1) == {(0, 0, 0)}
        assert store.failed(2, 1) == set()
        store.commit(Unit(1, 1, failures=[failed(0)]))  # the clip could be read, the model not run on it
        assert failures(store) == {(1, 1, 0, 0, 0): 1}
        store.commit(Unit(1, 1, failures=[failed(0)]))
        assert failures(store) == {(1, 1, 0, 0, 0): 2}
        store.commit(Unit(1, 1, [Cell(1, 1, 0, 0.5)], failures=[failed(2), failed(1, 2)]))
        assert failures(store) == {(1, 1, 2, 0, 0): 1, (1, 1, 1, 2, 0): 1}
        store.commit(Unit(1, 1, [Cell(1, 3, 0, 0.5)]))  # of something else: neither tried again
        store.commit(Unit(1, 2, [Cell(1, 2, 0, 0.5)]))
        assert failures(store) == {(1, 1, 2, 0, 0): 1, (1, 1, 1, 2, 0): 1}
        store.commit(Unit(1, 1, maps=[(2, 0, explanation)], failures=[failed(2, 1), failed(1, 2)]))
        assert failures(store) == {(1, 1, 2, 1, 0): 1, (1, 1, 1, 2, 0): 2}
        store.commit(Unit(1, 1, [Cell(2, 1, 0, 0.5), Cell(1, 2, 0, 0.5)]))
        assert failures(store) == {}


def test_a_commit_is_all_or_nothing(tmp_path: Path) -> None:
    with RunStore.write(tmp_path / "run", SETTINGS) as store:
        bad = Failure(1, 1, 0, "metric", "no")
        object.__setattr__(bad, "reason", None)  # a column that may not be empty
        with pytest.raises(InputError, match="NOT NULL"):
            store.commit(Unit(1, 1, [Cell(1, 1, 0, 0.5)], failures=[bad]))
        assert store.count() == 0
        store.commit(Unit(1, 1, [Cell(1, 1, 0, 0.5)]))
        assert store.count() == 1


def test_curves_of_the_commonest_length(tmp_path: Path) -> None:
    with RunStore.write(tmp_path / "run", SETTINGS) as store:
        for clip, points in enumerate((3, 2, 3), 1):
            line = list(range(points))
            store.commit(Unit(clip, 1, [Cell(1, 1, 0, 0.5, curve=(line, line))]))
        ids, places, _ = store.curves(1)
        assert ids["clip"].tolist() == [1, 3]
        assert places.shape == (2, 3)
        assert store.curves(2)[1].shape[0] == 0


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run there"), RunStore.read(tmp_path):
        pass
    sqlite3.connect(tmp_path / FILE).execute("CREATE TABLE notes (text TEXT)").connection.close()
    for opened in (RunStore.read(tmp_path), RunStore.write(tmp_path, SETTINGS)):
        with pytest.raises(InputError, match="a SQLite file, but not a run"), opened:
            pass
    with RunStore.write(tmp_path / "run", SETTINGS) as store:
        store._db.execute("UPDATE meta SET value = 'tubelens run 99' WHERE key = 'format'")
    with pytest.raises(InputError, match="not a run of this version"), RunStore.read(tmp_path / "run"):
        pass


def test_a_run_that_is_being_written_can_be_read(tmp_path: Path) -> None:
    with RunStore.write(tmp_path / "run", SETTINGS) as store:
        store.commit(Unit(1, 1, [Cell(1, 1, 0, 0.5)]))
        with RunStore.read(tmp_path / "run") as reader:
            assert reader.count() == 1
            clip = store.id("clips", "late")
            store.commit(Unit(clip, 1, [Cell(1, 2, 0, 0.5)]))
            assert (reader.count(), reader.names("clips")) == (1, [])  # as it was at that moment
        with RunStore.read(tmp_path / "run") as reader:
            assert (reader.count(), len(reader.names("clips"))) == (2, 1)
    found = contents(tmp_path / "run")
    assert json.loads(json.dumps(found["meta"])) == [{"format": "tubelens run 1", "settings": SETTINGS}]


def test_a_log_that_cannot_be_read_is_said_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with RunStore.write(run, SETTINGS) as store:
        store.commit(Unit(1, 1, [Cell(1, 1, 0, 0.5)]))
        shutil.copytree(run, tmp_path / "cut")  # as a process leaves it that is killed
        assert (tmp_path / "cut" / f"{FILE}-wal").stat().st_size
    connect = sqlite3.connect

    class Denied:  # as in a folder that cannot be written
        def execute(self, query: str) -> None:
            raise sqlite3.OperationalError("unable to open database file")

        def close(self) -> None: ...

    def denied(name: str, **options: Any) -> Any:
        return connect(name, **options) if "immutable" in name else Denied()

    with RunStore.read(tmp_path / "cut") as reader:
        assert reader.count() == 1
    shutil.rmtree(tmp_path / "cut")
    with RunStore.write(run, SETTINGS) as store:
        store.commit(Unit(2, 1, [Cell(1, 1, 0, 0.5)]))
        shutil.copytree(run, tmp_path / "cut")
    monkeypatch.setattr(reading.sqlite3, "connect", denied)
    with RunStore.read(run) as reader:  # ended as it should: no log
        assert reader.count() == 2
    with pytest.raises(InputError, match="copy the folder to a place that can be written"):
        RunStore.read(tmp_path / "cut").__enter__()


def test_the_map_of_the_smallest_seed(tmp_path: Path, explanation: tl.Explanation) -> None:
    with RunStore.write(tmp_path / "run", SETTINGS) as store:
        store.commit(Unit(1, 1, maps=[(1, 4, replace(explanation, target=Logit(2))), (1, 3, explanation)]))
        assert store.explanation(1, 1, 1) is None
        first = store.explanation(1, 1, 1, None)
        assert first is not None
        assert first.target == explanation.target
        assert store.explanation(1, 1, 2, None) is None


def test_nothing_is_dropped_without_a_word(tmp_path: Path) -> None:
    with RunStore.write(tmp_path / "run", SETTINGS) as store:
        store.commit(Unit(1, 1, [Cell(1, 1, 0, 0.5, forwards=float("nan"))]))
        assert store.cells()["forwards"].tolist() == [0]
        with pytest.raises(InputError, match=r"must be there.*prob"):
            store.commit(Unit(1, 1, prediction=Prediction(None, 0, float("nan"))))
        store.commit(Unit(1, 1, prediction=Prediction(None, 0, 0.5)))
        store.commit(Unit(1, 1, prediction=Prediction(None, 1, 0.5)))  # what is there stays
        assert [clip for clip, _ in store.said(1)] == [1]
        assert store.predictions()["predicted"].tolist() == [0]


def test_how_a_run_came_about_is_kept_and_is_no_part_of_it(tmp_path: Path) -> None:
    with RunStore.write(tmp_path / "run", SETTINGS) as store:
        store.told(manifest="first.csv")
        store.told(manifest="second.csv", who="me")
    with RunStore.read(tmp_path / "run") as store:
        made = store.made
        assert (made["manifest"], made["who"], made["version"]) == ("first.csv", "me", tl.__version__)
        assert made["date"].endswith("+00:00")
        assert set(store.meta) == {"format", "settings"}


def test_means_of_a_run_count_a_clip_once(tmp_path: Path) -> None:
    with RunStore.write(tmp_path / "run", SETTINGS) as store:
        for table, name in (("models", "net"), ("methods", "rise"), ("metrics", "ap")):
            store.id(table, name)  # type: ignore[arg-type]
        store.commit(Unit(1, 1, [Cell(1, 1, s, v) for s, v in ((0, 0.0), (1, 0.2), (2, 0.4))]))
        store.commit(Unit(2, 1, [Cell(1, 1, 0, 0.6), Cell(1, 1, 1, float("nan"))]))
        store.commit(Unit(3, 1, [Cell(1, 1, 0, float("nan"))]))
    (line,) = Evaluation(tmp_path / "run", 3, 0, 0, 0, 0, 0, 0, 0, (), 0.0).table()
    assert (line.n, line.mean) == (2, pytest.approx(0.4))
    assert line.std == pytest.approx(np.std([0.2, 0.6], ddof=1))
