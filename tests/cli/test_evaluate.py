"""`tubelens evaluate`: what is told, what is kept, and the exit code."""

from __future__ import annotations

import csv
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tubelens as tl
from tests.cli.commands import done, tubelens
from tests.evaluate.runs import ended, forked
from tests.videos import coded_video
from tubelens.cli import evaluate as verb
from tubelens.cli import main
from tubelens.evaluate.summary import Evaluation
from tubelens.methods.record import voxels
from tubelens.metrics import metric
from tubelens.store import RunStore

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_metric.py"
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
    assert re.match(r" *method +metric +n +mean +std +random", lines[1])
    assert re.match(r" *gradcam +sparseness +2 +0\.\d{3} +\d\.\d{3}", lines[3])
    assert re.match(rf"{run}: 4 scores, 0 there before \(\d+ s\)", lines[-2])
    assert lines[-1] == f"next: tubelens report {run}"
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
    assert ran.code == 1  # energy was asked for, and is nowhere
    first, last = ran.err.splitlines()
    assert first.startswith("note: 2 scores were left out: they need to know where the evidence is")
    assert "add a column boxes" in first
    assert last == "tubelens: no score at all: energy"
    found = ran.json
    assert (found["out"], found["clips"], found["done"], found["without_truth"]) == (
        str(tmp_path / "run"),
        1,
        2,
        2,
    )
    assert [(m["model"], m["metric"], m["n"], m["std"], m["state"]) for m in found["means"]] == [
        ("mine", "sparseness", 1, None, ""),
        ("theirs", "sparseness", 1, None, ""),
        ("mine", "energy", 0, None, "no truth"),
        ("theirs", "energy", 0, None, "no truth"),
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
    assert ran.code == 1  # of tubes there is nothing
    assert len(ran.err.splitlines()) == 3
    assert re.search(r"^tubelens: failed: .*torn\.mp4.*$", ran.err, re.MULTILINE)
    assert re.search(r"^tubelens: failed: tubes: .*affine", ran.err, re.MULTILINE)
    assert ran.err.endswith("tubelens: no score at all: tubes\n")
    assert "1 scores, 0 there before, 3 failed" in ran.out
    assert re.search(r"^ *tubes +sparseness +0 +failed *$", ran.out, re.MULTILINE)
    over = tubelens(
        "evaluate", clips, *options, "--method", "gradcam", "tubes", "--out", run, "--skip-failed"
    )
    assert over.code == 1
    assert over.err == (
        "note: 2 units failed before and were left alone (--skip-failed)\ntubelens: no score at all: tubes\n"
    )
    alone = tubelens("evaluate", clips, *options, "--method", "gradcam", "--out", run, "--skip-failed")
    assert alone.code == 0  # tubes is in the run, but nobody asks for it now
    worst = tubelens("evaluate", clips, *options, "--method", "tubes", "--out", tmp_path / "worst")
    assert worst.code == 1
    maps = ("evaluate", clips, *options[:-2], "--method", "gradcam", "tubes", "--out", tmp_path / "maps")
    assert tubelens(*maps).err.endswith("tubelens: no map at all: tubes\n")


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

    def work() -> None:
        # a test run in the background of a shell inherits SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(main(arguments))

    child = forked(work)
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


def test_ctrl_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "evaluate", interrupted)
    ran = tubelens("evaluate", "planted:dir?n=2", *QUICK, "--out", tmp_path / "run")
    said = "tubelens: interrupted; what was committed is kept: the same command goes on\n"
    assert (ran.code, ran.out, ran.err) == (130, "", said)


def test_the_random_anchor_stands_beside_the_mean() -> None:
    """Seeds of a clip are averaged first, and clips without one of the two count in neither."""
    columns = {
        "clip": np.array([1, 1, 2, 3, 4]),
        "value": np.array([0.2, 0.4, 0.6, 0.9, np.nan]),
        "random": np.array([0.3, 0.5, 0.6, np.nan, 0.0]),
    }
    for up, worse in ((True, True), (False, False), (None, False)):
        assert verb._beside(columns, {"higher_is_better": up}) == (pytest.approx(0.5), worse)
    columns["random"] -= 0.2
    assert verb._beside(columns, {"higher_is_better": True}) == (pytest.approx(0.3), False)
    assert verb._beside(columns, {"higher_is_better": False})[1]
    columns["random"][:] = np.nan
    value, worse = verb._beside(columns, {"higher_is_better": True})
    assert (np.isnan(value), worse) == (True, False)


def test_the_table_marks_what_is_worse_than_random(tmp_path: Path) -> None:
    (tmp_path / "worse.py").write_text(
        EXAMPLE.read_text()
        .replace("flicker(saliency), self", "9.0 if clip is None else flicker(saliency) + 9, self")
        .replace("Flicker", "Worse")
    )
    run = tmp_path / "run"
    metrics = (f"{EXAMPLE}:Flicker", f"{tmp_path}/worse.py:Worse")
    ran = done(
        *("evaluate", "planted:dir?n=2", *QUICK[:4], "--method", "tubes", "--metric", *metrics, "--out", run)
    )
    with RunStore.read(run) as store:
        cells = store.cells(store.ids("metrics")[metrics[0]])
    mean, random = cells["value"].mean(), cells["random"].mean()
    assert mean < random
    assert re.search(rf"Flicker +2 +{mean:.3f} +\d\.\d{{3}} +{random:.3f} *$", ran.out, re.MULTILINE)
    assert re.search(r"Worse +2 .* worse than random *$", ran.out, re.MULTILINE)


