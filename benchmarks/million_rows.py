"""A run of a million scores, made by a script: what `report` and the scan of a resumed run take.

    python benchmarks/million_rows.py [--rows 1000000] [--keep DIR]

Each is measured in a process of its own: seconds, and the most memory it had.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tubelens.store.cells import ANCHORS, FILE
from tubelens.store.runs import RunStore

METHODS = ("gradcam", "tubes", "rise", "sidu", "lime", "shap", "occlusion", "ig", "smoothgrad", "layercam")
SKILL = (0.55, 0.6, 0.62, 0.5, 0.42, 0.45, 0.52, 0.3, 0.34, 0.57)
"""How good a method is made, between what random order and the truth score."""
METRICS: dict[str, tuple[bool, bool, float, float]] = {
    "insertion": (True, True, 0.25, 0.85),
    "deletion": (False, True, 0.20, 0.05),
    "ap": (True, False, 0.08, 1.0),
    "energy": (True, False, 0.08, 1.0),
    "pointing": (True, False, 0.08, 1.0),
    "tube_iou": (True, False, 0.04, 1.0),
    "temporal_iou": (True, False, 0.3, 1.0),
    "road": (False, False, 0.4, 0.1),
    "gini": (True, False, 0.2, 0.9),
    "infidelity": (False, False, 0.1, 0.01),
}
"""Name -> higher is better, has a curve, value of a random map, value of the truth."""
POINTS = 32
SETTINGS = {"made by": "benchmarks/million_rows.py"}
CLASSES = (
    "basketball",
    "biking",
    "cliff diving",
    "fencing",
    "golf swing",
    "ice dancing",
    "surfing",
    "tennis",
)
SPECTRA = ("RGB", "IR")


def fill(path: Path, clips: int = 5000, networks: tuple[str, ...] = ("r3d_18",), seed: int = 0) -> int:
    """Make a run with invented scores of a likely shape; returns how many.

    Half of the clips are of either spectrum, and every network is there twice, trained on one or the other.
    """
    generator = np.random.default_rng(seed)
    models = [(f"{name} {trained}", name, trained) for name in networks for trained in SPECTRA]
    with RunStore.write(path, SETTINGS) as store:
        store.enter(
            "clips",
            (
                (
                    f"clips/{CLASSES[i % len(CLASSES)].replace(' ', '_')}_{i:05d}.mp4",
                    {"label": CLASSES[i % len(CLASSES)], "spectrum": SPECTRA[i // len(CLASSES) % 2]},
                )
                for i in range(clips)
            ),
        )
        store.enter("models", ((name, {"network": net, "trained": t}) for name, net, t in models))
        store.enter("methods", ((name, {}) for name in METHODS))
        store.enter(
            "metrics",
            (
                (name, {"higher_is_better": up, "kind": "curve" if curved else "map"})
                for name, (up, curved, *_) in METRICS.items()
            ),
        )
    db = sqlite3.connect(path / FILE, isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    db.execute("BEGIN")
    marks = ", ".join("?" * (10 + len(ANCHORS)))
    hard = generator.beta(2, 2, clips)
    map_bytes = generator.bytes(1500)
    for c in range(clips):
        rows = list(_cells(generator, c, float(hard[c]), [t for *_, t in models]))
        db.executemany(f"INSERT INTO cells VALUES ({marks})", rows)
        db.executemany(
            "INSERT INTO maps VALUES (?, ?, ?, 0, ?, ?)",
            [
                (c + 1, m + 1, k + 1, 0.1 * (k + 1), map_bytes)
                for m in range(len(models))
                for k in range(len(METHODS))
            ],
        )
        label = c % len(CLASSES)
        for m in range(len(models)):
            prob = float(np.clip(generator.normal(0.9 - 0.5 * hard[c], 0.1), 0.01, 0.99))
            seen = label if generator.random() < 0.92 - 0.2 * hard[c] else (label + 1) % len(CLASSES)
            db.execute(
                "INSERT INTO predictions VALUES (?, ?, ?, ?, ?, '{}')", (c + 1, m + 1, label, seen, prob)
            )
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    count = int(db.execute("SELECT COUNT(*) FROM cells").fetchone()[0])
    db.close()
    return count


def _cells(
    generator: np.random.Generator, clip: int, hard: float, trained: list[str]
) -> Iterator[tuple[Any, ...]]:
    """Every model, method and metric on one clip."""
    x = np.linspace(0, 1, POINTS, dtype="<f4")
    other = SPECTRA[clip // len(CLASSES) % 2]
    for m, spectrum in enumerate(trained):
        luck = generator.normal(0, 0.08, (len(METHODS), len(METRICS)))
        for k, skill in enumerate(SKILL):
            for g, (name, (_, curved, low, high)) in enumerate(METRICS.items()):
                share = skill * (1.25 - 0.5 * hard) - 0.12 * (spectrum != other) + luck[k, g]
                value = low + (high - low) * share
                if name == "deletion":  # as measured on video: a random order does well here
                    value += 0.09
                if name == "pointing":
                    value = float(luck[k, g] < 0.08 * (skill * 2 - 0.4))
                curve = None
                if curved:
                    bend = np.clip(1 / max(value, 0.02) - 1, 0.05, 30.0)
                    y = x**bend if name == "insertion" else (1 - x) ** bend
                    curve = np.stack([x, y.astype("<f4")]).tobytes()
                normal = None if name in ("road", "gini", "infidelity") else share
                blind = (low, low + 0.1 * (high - low), low + 0.2 * (high - low), value * 0.9, high)
                yield (
                    *(clip + 1, m + 1, k + 1, g + 1, 0, value, normal, 32.0 + 100 * (k in (2, 3, 4, 5))),
                    *(a + 0.02 * float(luck[0, g]) for a in blind),
                    curve,
                    "{}",
                )


REPORT = """
import sys
from tubelens.evaluate.report import write_report
write_report(sys.argv[1], out=sys.argv[2], thumbnails=0)
"""
SCAN = """
import json, sys
from tubelens.store.runs import RunStore
found = 0
with RunStore.write(sys.argv[1], json.loads(sys.argv[2])) as store:
    for clip in store.names("clips"):
        for model in store.names("models"):
            at = clip.id, model.id
            found += len(store.done(*at)) + len(store.mapped(*at)) + len(store.failed(*at))
            assert store.prediction(*at) is not None
