"""A run that is killed at any moment, and finished, is the run that was never killed, bit for bit."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate.runs import METHODS, METRICS, contents, ended, forked, kill, model, small
from tubelens.errors import InputError, OptionError, OutputError
from tubelens.store import RunStore
from tubelens.store.cells import FILE

CLIPS = 12
KILLS = 10  # by the clock, and as many at places in the SQL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Any]], float]:
    """A run that nothing happened to, and how long it took in a process of its own."""
    run = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    assert ended(forked(lambda: small(run, CLIPS))) == 0
    seconds = time.monotonic() - began
    found = contents(run)
    assert len(found["cells"]) >= 200
    assert len(found["maps"]) == CLIPS * len(METHODS)
    assert not found["failures"]
    return found, seconds


def units_are_whole(run: Path, whole: dict[str, list[Any]]) -> int:
    """Every clip and model has all of its cells, maps and prediction, or none; and how many have."""
    try:
        found = contents(run)
    except InputError:  # not yet made
        return 0
    for table in ("cells", "maps", "predictions"):
        begun = {row[:2] for row in found["predictions"]}
        assert found[table] == [row for row in whole[table] if row[:2] in begun]
    return len(found["predictions"])


def dying_at(statement: int) -> Callable[[], None]:
    """Makes this process kill itself when SQLite begins that statement."""

    def patch() -> None:
        connect, count = sqlite3.connect, iter(range(10**9))

        def traced(*args: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*args, **options)

            def trace(_: str) -> None:
                if next(count) == statement:
                    os.kill(os.getpid(), signal.SIGKILL)

            connection.set_trace_callback(trace)
            return connection

        sqlite3.connect = traced  # type: ignore[assignment]

    return patch


def nothing() -> None:
    pass


def test_twenty_kills_change_nothing(tmp_path: Path, whole: tuple[dict[str, list[Any]], float]) -> None:
    expected, seconds = whole
    generator = np.random.default_rng(0)
    kills, runs, stopped_halfway = 0, 0, 0
    statements = 26 * CLIPS  # about what a run takes
    while kills < 2 * KILLS:
        run = tmp_path / f"run{runs}"
        runs += 1
        while True:
            by_clock = kills < KILLS
            at = int(generator.integers(statements // 2))
            patch = nothing if by_clock or kills >= 2 * KILLS else dying_at(at)

            def work(run: Path = run, patch: Callable[[], None] = patch) -> None:
                patch()
                small(run, CLIPS)

            child = forked(work)
            if by_clock:
                time.sleep(float(generator.uniform(0, seconds / 2)))
                code = kill(child)
            else:
                code = ended(child)
            if code == 0 and not contents(run)["failures"]:
                break
            if code == 0:  # two kills in one unit look like a clip that kills: the next call tries it again
                continue
            assert code == -signal.SIGKILL
            kills += 1
            done = units_are_whole(run, expected)
            stopped_halfway += 0 < done < CLIPS
        assert contents(run) == expected
    assert stopped_halfway >= KILLS // 2  # else the kills came too early or too late to tell anything


@pytest.mark.slow
def test_kills_of_fresh_processes(tmp_path: Path, whole: tuple[dict[str, list[Any]], float]) -> None:
    """As a user meets it: the interpreter is started anew each time."""
    expected, _ = whole
    generator = np.random.default_rng(1)
    code = (
        "import sys; from pathlib import Path; from tests.evaluate.runs import small;"
        f" print('ready', flush=True); small(Path(sys.argv[1]), {CLIPS}); print('done')"
    )
    kills, runs = 0, 0
    while kills < 6:
        run = tmp_path / f"run{runs}"
        runs += 1
        while True:
            child = subprocess.Popen(
                [sys.executable, "-c", code, str(run)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            with child:
                assert child.stdout is not None
                assert child.stdout.readline() == "ready\n"
                time.sleep(float(generator.uniform(0, 2)))
                child.kill()
                finished = child.stdout.read() == "done\n"
            if finished and not contents(run)["failures"]:
                break
            kills += not finished
            units_are_whole(run, expected)
        assert contents(run) == expected


def test_an_interruption_keeps_what_is_done(
    tmp_path: Path, whole: tuple[dict[str, list[Any]], float]
) -> None:
    run = tmp_path / "run"

    def stop(done: int, total: int) -> None:
        assert total == CLIPS
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(run, CLIPS, progress=stop)
    assert units_are_whole(run, whole[0]) == 3
    found = small(run, CLIPS)
    cells = len(whole[0]["cells"])
    already = sum(row[0] <= 3 for row in whole[0]["cells"])
    assert (found.done, found.skipped, found.maps) == (cells - already, already, (CLIPS - 3) * len(METHODS))
    assert contents(run) == whole[0]


def test_another_process_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ready, told = os.pipe()
    waits, go = os.pipe()

    def slow() -> None:
        def pause(done: int, total: int) -> None:
            if done == 1:
                os.write(told, b"x")
                os.read(waits, 1)

        small(run, 3, progress=pause)

    child = forked(slow)
    os.read(ready, 1)
    with pytest.raises(OptionError, match=rf"another process is writing this run \(process {child} on .*\)"):
        small(run, 3)
    with RunStore.read(run) as store:  # reading is allowed
        assert len(store.predictions()["clip"]) == 1
    os.write(go, b"x")
    assert ended(child) == 0
    assert small(run, 3).done == 0  # it finished, and the lock is gone

    child = forked(slow)  # nothing to do: it does not pause
    assert ended(child) == 0


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ready, told = os.pipe()

    def stuck() -> None:
        def pause(done: int, total: int) -> None:
            os.write(told, b"x")
            time.sleep(60)

        small(run, 2, progress=pause)

    child = forked(stuck)
    os.read(ready, 1)
    kill(child)
    assert small(run, 2).skipped > 0


@pytest.mark.parametrize("kilobytes", [30, 120, 300])
def test_a_full_disk_stops_the_run_and_no_more(
    tmp_path: Path, whole: tuple[dict[str, list[Any]], float], kilobytes: int
) -> None:
    run = tmp_path / "run"
    said, told = os.pipe()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, resource.RLIM_INFINITY))
        try:
            small(run, CLIPS)
        except OutputError as error:
            os.write(told, str(error).encode())
            os._exit(3)

    assert ended(forked(work)) == 3
    message = os.read(said, 1000).decode()
    assert message.startswith(f"{run / FILE}: cannot be written: ")
    assert message.endswith("what was committed before is kept")
    units_are_whole(run, whole[0])
    small(run, CLIPS)
    assert contents(run) == whole[0]


def test_a_folder_that_may_not_be_written() -> None:
    with tempfile.TemporaryDirectory() as room:  # where others may look, which they may not in `tmp_path`
        folder = Path(room) / "folder"
        run, said = folder / "run", Path(room) / "said"
        small(run, 1)
        said.touch()
        said.chmod(0o666)
        before = {path: path.read_bytes() for path in run.iterdir()}

        def work(out: Path) -> None:
            if os.getuid() == 0:  # who may write anywhere
                os.setgid(65534)
                os.setuid(65534)
            small(out, 2)

        Path(room).chmod(0o755)
        for mode in (0o555, 0o444):  # the second: it cannot even be looked into
            for path in (*run.iterdir(), run, folder):
                path.chmod(0o444 if path.is_file() else mode)
            try:
                for out in (run, folder / "new"):
                    assert ended(forked(lambda out=out: _noting(lambda: work(out), said))) == 0
                    assert said.read_text() == f"OutputError {out}: cannot be written: Permission denied"
            finally:
                for path in (folder, run):
                    path.chmod(0o755)
        assert {path: path.read_bytes() for path in run.iterdir()} == before
        assert not (folder / "new").exists()


def _noting(work: Callable[[], None], said: Path) -> None:
    with said.open("w") as file:
        try:
            work()
        except Exception as error:
            file.write(f"{type(error).__name__} {error}")


@pytest.mark.parametrize("damage", ["header", "cut", "middle", "empty", "text"])
def test_a_damaged_file_is_left_alone(tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    small(run, 6)
    file = run / FILE
    data = file.read_bytes()
    pages = len(data) // 4096
    damaged = {
        "header": b"\0" * 4096 + data[4096:],
        "cut": data[: len(data) // 2 // 4096 * 4096],
        "middle": data[:4096] + b"\xa5" * 4096 * (pages - 1),
        "empty": b"",
        "text": b"these are my notes\n",
    }[damage]
    file.write_bytes(damaged)
    if damage == "empty":  # what a crash at the very beginning leaves: a run without anything
        assert small(run, 6).skipped == 0
        return
    with pytest.raises(InputError, match=r"run\.sqlite: (damaged, or not a run|.*not a run)") as caught:
        small(run, 6)
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == damaged


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small(run, 1)
    before = contents(run)
    with pytest.raises(OptionError, match=r"made with other settings \(target 'predicted' and now 'label'\)"):
        small(run, 1, target="label")
    with pytest.raises(OptionError, match=r"made with other settings \(threads 1 and now 2\)"):
        small(run, 1, threads=2)
    assert small(run, 1, threads=None).done == 0  # those of the run so far
    other = model(seed=2)
    with pytest.raises(OptionError, match=r"model 'net' is no longer .* \(its weights were others\)"):
        small(run, 1, model=other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(OptionError, match="holds other files and no run"):
        small(tmp_path / "mine", 1)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert contents(run) == before
    assert small(run, 1, model={"another": other}).done == len(METHODS) * (len(METRICS) - 1)
