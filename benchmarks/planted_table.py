"""How well maps find planted evidence, beside the maps that look at no model.

    python benchmarks/planted_table.py [--clips 200] [--causes] [--weights FILE]

Fresh clips (seeds never trained on) that the bundled network classifies correctly.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch

from tubelens.clip import Clip
from tubelens.explanation import Explanation
from tubelens.methods.tubes import Tubes
from tubelens.metrics.localisation import (
    average_precision,
    centre_prior,
    distractor_mass,
    energy_in_tube,
    frame_difference,
    pointing,
    random_order,
)
from tubelens.model import TorchModel
from tubelens.planted import TASKS, PlantedClip, generate
from tubelens.target import Logit
from tubelens.zoo.bundled import bundled

FIRST = 3_000_000  # seeds that chose nothing
COLUMNS = ("AP", "energy", "pointing", "distractor")


def maps(why: Explanation, clip: Clip, seed: int) -> dict[str, torch.Tensor]:
    return {
        "tubes, where cells look": why.upsample(),
        "tubes, linear": why.upsample(order=1),
        "tubes, endpoints": why.upsample(align="endpoints"),
        "random order": random_order(clip.size, seed),
        "centre prior": centre_prior(clip.size),
        "frame difference": frame_difference(clip.pixels),
    }


def scores(saliency: torch.Tensor, planted: PlantedClip) -> tuple[float, ...]:
    return (
        average_precision(saliency, planted.truth),
        energy_in_tube(saliency, planted.truth),
        pointing(saliency, planted.truth),
        distractor_mass(saliency, planted.distractor),
    )


def table(model: TorchModel, clips: int) -> None:
    found: dict[str, dict[str, list[tuple[float, ...]]]] = {t: defaultdict(list) for t in (*TASKS, "both")}
    for seed in range(FIRST, FIRST + clips):
        planted = generate(seed)
        clip = planted.clip()
        (why,) = Tubes()(model, clip, [Logit(planted.label)])
        if why.provenance.predicted[0][0] != planted.name:
            continue
        for name, saliency in maps(why, clip, seed).items():
            for part in (planted.task, "both"):
                found[part][name].append(scores(saliency, planted))
    for part, rows in found.items():
        n = len(next(iter(rows.values())))
        print(f"\n{part}: {n} correctly classified clips\n{'':24}" + "".join(f"{c:>12}" for c in COLUMNS))
        for name, values in rows.items():
            print(f"{name:24}" + "".join(f"{v:12.3f}" for v in np.mean(values, axis=0)))


def causes(model: TorchModel, clips: int) -> None:
    """Share of clips whose truth decides: its removal costs >= .5, that of the distractors <= .05."""
    for task in TASKS:
        drops = []
        for seed in range(FIRST, FIRST + clips):
            p = generate(seed, task)
            variants = torch.stack([q.pixels for q in (p, p.without_truth(), p.without_distractors())])
            whole, no_truth, no_distractor = model(variants).softmax(dim=1)[:, p.label].tolist()
            drops.append((whole - no_truth, abs(whole - no_distractor)))
        truth, other = np.array(drops).T
        costs, spares = truth >= 0.5, other <= 0.05
        print(
            f"{task}: removing the truth costs >= .5 on {costs.mean():.1%} (median {np.median(truth):.2f}),"
            f" removing the distractors changes <= .05 on {spares.mean():.1%},"
            f" both on {(costs & spares).mean():.1%} of {clips} clips"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--causes", action="store_true", help="also check that the planted evidence decides")
    parser.add_argument("--weights", default="bundled", help="bundled, random, or a safetensors file")
    options = parser.parse_args()
    model = bundled(options.weights)
    table(model, options.clips)
    if options.causes:
        print()
        causes(model, options.clips)


if __name__ == "__main__":
    main()
