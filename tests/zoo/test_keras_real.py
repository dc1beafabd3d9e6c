"""Keras networks that others trained, on the clips they are right on; all of it only where the files are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import tubelens as tl
from tests.cli.commands import done
from tubelens.capture import layers
from tubelens.errors import HeadError
from tubelens.model import TorchModel

pytest.importorskip("h5py", reason="the extra `keras` is not installed")
os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("keras", reason="the extra `keras` is not installed")

ACTIONS = ["WalkingWithDog", "TaiChi", "Swing", "HorseRace"]
STATES = ["Exercise", "Concentration", "Relaxation"]
LRCN = "frames=20, size=64, resize=64x64, bands=BGR, axes=b t h w c"
THERMAL = "frames=30, size=60, resize=60x60, sampling=dense, axes=b h w t c, rotate=90, zscore"
FPS = 27.899  # of the montage
CLIPS = [  # first frame and frames: 20 of them, every (frames // 20)-th, as the network was trained
    *(("HorseRace_sample", 0, 300, "HorseRace"), ("Swing_sample", 0, 335, "Swing")),
    *(("TaiChi_sample", 0, 171, "TaiChi"), ("WalkingWithDog_sample", 0, 240, "WalkingWithDog")),
    *(("Test_Video", 0, 200, "WalkingWithDog"), ("Test_Video", 225, 279, "HorseRace")),
    *(("Test_Video", 504, 168, "Swing"), ("Test_Video", 674, 192, "TaiChi")),
]


def thermal(realdata: Path) -> TorchModel:
    model = tl.load_model(
        realdata / "models" / "thermal3_conv3d_TiHar.h5",
        input=THERMAL,
        labels=STATES,
    )
    assert isinstance(model, TorchModel)
    return model


def lrcn(realdata: Path) -> TorchModel:
    model = tl.load_model(realdata / "models" / "ucf4_lrcn_Shriya1985_1.keras", input=LRCN, labels=ACTIONS)
    assert isinstance(model, TorchModel)
    return model


def test_lrcn_is_right_on_all_eight(realdata: Path, tmp_path: Path):
    """Through the command line: four clips, and four segments of a montage of other clips."""
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(ACTIONS))
    network = realdata / "models" / "ucf4_lrcn_Shriya1985_1.keras"
    wrong = []
    for name, first, count, truth in CLIPS:
        video = realdata / "clips" / "ucf50_4class" / f"{name}.mp4"
        options = ("--sampling", "dense", "--start", f"{first / FPS:.4f}", "--stride", str(count // 20))
        ran = done(
            *("predict", video, "--model", network, "--input", LRCN, "--labels", labels, *options, "--json")
        )
        found = ran.json["predicted"][0]["label"]
        if found != truth:
            wrong.append((name, first, found))
    assert not wrong


def test_thermal_is_right_through_the_command_line(realdata: Path, tmp_path: Path):
    (tmp_path / "labels.txt").write_text("\n".join(STATES))
    network = realdata / "models" / "thermal3_conv3d_TiHar.h5"
    for name, start in (("exercising-01", "3"), ("exercising-02", "20")):
        ran = done(
            *("predict", realdata / "lwir" / "tihar" / f"{name}.mp4", "--start", start, "--json"),
            *("--model", network, "--input", THERMAL, "--labels", tmp_path / "labels.txt"),
        )
        assert ran.json["predicted"][0]["label"] == "Exercise"
        assert ran.json["predicted"][0]["prob"] > 0.7


@pytest.mark.slow
def test_thermal_is_right_on_all_73_windows(realdata: Path):
    """Runs of 30 frames side by side: 36 of 1097 frames and 37 of 1110; the last few frames make none."""
    model = thermal(realdata)
    found = []
    for name, frames in (("exercising-01", 1097), ("exercising-02", 1110)):
        windows = model.windows(realdata / "lwir" / "tihar" / f"{name}.mp4", overlap=0.0)
        for first, clip in windows:
            if first % 30 == 0 and first + 30 <= frames:
                found.append(int(model(clip.pixels[None]).argmax()))
    assert found == [0] * 73


def test_thermal_explanations(realdata: Path):
    """Grad-CAM falls on the person; tubes say that the head is a global maximum; the input is turned back."""
    model = thermal(realdata)
    assert model.output == "logits"
    assert model.verified == "by name"
    clip = model.read(realdata / "lwir" / "tihar" / "exercising-01.mp4", start=3.0)
    found = {i.name: i for i in layers(model, clip.pixels[None])}
    assert found["conv3d_2"].shape == (1, 15, 15, 15, 128)
    assert found["conv3d_2"].layout.pattern == "b w h t c"  # turned by 90 degrees: its rows are our columns
    assert [i.name for i in found.values() if i.default] == ["batch_normalization"]
    why = tl.explain(model, clip, tl.GradCAM(layer="conv3d_2"))
    assert why.provenance.label == "Exercise"
    assert why.grid.shape == (15, 15, 15)
    # the person lies along the width; head and arms are right of the middle
    heat = why.upsample().clamp_min(0)
    inside = heat[:, 21:45, 38:52]
    assert float(inside.sum() / heat.sum()) > 0.8
    with pytest.raises(HeadError, match="the head takes a global maximum"):
        tl.explain(model, clip, method="tubes")


def test_masked_clips_keep_the_statistics_of_the_intact_one(realdata: Path):
    """Blackening a quarter of a clip changes its mean; the voxels that stay are fed as before."""
    model = thermal(realdata)
    clip = model.read(realdata / "lwir" / "tihar" / "exercising-01.mp4", start=3.0)
    fed: list[torch.Tensor] = []
    handle = model.module.register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0].clone()))
    try:
        tl.explain(
            model, clip, "occlusion", "Exercise", window=(30, 30, 30), stride=(30, 30, 30), fill="black"
        )
    finally:
        handle.remove()
    intact = model.pack(clip.pixels[None])
    rows = torch.cat(fed)
    masked = [row for row in rows if not torch.allclose(row, intact[0], atol=1e-5)]
    assert len(masked) == 4
    for row in masked:
        same = ((row - intact[0]).abs() < 1e-5).float().mean()
        assert float(same) >= 0.75  # and those that were black


def test_lrcn_explanations(realdata: Path):
    """RISE always; Grad-CAM at the convolutions over single frames, where the axes are followed there."""
    model = lrcn(realdata)
    clip = model.read(realdata / "clips" / "ucf50_4class" / "HorseRace_sample.mp4")
    why = tl.explain(model, clip, tl.RISE(n=16, seed=0))
    assert why.provenance.label == "HorseRace"
    assert float(why.saliency.std()) > 0
    found = {i.name: i for i in layers(model, clip.pixels[None])}
    if "time_distributed_9" not in found:
        pytest.skip("axes are not followed through frames that are taken one by one")
    assert found["time_distributed_9"].layout.pattern == "b t h w c"
    assert found["time_distributed_9"].layout.centres["h"] == (7.5, 23.5, 39.5, 55.5)
    assert found["time_distributed_9"].layout.centres["t"] == tuple(range(20))
    assert tl.explain(model, clip, tl.GradCAM(layer="time_distributed_9")).grid.shape == (20, 4, 4)
    with pytest.raises(HeadError, match=r"the head is recurrent \('lstm'\)"):
        tl.explain(model, clip, method="tubes")


@pytest.mark.slow
def test_rise_finds_the_person(realdata: Path):
    model = thermal(realdata)
    clip = model.read(realdata / "lwir" / "tihar" / "exercising-01.mp4", start=3.0)
    heat = tl.explain(model, clip, tl.RISE(n=150, seed=0)).heat
    _, y, x = (heat == heat.max()).nonzero()[0].tolist()
    assert 21 <= y < 45
    assert 38 <= x < 52


PERSON = {  # boxes drawn by hand around all that the person is in the second that starts then: y0, y1, x0, x1
    ("exercising-01", 3.0): (22, 43, 14, 50),
    ("exercising-01", 20.0): (24, 43, 14, 50),
    ("exercising-02", 5.0): (23, 39, 19, 51),
    ("exercising-02", 20.0): (22, 39, 19, 51),
}


def inside(saliency: torch.Tensor, box: tuple[int, int, int, int]) -> float:
    """Share of the positive heat that lies in a box."""
    y0, y1, x0, x1 = box
    heat = saliency.clamp_min(0)
    return float(heat[:, y0:y1, x0:x1].sum() / heat.sum())


@pytest.mark.parametrize(("name", "start"), PERSON)
def test_gradcam_lies_on_the_person(name: str, start: float, realdata: Path):
    """Measured: .74 to .88 where the box is .14 to .21 of the frame; .66 to .69 at the default layer."""
    model = thermal(realdata)
    clip = model.read(realdata / "lwir" / "tihar" / f"{name}.mp4", start=start)
    box = PERSON[name, start]
    for layer, least in (("conv3d_2", 0.68), (None, 0.6)):
        why = tl.explain(model, clip, tl.GradCAM(layer=layer), "Exercise")
        assert inside(why.saliency, box) > least
        _, y, x = (why.heat == why.heat.max()).nonzero()[0].tolist()
        assert box[0] <= y < box[1]
        assert box[2] <= x < box[3]


@pytest.mark.slow
@pytest.mark.parametrize("start", [3.0, 20.0])
def test_rise_lies_on_the_person(start: float, realdata: Path):
    """Measured with 500 masks: .53 and .49, where the boxes are .21 and .19 of the frame."""
    model = thermal(realdata)
    clip = model.read(realdata / "lwir" / "tihar" / "exercising-01.mp4", start=start)
    why = tl.explain(model, clip, tl.RISE(n=300), "Exercise")
    assert inside(why.saliency, PERSON["exercising-01", start]) > 0.36
