"""The test bench: its numbers by hand, what does not count, going on, other people's methods."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tubelens as tl
from tubelens.errors import OptionError, OutputError
from tubelens.evaluate import bench as module
from tubelens.evaluate import bench_tasks
from tubelens.evaluate.bench import APART, FIRST, PATIENCE, bench
from tubelens.evaluate.bench_table import Mean, Table
from tubelens.evaluate.bench_tasks import ANCHORS, MEASURES, TASKS
from tubelens.evaluate.verify import verify
from tubelens.metrics.localisation import average_precision, energy_in_tube, frame_difference
from tubelens.planted import generate
from tubelens.planted.whitebox import LABELS, WhiteBox, all_of, whitebox
from tubelens.running import Run
from tubelens.target import Prob
from tubelens.zoo.bundled import bundled

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method.py"
OWN = """
from dataclasses import dataclass
from typing import ClassVar

import torch

import tubelens as tl
from tubelens.methods.record import Recorder, voxels
from tubelens.metrics.localisation import frame_difference


@dataclass(frozen=True)
class Edges:
    needs: ClassVar[str] = "scorer"
    explains: ClassVar[type] = tl.Prob
    power: float = 1.0

    def __call__(self, model, clip, targets, run=tl.Run()):
        found = frame_difference(clip.pixels) ** self.power
        return Recorder(self, model, model(clip.pixels[None])).write([voxels(found)], clip, targets)


@dataclass(frozen=True)
class Broken(Edges):
    def __call__(self, model, clip, targets, run=tl.Run()):
        raise KeyError("no such | thing")


@dataclass(frozen=True)
class Small(Edges):
    def __call__(self, model, clip, targets, run=tl.Run()):
        flat = voxels(torch.ones(2, 2))
        return Recorder(self, model, model(clip.pixels[None])).write([flat], clip, targets)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own_methods.py").write_text(OWN)
    return str(tmp_path / "own_methods.py")


def reads_the_truth(task: str, planted: Any, networks: int | None = None) -> tl.TorchModel:
    """In place of a trained network: its probability is the share of the true tube that is there."""
    bare = planted.without_truth().pixels
    return tl.TorchModel(
        WhiteBox(planted.pixels, planted.truth[None], all_of(1), bare),
        pack=lambda clips: clips,
        output="probs",
        labels=(planted.name, "another"),
        layer="contents",
    )


