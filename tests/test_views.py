"""Several clips and crops of one video: what they see, how their maps and scores come together."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tubelens as tl
from tests.videos import clip_codes, coded
from tubelens.clip import Segments
from tubelens.errors import OptionError
from tubelens.layout import Grid
from tubelens.model import InputSpec
from tubelens.video import View, read_spec, read_views

SPEC = InputSpec(frames=4, size=(24, 24), resize=24, stride=3, views=(3, 1))


def video(frames: int = 40, size: tuple[int, int] = (24, 36)) -> np.ndarray:
    return np.stack([coded(i, size) for i in range(frames)])


def test_clips_are_spread_from_the_first_frame_to_the_last():
    views = read_views(video(), replace(SPEC, size=(24, 36)))
    assert len(views) == 3
    codes = [clip_codes(clip.pixels) for _, clip in views]
    # 10 frames long each: the last starts at 30, the middle one at 15
    assert codes == [[0, 3, 6, 9], [15, 18, 21, 24], [30, 33, 36, 39]]
    assert [view.frames for view, _ in views] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert views.source.times == tuple(i / 25 for run in codes for i in run)


def test_overlapping_clips_share_frames():
    views = read_views(video(16), replace(SPEC, size=(24, 36)))  # starts 0, 3, 6
    assert [clip_codes(clip.pixels) for _, clip in views] == [[0, 3, 6, 9], [3, 6, 9, 12], [6, 9, 12, 15]]
    assert [view.frames for view, _ in views] == [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)]


def test_crops_are_spread_over_the_longer_side():
    frames = np.random.default_rng(0).integers(0, 256, (12, 24, 36, 3), dtype=np.uint8)
    views = read_views(frames, SPEC, clips=1, crops=3)
    assert views.size == (4, 24, 36)
    whole = torch.from_numpy(frames[[1, 4, 7, 10]]).permute(3, 0, 1, 2) / 255
    for (view, clip), left in zip(views, (0, 6, 12), strict=True):
        assert (view.top, view.left) == (0, left)
        assert torch.equal(clip.pixels, whole[..., left : left + 24])
        assert (clip.source.box.left, clip.source.box.width) == (left, 24)
    upright = read_views(np.ascontiguousarray(frames.transpose(0, 2, 1, 3)), SPEC, clips=1, crops=3)
    assert [(view.top, view.left) for view, _ in upright] == [(0, 0), (6, 0), (12, 0)]
    assert upright.size == (4, 36, 24)


def test_segment_networks_get_shifted_segments():
    spec = replace(SPEC, size=(24, 36), sampling="segments", frames=4, snippet=1)
    views = read_views(video(40), spec, clips=2)
    assert [clip_codes(clip.pixels) for _, clip in views] == [[2, 12, 22, 32], [7, 17, 27, 37]]
    assert [view.frames for view, _ in views] == [(0, 2, 4, 6), (1, 3, 5, 7)]
    pairs = read_views(video(41), replace(spec, snippet=2), clips=1)
    assert [clip_codes(clip.pixels) for _, clip in pairs] == [[10, 11, 30, 31]]


def test_a_video_that_is_too_short_is_padded_behind_its_end():
    views = read_views(video(7), replace(SPEC, size=(24, 36)), clips=2)
    ((view, clip),) = list(views)  # both clips would be the same
    assert clip_codes(clip.pixels) == [0, 3, 6, 6]
    assert views.padded == 1
    assert view.frames == (0, 1, 2, 3)
    assert clip.source.span == (0.0, 6 / 25)


SEGMENTS = replace(SPEC, size=(24, 36), sampling="segments", frames=8, snippet=4, stride=1)


@pytest.mark.parametrize("n", [1, 3, 5, 6, 8, 9, 12, 40])
@pytest.mark.parametrize("snippet", [1, 2, 4])
def test_one_view_of_segments_is_what_the_network_reads(n: int, snippet: int):
    spec = replace(SEGMENTS, snippet=snippet)
    ((view, clip),) = list(read_views(video(n), spec, clips=1))
    read = read_spec(video(n), spec)
    assert torch.equal(clip.pixels, read.pixels)
    assert (clip.source.times, clip.source.span) == (read.source.times, read.source.span)
    assert clip.source.padded == read.source.padded
    codes = clip_codes(clip.pixels)
    seen = sorted(set(codes))
    assert view.frames == tuple(seen.index(code) for code in codes)


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        ({"clips": -1}, SPEC, "at least one clip and one crop, not -1 x 1"),
        ({"clips": 0}, SPEC, "at least one clip and one crop, not 0 x 1"),
        ({"crops": 0}, SPEC, "at least one clip and one crop, not 3 x 0"),
        ({"stride": 0}, SPEC, "frames and stride must be at least 1, got 4 and 0"),
        ({"stride": -1}, SPEC, "frames and stride must be at least 1, got 4 and -1"),
        ({"frames": 0}, SPEC, "frames and stride must be at least 1, got 0 and 3"),
        ({"frames": 10}, SEGMENTS, "segments of 4 consecutive frames cannot make a clip of 10"),
        ({"stride": 2}, SEGMENTS, "segments sampling takes no stride"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], spec: InputSpec, message: str):
    with pytest.raises(OptionError, match=message):
        read_views(video(), spec, **options)


def test_an_unknown_pad_is_refused():
    """Apart, because the type checks of these tests would refuse it first."""
    code = """
