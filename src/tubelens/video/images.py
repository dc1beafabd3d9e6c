"""Frames from a folder of images."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from tubelens.errors import VideoError
from tubelens.files import sha256_of
from tubelens.video.display import Frame, over_black
from tubelens.video.moments import increasing, shown_at, shown_between

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SWAPPED = {5, 6, 7, 8}
"""EXIF orientations that exchange height and width."""


ROUNDED = "16-bit colour PNG cannot be read exactly, only 8 bits of it: save it as TIFF"


class FolderFrames:
    """The images of one folder, in natural order (`frame2` before `frame10`).

    Attributes:
        path: as given.
        size: height and width, EXIF orientation applied.
        fps: frames a second that the folder stands for.
        rotation: 0; each image's own orientation is applied as it is read.
        has_audio: False.
        decoded: images decoded so far.
        bands, pictures: see `FileFrames`.
        notes: that 16-bit colours lose their lower half.
    """

    rotation = 0
    has_audio = False
    bands: tuple[str, ...] = ("R", "G", "B")
    pictures: tuple[str, ...] = ("",)

    def __init__(self, path: str | os.PathLike[str], fps: float = 25.0) -> None:
        self.path: str | None = os.fspath(path)
        self.fps = float(fps)
        self.decoded = 0
        self.files = image_files(path)
        self.notes: tuple[str, ...] = (ROUNDED,) if any(map(loses_bits, self.files)) else ()
        self.size = _size(self.files[0])
        for file in self.files:
            size = _size(file)
            if size != self.size:
                raise VideoError(
                    f"{file}: is {size[1]}x{size[0]}, but {self.files[0].name} is"
                    f" {self.size[1]}x{self.size[0]}: bring all frames to one size"
                )

    def times(self) -> list[float]:
        """Seconds of every frame; the first is 0."""
        return [number / self.fps for number in range(len(self.files))]

    def pick(self, indices: Iterable[SupportsIndex]) -> Iterator[tuple[int, float, Frame]]:
        """Frames by number: `(number, seconds, frame)`.

        Args:
            indices: increasing, each once.

        Raises:
            OptionError: not increasing, or a number that the folder does not have.
            VideoError: an image that cannot be decoded.
        """
        for number in increasing(indices, len(self.files), str(self.path)):
            self.decoded += 1
            yield number, number / self.fps, read_image(self.files[number])

    def between(self, start: float, end: float) -> Iterator[tuple[float, Frame]]:
        """Frames shown from `start` to `end` (seconds), both included within half a frame."""
        for _, seconds, frame in self.pick(shown_between(self.times(), start, end, self.fps)):
            yield seconds, frame

    def run(self, start: float = 0.0, stride: int = 1) -> Iterator[tuple[float, Frame]]:
        """Every `stride`-th frame from the one shown at `start` (seconds).

        Raises:
            OptionError: the folder ends before `start`.
        """
        first = shown_at(self.times(), start, self.fps, str(self.path))
        for _, seconds, frame in self.pick(range(first, len(self.files), stride)):
            yield seconds, frame

    def sha256(self) -> str | None:
        """Hash of the names and the contents, in order."""
        return hash_of(self.files)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def __enter__(self) -> FolderFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def image_files(path: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder, in natural order; of stored optical flow only where there is nothing else.

    Raises:
        VideoError: it has none, or cannot be listed.
    """
    folder = Path(path)
    try:
        found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    except OSError as error:
        raise VideoError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    pictures = [p for p in found if not p.name.startswith(("flow_x", "flow_y"))]  # flow beside frames
    files = sorted((p for p in pictures or found if os.path.isfile(p)), key=natural)
    if not files:
        known = ", ".join(s[1:] for s in SUFFIXES)
        raise VideoError(f"{folder}: a folder without images ({known}): give a video or a folder of frames")
    return files


def loses_bits(file: Path) -> bool:
    """Whether an image is a PNG of 16 bits whose colours or transparency make Pillow drop the lower 8."""
    if file.suffix.lower() != ".png":
        return False
    try:
        with file.open("rb") as data:
            start = data.read(26)
    except OSError as error:
        raise broken(file, error) from error
    depth_and_kind = start[24:26]
    return start[12:16] == b"IHDR" and depth_and_kind[0:1] == b"\x10" and depth_and_kind != b"\x10\x00"


def broken(file: Path, error: BaseException) -> VideoError:
    """What is told of an image that cannot be read."""
    if isinstance(error, OSError) and error.strerror:  # by the system, not by Pillow
        return VideoError(f"{file}: this image cannot be read: {error.strerror}")
    return VideoError(f"{file}: this image cannot be decoded ({error}): replace or remove it")


def hash_of(files: Iterable[Path]) -> str:
    """Hash of the names and the contents of files, in order."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{sha256_of(file)}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def natural(path: Path) -> tuple[list[int | str], str]:
    """A sorting key that counts: digits compare as numbers."""
    parts = re.split(r"([0-9]+)", path.name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def read_image(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """One image as displayed: RGB, orientation applied, transparent parts over black.

    Raises:
        VideoError: it cannot be decoded, or has more than 8 bits.
    """
    try:
        with Image.open(file) as image:
            image.load()
            picture: Image.Image = ImageOps.exif_transpose(image)
            if picture.mode.startswith("I") or picture.mode == "F":
                raise VideoError(f"{file}: has more than 8 bits, unlike the first image of its folder")
            clear = picture.has_transparency_data
            return over_black(np.array(picture.convert("RGBA" if clear else "RGB")))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise broken(file, error) from error


def _size(file: Path) -> tuple[int, int]:
    """Height and width as displayed, from the header."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            if image.format == "TIFF":
                return _tiff_size(file, image)
            # A PNG may keep its orientation behind the pixels: asking for it would decode them.
            early = image.format != "PNG" or "exif" in image.info
            swapped = early and image.getexif().get(0x0112) in SWAPPED
            return (width, height) if swapped else (height, width)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise broken(file, error) from error


def _tiff_size(file: Path, image: Any) -> tuple[int, int]:
    """By its tags, because versions of Pillow differ in when they turn a TIFF file that lies on its side."""
    width, height, turned = (image.tag_v2.get(tag) for tag in (256, 257, 0x0112))
    if turned not in SWAPPED:
        return height, width
    if image.info.get("compression") == "raw":  # which Pillow reads with the wrong width
        raise VideoError(f"{file}: an uncompressed TIFF file that lies on its side: save it upright")
    return width, height
