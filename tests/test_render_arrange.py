"""Several methods and targets in one picture: who stands where, under which name, at what scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tests.test_render_helpers import explain, stack
from tubelens.explanation import Explanation
from tubelens.render import figure, frames
from tubelens.render.arrange import arrange, names

PLAIN = {"caption": False, "strip": False}


def of(method: str, label: str, array: np.ndarray, cell: int = 0) -> Explanation:
    values = torch.zeros(3, 4, 4)
    values[:, cell // 4, cell % 4] = 1
    why = explain(values, array=array, label=label)
    return replace(why, provenance=replace(why.provenance, method=method))


def test_one_method_is_one_row_of_targets():
    array = stack()
    many = [of("Tubes()", label, array) for label in "ab"]
    assert arrange(many, ["heat"], False) == [[(0, "heat"), (1, "heat")]]
    assert arrange(many, ["heat", "focus"], True) == [
        [(None, "original"), (0, "heat"), (0, "focus"), (1, "heat"), (1, "focus")]
    ]
    assert names(many, ["a", "b"]) == ["a", "b"]


def test_methods_of_one_target_fill_a_square():
    array = stack()
    kinds = ["Tubes()", "GradCAM(layer=None)", "RISE(n=5)", "RISE(n=6)", "Own()"]
    many = [of(kind, "a", array) for kind in kinds]
    assert arrange(many[:3], ["heat"], False) == [[(0, "heat"), (1, "heat"), (2, "heat")]]
    assert arrange(many, ["heat"], False) == [
        [(0, "heat"), (1, "heat"), (2, "heat")],
        [(3, "heat"), (4, "heat"), None],
    ]
    assert arrange(many[:3], ["heat"], True) == [
        [(None, "original"), (0, "heat")],
        [(1, "heat"), (2, "heat")],
    ]
    assert names(many, ["a"] * 5) == ["tubes", "gradcam", "rise 1", "rise 2", "Own"]
    assert names(many[:2], ["a"] * 2, both=True) == ["tubes: a", "gradcam: a"]


def test_methods_and_targets_are_a_table():
    array = stack()
    many = [of(kind, label, array) for kind in ("Tubes()", "RISE()") for label in ("a", "b")]
    assert arrange(many, ["heat"], True) == [
        [(None, "original"), (0, "heat"), (1, "heat")],
        [(None, "original"), (2, "heat"), (3, "heat")],
    ]
    assert names(many, list("abab")) == ["tubes: a", "tubes: b", "rise: a", "rise: b"]


def test_the_grid_is_drawn_as_it_is_arranged():
    array = stack()
    h, w = array.shape[1:3]
    many = [of(f"M{i}()", "a", array, cell=i) for i in range(5)]
    (_, first), *_ = frames(many, **PLAIN)
    assert first.shape == (2 * h, 3 * w, 3)
    for i, why in enumerate(many):
        (_, alone), *_ = frames(why, **PLAIN)
        r, c = divmod(i, 3)
        placed = first[r * h : (r + 1) * h, c * w : (c + 1) * w]
        assert np.array_equal(placed[4:, 4:], alone[4:, 4:])  # but for the lines between
    assert not first[h + 4 :, 2 * w + 4 :].any()  # the empty place


def test_a_sheet_names_every_method_and_colours_many():
    array = stack()
    few, many = ([of(f"M{i}()", "a", array, cell=i) for i in range(n)] for n in (3, 8))
    small, large = figure(few, frames=2), figure(many, frames=2)

    def said(sheet):
        return {t.get_text(): t.get_color() for t in sheet.texts}

    assert {"M0", "M1", "M2"} <= said(small).keys()
    assert small.axes[-1].get_legend() is not None
    inks = [said(large)[f"M{i}"] for i in range(8)]
    assert len(set(inks)) == 8
    curves = large.axes[-1]
    assert curves.get_legend() is None
    lines = [
        line.get_color() for line in curves.lines if line.get_marker() == "None" and len(line.get_xdata()) > 2
    ]
    assert lines == inks
    assert max(line.get_ydata().max() for line in curves.lines if line.get_color() == inks[0]) == 1


def test_heat_from_zero():
    """A signed map whose zero means nothing happens: what is negative is as cold as zero."""
    values = torch.full((3, 4, 4), -1.0)
    values[1, 2, 2] = 2.0
    values[1, 0, 0] = 0.0
    why = replace(explain(values, array=stack()), scale="positive")
    low, high = why.limits
    assert low == 0
    assert high == 2
    assert float(why.heat.min()) == 0
    assert float((why.heat > 0).float().mean()) < 0.25
    ranged = replace(why, scale="range")
    assert ranged.limits[0] < -0.99
    assert float((ranged.heat > 0).float().mean()) > 0.5
    nothing = replace(explain(-torch.ones(3, 4, 4), array=stack()), scale="positive")
    assert nothing.limits == (0, 0)
    assert not nothing.heat.any()
    many = torch.zeros(1, 20, 50)
    many[0, 0, :] = torch.arange(1, 51).float()
    outlier = replace(explain(many, array=stack()), scale="positive")
    assert outlier.limits[1] == np.quantile(np.arange(1, 51), 0.995)
