"""Names of a run that come to mean something else, and what someone's own code returns or does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import tubelens as tl
from tests.evaluate.runs import LABELS, SIZE, Clips, Energy, Net, contents, ended, forked, item, model, small
from tests.videos import coded_video
from tubelens.errors import InputError, OptionError
from tubelens.evaluate import decode
from tubelens.evaluate.decode import Decoders, Feed
from tubelens.evaluate.identity import alike, content, evidence
from tubelens.evaluate.items import Item
from tubelens.evaluate.manifest import read_manifest
from tubelens.evaluate.run import evaluate
from tubelens.metrics.complexity import Sparseness
from tubelens.metrics.curves import Insertion
from tubelens.metrics.protocol import Score
from tubelens.model import is_out_of_memory
from tubelens.store import RunStore
from tubelens.store.cells import FILE
from tubelens.truth_sources import Boxes

HERE = {"workers": 0, "threads": 1}


def go(manifest: Any, out: Path, net: Any = None, method: Any = "saliency", metric: Any = None) -> Any:
    return evaluate(manifest, net or model(), method, metric or Sparseness(), out, **HERE)


# ── clips ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_manifest_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    readings = iter(range(100))

    def turned() -> Iterator[Item]:
        numbers = range(3) if next(readings) % 2 == 0 else reversed(range(3))
        return (replace(item(n), label=None) for n in numbers)

    def shorter() -> Iterator[Item]:
        return (item(n) for n in range(3 + shift * (next(readings) % 2)))

    with pytest.raises(InputError, match="turned: changed while it was read: run the command again"):
        go(turned, tmp_path / "turned")
    for shift in (-1, 1):
        readings = iter(range(100))
        with pytest.raises(InputError, match="shorter: changed while it was read"):
            go(shorter, tmp_path / f"shorter{shift}")


def test_other_data_under_an_old_name_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "arrays"
    rng = np.random.default_rng(0)
    arrays = [(rng.random((*SIZE, 3)).astype("f4"), None) for _ in range(2)]
    go(arrays, run)
    before = contents(run)
    assert go(arrays, run).skipped == 2
    others = [arrays[0], (1 - arrays[1][0], None)]
    with pytest.raises(OptionError, match=r"clip '000001' is no longer .* file or frames were others.*--out"):
        go(others, run)
    assert contents(run) == before
    coded_video(tmp_path / "a.mp4", 12)
    files = [(str(tmp_path / "a.mp4"), None)]
    go(files, tmp_path / "files")
    os.utime(tmp_path / "a.mp4", (0, 0))
    assert go(files, tmp_path / "files").skipped == 1  # a date is no content
    coded_video(tmp_path / "a.mp4", 20)
    with pytest.raises(OptionError, match=r"a\.mp4' is no longer what it was"):
        go(files, tmp_path / "files")


def test_every_end_of_a_file_counts(tmp_path: Path) -> None:
    file = tmp_path / "x.mp4"
    long = bytes(300_000)
    found = set()
    for data in (long, b"1" + long[1:], long[:-1] + b"1", long + b"\0", b"short", b""):
        file.write_bytes(data)
        found.add(content(Item("x", str(file))))
    assert len(found) == 6
    assert None not in found
    assert content(Item("x", str(tmp_path / "none.mp4"))) is None
    for name in ("0.png", "1.png"):
        (tmp_path / "frames").mkdir(exist_ok=True)
        (tmp_path / "frames" / name).write_bytes(b"a")
    folder = Item("x", str(tmp_path / "frames"))
    first = content(folder)
    (tmp_path / "frames" / "1.png").write_bytes(b"b")
    assert content(folder) != first


def test_corrected_truth_is_refused_and_new_truth_is_welcome(tmp_path: Path) -> None:
    def boxed(x: float | None) -> list[Item]:
        boxes = None if x is None else Boxes({None: ((x, 2, 4, 4),)})
        return [Item("k", array=item(0).array, boxes=boxes)]

    go(boxed(None), tmp_path / "run")
    assert go(boxed(0), tmp_path / "run", metric=Energy()).done == 1
    with pytest.raises(OptionError, match=r"clip 'k' .* boxes, masks or truth were others"):
        go(boxed(7), tmp_path / "run", metric=Energy())
    images = (np.zeros((4, 12, 12)), np.ones((4, 12, 12)))
    masks = [replace(item(1), boxes=None, masks=m, truth=None) for m in images]
    assert len({evidence(i) for i in (*masks, item(1), item(0), *boxed(0), *boxed(1))}) == 6


def test_facts_that_vanish_are_refused_and_labels_may_be_added(tmp_path: Path) -> None:
    part = replace(item(1), truth=None, label=None)
    go([replace(part, start=0.04, end=0.12)], tmp_path / "run")
    with pytest.raises(OptionError, match=r"its end was 0\.12 and is None"):
        go([part], tmp_path / "run")
    go([part], tmp_path / "labels")
    assert go([replace(part, label="left")], tmp_path / "labels").skipped == 1
    with pytest.raises(OptionError, match="its label was 'left' and is 'right'"):
        go([replace(part, label="right")], tmp_path / "labels")


def test_a_refused_call_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(Clips(2), run)
    before = contents(run)
    with pytest.raises(OptionError, match="weights were others"):
        go(Clips(9), run, model(seed=5))
    with pytest.raises(OptionError, match="no longer"):
        go([item(0), replace(item(1), label="right")], run, {"new": model(seed=5)}, "gradcam", Energy())
    assert contents(run) == before


def test_labels_that_are_no_classes_are_noted(tmp_path: Path) -> None:
    found = go([replace(item(i), label=x) for i, x in enumerate(("lft", "right", "midle"))], tmp_path / "run")
    assert found.notes == (
        "2 of 3 labels are none of the model's classes: no accuracy for those, and the maps explain the"
        " model's own classes",
    )
    assert go(Clips(3), tmp_path / "other").notes == ()


# ── models, methods and metrics ──────────────────────────────────────────────────────────────────────────


def test_another_preprocessing_is_another_model(tmp_path: Path) -> None:
    def fed(mean: float) -> tl.TorchModel:
        std = (0.2,) * 3
        net = Net().eval()
        return tl.wrap(net, frames=4, size=12, labels=LABELS, name="net", mean=(mean,) * 3, std=std)

    go(Clips(1), tmp_path / "run", fed(0.1))
    assert go(Clips(1), tmp_path / "run", fed(0.1)).skipped == 1
    with pytest.raises(OptionError, match=r"model 'net' .* scored one and the same clip otherwise"):
        go(Clips(1), tmp_path / "run", fed(0.3))


def test_a_black_box_is_known_by_what_it_says(tmp_path: Path) -> None:
    def box(score: Callable[[torch.Tensor], torch.Tensor]) -> tl.BlackBox:
        return tl.wrap_scorer(score, frames=4, size=12, labels=LABELS, name="box")

    one, other = model(seed=1), model(seed=2)
    go(Clips(1), tmp_path / "run", box(lambda c: one(c)), "rise(n=8)")
    assert go(Clips(1), tmp_path / "run", box(lambda c: one(c) * (1 + 1e-5)), "rise(n=8)").skipped == 1
    with pytest.raises(OptionError, match=r"model 'box' .* scored one and the same clip otherwise"):
        go(Clips(1), tmp_path / "run", box(lambda c: other(c)), "rise(n=8)")
    draws = box(lambda c: one(c) + torch.rand(len(c), 3))
    for _ in range(2):  # nothing can be said of it, so nothing is refused
        go(Clips(1), tmp_path / "draws", draws, "rise(n=8)")
    assert alike([1.0, -2.0], [1.0015, -2.0])
    assert not alike([1.0, -2.0], [1.0025, -2.0])
    assert not alike([1.0], [1.0, 1.0])


OWN = """
from dataclasses import dataclass
from typing import ClassVar
from tubelens.metrics.protocol import Score

