"""`tubelens evaluate`: a data set x networks x methods x metrics, into a run that can be continued."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.text import Text

from tubelens.cli.options import SeveralNetworks, each, told
from tubelens.cli.show import STDERR, duration, note, print_json, print_table, progress, read_labels
from tubelens.errors import OptionError
from tubelens.evaluate.job import Network, asked
from tubelens.evaluate.planted_models import own_networks
from tubelens.evaluate.presets import filled
from tubelens.evaluate.run import evaluate
from tubelens.evaluate.summary import Evaluation, Line
from tubelens.metrics.anchors import loses
from tubelens.running import Precision, Progress
from tubelens.store import RunStore

LONG = 10.0
"""Seconds from which on the time that a run will take is announced."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
UNKNOWN = "no truth"
"""State of a line whose metric needs a truth that nobody knows."""
FEW = 5
"""Reasons of failures that are told; all of them are in the run."""


@dataclass
class Evaluate(SeveralNetworks):
    """Score methods over a data set; a run that was stopped is continued by the same command.

    Example: tubelens evaluate clips.csv --method gradcam rise --metric insertion deletion --out runs/first

    Example: tubelens evaluate planted:dir?n=40 --method tubes "rise(n=500)" --metric ap --out runs/planted

    MANIFEST is a CSV (columns path and label; optional start, end, boxes, masks, spectrum, id), a folder with
    one for every class, planted:TASK, or package.module:function that yields clips. Each clip is decoded once
    for all networks and methods, and committed with all its maps and scores; what fails is listed with its
    reason, and the rest goes on. `tubelens report RUN` shows what came of it.

    Cost: a clip and a network take one forward, what `tubelens methods` and `tubelens metrics` tell, and the
    decoding, which goes on meanwhile. The time that all will take is told after the first.

    Exit code: 1 where a method or a metric has no score at all, 130 after Ctrl-C: the same command goes on.
    """

    manifest: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MANIFEST")]
    """The data set."""
    model: tuple[str, ...] = field(default=(), kw_only=True)
    """Names that `tubelens models` lists, files (net.keras, net.h5, net.json, net.onnx), folders or
    hf:OWNER/NAME of transformers checkpoints, package.module:factory, path.py:factory. Default those that
    learned the clips of planted:TASK (planted_xor, ...); else bundled."""
    method: tuple[str, ...] = ()
    """Methods, by name, with options in brackets if wanted; default tubes, or those of --preset."""
    metric: tuple[str, ...] = ()
    """Metrics, likewise (`tubelens metrics` lists them); none, here and in --preset: only maps are made."""
    preset: str | None = None
    """Methods and metrics of a study, where they are not given: multispectral (gradcam, rise, sidu, tubes and
    gated by insertion, deletion, energy and sparseness)."""
    out: str = "run"
    """The run, a folder; one that is there is continued."""
    trained: tuple[str, ...] = ()
    """Spectrum that each network was trained on, such as visible or ir, for the report (- for none)."""
    name: tuple[str, ...] = ()
    """What the run calls each network; default its name and weights."""
    target: Literal["predicted", "label"] = "predicted"
    """What is explained: the strongest class of each clip, or the label in the manifest."""
    seeds: tuple[int, ...] = (0,)
    """Methods that draw are run once with each; others once."""
    sampling: Literal["uniform", "dense", "segments", "random"] | None = None
    """Which frames: spread over the video, a dense run, one a segment, or a random run; default as the
    network's recipe does."""
    frames: int | None = None
    """Clip length, if not the network's own."""
    stride: int | None = None
    """Frames from one sampled frame to the next; default the one the network was trained with."""
    limit: int | None = None
    """Only so many clips, the first ones."""
    missing: Literal["error", "skip"] = "error"
    """Files of the manifest that are not there: complain, or leave their clips out."""
    skip_failed: bool = False
    """Leave alone what failed before; else it is tried again."""
    precision: Precision = "fp32"
    """Of scoring: auto is bf16 where the hardware has it and a pilot agrees. Gradients are always fp32."""
    batch: int | None = None
    """Clips in one forward of scoring, 8 unless told; the last bits of the scores depend on it."""
    threads: int | None = None
    """CPU threads of the networks; likewise. Default: those of the run so far."""
    engine: Literal["local", "ray"] = "local"
    """This process, or Ray actors on one machine or many (extra ray)."""
    workers: int | None = None
    """Processes that decode ahead; 0: a thread of this process."""
    address: str | None = None
    """Of a Ray cluster, such as auto or HOST:6379; default one on this machine."""
    slots: int | None = None
    """Ray actors, each with its own networks; default one a GPU or CPU."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    seed: int = 0
    """Of random weights."""
    trust: bool = False
    """Unpickle a weights file even where that runs code that is in it."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Evaluate; the exit code is 1 where a method or a metric has no score at all, 130 after Ctrl-C."""
        by_name = bool(self.metric)
        self.method, self.metric = filled(self.preset, self.method, self.metric)
        if self.engine == "local" and (self.address is not None or self.slots is not None):
            raise OptionError("--address and --slots are for --engine ray")
        self.model = self.model or own_networks(self.manifest)
        networks = self._networks()
        methods = [asked("method", written).name for written in self.method]
        metrics = [asked("metric", written).name for written in self.metric]
        try:
            found = self._evaluate(networks)
        except KeyboardInterrupt:
            said = "interrupted; what was committed is kept: the same command goes on"
            print(f"tubelens: {said}", file=sys.stderr)
            return INTERRUPTED
        lines = means(found, methods, metrics)
        lacking = _lacking(lines, methods, metrics) if metrics else _without_maps(found, methods)
        if not by_name:  # of a preset, whose metrics may need a truth that the data set does not have
            lacking = [
                name for name in lacking if name not in {e.metric for e in lines if e.state == UNKNOWN}
            ]
        self._report(found, lines)
        if lacking:
            print(
                f"tubelens: no {'score' if self.metric else 'map'} at all: {', '.join(lacking)}",
                file=sys.stderr,
            )
        return 1 if lacking or not found.ok else 0

    def _evaluate(self, networks: list[Network]) -> Evaluation:
        with _told("evaluating", f"loading {', '.join(self.model)}, then the first clip") as tick:
            return evaluate(
                self.manifest,
                networks,
                list(self.method),
                list(self.metric),
                self.out,
                target=self.target,
                seeds=self.seeds,
                sampling=self.sampling,
                frames=self.frames,
                stride=self.stride,
                limit=self.limit,
                missing=self.missing,
                precision=self.precision,
                batch=self.batch,
                threads=self.threads,
                engine=self.engine,
                workers=self.workers,
                address=self.address,
                slots=self.slots,
                skip_failed=self.skip_failed,
                progress=tick,
            )

    def _networks(self) -> list[Network]:
        rows = self.networks()
        if spectra := told(self.input)[1]:
            raise OptionError(
                f"evaluate: --input {spectra[0]}: the videos are in MANIFEST: there a clip of several spectra"
                " is visible=a.mp4|lwir=b/, or has a column path:NAME for each"
            )
        n = len(rows)
        trained, names = each("--trained", self.trained, n), each("--name", self.name, n)
        if len(self.name) == 1 < n:
            raise OptionError(f"--name: 1 is given for {n} networks: give one each")
        return [
            Network(
                model=model,
                weights=weights,
                input=fed,
                labels=None if (found := read_labels(labels)) is None else tuple(found),
                adapt=adapt,
                trained=spectrum or "",
                name=name or "",
                device=self.device,
                seed=self.seed,
                trust=self.trust,
            )
            for (model, weights, fed, labels, adapt), spectrum, name in zip(rows, trained, names, strict=True)
        ]

    def _report(self, found: Evaluation, lines: Sequence[Mean]) -> None:
        for said in getattr(found, "notes", ()):
            note(said)
        if found.missing:
            note(f"{found.missing} clips were left out: their files are missing")
        if found.without_truth:
            note(
                f"{found.without_truth} scores were left out: they need to know where the evidence is, and"
                " nobody does on those clips: add a column boxes (or masks) to the manifest"
            )
        if found.passed_over:
            note(f"{found.passed_over} units failed before and were left alone (--skip-failed)")
        reasons = found.reasons()
        for reason, count in reasons[:FEW]:
            print(f"tubelens: failed: {reason}{f' ({count} times)' if count > 1 else ''}", file=sys.stderr)
        if len(reasons) > FEW:
            print(f"tubelens: failed: {len(reasons) - FEW} more reasons (in the run)", file=sys.stderr)
        if self.json:
            failures = [asdict(fault) for fault in found.failures]
            counts = {k: v for k, v in vars(found).items() if k not in ("path", "failures")}
            told: list[Any] = [asdict(line) for line in lines]
            for line in told:  # NaN is no JSON
                line |= {key: None for key in ("mean", "std", "random") if line[key] != line[key]}
            print_json({"out": str(found.path), **counts, "failures": failures, "means": told})
            return
        if lines:
            several = len({line.model for line in lines}) > 1
            columns = [
                *(["network"] if several else []),
                "method",
                "metric",
                "n",
                "mean",
                "std",
                "random",
                "",
            ]
            print_table("", columns, [line.cells()[0 if several else 1 :] for line in lines])
        print(f"{found} ({duration(found.seconds)})")
        if any(line.n for line in lines):
            print(f"next: tubelens report {shlex.quote(str(found.path))}")


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Mean:
    """A line of the table: a method by a metric.

    Attributes:
        n: clips with a score. `mean`, `std`: over them, seeds averaged first; NaN where there is none.
        random: mean of the anchor, a map that is random, over those of them where it is known.
        worse: whether the mean is worse than that, on the clips that have both.
        state: "failed", or "no truth" where nobody knows where the evidence is; empty where there are scores.
    """

    model: str
    method: str
    metric: str
    n: int
    mean: float
    std: float
    random: float = float("nan")
    worse: bool = False
    state: str = ""

    def cells(self) -> list[str]:
        """As the table shows them."""
        mean = self.state or ("undefined" if self.mean != self.mean else f"{self.mean:.3f}")
        rest = ["" if number != number else f"{number:.3f}" for number in (self.std, self.random)]
        mark = "worse than random" if self.worse else ""
        return [self.model, self.method, self.metric, str(self.n), mean, *rest, mark]


