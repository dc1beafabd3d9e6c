"""`tubelens explain` on real videos: other people's files, in every container.

Each yields an MP4 that decodes without an error, with every frame of the explained span at the size of the
source. A few in the normal run; all of them, with two networks, where slow tests are asked for.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import tubelens as tl
from tests.cli.commands import done
from tests.videos import REAL, real
from tubelens.methods import METHODS, method

CLIPS = REAL / "clips"
FOLDERS = ("jester_frames", "mmaction2", "other", "ucf101_24", "ucf50_4class")
ALL = (
    *("jester_frames/177", "jester_frames/24"),
    *(
        f"mmaction2/{name}"
        for name in (
            *("demo.mp4", "demo_skeleton.mp4", "demo_spatiotemporal_det.mp4"),
            *("test_video_structuralize.mp4", "tests_test.avi", "tests_test.mp4"),
        )
    ),
    *("other/bikes.mp4", "other/flipping_a_pancake.mkv", "other/v_CricketShot_g04_c01_rgb.gif"),
    *(
        f"ucf101_24/v_{name}.mp4"
        for name in (
            *("Basketball_g01_c02", "Basketball_g07_c04", "Biking_g01_c01", "CliffDiving_g03_c01"),
            *("Fencing_g01_c06", "HorseRiding_g01_c03", "IceDancing_g02_c05", "SalsaSpin_g03_c01"),
            "SkateBoarding_g02_c01",
        )
    ),
    *(
        f"ucf50_4class/{name}.mp4"
        for name in (
            *("HorseRace_sample", "Swing_sample", "TaiChi_sample", "Test_Video", "Test_Video_Divyan"),
            "WalkingWithDog_sample",
        )
    ),
)
FEW = {  # every folder, every container, and 1920x1080; long ones in part
    "jester_frames/177": (),
    "mmaction2/demo_skeleton.mp4": ("--sampling", "dense", "--start", "1.0"),
    "mmaction2/tests_test.avi": (),
    "other/flipping_a_pancake.mkv": ("--sampling", "dense", "--start", "2.0", "--stride", "3"),
    "other/v_CricketShot_g04_c01_rgb.gif": (),
    "ucf101_24/v_Basketball_g01_c02.mp4": ("--sampling", "windows"),
    "ucf50_4class/TaiChi_sample.mp4": (),
}


@cache
def original(path: Path) -> tuple[tuple[int, int], tuple[float, ...]]:
    """Height and width, and seconds of every frame after the first, read without Tubelens."""
    if path.is_dir():
        files = list(path.glob("*.jpg"))
        with Image.open(files[0]) as image:
            return (image.height, image.width), tuple(i / 25 for i in range(len(files)))
    with av.open(str(path)) as container:
        times, size = [], (0, 0)
        for frame in container.decode(video=0):
            times.append(float(frame.time))
            size = (frame.height, frame.width)
    times.sort()  # an AVI with B-frames has the right times, but on the wrong frames
    return size, tuple(t - times[0] for t in times)


def check(name: str, out: Path, *options: str) -> None:
    """Explain a clip, and compare what was written with the source."""
    path = real("clips", *name.split("/"))
    (h, w), moments = original(path)
    said = done("explain", path, *options, "--format", "mp4", "safetensors", "--out", out, "--json").json
    (entry,) = said
    video, numbers = map(Path, entry["out"])
    why = tl.load_explanation(numbers)
    start, end = why.source.span
    whole = not {"dense", "random"} & set(options)
    assert why.source.size == (h, w)
    if whole:
        assert (start, end) == (pytest.approx(moments[0], abs=1e-3), pytest.approx(moments[-1], abs=1e-3))
    wanted = [t for t in moments if start - 1e-3 <= t <= end + 1e-3]
    assert len(wanted) >= (len(moments) if whole else 16)
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == (h + h % 2, w + w % 2)
        times = []
        colourful = 0.0
        for number, frame in enumerate(container.decode(video=0)):
            assert not frame.is_corrupt
            times.append(float(frame.time))
            if number == len(wanted) // 2:
                colourful = frame.to_ndarray(format="rgb24").std()
    assert len(times) == len(wanted)
    np.testing.assert_allclose(times, np.subtract(wanted, wanted[0]), atol=2e-3)
    assert colourful > 10
    assert float(why.saliency.std()) > 0
    predicted = entry["predicted"]
    assert predicted[0]["prob"] == max(e["prob"] for e in predicted)


def test_the_list_is_complete() -> None:
    """Every clip beside the repository is in the list, and the few cover every folder and container."""
    real("clips")
    found = {
        f"{folder.name}/{entry.name}"
        for folder in CLIPS.iterdir()
        for entry in folder.iterdir()
        if not entry.name.startswith(".")
    }
    assert found == set(ALL)
    assert {name.split("/")[0] for name in FEW} == set(FOLDERS)
    assert {Path(name).suffix for name in FEW} == {Path(name).suffix for name in ALL}


@pytest.mark.parametrize("name", FEW)
def test_a_few(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, *FEW[name])


def test_sound_of_a_real_clip_is_kept(tmp_path: Path) -> None:
    path = real("clips", "other", "flipping_a_pancake.mkv")
    out = tmp_path / "why.mp4"
    done("explain", path, "--sampling", "dense", "--start", "2.0", "--stride", "3", "--out", out)
    with av.open(str(out)) as container:
        heard = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
        shown = float(container.streams.video[0].duration * container.streams.video[0].time_base)
    assert heard == pytest.approx(shown, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_all_with_the_bundled_model(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_all_with_a_large_network(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, "--model", "r3d_18", "--weights", "random")


CHEAP = {
    "rise": {"n": 24},
    "lime": {"n": 40, "supervoxels": 40},
    "shap": {"n": 40, "supervoxels": 40},
    "occlusion": {"tracked": True, "window": (8, 24, 24), "stride": (4, 24, 24)},
    "extremal": {"steps": 3, "volumes": (0.2,)},
    "integrated_gradients": {"steps": 4},
    "smoothgrad": {"n": 4},
    "scorecam": {"channels": 6},
    "sidu": {"channels": 6},
}


def test_every_method_explains_a_real_clip(tmp_path: Path) -> None:
    """Fencing, dense: what moves is small; optical flow, supervoxels and filters meet real pictures."""
    path = real("clips", "ucf101_24", "v_Fencing_g01_c06.mp4")
    model = tl.load_model("bundled")
    clip = model.read(path, "dense", start=0.5)
    names = [m for m in METHODS if m not in ("rollout", "chefer")]  # of transformers alone
    ways = [method(name, **CHEAP.get(name, {})) for name in names]
    rows = tl.explain_all(model, clip, ways, "top2")
    for name, row in zip(names, rows, strict=True):
        assert len(row) == 2
        for why in row:
            assert bool(why.saliency.isfinite().all()), name
            assert any(float(e.saliency.std()) > 0 for e in row), name
    drawn = tl.draw([row[0] for row in rows], tmp_path / "all.png", columns=4)
    with Image.open(drawn) as sheet:
        assert sheet.size[1] > 2000  # the original and 26 rows
