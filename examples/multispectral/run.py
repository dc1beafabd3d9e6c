"""The experiment of the ICPR 2022 study of explanations in multispectral video, on data that can be had.

    python examples/multispectral/run.py planted --out out/planted
    python examples/multispectral/run.py fir FOLDER --out out/fir
    python examples/multispectral/run.py msad FOLDER --out out/msad

Trains a small 3D-ResNet and a PAN-like network on visible clips, on infrared clips and on both, explains test
clips with Grad-CAM, RISE, SIDU, saliency tubes and `gated`, scores the maps by insertion and deletion (and,
where the evidence is known, by it), and writes into the folder `--out`: `summary.md` (verdicts), `table.md`,
`focus.csv`, `curves-*.png`, `maps-*.png`, `weights/`, `run/` and `report/`. What is there is kept: the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import data_fir
import data_msad
import data_planted
import pictures
import torch
from networks import NETWORKS, wrapped
from plan import Plan
from summary import summary
from table import (
    AREAS,
    Difference,
    accuracies,
    area_lines,
    confusion_lines,
    contests,
    costs,
    focus,
    values,
)
from train import Trained, train

from tubelens.errors import TubelensError
from tubelens.evaluate.job import Network
from tubelens.evaluate.report.write import write_report
from tubelens.evaluate.run import evaluate
from tubelens.files import replacing

METHODS = ("gradcam", "rise", "sidu", "tubes", "gated")
"""Those of the paper, saliency tubes, and the best of ours on the planted benchmark, which is other clips."""
TRUTH = ("energy", "ap", "pointing")


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def stage(self, name: str) -> None:
        """The stage that ends now."""
        now = time.perf_counter()
        self.seconds[name], self._since = now - self._since, now


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=("planted", "fir", "msad"))
    parser.add_argument("folder", nargs="?", type=Path, help="of fir and msad: where the recordings are")
    parser.add_argument("--out", required=True, type=Path, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="of weights, training, split and maps")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="networks trained at once"
    )
    parser.add_argument("--quick", action="store_true", help="a few updates and clips: does everything run?")
    options = parser.parse_args(arguments)
    if (options.folder is None) != (options.data == "planted"):
        parser.error("fir and msad need a folder, planted has none")
    if options.folder is not None and not options.folder.is_dir():
        print(f"{parser.prog}: {options.folder}: no such folder", file=sys.stderr)
        return 2
    make: dict[str, Callable[[], Plan]] = {
        "planted": partial(data_planted.plan, options.seed, options.quick),
        "fir": partial(data_fir.plan, options.folder, options.seed, options.quick),
        "msad": partial(data_msad.plan, options.folder, options.seed, options.quick),
    }
    try:
        experiment(make[options.data], options.out, options.seed, options.jobs)
    except TubelensError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def experiment(make: Callable[[], Plan], out: Path, seed: int, jobs: int) -> None:
    """All stages of one data set; `make` is called once in every process."""
    torch.set_num_threads(1)  # the order of sums, and so the last bits, depend on it
    clock, plan = Clock(), make()
    networks = trained(make, plan, out, seed, jobs)
    clock.stage("training")
    right = accuracies(plan, networks)
    clock.stage("accuracy")
    explained(plan, networks, out, seed)
    clock.stage("maps and scores")
    found = values(out / "run")
    hits = {
        (a.trained.network, a.trained.training, a.spectrum): {
            item.key for item, hit in zip(plan.tests(a.spectrum), a.guess == a.truth, strict=True) if hit
        }
        for a in right
    }
    joint, against = focus(found, hits), contests(found)
    made = write_report(out / "run", out / "report", layout="icpr2022", seed=seed)
    for area in AREAS:
        for drawn in made.figures:
            if drawn.name.startswith(f"icpr2022-curves-{area}"):
                shutil.copyfile(out / "report" / "figures" / f"{drawn.name}.png", out / f"curves-{area}.png")
    pictures.draw(plan, networks, right, out, methods(plan))
    clock.stage("report and pictures")
    _write(out / "table.md", [line for area in AREAS for line in area_lines(plan, found, area)])
    _differences(
        out / "focus.csv", joint, ("network", "spectrum", "method", "metric", "on_clips"), "joint", "single"
    )
    _differences(
        *(out / "contests.csv", against, ("network", "trained", "spectrum", "method", "metric")),
        *("gradcam", "other"),
    )
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in clock.seconds.items())
    busy = sum(of.seconds for of in networks)
    spent = [
        *costs(out / "run"),
        "",
        f"Time by the clock, {jobs} networks trained at once: {stages} (nothing for what was there before)."
        f" All trainings together took {busy:.0f} s of processor time.",
    ]
    _write(out / "confusion.md", confusion_lines(right, plan.labels))
    _write(out / "summary.md", summary(plan, found, right, joint, against, spent))
    print(f"{out / 'summary.md'}: {stages}")


def trained(make: Callable[[], Plan], plan: Plan, out: Path, seed: int, jobs: int) -> list[Trained]:
    """Every network on every training, some at a time in processes of their own, the longest first."""
    wanted = [(network, training) for network in NETWORKS for training in plan.trainings]
    longest = sorted(wanted, key=lambda pair: -len(plan.trainings[pair[1]]))
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            list(pool.map(partial(_train, make, out, seed), longest))
    return [train(plan, *pair, out, seed, _say) for pair in wanted]


def _train(make: Callable[[], Plan], out: Path, seed: int, pair: tuple[str, str]) -> None:
    torch.set_num_threads(1)
    train(make(), *pair, out, seed, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def explained(plan: Plan, networks: Sequence[Trained], out: Path, seed: int) -> None:
    """Maps and scores of the first test clips of each spectrum, into one run; what is there is kept."""
    metrics = [
        *(f"{area}(steps={plan.points})" for area in AREAS),
        "sparseness",
        *(TRUTH if plan.truth else ()),
    ]
    for spectrum in plan.spectra:
        models = []
        for of in networks:
            if spectrum in plan.trainings[of.training]:
                model = wrapped(of.network, of.net, plan.labels, plan.size, of.network)
                # a name that tells the weights apart, as a file of weights would
                models.append(Network(model=replace(model, weights=of.training), trained=of.training))
        items = list(plan.tests(spectrum)[: plan.shown])
        done = evaluate(
            *(items, models, methods(plan), metrics, out / "run"),
            target="label",
            seeds=(seed,),
            threads=1,
            workers=0,
        )
        _say(str(done))


def methods(plan: Plan) -> list[str]:
    """Names with options."""
    return [f"rise(n={plan.rise})" if name == "rise" else name for name in METHODS]


def _write(path: Path, lines: object) -> None:
    with replacing(path) as new:
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _differences(
    path: Path, rows: Sequence[Difference], names: Sequence[str], first: str, second: str
) -> None:
    with replacing(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "clips", first, second, "difference", "low", "high", "verdict"])
        for d in rows:
            numbers = [f"{v:.6g}" for v in (d.first, d.second, d.mean, d.low, d.high)]
            writer.writerow([*d.what, d.clips, *numbers, d.verdict])


if __name__ == "__main__":
    sys.exit(main())
