"""Pictures of one right and one wrong test clip of every network, with the maps of all methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from networks import wrapped
from plan import INFRARED, Plan
from table import Accuracy, short
from train import Trained

import tubelens as tl
from tubelens.evaluate.items import Item
from tubelens.evaluate.job import asked
from tubelens.files import replacing

FRAMES = 6
SIDE = 64
"""Pixels of a frame in the picture."""
GAP = 6
LEFT, HEAD = 70, 22
"""Room for the names of the methods, and for a line above a block."""
DPI = 100


def draw(
    plan: Plan, networks: Sequence[Trained], right: Sequence[Accuracy], out: Path, methods: Sequence[str]
) -> list[Path]:
    """One picture for each network and training: `maps-NETWORK-TRAINING.png`."""
    paths = []
    for trained in networks:
        path = out / f"maps-{trained.network}-{trained.training}.png"
        with replacing(path) as new:
            sheet(plan, trained, [a for a in right if a.trained is trained], methods).savefig(new, dpi=DPI)
        paths.append(path)
    return paths


def sheet(plan: Plan, trained: Trained, found: Sequence[Accuracy], methods: Sequence[str]) -> Figure:
    """A block of rows a spectrum, the right clip on the left, the wrong one on the right.

    The first row of a block is the clip, infrared in colours of heat; below, each map over the clip in grey,
    scaled once over the clip. The white line is the evidence, where it is known.
    """
    wide = LEFT + 2 * (FRAMES * (SIDE + 2) + GAP)
    block = HEAD + (len(methods) + 1) * (SIDE + 2) + GAP
    canvas = np.ones((HEAD + len(found) * block, wide, 3), dtype=np.float32)
    figure = Figure((wide / DPI, len(canvas) / DPI))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.text(GAP, 14, f"{trained.network}, trained on {trained.training}", fontsize=9, weight="bold")
    model = wrapped(trained.network, trained.net, plan.labels, plan.size, trained.network)
    for number, accuracy in enumerate(found):
        items, top = plan.tests(accuracy.spectrum), HEAD + number * block
        hit = accuracy.guess == accuracy.truth
        for name, row in zip(("clip", *map(short, methods)), range(len(methods) + 1), strict=True):
            axes.text(LEFT - GAP, top + HEAD + (row + 0.55) * (SIDE + 2), name, fontsize=7, ha="right")
        for side, wanted in enumerate((True, False)):
            left, at = LEFT + side * (FRAMES * (SIDE + 2) + GAP), np.flatnonzero(hit == wanted)
            said = f"{accuracy.spectrum}, {'right' if wanted else 'wrong'}: "
            if not len(at):
                axes.text(left, top + 16, said + "no test clip", fontsize=7)
                continue
            item = items[at[0]]
            taken = "" if wanted else f", taken for {plan.labels[accuracy.guess[at[0]]]}"
            axes.text(left, top + 16, said + f"{item.label}{taken}", fontsize=7)
            clip = tl.Clip.from_array(item.array, bands=item.bands, fps=item.fps or 9.0)
            rows = [_pictures(item)]
            for name in methods:
                why = tl.explain(model, clip, asked("method", name).at(0), target=item.label)
                rows.append(_over(item, torch.as_tensor(why.saliency)))
            for row, frames in enumerate(rows):
                strip = _strip(frames, item)
                y = top + HEAD + row * (SIDE + 2)
                canvas[y : y + SIDE, left : left + strip.shape[1]] = strip
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, wide, len(canvas), 0))
    return figure


def _strip(frames: np.ndarray, item: Item) -> np.ndarray:
    """Some frames side by side, enlarged, with the outline of the evidence."""
    parts = []
    for t in np.linspace(0, len(frames) - 1, FRAMES).round().astype(int):
        times = SIDE // frames.shape[1]
        frame = np.kron(frames[t], np.ones((times, times, 1), dtype=np.float32))
        if item.truth is not None:
            inside = np.kron(item.truth.mask[t].numpy(), np.ones((times, times))) > 0
            edge = np.zeros_like(inside)
            edge[1:] |= inside[1:] != inside[:-1]
            edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
            frame[edge] = 1.0
        parts += [frame, np.ones((len(frame), 2, 3), dtype=np.float32)]
    return np.concatenate(parts, axis=1)


def _pictures(item: Item) -> np.ndarray:
    """Frames to look at; infrared is one band and has the colours of heat."""
    return colormaps["inferno"](item.array[..., 0])[..., :3] if item.spectrum == INFRARED else item.array


def _over(item: Item, saliency: torch.Tensor) -> np.ndarray:
    """The positive part of a map over the frames in grey."""
    heat = np.clip(saliency.numpy(), 0, None)
    heat = np.clip(heat / max(float(np.quantile(heat, 0.999)), 1e-12), 0, 1)[..., None]
    grey = np.repeat(item.array.mean(axis=-1, keepdims=True), 3, axis=-1) * 0.6
    return (1 - heat) * grey + heat * colormaps["viridis"](0.35 + 0.65 * heat[..., 0])[..., :3]
