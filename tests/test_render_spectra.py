"""Both spectra of a scene in one drawing, the map of each band on its own picture, frames of few pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import tubelens as tl
from tests.cli.commands import done, tubelens
from tests.test_api import labelled
from tests.test_render_helpers import decoded, explain
from tests.videos import write_video
from tubelens.clip import Box
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.render import draw, figure, frames
from tubelens.render.compose import Drawing
from tubelens.render.look import look
from tubelens.render.palettes import heat_on, overlaid, palette
from tubelens.render.source import enlargement, fitted, open_source
from tubelens.render.spectra import View, band_maps, check_spectra, layers, untinted, views
from tubelens.video import VideoSink

PLAIN = {"caption": False, "strip": False}
OWN = "own heat · same scale for all bands"
H, W, N = 72, 96, 12


@pytest.fixture
def scene(tmp_path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    """Text of a pair, its visible pictures, and its infrared as grey levels (naively scaled)."""
    rng = np.random.default_rng(5)
    visible = rng.integers(0, 256, (N, H, W, 3), dtype=np.uint8)
    (tmp_path / "vis").mkdir()
    for i, picture in enumerate(visible):
        Image.fromarray(picture).save(tmp_path / "vis" / f"{i:02d}.png")
    degrees = rng.uniform(5, 45, (N, H, W)).astype(np.float32)
    np.save(tmp_path / "night.npy", degrees)
    grey = np.round(np.clip((degrees.astype(np.float64) - 10) / 30, 0, 1) * 255)
    text = f"visible={tmp_path}/vis?fps=10|lwir={tmp_path}/night.npy?range=10:40&fps=10"
    return text, visible, grey.astype(np.uint8)


def cold(text: str, size: tuple[int, int] = (H, W)) -> Explanation:
    return explain(torch.ones(1, 2, 2), path=text, size=size)


def of_bands(text: str | None = None, **maps: torch.Tensor) -> Explanation:
    """An explanation that tells bands apart; its map is their sum, a cell a pixel."""
    total = torch.stack([*maps.values()]).sum(0)
    why = explain(total, path=text, size=(H, W), side=(H, W))
    (part,) = why.parts
    return replace(why, by_band=tuple((name, replace(part, values=m)) for name, m in maps.items()))


def near(drawn: np.ndarray, wanted: np.ndarray, off: int = 0) -> bool:
    return bool(np.abs(drawn.astype(int) - wanted).max() <= off)


def drawn_of(why: Explanation, **options: object) -> list[np.ndarray]:
    return [frame for _, frame in frames(why, **{**PLAIN, **options})]


def test_each_spectrum_is_a_column_in_order_and_only_infrared_is_tinted(scene) -> None:
    text, visible, grey = scene
    for name in ("white-hot", "inferno", "iron", "black-hot"):
        drawn = drawn_of(cold(text), palette=name)
        assert len(drawn) == N
        for i, frame in enumerate(drawn):
            assert frame.shape == (H, 2 * W, 3)
            assert near(frame[:, :W], visible[i])
            levels = grey[i].astype(int)
            table = palette(name).astype(int)
            wanted = [table[np.clip(levels + d, 0, 255)] for d in (-1, 0, 1)]  # rounding of a half
            assert (frame[:, W + 1 :, None] == np.stack(wanted, 2)[:, 1:]).all(-1).any(-1).all()
            assert (frame[:, W + 1 :] == wanted[1][:, 1:]).all(-1).mean() > 0.999
            assert (frame[:, W] == 255).all()  # the line between the columns


def test_first_a_name_and_the_overlay(scene) -> None:
    text, visible, grey = scene
    (first, *_), (named, *_) = drawn_of(cold(text), spectra="first"), drawn_of(cold(text), spectra="lwir")
    assert near(first, visible[0])
    assert near(named, grey[0][..., None], 1)
    for name in ("inferno", None):
        drawn = drawn_of(cold(text), spectra="overlay", palette=name)
        tinted = drawn_of(cold(text), spectra="lwir", palette=name or "iron")
        for i in range(N):
            red, green, blue = np.moveaxis(visible[i].astype(np.int64), 2, 0)
            luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
            assert near(drawn[i], (luma[..., None] + tinted[i] + 1) // 2)
    swapped = "|".join(reversed(text.split("|")))
    assert near(drawn_of(cold(swapped), spectra="overlay")[3], overlaid(visible[3], tinted[3]))  # on visible
    original, hot = drawn_of(cold(swapped), beside=True, spectra="first")[0], grey[0][..., None]
    assert near(original[:, :W], hot, 1)


def test_capitals_do_not_matter_and_a_band_stands_for_its_picture(scene) -> None:
    text, visible, grey = scene
    for name in ("LWIR", "Lwir", "lwir"):
        assert near(drawn_of(cold(text), spectra=name)[0], grey[0][..., None], 1)
    for name in ("rgb", "G", "VISIBLE"):
        assert near(drawn_of(cold(text), spectra=name)[0], visible[0])
    thermal = text.replace("lwir=", "thermal=") + "&bands=LWIR"
    assert near(drawn_of(cold(thermal), spectra="lwir")[0], grey[0][..., None], 1)
    over = drawn_of(cold(text), spectra="Overlay", style="contour")
    assert np.array_equal(over, drawn_of(cold(text), spectra="overlay", style="contour"))
    shown = (View("a", table=palette("iron")),)
    assert np.array_equal(look(spectra="Overlay").on(shown).colours, heat_on("iron"))
    check_spectra(text, "RGB")
    check_spectra(thermal, "lwir")
    with pytest.raises(OptionError, match="unknown spectra 'lwr'"):
        check_spectra(text, "lwr")


def test_whether_a_palette_changes_anything(scene) -> None:
    why = cold(scene[0])
    found = [untinted([why], "iron", which) for which in ("each", "lwir", "overlay", "visible", "first")]
    assert found == [False, False, False, True, True]
    assert not untinted([why], None, "visible")
    assert not untinted([why], "white-hot", "visible")  # the picture as it is


def test_what_there_is_not_is_refused(scene, tmp_path: Path) -> None:
    text, _, _ = scene
    with pytest.raises(
        OptionError, match=r"unknown spectra 'lwr'.*'lwir'.*each, first, overlay, visible, lwir"
    ):
        frames(cold(text), spectra="lwr")
    single = f"{tmp_path}/night.npy?range=10:40&fps=10"
    for which in ("overlay", "lwir"):
        with pytest.raises(OptionError, match="needs a source of several spectra"):
            frames(cold(single), spectra=which)
    assert drawn_of(cold(single), spectra="first")[0].shape == (H, W, 3)
    with pytest.raises(OptionError, match="unknown palette"):
        cold(text).save(tmp_path / "a.mp4", palette="rainbow")
    assert not (tmp_path / "a.mp4").exists()


# ── whose heat ───────────────────────────────────────────────────────────────────────────────────────────


def random_maps(**seeds: int) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(N, H, W, generator=torch.Generator().manual_seed(s)) for name, s in seeds.items()
    }


def test_each_picture_carries_the_map_of_its_own_bands_in_one_scale(scene) -> None:
    text, visible, _ = scene
    maps = random_maps(RGB=1, LWIR=2)
    maps["RGB"] *= 0.1  # nearly silent
    low = min(float(m.min()) for m in maps.values())
    high = max(float(m.max()) for m in maps.values())
    drawn = drawn_of(of_bands(text, **maps), style="focus", rgba=True)
    for i in (0, 7):
        for left, name in ((0, "RGB"), (W, "LWIR")):
            alpha = np.floor(20 + 235 * (maps[name][i].numpy() - low) / (high - low) + 0.5)
            part = slice(left + bool(left), left + W)  # but the line between the columns
            assert np.abs(drawn[i][:, part, 3] - alpha[:, bool(left) :]).max() <= 1
        assert np.array_equal(drawn[i][:, :W, :3], visible[i])
    together = drawn_of(of_bands(text, **maps), style="focus", rgba=True, spectra="overlay")
    total = sum(maps.values()).numpy()
    alpha = np.floor(20 + 235 * (total[3] - total.min()) / (total.max() - total.min()) + 0.5)
    assert np.abs(together[3][..., 3] - alpha).max() <= 1


def test_a_silent_band_stays_cold(scene) -> None:
    text, visible, _ = scene
    heat = torch.zeros(N, H, W)
    heat[:, 20:40, 30:60] = 1
    nothing = torch.zeros(N, H, W)
    nothing[:, 5, 5] = 1e-3  # by a scale of its own as hot as can be
    for scale in ("range", "positive"):
        why = replace(of_bands(text, RGB=nothing, LWIR=heat), scale=scale)
        frame = drawn_of(why, palette="inferno")[4]
        assert near(frame[:, :W], visible[4])
        hot = frame[22:38, W + 32 : W + 58].astype(int)
        assert np.abs(hot - heat_on("inferno")[255]).mean() < 60


def test_bands_of_one_picture_are_summed_and_captions_say_whose_map_it_is(scene) -> None:
    text, _, _ = scene
    maps = random_maps(R=1, G=2, B=3, LWIR=4)
    why = of_bands(text, **maps)
    with open_source(why.source) as video:
        shown = views(video, [why], range(N))
        visible, infrared = layers(why, shown)
        values = maps["R"] + maps["G"] + maps["B"]
        assert torch.allclose(visible.explanation.grid, values)
        assert torch.equal(infrared.explanation.grid, maps["LWIR"])
        assert (
            visible.explanation.limits
            == infrared.explanation.limits
            == (
                min(float(m.min()) for m in (*maps.values(), values)),
                max(float(m.max()) for m in (*maps.values(), values)),
            )
        )
        assert (visible.said, infrared.said) == (f"RGB's {OWN}", f"LWIR's {OWN}")
        whole = layers(cold(text), shown)
        assert [layer.said for layer in whole] == ["", ""]
        (over,) = layers(why, views(video, [why], range(N), "overlay"))
        assert over.explanation is why
        mixed = of_bands(text, **{"RGB+LWIR": maps["R"], "G": maps["G"]})
        assert [layer.said for layer in layers(mixed, shown)] == [f"G's {OWN}", "all bands"]
        assert layers(mixed, shown)[1].explanation is mixed
    with Drawing(why, look()) as drawing:
        ((left, right),) = drawing._captions
    assert left.line == f"visible · surfing water  p=0.62 · RGB's {OWN} · predicted: kayaking p=0.71"
    assert left.brief == "RGB's own heat · predicted: kayaking p=0.71"  # where there is less room
    assert right.label == "lwir · surfing water"
    assert right.note == f"LWIR's {OWN}"


def test_the_common_limits_are_those_of_the_maps_and_the_whole_keeps_its_own() -> None:
    maps = random_maps(RGB=1, IR=2)
    maps["IR"] = maps["IR"] * 3 + 1
    why = of_bands(None, **maps)
    before = why.limits
    found = band_maps(why)
    both = (float(maps["IR"].min()), float(maps["IR"].max()))
    assert {e.limits for e in found.values()} == {both}
    assert why.limits == before != both
    assert why.band("RGB").limits != both


@pytest.mark.parametrize("read", [("windows", {"stride": 1}), ("views", {"clips": 2, "crops": 2})])
def test_bands_of_windows_and_views_are_drawn_over_all_of_them(read, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (20, 32, 48, 3), dtype=np.uint8)
    write_video(tmp_path / "long.mkv", array, fps=10)
    model = labelled()
    many = getattr(model, read[0])(tmp_path / "long.mkv", **read[1])
    why = tl.explain(model, many, tl.InputXGradient(spectrum="each"), "swim")
    found = band_maps(why, [("R", "B")])
    assert len(why.parts) > 1
    for name in why.bands:
        torch.testing.assert_close(found[(name,)].saliency, why.band(name).saliency, equal_nan=True)
    both = why.band("R").saliency + why.band("B").saliency
    torch.testing.assert_close(found["R", "B"].saliency, both, equal_nan=True)
    assert len({m.limits for m in found.values()}) == 1
    for suffix in ("png", "mp4"):
        assert why.save(tmp_path / f"a.{suffix}").stat().st_size


def test_an_array_of_four_bands_is_two_pictures_where_its_map_knows_their_names() -> None:
    array = np.random.default_rng(0).random((N, H, W, 4)).astype(np.float32)
    maps = random_maps(RGB=1, IR=2)
    why = of_bands(None, **maps)
    why = replace(why, source=replace(why.source, array=array))
    drawn = drawn_of(why, style="focus", rgba=True, palette="iron")
    levels = np.round(array[2] * 255).astype(np.uint8)
    assert np.array_equal(drawn[2][:, :W, :3], levels[..., :3])
    assert np.array_equal(drawn[2][:, W + 1 :, :3], palette("iron")[levels[:, 1:, 3]])
    assert drawn_of(replace(why, by_band=()), palette="iron")[0].shape == (H, W, 3)


def test_the_sheet_has_a_row_a_spectrum_and_below_the_sum_a_row_a_band(scene) -> None:
    text, _, _ = scene
    maps = random_maps(RGB=1, LWIR=2)
    sheet = figure(of_bands(text, **maps), frames=4, palette="inferno")
    names = [t.get_text() for t in sheet.texts]
    assert names[-6:] == ["visible", "lwir", "heat, visible", "heat, lwir", "heat of RGB", "heat of LWIR"]
    images = [ax.images[0].get_array() for ax in sheet.axes if ax.images]
    assert len(images) == 6 * 4
    titles = {ax.get_title(loc="left"): [t.get_text() for t in ax.get_yticklabels()] for ax in sheet.axes}
    low, high = (
        f(float(f2) for f2 in (getattr(m, n)() for m in maps.values()))
        for f, n in ((min, "min"), (max, "max"))
    )
    assert titles["one band's\nheat"] == [f"0 ({low:.2g})", "0.5", f"1 ({high:.2g})"]
    total = sum(maps.values())
    assert titles["heat"] == [f"0 ({total.min():.2g})", "0.5", f"1 ({total.max():.2g})"]
    plain = figure(cold(text), frames=3, spectra="lwir")
    assert [t.get_text() for t in plain.texts][-4:] == ["lwir", "heat, lwir", "focus, lwir", "contour, lwir"]


def test_networks_stand_under_heads_that_span_their_spectra(scene) -> None:
    text, _, _ = scene
    one = cold(text)
    other = replace(one, provenance=replace(one.provenance, model="other"))
    drawing = Drawing([one, other], look(beside=True))
    with drawing:
        (_, frame), *_ = drawing
    rows = len(drawing._cells)
    assert [v for _, v in drawing._cells[0]] == [0, 1] * (len(drawing._cells[0]) // 2)
    assert frame.shape[:2] == drawing.size
    assert drawing.size[1] == len(drawing._cells[0]) * W
    assert rows in (1, 2)
    sheet = figure([one, other], frames=3)
    assert len([ax for ax in sheet.axes if ax.images]) == 3 * 2 * 3  # a cell a spectrum; three frames in each


# ── frames of few pixels ─────────────────────────────────────────────────────────────────────────────────


def tiny(h: int, w: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 200, (n, h, w, 1), dtype=np.uint8)


def test_small_frames_grow_by_a_whole_factor_and_their_pixels_stay_pixels() -> None:
    array = tiny(16, 20)
    why = explain(torch.ones(1, 2, 2), array=array, size=(16, 20), fps=8.0)
    for i, (_, frame) in enumerate(frames(why, palette="iron", **PLAIN)):
        wanted = palette("iron")[array[i, ..., 0]].repeat(15, axis=0).repeat(15, axis=1)
        assert np.array_equal(frame, wanted)
    assert [enlargement(s) for s in ((16, 16), (63, 200), (64, 64), (24, 32), (1, 1), (480, 640))] == [
        *(15, 4, 1, 10, 240, 1),
    ]


def test_a_hot_cell_lands_on_the_enlarged_pixels_it_looks_at() -> None:
    # the 12x12 in the middle of 16x20 was seen at 12x12; cell (2, 8) looks at its pixel (4, 12)
    values = torch.zeros(1, 12, 12)
    values[0, 2, 8] = 1
    array = np.zeros((N, 16, 20, 1), np.uint8)
    box = Box(2.0, 4.0, 12.0, 12.0)
    why = explain(values, array=array, size=(16, 20), side=(12, 12), box=box)
    (_, frame), *_ = frames(why, "focus", rgba=True, **PLAIN)
    assert frame.shape == (240, 300, 4)
    alpha = frame[..., 3].astype(float)
    outline = np.zeros((240, 300), bool)
    outline[28:212, 58:242] = True  # the box is rows 30 to 210, columns 60 to 240, and the line just outside
    outline[30:210, 60:240] = False
    assert (frame[29, 60:240, :3] == 204).all()
    assert (frame[30, 60:240, :3] == 0).all()
    assert (frame[60:200, 59, :3] == 204).all()
    alpha[outline] = 20
    weight = np.clip(alpha - 100, 0, None)
    y, x = np.mgrid[0:240, 0:300]
    assert (weight * y).sum() / weight.sum() == pytest.approx((4 + 0.5) * 15 - 0.5, abs=1)
    assert (weight * x).sum() / weight.sum() == pytest.approx((12 + 0.5) * 15 - 0.5, abs=1)
    inside = frame[60:75, 180:195, 3]  # smooth, not a square
    assert len(np.unique(inside)) > 20


def test_fit_still_wins_by_whole_factors_while_one_fits() -> None:
    assert fitted((16, 16), 1, None) == (240, 240)
    assert fitted((16, 16), 1, 100) == (96, 96)
    assert fitted((16, 16), 3, 480) == (160, 160)
    assert fitted((16, 16), 1, 480, rows=2, above=40) == (208, 208)
    assert fitted((60, 16), 2, 16) == (16, 4)
    assert fitted((64, 64), 1, None) == (64, 64)
    assert fitted((64, 64), 1, 480) == (64, 64)
    why = explain(torch.ones(1, 2, 2), array=tiny(16, 16), size=(16, 16))
    assert drawn_of(why, fit=50)[0].shape == (48, 48, 3)


def test_videos_of_small_frames_at_eight_a_second(tmp_path: Path) -> None:
    array = tiny(16, 16)
    why = explain(
        torch.rand(2, 3, 3), array=array, size=(16, 16), fps=8.0, times=tuple(i / 8 for i in range(N))
    )
    drawn, times = decoded(why.save(tmp_path / "a.mp4", beside=True, palette="inferno"))
    assert len(drawn) == N
    assert drawn[0].shape[1:] == (480, 3)
    assert 240 + 25 < drawn[0].shape[0] <= 240 + 50  # words and strip below
    assert times == pytest.approx(np.arange(N) / 8, abs=1e-4)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(8)
    middle = drawn[5][:240, :240].reshape(48, 5, 48, 5, 3)[:, 2, :, 2].astype(int)
    wanted = palette("inferno")[array[5, ..., 0]].repeat(3, axis=0).repeat(3, axis=1)
    assert np.abs(middle - wanted).mean() < 6
    with Image.open(why.save(tmp_path / "a.gif")) as gif:
        assert (gif.width, gif.n_frames) == (240, N)
        assert 240 + 25 < gif.height <= 240 + 50
        lasting = []
        for i in range(N):
            gif.seek(i)
            lasting.append(gif.info["duration"])
    assert set(lasting) == {120, 130}
    assert sum(lasting) == pytest.approx(1000 * N / 8, abs=10)
    folder = why.save(tmp_path / "a")
    with Image.open(folder / "000.png") as image:
        assert np.array_equal(np.asarray(image)[:240], drawn_of(why)[0])
        assert 240 + 25 < image.height <= 240 + 50
    assert json.loads((folder / "info.json").read_text())["fps"] == 8.0
    sheet = figure(why, frames=4)
    images = [ax.images[0].get_array() for ax in sheet.axes if ax.images]
    factor, rest = divmod(images[0].shape[0], 16)
    assert (rest, images[0].shape[0] >= 240) == (0, True)
    assert np.array_equal(images[0], array[0].repeat(3, 2).repeat(factor, 0).repeat(factor, 1))


def test_irregular_times_keep_their_durations(tmp_path: Path) -> None:
    seconds = [0.0, 0.1, 0.25, 0.6, 0.7, 1.2]
    with VideoSink(tmp_path / "v.mp4", (64, 64), fps=5) as sink:
        for i, t in enumerate(seconds):
            sink.write(np.full((64, 64, 3), 40 * i, np.uint8), t)
    why = explain(torch.rand(2, 2, 2), path=tmp_path / "v.mp4", size=(64, 64), times=tuple(seconds), fps=5.0)
    _, times = decoded(why.save(tmp_path / "a.mp4"))
    assert times == pytest.approx(seconds, abs=1e-3)
    with Image.open(why.save(tmp_path / "a.gif")) as gif:
        lasting = []
        for i in range(gif.n_frames):
            gif.seek(i)
            lasting.append(gif.info["duration"] / 1000)
    assert lasting[:-1] == pytest.approx(np.diff(seconds), abs=0.011)


# ── everywhere ───────────────────────────────────────────────────────────────────────────────────────────

NET = """
import torch
import tubelens as tl

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv3d(4, 2, (1, 4, 4), (1, 4, 4), bias=False)

    def forward(self, x):
        return self.body(x).mean((2, 3, 4))

