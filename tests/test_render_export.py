"""What is written, read back: sizes, times, sound, alpha, sheets, folders, notebooks."""

from __future__ import annotations

import base64
import json
import re
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_render_helpers import REALDATA, decoded, explain, real, stack, video
from tubelens.errors import OptionError, VideoError
from tubelens.explanation import REPRS, WRITERS
from tubelens.render import draw, figure, frames
from tubelens.render.sheet import pixels

PLAIN = {"caption": False, "strip": False}


def bump(seed=0, t=3, k=4):
    return torch.rand(t, k, k, generator=torch.Generator().manual_seed(seed))


def test_every_drawing_is_registered():
    assert {".mp4", ".gif", ".webm", ".png", ""} <= set(WRITERS)
    assert "text/html" in REPRS


def test_mp4_has_the_size_the_frames_and_the_times_of_the_source(tmp_path):
    size = (240, 320)
    path = video(tmp_path / "v.mp4", n=14, size=size)
    why = explain(bump(), path=path, size=size, times=(0.2, 0.5, 0.8, 1.1), span=(0.2, 1.1))
    said = []
    out = why.save(tmp_path / "sub" / "why.mp4", progress=lambda done, total: said.append((done, total)))
    drawn, times = decoded(out)
    assert {f.shape for f in drawn} == {(240, 320, 3)}
    assert times == pytest.approx([i / 10 for i in range(10)], abs=1e-3)
    assert said == [(i, 10) for i in range(1, 11)]
    expected = np.stack([f for _, f in frames(why)]).astype(float)
    wrong = np.abs(np.stack(drawn) - expected).mean()
    assert wrong < 6  # what half the colour resolution does to small letters
    assert np.abs(np.stack(drawn)[1:] - expected[:-1]).mean() > 1.3 * wrong


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_sound_comes_along_and_not_when_the_speed_is_changed(tmp_path, suffix):
    path = video(tmp_path / "v.mp4", n=12, sound=True)
    why = explain(bump(), path=path)
    with av.open(str(why.save(tmp_path / f"a{suffix}"))) as container:
        assert len(container.streams.audio) == 1
        loud = np.concatenate([np.abs(f.to_ndarray()).ravel() for f in container.decode(audio=0)])
        assert loud.max() > 0.1
    with av.open(str(why.save(tmp_path / f"b{suffix}", fps=5))) as container:
        assert not container.streams.audio
        assert [float(f.time) for f in container.decode(video=0)] == pytest.approx(
            np.arange(12) / 5, abs=2e-3
        )


def test_webm_focus_carries_the_heat_as_alpha(tmp_path):
    values = torch.zeros(2, 3, 3)
    values[:, 0, 0] = 1
    array = stack(size=(96, 160))
    why = explain(values, array=array, size=(96, 160))
    out = why.save(tmp_path / "f.webm", style="focus", **PLAIN)
    decoder = av.CodecContext.create("libvpx-vp9", "r")
    with av.open(str(out)) as container:
        got = [f for packet in container.demux(video=0) for f in decoder.decode(packet)]
    expected = [f for _, f in frames(why, "focus", rgba=True, **PLAIN)]
    assert len(got) == len(expected) == 12
    assert got[0].format.name == "yuva420p"
    for frame, wanted in zip(got, expected, strict=True):
        alpha = frame.to_ndarray(format="rgba")[..., 3].astype(float)
        assert np.abs(alpha - wanted[..., 3]).mean() < 3
        assert np.abs(alpha - wanted[..., 3]).max() < 25
    assert expected[0][..., 3].max() == 255
    assert expected[0][..., 3].min() == 20


def test_gif_shrinks_to_480_and_plays_at_the_source_rate(tmp_path):
    why = explain(bump(), array=stack(n=12, size=(300, 600)), size=(300, 600))
    with Image.open(why.save(tmp_path / "a.gif")) as gif:
        assert gif.size == (480, 240)
        assert gif.n_frames == 12
        assert gif.info["duration"] == 100
        assert gif.info["loop"] == 0
        first = np.asarray(gif.convert("RGB")).astype(float)
    (_, wanted), *_ = frames(why, fit=480)
    assert np.abs(first - wanted).mean() < 8
    with Image.open(why.save(tmp_path / "b.gif", fit=100, caption=False)) as gif:
        assert gif.size == (100, 50)
    with Image.open(why.save(tmp_path / "c.gif", fit=100)) as gif:
        assert gif.width == 100
        assert 65 < gif.height < 90  # words below so low a picture


