"""What someone's own network is fed: from a few words to an `InputSpec` and a `Pack`."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import SAMPLINGS
from tubelens.errors import OptionError, nearest
from tubelens.model import InputSpec
from tubelens.target import ScoreKind
from tubelens.zoo.recipe import Pack

KINDS: tuple[str, ...] = ("logits", "probs", "sigmoid")
ONE_CLIP = tuple(name for name in SAMPLINGS if name != "windows")
FLAGS = ("zscore", "antialias")
LETTERS = frozenset("RGBYUV")  # bands of one letter; any other word is one band


@dataclass(frozen=True)
class Input:
    """The input of a network that no recipe knows, such as one in a Keras or ONNX file.

    Attributes:
        frames: clip length.
        size: height and width of the centre crop, in pixels of the video as shown (before `rotate`).
        resize: before it: the short side, or height and width; None: just covers the crop.
        stride: frames from one sampled frame to the next in training.
        rate: frames a second in training, in place of `stride`.
        bands: the letters of R, G, B, Y, U and V, or one name a channel, in the order that the network takes
            them: `"BGR"` for networks trained on frames of OpenCV, `"grey"` for one band.
        sampling: which frames are taken unless told: `uniform`, `dense`, `segments`, `random`.
        snippet: consecutive frames in each segment of `segments` sampling.
        antialias: whether resizing filters before it shrinks.
        mean, std: of the normalisation, one number or one a band, after `scale`.
        scale: what pixels in [0, 1] are multiplied by first.
        axes: einops names of the dimensions: `"b t h w c"` for most Keras networks.
        rotate: degrees counter-clockwise.
        zscore: each clip less its own mean, over its own standard deviation.
        output: what the scores are; None: probabilities where they sum to one on a trial run, else logits;
            `wrap_scorer`, which makes no trial, takes logits.

    Raises:
        OptionError: a value that no network can have.

    Example:
        >>> Input.parse("frames=20, size=64, axes=b t h w c, bands=BGR").frames
        20
    """

    frames: int = 16
    size: int | tuple[int, int] = 112
    resize: int | tuple[int, int] | None = None
    stride: int = 1
    rate: float | None = None
    bands: str | Sequence[str] = "RGB"
    sampling: str = "uniform"
    snippet: int = 1
    antialias: bool = True
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    scale: float = 1.0
    axes: str = "b c t h w"
    rotate: int = 0
    zscore: bool = False
    output: ScoreKind | None = None

    def __new__(cls, *args: Any, **named: Any) -> Input:
        """Remembers which fields are named, for `given`."""
        made = super().__new__(cls)
        names = [f.name for f in fields(cls)][: len(args)]
        object.__setattr__(made, "_named", frozenset([*names, *named]))
        return made

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f.name, getattr(self, f.name)))
        if self.sampling == "segments" and self.frames % self.snippet:
            raise OptionError(f"{self.frames} frames are no whole number of snippets of {self.snippet}")
        self.pack()  # complains of axes, of a rotation, of too many means

    @property
    def given(self) -> frozenset[str]:
        """Fields that were named, whatever their value.

        Where all were, as `dataclasses.replace` does, those that are other than by default.
        """
        named: frozenset[str] = self.__dict__["_named"]
        known = {f.name for f in fields(self)}
        if named < known:
            return named
        plain = Input()
        return frozenset(name for name in known if getattr(self, name) != getattr(plain, name))

    def spec(self) -> InputSpec:
        """Which pixels of a video make a clip."""
        return InputSpec(
            frames=self.frames,
            size=(self.size, self.size) if isinstance(self.size, int) else self.size,
            resize=self.resize,
            stride=self.stride,
            rate=self.rate,
            bands=tuple(self.bands),
            antialias=self.antialias,
            sampling=self.sampling,
            snippet=self.snippet,
        )

    def pack(self) -> Pack:
        """Clips to the network's input."""
        n = len(tuple(self.bands))
        return Pack(
            mean=_per_band(self.mean, n),
            std=_per_band(self.std, n),
            scale=self.scale,
            axes=self.axes,
            rotate=self.rotate,
            zscore=self.zscore,
        )

    def over(self, base: Input) -> Input:
        """What was named here, the rest as in `base` (what a file tells of itself)."""
        named = {name: getattr(self, name) for name in self.given}
        return replace(base, **named)

    @classmethod
    def parse(cls, text: str) -> Input:
        """From `"frames=20, size=64x64, zscore"`, or from a TOML file with these keys.

        Raises:
            OptionError: an unknown or repeated key, or a value that cannot be read.
        """
        if text.endswith(".toml"):
            return cls._of(_table(Path(text)), text)
        known = "|".join(f.name for f in fields(cls))
        given: dict[str, Any] = {}
        for item in re.split(rf"[,;]\s*(?=\w+\s*=|(?:{known})\s*(?:[,;]|$))", text.strip(" \t\n,;")):
            key, sign, value = (part.strip() for part in item.partition("="))
            if key in given:
                raise OptionError(f"--input: {key} is said twice")
            if re.fullmatch(known, key) and not sign and key not in FLAGS:
                raise OptionError(f"--input: {key} needs a value, as in {key}=...")
            if item:
                given[key] = value if sign else "true"
        return cls._of(given, "--input")

    @classmethod
    def _of(cls, given: dict[str, Any], where: str) -> Input:
        known = [f.name for f in fields(cls)]
        values: dict[str, Any] = {}
        for key, value in given.items():
            if key not in known:
                raise OptionError(f"{where}: unknown {key!r}{nearest(key, known)}: one of {', '.join(known)}")
            try:
                values[key] = _checked(key, _value(key, value) if isinstance(value, str) else value)
            except ValueError as error:
                raise OptionError(f"{where}: {key} cannot be {value!r}") from error
            except OptionError as error:
                raise OptionError(f"{where}: {error}") from error
        try:
            return cls(**values)
        except OptionError as error:
            raise OptionError(f"{where}: {error}") from error


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not TOML: {error}") from error


