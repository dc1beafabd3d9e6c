"""From a displayed frame to a clip frame: resized, cropped, its channels in the order wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from tubelens.clip import Box, Source
from tubelens.errors import OptionError
from tubelens.video.display import LUMA
from tubelens.video.frames import ArrayFrames, Frames


@dataclass(frozen=True)
class Shape:
    """How a displayed frame becomes a clip frame: resized, then cropped in the middle.

    Attributes:
        full: height and width of the displayed frame.
        resized: of the whole frame after resizing.
        crop: of the crop.
        antialias: whether resizing filters before it shrinks.
    """

    full: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int]
    antialias: bool = True

    @classmethod
    def of(
        cls,
        full: tuple[int, int],
        crop: tuple[int, int],
        resize: int | tuple[int, int] | None,
        antialias: bool,
    ) -> Shape:
        """The geometry that `InputSpec` describes.

        Raises:
            OptionError: sizes below one pixel, or a resized frame smaller than the crop.
        """
        h, w = full
        if isinstance(resize, int):
            resized = _short_side(full, resize)
        elif resize is not None:
            resized = (int(resize[0]), int(resize[1]))
        elif crop[0] * w >= crop[1] * h:  # height is the tighter side
            resized = (crop[0], max(crop[1], int(w * crop[0] / h)))
        else:
            resized = (max(crop[0], int(h * crop[1] / w)), crop[1])
        if min(*crop, *resized) < 1:
            raise OptionError(f"size and resize must be at least 1 pixel, got {crop} and {resized}")
        if crop[0] > resized[0] or crop[1] > resized[1]:
            raise OptionError(
                f"the crop of {crop[0]}x{crop[1]} is larger than the resized frame of"
                f" {resized[0]}x{resized[1]} (height x width): use a smaller size or a larger resize"
            )
        return cls(full, resized, crop, antialias)

    @property
    def corner(self) -> tuple[int, int]:
        """Top and left of the crop; halves round to even, as torchvision rounds them."""
        (rh, rw), (ch, cw) = self.resized, self.crop
        return round((rh - ch) / 2.0), round((rw - cw) / 2.0)

    @property
    def box(self) -> Box:
        """The crop in pixels of the displayed frame."""
        (top, left), down, along = self.corner, self.full[0] / self.resized[0], self.full[1] / self.resized[1]
        return Box(top * down, left * along, self.crop[0] * down, self.crop[1] * along)

    def __call__(self, frame: np.ndarray) -> Float[Tensor, "c h w"]:
        """One frame `(h, w, c)` in [0, 1]; uint8 frames are resized as uint8, as torchvision's presets do."""
        pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
        if pixels.dtype != torch.uint8:
            pixels = pixels.float()
        if tuple(pixels.shape[1:]) != self.resized:
            pixels = tvf.resize(
                pixels, list(self.resized), InterpolationMode.BILINEAR, antialias=self.antialias
            )
        top, left = self.corner
        pixels = pixels[:, top : top + self.crop[0], left : left + self.crop[1]]
        if pixels.dtype == torch.uint8:
            return pixels.to(torch.float32) / 255
        return pixels.clamp(0, 1).contiguous()


class Prepare:
    """A displayed frame to `(bands, h, w)` in [0, 1]."""

    def __init__(self, shape: Shape, bands: tuple[str, ...], video: Frames) -> None:
        self.shape = shape
        self.order: list[int] | None = None
        self.grey = False
        have = video.bands
        if isinstance(video, ArrayFrames) and (len(have) != 3 or not set(bands) <= set("RGB")):
            if len(have) != len(bands):
                raise OptionError(
                    f"the array has {len(have)} channels but the model needs {', '.join(bands)}:"
                    " name one band a channel"
                )
        elif set(bands) <= set(have):
            self.order = [have.index(band) for band in bands]
        elif len(have) == 1 and (len(bands) == 1 or set(bands) <= set("RGB")):
            self.order = [0] * len(bands)  # grey, or infrared, as three equal channels
        elif len(bands) == 1 and have == ("R", "G", "B"):
            self.grey = True
        else:
            missing = [band for band in bands if band not in have]
            other = next((band for band in (*missing, *have) if band not in "RGB"), "lwir").lower()
            raise OptionError(
                f"{video.path or 'the array'} has bands {_few(have)} but the model needs {', '.join(bands)}:"
                f" give a stream with {', '.join(missing)}, as in visible=a.mp4|{other}=b/, or name its bands"
                " (?bands=...)"
            )

    def __call__(self, frame: np.ndarray) -> Float[Tensor, "c h w"]:
        """The clip frame."""
        pixels = self.shape(frame)
        if self.grey:
            grey: Tensor = torch.tensordot(torch.tensor(LUMA), pixels, dims=1)[None]
            return grey
        return pixels if self.order in (None, [*range(len(pixels))]) else pixels[self.order]


def _few(bands: tuple[str, ...]) -> str:
    """Names of bands; of many, which may be frames in the place of channels, the first."""
    first = ", ".join(bands[:8])
    return first if len(bands) <= 8 else f"{first}, ... ({len(bands)} in all: arrays are (t, h, w, c))"


def after(times: list[float], count: int, step: float) -> list[float]:
    """The times, continued `step` seconds apart up to `count`: padding comes after the span."""
    return times + [times[-1] + step * (i + 1) for i in range(count - len(times))]


def source_of(
    video: Frames, shape: Shape, times: Sequence[float], span: tuple[float, float], sampling: str, padded: int
) -> Source:
    """The record of where a clip came from, its frames having been read."""
    return Source(
        path=video.path,
        size=video.size,
        fps=video.fps,
        times=tuple(times),
        span=span,
        box=shape.box,
        resized=shape.resized,
        sha256=video.sha256(),
        rotation=video.rotation,
        sampling=sampling,
        padded=padded,
        notes=video.notes,
        array=video.array if isinstance(video, ArrayFrames) else None,
    )


def _short_side(full: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width with the short side `side`; the long one loses its fraction, as in torchvision."""
    h, w = full
    return (side, int(side * w / h)) if h <= w else (int(side * h / w), side)
