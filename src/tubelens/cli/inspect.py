"""The verbs that look: `predict`, `frames`, `layers`, `models`, `methods`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from tubelens import zoo
from tubelens.api import predict
from tubelens.capture import layers
from tubelens.cli.show import note, print_json, print_table, read_labels
from tubelens.clip import Pad
from tubelens.errors import OptionError
from tubelens.layout import Centres
from tubelens.loading import load_model
from tubelens.methods import METHODS
from tubelens.model import network
from tubelens.video import extract_frames


@dataclass
class Predict:
    """Print the classes that the model sees in a video.

    Example: tubelens predict surf.mp4 --model r3d_18 --weights KINETICS400_V1 --top 5

    Cost: one forward.
    """

    video: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VIDEO")]
    """Video file, GIF or folder of frames."""
    model: str = "bundled"
    """A name that `tubelens models` lists, package.module:factory, or path.py:factory."""
    weights: str | None = None
    """An official name, a file, or random."""
    labels: str | None = None
    """Text file with the class names, one a line."""
    top: int = 5
    """How many classes."""
    sampling: Literal["uniform", "dense", "segments", "random"] = "uniform"
    """Which frames."""
    start: float = 0.0
    """Seconds at which a dense run begins."""
    stride: int | None = None
    """Frames from one sampled frame to the next; default the one the network was trained with."""
    frames: int | None = None
    """Clip length, if not the network's own."""
    pad: Pad = "clamp"
    """What fills a clip when the video is too short: the last frame again, or black."""
    seed: int = 0
    """Of random weights and random sampling."""
    device: str = "cpu"
    """cpu, cuda, ..."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """One forward and a table."""
        model = load_model(
            self.model, self.weights, seed=self.seed, labels=read_labels(self.labels), device=self.device
        )
        if self.top < 1:
            raise OptionError(f"--top must be at least 1, not {self.top}")
        options = {"stride": self.stride, "frames": self.frames, "start": self.start, "pad": self.pad}
        given = {key: value for key, value in options.items() if value is not None}
        clip = model.read(self.video, self.sampling, seed=self.seed, **given)
        if clip.source.padded:
            note(f"{self.video}: too short for the clip: {clip.source.padded} frames were repeated or padded")
        found = predict(model, clip, self.top)
        if self.json:
            print_json({"video": self.video, "predicted": [{"label": a, "prob": p} for a, p in found]})
        else:
            title = f"{Path(self.video).name}: {model.name}, weights {model.weights}"
            print_table(title, ["class", "probability"], [[label, f"{p:.4f}"] for label, p in found])
        return 0


@dataclass
class Frames:
    """Extract every n-th frame of a video into a folder of PNG files.

    Example: tubelens frames surf.mp4 --out frames --every 5 --max 100

    Cost: decoding up to the last frame taken.
    """

    video: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VIDEO")]
    """Video file, GIF or folder of frames."""
    out: str
    """Folder to make."""
    every: int = 1
    """Take every n-th frame."""
    max: int | None = None
    """At most so many."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Write the frames and say how many."""
        paths = extract_frames(self.video, self.out, every=self.every, max=self.max)
        if self.json:
            print_json({"video": self.video, "frames": [str(path) for path in paths]})
        else:
            print(f"{len(paths)} frames of {self.video} in {self.out}")
        return 0


@dataclass
class Layers:
    """List the layers that can be explained, and where their cells look.

    Example: tubelens layers r3d_18

    Cost: one forward on a black clip, with random weights unless others are given.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A name that `tubelens models` lists, package.module:factory, or path.py:factory."""
    weights: str | None = None
    """An official name, a file, or random."""
    frames: int | None = None
    """Clip length, if not the network's own."""
    size: int | None = None
    """Height and width of the clip, if not the network's own."""
    device: str = "cpu"
    """cpu, cuda, ..."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """A dry run and a table."""
        for option, value in (("--frames", self.frames), ("--size", self.size)):
            if value is not None and value < 1:
                raise OptionError(f"{option} must be at least 1, not {value}")
        builtin = self.model in zoo.MODELS and self.model != "bundled"
        weights = self.weights or ("random" if builtin else None)
        model = network(load_model(self.model, weights, device=self.device), "layers")
        spec = model.spec
        size = (self.size, self.size) if self.size else spec.size
        clips = torch.zeros(1, len(spec.bands), self.frames or spec.frames, *size)
        infos = layers(model, clips)
        shape = "x".join(map(str, clips.shape[2:]))
        if self.json:
            print_json(
                [
                    {
                        "layer": i.name,
                        "kind": i.kind,
                        "shape": list(i.shape),
                        "pattern": i.layout.pattern,
                        "centres": {axis: list(i.layout.centres.get(axis, ())) for axis in "thw"},
                        "default": i.default,
                    }
                    for i in infos
                ]
            )
            return 0
        rows = [
            [
                f"{i.name} *" if i.default else i.name,
                i.kind,
                "x".join(map(str, i.shape)),
                i.layout.pattern,
                _looks(i.layout.centres.get("t", ())),
                _looks(i.layout.centres.get("h", ())),
                _looks(i.layout.centres.get("w", ())),
            ]
            for i in infos
        ]
        columns = ["layer", "kind", "output", "layout", "looks at frames", "rows", "columns"]
        print_table(f"{model.name} on a clip of {shape} (* is the default)", columns, rows)
        return 0


def _looks(centres: Centres) -> str:
    """`0, 16 ... 96`: first two and last."""
    numbers = [f"{c:g}" for c in centres]
    return ", ".join(numbers) if len(numbers) <= 3 else f"{numbers[0]}, {numbers[1]} ... {numbers[-1]}"


@dataclass
class Models:
    """List the models that load by name.

    Example: tubelens models
    """

    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """A table."""
        if self.json:
            print_json(
                [
                    {
                        "name": r.name,
                        "frames": r.spec.frames,
                        "size": list(r.spec.size),
                        "parameters": r.parameters,
                        "classes": r.classes,
                        "layer": r.layer,
                        "weights": list(r.official),
                        "source": r.source,
                    }
                    for r in zoo.MODELS.values()
                ]
            )
            return 0
        rows = [
            [
                r.name,
                f"{r.spec.frames}x{r.spec.size[0]}x{r.spec.size[1]}",
                f"{r.parameters / 1e6:.2f} M",
                str(r.classes),
                r.layer,
                ", ".join(r.official),
                r.source,
            ]
            for r in zoo.MODELS.values()
        ]
        columns = ["name", "clip", "parameters", "classes", "layer", "weights", "source"]
        print_table("", columns, rows)
        return 0


@dataclass
class Methods:
    """List the methods: what they need and cost.

    Example: tubelens methods
    """

    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """A table. F is a forward, B_h a pass back through the head only."""
        entries = [(name, e.needs, e.cost, e.source) for name, e in METHODS.items()]
        if self.json:
            print_json([dict(zip(("name", "needs", "cost", "source"), e, strict=True)) for e in entries])
        else:
            print_table("", ["name", "needs", "cost", "source"], entries)
            print(
                "F: a forward; B: a forward and a backward down to the pixels; F_h, B_h: the head only;"
                " C: channels; W: windows;\nn, steps: options. Options are written as in"
                " rise(n=500, fill=blur); the class of a method in Python tells which it has."
            )
        return 0
