"""Every method on fresh planted clips: how well it finds the known evidence, and what it costs.

    python benchmarks/planted_methods.py [--clips 100] [--jobs 2] [--only rise tubes] [--write FILE]

Seeds never trained on, clips that the bundled network classifies correctly, the target is the true class.
Results are kept a line a clip in `--keep`, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tubelens as tl
from tubelens.clip import Clip
from tubelens.methods import METHODS, method
from tubelens.metrics.localisation import (
    average_precision,
    centre_prior,
    distractor_mass,
    energy_in_tube,
    frame_difference,
    pointing,
    random_order,
)
from tubelens.planted import PlantedClip, generate
from tubelens.running import Run

FIRST = 4_000_000  # seeds that chose nothing
COLUMNS = ("AP", "energy", "pointing", "distractor")
EXTRA = {
    "gradcam icpr2022": "gradcam(parity=icpr2022)",
    "sidu icpr2022": "sidu(parity=icpr2022)",
    "rise icpr2022": "rise(n=300, parity=icpr2022)",
    "layercam, first block": "layercam(layer=blocks.0)",
    "layercam, 3 blocks": "layercam(layer=('blocks.0', 'blocks.1', 'blocks'), fuse=mean)",
    "hirescam, first block": "hirescam(layer=blocks.0)",
    "selective of gated": "selective(base=gated)",
    "inputxgradient, abs, mean": "inputxgradient(bands=abs, baseline=mean)",
}
SMALLER = {"rise": "rise(n=500)", "lime": "lime(n=300)", "shap": "shap(n=300)"}
"""Options in place of the defaults, where these would take hours over a hundred clips."""
TRIVIAL = ("random order", "centre prior", "frame difference")


def specs() -> dict[str, str]:
    """Name of a row -> the method; a row may also be named by the method itself."""
    return {name: SMALLER.get(name, name) for name in METHODS if name not in ("rollout", "chefer")} | EXTRA


@cache
def network() -> Any:
    torch.set_num_threads(1)
    return tl.load_model("bundled")


def scores(saliency: torch.Tensor, planted: PlantedClip) -> list[float]:
    return [
        average_precision(saliency, planted.truth),
        energy_in_tube(saliency, planted.truth),
        pointing(saliency, planted.truth),
        distractor_mass(saliency, planted.distractor),
    ]


def trivial(clip: Clip, seed: int) -> dict[str, torch.Tensor]:
    maps = (random_order(clip.size, seed), centre_prior(clip.size), frame_difference(clip.pixels))
    return dict(zip(TRIVIAL, maps, strict=True))


def one(seed: int, wanted: list[str]) -> dict[str, Any]:
    """All maps of one clip: name -> [AP, energy, pointing, distractor, forwards, backwards, seconds]."""
    planted = generate(seed)
    clip, model = planted.clip(), network()
    if tl.predict(model, clip, 1)[0][0] != planted.name:
        return {"seed": seed, "task": planted.task, "right": False, "rows": {}}
    rows: dict[str, list[float]] = {}
    for name, saliency in trivial(clip, seed).items():
        rows[name] = [*scores(saliency, planted), 0, 0, 0]
    for name in wanted:
        why = tl.explain(model, clip, method(specs().get(name, name)), planted.name, run=Run(batch=8))
        p = why.provenance
        rows[name] = [*scores(why.saliency, planted), p.forwards, p.backwards, p.seconds]
    return {"seed": seed, "task": planted.task, "right": True, "rows": rows}


def collect(clips: int, jobs: int, wanted: list[str], keep: Path) -> list[dict[str, Any]]:
    """Lines of `keep`, completed to `clips`; a line that lacks a method gets it."""
    keep.parent.mkdir(parents=True, exist_ok=True)
    lines = {}
    if keep.exists():
        for text in keep.read_text().splitlines():
            line = json.loads(text)
            before = lines.setdefault(line["seed"], line)
            before["rows"] |= line["rows"]
    missing: dict[int, list[str]] = {}
    for seed in range(FIRST, FIRST + clips):
        have = lines.get(seed)
        if have is None or have["right"]:
            lack = [name for name in wanted if have is None or name not in have["rows"]]
            if lack:
                missing[seed] = lack
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool, keep.open("a") as file:
        waiting = [pool.submit(one, seed, lack) for seed, lack in missing.items()]
        for n, done in enumerate(as_completed(waiting), 1):
            line = done.result()
            file.write(json.dumps(line) + "\n")
            file.flush()
            lines.setdefault(line["seed"], line)["rows"] |= line["rows"]
            print(f"\r{n} of {len(missing)} clips", end="", flush=True)
    print()
    return [line for seed, line in sorted(lines.items()) if FIRST <= seed < FIRST + clips and line["right"]]


def table(lines: list[dict[str, Any]], wanted: list[str]) -> str:
    """Markdown: a row a method, AP by task, the other scores over both."""
    per: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: {"key": [], "dir": []})
    for line in lines:
        for name, row in line["rows"].items():
            per[name][line["task"]].append(row)
    out = [
        "| map | AP shape | AP direction | AP | ± | energy | pointing | distractor | forwards | backwards |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    means = {
        n: np.mean([r for t in per[n].values() for r in t], axis=0) for n in (*wanted, *TRIVIAL) if n in per
    }
    for name in sorted(means, key=lambda n: -means[n][0]):
        every = np.array([r for t in per[name].values() for r in t])
        by_task = [np.mean([r[0] for r in per[name][t]]) if per[name][t] else np.nan for t in ("key", "dir")]
        error = every[:, 0].std(ddof=1) / np.sqrt(len(every)) if len(every) > 1 else np.nan
        m = means[name]
        cells = [f"{v:.3f}" for v in (*by_task, m[0], error, *m[1:4])] + [f"{v:.0f}" for v in m[4:6]]
        out.append(f"| {f'*{name}*' if name in TRIVIAL else name} | " + " | ".join(cells) + " |")
    return "\n".join(out)


HEAD = """# Methods against planted evidence

Written by `make bench-planted`. {clips} fresh clips (seeds that chose nothing; {key} where a shape
decides, {dir} where a direction does) that the bundled network classifies correctly; the target is the
true class; every map is compared at clip resolution with the voxels that decide.

AP is average precision, energy the share of positive mass in the truth, pointing the share of highest
voxels that hit it, distractor the share of mass on moving objects that decide nothing (a flat map has
.03, .03, .03 and .08). ± is the standard error of AP. Passes are means a clip; backwards include those
through the head alone.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=110)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=None, help="methods; default all")
    parser.add_argument("--keep", type=Path, default=Path("build/planted_methods.jsonl"))
    parser.add_argument("--write", type=Path, default=None, help="Markdown file to write")
    options = parser.parse_args()
    wanted = options.only or list(specs())
    lines = collect(options.clips, options.jobs, wanted, options.keep)
    tasks = [line["task"] for line in lines]
    text = table(lines, wanted)
    print(text)
    if options.write:
        notes = options.write.with_name("planted_notes.md")
        head = HEAD.format(clips=len(lines), key=tasks.count("key"), dir=tasks.count("dir"))
        after = f"\n\n{notes.read_text()}" if notes.exists() else "\n"
        options.write.write_text(head + text + after)


if __name__ == "__main__":
    main()
