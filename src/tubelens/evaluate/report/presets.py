"""Tables in the layout of a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tubelens.errors import OptionError, nearest
from tubelens.evaluate.report.figures import Curve, Drawn, curves_figure, slug, styles
from tubelens.evaluate.report.panels import Metric, Panel
from tubelens.evaluate.report.read import Results
from tubelens.evaluate.report.scores import Score, scores
from tubelens.evaluate.report.sections import curves_of, grid
from tubelens.evaluate.report.tables import Table

ICPR = {"gradcam": "Grad-CAM", "rise": "RISE", "sidu": "SIDU"}
AREAS = ("insertion", "deletion")
PARITY = "icpr2022"


@dataclass(frozen=True, eq=False)
class Preset:
    """What a preset adds: its tables and figures, and what it misses in the run."""

    title: str
    tables: tuple[Table, ...]
    figures: tuple[Drawn, ...]
    missing: tuple[str, ...]


def icpr2022(results: Results, seed: int = 0) -> Preset:
    """Rows Grad-CAM, RISE, SIDU; columns network, training spectrum, test spectrum; insertion and deletion.

    The layout of the ICPR 2022 study of these three methods. Its own numbers come from the `icpr2022`
    variants of methods and metrics, which are preferred where a run has several; others do not compare.
    """
    tables, figures, missing = [], [], []
    for area in AREAS:
        panels = [panel for panel in results.panels if short(panel.metric.name) == area]
        if not panels:
            missing.append(f"no {area} in this run")
        for name in dict.fromkeys(panel.metric.name for panel in panels):
            mine = [_renamed(panel) for panel in panels if panel.metric.name == name]
            absent = [v for v in ICPR.values() if not any(v in p.methods for p in mine)]
            missing += [f"{name}: no {', '.join(absent)}"] if absent else []
            missing += _variants(name, [p for p in panels if p.metric.name == name])
            lines: dict[Panel, list[Score]] = {panel: scores(panel, {}, seed)[0] for panel in mine}
            metric = mine[0].metric
            table = grid(metric, lines, only=tuple(ICPR.values()))
            title = f"AUC of {name} {metric.arrow}: mean ± standard deviation"
            tables.append(replace(table, name=f"icpr2022-{slug(name)}", title=title))
            if drawn := _curves(results, metric, [p for p in panels if p.metric.name == name]):
                figures.append(drawn)
    return Preset("ICPR 2022 layout", tuple(tables), tuple(figures), tuple(missing))


PRESETS: dict[str, Callable[..., Preset]] = {"icpr2022": icpr2022}


def preset(name: str) -> Callable[..., Preset]:
    """The preset of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in PRESETS:
        raise OptionError(f"unknown --preset {name!r}{nearest(name, PRESETS)}: one of {', '.join(PRESETS)}")
    return PRESETS[name]


def short(name: str) -> str:
    """What stands before the options: `rise` of `rise(n=500)`, `gradcam` of `GradCAM(layer=None)`."""
    return name.partition("(")[0].strip().lower()


def _variants(metric: str, panels: Sequence[Panel]) -> list[str]:
    """What is not the published variant, and which of several is shown."""
    said = []
    if PARITY not in metric:
        said.append(
            f"{metric} is not the published variant, {short(metric)}(parity={PARITY}): do not compare"
        )
    names = list(dict.fromkeys(name for panel in panels for name in panel.methods))
    for key, title in ICPR.items():
        mine = [name for name in names if short(name) == key]
        if not mine:
            continue
        shown = names[next(i for i in _chosen(names) if short(names[i]) == key)]
        if len(mine) > 1:
            said.append(f"{metric}: {title} is {shown}, not {', '.join(n for n in mine if n != shown)}")
        if PARITY not in shown:
            said.append(f"{metric}: {title} is {shown}, not the published variant (parity={PARITY})")
    return said


def _chosen(names: Sequence[str]) -> list[int]:
    """Where the three methods stand, of several variants of one the published first."""
    found = [i for i, name in enumerate(names) if short(name) in ICPR]
    return sorted(found, key=lambda i: PARITY not in names[i])


def _renamed(panel: Panel) -> Panel:
    """Only the three methods, called as in the paper."""
    rows = {ICPR[short(panel.methods[i])]: i for i in reversed(_chosen(panel.methods))}
    keep = list(rows.values())
    return replace(
        panel,
        methods=tuple(rows),
        values=panel.values[keep],
        normalised=panel.normalised[keep],
        forwards=panel.forwards[keep],
        seconds=panel.seconds[keep],
        undefined=panel.undefined[keep],
        anchors={},
        apart=None,
    )


def _curves(results: Results, metric: Metric, panels: Sequence[Panel]) -> Drawn | None:
    found: dict[str, list[Curve]] = {}
    for where, curves in curves_of(results, panels, {}).items():
        order = [curves[i] for i in reversed(_chosen([c.name for c in curves]))]
        kept = {ICPR[short(c.name)]: replace(c, name=ICPR[short(c.name)]) for c in order}
        ordered = [kept[name] for name in ICPR.values() if name in kept]
        ordered += [c for c in curves if c.dashed]
        if kept:
            found[where] = ordered
    if not found:
        return None
    drawn = curves_figure(metric, found, styles(list(ICPR.values())))
    return replace(drawn, name=f"icpr2022-{drawn.name}")
