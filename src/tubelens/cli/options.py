"""What the verbs ask for alike: which network, which part of the video, which methods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from tubelens import zoo
from tubelens.cli.show import note, read_labels
from tubelens.clip import Clip, Pad
from tubelens.errors import OptionError, nearest
from tubelens.loading import load_model
from tubelens.methods import accepts, method, name_of, option_names
from tubelens.model import Model, TorchModel
from tubelens.video import ClipViews, ClipWindows
from tubelens.video.streams import exists, is_visible, named
from tubelens.zoo.form import Input

# ── which network ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Loading:
    """How a network is loaded."""

    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    seed: int = 0
    """Of random weights, of random sampling, and of methods that draw."""
    trust: bool = False
    """Unpickle a weights file even where that runs code that is in it."""

    def load(
        self, name: str, weights: str | None, fed: str | None, labels: str | None, adapt: str | None = None
    ) -> Model:
        """The network; a note where a weights file was recognised by names and shapes alone."""
        model = load_model(
            name,
            weights,
            input=fed,
            seed=self.seed,
            labels=read_labels(labels),
            device=self.device,
            trust=self.trust,
            adapt=adapt,
        )
        if (
            weights is not None
            and name in zoo.MODELS
            and isinstance(model, TorchModel)
            and not model.verified
        ):
            note(
                f"{weights}: names and shapes fit {name}; that it computes the same as the network it was"
                " trained in is not verified: check a prediction that you know"
            )
        return model


@dataclass(kw_only=True)
class OneNetwork:
    """The network of a verb that takes one."""

    model: str = "bundled"
    """A name that `tubelens models` lists, a file (net.keras, net.h5, net.json, net.onnx), a folder or
    hf:OWNER/NAME of a transformers checkpoint, package.module:factory, or path.py:factory."""
    weights: str | None = None
    """An official name, a file, or random."""
    input: tuple[str, ...] = ()
    """What a network in a file, or one's own, is fed: "frames=20, size=64, axes=b t h w c", or a .toml
    file. And NAME=PATH for each spectrum of a scene, in place of VIDEO: visible=a.mp4 "lwir=b/?bits=14"."""
    labels: str | None = None
    """Text file with the class names, one a line."""
    adapt: str | None = None
    """To which bands a network on colour is adapted: replicate:LWIR, average:LWIR,SWIR or
    extend:R,G,B,LWIR."""

    def fed(self, verb: str, streams: bool = True) -> str | None:
        """What the network is fed; None: nothing is said of it.

        Raises:
            OptionError: several, or a stream where the verb takes none.
        """
        words, spectra = told(self.input)
        if len(words) > 1:
            raise OptionError(
                f"{verb}: --input {words[1]}: what the network is fed is said in one, as in"
                ' "frames=20, size=64"'
            )
        if spectra and not streams:
            raise OptionError(f"{verb}: --input {spectra[0]}: {verb} reads no video")
        return words[0] if words else None


@dataclass(kw_only=True)
class SeveralNetworks:
    """The networks of a verb that compares them."""

    model: tuple[str, ...] = ("bundled",)
    """Names that `tubelens models` lists, files (net.keras, net.h5, net.json, net.onnx), folders or
    hf:OWNER/NAME of transformers checkpoints, package.module:factory, path.py:factory. Several are drawn
    together: a row a network."""
    weights: tuple[str, ...] = ()
    """Official names, files, or random: one for all networks, or one each (- for none)."""
    input: tuple[str, ...] = ()
    """What networks in files, or one's own, are fed: "frames=20, size=64, axes=b t h w c", or a .toml file;
    one for all, or one each (- for none). And, where there is no manifest, NAME=PATH for each spectrum of a
    scene, in place of VIDEO: visible=a.mp4 "lwir=b/?bits=14"."""
    labels: tuple[str, ...] = ()
    """Text files with the class names, one a line: one for all networks, or one each (- for none)."""
    adapt: tuple[str, ...] = ()
    """To which bands networks on colour are adapted: replicate:LWIR, average:LWIR,SWIR or extend:R,G,B,LWIR;
    one for all, or one each (- for none)."""

    def networks(self) -> list[tuple[str, str | None, str | None, str | None, str | None]]:
        """Name, weights, input, labels and adaptation of each.

        Raises:
            OptionError: none, as many weights as fit neither one nor all, or one network twice.
        """
        if not self.model:
            raise OptionError("--model needs at least one name (`tubelens models` lists them)")
        n = len(self.model)
        words, _ = told(self.input)
        columns = (
            each("--weights", self.weights, n),
            each("--input", words, n),
            each("--labels", self.labels, n),
            each("--adapt", self.adapt, n),
        )
        rows = list(zip(self.model, *columns, strict=True))
        for i, row in enumerate(rows):
            if row in rows[:i]:
                raise OptionError(
                    f"--model {row[0]} is named twice with the same weights: name each network once"
                )
        if len(words) == 1 < n:  # one for all that need it: known networks know what they are fed
            return [(m, w, None if m in zoo.MODELS else fed, labels, to) for m, w, fed, labels, to in rows]
        return rows


def each(option: str, given: Sequence[str], n: int) -> list[str | None]:
    """One value each of `n` networks from none, one or `n` that were given; `-` is none."""
    if len(given) not in (0, 1, n):
        raise OptionError(
            f"{option}: {len(given)} are given for {n} network{'s' * (n > 1)}: give one for all, or one each"
        )
    values = [None if value == "-" else value for value in given] or [None]
    return values * n if len(values) == 1 else values


# ── spectra of one scene ─────────────────────────────────────────────────────────────────────────────────


KEYS = tuple(field.name for field in fields(Input))


def told(given: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The values of --input: what networks are fed, and the streams that are read."""
    spectra = tuple(value for value in given if _is_stream(value))
    return tuple(value for value in given if value not in spectra), spectra


