"""`tubelens explain`: videos x methods x targets to drawings and numbers."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tubelens.api import OVER_WINDOWS, explain_all
from tubelens.budget import cost, in_forwards, one_forward
from tubelens.cli.options import chosen, numbered
from tubelens.cli.show import duration, note, print_json, print_table, progress, read_labels
from tubelens.clip import Clip, Pad
from tubelens.errors import OptionError, TubelensError
from tubelens.explanation import WRITERS, Explanation
from tubelens.loading import load_model
from tubelens.methods import short_name
from tubelens.methods.select import Strongest
from tubelens.model import Model
from tubelens.render import draw
from tubelens.render.compose import look
from tubelens.running import Budget, Precision, Run
from tubelens.video import ClipWindows

SUFFIXES = ("mp4", "gif", "webm", "png", "safetensors", "frames")
Format = Literal["mp4", "gif", "webm", "png", "safetensors", "frames"]
FEW = 8
"""So few forwards are not worth an estimate."""
LONG = 10.0
"""Seconds from which on the cost is announced."""


@dataclass
class Explain:
    """Show where and when the model looked, drawn on the video.

    Example: tubelens explain v.mp4 --model r3d_18 --weights KINETICS400_V1 --target archery --out why.mp4

    Example: tubelens explain v.mp4 --method tubes gradcam "rise(n=500)" --out methods.mp4

    Cost: what `tubelens methods` tells, whatever the number of targets; methods that read a layer share one
    forward (two a window with --sampling windows and no --target). More than ten seconds are announced.
    """

    videos: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="VIDEO...")]
    """Video files, GIFs or folders of frames."""
    model: str = "bundled"
    """A name that `tubelens models` lists, package.module:factory, or path.py:factory."""
    weights: str | None = None
    """An official name, a file, or random."""
    labels: str | None = None
    """Text file with the class names, one a line."""
    method: tuple[str, ...] = ("tubes",)
    """Methods, by name, with options in brackets if wanted; several are drawn together."""
    target: tuple[str, ...] = ()
    """Labels or class indices; top3 is the three strongest; default the strongest."""
    layer: tuple[str, ...] = ()
    """Layer to explain (`tubelens layers` lists them); several are fused by methods that can."""
    budget: str | None = None
    """What each method may cost: forwards such as 500, or a time such as 30s."""
    precision: Precision = "auto"
    """Of scoring: auto is bf16 where the hardware has it and a pilot agrees. Gradients are always fp32."""
    batch: int | None = None
    """Clips in one forward of scoring; default as many as pay and fit."""
    strongest: int | None = None
    """Keep only so many features, the strongest; the map is then no longer the whole decision."""
    parity: Literal["paper", "icpr2022", "cfp"] | None = None
    """The published variant, to compare with old figures: paper (tubes), icpr2022, cfp (pyramid)."""
    out: str = "tubes"
    """A folder; for one video, method and target also a file, whose suffix decides what is written."""
    format: tuple[Format, ...] = ("mp4",)
    """What is written into the folder; frames is a folder of PNG frames."""
    style: Literal["heat", "focus", "contour", "paper"] | None = None
    """How the tube is drawn; paper is the published jet at one half. Default heat; a png shows several."""
    colormap: str | None = None
    """Any matplotlib colour map."""
    beside: bool = False
    """Original at the left, and all targets side by side in one picture."""
    apart: bool = False
    """Several methods each in a picture of its own."""
    plain: bool = False
    """No caption and no strip of heat over time."""
    sampling: Literal["uniform", "dense", "segments", "random", "windows"] = "uniform"
    """Which frames: spread over the video, a dense run, one a segment, a random run, or all in windows."""
    start: float = 0.0
    """Seconds at which a dense run or the windows begin."""
    stride: int | None = None
    """Frames from one sampled frame to the next; default the one the network was trained with."""
    frames: int | None = None
    """Clip length, if not the network's own."""
    overlap: float = 0.5
    """Share of a window that the next one covers again."""
    pad: Pad = "clamp"
    """What fills a clip when the video is too short: the last frame again, or black."""
    seed: int = 0
    """Of random weights, random sampling, and methods that draw."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Explain every video; one that fails is reported and the rest goes on."""
        self._check()
        model = load_model(
            self.model, self.weights, seed=self.seed, labels=read_labels(self.labels), device=self.device
        )
        methods = chosen(self.method, self._options(), self.seed)
        results: list[dict[str, Any]] = []
        code = 0
        for video, stem in zip(self.videos, _stems(self.videos), strict=True):
            try:
                results += self._explain_one(model, methods, video, stem)
            except TubelensError as error:
                if len(self.videos) == 1 or self.debug:
                    raise
                print(f"tubelens: {error}", file=sys.stderr)
                code = max(code, error.exit_code)
        self._report(model, results)
        return code

    def _check(self) -> None:
        if not self.videos:
            raise OptionError("explain: name at least one VIDEO (`tubelens explain --help` has an example)")
        if not self.method:
            raise OptionError("--method needs at least one name (`tubelens methods` lists them)")
        if self.batch is not None and self.batch < 1:
            raise OptionError(f"--batch must be at least 1, not {self.batch}")
        if self.budget is not None:
            Budget.of(self.budget)
        look(self.style or "heat", colormap=self.colormap)  # checks it before any work is done
        if not 0 <= self.overlap < 1:
            raise OptionError(f"--overlap must be at least 0 and below 1, not {self.overlap:g}")
        if self.strongest is not None and self.strongest < 1:
            raise OptionError(f"--strongest must be at least 1, not {self.strongest}")
        suffix = Path(self.out).suffix.lower()
        folder = not suffix or Path(self.out).is_dir()
        numbers = "safetensors" in self.format if folder else suffix == ".safetensors"
        if numbers and self.beside and self._several():
            raise OptionError(
                "--beside draws several targets in one picture, but safetensors holds the numbers of one:"
                " leave one of the two out"
            )
        if folder:
            return
        if suffix not in WRITERS:
            known = ", ".join(sorted(s for s in WRITERS if s))
            raise OptionError(f"--out {self.out}: unknown suffix {suffix!r}: use one of {known}, or a folder")
        together = len(self.method) == 1 or not (self.apart or numbers)
        if len(self.videos) > 1 or not together or (self._several() and not self.beside):
            raise OptionError(
                f"--out {self.out}: one file holds one video and one target, and numbers or --apart one"
                " method: give a folder, or --beside for several targets in one picture"
            )

    def _options(self) -> dict[str, Any]:
        options = {
            "layer": (self.layer[0] if len(self.layer) == 1 else self.layer) or None,
            "parity": self.parity,
            "select": None if self.strongest is None else Strongest(self.strongest),
        }
        return {key: value for key, value in options.items() if value is not None}

    def _several(self) -> bool:
        tops = (re.fullmatch(r"top(\d+)", t.lower()) for t in self.target)
        return len(self.target) > 1 or any(top is not None and int(top[1]) > 1 for top in tops)

    def _read(self, model: Model, video: str) -> Clip | ClipWindows:
        options: dict[str, Any] = {"stride": self.stride, "frames": self.frames, "pad": self.pad}
        options = {key: value for key, value in options.items() if value is not None}
        if self.sampling == "windows":
            windows: ClipWindows = model.windows(video, start=self.start, overlap=self.overlap, **options)
            return windows
        return model.read(video, self.sampling, start=self.start, seed=self.seed, **options)

    def _explain_one(self, model: Model, methods: list[Any], video: str, stem: str) -> list[dict[str, Any]]:
        clip = self._read(model, video)
        if clip.source.padded:
            note(f"{video}: too short for the clip: {clip.source.padded} frames were repeated or padded")
        wanted = list(self.target) if self.target else None
        self._announce(model, clip, methods)
        with progress(f"explaining {Path(video).name}") as tick:
            run = Run(self.batch, self.precision, tick)
            found = explain_all(model, clip, methods, wanted, budget=self.budget, run=run)
        if self.sampling == "random":
            found = [[_seeded(e, self.seed) for e in row] for row in found]
        for line in dict.fromkeys(n for row in found for e in row for n in e.provenance.notes):
            if line != OVER_WINDOWS:  # true of all, and no surprise
                note(line)
        return self._write(found, stem, video)

    def _announce(self, model: Model, clip: Clip | ClipWindows, methods: list[Any]) -> None:
        """What more than ten seconds of work will take, before it starts."""
        one = next(iter(clip))[1] if isinstance(clip, ClipWindows) else clip
        passes = cost(methods, model, one)
        count = in_forwards(passes) * (len(clip) if isinstance(clip, ClipWindows) else 1)
        if self.budget is not None or count < FEW:
            return
        each = one_forward(model, one)
        if count * each > LONG:
            note(
                f"about {count:,} forwards of {each * 1e3:.0f} ms: about {duration(count * each)}"
                " (--budget sets a limit)"
            )

    def _write(self, found: list[list[Explanation]], stem: str, video: str) -> list[dict[str, Any]]:
        """Files and results, group by group: what one picture shows together."""
        titles = numbered([short_name(row[0].provenance.method) for row in found])
        rows = [[(title, e) for e in row] for title, row in zip(titles, found, strict=True)]
        if len(rows) > 1 and not self.apart:
            groups = [list(column) for column in zip(*rows, strict=True)]
        else:
            groups = [[pair] for row in rows for pair in row]
        if self.beside:
            groups = rows if self.apart else [[pair for row in rows for pair in row]]
        results = []
        for group in groups:
            paths = [str(path) for kind in self._kinds() for path in self._draw(group, stem, kind)]
            results += [self._result(e, video, title, paths) for title, e in group]
        return results

    def _kinds(self) -> tuple[str, ...]:
        out = Path(self.out)
        return (out.suffix.lower()[1:],) if out.suffix and not out.is_dir() else self.format

    def _draw(self, group: list[tuple[str, Explanation]], stem: str, kind: str) -> list[Path]:
        """Write a group as `kind`; numbers are a file an explanation."""
        if kind == "safetensors":
            return [e.save(self._path([(title, e)], stem, kind)) for title, e in group]
        path = self._path(group, stem, kind)
        with progress(f"drawing {path.name}") as tick:
            draw(
                [e for _, e in group],
                path,
                style=self.style,
                colormap=self.colormap,
                beside=self.beside,
                caption=not self.plain,
                strip=not self.plain,
                progress=tick,
            )
        return [path]

    def _path(self, group: list[tuple[str, Explanation]], stem: str, kind: str) -> Path:
        out = Path(self.out)
        if out.suffix and not out.is_dir():
            return out
        ways = list(dict.fromkeys(title for title, _ in group))
        way = "-".join(ways) if len(ways) <= 4 else f"{len(ways)}-methods"
        label = "+".join(dict.fromkeys(_slug(e.provenance.label) for _, e in group))[:80]
        base = f"{stem}.{way}.{label}"
        return out / (base.replace(".", "_") if kind == "frames" else f"{base}.{kind}")  # a suffix is a file

    def _result(self, e: Explanation, video: str, name: str, paths: list[str]) -> dict[str, Any]:
        p = e.provenance
        return {
            "video": video,
            "method": name,
            "target": p.label,
            "score": p.score,
            "prob": p.prob,
            "predicted": [{"label": label, "prob": prob} for label, prob in p.predicted],
            "layer": p.layer,
            "grid": list(e.grid.shape),
            "padded": e.source.padded,
            "facts": p.facts,
            "forwards": p.forwards,
            "backwards": p.backwards,
            "precision": p.precision,
            "seed": p.seed,
            "notes": list(p.notes),
            "seconds": p.seconds,
            "out": paths,
        }

    def _report(self, model: Model, results: list[dict[str, Any]]) -> None:
        if self.json:
            print_json(results)
            return
        rows = [
            [
                Path(r["video"]).name,
                r["method"],
                r["target"],
                f"{r['prob']:.3f}",
                f"{r['predicted'][0]['label']} ({r['predicted'][0]['prob']:.3f})",
                f"{r['forwards']:g} F" + (f" + {r['backwards']:g} B" if r["backwards"] else ""),
                "\n".join(r["out"]),
            ]
            for r in results
        ]
        title = f"{model.name}, weights {model.weights}"
        if rows:
            print_table(title, ["video", "method", "target", "p", "predicted", "cost", "written"], rows)


def _seeded(e: Explanation, seed: int) -> Explanation:
    return replace(e, provenance=replace(e.provenance, seed=seed))


def _slug(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in label) or "target"


def _stems(videos: tuple[str, ...]) -> list[str]:
    """One file name stem a video; equal ones are numbered, so that nothing is overwritten."""
    paths = [Path(video) for video in videos]
    return numbered([(p.stem if p.is_file() else p.name) or p.resolve().name for p in paths])
