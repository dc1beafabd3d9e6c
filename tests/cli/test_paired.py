"""Several spectra of one scene on the command line: --input NAME=PATH, texts as videos, names of what is
written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import done, tubelens
from tests.videos import coded, coded_video
from tubelens.cli import _inputs_together
from tubelens.cli.options import told
from tubelens.errors import OptionError
from tubelens.video import FileFrames

NETS = """
import torch
from torch import nn

import tubelens as tl


class Net(nn.Module):
    def __init__(self, bands):
        super().__init__()
        self.body = nn.Conv3d(bands, 2, (1, 4, 4), (1, 4, 4), bias=False)
        self.body.weight.data.zero_()
        self.body.weight.data[0, :3] = 4.0
        self.body.weight.data[1, 3:] = 9.0

    def forward(self, x):
        return self.body(x).mean((2, 3, 4))


def four():
    bands = ("R", "G", "B", "LWIR")
    return tl.wrap(Net(4).eval(), frames=4, size=(48, 64), bands=bands, labels=["cold", "hot"], name="four")


def bare():
    return Net(4).eval()
"""
MODEL = ("--model", "spectra.py:four")
FED = "frames=4, size=48x64, bands=R G B LWIR, output=logits"


@pytest.fixture(autouse=True)
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A visible film and a folder of infrared pictures, and networks of four bands."""
    monkeypatch.chdir(tmp_path)
    Path("spectra.py").write_text(NETS)
    coded_video(Path("walk.mp4"), 20, tone=440.0)
    Path("ir").mkdir()
    for number in range(20):
        Image.fromarray(coded(number)[..., 0]).save(f"ir/{number}.png")
    np.save("night.npy", np.full((8, 48, 64), 25.0, np.float32))


def test_values_of_input_come_together() -> None:
    same = [
        ["--input", "a=x", "b=y", "--top", "3"],
        ["--input", "a=x", "--top", "3", "--input", "b=y"],
        ["--input=a=x", "--input=b=y", "--top", "3"],
    ]
    for one in (False, True):
        found = {tuple(_inputs_together("predict", args, one)) for args in same}
        assert found == {("--top", "3", "--input", "a=x", "b=y")}
    args = ["--input", "frames=20", "v.mp4", "--input", "c=z", "--", "--odd.mp4"]
    assert _inputs_together("predict", args, True) == [
        "v.mp4",
        "--input",
        "frames=20",
        "c=z",
        "--",
        "--odd.mp4",
    ]
    assert _inputs_together("explain", ["v.mp4", "--input", "-", "x.toml"], False)[1:] == [
        "--input",
        "-",
        "x.toml",
    ]
    assert _inputs_together("explain", ["v.mp4", "--top", "-"], False) == ["v.mp4", "--top", "-"]
    with pytest.raises(OptionError, match="predict: --input needs a value"):
        _inputs_together("predict", ["--input", "--top", "3"], True)


def test_streams_are_told_from_what_a_network_is_fed() -> None:
    words = ("frames=20, size=64", "axes=b t h w c", "-", "net.toml", "bands=Y", "zscore, frames=8")
    spectra = ("visible=walk.mp4", "lwir=ir/?offset=0.5", "ir=nowhere", "visible=nowhere", "size_2=walk.mp4")
    assert told((*words, *spectra)) == (words, spectra)
    assert told(("frmes=20", "siz=64")) == (("frmes=20", "siz=64"), ())  # mistyped, and no such files


def test_predict_of_streams() -> None:
    whole = done("predict", "--input", "visible=walk.mp4", "lwir=ir/", *MODEL, "--json").json
    assert whole["video"] == "visible=walk.mp4|lwir=ir/"
    assert whole["predicted"][0]["label"] == "cold"
    twice = done("predict", *MODEL, "--input", "visible=walk.mp4", "--input", "lwir=ir/", "--json").json
    text = done("predict", "visible=walk.mp4|lwir=ir/", *MODEL, "--json").json
    assert twice == text == whole
    table = tubelens("predict", "--input", "visible=walk.mp4", "lwir=ir/?offset=0.4", *MODEL)
    assert table.code == 0
    assert table.out.splitlines()[0].strip().startswith("visible + lwir: walk.mp4, ir: four")
    assert table.err == "note: 9 of 20 frames of visible are left out: lwir does not cover their moments\n"
    hot = done(
        "predict", "--input", "visible=walk.mp4", "lwir=night.npy?range=15:25&fps=10", *MODEL, "--json"
    ).json
    assert hot["predicted"][0]["label"] == "hot"


