"""Which band carried the decision, where that is known: the tables of docs/ledger.md and docs/methods.md.

    python benchmarks/bands.py [--clips 200] [--maps 6]

The ledger of the whole clip on fresh clips of the tasks `infrared` and `xor`, their own networks, the true
class; then infrared's part of the maps of methods that tell bands apart, on clips of `infrared`.
"""

from __future__ import annotations

import argparse

import numpy as np

import tubelens as tl
from tubelens.evaluate.planted_models import planted_model
from tubelens.methods import method
from tubelens.metrics.against_truth import average_precision
from tubelens.planted import generate
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob, Target

FIRST = 800_000
METHODS = (
    "rise(n=300, spectrum=each)",
    "rise(n=2000, spectrum=independent)",
    "occlusion(spectrum=each)",
    "shap(n=200, spectrum=each)",
    "lime(n=200, spectrum=each)",
    "integrated_gradients(spectrum=each, baseline=mean)",
    "extremal(spectrum=independent)",
)


def scored(task: str, label: int) -> dict[str, Target]:
    kinds: dict[str, Target] = {"logit": Logit(label), "probability": Prob(label)}
    return kinds | ({"this rather than the other": Contrast(label, 1 - label)} if task == "xor" else {})


def ledgers(task: str, clips: int) -> None:
    net = planted_model(task)
    rows: dict[str, list[tuple[float, ...]]] = {}
    right = 0
    for seed in range(FIRST, FIRST + clips):
        clip = generate(seed, task)  # type: ignore[arg-type]
        right += int(net(clip.pixels[None]).argmax()) == clip.label
        for name, target in scored(task, clip.label).items():
            score = "prob" if name == "probability" else "logit"
            region = tl.ledger(net, clip.clip(), target, score=score).regions[0]
            error = abs(region.shapley.sum() - region.total)
            rows.setdefault(name, []).append((*region.alone, region.synergy[0, 1], region.shapley[1], error))
    print(f"\n{task}: {clips} fresh clips, right on {right}; parts of the summed total (RGB, IR)")
    columns = ("RGB alone", "IR alone", "together", "IR share", ">= .8", "error")
    heads = "".join(f"{column:>10}" for column in columns)
    print(f"{'score':30}{heads}")
    for name, values in rows.items():
        table = np.array(values)
        total = table[:, :3].sum(axis=1)
        parts = table[:, :4].sum(axis=0) / total.sum()
        often = int((table[:, 2] >= 0.8 * total).sum())
        print(
            f"{name:30}{parts[0]:10.3f}{parts[1]:10.3f}{parts[2]:10.3f}{parts[3]:10.3f}{often:10d}"
            f"{table[:, 4].max():10.1e}"
        )


def maps(clips: int) -> None:
    net = planted_model("infrared")
    print(f"\ninfrared: maps of {clips} clips; IR's part of the positive mass, of the sum, and its AP")
    for name in METHODS:
        found = []
        for seed in range(FIRST, FIRST + clips):
            clip, way = generate(seed, "infrared"), method(name)
            (why,) = way(net, clip.clip(), [way.explains(clip.label)], Run(precision="fp32"))
            own = {band: why.band(band).upsample() for band in why.bands}
            mass = {band: float(m.clamp_min(0).sum()) for band, m in own.items()}
            share = float(own["IR"].sum() / sum(m.sum() for m in own.values()))
            precision = average_precision(own["IR"], clip.truth)
            found.append((mass["IR"] / sum(mass.values()), share, precision))
        positive, share, precision = np.mean(found, axis=0)
        print(f"{name:55}{positive:8.3f}{share:8.3f}{precision:8.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=200, help="for the ledgers")
    parser.add_argument("--maps", type=int, default=6, help="for the methods")
    options = parser.parse_args()
    for task in ("infrared", "xor"):
        ledgers(task, options.clips)
    maps(options.maps)


if __name__ == "__main__":
    main()
