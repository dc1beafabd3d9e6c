"""Mask families: each against a slow loop, exact means, and independence of the batch."""

from __future__ import annotations

from itertools import product
from math import ceil

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelens.errors import OptionError
from tubelens.flow import flows
from tubelens.masks import (
    Cells,
    Features,
    Grids,
    Masks,
    Published,
    Ranks,
    Tracked,
    Windows,
    ranking,
    supervoxels,
)
from tubelens.upsample import fractional_index

SIZE = (7, 12, 10)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def families() -> dict[str, Masks]:
    labels = (rand(*SIZE) * 5).long()
    labels.view(-1)[:5] = torch.arange(5)
    still = torch.zeros(6, 2, 12, 10)
    return {
        "grids": Grids(23, SIZE, (3, 4, 5)),
        "published": Published(23, SIZE),
        "windows": Windows(SIZE, (3, 5, 4), (2, 3, 4)),
        "tracked": Tracked(SIZE, (3, 5, 4), (2, 3, 4), still + 1.0, still - 0.5),
        "ranks": Ranks(ranking(rand(*SIZE)), range(0, 840, 40)),
        "cells": Cells(labels, rand(20, 5, seed=2) > 0.5),
        "features": Features(
            rand(20, 2, 3, 4, seed=3),
            [np.linspace(0, n - 1, s) for n, s in zip((2, 3, 4), SIZE, strict=True)],
        ),
    }


@pytest.mark.parametrize("name", families())
def test_every_family_keeps_the_contract(name: str):
    family = families()[name]
    assert isinstance(family, Masks)
    whole = family.batch(0, len(family))
    assert tuple(family.size) == SIZE
    assert whole.shape == (len(family), *SIZE)
    assert whole.dtype == torch.float32
    assert whole.min() >= 0
    assert whole.max() <= 1 + 1e-6
    pieces = [family.batch(i, min(i + 3, len(family))) for i in range(0, len(family), 3)]
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(families()[name].batch(0, len(family)), whole, atol=0, rtol=0)
    assert whole.std(dim=0).max() > 0  # masks differ


def node(bits: Tensor, t: float, y: float, x: float) -> float:
    """Linear interpolation between the eight nodes around a place."""
    total = 0.0
    for dt, dy, dx in product((0, 1), repeat=3):
        at = [int(np.floor(v)) + d for v, d in ((t, dt), (y, dy), (x, dx))]
        weight = np.prod([1 - abs(v - a) for v, a in zip((t, y, x), at, strict=True)])
        if weight > 0:
            total += weight * float(bits[at[0], at[1], at[2]])
    return total


def test_grids_voxel_by_voxel():
    family = Grids(6, SIZE, (3, 4, 5), p=0.4, seed=5)
    bits, offsets = family._drawn
    cell = [s / c for s, c in zip(SIZE, (3, 4, 5), strict=True)]
    phases = [ceil(c) for c in cell]
    assert bits.shape == (6, 5, 6, 7)
    masks = family.batch(0, 6)
    for i in range(6):
        shift = [int(o) * c / k for o, c, k in zip(offsets[i], cell, phases, strict=True)]
        for t, y, x in product(range(7), range(0, 12, 3), range(10)):
            at = [(v + s) / c for v, s, c in zip((t, y, x), shift, cell, strict=True)]
            assert float(masks[i, t, y, x]) == pytest.approx(node(bits[i], *at), abs=1e-6)


def test_grids_mean_is_p_at_every_voxel_and_shifts_reach_everywhere():
    """Weights of every voxel sum to one at every offset, so its mean over Bernoulli(p) nodes is p exactly."""
    family = Grids(4000, SIZE, (3, 4, 5), p=0.3, seed=1)
    for bank, extent, cells in zip(family._banks, SIZE, (3, 4, 5), strict=True):
        assert bank.shape == (ceil(extent / cells), extent, cells + 2)
        torch.testing.assert_close(bank.sum(dim=2), torch.ones(bank.shape[:2]))
        assert bank.min() >= 0
    mean = family.batch(0, 4000).mean(dim=0)
    assert float((mean - 0.3).abs().max()) < 5 * (0.3 * 0.7 / 4000) ** 0.5
    bits, offsets = family._drawn
    assert float(bits.float().mean()) == pytest.approx(0.3, abs=0.005)
    for axis, phases in enumerate((3, 3, 2)):
        counts = torch.bincount(offsets[:, axis].long(), minlength=phases)
        assert len(counts) == phases
        assert counts.min() > 4000 / phases * 0.9
    assert float(torch.corrcoef(offsets.float().T).abs().fill_diagonal_(0).max()) < 0.1


