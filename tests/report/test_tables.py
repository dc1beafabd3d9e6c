"""Panels, scores and tables against values worked out by hand."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.report.made import make, usual
from tubelens.evaluate.report.cautions import losses, told
from tubelens.evaluate.report.figures import styles
from tubelens.evaluate.report.panels import Panel
from tubelens.evaluate.report.read import read
from tubelens.evaluate.report.scores import rankings, scores
from tubelens.evaluate.report.sections import accuracy_table, class_table, section
from tubelens.evaluate.report.tables import Column, Table, number, shown, to_csv, to_latex
from tubelens.store.cells import Failure


def panels_of(run: Path) -> dict[tuple[str, str, str], Panel]:
    with read(run) as results:
        return {(p.metric.name, p.model, p.spectrum): p for p in results.panels}


def test_seeds_are_averaged_and_what_is_no_number_is_counted(tmp_path: Path) -> None:
    def value(clip: int, model: str, method: str, metric: str, seed: int) -> float | None:
        if method == "rise" and clip == 3:
            return None
        if method == "rise" and clip in (4, 5):
            return float("nan") if clip == 4 else float("inf")
        return clip + 10.0 * seed

    run = make(tmp_path / "run", value, clips=6, methods=("tubes", "rise"), seeds=(0, 1))
    panel = panels_of(run)["insertion", "net RGB", "RGB"]
    np.testing.assert_allclose(panel.values[0], np.arange(6) + 5.0)
    np.testing.assert_allclose(panel.values[1], [5, 6, 7, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(panel.undefined, [0, 4])
    np.testing.assert_allclose(panel.forwards, [10, 10])


def test_panels_part_models_and_spectra(tmp_path: Path) -> None:
    models = (("a", {"trained": "IR"}), ("b", {}))
    run = make(tmp_path / "run", clips=8, spectra=("RGB", "IR"), models=models)
    found = panels_of(run)
    assert [*found] == [
        (metric, model, spectrum)
        for metric in ("insertion", "deletion")
        for model in "ab"
        for spectrum in ("RGB", "IR")
    ]
    infrared = found["deletion", "b", "IR"]
    np.testing.assert_array_equal(infrared.clips, [2, 3, 6, 7])
    for i, clip in enumerate(infrared.clips):
        assert infrared.values[1, i] == usual(int(clip), "b", "rise", "deletion", 0)
    assert found["insertion", "a", "RGB"].place == "a, IR on RGB"
    assert infrared.place == "b, IR"


def test_models_of_one_network_are_told_apart(tmp_path: Path) -> None:
    net = {"network": "net", "trained": ""}
    models = (("net a.pth", net), ("net b.pth", net), ("net c.pth", {**net, "trained": "IR"}))
    run = make(tmp_path / "run", clips=2, models=models)
    with read(run) as results:
        places = [p.place for p in results.of_metric()["insertion"]]
        assert places == ["net a.pth, RGB", "net b.pth, RGB", "net, IR on RGB"]
        assert [row["network"] for row in accuracy_table(results).rows] == ["net a.pth", "net b.pth", "net"]


def test_scores_are_means_tests_and_holm_on_common_clips(tmp_path: Path) -> None:
    def value(clip: int, model: str, method: str, metric: str, seed: int) -> float | None:
        return None if (method, clip) == ("sidu", 0) else usual(clip, model, method, metric, seed)

    for metric, higher in (("insertion", True), ("deletion", False)):
        panel = panels_of(make(tmp_path / metric, value, clips=15))[metric, "net RGB", "RGB"]
        gradcam, rise, sidu = scores(panel, {"sidu": 1})[0]
        assert [s.best for s in (gradcam, rise, sidu)] == [False, True, False]
        assert rise.mean == pytest.approx(panel.values[1].mean())
        assert rise.std == pytest.approx(panel.values[1].std(ddof=1))
        assert rise.low < rise.mean < rise.high
        assert (sidu.n, sidu.failed) == (14, 1)
        p = [
            stats.wilcoxon(panel.values[1], panel.values[0], method="exact").pvalue,
            stats.wilcoxon(panel.values[1][1:], panel.values[2][1:], method="exact").pvalue,
        ]
        assert [gradcam.p, sidu.p] == pytest.approx(p)
        assert [gradcam.holm, sidu.holm] == pytest.approx([max(2 * min(p), p[0]), 2 * p[1]])
        sign = 1 if higher else -1
        assert gradcam.worse == pytest.approx(sign * (panel.values[1] - panel.values[0]).mean())
        assert np.isnan(rise.p)


def test_a_metric_of_which_neither_way_is_better_has_no_best(tmp_path: Path) -> None:
    metrics = [("complexity", {"higher_is_better": None}), ("unsaid", {})]
    run = make(tmp_path / "run", metrics=metrics, anchors=lambda clip, method, metric: {"random": 2.0})
    for panel in panels_of(run).values():
        found, lost = scores(panel)
        assert not any(s.best or s.loses for s in found)
        assert all(np.isnan(s.holm) for s in found)
        assert lost == []
        assert rankings([panel]) is None


def test_anchors_are_lines_and_a_loss_is_told(tmp_path: Path) -> None:
    def anchors(clip: int, method: str, metric: str) -> dict[str, float]:
        own = usual(clip, "", method, metric, 0)
        worse = 0.1 if metric == "deletion" else -0.1
        blind = own - worse if method == "sidu" else own + worse
        return {"random": 0.4, "time_mean": blind, "oracle": 1.0 if metric == "insertion" else 0.0}

    found = panels_of(make(tmp_path / "run", clips=20, anchors=anchors))
    for metric in ("insertion", "deletion"):
        panel = found[metric, "net RGB", "RGB"]
        assert panel.anchors["random"].shape == (1, 20)
        assert panel.anchors["time_mean"].shape == (3, 20)
        lines, lost = scores(panel)
        assert [s.method for s in lines if s.anchor] == [
            "random order",
            *(f"time-mean of {m}" for m in ("gradcam", "rise", "sidu")),
            "the truth",
        ]
        assert next(s for s in lines if s.method == "random order").mean == pytest.approx(0.4)
        shown = {(loss.method, loss.anchor) for loss in lost if loss.shown}
        # sidu: about .3 at insertion and .7 at deletion
        blind = {("gradcam", "random order")} if metric == "deletion" else set()
        assert shown == {("sidu", "random order"), ("sidu", "time-mean")} | blind
        assert not any(loss.anchor == "the truth" for loss in lost)
        assert ("rise", "time-mean") not in {(loss.method, loss.anchor) for loss in lost}
        loss = next(x for x in lost if (x.method, x.anchor) == ("sidu", "random order"))
        row = panel.values[2]
        behind = row < 0.4 if metric == "insertion" else row > 0.4
        assert loss.share == behind.mean()
        assert loss.mean == pytest.approx(row.mean())
        assert loss.p == pytest.approx(stats.wilcoxon(row - 0.4).pvalue)
        own = next(x for x in lost if (x.method, x.anchor) == ("sidu", "time-mean"))
        assert own.holm == pytest.approx(max(2 * min(loss.p, own.p), own.p))
        assert "its own time-mean" in str(own)
        assert own.other == pytest.approx(panel.anchors["time_mean"][2].mean())
        assert f"sidu loses to random order at {panel.metric.title}" in str(loss)
        assert next(s for s in lines if s.method == "sidu").loses == ("random order", "time-mean")


def test_an_equal_value_is_not_shown_to_lose(tmp_path: Path) -> None:
    run = make(
        tmp_path / "run",
        lambda *cell: 0.4,
        anchors=lambda clip, method, metric: {"random": 0.4},
    )
    for panel in panels_of(run).values():
        assert [loss.shown for loss in losses(panel)] == [False] * 3
        assert len(told(losses(panel))) == 3
        assert "is not shown to beat random order" in told(losses(panel))[0]


def test_ranks_take_a_clip_once_and_only_where_every_method_has_it(tmp_path: Path) -> None:
    def value(clip: int, model: str, method: str, metric: str, seed: int) -> float | None:
        if (clip, model, method) == (2, "b", "rise"):
            return None
        return usual(clip, model, method, metric, seed) + (0.3 if model == "b" else 0)

    models = (("a", {}), ("b", {}))
    run = make(tmp_path / "run", value, clips=9, models=models)
    with read(run) as results:
        panels = results.of_metric()["insertion"]
        ranked = rankings(panels)
    assert ranked is not None
    found = ranked.found
    assert found.n == 9
    a, b = (stats.rankdata(-panel.values, axis=0) for panel in panels)
    means = (a + b) / 2
    means[:, 2] = a[:, 2]  # model b has not every method there
    theirs = stats.friedmanchisquare(*means)
    assert found.chi2 == pytest.approx(theirs.statistic)
    np.testing.assert_allclose(found.ranks, means.mean(axis=1))
    assert (ranked.methods, ranked.models, ranked.dropped) == (("gradcam", "rise", "sidu"), ("a", "b"), ())


def test_classes_and_accuracy(tmp_path: Path) -> None:
    run = make(tmp_path / "run", clips=8, labels=("run", "walk"), right=lambda clip, model: clip != 3)
    with read(run) as results:
        panels = results.of_metric()["deletion"]
        table = class_table(results, panels[0].metric, panels)
        accuracy = accuracy_table(results)
    assert table is not None
    by_class = {row["label"]: row for row in table.rows}
    assert by_class["walk"]["right"] == pytest.approx(3 / 4)
    assert by_class["run"]["right"] == 1
    assert by_class["run"]["gradcam"] == pytest.approx(panels[0].values[0][::2].mean())
    best = min(panels[0].methods, key=lambda name: by_class["run"][name])
    assert by_class["run"]["bold"] == (best,)
    (row,) = accuracy.rows
    assert (row["accuracy"], row["n"]) == (pytest.approx(7 / 8), 8)


def test_failures_count_where_they_belong(tmp_path: Path) -> None:
    failures = [
        (1, 1, Failure(2, 0, 0, "VideoError", "cut short")),  # all metrics of rise
        (2, 0, Failure(0, 0, 0, "VideoError", "gone")),  # the whole clip
        (3, 1, Failure(1, 2, 0, "ScoreError", "NaN")),  # deletion of gradcam
    ]
    run = make(tmp_path / "run", clips=4, failures=failures)
    with read(run) as results:
        counted = {p.metric.name: results.failed(p) for p in results.panels}
        assert results.failures[1].reason == "gone"
    assert counted == {
        "insertion": {"gradcam": 1, "rise": 2, "sidu": 1},
        "deletion": {"gradcam": 2, "rise": 2, "sidu": 1},
    }


def test_curves_are_those_of_the_clips_and_seeds(tmp_path: Path) -> None:
    run = make(tmp_path / "run", clips=8, spectra=("RGB", "IR"), seeds=(0, 1))
    with read(run) as results:
        panel = next(p for p in results.panels if (p.metric.name, p.spectrum) == ("deletion", "IR"))
        x, found = results.curves(panel)
    np.testing.assert_allclose(x, np.linspace(0, 1, 5))
    np.testing.assert_allclose(found["rise"], np.repeat(panel.values[1][:, None], 5, axis=1), atol=1e-6)


def test_curves_of_anchors_are_those_the_cells_keep(tmp_path: Path) -> None:
    def detail(clip: int, metric: str) -> dict[str, Any]:
        return {"anchor_curves": {"random": [clip / 10] * 5}} if metric == "insertion" else {}

    run = make(tmp_path / "run", clips=8, spectra=("RGB", "IR"), detail=detail)
    with read(run) as results:
        first, second = (
            next(p for p in results.panels if (p.metric.name, p.spectrum) == (metric, "IR"))
            for metric in ("insertion", "deletion")
        )
        np.testing.assert_allclose(results.anchor_curves(first)["random"][:, 0], first.clips / 10)
        assert results.anchor_curves(second) == {}
        drawn = section(results, first.metric, [first])
        assert "Dashed: anchors." in next(d.note for d in drawn.figures if d.name == "curves-insertion")


TABLE = Table(
    "odd names",
    "50 % of $x$ & more",
    (
        Column("method", ("method",)),
        Column("mean ↑", ("mean", "std"), "pair"),
        Column("interval", ("low", "high"), "interval"),
        Column("p", ("p",), "p"),
    ),
    (
        {
            "method": "a_b\\c{d}",
            "mean": 0.5,
            "std": 0.1,
            "low": 0.4,
            "high": 0.6,
            "p": 0.0002,
            "bold": ("mean",),
        },
        {"method": "=1+1", "mean": 1234.5678, "std": None, "low": float("nan"), "high": None, "p": None},
        {"method": 'x,"y"', "mean": float("nan"), "p": 0.04, "anchor": True, "marks": {"mean": "†"}},
    ),
    above=((("", 1), ("A & B", 3)),),
)


def test_csv_reads_back_in_full_precision_and_holds_no_formula() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert [row["method"] for row in rows] == ["a_b\\c{d}", "'=1+1", 'x,"y"']
    assert float(rows[1]["mean"]) == 1234.5678
    assert rows[1]["std"] == rows[1]["low"] == rows[2]["mean"] == ""
    assert [row["anchor"] for row in rows] == ["0", "0", "1"]
    assert [row["best"] for row in rows] == ["mean", "", ""]
    assert [row["marks"] for row in rows] == ["", "", "mean †"]


def test_latex_is_escaped_and_has_the_rules_of_booktabs() -> None:
    text = to_latex(TABLE)
    assert r"\caption{50 \% of \$x\$ \& more}" in text
    assert r"a\_b\textbackslash{}c\{d\} & \textbf{0.500 \ensuremath{\pm} 0.100} & [0.400, 0.600]" in text
    assert r"\ensuremath{<} .001 \\" in text
    assert r" & \multicolumn{3}{c}{A \& B} \\" in text
    assert r"\cmidrule(lr){2-4}" in text
    assert r"\textit{x,\"y\"}".replace('\\"', '"') in text
    assert "--\\textsuperscript{\\dag}" in text
    for rule in (r"\toprule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert text.count(r"\midrule") == 2  # the anchors have one of their own
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line.replace(r"\&", "") for line in body.splitlines() if line.endswith(r"\\")]
    assert [line.count("&") for line in lines] == [1, 3, 3, 3, 3]
    assert all(
        line.count("{") == line.count("}") for line in text.replace(r"\{", "").replace(r"\}", "").splitlines()
    )


def test_numbers_keep_their_size() -> None:
    assert [number(v) for v in (0.12345, -2.5, 1234.5678, float("nan"), float("inf"))] == [
        "0.123",
        "-2.500",
        "1235",
        "–",
        "–",
    ]
    row = {"mean": 0.5, "std": float("nan")}
    assert shown(row, Column("", ("mean", "std"), "pair")) == "0.500"


def test_no_two_of_many_methods_are_drawn_alike() -> None:
    drawn = styles([f"m{i}" for i in range(24)])
    assert len({str(look) for look in drawn.values()}) == 24
