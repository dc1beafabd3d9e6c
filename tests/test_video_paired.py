"""Several spectra of one scene as one clip: matched in time, laid over each other, bands named."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tubelens as tl
from tests.videos import clip_codes, coded, coded_video, read_code, write_video
from tubelens.errors import InputError, OptionError, VideoError
from tubelens.video import FileFrames, FolderFrames, open_video, paired
from tubelens.video.align import Times, match, placing, read_homography, warp
from tubelens.video.frames import exactly
from tubelens.video.images import read_image
from tubelens.video.paired import PairedFrames
from tubelens.video.streams import Stream, absent, beneath, source_name, source_stem, streams

SIZE = (48, 64)


def folder(
    path: Path, numbers: Iterator[int] | range, size: tuple[int, int] = SIZE, grey: bool = True
) -> str:
    """A folder of PNGs, each with its number in its pixels."""
    path.mkdir()
    for place, number in enumerate(numbers):
        frame = coded(number, size)
        Image.fromarray(frame[..., 0] if grey else frame).save(path / f"{place:03d}.png")
    return str(path)


def opened(text: str, fps: float | None = None) -> PairedFrames:
    video = open_video(text, fps)
    assert isinstance(video, PairedFrames)
    return video


def codes(video: PairedFrames) -> list[tuple[int, int]]:
    """Numbers that the visible and the first infrared band of every frame carry."""
    exactly(video)
    assert video.bands[:3] == ("R", "G", "B")
    frames = [frame for _, _, frame in video.pick(range(len(video.times())))]
    return [(read_code(f[..., :3]), read_code(np.repeat(f[..., 3:4], 3, axis=2))) for f in frames]


# ── matching in time ─────────────────────────────────────────────────────────────────────────────────────


def naive_match(first: list[float], other: list[float]) -> list[tuple[int, int]]:
    """For each frame of the first its nearest in the other, by looking at all of them."""

    def step(times: list[float]) -> float:
        gaps = sorted(b - a for a, b in itertools.pairwise(times))
        n = len(gaps)
        return gaps[n // 2] if n % 2 else (gaps[n // 2 - 1] + gaps[n // 2]) / 2

    reach = step(first) / 2 + step(other) / 2 + 0.001
    rows = []
    for k, t in enumerate(first):
        if other[0] - t > reach or t - other[-1] > reach:
            continue
        best = 0
        for n in range(len(other)):
            if abs(other[n] - t) < abs(other[best] - t) - 1e-6:
                best = n
        rows.append((k, best))
    return rows


@pytest.mark.parametrize("seed", range(12))
def test_frames_are_matched_as_by_looking_at_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    one, two = generator.choice([5.0, 8.0, 12.5, 25.0, 29.97, 50.0], 2)
    first = [n / one for n in range(40)]
    own = [n / two for n in range(int(generator.integers(10, 80)))]
    if seed % 3 == 0:  # time stamps that are not quite regular
        own = sorted(t + float(generator.uniform(0, 0.4 / two)) for t in own)
    offset = float(generator.choice([0.0, 0.3, -0.3, 0.04, 0.5])) * min(first[-1], own[-1])
    found = match([Times.of("a", first, one), Times.of("b", own, two, offset)])
    assert list(found.rows) == naive_match(first, [t + offset for t in own])
    assert len(found.rows) > 2


def test_of_two_frames_equally_near_the_earlier_is_taken() -> None:
    first, other = [n / 25 for n in range(9)], [n / 12.5 for n in range(5)]
    found = match([Times.of("a", first, 25), Times.of("b", other, 12.5)])
    assert [n for _, n in found.rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert found.notes == ()


def test_a_stream_covers_half_a_frame_more_at_both_ends() -> None:
    first, other = [n / 10 for n in range(10)], [n / 10 for n in range(5)]
    late = match([Times.of("a", first, 10), Times.of("b", other, 10, 0.25)])
    assert [k for k, _ in late.rows] == [2, 3, 4, 5, 6, 7]  # 0.25 to 0.65 s, and 0.1 s and a rounding more
    assert late.notes == ("4 of 10 frames of a are left out: b does not cover their moments",)


def test_several_streams_are_matched_over_what_all_cover() -> None:
    first = [n / 10 for n in range(20)]
    early = Times.of("b", [n / 10 for n in range(12)], 10)
    late = Times.of("c", [n / 5 for n in range(20)], 5, 0.5)
    found = match([Times.of("a", first, 10), early, late])
    assert [row[0] for row in found.rows] == list(range(4, 13))
    assert [row[1] for row in found.rows] == [*range(4, 12), 11]
    assert [row[2] for row in found.rows] == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert found.notes == ("11 of 20 frames of a are left out: b and c do not cover their moments",)


def test_a_gap_is_told() -> None:
    first = [n / 10 for n in range(20)]
    other = [n / 10 for n in (*range(5), *range(12, 20))]
    found = match([Times.of("a", first, 10), Times.of("b", other, 10)])
    assert len(found.rows) == 20
    (said,) = found.notes  # 0.6 to 1.0 s are more than a frame away from 0.4 and from 1.2 s
    assert said == "b has a gap: for 5 of 20 frames its nearest is up to 0.40 s away (at 0.80 s)"


def test_no_moment_in_common_is_one_clear_line() -> None:
    first, other = [n / 10 for n in range(10)], [n / 10 for n in range(10)]
    with pytest.raises(VideoError, match=r"a from 0\.00 to 0\.90 s, b from 5\.00 to 5\.90 s: set offset="):
        match([Times.of("a", first, 10), Times.of("b", other, 10, 5.0)])


# ── laying over each other ───────────────────────────────────────────────────────────────────────────────


def dots(size: tuple[int, int], *places: tuple[int, int]) -> np.ndarray:
    frame = np.zeros((*size, 1), np.float32)
    for n, (x, y) in enumerate(places, 1):
        frame[y, x] = n / len(places)
    return frame


def test_a_homography_carries_dots_to_where_it_says() -> None:
    """Translation by whole pixels: dots move by as much, and nothing comes in from outside."""
    matrix = np.array([[1, 0, 3], [0, 1, -2], [0, 0, 1.0]])
    placed = warp(matrix, (10, 12), (10, 14))
    moved = placed(dots((10, 12), (2, 5), (11, 9), (4, 1)))
    expected = np.zeros((10, 14, 1), np.float32)
    expected[3, 5], expected[7, 14 - 14], expected[7, 14 - 1] = 1 / 3, 0, 0
    expected[7, 13] = 0  # x = 14 is outside
    assert np.argwhere(moved[..., 0] > 1e-6).tolist() == [[3, 5]]
    np.testing.assert_allclose(moved, expected, atol=1e-7)
    assert placed.covered == pytest.approx(11 * 8 / 140)  # columns 3 to 13, rows 0 to 7


def test_a_homography_that_scales_hits_pixel_centres() -> None:
    """Twice the size about pixel centres: the middle of a dot at x lies at 2 x + 1/2, between two pixels."""
    matrix = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]])
    placed = warp(matrix, (4, 5), (8, 10))
    frame = np.random.default_rng(0).random((4, 5, 2)).astype(np.float32)
    enlarged = placed(frame)
    assert placed.covered == 1
    for y, x in np.ndindex(8, 10):
        u, v = np.clip((x - 0.5) / 2, 0, 4), np.clip((y - 0.5) / 2, 0, 3)
        a, b = int(u), int(v)
        c, d = min(a + 1, 4), min(b + 1, 3)
        top = frame[b, a] * (1 - (u - a)) + frame[b, c] * (u - a)
        low = frame[d, a] * (1 - (u - a)) + frame[d, c] * (u - a)
        np.testing.assert_allclose(enlarged[y, x], top * (1 - (v - b)) + low * (v - b), atol=1e-6)


def test_an_unmoved_frame_comes_out_as_it_went_in() -> None:
    frame = np.random.default_rng(1).random((7, 9, 3)).astype(np.float32)
    for matrix in (np.eye(3), -4 * np.eye(3)):  # a homography has no scale, and no sign
        placed = warp(matrix, (7, 9), (7, 9))
        np.testing.assert_array_equal(placed(frame), frame)
        assert placed.covered == 1


@pytest.mark.parametrize(  # the second has its horizon within the stream's frame
    "rows", [[[1.0, 0.1, 2], [0.05, 1.1, 1], [0.12, 0, 1]], [[-1.0, 0.1, 9], [0.05, 1.1, -3], [-0.15, 0, 1]]]
)
def test_a_perspective_shows_only_what_is_ahead(rows: list[list[float]]) -> None:
    """Against a loop: pixels whose line of sight meets the stream's plane behind the camera see nothing."""
    matrix = np.array(rows)
    placed = warp(matrix, (9, 11), (12, 16))
    frame = np.random.default_rng(2).random((9, 11, 1)).astype(np.float32) + 0.1
    frame = (frame / frame.max()).astype(np.float32)
    moved, inverse, seen = placed(frame), np.linalg.inv(matrix), 0
    for y, x in np.ndindex(12, 16):
        u, v, scale = inverse @ (x, y, 1.0)
        inside = scale > 0 and -0.5 <= u / scale <= 10.5 and -0.5 <= v / scale <= 8.5
        seen += inside
        if not inside:
            assert moved[y, x, 0] == 0
            continue
        u, v = np.clip(u / scale, 0, 10), np.clip(v / scale, 0, 8)
        a, b = min(int(u), 9), min(int(v), 7)
        corner = frame[b : b + 2, a : a + 2, 0]
        weights = np.outer([1 - (v - b), v - b], [1 - (u - a), u - a])
        assert moved[y, x, 0] == pytest.approx(float((corner * weights).sum()), abs=1e-6)
    assert placed.covered == pytest.approx(seen / (12 * 16))
    assert 0.1 < placed.covered < 0.9