def _value(key: str, text: str) -> Any:
    """A field's value out of a word; what it means is checked by `Input`."""
    if key in ("frames", "stride", "snippet", "rotate"):
        return int(text)
    if key in ("size", "resize"):
        sides = [int(n) for n in re.split(r"[xX ,]+", text)]
        return sides[0] if len(sides) == 1 else tuple(sides)
    if key in ("rate", "scale"):
        return float(text)
    if key in ("mean", "std"):
        numbers = [float(n) for n in re.split(r"[ ,/]+", text.strip("()[] "))]
        return numbers[0] if len(numbers) == 1 else tuple(numbers)
    if key in FLAGS:
        known = dict.fromkeys(("true", "yes", "1"), True) | dict.fromkeys(("false", "no", "0"), False)
        if text.lower() not in known:
            raise ValueError(text)
        return known[text.lower()]
    if key == "bands" and re.search(r"[ ,/]", text):
        return tuple(re.split(r"[ ,/]+", text))
    return text


def _checked(name: str, value: Any) -> Any:
    """A field's value, sequences as tuples.

    Raises:
        OptionError: one that no network can have.
    """
    given = value
    if value is None and name in ("resize", "rate", "output"):
        return None
    if name in ("frames", "stride", "snippet"):
        fine, wanted = _whole(value, 1), "a whole number from 1 up"
    elif name in ("size", "resize"):
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
        fine = len(value) in (1, 2) and all(_whole(n, 1) for n in value)
        wanted = "one or two whole numbers of pixels"
        value = value[0] if len(value) == 1 else value
    elif name == "rate":
        fine, wanted = _finite(value) and value > 0, "frames a second, more than 0"
    elif name == "scale":
        fine, wanted = _finite(value) and value != 0, "a number other than 0"
    elif name in ("mean", "std"):
        value = value.tolist() if hasattr(value, "tolist") else value  # of an array or a tensor
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
        fine = bool(value) and all(_finite(n) and (name == "mean" or n > 0) for n in value)
        wanted = "a number, or one a band" + (", more than 0" if name == "std" else "")
        value = tuple(map(float, value)) if fine else value
        value = value[0] if len(value) == 1 else value
    elif name == "bands":
        value = _names(value)
        fine = bool(value) and all(isinstance(band, str) and band.strip() for band in value)
        wanted = "letters as in 'RGB', or a name for each"
    elif name == "rotate":
        fine, wanted = _whole(value, None), "a multiple of 90 degrees"
    elif name in FLAGS:
        fine, wanted = isinstance(value, bool), "true or false"
    elif name == "axes":
        fine, wanted = isinstance(value, str), "names as in 'b t h w c'"
    else:
        known = ONE_CLIP if name == "sampling" else KINDS
        fine = value in known
        wanted = f"one of {', '.join(known)}{nearest(str(value), known)}"
    if not fine:
        raise OptionError(f"{name} must be {wanted}, not {given!r}")
    return value


def _whole(value: Any, least: int | None) -> bool:
    right = isinstance(value, Integral) and not isinstance(value, bool)
    return right and (least is None or int(value) >= least)


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _names(bands: Any) -> tuple[Any, ...]:
    """One name a band."""
    if isinstance(bands, str):
        return tuple(bands) if LETTERS.issuperset(bands) else (bands,)
    return tuple(bands) if isinstance(bands, Sequence) else (bands,)


def _per_band(value: float | Sequence[float], bands: int) -> tuple[float, ...]:
    values = (float(value),) * bands if isinstance(value, int | float) else tuple(map(float, value))
    if len(values) != bands:
        raise OptionError(f"mean and std need one number or {bands}, one a band, got {len(values)}")
    return values


@dataclass(frozen=True)
class Fed:
    """A function that is fed what a network would be, as a scorer of canonical clips.

    Attributes:
        score: packed clips to scores `(b, k)`, as a tensor or an array.
        pack: canonical clips to what `score` takes.
        numpy: whether `score` takes a numpy array.
    """

    score: Callable[[Any], Any]
    pack: Pack
    numpy: bool = False

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> Any:
        """Scores of canonical clips."""
        with torch.no_grad():
            packed = self.pack(clips)
        return self.score(packed.cpu().numpy() if self.numpy else packed)

    def frozen(self, clips: Float[Tensor, "b c t h w"]) -> Fed:
        """With the statistics of these intact clips, where `pack` takes any."""
        return replace(self, pack=self.pack.frozen(clips))


def kind_of(scores: Float[Tensor, "b k"]) -> ScoreKind:
    """Probabilities where they are not negative and sum to one, else logits.

    Sigmoid outputs cannot be told from other numbers between 0 and 1: they have to be declared.
    """
    positive = scores.shape[1] > 1 and bool((scores >= 0).all())
    return "probs" if positive and bool(((scores.sum(dim=1) - 1).abs() < 1e-4).all()) else "logits"
