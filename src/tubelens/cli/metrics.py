"""`tubelens metrics`: the measures by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from tubelens.cli.inspect import describe
from tubelens.cli.show import print_json, print_table
from tubelens.metrics import METRICS, Entry, metric


@dataclass
class Metrics:
    """List the metrics, which way is better and what they cost; and tell what one of them is.

    Example: tubelens metrics

    Example: tubelens metrics insertion
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """Tell what this one is and which options it has; also path.py:Class."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """A table, or what is known of one."""
        if self.name:
            self._one()
            return 0
        columns = ("name", "looks at", "better", "truth", "cost", "source")
        rows = [
            (name, e.kind, _better(e), "needed" if e.needs_truth else "-", e.cost, e.source)
            for name, e in METRICS.items()
        ]
        if self.json:
            print_json([dict(zip(columns, row, strict=True)) for row in rows])
            return 0
        print_table("", columns, rows)
        print(
            "F: a forward; M: maps of one clip, its anchors among them; R: a run of the method.\nOptions are"
            " written as in insertion(steps=16, fill=black); `tubelens metrics NAME` tells which there are."
        )
        return 0

    def _one(self) -> None:
        name = self.name.partition("(")[0].strip()
        entry = METRICS.get(name)
        kind = type(metric(name)) if entry is None else entry.make
        whole = Entry(kind, "", "") if entry is None else entry
        facts = {
            "looks at": whole.kind,
            "better": _better(whole),
            "truth": "needed" if whole.needs_truth else "-",
        }
        facts |= {} if entry is None else {"cost": entry.cost, "source": entry.source}
        describe(name, kind, facts, self.json)


def _better(entry: Entry) -> str:
    """Which way is better, and whether only the truth tells."""
    return f"{entry.better} with truth" if getattr(entry.make, "truth_directs", False) else entry.better
