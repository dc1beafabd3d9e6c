"""The verbs that look: `predict`, `frames`, `layers`, `methods`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import tyro

from tubelens import zoo
from tubelens.api import predict
from tubelens.capture import layers
from tubelens.cli.options import Loading, OneNetwork, SampledOnce, the_source
from tubelens.cli.show import note, print_json, print_table
from tubelens.errors import OptionError
from tubelens.layout import Centres
from tubelens.methods import METHODS, method, name_of
from tubelens.methods.spectrum import tells
from tubelens.model import network
from tubelens.video import extract_frames, source_name


@dataclass
class Predict(SampledOnce, Loading, OneNetwork):
    """Print the classes that the model sees in a video.

    Example: tubelens predict surf.mp4 --model r3d_18 --weights KINETICS400_V1 --top 5

    Example: tubelens predict --input visible=a.mp4 "lwir=frames/?bits=14" --model mine.py:make

    Cost: one forward.
    """

    video: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VIDEO")] = ""
    """Video file, GIF or folder of frames."""
    top: int = 5
    """How many classes."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """One forward and a table."""
        if self.top < 1:
            raise OptionError(f"--top must be at least 1, not {self.top}")
        video = the_source("predict", self.video, self.input)
        model = self.load(self.model, self.weights, self.fed("predict"), self.labels, self.adapt)
        clip = self.clip(model, video, self.sampling, self.seed)
        for line in clip.source.notes:
            note(line)
        found = predict(model, clip, self.top)
        if self.json:
            print_json({"video": video, "predicted": [{"label": a, "prob": p} for a, p in found]})
        else:
            title = f"{source_name(video)}: {model.name}, weights {model.weights}"
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
class Layers(Loading, OneNetwork):
    """List the layers that can be explained, and where their cells look.

    Example: tubelens layers r3d_18

    Example: tubelens layers net.keras --input "frames=20, size=64, axes=b t h w c"

    Cost: one forward on a black clip, with random weights unless others are given.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = field()
    """A name that `tubelens models` lists, a file (net.keras, net.h5, net.json, net.onnx), a folder or
    hf:OWNER/NAME of a transformers checkpoint, package.module:factory, or path.py:factory."""
    frames: int | None = None
    """Clip length, if not the network's own."""
    size: int | None = None
    """Height and width of the clip, if not the network's own."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """A dry run and a table."""
        for option, value in (("--frames", self.frames), ("--size", self.size)):
            if value is not None and value < 1:
                raise OptionError(f"{option} must be at least 1, not {value}")
        known = zoo.MODELS.get(self.model)
        given = known is None or known.shipped
        weights = self.weights or (None if given else "random")  # where cells look, no weight can change
        fed = self.fed("layers", streams=False)
        model = network(self.load(self.model, weights, fed, self.labels, self.adapt), "layers")
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
class Methods:
    """List the methods, what they need and cost; and tell what one of them is.

    Example: tubelens methods

    Example: tubelens methods rise
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """Tell what this one is and which options it has; also path.py:Class."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """A table. F is a forward, B_h a pass back through the head only."""
        if self.name:
            name = name_of(self.name)[0]
            entry, made = METHODS.get(name), method(name)
            facts = {
                "needs": str(made.needs),
                "explains": getattr(made.explains, "__name__", str(made.explains)),
            }
            facts |= {} if entry is None else {"cost": entry.cost, "source": entry.source}
            facts["bands"] = " or ".join(tells(made)) or "cannot tell them apart"
            describe(name, type(made), facts, self.json)
            return 0
        columns = ["name", "needs", "cost", "bands", "source"]
        entries = [(name, e.needs, e.cost, e.spectrum, e.source) for name, e in METHODS.items()]
        if self.json:
            print_json([dict(zip(columns, e, strict=True)) for e in entries])
        else:
            print_table("", columns, [(*e[:3], ", ".join(e[3]), e[4]) for e in entries])
            print(
                "F: a forward; B: a forward and a backward down to the pixels; F_h, B_h: the head only;"
                " C: channels; W: windows;\nn, steps: options. Options are written as in"
                " rise(n=500, fill=blur); `tubelens methods NAME` tells which a method has.\nbands: how it"
                " tells the bands of a clip apart, as in rise(spectrum=each); where empty it cannot."
            )
        return 0


# ── one method or metric ─────────────────────────────────────────────────────────────────────────────────


def describe(name: str, kind: Any, facts: Mapping[str, str], as_json: bool) -> None:
    """What a method or a metric is, on standard output: its class, what it says of itself, its options."""
    place = kind.__module__.partition(".")[0] if kind.__module__.startswith("tubelens.") else kind.__module__
    said = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    options = [(f.name, _default(f), _values(get_type_hints(kind)[f.name])) for f in fields(kind) if f.init]
    if as_json:
        told = [{"name": o, "default": default, "values": values} for o, default, values in options]
        print_json(
            {"name": name, "class": f"{place}.{kind.__qualname__}", "says": said, **facts, "options": told}
        )
        return
    print(f"{name}: {place}.{kind.__qualname__}\n\n{said}\n")
    for fact, value in facts.items():
        print(f"{fact + ':':10} {value}")
    if not options:
        print("options:   none")
        return
    print_table("", ["option", "default", "values"], options)


def _default(option: Any) -> str:
    if option.default_factory is not MISSING:
        return str(option.default_factory())
    return "needed" if option.default is MISSING else str(option.default)


def _values(hint: Any) -> str:
    """`int`, `black | blur`: what an option may be."""
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " | ".join("None" if part is type(None) else _values(part) for part in get_args(hint))
    name = getattr(hint, "__name__", str(hint))
    return "any" if hint is Any else str(hint) if get_args(hint) else name
