"""What becomes of what fails: it is recorded with its reason, the rest goes on, and it is tried again."""

from __future__ import annotations

import csv
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import tubelens as tl
from tests.evaluate.runs import (
    LABELS,
    METHODS,
    Again,
    Net,
    cells,
    contents,
    model,
    small,
)
from tests.videos import coded_video
from tubelens.errors import VideoError
from tubelens.evaluate.decode import Decoders, Feed
from tubelens.evaluate.items import Item
from tubelens.evaluate.run import evaluate
from tubelens.metrics.complexity import Sparseness
from tubelens.metrics.curves import Deletion
from tubelens.metrics.protocol import Score
from tubelens.store import RunStore


def test_a_method_that_cannot_explain_a_model_fails_alone(tmp_path: Path) -> None:
    net = model(pool="max")
    found = small(
        tmp_path / "run", 2, model=net, method=("gradcam", "tubes", "layercam"), metric=Sparseness()
    )
    assert found.done == 4
    assert (found.failed, found.ok) == (2, True)
    assert {(f.clip, f.method, f.metric, f.kind) for f in found.failures} == {
        ("clip0", "tubes", "-", "method"),
        ("clip1", "tubes", "-", "method"),
    }
    assert "affine" in found.failures[0].reason
    assert [count for _, count in found.reasons()] == [2]
    small(tmp_path / "without", 2, model=net, method=("gradcam", "layercam"), metric=Sparseness())
    one, other = contents(tmp_path / "run"), contents(tmp_path / "without")
    assert [m[4:] for m in one["maps"]] == [
        m[4:] for m in other["maps"]
    ]  # bit for bit, whoever failed beside


def test_a_black_box_is_explained_by_the_methods_that_can(tmp_path: Path) -> None:
    net = model()
    box = tl.wrap_scorer(lambda clips: net(clips), frames=4, size=12, labels=LABELS, name="remote")
    found = small(tmp_path / "run", 1, model=box, metric=Sparseness())
    assert {f.method for f in found.failures} == {"gradcam", "tubes", "saliency"}
    assert all("black box" in f.reason for f in found.failures)
    assert {c[2] for c in cells(tmp_path / "run")} == {"rise(n=8)"}


@dataclass(frozen=True)
class Touchy:
    """A metric that fails where the clip's first value says so."""

    kind: ClassVar[str] = "map"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False
    calm: ClassVar[bool] = False

    def __call__(self, explanation: Any, clip: Any = None, truth: Any = None) -> Score:
        if not Touchy.calm and explanation.provenance.method.startswith("RISE"):
            raise ZeroDivisionError("no\nmass")
        return Score(1.0, True)


def test_failures_are_tried_again_or_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    found = small(run, 2, metric=(Touchy(), Sparseness()))
    assert found.failed == 2
    assert {(f.method, f.metric.split(":")[-1], f.kind) for f in found.failures} == {
        ("rise(n=8)", "Touchy", "metric")
    }
    assert found.failures[0].reason == "ZeroDivisionError: no mass"
    again = small(run, 2, metric=(Touchy(), Sparseness()))
    assert (again.done, again.failed, again.maps) == (0, 2, 0)
    with RunStore.read(run) as store:
        assert [attempts for *_, attempts in store.failures()] == [2, 2]
    over = small(run, 2, metric=(Touchy(), Sparseness()), skip_failed=True)
    assert (over.passed_over, over.failures, over.done) == (2, (), 0)
    more = small(run, 2, metric=(Touchy(), Sparseness(), Again()), skip_failed=True)
    assert (more.done, more.failures) == (2 * len(METHODS), ())
    with RunStore.read(run) as store:
        assert [attempts for *_, attempts in store.failures()] == [2, 2]  # not forgotten
    monkeypatch.setattr(Touchy, "calm", True)
    assert small(run, 2, metric=(Touchy(), Sparseness())).done == 2
    with RunStore.read(run) as store:
        assert store.failures() == []


class Hungry(Net):
    fed: ClassVar[bool] = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not Hungry.fed and len(x) == 1 and x.amax() > 0.05:
            raise torch.OutOfMemoryError("tried to allocate 640.00 GiB")
        return super().forward(x)


