"""The figure of a pyramid, and the verb that writes it."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from PIL import Image

import tubelens as tl
from tests.cli.commands import NETS
from tests.test_pyramid import plain, wrap
from tests.videos import coded_video
from tubelens.cli.pyramid import Pyramid as Verb
from tubelens.clip import Clip
from tubelens.errors import OptionError, TargetError, VideoError
from tubelens.methods.pyramid import Pyramid
from tubelens.methods.pyramid_graph import Dependency
from tubelens.render.dependency import dependency_figure, draw_dependency
from tubelens.render.sheet import pixels
from tubelens.target import Logit

LABELS = ["surfing water", "walking the dog", "swimming", "swinging"]


@pytest.fixture(scope="module")
def found() -> Dependency:
    frames = np.random.default_rng(0).random((4, 16, 16, 3), dtype=np.float32)
    return Pyramid(theta=0.5).graph(wrap(plain(), labels=LABELS), Clip.from_array(frames), Logit(1))


# ── the figure ───────────────────────────────────────────────────────────────────────────────────────────


def words(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def curves(figure: Any) -> PathCollection:
    (found,) = [c for c in figure.axes[0].collections if len(c.get_paths()) > 1]
    assert isinstance(found, PathCollection)
    return found


def test_every_layer_is_named_with_its_kernels_and_its_tube(found: Dependency):
    figure = dependency_figure(found)
    said = words(figure)
    for step in found.steps[1:]:
        at = said.index(step.layer)
        assert said[at + 1] == f"{len(step.kernels)} of {step.size} kernels"
        strongest = step.kernels[step.strengths.sort(descending=True, stable=True).indices[:8]].tolist()
        assert said[at + 2 : at + 2 + len(strongest)] == [str(k) for k in strongest]
    assert said[said.index("fc") + 1 : said.index("fc") + 3] == ["all layers fused", "walking the d…"]
    assert any("walking the dog" in text and "p=" in text for text in said)
    assert not any("not drawn" in text for text in said)
    # pictures from left to right are the layers from the clip to the class
    left = {ax: ax.get_position().x0 for ax in figure.axes[1:]}
    assert len(left) == 4
    names = {t.get_text(): t.get_position()[0] for t in figure.axes[0].texts}
    assert names["convs.0"] < names["convs.1"] < names["convs.2"] < names["fc"]


def test_lines_join_the_dots_of_the_links(found: Dependency):
    figure = dependency_figure(found, kernels=20, links=10_000)
    lines = curves(figure)
    assert len(lines.get_paths()) == sum(len(link.pairs) for link in found.links)
    dots = [tuple(c.get_offsets()[0]) for c in figure.axes[0].collections if len(c.get_offsets()) == 1]
    ends = {tuple(v) for path in lines.get_paths() for v in (path.vertices[0], path.vertices[-1])}
    assert ends <= {tuple(map(float, dot)) for dot in dots}
    few = dependency_figure(found, kernels=20, links=3)
    assert len(curves(few).get_paths()) == 3


def test_what_is_not_drawn_is_said(found: Dependency):
    said = words(dependency_figure(found, columns=1, kernels=2))
    assert any(text.startswith("2 more layers are not drawn") for text in said)
    assert "convs.0" not in said
    with pytest.raises(OptionError, match="rows of at least 1, not 0"):
        dependency_figure(found, rows=0)
    with pytest.raises(OptionError, match="nope"):
        dependency_figure(found, colormap="nope")


def test_nothing_overlaps_and_nothing_leaves_the_figure(found: Dependency):
    figure = dependency_figure(found)
    pixels(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    boxes += [ax.get_window_extent() for ax in figure.axes[1:]]
    w, h = figure.get_size_inches() * figure.dpi
    for i, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= w
        assert 0 <= box.y0 < box.y1 <= h
        for other in boxes[i + 1 :]:
            assert not box.overlaps(other)


def test_the_pictures_are_the_tubes_on_their_strongest_frame(tmp_path: Path):
    frames = np.full((4, 16, 16, 3), 0.5, dtype=np.float32)
    frames[2, 4:8, 4:8] = (1.0, 0.0, 0.0)
    dependency = Pyramid(theta=0.5).graph(wrap(plain()), Clip.from_array(frames), Logit(1))
    path = draw_dependency(dependency, tmp_path / "a" / "graph.png")
    image = np.asarray(Image.open(path).convert("RGB"))
    figure = dependency_figure(dependency)
    assert image.shape[:2] == tuple(np.round(figure.get_size_inches()[::-1] * figure.dpi).astype(int))
    shown = {ax.get_position().x0: ax.images[0].get_array() for ax in figure.axes[1:]}
    assert len(shown) == 4
    on = dependency_figure(dependency, on=np.zeros((4, 16, 16, 3), np.uint8))
    dark = {ax.get_position().x0: ax.images[0].get_array() for ax in on.axes[1:]}
    assert all(float(dark[x].mean()) < float(shown[x].mean()) for x in shown)  # drawn on the frames given
    with pytest.raises(VideoError):
        dependency_figure(dependency, on=np.zeros((4, 8, 8, 3), np.uint8))


# ── the verb ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pyramid")
    (made / "nets.py").write_text(NETS)
    coded_video(made / "a.mp4", 40)
    return made


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def ran(**options: Any) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out):
        code = Verb(video="a.mp4", **{"model": "nets.py:make", **options}).run()
    return code, out.getvalue()


def test_writes_the_graph_the_figure_and_the_tubes(tmp_path: Path):
    code, said = ran(out=str(tmp_path / "out"), target="swimming", json=True)
    report = json.loads(said)
    assert code == 0
    assert report["target"] == "swimming"
    names = ["graph.json", "graph.png", "all.png", "01.body.0.png"]
    assert [Path(path).name for path in report["out"]] == names
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(names)
    graph = json.loads((tmp_path / "out" / "graph.json").read_text())
    model = tl.load_model("nets.py:make")
    again = Pyramid().graph(model, model.read("a.mp4"), Logit(2))
    assert graph == again.to_json()
    assert report["layers"] == [
        {"layer": s.layer, "back": s.back, "kernels": len(s.kernels), "of": s.size} for s in again.steps
    ]
    assert report["links"] == sum(len(link.pairs) for link in again.links)
    assert report["forwards"] == 1


def test_options_reach_the_method(tmp_path: Path):
    options = {"theta": 0.4, "depth": 1, "parity": "cfp", "fuse": "geometric"}
    _, said = ran(out=str(tmp_path), format="safetensors", **options)
    graph = json.loads((tmp_path / "graph.json").read_text())
    assert eval(graph["method"]) == Pyramid(**options)  # type: ignore[arg-type]
    model = tl.load_model("nets.py:make")
    clip = model.read("a.mp4")
    strongest = int(model(clip.pixels[None]).argmax())
    assert eval(graph["target"]) == Logit(strongest)
    again = Pyramid(**options).graph(model, clip, Logit(strongest))  # type: ignore[arg-type]
    read = tl.load_explanation(tmp_path / "01.body.0.safetensors")
    assert np.allclose(read.grid, again.explanations[0].grid)
    assert "4 files in" in said
    assert "body.0" in said


@dataclass(frozen=True)
class Wrong:
    options: dict[str, Any]
    error: type[Exception]
    message: str


WRONG = [
    Wrong({"theta": 2.0}, OptionError, "theta must be above 0 and at most 1, not 2"),
    Wrong({"depth": 0}, OptionError, "depth must be at least 1"),
    Wrong({"target": "swiming"}, TargetError, "did you mean 'swimming'"),
    Wrong({"target": "9"}, TargetError, "out of range"),
    Wrong({"out": "a.mp4"}, OptionError, "a file of that name is in the way"),
    Wrong({"model": "nets.py:always_nan"}, Exception, "NaN"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: str(w.options))
def test_bad_usage_is_one_line(wrong: Wrong):
    with pytest.raises(wrong.error, match=wrong.message):
        ran(**{"out": "never", **wrong.options})
    assert not Path("never").exists()


def test_the_documentation_has_an_example_and_a_cost():
    text = Verb.__doc__ or ""
    assert "Example: tubelens pyramid" in text
    assert "Cost: " in text
