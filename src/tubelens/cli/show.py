"""What the verbs share: tables, JSON, progress, and the options that choose a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from tubelens.errors import OptionError

STDERR = Console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; unwrapped where it is not a terminal, so that scripts can cut it."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # file names and labels are no markup
    with console.capture() as drawn:  # it would end the program where the reader of our output went away
        console.print(table)
    if title:  # by itself: as the table's it would be wrapped to the table's width
        print(title)
    print(drawn.get(), end="")


def note(text: str) -> None:
    """A remark on standard error."""
    print(f"note: {text}", file=sys.stderr)


class Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        """`12.3/s`, empty before the first."""
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error with rate and time left; silent where that is not a terminal.

    Gives a function of (done, total).
    """
    if not STDERR.is_terminal:
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=STDERR, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def read_labels(path: str | None) -> list[str] | None:
    """Labels from a text file, one a line, None for None.

    Raises:
        OptionError: no such file, or an empty one.
    """
    if path is None:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--labels {path}: cannot be read: {error}") from error
    labels = [line.strip() for line in lines if line.strip()]
    if not labels:
        raise OptionError(f"--labels {path}: no labels in it; one a line is expected")
    return labels
