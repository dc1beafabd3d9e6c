"""Files of measured values: arrays, raw files, CPTV; their times and options, and the whole way to a map."""

from __future__ import annotations

import gzip
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tubelens as tl
from tests.cli.commands import tubelens
from tests.videos import coded_video
from tubelens.errors import OptionError, VideoError
from tubelens.video import open_video, read_clip, read_spec
from tubelens.video.measured import MeasuredFrames


def counts(t: int = 6, h: int = 4, w: int = 5, c: int = 1) -> np.ndarray:
    """14-bit counts, no two alike."""
    order = np.random.default_rng(0).permutation(t * h * w * c)
    return (order * (16383 // order.size)).astype(np.uint16).reshape(t, h, w, c)


def exact(text: str | Path, fps: float | None = None) -> np.ndarray:
    """All frames `(t, h, w, c)` as a network gets them."""
    video = open_video(text, fps)
    assert isinstance(video, MeasuredFrames)
    video.exact = True
    return np.stack([frame for _, _, frame in video.pick(range(len(video.times())))])


def same(text: str | Path, values: np.ndarray, full: float = 16383) -> None:
    np.testing.assert_allclose(exact(text), values / full, atol=1e-7)


# ── arrays ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4", ">f4", "f8", "f2", "u8"])
def test_npy_in_any_type_and_byte_order(tmp_path: Path, dtype: str) -> None:
    values = (counts() // 8).astype(dtype)
    np.save(tmp_path / "a.npy", values[..., 0])
    same(f"{tmp_path}/a.npy?bits=11", values.astype(float), 2047)
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    same(f"{tmp_path}/a.npy?bits=11", values.astype(float), 2047)


def test_npy_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", counts())
    video = open_video(f"{tmp_path}/a.npy?bits=14")
    assert isinstance(video, MeasuredFrames)
    ((_, _, before),) = video.pick([3])
    with (tmp_path / "a.npy").open("r+b") as data:
        data.seek(-3 * 20 * 2, 2)  # frame 3 of 6
        data.write(bytes(40))
    ((_, _, after),) = video.pick([3])
    assert before.max() > 0
    assert after.max() == 0


def test_bands_of_arrays(tmp_path: Path) -> None:
    for c, bands in ((1, ("Y",)), (3, ("R", "G", "B")), (4, ("b0", "b1", "b2", "b3"))):
        np.save(tmp_path / f"{c}.npy", counts(c=c))
        assert open_video(f"{tmp_path}/{c}.npy?bits=14").bands == bands
        assert open_video(f"nir={tmp_path}/{c}.npy?bits=14").bands == (
            ("NIR",) if c == 1 else tuple(f"NIR{i}" for i in range(c))
        )
    clip = read_clip(f"{tmp_path}/4.npy?bits=14&bands=R,G,B,LWIR", frames=6, size=(4, 5), bands=("LWIR", "G"))
    assert clip.bands == ("LWIR", "G")
    np.testing.assert_allclose(clip.pixels.permute(1, 2, 3, 0), counts(c=4)[..., [3, 1]] / 16383, atol=1e-7)
    with pytest.raises(OptionError, match=r"4\.npy: bands=A,B names 2, but a pixel has 4 values"):
        open_video(f"{tmp_path}/4.npy?bits=14&bands=A,B")


def test_npz_finds_its_frames(tmp_path: Path) -> None:
    values = counts()
    np.savez(tmp_path / "a.npz", note=np.array("hello"), gain=np.ones((4, 5)), film=values[..., 0])
    same(f"{tmp_path}/a.npz?bits=14", values)
    np.savez_compressed(tmp_path / "b.npz", film=values, other=values[::-1])
    with pytest.raises(
        VideoError,
        match=r"b\.npz: holds film \(6, 4, 5, 1\), other .*say which are the frames, as in \?key=film",
    ):
        open_video(f"{tmp_path}/b.npz?bits=14")
    same(f"{tmp_path}/b.npz?bits=14&key=other", values[::-1])
    with pytest.raises(
        OptionError, match=r"has no array 'othr' \(did you mean 'other'\?\): one of film, other"
    ):
        open_video(f"{tmp_path}/b.npz?bits=14&key=othr")
    np.savez(tmp_path / "c.npz", gain=np.ones((4, 5)))
    with pytest.raises(VideoError, match=r"c\.npz: holds gain \(4, 5\): frames are \(t, h, w\[, c\]\)"):
        open_video(tmp_path / "c.npz")
    with pytest.raises(VideoError, match=r"frames must be an array \(t, h, w\) or .*, not \(4, 5\)"):
        open_video(f"{tmp_path}/c.npz?key=gain")


MOMENTS = np.array([10.0, 10.1, 10.35, 10.4, 10.9, 11.0])


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("time_s", MOMENTS.astype(np.float32)),
        ("seconds", MOMENTS),
        ("t_ms", (MOMENTS * 1000).round().astype(np.int64)),
        ("stamps_us", (MOMENTS * 1e6).round().astype(np.uint64)),
        ("epoch_ns", (MOMENTS * 1e9).round().astype(np.int64) + 1_700_000_000_000_000_000),
        ("when", (MOMENTS * 1000).round().astype("datetime64[ms]")),
    ],
)
def test_times_of_an_npz_are_kept(tmp_path: Path, name: str, moments: np.ndarray) -> None:
    np.savez(
        tmp_path / "a.npz", frame=np.arange(6), **{name: moments}, film=counts(), ptat=[3, 1, 2, 5, 4, 6]
    )
    video = open_video(f"{tmp_path}/a.npz?bits=14")
    np.testing.assert_allclose(video.times(), MOMENTS - 10, atol=1e-6)
    assert video.fps == pytest.approx(5 / 1.0, abs=1e-5)
    assert video.notes == ()
    # the frames shown from 0.34 to 0.55 s, within half an average frame
    assert [round(t, 2) for t, _ in video.between(0.46, 0.75)] == [0.4]
    assert [round(t, 2) for t, _ in video.run(0.37, 2)] == [0.35, 0.9]
    with pytest.raises(OptionError, match=r"fps is for what has no times: the frames of an \.npz file have"):
        open_video(f"{tmp_path}/a.npz?bits=14&fps=8")
    with pytest.raises(OptionError, match="fps is for what has no times"):
        open_video(f"{tmp_path}/a.npz?bits=14", fps=8)


def test_times_whose_unit_or_use_is_a_guess_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", timestamp=MOMENTS, film=counts())
    video = open_video(f"{tmp_path}/a.npz?bits=14")
    np.testing.assert_allclose(video.times(), MOMENTS - 10, atol=1e-6)
    assert video.notes == ("the times of the frames are those of 'timestamp', taken as seconds",)
    np.savez(tmp_path / "b.npz", timestamp=MOMENTS[[0, 1, 1, 3, 4, 5]], film=counts())
    video = open_video(f"{tmp_path}/b.npz?bits=14&fps=8")
    assert video.times() == [i / 8 for i in range(6)]
    assert video.notes == (
        "'timestamp' does not increase throughout and is not used as the times of the frames",
    )
    for others in ({"frame": np.arange(6)}, {"exposure_time": 0.1}, {"ptat": [1.0, 3, 2, 4, 5, 6]}):
        np.savez(tmp_path / "c.npz", film=counts(), **others)
        video = open_video(f"{tmp_path}/c.npz?bits=14")
        assert (video.fps, video.notes) == (25.0, ())


def test_arrays_that_are_none(tmp_path: Path) -> None:
    def refused(name: str, said: str) -> None:
        with pytest.raises(VideoError, match=said) as caught:
            open_video(f"{tmp_path}/{name}?range=0:1")
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)

    (tmp_path / "text.npy").write_text("1 2 3")
    refused("text.npy", "cannot be read as an array")
    np.save(tmp_path / "cut.npy", counts())
    whole = (tmp_path / "cut.npy").read_bytes()
    for cut in (1, 100, len(whole) - 40, len(whole) - 3):
        (tmp_path / "cut.npy").write_bytes(whole[:-cut])
        refused("cut.npy", "cannot be read as an array")
    np.savez(tmp_path / "cut.npz", a=counts())
    whole = (tmp_path / "cut.npz").read_bytes()
    for cut in (1, 30, 200, len(whole) - 20):
        (tmp_path / "cut.npz").write_bytes(whole[:-cut])
        refused("cut.npz", "cannot be read as an array")
    np.save(tmp_path / "object.npy", np.array([{"a": 1}]), allow_pickle=True)
    refused("object.npy", "cannot be read as an array")
    np.savez(tmp_path / "object.npz", a=np.array([[[None]]], dtype=object))
    refused("object.npz", r"holds a \(1, 1, 1\) of pickled objects, which are never read: frames are")
    for name, array in {
        "flat": np.ones((4, 5)),
        "none": np.ones((0, 4, 5)),
        "deep": np.ones((1,) * 5),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
        refused(f"{name}.npy", r"frames must be an array \(t, h, w\) or \(t, h, w, c\) and not empty")
    for name, dtype in {"complex": complex, "text2": "U3", "yes": bool}.items():
        np.save(tmp_path / f"{name}.npy", np.ones((2, 3, 4)).astype(dtype))
        refused(f"{name}.npy", "frames must be integers or floats, not")
    refused("gone.npy", r"no such file or folder")
    (tmp_path / "empty.npz").touch()
    refused("empty.npz", "is empty")


# ── raw ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "<i4", "float32", "u1"])
@pytest.mark.parametrize("channels", [1, 2])
def test_raw(tmp_path: Path, dtype: str, channels: int) -> None:
    values = (counts(c=channels) // 100).astype(dtype)
    path = tmp_path / "a.raw"
    path.write_bytes(b"camera!" + values.tobytes())
    shape = "4,5" if channels == 1 else "4,5,2"
    for frames in (0, 6):
        same(f"{path}?shape={frames},{shape}&dtype={dtype}&header=7&bits=8", values.astype(float), 255)
    assert open_video(f"{path}?shape=0x4x5x{channels}&dtype={dtype}&header=7&bits=8", fps=9).fps == 9


def test_raw_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    values = counts()
    path.write_bytes(values.tobytes()[:-2])
    with pytest.raises(
        VideoError,
        match=r"a\.bin: has 238 bytes, but shape=0,4,5 of uint16 needs a multiple of 40: it was cut off",
    ):
        open_video(f"{path}?shape=0,4,5&dtype=uint16&bits=14")
    path.write_bytes(values.tobytes()[:-40])
    with pytest.raises(VideoError, match="has 200 bytes, but shape=6,4,5 of uint16 needs 240"):
        open_video(f"{path}?shape=6,4,5&dtype=uint16&bits=14")
    with pytest.raises(
        VideoError, match="of uint16 after 7 bytes of header needs 207: it was cut off, or holds"
    ):
        open_video(f"{path}?shape=5,4,5&dtype=uint16&bits=14&header=7")
    with pytest.raises(VideoError, match="needs a multiple of 40"):
        open_video(f"{path}?shape=0,4,5&dtype=uint16&bits=14&header=200")
    same(f"{path}?shape=0,4,5&dtype=uint16&bits=14", values[:5])


def test_raw_needs_shape_and_type(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(counts().tobytes())
    for given in ("", "?shape=0,4,5&bits=14", "?dtype=uint16&bits=14"):
        with pytest.raises(OptionError, match=r"say what it holds: .* as in \?shape=0,120,160&dtype=uint16"):
            open_video(f"{path}{given}")
    for dtype in ("uint17", "O", "S2", "complex64", "u2,u2", "{"):
        with pytest.raises(OptionError, match=r"is no type of a value: uint8, uint16, >u2"):
            open_video(f"{path}?shape=0,4,5&dtype={dtype}&bits=14")


# ── CPTV ─────────────────────────────────────────────────────────────────────────────────────────────────


def recorded(path: Path, values: np.ndarray, seconds: list[float], background: bool = False) -> Path:
    """A CPTV file, by the format's own writer; 120 x 160 is the only size that it knows."""
    cptv = pytest.importorskip("cptv")
    with path.open("wb") as data:
        writer = cptv.CPTVWriter(data)
        writer.fps = 9
        if background:
            none = timedelta(0)
            writer.background_frame = cptv.Frame(values[0] // 2, none, none, 20, 20, background_frame=True)
        for frame, second in zip(values, seconds, strict=True):
            writer.write_frame(cptv.Frame(frame, timedelta(seconds=second), timedelta(0), 20, 20))
        writer.close()
    return path


def lepton(t: int = 4) -> np.ndarray:
    """Counts as such a camera gives: a scene and a warm thing that moves."""
    rng = np.random.default_rng(3)
    frames = rng.integers(2900, 3000, (t, 120, 160), dtype=np.uint16)
    for i, frame in enumerate(frames):
        frame[40:60, 20 * i : 20 * i + 15] += 400
    return frames


@pytest.mark.parametrize("background", [False, True])
def test_cptv(tmp_path: Path, background: bool) -> None:
    values = lepton()
    path = recorded(tmp_path / "a.cptv", values, [7.5, 7.614, 7.728, 9.5], background)
    same(f"{path}?bits=14", values[..., None])
    video = open_video(f"{path}?bits=14&bands=LWIR")
    assert (video.size, video.bands, video.notes) == ((120, 160), ("LWIR",), ())
    np.testing.assert_allclose(video.times(), [0, 0.114, 0.228, 2.0], atol=1e-9)
    assert video.fps == pytest.approx(1.5)
    with pytest.raises(OptionError, match=rf"16-bit values, but the largest is {values.max()}: .*\?bits=12"):
        open_video(path)


def test_cptv_without_times(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.cptv", lepton(), [0, 0, 0, 0])
    video = open_video(f"{path}?bits=14")
    assert video.times() == [i / 9 for i in range(4)]
    assert video.notes == ("its frames have no times of their own: they are taken to follow at one rate",)
    assert open_video(f"{path}?bits=14", fps=5).fps == 5


def test_cptv_that_is_broken(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.cptv", lepton(), [0, 1, 2, 3])
    whole = path.read_bytes()
    inside = gzip.decompress(whole)
    pieces = [whole[:-n] for n in (1, 9, 500, 20_000, len(whole) - 30)]
    pieces += [gzip.compress(inside[:-n]) for n in (3, 5000)]  # gzip itself is whole
    pieces += [b"not gzip at all", gzip.compress(b"CPTX" + inside[4:]), gzip.compress(b"")]
    for piece in pieces:
        path.write_bytes(piece)
        with pytest.raises(
            VideoError, match=r"a\.cptv: cannot be read as CPTV: .+: copy or download it"
        ) as caught:
            open_video(f"{path}?bits=14")
        assert "\n" not in str(caught.value)


def test_cptv_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recorded(tmp_path / "a.cptv", lepton(), [0, 1, 2, 3])
    monkeypatch.setitem(sys.modules, "cptv", None)
    with pytest.raises(
        OptionError, match=r"a\.cptv: reading CPTV files needs `pip install 'tubelens\[cptv\]'`"
    ):
        open_video(f"{path}?bits=14")


# ── options, records ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("file", "option", "said"),
    [
        (
            "a.npy",
            "key=x",
            "key= means nothing to an .npy file: it takes bands, bits, dead, fps, percentile, ran",
        ),
        ("a.npz", "palette=inferno", "palette= means nothing to an .npz file: it takes .*, key,"),
        ("a.npz", "shape=0,4,5", "shape= means nothing to an .npz file"),
        (
            "a.raw",
            "shape=0,4,5&dtype=uint16&key=x",
            "key= means nothing to a raw file: it takes .*dtype.*header",
        ),
        ("a.npy", "homography=h.npy", "homography= brings a stream to the first one"),
        ("a.npy", "rnge=0:1", r"unknown option 'rnge' \(did you mean 'range'\?\)"),
        ("a.mp4", "key=x", "key= means nothing to pictures: it takes bands"),
        ("a.mp4", "dead=error", "dead= means nothing to pictures"),
        ("a.mp4", "bits=8", r"bits= scales one grey band: name it, as in \?bands=LWIR&bits="),
        ("a.mp4", "palette=inferno&header=3", "header= means nothing to a video: it takes .*palette"),
        ("a.mp4", "fps=8", "a file has its own times"),
    ],
)
def test_options_that_mean_nothing(tmp_path: Path, file: str, option: str, said: str) -> None:
    values = counts()
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", values)
    (tmp_path / "a.raw").write_bytes(values.tobytes())
    coded_video(tmp_path / "a.mp4", 3)
    scale = "" if file == "a.mp4" else "bits=14&"
    with pytest.raises(OptionError, match=said) as caught:
        open_video(f"{tmp_path}/{file}?{scale}{option}")
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_path_opens_it_alike(tmp_path: Path) -> None:
    """What a record keeps is enough: scale, name, bands, and a rate given apart."""
    values = counts(c=2)
    np.save(tmp_path / "a b.npy", values)
    text = f"lwir={tmp_path}/a b.npy?percentile=2.5:99.25&bands=A,B"
    video = open_video(text, fps=12.5)
    assert video.path != text
    again = open_video(str(video.path))
    assert isinstance(again, MeasuredFrames)
    assert isinstance(video, MeasuredFrames)
    assert (again.fps, again.bands, again.scale, again.path) == (12.5, ("A", "B"), video.scale, video.path)
    assert open_video(f"{tmp_path}/a b.npy?bits=14").path == f"{tmp_path}/a b.npy?bits=14"


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", counts())
    np.save(tmp_path / "b.npy", counts())
    texts = [f"{tmp_path}/a.npy?bits=14", f"{tmp_path}/a.npy?range=0:9000", f"{tmp_path}/b.npy?bits=14"]
    before = {open_video(text).sha256() for text in texts}
    assert len(before) == 1
    np.save(tmp_path / "a.npy", counts()[::-1])
    assert open_video(texts[0]).sha256() not in before


def test_frames_by_number(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", counts())
    video = open_video(f"{tmp_path}/a.npy?bits=14")
    assert [(i, t) for i, t, _ in video.pick([1, 4])] == [(1, 1 / 25), (4, 4 / 25)]
    assert video.decoded == 2
    for wrong in ([4, 1], [6], [-1]):
        with pytest.raises(OptionError, match=r"frame numbers must increase|there is no frame"):
            list(video.pick(wrong))
    with pytest.raises(OptionError, match=r"start 1 s is past the end: the video lasts 0\.24 s"):
        next(video.run(1.0))


# ── the whole way ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def night(tmp_path: Path) -> str:
    """A 16 x 16 far-infrared recording at about 8 frames a second, irregular: a warm spot walks."""
    rng = np.random.default_rng(5)
    seconds = np.cumsum(rng.choice([0.078, 0.125, 0.172], 48))
    y, x = np.mgrid[:16, :16]
    frames = np.stack(
        [
            22 + 0.1 * rng.normal(size=(16, 16)) + 9 * np.exp(-((x - i / 3) ** 2 + (y - 8) ** 2) / 6)
            for i in range(48)
        ]
    ).astype(np.float32)
    frames[:, 2, 3] = np.nan
    np.savez(tmp_path / "night.npz", time_s=seconds.astype(np.float32), frames=frames)
    return f"{tmp_path}/night.npz?range=20:32"


def test_every_way_to_sample(night: str) -> None:
    model = tl.load_model("bundled")
    video = open_video(night)
    every = video.times()
    spec: Any = model.spec
    for sampling in ("uniform", "dense", "segments", "random"):
        clip = model.read(night, sampling)
        assert clip.pixels.shape == (3, spec.frames, *spec.size)
        assert set(clip.source.times[: spec.frames - clip.source.padded]) <= set(every)
        assert (clip.pixels[0] == clip.pixels[2]).all()  # one band for three channels
        assert "1 dead cell was filled" in clip.source.notes[0]
        assert clip.source.path == night
    windows = model.windows(night, stride=1, overlap=0.5)
    assert list(windows.source.times) == pytest.approx(every)
    views = model.views(night, clips=3, crops=1, stride=1)
    assert all(float(clip.pixels.std()) > 0.05 for _, clip in [*windows, *views])
    one = next(iter(windows))[1]
    other = model.read(night, "dense", stride=1)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    (_, first), *_ = views
    np.testing.assert_array_equal(first.pixels, other.pixels)


def test_the_command_explains_it(night: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = tubelens(
        *("explain", night, "--model", "bundled", "--method", "tubes", "--out", out, "--json"),
        *("--format", "safetensors", "png", "mp4"),
    )
    assert ran.code == 0
    assert ran.err in ("", "note: 1 dead cell was filled from its neighbours (0.4 % of the values)\n")
    (entry,) = ran.json
    assert any(
        "1 dead cell was filled from its neighbours (0.4 % of the values)" in n for n in entry["notes"]
    )
    files = {Path(file).suffix: Path(file) for file in entry["out"]}
    assert set(files) == {".safetensors", ".png", ".mp4"}
    assert all(file.name.startswith("night.") for file in files.values())
    why = tl.load_explanation(files[".safetensors"])
    every = open_video(night).times()
    assert (why.source.path, why.source.size, why.source.span) == (
        night,
        (16, 16),
        (0.0, pytest.approx(every[-1])),
    )
    again = tl.draw(why, tmp_path / "again.png")  # from the record alone
    np.testing.assert_array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(files[".png"])))
    shown = open_video(files[".mp4"]).times()
    np.testing.assert_allclose(shown, every, atol=2e-3)  # irregular, as they were recorded


def test_a_changed_recording_is_noticed(night: str, tmp_path: Path) -> None:
    model = tl.load_model("bundled")
    why = tl.explain(model, model.read(night), method="tubes")
    file = Path(night.split("?")[0])
    with np.load(file) as content:
        np.savez(file, time_s=content["time_s"], frames=content["frames"] + 1)
    with pytest.raises(VideoError, match="has changed since it was explained"):
        tl.draw(why, tmp_path / "a.png")


def test_the_command_without_a_scale(night: str, tmp_path: Path) -> None:
    ran = tubelens("explain", night.split("?")[0], "--model", "bundled", "--out", tmp_path / "a.mp4")
    assert ran.code == 2
    assert "float values must lie in [0, 1], and these go from" in ran.err
    assert ran.err.count("\n") == 1


def test_flow_is_still_flow(tmp_path: Path) -> None:
    """Where the clip has bands U and V, an array file is stored flow; of a scaled one flow is computed."""
    pytest.importorskip("cv2")
    flow = np.random.default_rng(0).uniform(-20, 20, (8, 12, 12, 2)).astype(np.float32)
    np.savez(tmp_path / "f.npz", flow)
    spec = tl.InputSpec(frames=8, size=(12, 12), bands=("U", "V"))
    clip = read_spec(tmp_path / "f.npz", spec)
    np.testing.assert_allclose(clip.pixels.permute(1, 2, 3, 0), flow / 40 + 0.5, atol=1e-6)
    blob = np.zeros((8, 32, 32), np.uint16)
    for i, frame in enumerate(blob):
        frame[12:20, 8 + i : 16 + i] = 3000  # one pixel to the right each frame
    np.save(tmp_path / "m.npy", blob)
    spec = tl.InputSpec(frames=8, size=(32, 32), bands=("U", "V"))
    u, v = (read_spec(f"{tmp_path}/m.npy?bits=12", spec).pixels - 0.5) * 40
    moved = u[2, 13:19, 11:17]
    assert 0.5 < float(moved.mean()) < 1.5
    assert abs(float(v[2, 13:19, 11:17].mean())) < 0.3
