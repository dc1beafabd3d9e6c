"""What the tests of drawing share: videos and explanations made by hand."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tubelens.clip import Box, Source
from tubelens.explanation import Explanation, Provenance
from tubelens.layout import Grid, tiled
from tubelens.target import Logit

REALDATA = Path(__file__).parents[2] / "shared/realdata"
real = pytest.mark.skipif(not REALDATA.is_dir(), reason="needs the real clips in ../shared/realdata")


def video(path, n=12, size=(72, 120), rate=10, sound=False):
    """A video whose frame `i` is a smooth ramp, brighter with `i`; with a tone if wanted."""
    h, w = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
        tone = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(picture(i, size), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            total = int(16000 * n / rate)
            wave = 0.3 * np.sin(np.arange(total) * 0.2, dtype=np.float32)
            for start in range(0, total, 1024):
                block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
                block.sample_rate, block.pts, block.time_base = 16000, start, Fraction(1, 16000)
                container.mux(tone.encode(block))
            container.mux(tone.encode(None))
    return path


def picture(i, size):
    h, w = size
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([60 + 8 * i + 0 * x, 80 + 60 * x / w, 80 + 60 * y / h], -1).astype(np.uint8)


def decoded(path):
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [f.to_ndarray(format="rgb24") for f in frames], [float(f.time) for f in frames]


def explain(
    values,
    *,
    path=None,
    array=None,
    size=(72, 120),
    times=None,
    span=None,
    box=None,
    fps=10.0,
    side=(32, 32),
    label="surfing water",
    prob=0.62,
    predicted=(("kayaking", 0.71),),
    sha256=None,
    y=None,
    x=None,
):
    """An explanation of 12 frames at 10 a second (or as told) with the grid `values`."""
    values = torch.as_tensor(values, dtype=torch.float32)
    t, h, w = values.shape
    times = times or tuple(i / fps for i in range(12))
    frames = len(times)
    grid = Grid(values, tiled(t, frames), y or tiled(h, side[0]), x or tiled(w, side[1]), (0, frames))
    source = Source(
        path=None if path is None else str(path),
        size=size,
        fps=fps,
        times=times,
        span=span or (times[0], times[-1]),
        box=box or Box(0.0, 0.0, float(size[0]), float(size[1])),
        resized=side,
        sha256=sha256,
        array=array,
    )
    provenance = Provenance(
        "Tubes()", "toy", "random", "layer4", label, 1.5, prob, predicted, versions={"tubelens": "0"}
    )
    return Explanation((grid,), (frames, *side), source, Logit(0), provenance)


def stack(n=12, size=(72, 120)):
    return np.stack([picture(i, size) for i in range(n)])
