"""Recordings and texts that are not what they seem: each is read rightly, or refused in one clear line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import tubelens as tl
from tests.videos import coded_video
from tubelens.errors import InputError, OptionError, VideoError
from tubelens.evaluate.manifest import read_manifest
from tubelens.video import open_video, paired, read_spec
from tubelens.video.measured import MeasuredFrames
from tubelens.video.streams import beneath, exists, source_stem, streams


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def exact(text: str | Path) -> np.ndarray:
    """All frames `(t, h, w, c)` as a network gets them."""
    with open_video(text) as video:
        assert isinstance(video, MeasuredFrames)
        video.exact = True
        return np.stack([frame for _, _, frame in video.pick(range(len(video.times())))])


def refused(source: str | Path, said: str, kind: type[InputError] = InputError) -> str:
    def read() -> None:
        video = open_video(source)
        list(video.pick(range(len(video.times()))))

    with pytest.raises(kind, match=said) as caught:
        read()
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 420
    return told


def counts(*shape: int, top: int = 65535) -> np.ndarray:
    order = np.random.default_rng(0).permutation(int(np.prod(shape)))
    return (order * (top // (order.size - 1))).astype(np.uint16).reshape(shape)


def folder(name: str, frames: np.ndarray) -> str:
    os.mkdir(name)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(f"{name}/{number}.png")
    return name


def colour_png(path: str, values: np.ndarray) -> None:
    """A 16-bit PNG of 2 (grey, transparency), 3 or 4 channels, which Pillow cannot write."""
    h, w, c = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, {2: 4, 3: 2, 4: 6}[c], 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + body)


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colour_png_never_loses_bits_silently(channels: int) -> None:
    os.mkdir("p")
    for number in range(2):
        colour_png(f"p/{number}.png", counts(4, 5, channels))
    for options in ("?bands=LWIR&range=0:4095", "?bands=A,B,C", "?palette=gray"):
        refused(f"p{options}", "16-bit colour PNG cannot be read exactly.*: save it as TIFF", VideoError)
    refused("lwir=p", "16-bit colour PNG cannot be read exactly")
    with open_video("p") as video:  # a picture to look at
        assert video.notes == (
            "16-bit colour PNG cannot be read exactly, only 8 bits of it: save it as TIFF",
        )
    os.remove("p/0.png")
    Image.fromarray(counts(4, 5)).save("p/0.png")
    refused("p", r"p/1\.png: 16-bit colour PNG cannot be read exactly")


def lzw_rgb16(path: str) -> None:
    """An 8-bit RGB image in LZW, its tags changed to 16 bits and half the width."""
    Image.fromarray(counts(4, 10, 3).astype(np.uint8)).save(path, compression="tiff_lzw")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags: Any = tiff.pages[0].tags  # type: ignore[union-attr]
        tags["ImageWidth"].overwrite(5)
        tags["BitsPerSample"].overwrite((16, 16, 16))


def test_a_compression_that_only_pillow_knows_keeps_the_type() -> None:
    lzw_rgb16("a.tif")
    refused("a.tif?range=0:1", "uint16 in LZW compression, cannot be read exactly: save it uncompressed")
    os.mkdir("f")
    lzw_rgb16("f/0.tif")
    refused("f?range=0:1", "cannot be read exactly: save it uncompressed")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_compressed_tiff_is_turned_once(orientation: int) -> None:
    values = counts(4, 5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save("lzw.tif", compression="tiff_lzw", exif=exif)
    tifffile.imwrite("plain.tif", values, extratags=[(274, 3, 1, orientation, True)])
    np.testing.assert_array_equal(exact("lzw.tif"), exact("plain.tif"))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_8_bit_tiff_is_as_a_file_what_it_is_in_a_folder(compression: str) -> None:
    """A palette, and white as the least value."""
    places = counts(4, 5, top=255).astype(np.uint8)
    indexed = Image.fromarray(places).convert("P")
    indexed.putpalette([(37 * n) % 256 for n in range(768)])
    white = Image.fromarray(255 - places)
    for name, image in (("palette", indexed), ("white", white)):
        os.mkdir(name)
        info = {} if name == "palette" else {262: 0}
        if info:
            image = Image.fromarray(places)
        image.save(f"{name}/0.tif", compression=compression, tiffinfo=info)
        if info:
            with tifffile.TiffFile(f"{name}/0.tif", mode="r+") as tiff:
                tags: Any = tiff.pages[0].tags  # type: ignore[union-attr]
                tags["PhotometricInterpretation"].overwrite(0)
        with open_video(name) as video:
            ((_, _, picture),) = video.pick([0])
        found = exact(f"{name}/0.tif")[0] * 255
        np.testing.assert_allclose(np.broadcast_to(found, picture.shape), picture, atol=1e-4)
        assert open_video(f"{name}/0.tif").bands == (("R", "G", "B") if name == "palette" else ("Y",))


def test_deep_values_are_what_is_stored() -> None:
    values = counts(2, 4, 5)
    tifffile.imwrite("a.tif", values, photometric="miniswhite")
    np.testing.assert_allclose(exact("a.tif")[..., 0], values / 65535, atol=1e-7)


def test_an_uncompressed_tiff_is_not_loaded() -> None:
    for byteorder in ("<", ">"):
        values = counts(64, 64, 64, top=300_000)
        tifffile.imwrite("a.tif", values, byteorder=byteorder)
        with tifffile.TiffFile("a.tif") as tiff:
            start = tiff.series[0].dataoffset
            assert start is not None
        tracemalloc.start()
        video = open_video("a.tif?range=0:65535")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < values.nbytes / 3
        ((_, _, before),) = video.pick([63])
        with open("a.tif", "r+b") as data:
            data.seek(start + 63 * 64 * 64 * 2)
            data.write(bytes(64 * 64 * 2))
        ((_, _, after),) = video.pick([63])
        assert before.max() > 0
        assert after.max() == 0


# ── scales ───────────────────────────────────────────────────────────────────────────────────────────────


def test_more_bits_than_a_value_has() -> None:
    np.save("u1.npy", counts(2, 4, 5, top=255).astype(np.uint8))
    np.save("i2.npy", (counts(2, 4, 5) // 2).astype(np.int16))
    folder("p", counts(2, 4, 5, top=255).astype(np.uint8))
    refused("u1.npy?bits=14", r"u1\.npy: bits=14, but its values have 8 bits: give the sensor's", OptionError)
    refused("i2.npy?bits=16", "bits=16, but its values have 15 bits")
    refused("lwir=p?bits=9", "bits=9, but its values have 8 bits")
    assert exact("u1.npy?bits=8").max() > 0.9
    assert exact("i2.npy?bits=15").max() > 0.9


def test_a_range_that_misses_every_value_is_noticed_everywhere() -> None:
    shallow = counts(4, 4, 5, top=255).astype(np.uint8)
    folder("p", shallow)
    folder("d", counts(4, 4, 5))
    said = r"range=70000:90000 cuts off every value: they lie from 0 to"
    for text in ("p?bands=LWIR", "d?bands=LWIR", "lwir=d"):
        options = "&" if "?" in text else "?"
        refused(f"{text}{options}range=70000:90000", said, OptionError)
    coded_video(Path("v.mp4"), 8)
    refused("v.mp4?bands=LWIR&range=300:400", r"range=300:400 cuts off every value")
    late = np.zeros((9, 4, 5), np.uint16)  # the only frame that the range means is none of those looked at
    late[2] = 40000
    folder("late", late)
    with open_video("late?bands=LWIR&range=30000:50000") as video:
        assert video.notes == (
            "range=30000:50000 cuts off all of the values in the 3 frames that were looked at",
        )
    np.save("a.npy", np.where(np.arange(1000) < 5, 20.5, 1.0).reshape(1, 40, 25))
    with open_video("a.npy?range=20:21") as video:
        assert video.notes == ("range=20:21 cuts off 99.5 % of the values in the 1 frame that was looked at",)
    assert open_video("d?bands=LWIR&range=0:30000").notes == ()


def test_values_as_far_apart_as_numbers_go() -> None:
    np.save("a.npy", np.array([-1.7e308, -1.0, 0.0, 1.0, 1.7e308]).reshape(1, 1, 5))
    refused("a.npy?range=-1e308:1e308", "range=-1e308:1e308 cannot be read: give the values", OptionError)
    refused("a.npy?percentile=0:100", "too far apart: give")
    np.testing.assert_allclose(exact("a.npy?range=-2e307:2e307").ravel(), [0, 0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(exact("a.npy?range=-1:1").ravel(), [0, 0, 0.5, 1, 1])


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────

SECONDS = np.array([0.0, 0.1, 0.35, 0.4, 0.9, 1.0])
COUNTS = np.arange(120, dtype=np.uint8).reshape(6, 4, 5)


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("time_s", SECONDS[:, None]),
        ("elapsed", (SECONDS * 1000).astype("timedelta64[ms]")),
        ("when", np.datetime64("2001-01-01") + (SECONDS * 1e9).astype("timedelta64[ns]")),
    ],
)
def test_times_of_other_kinds_are_read(name: str, moments: np.ndarray) -> None:
    np.savez("a.npz", film=COUNTS, **{name: moments})
    video = open_video("a.npz")
    assert video.notes == ()
    np.testing.assert_allclose(video.times(), SECONDS, atol=1e-9)


@pytest.mark.parametrize("unit", ["Y", "M"])
def test_years_and_months_are_seconds_too(unit: str) -> None:
    np.savez("a.npz", film=COUNTS, when=np.arange(31, 37).astype(f"M8[{unit}]"))
    days = {"Y": 5 * 365 + 1, "M": 31 + 30 + 31 + 30 + 31}[unit]  # from 2001 and from August 1972
    refused("a.npz", f"6 frames in {re.escape(f'{days * 86400:g}')} seconds cannot be meant: check its times")


@pytest.mark.parametrize(
    ("name", "moments", "reason"),
    [
        ("time_s", SECONDS[:5], r"is \(5,\) for 6 frames"),
        ("time_s", np.stack([SECONDS] * 2, 1), None),
        ("timestamps", np.array(["a", "b", "c", "d", "e", "f"]), "holds <U1"),
        ("time_s", np.where(SECONDS == 0.4, np.nan, SECONDS), "does not increase throughout"),
        ("time_s", np.array([-1.7, -1, 0, 0.5, 1, 1.7]) * 1e308, "goes beyond what numbers can tell apart"),
        (
            "t",
            np.array([0, 1, 2, 3, 4, 6], "m8[M]"),
            r"holds timedelta64\[M\], which is no number",
        ),
        ("t", np.array([0, 1, 2, 3, 4, 6], "m8"), "which is no number of seconds"),
        ("time", np.array(["NaT"] * 6, "M8[s]"), "does not increase throughout"),
    ],
)
def test_times_that_are_not_used_are_told(name: str, moments: np.ndarray, reason: str | None) -> None:
    np.savez("a.npz", film=COUNTS, **{name: moments})
    video = open_video("a.npz")
    assert video.times() == [number / 25 for number in range(6)]
    if reason is None:
        assert video.notes == ()
    else:
        (note,) = video.notes
        assert note.startswith(f"'{name}' ")
        assert note.endswith(" and is not used as the times of the frames")
        assert re.search(reason, note)


def test_one_frame_at_no_time() -> None:
    np.savez("a.npz", film=COUNTS[:1], when=np.array(["NaT"], "M8[s]"))
    assert open_video("a.npz").times() == [0.0]


@pytest.mark.parametrize("step", [1e-300, 1e300, 1e-9, 1e7])
def test_rates_that_cannot_be_meant(step: float) -> None:
    np.savez("a.npz", film=COUNTS, time_s=np.arange(6) * step)
    refused("a.npz", r"a\.npz: 6 frames in \S+ seconds cannot be meant: .*_s, _ms, _us, _ns")
    np.save("a.npy", COUNTS)
    refused(f"a.npy?fps={1 / step:g}", "fps=.* cannot be read: give frames a second, 1e-05 to 1e")
    with pytest.raises(OptionError, match="fps must be positive"):
        open_video("a.npy", fps=1 / step)


# ── files that are damaged, or something else ────────────────────────────────────────────────────────────


def header(text: str) -> bytes:
    padded = text + " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode("latin1")


HEADERS = [
    "{'descr': '<u2', 'fortran_order': False, 'shape': (99999999999, 99999999999, 9)}",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (1000000, 1000000, 9)}",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (-6, 4, 5)}",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (6, 4, 5.5)}",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (" + "9" * 400 + ", 4, 5)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (6, 4, 5)}",
    "{'descr': 'zz', 'fortran_order': False, 'shape': (6, 4, 5)}",
    "{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (6, 4, 5)}",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (6, 4, 5",
    "{'descr': '''<u2', 'shape': (",
    "[" * 3000,
    "nothing",
    "",
]


@pytest.mark.parametrize("text", HEADERS)
@pytest.mark.parametrize("zipped", [False, True])
def test_headers_that_lie(text: str, zipped: bool) -> None:
    data = header(text) + COUNTS.tobytes()
    if zipped:
        with zipfile.ZipFile("a.npz", "w") as out:
            out.writestr("film.npy", data)
    else:
        Path("a.npy").write_bytes(data)
    told = refused("a.npz" if zipped else "a.npy", r"a\.np[yz]: ")
    assert "allow_pickle" not in told


def test_bytes_of_arrays_changed_at_random(capfd: pytest.CaptureFixture[str]) -> None:
    np.save("a.npy", COUNTS)
    np.savez_compressed("a.npz", film=COUNTS, time_s=SECONDS)
    rng = np.random.default_rng(0)
    outcomes = []
    for name in ("a.npy", "a.npz"):
        whole = Path(name).read_bytes()
        for _ in range(250):
            piece = bytearray(whole)
            for _ in range(int(rng.integers(1, 4))):
                piece[int(rng.integers(min(len(piece), 700)))] = int(rng.integers(256))
            Path(name).write_bytes(piece)
            try:
                exact(name)
            except InputError as error:
                outcomes.append(str(error))
    assert len(outcomes) > 100
    assert all("\n" not in told and "allow_pickle" not in told for told in outcomes)
    assert capfd.readouterr().err == ""


def test_what_else_lies_in_an_npz_is_left_alone() -> None:
    np.savez("a.npz", film=COUNTS, huge=np.zeros((64, 128, 128, 2), np.float32), extra=np.array([None]))
    with zipfile.ZipFile("a.npz", "a") as out:
        out.writestr("README.txt", "how it was recorded")
    tracemalloc.start()
    np.testing.assert_allclose(exact("a.npz?key=film")[..., 0], COUNTS / 255, atol=1e-7)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    refused("a.npz?key=extra", r"extra is \(1,\) of pickled objects, which are never read: save it")
    with zipfile.ZipFile("none.npz", "w") as out:
        out.writestr("README.txt", "nothing else")
    refused("none.npz", "holds no array: frames are")
    np.save("a.npy", np.array([[[{"a": 1}]]]), allow_pickle=True)
    refused("a.npy", r"cannot be read as an array: it holds pickled objects, which are never read$")


def test_shapes_of_raw_files_beyond_all_numbers() -> None:
    Path("a.raw").write_bytes(COUNTS.tobytes())
    refused("a.raw?shape=0,4294967296,4294967296&dtype=u1&bits=8", "needs a multiple of 18446744073709551616")
    refused("a.raw?shape=99999999999,99999999999,99999999999&dtype=u2&bits=8", "has 120 bytes, but shape=")


def test_cptv_that_ends_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cptv")
    import gzip

    for size in (4, 5, 6, 9):
        Path("a.cptv").write_bytes(gzip.compress(b"CPTV\x02H\x03\x04\x00\x00"[:size]))
        refused("a.cptv?bits=14", r"a\.cptv: cannot be read as CPTV: .*: copy or download it again")
    Path("b.cptv").write_bytes(gzip.compress(b"CPTV\x02H\x01\x01zq")[:])
    with contextlib.suppress(InputError):
        open_video("b.cptv?bits=14")
    assert capfd.readouterr() == ("", "")


def test_names_that_are_too_long_are_one_line() -> None:
    long = "x" * 300
    for text in (long, f"{long}.npy", f"{long}.npy?bits=14", f"visible={long}.mp4|lwir={long}/"):
        refused(text, r"File name too long")
        assert source_stem(text)
        assert not exists(text)


def test_a_folder_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `stat` and `open` tell it to who is not root."""
    folder("shut", counts(2, 4, 5))
    np.save("shut/a.npy", COUNTS)
    stat, opened = os.stat, io.open

    def shut(call: Callable[..., Any], inside: str) -> Callable[..., Any]:
        def called(path: Any, *args: Any, **more: Any) -> Any:
            if isinstance(path, str | os.PathLike) and inside in os.fspath(path):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return call(path, *args, **more)

        return called

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", shut(stat, "shut/"))
        refused("shut/a.npy?bits=8", r"shut/a\.npy: cannot be read: Permission denied")
        refused("shut/sub", "shut/sub: cannot be read: Permission denied")
        refused("shut?bits=14", "shut: a folder without images")
    with monkeypatch.context() as patch:
        for where in ("io.open", "builtins.open"):
            patch.setattr(where, shut(opened, "shut/0"))
        refused("shut?bits=14", r"shut/0\.png: this image cannot be read: Permission denied$")


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.npy?bits=8&bits=12", r"a\.npy: bits= is given twice: give it once"),
        ("a.npy?range=0:1&bands=Y&range=0:9", "range= is given twice"),
        ("c.npy?bands=R,G,R", r"bands=R,G,R cannot be read: give names, each once"),
        ("gone|too.npy", "no such file or folder, and several streams need names of their own"),
        ("b.npy?bits=8", r"frames must be integers or floats, not bool: save them as such"),
    ],
)
def test_texts_that_mean_nothing(text: str, said: str) -> None:
    np.save("a.npy", COUNTS)
    np.save("b.npy", COUNTS > 9)
    np.save("c.npy", COUNTS.reshape(2, 4, 5, 3))
    refused(text, said)