@pytest.fixture
def ideal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task is solved by a formula."""
    monkeypatch.setattr(bench_tasks, "network", reads_the_truth)
    monkeypatch.setattr(bench_tasks, "fingerprint", lambda task, networks, tell: "formula")


def seconds_left_out(table: Table) -> Any:
    cells = {where: [dict(r) | {"seconds": 0} for r in records] for where, records in table.cells.items()}
    return table.methods, table.tasks, cells, table.checks


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_by_hand() -> None:
    table = bench(["gated", "tubes"], ["dir", "whitebox"], clips=2, seed=3)
    first = FIRST + 3 * APART
    model = bundled()
    kept, reasons = [], []
    for seed in range(first, first + 2 * PATIENCE):
        reason = verify(model, generate(seed, "dir"), Run(precision="fp32")).reason
        reasons += [reason] if len(kept) < 2 else []
        kept += [seed] if reason is None and len(kept) < 2 else []
    assert [r["seed"] for r in table.cells["gated", "dir"]] == kept
    assert [r["reason"] for r in table.checks["dir"]] == reasons
    assert sum(table.excluded("dir").values()) == len(reasons) - 2

    energies, precisions = [], []
    for seed in kept:
        planted = generate(seed, "dir")
        why = tl.explain(model, planted.clip(), "gated", planted.name)
        precisions.append(average_precision(why.saliency, planted.truth))
        energies.append(energy_in_tube(why.saliency, planted.truth))
    assert table.mean("gated", "dir", "ap").value == pytest.approx(np.mean(precisions), abs=1e-6)
    assert table.mean("gated", "dir", "energy").value == pytest.approx(np.mean(energies), abs=1e-6)
    assert table.mean("gated", "dir", "ap").n == 2

    white = whitebox(first)  # of a white box the score is explained, whatever the method prefers
    why = tl.explain(white.model(), white.clip(), "gated", Prob(0))
    found = table.cells["gated", "whitebox"][0]
    assert found["ap"] == pytest.approx(average_precision(why.saliency, white.truth))
    assert (found["forwards"], found["backwards"]) == (why.provenance.forwards, why.provenance.backwards)
    # tubes need an affine head, which a product is not
    assert table.mean("tubes", "whitebox", "ap").n == 0
    assert table.mean("tubes", "dir", "ap").n == 2
    (said,) = [note for note in table.notes() if note.startswith("tubes")]
    assert said.startswith("tubes: failed on whitebox: tubes need a head that is affine")


def test_anchors_frame_the_methods() -> None:
    table = bench(["gated"], ["key", "whitebox"], clips=3)
    for task in table.tasks:
        records = table.cells["oracle", task]
        assert all(r["ap"] == r["energy"] == r["pointing"] == r["tube_iou"] == 1 for r in records)
        assert all(r["distractor"] == 0 for r in records)
        known = [bench_tasks.drawn(task, r["seed"]).known() for r in records]
        volumes = [truth.volume for truth in known]
        assert table.mean("random", task, "ap").value == pytest.approx(np.mean(volumes), rel=0.15)
        assert table.mean("random", task, "energy").value == pytest.approx(np.mean(volumes), rel=0.15)
        clips = [bench_tasks.drawn(task, r["seed"]).clip() for r in records]
        expected = [
            average_precision(frame_difference(clip.pixels), truth.mask)
            for clip, truth in zip(clips, known, strict=True)
        ]
        assert table.mean("difference", task, "ap").value == pytest.approx(np.mean(expected))
        ap = [table.mean(row, task, "ap").value for row in ("oracle", "gated", "difference")]
        assert ap == sorted(ap, reverse=True)
    assert [row[0] for row in table.grid("ap")[1]] == ["gated", *ANCHORS]
    # when is no question where the truth is on every frame
    assert table.mean("oracle", "whitebox", "temporal_iou").value == 1
    assert table.mean("gated", "key", "temporal_iou").n == 0
    assert table.grid("temporal_iou")[0] == ["temporal IoU", "whitebox"]


def test_other_seeds_are_other_clips() -> None:
    tables = [bench(["saliency"], ["whitebox"], clips=2, seed=seed) for seed in (0, 1)]
    seeds = [[r["seed"] for r in table.cells["saliency", "whitebox"]] for table in tables]
    assert seeds == [[FIRST, FIRST + 1], [FIRST + APART, FIRST + APART + 1]]


def test_where_no_clip_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = bundled("random")
    monkeypatch.setattr(bench_tasks, "network", lambda task, planted, networks: random)
    monkeypatch.setattr(bench_tasks, "fingerprint", lambda task, networks, tell: "random")
    table = bench(["saliency"], ["dir"], clips=1)
    assert len(table.checks["dir"]) == sum(table.excluded("dir").values()) == PATIENCE
    assert np.isnan(table.mean("saliency", "dir", "ap").value)
    assert any("no clip counts" in note for note in table.notes())
    assert table.facts()["scores"][0]["ap"]["mean"] is None
    assert "–" in table.markdown() or "saliency" in table.markdown()


# ── the pair, the bands, the weights ─────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("ideal")
def test_a_pair_is_told_apart_by_what_looks_at_the_network(own: str) -> None:
    edges = f"{own}:Edges"
    table = bench(["saliency", edges], ["shortcut", "honest"], clips=4)
    seeds = {task: [r["seed"] for r in table.cells["saliency", task]] for task in table.tasks}
    assert seeds["honest"] == seeds["shortcut"]  # a pair shares its clips
    pair = table.pair()
    faithful = pair["saliency"]
    assert faithful.told_apart
    assert faithful.moves.value > 0.9
    assert faithful.honest[0] > 0.9 > 0.1 > faithful.honest[1]
    assert faithful.shortcut[1] > 0.9 > 0.1 > faithful.shortcut[0]
    for row in (edges, "random", "centre", "difference"):  # these have no network to look at
        assert pair[row].moves == Mean(0, 0, 0, 4)
        assert pair[row].honest == pair[row].shortcut
        assert not pair[row].told_apart
    assert pair["oracle"].moves.value > 0.9
    assert [row[-1] for row in table.pairs()[1]][:2] == ["yes", "yes"]
    assert not bench(["saliency"], ["honest"], clips=1).pair()


def test_what_one_of_a_pair_leaves_out_the_other_leaves_out_too(
    ideal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fussy(task: str, planted: Any, networks: int | None = None) -> tl.TorchModel:
        model = reads_the_truth(task, planted)
        odd = task == "honest" and planted.seed == FIRST + 1
        return replace(model, labels=model.labels[::-1]) if odd else model

    monkeypatch.setattr(bench_tasks, "network", fussy)
    table = bench(["saliency"], ["honest", "shortcut"], clips=2)
    for task in table.tasks:
        assert [r["seed"] for r in table.cells["saliency", task]] == [FIRST, FIRST + 2]
    assert table.excluded("honest") == {"misclassified": 1}
    assert table.excluded("shortcut") == {"left out with the other of the pair": 1}


@pytest.mark.usefixtures("ideal")
def test_the_band_with_the_evidence_is_asked_for_where_not_all_have_it() -> None:
    table = bench(["saliency"], ["infrared", "dir"], clips=2)
    share = table.mean("saliency", "infrared", "bands")
    assert share.n == 2
    assert share.value > 0.95  # the formula reads nothing else
    assert table.mean("saliency", "dir", "bands").n == 0
    assert bench(["saliency"], ["whitebox"], clips=1).mean("saliency", "whitebox", "bands").n == 0
    assert table.mean("random", "infrared", "bands").n == 0
    columns, rows = table.grid("bands")
    assert columns == [MEASURES["bands"].title, "infrared"]
    assert [row[0] for row in rows] == ["saliency"]  # anchors have no network


def test_random_weights_are_rows_of_their_own(own: str) -> None:
    edges = f"{own}:Edges"
    before = {k: v.clone() for k, v in bench_tasks._network("dir", None).module.state_dict().items()}
    table = bench(["tubes", edges], ["dir", "whitebox"], clips=4, randomised=True)
    after = bench_tasks._network("dir", None).module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    row = "tubes, random weights"
    assert table.mean(row, "dir", "ap").value < table.mean("tubes", "dir", "ap").value / 2
    assert (row, "whitebox") not in table.cells  # it has no weights
    # what does not look at the weights keeps its score, and is told of where chance does worse
    assert table.mean(f"{edges}, random weights", "dir", "ap") == table.mean(edges, "dir", "ap")
    flagged = [note for note in table.notes() if "AP stays above chance" in note]
    assert any(edges in note for note in flagged)


# ── other people's methods ───────────────────────────────────────────────────────────────────────────────


def test_the_example_runs_in_the_bench() -> None:
    written = f"{EXAMPLE}:TimeProfile(n=8)"
    table = bench([written], ["whitebox"], clips=3)
    assert not table.errors(written, "whitebox")
    found = table.mean(written, "whitebox", "temporal_iou").value
    assert found > table.mean("random", "whitebox", "temporal_iou").value
    assert table.cells[written, "whitebox"][0]["forwards"] == 9
    # by hand: what is lost without one eighth of the clip
    white = whitebox(FIRST)
    clip, model = white.clip(), white.model()
    why = tl.explain(model, clip, written, Prob(0))
    for piece in range(8):
        pixels = clip.pixels.clone()
        pixels[:, 2 * piece : 2 * piece + 2] = clip.pixels.mean(dim=(1, 2, 3), keepdim=True)
        lost = float(model(clip.pixels[None])[0, 0] - model(pixels[None])[0, 0])
        there = why.saliency[2 * piece : 2 * piece + 2]
        torch.testing.assert_close(there, torch.full_like(there, lost), atol=1e-5, rtol=0)


def test_a_method_that_fails_is_reported_and_the_others_go_on(own: str, tmp_path: Path) -> None:
    broken, small = f"{own}:Broken", f"{own}:Small"
    rows = {"mine": broken, "small": small, "good": "saliency"}
    keep = tmp_path / "kept.jsonl"
    table = bench(rows, ["whitebox"], clips=2, keep=keep)
    assert table.errors("mine", "whitebox") == ["KeyError: 'no such | thing'"] * 2
    assert len(table.errors("small", "whitebox")) == 2
    assert table.mean("good", "whitebox", "ap").n == 2
    assert any(note.startswith("mine: failed on whitebox: KeyError") for note in table.notes())
    # failures are not kept: the mended method is tried again
    mended = OWN.replace('raise KeyError("no such | thing")', "return Edges()(model, clip, targets)")
    Path(own).write_text(mended)
    again = bench(rows, ["whitebox"], clips=2, keep=keep)
    assert not again.errors("mine", "whitebox")


# ── going on ─────────────────────────────────────────────────────────────────────────────────────────────


class Stop(Exception):
    pass


SOME = (["saliency", "inputxgradient"], ["whitebox", "dir"], 2)


@cache
def uninterrupted() -> Table:
    return bench(*SOME)


def counted(how: Callable[..., Any], done: list[Any]) -> Callable[..., Any]:
    def one(work: Any, networks: int | None) -> Any:
        done.append(work)
        return how(work, networks)

    return one


@pytest.mark.parametrize("after", [3, 9])
def test_an_interrupted_table_goes_on(tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, whole = SOME, uninterrupted()
    keep, told = tmp_path / "deep" / "kept.jsonl", 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal told
        told += 1
        if told == after:
            raise Stop

    with pytest.raises(Stop):
        bench(*asked, keep=keep, progress=progress)
    lines = keep.read_text().splitlines()
    assert len(lines) == after
    with keep.open("a") as file:
        file.write(json.dumps(json.loads(lines[0]) | {"reason": "half"})[:60])  # a line cut short
    done: list[Any] = []
    for name in ("_verified", "_explained"):
        monkeypatch.setattr(module, name, counted(getattr(module, name), done))
    assert seconds_left_out(bench(*asked, keep=keep)) == seconds_left_out(whole)
    records = sum(map(len, whole.cells.values())) + sum(map(len, whole.checks.values()))
    assert len(done) == len(set(done)) == records - after
    assert len(keep.read_text().splitlines()) == records
    # and once more there is nothing left to do
    assert seconds_left_out(bench(*asked, keep=keep)) == seconds_left_out(whole)
    assert len(done) == records - after


def test_results_of_other_networks_and_methods_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = tmp_path / "kept.jsonl"
    count = lambda: len(keep.read_text().splitlines())  # noqa: E731
    bench(["rise(n=20)"], ["dir"], clips=1, keep=keep)
    before = count()
    bench(["rise(n=30)"], ["dir"], clips=1, keep=keep)
    assert count() == before + 1
    monkeypatch.setattr(bench_tasks, "fingerprint", lambda task, networks, tell: "other weights")
    bench(["rise(n=20)"], ["dir"], clips=1, keep=keep)
    assert count() > before + 2


@pytest.mark.slow
def test_processes_give_the_same_numbers(tmp_path: Path, own: str) -> None:
    asked = ([f"{own}:Edges(power=2.0)", "tubes"], ["dir", "whitebox"], 2)
    table = bench(*asked, jobs=2, keep=tmp_path / "kept.jsonl")
    alone = bench(*asked)
    for where, records in alone.cells.items():
        for mine, other in zip(records, table.cells[where], strict=True):
            for name in ("ap", "energy", "pointing"):
                assert mine.get(name) == pytest.approx(other.get(name), abs=1e-6)


def test_files_of_something_else_are_left_alone(tmp_path: Path) -> None:
    for content in ("a,b\n1,2\n", '{"a": 1}\n', "[1]\n", "half a thought", "\xff"):
        path = tmp_path / "file"
        path.write_text(content, encoding="latin1")
        with pytest.raises(OptionError, match="holds no results of a bench"):
            bench(["saliency"], ["whitebox"], clips=1, keep=path)
        assert path.read_text(encoding="latin1") == content
    with pytest.raises(OutputError, match="cannot be opened"):
        bench(["saliency"], ["whitebox"], clips=1, keep=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["risse"]}, "did you mean 'rise'"),
        ({"methods": []}, "needs a method"),
        ({"tasks": []}, "and a task"),
        ({"tasks": ["orderr"]}, "did you mean 'order'"),
        ({"clips": 0}, "clips >= 1"),
        ({"clips": 5000}, "at most 2000"),
        ({"jobs": 0}, "jobs >= 1"),
        ({"seed": -1}, "seed >= 0"),
        ({"methods": {"random": "tubes"}}, "cannot be called 'random'"),
    ],
)
def test_nonsense_is_refused_before_anything_is_done(options: dict[str, Any], message: str) -> None:
    asked = {"methods": ["tubes"], "tasks": ["whitebox"], "clips": 1} | options
    with pytest.raises(OptionError, match=message):
        bench(**asked)


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", TASKS)
def test_a_network_is_asked_for_what_it_should_see(task: str) -> None:
    planted = bench_tasks.drawn(task, 3)
    truth = planted.known()
    assert truth.volume > 0
    assert truth.distractor is not None
    if task == "shortcut":
        other = bench_tasks.drawn("honest", 3)
        assert torch.equal(planted.clip().pixels, other.clip().pixels)
        assert not torch.equal(truth.mask, other.known().mask)
        saliency = truth.mask.float()
        assert bench_tasks.masses(saliency, 3)[1] == 1
        assert bench_tasks.masses(other.known().mask.float(), 3)[0] == 1


def test_networks_of_other_seeds_are_trained_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def model(name: str, seed: int = 0, settings: Any = None, report: Any = None) -> tl.TorchModel:
        asked.append((name, seed, settings is not None))
        if report is not None:
            report(0, 0.5)
        return bundled("random", seed)

    bench_tasks._network.cache_clear()
    monkeypatch.setattr(bench_tasks, "planted_model", model)
    told: list[tuple[str, int, int]] = []
    found = {
        networks: bench_tasks.fingerprint("dir", networks, lambda *said: told.append(said))
        for networks in (None, 0, 1)
    }
    bench_tasks._network.cache_clear()
    assert asked[0] == ("dir", 0, False)  # of the package
    assert asked[1:] == [("dir", 0, True)] * 2 + [("dir", 1, True)] * 2
    assert found[0] != found[1]
    assert told == [("training bundled", 1, 860)] * 2


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """No generator of the process is drawn from."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_of_white_boxes_are_classes() -> None:
    assert bench_tasks.target("whitebox", 0) == Prob(0)
    assert bench_tasks.target("dir", 5) == 5
    assert whitebox(0).model().labels == LABELS
