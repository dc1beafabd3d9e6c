"""Tubes against one bare forward of r3d_18 at 16x112x112, fp32, without gradients."""

from __future__ import annotations

import sys
from statistics import median
from time import perf_counter

import numpy as np
import torch

import tubelens as tl


def main(repeats: int = 15) -> None:
    model = tl.load_model("r3d_18", "random")
    clip = tl.Clip.from_array(np.random.default_rng(0).random((16, 112, 112, 3), dtype=np.float32))
    targets = [tl.Logit(i) for i in range(400)]
    packed = model.pack(clip.pixels[None])
    model.module.eval()

    def forward() -> None:
        with torch.no_grad():
            model.module(packed)

    jobs = {
        "one bare forward": forward,
        "tubes, 1 target": lambda: tl.Tubes()(model, clip, targets[:1]),
        "tubes, 400 targets, native grids": lambda: tl.Tubes()(model, clip, targets),
        "tubes, 1 target, upsampled": lambda: tl.Tubes()(model, clip, targets[:1])[0].saliency,
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(repeats):
        for name, job in jobs.items():
            start = perf_counter()
            job()
            times[name].append(perf_counter() - start)
    base = times["one bare forward"]
    print(f"r3d_18, 16x112x112, {torch.get_num_threads()} threads, median of {repeats} interleaved runs:")
    for name, taken in times.items():
        ratio = median(t / b for t, b in zip(taken, base, strict=True))
        fastest = min(taken) / min(base)
        print(
            f"  {name:34} {median(taken) * 1e3:7.1f} ms   {ratio:5.3f} of a forward, fastest {fastest:5.3f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
