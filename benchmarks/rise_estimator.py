"""Forwards that RISE needs: density-corrected and centred against the published normaliser.

Every clip is scored once on pools of random masks: three contestants, and a reference of 12,288 masks of
other seeds, density-corrected. Both estimators are then made from the same scores at growing numbers of
masks and compared with the reference by Pearson's r over all voxels.

r(N) = r_ref / sqrt(1 + c / N), where an estimator of variance c / N (in units of the true map's variance)
meets a reference of its own noise. c is read off the three pools together; where one pool is too small
for r = .9 the number of masks is extrapolated by this law, and marked ~.

Theory, with mean and sd those of the score over the masks: at one voxel the published estimator has
1 / (1 - p) + (mean / sd)^2 times the variance (binary masks). The part of it that all voxels share does not
move Pearson's r: for r the ratio is 1 + (mean / sd)^2.

    python benchmarks/rise_estimator.py [clips] [precision] [pool]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from tubelens.clip import Clip
from tubelens.fill import Mean
from tubelens.masks import Grids
from tubelens.methods.rise import RISE, Sums
from tubelens.model import TorchModel
from tubelens.planted import generate
from tubelens.running import Run
from tubelens.scoring import score_masked
from tubelens.target import Prob
from tubelens.zoo.bundled import bundled

FIRST_SEED = 3_600_000
SEEDS = (0, 1, 2)
REFERENCE = (1001, 1002, 1003)
REFERENCE_MASKS = 4096
CHUNK = 64
WANTED = 0.9
P = RISE().p


@dataclass
class Curve:
    """Pearson's r against the reference at each number of masks, for both estimators."""

    counts: list[int]
    density: list[float]
    published: list[float]


