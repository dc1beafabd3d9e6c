"""`--adapt`: networks on colour fed infrared, on every verb that loads networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tubelens as tl
from tests.cli.commands import LABELS, TINY, done, tubelens
from tubelens.store import RunStore

WARM = "warm.npz?range=0:40"


@pytest.fixture(autouse=True)
def warm(at_the_videos: None) -> None:
    """Degrees in a room, and something warm that moves."""
    y, x = np.mgrid[:24, :24]
    frames = [20 + 15 * np.exp(-((y - 12) ** 2 + (x - 6 - i) ** 2) / 18) for i in range(12)]
    np.savez("warm.npz", frames=np.stack(frames).astype(np.float32))


def test_predict_says_what_the_adapted_network_says() -> None:
    ran = done("predict", WARM, *TINY, "--adapt", "replicate:LWIR", "--json")
    model = tl.load_model("nets.py:make", adapt="replicate:LWIR")
    clip = model.read(WARM)
    assert clip.bands == ("LWIR",)
    want = model(clip.pixels[None])[0].softmax(0)
    found = {entry["label"]: entry["prob"] for entry in ran.json["predicted"]}
    assert found == pytest.approx({label: float(p) for label, p in zip(LABELS, want, strict=True)}, abs=1e-5)
    told = done("predict", WARM, *TINY, "--adapt", "replicate:LWIR").out
    assert "adapted: replicate LWIR" in told


def test_explain_records_how_the_network_was_adapted(tmp_path: Path) -> None:
    out = tmp_path / "why.safetensors"
    done("explain", WARM, *TINY, "--adapt", "average:LWIR", "--method", "gradcam", "--out", out)
    assert tl.load_explanation(out).provenance.weights.endswith(", adapted: average LWIR")
    two = ("--model", "nets.py:make", "nets.py:other", "--adapt", "-", "average:LWIR")
    ran = done("explain", WARM, *two, "--target", "0", "--out", tmp_path / "both.png", "--json")
    assert ["adapted" in entry["weights"] for entry in ran.json] == [False, True]


def test_layers_of_an_adapted_network_are_those_of_the_network() -> None:
    plain, adapted = (
        done("layers", "nets.py:make", *more, "--json").json
        for more in ((), ("--adapt", "extend:R,G,B,LWIR"))
    )
    assert adapted == plain


def test_evaluate_keeps_the_two_apart(tmp_path: Path) -> None:
    Path("warm.csv").write_text(f"path,label\n{WARM},swimming\n")
    twice = ("--model", "nets.py:make", "nets.py:make", "--adapt", "replicate:LWIR", "average:LWIR")
    done("evaluate", "warm.csv", *twice, "--method", "gradcam", "--out", tmp_path / "run")
    with RunStore.read(tmp_path / "run") as store:
        names = [row.name for row in store.names("models")]
    assert names == [f"nets.py:make, adapted: {way} LWIR" for way in ("replicate", "average")]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("replicat:LWIR", "did you mean 'replicate'"),
        ("replicate", "names of bands are missing: write it as in replicate:LWIR, average:LWIR,SWIR"),
        ("average:LWIR,", "names of bands are missing"),
        ("replicate:LWIR,SWIR", "feeds one band as R, G and B, not 2"),
        ("extend:R,G,LWIR", "lacks some of them"),
        ("average:LWIR,LWIR", "one name each"),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "explain", "evaluate", "layers"])
def test_what_cannot_be_read_is_one_line(verb: str, written: str, message: str, tmp_path: Path) -> None:
    what = {"layers": (), "evaluate": ("planted:dir?n=1", "--out", tmp_path / "run")}.get(verb, (WARM,))
    model = ("nets.py:make",) if verb == "layers" else TINY
    ran = tubelens(verb, *what, *model, "--adapt", written)
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1
    assert f"--adapt {written}" in ran.err
    assert message in ran.err


def test_as_many_as_networks() -> None:
    ran = tubelens("explain", WARM, *TINY, "--adapt", "replicate:LWIR", "average:LWIR")
    assert ran.code == 2
    assert "--adapt: 2 are given for 1 network" in ran.err
