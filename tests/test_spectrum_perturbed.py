"""Perturbations band by band: every formula again in slow loops, exact maps, identities, time budgets."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tubelens as tl
from tests.spectral import BANDS, GROUPS, SIZE, clip, linear, means, network, removed
from tubelens.clip import Clip
from tubelens.explanation import Explanation
from tubelens.masks import Grids, Windows
from tubelens.methods import surrogate
from tubelens.methods.protocol import Method
from tubelens.methods.scorecam import read_features
from tubelens.methods.spectrum import seed_of
from tubelens.model import TorchModel
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob, Target
from tubelens.upsample import resample

TARGETS = [Prob(1), Contrast(2, 3)]
NAMES = ("RGB", "IR")
FP32 = Run(precision="fp32", batch=8)


def value(model: TorchModel, pixels: Tensor, target: Target) -> float:
    with torch.no_grad():
        return float(target(model.module(pixels[None]), "logits")[0])


def total(why: Explanation) -> Tensor:
    return sum(why.band(name).grid for name in why.bands)


# ── RISE ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["each", "independent"])
def test_rise_mask_by_mask(way: str) -> None:
    model, x, n = network(), clip().pixels, 24
    own = {
        name: Grids(n, SIZE, (2, 3, 5), 0.4, seed_of(3, g if way == "independent" else 0)).batch(0, n)
        for g, name in enumerate(NAMES)
    }
    made = tl.RISE(n=n, cells=(2, 3, 5), p=0.4, seed=3, spectrum=way)  # type: ignore[arg-type]
    found = made(model, clip(), TARGETS, FP32)
    for why, target in zip(found, TARGETS, strict=True):
        for name in NAMES:
            under = [
                removed(x, means(x), {b: own[b][i] for b in NAMES if way == "independent" or b == name})
                for i in range(n)
            ]
            f = [value(model, one, target) for one in under]
            average = sum(f) / n
            above = sum((f[i] - average) * own[name][i].double() for i in range(n))
            kept = sum(own[name][i].double() for i in range(n))
            torch.testing.assert_close(why.band(name).grid.double(), above / kept, atol=1e-5, rtol=0)
            ending = f":{name}" if way == "each" else ""
            assert why.provenance.facts[f"mean_score{ending}"] == pytest.approx(average, abs=1e-5)
            assert why.provenance.facts[f"masks{ending}"] == n
        torch.testing.assert_close(why.grid, total(why))
        assert why.provenance.forwards == (2 * n + 1 if way == "each" else n + 1)


def test_rise_of_a_band_that_cannot_be_removed_is_rise_of_the_others() -> None:
    """Infrared is its own fill: the first group's masks are those of all bands, and so is its map."""
    pixels = clip().pixels.clone()
    pixels[3] = 0.5
    video = Clip(pixels, BANDS, clip().source)
    joint = tl.RISE(n=40, cells=(2, 3, 3), fill="grey", seed=2)
    for way in ("each", "independent"):
        both = [replace(joint, spectrum=s)(network(), video, [Prob(0)], FP32)[0] for s in ("joint", way)]
        assert both[0].bands == ()
        assert both[0].grid.abs().max() > 1e-3
        torch.testing.assert_close(both[1].band("RGB").grid, both[0].grid, atol=1e-6, rtol=0)


def test_a_network_that_sees_one_band_gives_the_others_nothing() -> None:
    model = linear()
    model.module.w[:, :3] = 0
    for way in (tl.RISE(n=30, cells=(2, 3, 3), spectrum="each"), tl.Occlusion(spectrum="each")):
        (why,) = way(model, clip(), [Logit(0)], FP32)
        assert why.band("RGB").grid.abs().max() < 1e-6
        joint = replace(way, spectrum="joint")(model, clip(), [Logit(0)], FP32)[0]
        assert joint.grid.abs().max() > 1e-3
        torch.testing.assert_close(why.band("IR").grid, joint.grid, atol=1e-6, rtol=0)


# ── occlusion ────────────────────────────────────────────────────────────────────────────────────────────