def pearson(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten().double() - a.double().mean(), b.flatten().double() - b.double().mean()
    return float(a @ b / (a.norm() * b.norm()))


def pool(model: TorchModel, clip: Clip, label: int, masks: Grids, run: Run) -> Tensor:
    parts = score_masked(model, clip, masks, Mean(), [Prob(label)], run)
    return torch.cat([part.values for part in parts], dim=1)


def blocks(masks: Grids, values: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(values[:, i : i + CHUNK], masks.batch(i, i + CHUNK)) for i in range(0, len(masks), CHUNK)]


def noise(r: float, n: int, m: int) -> float:
    """The c of r^2 = 1 / ((1 + c / n) (1 + c / m)): two estimates of one map, from n and m masks."""
    half = (1 / n + 1 / m) / 2
    return n * m * ((half**2 + (1 / r**2 - 1) / (n * m)) ** 0.5 - half)


def solve(c: list[float], ceiling: list[float]) -> float:
    """N at which the mean of r_ref / sqrt(1 + c / N) is what is wanted."""
    low, high = 1.0, 1e9
    for _ in range(200):
        middle = (low * high) ** 0.5
        mean = sum(top / (1 + ci / middle) ** 0.5 for ci, top in zip(c, ceiling, strict=True)) / len(c)
        low, high = (middle, high) if mean < WANTED else (low, middle)
    return high


def main(clips: int = 10, precision: str = "fp32", size: int = 2048) -> None:
    model = bundled()
    run = Run(precision=precision)  # type: ignore[arg-type]
    counts = [n for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384) if n <= size]
    curves: list[Curve] = []
    c_density, c_published, ceilings = [], [], []
    print(
        f"bundled network, 16x64x64, {RISE().cells} cells, p = {P}, mean fill, {precision};"
        f" {len(SEEDS)} pools of {size}, reference of {len(REFERENCE) * REFERENCE_MASKS}\n"
        "  seed      mean    sd   r of all pools        gain   variance   theory: r, variance   reached"
        " (of r, of variance)   s",
        flush=True,
    )
    seed, shares = FIRST_SEED, []
    while len(ceilings) < clips:
        planted, begun = generate(seed), perf_counter()
        seed += 1
        clip, label = planted.clip(), planted.label
        if int(model(clip.pixels[None]).argmax()) != label:
            continue
        sums, parts = Sums(), []
        for s in REFERENCE:
            family = Grids(REFERENCE_MASKS, clip.size, RISE().cells, P, s)
            values = pool(model, clip, label, family, run)
            parts.append(values)
            for v, m in blocks(family, values):
                sums.add(v, m)
        reference = sums.corrected()[0]
        mine, union = list[Curve](), Sums()
        every: list[tuple[Tensor, Tensor]] = []
        for s in SEEDS:
            family = Grids(size, clip.size, RISE().cells, P, s)
            values = pool(model, clip, label, family, run)
            parts.append(values)
            prefix, curve = Sums(), Curve([], [], [])
            for i, (v, m) in enumerate(blocks(family, values), 1):
                prefix.add(v, m)
                union.add(v, m)
                if i % 8 == 0:  # maps of 512 masks each, for their variance
                    alone = Sums()
                    for j in range(i - 8, i):
                        alone.add(
                            values[:, j * CHUNK : (j + 1) * CHUNK], family.batch(j * CHUNK, (j + 1) * CHUNK)
                        )
                    every.append((alone.corrected()[0], alone.published(P)[0]))
                if i * CHUNK in counts:
                    curve.counts.append(i * CHUNK)
                    curve.density.append(pearson(prefix.corrected()[0], reference))
                    curve.published.append(pearson(prefix.published(P)[0], reference))
            mine.append(curve)
        curves += mine
        n = union.count
        r_d, r_p = pearson(union.corrected()[0], reference), pearson(union.published(P)[0], reference)
        c_d, total = noise(r_d, n, sums.count), sums.count
        ceiling = (1 + c_d / total) ** -0.5
        c_p = n * max(1e-9, (ceiling / r_p) ** 2 - 1)
        c_density.append(c_d)
        c_published.append(c_p)
        ceilings.append(ceiling)
        d, p = (torch.stack([pair[k] for pair in every]) for k in (0, 1))
        variance = float(p.var(dim=0).mean() / d.var(dim=0).mean())
        scores = torch.cat(parts, dim=1).double()
        mean, sd = float(scores.mean()), float(scores.std())
        for_r, for_variance = 1 + (mean / sd) ** 2, 1 / (1 - P) + (mean / sd) ** 2
        shares.append((c_p / c_d / for_r, c_p / c_d / for_variance))
        print(
            f"  {seed - 1}  {mean:5.3f} {sd:5.3f}   density {r_d:.3f} published {r_p:.3f} {c_p / c_d:6.1f}"
            f" {variance:8.1f}    {for_r:8.1f} {for_variance:8.1f}"
            f"       {shares[-1][0]:5.0%} {shares[-1][1]:5.0%}"
            f"  {perf_counter() - begun:6.0f}",
            flush=True,
        )
    print("  masks     mean r: density   published")
    for i, n in enumerate(counts):
        d = sum(c.density[i] for c in curves) / len(curves)
        p = sum(c.published[i] for c in curves) / len(curves)
        print(f"  {n:6}             {d:.3f}       {p:.3f}")
    need_d, need_p = solve(c_density, ceilings), solve(c_published, ceilings)
    mark_d, mark_p = ("~" if need > counts[-1] else "" for need in (need_d, need_p))
    of_r = sum(s[0] for s in shares) / len(shares)
    of_variance = sum(s[1] for s in shares) / len(shares)
    print(
        f"masks for a mean r of {WANTED}: density-corrected {mark_d}{need_d:.0f},"
        f" published {mark_p}{need_p:.0f}: {need_p / need_d:.1f} times as many\n"
        f"theory reached, mean over clips: {of_r:.0%} of 1 + (mean/sd)^2, {of_variance:.0%} of"
        f" 1/(1-p) + (mean/sd)^2; lowest {min(s[0] for s in shares):.0%} and {min(s[1] for s in shares):.0%}"
    )


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*([int(given[0])] if given else []), *given[1:2], *(int(g) for g in given[2:3]))
