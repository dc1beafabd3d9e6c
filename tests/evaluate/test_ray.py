"""The Ray engine gives what the local one gives, bit for bit, also where machines are lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluate.runs import METHODS, METRICS, contents, small
from tubelens.errors import OptionError
from tubelens.evaluate import ray_engine
from tubelens.evaluate.job import Job, Network, asked
from tubelens.zoo.extras import installed

needs_ray = pytest.mark.skipif(not installed("ray"), reason="the extra ray is not installed")


def on_cluster(run: Path, clips: int, kind: str) -> tuple[list[int], str]:
    """Run in a process of its own; what was in hand of what died, and what was said."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.evaluate.cluster", str(run), str(clips), kind],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"in hand: \[(.*)\]\n(.*)", done.stdout)
    assert found is not None, done.stdout
    return [int(n) for n in found[1].split(",") if n.strip()], found[2]


@needs_ray
def test_a_node_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    clips = 10
    lost, said = on_cluster(tmp_path / "ray", clips, "node")
    assert len(lost) == 1
    assert lost[0] >= 1  # it had work in hand, which others did
    small(tmp_path / "local", clips)
    one, other = contents(tmp_path / "ray"), contents(tmp_path / "local")
    assert len(one["cells"]) == clips * len(METHODS) * len(METRICS) - 3 * len(METHODS)
    for table, rows in one.items():
        assert rows == other[table], table
    assert "failures []" in said
    assert small(tmp_path / "ray", clips).done == 0  # the local engine goes on with it


@needs_ray
@pytest.mark.slow
def test_actors_that_die_change_nothing(tmp_path: Path) -> None:
    lost, said = on_cluster(tmp_path / "ray", 40, "actors")
    assert len(lost) == 3
    assert "failures []" in said
    small(tmp_path / "local", 40)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@needs_ray
@pytest.mark.slow
def test_a_clip_that_kills_actors_is_given_up(tmp_path: Path) -> None:
    lost, said = on_cluster(tmp_path / "ray", 10, "poison")
    assert 3 <= len(lost) <= 4
    assert "clip5: 3 workers died on it" in said
    assert said.count("died") == 1
    small(tmp_path / "local", 10)
    one, other = contents(tmp_path / "ray"), contents(tmp_path / "local")
    assert one["maps"] == [row for row in other["maps"] if row[0] != 6]


def test_ray_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"the engine ray needs .*'?ray"):
        small(tmp_path / "run", 1, engine="ray")
    assert not (tmp_path / "run").exists()


def test_slots_are_checked() -> None:
    job = Job((Network(model="bundled"),), (asked("method", "gradcam"),), ())
    with pytest.raises(OptionError, match="slots must be at least 1, not 0"):
        ray_engine.OnRay(job, slots=0)