def test_folder_holds_each_frame_and_the_numbers(tmp_path):
    why = explain(bump(), array=stack())
    out = why.save(tmp_path / "tube", style="focus")
    assert sorted(p.name for p in out.iterdir()) == [f"{i:03d}.png" for i in range(12)] + ["info.json"]
    for i, (_, wanted) in enumerate(frames(why, "focus", rgba=True)):
        with Image.open(out / f"{i:03d}.png") as image:
            assert np.array_equal(np.asarray(image), wanted)
    info = json.loads((out / "info.json").read_text())
    assert info["label"] == "surfing water"
    assert info["p"] == 0.62
    assert info["predicted"] == [{"label": "kayaking", "p": 0.71}]
    assert (info["method"], info["layer"], info["versions"]) == ("Tubes()", "layer4", {"tubelens": "0"})
    assert info["times"] == pytest.approx([i / 10 for i in range(12)])
    assert info["limits"] == pytest.approx(list(why.limits))
    assert info["provenance"]["score"] == 1.5


def test_columns_with_other_explanations(tmp_path):
    array = stack()
    a, b = explain(bump(), array=array), explain(bump(1), array=array, label="kayaking")
    drawn, _ = decoded(a.save(tmp_path / "ab.mp4", with_=[b], beside=True))
    assert drawn[0].shape[1:] == (360, 3)
    info = json.loads((draw([a, b], tmp_path / "ab") / "info.json").read_text())
    assert [e["label"] for e in info["explanations"]] == ["surfing water", "kayaking"]


def test_odd_sides_are_written(tmp_path):
    why = explain(bump(), array=stack(size=(73, 121)), size=(73, 121))
    for name in ("a.mp4", "a.webm", "a.gif", "a.png", "a"):
        assert why.save(tmp_path / name, **({} if name == "a.png" else PLAIN)).exists()
    drawn, _ = decoded(tmp_path / "a.webm")
    assert drawn[0].shape == (73, 121, 3)
    (_, frame), *_ = frames(why)  # words below: an even height or an odd one
    for name in ("b.mp4", "b.webm", "b.gif"):
        drawn, _ = decoded(why.save(tmp_path / name))
        h, w = drawn[0].shape[:2]
        assert (h - frame.shape[0], w - 121) in ((0, 0), (0, 1), (1, 1))
        assert h % 2 == w % 2 == 0 or name != "b.mp4"