def test_planted_and_msad_options_given_twice() -> None:
    for text in ("planted:key?n=1&n=2", "msad:.?spectrum=IR&spectrum=TV"):
        with pytest.raises(OptionError, match=r"(n|spectrum)= is given twice: give it once"):
            read_manifest(text)


@pytest.mark.parametrize("path", ["exp=3/a.npy", "we|ird.npy", "a=b|c.npy"])
def test_a_path_that_looks_like_streams(path: str, tmp_path: Path) -> None:
    if "/" in path:
        os.mkdir(os.path.dirname(path))
    np.save(path, COUNTS)
    video = open_video(f"{path}?range=0:200&bands=LWIR")
    assert (len(video.bands), video.bands[0]) == (1, "LWIR")
    again = open_video(str(video.path))
    assert (again.path, again.sha256()) == (video.path, video.sha256())
    assert exists(f"{path}?range=0:200")
    moved = beneath(f"{path}?range=0:200", str(tmp_path))
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    assert open_video(moved).bands == ("Y",)
    os.chdir(tmp_path)
    if "|" in path:
        with pytest.raises(OptionError, match=r"a \| parts streams, so none of their paths can have one"):
            paired(visible="a.mp4", lwir=path)
    else:
        (stream,) = streams(str(video.path))
        assert (stream.name, stream.bands) == ("", ("LWIR",))


def test_channels_in_the_place_of_frames_are_not_all_listed() -> None:
    np.save("a.npy", np.zeros((4, 3, 32, 32), np.uint8))
    spec = tl.InputSpec(frames=2, size=(16, 16), bands=("R", "G", "B"))
    with pytest.raises(OptionError, match=r"has bands b0, .*, b7, \.\.\. \(32 in all: arrays are \(t, h"):
        read_spec("a.npy", spec)


def test_a_class_folder_of_measured_values() -> None:
    for name in ("hot", "cold"):
        os.makedirs(f"data/{name}")
        np.save(f"data/{name}/2.npy", COUNTS / 255.0)
        tifffile.imwrite(f"data/{name}/10.tif", COUNTS)
    manifest = read_manifest("data")
    assert [item.key for item in manifest] == ["cold/2.npy", "cold/10.tif", "hot/2.npy", "hot/10.tif"]
    coded_video(Path("data/hot/v.mp4"), 3)  # beside a video an array is something else
    assert [item.key for item in read_manifest("data")] == ["cold/2.npy", "cold/10.tif", "hot/v.mp4"]
