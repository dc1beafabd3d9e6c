"""`tubelens demo`: the main job from nothing, offline, on a clip whose evidence is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tubelens.api import explain, predict
from tubelens.cli.show import print_json, print_table
from tubelens.explanation import Explanation
from tubelens.loading import load_model
from tubelens.metrics import localisation
from tubelens.planted import LABELS, PlantedClip, generate
from tubelens.render import draw
from tubelens.video import VideoSink

ENLARGE = 6
FPS = 8.0


@dataclass
class Demo:
    """Explain a bundled clip with the bundled model, offline, and compare with the known truth.

    Example: tubelens demo --out tubelens-demo

    Cost: a few seconds; two forwards of a small network.
    """

    out: str = "tubelens-demo"
    """Folder for the clip and its explanations."""
    seed: int = 7
    """Of the clip: other seeds are other scenes."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Write the clip, read it back as any video, explain its two strongest classes, report."""
        out = Path(self.out)
        planted = generate(self.seed)
        video = write_clip(planted, out / "clip.mp4")
        model = load_model("bundled")
        clip = model.read(video)
        predicted = predict(model, clip, 3)
        both = explain(model, clip, "tubes", target=[predicted[0][0], predicted[1][0]])
        written = [video]
        for e in both:
            name = e.provenance.label.replace(" ", "-")
            written += [e.save(out / f"{name}.mp4", beside=True), e.save(out / f"{name}.png")]
        written += [
            both[0].save(out / "tube.safetensors"),
            both[0].save(out / "focus.webm", style="focus"),
            draw(both, out / "both.mp4", beside=True),
        ]
        rows = scores(both[0], planted)
        if self.json:
            print_json(
                {
                    "truth": LABELS[planted.label],
                    "predicted": [{"label": label, "prob": p} for label, p in predicted],
                    "localisation": {name: dict(zip(COLUMNS, row, strict=True)) for name, row in rows},
                    "out": [str(path) for path in written],
                }
            )
            return 0
        print(
            f"A planted clip: its label is {LABELS[planted.label]!r}; what decides is known, voxel by voxel."
        )
        print_table("What the model sees", ["class", "probability"], [[a, f"{p:.3f}"] for a, p in predicted])
        print_table(
            f"Where the tube of {both[0].provenance.label!r} lies against the truth"
            f" ({planted.truth.float().mean():.1%} of the clip)",
            ["map", *COLUMNS],
            [[name, *(f"{value:.2f}" for value in row)] for name, row in rows],
        )
        facts = both[0].provenance.facts
        print(
            f"contributions + constant = logit: {float(both[0].grid.sum()):.3f} + {facts['constant']:.3f}"
            f" = {both[0].provenance.score:.3f}\n\nWritten:"
        )
        print("\n".join(f"  {path}" for path in written))
        return 0


COLUMNS = ("average precision", "energy in tube", "pointing", "mass on distractors")


def scores(e: Explanation, planted: PlantedClip) -> list[tuple[str, tuple[float, ...]]]:
    """The tube and three maps that know nothing of the model, against the truth."""
    size = e.size
    maps = {
        "saliency tube": e.saliency,
        "random order": localisation.random_order(size, seed=0),
        "centre prior": localisation.centre_prior(size),
        "frame difference": localisation.frame_difference(planted.pixels),
    }
    return [
        (
            name,
            (
                localisation.average_precision(m, planted.truth),
                localisation.energy_in_tube(m, planted.truth),
                localisation.pointing(m, planted.truth),
                localisation.distractor_mass(m, planted.distractor),
            ),
        )
        for name, m in maps.items()
    ]


def write_clip(planted: PlantedClip, path: Path) -> Path:
    """The clip as a video file, enlarged so that a person can look at it."""
    frames = (planted.pixels.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()
    large = np.repeat(np.repeat(frames, ENLARGE, axis=1), ENLARGE, axis=2)
    with VideoSink(path, size=(large.shape[1], large.shape[2]), fps=FPS) as sink:
        for i, frame in enumerate(large):
            sink.write(frame, i / FPS)
    return path
