"""What insertion and deletion cost beyond the forwards they need: r3d_18 at 16x112x112.

M maps at S points take 3 + 2 M (S - 2) forwards. After every batch, a bare forward of a batch of the same
size and precision is timed, in whichever memory format is faster for it; and after every fourth, a few points
as the published code draws them: one clip after the other, each built by itself, fp32, 2 M S of them because
no ends are shared. Interleaved like this, a busy machine slows all of them alike.

Ranking the maps and the intact clip are counted in; the ratio of the stream alone is shown beside it. bf16 is
asked for by name and without a pilot: comparing it with fp32 first takes 32 more forwards, half of them fp32.

    python benchmarks/curves_cost.py [maps] [points] [frames] [size]
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

import tubelens as tl
from tubelens.batching import native_bf16
from tubelens.metrics.curves import curves
from tubelens.model import TorchModel
from tubelens.running import Run

CPU = torch.device("cpu")
SERIAL = 4  # published points at a time


def bare(model: TorchModel, packed: Tensor, precision: str) -> float:
    start = perf_counter()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        model.module(packed)
    return perf_counter() - start


def published(
    model: TorchModel, pixels: Tensor, saliency: Tensor, points: int, at: int
) -> tuple[float, float]:
    """A few points of a deletion curve as published; seconds of the ranking, and of a point."""
    start = perf_counter()
    order = torch.argsort(saliency.flatten(), descending=True)
    ranked = perf_counter() - start
    start = perf_counter()
    for i in range(at, at + SERIAL):
        altered = pixels.clone()
        altered.flatten(1)[:, order[: len(order) * (i % points) // (points - 1)]] = 0
        with torch.no_grad():
            float(model.module(model.pack(altered[None])).softmax(dim=1)[0, 0])
    return ranked, (perf_counter() - start) / SERIAL


def cost(precision: str, count: int, points: int, frames: int, size: int) -> float:
    """Seconds of all curves; prints what they compare with."""
    model = tl.load_model("r3d_18", "random")
    model.module.eval()
    rng = np.random.default_rng(0)
    clip = tl.Clip.from_array(rng.random((frames, size, size, 3), dtype=np.float32))
    maps = [torch.from_numpy(rng.standard_normal(clip.size).astype(np.float32)) for _ in range(count)]
    needed = 3 + 2 * count * (points - 2)
    packed = model.pack(clip.pixels[None])
    formats = (torch.contiguous_format, torch.channels_last_3d)
    eight = packed.expand(8, *packed.shape[1:])
    trial = {
        f: min(bare(model, eight.contiguous(memory_format=f), precision) for _ in range(2)) for f in formats
    }
    best = min(trial, key=trial.__getitem__)
    done, paused, first = 0, 0.0, (0, 0.0)
    bares: list[tuple[int, float]] = []
    serial: list[tuple[float, float]] = []

    def beside(now: int, total: int) -> None:
        nonlocal done, paused, first
        start = perf_counter()
        first = first if done else (now, start)
        number, done = now - done, now
        batch = packed.repeat(number, 1, 1, 1, 1).contiguous(memory_format=best)
        bares.append((number, bare(model, batch, precision)))
        if len(bares) % 4 == 1:
            serial.append(published(model, clip.pixels, maps[0], points, done))
        paused += perf_counter() - start

    start = perf_counter()
    run = Run(precision=precision, progress=beside, pilot=False)  # type: ignore[arg-type]
    drawn = curves(model, clip, maps, [tl.Prob(0)], steps=points, run=run)
    end = perf_counter() - paused
    taken, stream = end - start, (end - first[1]) / max(1, done - first[0])
    forward = sum(seconds for _, seconds in bares) / sum(number for number, _ in bares)
    ranked, point = (sum(column) / len(serial) for column in zip(*serial, strict=True))
    loop = 2 * count * (ranked + points * point)
    print(
        f"{precision}: {taken:.1f} s; {needed} bare forwards of {forward * 1e3:.0f} ms,"
        f" {str(best).split('.')[-1]}: ratio {taken / needed / forward:.3f},"
        f" of the stream {stream / forward:.3f} ({drawn.forwards} forwards)\n"
        f"  published form, fp32, batch 1: {point * 1e3:.0f} ms a point, {loop:.0f} s for"
        f" {2 * count * points} points: {loop / taken:.2f} times as long",
        flush=True,
    )
    return taken


def main(maps: int = 5, points: int = 32, frames: int = 16, size: int = 112) -> None:
    print(
        f"insertion and deletion of {maps} maps at {points} points, r3d_18, {frames}x{size}x{size},"
        f" {torch.get_num_threads()} threads"
    )
    cost("fp32", maps, points, frames, size)
    if native_bf16(CPU):
        cost("bf16", maps, points, frames, size)


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:5]))
