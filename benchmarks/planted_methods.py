"""Methods and variants of them on the bundled network's tasks: the table of docs/planted.md.

    python benchmarks/planted_methods.py [--clips 50] [--jobs 2] [--only rise tubes] [--write FILE]

The bench of `planted_bench.py`, with more clips of two tasks and with variants: as published, other layers,
other baselines. Results are kept in `--keep`, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from planted_bench import ROWS, run

from tubelens.evaluate.bench_table import Table, as_markdown

TASKS = ("key", "dir")
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
HEAD = """# Methods against planted evidence

Written by `make bench-planted`. {key} fresh clips where a shape decides (key), {dir} where a direction does
(dir), of seeds that chose nothing; the bundled network gets them right, and is verified to look at what
decides (see [planted_tasks.md](planted_tasks.md)). The target is the true class; every map is compared at
clip resolution with the voxels that decide.

± is half of the 95 % bootstrap interval over clips. A flat map has AP, energy and pointing of .03, and .08 of
its mass on the moving objects that decide nothing (distractor). Passes are means a clip; backwards include
those through the head alone.

"""


def page(table: Table, notes: str) -> str:
    sizes = {task: len(table.cells["oracle", task]) for task in TASKS}
    said = "\n".join(f"- {note}" for note in table.notes())
    parts = [HEAD.format(**sizes), as_markdown(*table.summary()), "\n\n", as_markdown(*table.grid("ap"))]
    return "".join([*parts, f"\n\n{said}\n\n{notes}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[*ROWS, *EXTRA], help="methods; default all")
    parser.add_argument("--keep", type=Path, default=Path("build/planted_bench.jsonl"))
    parser.add_argument("--write", type=Path, default=None, help="Markdown file to write")
    options = parser.parse_args()
    rows = {name: (ROWS | EXTRA).get(name, name) for name in options.only}
    table = run(rows, TASKS, options.clips, options.jobs, options.keep)
    notes = Path("docs/planted_notes.md")
    text = page(table, notes.read_text() if notes.exists() else "")
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
