"""Heat on one frame: published formulas, cold and blind regions, lines, the outline of the crop."""

from __future__ import annotations

import numpy as np
import pytest

from tubelens.clip import Box
from tubelens.errors import OptionError
from tubelens.render import colour
from tubelens.render.palettes import PALETTES, heat_on, palette

RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
HEAT = RNG.random((20, 30)).astype(np.float32)


def test_paper_is_the_published_blend_pixel_by_pixel():
    drawn = colour.paper_tube(FRAME, HEAT)
    for y in range(20):
        for x in range(30):
            i = int(np.uint8(255 * HEAT[y, x]))
            # OpenCV's JET: blue, green and red are tents of width 1.5 around 1/4, 1/2 and 3/4
            jet = [
                int(np.floor(255 * np.clip(1.5 - abs(4 * i / 255 - k), 0, 1) + 0.5 + 1e-9)) for k in (3, 2, 1)
            ]
            assert drawn[y, x].tolist() == [
                c // 2 + int(p) // 2 for c, p in zip(jet, FRAME[y, x], strict=True)
            ]


def test_published_jet_has_the_known_ends():
    jet = colour.published_jet()
    assert [jet[i].tolist() for i in (0, 1, 96, 255)] == [
        [0, 0, 128],
        [0, 0, 132],
        [2, 255, 254],
        [128, 0, 0],
    ]


def test_focus_alpha_is_a_ramp_from_20_to_255_and_keeps_the_picture():
    heat = np.array([[0.0, 0.25, 0.5, 0.999, 1.0, np.nan]], dtype=np.float32)
    drawn = colour.focus_tube(FRAME[:1, :6], heat)
    expected = [int(np.floor(20 + 235 * v + 0.5)) for v in (0, 0.25, 0.5, 0.999, 1)]
    assert drawn[0, :, 3].tolist() == [*expected, 20]
    assert expected[0] == 20
    assert expected[-1] == 255
    assert np.array_equal(drawn[..., :3], FRAME[:1, :6])


def test_over_black_multiplies_by_alpha():
    drawn = colour.over_black(colour.focus_tube(FRAME, HEAT))
    alpha = np.floor(20 + 235 * HEAT + 0.5)[..., None] / 255
    assert np.abs(drawn - FRAME * alpha).max() <= 1


def test_heat_leaves_cold_alone_and_blends_hot_with_alpha():
    table = colour.lut("turbo")
    cold = colour.heat_tube(FRAME, np.full((20, 30), 0.15, np.float32), table)
    assert np.array_equal(cold, FRAME)
    hot = colour.heat_tube(FRAME, np.ones((20, 30), np.float32), table, alpha=0.5)
    assert np.abs(hot - (0.5 * FRAME + 0.5 * table[255])).max() <= 1.5
    weight = colour.weights(0.65).astype(int)
    assert (np.diff(weight) >= 0).all()
    assert weight[128] == pytest.approx(255 * 0.65 / 2, abs=2)  # the middle of the ramp


def test_heat_middle_against_a_slow_blend():
    table, weight = colour.lut("inferno").astype(float), colour.weights(0.6) / 255
    drawn = colour.heat_tube(FRAME, HEAT, colour.lut("inferno"), alpha=0.6)
    for y, x in ((0, 0), (3, 7), (11, 20), (19, 29)):
        i = int(255 * HEAT[y, x])
        assert np.abs(drawn[y, x] - (FRAME[y, x] * (1 - weight[i]) + table[i] * weight[i])).max() <= 1


@pytest.mark.parametrize("style", [colour.heat_tube, colour.contour_tube])
def test_where_the_model_did_not_look_the_picture_stays(style):
    heat = HEAT.copy()
    heat[:, :9] = np.nan
    drawn = style(FRAME, heat, colour.lut("turbo"))
    assert np.array_equal(drawn[:, :9], FRAME[:, :9])
    assert not np.array_equal(drawn[:, 9:], FRAME[:, 9:])


def test_paper_stays_original_outside_too():
    heat = HEAT.copy()
    heat[5] = np.nan
    assert np.array_equal(colour.paper_tube(FRAME, heat)[5], FRAME[5])


