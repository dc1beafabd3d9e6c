"""Streams of drawn frames: registration, scaling over the clip, columns, sources that moved."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from tests.test_render_helpers import decoded, explain, picture, stack, video
from tubelens.clip import Box, Clip
from tubelens.errors import OptionError, VideoError
from tubelens.render import colour, frames
from tubelens.render.caption import (
    Caption,
    _arranged,
    caption_of,
    draw_bar,
    draw_strip,
    footing,
    strip_rows,
)
from tubelens.render.compose import Drawing
from tubelens.render.look import look
from tubelens.render.source import fitted, open_source, over_time

PLAIN = {"caption": False, "strip": False}


def heat_seen(drawn, original):
    """How far each pixel was coloured."""
    return np.abs(drawn.astype(int) - original).sum(axis=2)


def test_a_hot_cell_is_drawn_where_its_crop_lies_in_a_wide_frame():
    # a 72x120 frame whose central 72x72 was seen at 32x32; cell (1, 2) of 4x4 looks at its pixel (11.5, 19.5)
    values = torch.zeros(3, 4, 4)
    values[:, 1, 2] = 1
    array = stack(size=(72, 120))
    why = explain(values, array=array, box=Box(0.0, 24.0, 72.0, 72.0))
    drawn = [frame for _, frame in frames(why, **PLAIN)]
    assert len(drawn) == 12
    for original, frame in zip(array, drawn, strict=True):
        seen = heat_seen(frame, original).astype(float)
        seen[:, [22, 23, 96, 97]] = 0  # the outline
        assert not seen[:, :22].any()
        assert not seen[:, 98:].any()
        y, x = np.mgrid[0:72, 0:120]
        top = seen > 0.6 * seen.max()
        assert y[top].mean() == pytest.approx((11.5 + 0.5) * 72 / 32 - 0.5, abs=1.5)
        assert x[top].mean() == pytest.approx(24 + (19.5 + 0.5) * 72 / 32 - 0.5, abs=1.5)


def test_a_hot_moment_is_drawn_when_it_was_filmed():
    # cells look at frames 1.5, 5.5, 9.5 of 12; only the last is hot
    values = torch.zeros(3, 2, 2)
    values[2] = 1
    array = stack()
    seen = [
        heat_seen(f, a).mean()
        for (_, f), a in zip(frames(explain(values, array=array), **PLAIN), array, strict=True)
    ]
    assert max(seen[:6]) < 0.05 * max(seen)
    assert min(seen[9:]) > 0.8 * max(seen)


def test_a_dull_frame_stays_dull():
    # time cells of peak 0.2, 1, 0.2: per-frame scaling would draw all three alike
    values = torch.zeros(12, 4, 4)
    values[:, 2, 2] = 0.2
    values[6, 2, 2] = 1.0
    array = stack()
    alphas = [f[..., 3].max() for _, f in frames(explain(values, array=array), "focus", rgba=True, **PLAIN)]
    assert alphas[6] > 240
    assert max(alphas[:4]) < 100


def test_focus_alpha_equals_clip_wide_min_max_by_hand():
    values = torch.randn(12, 64, 64, generator=torch.Generator().manual_seed(3))  # a cell a pixel and frame
    array = stack(size=(64, 64))
    why = explain(values, array=array, size=(64, 64), side=(64, 64))
    low, high = float(values.min()), float(values.max())
    drawn = [f for _, f in frames(why, "focus", rgba=True, **PLAIN)]
    for t in (0, 5, 11):
        expected = np.floor(20 + 235 * (values[t].numpy() - low) / (high - low) + 0.5)
        assert np.abs(drawn[t][..., 3] - expected).max() <= 1
        assert np.array_equal(drawn[t][..., :3], array[t])


def test_paper_style_equals_the_formula_through_the_whole_chain():
    values = torch.rand(12, 64, 64, generator=torch.Generator().manual_seed(4))
    array = stack(size=(64, 64))
    why = explain(values, array=array, size=(64, 64), side=(64, 64))
    low, high = why.limits
    table = colour.published_jet().astype(int)
    for t, (_, frame) in enumerate(frames(why, "paper", **PLAIN)):
        index = np.clip((values[t].numpy() - low) / (high - low) * 255, 0, 255)
        near = [
            table[np.clip(index + d, 0, 255).astype(int)] // 2 + array[t].astype(int) // 2
            for d in (-0.01, 0.01)
        ]
        assert (np.minimum(*near) - 1 <= frame).all()
        assert (frame <= np.maximum(*near) + 1).all()
        assert (frame == near[0]).mean() > 0.98


def test_a_constant_map_is_cold_everywhere():
    array = stack()
    for original, (_, frame) in zip(
        array, frames(explain(torch.ones(2, 3, 3), array=array), **PLAIN), strict=True
    ):
        assert np.array_equal(original, frame)


def test_frames_of_a_file_keep_size_count_and_times(tmp_path):
    path = video(tmp_path / "v.mp4", n=15, rate=7, size=(240, 320))
    times = tuple(i / 7 for i in range(15))
    why = explain(torch.rand(2, 3, 3), path=path, size=(240, 320), times=times, fps=7.0)
    drawn = list(frames(why))
    originals, times = decoded(path)
    assert [s for s, _ in drawn] == pytest.approx(times, abs=1e-6)
    assert {f.shape for _, f in drawn} == {(240, 320, 3)}
    why = explain(torch.ones(2, 3, 3), path=path, size=(240, 320), times=tuple(times), fps=7.0)
    cold = list(frames(why, **PLAIN))
    assert all(np.abs(f.astype(int) - o).max() <= 4 for (_, f), o in zip(cold, originals, strict=True))


def test_only_the_explained_span_is_drawn(tmp_path):
    path = video(tmp_path / "v.mp4", n=20)
    why = explain(torch.rand(2, 3, 3), path=path, times=(0.5, 0.7, 0.9), span=(0.5, 0.9))
    assert [s for s, _ in frames(why)] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])


def test_columns_are_the_original_and_each_explanation():
    array = stack()
    left, right = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    left[:, :, 0], right[:, :, 3] = 1, 1
    a, b = explain(left, array=array), explain(right, array=array, label="kayaking")
    drawn = [f for _, f in frames([a, b], beside=True, **PLAIN)]
    assert drawn[0].shape == (72, 360, 3)
    assert np.array_equal(drawn[3][:, :120], array[3])
    first, second = heat_seen(drawn[3][:, 120:240], array[3]), heat_seen(drawn[3][:, 240:], array[3])
    assert first[:, 2:30].mean() > 10 * (1 + first[:, 90:].mean())
    assert second[:, 90:].mean() > 10 * (1 + second[:, 2:30].mean())
    one = [f for _, f in frames(a, ["heat", "focus"], **PLAIN)]
    assert one[0].shape == (72, 240, 3)


def test_an_explanation_is_drawn_only_on_its_own_span():
    array = stack()
    values = torch.zeros(2, 3, 3)
    values[:, 1, 1] = 1
    a = explain(values, array=array, times=tuple(i / 10 for i in range(5)), span=(0.0, 0.4))
    b = explain(values, array=array)
    drawn = [f for _, f in frames([a, b], **PLAIN)]
    assert len(drawn) == 12
    assert heat_seen(drawn[4][:, :120], array[4]).max() > 100
    assert not heat_seen(drawn[8][:, :120], array[8]).any()
    assert heat_seen(drawn[8][:, 122:], array[8][:, 2:]).max() > 100


def test_explanations_of_different_videos_do_not_mix():
    with pytest.raises(OptionError, match="one array"):
        frames([explain(torch.rand(2, 2, 2), array=stack()), explain(torch.rand(2, 2, 2), array=stack())])
    with pytest.raises(OptionError, match=r"one video, got a\.mp4 and b\.mp4"):
        frames([explain(torch.rand(2, 2, 2), path="a.mp4"), explain(torch.rand(2, 2, 2), path="b.mp4")])
    with pytest.raises(OptionError, match="at least one"):
        frames([])


def test_caption_and_strip_stay_inside_and_can_be_left_out():
    array = stack(size=(240, 320))
    why = explain(torch.zeros(2, 3, 3), array=array, size=(240, 320))
    (_, full), *_ = frames(why)
    (_, plain), *_ = frames(why, **PLAIN)
    (_, only_strip), *_ = frames(why, caption=False)
    assert full.shape == plain.shape == (240, 320, 3)
    assert np.array_equal(plain, array[0])
    assert np.array_equal(full[:190], array[0][:190])
    assert not np.array_equal(full[-20:-10], array[0][-20:-10])
    assert np.array_equal(only_strip[:-10], array[0][:-10])
    assert not np.array_equal(only_strip[-10:], array[0][-10:])


SAID = Caption("surfing water", 0.62, ("kayaking", 0.31))


@pytest.mark.parametrize("size", [(72, 120), (112, 150), (120, 160)])
def test_below_a_low_picture_nothing_is_left_out_and_nothing_hidden(size):
    """Two lines would hide up to a third of it: they stand below, and so does the strip."""
    array = stack(size=size)
    why = explain(torch.rand(2, 3, 3), array=array, size=size, predicted=(("kayaking", 0.31),))
    (_, full), *_ = frames(why)
    (_, plain), *_ = frames(why, **PLAIN)
    h, w = size
    assert np.array_equal(full[:h], plain)
    foot = full[h:].copy()
    feet = footing([SAID], 1.1, size, strip=True, below=True)
    assert len(foot) == feet.rows == feet.bar + strip_rows(h)
    wanted = np.zeros_like(full)
    draw_strip(wanted, over_time(why, [i / 10 for i in range(12)]), 0, colour.lut("turbo"), below=h)
    assert draw_bar(wanted, SAID, 0.0, 1.1, size=feet.size, below=h) == feet.bar
    assert np.array_equal(foot, wanted[h:])
    (_, only_strip), *_ = frames(why, caption=False)
    assert only_strip.shape[0] == h  # it hides a 25th
    lines = _arranged(SAID, "1.10 s", w, h, feet.size, below=True)[1]
    assert "".join(text for text, _, _ in lines[-1]).endswith("predicted: kayaking p=0.31")


def test_clear_focus_has_an_opaque_foot():
    why = explain(torch.rand(2, 3, 3), array=stack())
    (_, frame), *_ = frames([why, why], "focus", rgba=True, beside=True)
    assert frame.shape[1:] == (360, 4)
    assert (frame[72:, :, 3] == 255).all()
    assert frame[:72, 120:240, 3].min() < 200


def test_all_columns_have_letters_of_one_size_and_feet_of_one_height():
    array = stack(size=(240, 320))
    many = [
        explain(torch.rand(2, 3, 3), array=array, size=(240, 320), label=label)
        for label in ("short", "a label of so many letters that it is written small")
    ]
    with Drawing(many, look(beside=True, strip=False)) as drawing:
        small = drawing._footing.size
        alone = [Drawing(e, look())._footing.size for e in many]
        assert alone[0] > alone[1] == small
        (_, frame), *_ = drawing
    for i, e in enumerate(many):
        wanted = np.zeros((240, 320, 3), np.uint8)
        rows = draw_bar(wanted, caption_of(e), 0.0, 1.1, size=small)
        bar = frame[-rows:, 320 * (i + 1) + 1 : 320 * (i + 2)]
        ink = (wanted[-rows:, 1:] > 120).all(axis=2)
        assert ink.sum() > 100
        assert (bar[ink] > 120).all()
    array = stack()
    low = [explain(torch.rand(2, 3, 3), array=array, label=x) for x in ("a", "a longer label")]
    with Drawing(low, look(beside=True)) as drawing:
        for _, frame in drawing:
            assert frame.shape[:2] == drawing.size == (72 + drawing._footing.rows, 360)


def test_fit_counts_what_stands_below():
    why = explain(torch.rand(2, 3, 3), array=stack(size=(120, 160)), size=(120, 160))
    for fit, below in ((160, True), (140, True), (60, False)):
        with Drawing([why] * 2, look(), fit=2 * fit) as drawing:
            assert max(drawing.size) <= 2 * fit
            assert bool(drawing._footing.rows) is below
    tall = explain(torch.rand(2, 3, 3), array=stack(size=(160, 120)), size=(160, 120))
    for fit in (160, 120, 100):
        with Drawing(tall, look(), fit=fit) as drawing:
            assert 0.75 * fit < max(drawing.size) <= fit


@pytest.mark.parametrize(("kind", "share"), [("grey", 1), ("float", 3), ("four bands", 4)])
def test_arrays_of_other_bands_are_shown(kind, share):
    base = stack(size=(64, 64)).astype(np.float64) / 255
    array = {"grey": base[..., :1], "float": base, "four bands": np.concatenate([base, base[..., :1]], -1)}[
        kind
    ]
    assert array.shape[-1] == share
    (_, first), *_ = frames(explain(torch.zeros(1, 2, 2), array=array, size=(64, 64)), **PLAIN)
    assert np.abs(first[..., 0] - array[0][..., 0] * 255).max() <= 0.51


def test_missing_source_says_pass_on(tmp_path):
    why = explain(torch.rand(2, 3, 3), path=tmp_path / "gone.mp4")
    with pytest.raises(VideoError, match=r"gone\.mp4: no such file or folder: pass on="):
        frames(why)
    with pytest.raises(VideoError, match="not stored: pass on="):
        frames(explain(torch.rand(2, 3, 3)))


def test_on_takes_a_path_an_array_or_a_clip(tmp_path):
    moved = video(tmp_path / "moved.mp4")
    why = explain(torch.rand(2, 3, 3), path=tmp_path / "gone.mp4")
    for on in (moved, str(moved), stack(), torch.from_numpy(stack()), Clip.from_array(stack(), fps=10.0)):
        drawn = list(frames(why, on=on, **PLAIN))
        assert len(drawn) == 12
        assert drawn[-1][0] == pytest.approx(1.1)


def test_another_frame_size_is_refused(tmp_path):
    why = explain(torch.rand(2, 3, 3), path=video(tmp_path / "v.mp4", size=(64, 64)))
    with pytest.raises(VideoError, match="its frames are 64x64, but 120x72 were explained: pass on="):
        frames(why)
    with pytest.raises(VideoError, match="the array: its frames are 64x64"):
        frames(why, on=stack(size=(64, 64)))


def test_a_changed_file_is_refused_unless_given(tmp_path):
    path = video(tmp_path / "v.mp4")
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    open_source(explain(torch.rand(2, 3, 3), path=path, sha256=right).source).close()
    changed = explain(torch.rand(2, 3, 3), path=path, sha256="0" * 64)
    with pytest.raises(VideoError, match=r"v\.mp4: has changed since it was explained"):
        frames(changed)
    assert len(list(frames(changed, on=path))) == 12


def test_a_video_without_the_explained_part_is_refused():
    why = explain(torch.rand(2, 3, 3), path="x.mp4", times=(7.0, 8.0), span=(7.0, 8.0))
    with pytest.raises(VideoError, match=r"no frames from 7\.00 to 8\.00 s"):
        frames(why, on=stack())


def test_unknown_style_names_the_nearest():
    with pytest.raises(OptionError, match=r"unknown style 'focsu'.*'focus'"):
        frames(explain(torch.rand(1, 2, 2), array=stack()), "focsu")
    with pytest.raises(OptionError, match=r"unknown colour map 'turboo'.*'turbo'"):
        frames(explain(torch.rand(1, 2, 2), array=stack()), colormap="turboo")
    with pytest.raises(OptionError, match="no style"):
        look([])


def test_fit_shrinks_all_columns_together():
    assert fitted((1080, 1920), 1, 480) == (270, 480)
    assert fitted((1080, 1920), 2, 480) == (135, 240)
    assert fitted((1920, 1080), 1, 480) == (480, 270)
    assert fitted((100, 200), 1, 480) == (100, 200)
    with pytest.raises(OptionError, match="at least 16"):
        fitted((100, 200), 1, 3)
    values = torch.zeros(2, 4, 4)
    values[:, 0, 3] = 1
    why = explain(values, array=stack(size=(96, 160)), size=(96, 160))
    (_, small), *_ = frames(why, fit=80, **PLAIN)
    assert small.shape == (48, 80, 3)
    seen = heat_seen(small, picture(0, (48, 80)))
    assert seen[:10, 66:].mean() > 5 * (1 + seen[24:].mean())


def test_most_takes_every_second_frame_with_its_own_heat():
    values = torch.zeros(12, 2, 2)
    values[8] = 1
    how = look("focus", caption=False, strip=False, rgba=True)
    with Drawing(explain(values, array=stack()), how, most=6) as drawing:
        drawn = list(drawing)
        assert len(drawing) == 6
        assert drawing.fps == 5.0
    assert [s for s, _ in drawn] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert int(np.argmax([f[..., 3].mean() for _, f in drawn])) == 4
