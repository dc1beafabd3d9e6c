"""LIME and KernelSHAP: Shapley values by all orders, least squares by hand, captum on the same regions."""

from __future__ import annotations

import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.perturbed import Box, clip, indicator, sees
from tubelens.clip import Clip
from tubelens.errors import OptionError, ScoreError
from tubelens.explanation import Explanation
from tubelens.masks import supervoxels
from tubelens.methods import surrogate
from tubelens.methods.protocol import Scalable
from tubelens.methods.surrogate import LIME, KernelSHAP, constrained, regions, shapley_kernel, weighted_ridge
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob

SIZE = (4, 8, 8)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Six regions of unequal size, in place of supervoxels."""
    labels = torch.zeros(SIZE, dtype=torch.long)
    labels[:, :, 3:] = 1
    labels[:, 5:] += 2
    labels[3:, :, :2] = 4
    labels[:1, 2:5, 5:] = 5
    monkeypatch.setattr(surrogate, "supervoxels", lambda pixels, n: labels)
    return labels


def by_region(why: Explanation, labels: Tensor) -> Tensor:
    """One value a region; all of its voxels have it."""
    values = torch.stack([why.grid[labels == i][0] for i in range(int(labels.max()) + 1)])
    torch.testing.assert_close(why.grid, values[labels])
    return values


def worth(f, pixels: Tensor, labels: Tensor, kept, target) -> float:
    """The target with the regions in `kept` seen, and black elsewhere."""
    seen = pixels.clone()
    for i in range(int(labels.max()) + 1):
        if i not in kept:
            seen[:, labels == i] = 0
    return float(target(f(seen[None]), f.output)[0])


def shapley(f, pixels: Tensor, labels: Tensor, target) -> Tensor:
    """The mean over all orders of what each region adds when it comes."""
    d = int(labels.max()) + 1
    known = {
        kept: worth(f, pixels, labels, kept, target)
        for kept in (frozenset(i for i in range(d) if n >> i & 1) for n in range(2**d))
    }
    total = torch.zeros(d, dtype=torch.double)
    orders = list(permutations(range(d)))
    for order in orders:
        for at, i in enumerate(order):
            total[i] += known[frozenset(order[: at + 1])] - known[frozenset(order[:at])]
    return (total / len(orders)).float()


# ── SHAP ────────────────────────────────────────────────────────────────────────────────────────────────


def test_few_regions_give_the_exact_shapley_values(blocks: Tensor):
    video, f = clip(SIZE), Box(SIZE, scale=3)
    targets = [Prob(0), Prob(2), Contrast(0, 1)]
    found = KernelSHAP(n=63, fill="black")(f, video, targets)
    for why, target in zip(found, targets, strict=True):
        expected = shapley(f, video.pixels, blocks, target)
        assert expected.abs().max() > 0.02
        torch.testing.assert_close(by_region(why, blocks), expected, atol=1e-6, rtol=1e-4)
        empty = worth(f, video.pixels, blocks, (), target)
        assert why.provenance.facts["constant"] == pytest.approx(empty, abs=1e-6)
        assert why.provenance.facts["exact"] == 1
        assert why.provenance.facts["cells"] == 6
        assert why.provenance.forwards == 64  # every set once
    (hurried,) = KernelSHAP(n=63, fill="black")(f, video, [Prob(0)], Run(batch=4, seconds=1e-9))
    torch.testing.assert_close(hurried.grid, found[0].grid, atol=1e-6, rtol=1e-4)


def test_the_kernel_is_the_papers():
    """For d = 4: (d - 1) / (binom(d, s) s (d - s))."""
    assert shapley_kernel(4).tolist() == [0, 3 / 12, 3 / 24, 3 / 12, 0]


def test_sampled_sets_add_up_exactly_and_come_near(blocks: Tensor):
    video, f = clip(SIZE), Box(SIZE, scale=1)
    expected = shapley(f, video.pixels, blocks, Prob(0))
    total = worth(f, video.pixels, blocks, range(6), Prob(0)) - worth(f, video.pixels, blocks, (), Prob(0))
    errors = []
    for n in (5, 31, 62):
        runs = [
            by_region(KernelSHAP(n, fill="black", seed=s)(f, video, [Prob(0)])[0], blocks) for s in range(8)
        ]
        for values in runs:
            assert float(values.sum()) == pytest.approx(total, abs=1e-6)
        errors.append(float((torch.stack(runs) - expected).norm(dim=1).mean()))
    assert errors[2] < errors[1] < errors[0]
    # many more sets than there are: the same solver, on a table of worths
    sets = KernelSHAP(n=20_001).pairs(6)
    known = {
        key: worth(f, video.pixels, blocks, [i for i, bit in enumerate(key) if bit], Prob(0))
        for key in {tuple(s.tolist()) for s in sets}
    }
    v = torch.tensor([known[tuple(s.tolist())] for s in sets], dtype=torch.double)[1:, None]
    ones = torch.ones(len(v), dtype=torch.double)
    empty = known[(False,) * 6]
    many = constrained(sets[1:].double(), v - empty, ones, torch.tensor([total]).double())[:, 0].float()
    assert float((many - expected).norm() / expected.norm()) < 0.03


def test_sampled_values_are_the_constrained_least_squares(blocks: Tensor):
    """By elimination of the last region, as a plain least squares problem in numpy."""
    video, f = clip(SIZE), Box(SIZE, scale=3)
    method = KernelSHAP(41, fill="black", seed=3)
    sets = method.pairs(6)
    v = np.array([worth(f, video.pixels, blocks, s.nonzero().flatten().tolist(), Prob(1)) for s in sets])
    whole = worth(f, video.pixels, blocks, range(6), Prob(1))
    z = sets[1:].double().numpy()
    delta = whole - v[0]
    rest = np.linalg.lstsq(z[:, :5] - z[:, 5:], v[1:] - v[0] - z[:, 5] * delta, rcond=None)[0]
    expected = np.append(rest, delta - rest.sum())
    (why,) = method(f, video, [Prob(1)])
    np.testing.assert_allclose(by_region(why, blocks), expected, atol=1e-5)
    fitted = v[0] + z @ expected
    r2 = 1 - ((v[1:] - fitted) ** 2).sum() / ((v[1:] - v[1:].mean()) ** 2).sum()
    assert why.provenance.facts["r2"] == pytest.approx(r2, abs=1e-4)
    assert why.provenance.facts["samples"] == 41
    assert why.provenance.facts["exact"] == 0
    assert why.provenance.forwards == 42


def test_sets_are_pairs_drawn_by_the_kernel():
    sets = KernelSHAP(n=40_001).pairs(7)
    assert len(sets) == 40_001
    assert not sets[0].any()
    assert torch.equal(sets[1::2], ~sets[2::2])
    assert len(KernelSHAP(n=10).pairs(7)) == 10
    sizes = sets[1::2].sum(1).bincount(minlength=8)
    chances = torch.tensor([0.0, *(1 / (s * (7 - s)) for s in range(1, 7)), 0.0])
    torch.testing.assert_close(sizes / sizes.sum(), chances / chances.sum(), atol=0.012, rtol=0)
    ones = sets[1::2][sets[1::2].sum(1) == 1].float().mean(0)  # any set of a size
    torch.testing.assert_close(ones, torch.full((7,), 1 / 7), atol=0.02, rtol=0)


def test_too_few_sets_give_equal_shares_of_what_is_not_known():
    """No set at all: everybody gets the same. One set: only its two sides are told apart."""
    none = torch.zeros(0, 4, dtype=torch.double)
    total = torch.tensor([2.0], dtype=torch.double)
    shares = constrained(none, none[:, :1], none[:, 0], total)
    torch.testing.assert_close(shares, torch.full((4, 1), 0.5, dtype=torch.double))
    one = torch.tensor([[1.0, 1, 0, 0]], dtype=torch.double)
    shares = constrained(one, torch.tensor([[1.5]]).double(), torch.ones(1).double(), total)
    torch.testing.assert_close(shares[:, 0], torch.tensor([0.75, 0.75, 0.25, 0.25]).double())


# ── LIME ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("width", "ridge"), [(0.25, 1.0), (0.1, 0.0), (2.0, 0.3)])
def test_lime_is_weighted_least_squares_by_hand(blocks: Tensor, width: float, ridge: float):
    video, f = clip(SIZE), Box(SIZE, scale=3)
    method = LIME(40, width=width, ridge=ridge, fill="black", seed=5)
    z = np.vstack([np.ones(6), method.samples(6).numpy()])
    for why, target in zip(method(f, video, [Prob(0), Logit(1)]), (Prob(0), Logit(1)), strict=True):
        y = np.array([worth(f, video.pixels, blocks, np.flatnonzero(row), target) for row in z])
        cosine = np.array(
            [row @ np.ones(6) / (np.linalg.norm(row) * 6**0.5) if row.any() else 0 for row in z]
        )
        weight = np.exp(-((1 - cosine) ** 2) / width**2)
        # the penalty as six more rows, which the constant does not enter
        rows = np.hstack([np.ones((41, 1)), z]) * np.sqrt(weight)[:, None]
        penalty = np.hstack([np.zeros((6, 1)), np.sqrt(ridge) * np.eye(6)])
        right = np.concatenate([y * np.sqrt(weight), np.zeros(6)])
        expected = np.linalg.lstsq(np.vstack([rows, penalty]), right, rcond=None)[0]
        np.testing.assert_allclose(by_region(why, blocks), expected[1:], atol=1e-5)
        facts = why.provenance.facts
        assert facts["constant"] == pytest.approx(expected[0], abs=1e-5)
        mean = (weight * y).sum() / weight.sum()
        missed = (weight * (y - expected[0] - z @ expected[1:]) ** 2).sum()
        assert facts["r2"] == pytest.approx(1 - missed / (weight * (y - mean) ** 2).sum(), abs=1e-4)
        assert facts["cells"] == 6
        assert facts["samples"] == 40
        assert why.provenance.forwards == 41


def test_of_several_solutions_the_one_of_least_norm():
    z = torch.tensor([[1.0, 1, 0], [0, 0, 0]]).double()
    w, b = weighted_ridge(z, torch.tensor([[3.0], [1.0]]).double(), torch.ones(2).double(), 0.0)
    torch.testing.assert_close(w[:, 0], torch.tensor([1.0, 1, 0]).double())
    torch.testing.assert_close(b, torch.tensor([1.0]).double())


def test_samples_keep_half_and_the_first_do_not_depend_on_n():
    many = LIME(n=4000).samples(11)
    assert torch.equal(LIME(n=7).samples(11), many[:7])
    torch.testing.assert_close(many.float().mean(0), torch.full((11,), 0.5), atol=0.03, rtol=0)


# ── beside captum ───────────────────────────────────────────────────────────────────────────────────────


def test_comes_near_captum_on_the_same_regions(blocks: Tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import KernelShap, ShapleyValues
    video, f = clip(SIZE), Box(SIZE, scale=2)
    (why,) = KernelSHAP(n=64, fill="black")(f, video, [Logit(1)])
    asked = {"baselines": 0, "target": 1, "feature_mask": blocks[None, None]}
    peer = ShapleyValues(lambda x: f(x)).attribute(video.pixels[None], **asked)
    torch.testing.assert_close(why.grid, peer[0, 0].float(), atol=1e-5, rtol=1e-4)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rough = KernelShap(lambda x: f(x)).attribute(video.pixels[None], n_samples=400, **asked)
    assert float((rough[0, 0] - why.grid).norm() / why.grid.norm()) < 0.2


# ── both ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", [LIME(300, 30), KernelSHAP(300, 30)])
def test_finds_where_the_model_looks_on_supervoxels(method):
    size = (4, 16, 16)
    coarse = np.random.default_rng(0).random((2, 4, 4, 3), dtype=np.float32)
    video = Clip.from_array(coarse.repeat(2, 0).repeat(4, 1).repeat(4, 2))
    (why,) = method(sees(size), video, [Prob(1)])
    labels, cells = regions(video, 30)
    assert torch.equal(labels, supervoxels(video.pixels, 30))
    assert cells == why.provenance.facts["cells"] > 5
    truth = indicator(size)
    inside = torch.stack([truth[labels == i].float().mean() for i in range(cells)])
    values = by_region(why, labels)
    assert inside[values.topk(3).indices].mean() > inside.mean() + 0.1
    assert torch.corrcoef(torch.stack([inside, values]))[0, 1] > 0.5


@pytest.mark.parametrize("method", [LIME(60, fill="black"), KernelSHAP(60, fill="black")])
def test_seed_batch_and_time(method, blocks: Tensor):
    video, f = clip(SIZE), Box(SIZE, scale=3)
    before = torch.get_rng_state()
    (whole,) = method(f, video, [Prob(0)])
    assert torch.equal(torch.get_rng_state(), before)
    (again,) = method(f, video, [Prob(0)], Run(batch=7))
    torch.testing.assert_close(again.grid, whole.grid, atol=1e-6, rtol=1e-4)
    (other,) = type(method)(60, fill="black", seed=1)(f, video, [Prob(0)])
    assert (other.grid - whole.grid).abs().max() > 1e-4
    assert whole.provenance.seed == 0
    assert other.provenance.seed == 1
    (short,) = method(f, video, [Prob(0)], Run(batch=10, seconds=1e-9))
    done = short.provenance.facts["samples"]
    assert done < 60
    (same,) = type(method)(int(done), fill="black")(f, video, [Prob(0)])
    if isinstance(method, LIME):
        torch.testing.assert_close(same.grid, short.grid, atol=1e-6, rtol=1e-4)
    else:
        delta = worth(f, video.pixels, blocks, range(6), Prob(0)) - worth(
            f, video.pixels, blocks, (), Prob(0)
        )
        assert float(by_region(short, blocks).sum()) == pytest.approx(delta, abs=1e-6)


def test_budgets():
    for method, least in ((LIME(), 3), (KernelSHAP(), 4)):
        assert isinstance(method, Scalable)
        assert method.passes(Box(SIZE), clip(SIZE)).forwards == 1001
        assert method.afford(77, Box(SIZE), clip(SIZE)).n == 76
        assert method.afford(least, Box(SIZE), clip(SIZE)).n == least - 1
        with pytest.raises(OptionError, match=f"at least {least} forwards, the budget is {least - 1}"):
            method.afford(least - 1, Box(SIZE), clip(SIZE))


@pytest.mark.parametrize(
    "options", [{"n": 1}, {"supervoxels": 1}, {"width": 0.0}, {"ridge": -1.0}, {"fill": "blak"}]
)
def test_senseless_options_of_lime(options):
    with pytest.raises(OptionError):
        LIME(**options)


@pytest.mark.parametrize("options", [{"n": 2}, {"supervoxels": 1}, {"fill": "blak"}])
def test_senseless_options_of_shap(options):
    with pytest.raises(OptionError):
        KernelSHAP(**options)


def test_one_region_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(surrogate, "supervoxels", lambda pixels, n: torch.zeros(SIZE, dtype=torch.long))
    for method in (LIME(), KernelSHAP()):
        with pytest.raises(OptionError, match="single region"):
            method(Box(SIZE), clip(SIZE), [Prob(0)])


def test_a_score_that_never_changes_gives_zeros_and_nan_is_an_error(blocks: Tensor):
    class Flat:
        output = "logits"

        def __init__(self, value: float) -> None:
            self.value = value

        def __call__(self, clips: Tensor) -> Tensor:
            return torch.full((len(clips), 2), self.value)

    for method in (LIME(20), KernelSHAP(20)):
        (why,) = method(Flat(1.0), clip(SIZE), [Prob(0)])
        assert float(why.grid.abs().max()) < 1e-9
        assert why.provenance.facts["r2"] == 1
        with pytest.raises(ScoreError):
            method(Flat(float("nan")), clip(SIZE), [Prob(0)])


def test_repr_rebuilds():
    for method in (LIME(3, 4, 0.5, 2.0, "black", 7), KernelSHAP(3, 4, "grey", 7)):
        assert eval(repr(method)) == method
