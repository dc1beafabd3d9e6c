"""Measured values in pictures: folders of deep images, TIFF files of many pages, one band of colour video."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.videos import coded, coded_video, read_code, write_video
from tubelens.errors import OptionError, VideoError
from tubelens.video import FolderFrames, open_video, read_clip
from tubelens.video.measured import MeasuredFrames
from tubelens.video.measured_images import FalseColour


def counts(t: int = 5, h: int = 6, w: int = 8, c: int = 1) -> np.ndarray:
    """16-bit counts, no two alike, that need the highest bit."""
    order = np.random.default_rng(0).permutation(t * h * w * c)
    return (order * (65535 // (order.size - 1))).astype(np.uint16).reshape(t, h, w, c)


def exact(text: str | Path, fps: float | None = None) -> np.ndarray:
    """All frames `(t, h, w, c)` as a network gets them."""
    video = open_video(text, fps)
    assert isinstance(video, MeasuredFrames)
    video.exact = True
    return np.stack([frame for _, _, frame in video.pick(range(len(video.times())))])


def same(text: str | Path, values: np.ndarray, full: float = 65535) -> None:
    np.testing.assert_allclose(exact(text), values / full, atol=1e-7)


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
def test_folders_keep_all_16_bits(tmp_path: Path, suffix: str) -> None:
    values = counts()
    for i, frame in enumerate(values[..., 0]):
        Image.fromarray(frame).save(tmp_path / f"f{i * 5}.{suffix}")
    same(tmp_path, values)
    video = open_video(tmp_path, fps=10)
    assert (video.bands, video.size, video.fps, video.path) == (("Y",), (6, 8), 10.0, str(tmp_path))
    assert open_video(f"{tmp_path}?bands=LWIR", fps=10).path == f"{tmp_path}?bands=LWIR&fps=10"
    rgb = read_clip(tmp_path, frames=5, size=(6, 8), bands="RGB").pixels
    for channel in rgb:
        np.testing.assert_allclose(channel, values[..., 0] / 65535, atol=1e-7)


def test_byte_orders_may_be_mixed_in_one_folder(tmp_path: Path) -> None:
    values = counts(6)
    for i, frame in enumerate(values[..., 0]):
        file = tmp_path / f"f{i}.tif"
        if i % 3 == 2:
            Image.fromarray(frame).save(file.with_suffix(".png"))
        else:
            tifffile.imwrite(file, frame, byteorder="<>"[i % 3])
    firsts = {(tmp_path / f"f{i}.tif").read_bytes()[:2] for i in (0, 1)}
    assert firsts == {b"II", b"MM"}
    same(tmp_path, values)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "u4", "i2", "u2"])
def test_tiff_of_every_type(tmp_path: Path, dtype: str, byteorder: str) -> None:
    values = (counts() // 64).astype(dtype)
    for i, frame in enumerate(values[..., 0]):
        tifffile.imwrite(tmp_path / f"{i}.tif", frame, byteorder=byteorder)
    same(f"{tmp_path}?range=0:1023", values.astype(float), 1023)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(tmp_path: Path, compression: str | None) -> None:
    """LZW, which tifffile cannot read by itself, too."""
    values = counts()
    pictures = [Image.fromarray(frame) for frame in values[..., 0]]
    pictures[0].save(tmp_path / "a.tif", save_all=True, append_images=pictures[1:], compression=compression)
    same(tmp_path / "a.tif", values)
    (tmp_path / "f").mkdir()
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / "f" / f"{i}.tif", compression=compression)
    same(tmp_path / "f", values)


def test_folders_of_many_channels(tmp_path: Path) -> None:
    values = counts(c=5)
    for i, frame in enumerate(values):
        options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [0] * 4}
        tifffile.imwrite(tmp_path / f"{i}.tif", frame, **options)
    same(tmp_path, values)
    assert open_video(tmp_path).bands == ("b0", "b1", "b2", "b3", "b4")
    clip = read_clip(f"{tmp_path}?bands=B,G,R,NIR,LWIR", frames=5, size=(6, 8), bands=("LWIR", "R"))
    np.testing.assert_allclose(clip.pixels[0], values[..., 4] / 65535, atol=1e-7)
    np.testing.assert_allclose(clip.pixels[1], values[..., 2] / 65535, atol=1e-7)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    """A 16-bit image stands as an 8-bit PNG of the same orientation does."""
    values = counts(1)[0, ..., 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep, flat = tmp_path / "deep", tmp_path / "flat"
    deep.mkdir()
    flat.mkdir()
    Image.fromarray((values // 257).astype(np.uint8)).save(flat / "a.png", exif=exif)
    if suffix == "tif":
        tifffile.imwrite(deep / "a.tif", values, extratags=[(274, 3, 1, orientation, True)])
        same(deep / "a.tif", exact(deep), 1)
    else:
        Image.fromarray(values).save(deep / "a.png", exif=exif)
    video = open_video(flat)
    assert isinstance(video, FolderFrames)
    ((_, _, picture),) = video.pick([0])
    assert open_video(deep).size == video.size
    np.testing.assert_array_equal(np.floor(exact(deep)[0, ..., 0] * 255 + 1e-5), picture[..., 0])


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_of_8_bit_tiff(tmp_path: Path, orientation: int) -> None:
    values = (counts(1)[0, ..., 0] // 257).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    wanted = np.rot90(values, {3: 2, 6: -1, 8: 1}[orientation])
    for compression in ("tiff_lzw", "raw"):
        Image.fromarray(values).save(tmp_path / "a.tif", exif=exif, compression=compression)
        if compression == "raw" and orientation != 3:
            with pytest.raises(VideoError, match=r"a\.tif: an uncompressed TIFF file that lies on its side"):
                open_video(tmp_path)
            continue
        video = open_video(tmp_path)
        ((_, _, picture),) = video.pick([0])
        assert video.size == wanted.shape
        np.testing.assert_array_equal(picture[..., 1], wanted)


def test_grey_pngs_of_8_bits_stay_pictures(tmp_path: Path) -> None:
    values = (counts() // 257).astype(np.uint8)
    for i, frame in enumerate(values[..., 0]):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    video = open_video(tmp_path)
    assert isinstance(video, FolderFrames)
    assert video.bands == ("R", "G", "B")
    for i, _, frame in video.pick(range(5)):
        np.testing.assert_array_equal(frame, values[i].repeat(3, axis=2))
    clip = read_clip(f"{tmp_path}?bands=LWIR", frames=5, size=(6, 8))
    assert clip.bands == ("LWIR",)
    np.testing.assert_allclose(clip.pixels[0], values[..., 0] / 255, atol=1e-6)
    scaled = read_clip(f"{tmp_path}?bands=LWIR&range=50:200", frames=5, size=(6, 8))
    wanted = np.clip((values[..., 0].astype(float) - 50) / 150, 0, 1)
    np.testing.assert_allclose(scaled.pixels[0], wanted, atol=1e-6)
    with pytest.raises(OptionError, match=r"range= scales one grey band: name it, as in \?bands=LWIR&range="):
        open_video(f"{tmp_path}?range=0:9")
    for option in ("shape=0,6,8", "key=a", "dead=error"):
        with pytest.raises(OptionError, match=f"{option.split('=')[0]}= means nothing to pictures"):
            open_video(f"{tmp_path}?{option}")


def test_a_scale_is_of_the_whole_folder(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(7000, 7500, (4, 6, 8)).astype(np.uint16)
    values += np.arange(4, dtype=np.uint16)[:, None, None] * 500
    for i, frame in enumerate(values):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    with pytest.raises(OptionError, match=rf"16-bit values, but the largest is {values.max()}: .*\?bits=14 "):
        open_video(tmp_path)
    low, high = np.percentile(values, (2, 98))
    wanted = np.clip((values - low) / (high - low), 0, 1)[..., None]
    np.testing.assert_allclose(exact(f"{tmp_path}?percentile=2:98"), wanted, atol=1e-6)
    same(f"{tmp_path}?bits=14", values[..., None], 16383)
    Image.fromarray(values[2] * 2).save(tmp_path / "2.png")
    with pytest.raises(VideoError, match=r"2\.png: has the value \d+, beyond 14 bits"):
        exact(f"{tmp_path}?bits=14")


def test_dead_cells_in_a_folder(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(20, 2, (3, 6, 8)).astype(np.float32)
    values[1, 2, 3] = np.nan
    for i, frame in enumerate(values):
        tifffile.imwrite(tmp_path / f"f{i}.tif", frame)
    video = open_video(f"{tmp_path}?range=10:30")
    assert video.notes == ("1 dead cell was filled from its neighbours (0.7 % of the values)",)
    hole = exact(f"{tmp_path}?range=10:30")[1, 2, 3, 0]
    around = (np.nansum(values[1, 1:4, 2:5]) / 8 - 10) / 20
    assert hole == pytest.approx(around, abs=1e-6)
    with pytest.raises(VideoError, match=r"f1\.tif: the value at row 2, column 3 is nan"):
        open_video(f"{tmp_path}?range=10:30&dead=error")


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    def made(name: str, *images: np.ndarray) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for i, image in enumerate(images):
            tifffile.imwrite(folder / f"f{i}.tif", image, photometric="minisblack")
        return folder

    frame = counts(1)[0, ..., 0]
    byte = frame.astype(np.uint8)
    for folder, said in (
        (
            made("size", frame, frame[:5]),
            r"f1\.tif: is 8x5, uint16, but f0\.tif is 8x6, uint16: bring",
        ),
        (
            made("type", frame, frame.astype(np.float32)),
            r"f1\.tif: is 8x6, float32, but f0\.tif is 8x6, uint16",
        ),
        (made("flat", frame, byte), r"f1\.tif: is 8x6, uint8, but f0\.tif is 8x6, uint16"),
        (made("deep", byte, frame), r"f1\.tif: has more than 8 bits, unlike the first image of its folder"),
        (made("pages", counts(3)[..., 0]), r"f0\.tif: has 3 pages: give the file itself, or one page a file"),
        (
            made("flatpages", (counts(3)[..., 0] // 257).astype(np.uint8)),
            r"f0\.tif: has 3 pages: give the file itself",
        ),
    ):
        with pytest.raises(VideoError, match=said) as caught:
            list(open_video(folder).pick([0, 1]))
        assert "\n" not in str(caught.value)
    for option in ("key=a", "shape=0,6,8", "palette=inferno"):
        with pytest.raises(OptionError, match="means nothing to a folder of images: it takes bands"):
            open_video(f"{made(option[:3], frame)}?{option}")
    broken = made("broken", frame, frame)
    whole = (broken / "f1.tif").read_bytes()
    for cut in (10, len(whole) - 40, len(whole) - 4):
        (broken / "f1.tif").write_bytes(whole[:-cut])
        with pytest.raises(
            VideoError, match=r"f1\.tif: (this image cannot be decoded|cannot be read as TIFF)"
        ):
            list(open_video(broken).pick([0, 1]))


def test_the_hash_is_of_names_and_contents(tmp_path: Path) -> None:
    values = counts()
    for i, frame in enumerate(values[..., 0]):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    before = open_video(tmp_path).sha256()
    assert open_video(f"{tmp_path}?range=0:9").sha256() == before
    (tmp_path / "4.png").rename(tmp_path / "5.png")
    renamed = open_video(tmp_path).sha256()
    Image.fromarray(values[0, ..., 0]).save(tmp_path / "5.png")
    assert len({before, renamed, open_video(tmp_path).sha256()}) == 3


# ── TIFF files ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options",
    [{"byteorder": "<"}, {"byteorder": ">"}, {"imagej": True}, {"bigtiff": True}, {"compression": "zlib"}],
)
def test_tiff_of_many_pages(tmp_path: Path, options: dict[str, object]) -> None:
    values = counts()
    tifffile.imwrite(tmp_path / "a.tif", values[..., 0], **options)  # type: ignore[arg-type]
    same(tmp_path / "a.tif", values)


def test_pages_written_one_by_one(tmp_path: Path) -> None:
    values = counts()
    with tifffile.TiffWriter(tmp_path / "a.tiff") as out:
        for frame in values[..., 0]:
            out.write(frame, contiguous=False)
    same(tmp_path / "a.tiff", values)
    assert open_video(f"{tmp_path}/a.tiff?fps=9").times()[1] == pytest.approx(1 / 9)


def test_pages_of_several_channels(tmp_path: Path) -> None:
    values = counts(c=3)
    tifffile.imwrite(tmp_path / "rgb.tif", values, photometric="rgb")
    same(tmp_path / "rgb.tif", values)
    assert open_video(tmp_path / "rgb.tif").bands == ("R", "G", "B")
    planes = np.ascontiguousarray(np.moveaxis(values, -1, 1))  # (t, c, h, w)
    tifffile.imwrite(tmp_path / "ij.tif", planes, imagej=True, metadata={"axes": "TCYX"})
    same(tmp_path / "ij.tif", values)
    tifffile.imwrite(tmp_path / "zt.tif", planes, imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(
        VideoError, match=r"zt\.tif: .*4 dimensions \(TZYX\), and only one of them can be time"
    ):
        open_video(tmp_path / "zt.tif")


def test_one_page(tmp_path: Path) -> None:
    values = counts(1)
    tifffile.imwrite(tmp_path / "a.tif", values[0, ..., 0])
    same(tmp_path / "a.tif", values)
    assert open_video(tmp_path / "a.tif").times() == [0.0]


def test_tiff_that_does_not_fit(tmp_path: Path) -> None:
    values = counts()[..., 0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        for frame in (values[0], values[1], values[2, :3]):
            out.write(frame, contiguous=False)
    with pytest.raises(VideoError, match=r"a\.tif: page 2 is 8x3, uint16, but the first is 8x6, uint16"):
        open_video(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", values)
    with pytest.raises(OptionError, match="key= means nothing to a TIFF file: it takes bands, bits"):
        open_video(f"{tmp_path}/b.tif?key=a")
    (tmp_path / "c.tif").write_text("II*")
    with pytest.raises(VideoError, match=r"c\.tif: cannot be read as TIFF"):
        open_video(tmp_path / "c.tif")


def test_tiff_that_is_damaged_is_right_or_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = counts()
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as out:
        for frame in values[..., 0]:
            out.write(frame, contiguous=False, metadata=None)
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    pieces = [whole[:-n] for n in range(1, len(whole), 37)]
    for _ in range(150):
        piece = whole.copy()
        piece[int(rng.integers(len(whole) // 2))] = int(rng.integers(256))
        pieces.append(piece)
    refused = []
    for piece in pieces:
        path.write_bytes(piece)
        try:
            exact(f"{path}?range=0:65535")
        except (VideoError, OptionError) as error:
            refused.append(str(error))
    assert len(refused) > 40
    assert all("a.tif" in said and "\n" not in said for said in refused)
    assert capfd.readouterr().err == ""


# ── one band of pictures ─────────────────────────────────────────────────────────────────────────────────


def ramp(t: int = 4) -> np.ndarray:
    """Values 0 to 1 `(t, h, w)` that use all of a palette."""
    x = np.linspace(0, 1, 64)
    return np.stack([np.tile(np.roll(x, 9 * i), (48, 1)) for i in range(t)])


def coloured(values: np.ndarray, palette: str) -> np.ndarray:
    return np.round(matplotlib.colormaps[palette](values)[..., :3] * 255).astype(np.uint8)


@pytest.mark.parametrize("palette", ["inferno", "gray", "turbo", "afmhot", "viridis_r"])
def test_false_colour_pictures_are_undone(tmp_path: Path, palette: str) -> None:
    values = ramp()
    for i, frame in enumerate(coloured(values, palette)):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    video = open_video(f"{tmp_path}?palette={palette}&bands=LWIR")
    assert (video.bands, video.notes) == (("LWIR",), ())
    got = exact(f"{tmp_path}?palette={palette}&bands=LWIR")[..., 0]
    np.testing.assert_allclose(got, values, atol=1.01 / 255)  # a palette has 256 steps


def test_false_colour_is_the_nearest(tmp_path: Path) -> None:
    """Any colour, against a search through the palette; a second picture finds what the first one learnt."""
    undo = FalseColour("magma")
    palette = np.array([matplotlib.colormaps["magma"](i)[:3] for i in range(256)])
    palette = np.round(palette * 255)
    rng = np.random.default_rng(0)
    for _ in range(2):
        frame = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        wanted = [[int(((palette - pixel) ** 2).sum(1).argmin()) / 255 for pixel in row] for row in frame]
        np.testing.assert_allclose(undo(frame)[..., 0], wanted, atol=1e-7)
        np.testing.assert_array_equal(undo(frame), undo(frame))


def test_false_colour_video(tmp_path: Path) -> None:
    """Through a lossy codec, and with the video's own times."""
    values = ramp(6)
    write_video(tmp_path / "a.mp4", coloured(values, "inferno"), seconds=[0, 0.1, 0.3, 0.35, 0.5, 0.6])
    text = f"{tmp_path}/a.mp4?palette=inferno&bands=LWIR"
    video = open_video(text)
    np.testing.assert_allclose(video.times(), [0, 0.1, 0.3, 0.35, 0.5, 0.6], atol=1e-3)
    assert np.abs(exact(text)[..., 0] - values).mean() < 0.03
    grey = open_video(f"{tmp_path}/a.mp4?bands=LWIR")
    assert grey.bands == ("LWIR",)
    # luma is not the value: blue and red count differently
    clip = read_clip(f"{tmp_path}/a.mp4?bands=LWIR", frames=6, size=(48, 64))
    assert np.abs(clip.pixels[0].numpy() - values).mean() > 0.08