def test_grids_have_as_much_detail_in_time_as_they_are_asked_for():
    def edges(cells: int) -> float:
        return float(Grids(50, (16, 8, 8), (cells, 2, 2)).batch(0, 50).diff(dim=1).abs().mean())

    assert edges(1) < edges(4) < edges(16)


def test_draws_depend_on_seed_alone_and_longer_families_go_on(monkeypatch: pytest.MonkeyPatch):
    a = Grids(10, SIZE, (3, 4, 5)).batch(0, 10)
    assert torch.equal(a, Grids(50, SIZE, (3, 4, 5)).batch(0, 10))
    assert not torch.equal(a, Grids(10, SIZE, (3, 4, 5), seed=1).batch(0, 10))
    monkeypatch.setattr("tubelens.masks.grids.DRAWN", 700)  # three masks at once
    assert torch.equal(a, Grids(10, SIZE, (3, 4, 5)).batch(0, 10))
    state = torch.get_rng_state()
    Grids(10, SIZE)._drawn if min(SIZE) > 7 else Grids(10, SIZE, (2, 2, 2))._drawn
    assert torch.equal(state, torch.get_rng_state())


def test_one_frame_one_cell():
    masks = Grids(9, (1, 6, 6), (1, 3, 3)).batch(0, 9)
    assert masks.shape == (9, 1, 6, 6)
    assert masks.std() > 0.1


def test_published_masks_are_crops_of_a_corner_aligned_zoom():
    family = Published(8, SIZE, s=8, p=0.4, seed=3)
    bits, offsets = family._drawn
    assert bits.shape == (8, 2, 8, 8)
    cell = [ceil(n / 8) for n in SIZE]
    for i in range(8):
        up = F.interpolate(
            bits[i][None, None].float(), size=[9 * c for c in cell], mode="trilinear", align_corners=True
        )[0, 0]
        t, y, x = offsets[i].tolist()
        crop = up[t : t + SIZE[0], y : y + SIZE[1], x : x + SIZE[2]]
        torch.testing.assert_close(family.batch(i, i + 1)[0], crop, atol=1e-5, rtol=0)
    many = Published(500, SIZE)._drawn[1]
    assert many.amax(dim=0).tolist() == [c - 1 for c in cell]
    assert many.amin(dim=0).tolist() == [0, 0, 0]
    times = Published(4, (16, 16, 16)).batch(0, 4)
    torch.testing.assert_close(times.diff(n=2, dim=1), torch.zeros(4, 14, 16, 16), atol=1e-5, rtol=0)


def test_windows_box_by_box():
    family = Windows((7, 12, 10), (3, 5, 4), (2, 3, 4))
    expected = [
        (t, min(t + 3, 7), y, min(y + 5, 12), x, min(x + 4, 10))
        for t in (0, 2, 4)
        for y in (0, 3, 6, 9)
        for x in (0, 4, 8)
    ]
    assert [tuple(b) for b in family.boxes.tolist()] == expected
    masks = family.batch(0, len(family))
    for mask, (t0, t1, y0, y1, x0, x1) in zip(masks, expected, strict=True):
        slow = torch.ones(7, 12, 10)
        slow[t0:t1, y0:y1, x0:x1] = 0
        assert torch.equal(mask, slow)
    assert (1 - masks).sum(dim=0).min() >= 1  # every voxel is in a box
    assert len(Windows((4, 4, 4), (9, 4, 2), (9, 4, 2))) == 2  # larger than the clip: cut to it


def test_tracked_windows_without_motion_stand_still():
    still = torch.zeros(6, 2, 12, 10)
    family = Tracked(SIZE, (3, 5, 4), (2, 3, 4), still, still)
    assert torch.equal(family.batch(0, 36), Windows(SIZE, (3, 5, 4), (2, 3, 4)).batch(0, 36))