def means(found: Evaluation, methods: Sequence[str], metrics: Sequence[str]) -> list[Mean]:
    """Means of all that is in the run beside the random anchor's; and lines for what has no score.

    Args:
        found: the run.
        methods: what was asked for, by the names of the run.
        metrics: likewise.
    """
    known = {(line.model, line.method, line.metric): line for line in found.table()}
    lines = []
    with RunStore.read(found.path) as store:
        columns, faults = store.cells(), store.failures()
        for by, model, how in product(*(store.names(table) for table in ("metrics", "models", "methods"))):
            here = columns["metric"] == by.id
            here &= (columns["model"] == model.id) & (columns["method"] == how.id)
            line = known.get((model.name, how.name, by.name))
            if line is not None and here.any():
                random, worse = _beside({key: column[here] for key, column in columns.items()}, by.facts)
                lines.append(Mean(*_named(line), line.n, line.mean, line.std, random, worse))
                continue
            mine = [f for _, m, f, _ in faults if m in (0, model.id) and f.metric in (0, by.id)]
            failed = any(f.method == how.id for f in mine)
            unknown = by.facts.get("needs_truth") and how.name in methods and by.name in metrics
            state = "failed" if failed else UNKNOWN if unknown else ""
            state = state or ("failed" if any(f.method == 0 for f in mine) else "")
            if state:
                nan = float("nan")
                lines.append(Mean(model.name, how.name, by.name, 0, nan, nan, state=state))
    return lines


