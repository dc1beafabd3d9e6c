"""`tubelens explain`: videos x networks x methods x targets to drawings and numbers."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tubelens.api import OVER_WINDOWS, Many, explain_all
from tubelens.budget import cost, in_forwards, one_forward
from tubelens.cli.bands import Weighing
from tubelens.cli.names import is_film, joined, slug, stems, views_of
from tubelens.cli.notes import Finer
from tubelens.cli.options import (
    Loading,
    Sampled,
    SeveralNetworks,
    chosen,
    numbered,
    the_source,
    told,
    too_short,
)
from tubelens.cli.results import Shown, agreement_rows, compare, report, result
from tubelens.cli.show import duration, note, print_json, progress
from tubelens.clip import Clip
from tubelens.errors import OptionError, TubelensError, VideoError
from tubelens.explanation import WRITERS, Explanation
from tubelens.methods import short_name
from tubelens.methods.select import Strongest
from tubelens.model import Model
from tubelens.render import draw
from tubelens.render.arrange import network_names
from tubelens.render.look import look
from tubelens.render.spectra import EACH, check_spectra, untinted
from tubelens.running import Budget, Precision, Run
from tubelens.video import ClipViews, ClipWindows, source_name

SUFFIXES = ("mp4", "gif", "webm", "png", "safetensors", "frames")
Format = Literal["mp4", "gif", "webm", "png", "safetensors", "frames"]
FEW = 8
"""So few forwards are not worth an estimate."""
LONG = 10.0
"""Seconds from which on the cost is announced."""


Rows = list[list[Explanation]]
"""Of one network and one video: a row a method, a column a target."""


@dataclass
class Network:
    """A network that was loaded, and what it is called among the others."""

    model: Model
    title: str


@dataclass
class Explain(Sampled, Loading, SeveralNetworks):
    """Show where and when the model looked, drawn on the video.

    Example: tubelens explain v.mp4 --model r3d_18 --weights KINETICS400_V1 --target archery --out why.mp4

    Example: tubelens explain v.mp4 --method tubes gradcam "rise(n=500)" --out methods.mp4

    Example: tubelens explain v.mp4 --model r3d_18 mc3_18 --weights random --target 3 7 --out networks.png

    Example: tubelens explain --input visible=a.mp4 "lwir=frames/?bits=14" --model mine.py:make --out why.mp4

    Several networks are drawn together, a row a network and a column a target, each having read the video as
    it was trained to; below the results stands how far their maps agree (Spearman's rank correlation).

    Cost: what `tubelens methods` tells, whatever the number of targets; methods that read a layer share one
    forward (two a window with --sampling windows and no --target). More than ten seconds are announced.
    """

    videos: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="VIDEO...")]
    """Video files, GIFs or folders of frames."""
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
    palette: Literal["white-hot", "black-hot", "inferno", "iron"] | None = None
    """Colours of pictures of one band, such as infrared; the heat then takes colours that stay legible."""
    spectra: str = EACH
    """Of a video of several spectra: each side by side, the first, the overlay of the others on the visible
    one, or the name of one."""
    beside: bool = False
    """Original at the left, and all targets side by side in one picture (as with several networks anyway)."""
    apart: bool = False
    """Several methods each in a picture of its own."""
    plain: bool = False
    """No caption and no strip of heat over time."""
    sampling: Literal["uniform", "dense", "segments", "random", "windows", "views"] | None = None
    """Which frames: spread over the video, a dense run, one a segment, a random run, all in windows, or clips
    and crops as the network is tested; default as the network's recipe does."""
    views: str | None = None
    """Clips and crops, such as 10x3, in place of those that the network is tested with."""
    overlap: float = 0.5
    """Share of a window that the next one covers again."""
    bands: bool = False
    """Weigh the bands of the clip against each other: what each brought to the score, alone and together, in
    the whole clip and in the tubes of the maps. A table, and a figure and a JSON file beside the maps."""
    groups: str = ""
    """Bands that --bands takes as one, as in "RGB|IR"; default R, G and B as one where there are others."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Explain every video; a video or a network that fails is reported and the rest goes on."""
        self._check()
        sampling = "views" if self.views is not None else self.sampling
        weighing = Weighing.asked(self.bands, self.groups, sampling, self.seed)
        networks, code = self._load()
        methods = chosen(self.method, self._options(), self.seed)
        finer = Finer()
        results: list[dict[str, Any]] = []
        compared: list[list[str]] = []
        videos = self.sources()
        for video, stem in zip(videos, stems(videos), strict=True):
            try:
                found, failed = self._explain(networks, methods, video, finer, weighing)
                written, agreed = self._write(found, stem, video, weighing)
                results += written
                compared += agreed
                code = max(code, failed)
            except TubelensError as error:
                if len(videos) == 1 or self.debug:
                    raise
                print(f"tubelens: {error}", file=sys.stderr)
                code = max(code, error.exit_code)
        if self.json and networks:
            print_json(results)
        elif results:
            several = len(self.model) > 1
            title = "" if several else f"{networks[0].model.name}, weights {networks[0].model.weights}"
            report(title, several, results, compared)
            weighing.report()
        return code

    def sources(self) -> tuple[str, ...]:
        """The videos; what is given as streams of several spectra is one."""
        if not told(self.input)[1]:
            return self.videos
        return (the_source("explain", self.videos[0] if self.videos else "", self.input),)

    def _load(self) -> tuple[list[Network], int]:
        """The networks that could be loaded, and the exit code of those that could not."""
        models, code = [], 0
        for name, weights, fed, labels, adapt in self.networks():
            try:
                models.append(self.load(name, weights, fed, labels, adapt))
            except TubelensError as error:
                code = max(code, self._failed(name, error))
        titles = numbered(network_names([(m.name, m.weights) for m in models]))
        return [Network(model, title) for model, title in zip(models, titles, strict=True)], code

    def _failed(self, network: str, error: TubelensError) -> int:
        """Report a network that failed among several, and give the exit code; with one network, raise."""
        if len(self.model) == 1 or self.debug:
            raise error
        said = str(error)
        print(f"tubelens: {said if network in said else f'{network}: {said}'}", file=sys.stderr)
        return error.exit_code

    def _check(self) -> None:
        if not self.sources():
            given = (*self.model, *self.weights, *self.target, *self.method, *self.input)
            late = next(
                (f": {g} was taken for a value of the option before it" for g in given if is_film(g)), ""
            )
            raise OptionError(
                f"explain: name at least one VIDEO, before the options{late}"
                " (`tubelens explain --help` has an example)"
            )
        if not self.method:
            raise OptionError("--method needs at least one name (`tubelens methods` lists them)")
        several = len(self.networks()) > 1
        if self.batch is not None and self.batch < 1:
            raise OptionError(f"--batch must be at least 1, not {self.batch}")
        if self.budget is not None:
            Budget.of(self.budget)
        look(self.style or "heat", colormap=self.colormap)  # checks it before any work is done
        for source in self.sources():
            check_spectra(source, self.spectra)
        if self.views is not None and self.sampling not in (None, "views"):
            raise OptionError(f"--views and --sampling {self.sampling} are two ways of sampling: give one")
        views_of(self.views)
        if self.start and (self.sampling == "views" or self.views is not None):
            raise OptionError("--start means nothing to views, which are spread over the whole video")
        if not 0 <= self.overlap < 1:
            raise OptionError(f"--overlap must be at least 0 and below 1, not {self.overlap:g}")
        if self.strongest is not None and self.strongest < 1:
            raise OptionError(f"--strongest must be at least 1, not {self.strongest}")
        suffix = Path(self.out).suffix.lower()
        folder = not suffix or Path(self.out).is_dir()
        numbers = "safetensors" in self.format if folder else suffix == ".safetensors"
        if numbers and self.beside and (several or self._several()):
            raise OptionError(
                "--beside draws several in one picture, but safetensors holds the numbers of one:"
                " leave one of the two out"
            )
        if folder:
            return
        if suffix not in WRITERS:
            known = ", ".join(sorted(s for s in WRITERS if s))
            raise OptionError(f"--out {self.out}: unknown suffix {suffix!r}: use one of {known}, or a folder")
        together = len(self.method) == 1 or not (self.apart or numbers)
        targets = self._several() and not (self.beside or (several and not numbers))
        if len(self.sources()) > 1 or not together or targets or (several and numbers):
            raise OptionError(
                f"--out {self.out}: one file holds one video and one target, and numbers or --apart one"
                " method and network: give a folder, or --beside for several targets in one picture"
            )

    def _options(self) -> dict[str, Any]:
        options = {
            "layer": (self.layer[0] if len(self.layer) == 1 else self.layer) or None,
            "parity": self.parity,
            "select": None if self.strongest is None else Strongest(self.strongest),
        }
        return {key: value for key, value in options.items() if value is not None}

    def _several(self) -> bool:
        return self._targets() > 1

    def _targets(self) -> int:
        """How many are asked for."""
        tops = (re.fullmatch(r"top(\d+)", t.lower()) for t in self.target)
        return sum(1 if top is None else int(top[1]) for top in tops) or 1

    def _read(self, model: Model, video: str) -> Clip | Many:
        if self.sampling == "views" or self.views is not None:
            views: ClipViews = model.views(video, **views_of(self.views), **self.given())
            too_short(video, views)
            return views
        if self.sampling == "windows":
            windows: ClipWindows = model.windows(
                video, start=self.start, overlap=self.overlap, **self.given()
            )
            too_short(video, windows)
            return windows
        return self.clip(model, video, self.sampling, self.seed)

    def _explain(
        self, networks: list[Network], methods: list[Any], video: str, finer: Finer, weighing: Weighing
    ) -> tuple[list[tuple[Network, Rows]], int]:
        """What each network saw; a network that fails is left out, and gives the exit code."""
        found, code = [], 0
        for network in networks:
            try:
                found.append((network, self._explain_one(network, methods, video, finer, weighing)))
            except VideoError:  # no fault of the network
                raise
            except TubelensError as error:
                code = max(code, self._failed(network.title, error))
        return found, code

    def _explain_one(
        self, network: Network, methods: list[Any], video: str, finer: Finer, weighing: Weighing
    ) -> Rows:
        model = network.model
        clip = self._read(model, video)
        wanted = list(self.target) if self.target else None
        self._announce(network, clip, methods, weighing.most(clip, len(methods) * self._targets()))
        among = f" by {network.title}" if len(self.model) > 1 else ""
        with progress(f"explaining {source_name(video)}{among}") as tick:
            run = Run(self.batch, self.precision, tick)
            found = explain_all(model, clip, methods, wanted, budget=self.budget, run=run)
        found = [[finer.noted(model, e) for e in row] for row in found]
        if self.sampling == "random" or (self.sampling is None and model.spec.sampling == "random"):
            found = [[_seeded(e, self.seed) for e in row] for row in found]
        for line in dict.fromkeys(n for row in found for e in row for n in e.provenance.notes):
            if line != OVER_WINDOWS:  # true of all, and no surprise
                note(f"{network.title}: {line}" if len(self.model) > 1 else line)
        weighing.weigh(model, clip, found, self.batch, self.precision, f"{source_name(video)}{among}")
        return found

    def _announce(self, network: Network, clip: Clip | Many, methods: list[Any], extra: int) -> None:
        """What more than ten seconds of work will take, before it starts."""
        model = network.model
        one = clip if isinstance(clip, Clip) else next(iter(clip))[1]
        passes = cost(methods, model, one)
        count = in_forwards(passes) * (1 if isinstance(clip, Clip) else len(clip)) + extra
        if self.budget is not None or count < FEW:
            return
        each = one_forward(model, one)
        if count * each > LONG:
            note(
                (f"{network.title}: " if len(self.model) > 1 else "")
                + f"about {count:,} forwards of {each * 1e3:.0f} ms: about {duration(count * each)}"
                " (--budget sets a limit)"
            )

    def _write(
        self, found: list[tuple[Network, Rows]], stem: str, video: str, weighing: Weighing
    ) -> tuple[list[dict[str, Any]], list[list[str]]]:
        """Files and results, group by group (what one picture shows together), and how the maps agree."""
        if not found:
            return [], []
        titles = numbered([short_name(row[0].provenance.method) for row in found[0][1]])
        rows = [
            [Shown(network.title, title, column, e) for column, e in enumerate(row)]
            for network, made in found
            for title, row in zip(titles, made, strict=True)
        ]
        every = [shown for row in rows for shown in row]
        if len(self.model) > 1:
            ways = titles if self.apart else [None]
            groups = [[s for s in every if way in (None, s.method)] for way in ways]
        elif len(rows) > 1 and not self.apart:
            groups = [list(column) for column in zip(*rows, strict=True)]
        else:
            groups = [[shown] for shown in every]
        if self.beside and len(self.model) == 1:
            groups = rows if self.apart else [every]
        compared = compare(every)
        if untinted([s.explanation for s in every], self.palette, self.spectra):
            note(f"{source_name(video)}: --palette {self.palette} changes nothing: all of it is in colour")
        weighing.write(every, video, lambda some: self._path(some, stem, "png"))
        results = []
        for group in groups:
            paths: dict[Shown, list[str]] = {shown: [] for shown in group}
            for kind in self._kinds():
                for shown, path in self._draw(group, stem, kind):
                    paths[shown].append(str(path))
            results += [result(s, video, paths[s], compared[s]) | weighing.told(s.explanation) for s in group]
        return results, agreement_rows(video, compared)

    def _kinds(self) -> tuple[str, ...]:
        out = Path(self.out)
        return (out.suffix.lower()[1:],) if out.suffix and not out.is_dir() else self.format

    def _draw(self, group: list[Shown], stem: str, kind: str) -> list[tuple[Shown, Path]]:
        """Write a group as `kind`; numbers are a file an explanation."""
        if kind == "safetensors":
            return [(s, s.explanation.save(self._path([s], stem, kind))) for s in group]
        path = self._path(group, stem, kind)
        with progress(f"drawing {path.name}") as tick:
            draw(
                [s.explanation for s in group],
                path,
                style=self.style,
                colormap=self.colormap,
                palette=self.palette,
                spectra=self.spectra,
                beside=self.beside,
                caption=not self.plain,
                strip=not self.plain,
                progress=tick,
            )
        return [(s, path) for s in group]

    def _path(self, group: list[Shown], stem: str, kind: str) -> Path:
        out = Path(self.out)
        if out.suffix and not out.is_dir():
            return out
        parts = [stem]
        if len(self.model) > 1:
            parts.append(joined([slug(s.network) for s in group], "networks"))
        parts.append(joined([s.method for s in group], "methods"))
        parts.append("+".join(dict.fromkeys(slug(s.explanation.provenance.label) for s in group))[:80])
        base = ".".join(parts)
        return out / (base.replace(".", "_") if kind == "frames" else f"{base}.{kind}")  # a suffix is a file


def _seeded(e: Explanation, seed: int) -> Explanation:
    return replace(e, provenance=replace(e.provenance, seed=seed))