def _is_stream(value: str) -> bool:
    """Whether it is NAME=PATH; not where it rather is a mistyped key of what a network is fed."""
    found = named(value, KEYS)
    if found is None:
        return False
    mistyped = nearest(found[0], KEYS) and not is_visible(found[0])
    return not mistyped or re.search(r"/|\.[A-Za-z]", found[1]) is not None or exists(value)


def the_source(verb: str, video: str, given: Sequence[str]) -> str:
    """The one source of a verb: its VIDEO, or the streams among the values of --input.

    Raises:
        OptionError: neither, or both.
    """
    _, spectra = told(given)
    if spectra and video:
        raise OptionError(
            f"{verb}: {video} is given beside streams: name it as one too, as in --input visible={video}"
        )
    if not spectra and not video:
        raise OptionError(
            f"{verb}: name a VIDEO, before the options, or its spectra by --input NAME=PATH"
            f" (`tubelens {verb} --help` has an example)"
        )
    return video or "|".join(spectra)


# ── which part of the video ──────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Sampled:
    """Which frames of a video make a clip, where that is not the network's own recipe."""

    start: float = 0.0
    """Seconds at which a dense run or the windows begin."""
    stride: int | None = None
    """Frames from one sampled frame to the next; default the one the network was trained with."""
    frames: int | None = None
    """Clip length, if not the network's own."""
    pad: Pad = "clamp"
    """What fills a clip when the video is too short: the last frame again, or black."""

    def clip(self, model: Model, video: str, sampling: str | None, seed: int) -> Clip:
        """One clip; a note where the video was too short."""
        clip = model.read(video, sampling, start=self.start, seed=seed, **self.given())
        too_short(video, clip)
        return clip

    def given(self) -> dict[str, Any]:
        """The options that were given, but the start."""
        options = {"stride": self.stride, "frames": self.frames, "pad": self.pad}
        return {key: value for key, value in options.items() if value is not None}


@dataclass(kw_only=True)
class SampledOnce(Sampled):
    """The sampling of verbs that look at one clip."""

    sampling: Literal["uniform", "dense", "segments", "random"] | None = None
    """Which frames: spread over the video, a dense run, one a segment, or a random run; default as the
    network's recipe does."""


def too_short(video: str, clip: Clip | ClipWindows | ClipViews) -> None:
    """A note where frames were repeated or padded."""
    if clip.source.padded:
        note(f"{video}: too short for the clip: {clip.source.padded} frames were repeated or padded")


# ── which methods ────────────────────────────────────────────────────────────────────────────────────────


def chosen(specs: Sequence[str], options: dict[str, Any], seed: int) -> list[Any]:
    """The methods of `specs`; shared options go to those that have them, the seed to those that draw.

    Args:
        specs: names, with options in brackets if wanted: those win.
        options: given for all methods.
        seed: for methods with a seed of which their own brackets say nothing.

    Raises:
        OptionError: unknown name or option, or a shared option that none of the methods has.
    """
    names = [_name(spec) for spec in specs]
    for option, value in options.items():
        if not any(accepts(name, option, value) for name in names):
            shown = value if isinstance(value, str) else ""
            raise OptionError(
                f"--{_FLAGS.get(option, option)} {shown} means nothing to {', '.join(names)}: leave it out,"
                " or choose a method that has it"
            )
    made = []
    for spec, name in zip(specs, names, strict=True):
        shared = {option: value for option, value in options.items() if accepts(name, option, value)}
        if "seed" in option_names(name) and "seed" not in spec:
            shared["seed"] = seed
        made.append(method(spec, **{k: v for k, v in shared.items() if f"{k}=" not in spec.replace(" ", "")}))
    return made


_FLAGS = {"select": "strongest"}


def _name(spec: str) -> str:
    method(spec)  # complains of an unknown one
    return name_of(spec)[0]


def numbered(names: Sequence[str]) -> list[str]:
    """Equal names told apart by a number, so that no file is overwritten."""
    found: list[str] = []
    for name in names:
        unique, n = name, 2
        while unique in found:
            unique, n = f"{name}-{n}", n + 1
        found.append(unique)
    return found
