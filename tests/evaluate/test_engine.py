"""The local engine: what is computed, and what is not computed again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tubelens as tl
from tests.evaluate.runs import (
    METHODS,
    METRICS,
    Again,
    Clips,
    Energy,
    Net,
    cells,
    contents,
    item,
    model,
    small,
)
from tubelens.errors import OptionError, TargetError
from tubelens.evaluate import local, work
from tubelens.evaluate.items import Item
from tubelens.evaluate.job import Network, asked
from tubelens.evaluate.run import evaluate
from tubelens.methods import RISE, method
from tubelens.metrics.complexity import Sparseness
from tubelens.metrics.curves import Insertion
from tubelens.running import Run
from tubelens.store import RunStore

# ── what is computed ─────────────────────────────────────────────────────────────────────────────────────


def test_scores_are_those_of_the_methods_and_metrics_themselves(tmp_path: Path) -> None:
    small(tmp_path / "run", 2)
    net = model()
    with RunStore.read(tmp_path / "run") as store:
        stored = store.cells()
        methods, metrics = store.names("methods"), store.names("metrics")
        assert [m.name for m in methods] == list(METHODS)
        run = Run(precision="fp32", steady=True)
        for number in range(2):
            clip = item(number)
            read = net.read(clip.array)
            scores = net(read.pixels[None])
            top = int(scores.argmax())
            for written, row in zip(METHODS, methods, strict=True):
                e = tl.explain(net, read, written, top, run=run)
                kept = store.explanation(number + 1, 1, row.id)
                assert kept is not None
                torch.testing.assert_close(kept.saliency, e.saliency)
                assert kept.target == e.target
                for metric, column in zip(METRICS, metrics, strict=True):
                    if metric.needs_truth and clip.truth is None:
                        continue
                    here = (
                        (stored["clip"] == number + 1)
                        & (stored["method"] == row.id)
                        & (stored["metric"] == column.id)
                    )
                    if metric.kind == "map":
                        expected = metric(e, read, clip.truth)
                    elif metric.kind == "curve":
                        expected = metric(net, read, [e], clip.truth, run)[0]
                    else:
                        expected = metric(net, read, method(written), e.target, run, e)
                    assert stored["value"][here] == pytest.approx([expected.value], abs=1e-6)
                    assert stored["random"][here] == pytest.approx(
                        [expected.anchors.get("random", np.nan)], abs=1e-5, nan_ok=True
                    )
        predictions = store.predictions()
        assert predictions["label"].tolist() == [0, 1]
        for number, (predicted, prob) in enumerate(
            zip(predictions["predicted"], predictions["prob"], strict=True)
        ):
            p = net(net.read(item(number).array).pixels[None]).softmax(1)[0]
            assert int(p.argmax()) == predicted
            assert float(p.max()) == pytest.approx(prob)


def test_the_label_is_explained_where_it_is_asked_for(tmp_path: Path) -> None:
    small(tmp_path / "run", 3, target="label", method="gradcam", metric=())
    with RunStore.read(tmp_path / "run") as store:
        for number in range(3):
            e = store.explanation(number + 1, 1, 1)
            assert e is not None
            assert e.target == tl.Logit(number % 3)


def test_labels_are_checked_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "finished", lambda *_: pytest.fail("work began"))
    items = [replace(item(0), label="midle"), replace(item(1), label="left")]
    for manifest in (items, lambda: iter(items)):  # the second tells its labels only when it is read
        with pytest.raises(TargetError, match=r"unknown label 'midle' \(did you mean 'middle'\?\)"):
            evaluate(manifest, model(), out=tmp_path / "run", target="label", workers=0)
    nameless = [replace(item(0), label=None)]
    with pytest.raises(TargetError, match="clip0: has no label, and labels are what shall be explained"):
        evaluate(nameless, model(), out=tmp_path / "run", target="label", workers=0)


def test_labels_that_are_not_explained_may_be_any(tmp_path: Path) -> None:
    items = [replace(item(0), label="a horse"), replace(item(1), label="1"), replace(item(2), label=None)]
    found = evaluate(items, model(), "gradcam", Sparseness(), tmp_path / "run", workers=0)
    assert (found.done, found.failures) == (3, ())
    with RunStore.read(tmp_path / "run") as store:
        assert store.predictions()["label"].tolist() == [-1, 1, -1]


def test_seeds_are_for_methods_that_draw(tmp_path: Path) -> None:
    small(tmp_path / "run", 1, method=("gradcam", "rise(n=8)", RISE(n=8, p=0.3, seed=5)), seeds=(0, 7))
    assert {(m, s) for _, _, m, metric, s in cells(tmp_path / "run") if metric == "sparseness"} == {
        ("gradcam", 0),
        ("rise(n=8)", 0),
        ("rise(n=8)", 7),
        ("rise(n=8, p=0.3)", 5),
    }
    with RunStore.read(tmp_path / "run") as store:
        ids = store.ids("methods")
        maps = [store.explanation(1, 1, ids["rise(n=8)"], seed) for seed in (0, 7)]
        assert maps[0] is not None
        assert maps[1] is not None
        assert [e.provenance.seed for e in maps if e is not None] == [0, 7]
        assert not torch.equal(maps[0].grid, maps[1].grid)


def test_names_are_the_same_however_something_is_written() -> None:
    assert asked("method", "rise( n = 500, fill=blur )").name == "rise(n=500, fill=blur)"
    assert asked("method", RISE(n=500, fill="blur")).name == "rise(n=500, fill=blur)"
    assert asked("method", "rise(seed=3)").name == "rise"
    assert asked("method", "rise(seed=3)").seeds == (3,)
    assert asked("method", "rise(seed=0)", (1, 2)).seeds == (0,)
    assert asked("method", "gradcam", (1, 2)).seeds == (0,)
    assert asked("metric", Energy()).name.endswith(":Energy")
    assert asked("metric", Insertion(steps=5)).name.endswith("(steps=5)")
    with pytest.raises(OptionError, match="is not a method"):
        asked("method", 3)
    with pytest.raises(OptionError, match="is not a metric"):
        asked("metric", tl.GradCAM())


def test_a_clip_is_read_once_for_all_models_that_are_fed_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int]] = []
    from tubelens.evaluate import decode

    real = decode.read_item

    def noted(given: Item, reader: Any) -> Any:
        read.append((given.key, reader.spec.frames))
        return real(given, reader)

    monkeypatch.setattr(decode, "read_item", noted)
    longer = replace(model(), spec=replace(model().spec, frames=6))
    models = {"a": model(), "b": model(seed=2), "c": longer}
    found = small(tmp_path / "run", 2, model=models, method=("gradcam", "saliency"), metric=Sparseness())
    assert found.done == 2 * 3 * 2
    assert read == [("clip0", 4), ("clip0", 6), ("clip1", 4), ("clip1", 6)]
    small(tmp_path / "run", 3, model=models, method=("gradcam", "saliency"), metric=Sparseness())
    assert read[4:] == [("clip2", 4), ("clip2", 6)]  # what is done is not read again


def test_frames_and_sampling_replace_the_recipes(tmp_path: Path) -> None:
    def frames() -> Iterator[tuple[np.ndarray, str]]:
        yield (
            (np.arange(20, dtype=np.float32) / 20)[:, None, None, None] * np.ones((1, 12, 12, 3), "f4"),
            "left",
        )

    every: tuple[dict[str, Any], ...] = ({"frames": 6}, {"stride": 2}, {"sampling": "segments"})
    for options in every:
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        evaluate(frames, model(), "saliency", (), run, workers=0, **options)
        with RunStore.read(run) as store:
            e = store.explanation(1, 1, 1)
            assert e is not None
            assert e.size[0] == options.get("frames", 4)
            wanted = model().read(next(frames())[0], **options)
            assert e.source.times == wanted.source.times


# ── what is not computed again ───────────────────────────────────────────────────────────────────────────


def test_only_what_is_missing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explained: list[tuple[str, ...]] = []
    real = work.explain_all

    def noted(net: Any, clip: Any, methods: Any, target: Any, **options: Any) -> Any:
        explained.append(tuple(type(m).__name__ for m in methods))
        return real(net, clip, methods, target, **options)

    monkeypatch.setattr(work, "explain_all", noted)
    run, net = tmp_path / "run", model()
    assert isinstance(net.module, Net)

    def go(n: int, methods: Any, metrics: Any, **options: Any) -> tuple[int, int]:
        explained.clear()
        net.module.seen = 0
        found = small(run, n, model=net, method=methods, metric=metrics, **options)
        assert not found.failures
        return found.done, found.skipped

    assert go(2, ("gradcam", "saliency"), Sparseness()) == (4, 0)
    assert sorted(explained) == sorted([("GradCAM",), ("Saliency",)] * 2)
    assert go(2, ("gradcam", "saliency"), Sparseness()) == (0, 4)
    assert (explained, net.module.seen) == ([], 1)  # to see whether it is the same model
    assert go(2, ("gradcam", "saliency"), (Sparseness(), Energy())) == (2, 4)  # clip 0 has no truth
    assert (explained, net.module.seen) == ([], 1)  # the maps were there
    assert go(2, ("gradcam", "saliency", "layercam"), Sparseness()) == (2, 4)
    assert explained == [("LayerCAM",)] * 2
    assert go(3, "gradcam", Sparseness()) == (1, 2)
    assert explained == [("GradCAM",)]
    assert go(3, "gradcam", ()) == (0, 0)
    assert explained == []
    assert go(1, "rise(n=8)", Sparseness()) == (1, 0)
    assert go(1, "rise(n=8)", Sparseness(), seeds=(0, 1)) == (1, 1)


def test_what_is_added_later_equals_what_is_done_at_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    small(one, 4, metric=(Sparseness(), Energy(), Again()))
    for n, metrics in (
        (2, Sparseness()),
        (4, (Sparseness(), Energy())),
        (4, (Sparseness(), Energy(), Again())),
    ):
        small(other, n, metric=metrics)
    assert contents(one) == contents(other)


def test_activation_methods_share_a_forward(tmp_path: Path) -> None:
    net = model()
    assert isinstance(net.module, Net)
    shared = ("gradcam", "layercam", "hirescam", "eigencam")
    net.module.seen = 0
    small(tmp_path / "run", 1, model=net, method=shared, metric=Sparseness())
    assert net.module.seen == 3  # what it is, what it says, and one capture


def test_map_only_runs(tmp_path: Path) -> None:
    found = small(tmp_path / "run", 2, metric=())
    assert (found.done, found.maps, found.ok) == (0, 2 * len(METHODS), True)
    assert small(tmp_path / "run", 2, metric=()).maps == 0
    assert found.table() == []


def test_limit_and_summary(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = small(tmp_path / "run", 5, limit=3, progress=lambda done, total: told.append((done, total)))
    per_clip = len(METHODS) * len(METRICS)
    assert (found.clips, found.done, found.without_truth) == (3, 3 * per_clip - len(METHODS), len(METHODS))
    assert told == [(1, 3), (2, 3), (3, 3), (3, 3)]
    with RunStore.read(tmp_path / "run") as store:
        columns, names = store.cells(), store.ids("metrics")
    for line in found.table():
        method = 1 + METHODS.index(line.method)
        values = columns["value"][(columns["method"] == method) & (columns["metric"] == names[line.metric])]
        assert (line.n, line.mean) == (len(values), pytest.approx(values.mean()))
        assert line.std == pytest.approx(values.std(ddof=1))
    assert "there before" in str(found)


def test_decoding_ahead_is_bounded(tmp_path: Path) -> None:
    ahead: list[int] = []
    begun = 0

    def clips() -> Iterator[Item]:
        nonlocal begun
        for number in range(12):
            begun += 1
            yield item(number)

    def tick(done: int, total: int) -> None:
        ahead.append(begun - 12 - done)  # the first reading enters all of them

    evaluate(clips, model(), "gradcam", Sparseness(), tmp_path / "run", workers=0, progress=tick)
    assert max(ahead) == 2


def test_threads_and_randomness_are_left_as_they_were(tmp_path: Path) -> None:
    net = model()
    before, state = torch.get_num_threads(), torch.get_rng_state()
    other = 2 if before == 1 else 1
    evaluate(Clips(1), net, METHODS, METRICS, tmp_path / "run", workers=0, threads=other)
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.requires_grad is False or p.grad is not None for p in net.module.parameters())


# ── what is asked for ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "limit must be at least 1"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"seeds": ()}, "seeds must be"),
        ({"seeds": (1, 1)}, "seeds must be"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"threads": -1}, "threads must be at least 1"),
        ({"threads": 1025}, "threads must be at most 1024"),
        ({"seeds": (2**63,)}, "seeds must be whole numbers from 0 to"),
        ({"method": "rise(seed=-1)"}, "seeds must be whole numbers from 0 to"),
        ({"method": ()}, "at least one model and one method"),
        ({"method": ("gradcam", tl.GradCAM())}, "method gradcam is named twice"),
        ({"metric": (Energy(), Energy())}, "Energy is named twice"),
        ({"model": 3}, "a model is a name, or comes from load_model"),
        ({"model": [model(), model(seed=2)]}, "two models are called 'net'"),
        ({"method": "gradcan"}, "unknown method 'gradcan'"),
        ({"model": "r3d_81"}, "unknown model 'r3d_81'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        small(tmp_path / "run", 1, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_networks_by_name_tell_what_they_are(tmp_path: Path) -> None:
    given = Network(model="bundled", trained="visible")
    found = evaluate("planted:dir?n=1", given, "gradcam", Energy(), tmp_path / "run", workers=0, threads=1)
    assert found.done == 1
    with RunStore.read(tmp_path / "run") as store:
        (row,) = store.names("models")
        assert row.name == "bundled"
        assert (row.facts["network"], row.facts["trained"]) == ("bundled", "visible")
        assert len(row.facts["hash"]) == 64
        (clip,) = store.names("clips")
        assert clip.facts["label"] in tl.planted.LABELS
        assert store.cells()["value"][0] > 0.2  # the truth of the clip is known
    with pytest.raises(OptionError, match=r"its trained was 'visible' and is 'ir'"):
        evaluate("planted:dir?n=1", replace(given, trained="ir"), "gradcam", (), tmp_path / "run", workers=0)


def test_a_label_that_changed_is_refused(tmp_path: Path) -> None:
    small(tmp_path / "run", 2, metric=())
    items = [item(0), replace(item(1), label="right")]
    with pytest.raises(OptionError, match=r"clip 'clip1' is no longer .* label was 'middle' and is 'right'"):
        evaluate(items, model(), METHODS, (), tmp_path / "run", workers=0, threads=1)
    moved = [replace(item(0), label="left")]
    assert not evaluate(moved, model(), METHODS, (), tmp_path / "run", workers=0, threads=1).failures
