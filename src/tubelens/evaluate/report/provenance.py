"""How a run came about, in a table: enough to make it again."""

from __future__ import annotations

from typing import Any

from tubelens.evaluate.report.read import Results
from tubelens.evaluate.report.tables import Column, Table

COLUMNS = (Column("what", ("what",)), Column("which", ("which",)), Column("value", ("value",)))


def provenance_table(results: Results) -> Table:
    """Manifest, date and version of the run; weights and hash of every model; methods and metrics in full,
    and seeds. What the run was not told is left out.
    """
    facts = results.facts
    told = [(key, results.made.get(key)) for key in ("manifest", "date", "version")]
    rows = [("run", key, value) for key, value in told if value]
    for model in facts.models:
        named = ("network", "weights", "hash", "input", "output", "layer", "trained")
        rows += [("model", model.name, f"{k}: {model.facts[k]}") for k in named if model.facts.get(k)]
    for method in facts.methods:
        rows += [("method", method.name, str(method.facts["repr"]))] if method.facts.get("repr") else []
        seeds = results.seeds.get(method.name, ())
        rows += [("seeds", method.name, ", ".join(map(str, seeds)))] if list(seeds) else []
    rows += [("metric", m.name, str(m.facts["repr"])) for m in facts.metrics if m.facts.get("repr")]
    lines: tuple[dict[str, Any], ...] = tuple(
        {"what": what, "which": which, "value": str(value)} for what, which, value in rows
    )
    return Table("provenance", "How the run came about", COLUMNS, lines)
