"""Palettes of infrared pictures: lightness that never turns, heat that is legible on every level."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from tests.test_render_helpers import explain
from tubelens.errors import OptionError
from tubelens.render import colour, frames
from tubelens.render.look import look
from tubelens.render.palettes import PALETTES, heat_on, luma, overlaid, palette, tinted
from tubelens.render.spectra import View
from tubelens.video import VideoSink

PLAIN = {"caption": False, "strip": False}
LEGIBLE = 20
"""CIEDE2000 between a picture under hot heat and the bare picture; 2.3 is just noticeable."""
APART = 12
"""CIEDE2000 between the colours that two palettes have for one level, on average over the levels."""
RNG = np.random.default_rng(1)


def lightness(table):
    return rgb2lab(table[None] / 255)[0, :, 0]


@pytest.mark.parametrize("name", PALETTES)
def test_lightness_never_turns(name):
    steps = np.diff(lightness(palette(name)))
    assert (steps < 0).all() if name == "black-hot" else (steps > -1e-3).all()
    assert abs(lightness(palette(name))[[0, -1]]).max() > 95  # the whole range is used


def test_iron_runs_from_black_over_blue_violet_red_orange_yellow_to_white():
    iron = palette("iron").astype(int)
    assert (iron[0].tolist(), iron[255].tolist()) == ([0, 0, 0], [255, 255, 255])
    red, green, blue = iron[31]
    assert blue > 5 * max(red, green)
    red, green, blue = iron[71]
    assert min(red, blue) > 5 * green
    red, green, blue = iron[110]
    assert red > 2.5 * max(green, blue)
    red, green, blue = iron[150]
    assert red > 1.5 * green > 5 * blue
    red, green, blue = iron[206]
    assert min(red, green) > 4 * blue
    assert (np.diff(lightness(palette("iron"))) > 0).all()


def test_no_two_palettes_are_taken_for_each_other():
    """Level by level, on average five just noticeable differences apart."""
    for a, b in combinations(PALETTES, 2):
        apart = deltaE_ciede2000(*(rgb2lab(palette(name)[None] / 255) for name in (a, b)))
        assert apart.mean() > APART, (a, b)


def test_a_palette_colours_the_grey_level_by_level():
    picture = RNG.integers(0, 256, (9, 7, 1), dtype=np.uint8).repeat(3, axis=2)
    assert np.array_equal(tinted(picture, palette("white-hot")), picture)
    assert np.array_equal(tinted(picture, palette("black-hot")), 255 - picture)
    for name in ("inferno", "iron"):
        table, drawn = palette(name), tinted(picture, palette(name))
        for y in range(9):
            for x in range(7):
                assert drawn[y, x].tolist() == table[picture[y, x, 0]].tolist()


def test_an_overlay_is_half_the_brightness_and_half_the_other_picture():
    below, above = RNG.integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    drawn = overlaid(below, above)
    for y in range(9):
        for x in range(7):
            red, green, blue = map(int, below[y, x])
            grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # 0.299, 0.587, 0.114 of 65536
            assert int(luma(below)[y, x]) == grey
            assert drawn[y, x].tolist() == [(grey + int(c) + 1) // 2 for c in above[y, x]]


def differences(picture, colours):
    """CIEDE2000 that heat from 0.8 to 1 makes on every pixel of a picture."""
    hot = np.linspace(0.8, 1, 27)
    found = []
    for heat in hot:
        under = np.full(picture.shape[:2], heat, np.float32)
        drawn = colour.heat_tube(picture, under, colours)
        found.append(deltaE_ciede2000(rgb2lab(drawn / 255), rgb2lab(picture / 255)))
    return np.array(found)


@pytest.mark.parametrize("name", PALETTES)
def test_heat_is_legible_on_every_level_of_its_palette(name):
    assert differences(palette(name)[None], heat_on(name)).min() > LEGIBLE


@pytest.mark.parametrize("name", ["inferno", "iron"])
def test_turbo_is_not_legible_there(name):
    assert differences(palette(name)[None], colour.lut("turbo")).min() < 3


@pytest.mark.parametrize("name", ["inferno", "iron"])
def test_heat_is_legible_on_an_overlay_and_its_lines_on_the_palette(name):
    below = np.arange(0, 256, 15, dtype=np.uint8)[:, None, None].repeat(52, axis=1).repeat(3, axis=2)
    both = overlaid(below, palette(name)[None, ::5].repeat(len(below), axis=0))
    assert differences(both, heat_on(name)).min() > LEGIBLE
    for level in colour.LEVELS:
        line = np.broadcast_to(heat_on(name)[int(level * 255)], (256, 3))
        assert deltaE_ciede2000(rgb2lab(line / 255), rgb2lab(palette(name) / 255)).min() > LEGIBLE


def test_hotter_is_lighter_in_the_colours_of_heat():
    assert (np.diff(lightness(heat_on("inferno"))) > -0.1).all()  # whole numbers of 255 step unevenly
    assert np.diff(lightness(heat_on("inferno"))[[0, 102, 153, 204, 255]]).min() > 8


def test_the_user_s_colour_map_wins():
    views = (View("lwir", table=palette("inferno")),)
    assert np.array_equal(look(palette="inferno").on(views).colours, heat_on("inferno"))
    assert np.array_equal(look(palette="inferno").on((View(),)).colours, colour.lut("turbo"))  # in colour
    own = look(palette="inferno", colormap="viridis").on(views)
    assert np.array_equal(own.colours, colour.lut("viridis"))
    assert np.array_equal(look(palette="black-hot").on(views).colours, colour.lut("turbo"))
    with pytest.raises(OptionError, match=r"unknown palette 'infrno'.*'inferno'.*white-hot, black-hot"):
        look(palette="infrno")
    assert PALETTES == ("white-hot", "black-hot", "inferno", "iron")


def written(path, frames_):
    h, w, _ = frames_[0].shape
    with VideoSink(path, (h, w), fps=10) as sink:
        for i, frame in enumerate(frames_):
            sink.write(frame, i / 10)
    return path


def test_a_grey_file_is_tinted_and_a_colour_file_is_not(tmp_path):
    y, x = np.mgrid[0:64, 0:80]
    grey = [np.repeat((x + y + 5 * i)[..., None].astype(np.uint8), 3, axis=2) for i in range(12)]
    spot = [g.copy() for g in grey]
    for frame in spot[6:]:  # the first frames are grey
        frame[8:24, 8:24] = (200, 40, 40)
    for frames_, coloured in ((grey, False), (spot, True)):
        path = written(tmp_path / f"{coloured}.mp4", frames_)
        why = explain(torch.zeros(1, 2, 2), path=path, size=(64, 80))
        bare = [f for _, f in frames(why, **PLAIN)]
        drawn = [f for _, f in frames(why, palette="inferno", **PLAIN)]
        for before, after in zip(bare, drawn, strict=True):
            wanted = before if coloured else palette("inferno")[luma(before)]
            assert np.array_equal(after, wanted)


def test_an_array_of_one_band_is_tinted_and_heat_lies_on_it_in_the_colours_of_the_palette():
    array = RNG.integers(0, 256, (12, 64, 64, 1), dtype=np.uint8)
    values = torch.zeros(1, 64, 64)
    values[:, :, 32:] = 1
    why = explain(values, array=array, size=(64, 64), side=(64, 64))
    table, heat = palette("iron"), heat_on("iron")
    mask = round(255 * colour.ALPHA) / 255
    for i, (_, frame) in enumerate(frames(why, palette="iron", **PLAIN)):
        under = table[array[i, ..., 0]]
        assert np.array_equal(frame[:, :24], under[:, :24])
        hot = under[:, 40:] * (1 - mask) + heat[255] * mask
        assert np.abs(frame[:, 40:] - hot).max() <= 1