class Nan(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (torch.nan if x.amax() > 0.05 else 1)


def test_memory_and_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapped(net: Net) -> tl.TorchModel:
        return tl.wrap(net.eval(), frames=4, size=12, labels=LABELS)

    models = {"hungry": wrapped(Hungry()), "nan": wrapped(Nan()), "good": model()}
    found = small(tmp_path / "run", 2, model=models, method="gradcam", metric=Sparseness())
    assert (found.done, found.failed, found.ok) == (2, 4, True)
    assert {(f.model, f.method, f.kind) for f in found.failures} == {
        ("hungry", "-", "memory"),
        ("nan", "-", "scores"),
    }
    assert found.failures[0].reason.startswith("out of memory")
    monkeypatch.setattr(Hungry, "fed", True)
    assert small(tmp_path / "run", 2, model=models, method="gradcam", metric=Sparseness()).done == 2
    alone = small(tmp_path / "alone", 2, model={"nan": models["nan"]}, metric=Sparseness())
    assert not alone.ok


@dataclass(frozen=True)
class PickyCurve:
    """A curve metric of which one map spoils all."""

    kind: ClassVar[str] = "curve"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    def __call__(self, model: Any, clip: Any, explanations: Any, truth: Any = None, run: Any = None) -> Any:
        if any(e.provenance.method.startswith("Saliency") for e in explanations):
            raise RuntimeError("not this one")
        return [Score(float(len(explanations)), True, curve=((0.0, 1.0), (0.5, 1.0))) for _ in explanations]


def test_a_curve_metric_that_fails_for_one_map_keeps_the_others(tmp_path: Path) -> None:
    found = small(tmp_path / "run", 1, metric=(PickyCurve(), Deletion(steps=4)))
    assert [(f.method, f.reason) for f in found.failures] == [("saliency", "RuntimeError: not this one")]
    assert found.done == 2 * len(METHODS) - 1
    with RunStore.read(tmp_path / "run") as store:
        ids, places, values = store.curves(1)
        assert len(ids["clip"]) == 3
        np.testing.assert_array_equal(places, [[0, 1]] * 3)
        np.testing.assert_array_equal(values, [[0.5, 1]] * 3)


def manifest_of(folder: Path, names: list[str]) -> Path:
    path = folder / "clips.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((name, "left") for name in names)])
    return path


def test_a_clip_that_cannot_be_read_costs_itself(tmp_path: Path) -> None:
    coded_video(tmp_path / "a.mp4", 12)
    coded_video(tmp_path / "c.mp4", 12)
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:700])
    manifest = manifest_of(tmp_path, ["a.mp4", "b.mp4", "c.mp4"])
    models = {"one": model(), "two": model(seed=3)}
    found = evaluate(manifest, models, "gradcam", Sparseness(), tmp_path / "run", workers=0)
    assert (found.done, found.failed, len(found.failures)) == (4, 2, 1)
    (failure,) = found.failures
    assert (failure.clip, failure.model, failure.kind) == ("b.mp4", "-", "clip")
    assert "b.mp4" in failure.reason
    passed = evaluate(
        manifest, models, "gradcam", Sparseness(), tmp_path / "run", workers=0, skip_failed=True
    )
    assert (passed.passed_over, passed.failures) == (2, ())
    (tmp_path / "b.mp4").write_bytes((tmp_path / "c.mp4").read_bytes())  # mended
    assert evaluate(manifest, models, "gradcam", Sparseness(), tmp_path / "run", workers=0).done == 2
    with RunStore.read(tmp_path / "run") as store:
        assert store.failures() == []


def test_decoders_are_processes_that_may_crash(tmp_path: Path) -> None:
    for name in ("a", "b"):
        coded_video(tmp_path / f"{name}.mp4", 12)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    os.mkfifo(tmp_path / "pipe.mp4")  # blocks whoever opens it
    feed = Feed(model().spec)
    items = {
        name: Item(name, str(tmp_path / f"{name}.mp4"), extra={"x": "y"})
        for name in ("a", "b", "pipe", "broken")
    }
    with Decoders(1) as decoders:
        stuck = decoders.submit(items["pipe"], feed)
        while not decoders._children:
            time.sleep(0.01)
        os.kill(decoders._children[0]._process.pid, signal.SIGSEGV)
        with pytest.raises(VideoError, match=r"pipe\.mp4: the decoder crashed on it \(Segmentation fault\)"):
            stuck.result()
        later = [decoders.submit(items[name], feed) for name in ("a", "broken", "b")]
        with pytest.raises(VideoError, match=r"broken\.mp4"):
            later[1].result()
        for name, future in (("a", later[0]), ("b", later[2])):
            clip, truth = future.result()
            here = model().read(tmp_path / f"{name}.mp4")
            assert torch.equal(clip.pixels, here.pixels)  # bit for bit
            assert clip.source == here.source
            assert truth is None
        again = decoders.submit(items["pipe"], feed)
    assert again.done()  # closing does not wait for what is stuck
    assert threading.active_count() < 20
