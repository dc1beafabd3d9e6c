"""Captions and the strip: what they say, that they fit, and where they are."""

from __future__ import annotations

import numpy as np
import pytest

from tests.test_render_helpers import explain
from tubelens.render import colour
from tubelens.render.caption import (
    Caption,
    _arranged,
    caption_of,
    clock,
    draw_bar,
    draw_strip,
    padding,
    probability,
    strip_rows,
    typeface,
)

LONG = Caption("playing a very long wind instrument in the street", 0.62, ("kayaking in white water", 0.31))


def test_line_says_target_probability_and_prediction():
    zeros = np.zeros((2, 2, 2))
    said = caption_of(explain(zeros, label="surfing\n water", prob=0.62, predicted=(("kayaking", 0.31),)))
    assert said.line == "surfing water  p=0.62 · predicted: kayaking p=0.31"
    same = caption_of(explain(zeros, label="kayaking", prob=0.31, predicted=(("kayaking", 0.31),)))
    assert same.line == "kayaking  p=0.31 · predicted"
    for label in ("kayaking rather than surfing", "kayaking · IR"):
        assert caption_of(explain(zeros, label=label, predicted=(("kayaking", 0.31),))).top
    other = caption_of(explain(zeros, label="kayaking rather than surfing", predicted=(("surfing", 0.31),)))
    assert (other.top, other.predicted) == (False, ("surfing", 0.31))
    assert caption_of(explain(zeros, label="a", prob=float("nan"), predicted=())).line == "a"


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "p=0.00"), (0.001, "p<0.01"), (0.62, "p=0.62"), (0.9999, "p>0.99"), (1.0, "p=1.00")]
)
def test_probability_never_rounds_to_certainty(p, text):
    assert probability(p) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.484, "0.48 s"), (59.996, "1:00.00"), (65.2, "1:05.20"), (3600.5, "60:00.50")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("size", [(1080, 1920), (256, 340), (240, 320), (128, 171), (112, 112), (96, 64)])
def test_captions_fit_inside_the_frame(size):
    h, w = size
    for caption in (LONG, Caption("surfing water", 0.62, ("kayaking", 0.31)), Caption("original")):
        found = _arranged(caption, "12.34 s", w, h)
        if found is None:
            assert w < 112
            continue
        letters, lines, timed = found
        assert letters >= 8
        for number, runs in enumerate(lines):
            wide = 2 * padding(letters) + sum(
                typeface(letters, bold).getlength(text) for text, bold, _ in runs
            )
            if timed and number == 0:
                wide += typeface(letters, False).getlength("12.34 s")
            assert wide <= w + 1e-6
        frame = np.zeros((h, w, 3), np.uint8)
        rows = draw_bar(frame, caption, 12.34)
        assert 0 < rows <= 0.3 * h
        assert not frame[:-rows].any()
        ink = frame[-rows:].max(axis=2) > 60
        assert ink.any()
        assert not ink[:, :2].any()  # not clipped at the sides
        assert not ink[:, -2:].any()
        assert not ink[[0, -1]].any()


def test_an_illegibly_small_frame_gets_no_caption():
    for size in ((20, 200), (200, 24), (16, 16)):
        frame = np.full((*size, 3), 90, np.uint8)
        assert draw_bar(frame, LONG, 1.0) == 0
        assert (frame == 90).all()


def test_what_is_left_out_first_is_the_least_important():
    caption = Caption("surfing water", 0.62, ("kayaking", 0.31))

    def words(w, h):
        found = _arranged(caption, "0.48 s", w, h)
        assert found is not None
        return "/".join("".join(text for text, _, _ in runs) for runs in found[1]), found[2]

    assert words(640, 480) == ("surfing water  p=0.62 · predicted: kayaking p=0.31", True)
    assert words(220, 220) == ("surfing water  p=0.62/predicted: kayaking p=0.31", True)
    assert words(112, 84) == ("surfing water  p=0.62", False)
    assert words(90, 84)[0].endswith("…  p=0.62")


def test_arrangement_does_not_jump_when_the_time_gets_longer():
    caption = Caption("surfing water", 0.62, ("kayaking", 0.31))
    for w in range(112, 400, 3):
        rows = {draw_bar(np.zeros((200, w, 3), np.uint8), caption, s, last=100.0) for s in (0.1, 9.9, 99.9)}
        assert len(rows) == 1


def test_bar_darkens_but_does_not_hide_the_picture():
    frame = np.full((200, 300, 3), 200, np.uint8)
    rows = draw_bar(frame, Caption("a"), 0.0)
    bar = frame[-rows:, 60:200]
    assert bar.min() == pytest.approx(200 * (1 - 150 / 255), abs=2)


def test_bar_gives_a_transparent_frame_a_readable_caption():
    frame = np.zeros((200, 300, 4), np.uint8)
    frame[..., 3] = 20
    rows = draw_bar(frame, Caption("surfing"), 0.0)
    assert (frame[:-rows, :, 3] == 20).all()
    assert frame[-rows:, :, 3].min() >= 150
    assert frame[-rows:, :, 3].max() == 255


def test_strip_shows_when_it_was_hot_and_where_we_are():
    values = np.zeros(100)
    values[60:80] = 0.9
    frame = np.full((250, 400, 3), 100, np.uint8)
    rows = draw_strip(frame, values, 10, colour.lut("turbo"))
    assert rows == strip_rows(250)
    assert (frame[:-rows] == 100).all()
    foot = frame[-1].astype(int)
    hot = (foot[:, 0] > 150) & (foot[:, 2] < 90)
    assert np.flatnonzero(hot).min() == pytest.approx(60 * 4, abs=6)
    assert np.flatnonzero(hot).max() == pytest.approx(80 * 4, abs=6)
    head = np.flatnonzero((foot == 255).all(axis=1))
    assert head.tolist() == [round(10 * 399 / 99)]


def test_strip_height_is_a_share_of_the_highest_from_zero():
    frame = np.zeros((500, 101, 3), np.uint8)
    rows = draw_strip(frame, np.linspace(0, 0.5, 101), 0, np.full((256, 3), 255, np.uint8))
    filled = (frame[-rows:, 3:, 0] / 255).sum(axis=0)
    assert filled == pytest.approx(np.linspace(0, rows - 1, 101)[3:], abs=0.02)


def test_play_head_stays_inside():
    for now in (0, 11):
        frame = np.zeros((100, 64, 3), np.uint8)
        rows = draw_strip(frame, np.zeros(12), now, colour.lut("turbo"))
        assert (frame[-rows:] == 255).all(axis=(0, 2)).sum() == 1


def test_no_strip_for_one_frame_or_a_low_frame():
    frame = np.zeros((100, 64, 3), np.uint8)
    assert draw_strip(frame, np.ones(1), 0, colour.lut("turbo")) == 0
    assert draw_strip(frame[:40], np.ones(5), 0, colour.lut("turbo")) == 0
    assert not frame.any()
