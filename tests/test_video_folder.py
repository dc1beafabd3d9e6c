"""Folders of images: natural order, every kind of image as it is displayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.videos import coded, read_code, real
from tubelens.errors import OptionError, VideoError
from tubelens.video import FolderFrames, extract_frames, open_video, read_clip


def folder(path: Path, count: int = 12, suffix: str = "png", name: str = "frame{}") -> Path:
    path.mkdir(exist_ok=True)
    for number in range(count):
        Image.fromarray(coded(number)).save(path / f"{name.format(number)}.{suffix}")
    return path


def one(tmp_path: Path) -> np.ndarray:
    """The only frame of a folder."""
    ((_, _, frame),) = open_video(tmp_path).pick([0])
    assert frame.dtype == np.uint8
    assert frame.shape[2] == 3
    return frame


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "tif", "tiff", "bmp", "PNG"])
def test_natural_order(tmp_path: Path, suffix: str) -> None:
    path = folder(tmp_path / "f", 12, suffix)
    (path / "notes.txt").write_text("x")
    (path / "sub.png").mkdir()
    with open_video(path) as video:
        assert isinstance(video, FolderFrames)
        assert (video.fps, video.size, video.has_audio, video.rotation) == (25.0, (48, 64), False, 0)
        assert video.times() == [i / 25 for i in range(12)]
        assert [(i, t, read_code(f)) for i, t, f in video.pick(range(12))] == [
            (i, i / 25, i) for i in range(12)
        ]


def test_spans_and_rate(tmp_path: Path) -> None:
    video = open_video(folder(tmp_path / "f"), fps=10.0)
    assert [(t, read_code(f)) for t, f in video.between(0.26, 0.51)] == [(0.3, 3), (0.4, 4), (0.5, 5)]
    assert [read_code(f) for _, f in video.run(0.55, 2)] == [5, 7, 9, 11]
    assert video.decoded == 7
    with pytest.raises(OptionError, match=r"past the end: the video lasts 1\.20 s"):
        next(video.run(1.2))


def test_hash_knows_names_and_contents(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", 3)
    before = open_video(path).sha256()
    assert before == open_video(folder(tmp_path / "g", 3)).sha256()
    (path / "frame2.png").rename(path / "frame3.png")
    renamed = open_video(path).sha256()
    Image.fromarray(coded(7)).save(path / "frame3.png")
    assert len({before, renamed, open_video(path).sha256()}) == 3


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(coded(9)).quantize(4)
    image.save(tmp_path / "a.png")
    assert read_code(one(tmp_path)) == 9


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (64, 48), 1)
    image.putpalette([255, 0, 0, 0, 200, 0] + [0] * 750)
    image.paste(0, (0, 0, 32, 48))
    image.save(tmp_path / "a.png", transparency=0)
    frame = one(tmp_path)
    assert frame[:, :32].max() == 0
    assert (frame[:, 32:] == (0, 200, 0)).all()


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (200, 100, 50, 128)), ("LA", (100, 128))])
def test_alpha(tmp_path: Path, mode: str, colour: tuple[int, ...]) -> None:
    Image.new(mode, (64, 48), colour).save(tmp_path / "a.png")
    expected = (100, 50, 25) if mode == "RGBA" else (50, 50, 50)
    assert np.abs(one(tmp_path).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.uint16)
    Image.fromarray(np.tile(values, (48, 1))).save(tmp_path / f"a.{suffix}")
    frame = one(tmp_path)
    assert (frame == np.round(values / 257).astype(np.uint8)[None, :, None]).all()


def test_float_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    assert (one(tmp_path) == 128).all()
    Image.fromarray(np.full((4, 4), 300.0, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(VideoError, match=r"a\.tif: float values must lie in \[0, 1\]"):
        one(tmp_path)


def test_wide_integers_have_no_scale(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 1_000_000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(VideoError, match=r"a\.tif: 32-bit values have no known full scale"):
        one(tmp_path)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr"])
def test_modes(tmp_path: Path, mode: str) -> None:
    suffix = "png" if mode == "1" else "jpg"
    Image.fromarray(coded(21)).convert(mode).save(tmp_path / f"a.{suffix}")
    assert read_code(one(tmp_path)) == 21


def test_cmyk_colour(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (220, 30, 40)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(one(tmp_path).astype(int) - (220, 30, 40)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(coded(1029, (48, 96)))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert open_video(tmp_path).size == (48, 96)
    assert read_code(one(tmp_path)) == 1029


def test_first_odd_file_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "f")
    Image.fromarray(coded(3, (64, 48))).save(path / "frame4.png")
    Image.fromarray(coded(3, (30, 40))).save(path / "frame10.png")
    with pytest.raises(
        VideoError, match=r"frame4\.png: is 48x64, but frame0\.png is 64x48: bring all frames to"
    ):
        open_video(path)


def test_image_that_is_none(tmp_path: Path) -> None:
    path = folder(tmp_path / "f")
    (path / "frame5.png").write_text("not an image")
    with pytest.raises(VideoError, match=r"frame5\.png: this image cannot be decoded"):
        open_video(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image(tmp_path: Path, suffix: str) -> None:
    path = folder(tmp_path / "f", suffix=suffix)
    file = path / f"frame5.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-60])
    video = open_video(path)
    with pytest.raises(VideoError, match=rf"frame5\.{suffix}: this image cannot be decoded") as caught:
        list(video.pick([5]))
    assert "\n" not in str(caught.value)
    assert len(list(video.pick([4, 6]))) == 2


def test_real_folder() -> None:
    path = real("clips", "jester_frames", "177")
    video = open_video(path, fps=12.0)
    assert len(video.times()) == 37
    ((_, seconds, frame),) = video.pick([12])
    assert seconds == 1.0
    np.testing.assert_array_equal(frame, np.array(Image.open(sorted(path.glob("*.jpg"))[12])))
    assert read_clip(path, fps=12.0).source.span == (0.0, 3.0)


def test_extract_frames(tmp_path: Path) -> None:
    source = folder(tmp_path / "f", 12)
    files = extract_frames(source, tmp_path / "out", every=5)
    assert [f.name for f in files] == ["00.png", "05.png", "10.png"]
    assert [read_code(np.array(Image.open(f))) for f in files] == [0, 5, 10]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f.name for f in files]
    assert len(extract_frames(source, tmp_path / "out", every=2, max=3)) == 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["00.png", "02.png", "04.png"]
    with pytest.raises(OptionError):
        extract_frames(source, tmp_path / "out", every=0)


def test_extract_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    source = folder(tmp_path / "f", 12)
    file = source / "frame5.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(VideoError):
        extract_frames(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
