"""Our three small matrices against scipy.ndimage.zoom, 8x7x7 -> 16x224x224, order 3."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import numpy as np
import torch
from scipy.ndimage import zoom

from tubelens.upsample import endpoint_index, resample


def main() -> None:
    grid, size = torch.randn(8, 7, 7), (16, 224, 224)
    indices = [endpoint_index(m, n) for m, n in zip(size, grid.shape, strict=True)]
    factors = [m / n for m, n in zip(size, grid.shape, strict=True)]
    ours, theirs = [], []
    resample(grid, indices)
    for _ in range(7):
        start = perf_counter()
        for _ in range(20):
            got = resample(grid, indices)
        ours.append((perf_counter() - start) / 20)
        start = perf_counter()
        expected = zoom(grid.numpy(), factors, order=3)
        theirs.append(perf_counter() - start)
    error = float(np.abs(got.numpy() - expected).max())
    ratio = median(t / o for t, o in zip(theirs, ours, strict=True))
    print(
        f"upsampling 8x7x7 -> 16x224x224: {median(ours) * 1e3:.2f} ms,"
        f" scipy zoom {median(theirs) * 1e3:.0f} ms: {ratio:.0f} x faster"
        f" (goal 200 x), largest difference {error:.1e}"
    )


if __name__ == "__main__":
    main()
