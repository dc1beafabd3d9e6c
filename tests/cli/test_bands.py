"""`tubelens explain --bands`: the ledger as a table, a figure and JSON, beside the maps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tubelens as tl
from tests.cli.commands import SCHEMA, TINY, done, tubelens
from tubelens.evaluate.planted_models import planted_model
from tubelens.planted import generate

NETS = """
from tubelens.evaluate.planted_models import planted_model


def xor():
    return planted_model("xor")


def infrared():
    return planted_model("infrared")
"""
CLIP = "x.npz?range=0:1&bands=R,G,B,IR&fps=8"
XOR = (CLIP, "--model", "planted.py:xor")


@pytest.fixture(autouse=True)
def clip_of_four_bands(at_the_videos: None, videos: Path) -> Iterator[None]:
    planted = generate(800_001, "xor")
    np.savez(videos / "x.npz", planted.pixels.permute(1, 2, 3, 0).numpy())
    (videos / "planted.py").write_text(NETS)
    yield
    (videos / "x.npz").unlink()


def rows(text: str) -> list[list[str]]:
    """Lines of the tables that begin with a band."""
    return [line.split() for line in text.splitlines() if re.match(r" *(RGB|IR|R|G|B|sum) ", line)]


def test_table_figure_and_json_beside_the_map(tmp_path: Path) -> None:
    ran = done("explain", *XOR, "--bands", "--format", "safetensors", "--out", tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    base = kept.with_suffix("")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [kept.name, f"{base.name}_bands.png", f"{base.name}_bands.json"]
    )
    told = json.loads(Path(f"{base}_bands.json").read_text())
    why = tl.load_explanation(kept)
    model = planted_model("xor")
    found = tl.ledger(model, model.read(CLIP), why)
    assert [r["name"] for r in told["regions"]] == [r.name for r in found.regions]
    assert [r["name"] for r in told["regions"]][:2] == ["whole clip", "tube 1"]
    for region, expected in zip(told["regions"], found.regions, strict=True):
        values = [value["score"] for value in region["values"]]
        assert values == pytest.approx(expected.values, abs=1e-4)
    assert Image.open(f"{base}_bands.png").size[0] == 1600
    # the table says the same
    printed = rows(ran.out)
    assert len(printed) == 3 * len(found.regions)
    for i, region in enumerate(found.regions):
        whole = f"{found.where(region)}: {found.said(region)}"
        assert whole in ran.out
        for row, expected in zip(printed[3 * i : 3 * i + 3], found.table(region)[1], strict=True):
            assert row == [cell for cell in expected if cell]
    assert f"x.npz: bands of {found.label} p=1.00 · planted_xor" in ran.out
    assert str(Path(f"{base}_bands.png")) in ran.out
    assert found.regions[0].together == pytest.approx(0.96, abs=0.01)


def test_json_on_standard_output(tmp_path: Path) -> None:
    ran = done("explain", *XOR, "--bands", "--groups", "R+G|B|IR", "--json", "--out", tmp_path / "why.png")
    (entry,) = ran.json
    assert set(entry) == SCHEMA | {"bands"}
    told = entry["bands"]
    assert told["players"] == ["R+G", "B", "IR"]
    assert told["out"] == [str(tmp_path / "why_bands.png"), str(tmp_path / "why_bands.json")]
    assert entry["out"] == [str(tmp_path / "why.png")]
    assert {p.name for p in tmp_path.iterdir()} == {"why.png", "why_bands.png", "why_bands.json"}
    kept = json.loads((tmp_path / "why_bands.json").read_text())
    assert kept == {key: value for key, value in told.items() if key != "out"}
    whole = told["regions"][0]
    assert sum(whole["shapley"].values()) == pytest.approx(whole["total"])
    assert told["forwards"] == 1 + 7 * len(told["regions"])


def test_methods_and_targets_share_the_whole_clip(tmp_path: Path) -> None:
    args = ("--method", "tubes", "gradcam", "--target", "alike", "unlike", "--format", "png", "--json")
    ran = done("explain", *XOR, *args, "--bands", "--out", tmp_path)
    told = {(e["method"], e["target"]): e["bands"] for e in ran.json}
    assert len(told) == 4
    for target in ("alike", "unlike"):
        assert told["tubes", target] == told["gradcam", target]
        names = [r["name"] for r in told["tubes", target]["regions"]]
        assert names[0] == "whole clip"
        assert {name.split(" tube ")[0] for name in names[1:]} == {"tubes", "gradcam"}
    alike, unlike = told["tubes", "alike"], told["tubes", "unlike"]
    assert alike["label"] == "alike"
    assert alike["regions"][0]["values"] != unlike["regions"][0]["values"]
    assert alike["out"] != unlike["out"]
    assert len(list(tmp_path.glob("*_bands.json"))) == 2
    # the whole clip is scored once for all, and so are equal tubes
    distinct = sum(
        len({json.dumps(r["values"]) for r in ledger["regions"]}) - 1 for ledger in (alike, unlike)
    )
    assert alike["forwards"] == unlike["forwards"] == (1 + 3 * (1 + distinct)) / 2


def test_networks_and_one_file(tmp_path: Path) -> None:
    args = ("--model", "planted.py:xor", "planted.py:infrared", "--bands", "--out", tmp_path / "why.png")
    ran = done("explain", CLIP, *args)
    names = {p.name for p in tmp_path.iterdir()}
    pairs = {f"why{number}_bands{suffix}" for number in ("", "-2") for suffix in (".png", ".json")}
    assert names == {"why.png"} | pairs
    first, second = (json.loads((tmp_path / f"why{n}_bands.json").read_text()) for n in ("", "-2"))
    assert (first["model"], second["model"]) == ("planted_xor", "planted_infrared")
    assert ran.out.count("bands of ") == 2


def test_without_evidence_nothing_is_shared(tmp_path: Path) -> None:
    ran = done("explain", *XOR, "--bands", "--target", "neither", "--out", tmp_path / "why.png")
    (whole,) = (line for line in ran.out.splitlines() if line.startswith("whole clip"))
    assert whole.endswith("; there is no evidence to share")
    assert [row[-1] for row in rows(ran.out)[:3]] == ["–"] * 3


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((*XOR, "--groups", "RGB|IR"), "--groups RGB|IR says how --bands are weighed: give --bands too"),
        ((*XOR, "--bands", "--groups", "RGB"), "must name each of the bands R, G, B, IR once"),
        ((*XOR, "--bands", "--groups", "RGB|UV"), "no band begins 'UV'"),
        ((*XOR, "--bands", "--sampling", "windows"), "weighs the bands of one clip, and windows are several"),
        ((*XOR, "--bands", "--views", "2x1"), "weighs the bands of one clip, and views are several"),
        (("a.mp4", *TINY, "--bands", "--groups", "RGB"), "RGB stands alone: give two groups or more"),
    ],
)
def test_what_cannot_be_weighed(args: tuple[str, ...], said: str, tmp_path: Path) -> None:
    ran = tubelens("explain", *args, "--out", tmp_path)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert not ran.out
    assert not list(tmp_path.iterdir())


def test_one_band_is_one_line(videos: Path, tmp_path: Path) -> None:
    (videos / "grey.py").write_text(
        "import torch, tubelens as tl\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    net = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.AdaptiveAvgPool3d(1),\n"
        "                              torch.nn.Flatten(), torch.nn.Linear(4, 3))\n"
        "    return tl.wrap(net.eval(), frames=8, size=24, bands='Y')\n"
    )
    ran = tubelens("explain", "a.mp4", "--model", "grey.py:make", "--bands", "--out", tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "tubelens: a ledger weighs bands against each other, and Y stands alone: the clip has no other\n"
    )


def test_colours_alone_are_three_players(tmp_path: Path) -> None:
    ran = done("explain", CLIP, *TINY, "--bands", "--json", "--out", tmp_path / "why.png")
    assert ran.json[0]["bands"]["players"] == ["R", "G", "B"]


def test_what_was_said_of_the_clip_is_said_once(videos: Path, tmp_path: Path) -> None:
    values = np.load(videos / "x.npz")["arr_0"].copy()
    values[:, 3, 4, 3] = np.nan  # a dead cell of the infrared sensor
    np.savez(videos / "x.npz", values)
    ran = tubelens("explain", *XOR, "--bands", "--json", "--out", tmp_path / "why.png")
    assert ran.code == 0
    (note,) = ran.err.splitlines()
    assert ran.json[0]["bands"]["notes"] == [note.removeprefix("note: ")]


COPIES = "R, G and B are three copies of one band, so there is nothing to weigh"


def test_copies_of_one_band_are_not_weighed(videos: Path, tmp_path: Path) -> None:
    """A network on colour is fed infrared three times: what one copy brings beside the others is nothing."""
    rng = np.random.default_rng(0)
    np.savez(videos / "heat.npz", frames=rng.random((16, 40, 50), dtype=np.float32))
    heat = "heat.npz?range=0:1"
    for args in (("--bands",), ("--bands", "--groups", "R+G|B"), ("--method", "rise(n=8,spectrum=each)")):
        ran = tubelens("explain", heat, "--model", "bundled", *args, "--out", tmp_path / "why.png")
        assert (ran.code, ran.out) == (2, "")
        assert COPIES in ran.err
        assert ran.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert tubelens("explain", heat, "--model", "bundled", "--out", tmp_path / "why.png").code == 0
    model = tl.load_model("bundled")
    clip = model.read(heat)
    for method in ("shap(spectrum=independent)", "inputxgradient(spectrum=each)"):
        with pytest.raises(tl.errors.OptionError, match=COPIES):
            tl.explain(model, clip, method)
    with pytest.raises(tl.errors.OptionError, match=COPIES):
        tl.ledger(model, clip)
    with pytest.raises(tl.errors.OptionError, match=COPIES):
        tl.BandShare()(model, clip, [tl.explain(model, clip)])
    clip.pixels[1, 0, 0, 0] += 1e-6  # no copies, however alike
    assert tl.ledger(model, clip, tubes=0).regions