def test_notes_of_the_run_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Table) -> None:
    @dataclass(frozen=True)
    class Noted(Evaluation):
        notes: tuple[str, ...] = ("2 of 3 labels are none of the model's classes",)

    evaluate = verb.evaluate

    def noted(*args: Any, **options: Any) -> Evaluation:
        found = vars(evaluate(*args, **options))
        return Noted(**{key: value for key, value in found.items() if key != "notes"})

    monkeypatch.setattr(verb, "evaluate", noted)
    clips = table(("a.mp4", "swimming"))
    ran = tubelens("evaluate", clips, "--model", "nets.py:make", *QUICK, "--out", tmp_path / "run")
    assert (ran.code, ran.err) == (0, "note: 2 of 3 labels are none of the model's classes\n")


def test_the_example_of_a_metric() -> None:
    """A still map does not flicker; one that is all in one frame loses it once and gains it once."""
    clip = tl.Clip.from_array(np.zeros((8, 4, 4, 3), dtype=np.uint8))
    model = tl.wrap_scorer(lambda clips: clips.mean((1, 2, 3, 4))[:, None], frames=8, size=4)
    why = tl.explain(model, clip, "occlusion", target=0)
    score = metric(f"{EXAMPLE}:Flicker")
    for frames, expected in ((slice(None), 0.0), (3, 2.0), (0, 1.0)):
        values = torch.zeros(8, 4, 4)
        values[frames] = 2.0
        found = score(replace(why, parts=(voxels(values),)))
        assert found.value == pytest.approx(expected, abs=1e-6)
        assert found.higher_is_better is False
    assert 0 < found.anchors["random"] <= 2


def test_the_guide_shows_a_method_that_runs(tmp_path: Path) -> None:
    guide = (EXAMPLE.parents[1] / "docs" / "guide.md").read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "class Late" in block
    ]
    (tmp_path / "late.py").write_text(code)
    done(
        *("evaluate", "planted:dir?n=1", *QUICK[:4], "--out", tmp_path / "run", "--metric", "ap"),
        *("--method", f"{tmp_path}/late.py:Late(power=2)"),
    )
    with RunStore.read(tmp_path / "run") as store:
        why = store.explanation(1, 1, 1)
    assert why is not None
    late = why.saliency.abs().sum((1, 2))
    assert late[0] == 0 < late[-1]


def test_long_work_is_announced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter((100.0, 102.0, 104.0, 106.0))
    monkeypatch.setattr(verb.time, "monotonic", lambda: next(now))
    with verb._told("evaluating") as tick:
        for n in range(1, 5):
            tick(n, 100)
    assert capsys.readouterr().err == "note: 98 clips and networks to go, 2 s each: about 3 min\n"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["path,label", "warm.npy,ring"], "clips.csv, line 2: {}/warm.npy: 16-bit values"),
        (
            ["path,label", "warm.npy?bits=14&bands=UV,ring"],
            "{}/warm.npy?bits=14&bands=UV has bands UV",
        ),
        (["path:visible,path:ir,label", "warm.npy?bits=14,,ring"], "line 2 (path:ir is empty): visible="),
    ],
)
def test_what_the_first_clip_lacks_is_said_before_any_work(
    rows: list[str], said: str, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 16000, (20, 40, 50))
    np.save(tmp_path / "warm.npy", values.astype(np.uint16))
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    ran = tubelens("evaluate", tmp_path / "clips.csv", "--model", "planted_xor", *QUICK, "--out", run)
    assert (ran.code, ran.out) == (2, "")
    assert said.format(tmp_path) in ran.err
    assert ran.err.count("\n") == 1
    assert not run.exists()


def test_a_later_line_that_lacks_a_spectrum_is_named_among_the_failures(tmp_path: Path) -> None:
    clip = tl.planted.generate(0, "xor").pixels.permute(1, 2, 3, 0).numpy()
    np.savez(tmp_path / "seen.npz", frames=clip[..., :3])
    np.savez(tmp_path / "warm.npz", frames=clip[..., 3])
    seen, warm = "seen.npz?range=0:1", "warm.npz?range=0:1"
    (tmp_path / "clips.csv").write_text(
        f"path:visible,path:ir,label\n{seen},{warm},alike\n{seen},,alike\n".replace("?", "?fps=8&")
    )
    run = tmp_path / "run"
    ran = tubelens("evaluate", tmp_path / "clips.csv", "--model", "planted_xor", *QUICK, "--out", run)
    assert ran.code == 0
    assert "clips.csv, line 3 (path:ir is empty): visible=" in ran.err
    assert "has bands R, G, B but the model needs R, G, B, IR: give a stream with IR" in ran.err
    assert "as in visible=a.mp4|ir=b/" in ran.err