def _named(line: Line) -> tuple[str, str, str]:
    return line.model, line.method, line.metric


def _beside(columns: dict[str, np.ndarray], facts: dict[str, Any]) -> tuple[float, bool]:
    """The random anchor's mean, seeds averaged first, and whether the map's is worse on the same clips."""
    both = np.isfinite(columns["value"]) & np.isfinite(columns["random"])
    if not both.any():
        return float("nan"), False
    _, at, counts = np.unique(columns["clip"][both], return_inverse=True, return_counts=True)
    value, random = (
        float((np.bincount(at, weights=columns[key][both]) / counts).mean()) for key in ("value", "random")
    )
    return random, loses(value, random, facts.get("higher_is_better"))


def _lacking(lines: Sequence[Mean], methods: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """What was asked for and has no score in the run."""
    scored = [line for line in lines if not line.state]
    there = {line.method for line in scored if line.metric in metrics}
    measured = {line.metric for line in scored if line.method in methods}
    return [m for m in methods if m not in there] + [m for m in metrics if m not in measured]


def _without_maps(found: Evaluation, methods: Sequence[str]) -> list[str]:
    with RunStore.read(found.path) as store:
        lacking = {row.id: row.name for row in store.names("methods") if row.name in methods}
        for clip, model in product(store.names("clips"), store.names("models")):
            for how, _ in store.mapped(clip.id, model.id):
                lacking.pop(how, None)
            if not lacking:
                break
    return list(lacking.values())


# ── while it runs ────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _told(what: str, before: str = "") -> Iterator[Progress]:
    """On a terminal what is done before the first unit is ready, then a progress bar.

    And a word on how long it will take, after the first unit of several.
    """
    with ExitStack() as stack:
        bar: Progress | None = None
        wait = None
        if before and STDERR.is_terminal:
            wait = stack.enter_context(STDERR.status(Text(before)))
        first: list[tuple[float, int]] = []

        def tick(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                if wait is not None:
                    wait.stop()
                bar = stack.enter_context(progress(what))
            first.append((time.monotonic(), done))
            if len(first) == 2:  # the first units pay for what is made ready once
                each = (first[1][0] - first[0][0]) / max(1, done - first[0][1])
                if each * (total - done) > LONG:
                    note(
                        f"{total - done:,} clips and networks to go, {each:.2g} s each:"
                        f" about {duration(each * (total - done))}"
                    )
            del first[2:]
            bar(done, total)

        yield tick
