"""Infrared of 16x16 pixels and of 640x480: motion is followed, and methods and metrics mean what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tubelens as tl
from tubelens.masks.regions import supervoxels
from tubelens.masks.windows import Tracked
from tubelens.model import InputSpec
from tubelens.running import Run
from tubelens.video import read_spec
from tubelens.zoo.recipe import Pack

FRAMES = 8
FAINT, STRONG = 0.05, 0.6
"""How much warmer than the room a person is: in the range of the sensor, and in that of the scene."""


def warm(
    size: tuple[int, int],
    radius: float,
    step: tuple[float, float],
    rise: float = STRONG,
    noise: float = 0.0,
    frames: int = FRAMES,
) -> tuple[Tensor, Tensor]:
    """A warm blob that moves over a still room: frames `(1, t, h, w)`, and its distance in radii."""
    h, w = size
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    t = torch.arange(frames).view(-1, 1, 1)
    away = torch.sqrt((y - 0.35 * h - step[0] * t) ** 2 + (x - 0.3 * w - step[1] * t) ** 2) / radius
    shake = torch.randn(frames, h, w, generator=torch.Generator().manual_seed(0)) * noise * rise
    return (0.3 + rise * torch.exp(-(away**2) / 2) + shake).clamp(0, 1)[None], away


# ── motion ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("size", "radius", "step"),
    [
        ((16, 16), 2.0, (1.0, 0.0)),
        ((16, 16), 1.5, (0.0, 1.0)),
        ((16, 16), 2.0, (0.5, -0.5)),
        ((480, 640), 12.0, (1.0, 1.0)),
    ],
)
@pytest.mark.parametrize("rise", [FAINT, STRONG])
def test_flow_of_a_warm_blob(size: tuple[int, int], radius: float, step: tuple[float, float], rise: float):
    """Within 0.3 pixels a frame in the blob, however faint it is; and what is far from it rests."""
    pytest.importorskip("cv2")
    from tubelens.flow import flows

    frames = FRAMES if max(size) < 100 else 3
    pixels, away = warm(size, radius, step, rise, 0.004, frames)
    forward, backward = flows(pixels)
    assert forward.shape == (frames - 1, 2, *size)
    for t in range(frames - 1):
        for axis in range(2):
            for found, frame, sign in ((forward, t, 1), (backward, t + 1, -1)):
                inside = float(found[t, axis][away[frame] < 1].mean())
                assert inside == pytest.approx(sign * step[axis], abs=0.3)
    still = forward.abs().amax(dim=1)[away[:-1] > 5]
    assert float(still.median()) < 0.3


def test_a_room_without_anything_warm_rests():
    """Noise of a hundredth of a degree in forty is not spread over the full range."""
    pytest.importorskip("cv2")
    from tubelens.flow import flows

    flat = torch.full((1, 4, 16, 16), 0.5)
    assert float(flows(flat)[0].abs().max()) == 0
    pixels, _ = warm((16, 16), 2.0, (0.0, 0.0), FAINT, noise=0.01)
    assert float(flows(pixels)[0].abs().median()) < 0.3


def test_flow_bands_of_measured_infrared(tmp_path: Path):
    pytest.importorskip("cv2")
    pixels, away = warm((16, 16), 2.0, (0.0, 1.0), FAINT)
    np.savez(tmp_path / "room.npz", frames=(pixels[0] * 40).numpy())  # 12 to 14 degrees
    spec = InputSpec(FRAMES, (16, 16), (16, 16), bands=("U", "V"))
    clip = read_spec(f"{tmp_path}/room.npz?range=0:40", spec, "dense")
    u, v = (clip.pixels * 2 - 1) * 20
    assert float(u[:-1][away[:-1] < 1].mean()) == pytest.approx(1.0, abs=0.3)
    assert float(v[:-1][away[:-1] < 1].mean()) == pytest.approx(0.0, abs=0.3)


def test_boxes_follow_a_blob_of_a_few_pixels():
    pytest.importorskip("cv2")
    from tubelens.flow import flows

    pixels, away = warm((16, 16), 2.0, (0.0, 1.0), FAINT)
    size = (FRAMES, 16, 16)
    tracked = Tracked(size, (FRAMES, 4, 4), (FRAMES, 2, 2), *flows(pixels))
    covered = 1 - tracked.batch(0, len(tracked))
    core = (away < 1).float()
    best = int((covered * core).sum(dim=(1, 2, 3)).argmax())
    share = (covered[best] * core).sum(dim=(1, 2)) / core.sum(dim=(1, 2))
    assert float(share.min()) > 0.6, share  # a box that stands still has left it after half of the frames
    assert int(tracked.boxes[best, -1, 2] - tracked.boxes[best, 0, 2]) == pytest.approx(FRAMES - 1, abs=1)


# ── one band of 16x16 ────────────────────────────────────────────────────────────────────────────────────


class Warmth(nn.Module):
    """Class 1 is how much stands out from the room; one band, and an affine head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(2, 3)
        with torch.no_grad():
            self.body[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1) / 27)
            self.body[0].bias.copy_(torch.tensor([-0.36, 0.2]))
            self.fc.weight.copy_(torch.tensor([[-60.0, 0.0], [60.0, 0.0], [0.0, 9.0]]))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean(dim=(2, 3, 4)))