def test_occlusion_box_by_box() -> None:
    model, x = network(), clip().pixels
    window, stride = (2, 5, 4), (2, 3, 3)
    boxes = Windows(SIZE, window, stride).batch(0, len(Windows(SIZE, window, stride)))
    found = tl.Occlusion(window, stride, spectrum="each")(model, clip(), TARGETS, FP32)
    for why, target in zip(found, TARGETS, strict=True):
        for name in NAMES:
            drop, cover = torch.zeros(SIZE), torch.zeros(SIZE)
            for box in boxes:
                lost = value(model, x, target) - value(model, removed(x, means(x), {name: box}), target)
                drop, cover = drop + lost * (1 - box), cover + (1 - box)
            torch.testing.assert_close(why.band(name).grid, drop / cover, atol=1e-5, rtol=0)
        torch.testing.assert_close(why.grid, total(why))


@pytest.mark.parametrize("tracked", [False, True])
def test_occlusion_of_what_adds_up_adds_up(tracked: bool) -> None:
    """What a linear score loses with all bands is what it loses with one after the other."""
    if tracked:
        pytest.importorskip("cv2")
    each = tl.Occlusion((2, 6, 6), tracked=tracked, spectrum="each", groups="R|GB|IR")
    targets = [Logit(0), Contrast(0, 1)]
    joint = replace(each, spectrum="joint", groups="")(linear(), clip(), targets, FP32)
    for why, whole in zip(each(linear(), clip(), targets, FP32), joint, strict=True):
        assert why.bands == ("R", "GB", "IR")
        assert whole.grid.abs().max() > 1e-2
        torch.testing.assert_close(why.grid, whole.grid, atol=1e-5, rtol=0)
        torch.testing.assert_close(total(why), whole.grid, atol=1e-5, rtol=0)
        assert why.provenance.facts["covered"] == whole.provenance.facts["covered"]
        assert why.provenance.facts["windows"] == 3 * whole.provenance.facts["windows"]


# ── surrogates ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Three regions, in place of supervoxels."""
    labels = torch.zeros(SIZE, dtype=torch.long)
    labels[:, :, 7:] = 1
    labels[2:, 4:] = 2
    monkeypatch.setattr(surrogate, "supervoxels", lambda pixels, n: labels)
    return labels


def kept_of(labels: Tensor, players: Any) -> dict[str, Tensor]:
    """Masks in which the (group, region) pairs are kept."""
    masks = {}
    for name in NAMES:
        masks[name] = torch.zeros(SIZE)
        for region in range(3):
            if (name, region) in players:
                masks[name][labels == region] = 1
    return masks


def shapley(worth: Any, players: list[Any]) -> dict[Any, float]:
    """The mean over all orders of what each adds when it comes."""
    found, orders, known = dict.fromkeys(players, 0.0), list(permutations(players)), {}

    def of(some: Any) -> float:
        key = frozenset(some)
        if key not in known:
            known[key] = worth(key)
        return known[key]

    for order in orders:
        for at, player in enumerate(order):
            found[player] += (of(order[: at + 1]) - of(order[:at])) / len(orders)
    return found


@pytest.mark.parametrize("way", ["each", "independent"])
def test_shap_of_every_pair_by_all_orders(blocks: Tensor, way: str) -> None:
    model, x = network(), clip().pixels
    base = means(x)
    made = tl.KernelSHAP(n=63, spectrum=way)  # type: ignore[arg-type]
    for why, target in zip(made(model, clip(), TARGETS, FP32), TARGETS, strict=True):
        games = [list(NAMES)] if way == "independent" else [[name] for name in NAMES]
        for game in games:
            others = [(n, r) for n in NAMES if n not in game for r in range(3)]

            def worth(players: Any, others: Any = others, target: Target = target) -> float:
                return value(model, removed(x, base, kept_of(blocks, {*players, *others})), target)

            expected = shapley(worth, [(name, r) for name in game for r in range(3)])
            assert max(abs(v) for v in expected.values()) > 2e-3
            for (name, region), phi in expected.items():
                own = why.band(name).grid[blocks == region]
                torch.testing.assert_close(own, torch.full_like(own, phi), atol=2e-5, rtol=0)
        key = "exact" if way == "independent" else "exact:IR"
        assert why.provenance.facts[key] == 1.0
        torch.testing.assert_close(why.grid, total(why))


