"""The command line, end to end: every verb, on real (small) video files."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import tubelens as tl
from tests.videos import coded, coded_video, read_code
from tubelens.cli import VERBS, main, parse
from tubelens.cli.show import print_table

SCRIPT = Path(sys.executable).with_name("tubelens")
LABELS = ["surfing water", "walking the dog", "swimming", "swinging", "juggling balls"]
NETS = f"""
import torch
from torch import nn

import tubelens as tl

LABELS = {LABELS}


class Net(nn.Module):
    def __init__(self, pool="mean", classes=5):
        super().__init__()
        self.pool = pool
        self.body = nn.Sequential(nn.Conv3d(3, 6, 3, (2, 4, 4), padding=1), nn.ReLU())
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        cells = self.body(x).flatten(2)
        return self.head(cells.mean(2) if self.pool == "mean" else cells.max(2).values)


def made(net, **options):
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return tl.wrap(net.eval(), frames=8, size=24, **options)


def make():
    return made(Net(), labels=LABELS)


def unnamed():
    return made(Net())


def bare():
    return Net().eval()


def pooled_by_max():
    return made(Net("max"), labels=LABELS)


class NaNWhereBright(Net):
    def forward(self, x):
        return super().forward(x) + torch.where(x.amax() > 0.05, torch.nan, 0.0)


def nan():
    return made(NaNWhereBright())


class NaNAlways(Net):
    def forward(self, x):
        return super().forward(x) * torch.nan


def always_nan():
    return made(NaNAlways())


class Breaks(Net):
    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def breaks():
    return made(Breaks())


class BreaksLater(Net):
    def forward(self, x):
        if x.amax() > 0.05:
            raise KeyError("weights of the moon")
        return super().forward(x)


def breaks_later():
    return made(BreaksLater())


def raises():
    raise RuntimeError("the cluster is on fire")


def returns_a_number():
    return 3


