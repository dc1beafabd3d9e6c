"""Clips of optical flow, alone or beside the colours: computed from a video, or read from disk.

Bands U (to the right) and V (downwards) are pixels a frame at the size the network sees, clipped to
-20..20 and mapped to [0, 1], so that 0.5 is rest: what two-stream networks are trained on (Simonyan &
Zisserman, NeurIPS 2014; Carreira & Zisserman, CVPR 2017). Those computed it by TV-L1, which plain OpenCV does
not have; flow computed here is Farnebäck's, so published networks want theirs read from disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import resize as resized_to

from tubelens.clip import Clip, Pad
from tubelens.errors import OptionError, VideoError
from tubelens.flow import forward_flow
from tubelens.model import InputSpec
from tubelens.video.frames import ArrayFrames, Frames, open_video
from tubelens.video.images import natural
from tubelens.video.moments import shown_at
from tubelens.video.prepare import Prepare, Shape, after, source_of
from tubelens.video.sampling import Span, planned, said, spanned, stood_for

BANDS = ("U", "V")
BOUND = 20.0  # pixels a frame
AXES = ("x", "y")
REST = 128  # the level that stored images have where nothing moves
ONE_AT_A_TIME = "clips with optical flow are read one at a time (model.read)"


def has_flow(bands: Sequence[str]) -> bool:
    """Whether a clip of these bands holds optical flow."""
    return set(bands) & set(BANDS) != set()


def refuse_flow(path: object, spec: InputSpec) -> None:
    """Raise OptionError where several clips are wanted of what is read as optical flow."""
    if has_flow(spec.bands) and isinstance(path, str | os.PathLike):
        raise OptionError(f"{os.fspath(path)}: {ONE_AT_A_TIME}, not in windows or views")


def read_flow(
    path: str | os.PathLike[str],
    spec: InputSpec,
    sampling: str | None = None,
    stride: int | None = None,
    start: float = 0.0,
    seed: int = 0,
    pad: Pad = "clamp",
    fps: float | None = None,
    span: Span | None = None,
) -> Clip:
    """A clip with bands U and V, alone or with R, G and B.

    A frame's flow is that to the next frame of the video, whatever the stride; the last frame has that of
    the one before.

    Args:
        path: a video or a folder of frames, whose flow is computed; or flow in pixels on disk: `.npy`, `.npz`
            `(t, h, w, 2)`, or a folder of 8-bit images `flow_x_00001.jpg`, `flow_y_00001.jpg` (or folders `x`
            and `y`), -20..20 as 0..255. A folder may hold the frames too.
        spec: what the network was trained on.
        sampling: as for other clips; a stride or a start makes the default dense.
        stride: likewise.
        start: likewise.
        seed: likewise.
        pad: likewise.
        fps: frame rate of a folder or an array file, 25 by default.
        span: seconds of the only part that is sampled. Flow at its end is still that to the next frame.

    Raises:
        VideoError: it cannot be read.
        OptionError: OpenCV is needed and missing, bands that flow does not have, colours beside flow that
            was stored without, or sampling options that mean nothing together.
    """
    unknown = [band for band in spec.bands if band not in (*BANDS, "R", "G", "B")]
    if unknown:
        raise OptionError(
            f"a clip with optical flow has bands out of U, V, R, G, B, not {', '.join(unknown)}"
        )
    colours = tuple(band for band in spec.bands if band not in BANDS)
    flow = _stored(Path(path))
    if flow is not None and not flow.frames and colours:
        raise OptionError(f"{path}: holds optical flow only, and the clip needs {', '.join(colours)} too")
    alone = flow is not None and not flow.frames
    video: Frames = ArrayFrames(_shown(flow), fps or 25.0) if flow and alone else open_video(path, fps)
    with video:
        shape = Shape.of(video.size, spec.size, spec.resize, spec.antialias)
        every = video.times()
        if sampling == "windows":
            raise OptionError(f"windows are not one clip, and {ONE_AT_A_TIME}")
        if span is not None and start:
            raise OptionError("a span has its own start: give a span or a start")
        how = planned(spec, video.fps, sampling, stride, start, seed, pad)
        part = range(shown_at(every, start, video.fps, str(video.path or path)) if start else 0, len(every))
        if span is not None:
            part = spanned(every, span, video.fps, str(video.path or path))
        own = how.pick(len(part))
        wanted = [part.start + i if i >= 0 else i for i in own]
        real = sorted({i for i in wanted if i >= 0})
        if flow is None:
            found, pictures = _computed(video, real, len(every), shape, bool(colours))
        else:
            found = {i: flow.at(min(i, len(flow.u) - 1), shape) for i in real}
            pictures = _pictures(video, real, shape) if colours else {}
        planes = {i: _planes(spec.bands, found[i], pictures.get(i), shape) for i in real}
        black = torch.zeros_like(planes[real[0]])
        for n, band in enumerate(spec.bands):
            black[n] = 0.5 if band in BANDS else 0.0  # nothing moves
        clip = [planes[i] if i >= 0 else black for i in wanted]
        times, seen, padded = stood_for(how, every[part.start : part.stop], own)
        step = spec.stride_at(video.fps) if stride is None else stride
        times = after(times, len(clip), step / video.fps)
        source = source_of(video, shape, times, seen, f"{said(how, span)}, flow to the next frame", padded)
    source = replace(source, path=os.fspath(path) if source.array is None else None)
    return Clip(torch.stack(clip, dim=1), spec.bands, source)


@dataclass(frozen=True, eq=False)
class Stored:
    """Flow on disk, in pixels a frame at its own size.

    Attributes:
        u, v: arrays `(h, w)` or image files, one a frame.
        frames: whether the folder holds other images too.
    """

    u: Sequence[np.ndarray | Path]
    v: Sequence[np.ndarray | Path]
    frames: bool = False

    def at(self, i: int, shape: Shape) -> Float[Tensor, "2 h w"]:
        """In pixels of the resized frame."""
        pair = torch.from_numpy(np.stack([_plane(self.u[i]), _plane(self.v[i])]))
        h, w = pair.shape[1:]
        (rh, rw) = shape.resized
        small: Tensor = resized_to(pair, [rh, rw], antialias=shape.antialias) if (h, w) != (rh, rw) else pair
        return small * torch.tensor([rw / w, rh / h]).view(2, 1, 1)


def _computed(
    video: Frames, real: list[int], n: int, shape: Shape, keep: bool
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Flow and, where they are kept, pictures of frames, from one pass over them and their successors, two in
    memory at a time.
    """
    prepare = _uncropped(video, shape)
    pairs = {i: (i, i + 1) if i + 1 < n else (max(0, i - 1), i) for i in real}
    needed = sorted({j for pair in pairs.values() for j in pair})
    kept: dict[int, Tensor] = {}
    found: dict[int, Tensor] = {}
    pictures: dict[int, Tensor] = {}
    for number, _, frame in video.pick(needed):
        kept[number] = prepare(frame)
        for i in (number - 1, number):
            if i in pairs and i not in found and all(j in kept for j in pairs[i]):
                a, b = pairs[i]
                rest = torch.zeros(2, *shape.resized)
                found[i] = rest if a == b else forward_flow(torch.stack([kept[a], kept[b]], dim=1))[0].flip(0)
        if keep and number in pairs:
            pictures[number] = kept[number]
        for old in [j for j in kept if j < number - 1]:
            del kept[old]
    return found, pictures


