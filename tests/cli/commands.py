"""What tests of the command line share: networks in a user's file, and running a command in process."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

import tubelens as tl
from tubelens.cli import main

SCRIPT = Path(sys.executable).with_name("tubelens")
LABELS = ["surfing water", "walking the dog", "swimming", "swinging", "juggling balls"]
NETS = f"""
import torch
from torch import nn

import tubelens as tl

LABELS = {LABELS}


class Net(nn.Module):
    def __init__(self, pool="mean", classes=5):
        super().__init__()
        self.pool = pool
        self.body = nn.Sequential(nn.Conv3d(3, 6, 3, (2, 4, 4), padding=1), nn.ReLU())
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        cells = self.body(x).flatten(2)
        return self.head(cells.mean(2) if self.pool == "mean" else cells.max(2).values)


def made(net, **options):
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return tl.wrap(net.eval(), frames=8, size=24, **options)


def make():
    return made(Net(), labels=LABELS)


def other():
    torch.manual_seed(5)
    net = Net().eval()
    for p in net.parameters():
        p.data.copy_(torch.randn(p.shape) * 0.5)
    return tl.wrap(net, frames=6, size=(16, 32), labels=LABELS, sampling="segments", name="other")


class Flat(Net):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(3, 3, 3, padding=1, stride=(2, 1, 1))
        self.body = nn.Sequential(nn.Conv3d(3, 6, (4, 3, 3), (4, 4, 4), padding=(0, 1, 1)), nn.ReLU())

    def forward(self, x):
        return super().forward(self.stem(x))


def flat():
    return made(Flat(), labels=LABELS)


def unnamed():
    return made(Net())


def bare():
    return Net().eval()


def pooled_by_max():
    return made(Net("max"), labels=LABELS)


class NaNWhereBright(Net):
    def forward(self, x):
        return super().forward(x) + torch.where(x.amax() > 0.05, torch.nan, 0.0)


def nan():
    return made(NaNWhereBright())


class NaNAlways(Net):
    def forward(self, x):
        return super().forward(x) * torch.nan


def always_nan():
    return made(NaNAlways())


class Breaks(Net):
    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def breaks():
    return made(Breaks())


class BreaksLater(Net):
    def forward(self, x):
        if x.amax() > 0.05:
            raise KeyError("weights of the moon")
        return super().forward(x)


def breaks_later():
    return made(BreaksLater())


def box():
    net = made(Net())
    return tl.wrap_scorer(lambda clips: net(clips), frames=8, size=24, labels=LABELS, name="remote")


class Deaf(Net):
    def forward(self, x):
        return self.head(self.body(x).flatten(2).mean(2) * 0)


def deaf():
    return made(Deaf(), labels=LABELS)


class NaNWhereMasked(Net):
    seen = None  # fails on every clip but the first it sees and that one again

    def forward(self, x):
        if self.seen is None or x.shape != self.seen.shape:
            NaNWhereMasked.seen = x.clone() if self.seen is None and x.amax() > 0.05 else self.seen
        scores = super().forward(x)
        same = self.seen is None or (x.shape == self.seen.shape and bool((x == self.seen).all()))
        return scores if same else scores * torch.nan


def nan_where_masked():
    return made(NaNWhereMasked(), labels=LABELS)


class Hungry(Net):
    def forward(self, x):
        if x.amax() > 0.05:
            raise torch.OutOfMemoryError("tried to allocate 640.00 GiB")
        return super().forward(x)


def hungry():
    return made(Hungry(), labels=LABELS)


def raises():
    raise RuntimeError("the cluster is on fire")


def returns_a_number():
    return 3


not_a_function = 3
"""
TINY = ("--model", "nets.py:make")
SCHEMA = {
    *(
        "video",
        "model",
        "weights",
        "agreement",
        "method",
        "target",
        "score",
        "prob",
        "predicted",
        "layer",
        "grid",
        "padded",
        "facts",
    ),
    *("forwards", "backwards", "precision", "seed", "notes", "seconds", "out"),
}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def tubelens(*args: object) -> Ran:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(arg) for arg in args])
    return Ran(code, out.getvalue(), err.getvalue())


def done(*args: object) -> Ran:
    """The command, which must succeed and say nothing on stderr."""
    ran = tubelens(*args)
    assert (ran.code, ran.err) == (0, ""), ran.err
    return ran


def decoded(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Frames and seconds, by PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [f.to_ndarray(format="rgb24") for f in frames], [float(f.time) for f in frames]


def has_sound(path: Path) -> bool:
    with av.open(str(path)) as container:
        return bool(container.streams.audio) and sum(1 for _ in container.decode(audio=0)) > 0


def default_layer() -> str:
    return str(tl.load_model("nets.py:make").layer)
