"""Real recordings through a whole run: every metric returns, on clips with boxes and on infrared ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tubelens as tl
from tests.videos import REAL, real
from tubelens.evaluate.items import Item
from tubelens.evaluate.run import evaluate
from tubelens.metrics import METRICS, metric
from tubelens.store import RunStore

FEWER: dict[str, Any] = {
    "n": 2,
    "steps": 3,
    "percent": (20, 60),
    "draws": 1,
    "randoms": 1,
    "cells": (2, 4, 4),
}
"""Options that cost less and leave nothing out."""


@cache
def network(seed: int = 0) -> tl.TorchModel:
    """Random weights: what is tested is the way through."""
    made = tl.load_model("r3d_18", "random", seed=seed)
    assert isinstance(made, tl.TorchModel)
    return replace(made, spec=replace(made.spec, frames=8, size=(32, 32), resize=None))


def every_metric() -> list[Any]:
    made = []
    for name, entry in METRICS.items():
        known = {f.name for f in fields(entry.make)}  # type: ignore[arg-type]
        options = {key: value for key, value in FEWER.items() if key in known}
        if "other" in known:
            options["other"] = network(1)
        if name == "windows":
            options["n"] = 4
        made.append(metric(name, **options))
    return made


def boxes(folder: Path, n: int) -> Path:
    videos, gt = real("clips", "ucf101_24"), real("gt", "ucf101_24_boxes.json")
    path = folder / "ucf.csv"
    with path.open("w", newline="") as file:
        rows = [(videos / f"{k}.mp4", v["class"], f"{gt}#{k}") for k, v in json.loads(gt.read_text()).items()]
        csv.writer(file).writerows([("path", "label", "boxes"), *rows[:n]])
    return path


def thermal() -> Iterator[Item]:
    """The false-colour videos, and segments of the 16x16 sensor as three equal bands."""
    for path in sorted((REAL / "lwir" / "tihar").glob("*.mp4")):
        yield Item(path.name, str(path), label=path.stem.partition("-")[0], spectrum="lwir")
    folder = REAL / "lwir" / "nagoya_fir16_actions"
    with (folder / "segments.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[::600]:
        (path,) = folder.glob(f"*/{row['file']}.npz")
        start, stop = int(row["start_frame"]), int(row["end_frame"])
        degrees = np.load(path)["frames"][start:stop]
        scaled = ((degrees - 10) / 30).clip(0, 1).astype(np.float32)
        yield Item(
            f"{row['file']}:{start}",
            array=np.repeat(scaled[..., None], 3, axis=-1),
            label=row["action"],
            spectrum="lwir",
            fps=10.0,
        )


def returned(run: Path, clips: int, methods: int, metrics: list[Any]) -> dict[str, np.ndarray]:
    """Every metric has a number for every clip and method, or says why not."""
    with RunStore.read(run) as store:
        columns = store.cells()
        for row in store.names("metrics"):
            values = columns["value"][columns["metric"] == row.id]
            assert len(values) == clips * methods, row.name
            for (*_, _), detail in store.details(row.id):
                assert np.isfinite(values).all() or detail.get("notes"), row.name
        assert len(store.names("metrics")) == len(metrics)
    return columns


def test_every_metric_returns_on_a_clip_with_boxes(tmp_path: Path) -> None:
    metrics = every_metric()
    found = evaluate(boxes(tmp_path, 1), network(), "tubes", metrics, tmp_path / "run", workers=0)
    assert found.failures == ()
    columns = returned(tmp_path / "run", 1, 1, metrics)
    assert np.isfinite(columns["value"]).sum() >= 20


@pytest.mark.slow
def test_every_metric_returns_on_all_clips_with_boxes(tmp_path: Path) -> None:
    metrics = every_metric()
    methods = ("gradcam", "tubes", "rise(n=16)")
    found = evaluate(boxes(tmp_path, 9), network(), methods, metrics, tmp_path / "run")
    assert found.failures == ()
    returned(tmp_path / "run", 9, 3, metrics)


def test_infrared_recordings(tmp_path: Path) -> None:
    real("lwir")
    metrics = [m for m in every_metric() if not m.needs_truth and m.kind == "map"]
    metrics += [metric("insertion", steps=3, anchors=False), metric("average_drop", anchors=False)]
    methods = ("gradcam", "saliency")
    found = evaluate(thermal, network(), methods, metrics, tmp_path / "run", workers=0)
    assert found.failures == ()
    clips = len(list(thermal()))
    assert clips >= 8
    returned(tmp_path / "run", clips, 2, metrics)
    with RunStore.read(tmp_path / "run") as store:
        assert {row.facts["spectrum"] for row in store.names("clips")} == {"lwir"}


@pytest.mark.slow
def test_every_metric_that_needs_no_truth_returns_on_infrared(tmp_path: Path) -> None:
    real("lwir")
    metrics = [m for m in every_metric() if not m.needs_truth]
    found = evaluate(thermal, network(), ("gradcam", "tubes"), metrics, tmp_path / "run")
    assert found.failures == ()
    returned(tmp_path / "run", len(list(thermal())), 2, metrics)