def test_another_palette_is_doubted(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", coloured(ramp(), "inferno"))
    (note,) = open_video(f"{tmp_path}/a.mp4?palette=viridis").notes
    assert "of 255 levels from those of viridis" in note


def test_palettes_that_cannot_be_undone(tmp_path: Path) -> None:
    path = coded_video(tmp_path / "a.mp4", 3)
    with pytest.raises(OptionError, match=r"no palette 'infern' \(did you mean 'inferno'"):
        open_video(f"{path}?palette=infern")
    for name in ("tab10", "prism", "twilight"):
        with pytest.raises(
            OptionError, match=f"palette {name} cannot be undone: it has one colour for several"
        ):
            open_video(f"{path}?palette={name}")
    with pytest.raises(OptionError, match="bands=A,B names 2, but a pixel has 1 value"):
        open_video(f"{path}?palette=gray&bands=A,B")


def test_one_band_of_a_video(tmp_path: Path) -> None:
    path = coded_video(tmp_path / "a.mp4", 12)
    for text in (
        f"{path}?bands=LWIR",
        f"lwir={path}",
        f"{path}?bands=LWIR&range=0:255",
        f"{path}?palette=gray",
    ):
        video = open_video(text)
        assert len(video.bands) == 1
        assert open_video(str(video.path)).path == video.path
        clip = read_clip(text, frames=12, size=(48, 64))
        assert [read_code(frame) for frame in clip.pixels.permute(1, 2, 3, 0).numpy()] == list(range(12))
        assert [read_code(frame) for _, _, frame in video.pick([3, 7])] == [3, 7]
        rgb = read_clip(text, frames=12, size=(48, 64), bands="RGB")
        assert bool((rgb.pixels == clip.pixels).all())
        assert video.sha256() is not None


def test_colours_as_luma_may_be_scaled(tmp_path: Path) -> None:
    frames = [
        np.full((8, 8, 3), (200, 100, 50), np.uint8),
        np.full((8, 8, 3), 90, np.uint8),
        coded(5, (8, 8)),
    ]
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    got = exact(f"{tmp_path}?bands=LWIR&range=20:220")[..., 0]
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    np.testing.assert_allclose(got[0], (luma - 20) / 200, atol=1e-6)
    np.testing.assert_array_equal(got[1], np.float32(70 / 200))  # grey is exactly itself


def test_the_sound_of_one_band(tmp_path: Path) -> None:
    from tubelens.video import sound_file

    path = coded_video(tmp_path / "a.mp4", 12, tone=440.0)
    for text in (f"{path}?palette=gray", f"{path}?bands=LWIR", f"lwir={path}?range=0:255"):
        assert sound_file(open_video(text)) == str(path)
