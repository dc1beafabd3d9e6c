"""RISE: its formulas mask by mask, its expectation where that is known, and what does not change it."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import order_one
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.fill import Black, Blur, Freeze
from tubelens.masks import Grids, Published
from tubelens.methods.protocol import Scalable
from tubelens.methods.rise import RISE, Sums
from tubelens.model import BlackBox, TorchModel
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob

SIZE = (4, 12, 10)
FP32 = Run(precision="fp32")


def clip(frames: int = 4, seed: int = 0) -> Clip:
    return Clip.from_array(np.random.default_rng(seed).random((frames, 12, 10, 3), dtype=np.float32))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(3, 8, 3, 2, 1), nn.BatchNorm3d(8), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean(dim=(2, 3, 4)))


@pytest.fixture
def small() -> TorchModel:
    return TorchModel(order_one(Small(), clip().pixels[None]), pack=lambda x: x, name="small")


TARGETS = [Prob(1), Logit(0), Contrast(2, 3)]


def answers(model: TorchModel, masks: Tensor, base: Tensor) -> Tensor:
    x, rows = clip().pixels, []
    for m in masks:
        with torch.no_grad():
            z = model.module((x * m + base * (1 - m))[None])[0]
        rows.append(torch.stack([z.softmax(0)[1], z[0], z[2] - z[3]]))
    return torch.stack(rows, dim=1)


def test_density_corrected_mask_by_mask(small: TorchModel):
    method = RISE(n=40, cells=(2, 3, 5), p=0.4, seed=3)
    masks = Grids(40, SIZE, (2, 3, 5), 0.4, 3).batch(0, 40)
    mean = clip().pixels.mean(dim=(1, 2, 3), keepdim=True)
    f = answers(small, masks, mean).double()
    found = method(small, clip(), TARGETS, FP32)
    for n, why in enumerate(found):
        average = sum(float(v) for v in f[n]) / 40
        total, kept = torch.zeros(SIZE).double(), torch.zeros(SIZE).double()
        for i in range(40):
            total += (f[n, i] - average) * masks[i]
            kept += masks[i]
        torch.testing.assert_close(why.grid.double(), total / kept, atol=1e-5, rtol=0)
        facts = why.provenance.facts
        assert facts["masks"] == 40
        assert facts["mean_score"] == pytest.approx(average, abs=1e-5)
        assert facts["sd_score"] == pytest.approx(float(f[n].std(correction=0)), abs=1e-5)
        assert why.provenance.forwards == 41
        assert why.provenance.seed == 3
        assert why.target == TARGETS[n]
    assert all(a.provenance.label for a in found)


def test_published_normaliser_mask_by_mask(small: TorchModel):
    method = RISE(n=30, cells=(2, 3, 5), p=0.4, fill="black", normaliser="published")
    masks = Grids(30, SIZE, (2, 3, 5), 0.4, 0).batch(0, 30)
    f = answers(small, masks, torch.zeros(())).double()
    for n, why in enumerate(method(small, clip(), TARGETS, FP32)):
        total = sum(f[n, i] * masks[i].double() for i in range(30))
        torch.testing.assert_close(why.grid.double(), total / (30 * 0.4), atol=1e-5, rtol=1e-5)


def test_parity_is_the_published_code_run_slowly(small: TorchModel):
    """Logits, black, two nodes in time, `sum f M / (N p)`; the masks by one interpolation each."""
    method = RISE(n=25, p=0.3, seed=2, parity="icpr2022")
    drawn = Published(25, SIZE, p=0.3, seed=2)
    bits, offsets = drawn._drawn
    cell = [ceil(n / 8) for n in SIZE]
    x, total = clip().pixels, torch.zeros(4, *SIZE)
    for i in range(25):
        up = F.interpolate(
            bits[i][None, None].float(), size=[9 * c for c in cell], mode="trilinear", align_corners=True
        )[0, 0]
        t, y, z = offsets[i].tolist()
        mask = up[t : t + SIZE[0], y : y + SIZE[1], z : z + SIZE[2]]
        with torch.no_grad():
            scores = small.module((x * mask)[None])[0]
        total += scores[:, None, None, None] * mask / (25 * 0.3)
    found = method(small, clip(), [Prob(1), Logit(3)], FP32)
    torch.testing.assert_close(found[0].grid, total[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1].grid, total[3], atol=1e-4, rtol=1e-4)
    assert found[0].target == Logit(1)
    assert found[0].provenance.score == pytest.approx(float(small(x[None])[0, 1]), abs=1e-5)


class WhiteBox(nn.Module):
    """`f = <w, x>` of the first band, and a constant."""

    def __init__(self, weight: Tensor, constant: float = 0.0) -> None:
        super().__init__()
        self.weight, self.constant = nn.Parameter(weight), constant

    def forward(self, x: Tensor) -> Tensor:
        f = (x[:, 0] * self.weight).sum(dim=(1, 2, 3)) + self.constant
        return torch.stack([f, -2 * f], dim=1)


def exact(weight: Tensor, cells: tuple[int, int, int], p: float) -> Tensor:
    """`E[(f - E f) M(v)] / p` of a linear score, from the covariance of interpolated nodes, by enumeration.

    Nodes are independent with variance p (1 - p); offsets along the axes are independent and uniform; so the
    covariance of two voxels is p (1 - p) times the product over the axes of their weights' mean overlap.
    """
    value = weight * clip().pixels[0]
    overlaps = []
    for extent, n in zip(SIZE, cells, strict=True):
        cell = extent / n
        phases = ceil(cell)
        mean = torch.zeros(extent, extent)
        for k in range(phases):
            places = [(x + k * cell / phases) / cell for x in range(extent)]
            hat = torch.tensor([[max(0.0, 1 - abs(u - node)) for node in range(n + 2)] for u in places])
            mean += hat @ hat.T / phases
        overlaps.append(mean)
    return (1 - p) * torch.einsum("ai,bj,ck,ijk->abc", *overlaps, value)


@pytest.mark.parametrize("p", [0.5, 0.25])
def test_expectation_on_a_linear_score(p: float):
    """Many masks come within a few standard errors of the exact map, which is 0 where the score is blind."""
    weight = torch.zeros(SIZE)
    weight[1, 2:5, 3:6] = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    weight[2, 9, 8] = -1.0
    model = TorchModel(WhiteBox(weight, constant=7.0), pack=lambda x: x)
    n = 20_000
    found = RISE(n, (2, 4, 5), p, "black")(model, clip(), [Logit(0), Logit(1)], Run(256, "fp32"))
    for why, scale in zip(found, (1, -2), strict=True):
        expected = scale * exact(weight, (2, 4, 5), p)
        error = (why.grid - expected).double()
        masks = Grids(256, SIZE, (2, 4, 5), p).batch(0, 256)
        spread = masks.std(dim=0).mean() / p
        standard = why.provenance.facts["sd_score"] * float(spread) / n**0.5
        assert float(error.pow(2).mean().sqrt()) < 1.5 * standard
        assert float(expected.abs().max()) > 15 * standard  # else the comparison would say little
    blind = found[0].grid[3, 7:, :2]  # more than a cell from all evidence
    assert float(blind.abs().mean()) < 3 * standard


def test_centred_and_corrected_a_constant_score_gives_a_flat_map():
    model = TorchModel(WhiteBox(torch.zeros(SIZE), constant=1e4), pack=lambda x: x)
    (flat,) = RISE(64, (2, 3, 3))(model, clip(), [Logit(0)], FP32)
    assert float(flat.grid.abs().max()) == 0
    (published,) = RISE(64, (2, 3, 3), normaliser="published")(model, clip(), [Logit(0)], FP32)
    assert float(published.grid.std()) > 100


def test_small_variation_on_a_large_score_keeps_its_digits():
    """Sums are of differences from the first batch's mean, or float32 would lose what matters."""
    weight = torch.zeros(SIZE)
    weight[1, 2:6, 3:6] = 1.0
    masks = Grids(512, SIZE, (2, 3, 3)).batch(0, 512)
    f = 1000 + 1e-2 * torch.einsum("bthw,thw->b", masks.double(), weight.double())
    sums = Sums()
    for i in range(0, 512, 32):
        sums.add(f[None, i : i + 32].float(), masks[i : i + 32])
    rounded = f.float().double()
    expected = torch.einsum("b,bthw->thw", rounded - rounded.mean(), masks.double()) / masks.double().sum(0)
    torch.testing.assert_close(sums.corrected()[0].double(), expected, atol=2e-5, rtol=0)