def test_a_homography_is_read_from_text_and_from_npy(tmp_path: Path) -> None:
    matrix = np.array([[1, 0.5, 3], [0, 2, -2e-3], [1e-4, 0, 1]])
    np.save(tmp_path / "h.npy", matrix)
    np.savetxt(tmp_path / "h.txt", matrix)
    np.savetxt(tmp_path / "h.csv", matrix, delimiter=",", header="lwir to visible")
    for name in ("h.npy", "h.txt", "h.csv"):
        np.testing.assert_array_equal(read_homography(str(tmp_path / name)), matrix)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 0 0\n0 1 0\n", "a homography is a 3x3 matrix, this is 2x3"),
        ("1 0 0\n0 1\n0 0 1", "no matrix can be read from it: give 3x3 numbers"),
        ("1 0 a\n0 1 0\n0 0 1", "no matrix can be read from it"),
        ("", "3x3 matrix, this is 0"),
        ("1 0 nan\n0 1 0\n0 0 1", "not finite"),
        ("1 0 3\n2 0 5\n0 0 1", "the matrix is singular"),
        ("1 0 900\n0 1 0\n0 0 1", "maps nothing of the stream onto the frame of the first"),
    ],
)
def test_a_homography_that_cannot_be_used_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "h.txt").write_text(text)
    a, b = folder(tmp_path / "a", range(2), grey=False), folder(tmp_path / "b", range(2))
    with pytest.raises(InputError, match=r"h\.txt: .*" + said):
        open_video(paired(visible=a, lwir=f"{b}?homography={tmp_path / 'h.txt'}"))