def test_wrong_options_leave_nothing_behind(tmp_path):
    why = explain(bump(), array=stack())
    for options in ({"style": "hot"}, {"colormap": "x"}, {"fps": 0.0}, {"alpha": 2.0}, {"fit": 2}):
        with pytest.raises(OptionError):
            why.save(tmp_path / "a.mp4", **options)
    with pytest.raises(OptionError, match=r"cannot draw '.mov'.*\.mp4"):
        draw(why, tmp_path / "a.mov")
    with pytest.raises(VideoError, match="pass on="):
        explain(bump(), path=tmp_path / "gone.mp4").save(tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


# ── contact sheets ───────────────────────────────────────────────────────────────────────────────────────


def texts(sheet):
    found = [t.get_text() for t in sheet.texts]
    for ax in sheet.axes:
        found += [
            ax.get_title(),
            ax.get_xlabel(),
            ax.get_ylabel(),
            *(t.get_text() for t in ax.get_yticklabels()),
        ]
        legend = ax.get_legend()
        found += [t.get_text() for t in legend.get_texts()] if legend else []
    return " | ".join(found)


def test_sheet_of_one_shows_four_rows_and_says_what_it_is():
    pyplot_before = "matplotlib.pyplot" in sys.modules
    why = explain(bump(), array=stack())
    sheet = figure(why, frames=5)
    images = [ax for ax in sheet.axes if ax.images]
    assert len(images) == 4 * 5
    said = texts(sheet)
    for words in (
        "surfing water",
        "p=0.62",
        "predicted: kayaking p=0.71",
        "Tubes()",
        "layer4",
        "0.00 s",
        "1.10 s",
    ):
        assert words in said
    for row in ("original", "heat", "focus", "contour"):
        assert row in said
    assert f"1 ({why.limits[1]:.2g})" in said
    original = images[0].images[0].get_array()
    enlarged = np.asarray(
        Image.fromarray(stack()[0]).resize(original.shape[1::-1], Image.Resampling.BILINEAR, reducing_gap=3.0)
    )
    assert np.array_equal(np.asarray(original), enlarged)
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_before
    rest = [ax for ax in sheet.axes if not ax.images]
    marked = [line for ax in rest for line in ax.lines if line.get_marker() == "o"]
    assert marked[0].get_xdata() == pytest.approx([0.0, 0.3, 0.6, 0.8, 1.1], abs=0.11)


def test_sheet_of_several_has_a_heat_row_each():
    array = stack()
    many = [
        explain(bump(i), array=array, label=name)
        for i, name in enumerate(("surfing", "kayaking", "a $5 dance_x"))
    ]
    sheet = figure(many, frames=4)
    assert len([ax for ax in sheet.axes if ax.images]) == 4 * 4
    said = texts(sheet)
    assert all(name in said for name in ("surfing p=0.62", "kayaking p=0.62", "a $5 dance_x"))
    assert pixels(sheet).shape[2] == 3


def test_nothing_on_the_sheet_is_clipped_or_overlaps():
    array = stack(size=(60, 80))
    long = explain(bump(), array=array, size=(60, 80), label="playing a very long wind instrument " * 3)
    for many in ([long], [long, long]):
        sheet = figure(many, frames=6)
        w, h = sheet.get_size_inches() * sheet.dpi
        for text in sheet.texts:
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= w
            assert box.y0 >= 0
            assert box.y1 <= h
        ink = pixels(sheet).min(axis=2) < 250
        for edge in (ink[:2], ink[-2:], ink[:, :2], ink[:, -2:]):
            assert not edge.any()


def test_png_is_the_sheet(tmp_path):
    why = explain(bump(), array=stack(), label="冲浪")  # letters that the font lacks
    with Image.open(why.save(tmp_path / "a.png", style=["paper"], columns=3)) as image:
        assert image.mode == "RGB"
        assert image.width > image.height
    with pytest.raises(OptionError, match="at least one frame"):
        figure(why, frames=0)


def test_sheet_of_one_frame():
    why = explain(torch.rand(1, 2, 2), array=stack(n=1), times=(0.0,))
    sheet = figure(why)
    assert len([ax for ax in sheet.axes if ax.images]) == 4
    assert pixels(sheet).shape[0] > 100


# ── notebooks ────────────────────────────────────────────────────────────────────────────────────────────


def test_notebook_shows_a_small_video_and_one_line(tmp_path):
    why = explain(bump(), array=stack(n=12, size=(270, 480)), size=(270, 480), label="<b>surf</b>")
    page = why._repr_mimebundle_()["text/html"]
    assert "&lt;b&gt;surf&lt;/b&gt;" in page
    assert "<b>" not in page
    assert all(word in page for word in ("controls", "loop", "muted", "p=0.62", "predicted: kayaking p=0.71"))
    data = re.search(r"data:video/mp4;base64,([^\"]+)", page)
    assert data is not None
    (tmp_path / "v.mp4").write_bytes(base64.b64decode(data[1]))
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    drawn, _ = decoded(tmp_path / "v.mp4")
    assert drawn[0].shape == (180, 320, 3)
    assert len(drawn) == 12


def test_notebook_falls_back_to_text_and_never_raises(tmp_path):
    gone = explain(bump(), path=tmp_path / "gone.mp4")
    page = gone._repr_mimebundle_()["text/html"]
    assert "<video" not in page
    assert "surfing water" in page
    assert "pass on=" in page
    object.__setattr__(gone, "provenance", None)
    assert "Explanation" in REPRS["text/html"](gone)


@real
@pytest.mark.parametrize("name", ["ucf101_24/v_Basketball_g01_c02.mp4", "mmaction2/tests_test.avi"])
def test_real_clips(tmp_path, name):
    path = REALDATA / "clips" / name
    originals, times = decoded(path)
    chosen = tuple(t - times[0] for t in times[10:26])
    h, w, _ = originals[0].shape
    why = explain(bump(), path=path, size=(h, w), times=chosen)
    drawn, _ = decoded(why.save(tmp_path / "a.mp4", caption=False, strip=False))
    assert len(drawn) == 16
    assert drawn[0].shape == (h, w, 3)
    cold = explain(torch.ones(1, 1, 1), path=path, size=(h, w), times=chosen)
    for (_, frame), original in zip(frames(cold, **PLAIN), originals[10:26], strict=True):
        assert np.abs(frame.astype(int) - original).mean() < 4
