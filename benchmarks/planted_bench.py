"""Every method on every planted task: the table of docs/planted_tasks.md.

    python benchmarks/planted_bench.py [--clips 10] [--jobs 2] [--write docs/planted_tasks.md]

About 25 minutes on two cores. Results are kept a line an explanation in `--keep`, so that an interrupted run
goes on where it was. `tubelens planted` is the same bench for a few methods.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tubelens.evaluate.bench import bench
from tubelens.evaluate.bench_table import Table, as_markdown
from tubelens.evaluate.bench_tasks import MEASURES, TASKS
from tubelens.methods import METHODS

SMALLER = {"rise": "rise(n=500)", "lime": "lime(n=300)", "shap": "shap(n=300)"}
"""Options in place of the defaults, where these would take hours."""
ELSEWHERE = ("rollout", "chefer")
"""These need a transformer, and the planted networks are convolutional."""
ROWS = {name: SMALLER.get(name, name) for name in METHODS if name not in ELSEWHERE}

RANDOMISED = ("order", "infrared", "xor")
"""Tasks that are also explained with random weights: all would double the time."""

HEAD = """# Methods on every planted task

Written by `make bench-tasks`. A task is a way in which evidence can be hidden; what decides is

| task | what decides |
|---|---|
| key | the shape of one object |
| dir | the direction of one object |
| order | which of two events comes first |
| transient | the colour of what is there in two frames of sixteen |
| infrared | a direction that only the fourth of four bands shows |
| xor | whether a visible cue and an infrared one agree |
| honest, shortcut | on the same clips, the direction of an object, and the colour of a mark |
| whitebox | boxes that a formula reads, each with known Shapley and Banzhaf values |

The networks are in the package: `tl.load_model("planted_order")`, `planted_transient`, `planted_infrared`,
`planted_xor`, `planted_honest` and `planted_shortcut`; that of `key` and `dir` is `bundled`.
`tubelens evaluate planted:xor` takes the task's own where no `--model` is given.

Each task has its network, and {clips} clips of fresh seeds count: those which the network gets right, whose
probability falls by .5 or more without the evidence, and by no more than .05 without the other objects. The
target is the true class. Every map is compared at clip resolution with the voxels that decide. ± is half of
the 95 % bootstrap interval over clips. *random*, *centre* and *difference* look at no network; *oracle* is
the truth itself. A dash: the method does not apply to the network (at the end stands why); `rollout` and
`chefer` need a transformer. `rise` has 500 samples here, `lime` and `shap` 300.

"""
RANDOM = """
## Random weights

Average precision of the same methods on the same networks with random weights. A map of the decision falls to
random; what stays above shows the picture.

"""
READING = """
## Reading it

- Whoever looks finer than the last layer's grid wins: `gated`, guided gradients, and the surrogates
  (`lime`, `shap`), which pay with three hundred forwards. The gradient CAMs agree with each other,
  because the grid is what limits them: most of all on `order` and the pair, whose objects cover a few
  cells.
- Against random weights the CAMs fall to a random order. Surrogates, `occlusion` and `gated` stay above
  it on some clips: also a random network answers to a bright object that is taken away, and its answer is
  rightly found there. Intervals are wide.
- Methods whose maps are nearly those of a wrong class (`pyramid`, `eigencam`, `fem`) score well on
  *where* and say little on *why*; the mass on distractors shows it.
- Whatever works on `honest` and `shortcut` must move with the network, on the same pixels: all do, the
  coarser ones less.
- On the white box only two small boxes count, among others that look alike: maps that are coarse by
  choice (`occlusion`, `extremal`) cannot be right there.
"""
PAIR = """
## The same clips, two networks

Shares of positive mass on the object and on the mark. `moves`: of the mass on either, how much more lies on
the object for the honest network than for the shortcut one; 0 for a map that looks at no network. A method
tells them apart where the interval of `moves` lies above 0.

"""


def page(main: Table, randomised: Table | None) -> str:
    said = [f"\n## {MEASURES[m].title}\n\n{MEASURES[m].says.capitalize()}.\n\n" for m in MEASURES]
    kept = min(len(main.cells["oracle", task]) for task in main.tasks)
    parts = [HEAD.format(clips=kept), "## Over all tasks\n\n", as_markdown(*main.summary()), "\n"]
    for measure, head in zip(MEASURES, said, strict=True):
        parts += [head, as_markdown(*main.grid(measure)), "\n"]
    if main.pair():
        parts += [PAIR, as_markdown(*main.pairs()), "\n"]
    if randomised is not None:
        parts += [RANDOM, as_markdown(*randomised.part(random_weights=True).grid("ap")), "\n"]
    notes = "\n".join(f"- {note}" for note in main.notes())
    return "".join([*parts, READING, f"\n## What does not count\n\n{notes}\n"])


def run(
    rows: Mapping[str, str],
    tasks: Sequence[str],
    clips: int,
    jobs: int,
    keep: Path,
    randomised: bool = False,
    seed: int = 0,
) -> Table:
    def progress(what: str, done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{what}: {done} of {total}", end=end, file=sys.stderr, flush=True)

    return bench(rows, tasks, clips, seed, randomised=randomised, jobs=jobs, keep=keep, progress=progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="methods; default all")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help="default all")
    parser.add_argument("--quick", action="store_true", help="without the rows with random weights")
    parser.add_argument("--keep", type=Path, default=Path("build/planted_bench.jsonl"))
    parser.add_argument("--write", type=Path, default=None, help="Markdown file to write")
    options = parser.parse_args()
    rows = {name: ROWS.get(name, name) for name in options.only}
    given = (options.clips, options.jobs, options.keep)
    table = run(rows, options.tasks, *given)
    few = [task for task in RANDOMISED if task in options.tasks]
    randomised = None if options.quick or not few else run(rows, few, *given, randomised=True)
    text = page(table, randomised)
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