def planted(size: tuple[int, int] = (16, 16), radius: float = 2.0) -> tuple[tl.TorchModel, tl.Clip, Tensor]:
    pixels, away = warm(size, radius, (0.0, size[1] / 16), STRONG, noise=0.01)
    clip = tl.Clip.from_array(pixels.permute(1, 2, 3, 0).numpy(), bands=["LWIR"], fps=8.0)
    spec = InputSpec(FRAMES, size, size, bands=("LWIR",))
    return tl.TorchModel(Warmth().eval(), Pack((0.0,), (1.0,)), spec=spec, layer="body"), clip, away < 1.5


WAYS = (
    tl.Tubes(),
    tl.GradCAM(),
    tl.RISE(n=400, cells=(1, 6, 6), fill="mean"),
    tl.Occlusion(window=(4, 4, 4), stride=(2, 2, 2), fill="mean"),
    tl.Occlusion(window=(8, 4, 4), stride=(4, 2, 2), fill="mean", tracked=True),
    tl.LIME(n=120, supervoxels=100, fill="mean"),
    tl.SmoothGrad(n=8),
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
def test_maps_lie_on_the_blob(way: object):
    if getattr(way, "tracked", False):
        pytest.importorskip("cv2")
    model, clip, inside = planted()
    heat = tl.explain(model, clip, way, 1, run=Run(precision="fp32")).saliency.clamp_min(0)
    lift = float(heat[inside].sum() / heat.sum() / inside.float().mean())
    assert lift > 2.5, lift


def test_curves_tell_the_blob_from_chance():
    """Insertion and deletion, ROAD, infidelity, a split and an edit in time, against random order."""
    model, clip, _ = planted()
    why = tl.explain(model, clip, "tubes", 1)
    for made, better in (
        (tl.Insertion(fill="mean"), 1),
        (tl.Deletion(fill="mean"), -1),
        (tl.ROAD(), -1),
        (tl.Infidelity(n=64), -1),
    ):
        (score,) = made(model, clip, [why])
        assert better * (score.value - score.anchors["random"]) > 0, (made, score.value, score.anchors)
    for made in (tl.Split(), tl.TemporalEdit()):
        (score,) = made(model, clip, [why])
        assert np.isfinite(score.value), made


@pytest.mark.parametrize("rise", [FAINT, STRONG])
def test_supervoxels_of_one_band_keep_to_the_blob(rise: float):
    """Fewer voxels are on the wrong side than where regions go by place alone, however faint the blob."""
    pixels, away = warm((16, 16), 2.0, (0.0, 1.0), rise, noise=0.01)
    inside = away < 1.2

    def wrong(compactness: float) -> float:
        labels = supervoxels(pixels, 100, compactness)
        k = int(labels.max()) + 1
        assert 50 <= k <= 150
        whole = torch.bincount(labels.flatten(), minlength=k)
        part = torch.bincount(labels[inside], minlength=k)
        return float(torch.minimum(part, whole - part).sum() / whole.sum())

    assert wrong(10.0) < 0.75 * wrong(1e6)


def test_real_sensor_of_16x16(realdata: Path):
    """A recording in degrees at 8 frames a second: read, explained by every kind of method, and scored."""
    pytest.importorskip("cv2")
    recording = sorted((realdata / "lwir" / "nagoya_fir16_actions").glob("*/*_p4_light1.npz"))[0]
    model, _, _ = planted()
    clip = model.read(f"{recording}?range=10:35", "dense", start=5.0)
    assert clip.pixels.shape == (1, FRAMES, 16, 16)
    assert clip.source.fps == pytest.approx(8, rel=0.3)
    for way in ("gradcam++", tl.RISE(n=20), tl.Occlusion((4, 4, 4), (4, 4, 4), tracked=True), "lime(n=40)"):
        assert bool(torch.isfinite(tl.explain(model, clip, way, 2).saliency).all())