def test_streams_beside_what_the_network_is_fed() -> None:
    for order in (("visible=walk.mp4", FED, "lwir=ir"), (FED, "visible=walk.mp4", "lwir=ir")):
        inputs = [part for value in order for part in ("--input", value)]
        found = done("predict", "--model", "spectra.py:bare", *inputs, "--json").json
        assert found["video"] == "visible=walk.mp4|lwir=ir"
        assert len(found["predicted"]) == 2


def test_explain_of_streams_is_written_under_their_names() -> None:
    ran = done(
        *("explain", "--input", "visible=walk.mp4", "--input", "lwir=night.npy?range=15:35&fps=8", *MODEL),
        *("--method", "gradcam", "--target", "hot", "--out", "out", "--format", "mp4", "png", "safetensors"),
    )
    assert "visible + lwir: walk.mp4, night.npy" in " ".join(ran.out.split())
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == [f"visible+lwir_walk.gradcam.hot.{kind}" for kind in ("mp4", "png", "safetensors")]
    drawn = FileFrames("out/visible+lwir_walk.gradcam.hot.mp4")
    assert drawn.has_audio
    assert len(drawn.times()) == 20


def test_a_measured_source_is_written_under_its_name() -> None:
    done(
        *("explain", "lwir=night.npy?range=15:35", "--model", "spectra.py:bare", "--method", "gradcam"),
        *("--input", "frames=4, size=48x64, bands=LWIR LWIR LWIR LWIR", "--out", "out", "--format", "png"),
    )
    assert [path.name for path in Path("out").iterdir()] == ["lwir_night.gradcam.class_0.png"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ("predict", "walk.mp4", *MODEL),
            "has bands R, G, B but the model needs R, G, B, LWIR: give a stream",
        ),
        (("predict", "--input", "visible=walk.mp4", "ir=ir", *MODEL), "give a stream with LWIR"),
        (
            ("predict", *MODEL),
            "predict: name a VIDEO, before the options, or its spectra by --input NAME=PATH",
        ),
        (("explain", *MODEL), "explain: name at least one VIDEO"),
        (("predict", "walk.mp4", "--input", "lwir=ir", *MODEL), "as in --input visible=walk.mp4"),
        (("explain", "walk.mp4", *MODEL, "--input", "lwir=ir"), "as in --input visible=walk.mp4"),
        (("predict", "--input", "lwir=ir", "--input", "lwir=ir", *MODEL), "need names of their own"),
        (("predict", "--input", "a=walk.mp4", "b=gone.mp4", *MODEL), "gone.mp4"),
        (("predict", "walk.mp4", "--input", "frmes=4", *MODEL[:1], "spectra.py:bare"), "frames"),
        (("predict", "--input", "visible=walk.mp4", "lwir=ir?bitz=3", *MODEL), "unknown option 'bitz'"),
        (
            ("predict", "--input", "visible=walk.mp4", "lwir=ir?offset=99", *MODEL),
            "there is no moment that all",
        ),
        (("layers", "spectra.py:four", "--input", "lwir=ir"), "layers reads no video"),
        (
            ("predict", "walk.mp4", "--input", "frames=4", "--input", "size=9", *MODEL),
            "is said in one, as in",
        ),
        (("evaluate", "spectra.py:four", *MODEL, "--input", "lwir=ir"), "the videos are in MANIFEST"),
        (("explain", "--input", "visible=walk.mp4", "lwir=ir", *MODEL, "--out", "a.xyz"), "unknown suffix"),
    ],
)
def test_bad_streams_are_one_line(args: tuple[str, ...], said: str) -> None:
    ran = tubelens(*args)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert said in ran.err