def test_a_homography_that_is_not_there_or_pickled(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: this homography cannot be read: No such file"):
        read_homography(str(tmp_path / "nowhere"))
    np.save(tmp_path / "o.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(InputError, match="no matrix can be read"):
        read_homography(str(tmp_path / "o.npy"))


def test_other_sizes_are_resized_where_they_have_the_same_ratio() -> None:
    small = placing(Stream("b", "lwir"), (24, 32), "visible", (48, 64))
    ramp = np.tile(np.linspace(0.1, 0.9, 32, dtype=np.float32)[None, :, None], (24, 1, 1))
    resized = small(ramp)
    assert resized.shape == (48, 64, 1)
    step = 0.8 / 31
    inner = 0.1 + step * ((np.arange(64) + 0.5) / 2 - 0.5)
    np.testing.assert_allclose(resized[10, 1:-1, 0], inner[1:-1], atol=1e-5)
    large = placing(Stream("b", "lwir"), (96, 128), "visible", (48, 64))
    stripes = np.zeros((96, 128, 1), np.float32)
    stripes[:, ::2] = 1
    np.testing.assert_allclose(large(stripes)[:, 2:-2], 0.5, atol=0.02)  # filtered, so no stripes are left
    placing(Stream("b", "lwir"), (48, 65), "visible", (48, 64))
    with pytest.raises(OptionError, match=r"b: its frames are 66x48, those of visible 64x48: another ratio"):
        placing(Stream("b", "lwir"), (48, 66), "visible", (48, 64))
    assert placing(Stream("b", fit="stretch"), (48, 99), "visible", (48, 64)).size == (48, 64)
    with pytest.raises(OptionError, match="homography and fit=stretch"):
        placing(Stream("b", fit="stretch", homography="h.txt"), (48, 64), "visible", (48, 64))


# ── streams together ─────────────────────────────────────────────────────────────────────────────────────


def test_rates_and_counts_may_differ(tmp_path: Path) -> None:
    """25 frames a second beside 10 that begin a little later and end earlier."""
    visible = write_video(tmp_path / "v.mp4", (coded(n) for n in range(50)))
    lwir = folder(tmp_path / "ir", range(100, 115))
    video = opened(paired(visible=visible, lwir=f"{lwir}?fps=10&offset=0.25"))
    assert (video.size, video.fps, video.bands) == (SIZE, 25, ("R", "G", "B", "LWIR"))
    rows = naive_match([n / 25 for n in range(50)], [0.25 + n / 10 for n in range(15)])
    assert codes(video) == [(k, 100 + n) for k, n in rows]
    assert video.times() == pytest.approx([k / 25 for k, _ in rows])
    assert rows[0][0] == 5
    assert rows[-1][0] == 43
    left = f"{50 - len(rows)} of 50 frames of visible are left out: lwir does not cover their moments"
    assert video.notes == (left,)
    assert video.decoded <= 50 + 15  # each frame once, though some are used three times


def test_frames_are_counted_in_the_result(tmp_path: Path) -> None:
    visible = write_video(tmp_path / "v.mp4", (coded(n) for n in range(30)))
    lwir = folder(tmp_path / "ir", range(100, 110))
    video = opened(paired(visible=visible, lwir=f"{lwir}?fps=25&offset=0.4"))
    assert len(video.times()) == 12  # from 0.36 to 0.80 s
    exactly(video)
    found = [(k, t, read_code(f[..., :3]), read_code(f[..., 3:])) for k, t, f in video.pick([0, 5, 11])]
    assert [(k, a, b) for k, _, a, b in found] == [(0, 9, 100), (5, 14, 104), (11, 20, 109)]
    assert [t for _, t, _, _ in found] == pytest.approx([0.36, 0.56, 0.8])
    assert [read_code(f[..., :3]) for _, f in video.between(0.4, 0.48)] == [10, 11, 12]
    assert [read_code(f[..., 3:]) for _, f in video.run(0.5, 4)] == [102, 106, 109]
    assert read_code(next(iter(video.run(0.0)))[1][..., :3]) == 9
    with pytest.raises(OptionError, match="there is no frame 12: the video has 12 frames"):
        list(video.pick([12]))
    with pytest.raises(OptionError, match="past the end"):
        list(video.run(0.85))


def test_the_times_of_files_decide_and_a_gap_is_told(tmp_path: Path) -> None:
    seconds = [0.0, 0.04, 0.08, 0.12, 0.16, 0.56, 0.6, 0.64, 0.68, 0.72]
    visible = write_video(tmp_path / "v.mp4", (coded(n) for n in range(19)))
    lwir = write_video(tmp_path / "ir.mp4", (coded(100 + n) for n in range(10)), seconds=seconds)
    video = opened(paired(visible=visible, lwir=lwir))
    assert codes(video) == [(k, 100 + n) for k, n in naive_match([n / 25 for n in range(19)], seconds)]
    (said,) = video.notes
    assert said.startswith("lwir has a gap: for 7 of 19 frames its nearest is up to 0.20 s away (at 0.36 s)")


def test_a_clip_has_the_bands_that_are_asked_for(tmp_path: Path) -> None:
    visible = folder(tmp_path / "tv", range(8), grey=False)
    values = np.stack([coded(100 + n, (24, 32))[..., 0] / 255 * 20 + 15 for n in range(8)])
    np.save(tmp_path / "ir.npy", values)
    text = paired(visible=visible, lwir=f"{tmp_path / 'ir.npy'}?range=15:35")
    clip = tl.read_clip(text, frames=8, size=SIZE, bands=("LWIR", "R", "G", "B"))
    assert clip.bands == ("LWIR", "R", "G", "B")
    assert clip_codes(clip.pixels[1:]) == list(range(8))
    assert clip_codes(clip.pixels[:1].repeat(3, 1, 1, 1)) == list(range(100, 108))
    assert clip.source.path == text
    assert clip.pixels[0].max() == pytest.approx(220 / 255, abs=1e-6)  # measured, not through 8 bits
    whole = tl.read_clip(text, frames=8, size=SIZE)
    assert whole.bands == ("R", "G", "B", "LWIR")
    assert torch.equal(whole.pixels[3], clip.pixels[0])
    with pytest.raises(OptionError, match=r"has bands R, G, B, LWIR but the model needs R, G, B, IR"):
        tl.read_clip(text, bands=("R", "G", "B", "IR"))
    with pytest.raises(OptionError, match="give a stream with LWIR"):
        tl.read_clip(visible, bands=("R", "G", "B", "LWIR"))


def test_a_picture_in_infrared_is_one_band_its_luma(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    colours = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a" / "0.png")
    one = opened(f"lwir={tmp_path / 'a'}")
    assert one.bands == ("LWIR",)
    ((_, _, frame),) = exactly(one).pick([0])
    luma = colours.astype(np.float64) @ (0.299, 0.587, 0.114) / 255
    np.testing.assert_allclose(frame[..., 0], luma, atol=1e-6)
    assert opened(f"ir={tmp_path / 'a'}").bands == ("IR",)
    assert opened(f"nir={tmp_path / 'a'}?bands=N").bands == ("N",)
    false = opened(f"lwir={tmp_path / 'a'}?bands=F0,F1,F2")
    ((_, _, frame),) = exactly(false).pick([0])
    assert false.bands == ("F0", "F1", "F2")
    np.testing.assert_allclose(frame, colours / np.float32(255), atol=1e-7)
    for name in ("visible", "TV", "rgb", "vis", "colour"):
        assert opened(f"{name}={tmp_path / 'a'}").bands == ("R", "G", "B")
    assert opened(f"{tmp_path / 'a'}?bands=X").bands == ("X",)
    with pytest.raises(OptionError, match="three bands, or one, their luma: bands= names 2"):
        open_video(f"lwir={tmp_path / 'a'}?bands=A,B")
    assert isinstance(open_video(tmp_path / "a"), FolderFrames)


def test_what_cannot_be_meant_is_one_clear_line(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", range(3), grey=False), folder(tmp_path / "b", range(3))
    with pytest.raises(OptionError, match="two streams have a band R: name them apart"):
        open_video(paired(visible=a, tv=b))
    with pytest.raises(OptionError, match="two streams have a band LWIR"):
        open_video(f"a={a}?bands=LWIR|lwir={b}")
    with pytest.raises(OptionError, match="offset= brings a stream to the first one, and this is the first"):
        open_video(paired(visible=f"{a}?offset=1", lwir=b))
    with pytest.raises(OptionError, match="fit= brings a stream"):
        open_video(f"{a}?fit=stretch")
    with pytest.raises(VideoError, match=r"there is no moment that all streams show: visible from 0\.00 to"):
        open_video(paired(visible=a, lwir=f"{b}?offset=9"))
    with pytest.raises(OptionError, match="64x48"):
        open_video(paired(visible=a, lwir=folder(tmp_path / "c", range(3), (48, 48))))


def test_what_a_homography_leaves_dark_is_told(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", range(3), grey=False), folder(tmp_path / "b", range(7, 10), (24, 32))
    (tmp_path / "h.txt").write_text("1 0 32\n0 1 12\n0 0 1")
    text = paired(visible=a, lwir=f"{b}?homography={tmp_path / 'h.txt'}")
    video = opened(text)
    assert video.notes == ("lwir does not look at 75% of the frame: its bands are 0 there",)
    ((_, _, frame),) = exactly(video).pick([2])
    assert read_code(np.repeat(frame[12:36, 32:, 3:], 3, axis=2)) == 9
    outside = frame[..., 3].copy()
    outside[12:36, 32:] = 0
    assert outside.max() == 0
    clip = tl.read_clip(text, frames=3, size=SIZE)
    assert clip.source.notes == video.notes


def test_pictures_of_all_streams_to_look_at(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", range(4), grey=False), folder(tmp_path / "b", range(100, 104), (24, 32))
    video = opened(paired(visible=a, lwir=b))
    assert video.pictures == ("visible", "lwir")
    ((_, _, frame),) = video.pick([2])
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, coded(2))
    assert video.decoded == 1  # of the others nothing is decoded in vain
    video.each = True
    ((_, _, frame),) = video.pick([2])
    assert frame.shape == (*SIZE, 6)
    assert frame.dtype == np.uint8
    assert (read_code(frame[..., :3]), read_code(frame[..., 3:])) == (2, 102)


def test_the_hash_is_of_all_that_matters(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", range(3), grey=False), folder(tmp_path / "b", range(3))
    (tmp_path / "h.txt").write_text("1 0 1\n0 1 0\n0 0 1")
    (tmp_path / "g.txt").write_text("1 0 1\n0 1 0\n0 0 1")

    def of(text: str) -> str:
        found = opened(text).sha256()
        assert found is not None
        return found

    plain = of(paired(visible=a, lwir=b))
    moved = of(paired(visible=a, lwir=f"{b}?homography={tmp_path / 'h.txt'}"))
    others = [paired(visible=b, lwir=a), paired(visible=a, lwir=f"{b}?offset=0.01"), paired(vis=a, lwir=b)]
    assert len({plain, moved, *map(of, others)}) == 5
    assert of(paired(visible=a, lwir=f"{b}?homography={tmp_path / 'g.txt'}")) == moved
    (tmp_path / "h.txt").write_text("1 0 2\n0 1 0\n0 0 1")
    assert of(paired(visible=a, lwir=f"{b}?homography={tmp_path / 'h.txt'}")) != moved
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert of(paired(visible=tmp_path / "elsewhere", lwir=b)) == plain
    Image.fromarray(coded(77)[..., 0]).save(tmp_path / "b" / "001.png")
    assert of(paired(visible=tmp_path / "elsewhere", lwir=b)) != plain


def test_a_rate_that_was_given_is_kept_in_the_text(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", range(4), grey=False), folder(tmp_path / "b", range(4))
    clip = tl.read_clip(paired(visible=a, lwir=f"{b}?fps=29.97003"), fps=29.97002997, frames=4, size=SIZE)
    assert clip.source.path == f"visible={a}?fps=29.97002997|lwir={b}?fps=29.97003"
    assert opened(clip.source.path).times() == list(clip.source.times)


def test_a_rate_that_nobody_states_is_told(tmp_path: Path) -> None:
    """Streams that belong together frame for frame have none to tell; all others do."""
    a, b = folder(tmp_path / "a", range(5), grey=False), folder(tmp_path / "b", range(10))
    c = folder(tmp_path / "c", range(5))
    film = coded_video(tmp_path / "v.mp4", 5)
    np.savez(tmp_path / "t.npz", film=np.zeros((5, *SIZE), np.uint8), time_s=np.arange(5) / 25)
    said = "{}: taken at 25 frames a second (?fps=)".format

    def told(text: str) -> list[str]:
        return [note for note in opened(text).notes if "taken at" in note]

    assert told(paired(visible=a, lwir=b)) == [said("visible"), said("lwir")]
    assert told(paired(visible=f"{a}?fps=5", lwir=b)) == [said("lwir")]
    assert told(paired(visible=film, lwir=b)) == [said("lwir")]
    for both in ((a, c), (film, c), (film, f"{c}?fps=25"), (film, tmp_path / "t.npz")):
        assert told(paired(visible=both[0], lwir=both[1])) == []
    assert not any("taken at" in note for note in opened(paired(visible=a, lwir=b), fps=8).notes)


def test_the_hash_is_of_the_numbers_of_a_homography(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", range(2), grey=False), folder(tmp_path / "b", range(2))
    np.save(tmp_path / "h.npy", np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]]))
    (tmp_path / "h.txt").write_text("1 0 1\n0 1 -0\n0 0 1  # measured twice\n")
    texts = [paired(visible=a, lwir=f"{b}?homography={tmp_path}/h.{kind}") for kind in ("npy", "txt")]
    assert len({opened(text).sha256() for text in texts}) == 1


@pytest.mark.parametrize(
    "content",
    [
        np.eye(3) * 1j,
        np.eye(3) > 0,
        np.full((3, 3), "1"),
        np.full((3, 3), None),
        b"PK\x03\x04nothing",
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '''<f8', 'shape': (" + b" " * 90,
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': False, 'shape': (9"
        + b"9" * 20
        + b"9, 3)}\n",
        b"",
    ],
)
def test_files_that_hold_no_homography(tmp_path: Path, content: np.ndarray | bytes) -> None:
    file = tmp_path / "h.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(
        InputError, match=r"h\.npy: no matrix can be read from it: give 3x3 numbers"
    ) as caught:
        read_homography(str(file))
    assert "\n" not in str(caught.value)


def test_a_text_that_is_far_too_long_for_a_homography(tmp_path: Path) -> None:
    (tmp_path / "h.txt").write_text("1 0 0\n0 1 0\n0 0 1\n" + "\n" * (1 << 21))
    with pytest.raises(InputError, match="no matrix can be read from it"):
        read_homography(str(tmp_path / "h.txt"))


@pytest.mark.parametrize("factor", [1.0, -1.0, 1e300, 1e-300])
def test_a_homography_is_one_up_to_a_factor(factor: float) -> None:
    matrix = np.array([[1.1, 0.1, -1], [0, 0.9, 2], [0.001, 0, 1]])
    frame = np.random.default_rng(0).random((9, 12, 1)).astype(np.float32)
    found = warp(matrix * factor, (9, 12), (10, 11))(frame)
    np.testing.assert_allclose(found, warp(matrix, (9, 12), (10, 11))(frame), atol=1e-6)


def test_a_horizon_through_the_middle_is_told() -> None:
    with pytest.raises(InputError, match="h: its horizon goes through the middle of the stream's frame"):
        warp(np.array([[1, 0, 0], [0, 1, 0], [0.5, 0, -2.0]]), (9, 9), (9, 9), "h")


def test_a_homography_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """And one with a percent sign, which is quoted in the text."""
    a, b = folder(tmp_path / "a", range(2), grey=False), folder(tmp_path / "b", range(2))
    for name in ("\udcff.txt", "100%41 & b.txt"):
        try:
            (tmp_path / name).write_text("1 0 1\n0 1 0\n0 0 1")
        except (OSError, UnicodeEncodeError):
            pytest.skip("this file system has names in UTF-8 only")
        text = paired(visible=a, lwir=Stream(b, homography=f"{tmp_path}/{name}"))
        text.encode()
        assert streams(text)[1].homography == f"{tmp_path}/{name}"
        assert opened(text).sha256() is not None
        assert absent(beneath(text, str(tmp_path))) is None


def test_redrawn_with_one_stream_gone_names_it(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", range(8), grey=False), folder(tmp_path / "b", range(8))
    model = tl.wrap(Bands().eval(), frames=8, size=SIZE, bands=("R", "G", "B", "LWIR"))
    why = tl.explain(model, model.read(paired(visible=a, lwir=b)), method="gradcam")
    (tmp_path / "b").rename(tmp_path / "c")
    with pytest.raises(VideoError, match=rf"^{b}: no such file or folder: pass on= with the file"):
        why.save(tmp_path / "why.png")


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "ir.d", range(1))
    for name in ("walk.mp4", "night.npz"):
        (tmp_path / name).touch()
    text = f"visible={tmp_path}/walk.mp4|lwir=ir.d/?bits=14"
    assert source_name(text) == "visible + lwir: walk.mp4, ir.d"
    assert source_stem(text) == "visible+lwir_walk"
    night = "night.npz?range=15:35"
    assert (source_name(night), source_stem(night)) == ("night.npz", "night")
    assert (source_name("ir.d/"), source_stem("ir.d/")) == ("ir.d", "ir.d")
    assert (source_name("."), source_stem(".")) == (tmp_path.name, tmp_path.name)
    assert source_stem("lwir=ir.d") == "lwir_ir.d"


def test_texts_relative_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a=b?c|d.mp4").touch()
    here = str(tmp_path)
    assert beneath("a=b?c|d.mp4", here) == f"{here}/a=b?c|d.mp4"  # a file of that name is meant
    assert beneath("x/../v.mp4", here) == f"{here}/v.mp4"
    text = beneath("visible=v.mp4|lwir=/abs/ir?homography=h.txt&offset=0.5", here)
    assert text == f"visible={here}/v.mp4|lwir=/abs/ir?offset=0.5&homography={here}/h.txt"
    assert absent(text) == f"{here}/v.mp4"
    (tmp_path / "v.mp4").touch()
    text = beneath("visible=v.mp4|lwir=v.mp4?homography=h.txt", here)
    assert absent(text) == f"{here}/h.txt"
    (tmp_path / "h.txt").touch()
    assert absent(text) is None
    assert streams(text)[1].homography == f"{here}/h.txt"


# ── explained and drawn ──────────────────────────────────────────────────────────────────────────────────


class Bands(nn.Module):
    """Class 1 where the fourth band is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv3d(4, 2, (1, 4, 4), (1, 4, 4), bias=False)
        self.body.weight.data.zero_()
        self.body.weight.data[0, :3] = 1.0
        self.body.weight.data[1, 3] = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean((2, 3, 4))


def test_explained_kept_and_drawn_with_the_sound_of_the_first(tmp_path: Path) -> None:
    visible = write_video(tmp_path / "v.mp4", (coded(n) for n in range(20)), tone=440.0)
    hot = np.zeros((20, *SIZE), np.float32)
    hot[:, 8:16, 40:48] = 30.0
    np.save(tmp_path / "ir.npy", hot)
    text = paired(visible=visible, lwir=f"{tmp_path / 'ir.npy'}?range=0:30&fps=25&offset=0.2")
    bands = ("R", "G", "B", "LWIR")
    model = tl.wrap(Bands().eval(), frames=8, size=SIZE, bands=bands, labels=("cold", "hot"))
    clip = model.read(text)
    why = tl.explain(model, clip, method="gradcam", target="hot")
    where = torch.unravel_index(why.saliency[4].argmax(), SIZE)
    assert 8 <= int(where[0]) < 16
    assert 40 <= int(where[1]) < 48
    assert any("4 of 20 frames of visible are left out" in note for note in why.provenance.notes)
    why.save(tmp_path / "why.safetensors")
    again = tl.load_explanation(tmp_path / "why.safetensors")
    assert again.source.path == text
    again.save(tmp_path / "why.mp4")
    drawn = FileFrames(tmp_path / "why.mp4")
    assert drawn.has_audio
    assert len(drawn.times()) == 16
    np.save(tmp_path / "ir.npy", hot * 0.5)
    with pytest.raises(VideoError, match="has changed since it was explained"):
        again.save(tmp_path / "other.mp4")


def test_real_pairs_are_one_clip(tmp_path: Path, realdata: Path) -> None:
    """Aligned stills: what is an edge in the visible picture is one in the infrared picture, more than a
    little beside it."""
    pairs = realdata / "lwir" / "roadscene_pairs"
    if not pairs.is_dir():
        pytest.skip("no aligned pairs beside the repository")
    name = "FLIR_00006.jpg"
    for kind in ("vis", "ir"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / name).write_bytes((pairs / kind / name).read_bytes())
    with Image.open(pairs / "vis" / name) as image:
        size = image.size[::-1]
    text = paired(visible=tmp_path / "vis", lwir=tmp_path / "ir")
    clip = tl.read_clip(text, frames=1, size=size)
    assert clip.bands == ("R", "G", "B", "LWIR")
    grey = read_image(pairs / "ir" / name) @ (0.299, 0.587, 0.114) / 255
    np.testing.assert_allclose(clip.pixels[3, 0], grey, atol=1e-6)
    colour = read_image(pairs / "vis" / name) / 255
    np.testing.assert_allclose(clip.pixels[:3, 0].permute(1, 2, 0), colour, atol=1e-6)

    def edges(plane: torch.Tensor) -> torch.Tensor:
        found = (plane[1:, 1:] - plane[:-1, 1:]).abs() + (plane[1:, 1:] - plane[1:, :-1]).abs()
        return found - found.mean()

    a, b = edges(clip.pixels[:3, 0].mean(0)), edges(clip.pixels[3, 0])
    beside = [float((a * b.roll((dy, dx), (0, 1))).sum()) for dy, dx in ((0, 25), (25, 0), (-25, 25))]
    assert float((a * b).sum()) > 2 * max(beside)