import numpy as np
from tubelens.errors import OptionError
from tubelens.model import InputSpec
from tubelens.video import read_spec, read_views
np.save("f.npy", np.zeros((9, 8, 8, 2)))
frames = np.zeros((9, 8, 8, 3), np.uint8)
for read, path, bands, sampling in (
    (read_views, frames, "RGB", "uniform"), (read_views, frames, "RGB", "segments"),
    (read_spec, frames, "RGB", "uniform"), (read_spec, "f.npy", "UV", "uniform"),
):
    try:
        read(path, InputSpec(4, (8, 8), bands=tuple(bands), sampling=sampling), pad="grey")
    except OptionError as error:
        print(error)
"""
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["unknown pad 'grey': clamp or zero"] * 4, ran.stderr


class Bright(nn.Module):
    """Two pooled brightness features, two classes; the grid's cells are 4 x 4 pixels of one frame."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.AvgPool3d((1, 4, 4))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3, 4)))


def model() -> tl.TorchModel:
    torch.manual_seed(0)
    return tl.TorchModel(Bright(), pack=lambda x: x.clone(), layer="body", spec=SPEC)


def test_maps_of_views_are_averaged_where_they_overlap():
    net = model()
    frames = np.random.default_rng(1).random((30, 24, 36, 3), dtype=np.float32)
    views = net.views(frames, clips=2, crops=3)
    why = tl.explain(net, views, "tubes", 1)
    assert why.size == (8, 24, 36)
    assert len(why.parts) == 6
    # slow: every view's own map, put on the canvas by hand
    total, count = torch.zeros(8, 24, 36), torch.zeros(8, 24, 36)
    scores = []
    for view, clip in views:
        one = tl.explain(net, clip, "tubes", 1)
        where = (slice(view.frames[0], view.frames[-1] + 1), slice(None), slice(view.left, view.left + 24))
        total[where] += one.saliency
        count[where] += 1
        scores.append(float(net(clip.pixels[None])[0, 1]))
    torch.testing.assert_close(why.saliency, total / count, rtol=1e-4, atol=1e-6)
    assert set(count.unique().tolist()) == {1.0, 2.0, 3.0}
    p = why.provenance
    assert p.score == pytest.approx(np.mean(scores), rel=1e-5)
    # contributions of every view, averaged, and the constant are the averaged logit
    parts = np.mean([float(part.values.sum()) for part in why.parts])
    assert parts + p.facts["constant"] == pytest.approx(p.score, rel=1e-4)
    assert p.facts["windows"] == 6


class Frames(nn.Module):
    """The brightness of each frame (or of `cells` frames together), and two classes."""

    def __init__(self, cells: int = 1) -> None:
        super().__init__()
        self.body = nn.AvgPool3d((cells, 4, 4), (cells, 4, 4))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3, 4)))


def of_frames(spec: InputSpec, cells: int = 1) -> tl.TorchModel:
    torch.manual_seed(0)
    net = Frames(cells)
    nn.init.ones_(net.head.weight)
    return tl.TorchModel(net, pack=lambda x: x.clone(), layer="body", spec=spec)


