"""Truth from boxes and masks: a known square through the real decoder, cropped, resized, turned, in part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.videos import real, write_video
from tubelens.clip import Box, Clip, Source
from tubelens.errors import InputError
from tubelens.planted import generate
from tubelens.truth import Truth
from tubelens.truth_sources import (
    Boxes,
    boxes_truth,
    mask_files,
    masks_truth,
    parse_boxes,
    planted_truth,
    read_boxes,
)
from tubelens.video import open_video, read_clip

H, W, SIDE, COUNT = 144, 192, 48, 40


def corner(n: int) -> tuple[int, int]:
    """Left and top of the square on frame `n`."""
    return 10 + 3 * n, 20 + (n * 7) % 60


def drawn(n: int, h: int = H, w: int = W) -> np.ndarray:
    frame = np.full((h, w, 3), 40, dtype=np.uint8)
    x, y = corner(n)
    frame[y : y + SIDE, x : x + SIDE] = 220
    return frame


def square_boxes(numbers: Any = range(COUNT), scale: float = 1.0) -> Boxes:
    """Annotated at another size where `scale` is not 1."""
    rows: dict[float | None, Any] = {
        n: (tuple(scale * v for v in (*corner(n), SIDE, SIDE)),) for n in numbers
    }
    return Boxes(rows, None if scale == 1 else (round(H * scale), round(W * scale)))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "square.mp4"
    return write_video(path, (drawn(n) for n in range(COUNT)), fps=20)


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def seen(clip: Clip) -> torch.Tensor:
    """The square as the clip shows it: brighter than half way between the two greys."""
    return clip.pixels.mean(dim=0) > 130 / 255


# ── boxes ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options",
    [
        {"size": (H, W)},
        {"size": (72, 96)},
        {"size": 64},  # the middle: the square leaves the crop
        {"size": 48, "resize": 64},
        {"size": (60, 40), "resize": (80, 120)},  # not in proportion
        {"size": 64, "stride": 2, "start": 0.5},
        {"size": 64, "sampling": "segments"},
        {"size": 64, "sampling": "random", "seed": 3},
        {"size": 64, "span": (0.4, 1.3)},
        {"size": 64, "frames": 12, "stride": 3, "start": 1.0},  # padded with the last frame
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_boxes_lie_where_the_square_is_seen(video: Path, options: dict[str, Any], scale: float) -> None:
    clip = read_clip(video, **{"frames": 8, **options})
    shown = seen(clip)
    for times in (None, open_video(video).times()):
        truth = boxes_truth(clip.source, clip.size, square_boxes(scale=scale), times)
        assert truth.kind == "boxes"
        assert iou(truth.mask, shown) >= 0.9
        for frame, expected in zip(truth.mask, shown, strict=True):
            assert bool(frame.any()) == bool(expected.any())


def test_boxes_of_a_turned_video_are_of_what_is_displayed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "turned.mp4", (drawn(n) for n in range(8)), fps=20, rotation=90)
    clip = read_clip(path, frames=8, size=(96, 72))
    assert clip.source.size == (W, H)
    at: dict[float | None, Any] = {}
    for n in range(8):
        x, y = corner(n)
        at[n] = ((y, W - x - SIDE, SIDE, SIDE),)  # a quarter turn counter-clockwise
    assert iou(boxes_truth(clip.source, clip.size, Boxes(at)).mask, seen(clip)) >= 0.9


def source(times: tuple[float, ...], fps: float = 10.0, **others: Any) -> Source:
    whole = {"span": (times[0], times[-1]), "box": Box(0, 0, 8, 8), "resized": (8, 8)}
    return Source("a.mp4", (8, 8), fps, times, **(whole | others))


def test_a_voxel_is_true_where_its_centre_lies_in_a_box() -> None:
    """Against a loop over voxels, with a fractional crop and boxes that overlap and stick out."""
    where = source((0.0, 0.1), box=Box(1.3, 0.7, 5.1, 6.6))
    rows = {0: ((0.2, 1.9, 3.0, 2.25), (2.0, 3.0, 9.0, 1.0)), 1: ((-4.0, -4.0, 5.2, 5.4),)}
    truth = boxes_truth(where, (2, 7, 5), Boxes(dict(rows), size=(8, 8)))
    for t, i, j in np.ndindex(2, 7, 5):
        y, x = 1.3 + (i + 0.5) * 5.1 / 7, 0.7 + (j + 0.5) * 6.6 / 5
        expected = any(a <= x < a + w and b <= y < b + h for a, b, w, h in rows[t])
        assert bool(truth.mask[t, i, j]) == expected, (t, i, j)
    assert 0 < truth.volume < 1


def test_frames_that_nobody_annotated_are_empty() -> None:
    box = ((0.0, 0.0, 8.0, 8.0),)
    where = source(tuple(n / 10 for n in range(12)))

    def full(boxes: Boxes) -> list[int]:
        truth = boxes_truth(where, (12, 2, 2), boxes)
        return truth.mask.flatten(1).all(dim=1).nonzero().flatten().tolist()

    assert full(Boxes({3: box, 4: box, 8: box})) == [3, 4, 8]
    assert full(Boxes({2: box, 6: box, 10: ()}, step=4)) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert full(Boxes({None: box, 5: ()})) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert full(Boxes({0.5: box}, step=0.21, seconds=True)) == [4, 5, 6]
    assert full(Boxes({})) == []


def test_padding_shows_the_last_frame_or_nothing() -> None:
    box = ((0.0, 0.0, 8.0, 8.0),)
    times = (0.8, 0.9, 1.0, 1.1)  # two frames, and two that were added
    for pad, expected in (("clamp", [False, True, True, True]), ("zero", [False, True, False, False])):
        where = source(times, span=(0.8, 0.9), sampling=f"Dense(frames=4, start=0.8, stride=1, pad={pad!r})")
        found = boxes_truth(where, (4, 2, 2), Boxes({9: box})).mask
        assert found.flatten(1).any(dim=1).tolist() == expected


def test_frames_are_counted_by_their_times_where_the_rate_varies(tmp_path: Path) -> None:
    seconds = [0.0, 0.05, 0.1, 0.15, 1.0, 1.05, 1.1, 3.0]
    path = write_video(tmp_path / "vfr.mp4", (drawn(n) for n in range(8)), seconds=seconds)
    clip = read_clip(path, frames=8, size=(72, 96))
    times = open_video(path).times()
    assert iou(boxes_truth(clip.source, clip.size, square_boxes(), times).mask, seen(clip)) >= 0.9
    by_second = Boxes({s: square_boxes().at[n] for n, s in enumerate(seconds)}, step=0.04, seconds=True)
    assert iou(boxes_truth(clip.source, clip.size, by_second).mask, seen(clip)) >= 0.9


# ── as they are written ──────────────────────────────────────────────────────────────────────────────────


def test_boxes_are_read_from_text_files_and_entries_of_files(tmp_path: Path) -> None:
    ours = {"size": [240, 320], "3": [[1, 2, 3, 4]], "4": [[1, 2, 3, 4], [5, 6, 7, 8]], "step": 2}
    for written in (json.dumps(ours), tmp_path / "a.json", f"{tmp_path}/all.json#x"):
        (tmp_path / "a.json").write_text(json.dumps(ours))
        (tmp_path / "all.json").write_text(json.dumps({"x": ours}))
        boxes = read_boxes(written)
        assert boxes.size == (240, 320)
        assert boxes.step == 2
        assert boxes.near(4) == ((1, 2, 3, 4), (5, 6, 7, 8))
        assert boxes.near(2) == ((1, 2, 3, 4),)
        assert boxes.near(6) == ()
    assert read_boxes("[[1, 2, 3, 4]]").near(77) == ((1, 2, 3, 4),)
    assert read_boxes('{"0.5": [[1, 2, 3, 4]], "unit": "seconds", "step": 0.1}').seconds
    (tmp_path / "a.json").write_text("[[9, 9, 9, 9]]")  # changed under the same name
    assert read_boxes(tmp_path / "a.json").near(0) == ((9, 9, 9, 9),)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{", "not JSON"),
        ("[[1, 2, 3]]", "these are no boxes"),
        ("[[1, 2, 0, 4]]", "no box"),
        ("[[1, NaN, 3, 4]]", "no box"),
        ('{"first": [[1, 2, 3, 4]]}', "these are no boxes"),
        ('{"0": [[1, 2, 3, 4]], "size": [240]}', "these are no boxes"),
        ('{"0": [[1, 2, 3, 4]], "size": [0, 5]}', r"\[height, width\]"),
        ('{"0": [[1, 2, 3, 4]], "unit": "hours"}', "frames or seconds"),
        ('{"0": [[1, 2, 3, 4]], "step": 0}', "step positive"),
        ('{"tubes": [{"sf": 0, "ef": 2, "boxes_xywh": [[1, 2, 3, 4]]}]}', "1 boxes for the frames 0 to 1"),
        ('{"tubes": [{"sf": 0, "boxes_xywh": [[1, 2, 3, 4]]}]}', "these are no boxes"),
        ("nowhere.json", "nowhere.json: cannot be read"),
        ("no#where.json", "no: cannot be read"),
        ('{"0": [[1, 2, 3, 4]], "size": [1e999, 3]}', "these are no boxes"),
        ('{"tubes": [{"sf": 1e999, "ef": 5, "boxes_xywh": []}]}', "these are no boxes"),
        ('{"0": [[1, 2, 3, 4]], "NaN": [[5, 5, 3, 3]], "2": []}', "must be finite"),
        ('{"inf": [[5, 5, 3, 3]]}', "must be finite"),
    ],
)
def test_bad_boxes_are_one_line(written: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_boxes(written)
    assert "\n" not in str(caught.value)


def test_an_entry_that_is_not_there_has_near_names(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text('{"v_Biking_g01": [[1, 2, 3, 4]]}')
    with pytest.raises(InputError, match="did you mean 'v_Biking_g01'"):
        read_boxes(f"{path}#v_Biking_g02")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not JSON"):
        read_boxes(path)


def test_names_of_files_and_entries_may_hold_a_hash(tmp_path: Path) -> None:
    for name, first in (("a#1.json", 1), ("a", 2), ("a#1", 3)):
        (tmp_path / name).write_text(json.dumps({"0": [[first, 0, 4, 4]], "x": [[first, 5, 4, 4]]}))
    (tmp_path / "keys.json").write_text('{"v#2": [[7, 7, 7, 7]]}')
    for written, expected in (
        ("a#1.json#x", (1, 5, 4, 4)),
        ("a#x", (2, 5, 4, 4)),
        ("a#1#x", (3, 5, 4, 4)),
        ("keys.json#v#2", (7, 7, 7, 7)),
    ):
        assert read_boxes(f"{tmp_path}/{written}").near(0) == (expected,)
    (tmp_path / "b#1.json").write_text('{"0": [[6, 0, 4, 4]]}')
    assert read_boxes(tmp_path / "b#1.json").near(0) == ((6, 0, 4, 4),)


# ── masks ────────────────────────────────────────────────────────────────────────────────────────────────


def square_masks(scale: int = 1) -> np.ndarray:
    return np.stack([drawn(n)[::scale, ::scale, 0] > 100 for n in range(COUNT)])


@pytest.mark.parametrize(
    "options", [{"size": (72, 96)}, {"size": 48, "resize": 64}, {"size": 64, "stride": 2}]
)
def test_masks_lie_where_the_square_is_seen(video: Path, options: dict[str, Any], tmp_path: Path) -> None:
    clip = read_clip(video, frames=8, **options)
    times = open_video(video).times()
    for masks in (square_masks(), torch.from_numpy(square_masks()), square_masks(2).astype(np.uint8) * 255):
        truth = masks_truth(clip.source, clip.size, masks, times)
        assert truth.kind == "masks"
        assert iou(truth.mask, seen(clip)) >= 0.9
    boxes = boxes_truth(clip.source, clip.size, square_boxes(), times)
    exact = masks_truth(clip.source, clip.size, square_masks()).mask
    # a mask's pixel counts whole, a box by the voxel's centre: the same for whole pixels
    assert torch.equal(exact, boxes.mask)
    for n, mask in enumerate(square_masks()):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{n}.png")  # 10 comes after 9
    assert torch.equal(masks_truth(clip.source, clip.size, str(tmp_path), times).mask, exact)


def test_masks_of_all_kinds_of_images(tmp_path: Path) -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:5, 3:7] = 1
    palette = Image.fromarray(mask, mode="L").convert("P")
    palette.putdata(mask.flatten().tolist())
    palette.putpalette([255] * 768)  # what is not zero counts, whatever it looks like
    clear = np.zeros((8, 8, 4), dtype=np.uint8)
    clear[..., 3] = 255  # opaque black is no evidence
    clear[mask > 0, 1] = 7
    images = [
        Image.fromarray(mask * 255),
        palette,
        Image.fromarray(clear),
        Image.fromarray(mask.astype(np.uint16)),
    ]
    for n, image in enumerate(images):
        folder = tmp_path / str(n)
        folder.mkdir()
        image.save(folder / "0.png")
        truth = masks_truth(source((0.0,)), (1, 8, 8), folder)
        assert torch.equal(truth.mask[0], torch.from_numpy(mask > 0)), n


def test_the_noise_around_a_jpeg_is_no_evidence(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[21:42, 19:45] = 255
    wide = Source("a.mp4", (64, 64), 10.0, (0.0,), (0.0, 0.0), Box(0, 0, 64, 64), (64, 64))
    grey = Image.fromarray(mask)
    images = [grey, Image.merge("RGB", [grey, Image.new("L", grey.size), Image.new("L", grey.size)])]
    for n, image in enumerate([*images, images[1].convert("CMYK")]):
        folder = tmp_path / str(n)
        folder.mkdir()
        image.save(folder / "0.jpg", quality=75)
        with Image.open(folder / "0.jpg") as stored:
            assert (np.asarray(stored.convert("L")) > 0).sum() > (mask > 0).sum()  # the noise is there
        found = masks_truth(wide, (1, 64, 64), folder)
        assert (found.mask[0].numpy() != (mask > 0)).mean() <= (0 if n == 0 else 0.02)
    (tmp_path / "tiff").mkdir()
    grey.save(tmp_path / "tiff" / "0.tif", compression="jpeg")
    found = masks_truth(wide, (1, 64, 64), tmp_path / "tiff")
    assert torch.equal(found.mask[0], torch.from_numpy(mask > 0))


def test_bad_masks_are_one_line(tmp_path: Path) -> None:
    where = source((0.0, 0.1, 0.2))
    with pytest.raises(InputError, match=r"frames, height, width"):
        masks_truth(where, (3, 4, 4), np.zeros((3, 4), dtype=bool))
    with pytest.raises(InputError, match="2 masks for a video of 3 frames"):
        masks_truth(where, (3, 4, 4), np.zeros((2, 4, 4), dtype=bool), [0.0, 0.1, 0.2])
    with pytest.raises(InputError, match="shows frame 2, but there are 2 masks"):
        masks_truth(where, (3, 4, 4), np.zeros((2, 4, 4), dtype=bool))
    with pytest.raises(InputError, match="holds no masks"):
        mask_files(tmp_path)
    with pytest.raises(InputError, match="cannot be listed"):
        mask_files(tmp_path / "none")
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png: this mask cannot be decoded"):
        masks_truth(source((0.0,)), (1, 4, 4), str(tmp_path))


# ── planted, and real ────────────────────────────────────────────────────────────────────────────────────


def test_planted_truth_stays_as_it_is_and_follows_a_crop() -> None:
    clip = generate(3, "order")
    frames = clip.pixels.permute(1, 2, 3, 0).numpy()
    known = clip.known()
    t, h, w = known.mask.shape
    whole = read_clip(frames, frames=t, size=(h, w), bands=clip.bands)
    same = planted_truth(whole.source, whole.size, known)
    assert torch.equal(same.mask, known.mask)
    assert same.distractor is not None
    assert known.distractor is not None
    assert torch.equal(same.distractor, known.distractor)
    assert len(same.events) == len(known.events) > 0
    assert all(torch.equal(a, b) for a, b in zip(same.events, known.events, strict=True))
    assert (same.bands, same.kind) == (known.bands, "planted")
    part = read_clip(frames, frames=t // 2, size=(h - 8, w - 4), resize=(h, w), stride=2, bands=clip.bands)
    cut = planted_truth(part.source, part.size, known)
    assert torch.equal(cut.mask, known.mask[::2, 4 : h - 4, 2 : w - 2])
    bare = planted_truth(part.source, part.size, Truth(known.mask))
    assert bare.distractor is None
    assert bare.events == ()


@pytest.mark.parametrize("name", ["v_SalsaSpin_g03_c01", "v_Basketball_g01_c02"])
def test_tubes_of_a_real_clip(name: str) -> None:
    """Against a loop over the file as it lies there: several people, and frames before and after them."""
    path, gt = real("clips", "ucf101_24", f"{name}.mp4"), real("gt", "ucf101_24_boxes.json")
    entry = json.loads(gt.read_text())[name]
    clip = read_clip(path, frames=10, size=(48, 48))
    times = open_video(path).times()
    assert len(times) == entry["numf"]
    truth = boxes_truth(clip.source, clip.size, read_boxes(f"{gt}#{name}"), times)
    expected = np.zeros(clip.size, dtype=bool)
    box = clip.source.box
    for t, number in enumerate(np.linspace(0, entry["numf"] - 1, 10).astype(int)):
        for tube in entry["tubes"]:
            if tube["sf"] <= number < tube["ef"]:
                x, y, w, h = tube["boxes_xywh"][number - tube["sf"]]
                for i, j in np.ndindex(48, 48):
                    py = (box.top + (i + 0.5) * box.height / 48) * 240 / 256
                    px = (box.left + (j + 0.5) * box.width / 48) * 320 / 340
                    expected[t, i, j] |= x <= px < x + w and y <= py < y + h
    assert torch.equal(truth.mask, torch.from_numpy(expected))
    empty = ~truth.mask.flatten(1).any(dim=1)
    assert empty.any() == (name == "v_Basketball_g01_c02")
    assert 0.01 < truth.volume < 0.6


def test_masks_of_real_frames() -> None:
    frames, masks = real("gt", "davis_tennis", "frames"), real("gt", "davis_tennis", "masks")
    clip = read_clip(frames, frames=6, size=60, resize=80)
    truth = masks_truth(clip.source, clip.size, str(masks), open_video(frames).times())
    top, left = 10, (int(80 * 432 / 240) - 60) // 2
    areas = []
    for number in np.linspace(0, 69, 6).astype(int):
        with Image.open(mask_files(masks)[number]) as image:
            small = np.asarray(image.resize((144, 80), Image.Resampling.BOX))
        areas.append(small[top : top + 60, left : left + 60] > 127)
    assert iou(truth.mask, torch.from_numpy(np.stack(areas))) >= 0.9


def test_parse_boxes_names_what_it_was_given() -> None:
    with pytest.raises(InputError, match="the tennis player: these are no boxes"):
        parse_boxes(5, "the tennis player")