not_a_function = 3
"""
TINY = ("--model", "nets.py:make")
SCHEMA = {
    *("video", "method", "target", "score", "prob", "predicted", "layer", "grid", "padded", "facts"),
    *("forwards", "seconds", "out"),
}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def tubelens(*args: object) -> Ran:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(arg) for arg in args])
    return Ran(code, out.getvalue(), err.getvalue())


def done(*args: object) -> Ran:
    """The command, which must succeed and say nothing on stderr."""
    ran = tubelens(*args)
    assert (ran.code, ran.err) == (0, ""), ran.err
    return ran


def decoded(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Frames and seconds, by PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [f.to_ndarray(format="rgb24") for f in frames], [float(f.time) for f in frames]


def has_sound(path: Path) -> bool:
    with av.open(str(path)) as container:
        return bool(container.streams.audio) and sum(1 for _ in container.decode(audio=0)) > 0


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small networks and some videos."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "nets.py").write_text(NETS)
    coded_video(folder / "a.mp4", 40)
    coded_video(folder / "b.mkv", 24, fps=12)
    coded_video(folder / "sound.mp4", 50, tone=440.0)
    coded_video(folder / "odd.avi", 20, size=(51, 73), codec="mjpeg", pix_fmt="yuvj444p")
    for name in ("one", "two"):
        (folder / name).mkdir()
        coded_video(folder / name / "same.mp4", 12)
    (folder / "frames").mkdir()
    for number in range(12):
        Image.fromarray(coded(number)).save(folder / "frames" / f"f{number}.png")
    return folder


@pytest.fixture(autouse=True)
def at_the_videos(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(videos)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """No connection can be made; whoever tries is noted."""
    tried: list[object] = []

    def refuse(*args: object, **options: object) -> None:
        tried.append(args)
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tried


# ── help ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("help",)])
def test_usage_names_every_verb(args: tuple[str, ...]) -> None:
    said = done(*args).out
    for verb, make in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape((make.__doc__ or '').splitlines()[0])}$", said, re.M)
    assert "Exit codes: 0 done, 1 the work failed, 2 bad usage or input" in said


def test_version() -> None:
    assert done("--version").out == f"tubelens {tl.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_parses(verb: str) -> None:
    said = done(verb, "--help").out
    (example,) = re.findall(r"^Example: (.*)$", said, re.M)
    program, *args = shlex.split(example)
    assert program == "tubelens"
    assert args[0] == verb
    assert isinstance(parse(args), VERBS[verb])
    assert "--json" in said
    assert "--debug" in said


# ── what there is ────────────────────────────────────────────────────────────────────────────────────────


def test_models() -> None:
    names = ["bundled", "r3d_18", "mc3_18", "r2plus1d_18", "s3d"]
    table = done("models").out
    assert all(re.search(rf"^ *{name} ", table, re.M) for name in names)
    entries = done("models", "--json").json
    assert [entry["name"] for entry in entries] == names
    r3d = entries[1]
    assert (r3d["frames"], r3d["size"], r3d["classes"], r3d["layer"]) == (16, [112, 112], 400, "layer4")
    assert r3d["weights"] == ["KINETICS400_V1"]


def test_methods() -> None:
    assert re.search(r"^ *tubes +layers, affine head +1 F \+ 1 B_h", done("methods").out, re.M)
    (entry,) = [e for e in done("methods", "--json").json if e["name"] == "tubes"]
    assert set(entry) == {"name", "needs", "cost", "source"}


def test_layers() -> None:
    table = done("layers", "nets.py:make").out
    assert len(re.findall(r"^ *\S+ \* ", table, re.M)) == 1
    assert re.search(r"on a clip of 8x24x24 \(\* is the default\)", table)
    entries = done("layers", "nets.py:make", "--json").json
    assert [e["layer"] for e in entries if e["default"]] == [_default()]
    for entry in entries:
        assert set(entry) == {"layer", "kind", "shape", "pattern", "centres", "default"}
    (body,) = [e for e in entries if e["default"]]
    assert body["shape"] == [1, 6, 4, 6, 6]
    assert body["centres"] == {"t": [0, 2, 4, 6], "h": [0, 4, 8, 12, 16, 20], "w": [0, 4, 8, 12, 16, 20]}
    *_, body = done("layers", "nets.py:make", "--frames", 4, "--size", 16, "--json").json
    assert body["shape"] == [1, 6, 2, 4, 4]


def _default() -> str:
    return str(tl.load_model("nets.py:make").layer)


# ── predict ──────────────────────────────────────────────────────────────────────────────────────────────


def test_predict() -> None:
    model = tl.load_model("nets.py:make")
    expected = tl.predict(model, model.read("a.mp4"), 5)
    found = done("predict", "a.mp4", *TINY, "--json").json
    assert found["video"] == "a.mp4"
    assert [(e["label"], pytest.approx(e["prob"])) for e in found["predicted"]] == list(expected)
    table = done("predict", "a.mp4", *TINY, "--top", 2).out
    assert "a.mp4: " in table
    assert [label for label in LABELS if label in table] == sorted(
        (label for label, _ in expected[:2]), key=LABELS.index
    )
    assert f"{expected[0][1]:.4f}" in table


def test_predict_reads_what_it_is_told_to() -> None:
    model = tl.load_model("nets.py:make")
    found = done("predict", "a.mp4", *TINY, "--sampling", "dense", "--start", "0.8", "--json").json
    expected = tl.predict(model, model.read("a.mp4", "dense", start=0.8))
    assert found["predicted"][0]["prob"] == pytest.approx(expected[0][1])
    assert expected[0][1] != pytest.approx(tl.predict(model, model.read("a.mp4"))[0][1])


def test_labels_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("eins\nzwei\ndrei\nvier\nfünf\n", encoding="utf-8")
    found = done(
        "predict", "a.mp4", "--model", "nets.py:unnamed", "--labels", tmp_path / "names.txt", "--json"
    )
    assert {e["label"] for e in found.json["predicted"]} == {"eins", "zwei", "drei", "vier", "fünf"}
    bare = done("predict", "a.mp4", "--model", "nets.py:unnamed", "--json").json
    assert {e["label"] for e in bare["predicted"]} == {f"class {i}" for i in range(5)}


def test_weights_from_a_file_and_at_random(tmp_path: Path) -> None:
    def probs(*args: object) -> list[float]:
        ran = done("predict", "a.mp4", "--model", "nets.py:bare", *args, "--json")
        return [e["prob"] for e in ran.json["predicted"]]

    assert probs("--seed", 1) == probs("--seed", 1) != probs("--seed", 2)
    net = tl.load_model("nets.py:bare", seed=2).module
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "w.pt")
    assert probs("--seed", 1, "--weights", tmp_path / "w.pt") == pytest.approx(probs("--seed", 2))


# ── explain ──────────────────────────────────────────────────────────────────────────────────────────────


def test_explain_writes_the_source_with_heat(tmp_path: Path) -> None:
    ran = done("explain", "a.mp4", *TINY, "--out", tmp_path / "why.mp4")
    assert "why.mp4" in ran.out
    assert "nets.py:make" in ran.out or "Net" in ran.out
    frames, times = decoded(tmp_path / "why.mp4")
    assert len(frames) == 40
    assert frames[0].shape == (48, 64, 3)
    np.testing.assert_allclose(times, np.arange(40) / 25, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["why.mp4"]
    colour = np.ptp(np.stack(frames).astype(int), axis=3)
    assert colour.max() > 60  # the source is grey: the heat is not


def test_explain_draws_each_frame_on_its_own(tmp_path: Path) -> None:
    done("explain", "a.mp4", *TINY, "--beside", "--plain", "--out", tmp_path / "why.mp4")
    frames, _ = decoded(tmp_path / "why.mp4")
    assert frames[0].shape == (48, 128, 3)
    assert [read_code(frame[:, :64]) for frame in frames] == list(range(40))


def test_explain_into_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, videos: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = done("explain", videos / "a.mp4", "--model", f"{videos}/nets.py:make", "--json")
    (entry,) = ran.json
    label = entry["target"].replace(" ", "_")
    assert entry["out"] == [f"tubes/a.tubes.{label}.mp4"]
    assert (tmp_path / entry["out"][0]).is_file()


def test_explain_says_everything_in_json(tmp_path: Path) -> None:
    ran = done("explain", "a.mp4", *TINY, "--target", "swimming", "--json", "--out", tmp_path)
    (entry,) = ran.json
    assert set(entry) == SCHEMA
    assert (entry["video"], entry["method"], entry["target"]) == ("a.mp4", "tubes", "swimming")
    assert entry["layer"] == _default()
    assert entry["grid"] == [4, 6, 6]
    assert entry["padded"] == 0
    assert sum(e["prob"] for e in entry["predicted"]) == pytest.approx(1)
    model = tl.load_model("nets.py:make")
    why = tl.explain(model, model.read("a.mp4"), target="swimming")
    assert entry["score"] == pytest.approx(why.provenance.score)
    assert entry["prob"] == pytest.approx(why.provenance.prob)
    assert entry["facts"]["constant"] + float(why.grid.sum()) == pytest.approx(entry["score"], rel=1e-4)
    assert [Path(path).name for path in entry["out"]] == ["a.tubes.swimming.mp4"]


def test_explain_several_targets(tmp_path: Path) -> None:
    ran = done(
        *("explain", "a.mp4", *TINY, "--target", "Swimming", "juggling_balls", "0"),
        *("--out", tmp_path, "--json", "--format", "safetensors"),
    )
    assert [e["target"] for e in ran.json] == ["swimming", "juggling balls", "surfing water"]
    for entry in ran.json:
        (path,) = entry["out"]
        assert tl.load_explanation(path).provenance.label == entry["target"]
    table = done(
        *(
            "explain",
            "a.mp4",
            *TINY,
            "--target",
            "Swimming",
            "0",
            "--out",
            tmp_path,
            "--format",
            "safetensors",
        )
    ).out
    assert "a.tubes.surfing_water.safetensors" in table
    assert "a.tubes.swimming.safetensors" in table


def test_explain_the_strongest(tmp_path: Path) -> None:
    ran = done("explain", "a.mp4", *TINY, "--target", "top3", "--out", tmp_path, "--json")
    probs = [e["prob"] for e in ran.json]
    assert probs == sorted(probs, reverse=True)
    assert [e["target"] for e in ran.json] == [e["label"] for e in ran.json[0]["predicted"][:3]]
    assert len(list(tmp_path.glob("*.mp4"))) == 3
    (default,) = done("explain", "a.mp4", *TINY, "--out", tmp_path, "--json").json
    assert default["target"] == ran.json[0]["target"]


def test_explain_targets_side_by_side_in_one_file(tmp_path: Path) -> None:
    out = tmp_path / "both.mp4"
    ran = done("explain", "a.mp4", *TINY, "--target", "top2", "--beside", "--out", out, "--json")
    assert [e["out"] for e in ran.json] == [[str(out)]] * 2
    assert decoded(out)[0][0].shape == (48, 192, 3)
    ran = done("explain", "a.mp4", *TINY, "--target", "top2", "--beside", "--out", tmp_path / "f", "--json")
    first, second = (e["target"].replace(" ", "_") for e in ran.json)
    assert [p.name for p in (tmp_path / "f").iterdir()] == [f"a.tubes.{first}+{second}.mp4"]


def test_explain_one_top_class_into_a_file(tmp_path: Path) -> None:
    """`top1`, in any case, and a label that begins with top are one target."""
    for target in ("top1", "TOP1"):
        done("explain", "a.mp4", *TINY, "--target", target, "--out", tmp_path / "a.safetensors")
    (tmp_path / "names.txt").write_text("topple\nb\nc\nd\ne\n")
    done(
        *("explain", "a.mp4", "--model", "nets.py:unnamed", "--labels", tmp_path / "names.txt"),
        *("--target", "topple", "--out", tmp_path / "b.safetensors"),
    )
    assert tl.load_explanation(tmp_path / "b.safetensors").target == tl.Logit(0)


def test_explain_every_format(tmp_path: Path) -> None:
    kinds = ("mp4", "png", "safetensors", "frames", "gif", "webm")
    ran = done(
        "explain", "a.mp4", *TINY, "--target", "swimming", "--format", *kinds, "--out", tmp_path, "--json"
    )
    (entry,) = ran.json
    base, folder = tmp_path / "a.tubes.swimming", tmp_path / "a_tubes_swimming"
    assert entry["out"] == [str(folder) if k == "frames" else f"{base}.{k}" for k in kinds]
    assert {p.name for p in tmp_path.iterdir()} == {Path(path).name for path in entry["out"]}
    assert len(decoded(Path(f"{base}.mp4"))[0]) == 40
    assert len(decoded(Path(f"{base}.webm"))[0]) == 40
    with Image.open(f"{base}.gif") as gif:
        assert (gif.n_frames, gif.size) == (40, (64, 48))
    with Image.open(f"{base}.png") as sheet:
        assert sheet.width > 1000
    why = tl.load_explanation(f"{base}.safetensors")
    assert why.provenance.score == pytest.approx(entry["score"])
    assert list(why.grid.shape) == entry["grid"]
    assert sorted(p.name for p in folder.iterdir()) == [f"{i:03d}.png" for i in range(40)] + ["info.json"]
    assert json.loads((folder / "info.json").read_text())["label"] == "swimming"


@pytest.mark.parametrize("suffix", ["mp4", "MP4", "gif", "webm", "png", "safetensors"])
def test_the_suffix_decides(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "deep" / f"x.{suffix}"
    done("explain", "a.mp4", *TINY, "--sampling", "dense", "--out", out)
    head = out.read_bytes()[:12]
    magic: dict[str, Callable[[bytes], bool]] = {
        "mp4": lambda b: b[4:8] == b"ftyp",
        "gif": lambda b: b[:6] == b"GIF89a",
        "webm": lambda b: b[:4] == b"\x1aE\xdf\xa3",
        "png": lambda b: b[:4] == b"\x89PNG",
        "safetensors": lambda b: b[8:9] == b"{",
    }
    assert magic[suffix.lower()](head)


@pytest.mark.parametrize("style", ["heat", "focus", "contour", "paper"])
def test_styles_differ(tmp_path: Path, style: str) -> None:
    options = ("--sampling", "dense", "--plain", "--target", "0", "--format", "frames")
    done("explain", "a.mp4", *TINY, *options, "--style", style, "--out", tmp_path / style)
    done("explain", "a.mp4", *TINY, *options, "--colormap", "gray", "--out", tmp_path / "gray")
    (folder,) = (tmp_path / style).iterdir()
    (gray,) = (tmp_path / "gray").iterdir()
    assert json.loads((folder / "info.json").read_text())["style"] == [style]
    picture = np.asarray(Image.open(folder / "004.png").convert("RGB")).astype(int)
    plain = np.asarray(Image.open(gray / "004.png").convert("RGB")).astype(int)
    assert np.ptp(plain, axis=2).max() == 0  # grey heat on a grey video
    assert np.abs(picture - plain).max() > 20
    if style == "focus":
        assert Image.open(folder / "004.png").mode == "RGBA"


def test_plain_leaves_caption_and_strip_out(tmp_path: Path) -> None:
    options = ("--sampling", "dense", "--format", "frames", "--json")
    full = done("explain", "a.mp4", *TINY, *options, "--out", tmp_path / "full").json[0]["out"][0]
    plain = done("explain", "a.mp4", *TINY, *options, "--plain", "--out", tmp_path / "plain").json[0]["out"][
        0
    ]
    a, b = (np.asarray(Image.open(Path(p) / "000.png")).astype(int) for p in (full, plain))
    changed = np.abs(a - b).max(axis=(1, 2)) > 10
    assert changed.any()
    assert not changed.all()


def test_equal_names_are_numbered(tmp_path: Path) -> None:
    ran = done("explain", "one/same.mp4", "two/same.mp4", "frames", *TINY, "--out", tmp_path, "--json")
    names = [Path(e["out"][0]).name.partition(".tubes.")[0] for e in ran.json]
    assert names == ["same", "same-2", "frames"]
    assert [e["video"] for e in ran.json] == ["one/same.mp4", "two/same.mp4", "frames"]
    assert len(list(tmp_path.iterdir())) == 3


def test_one_bad_video_among_good_ones(tmp_path: Path) -> None:
    ran = tubelens("explain", "one/same.mp4", "gone.mp4", "b.mkv", *TINY, "--out", tmp_path, "--json")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("tubelens: gone.mp4: no such file")
    assert [e["video"] for e in ran.json] == ["one/same.mp4", "b.mkv"]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_sound_is_kept(tmp_path: Path) -> None:
    done("explain", "sound.mp4", "a.mp4", *TINY, "--target", "0", "--out", tmp_path)
    assert has_sound(tmp_path / "sound.tubes.surfing_water.mp4")
    assert not has_sound(tmp_path / "a.tubes.surfing_water.mp4")


def test_odd_sides_grow_by_one_in_mp4_only(tmp_path: Path) -> None:
    done("explain", "odd.avi", *TINY, "--target", "0", "--format", "mp4", "webm", "--out", tmp_path)
    assert decoded(tmp_path / "odd.tubes.surfing_water.mp4")[0][0].shape == (52, 74, 3)
    frames, _ = decoded(tmp_path / "odd.tubes.surfing_water.webm")
    assert frames[0].shape == (51, 73, 3)
    assert len(frames) == 20


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────


def sampled(out: Path, *options: object) -> tl.Explanation:
    done("explain", "a.mp4", *TINY, "--target", "0", "--out", out, *options)
    return tl.load_explanation(out)


def numbers(why: tl.Explanation) -> list[int]:
    return [round(t * 25) for t in why.source.times]


def test_sampling(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    cases: dict[tuple[object, ...], list[int]] = {
        (): [0, 5, 11, 16, 22, 27, 33, 39],
        ("--sampling", "uniform", "--frames", 4): [0, 13, 26, 39],
        ("--sampling", "segments"): [2, 7, 12, 17, 22, 27, 32, 37],
        ("--sampling", "dense"): list(range(8)),
        ("--sampling", "dense", "--start", 0.4, "--stride", 3): list(range(10, 34, 3)),
        ("--start", 0.4): list(range(10, 18)),
        ("--sampling", "windows", "--stride", 2): list(range(0, 40, 2)),
    }
    for options, expected in cases.items():
        assert numbers(sampled(out, *options)) == expected, options


def test_random_sampling_is_seeded(tmp_path: Path) -> None:
    options = ("--sampling", "random")
    runs = [sampled(tmp_path / f"{i}.safetensors", *options, "--seed", s) for i, s in enumerate((3, 3, 4, 5))]
    assert numbers(runs[0]) == numbers(runs[1])
    assert torch.equal(runs[0].grid, runs[1].grid)
    assert len({tuple(numbers(run)) for run in runs}) > 1
    assert all(np.diff(numbers(run)).tolist() == [1] * 7 for run in runs)
    assert [run.provenance.seed for run in runs] == [3, 3, 4, 5]
    assert sampled(tmp_path / "u.safetensors").provenance.seed is None


def test_dense_draws_only_its_span(tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    done(
        *("explain", "a.mp4", *TINY, "--sampling", "dense", "--start", "0.4", "--stride", 2),
        *("--beside", "--plain", "--out", out),
    )
    assert [read_code(frame[:, :64]) for frame in decoded(out)[0]] == list(range(10, 25))


def test_windows_cover_the_whole_video(tmp_path: Path) -> None:
    ran = done(
        *("explain", "a.mp4", *TINY, "--sampling", "windows", "--overlap", 0.25, "--beside", "--plain"),
        *("--format", "mp4", "safetensors", "--out", tmp_path, "--json"),
    )
    (entry,) = ran.json
    assert entry["facts"] == {"windows": 7}
    assert entry["forwards"] >= 7
    video, numbers_file = map(Path, entry["out"])
    assert [read_code(frame[:, :64]) for frame in decoded(video)[0]] == list(range(40))
    why = tl.load_explanation(numbers_file)
    assert [part.span for part in why.parts] == [(i, i + 8) for i in (0, 6, 12, 18, 24, 30, 32)]
    assert why.saliency.shape == (40, 24, 24)


def test_layer_strongest_and_parity_reach_the_method(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    plain = sampled(out)
    strongest = sampled(out, "--strongest", 2)
    assert "Strongest(k=2" in strongest.provenance.method
    assert not torch.allclose(plain.grid, strongest.grid)
    paper = sampled(out, "--parity", "paper")
    torch.testing.assert_close(paper.grid, plain.grid * 4 * 6 * 6)
    assert paper.align == "endpoints"
    assert sampled(out, "--layer", "body").provenance.layer == "body"


def test_padding_is_said_and_is_no_error(tmp_path: Path) -> None:
    coded_video(tmp_path / "short.mp4", 5)
    for sampling in ("uniform", "dense", "random", "windows"):
        ran = tubelens(
            *("explain", tmp_path / "short.mp4", *TINY, "--sampling", sampling, "--json"),
            *("--out", tmp_path / sampling),
        )
        assert ran.code == 0
        assert (
            ran.err
            == f"note: {tmp_path}/short.mp4: too short for the clip: 3 frames were repeated or padded\n"
        )
        assert ran.json[0]["padded"] == 3
        (out,) = ran.json[0]["out"]
        assert len(decoded(Path(out))[0]) == 5
    ran = tubelens("predict", tmp_path / "short.mp4", *TINY)
    assert ran.code == 0
    assert "3 frames were repeated or padded" in ran.err
    one = coded_video(tmp_path / "one.mp4", 1)
    ran = tubelens("explain", one, *TINY, "--out", tmp_path / "one.png", "--json")
    assert (ran.code, ran.json[0]["padded"]) == (0, 7)


def test_black_padding(tmp_path: Path) -> None:
    coded_video(tmp_path / "short.mp4", 5)
    scores = {
        pad: tubelens(
            *("explain", tmp_path / "short.mp4", *TINY, "--target", "0", "--sampling", "dense", "--pad", pad),
            *("--out", tmp_path / "x.safetensors", "--json"),
        ).json[0]["score"]
        for pad in ("clamp", "zero")
    }
    assert abs(scores["clamp"] - scores["zero"]) > 1e-3


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────


def test_frames(tmp_path: Path) -> None:
    ran = done("frames", "a.mp4", "--out", tmp_path / "f", "--every", 7, "--max", 4)
    assert ran.out == f"4 frames of a.mp4 in {tmp_path}/f\n"
    found = {int(p.stem): read_code(np.asarray(Image.open(p))) for p in (tmp_path / "f").iterdir()}
    assert found == {0: 0, 7: 7, 14: 14, 21: 21}
    ran = done("frames", "a.mp4", "--out", tmp_path / "all", "--json")
    assert len(ran.json["frames"]) == 40
    assert all(read_code(np.asarray(Image.open(p))) == int(Path(p).stem) for p in ran.json["frames"])
    ran = done("frames", "frames", "--out", tmp_path / "again", "--every", 5, "--json")
    assert [Path(p).name for p in ran.json["frames"]] == ["00.png", "05.png", "10.png"]


def test_frames_may_be_extracted_again_but_nothing_else_is_deleted(tmp_path: Path) -> None:
    out = tmp_path / "f"
    done("frames", "a.mp4", "--out", out)
    done("frames", "a.mp4", "--out", out, "--every", 20)
    assert sorted(p.name for p in out.iterdir()) == ["00.png", "20.png"]
    (out / "thesis.tex").write_text("years of work")
    ran = tubelens("frames", "a.mp4", "--out", out)
    assert ran.code == 2
    assert re.fullmatch(r"tubelens: .*/f: .*thesis\.tex.*\n", ran.err)
    assert sorted(p.name for p in out.iterdir()) == ["00.png", "20.png", "thesis.tex"]


# ── demo ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_demo(tmp_path: Path, offline: list[object]) -> None:
    ran = done("demo", "--out", tmp_path / "demo", "--json")
    assert offline == []
    found = ran.json
    assert set(found) == {"truth", "predicted", "localisation", "out"}
    assert found["predicted"][0]["label"] == found["truth"]
    assert found["predicted"][0]["prob"] > 0.5
    written = [Path(path) for path in found["out"]]
    assert sorted(written) == sorted((tmp_path / "demo").iterdir())
    first, second = (e["label"].replace(" ", "-") for e in found["predicted"][:2])
    assert [p.name for p in written] == [
        *("clip.mp4", f"{first}.mp4", f"{first}.png", f"{second}.mp4", f"{second}.png"),
        *("tube.safetensors", "focus.webm", "both.mp4"),
    ]
    clip, _ = decoded(written[0])
    h, w, _ = clip[0].shape
    columns = {"clip.mp4": 1, f"{first}.mp4": 2, f"{second}.mp4": 2, "focus.webm": 1, "both.mp4": 3}
    for path in written:
        if path.name in columns:
            frames, _ = decoded(path)
            assert len(frames) == len(clip)
            assert frames[0].shape == (h, w * columns[path.name], 3)
            assert np.stack(frames).std() > 5
        elif path.suffix == ".png":
            with Image.open(path) as sheet:
                sheet.load()
                assert np.asarray(sheet).std() > 5
        else:
            why = tl.load_explanation(path)
            assert why.provenance.label == found["truth"]
            assert float(why.grid.sum()) + why.provenance.facts["constant"] == pytest.approx(
                why.provenance.score, rel=1e-3
            )
    tube = found["localisation"]["saliency tube"]
    for rival in ("random order", "centre prior", "frame difference"):
        assert tube["average precision"] > found["localisation"][rival]["average precision"]


def test_demo_prints_tables_and_paths(tmp_path: Path, offline: list[object]) -> None:
    out = tmp_path / "demo"
    said = done("demo", "--out", out, "--seed", 11).out
    assert offline == []
    assert re.search(r"its label is '(.*)'", said)
    assert re.search(r"^ *class +probability", said, re.M)
    assert re.search(r"^ *map +average precision +energy in tube +pointing +mass on distractors", said, re.M)
    for row in ("saliency tube", "random order", "centre prior", "frame difference"):
        assert re.search(rf"^ *{row}( +\d\.\d\d){{4}}", said, re.M)
    left, constant, score = map(
        float, re.search(r"logit: (-?[\d.]+) \+ (-?[\d.]+) = (-?[\d.]+)", said).groups()
    )
    assert left + constant == pytest.approx(score, abs=0.003)
    listed = said.partition("Written:\n")[2].split("\n")
    assert {Path(line.strip()) for line in listed if line.strip()} == set(out.iterdir())


# ── as a process ─────────────────────────────────────────────────────────────────────────────────────────


def process(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *map(str, args)], capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_process_explains(tmp_path: Path) -> None:
    """A factory is found in a module of the working folder, too."""
    ran = process("explain", "a.mp4", "--model", "nets:make", "--out", tmp_path / "why.mp4", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    (entry,) = json.loads(ran.stdout)
    assert entry["out"] == [f"{tmp_path}/why.mp4"]
    assert len(decoded(tmp_path / "why.mp4")[0]) == 40


def test_process_whose_reader_goes_away() -> None:
    with subprocess.Popen([SCRIPT, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        said = run.stderr.read()
    assert (run.returncode, said) == (0, b"")


def test_process_prints_names_that_are_not_text(tmp_path: Path) -> None:
    """A name that is not UTF-8."""
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(Path("a.mp4").read_bytes())
    ran = subprocess.run(
        [SCRIPT, "explain", tmp_path / name, *TINY, "--out", tmp_path / "out", "--format", "safetensors"],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_tables_show_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    """File names and labels are no markup."""
    print_table("run [/x] [bold]", ["[red]"], [["clip [final].mp4"], ["[/b]"]])
    said = capsys.readouterr().out
    for text in ("run [/x] [bold]", "[red]", "clip [final].mp4", "[/b]"):
        assert text in said


def test_brackets_and_percent_in_a_name(tmp_path: Path) -> None:
    path = coded_video(tmp_path / "plain.mp4", 10).rename(tmp_path / "clip [final] [b] %03d.mp4")
    ran = done("explain", path, *TINY, "--out", tmp_path / "out", "--format", "mp4", "png")
    assert "clip [final] [b] %03d.mp4" in ran.out
    assert len(list((tmp_path / "out").iterdir())) == 2