def test_variance_ratio_is_what_the_docstring_says():
    """Binary masks, a score independent of them: both variances over many repetitions."""
    generator = torch.Generator().manual_seed(0)
    p, mean, sd, n, repeats = 0.3, 2.0, 0.5, 200, 400
    maps: dict[str, list[Tensor]] = {"corrected": [], "published": []}
    for _ in range(repeats):
        masks = (torch.rand(n, 4, 5, 5, generator=generator) < p).float()
        sums = Sums()
        sums.add(mean + sd * torch.randn(1, n, generator=generator), masks)
        maps["corrected"].append(sums.corrected()[0])
        maps["published"].append(sums.published(p)[0])
    variance = {name: float(torch.stack(m).var(dim=0).mean()) for name, m in maps.items()}
    assert variance["published"] == pytest.approx(((1 - p) * mean**2 + sd**2) / (n * p), rel=0.1)
    assert variance["corrected"] == pytest.approx((1 - p) * sd**2 / (n * p), rel=0.1)
    ratio = variance["published"] / variance["corrected"]
    assert ratio == pytest.approx(1 / (1 - p) + (mean / sd) ** 2, rel=0.1)


def test_voxels_that_no_mask_kept_are_zero():
    sums = Sums()
    masks = torch.ones(2, 1, 2, 2)
    masks[:, 0, 0, 0] = 0
    sums.add(torch.tensor([[1.0, 3.0]]), masks)
    assert sums.corrected().flatten().tolist() == [0.0, 0.0, 0.0, 0.0]
    sums.add(torch.tensor([[8.0, 8.0]]), masks)  # a mean that is not that of the first batch
    assert sums.corrected().flatten().tolist() == [0.0, 0.0, 0.0, 0.0]
    masks[0, 0, 1, 1] = 0
    sums = Sums()
    sums.add(torch.tensor([[1.0, 3.0]]), masks)
    assert sums.corrected().flatten().tolist() == [0.0, 0.0, 0.0, 1.0]


