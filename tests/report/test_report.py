"""The whole report, the comparison of runs, and their verbs: on good runs, odd ones and none."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import tempfile
import tracemalloc
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.million_rows import METHODS, METRICS, fill
from PIL import Image
from scipy import stats

from tests.report.made import METRICS as MEASURED
from tests.report.made import explained, make, usual
from tubelens.cli.report import Compare, Report
from tubelens.errors import InputError, OptionError, OutputError
from tubelens.evaluate.report import compare_runs, write_report
from tubelens.evaluate.report import write as writing
from tubelens.evaluate.report.panels import panels
from tubelens.evaluate.report.presets import preset
from tubelens.evaluate.report.read import read
from tubelens.evaluate.report.sections import section
from tubelens.evaluate.report.thumbnails import extremes, middle
from tubelens.render.source import open_source
from tubelens.store import reading
from tubelens.store.cells import FILE, Failure

VOID = {"meta", "img", "br", "link"}


class Checked(HTMLParser):
    """Every element is closed, every id is there once, and nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href"):
                self.links.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def checked(file: Path) -> tuple[str, Checked]:
    text = file.read_text(encoding="utf-8")
    found = Checked()
    found.feed(text)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith(("#", "data:image/")) for link in found.links)
    inside = {link[1:] for link in found.links if link.startswith("#")}
    assert inside <= set(found.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(found.ids)
    assert not re.findall(r"@import|fetch\(|XMLHttpRequest", text)
    return " ".join(found.words), found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run with everything in it, and its report."""
    folder = tmp_path_factory.mktemp("full")
    run = make(
        folder / "run",
        clips=8,
        spectra=("RGB", "IR"),
        models=(
            ("net RGB", {"network": "net", "trained": "RGB"}),
            ("net IR", {"network": "net", "trained": "IR"}),
        ),
        methods=("GradCAM(layer=None)", "rise(n=20)", "rise(parity=icpr2022)", "tubes"),
        anchors=lambda clip, method, metric: {"random": 0.42, "time_mean": 0.1 if method == "tubes" else 0.2},
        failures=[(3, 1, Failure(2, 0, 0, "VideoError", "<b>cut & short</b>"))],
        names=lambda i: str(folder / f"clip{i:02d}.mp4"),
        maps=lambda i: explained(folder, i),
    )
    (folder / "clip02.mp4").unlink()
    return run, write_report(run, layout="icpr2022", thumbnails=2)


def test_the_page_is_whole_and_needs_nothing_else(written: tuple[Path, Any]) -> None:
    run, report = written
    words, found = checked(report.out / "report.html")
    assert report.out == run / "report"
    assert "<b>cut & short</b>" in words  # as text, not as an element
    assert "4 clips are too few for a test to show anything" in words
    assert "trained on IR" in words
    assert "ICPR 2022 layout" in words
    assert "not drawn" in words
    assert "the video is not where it was" in words
    assert sum(link.startswith("data:image/jpeg") for link in found.links) >= 8
    assert not list(run.glob(".*"))


def test_every_file_is_there_and_reads(written: tuple[Path, Any]) -> None:
    _, report = written
    assert {p for p in report.out.rglob("*") if p.is_file()} == {
        *report.files,
        report.out / "files.json",
        report.out / "report.json",
    }
    by_suffix: dict[str, list[Path]] = {}
    for path in report.files:
        by_suffix.setdefault(path.suffix, []).append(path)
    assert {k: len(v) for k, v in by_suffix.items()} == {
        **{".html": 1, ".csv": len(report.tables), ".tex": len(report.tables)},
        **{".png": len(report.figures), ".svg": len(report.figures)},
    }
    for path in by_suffix[".svg"]:
        assert ET.parse(path).getroot().tag.endswith("svg")
    for path in by_suffix[".png"]:
        pixels = np.array(Image.open(path).convert("RGB"))
        edges = (pixels[[0, -1]], pixels[:, [0, -1]])
        assert all((edge == 255).all() for edge in edges)  # nothing is cut off
    names = {d.name for d in report.figures}
    assert names == {
        *(f"{kind}-{m}" for kind in ("means", "curves", "ranks") for m in ("insertion", "deletion")),
        *(f"icpr2022-curves-{m}" for m in ("insertion", "deletion")),
    }


def test_json_and_csv_say_what_the_run_holds(written: tuple[Path, Any]) -> None:
    run, report = written
    said = json.loads((report.out / "report.json").read_text(encoding="utf-8"))
    assert (said["cells"], said["clips"], said["failures"]) == (8 * 2 * 4 * 2, 8, 1)
    with read(run) as results:
        panel = next(p for p in results.panels if p.metric.name == "deletion" and p.place == "net, IR on RGB")
    (row,) = (
        row
        for row in said["tables"]["table-deletion"]
        if (row["trained"], row["spectrum"], row["method"]) == ("IR", "RGB", "tubes")
    )
    assert row["mean"] == pytest.approx(panel.values[3].mean())
    lines = csv.DictReader(io.StringIO((report.out / "tables" / "summary-deletion.csv").read_text()))
    (line,) = (line for line in lines if line["method"] == "tubes")
    assert float(line["net, IR on RGB: mean"]) == pytest.approx(panel.values[3].mean())


def test_the_icpr_layout_has_its_rows_its_columns_and_prefers_the_published_variant(
    written: tuple[Path, Any],
) -> None:
    run, report = written
    (table,) = (t for t in report.tables if t.name == "icpr2022-insertion")
    assert [row["method"] for row in table.rows] == ["Grad-CAM", "RISE", "SIDU"]
    assert table.above == (
        (("", 1), ("net", 4)),
        (("", 1), ("trained on RGB", 2), ("trained on IR", 2)),
    )
    assert [c.title for c in table.columns] == ["method", "RGB", "IR", "RGB", "IR"]
    with read(run) as results:
        panel = next(p for p in results.panels if p.place == "net, RGB on IR")
    rise = table.rows[1]["net, RGB on IR: mean"]
    assert rise == pytest.approx(panel.values[panel.methods.index("rise(parity=icpr2022)")].mean())
    assert "net, RGB on IR: mean" not in table.rows[2]  # no SIDU in this run
    assert "insertion: no SIDU" in report.warnings


def test_pictures_are_the_middle_frame_with_its_heat(tmp_path: Path) -> None:
    made = explained(tmp_path, 0)
    picture = middle(made, open_source(made.source)).astype(int)
    assert picture.shape == (3 * 48, 3 * 64, 3)  # small frames are drawn larger
    changed = np.abs(picture - 90).max(axis=2) > 20
    assert changed[:48, :60].all()
    assert not changed[90:, 120:].any()


def test_the_ends_are_the_best_and_the_worst_clips(tmp_path: Path) -> None:
    run = make(tmp_path / "run", clips=9)
    with read(run) as results:
        for panel in results.panels:
            found = extremes(results, panel, 2, pictures=True)
            values = panel.values[1]  # rise
            order = np.argsort(-values if panel.metric.higher else values)
            assert [e.clip for e in found] == [*order[:2], *order[-2:]]
            assert [e.worst for e in found] == [False, False, True, True]
            assert {e.why for e in found} == {"no map was stored"}
            assert len(extremes(results, panel, 100, pictures=False)) == 9
            assert extremes(results, panel, 0, pictures=False) == []


def test_the_same_run_gives_the_same_report_and_takes_the_place_of_the_old(tmp_path: Path) -> None:
    run = make(tmp_path / "run", clips=4, metrics=MEASURED[:1])
    first = write_report(run)
    before = {p: p.read_bytes() for p in first.files}
    second = write_report(run)
    assert {p: p.read_bytes() for p in second.files} == before
    shorter = write_report(run, layout="icpr2022")
    assert len(shorter.files) > len(first.files)


def test_what_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    run = make(tmp_path / "run", clips=2, metrics=MEASURED[:1], methods=("tubes",))
    out = write_report(run).out
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"holds other files \(notes.txt\)"):
        write_report(run)
    assert (out / "report.html").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError, match="this is a file"):
        write_report(run, tmp_path / "file")


@pytest.mark.parametrize("fails", ["to_latex", "_page"])
def test_nothing_half_written_is_left_and_an_earlier_report_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    run = make(tmp_path / "run", clips=2, metrics=MEASURED[1:], methods=("tubes",))
    page = write_report(run).files[0]
    before = page.read_bytes()

    def full(*given: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, fails, full)
    with pytest.raises(OutputError, match="No space left"):
        write_report(run)
    assert page.read_bytes() == before
    with pytest.raises(OutputError):
        write_report(run, tmp_path / "deep" / "er")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    assert not list(run.glob(".*"))


def test_a_run_that_cannot_be_written_to_says_where_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path / "run", clips=2, metrics=MEASURED[1:], methods=("tubes",))
    make_room = tempfile.mkdtemp

    def denied(*given: Any, dir: Path, **options: Any) -> str:
        if Path(dir) == run:
            raise PermissionError(13, "Permission denied")
        return make_room(*given, dir=dir, **options)

    monkeypatch.setattr(tempfile, "mkdtemp", denied)
    with pytest.raises(OutputError, match=r"Permission denied.*give another --out"):
        write_report(run)
    assert write_report(run, tmp_path / "elsewhere").files[0].exists()


# ── odd runs ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_run(tmp_path: Path) -> None:
    run = make(tmp_path / "run", clips=0, methods=(), metrics=(), models=())
    report = write_report(run)
    words, _ = checked(report.files[0])
    assert "There are no scores in this run yet." in words
    assert report.tables == report.figures == ()


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_one_clip_and_one_method(tmp_path: Path, value: float) -> None:
    run = make(tmp_path / "run", lambda *cell: value, clips=1, labels=("run",), methods=("tubes",))
    report = write_report(run)
    words, _ = checked(report.files[0])
    (table,) = (t for t in report.tables if t.name == "table-insertion")
    (row,) = table.rows
    assert (row["n"], row["undefined"]) == ((1, 0) if value == 0.5 else (0, 1))
    assert ("0.500" in words) == (value == 0.5)
    assert not any(d.name.startswith("ranks") for d in report.figures)


def test_all_failed(tmp_path: Path) -> None:
    gone = [(i + 1, 1, Failure(0, 0, 0, "VideoError", "no such file")) for i in range(25)]
    report = write_report(make(tmp_path / "run", lambda *cell: None, clips=25, failures=gone))
    words, _ = checked(report.files[0])
    assert words.count("no such file") == 25 + 1  # and its reason once
    assert report.failures == 25
    assert report.cells == 0


def test_names_that_are_markup_or_formulas_or_long(tmp_path: Path) -> None:
    odd = ("<script>alert(1)</script>", "a$b_{c}%", "x" * 200)
    report = write_report(
        make(
            tmp_path / "run",
            methods=odd,
            labels=("<i>", "&amp;"),
            names=lambda i: f"clips/<{i}>&.mp4",
            metrics=[("<m>", {"higher_is_better": True, "kind": "curve"}), ("m", {"higher_is_better": True})],
        )
    )
    words, _ = checked(report.files[0])
    assert "<script>alert(1)</script>" in words
    for drawn in report.figures:
        width = np.array(Image.open(io.BytesIO(drawn.png())).convert("L"))
        assert (width[:, [0, -1]] == 255).all()


def test_metrics_whose_names_differ_in_signs_alone_do_not_share_files(tmp_path: Path) -> None:
    metrics = [(f"insertion(fill={f})", {"higher_is_better": True}) for f in ("a b", "a-b")]
    report = write_report(make(tmp_path / "run", metrics=metrics, clips=3))
    assert len(set(report.files)) == len(report.files)
    checked(report.files[0])


@pytest.mark.parametrize("kind", ["missing", "folder", "garbage", "other"])
def test_no_run(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    if kind != "missing":
        run.mkdir()
    if kind == "garbage":
        (run / FILE).write_bytes(b"not a database" * 100)
    if kind == "other":
        sqlite3.connect(run / FILE).execute("CREATE TABLE t (x)").connection.close()
    before = sorted(run.rglob("*")) if run.exists() else None
    with pytest.raises(InputError) as told:
        write_report(run)
    assert str(run) in str(told.value)
    assert (sorted(run.rglob("*")) if run.exists() else None) == before


def test_unknown_preset_names_the_near_one() -> None:
    with pytest.raises(OptionError, match="did you mean 'icpr2022'"):
        preset("icpr22")


# ── many rows ────────────────────────────────────────────────────────────────────────────────────────────


def test_statements_and_memory_do_not_grow_oddly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    opened = reading._readable

    def traced(file: Path) -> sqlite3.Connection:
        connection = opened(file)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(reading, "_readable", traced)
    counted: dict[int, tuple[int, int]] = {}
    for clips in (10, 100):
        rows = fill(tmp_path / str(clips), clips)
        assert rows == clips * 2 * len(METHODS) * len(METRICS)
        statements.clear()
        with read(tmp_path / str(clips)) as results:
            for name in ("insertion", "road"):
                group = results.of_metric()[name]
                section(results, group[0].metric, group)
            count = len(statements)
        tracemalloc.start()
        with read(tmp_path / str(clips)) as results:
            _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        counted[rows] = (count, peak)
    (few, small), (many, large) = counted.values()
    assert few == many <= 30
    assert (large - small) / (20_000 - 2_000) < 1_000  # bytes a row, those of the reader's pieces included


def test_panels_of_nothing() -> None:
    from tubelens.evaluate.report.panels import Facts

    empty = {name: np.empty(0, int) for name in ("clip", "model", "method", "metric")}
    assert list(panels(Facts([], [], [], []), empty)) == []


# ── two runs ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    def after(clip: int, model: str, method: str, metric: str, seed: int) -> float | None:
        before = usual(clip, model, method, metric, seed)
        return before + {"rise": 0.1, "gradcam": 0.001 * (-1) ** clip}.get(method, 0)

    first = make(tmp_path / "a", clips=14, right=lambda clip, model: clip not in (1, 2, 5))
    second = make(
        tmp_path / "b",
        after,
        clips=12,
        methods=("gradcam", "rise", "tubes"),
        right=lambda clip, model: clip not in (1, 7),
        settings={"frames": 16},
    )
    return first, second


def test_what_changed_is_told_with_its_direction(two: tuple[Path, Path]) -> None:
    found = compare_runs(*two)
    rows = {(row["metric"], row["method"]): row for row in found.changes.rows}
    assert set(rows) == {(m, k) for m in ("insertion ↑", "deletion ↓") for k in ("gradcam", "rise")}
    better, worse, same = (
        rows["insertion ↑", "rise"],
        rows["deletion ↓", "rise"],
        rows["insertion ↑", "gradcam"],
    )
    assert (better["verdict"], worse["verdict"], same["verdict"]) == ("better", "worse", "")
    assert better["n"] == 12
    assert better["difference"] == pytest.approx(0.1)
    assert better["low"] == pytest.approx(0.1)
    d = 0.001 * (-1.0) ** np.arange(12)
    with read(two[0]) as a, read(two[1]) as b:
        exact = b.panels[0].values[0] - a.panels[0].values[0][:12]
    np.testing.assert_allclose(exact, d, atol=1e-9)
    assert same["p"] == pytest.approx(stats.wilcoxon(exact, method="exact").pvalue, abs=0.3)
    assert better["holm"] == pytest.approx(min(1, 2 * better["p"]))
    assert found.clips == 12
    assert any("2 clips are in A alone" in line for line in found.only)
    assert any("methods in B alone: tubes" in line for line in found.only)
    assert any("frames (8, 16)" in line for line in found.only)


def test_clips_that_flipped_and_the_largest_changes(two: tuple[Path, Path]) -> None:
    found = compare_runs(*two)
    flips = {row["clip"]: (row["A"], row["B"], row["verdict"]) for row in found.flips.rows}
    assert flips == {
        "clip02.mp4": ("walk", "run", "mended"),
        "clip05.mp4": ("run", "walk", "mended"),
        "clip07.mp4": ("walk", "run", "broken"),
    }
    (right,) = found.right.rows
    assert (right["a"], right["b"]) == (pytest.approx(9 / 12), pytest.approx(10 / 12))
    assert (right["mended"], right["broken"], right["p"]) == (2, 1, 1.0)
    assert {row["method"] for row in found.largest.rows} == {"rise"}
    sizes = [abs(row["difference"]) for row in found.largest.rows[:10]]
    assert sizes == sorted(sizes, reverse=True)


def test_a_run_compared_with_itself_has_not_changed(two: tuple[Path, Path]) -> None:
    found = compare_runs(two[0], two[0])
    assert all(row["p"] == 1 and not row["verdict"] for row in found.changes.rows)
    assert found.flips.rows == found.largest.rows == found.only == ()


def test_models_are_paired_by_name_or_as_told(tmp_path: Path) -> None:
    a = make(tmp_path / "a", clips=3, models=(("old", {}),))
    b = make(tmp_path / "b", clips=3, models=(("new", {}),))
    both = make(tmp_path / "both", clips=3, models=(("x", {}), ("y", {})))
    assert {row["model"] for row in compare_runs(a, b).changes.rows} == {"old → new"}
    assert {row["model"] for row in compare_runs(both, both).changes.rows} == {"x", "y"}
    assert {row["model"] for row in compare_runs(both, both, ("x", "y")).changes.rows} == {"x → y"}
    with pytest.raises(OptionError, match=r"no model is in both.*--models"):
        compare_runs(a, both)
    with pytest.raises(OptionError, match="no model 'z'"):
        compare_runs(a, both, ("old", "z"))
    with pytest.raises(OptionError, match="takes two names"):
        compare_runs(a, both, ("old",))


def test_runs_that_share_nothing(tmp_path: Path) -> None:
    a = make(tmp_path / "a", clips=2)
    b = make(tmp_path / "b", clips=2, names=lambda i: f"other{i}")
    found = compare_runs(a, b)
    assert found.clips == 0
    assert all(row["n"] == 0 and not row["verdict"] for row in found.changes.rows)
    assert found.write(tmp_path / "c.html").exists()


def test_a_comparison_is_written_as_page_or_csv(two: tuple[Path, Path], tmp_path: Path) -> None:
    found = compare_runs(*two)
    words, _ = checked(found.write(tmp_path / "c.html"))
    assert "What changed" in words
    rows = list(csv.DictReader(io.StringIO(found.write(tmp_path / "c.csv").read_text())))
    assert len(rows) == 4
    with pytest.raises(OptionError, match=r"as \.html or \.csv"):
        found.write(tmp_path / "c.txt")


# ── verbs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_verb_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path / "run", clips=12, anchors=lambda clip, method, metric: {"random": 0.9})
    assert Report(str(run)).run() == 0
    told = capsys.readouterr()
    assert "insertion ↑" in told.out
    assert "*0." in told.out
    assert str(run / "report" / "report.html") in told.out
    assert "loses to random order" in told.err
    assert Report(str(run), json=True, preset="icpr2022").run() == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["tables"]) >= {"icpr2022-insertion", "table-deletion", "accuracy"}
    for wrong in (
        Report(str(run), thumbnails=-1),
        Report(str(run), preset="nature"),
        Report(str(run), seed=-1),
    ):
        with pytest.raises(OptionError):
            wrong.run()


def test_the_verb_compare(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = map(str, two)
    assert Compare(a, b, out=str(tmp_path / "x.html")).run() == 0
    told = capsys.readouterr()
    assert "12 clips in both" in told.out
    assert "better" in told.out
    assert "clips are in A alone" in told.err
    assert Compare(a, b, json=True).run() == 0
    said = json.loads(capsys.readouterr().out)
    assert {row["verdict"] for row in said["changes"]} == {"better", "worse", ""}
    with pytest.raises(OptionError, match="--out"):
        Compare(a, b, out="x.pdf").run()