@pytest.mark.parametrize("n", [5, 6, 9, 20, 32])
def test_heat_is_drawn_on_the_frame_that_made_it_where_snippets_overlap(n: int):
    spec = replace(SEGMENTS, size=(8, 8), resize=8, frames=32)
    net = of_frames(spec)
    times = [i / 25 for i in range(n)]
    seen = sorted(set(Segments(32, 4).pick(n)))
    for bright in seen[:: max(1, len(seen) // 5)]:
        frames = np.zeros((n, 8, 8, 3), np.uint8)
        frames[bright] = 255
        for clip in (net.read(frames), net.views(frames, clips=1), net.views(frames, clips=3)):
            heat = tl.explain(net, clip, "tubes", 0).over_time(times)
            assert float(heat[bright]) == pytest.approx(1.0, abs=1e-4)
            others = [i for i in seen if i != bright]
            assert float(heat[others].max()) < 0.9


@pytest.mark.parametrize(("n", "cells"), [(3, 1), (5, 1), (6, 1), (7, 1), (6, 2), (9, 2), (5, 4), (9, 4)])
def test_frames_that_come_again_have_the_mean_of_their_maps(n: int, cells: int):
    net = of_frames(replace(SEGMENTS, size=(24, 24), frames=16), cells)
    frames = np.random.default_rng(n).random((n, 24, 24, 3), dtype=np.float32)
    views = net.views(frames, clips=1)
    why = tl.explain(net, views, "tubes", 1)
    ((view, clip),) = list(views)
    own = tl.explain(net, clip, "tubes", 1)
    # where each cell looks, by hand: the mean place of its frames (half of the way where a cell lies between)
    maps: dict[float, list[Tensor]] = {}
    for cell, values in enumerate(own.grid):
        taken = view.frames[cell * cells : (cell + 1) * cells]
        maps.setdefault((taken[(cells - 1) // 2] + taken[cells // 2]) / 2, []).append(values)
    (part,) = why.parts
    assert len(part.t) == 16 // cells
    assert np.all(np.diff(part.t) > 0)
    for moment, values in maps.items():
        near = [i for i, t in enumerate(part.t) if abs(t - moment) < 0.02]
        assert len(near) == len(values)
        assert part.t[near[len(near) // 2]] == pytest.approx(moment, abs=1e-9)
        for i in near:
            torch.testing.assert_close(part.values[i], torch.stack(values).mean(dim=0))
    p = why.provenance
    assert float(part.values.sum()) + p.facts["constant"] == pytest.approx(p.score, rel=1e-4)
    assert bool(why.saliency.isfinite().all())


def test_cells_beyond_the_ends_of_a_view_go_on_in_steps():
    view = View((3, 5, 7), 0, 0, (1, 1))
    values = torch.arange(5.0).view(5, 1, 1)
    put = view.put(Grid(values, (-1.0, 0.0, 1.5, 3.0, 4.0), (0.0,), (0.0,), (0, 3)))
    assert put.t == (2.0, 3.0, 6.0, 8.0, 9.0)
    assert torch.equal(put.values, values)
    assert put.span == (3, 8)
    back = view.put(Grid(values[:3], (2.0, 1.0, 0.0), (0.0,), (0.0,), (0, 3)))
    assert back.t == (7.0, 5.0, 3.0)
    assert torch.equal(back.values, values[:3])


def test_views_survive_saving_and_drawing(tmp_path):
    net = model()
    frames = np.random.default_rng(1).random((30, 24, 36, 3), dtype=np.float32)
    why = tl.explain(net, net.views(frames, clips=2, crops=2), "gradcam", 1)
    again = tl.load_explanation(why.save(tmp_path / "why.safetensors"))
    assert torch.equal(again.saliency, why.saliency)
    assert [part.area for part in again.parts] == [part.area for part in why.parts]
    assert why.save(tmp_path / "why.png").stat().st_size > 1000


def test_places_that_no_crop_saw_are_not_a_number():
    net = model()
    frames = np.random.default_rng(1).random((12, 24, 80, 3), dtype=np.float32)
    why = tl.explain(net, net.views(frames, clips=1, crops=2), "tubes", 0)
    assert why.size == (4, 24, 80)
    seen = ~why.saliency.isnan()
    assert bool(seen[..., :24].all())
    assert bool(seen[..., 56:].all())
    assert not bool(seen[..., 24:56].any())
    assert float(why.heat[seen].max()) == 1.0


def test_heat_over_time_and_notes_of_all_views():
    net = model()
    frames = np.random.default_rng(1).random((24, 24, 80, 3), dtype=np.float32)
    why = tl.explain(net, net.views(frames, clips=2, crops=2), "tubes", 0)  # the middle is seen by no crop
    over = why.over_time()
    assert bool(torch.isfinite(over).all())
    seen = why.heat[:, :, :24]
    assert float(over.min()) >= 0
    assert float(over.max()) <= float(seen.max().clamp_min(1.0))
    assert float(over.std()) > 0

    calls: list[int] = []

    class Noted(tl.Tubes):
        """Says something about the first view alone."""

        def from_capture(self, *args, **options):
            calls.append(1)
            found = super().from_capture(*args, **options)
            line = ("only of the first",) if len(calls) == 1 else ()
            return [replace(e, provenance=replace(e.provenance, notes=line)) for e in found]

    noted = tl.explain(net, net.views(frames, clips=2, crops=2), Noted(), 0)
    assert len(calls) == 4
    assert "only of the first" in noted.provenance.notes