@dataclass(frozen=True)
class Mean:
    kind: ClassVar[str] = "map"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    def __call__(self, explanation, clip=None, truth=None):
        return Score(float(explanation.saliency.abs().mean()), True)
"""


def test_code_of_ones_own_that_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own_mean.py"
    file.write_text(OWN)
    go(Clips(1), tmp_path / "run", metric=f"{file}:Mean")
    assert go(Clips(1), tmp_path / "run", metric=f"{file}:Mean").skipped == 1
    file.write_text(OWN.replace(".mean()", ".max()"))
    with pytest.raises(OptionError, match=r"Mean' is no longer .*\(its source file was another"):
        go(Clips(1), tmp_path / "run", metric=f"{file}:Mean")


def test_a_factory_that_ends_the_program_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text("def net():\n    raise SystemExit(3)\n")
    with pytest.raises(OptionError, match=r"exits\.py:net: ended the program \(exit code 3\)"):
        go(Clips(1), tmp_path / "run", f"{tmp_path / 'exits.py'}:net")


# ── what is returned ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Returns:
    """A metric that returns what it is told to."""

    kind: ClassVar[str] = "map"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False
    what: str = "none"

    def __call__(self, explanation: Any, clip: Any = None, truth: Any = None) -> Any:
        if self.what == "exit":
            raise SystemExit(3)
        return {
            "none": None,
            "number": torch.tensor(0.25),
            "numpy": np.float32(0.25),
            "infinite": Score(float("inf"), True),
            "facts": Score(0.25, True, facts=Score(0.0, True, {"n": np.float64(3)}).anchors),
            "words": "0.25",
        }[self.what]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("none", "Returns returned NoneType, not tubelens.Score"),
        ("words", "returned str, not tubelens.Score"),
        ("infinite", "returned infinity"),
        ("exit", "SystemExit: 3"),
        ("number", ""),
        ("numpy", ""),
        ("facts", ""),
    ],
)
def test_what_a_metric_returns_costs_that_metric(tmp_path: Path, what: str, said: str) -> None:
    found = go(Clips(1), tmp_path / "run", metric=(Returns(what), Sparseness()))
    assert (found.done, found.failed) == ((1, 1) if said else (2, 0))
    with RunStore.read(tmp_path / "run") as store:
        values = store.cells(1)["value"].tolist()
    assert values == ([] if said else [0.25])
    assert not said or said in found.failures[0].reason


@dataclass(frozen=True)
class OneForAll:
    """A curve metric that forgets how many maps there are."""

    kind: ClassVar[str] = "curve"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    def __call__(self, model: Any, clip: Any, maps: Any, truth: Any = None, run: Any = None) -> list[Score]:
        return [] if len(maps) == 1 else [Score(1.0, True)]


def test_a_curve_metric_that_miscounts_fails_alone(tmp_path: Path) -> None:
    found = go(Clips(1), tmp_path / "run", None, ("gradcam", "saliency"), (OneForAll(), Sparseness()))
    assert (found.done, found.failed) == (2, 2)
    assert "returned 0 scores for 1 maps" in found.failures[0].reason


@dataclass(frozen=True)
class Junk:
    """A method that returns what it is told to."""

    needs: ClassVar[str] = "scorer"
    explains: ClassVar[Any] = tl.Prob
    what: str = "none"

    def __call__(self, model: Any, clip: Any, targets: Any, run: Any = None) -> Any:
        e = tl.explain(model, clip, "saliency", targets[0])
        if self.what == "nan":
            return [replace(e, parts=(replace(e.parts[0], values=e.parts[0].values * torch.nan),))]
        if self.what == "facts":
            return [replace(e, provenance=replace(e.provenance, facts={"x": {1, 2}}))]
        return {"none": [None], "empty": [], "two": [e, e]}[self.what]


@pytest.mark.parametrize("what", ["none", "empty", "two", "nan", "facts"])
def test_what_a_method_returns_costs_that_method(tmp_path: Path, what: str) -> None:
    found = go(Clips(2), tmp_path / "run", None, (Junk(what), "gradcam"), (Sparseness(), Insertion(steps=4)))
    assert (found.done, found.failed) == (4, 4)
    assert {(f.kind, f.metric) for f in found.failures} == {("scores" if what == "nan" else "method", "-")}


# ── a process that dies ──────────────────────────────────────────────────────────────────────────────────


class Deadly(Net):
    """Ends its process on the clip of that number, unless it is tame."""

    tame: ClassVar[bool] = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.from_numpy(item(2).array).permute(3, 0, 1, 2)
        if not Deadly.tame and torch.equal(x[0], first):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def test_a_clip_that_kills_twice_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tl.wrap(Deadly().eval(), frames=SIZE[0], size=SIZE[1], labels=LABELS, name="deadly")
    run = tmp_path / "run"
    for _ in range(2):
        assert ended(forked(lambda: go(Clips(5), run, net))) == -signal.SIGKILL
    found = go(Clips(5), run, net)
    assert (found.done, found.skipped, found.failed) == (2, 2, 1)
    assert [(f.clip, f.kind) for f in found.failures] == [("clip2", "crash")]
    assert "the process died on it 2 times" in found.failures[0].reason
    monkeypatch.setattr(Deadly, "tame", True)
    assert go(Clips(5), run, net).done == 1
    with RunStore.read(run) as store:
        assert (store.failures(), store.count("cells")) == ([], 5)


def test_what_is_interrupted_is_no_crash(tmp_path: Path) -> None:
    class Stop(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.amax() <= 1 and on:
                raise KeyboardInterrupt
            return super().forward(x)

    on = False
    net = tl.wrap(Stop().eval(), frames=SIZE[0], size=SIZE[1], labels=LABELS, name="stop")
    on = True
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path / "run", 1, model=net)
    with RunStore.write(tmp_path / "again", {}) as store:
        for times in (1, 2):
            store.begin(1, 1)
            assert store.in_hand == (1, 1, times)
        store.begin(1, 2)
        assert store.in_hand == (1, 2, 1)
        store.put_back()
        assert store.in_hand is None


@pytest.mark.parametrize("what", ["empty", "header"])
def test_a_run_that_was_killed_while_it_was_made_goes_on(tmp_path: Path, what: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with RunStore.write(tmp_path / "other", {}) as store:
        tables = store._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            store._db.execute(f"DROP TABLE {table}")
        store._db.execute("VACUUM")
    (run / FILE).write_bytes(b"" if what == "empty" else (tmp_path / "other" / FILE).read_bytes())
    assert small(run, 1, threads=None, method="saliency", metric=Sparseness()).done == 1


# ── files and processes ──────────────────────────────────────────────────────────────────────────────────


def test_files_of_the_folder_one_is_in_hide_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded_video(tmp_path / "a.mp4", 12)
    (tmp_path / "numpy.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    with Decoders(1) as decoders:
        assert decoders.submit(Item("a", "a.mp4"), Feed(model().spec)).result()[0].size == SIZE
    monkeypatch.setattr(decode, "SERVE", "raise SystemExit(7)")
    with Decoders(1) as decoders, pytest.raises(InputError, match=r"could not be started \(exit code 7\)"):
        decoders.submit(Item("a", "a.mp4"), Feed(model().spec)).result()


def test_names_and_files_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match=r"pipe\.csv: is a pipe or a device"):
        read_manifest(tmp_path / "pipe.csv")
    folder = tmp_path / "data" / "left"
    folder.mkdir(parents=True)
    with open(os.fsencode(folder) + b"/\xff.mp4", "wb"):
        pass
    with pytest.raises(InputError, match="is not UTF-8: rename it"):
        read_manifest(tmp_path / "data")
    with pytest.raises(InputError, match=r"the key .* is not UTF-8"):
        list(read_manifest([replace(item(0), key="\udcff")]))


def test_memory_that_runs_out_on_the_cpu() -> None:
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
