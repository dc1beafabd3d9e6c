"""`tubelens metrics`: the measures by name."""

from __future__ import annotations

from dataclasses import dataclass

from tubelens.cli.show import print_json, print_table
from tubelens.metrics import METRICS


@dataclass
class Metrics:
    """List the metrics: what they look at, which way is better, what they cost.

    Example: tubelens metrics
    """

    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """A table."""
        columns = ("name", "looks at", "better", "truth", "cost", "source")
        rows = [
            (name, e.kind, e.better, "needed" if e.needs_truth else "-", e.cost, e.source)
            for name, e in METRICS.items()
        ]
        if self.json:
            print_json([dict(zip(columns, row, strict=True)) for row in rows])
            return 0
        print_table("", columns, rows)
        print(
            "F: a forward; M: maps of one clip, its anchors among them; R: a run of the method.\nOptions are"
            " written as in insertion(steps=16, fill=black); the class in Python tells which there are."
        )
        return 0