def test_tracked_windows_follow_the_mean_flow_inside_them():
    """Slow: box by box, frame by frame, from the middle frame outwards."""
    forward, backward = (12 * rand(6, 2, 12, 10, seed=s) - 1 for s in (1, 2))
    family = Tracked(SIZE, (5, 4, 4), (3, 4, 3), forward, backward)
    still = Windows(SIZE, (5, 4, 4), (3, 4, 3)).boxes.tolist()

    def rounded(top: float, left: float, h: int, w: int) -> list[int]:
        y, x = int(np.floor(top + 0.5)), int(np.floor(left + 0.5))
        return [max(y, 0), min(y + h, 12), max(x, 0), min(x + w, 10)]

    moved = 0
    for n, (t0, t1, y0, y1, x0, x1) in enumerate(still):
        h, w, middle = y1 - y0, x1 - x0, (t0 + t1 - 1) // 2
        expected = {middle: [y0, y1, x0, x1]}
        for flow, frames, step in (
            (forward, range(middle, t1 - 1), 1),
            (backward, range(middle, t0, -1), -1),
        ):
            top, left = float(y0), float(x0)
            for t in frames:
                a, b, c, d = expected[t]
                dy, dx = flow[t if step == 1 else t - 1, :, a:b, c:d].double().mean(dim=(1, 2)).tolist()
                top = min(max(top + dy + (h - 1) / 2, 0), 11) - (h - 1) / 2
                left = min(max(left + dx + (w - 1) / 2, 0), 9) - (w - 1) / 2
                expected[t + step] = rounded(top, left, h, w)
        slow = torch.ones(SIZE)
        for t, (a, b, c, d) in expected.items():
            slow[t, a:b, c:d] = 0
            assert b > a
            assert d > c
            moved += [a, b, c, d] != [y0, y1, x0, x1]
        assert torch.equal(family.batch(n, n + 1)[0], slow)
    assert moved > 20


def test_flow_finds_motion_both_ways():
    pytest.importorskip("cv2")
    scene = scipy.ndimage.gaussian_filter(rand(80, 80).numpy(), 2)
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    frames = [torch.from_numpy(scene[20 - t : 60 - t, 20 - 2 * t : 60 - 2 * t]) for t in range(4)]
    forward, backward = flows(torch.stack(frames)[None])
    assert forward.shape == (3, 2, 40, 40)
    for found, sign in ((forward, 1), (backward, -1)):
        inner = found[:, :, 8:-8, 8:-8].mean(dim=(0, 2, 3))
        torch.testing.assert_close(inner, sign * torch.tensor([1.0, 2.0]), atol=0.1, rtol=0)
    assert flows(torch.rand(3, 1, 9, 9))[0].shape == (0, 2, 9, 9)
    with pytest.raises(OptionError, match="at least 8x8"):
        flows(torch.rand(3, 2, 4, 9))


def test_flow_without_opencv_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(OptionError, match=r'pip install "tubelens\[flow\]"'):
        flows(torch.rand(3, 2, 16, 16))


def test_ranks_insert_and_delete():
    saliency = rand(2, 3, 4)
    rank = ranking(saliency)
    order = saliency.flatten().argsort(descending=True)
    for counts, remove in (((0, 1, 7, 24), False), ((0, 1, 7, 24), True)):
        masks = Ranks(rank, counts, remove).batch(0, 4)
        for mask, count in zip(masks, counts, strict=True):
            slow = torch.ones(24) if remove else torch.zeros(24)
            slow[order[:count]] = 0.0 if remove else 1.0
            assert torch.equal(mask.flatten(), slow)


def test_ties_are_broken_by_seed_not_by_raster_order():
    flat = torch.zeros(16, 8, 8)
    rank = ranking(flat)
    assert torch.equal(rank.flatten().sort().values, torch.arange(1024))
    early = rank[:8].float().mean()
    assert abs(float(early) - 511.5) < 40  # raster order would make it 255.5
    assert torch.equal(rank, ranking(flat))
    assert not torch.equal(rank, ranking(flat, seed=1))
    step = torch.zeros(4, 2, 2)
    step[2] = 1.0
    assert int(ranking(step)[2].max()) == 3


