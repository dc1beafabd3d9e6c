"""`tubelens pyramid`: which kernels of which layers a class builds on, as JSON, a figure, and tubes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tubelens.cli.options import Loading, OneNetwork, SampledOnce, the_source
from tubelens.cli.show import note, print_json, print_table, progress
from tubelens.errors import OptionError
from tubelens.files import replacing
from tubelens.methods.pyramid import Pyramid as Method
from tubelens.methods.pyramid_graph import Dependency
from tubelens.model import network
from tubelens.render import draw
from tubelens.render.dependency import draw_dependency
from tubelens.target import Logit, class_index
from tubelens.video import source_name

Format = Literal["png", "mp4", "gif", "webm", "safetensors"]


@dataclass
class Pyramid(SampledOnce, Loading, OneNetwork):
    """Step back from a class through layers and kernels; write the graph, a figure and a tube a layer.

    Example: tubelens pyramid v.mp4 --model r3d_18 --weights KINETICS400_V1 --depth 3 --out why

    Writes graph.json, graph.png and a contact sheet (or another --format) for each layer and for all fused.

    Cost: two forwards (three where the activations do not fit), then the pictures.
    """

    video: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VIDEO")] = ""
    """Video file, GIF or folder of frames."""
    target: str | None = None
    """Label or class index; default the strongest class."""
    theta: float = 0.65
    """Threshold of a channel's evidence for a kernel, scaled to [0, 1]: larger keeps fewer kernels."""
    depth: int | None = None
    """Steps back from the class; default all, down to the clip."""
    fuse: Literal["mean", "geometric"] = "mean"
    """How the tubes of all layers become one."""
    parity: Literal["cfp"] | None = None
    """The published selection."""
    out: str = "pyramid"
    """Folder to write into."""
    format: Format = "png"
    """What the tubes are written as."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """One forward, the graph, the pictures."""
        method = Method(theta=self.theta, depth=self.depth, fuse=self.fuse, parity=self.parity)
        out = Path(self.out)
        if out.exists() and not out.is_dir():
            raise OptionError(f"--out {self.out}: a file of that name is in the way: give a folder")
        fed = self.fed("pyramid")
        model = network(self.load(self.model, self.weights, fed, self.labels, self.adapt), "pyramid")
        self.video = the_source("pyramid", self.video, self.input)
        clip = self.clip(model, self.video, self.sampling, self.seed)
        found = method.graph(model, clip, Logit(self._class(model, clip)))
        for line in found.notes:
            note(line)
        written = self._write(found, out)
        self._report(found, written)
        return 0

    def _class(self, model: Any, clip: Any) -> int:
        scores = model(clip.pixels[None])
        if self.target is None:
            return int(scores.argmax())
        return class_index(self.target, scores.shape[1], model.labels)

    def _write(self, found: Dependency, out: Path) -> list[Path]:
        graph = out / "graph.json"
        with replacing(graph) as path:
            path.write_text(json.dumps(found.to_json()), encoding="utf-8")
        written = [graph, draw_dependency(found, out / "graph.png")]
        tubes = {"all": found.explanation}
        for number, step in enumerate(found.steps):
            if step.explanation is not None:
                tubes[f"{number:02d}.{_slug(step.layer)}"] = step.explanation
        with progress("drawing the layers") as tick:
            for done, (name, e) in enumerate(tubes.items()):
                path = out / f"{name}.{self.format}"
                written.append(e.save(path) if self.format == "safetensors" else draw(e, path))
                tick(done + 1, len(tubes))
        return written

    def _report(self, found: Dependency, written: list[Path]) -> None:
        p = found.explanation.provenance
        if self.json:
            print_json(
                {
                    "video": self.video,
                    "target": found.label,
                    "score": p.score,
                    "prob": p.prob,
                    "layers": [
                        {"layer": s.layer, "back": s.back, "kernels": len(s.kernels), "of": s.size}
                        for s in found.steps
                    ],
                    "links": sum(len(link.pairs) for link in found.links),
                    "forwards": p.forwards,
                    "seconds": p.seconds,
                    "notes": list(found.notes),
                    "out": [str(path) for path in written],
                }
            )
            return
        title = (
            f"{source_name(self.video)}: {found.label} ({p.prob:.3f}), {found.model}, weights {found.weights}"
        )
        rows = [
            [
                step.layer,
                str(step.back),
                f"{len(step.kernels)} of {step.size}",
                " ".join(str(k) for k in _strongest(step)),
            ]
            for step in found.steps
        ]
        print_table(title, ["layer", "steps back", "kernels", "strongest"], rows)
        print(f"{len(written)} files in {self.out}")


def _strongest(step: Any, n: int = 6) -> list[int]:
    order = step.strengths.sort(descending=True, stable=True).indices[:n]
    found: list[int] = step.kernels[order].tolist()
    return found


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
