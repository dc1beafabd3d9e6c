"""What a finished experiment says, in Markdown: every verdict is computed from an interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from plan import BOTH, Plan
from table import (
    AREAS,
    FOCUS,
    RANDOM,
    Accuracy,
    Difference,
    Key,
    Values,
    accuracy_lines,
    area_lines,
    difference,
)

PAPER = ("Grad-CAM", "RISE", "SIDU")
WORDS = {"more": "more", "less": "less", "undecided": "undecided (the interval holds 0)"}


def summary(
    plan: Plan,
    found: Mapping[Key, Values],
    right: Sequence[Accuracy],
    joint: Sequence[Difference],
    against: Sequence[Difference],
    spent: Sequence[str],
) -> Iterator[str]:
    """The lines of `summary.md`.

    Args:
        plan: what was run.
        found: scores by network, training, spectrum, method and metric.
        right: accuracies.
        joint: joint minus single training.
        against: Grad-CAM minus other methods.
        spent: lines about what the maps and all of it took.
    """
    yield f"# Multispectral experiment: {plan.name}"
    yield ""
    yield from (f"- {fact}" for fact in plan.facts)
    yield "- intervals: 95 %, bootstrap over clips (Wilson's for shares of clips); each by itself, so that of"
    yield "  twenty one is expected to be off; they tell of other clips, not of other trainings (one seed)"
    yield ""
    yield "## Accuracy"
    yield ""
    yield from accuracy_lines(right)
    yield ""
    yield "Who is taken for whom, and the recall of each class: `confusion.md`."
    yield ""
    yield "## Insertion and deletion"
    yield ""
    for area in AREAS:
        yield from area_lines(plan, found, area)
    yield "## Grad-CAM outperforms its competitors?"
    yield ""
    yield from _grad_cam(against)
    yield from spent
    yield ""
    yield "## Joint training outperforms single-spectrum training?"
    yield ""
    if BOTH not in plan.trainings:
        yield "Not asked: these recordings are of one spectrum."
        yield ""
        return
    yield from _outperforms(right, joint)
    yield "## Joint training gives more focused maps?"
    yield ""
    yield from _focus(joint)


def _grad_cam(against: Sequence[Difference]) -> Iterator[str]:
    """For each competitor and metric, in how many networks and trainings Grad-CAM is better."""
    yield "| Grad-CAM against | metric | better | worse | undecided | mean differences |"
    yield "|---|---|---|---|---|---|"
    tally: dict[str, Counter[str]] = {}
    kinds = list(dict.fromkeys((d.what[3], d.what[4]) for d in against))
    for method, metric in kinds:
        mine = [d for d in against if d.what[3:] == (method, metric)]
        said = Counter(_better(d, metric) for d in mine)
        if metric in AREAS and method != RANDOM:
            tally.setdefault(method, Counter()).update(said)
        means = ", ".join(f"{d.mean:+.3f}" for d in mine)
        yield f"| {method} | {metric} | {said['better']} | {said['worse']} | {said['undecided']} | {means} |"
    yield ""
    for method, said in tally.items():
        whose = "" if method in PAPER else " (no competitor in the paper)"
        yield (
            f"- Against {method}{whose}, by insertion and deletion: better in {said['better']}, worse"
            f" in {said['worse']}, undecided in {said['undecided']}. {_verdict(said)}"
        )
    both = sum((said for method, said in tally.items() if method in PAPER), Counter[str]())
    yield ""
    yield f"Of the claim as a whole, against both competitors: {_verdict(both)}"
    yield ""


def _better(d: Difference, metric: str) -> str:
    if d.verdict == "undecided":
        return "undecided"
    return "better" if (d.verdict == "more") == AREAS.get(metric, True) else "worse"


def _verdict(said: Counter[str]) -> str:
    """A sentence about counts of better, worse and undecided: a claim holds where nothing contradicts it."""
    better, worse, unsure = said["better"], said["worse"], said["undecided"]
    if better and not worse:
        return "**Agrees**" + (", where it can be told." if unsure else " throughout.")
    if worse and not better:
        return "**Disagrees**" + (", where it can be told." if unsure else " throughout.")
    return (
        "**Undecided.**"
        if not better
        else "**Mixed: it depends on the network, the spectrum and the metric.**"
    )


def _outperforms(right: Sequence[Accuracy], joint: Sequence[Difference]) -> Iterator[str]:
    by = {(a.trained.network, a.trained.training, a.spectrum): a for a in right}
    yield "| network | spectrum | accuracy: joint | single | difference | verdict |"
    yield "|---|---|---|---|---|---|"
    said: Counter[str] = Counter()
    for (network, training, spectrum), a in by.items():
        if training != BOTH:
            continue
        hits = [
            {str(i): float(hit) for i, hit in enumerate(of.guess == of.truth)}
            for of in (a, by[network, spectrum, spectrum])
        ]
        d = difference((network, spectrum), *hits)
        said[_better(d, "accuracy")] += 1
        yield (
            f"| {network} | {spectrum} | {d.first:.3f} | {d.second:.3f} | {d.mean:+.3f} [{d.low:+.3f},"
            f" {d.high:+.3f}] | {WORDS[d.verdict]} |"
        )
    yield ""
    yield f"By accuracy: {_verdict(said)}"
    yield ""
    areas = [d for d in joint if d.what[3] in AREAS and d.what[4] == "all" and d.what[2] in PAPER]
    said = Counter(_better(d, d.what[3]) for d in areas)
    yield (
        f"By insertion and deletion of the paper's three methods: better in {said['better']}, worse in"
        f" {said['worse']}, undecided in {said['undecided']} comparisons. {_verdict(said)}"
    )
    yield ""


def _focus(joint: Sequence[Difference]) -> Iterator[str]:
    metrics = [m for m in FOCUS if any(d.what[3] == m for d in joint)]
    for clips in ("all", "both right"):
        yield (
            f"Joint minus single training, clips: {clips}."
            if clips == "all"
            else ("The same on the clips that both networks get right:")
        )
        yield ""
        yield "| network | spectrum | method | n | " + " | ".join(metrics) + " |"
        yield "|---" * (4 + len(metrics)) + "|"
        mine = [d for d in joint if d.what[4] == clips]
        for what in dict.fromkeys(d.what[:3] for d in mine):
            row = {d.what[3]: d for d in mine if d.what[:3] == what}
            cells = [_cell(row.get(m)) for m in metrics]
            n = max(d.clips for d in row.values())
            yield f"| {' | '.join(what)} | {n} | " + " | ".join(cells) + " |"
        yield ""
        for metric in metrics:
            for paper, who in ((True, "the paper's three methods"), (False, "all methods")):
                said = Counter(
                    _better(d, metric)
                    for d in mine
                    if d.what[3] == metric and (d.what[2] in PAPER or not paper)
                )
                yield (
                    f"- {metric}, {who}: more in {said['better']}, less in {said['worse']}, undecided in"
                    f" {said['undecided']}. {_verdict(said)}"
                )
        yield ""


def _cell(d: Difference | None) -> str:
    if d is None or not np.isfinite(d.mean):
        return "–"
    mark = {"more": " ↑", "less": " ↓", "undecided": ""}[d.verdict]
    interval = f" [{d.low:+.3f}, {d.high:+.3f}]" if np.isfinite(d.low) else ""
    return f"{d.mean:+.3f}{interval}{mark}"