def test_cells_voxel_by_voxel():
    labels = (rand(3, 4, 5) * 6).long()
    kept = rand(7, 6, seed=1) > 0.4
    masks = Cells(labels, kept).batch(0, 7)
    for i, t, y, x in product(range(7), range(3), range(4), range(5)):
        assert bool(masks[i, t, y, x]) == bool(kept[i, labels[t, y, x]])
    with pytest.raises(OptionError, match="labels must be 0 to 3"):
        Cells(labels, kept[:, :4])


def test_features_are_read_where_the_cells_look():
    grids = rand(5, 2, 3, 4)
    centres = ((1.5, 5.5), (2.0, 6.0, 10.0), (1.0, 3.0, 5.0, 7.0))
    indices = [fractional_index(np.arange(n), c) for n, c in zip(SIZE, centres, strict=True)]
    masks = Features(grids, indices).batch(1, 4)
    for i in range(3):
        for t, y, x in product(range(7), range(0, 12, 2), range(10)):
            at = (indices[0][t], indices[1][y], indices[2][x])
            assert float(masks[i, t, y, x]) == pytest.approx(node(grids[i + 1], *at), abs=1e-5)


def test_supervoxels_follow_colour_and_number_without_gaps():
    pixels = torch.zeros(3, 4, 24, 24)
    pixels[0, :, :, :12] = 0.9
    pixels[1, :, :, 12:] = 0.9
    labels = supervoxels(pixels, 20)
    assert labels.shape == (4, 24, 24)
    assert torch.equal(labels.unique(), torch.arange(int(labels.max()) + 1))
    assert 8 <= len(labels.unique()) <= 40
    assert not set(labels[:, :, :12].unique().tolist()) & set(labels[:, :, 12:].unique().tolist())
    assert torch.equal(labels, supervoxels(pixels, 20))
    one_band = supervoxels(pixels[:1], 20)
    assert not set(one_band[:, :, :12].unique().tolist()) & set(one_band[:, :, 12:].unique().tolist())
    clouds = torch.from_numpy(scipy.ndimage.gaussian_filter(rand(3, 12, 16, 16).numpy(), (0, 1.5, 1.5, 1.5)))
    clouds = (clouds - clouds.min()) / (clouds.max() - clouds.min())

    def borders(x: Tensor, axis: int, *options: float) -> float:
        return float(supervoxels(x, 30, *options).diff(dim=axis).ne(0).float().mean())

    assert borders(clouds, 0, 30.0, 5.0) > 1.5 * borders(
        clouds, 0, 30.0, 0.2
    )  # frames far apart: short regions
    for bands in (3, 1):  # one scale of compactness for colours and for single bands
        assert borders(clouds[:bands], 2, 10.0) > 1.5 * borders(clouds[:bands], 2, 100.0)
    with pytest.raises(OptionError, match="n >= 1"):
        supervoxels(pixels, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grids(0, SIZE, (2, 2, 2)), "n >= 1 masks, not 0"),
        (lambda: Grids(5, SIZE, (2, 2, 2), p=1.0), "between 0 and 1, not 1.0"),
        (lambda: Grids(5, SIZE, (8, 2, 2)), "1 to 7 cells along time.*not 8"),
        (lambda: Grids(5, SIZE, (1, 0, 2)), "1 to 12 cells along height.*not 0"),
        (lambda: Published(5, SIZE, s=3), "s >= 4"),
        (lambda: Published(5, SIZE, p=0), "between 0 and 1"),
        (lambda: Windows(SIZE, (2, 2, 2), (1, 3, 1)), "stride 3 and window 2"),
        (lambda: Windows(SIZE, (2, 2, 2), (0, 1, 1)), "stride 0 and window 2"),
        (
            lambda: Tracked(SIZE, (2,) * 3, (2,) * 3, torch.zeros(7, 2, 12, 10), torch.zeros(7, 2, 12, 10)),
            "flow of",
        ),
    ],
)
def test_refused(make, message: str):  # type: ignore[no-untyped-def]
    with pytest.raises(OptionError, match=message):
        make()
