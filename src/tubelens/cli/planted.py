"""`tubelens planted`: methods on clips whose evidence is known, a test bench for a new one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tubelens.cli.show import STDERR, note, print_json, print_table
from tubelens.errors import OptionError, nearest
from tubelens.evaluate.bench import Progress, bench
from tubelens.evaluate.bench_table import Table, written_as
from tubelens.evaluate.bench_tasks import ANCHORS, MEASURES, PAIR, TASKS

DEFAULT = ("tubes", "gradcam", "gated", "rise(n=300)")


@dataclass
class Planted:
    """Test methods on planted clips, whose evidence is known: a table method x task.

    Example: tubelens planted --method rise tubes gated --task dir order --metric ap energy

    Example: tubelens planted --method examples/own_method.py:TimeProfile tubes --jobs 2 --out table.md

    Tasks: what decides is a shape (key), a direction (dir), which of two events comes first (order), what is
    there in two frames of sixteen (transient), what one band of four shows (infrared), a visible and an
    infrared cue together (xor), a direction for one network and a mark for another on the same clips (honest,
    shortcut), boxes that a formula reads (whitebox).

    Measures are those of localisation alone. Other metrics, and one's own, run on the same clips with
    `tubelens evaluate planted:TASK --metric insertion path.py:Class`.

    Cost: for each method, task and clip what `tubelens methods` tells, a forward taking milliseconds; three
    forwards a clip to verify that its network looks at the evidence. The networks are in the package; with
    --train others are trained the first time (minutes) and loaded from then on.
    """

    method: tuple[str, ...] = DEFAULT
    """Methods, by name, with options in brackets if wanted; one's own as module:Class or path.py:Class."""
    task: tuple[str, ...] = TASKS
    """Tasks; default all."""
    clips: int = 12
    """Clips a task that count; those on which the network does not look at the evidence do not."""
    seed: int = 0
    """Of the clips: another seed, other clips."""
    metric: tuple[str, ...] = ("ap",)
    """What is printed: ap, energy, pointing, tube_iou, temporal_iou, distractor, bands; others run with
    `tubelens evaluate planted:TASK`."""
    randomised: bool = False
    """Also the same methods on networks with random weights: a map of the decision must fall to random."""
    train: int | None = None
    """Networks trained from this seed, in place of those in the package; kept in ~/.cache/tubelens."""
    jobs: int = 1
    """Processes."""
    keep: str | None = None
    """File of results: an interrupted table goes on where it was."""
    out: str | None = None
    """Write the table to a file: .md, .csv or .json."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Explain, score, print; 1 where a method worked on no task."""
        for metric in self.metric:
            if metric not in MEASURES:
                raise OptionError(
                    f"unknown metric {metric!r}{nearest(metric, MEASURES)}: here are only the measures of"
                    f" localisation, {', '.join(MEASURES)}; all metrics, and one's own, run with"
                    " `tubelens evaluate planted:TASK --metric ...`"
                )
        if not self.metric:
            raise OptionError("--metric needs at least one name")
        if self.out is not None:
            written_as(self.out)
        with _progress() as tell:
            table = bench(
                self.method,
                tuple(dict.fromkeys(self.task)),
                self.clips,
                self.seed,
                randomised=self.randomised,
                networks=self.train,
                jobs=self.jobs,
                keep=self.keep,
                progress=tell,
            )
        if self.out is not None:
            table.write(self.out, self.metric)
        if self.json:
            print_json(table.facts(self.metric))
        else:
            show(table, self.metric)
        for said in table.notes():
            note(said)
        works = [any(table.values(row, task, "ap") for task in table.tasks) for row in table.methods]
        return 0 if all(works) else 1


def show(table: Table, metrics: Sequence[str]) -> None:
    """The tables on standard output, and how to read them."""
    for metric in metrics:
        columns, rows = table.grid(metric)
        measure = MEASURES[metric]
        better = "higher" if measure.higher_is_better else "lower"
        print_table(f"{measure.title}: {measure.says}; {better} is better", ["", *columns[1:]], rows)
    if table.pair():
        columns, rows = table.pairs()
        print_table(f"The same clips, two networks: {' and '.join(PAIR)}", ["", *columns[1:]], rows)
    columns, rows = table.costs()
    print_table("Passes and seconds a clip", ["", *columns[1:]], rows)
    print(
        f"± is half of the 95 % bootstrap interval over clips. {', '.join(ANCHORS[:-1])} look at no network;"
        f" {ANCHORS[-1]} is the truth."
    )


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error that says what is being done; silent where that is not a terminal."""
    if not STDERR.is_terminal:
        yield lambda what, done, total: None
        return
    parts = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Bar(*parts, TimeRemainingColumn(), console=STDERR, transient=True) as bar:
        task = bar.add_task("", total=None)
        last = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last
            if what != last:
                bar.reset(task)  # or the time left would be reckoned from other work
                last = what
            bar.update(task, description=what, completed=done, total=total)

        yield tell
