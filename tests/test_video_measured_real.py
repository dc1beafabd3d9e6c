"""Other people's infrared recordings, compared with what is read from them without Tubelens."""

from __future__ import annotations

import csv
import gzip
import shutil
import struct
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import tubelens as tl
from tubelens.errors import OptionError, VideoError
from tubelens.video import open_video, read_clip
from tubelens.video.measured import MeasuredFrames


@pytest.fixture(scope="session")
def lwir(realdata: Path) -> Path:
    if not (realdata / "lwir").is_dir():
        pytest.skip("no infrared recordings beside the repository")
    return realdata / "lwir"


def exact(text: str, numbers: list[int]) -> np.ndarray:
    """Frames `(t, h, w)` of one band as a network gets them."""
    video = open_video(text)
    assert isinstance(video, MeasuredFrames)
    video.exact = True
    return np.stack([frame[..., 0] for _, _, frame in video.pick(numbers)])


# ── 16 x 16 far-infrared ─────────────────────────────────────────────────────────────────────────────────

NIGHT = "20170206/20170206_p8_dark4.npz"


def test_far_infrared_values_and_times(lwir: Path) -> None:
    file = lwir / "nagoya_fir16_actions" / NIGHT
    with np.load(file) as content:
        degrees, moments = content["frames"].astype(float), content["time_s"].astype(float)
    video = open_video(f"{file}?range=15:30&bands=LWIR")
    assert (video.size, video.bands) == ((16, 16), ("LWIR",))
    np.testing.assert_allclose(video.times(), moments - moments[0], atol=1e-5)
    steps = np.diff(video.times())
    assert steps.max() > 2 * steps.min() > 0  # as irregular as they were recorded
    assert video.fps == pytest.approx((len(moments) - 1) / (moments[-1] - moments[0]), rel=1e-5)
    assert 8 < video.fps < 10
    wanted = np.clip((degrees - 15) / 15, 0, 1)
    got = exact(f"{file}?range=15:30", list(range(len(degrees))))
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    clip = read_clip(f"{file}?range=15:30", frames=8, size=16, stride=2, start=10.0)
    first = int(np.searchsorted(moments - moments[0], 10.0 + 0.1 / video.fps, "right")) - 1
    np.testing.assert_allclose(clip.pixels[0], wanted[first : first + 16 : 2], atol=1e-6)
    np.testing.assert_allclose(clip.source.times, moments[first : first + 16 : 2] - moments[0], atol=1e-5)
    with pytest.raises(VideoError, match=r"p8_dark4\.npz, frame 0: float values must lie in \[0, 1\]"):
        open_video(file)


def test_the_action_is_where_the_annotation_says(lwir: Path) -> None:
    """A span of the recording's own seconds holds just the annotated frames."""
    folder = lwir / "nagoya_fir16_actions"
    with (folder / "segments.csv").open() as data:
        row = next(row for row in csv.DictReader(data) if row["action"] == "sitdown")
    (file,) = folder.glob(f"*/{row['file']}.npz")
    start, end = int(row["start_frame"]), int(row["end_frame"])
    text = f"{file}?percentile=1:99"
    times = open_video(text).times()
    clip = read_clip(text, frames=end - start, size=16, span=(times[start], times[end]))
    assert list(clip.source.times) == times[start:end]


# ── CPTV ─────────────────────────────────────────────────────────────────────────────────────────────────


def cptv(file: Path) -> tuple[np.ndarray, list[float]]:
    """Frames and seconds of a version 2 file, from the format's description: per frame, differences along a
    snake through the pixels are themselves differences from the frame before, packed from the high bit."""
    data = gzip.decompress(file.read_bytes())
    assert data[:5] == b"CPTV\x02"
    at, fields = 5, {}
    values: list[np.ndarray] = []
    seconds: list[float] = []
    before = np.zeros(0)
    size = (0, 0)
    while at < len(data):
        kind, count = data[at : at + 1], data[at + 1]
        at += 2
        fields = {}
        for _ in range(count):
            length, name = data[at], data[at + 1 : at + 2]
            fields[name] = data[at + 2 : at + 2 + length]
            at += 2 + length
        if kind == b"H":
            size = tuple(struct.unpack("<I", fields[key])[0] for key in (b"Y", b"X"))
            before = np.zeros(size, dtype=np.int64)
            continue
        length, width = struct.unpack("<I", fields[b"f"])[0], fields[b"w"][0]
        packed, at = data[at : at + length], at + length
        bits = np.unpackbits(np.frombuffer(packed[4:], np.uint8))
        rows = bits[: (size[0] * size[1] - 1) * width].reshape(-1, width).astype(np.int64)
        numbers = rows @ (1 << np.arange(width)[::-1])
        numbers[rows[:, 0] == 1] -= 1 << width  # two's complement
        deltas = np.cumsum([struct.unpack("<i", packed[:4])[0], *numbers]).reshape(size)
        deltas[1::2] = deltas[1::2, ::-1]  # the snake turns
        before = before + deltas
        if not fields.get(b"g", b"\0")[0]:
            values.append(before)
            seconds.append(struct.unpack("<I", fields[b"t"])[0] / 1000)
    return np.stack(values), [second - seconds[0] for second in seconds]