def test_contour_lies_on_the_iso_line_and_nowhere_else():
    h = w = 101
    y, x = np.mgrid[0:h, 0:w]
    radius = np.hypot(y - 50, x - 50)
    heat = np.clip(1 - radius / 50, 0, 1).astype(np.float32)  # level 0.5 is the circle of radius 25
    grey = np.full((h, w, 3), 100, np.uint8)
    table = np.full((256, 3), 255, np.uint8)
    drawn = colour.contour_tube(grey, heat, table, at=(0.5,))
    line = drawn[..., 0] > 180
    assert line.any()
    assert np.abs(radius[line] - 25).max() < 1.0
    assert np.array_equal(drawn[np.abs(radius - 25) > 3.5], grey[np.abs(radius - 25) > 3.5])
    # closed: every ray from the centre meets it
    angles = np.round(np.degrees(np.arctan2(y - 50, x - 50)[drawn[..., 0] > 140]) / 6)
    assert len(np.unique(angles)) >= 60


@pytest.mark.parametrize("name", PALETTES)
def test_a_contour_is_opaque_and_its_casing_thin(name):
    """One-pixel lines at every place between two pixels, over all colours of a palette."""
    y, x = np.mgrid[0:240, 0:256].astype(float)
    picture = np.broadcast_to(palette(name), (240, 256, 3)).copy()
    heat = (0.4 + (y - 40 - x / 16) / 300).astype(np.float32)  # level 0.4 at y = 40 + x / 16
    drawn = colour.contour_tube(picture, heat, heat_on(name), at=(0.4,))
    ink = heat_on(name)[102].astype(int)
    changed = (drawn != picture).any(axis=2)
    assert changed.sum(axis=0).max() <= 4  # the line and on either side its casing
    column = np.abs(drawn.astype(int) - ink).max(axis=2).min(axis=0)
    assert column.max() <= 1  # in every column one pixel has the colour itself


def test_the_edge_of_the_crop_is_no_contour():
    heat = np.full((40, 40), 0.9, np.float32)
    heat[:, :10] = np.nan
    grey = np.full((40, 40, 3), 100, np.uint8)
    assert np.array_equal(colour.contour_tube(grey, heat, colour.lut("turbo"), at=(0.5,)), grey)


def test_contour_levels_are_checked():
    with pytest.raises(OptionError, match="between 0 and 1"):
        colour.contour_tube(FRAME, HEAT, colour.lut("turbo"), at=(0.5, 1.0))


def test_outline_hugs_the_crop_from_outside_only():
    frame = np.full((40, 60, 3), 100, np.uint8)
    colour.mark_crop(frame, Box(0.0, 10.0, 40.0, 30.0), (40, 60))
    changed = np.flatnonzero((frame != 100).any(axis=(0, 2)))
    assert changed.tolist() == [8, 9, 40, 41]  # light at 9 and 40, dark beyond
    assert (frame[:, [9, 40]] > 200).all()
    assert (frame[:, [8, 41]] < 100).all()


@pytest.mark.parametrize("box", [Box(0.0, 0.0, 40.0, 60.0), Box(-3.0, -3.0, 50.0, 70.0)])
def test_no_outline_when_the_model_saw_everything(box):
    frame = np.full((40, 60, 3), 100, np.uint8)
    colour.mark_crop(frame, box, (40, 60))
    assert (frame == 100).all()


def test_outline_of_a_large_frame_one_pixel_from_the_edge_stays_a_line():
    frame = np.full((1080, 1200, 3), 100, np.uint8)
    colour.mark_crop(frame, Box(1.0, 1.0, 1078.0, 1198.0), (1080, 1200))
    assert (frame[1:-1, 1:-1] == 100).all()
    assert (frame[0] > 200).all()
    assert (frame[:, -1] > 200).all()


def test_outline_scales_with_a_smaller_drawing():
    frame = np.full((20, 30, 3), 100, np.uint8)
    colour.mark_crop(frame, Box(0.0, 10.0, 40.0, 30.0), (40, 60))
    assert (frame[:, [4, 20]] > 200).all()
    assert (frame[:, 5:20] == 100).all()


def test_unknown_colour_map_names_the_nearest():
    with pytest.raises(OptionError, match="'inferno'"):
        colour.lut("infreno")


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_alpha_is_checked(alpha):
    with pytest.raises(OptionError, match=r"alpha must be in \[0, 1\]"):
        colour.weights(alpha)
