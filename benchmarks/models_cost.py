"""Importing, and Grad-CAM on one network of every family that is written here, against a bare forward."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import torch

import tubelens as tl
from tubelens import zoo

SIZES = {
    "mfnet3d": (16, 224),
    "hara2018_resnet18": (16, 112),
    "hara2018_resnet50": (16, 112),
    "hara2018_densenet121": (16, 112),
    "i3d_rgb": (16, 224),
    "c3d": (16, 112),
    "tsm_r50": (8, 224),
    "pan_lite_r50": (32, 224),
    "swin3d_t": (8, 224),
    "slow_r50": (8, 256),
    "slowfast_r50": (32, 256),
}
REPEATS = 5


def imports() -> None:
    """Of fresh processes, taking turns."""
    taken: dict[str, list[float]] = {"import torch, torchvision": [], "import tubelens": []}
    for _ in range(REPEATS):
        for statement, times in taken.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            times.append(time.perf_counter() - start)
    base, ours = taken.values()
    ratio = median(b / a for a, b in zip(base, ours, strict=True))
    print(f"import tubelens: {median(ours):.2f} s, {ratio:.2f} of torch and torchvision")


def cost(name: str, frames: int, side: int) -> None:
    """Grad-CAM of one target, and a forward under no_grad, taking turns."""
    model = zoo.load(name, "random")
    clip = tl.Clip.from_array(torch.rand(frames, side, side, 3, generator=torch.Generator().manual_seed(0)))
    pixels = clip.pixels[None]
    pairs: list[tuple[float, float]] = []
    for i in range(REPEATS + 1):
        start = time.perf_counter()
        model(pixels)
        middle = time.perf_counter()
        tl.explain(model, clip, "gradcam", 0)
        if i:
            pairs.append((middle - start, time.perf_counter() - middle))
    forward = median(a for a, _ in pairs)
    ratio = median(b / a for a, b in pairs)
    print(f"{name:24} {frames}x{side}x{side}  forward {forward * 1e3:8.1f} ms  Grad-CAM {ratio:.3f} of it")


def main() -> None:
    imports()
    for name in sys.argv[1:] or SIZES:
        cost(name, *SIZES[name])


if __name__ == "__main__":
    main()
