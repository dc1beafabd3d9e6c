"""`tubelens explain`: videos x methods x targets to drawings and numbers."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tubelens.api import explain
from tubelens.cli.show import note, print_json, print_table, progress, read_labels
from tubelens.clip import Clip, Pad
from tubelens.errors import OptionError, TubelensError
from tubelens.explanation import WRITERS, Explanation
from tubelens.loading import load_model
from tubelens.methods import method
from tubelens.methods.select import Strongest
from tubelens.model import Model
from tubelens.render import draw
from tubelens.render.compose import look
from tubelens.video import ClipWindows

SUFFIXES = ("mp4", "gif", "webm", "png", "safetensors", "frames")
Format = Literal["mp4", "gif", "webm", "png", "safetensors", "frames"]


@dataclass
class Explain:
    """Show where and when the model looked, drawn on the video.

    Example: tubelens explain v.mp4 --model r3d_18 --weights KINETICS400_V1 --target archery --out why.mp4

    Cost: one forward a clip (two a window with --sampling windows and no --target), whatever the number of
    targets, plus decoding and drawing every frame of the span.
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
    """Methods, by name."""
    target: tuple[str, ...] = ()
    """Labels or class indices; top3 is the three strongest; default the strongest."""
    layer: str | None = None
    """Layer to explain (`tubelens layers` lists them)."""
    strongest: int | None = None
    """Keep only so many features, the strongest; the map is then no longer the whole decision."""
    parity: Literal["paper"] | None = None
    """Scale and alignment as published, for comparison with old figures."""
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
    """Of random weights and random sampling."""
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
        methods = [method(name, **self._options()) for name in self.method]
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
        if len(self.videos) > 1 or len(self.method) > 1 or (self._several() and not self.beside):
            raise OptionError(
                f"--out {self.out}: one file holds one video, method and target: give a folder, or --beside"
                " for several targets in one picture"
            )

    def _options(self) -> dict[str, Any]:
        options = {
            "layer": self.layer,
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
        results = []
        for way in methods:
            with progress(f"explaining {Path(video).name}") as tick:
                found = explain(model, clip, way, wanted, progress=tick)
            several = found if isinstance(found, list) else [found]
            if self.sampling == "random":
                several = [replace(e, provenance=replace(e.provenance, seed=self.seed)) for e in several]
            results += self._write(several, video, stem, type(way).__name__.lower())
        return results

    def _write(self, several: list[Explanation], video: str, stem: str, name: str) -> list[dict[str, Any]]:
        groups = [several] if self.beside else [[e] for e in several]
        results = []
        for group in groups:
            paths = [str(self._draw(group, path)) for path in self._paths(group, stem, name)]
            results += [self._result(e, video, name, paths) for e in group]
        return results

    def _paths(self, group: list[Explanation], stem: str, name: str) -> list[Path]:
        out = Path(self.out)
        if out.suffix and not out.is_dir():
            return [out]
        label = "+".join(_slug(e.provenance.label) for e in group)[:80]
        base = f"{stem}.{name}.{label}"
        folder = base.replace(".", "_")  # what has a suffix is a file
        return [out / (folder if kind == "frames" else f"{base}.{kind}") for kind in self.format]

    def _draw(self, group: list[Explanation], path: Path) -> Path:
        if path.suffix.lower() == ".safetensors":
            return group[0].save(path)
        with progress(f"drawing {path.name}") as tick:
            return draw(
                group,
                path,
                style=self.style,
                colormap=self.colormap,
                beside=self.beside,
                caption=not self.plain,
                strip=not self.plain,
                progress=tick,
            )

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
                r["target"],
                f"{r['prob']:.3f}",
                f"{r['predicted'][0]['label']} ({r['predicted'][0]['prob']:.3f})",
                "\n".join(r["out"]),
            ]
            for r in results
        ]
        title = f"{model.name}, weights {model.weights}"
        if rows:
            print_table(title, ["video", "target", "p", "predicted", "written"], rows)


def _slug(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in label) or "target"


def _stems(videos: tuple[str, ...]) -> list[str]:
    """One file name stem a video; equal ones are numbered, so that nothing is overwritten."""
    stems: list[str] = []
    for video in videos:
        path = Path(video)
        stem = (path.stem if path.is_file() else path.name) or path.resolve().name
        name, n = stem, 2
        while name in stems:
            name, n = f"{stem}-{n}", n + 1
        stems.append(name)
    return stems