def _pictures(video: Frames, real: list[int], shape: Shape) -> dict[int, Float[Tensor, "3 h w"]]:
    prepare = _uncropped(video, shape)
    return {i: prepare(frame) for i, _, frame in video.pick(real)}


def _uncropped(video: Frames, shape: Shape) -> Prepare:
    return Prepare(replace(shape, crop=shape.resized), ("R", "G", "B"), video)


def _planes(
    bands: Sequence[str], flow: Tensor, picture: Tensor | None, shape: Shape
) -> Float[Tensor, "c h w"]:
    """The bands of one frame, cropped."""
    top, left = shape.corner
    mapped = (flow.clamp(-BOUND, BOUND) / BOUND + 1) / 2
    rows = []
    for band in bands:
        if band in BANDS:
            rows.append(mapped[BANDS.index(band)])
        else:
            assert picture is not None
            rows.append(picture["RGB".index(band)])
    h, w = shape.crop
    return torch.stack(rows)[:, top : top + h, left : left + w].contiguous()


def _stored(where: Path) -> Stored | None:
    """Flow on disk; None for what flow has to be computed of."""
    if where.is_dir():
        found = _images(where)
        if found is None:
            return None
        (u, v), others = found
        if len(u) != len(v):
            raise VideoError(f"{where}: {len(u)} images of flow to the right but {len(v)} downwards")
        return Stored(u, v, others)
    if where.suffix.lower() not in (".npy", ".npz"):
        return None
    try:
        content = np.load(where, allow_pickle=False)
        array = content if isinstance(content, np.ndarray) else content[next(iter(content.files))]
    except (OSError, ValueError, StopIteration, EOFError) as error:
        raise VideoError(f"{where}: cannot be read as an array: {error}") from error
    if array.ndim != 4 or array.shape[3] != 2 or 0 in array.shape or not np.isfinite(array).all():
        raise VideoError(f"{where}: flow must be a finite array (t, h, w, 2) in pixels, not {array.shape}")
    flow = array.astype(np.float32)
    return Stored(list(flow[..., 0]), list(flow[..., 1]))


def _images(folder: Path) -> tuple[tuple[list[Path], list[Path]], bool] | None:
    """Flow images to the right and downwards, and whether there are others; None where there are none."""
    images = [p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png")]
    pairs = [[p for p in images if p.name.startswith(f"flow_{axis}")] for axis in AXES]
    if any(pairs):
        x, y = (sorted(files, key=natural) for files in pairs)
        return (x, y), len(x) + len(y) < len(images)
    for names in (("x", "y"), ("u", "v"), ("flow_x", "flow_y")):
        if all((folder / name).is_dir() for name in names):
            x, y = (sorted((folder / name).iterdir(), key=natural) for name in names)
            return (x, y), bool(images)
    return None


def _plane(stored: np.ndarray | Path) -> np.ndarray:
    """One component in pixels; 0..255 stands for -20..20, 128 for rest."""
    if isinstance(stored, np.ndarray):
        return np.ascontiguousarray(stored)
    try:
        with Image.open(stored) as image:
            levels = np.asarray(image.convert("L"), dtype=np.float32)
    except OSError as error:
        raise VideoError(f"{stored}: cannot be read as an image: {error}") from error
    return (levels - REST) * (2 * BOUND / 255)


def _shown(flow: Stored) -> np.ndarray:
    """A picture of stored flow to draw maps on: U red, V blue, rest grey."""
    frames = []
    for u, v in zip(flow.u, flow.v, strict=True):
        planes = [np.clip(_plane(p) / BOUND, -1, 1) * 0.5 + 0.5 for p in (u, v)]
        frames.append(np.stack([planes[0], np.full_like(planes[0], 0.5), planes[1]], axis=-1))
    return np.round(np.stack(frames) * 255).astype(np.uint8)
