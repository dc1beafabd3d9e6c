"""Frames and flow together: whose scores, whose layers, and where each stream looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tubelens as tl
from tests.conftest import order_one
from tests.perturbed import clip
from tests.test_flow import moving
from tests.videos import write_video
from tubelens.errors import HeadError, OptionError
from tubelens.model import InputSpec, frozen
from tubelens.zoo.recipe import Pack
from tubelens.zoo.two_stream import two_stream

SPEC = InputSpec(8, (24, 24), resize=(24, 24))


class Net(nn.Module):
    def __init__(self, bands: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(bands, 8, 3, 2, 1), nn.ReLU(), nn.Conv3d(8, 8, 3, 1, 1), nn.ReLU()
        )
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean(dim=(2, 3, 4)))


def stream(bands: tuple[str, ...], seed: int) -> tl.TorchModel:
    n = len(bands)
    torch.manual_seed(seed)
    net = order_one(Net(n), torch.rand(1, n, 8, 24, 24), seed)
    return tl.TorchModel(
        net, Pack((0.5,) * n, (0.25,) * n), spec=replace(SPEC, bands=bands), layer="body", labels=list("abcd")
    )


RGB, FLOW = stream(("R", "G", "B"), 1), stream(("U", "V"), 2)


def five(seed: int = 0) -> tl.Clip:
    colours, flow = clip((8, 24, 24), seed), clip((8, 24, 24), seed + 1)
    both = torch.cat([colours.pixels, flow.pixels[:2]])
    return tl.Clip(both, ("R", "G", "B", "U", "V"), colours.source)


@pytest.mark.parametrize("average", ["probs", "logits"])
def test_scores_are_the_weighted_mean(average: str):
    model = two_stream(RGB, FLOW, weights=(1.0, 3.0), average=average)
    video = five()
    a, b = RGB(video.pixels[None, :3]), FLOW(video.pixels[None, 3:])
    want = (a + 3 * b) / 4 if average == "logits" else (a.softmax(1) + 3 * b.softmax(1)) / 4
    torch.testing.assert_close(model(video.pixels[None]), want)
    assert model.output == average
    assert model.spec.bands == ("R", "G", "B", "U", "V")


def test_contributions_of_both_streams_and_the_biases_are_the_logit():
    model = two_stream(RGB, FLOW, average="logits")
    video = five()
    maps = [tl.explain(model, video, tl.Tubes(layer=f"{s}.body"), 2) for s in ("rgb", "flow")]
    logit = float(model(video.pixels[None])[0, 2])
    bias = float(RGB.module.fc.bias[2].detach() + FLOW.module.fc.bias[2].detach()) / 2
    total = sum(float(why.grid.sum()) for why in maps) + bias
    assert total == pytest.approx(logit, abs=1e-4 * abs(logit - bias))
    # what one stream does not say is in its constant
    assert maps[0].provenance.facts["constant"] == pytest.approx(bias + float(maps[1].grid.sum()), rel=1e-3)


def test_each_stream_sees_its_own_bands_where_they_are():
    model = two_stream(RGB, FLOW, average="logits")
    video = five()
    base = [tl.explain(model, video, tl.Tubes(layer=f"{s}.body"), 2).grid for s in ("rgb", "flow")]
    for bands, own, other in ((slice(0, 3), 0, 1), (slice(3, 5), 1, 0)):
        pixels = video.pixels.clone()
        pixels[bands, 4, 16, 8] = 1 - pixels[bands, 4, 16, 8]
        changed = tl.Clip(pixels, video.bands, video.source)
        moved = [
            (tl.explain(model, changed, tl.Tubes(layer=f"{s}.body"), 2).grid - b).abs()
            for s, b in zip(("rgb", "flow"), base, strict=True)
        ]
        assert float(moved[other].max()) == 0
        t, h, w = (torch.nonzero(moved[own] > 0).float().mean(dim=0)).round().tolist()
        assert (t, h, w) == (2, 8, 4)  # cells look at every second frame and pixel


def test_layers_of_both_are_listed_fused_and_scored():
    model = two_stream(RGB, FLOW)
    video = five()
    names = [info.name for info in tl.layers(model, video.pixels[None])]
    assert {"rgb.body", "flow.body"} <= set(names)
    both = tl.explain(model, video, tl.GradCAM(layer=("rgb.body", "flow.body")), "c")
    assert both.provenance.layer == "rgb.body, flow.body"
    assert tl.explain(model, video, "rise(n=8)", "c").saliency.std() > 0
    with pytest.raises(HeadError, match="the softmax of each stream follows its logits"):
        tl.explain(model, video, "tubes", 0)


def test_a_video_file_becomes_five_bands(tmp_path: Path):
    pytest.importorskip("cv2")
    write_video(tmp_path / "v.mp4", moving(2, 1))
    model = two_stream(RGB, FLOW, average="logits")
    why = tl.explain(model, model.read(tmp_path / "v.mp4"), "gradcam", "b")
    assert why.save(tmp_path / "why.png").stat().st_size > 1000


def test_statistics_of_either_stream_are_frozen():
    scored = replace(RGB, pack=Pack(zscore=True))
    model = two_stream(scored, FLOW, average="logits")
    video = five()
    dark = video.pixels.clone()
    dark[:, 4:] = 0
    held = frozen(model, video.pixels[None])
    want = (frozen(scored, video.pixels[None, :3])(dark[None, :3]) + FLOW(dark[None, 3:])) / 2
    torch.testing.assert_close(held(dark[None]), want)
    assert not torch.allclose(model(dark[None]), want, atol=1e-2)


def test_streams_that_do_not_go_together_are_refused():
    one = replace(FLOW, labels=None, unpack=lambda scores: scores[:, :1])
    with pytest.raises(OptionError, match="the same classes, not 4 and 1"):
        two_stream(RGB, one)
    with pytest.raises(OptionError, match="one stream gives sigmoids"):
        two_stream(RGB, replace(FLOW, output="sigmoid"))
    with pytest.raises(OptionError, match="must be positive"):
        two_stream(RGB, FLOW, weights=(float("nan"), 1.0))
    with pytest.raises(OptionError, match="must take frames and flow"):
        two_stream(RGB, RGB)
    with pytest.raises(OptionError, match="clips of one size"):
        two_stream(RGB, replace(FLOW, spec=replace(FLOW.spec, frames=4)))
    with pytest.raises(OptionError, match="same labels"):
        two_stream(RGB, replace(FLOW, labels=list("abce")))
    with pytest.raises(OptionError, match="must be positive"):
        two_stream(RGB, FLOW, weights=(0.0, 0.0))
