"""Every error, through the command line: one line that names the fault and the mend, the right exit code,
and nothing left behind.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.commands import NETS, SCRIPT, TINY, decoded, tubelens
from tests.test_video_errors import write_packets
from tests.videos import coded, coded_video, write_tone, write_video


def noise(count: int, size: tuple[int, int] = (48, 64)) -> Iterator[np.ndarray]:
    """Frames that do not compress, so that a cut hits them."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count))


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is wrong, one file each; and a good one."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "nets.py").write_text(NETS)
    (folder / "syntax.py").write_text("def make(:\n")
    (folder / "needs.py").write_text("import a_package_that_is_not_there\n")
    coded_video(folder / "good.mp4", 20)
    coded_video(folder / "also.mp4", 20)
    (folder / "empty.mp4").touch()
    (folder / "notes.mp4").write_text("These are my notes.\n" * 50)
    (folder / "no_images").mkdir()
    (folder / "no_images" / "readme.txt").write_text("nothing")
    write_video(folder / "no_index.mp4", noise(60))
    cut(folder / "no_index.mp4", 0.6)
    write_video(folder / "half.mp4", noise(60), muxing={"movflags": "+faststart"})
    cut(folder / "half.mp4", 0.5)
    write_video(folder / "half.mkv", noise(60))
    cut(folder / "half.mkv", 0.5)
    write_video(folder / "half.avi", noise(60), codec="mjpeg", pix_fmt="yuvj420p")
    cut(folder / "half.avi", 0.5)
    with av.open(str(folder / "song.mp4"), "w") as out:
        sound = out.add_stream("aac", rate=48000)
        write_tone(out, sound, 440.0, 0.0, 0.5)
        out.mux(sound.encode(None))
    write_packets(folder / "changing.mkv", [(48, 64)] * 10 + [(64, 48)] * 10)
    (folder / "mixed").mkdir()
    for number in range(10):
        size = (48, 64) if number < 7 else (32, 32)
        Image.fromarray(coded(number, size)).save(folder / "mixed" / f"{number}.png")
    (folder / "bad_image").mkdir()
    for number in range(10):
        Image.fromarray(coded(number)).save(folder / "bad_image" / f"{number}.png")
    cut(folder / "bad_image" / "4.png", 0.5)
    (folder / "four.txt").write_text("a\nb\nc\nd\n")
    (folder / "none.txt").write_text("\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    save_file({"fc.weight": torch.zeros(5, 512), "stem.weight": torch.zeros(3)}, folder / "other.safetensors")
    (folder / "text.pt").write_text("no weights")
    torch.save({"epoch": 3}, folder / "epoch.pt")
    (folder / "void.pt").touch()
    return folder


@pytest.fixture(autouse=True)
def at_the_material(material: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(material)


@dataclass(frozen=True)
class Case:
    """A command that fails. TINY stands for a small network, OUT for a place that does not exist."""

    command: str
    words: tuple[str, ...]
    code: int = 2


MP4 = "TINY --out OUT.mp4"
VIDEOS = {
    "no such file": Case(f"explain gone.mp4 {MP4}", ("gone.mp4", "no such file", "check the path")),
    "folder without images": Case(
        f"explain no_images {MP4}", ("no_images", "without images", "give a video")
    ),
    "zero bytes": Case(f"explain empty.mp4 {MP4}", ("empty.mp4", "0 bytes", "copy or download it again")),
    "text": Case(f"explain notes.mp4 {MP4}", ("notes.mp4", "not a video that can be read")),
    "cut before moov": Case(f"explain no_index.mp4 {MP4}", ("no_index.mp4", "moov", "copy it again")),
    "cut mp4": Case(
        f"explain half.mp4 {MP4}", ("half.mp4", "of 60 frames can be read", "repair or re-encode")
    ),
    "cut mkv": Case(f"explain half.mkv {MP4}", ("half.mkv", "cut off", "repair or re-encode")),
    "cut avi": Case(f"explain half.avi {MP4}", ("half.avi", "cut off", "repair or re-encode")),
    "cut, in windows": Case(f"explain half.mp4 --sampling windows {MP4}", ("half.mp4", "cut off")),
    "cut, behind the hole": Case(
        f"explain half.mp4 --sampling dense --start 1.1 {MP4}", ("half.mp4", "cut off", "frames can be read")
    ),
    "audio only": Case(f"explain song.mp4 {MP4}", ("song.mp4", "sound but no pictures")),
    "frames change size": Case(f"explain changing.mkv {MP4}", ("changing.mkv", "is 48x64", "re-encode it")),
    "images of two sizes": Case(
        f"explain mixed {MP4}", ("mixed/7.png", "32x32", "bring all frames to one size")
    ),
    "broken image": Case(
        f"explain bad_image {MP4}", ("bad_image/4.png", "cannot be decoded", "replace or remove")
    ),
    "predict, no such file": Case("predict gone.mp4 TINY", ("gone.mp4", "no such file")),
    "predict, cut": Case("predict half.mkv TINY", ("half.mkv", "cut off")),
    "frames, no such file": Case("frames gone.mp4 --out OUT", ("gone.mp4", "no such file")),
    "frames, cut": Case("frames half.mp4 --out OUT", ("half.mp4", "cut off")),
    "frames, audio only": Case("frames song.mp4 --out OUT", ("song.mp4", "sound but no pictures")),
    "frames, broken image": Case("frames bad_image --out OUT", ("bad_image/4.png", "cannot be decoded")),
}
TARGETS = {
    "unknown label": Case(
        f"explain good.mp4 --target swiming {MP4}", ("unknown label 'swiming'", "did you mean 'swimming'")
    ),
    "label of a model without": Case(
        "explain good.mp4 --target swimming --model nets.py:unnamed --out OUT.mp4",
        ("unknown label 'swimming'", "no labels", "class index"),
    ),
    "class out of range": Case(f"explain good.mp4 --target 5 {MP4}", ("class 5", "5 classes, 0 to 4")),
    "negative class": Case(f"explain good.mp4 --target=-1 {MP4}", ("class -1", "0 to 4")),
    "more than all": Case("explain good.mp4 --target top6 TINY --out OUT", ("top6", "5 classes")),
    "top none": Case(f"explain good.mp4 --target top0 {MP4}", ("top0", "5 classes")),
    "one good, one bad": Case("explain good.mp4 --target 0 9 TINY --out OUT", ("class 9", "0 to 4")),
    "no such layer": Case(
        f"explain good.mp4 --layer body.2 {MP4}", ("no layer 'body.2'", "did you mean", "'body.1'")
    ),
    "layer without place": Case(f"explain good.mp4 --layer head {MP4}", ("layer 'head'", "tubelens layers")),
    "head not affine": Case(
        "explain good.mp4 --model nets.py:pooled_by_max --out OUT.mp4",
        ("affine", "that of Net is not", "such as gradcam or rise"),
    ),
    "head not affine from there": Case(
        f"explain good.mp4 --layer body.0 {MP4}", ("affine from layer 'body.0' on", "tubelens layers")
    ),
}
MODELS = {
    "no weights": Case("explain good.mp4 --model r3d_18 --out OUT", ("r3d_18", "KINETICS400_V1", "'random'")),
    "unknown weights": Case(
        "predict good.mp4 --model r3d_18 --weights KINETICS400_V2", ("KINETICS400_V2", "did you mean", "_V1'")
    ),
    "weights file not there": Case(
        "predict good.mp4 --model r3d_18 --weights no.pt", ("no.pt", "no such weights")
    ),
    "weights of another network": Case(
        "predict good.mp4 --model bundled --weights other.safetensors",
        ("other.safetensors", "not weights of bundled"),
    ),
    "weights that do not fit": Case(
        "predict good.mp4 --model r3d_18 --weights other.safetensors",
        ("other.safetensors", "missing: stem.0.weight", "1 unexpected: stem.weight"),
    ),
    "weights that do not fit one's own": Case(
        "explain good.mp4 --model nets.py:make --weights other.safetensors --out OUT",
        ("other.safetensors", "4 missing: body.0.weight", "2 unexpected"),
    ),
    "weights that are text": Case(
        "predict good.mp4 --model r3d_18 --weights text.pt", ("text.pt", "weights")
    ),
    "weights without tensors": Case(
        "predict good.mp4 --model r3d_18 --weights epoch.pt", ("epoch.pt", "state dict")
    ),
    "weights of zero bytes": Case("predict good.mp4 --model r3d_18 --weights void.pt", ("void.pt", "empty")),
    "unknown model": Case(
        "predict good.mp4 --model r3d_81", ("unknown model 'r3d_81'", "did you mean 'r3d_18'")
    ),
    "unknown model, layers": Case("layers r3d", ("unknown model 'r3d'", "did you mean", "'r3d_18'")),
    "no factory file": Case("predict good.mp4 --model gone.py:make", ("gone.py", "no such file")),
    "no factory function": Case("predict good.mp4 --model nets.py:mak", ("nets.py", "no function 'mak'")),
    "factory is no function": Case("predict good.mp4 --model nets.py:not_a_function", ("no function",)),
    "no factory package": Case(
        "predict good.mp4 --model no_pkg.nets:make", ("no_pkg.nets:make", "cannot be imported")
    ),
    "factory without package": Case("predict good.mp4 --model :make", (":make", "cannot be imported")),
    "factory file that does not parse": Case(
        "predict good.mp4 --model syntax.py:make", ("syntax.py:make", "cannot be imported", "SyntaxError")
    ),
    "factory file that misses a package": Case(
        "predict good.mp4 --model needs.py:make", ("needs.py:make", "a_package_that_is_not_there")
    ),
    "factory raises": Case(
        "predict good.mp4 --model nets.py:raises",
        ("nets.py:raises", "RuntimeError", "the cluster is on fire"),
    ),
    "factory returns a number": Case(
        "predict good.mp4 --model nets.py:returns_a_number",
        ("nets.py:returns_a_number", "must return a module", "int"),
    ),
    "network breaks": Case(
        "explain good.mp4 --model nets.py:breaks --out OUT",
        ("Breaks", "does not accept a clip batch of 1x3x8x24x24"),
    ),
    "network breaks on this clip": Case(
        "explain good.mp4 --model nets.py:breaks_later --out OUT",
        ("BreaksLater", "1x3x8x24x24", "KeyError", "weights of the moon"),
    ),
    "NaN": Case(
        "explain good.mp4 --model nets.py:nan --out OUT.mp4",
        ("NaNWhereBright", "NaN or infinity", "check"),
        code=1,
    ),
    "NaN, predict": Case(
        "predict good.mp4 --model nets.py:nan", ("NaN or infinity", "normalisation"), code=1
    ),
    "NaN, in windows": Case(
        "explain good.mp4 --sampling windows --model nets.py:nan --out OUT.mp4", ("NaN or infinity",), code=1
    ),
    "NaN on black already": Case("predict good.mp4 --model nets.py:always_nan", ("NaNAlways", "NaN"), code=1),
    "no such device": Case("predict good.mp4 TINY --device cuda:77", ("device 'cuda:77'", "cannot be used")),
    "no device of that name": Case("predict good.mp4 TINY --device gpu", ("device 'gpu'", "cannot be used")),
    "labels not there": Case(
        "predict good.mp4 TINY --labels gone.txt", ("--labels gone.txt", "cannot be read")
    ),
    "labels not text": Case(
        "predict good.mp4 TINY --labels binary.txt", ("--labels binary.txt", "cannot be read")
    ),
    "no labels": Case("predict good.mp4 TINY --labels none.txt", ("--labels none.txt", "one a line")),
    "too few labels": Case(
        f"explain good.mp4 --labels four.txt {MP4}",
        ("5 classes", "4 labels"),
    ),
    "too few labels, predict": Case("predict good.mp4 TINY --labels four.txt", ("5 classes", "4 labels")),
    "too few labels, known network": Case(
        "predict good.mp4 --model bundled --weights random --labels four.txt", ("8 classes", "4 labels")
    ),
}
OUTPUT = {
    "unknown suffix": Case(
        "explain good.mp4 TINY --out OUT.mov", (".mov", "unknown suffix", ".mp4", "or a folder")
    ),
    "several videos into a file": Case(
        f"explain good.mp4 also.mp4 {MP4}", ("OUT.mp4", "one video", "give a folder")
    ),
    "several targets into a file": Case(f"explain good.mp4 --target 0 1 {MP4}", ("OUT.mp4", "--beside")),
    "top 2 into a file": Case(f"explain good.mp4 --target top2 {MP4}", ("OUT.mp4", "give a folder")),
    "numbers of two beside": Case(
        "explain good.mp4 --target 0 1 --beside TINY --out OUT.safetensors", ("--beside", "safetensors")
    ),
    "numbers of two beside in a folder": Case(
        "explain good.mp4 --target 0 1 --beside --format mp4 safetensors TINY --out OUT",
        ("--beside", "safetensors"),
    ),
}
USAGE = {
    "unknown verb": Case("explian good.mp4", ("unknown verb 'explian'", "did you mean 'explain'")),
    "unknown option": Case(
        f"explain good.mp4 --targt 3 {MP4}", ("no option --targt", "did you mean '--target'")
    ),
    "option of another verb": Case("predict good.mp4 TINY --every 3", ("predict has no option --every",)),
    "no video": Case("explain TINY", ("explain", "VIDEO", "--help")),
    "predict nothing": Case("predict", ("predict", "VIDEO", "--help")),
    "frames to nowhere": Case("frames good.mp4", ("frames", "--out", "--help")),
    "layers of nothing": Case("layers", ("layers", "MODEL", "--help")),
    "two videos where one is asked": Case("predict good.mp4 also.mp4 TINY", ("also.mp4",)),
    "streams side by side": Case(
        "predict visible=good.mp4 ir=also.mp4 TINY",
        ("are streams of one scene", '"visible=good.mp4|ir=also.mp4"', "--input"),
    ),
    "a range that is the source's": Case(
        "explain good.mp4 TINY --range 0:1",
        ("has no option --range", "the source, as in PATH?range="),
    ),
    "palette that is none": Case(
        "explain good.mp4 TINY --palette thermal",
        ("--palette thermal: must be one of white-hot, black-hot, inferno, iron (",),
    ),
    "palette nearly right": Case(
        "explain good.mp4 TINY --palette infern0", ("iron (did you mean 'inferno'?)",)
    ),
    "unknown method": Case(
        f"explain good.mp4 --method tube {MP4}", ("unknown method 'tube'", "did you mean 'tubes'")
    ),
    "unknown style": Case(f"explain good.mp4 --style het {MP4}", ("--style", "het", "heat")),
    "unknown colour map": Case(
        f"explain good.mp4 --colormap virids {MP4}", ("'virids'", "did you mean 'viridis'")
    ),
    "unknown sampling": Case(
        f"explain good.mp4 --sampling densely {MP4}", ("--sampling", "densely", "dense")
    ),
    "unknown format": Case("explain good.mp4 --format mp5 TINY --out OUT", ("--format", "mp5", "mp4")),
    "unknown pad": Case(f"explain good.mp4 --pad grey {MP4}", ("--pad", "grey", "clamp")),
    "unknown parity": Case(f"explain good.mp4 --parity papers {MP4}", ("--parity", "papers")),
    "start no number": Case(f"explain good.mp4 --start abc {MP4}", ("--start", "abc")),
    "start not finite": Case(f"explain good.mp4 --start nan {MP4}", ("start", "nan")),
    "start for ever": Case(f"explain good.mp4 --start inf {MP4}", ("start", "inf")),
    "start missing": Case("predict good.mp4 TINY --start", ("--start",)),
    "start negative": Case(
        f"explain good.mp4 --sampling dense --start -1 {MP4}", ("start", "negative", "-1")
    ),
    "start past the end": Case(
        f"explain good.mp4 --sampling dense --start 9 {MP4}", ("start 9 s is past the end", "lasts 0.80 s")
    ),
    "start past the end, windows": Case(
        f"explain good.mp4 --sampling windows --start 9 {MP4}", ("start 9 s is past the end", "lasts 0.80 s")
    ),
    "start where it means nothing": Case(
        f"explain good.mp4 --sampling segments --start 0.2 {MP4}", ("segments", "no start", "dense")
    ),
    "no frames": Case(f"explain good.mp4 --frames 0 {MP4}", ("frames", "at least 1", "0")),
    "half a frame": Case(f"explain good.mp4 --frames 1.5 {MP4}", ("--frames", "1.5")),
    "no views": Case(f"explain good.mp4 --views 10 {MP4}", ("--views 10", "10x3")),
    "views and another": Case(
        f"explain good.mp4 --views 2x1 --sampling dense {MP4}", ("--views", "--sampling dense", "two ways")
    ),
    "a start for views": Case(f"explain good.mp4 --sampling views --start 0.2 {MP4}", ("--start", "views")),
    "no stride": Case(f"explain good.mp4 --sampling dense --stride 0 {MP4}", ("stride", "at least 1", "0")),
    "negative stride": Case(f"explain good.mp4 --stride -2 {MP4}", ("stride", "at least 1", "-2")),
    "overlap": Case(f"explain good.mp4 --sampling windows --overlap 1.5 {MP4}", ("overlap", "1.5")),
    "overlap, all": Case(f"explain good.mp4 --sampling windows --overlap 1 {MP4}", ("overlap", "below 1")),
    "overlap, negative": Case(f"explain good.mp4 --overlap -0.5 {MP4}", ("overlap", "-0.5")),
    "strongest none": Case(f"explain good.mp4 --strongest 0 {MP4}", ("--strongest", "at least 1")),
    "top none, predict": Case("predict good.mp4 TINY --top 0", ("--top", "at least 1", "0")),
    "top negative": Case("predict good.mp4 TINY --top -3", ("--top", "at least 1", "-3")),
    "every none": Case("frames good.mp4 --out OUT --every 0", ("every", "at least 1", "0")),
    "max none": Case("frames good.mp4 --out OUT --max 0", ("max", "at least 1", "0")),
    "layers, no frames": Case("layers nets.py:make --frames 0", ("--frames", "at least 1")),
    "layers, negative size": Case("layers nets.py:make --size -4", ("--size", "at least 1")),
    "windows for predict": Case("predict good.mp4 TINY --sampling windows", ("--sampling", "windows")),
}
CASES = {**VIDEOS, **TARGETS, **MODELS, **OUTPUT, **USAGE}


def fails(args: list[str], code: int, words: tuple[str, ...], place: Path) -> str:
    """Run a command that must fail in one line and leave nothing in `place`."""
    before = sorted(str(p) for p in place.rglob("*"))
    ran = tubelens(*args)
    assert ran.code == code, ran.err
    assert re.fullmatch(r"tubelens: [^\n]+\n", ran.err), ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.err, ran.err
    assert sorted(str(p) for p in place.rglob("*")) == before
    return ran.err


@pytest.mark.parametrize("name", CASES)
def test_error(name: str, tmp_path: Path, material: Path) -> None:
    case = CASES[name]
    here = sorted(p for p in material.rglob("*") if "__pycache__" not in str(p))
    words = tuple(word.replace("OUT", f"{tmp_path}/out") for word in case.words)
    line = case.command.replace("TINY", " ".join(TINY)).replace("OUT", f"{tmp_path}/out")
    fails(shlex.split(line), case.code, words, tmp_path)
    assert sorted(p for p in material.rglob("*") if "__pycache__" not in str(p)) == here


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    ran = tubelens("explain", "gone.mp4", *TINY, "--out", tmp_path / "a.mp4", "--debug")
    assert ran.code == 2
    assert "Traceback (most recent call last)" in ran.err
    assert ran.err.splitlines()[-1].startswith("tubelens: gone.mp4: no such file")
    ran = tubelens("predict", "good.mp4", "--model", "nets.py:breaks_later", "--debug")
    assert ran.code == 2
    assert "Traceback (most recent call last)" in ran.err
    assert "KeyError" in ran.err


def test_a_short_video_is_no_error(tmp_path: Path) -> None:
    coded_video(tmp_path / "short.mp4", 3)
    ran = tubelens("explain", tmp_path / "short.mp4", *TINY, "--out", tmp_path / "a.mp4")
    assert ran.code == 0
    assert re.fullmatch(r"note: \S*short\.mp4: too short for the clip: 5 frames [^\n]+\n", ran.err)
    assert len(decoded(tmp_path / "a.mp4")[0]) == 3


def test_official_weights_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "out").mkdir()
    for name in ("r3d_18", "s3d"):
        words = (
            name,
            "KINETICS400_V1",
            "cannot be downloaded",
            "https://",
            str(tmp_path / "torch"),
            "put it at",
        )
        args = ["explain", "good.mp4", "--model", name, "--weights", "KINETICS400_V1"]
        fails([*args, "--out", f"{tmp_path}/out/a.mp4"], 2, words, tmp_path / "out")
    assert not [p for p in (tmp_path / "torch").rglob("*") if p.is_file()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(tmp_path: Path) -> None:
    coded_video(tmp_path / "secret.mp4", 5).chmod(0)
    fails(
        ["explain", f"{tmp_path}/secret.mp4", *TINY, "--out", f"{tmp_path}/a.mp4"],
        2,
        ("secret.mp4",),
        tmp_path,
    )
    (tmp_path / "locked").mkdir(mode=0o500)
    words = ("cannot be written", "ermission denied")
    fails(["explain", "good.mp4", *TINY, "--out", f"{tmp_path}/locked/a.mp4"], 1, words, tmp_path)


# ── something in the way ─────────────────────────────────────────────────────────────────────────────────


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "tubes").write_text("a file")
    for args in (
        ["explain", "good.mp4", *TINY, "--out", f"{tmp_path}/tubes"],
        ["explain", "good.mp4", *TINY, "--out", f"{tmp_path}/tubes/a.mp4"],
        ["frames", "good.mp4", "--out", f"{tmp_path}/tubes"],
        ["frames", "good.mp4", "--out", f"{tmp_path}/tubes/deeper"],
    ):
        fails(args, 1, (f"{tmp_path}/tubes", "cannot"), tmp_path)
    assert (tmp_path / "tubes").read_text() == "a file"


@pytest.mark.parametrize("kind", ["mp4", "gif", "webm", "png", "safetensors"])
def test_a_folder_where_the_file_should_be(tmp_path: Path, kind: str) -> None:
    taken = tmp_path / f"good.tubes.swimming.{kind}"
    taken.mkdir()
    (taken / "precious.txt").write_text("keep")
    words = (str(taken), "a folder of that name is in the way")
    options = ["--target", "swimming", "--sampling", "dense", "--format", kind]
    fails(["explain", "good.mp4", *TINY, *options, "--out", str(tmp_path)], 1, words, tmp_path)


def test_an_earlier_file_survives_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("earlier")
    fails(["explain", "half.mp4", *TINY, "--out", f"{tmp_path}/a.mp4"], 2, ("half.mp4",), tmp_path)
    args = ["explain", "good.mp4", "--model", "nets.py:nan", "--out", f"{tmp_path}/a.mp4"]
    fails(args, 1, ("NaN",), tmp_path)
    assert (tmp_path / "a.mp4").read_text() == "earlier"


# ── out of disk ──────────────────────────────────────────────────────────────────────────────────────────

FORMATS = ("mp4", "webm", "gif", "png", "safetensors", "frames")


@pytest.fixture(scope="module")
def heavy(material: Path) -> Path:
    """A video whose every output is larger than the disk below."""
    return write_video(material / "heavy.mkv", noise(12, (120, 160)))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("only root may mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_out_of_disk(full_disk: Path, heavy: Path, kind: str) -> None:
    words = ("cannot be written", "No space left on device", "nothing was left behind", str(full_disk))
    options = ["--target", "swimming", "--sampling", "dense", "--format", kind]
    fails(["explain", str(heavy), *TINY, *options, "--out", f"{full_disk}/deep/tubes"], 1, words, full_disk)


def test_out_of_disk_for_a_named_file_and_for_frames(full_disk: Path, heavy: Path) -> None:
    words = ("cannot be written", "No space left on device", "nothing was left behind")
    fails(["explain", str(heavy), *TINY, "--out", f"{full_disk}/a.mp4"], 1, (*words, "a.mp4"), full_disk)
    fails(["frames", str(heavy), "--out", f"{full_disk}/f"], 1, (*words, f"{full_disk}/f"), full_disk)


LIMITED = """
import contextlib, io, json, resource, sys
from tubelens.cli import main
found = {}
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
for kind in sys.argv[3:]:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        args = ["--model", "nets.py:make", "--target", "swimming", "--sampling", "dense", "--format", kind]
        code = main(["explain", sys.argv[1], *args, "--out", sys.argv[2]])
    found[kind] = [code, err.getvalue()]
print(json.dumps(found))
"""


def test_no_file_may_grow_so_large(tmp_path: Path, heavy: Path) -> None:
    """The same by a limit on the size of files, which needs no root."""
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(heavy), str(tmp_path / "tubes"), *FORMATS],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    found = json.loads(ran.stdout)
    for kind in FORMATS:
        code, said = found[kind]
        assert code == 1, (kind, said)
        assert re.fullmatch(
            r"tubelens: \S*heavy[._]tubes[._]swimming\S*: cannot be written: [^\n]+\n", said
        ), kind
        assert "File too large" in said
    assert list(tmp_path.iterdir()) == []


# ── interrupted ──────────────────────────────────────────────────────────────────────────────────────────


def interrupted(out: Path, video: Path, how: signal.Signals) -> tuple[int, str]:
    """Explain a long video, and send a signal while it is being drawn."""
    with subprocess.Popen(
        [SCRIPT, "explain", str(video), *TINY, "--out", str(out / "why.mp4")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background of a shell inherits SIGINT ignored, and would hand that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        deadline = time.monotonic() + 60
        while not any(p.is_file() and p.stat().st_size for p in out.rglob("*")):
            assert run.poll() is None, "ended before the signal"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not (out / "why.mp4").exists()
        run.send_signal(how)
        _, said = run.communicate(timeout=60)
        return run.returncode, said


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes seconds to draw."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    picture = next(noise(1, (480, 640)))
    return write_video(path, (np.roll(picture, 4 * i, axis=1) for i in range(500)))


def test_ctrl_c_leaves_nothing(tmp_path: Path, long_video: Path) -> None:
    code, said = interrupted(tmp_path, long_video, signal.SIGINT)
    assert code == 130
    assert said == "tubelens: interrupted; nothing half-written was left\n"
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_a_batch_job_leaves_nothing(tmp_path: Path, long_video: Path) -> None:
    assert interrupted(tmp_path, long_video, signal.SIGTERM) == (143, "")
    assert list(tmp_path.iterdir()) == []


def test_kill_leaves_no_file_under_the_final_name(tmp_path: Path, long_video: Path) -> None:
    """Nobody can tidy up after SIGKILL: what stays is one hidden folder, and never half a video."""
    code, said = interrupted(tmp_path, long_video, signal.SIGKILL)
    assert (code, said) == (-signal.SIGKILL, "")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".why.mp4-")
    assert left.is_dir()
