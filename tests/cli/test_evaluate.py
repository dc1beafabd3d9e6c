"""`tubelens evaluate`: what is told, what is kept, and the exit code."""

from __future__ import annotations

import csv
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.commands import done, tubelens
from tests.evaluate.runs import ended, forked
from tests.videos import coded_video
from tubelens.cli import evaluate as verb
from tubelens.cli import main
from tubelens.store import RunStore

QUICK = ("--workers", "0", "--threads", "1", "--method", "gradcam", "--metric", "sparseness")
Table = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Makes a CSV of the videos."""

    def make(*rows: tuple[str, str], header: tuple[str, ...] = ("path", "label")) -> Path:
        path = tmp_path / "clips.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(
                [header, *((str(Path(name).resolve()), *rest) for name, *rest in rows)]
            )
        return path

    return make


def test_a_table_and_a_run(tmp_path: Path, table: Table) -> None:
    clips = table(("a.mp4", "swimming"), ("b.mkv", "swinging"))
    run = tmp_path / "run"
    ran = done("evaluate", clips, "--model", "nets.py:make", *QUICK, "complexity", "--out", run)
    lines = ran.out.splitlines()
    assert re.match(r" *method +metric +n +mean +std", lines[1])
    assert re.match(r" *gradcam +sparseness +2 +0\.\d{3} +\d\.\d{3}", lines[3])
    assert re.match(rf"{run}: 4 scores, 0 there before \(\d+ s\)", lines[-1])
    again = done("evaluate", clips, "--model", "nets.py:make", *QUICK, "complexity", "--out", run)
    assert f"{run}: 0 scores, 4 there before" in again.out
    with RunStore.read(run) as store:
        assert [m.name for m in store.names("models")] == ["nets.py:make"]
        assert store.predictions()["label"].tolist() == [2, 3]


def test_json_and_several_networks(tmp_path: Path, table: Table) -> None:
    clips = table(("a.mp4", "swimming"), ("b.mkv", "swinging"))
    ran = tubelens(
        *("evaluate", clips, "--model", "nets.py:make", "nets.py:other", "--name", "mine", "theirs"),
        *("--trained", "visible", "-", *QUICK, "energy", "--json", "--out", tmp_path / "run"),
        *("--seeds", "0", "1", "--target", "label", "--limit", "1"),
    )
    assert ran.code == 0
    assert ran.err.startswith("note: 2 scores were left out: they need to know where the evidence is")
    found = ran.json
    assert (found["out"], found["clips"], found["done"], found["without_truth"]) == (
        str(tmp_path / "run"),
        1,
        2,
        2,
    )
    assert [(m["model"], m["metric"], m["n"], m["std"]) for m in found["means"]] == [
        ("mine", "sparseness", 1, None),
        ("theirs", "sparseness", 1, None),
    ]
    with RunStore.read(tmp_path / "run") as store:
        assert [m.facts["trained"] for m in store.names("models")] == ["visible", ""]
        assert [e.target.classes for m in (1, 2) if (e := store.explanation(1, m, 1))] == [(2,), (2,)]


def test_failures_are_listed_and_the_rest_goes_on(tmp_path: Path, table: Table) -> None:
    Path("torn.mp4").write_bytes(Path("a.mp4").read_bytes()[:500])
    clips = table(("torn.mp4", "swimming"), ("a.mp4", "swimming"))
    options = ("--model", "nets.py:pooled_by_max", *QUICK[:4], "--metric", "sparseness")
    run = tmp_path / "run"
    ran = tubelens("evaluate", clips, *options, "--method", "gradcam", "tubes", "--out", run)
    assert ran.code == 0
    assert len(ran.err.splitlines()) == 2
    assert re.search(r"^tubelens: failed: .*torn\.mp4.*$", ran.err, re.MULTILINE)
    assert re.search(r"^tubelens: failed: tubes: .*affine", ran.err, re.MULTILINE)
    assert "1 scores, 0 there before, 3 failed" in ran.out
    over = tubelens(
        "evaluate", clips, *options, "--method", "gradcam", "tubes", "--out", run, "--skip-failed"
    )
    assert over.code == 0
    assert over.err == "note: 2 units failed before and were left alone (--skip-failed)\n"
    worst = tubelens("evaluate", clips, *options, "--method", "tubes", "--out", tmp_path / "worst")
    assert worst.code == 1


def test_a_folder_for_every_class(tmp_path: Path) -> None:
    for name in ("swimming", "swinging"):
        (tmp_path / "data" / name).mkdir(parents=True)
        coded_video(tmp_path / "data" / name / "v.mp4", 12)
    ran = done(
        "evaluate", tmp_path / "data", "--model", "nets.py:make", *QUICK, "--json", "--out", tmp_path / "r"
    )
    assert ran.json["done"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.csv",), "nothing.csv: no such file or folder"),
        (("{clips}", "--metric", "insertoin"), "unknown metric 'insertoin' (did you mean 'insertion'?)"),
        (("{clips}", "--method", "gradcan"), "unknown method 'gradcan' (did you mean 'gradcam'"),
        (("{clips}", "--target", "label"), "unknown label 'swiming' (did you mean 'swimming'"),
        (("{clips}", "--limit", "0"), "limit must be at least 1, not 0"),
        (("{clips}", "--slots", "2"), "--address and --slots are for --engine ray"),
        (("{clips}", "--trained", "a", "b"), "--trained: 2 are given for 1 network"),
        (("{clips}", "--engine", "spark"), "spark"),
        (("{empty}",), "holds no clips"),
        (("{clips}", "--out", "{clips}"), "a run is a folder, and this is a file"),
        (("{clips}", "--outt", "x"), "evaluate has no option --outt"),
        (("a.mp4",), "is a video, not a list of them"),
    ],
)
def test_bad_usage_is_one_line(tmp_path: Path, table: Table, arguments: tuple[str, ...], said: str) -> None:
    clips = table(("a.mp4", "swiming"))
    (tmp_path / "empty.csv").write_text("path,label\n")
    given = [a.format(clips=clips, empty=tmp_path / "empty.csv") for a in arguments]
    out = () if "--out" in given else ("--out", str(tmp_path / "run"))
    ran = tubelens("evaluate", *given[:1], "--model", "nets.py:make", "--workers", "0", *given[1:], *out)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("tubelens: ")
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert clips.read_text().startswith("path,label")


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["evaluate", "planted:dir?n=40", *QUICK, "--method", "rise(n=32)", "--out", str(run)]
    child = forked(lambda: os._exit(main(arguments)))
    for _ in range(600):
        time.sleep(0.1)
        try:
            with RunStore.read(run) as store:
                if store.count() >= 2:
                    break
        except Exception:  # not yet made
            continue
    os.kill(child, signal.SIGINT)
    assert ended(child) == 130
    with RunStore.read(run) as store:
        assert 2 <= store.count() == store.count("maps") == store.count("predictions") < 40


def test_long_work_is_announced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter((100.0, 102.0, 104.0, 106.0))
    monkeypatch.setattr(verb.time, "monotonic", lambda: next(now))
    with verb._told("evaluating") as tick:
        for n in range(1, 5):
            tick(n, 100)
    assert capsys.readouterr().err == "note: 98 clips and networks to go, 2 s each: about 3 min\n"
