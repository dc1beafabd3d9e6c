"""Several networks side by side, the options that all verbs share, and the notes on what was loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tubelens as tl
from tests.cli.commands import LABELS, TINY, decoded, done, tubelens
from tubelens.agreement import agreement
from tubelens.capture import LayerInfo
from tubelens.cli.notes import next_layer
from tubelens.layout import Layout

TWO = ("--model", "nets.py:make", "nets.py:other")
TARGETS = ("--target", "swimming", "0")
SHORT = "one/same.mp4"


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(p).convert("RGB")).astype(int) for p in sorted(folder.glob("*.png"))]


# ── networks x targets ───────────────────────────────────────────────────────────────────────────────────


def test_a_row_a_network_and_a_column_a_target(tmp_path: Path) -> None:
    plain = ("--plain", "--format", "frames", "--json")
    ran = done("explain", SHORT, *TWO, *TARGETS, *plain, "--out", tmp_path / "all")
    (whole,) = {e["out"][0] for e in ran.json}
    assert Path(whole).name == "same_Net-other_tubes_swimming+surfing_water"
    together = pictures(Path(whole))
    assert len(together) == 12
    assert together[0].shape == (480, 640, 3)  # small frames are drawn larger
    for r, net in enumerate(TWO[1:]):
        out = ("--out", tmp_path / str(r))
        for c, entry in enumerate(done("explain", SHORT, "--model", net, *TARGETS, *plain, *out).json):
            alone = pictures(Path(entry["out"][0]))
            for k in (0, 5, 11):  # drawn on the same source frames, whatever each network sampled
                placed = together[k][240 * r : 240 * r + 240, 320 * c : 320 * c + 320]
                assert np.array_equal(placed[2:, 2:], alone[k][2:, 2:]), (net, c, k)  # but for the lines


@pytest.mark.parametrize("kind", ["png", "gif", "mp4"])
def test_every_picture_may_hold_all(tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"all.{kind}"
    ran = done("explain", SHORT, *TWO, *TARGETS, "--beside", "--out", out)
    assert [p.name for p in tmp_path.iterdir()] == [f"all.{kind}"]
    assert re.search(r"same\.mp4 +Net +tubes +swimming", ran.out)
    assert re.search(r"same\.mp4 +other +tubes +surfing water", ran.out)
    if kind == "mp4":
        assert decoded(out)[0][0].shape == (2 * (22 + 240 + 32), 960, 3)  # each row under its band


def test_numbers_are_a_file_each_and_each_network_reads_for_itself(tmp_path: Path) -> None:
    ran = done("explain", "a.mp4", *TWO, *TARGETS, "--format", "safetensors", "--out", tmp_path, "--json")
    names = [Path(e["out"][0]).name for e in ran.json]
    assert names == [
        f"a.{net}.tubes.{label}.safetensors"
        for net in ("Net", "other")
        for label in ("swimming", "surfing_water")
    ]
    net, _, other, _ = (tl.load_explanation(e["out"][0]) for e in ran.json)
    assert [round(t * 25) for t in net.source.times] == [0, 5, 11, 16, 22, 27, 33, 39]
    assert [round(t * 25) for t in other.source.times] == [3, 10, 16, 23, 30, 36]  # its recipe's segments
    assert other.size == (6, 16, 32)
    (entry,) = done("explain", "a.mp4", *TINY, "--sampling", "uniform", "--target", "0", "--json").json
    assert entry["model"] == "Net"
    forced = ("--sampling", "uniform", "--target", "0", "--out", tmp_path / "u.safetensors")
    done("explain", "a.mp4", "--model", "nets.py:other", *forced)
    assert [round(t * 25) for t in tl.load_explanation(tmp_path / "u.safetensors").source.times][:2] == [0, 7]


def test_agreement_is_told(tmp_path: Path) -> None:
    command = ("explain", SHORT, *TWO, *TARGETS, "--format", "safetensors", "--out", tmp_path)
    entries = done(*command, "--json").json
    maps = {}
    for spec, name in zip(TWO[1:], ("Net", "other"), strict=True):
        model = tl.load_model(spec)
        for e in tl.explain(model, model.read(SHORT), target=["swimming", "surfing water"]):
            maps[name, e.provenance.label] = e
    for entry in entries:
        mine = (entry["model"], entry["target"])
        others = {(o["model"], o["target"]): o["rank_correlation"] for o in entry["agreement"]}
        assert set(others) == {key for key in maps if (key[0] == mine[0]) != (key[1] == mine[1])}
        for key, r in others.items():
            assert r == pytest.approx(agreement(maps[mine], maps[key]), abs=1e-5)
    said = done(*command).out
    r = agreement(maps["Net", "swimming"], maps["other", "swimming"])
    number = re.search(r"same\.mp4 +tubes +Net, other +swimming +(-?[.\d]+)", said)
    assert number is not None
    assert float(number[1]) == pytest.approx(r, abs=0.006)
    assert re.search(r"tubes +swimming, surfing water +other ", said)
    assert len(re.findall(r"^ +same\.mp4 +tubes +.*, .* -?\.\d\d", said, re.M)) == 4
    one = done("explain", SHORT, *TINY, "--target", "0", "--format", "safetensors", "--out", tmp_path)
    assert "rank correlation" not in one.out


def test_methods_and_networks(tmp_path: Path) -> None:
    ways = ("--method", "gradcam", "tubes", "--plain")
    done("explain", SHORT, *TWO, *ways, "--target", "0", "--out", tmp_path / "one.mp4")
    assert decoded(tmp_path / "one.mp4")[0][0].shape == (480, 640, 3)  # a row a network, a column a method
    done("explain", SHORT, *TWO, *ways, *TARGETS, "--out", tmp_path / "two.mp4")
    assert decoded(tmp_path / "two.mp4")[0][0].shape == (960, 640, 3)  # a row a network and method
    ran = done("explain", SHORT, *TWO, *ways, "--target", "0", "--apart", "--out", tmp_path / "f", "--json")
    assert {Path(e["out"][0]).name for e in ran.json} == {
        f"same.Net-other.{way}.surfing_water.mp4" for way in ("gradcam", "tubes")
    }
    assert all(len(e["agreement"]) == 1 for e in ran.json)  # not with the other method's map


def test_two_of_one_name_are_told_apart(tmp_path: Path) -> None:
    torch.save(tl.load_model("nets.py:bare", seed=2).module.state_dict(), tmp_path / "w.pt")
    two = ("--model", "nets.py:bare", "nets.py:bare", "--weights", "-", tmp_path / "w.pt")
    ran = done("explain", "a.mp4", *two, "--target", "0", "--out", tmp_path / "a.gif", "--json")
    assert [e["model"] for e in ran.json] == ["nets.py:bare (nets.py:bare)", "nets.py:bare (w.pt)"]
    assert ran.json[0]["score"] != ran.json[1]["score"]


# ── a network that fails ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """Options after `explain a.mp4`, the one line, the exit code, and the networks that went on."""

    options: tuple[str, ...]
    line: str
    code: int
    left: tuple[str, ...]


FAILING = {
    "NaN": Case(
        ("--model", "nets.py:nan", "nets.py:make", "--target", "0"),
        r"NaNWhereBright returned NaN or infinity .*",
        1,
        ("Net",),
    ),
    "no such label": Case(
        ("--model", "nets.py:make", "nets.py:unnamed", "--target", "swimming"),
        r"Net \(nets\.py:unnamed\): unknown label 'swimming': this model has no labels, give a class index",
        2,
        ("Net",),
    ),
    "no such network": Case(
        ("--model", "nets.py:gone", "nets.py:make", "--target", "0"),
        r"nets\.py:gone: .* has no function .*",
        2,
        ("Net",),
    ),
    "no such layer": Case(
        (
            "--model",
            "nets.py:flat",
            "nets.py:make",
            "--layer",
            "stem",
            "--method",
            "gradcam",
            "--target",
            "0",
        ),
        r"Net has no layer 'stem'.*",
        2,
        ("Flat",),
    ),
    "all": Case(("--model", "nets.py:gone", "nets.py:lost", "--target", "0"), r"nets\.py:gone: .*", 2, ()),
}


@pytest.mark.parametrize("name", FAILING)
def test_one_line_for_the_network_that_fails_and_the_others_go_on(name: str, tmp_path: Path) -> None:
    case = FAILING[name]
    ran = tubelens("explain", SHORT, *case.options, "--out", tmp_path / "a.gif", "--json")
    assert ran.code == case.code
    lines = ran.err.splitlines()
    assert len(lines) == (1 if case.left else 2)
    assert re.fullmatch(f"tubelens: {case.line}", lines[0]), lines
    if case.left:
        found = [e["model"] for e in ran.json]
        assert [f.partition(" ")[0] for f in found] == list(case.left)
    assert [p.name for p in tmp_path.iterdir()] == (["a.gif"] if case.left else [])


def test_a_network_without_labels_takes_an_index(tmp_path: Path) -> None:
    ran = done(
        *("explain", SHORT, "--model", "nets.py:make", "nets.py:unnamed", "--target", "2"),
        *("--out", tmp_path / "a.gif", "--json"),
    )
    assert [e["target"] for e in ran.json] == ["swimming", "class 2"]
    assert len(ran.json[0]["agreement"]) == 1


def test_a_video_that_fails_is_no_fault_of_the_networks(tmp_path: Path) -> None:
    ran = tubelens("explain", "gone.mp4", SHORT, *TWO, "--target", "0", "--out", tmp_path, "--json")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert [e["video"] for e in ran.json] == [SHORT] * 2


WRONG = {
    "weights of two for three": (
        ("--model", "nets.py:make", "nets.py:other", "nets.py:bare", "--weights", "a.pt", "b.pt"),
        "--weights: 2 are given for 3 networks: give one for all, or one each",
    ),
    "twice the same": (
        ("--model", "nets.py:make", "nets.py:make"),
        "--model nets.py:make is named twice with the same weights: name each network once",
    ),
    "numbers in one file": ((*TWO, "--target", "0", "--out", "OUT.safetensors"), "give a folder"),
    "input of a known network": (("--model", "bundled", "--input", "frames=4"), "knows what it is fed"),
    "input in bad words": (("--model", "nets.py:bare", "--input", "frame=4"), "did you mean 'frames'"),
    "the video last": (("--model", "nets.py:make", "b.mkv"), "b.mkv was taken for a value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_usage(name: str, tmp_path: Path) -> None:
    options, words = WRONG[name]
    options = tuple(o.replace("OUT", str(tmp_path / "o")) for o in options)
    video = () if name == "the video last" else (SHORT,)
    ran = tubelens("explain", *video, *options)
    assert ran.code == 2
    assert re.fullmatch(r"tubelens: [^\n]+\n", ran.err), ran.err
    assert words in ran.err
    assert not any(tmp_path.iterdir())


# ── what all verbs share ─────────────────────────────────────────────────────────────────────────────────


def test_input_reaches_ones_own_network(tmp_path: Path) -> None:
    words = ("--input", "frames=4, size=16x20, sampling=segments")
    entries = done("layers", "nets.py:bare", *words, "--json").json
    assert entries[-1]["shape"] == [1, 6, 2, 4, 5]
    (tmp_path / "in.toml").write_text('frames = 4\nsize = [16, 20]\nsampling = "segments"\n')
    found = [
        done("predict", "a.mp4", "--model", "nets.py:bare", *given, "--json").json["predicted"][0]["prob"]
        for given in (words, ("--input", tmp_path / "in.toml"), ("--input", "frames=4, size=16x20"))
    ]
    assert found[0] == found[1] != found[2]
    out = ("--out", tmp_path / "a.safetensors")
    done("explain", "a.mp4", "--model", "nets.py:bare", *words, "--target", "0", *out)
    assert tl.load_explanation(tmp_path / "a.safetensors").size == (4, 16, 20)
    said = done("pyramid", "a.mp4", "--model", "nets.py:bare", *words, "--out", tmp_path / "p").out
    assert "nets.py:bare" in said


def test_predict_samples_as_the_recipe_does() -> None:
    model = tl.load_model("nets.py:other")
    probs = {
        given: done("predict", "a.mp4", "--model", "nets.py:other", *given, "--json").json["predicted"][0][
            "prob"
        ]
        for given in ((), ("--sampling", "segments"), ("--sampling", "uniform"))
    }
    assert probs[()] == probs["--sampling", "segments"] != probs["--sampling", "uniform"]
    assert probs[()] == pytest.approx(tl.predict(model, model.read("a.mp4"))[0][1])


def test_weights_known_by_shape_alone_are_noted(tmp_path: Path) -> None:
    torch.save(tl.load_model("bundled", "random", seed=3).module.state_dict(), tmp_path / "w.pt")
    note = (
        f"note: {tmp_path}/w.pt: names and shapes fit bundled; that it computes the same as the network it"
        " was trained in is not verified: check a prediction that you know\n"
    )
    for verb in (("predict", "a.mp4", "--model", "bundled"), ("layers", "bundled")):
        ran = tubelens(*verb, "--weights", tmp_path / "w.pt")
        assert (ran.code, ran.err) == (0, note)
    done("predict", "a.mp4")
    done("predict", "a.mp4", "--weights", "random")


def test_a_map_without_time_is_noted_with_the_layer_that_has_some(tmp_path: Path) -> None:
    command = ("explain", "a.mp4", "--model", "nets.py:flat", "--target", "0", "--json")
    ran = tubelens(*command, "--out", tmp_path / "a.safetensors")
    text = "body has one time step, so the map does not tell when: --layer stem has 4"
    assert (ran.code, ran.err) == (0, f"note: {text}\n")
    assert ran.json[0]["notes"] == [text]
    assert ran.json[0]["grid"][0] == 1
    finer = done(
        *command, "--layer", "stem", "--method", "gradcam", "--out", tmp_path / "b.safetensors"
    ).json[0]
    assert (finer["notes"], finer["grid"][0]) == ([], 4)
    done(*command, "--sampling", "windows", "--out", tmp_path / "c.safetensors")  # windows tell when
    ran = tubelens(
        *("explain", "a.mp4", "--model", "nets.py:flat", "nets.py:make", "--target", "0", "--json"),
        *("--format", "safetensors", "--out", tmp_path),
    )
    assert ran.err == f"note: Flat: {text}\n"


def test_the_next_layer_up_is_of_the_same_depth() -> None:
    def info(name: str, steps: int) -> LayerInfo:
        return LayerInfo(
            name, "Conv3d", (1, 2, steps, 4, 4), Layout(centres={"t": tuple(map(float, range(steps)))})
        )

    net = [
        info("layer2", 8),
        info("layer3", 2),
        info("layer4.0.conv1", 2),
        info("layer4.0", 1),
        info("layer4", 1),
    ]
    assert next_layer(net, "layer4") == ("layer3", 2)
    assert next_layer(net[2:], "layer4") == ("layer4.0.conv1", 2)
    assert next_layer(net[3:], "layer4") is None
    assert next_layer(net, "gone") is None


def test_labels_for_one_of_two(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"n{i}" for i in range(len(LABELS))))
    ran = done(
        *(
            "explain",
            "a.mp4",
            "--model",
            "nets.py:make",
            "nets.py:unnamed",
            "--labels",
            "-",
            tmp_path / "names.txt",
        ),
        *("--target", "1", "--out", tmp_path / "a.gif", "--json"),
    )
    assert [e["target"] for e in ran.json] == [LABELS[1], "n1"]
