"""`tubelens evaluate`: a data set x networks x methods x metrics, into a run that can be continued."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import tyro

from tubelens.cli.options import SeveralNetworks, _each
from tubelens.cli.show import duration, note, print_json, print_table, progress, read_labels
from tubelens.errors import OptionError
from tubelens.evaluate.job import Network
from tubelens.evaluate.run import evaluate
from tubelens.evaluate.summary import Evaluation
from tubelens.running import Precision, Progress

LONG = 10.0
"""Seconds from which on the time that a run will take is announced."""
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
    """

    manifest: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MANIFEST")]
    """The data set."""
    method: tuple[str, ...] = ("tubes",)
    """Methods, by name, with options in brackets if wanted."""
    metric: tuple[str, ...] = ()
    """Metrics, likewise (`tubelens metrics` lists them); none: only maps are made."""
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
        """Evaluate; the exit code is 1 where nothing at all could be had."""
        if not self.method:
            raise OptionError("--method needs at least one name (`tubelens methods` lists them)")
        if self.engine == "local" and (self.address is not None or self.slots is not None):
            raise OptionError("--address and --slots are for --engine ray")
        networks = self._networks()
        with _told("evaluating") as tick:
            found = evaluate(
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
        self._report(found)
        return 0 if found.ok else 1

    def _networks(self) -> list[Network]:
        rows = self.networks()
        n = len(rows)
        trained, names = _each("--trained", self.trained, n), _each("--name", self.name, n)
        if len(self.name) == 1 < n:
            raise OptionError(f"--name: 1 is given for {n} networks: give one each")
        return [
            Network(
                model=model,
                weights=weights,
                input=fed,
                labels=None if (found := read_labels(labels)) is None else tuple(found),
                trained=spectrum or "",
                name=name or "",
                device=self.device,
                seed=self.seed,
                trust=self.trust,
            )
            for (model, weights, fed, labels), spectrum, name in zip(rows, trained, names, strict=True)
        ]

    def _report(self, found: Evaluation) -> None:
        if found.missing:
            note(f"{found.missing} clips were left out: their files are missing")
        if found.without_truth:
            note(
                f"{found.without_truth} scores were left out: they need to know where the evidence is, and"
                " nobody does on those clips (boxes or masks in the manifest tell)"
            )
        if found.passed_over:
            note(f"{found.passed_over} units failed before and were left alone (--skip-failed)")
        reasons = found.reasons()
        for reason, count in reasons[:FEW]:
            print(f"tubelens: failed: {reason}{f' ({count} times)' if count > 1 else ''}", file=sys.stderr)
        if len(reasons) > FEW:
            print(f"tubelens: failed: {len(reasons) - FEW} more reasons (in the run)", file=sys.stderr)
        lines = found.table()
        if self.json:
            failures = [asdict(fault) for fault in found.failures]
            counts = {k: v for k, v in vars(found).items() if k not in ("path", "failures")}
            means: list[Any] = [asdict(line) for line in lines]
            for line in means:  # NaN is no JSON
                line |= {key: None for key in ("mean", "std") if line[key] != line[key]}
            print_json({"out": str(found.path), **counts, "failures": failures, "means": means})
            return
        if lines:
            several = len({line.model for line in lines}) > 1
            rows = [
                [
                    *([line.model] if several else []),
                    *(line.method, line.metric, str(line.n), f"{line.mean:.3f}"),
                    "" if line.std != line.std else f"{line.std:.3f}",
                ]
                for line in lines
            ]
            columns = [*(["network"] if several else []), "method", "metric", "n", "mean", "std"]
            print_table("", columns, rows)
        print(f"{found} ({duration(found.seconds)})")


@contextmanager
def _told(what: str) -> Iterator[Progress]:
    """A progress bar; and a word on how long it will take, after the first unit of several."""
    with progress(what) as bar:
        first: list[tuple[float, int]] = []

        def tick(done: int, total: int) -> None:
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
