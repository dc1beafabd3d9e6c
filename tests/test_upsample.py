"""Interpolation against scipy, which is right but slow, and by its definition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelens.clip import Box, Source
from tubelens.errors import OptionError
from tubelens.explanation import Explanation, Provenance, scaled
from tubelens.layout import Grid, tiled
from tubelens.target import Logit
from tubelens.upsample import endpoint_index, fractional_index, resample, spline_matrix


def explanation(
    values: torch.Tensor,
    size: tuple[int, int, int],
    centres: tuple[tuple[float, ...], ...] | None = None,
    span: tuple[int, int] | None = None,
) -> Explanation:
    t, y, x = centres or tuple(tiled(n, extent) for n, extent in zip(values.shape, size, strict=True))
    frames, h, w = size
    source = Source(
        None,
        (h, w),
        10.0,
        tuple(i / 10 for i in range(frames)),
        (0.0, (frames - 1) / 10),
        Box(0, 0, h, w),
        (h, w),
    )
    record = Provenance("m()", "net", "random", "layer", "a", 1.0, 0.5, (("a", 0.5),))
    grid = Grid(values, t, y, x, span or (0, frames))
    return Explanation((grid,), size, source, Logit(0), record)


def test_equals_scipy_zoom_on_200_random_shapes():
    rng = np.random.default_rng(0)
    for trial in range(200):
        shape = tuple(int(n) for n in rng.integers(1, 9, size=3))
        factor = rng.integers(1, 6, size=3)
        order = (0, 1, 3)[trial % 3]
        size = tuple(int(n * f) for n, f in zip(shape, factor, strict=True))
        values = rng.standard_normal(shape)
        ours = explanation(torch.from_numpy(values), size).upsample(order=order, align="endpoints")
        # scipy's nearest rounds positions that fall between two cells by its own noise: leave those out
        zoomed = scipy.ndimage.zoom(values, factor, order=order)
        if order == 0:
            ties = [np.isclose(endpoint_index(m, n) % 1, 0.5) for m, n in zip(size, shape, strict=True)]
            clear = ~(ties[0][:, None, None] | ties[1][None, :, None] | ties[2][None, None, :])
            np.testing.assert_allclose(ours.numpy()[clear], zoomed[clear], atol=1e-5)
        else:
            np.testing.assert_allclose(ours.numpy(), zoomed, atol=1e-5)


def test_endpoints_equal_zoom_also_at_other_sizes_than_the_clip():
    values = np.random.default_rng(1).standard_normal((2, 7, 7))
    ours = explanation(torch.from_numpy(values), (16, 112, 112)).upsample((8, 28, 35), align="endpoints")
    np.testing.assert_allclose(ours.numpy(), scipy.ndimage.zoom(values, (4, 4, 5)), atol=1e-5)


@given(
    n=st.integers(2, 12),
    places=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_cubic_matrix_is_scipy_map_coordinates(n: int, places: list[float], seed: int):
    samples = np.random.default_rng(seed).standard_normal(n)
    index = np.asarray(places) * (n - 1)
    expected = scipy.ndimage.map_coordinates(samples, index[None], order=3, mode="mirror")
    np.testing.assert_allclose(spline_matrix(index, n, 3) @ samples, expected, atol=1e-9)


def test_matrices_reproduce_samples_and_keep_constants():
    for order in (0, 1, 3):
        np.testing.assert_allclose(spline_matrix(np.arange(6.0), 6, order), np.eye(6), atol=1e-12)
        index = np.linspace(0, 5, 37)
        np.testing.assert_allclose(spline_matrix(index, 6, order).sum(1), 1, atol=1e-12)


def test_linear_is_numpy_interp_at_irregular_centres():
    centres = (0.0, 3.0, 4.0, 9.0)
    values = np.array([1.0, -2.0, 5.0, 0.5])
    places = np.linspace(-3, 12, 31)
    index = fractional_index(places, centres)
    np.testing.assert_allclose(
        spline_matrix(index, 4, 1) @ values, np.interp(places, centres, values), atol=1e-9
    )


def test_reversed_centres_read_the_same_places():
    places = np.linspace(-1, 10, 23)
    forward = spline_matrix(fractional_index(places, (0.0, 4.0, 9.0)), 3, 3) @ np.array([1.0, 2.0, 4.0])
    backward = spline_matrix(fractional_index(places, (9.0, 4.0, 0.0)), 3, 3) @ np.array([4.0, 2.0, 1.0])
    np.testing.assert_allclose(forward, backward, atol=1e-12)


def test_resample_applies_each_axis_to_its_own_dimension():
    grid = torch.randn(2, 3, 4, dtype=torch.float64)
    indices = [np.linspace(0, n - 1, m) for n, m in ((2, 5), (3, 6), (4, 7))]
    expected = np.einsum(
        "at,bh,cw,thw->abc",
        *(spline_matrix(i, n) for i, n in zip(indices, (2, 3, 4), strict=True)),
        grid.numpy(),
    )
    np.testing.assert_allclose(resample(grid, indices).numpy(), expected, atol=1e-12)


def test_cells_are_drawn_where_they_look_and_edges_hold():
    values = torch.zeros(1, 1, 7)
    values[0, 0, 6] = 1.0
    centres = ((0.0,), (0.0,), tuple(16.0 * i for i in range(7)))
    line = explanation(values, (1, 1, 112), centres).upsample()[0, 0]
    assert line[96] == pytest.approx(1.0)
    assert torch.all(line[96:] == line[96])  # nothing is known beyond: the edge holds
    stretched = explanation(values, (1, 1, 112), centres).upsample(align="endpoints")[0, 0]
    assert stretched.argmax() == 111


def test_output_size_tiles_the_clip_evenly():
    ramp = torch.arange(8.0).view(1, 1, 8).expand(1, 1, 8)
    why = explanation(ramp.contiguous(), (1, 1, 8), ((0.0,), (0.0,), tuple(map(float, range(8)))))
    doubled = why.upsample((1, 1, 16), order=1)[0, 0]
    expected = ((torch.arange(16) + 0.5) / 2 - 0.5).clamp(0, 7)
    torch.testing.assert_close(doubled, expected)


def test_overlapping_parts_are_averaged_by_weight():
    one = Grid(torch.full((1, 1, 1), 1.0), (2.0,), (0.0,), (0.0,), (0, 4))
    two = Grid(torch.full((1, 1, 1), 4.0), (4.0,), (0.0,), (0.0,), (2, 6), weight=2.0)
    base = explanation(torch.zeros(1, 1, 1), (6, 1, 1))
    why = Explanation((one, two), (6, 1, 1), base.source, base.target, base.provenance)
    torch.testing.assert_close(why.saliency[:, 0, 0], torch.tensor([1.0, 1, 3, 3, 4, 4]))


def test_one_part_and_streamed_agree():
    values = torch.randn(3, 4, 5)
    why = explanation(values, (9, 20, 30))
    streamed = list(why.at([i / 10 for i in range(9)], (20, 30)))
    torch.testing.assert_close(torch.stack(streamed), why.saliency)


def test_source_frames_between_sampled_ones_are_interpolated_in_time():
    values = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    why = explanation(values, (2, 4, 4), ((0.0, 1.0), (0.0,), (0.0,)))
    maps = list(why.at([0.0, 0.025, 0.05, 0.1], (4, 4), order=1))
    assert [float(m.mean()) for m in maps] == pytest.approx([0, 0.25, 0.5, 1.0])


def test_pixels_outside_the_crop_are_nan():
    values = torch.ones(1, 2, 2)
    base = explanation(values, (1, 4, 4))
    source = Source(None, (8, 16), 10.0, (0.0,), (0.0, 0.0), Box(2, 4, 4, 8), (8, 16))
    why = Explanation(base.parts, (1, 4, 4), source, base.target, base.provenance)
    (drawn,) = why.at([0.0], (8, 16))
    inside = torch.zeros(8, 16, dtype=torch.bool)
    inside[2:6, 4:12] = True
    assert torch.equal(~drawn.isnan(), inside)


def test_heat_is_scaled_once_over_the_clip():
    values = torch.tensor([0.0, 0.1, 2.0, 4.0]).view(4, 1, 1)
    why = explanation(values, (4, 1, 1))
    assert why.heat.amax() == 1
    assert why.heat.amin() == 0
    assert float(why.heat[1, 0, 0]) == pytest.approx(0.025, abs=1e-5)  # a dull frame stays dull


def test_constant_map_is_cold_and_nan_stays():
    assert torch.equal(explanation(torch.full((2, 2, 2), 3.0), (2, 4, 4)).heat, torch.zeros(2, 4, 4))
    kept = scaled(torch.tensor([float("nan"), 1.0]), 1.0, 1.0)
    assert kept.isnan().tolist() == [True, False]


def test_wrong_order_and_centres_are_refused():
    with pytest.raises(OptionError, match="order must be"):
        spline_matrix(np.zeros(1), 3, 2)
    with pytest.raises(OptionError, match="monotonic"):
        fractional_index([0.0], (0.0, 0.0))


def test_cubic_agrees_with_an_independent_spline_inside():
    """Mirror and not-a-knot splines differ at the ends only: far inside both are the cardinal spline."""
    values = np.sin(np.arange(40) / 3)
    index = np.linspace(15, 25, 41)
    other = scipy.interpolate.CubicSpline(np.arange(40), values)(index)
    np.testing.assert_allclose(spline_matrix(index, 40, 3) @ values, other, atol=1e-5)


def test_a_spline_passes_through_its_samples_to_the_bit():
    grid = torch.zeros(4, 9, 9)
    grid[1, 2:5, 3:6] = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    places = [np.arange(float(n)) for n in grid.shape]
    assert torch.equal(resample(grid, places), grid)
    half = resample(grid, [places[0], places[1] / 2, places[2]])
    assert torch.equal(half[:, ::2], grid[:, :5])
    assert not torch.equal(half[:, 1::2], grid[:, :4])
