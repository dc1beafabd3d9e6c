"""What someone's own network is fed: from a few words to an `InputSpec` and a `Pack`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.errors import OptionError, nearest
from tubelens.model import InputSpec
from tubelens.target import ScoreKind
from tubelens.zoo.recipe import Pack

KINDS: tuple[str, ...] = ("logits", "probs", "sigmoid")


@dataclass(frozen=True)
class Input:
    """The input of a network that no recipe knows, such as one in a Keras or ONNX file.

    Attributes:
        frames: clip length.
        size: height and width of the centre crop, in pixels of the video as shown (before `rotate`).
        resize: before it: the short side, or height and width; None: just covers the crop.
        stride: frames from one sampled frame to the next in training.
        rate: frames a second in training, in place of `stride`.
        bands: one letter or one name a channel, in the order that the network takes them: `"BGR"` for
            networks trained on frames of OpenCV.
        sampling: which frames are taken unless told: `uniform`, `dense`, `segments`, `random`.
        snippet: consecutive frames in each segment of `segments` sampling.
        antialias: whether resizing filters before it shrinks.
        mean, std: of the normalisation, one number or one a band, after `scale`.
        scale: what pixels in [0, 1] are multiplied by first.
        axes: einops names of the dimensions: `"b t h w c"` for most Keras networks.
        rotate: degrees counter-clockwise.
        zscore: each clip less its own mean, over its own standard deviation.
        output: what the scores are; None: probabilities where they sum to one, else logits.

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

    def __post_init__(self) -> None:
        if self.frames < 1 or min(self._size) < 1:
            raise OptionError(
                f"a clip has at least one frame and one pixel, not {self.frames} of {self.size}"
            )
        if self.output is not None and self.output not in KINDS:
            raise OptionError(
                f"output {self.output!r}{nearest(self.output, KINDS)}: one of {', '.join(KINDS)}"
            )
        self.pack()  # complains of axes, of a rotation, of too many means

    @property
    def _size(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])

    def spec(self) -> InputSpec:
        """Which pixels of a video make a clip."""
        return InputSpec(
            frames=self.frames,
            size=self._size,
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

    @classmethod
    def parse(cls, text: str) -> Input:
        """From `"frames=20, size=64x64, zscore"`, or from a TOML file with these keys.

        Raises:
            OptionError: an unknown key, or a value that cannot be read.
        """
        if text.endswith(".toml"):
            return cls._of(_table(Path(text)), text)
        given: dict[str, Any] = {}
        for item in re.split(r"[,;]\s*(?=[a-z]+\s*(?:=|[,;]|$))", text.strip()):
            key, sign, value = (part.strip() for part in item.partition("="))
            if key:
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
                values[key] = _value(key, value)
            except (ValueError, TypeError) as error:
                raise OptionError(f"{where}: {key} cannot be {value!r}") from error
        return cls(**values)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not TOML: {error}") from error


def _value(key: str, value: Any) -> Any:
    if key in ("frames", "stride", "snippet", "rotate"):
        return int(value)
    if key in ("size", "resize"):
        parts = [int(n) for n in re.split(r"[x ,]+", value)] if isinstance(value, str) else value
        if isinstance(parts, int):
            return parts
        if len(parts) not in (1, 2):
            raise ValueError(value)
        return parts[0] if len(parts) == 1 else tuple(parts)
    if key in ("rate", "scale"):
        return float(value)
    if key == "output" and value not in KINDS:
        raise OptionError(f"output {value!r}{nearest(value, KINDS)}: one of {', '.join(KINDS)}")
    if key in ("mean", "std"):
        parts = re.split(r"[ ,/]+", value.strip("()[] ")) if isinstance(value, str) else value
        many = [float(n) for n in (parts if isinstance(parts, list) else [parts])]
        return many[0] if len(many) == 1 else tuple(many)
    if key in ("zscore", "antialias"):
        if value in (True, "true", "yes", "1"):
            return True
        if value in (False, "false", "no", "0"):
            return False
        raise ValueError(value)
    if key == "bands":
        return (
            tuple(re.split(r"[ ,/]+", value))
            if isinstance(value, str) and re.search(r"[ ,/]", value)
            else value
        )
    return str(value)


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