def test_seed_batch_and_number_of_targets_do_not_matter(small: TorchModel):
    method = RISE(n=33, cells=(2, 3, 3))
    whole = method(small, clip(), TARGETS, FP32)
    for batch in (1, 7, 64):
        for a, b in zip(method(small, clip(), TARGETS, Run(batch, "fp32")), whole, strict=True):
            torch.testing.assert_close(a.grid, b.grid, atol=1e-5, rtol=0)
    (alone,) = method(small, clip(), TARGETS[2:], FP32)
    torch.testing.assert_close(alone.grid, whole[2].grid, atol=1e-6, rtol=0)
    other = replace(method, seed=1)(small, clip(), TARGETS, FP32)
    assert not torch.allclose(other[0].grid, whole[0].grid, atol=1e-3)


def test_a_black_box_gives_the_same(small: TorchModel):
    box = BlackBox(lambda clips: small(clips).numpy(), output="logits")
    method = RISE(n=24, cells=(2, 3, 3), fill=Freeze())
    for a, b in zip(method(box, clip(), TARGETS), method(small, clip(), TARGETS, FP32), strict=True):
        torch.testing.assert_close(a.grid, b.grid, atol=1e-6, rtol=0)
    assert a.provenance.precision == "fp32"


def test_time_that_runs_out_leaves_the_masks_scored_so_far(small: TorchModel):
    (why,) = RISE(n=5000, cells=(2, 3, 3))(small, clip(), [Prob(1)], Run(4, "fp32", seconds=0.0))
    assert why.provenance.facts["masks"] == 16
    (short,) = RISE(n=16, cells=(2, 3, 3))(small, clip(), [Prob(1)], FP32)
    torch.testing.assert_close(why.grid, short.grid, atol=1e-6, rtol=0)  # families go on, so they agree
    (published,) = RISE(5000, (2, 3, 3), normaliser="published")(
        small, clip(), [Prob(1)], Run(4, "fp32", seconds=0.0)
    )
    (again,) = RISE(16, (2, 3, 3), normaliser="published")(small, clip(), [Prob(1)], FP32)
    torch.testing.assert_close(published.grid, again.grid, atol=1e-6, rtol=0)


def test_cells_are_cut_to_short_clips(small: TorchModel):
    one = clip(frames=1)
    (why,) = RISE(n=20, cells=(4, 8, 64))(small, one, [Prob(0)], FP32)
    assert why.grid.shape == (1, 12, 10)
    (same,) = RISE(n=20, cells=(1, 8, 10))(small, one, [Prob(0)], FP32)
    assert torch.equal(why.grid, same.grid)
    assert why.saliency.shape == (1, 12, 10)


def test_every_voxel_is_drawn_where_it_is(small: TorchModel):
    (why,) = RISE(n=20, cells=(2, 3, 3))(small, clip(), [Prob(0)], FP32)
    torch.testing.assert_close(why.saliency, why.grid, atol=1e-5, rtol=1e-4)


def test_cost_and_budget(small: TorchModel):
    method = RISE(n=500, p=0.3)
    assert isinstance(method, Scalable)
    assert method.passes(small, clip()).forwards == 501
    less = method.afford(60, small, clip())
    assert less == replace(method, n=59)
    assert less.passes(small, clip()).forwards == 60
    with pytest.raises(OptionError, match="at least 3 forwards, not 2"):
        method.afford(2, small, clip())


def test_repr_rebuilds_the_method():
    for method in (RISE(), RISE(10, (1, 2, 3), 0.2, Blur(3.0), 7, "published"), RISE(parity="icpr2022")):
        assert eval(repr(method)) == method
    assert RISE(fill="black") != RISE(fill=Black())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n >= 1 masks, not 0"),
        ({"p": 0.0}, "between 0 and 1, not 0.0"),
        ({"p": 1.5}, "between 0 and 1, not 1.5"),
        ({"cells": (0, 8, 8)}, "at least one cell"),
        ({"fill": "mesn"}, "no fill 'mesn' .did you mean 'mean'"),
        ({"normaliser": "sum"}, "'density' or 'published', not 'sum'"),
        ({"parity": "icpr"}, "parity is None or 'icpr2022', not 'icpr'"),
    ],
)
def test_refused(options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(OptionError, match=message):
        RISE(**options)  # type: ignore[arg-type]