def make():
    bands = ("R", "G", "B", "LWIR")
    return tl.wrap(Net().eval(), frames=4, size=(72, 96), bands=bands, labels=["a", "b"], name="four")
"""


def test_every_kind_of_file_and_the_command_line(scene, tmp_path: Path, monkeypatch) -> None:
    text, visible, _ = scene
    monkeypatch.chdir(tmp_path)
    why = of_bands(text, **random_maps(RGB=1, LWIR=2))
    drawn, _ = decoded(draw(why, "why.webm", palette="iron", spectra="each"))
    assert (len(drawn), drawn[0].shape[1:]) == (N, (2 * W, 3))
    with Image.open(why.save("why.gif", spectra="overlay", **PLAIN)) as gif:
        assert gif.size == (W, H)
    with Image.open(why.save("why", spectra="visible", style="focus", **PLAIN) / "003.png") as image:
        assert np.array_equal(np.asarray(image)[..., :3], visible[3])
    Path("net.py").write_text(NET)
    shared = (
        "explain",
        text,
        "--model",
        "net.py:make",
        "--method",
        "gradcam(layer=body)",
        "--weights",
        "random",
    )
    done(*shared, "--palette", "inferno", "--spectra", "each", "--plain", "--out", "both.mp4")
    done(*shared, "--palette", "inferno", "--spectra", "LWIR", "--plain", "--out", "one.mp4")
    coloured = tubelens(*shared, "--palette", "inferno", "--spectra", "Visible", "--out", "colour.mp4")
    assert coloured.code == 0
    nothing = "--palette inferno changes nothing: all of it is in colour"
    assert coloured.err == f"note: visible + lwir: vis, night.npy: {nothing}\n"
    both, one = decoded("both.mp4")[0], decoded("one.mp4")[0]
    assert (both[0].shape, one[0].shape) == ((H, 2 * W, 3), (H, W, 3))
    assert np.abs(both[2][:, W + 2 :].astype(int) - one[2][:, 2:]).mean() < 12
    refused = tubelens(*shared, "--spectra", "lwr", "--out", "no.mp4")
    assert refused.code == 2
    assert "unknown spectra 'lwr'" in refused.err
    assert not Path("no.mp4").exists()