"""
"""What a run that is started again asks of every clip before it works."""


def measure(code: str, *args: str) -> tuple[float, float, float]:
    """Seconds, of these how many on a core, and megabytes at most, in a fresh process."""
    told = (
        "\nimport resource, json, time\n"
        "print(json.dumps([time.perf_counter() - began, time.process_time(),"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))"
    )
    began = "import time\nbegan = time.perf_counter()\n"
    done = subprocess.run(
        [sys.executable, "-c", began + code + told, *args], check=True, capture_output=True, text=True
    )
    seconds, cpu, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, cpu, memory


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--keep", type=Path, help="make it here, or measure what is here")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as room:
        run = given.keep or Path(room) / "run"
        if not (run / FILE).exists():
            start = time.perf_counter()
            rows = fill(run, clips=given.rows // (2 * len(METHODS) * len(METRICS)))
            size = (run / FILE).stat().st_size / 2**20
            print(f"made {rows:,} scores, {size:.0f} MB, in {time.perf_counter() - start:.0f} s")
        for name, code, args in (
            ("report", REPORT, (str(run), str(Path(room) / "report"))),
            ("resume scan", SCAN, (str(run), json.dumps(SETTINGS))),
            ("import alone", "import tubelens.evaluate.report, tubelens.store", ()),
        ):
            seconds, cpu, memory = measure(code, *args)
            print(
                f"{name:12} {seconds:6.1f} s (limit 10; {cpu:.1f} s on a core)  {memory:6.0f} MB (limit 1000)"
            )


if __name__ == "__main__":
    main()
