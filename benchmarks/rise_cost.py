"""What RISE costs beyond the forwards it needs: r3d_18 at 16x112x112, and memory over the number of masks.

Time: after every batch of RISE, a bare forward of a batch of the same size and precision is timed, in
whichever memory format is faster for it; and for every fourth batch, fp32 only, 24 masks of the published
formula run as published: one interpolation a mask, black, logits, the weighted masks added up one by one.
Interleaved like this, a busy machine slows all of them alike. The ratio is of everything, the intact clip and
the pilot of bf16 included (they weigh more the fewer masks there are), and once more of the stream alone.

Memory: the peak of a process that runs 100 or 4,000 masks over a clip of 16x224x224 through a tiny network.

    python benchmarks/rise_cost.py [masks] [time | memory]
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tubelens as tl
from tubelens.batching import memory_peak, native_bf16
from tubelens.methods.rise import RISE
from tubelens.model import TorchModel
from tubelens.running import Run

CPU = torch.device("cpu")
PUBLISHED_BATCH = 24
S, KEEP = 8, 0.1


def bare(model: TorchModel, packed: Tensor, precision: str) -> float:
    start = perf_counter()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        model.module(packed)
    return perf_counter() - start


def published(model: TorchModel, pixels: Tensor, rng: np.random.Generator) -> float:
    """24 masks as published; seconds."""
    start = perf_counter()
    _, *size = pixels.shape
    cell = [-(-n // S) for n in size]
    masks = []
    for _ in range(PUBLISHED_BATCH):
        grid = torch.from_numpy((rng.random((S // 4, S, S)) < KEEP).astype(np.float32))[None, None]
        up = F.interpolate(grid, size=[(S + 1) * c for c in cell], mode="trilinear", align_corners=True)[0, 0]
        t, y, x = (int(rng.integers(c)) for c in cell)
        masks.append(up[t : t + size[0], y : y + size[1], x : x + size[2]])
    stack = torch.stack(masks)
    with torch.no_grad():
        logits = model.module(model.pack(pixels[None] * stack[:, None]))
    saliency = torch.zeros(*size)
    for mask, row in zip(stack, logits, strict=True):
        saliency += row[0] * mask / (PUBLISHED_BATCH * KEEP)
    return perf_counter() - start


def cost(masks: int, precision: str) -> None:
    model = tl.load_model("r3d_18", "random")
    model.module.eval()
    clip = tl.Clip.from_array(np.random.default_rng(0).random((16, 112, 112, 3), dtype=np.float32))
    rng = np.random.default_rng(1)
    packed = model.pack(clip.pixels[None])
    formats = (torch.contiguous_format, torch.channels_last_3d)
    eight = packed.expand(8, *packed.shape[1:])
    trial = {
        f: min(bare(model, eight.contiguous(memory_format=f), precision) for _ in range(2)) for f in formats
    }
    best = min(trial, key=trial.__getitem__)
    done, paused, first = 0, 0.0, (0, 0.0)
    bares: list[tuple[int, float]] = []
    others: list[float] = []

    def beside(now: int, total: int) -> None:
        nonlocal done, paused, first
        start = perf_counter()
        first = first if done else (now, start)
        size, done = now - done, now
        batch = packed.repeat(size, 1, 1, 1, 1).contiguous(memory_format=best)
        bares.append((size, bare(model, batch, precision)))
        if precision == "fp32" and len(bares) % 4 == 1:
            others.append(published(model, clip.pixels, rng))
        paused += perf_counter() - start

    start = perf_counter()
    (why,) = RISE(n=masks)(model, clip, [tl.Prob(0)], Run(precision=precision, progress=beside))  # type: ignore[arg-type]
    end = perf_counter() - paused
    taken, stream = (end - start) / masks, (end - first[1]) / max(1, masks - first[0])
    forward = sum(seconds for _, seconds in bares) / sum(size for size, _ in bares)
    sizes = sorted({size for size, _ in bares})
    print(
        f"{precision}: {masks} masks, batches of {sizes}, bare forwards {str(best).split('.')[-1]}:"
        f" RISE {taken * 1e3:.0f} ms a mask, bare forward {forward * 1e3:.0f} ms a clip:"
        f" ratio {taken / forward:.3f}, of the stream {stream / forward:.3f}"
        f" ({why.provenance.forwards:.0f} forwards)",
        flush=True,
    )
    if others:
        loop = sum(others) / len(others) / PUBLISHED_BATCH
        print(
            f"published formula as published, fp32, batch 24: {loop * 1e3:.0f} ms a mask:"
            f" {loop / taken:.2f} times RISE's ({len(others) * PUBLISHED_BATCH} masks)"
        )


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 8, 8)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean(dim=(2, 3, 4)))


def remember(masks: int) -> None:
    """Run by a process of its own."""
    torch.manual_seed(0)
    model = TorchModel(Tiny().eval(), pack=lambda x: x)
    clip = tl.Clip.from_array(np.random.default_rng(0).random((16, 224, 224, 3), dtype=np.float32))
    RISE(n=masks)(model, clip, [tl.Prob(0)])
    print(memory_peak(CPU))


def memory() -> None:
    peaks = {}
    for masks in (100, 4000):
        told = subprocess.run(
            [sys.executable, __file__, str(masks), "remember"], check=True, capture_output=True, text=True
        )
        peaks[masks] = int(told.stdout) / 2**20
    few, many = peaks.values()
    print(
        f"peak memory, 16x224x224: {few:.0f} MB with 100 masks, {many:.0f} MB with 4000:"
        f" {many / few - 1:+.1%}"
    )


def main(masks: int = 1000, what: str = "") -> None:
    if what == "remember":
        return remember(masks)
    if what != "memory":
        print(f"r3d_18, 16x112x112, {torch.get_num_threads()} threads")
        cost(masks, "fp32")
        if native_bf16(CPU):
            cost(masks, "bf16")
    if what != "time":
        memory()
    return None


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]), *sys.argv[2:3])
