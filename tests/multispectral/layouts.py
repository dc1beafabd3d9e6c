"""Tiny data sets in the layouts of the real ones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

ACTIONS = ("walk1", "sitdown", "sit", "standup", "stand", "falling2", "lie", "walk")


def recordings(folder: Path, persons: tuple[tuple[str, ...], ...] = (("p1", "p2"), ("p3", "p4"))) -> Path:
    """A tiny data set in the layout of the real one: two days, on each two people in every recording."""
    rng = np.random.default_rng(0)
    lines, said = [], {}
    for day, group in enumerate(persons):
        date = f"2020010{day}"
        (folder / date).mkdir(parents=True)
        for take in range(3):
            name = f"{date}_p{take}_light1"
            frames = rng.normal(24 + day, 0.05, (200, 16, 16)).astype(np.float32)
            frames[:5] = 2.4  # before the sensor has started
            for i, action in enumerate(ACTIONS):
                start = 8 + 22 * i
                frames[start : start + 12, 2 * i % 12 : 2 * i % 12 + 3, 5:8] += 0.7
                lines.append((name, start, start + 11, action))
                said.setdefault(date, []).append(
                    (f"{name}.csv", start, start + 11, action, group[i % len(group)])
                )
            np.savez(
                folder / date / f"{name}.npz", time_s=np.arange(200) / 9, ptat=np.zeros(200), frames=frames
            )
    with (folder / "segments.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "start_frame", "end_frame", "action"), *lines])
    (folder / "annotation").mkdir()
    for date, rows in said.items():
        with (folder / "annotation" / f"annotation_{date}_human.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


def dataset(folder: Path, lists: bool) -> Path:
    """Scenes of two classes in both spectra, as folders of PNG frames, in the layout of the real data set."""
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {}
    for spectrum, shape in (("IR", (24, 32)), ("TV", (24, 32, 3))):
        for label, kind in enumerate(("run", "wave")):
            for take in range(3):
                place = folder / spectrum / kind / f"scene{take}"
                place.mkdir(parents=True)
                for t in range(18):
                    frame = rng.integers(40, 80, shape, dtype=np.uint8)
                    frame[8:14, t : t + 6] = 220
                    Image.fromarray(frame).save(place / f"{t:04d}.png")
                part = "test" if take == 1 else "train"
                line = f"{place.relative_to(folder)} 18 {label}"
                lines.setdefault(f"{spectrum}_{part}.txt", []).append(line)
    if lists:
        (folder / "file_lists").mkdir()
        for name, rows in lines.items():
            (folder / "file_lists" / name).write_text("\n".join(rows) + "\n")
    return folder
