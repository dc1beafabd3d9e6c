"""`tubelens explain` with several methods, budgets and seeds; `tubelens methods`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tubelens as tl
from tests.cli.commands import TINY, decoded, done, tubelens
from tubelens import api
from tubelens.cli import explain as verb
from tubelens.methods import METHODS

FOUR = ("tubes", "gradcam", "rise(n=6)", "occlusion(window=(4, 12, 12), stride=(4, 12, 12))")


def test_methods_are_drawn_together(tmp_path: Path) -> None:
    ran = done(
        "explain", "a.mp4", *TINY, "--method", *FOUR, "--out", tmp_path, "--format", "mp4", "png", "--json"
    )
    label = ran.json[0]["target"].replace(" ", "_")
    base = f"a.tubes-gradcam-rise-occlusion.{label}"
    assert {p.name for p in tmp_path.iterdir()} == {f"{base}.mp4", f"{base}.png"}
    assert decoded(tmp_path / f"{base}.mp4")[0][0].shape == (2 * (240 + 32), 640, 3)  # two by two
    assert [e["method"] for e in ran.json] == ["tubes", "gradcam", "rise", "occlusion"]
    assert len({tuple(e["out"]) for e in ran.json}) == 1
    assert [e["seed"] for e in ran.json] == [None, None, 0, None]


def test_methods_and_targets_in_one_file(tmp_path: Path) -> None:
    out = tmp_path / "all.mp4"
    done("explain", "a.mp4", *TINY, "--method", *FOUR[:2], "--target", "top2", "--beside", "--out", out)
    assert decoded(out)[0][0].shape == (2 * (240 + 48), 960, 3)  # a row a method: the original, two targets
    assert [p.name for p in tmp_path.iterdir()] == ["all.mp4"]


def test_methods_apart_and_numbers(tmp_path: Path) -> None:
    ways = ("gradcam", "rise(n=6)", "rise(n=7)")
    done(
        "explain",
        "a.mp4",
        *TINY,
        "--method",
        *ways,
        "--target",
        "0",
        "--apart",
        "--format",
        "png",
        "--out",
        tmp_path,
    )
    assert {p.name for p in tmp_path.iterdir()} == {
        f"a.{name}.surfing_water.png" for name in ("gradcam", "rise", "rise-2")
    }
    done(
        "explain",
        "a.mp4",
        *TINY,
        "--method",
        *ways,
        "--target",
        "0",
        "--format",
        "safetensors",
        "--out",
        tmp_path,
    )
    model = tl.load_model("nets.py:make")
    clip = model.read("a.mp4")
    for name, way in zip(("gradcam", "rise", "rise-2"), ways, strict=True):
        why = tl.load_explanation(tmp_path / f"a.{name}.surfing_water.safetensors")
        own = tl.explain(model, clip, way, 0)
        torch.testing.assert_close(why.saliency, own.saliency, atol=1e-6, rtol=1e-4)
        assert why.limits == pytest.approx(own.limits, rel=1e-4)
        assert why.target == own.target


def test_methods_that_read_a_layer_share_the_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = api.explain_all

    def counting(model, *args, **options):
        handle = model.module.register_forward_hook(lambda *_: seen.append(1))
        try:
            return whole(model, *args, **options)
        finally:
            handle.remove()

    monkeypatch.setattr(verb, "explain_all", counting)
    ways = ("tubes", "gradcam", "gradcam++", "xgradcam", "hirescam", "layercam")
    done("explain", "a.mp4", *TINY, "--method", *ways, "--out", tmp_path / "a.png")
    assert len(seen) == 1


def test_seed_layer_and_options_reach_the_methods(tmp_path: Path) -> None:
    command = ("explain", "a.mp4", *TINY, "--target", "0", "--format", "safetensors", "--out", tmp_path)
    done(*command, "--method", "rise(n=6)", "lime(n=9, supervoxels=9, seed=5)", "--seed", 3)
    rise, lime = (
        tl.load_explanation(tmp_path / f"a.{n}.surfing_water.safetensors") for n in ("rise", "lime")
    )
    assert (rise.provenance.seed, lime.provenance.seed) == (3, 5)
    done(*command, "--method", "gradcam", "rise(n=4)", "--layer", "body.0")
    cam = tl.load_explanation(tmp_path / "a.gradcam.surfing_water.safetensors")
    assert cam.provenance.layer == "body.0"
    done(*command, "--method", "gradcam", "--layer", "body.0", "body")
    fused = tl.load_explanation(tmp_path / "a.gradcam.surfing_water.safetensors")
    assert "('body.0', 'body')" in fused.provenance.method
    done(*command, "--method", "gradcam", "rise(n=4)", "--parity", "icpr2022")
    rise = tl.load_explanation(tmp_path / "a.rise.surfing_water.safetensors")
    assert "icpr2022" in rise.provenance.method


def test_a_budget_is_kept_and_said(tmp_path: Path) -> None:
    ran = tubelens(
        *("explain", "a.mp4", *TINY, "--method", "rise", "gradcam", "--budget", 60, "--json"),
        *("--out", tmp_path / "a.png"),
    )
    rise, cam = ran.json
    assert 50 <= rise["forwards"] <= 60
    assert "note: its cost is fixed: the budget of 60 forwards changes nothing" in ran.err
    assert cam["notes"] == ["its cost is fixed: the budget of 60 forwards changes nothing"]


def test_long_work_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "LONG", 1e-6)
    out = ("--out", tmp_path / "a.png")
    ran = tubelens("explain", "a.mp4", *TINY, "--method", "rise(n=20)", *out)
    assert ran.code == 0
    assert "note: about 21 forwards of" in ran.err
    assert "--budget sets a limit" in ran.err
    assert "note: about" not in done("explain", "a.mp4", *TINY, "--method", "gradcam", *out).err


def test_a_black_box_from_a_file(tmp_path: Path) -> None:
    ran = done(
        *("explain", "a.mp4", "--model", "nets.py:box", "--method", "rise(n=6)", "--target", "swimming"),
        *("--out", tmp_path / "a.mp4", "--json"),
    )
    assert ran.json[0]["layer"] is None
    assert (tmp_path / "a.mp4").is_file()
    ran = done("predict", "a.mp4", "--model", "nets.py:box")
    assert "remote" in ran.out


def test_the_table_of_methods() -> None:
    entries = done("methods", "--json").json
    assert [e["name"] for e in entries] == list(METHODS)
    assert {e["needs"] for e in entries} == {"scorer", "layers", "gradients"}
    assert all(e["cost"] and e["source"] for e in entries)
