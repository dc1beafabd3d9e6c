"""What a report must not say: verdicts against the ranks, bests of few clips, methods that vanish."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tubelens as tl
from tests.evaluate.runs import Clips, model
from tests.report.made import explained, make, usual
from tubelens.errors import OptionError, VideoError
from tubelens.evaluate import evaluate
from tubelens.evaluate.report import compare_runs, write_report
from tubelens.evaluate.report.cautions import cautions, told
from tubelens.evaluate.report.figures import Curve, curves_figure, shortened
from tubelens.evaluate.report.page import html_table
from tubelens.evaluate.report.panels import Metric, Panel
from tubelens.evaluate.report.presets import icpr2022
from tubelens.evaluate.report.provenance import provenance_table
from tubelens.evaluate.report.read import read
from tubelens.evaluate.report.scores import rankings, scores, summary
from tubelens.evaluate.report.sections import accuracy_table, failure_table, full_table, reason_table, section
from tubelens.evaluate.report.statistics import row_ranks, wilcoxon, wilson
from tubelens.evaluate.report.tables import slim, to_csv, to_json
from tubelens.evaluate.report.videos import frames_of
from tubelens.metrics.curves import Insertion
from tubelens.planted import generate
from tubelens.render.paper import SOFT
from tubelens.store.cells import Cell, Failure, Prediction, Unit
from tubelens.store.reading import RunReader
from tubelens.store.runs import RunStore

Values = Mapping[str, Sequence[float]]


def scored(
    path: Path,
    values: Mapping[str, Values],
    facts: Mapping[str, Any] | None = None,
    anchors: Mapping[str, Values | Sequence[float]] | None = None,
    normalised: float | None = None,
    failures: Sequence[tuple[int, Failure]] = (),
    extra: Sequence[str] = (),
    networks: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """A run of one metric: model -> method -> a value a clip."""
    with RunStore.write(path, {}) as store:
        metric = store.id("metrics", "ap", {"higher_is_better": True, **(facts or {})})
        for name, methods in values.items():
            m = store.id("models", name, dict((networks or {}).get(name, {})))
            ids = {k: store.id("methods", k) for k in [*methods, *extra]}
            for i in range(max(map(len, methods.values()))):
                blind = {a: float(v[i]) for a, v in (anchors or {}).items() if not isinstance(v, Mapping)}
                cells = [
                    Cell(ids[k], metric, 0, float(v[i]), normalised, 1.0, blind) for k, v in methods.items()
                ]
                store.commit(Unit(store.id("clips", f"clip{i}", {"label": "a"}), m, cells))
        for clip, failure in failures:
            store.commit(Unit(clip, 1, failures=[failure]))
    return path


def only(run: Path) -> Panel:
    with read(run) as results:
        (panel,) = results.panels
        return panel


OUTLIERS = [5.0 + i if i < 3 else 0.5 + 1e-3 * i for i in range(30)]
"""The higher mean, and lower on nearly every clip than these."""
STEADY = [0.6 + 2e-3 * i for i in range(30)]


def test_a_verdict_never_points_against_the_ranks(tmp_path: Path) -> None:
    panel = only(scored(tmp_path / "a", {"net": {"A": OUTLIERS, "B": STEADY}}))
    a, b = scores(panel)[0]
    assert (a.best, b.best) == (True, False)
    assert b.holm < 0.05  # significant, but the other way round
    assert b.effect < 0 < b.worse
    assert not b.beaten
    (_, row) = full_table(panel.metric, {panel: [a, b]}).rows
    assert row["marks"]["mean"] == "†"
    scored(tmp_path / "b", {"net": {"A": STEADY, "B": OUTLIERS}})
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert {row["method"]: row["verdict"] for row in found.changes.rows} == {"A": "mixed", "B": "mixed"}


def test_a_loss_and_a_win_need_both_mean_and_ranks(tmp_path: Path) -> None:
    for i, (values, blind) in enumerate(((OUTLIERS, STEADY), (STEADY, OUTLIERS))):
        panel = only(scored(tmp_path / str(i), {"net": {"A": values}}, anchors={"random": blind}))
        (loss,) = scores(panel)[1]
        assert loss.p < 0.05
        assert not loss.shown
        assert "is not shown to beat" in str(loss)


def test_the_best_has_nearly_all_clips_and_who_has_not_is_told(tmp_path: Path) -> None:
    full = list(np.linspace(0.5, 0.9, 20))
    few = [0.99, *[math.nan] * 19]
    panel = only(scored(tmp_path / "a", {"net": {"A": full, "C": few, "D": [math.nan, *full[1:]]}}))
    found = {s.method: s for s in scores(panel)[0]}
    assert [name for name, s in found.items() if s.best] == ["D"]  # 19 of 20 are 95 %
    assert found["C"].mean > found["D"].mean
    (said,) = cautions(panel)
    assert "not over the same 20 clips: C 1, D 19" in said
    gaps = {"A": [0.9, math.nan, 0.2, 0.2], "B": [math.nan, 0.1, 0.3, 0.3]}
    panel = only(scored(tmp_path / "b", {"net": gaps}))
    assert [s.method for s in scores(panel)[0] if s.best] == ["B"]  # on the two clips that both have
    panel = only(scored(tmp_path / "c", {"net": {"A": [0.9, math.nan], "B": [math.nan, 0.1]}}))
    assert not any(s.best for s in scores(panel)[0])


def test_a_method_that_always_fails_keeps_its_line(tmp_path: Path) -> None:
    failed = [(i, Failure(3, 0, 0, "method", "cannot")) for i in range(1, 7)]
    run = scored(
        tmp_path / "a",
        {"net": {"A": [0.5] * 6, "B": list(np.linspace(0, 1, 6))}},
        anchors={"random": [0.3] * 6},
        failures=failed,
        extra=("C",),
    )
    with read(run) as results:
        (panel,) = results.panels
        assert panel.methods == ("A", "B", "C")
        lines = {s.method: s for s in scores(panel, results.failed(panel))[0]}
        assert section(results, panel.metric, [panel]).full.rows[2]["failed"] == 6
        assert rankings(results.panels).methods == ("A", "B")  # type: ignore[union-attr]
    assert (lines["C"].n, lines["C"].failed, lines["C"].best) == (0, 6, False)
    assert math.isnan(lines["C"].mean)
    assert lines["random order"].n == 6
    every = [(i, Failure(k, 1, 0, "metric", "cannot")) for i in (1, 2) for k in (1, 2)]
    with RunStore.write(tmp_path / "b", {}) as store:
        for table, name in (("models", "net"), ("metrics", "ap"), ("methods", "A"), ("methods", "B")):
            store.id(table, name)  # type: ignore[arg-type]
        for clip, failure in every:
            store.id("clips", f"clip{clip}")
            store.commit(Unit(clip, 1, failures=[failure]))
    with read(tmp_path / "b") as results:
        (panel,) = results.panels
        assert results.failed(panel) == {"A": 2, "B": 2}
    assert write_report(tmp_path / "b").files[0].exists()


def test_a_report_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = scored(tmp_path / "run", {"net": {"A": [0.1, 0.2], "B": [0.3, 0.4]}})
    cells = RunReader.cells

    def late(self: RunReader, *given: Any, **options: Any) -> dict[str, np.ndarray]:
        with RunStore.write(run, {}) as store:
            clip = store.id("clips", "late")
            store.commit(Unit(clip, 1, [Cell(1, 1, 0, 0.5)]))
        return cells(self, *given, **options)

    monkeypatch.setattr(RunReader, "cells", late)
    with read(run) as results:
        assert (results.cells, len(results.facts.clips)) == (4, 2)


def test_curves_of_anchors_go_all_the_way_from_a_run_to_the_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate(Clips(3), model(), ["gradcam", "saliency"], [Insertion(steps=4)], out=run, workers=0, threads=1)
    with read(run) as results:
        panel = results.panels[0]
        kept = results.anchor_curves(panel, "saliency")
        assert {"random", "centre", "difference"} <= set(kept)
        assert all(rows.shape[1] == len(results.curves(panel)[0]) for rows in kept.values())
        drawn = next(
            d for d in section(results, panel.metric, [panel]).figures if d.name.startswith("curves")
        )
        rows = provenance_table(results).rows
    table = {(row["what"], row["which"]): row["value"] for row in rows}
    (ax,) = drawn.figure.axes
    assert sum(line.get_color() == SOFT for line in ax.lines) >= 3
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("probability", "share inserted")
    assert table["run", "version"] == tl.__version__
    assert table["method", "saliency"].startswith("Saliency(")
    assert table["metric", "insertion(steps=4)"].startswith("Insertion(steps=4")
    assert table["seeds", "gradcam"] == "0"
    assert len([row for row in rows if row["value"].startswith("hash: ")]) == 1
    words = (write_report(run).out / "report.html").read_text()
    assert "How the run came about" in words


def test_the_time_mean_in_a_figure_is_that_of_the_best(tmp_path: Path) -> None:
    x = [0.0, 0.5, 1.0]
    with RunStore.write(tmp_path / "run", {}) as store:
        store.id("models", "net")
        metric = store.id("metrics", "insertion", {"higher_is_better": True, "kind": "curve"})
        for i in range(3):
            cells = [
                Cell(
                    store.id("methods", name),
                    metric,
                    0,
                    value,
                    curve=(x, [value] * 3),
                    detail={"anchor_curves": {"time_mean": [value / 2] * 3, "random": [0.1] * 3}}
                    if i
                    else {},
                )
                for name, value in (("A", 0.4), ("B", 0.8))
            ]
            store.commit(Unit(store.id("clips", f"clip{i}"), 1, cells))
    with read(tmp_path / "run") as results:
        (panel,) = results.panels
        np.testing.assert_allclose(results.anchor_curves(panel, "B")["time_mean"], np.full((2, 3), 0.4))
        np.testing.assert_allclose(results.anchor_curves(panel)["random"], np.full((2, 3), 0.1))
        assert "time_mean" not in results.anchor_curves(panel)


def test_a_metric_of_the_map_alone_warns_of_nothing(tmp_path: Path) -> None:
    alone = {"kind": "map", "needs_truth": False}
    for facts, warns in ((alone, False), ({"kind": "map", "needs_truth": True}, True), ({}, True)):
        run = scored(tmp_path / str(facts), {"net": {"A": [0.1] * 9}}, facts, {"random": [0.5] * 9})
        (panel,) = [only(run)]
        assert bool(scores(panel)[1]) == warns
        assert bool(told(scores(panel)[1])) == warns


def test_what_is_not_shown_is_told_once_a_method_and_not_of_few_clips(tmp_path: Path) -> None:
    even = list(np.tile([0.2, 0.6], 6))
    anchors = {"random": even[1:] + even[:1], "centre": even, "time_mean": even}
    panel = only(scored(tmp_path / "a", {"net": {"A": even}}, anchors=anchors))
    assert told(scores(panel)[1]) == [
        "A is not shown to beat random order, centre prior, its own time-mean at ap ↑ (net, 12 clips)"
    ]
    panel = only(scored(tmp_path / "b", {"net": {"A": even[:5]}}, anchors={"centre": [0.9] * 5}))
    assert told(scores(panel)[1]) == []
    assert "5 clips are too few" in cautions(panel)[0]


def test_normalised_is_a_ratio_of_means(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values, random = rng.random(9), rng.random(9) * 0.2
    oracle = random + np.array([1e-5, *[0.5] * 8])  # the first would rule a mean of ratios
    anchors = {"random": random, "oracle": oracle}
    panel = only(scored(tmp_path / "a", {"net": {"A": values}}, anchors=anchors, normalised=7.0))
    expected = (values.mean() - random.mean()) / (oracle.mean() - random.mean())
    assert panel.normalised[0] == pytest.approx(expected)
    assert panel.apart is True
    gap = values.copy()
    gap[3] = np.nan
    panel = only(scored(tmp_path / "b", {"net": {"A": gap}}, anchors=anchors, normalised=7.0))
    keep = np.isfinite(gap)
    expected = (values[keep].mean() - random[keep].mean()) / (oracle - random)[keep].mean()
    assert panel.normalised[0] == pytest.approx(expected)
    panel = only(scored(tmp_path / "c", {"net": {"A": values}}, anchors=anchors))  # the metric gives none
    assert np.isnan(panel.normalised[0])
    worse = {"random": oracle, "oracle": random}
    panel = only(scored(tmp_path / "d", {"net": {"A": values}}, anchors=worse, normalised=7.0))
    assert np.isnan(panel.normalised[0])
    assert "the truth does not beat a random order here" in cautions(panel)[0]


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────


def test_planted_clips_are_painted_again(tmp_path: Path) -> None:
    made = explained(tmp_path, 0)
    clip = generate(5, "key", frames=8, size=32)
    source = replace(made.source, path=None, size=(32, 32), fps=8.0)
    with frames_of("planted:key,frames=8,size=32#5", source) as video:
        frames = [frame for *_, frame in video.pick(range(8))]
    wanted = clip.pixels.permute(1, 2, 3, 0).numpy()
    np.testing.assert_allclose(np.stack(frames) / 255, wanted, atol=0.003)
    with pytest.raises(VideoError, match="came as an array, which a run does not keep"):
        frames_of("000001", source)


def test_videos_that_moved_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    source = explained(tmp_path / "old", 1).source
    (tmp_path / "new" / "deep").mkdir(parents=True)
    moved = (tmp_path / "old" / "clip01.mp4").rename(tmp_path / "new" / "deep" / "clip01.mp4")
    with pytest.raises(VideoError, match=r"is not where it was .*--data"):
        frames_of("clip01", source)
    for options in ({"data": tmp_path / "new"}, {"stored": str(moved)}):
        frames_of("clip01", source, **options).close()  # type: ignore[arg-type]
    with pytest.raises(VideoError, match="nor in"):
        frames_of("clip01", source, data=tmp_path / "old")
    other = explained(tmp_path, 1).source.path
    assert other is not None
    Path(other).rename(tmp_path / "old" / "clip01.mp4").write_bytes(moved.read_bytes() + b"x")
    with pytest.raises(VideoError, match="has changed"):
        frames_of("clip01", source)


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_that_was_given_is_the_name_in_tables(tmp_path: Path) -> None:
    facts = {"network": "r3d_18", "weights": "/w/KINETICS.pth"}
    names = ("mine", "r3d_18 mine", "r3d_18 KINETICS.pth")
    run = scored(tmp_path / "a", {n: {"A": [0.5]} for n in names}, networks=dict.fromkeys(names, facts))
    with read(run) as results:
        assert [p.network for p in results.panels] == list(names)
    run = scored(tmp_path / "b", {names[2]: {"A": [0.5]}}, networks={names[2]: facts})
    assert only(run).network == "r3d_18"


def test_the_accuracy_interval_is_wilsons(tmp_path: Path) -> None:
    for hits, n in ((12, 12), (3, 10), (0, 4)):
        theirs = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert all(math.isnan(v) for v in wilson(0, 0))
    values = np.array([1.0] * 9 + [0.0])
    assert summary(values, hits=True)[2:] == pytest.approx(wilson(9, 10))
    assert summary(values / 2, hits=True)[2:] != pytest.approx(wilson(9, 10))
    run = make(tmp_path / "run", clips=8)
    with read(run) as results:
        table = accuracy_table(results)
        (row,) = table.rows
        full = section(results, results.panels[0].metric, [results.panels[0]]).full
    assert (row["low"], row["high"]) == pytest.approx(wilson(8, 8))
    assert "of the predicted class" in table.note
    assert "fewer than 10 clips are too narrow" in full.note


def test_hits_and_misses_are_told_from_scores(tmp_path: Path) -> None:
    panel = only(scored(tmp_path / "a", {"net": {"A": [1] * 8, "B": [1, 0] * 4}}))
    assert scores(panel)[0][0].low == pytest.approx(wilson(8, 8)[0])
    assert not only(scored(tmp_path / "b", {"net": {"A": [1] * 8}})).hits
    assert not only(scored(tmp_path / "c", {"net": {"A": [0, 1, 0.5]}})).hits


def test_names_are_cut_in_the_middle_and_stay_apart() -> None:
    names = [f"rise(n=500, cells=(4, 8, 8), fill={fill}, p=0.{p})" for fill in "ab" for p in (3, 7)]
    brief = shortened([*names, "tubes"])
    assert len(set(brief.values())) == 5
    assert brief["tubes"] == "tubes"
    assert all(len(text) < len(name) for name, text in brief.items() if name != "tubes")
    x, clips = np.linspace(0, 1, 3), np.ones((2, 3))
    drawn = curves_figure(Metric("m", True), {"here": [Curve.of(n, x, clips) for n in names]}, {})
    (legend,) = drawn.figure.legends
    assert len(legend.get_texts()) == 4


@pytest.mark.parametrize(
    ("name", "made", "labels"),
    [
        ("insertion(steps=8, score=logit)", "Insertion(score='logit')", ("logit", "share inserted")),
        ("deletion(steps=8)", "Deletion(score='prob')", ("probability", "share removed")),
        ("windows", "Windows()", ("probability lost", "share of the time")),
    ],
)
def test_axes_say_what_they_are(name: str, made: str, labels: tuple[str, str]) -> None:
    from tubelens.store.cells import Row

    metric = Metric.of(Row(1, name, {"repr": made, "higher_is_better": True}))
    x = np.linspace(0, 1, 3)
    (ax,) = curves_figure(metric, {"": [Curve.of("A", x, np.ones((2, 3)))]}, {}).figure.axes
    assert (ax.get_ylabel(), ax.get_xlabel()) == labels


def test_the_icpr_layout_tells_which_variant_it_shows(tmp_path: Path) -> None:
    run = make(
        tmp_path / "run",
        methods=("gradcam", "rise(n=20)", "rise(parity=icpr2022)", "sidu(parity=icpr2022)"),
        metrics=[("insertion(parity=icpr2022)", {"higher_is_better": True})],
    )
    with read(run) as results:
        first = icpr2022(results)
    said = " | ".join(first.missing)
    assert "RISE is rise(parity=icpr2022), not rise(n=20)" in said
    assert "Grad-CAM is gradcam, not the published variant" in said
    assert "SIDU is" not in said
    assert "insertion(parity=icpr2022) is not" not in said
    assert "⚠" not in first.tables[0].note
    with read(make(tmp_path / "plain", methods=("gradcam",))) as results:
        assert "insertion is not the published variant" in " | ".join(icpr2022(results).missing)


def test_ranks_are_taken_within_a_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    n = 12
    small = rng.random(n) * 0.01
    loud = {"A": rng.random(n), "B": rng.random(n)}  # says nothing, on a wide scale
    clear = {"A": small + 0.02, "B": small}
    run = scored(tmp_path / "a", {"m1": loud, "m2": clear, "m3": clear, "m4": {"A": small}})
    with read(run) as results:
        ranked = rankings(results.panels)
        note = next(d.note for d in section(results, results.panels[0].metric, results.panels).figures[::-1])
    assert ranked is not None
    assert ranked.found.ranks == (1.0, 2.0)  # two models of three, on every clip
    assert (ranked.models, ranked.dropped) == (("m1", "m2", "m3"), ("m4",))
    assert "m1, m2, m3" in note
    assert "m4" in note


def test_rounding_is_no_difference() -> None:
    a = np.random.default_rng(0).random(12)
    b = a - 1e-9 * (1 + a)
    assert wilcoxon(a - b, 1.0).p == 1.0
    assert wilcoxon(a - b).p < 0.001
    assert wilcoxon(np.array([2e-6] * 8), 1.0).n == 8
    ranks, ties = row_ranks(np.array([[0.5, 0.5 + 1e-9, 0.1], [0.5, 0.6, 0.1]]), True)
    np.testing.assert_array_equal(ranks, [[1.5, 1.5, 3], [2, 1, 3]])
    assert ties == 6


def test_tables_say_what_is_bold_and_drop_what_is_the_same(tmp_path: Path) -> None:
    run = make(tmp_path / "run", clips=12)
    with read(run) as results:
        (panel, _) = results.panels
        table = section(results, panel.metric, [panel]).full
    line = next(row for row in csv.DictReader(io.StringIO(to_csv(table))) if row["method"] == "rise")
    assert line["best"] == "mean"
    assert to_json(table)[1]["best"] == "mean"
    assert "best" not in to_json(table)[0]
    brief = slim(table)
    assert brief.title == "insertion ↑: all numbers (net, trained on RGB, tested on RGB, 12 clips)"
    titles = [c.title for c in brief.columns]
    assert titles[:2] == ["method", "mean"]
    assert titles[-1] == "forwards of the metric"
    assert "tested on" not in html_table(table).split("<table>")[1]
    assert "trained" in to_csv(table).splitlines()[0]  # the files keep all


def test_failures_are_grouped_and_capped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunStore.write(run, {}) as store:
        for table, name in (("models", "net"), ("methods", "A"), ("metrics", "ap")):
            store.id(table, name)  # type: ignore[arg-type]
        for name in "xyz":
            reason = "no memory" if name == "z" else f"{name}.mp4: cut short"
            failed = [Failure(1, 0, seed, "video", reason) for seed in range(200)]
            store.commit(Unit(store.id("clips", f"{name}.mp4"), 1, failures=failed))
    with read(run) as results:
        rows = reason_table(failure_table(results)).rows
    assert [(row["reason"], row["n"]) for row in rows] == [("CLIP: cut short", 2), ("no memory", 1)]
    report = write_report(run)
    assert len(report.summary()["tables"]["failures"]) == 500
    lines = (report.out / "tables" / "failures.csv").read_text().splitlines()
    assert len(lines) == 601
    page = report.files[0].read_text()
    assert "The first 500 of 600" in page
    assert page.count("cut short") == 401


def test_flips_are_called_by_the_models_own_names(tmp_path: Path) -> None:
    for name, said in (("a", "diving"), ("b", "tennis")):
        with RunStore.write(tmp_path / name, {}) as store:
            store.id("models", "net", {"hash": name * 64})
            store.id("methods", "rise", {"repr": f"RISE({name})"})
            store.id("metrics", "ap", {"higher_is_better": True})
            for i in range(3):
                clip = store.id("clips", f"clip{i}")
                top = {"explained": 3, "top": [[said if i == 0 else "golf", 0.9]]}
                values = [Cell(1, 1, 0, math.nan if (name, i) == ("b", 1) else 0.5)]
                store.commit(Unit(clip, 1, values, prediction=Prediction(None, 3 + (name == "b"), 0.9, top)))
            store.commit(Unit(3, 1, failures=[Failure(1, 1, 1, "metric", "no memory")]))
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert [(row["clip"], row["A"], row["B"]) for row in found.flips.rows] == [("clip0", "diving", "tennis")]
    told = " ".join(found.only)
    assert "net: the weights are others in B (SHA-256 aaaaaaaa…, bbbbbbbb…)" in told
    assert "rise: its repr is RISE(a) in A and RISE(b) in B" in told
    assert "1 failures in B, most often: no memory" in told
    assert "rise has no value of 1 clips in B alone (ap ↑)" in told


def test_a_data_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    from tubelens.cli.report import Report

    run = make(tmp_path / "run", usual, clips=2)
    with pytest.raises(OptionError, match="--data"):
        Report(str(run), data=str(tmp_path / "nowhere")).run()


def test_a_value_that_only_the_truth_directs_is_not_ranked_without_it(tmp_path: Path) -> None:
    """The share of bands that carry the evidence should be high; the largest share of any need not."""
    values = {"net": {"A": STEADY, "B": [v - 0.3 for v in STEADY], "C": [v - 0.2 for v in STEADY]}}
    facts = {"truth_directs": True, "kind": "curve", "needs_truth": False}
    known = only(scored(tmp_path / "known", values, facts, anchors={"random": [0.25] * 30}))
    assert (known.metric.higher, rankings([known]) is None) == (True, False)
    blind = only(scored(tmp_path / "blind", values, facts))
    assert (blind.metric.higher, blind.metric.arrow, rankings([blind])) == (None, "", None)
    some = only(scored(tmp_path / "some", values, facts, anchors={"random": [0.25] * 29 + [math.nan]}))
    assert some.metric.higher is None
    assert not [line for line in cautions(blind) if "random" in str(line)]