@pytest.mark.parametrize(
    ("name", "bits", "frames"), [("hedgehog2", 12, 343), ("possum", 12, 160), ("background", 15, 170)]
)
def test_cptv_counts_and_times(lwir: Path, name: str, bits: int, frames: int) -> None:
    file = lwir / "cacophony_cptv" / f"{name}.cptv"
    counts, seconds = cptv(file)
    assert len(counts) == frames
    video = open_video(f"{file}?bits={bits}")
    np.testing.assert_allclose(video.times(), seconds, atol=1e-9)
    got = exact(f"{file}?bits={bits}", list(range(frames)))
    np.testing.assert_allclose(got, counts / (2**bits - 1), atol=1e-6)
    low, high = np.percentile(counts, (1, 99.9))
    scaled = exact(f"{file}?percentile=1:99.9", [0, frames - 1])
    np.testing.assert_allclose(scaled, np.clip((counts[[0, -1]] - low) / (high - low), 0, 1), atol=1e-6)
    with pytest.raises(
        OptionError, match=rf"16-bit values, but the largest is {counts.max()}: .*\?bits={bits} "
    ):
        open_video(file)


# ── thermal video, stills ────────────────────────────────────────────────────────────────────────────────


def test_thermal_video_as_one_band(lwir: Path) -> None:
    file = lwir / "tihar" / "exercising-01.mp4"
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), 4)]
    luma = np.stack(frames).astype(float) @ [0.299, 0.587, 0.114]
    clip = read_clip(f"{file}?bands=LWIR", frames=2, size=(640, 480), stride=3)
    assert clip.bands == ("LWIR",)
    np.testing.assert_allclose(clip.pixels[0], luma[[0, 3]] / 255, atol=1e-5)
    scaled = read_clip(f"{file}?bands=LWIR&range=16:235", frames=2, size=(640, 480), stride=3)
    np.testing.assert_allclose(scaled.pixels[0], np.clip((luma[[0, 3]] - 16) / 219, 0, 1), atol=1e-5)


def test_stills_of_different_sizes(lwir: Path, tmp_path: Path) -> None:
    folder = lwir / "roadscene_pairs" / "ir"
    with pytest.raises(
        VideoError, match=r"\.jpg: is \d+x\d+, but FLIR_00006\.jpg is \d+x\d+: bring all frames"
    ):
        open_video(f"{folder}?bands=LWIR")
    shutil.copy(folder / "FLIR_00006.jpg", tmp_path)
    values = np.asarray(Image.open(folder / "FLIR_00006.jpg"))
    assert values.ndim == 2
    clip = read_clip(f"{tmp_path}?bands=LWIR", frames=2, size=values.shape)
    for frame in clip.pixels[0]:
        np.testing.assert_allclose(frame, values / 255, atol=1e-6)


# ── explained and drawn ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "cacophony_cptv/hedgehog2.cptv?percentile=1:99.9",
        f"nagoya_fir16_actions/{NIGHT}?range=20:26",
        "tihar/concentrating-03.mp4?bands=LWIR",
    ],
)
def test_explained_and_drawn(lwir: Path, tmp_path: Path, text: str) -> None:
    model = tl.load_model("bundled")
    clip = model.read(f"{lwir}/{text}", "dense", start=12.0)
    assert float(clip.pixels.std()) > 0.02
    why = tl.explain(model, clip, method="tubes")
    stored = tl.load_explanation(why.save(tmp_path / "why.safetensors"))
    sheet = tl.draw(stored, tmp_path / "why.png")  # the frames are found again by the text alone
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.std() > 20
    assert float(stored.saliency.std()) > 0
