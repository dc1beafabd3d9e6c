"""Several networks in one picture: who stands where, what the bands say, and the sheet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.test_render_helpers import explain, stack
from tubelens.agreement import agreement
from tubelens.explanation import Explanation
from tubelens.render import figure, frames
from tubelens.render.arrange import arrange, correlation, network_names
from tubelens.render.compose import Drawing
from tubelens.render.heads import Head, bands, heads
from tubelens.render.look import look
from tubelens.render.paper import pixels

PLAIN = {"caption": False, "strip": False}
LARGE = (240, 320)


def of(
    network: str,
    label: str,
    method: str = "Tubes()",
    weights: str = "w",
    cell: int = 0,
    size=(72, 120),
    array=None,
) -> Explanation:
    values = torch.rand((3, 4, 4), generator=torch.Generator().manual_seed(cell))
    why = explain(
        values, array=stack(size=size) if array is None else array, size=size, label=label, prob=0.3
    )
    return replace(why, provenance=replace(why.provenance, model=network, weights=weights, method=method))


def grid(networks, labels, methods=("Tubes()",), size=(72, 120)) -> list[Explanation]:
    array = stack(size=size)
    made = [(n, m, x) for n in networks for m in methods for x in labels]
    return [of(n, x, m, cell=i, size=size, array=array) for i, (n, m, x) in enumerate(made)]


def test_networks_are_rows_and_targets_columns():
    two = grid("AB", "xyz")
    assert arrange(two, ["heat"], True) == [
        [(None, "original"), (0, "heat"), (1, "heat"), (2, "heat")],
        [(None, "original"), (3, "heat"), (4, "heat"), (5, "heat")],
    ]
    assert arrange(two[:5], ["heat"], False)[1] == [(3, "heat"), (4, "heat"), None]
    ways = ("Tubes()", "RISE(n=5)")
    both = grid("AB", "xy", ways)  # a row a network and a method
    assert arrange(both, ["heat"], False) == [[(i, "heat"), (i + 1, "heat")] for i in (0, 2, 4, 6)]
    single = grid("AB", "x", ways)  # a row a network, a column a method
    assert arrange(single, ["heat"], False) == [[(0, "heat"), (1, "heat")], [(2, "heat"), (3, "heat")]]
    assert arrange(grid("ABCDE", "x"), ["heat"], False) == [
        [(0, "heat"), (1, "heat"), (2, "heat")],
        [(3, "heat"), (4, "heat"), None],
    ]


def test_networks_of_one_name_show_their_weights():
    assert network_names([("a", "w"), ("b", "w"), ("a", "w")]) == ["a", "b", "a"]
    assert network_names(
        [("a", "random (seed 3)"), ("a", "deep/down/w.pt"), ("a", "as nets.py:make made them")]
    ) == ["a (random, seed 3)", "a (w.pt)", "a (nets.py:make)"]


def test_numbers_are_written_short():
    written = [correlation(r) for r in (0.634, -0.05, 1.0, 0.999, -1.0, 0.001, -0.001, float("nan"))]
    assert written == [".63", "-.05", "1", "1", "-1", ".00", ".00", "–"]


def test_a_band_says_the_network_its_prediction_and_the_agreements():
    many = grid("AB", "xyz")
    (first,), (second,) = heads(many, arrange(many, ["heat"], False))
    assert (first.start, first.stop, first.name) == (0, 3, "A")
    assert first.predicted == "predicted: kayaking p=0.71"
    inside = [correlation(agreement(many[0], e)) for e in many[1:3]]
    assert first.agreements == (f"rank correlation with x: {' '.join(inside)}",)
    across = [correlation(agreement(a, b)) for a, b in zip(many[:3], many[3:], strict=True)]
    inside = [correlation(agreement(many[3], e)) for e in many[4:]]
    assert second.agreements == (
        f"rank correlation with A: {' '.join(across)}",
        f"with x: {' '.join(inside)}",
    )
    ways = grid("AB", "xy", ("Tubes()", "RISE(n=5)"))
    assert [h.name for (h,) in heads(ways, arrange(ways, ["heat"], True))] == [
        *("A, tubes", "A, rise", "B, tubes", "B, rise"),
    ]
    square = grid("ABCD", "x")
    spread = heads(square, arrange(square, ["heat"], False))
    assert [[(h.start, h.stop, h.name) for h in row] for row in spread] == [
        [(0, 1, "A"), (1, 2, "B")],
        [(0, 1, "C"), (1, 2, "D")],
    ]
    assert [len(h.agreements) for row in spread for h in row] == [0, 1, 1, 1]
    assert heads(many[:3], arrange(many[:3], ["heat"], False)) == [[]]  # one network


def test_several_styles_tell_a_number_once():
    many = grid("AB", "x")
    (_,), (second,) = heads(many, arrange(many, ["heat", "focus"], False))
    assert second.agreements == (f"rank correlation with A: {correlation(agreement(*many))}",)


def test_what_does_not_fit_a_band_is_left_out():
    full = Head(0, 2, "a_network", "predicted: washing the dishes p=0.41", ("rank correlation with b: .11",))
    bare = replace(full, agreements=())

    def band(head: Head, size: tuple[int, int]) -> np.ndarray:
        (picture,) = bands([[head]], 2, size)
        assert picture is not None
        assert picture.shape[1] == 2 * size[1]
        return picture

    wide, narrow = band(full, (240, 400)), band(full, (240, 200))
    assert len(narrow) > len(wide)  # a second line
    assert len(band(bare, (240, 200))) == len(wide)
    tight = band(full, (240, 60))  # the second line has no room for the number
    assert np.array_equal(tight[-12:], band(replace(full, agreements=("q" * 90,)), (240, 60))[-12:])
    assert bands([[full]], 2, (30, 400)) == [None]  # no legible letter
    assert not np.array_equal(band(full, (240, 400)), band(replace(full, predicted="other"), (240, 400)))


def test_bands_stand_above_their_rows_and_the_pictures_stay():
    many = grid("AB", "xy", size=LARGE)
    with Drawing(many, look("heat")) as drawing:
        size = drawing.size
        _, first = next(iter(drawing))
    assert first.shape == (*size, 3)
    band = (size[0] - 2 * LARGE[0]) // 2
    assert 12 < band < 0.15 * LARGE[0]
    (_, plain), *_ = frames(many, **PLAIN)
    assert plain.shape == (2 * LARGE[0], 2 * LARGE[1], 3)
    for r in range(2):
        top = r * (LARGE[0] + band)
        head = first[top : top + band]
        assert head[:4].max() < 40
        assert head.max() > 200  # letters
        rows = slice(4, LARGE[0] - 60)  # between the lines and the caption
        picture = first[top + band : top + band + LARGE[0]][rows]
        below = plain[r * LARGE[0] : (r + 1) * LARGE[0]][rows]
        assert np.array_equal(picture[:, 4:316], below[:, 4:316])
    (_, clear), *_ = frames(many, "focus", rgba=True)
    assert clear.shape == (*size, 4)
    assert (clear[:band, :, 3] == 255).all()


@pytest.mark.parametrize("fit", [300, 480, 700])
def test_bands_do_not_break_what_must_fit(fit):
    many = grid("ABC", "xy", size=LARGE)
    with Drawing(many, look("heat"), fit=fit) as drawing:
        assert 0.7 * fit < max(drawing.size) <= fit


def test_the_sheet_of_networks():
    many = grid("AB", "xyz")
    sheet = figure(many, frames=9)
    said = [t.get_text() for t in sheet.texts]
    assert said.count("A") == said.count("B") == 1
    assert [said.count(x) for x in "xyz"] == [2, 2, 2]
    assert said.count("p=0.30") == 6
    assert said.count("predicted: kayaking p=0.71") == 2
    assert sum(text.startswith("rank correlation with A: ") for text in said) == 1
    strips = [ax for ax in sheet.axes if ax.images]
    assert len(strips) == 3 * 3 * (1 + 2)  # frames, columns, the video and two networks
    left = sorted({round(ax.get_position().x0, 4) for ax in strips})
    assert len(left) == 9
    image = pixels(sheet)
    assert image.shape[1] == 2400
    (_, alone), *_ = frames(many[4], "heat", **PLAIN)  # network B, target y, at the beginning
    shown = next(
        ax
        for ax in strips
        if ax.get_position().x0 == pytest.approx(left[3], abs=1e-3)
        and ax.get_position().y0 == min(a.get_position().y0 for a in strips)
    )
    small = shown.images[0].get_array()
    step = small.shape[0] / alone.shape[0]
    picked = small[(np.arange(72) * step + step / 2).astype(int)][
        :, (np.arange(120) * step + step / 2).astype(int)
    ]
    assert np.abs(picked.astype(int) - alone).mean() < 6
    other = next(frames(many[1], "heat", **PLAIN))[1]
    assert np.abs(picked.astype(int) - other).mean() > 12


def test_nothing_on_the_sheet_overlaps_or_leaves_it():
    many = grid(("a_network_of_a_long_name_indeed", "B"), ("washing the dishes by hand", "y", "z", "w"))
    sheet = figure(many)
    pixels(sheet)
    w, h = sheet.get_size_inches() * sheet.dpi
    boxes = [t.get_window_extent() for t in sheet.texts]
    boxes += [ax.get_window_extent() for ax in sheet.axes]
    for i, box in enumerate(boxes):
        assert -1 <= box.x0 < box.x1 <= w + 1
        assert -1 <= box.y0 < box.y1 <= h + 1
        for other in boxes[i + 1 :]:
            assert not (
                box.overlaps(other)
                and min(box.x1, other.x1) - max(box.x0, other.x0) > 1
                and min(box.y1, other.y1) - max(box.y0, other.y0) > 1
            )


def test_frames_that_a_network_was_not_given_are_marked():
    whole, start = grid("AB", "x")
    times = whole.source.times
    start = replace(start, source=replace(start.source, span=(times[0], times[len(times) // 4])))
    said = [t.get_text() for ax in figure([whole, start], frames=4).axes for t in ax.texts]
    shown = [times[0], *(times[-1] * i / 3 for i in (1, 2, 3))]
    assert (
        said.count("not seen") == sum(t > start.source.span[1] + 0.5 / start.source.fps for t in shown) == 3
    )
    assert not [t for ax in figure([whole, whole], frames=4).axes for t in ax.texts if "seen" in t.get_text()]