@pytest.mark.parametrize("way", ["each", "independent"])
def test_shap_adds_up_whatever_was_drawn(blocks: Tensor, way: str) -> None:
    model, x = network(), clip().pixels
    base = means(x)
    made = tl.KernelSHAP(n=5, spectrum=way, seed=1)  # type: ignore[arg-type]
    (why,) = made(model, clip(), [Prob(0)], FP32)
    assert why.provenance.facts["exact" if way == "independent" else "exact:RGB"] == 0.0
    sums = {b: sum(float(why.band(b).grid[blocks == r][0]) for r in range(3)) for b in NAMES}
    whole, none = value(model, x, Prob(0)), {b: torch.zeros(SIZE) for b in NAMES}
    if way == "independent":
        empty = value(model, removed(x, base, none), Prob(0))
        assert sum(sums.values()) == pytest.approx(whole - empty, abs=1e-5)
        return
    for name in NAMES:
        without = value(model, removed(x, base, {name: none[name]}), Prob(0))
        assert sums[name] == pytest.approx(whole - without, abs=1e-5)


@pytest.mark.parametrize("way", ["each", "independent"])
def test_lime_by_the_normal_equations(blocks: Tensor, way: str) -> None:
    model, x, n = network(), clip().pixels, 30
    made = tl.LIME(n=n, spectrum=way, seed=4, ridge=0.5)  # type: ignore[arg-type]
    found = made(model, clip(), TARGETS, FP32)
    games = [list(NAMES)] if way == "independent" else [[name] for name in NAMES]
    for why, target in zip(found, TARGETS, strict=True):
        for game in games:
            players = [(name, r) for name in game for r in range(3)]
            drawn = torch.rand(n, len(players), generator=torch.Generator().manual_seed(4)) < 0.5
            rows, answers, weights = [[1.0] * len(players)], [value(model, x, target)], [1.0]
            for z in drawn.tolist():
                seen = {p for p, kept in zip(players, z, strict=True) if kept}
                masks = {name: kept_of(blocks, seen)[name] for name in game}
                answers.append(value(model, removed(x, means(x), masks), target))
                rows.append([float(kept) for kept in z])
                weights.append(np.exp(-((1 - np.sqrt(sum(z) / len(z))) ** 2) / 0.25**2))
            design = np.column_stack([rows, np.ones(n + 1)])
            gram = design.T @ (np.array(weights)[:, None] * design)
            gram[: len(players), : len(players)] += 0.5 * np.eye(len(players))
            solved = np.linalg.solve(gram, design.T @ (np.array(weights) * answers))
            for (name, region), weight in zip(players, solved, strict=False):
                own = why.band(name).grid[blocks == region]
                torch.testing.assert_close(own, torch.full_like(own, weight), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(why.grid, total(why))


# ── extremal ─────────────────────────────────────────────────────────────────────────────────────────────


def optimised(model: TorchModel, made: tl.Extremal, groups: list[str], target: Target) -> dict[str, Tensor]:
    """Masks of some groups that share one volume, the other bands intact: all by hand."""
    x, cells, (a,) = clip().pixels, made.cells, made.volumes
    base, k = means(x), len(groups)
    gone = removed(x, base, {name: torch.zeros(SIZE) for name in groups})
    scale = abs(value(model, x, target) - value(model, gone, target))
    g = torch.Generator().manual_seed(made.seed)
    p = 0.5 + 0.01 * (torch.rand(k, *cells, generator=g) * 2 - 1)
    first, second = torch.zeros_like(p), torch.zeros_like(p)
    count = k * SIZE[0] * SIZE[1] * SIZE[2]
    ones = round(a * count)
    for i in range(made.steps):
        p.requires_grad_()
        m = F.interpolate(p[None], SIZE, mode="trilinear", align_corners=False)[0]
        under = removed(x, base, dict(zip(groups, m, strict=True)))
        ranked = m.flatten().sort().values
        missed = ((ranked[: count - ones] ** 2).sum() + ((ranked[count - ones :] - 1) ** 2).sum()) / count
        weight = 10 * 10 ** (i / (made.steps - 1))
        answer = target(model.module(under[None]), "logits")[0]
        (grad,) = torch.autograd.grad(weight * missed - answer / scale, p)
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        step = (first / (1 - 0.9 ** (i + 1))) / ((second / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8)
        p = (p.detach() - 0.1 * step).clamp(0, 1)
    masks = F.interpolate(p[None], SIZE, mode="trilinear", align_corners=False)[0]
    return dict(zip(groups, masks, strict=True))


@pytest.mark.parametrize("way", ["each", "independent"])
def test_extremal_by_hand(way: str) -> None:
    model, x = network(), clip().pixels
    made = tl.Extremal((0.2,), steps=5, cells=(2, 3, 4), fill="mean", seed=1, spectrum=way)  # type: ignore[arg-type]
    for why, target in zip(made(model, clip(), TARGETS, Run(batch=3)), TARGETS, strict=True):
        games = [list(NAMES)] if way == "independent" else [[name] for name in NAMES]
        for game in games:
            masks = optimised(model, made, game, target)
            for name in game:
                assert masks[name].std() > 0.05
                torch.testing.assert_close(why.band(name).grid, masks[name], atol=1e-4, rtol=1e-3)
            ending = f":{game[0]}" if way == "each" else ""
            left, none = removed(x, means(x), masks), {name: torch.zeros(SIZE) for name in game}
            facts = why.provenance.facts
            assert facts[f"kept_0.2{ending}"] == pytest.approx(value(model, left, target), abs=1e-3)
            empty = value(model, removed(x, means(x), none), target)
            assert facts[f"filled{ending}"] == pytest.approx(empty, abs=1e-5)
        torch.testing.assert_close(why.grid, total(why))


def test_the_shared_volume_goes_where_it_is_needed() -> None:
    """The optimum is known: the part of infrared that is seen, of just the volume asked for."""
    model, part = linear(), (slice(2, 4), slice(6, 12), slice(6, 12))
    model.module.w[:] = 0
    model.module.w[(0, 3, *part)] = 0.05
    made = tl.Extremal((1 / 16,), steps=60, cells=(2, 4, 4), fill="black", spectrum="independent")
    (why,) = made(model, clip(), [Logit(0)])
    assert float(why.band("IR").grid[part].mean()) > 0.75
    assert float(why.band("RGB").grid.mean()) < 0.01
    assert float(why.grid.mean()) == pytest.approx(2 / 16, abs=0.02)  # a share of both groups together


# ── features as masks ────────────────────────────────────────────────────────────────────────────────────


def test_score_cam_channel_by_channel() -> None:
    model, x = network(), clip().pixels
    features = read_features(model, clip(), None, "Score-CAM")
    found = tl.ScoreCAM(spectrum="each")(model, clip(), [Logit(0), Logit(2)], FP32)
    for why, k in zip(found, (0, 2), strict=True):
        for name in NAMES:
            logits, used = [], []
            for a in features.activations:
                up = resample(a, features.indices, order=1)
                if float(up.max() - up.min()) < 1e-6:
                    continue
                mask = (up - up.min()) / (up.max() - up.min())
                logits.append(value(model, removed(x, torch.zeros_like(x), {name: mask}), Logit(k)))
                used.append(a)
            weights = torch.tensor(logits).softmax(0)
            assert float(weights.max() / weights.min()) > 1.01
            expected = sum(w * a for w, a in zip(weights, used, strict=True)).relu()
            torch.testing.assert_close(why.band(name).grid, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(why.grid, total(why))
        assert why.provenance.facts["channels"] == len(used)


def test_sidu_mask_by_mask() -> None:
    model, x = network(), clip().pixels
    features = read_features(model, clip(), None, "SIDU")
    found = tl.SIDU(spectrum="each", threshold=0.3)(model, clip(), [Prob(0), Prob(2)], FP32)
    masks = [resample((a > 0.3).float(), features.indices, order=1) for a in features.activations]
    for why, k in zip(found, (0, 2), strict=True):
        for name in NAMES:
            clips = [x] + [removed(x, torch.zeros_like(x), {name: m}) for m in masks]
            with torch.no_grad():
                p = model.module(torch.stack(clips)).softmax(1).double().numpy()
            sd = [np.exp(-((p[0, k] - row[k]) ** 2) / (2 * 0.25**2)) for row in p[1:]]
            u = np.array([sum(np.linalg.norm(row - other) for other in p[1:]) for row in p[1:]])
            u = (u - u.min()) / (u.max() - u.min())
            expected = sum(s * v * m for s, v, m in zip(sd, u, masks, strict=True)) / (len(masks) / 2)
            torch.testing.assert_close(why.band(name).grid, expected.float(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(why.grid, total(why))


# ── how it is run ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("made", "key"),
    [
        (tl.RISE(n=400, cells=(2, 3, 3), spectrum="each"), "masks"),
        (tl.LIME(n=400, spectrum="each"), "samples"),
        (tl.KernelSHAP(n=6, spectrum="each"), "samples"),
    ],
)
def test_no_group_is_left_out_when_time_is_up(made: Method, key: str, blocks: Tensor) -> None:
    """Sixteen masks are scored in any case: every group has as many, up to one."""
    (why,) = made(network(), clip(), [Prob(0)], Run(precision="fp32", batch=5, seconds=1e-9))
    facts = why.provenance.facts
    done = [facts[f"{key}:{name}"] for name in NAMES]
    assert sum(done) == min(20, 2 * made.n)  # type: ignore[attr-defined]
    assert max(done) - min(done) <= 1
    n = int(min(done))
    (short,) = replace(made, n=n)(network(), clip(), [Prob(0)], FP32)  # type: ignore[type-var]
    for name in NAMES:
        torch.testing.assert_close(why.band(name).grid, short.band(name).grid, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("way", [tl.ScoreCAM(spectrum="each"), tl.SIDU(spectrum="each", threshold=0.9)])
def test_channels_are_cut_short_for_every_group_alike(way: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tubelens.scoring.LEAST", 4)
    (why,) = way(network(), clip(), [way.explains(0)], Run(precision="fp32", batch=1, seconds=1e-9))
    (few,) = replace(way, channels=2)(network(), clip(), [way.explains(0)], FP32)  # type: ignore[type-var]
    assert any("time ran out after 2 of " in note for note in why.provenance.notes)
    for name in NAMES:
        torch.testing.assert_close(why.band(name).grid, few.band(name).grid, atol=1e-5, rtol=1e-4)


def test_a_lower_precision_is_close() -> None:
    made = tl.RISE(n=60, cells=(2, 3, 3), spectrum="independent")
    full, low = (made(network(), clip(), [Prob(0)], Run(precision=p))[0] for p in ("fp32", "bf16"))
    assert low.provenance.precision == "bf16"
    for name in NAMES:
        a, b = full.band(name).grid.flatten(), low.band(name).grid.flatten()
        assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.95


def test_freeze_and_noise_fill_band_by_band() -> None:
    """Fills that are made of the mask, or of each band, take masks of bands too."""
    x = clip().pixels
    for fill in ("freeze", "noise", "blur"):
        made = tl.Occlusion((4, 12, 12), fill=fill, spectrum="each")
        (why,) = made(network(), clip(), [Logit(1)], FP32)
        blend = tl.fill.fill(fill).over(x)
        for name in NAMES:
            masks = torch.ones(1, 4, *SIZE)
            masks[:, GROUPS[name]] = 0
            lost = value(network(), x, Logit(1)) - value(network(), blend(masks)[0], Logit(1))
            torch.testing.assert_close(why.band(name).grid, torch.full(SIZE, lost), atol=1e-5, rtol=1e-4)
