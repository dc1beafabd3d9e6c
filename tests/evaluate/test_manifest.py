"""Manifests of every kind: what their clips are, how they are read, and one line for every fault."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.videos import clip_codes, coded, coded_video, real
from tubelens.clip import Clip
from tubelens.errors import InputError, OptionError, TargetError, VideoError
from tubelens.evaluate.manifest import (
    Item,
    check_labels,
    label_index,
    read_item,
    read_manifest,
)
from tubelens.model import InputSpec, TorchModel
from tubelens.planted import generate, labels
from tubelens.truth import Truth


def model_of(spec: InputSpec, names: tuple[str, ...] | None = None, name: str = "model") -> TorchModel:
    return TorchModel(nn.Identity(), pack=lambda x: x, spec=spec, labels=names, name=name)


SMALL = model_of(InputSpec(frames=4, size=(24, 32)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that nobody opens, and one real video of 50 frames at 25 a second."""
    for name in ("a.mp4", "b.mp4", "sub/c, d.avi"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"video")
    coded_video(tmp_path / "coded.mp4", 50)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    def written(*lines: str, encoding: str = "utf-8", name: str = "list.csv") -> Path:
        path = folder / name
        path.write_bytes("\n".join(lines).encode(encoding))
        return path

    return written


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_csv_gives_items(write: Callable[..., Path], folder: Path) -> None:
    path = write(
        "Path,LABEL, start ,end,spectrum,person,id",
        "a.mp4,walk,,,visible,Ann,",
        "",
        './b.mp4,"sit, down",1.5,3,ir,Bob,',
        '"sub/c, d.avi",,0,2.25,,,third',
        "a.mp4,run,2,,,,",
    )
    manifest = read_manifest(path)
    one, two, three, four = manifest
    assert len(manifest) == 4
    assert manifest.labels == {"walk": "line 2", "sit, down": "line 4", "run": "line 6"}
    assert (one.key, one.label, one.start, one.end, one.spectrum) == ("a.mp4", "walk", None, None, "visible")
    assert one.path == str(folder / "a.mp4")
    assert dict(one.extra) == {"person": "Ann"}
    assert (two.key, two.label, two.start, two.end, two.spectrum) == (
        "b.mp4@1.5-3.0",
        "sit, down",
        1.5,
        3.0,
        "ir",
    )
    assert (three.key, three.label, three.start, three.end) == ("third", None, 0.0, 2.25)
    assert three.path == str(folder / "sub" / "c, d.avi")
    assert (four.key, four.start, four.end) == ("a.mp4@2.0-", 2.0, None)
    assert [item.key for item in manifest] == [one.key, two.key, three.key, four.key]
    assert read_manifest(str(path)).skipped == ()
    assert pickle.loads(pickle.dumps(two)).key == two.key  # goes to a worker


@pytest.mark.parametrize("between", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_marks_and_line_ends(
    write: Callable[..., Path], between: str, encoding: str, end: str
) -> None:
    path = write(f"path,label{end}a.mp4,gehört{end}".replace(",", between), encoding=encoding)
    (item,) = read_manifest(path)
    assert (item.key, item.label) == ("a.mp4", "gehört")


def test_keys_do_not_depend_on_where_one_stands(
    write: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("path,label", "a.mp4,x")
    monkeypatch.chdir(folder)
    (item,) = read_manifest("list.csv")
    assert (item.key, item.path) == ("a.mp4", "a.mp4")
    monkeypatch.chdir(folder / "sub")
    (item,) = read_manifest("../list.csv")
    assert (item.key, item.path) == ("a.mp4", "../a.mp4")


FAULTS: dict[str, tuple[tuple[str, ...], str]] = {
    "no path column": (("pth,label", "a.mp4,x"), r"no column 'path' \(did you mean 'pth'\?\)"),
    "no label column": (
        ("path,lable", "a.mp4,x"),
        r"no column 'label' \(did you mean 'lable'\?\).*may be empty",
    ),
    "no header": (("a.mp4,x", "b.mp4,x"), r"no column 'path'.*is: a\.mp4, x"),
    "a column twice": (("path,label,Label", "a.mp4,x,y"), "line 1: the column 'label' comes twice"),
    "empty": (("",), "is empty"),
    "only a header": (("path,label",), "holds no clips, only a header"),
    "no path": (("path,label", "a.mp4,x", ",y"), "line 3: no path"),
    "twice": (
        ("path,label", "a.mp4,x", "b.mp4,x", "./a.mp4,y"),
        r"line 4: the same clip as line 2 \(a\.mp4\): remove one, or give each an id",
    ),
    "an id twice": (("path,label,id", "a.mp4,x,1", "b.mp4,x,1"), r"line 3: the same clip as line 2 \(1\)"),
    "a part twice": (("path,label,end", "a.mp4,x,2", "a.mp4,x,2.0"), "line 3: the same clip as line 2"),
    "start": (
        ("path,label,start", "a.mp4,x,1", "b.mp4,x,one"),
        "line 3: start must be seconds from 0, not 'one'",
    ),
    "end": (("path,label,end", "a.mp4,x,-1"), "line 2: end must be seconds from 0, not '-1'"),
    "infinite": (("path,label,end", "a.mp4,x,inf"), "line 2: end must be seconds"),
    "nan": (("path,label,start", "a.mp4,x,nan"), "line 2: start must be seconds"),
    "backwards": (
        ("path,label,start,end", "a.mp4,x,3,2"),
        "line 2: start must be before end, not 3.0 and 2.0",
    ),
    "nothing between": (("path,label,start,end", "a.mp4,x,,0"), "line 2: start must be before end"),
    "too many cells": (("path,label", "a.mp4,x", "sub/c, d.avi,x"), "line 3: 3 cells, but the header has 2"),
    "too few cells": (("path,label,start", "a.mp4,x"), "line 2: 2 cells, but the header has 3"),
    "a cell without end": (("path,label", f'a.mp4,"{"x" * 200_000}"'), "line 2: cannot be read as CSV"),
    "missing files": (
        ("path,label", "a.mp4,x", *(f"n{i}.mp4,x" for i in range(5))),
        r"5 of 6 files are missing \(line 3: \S+n0\.mp4; line 4: \S+; line 5: \S+n2\.mp4; and 2 more\)",
    ),
    "missing masks": (("path,label,masks", "a.mp4,x,m"), r"1 of 1 files are missing \(line 2: \S+/m\)"),
    "boxes": (("path,label,boxes", 'a.mp4,x,"[[1, 2]]"'), "line 2: boxes: these are no boxes"),
    "boxes elsewhere": (
        ("path,label,boxes", "a.mp4,x,none.json#1"),
        r"line 2: \S+none\.json: cannot be read",
    ),
    "both": (("path,label,boxes,masks", 'a.mp4,x,"[[1,2,3,4]]",sub'), "line 2: boxes and masks: give one"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_csv_is_one_line(write: Callable[..., Path], fault: str) -> None:
    lines, said = FAULTS[fault]
    path = write(*lines)
    with pytest.raises(InputError, match=said) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_bytes_that_are_not_utf8_are_found(folder: Path) -> None:
    path = folder / "list.csv"
    # a first line that is right, and many after it, so that reading ahead does not blur the place
    path.write_bytes(
        b"path,label\n" + b"a.mp4,x\n" * 3 + "b.mp4,gehört\n".encode("latin-1") + b"a.mp4,x\n" * 3
    )
    with pytest.raises(InputError, match=r"list\.csv, line 5: is not UTF-8"):
        read_manifest(path)
    path.write_bytes("path,label\na.mp4,x\n".encode("utf-16"))
    with pytest.raises(InputError, match="line 1: is not UTF-8"):
        read_manifest(path)


def test_missing_files_may_be_left_out(write: Callable[..., Path], folder: Path) -> None:
    path = write("path,label", "a.mp4,x", "gone.mp4,y", "b.mp4,z")
    manifest = read_manifest(path, missing="skip")
    assert len(manifest) == 2
    assert manifest.skipped == (f"line 3: {folder / 'gone.mp4'}",)
    assert set(manifest.labels) == {"x", "z"}
    (folder / "gone.mp4").write_bytes(b"came later")
    assert [item.key for item in manifest] == ["a.mp4", "b.mp4"]  # every reading is the same
    with pytest.raises(InputError, match="1 of 1 files are missing"):
        read_manifest(write("path,label", "never.mp4,x", name="other.csv"), missing="skip")
    with pytest.raises(Exception, match="missing"):
        read_manifest(path, missing="ignore")  # type: ignore[arg-type]


def test_what_is_no_manifest_is_one_line(folder: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        read_manifest(folder / "none.csv")
    with pytest.raises(InputError, match="is a video, not a list"):
        read_manifest(folder / "coded.mp4")
    with pytest.raises(InputError, match="is no manifest"):
        read_manifest({1, 2})


def test_many_lines_stay_light(folder: Path) -> None:
    """Items of one reading are gone with it, and the fields of an item are no dictionary."""
    path = folder / "long.csv"
    with path.open("w") as data:
        data.write("path,label,start\n")
        data.writelines(f"a.mp4,class {i % 7},{i}\n" for i in range(2_000))
    manifest = read_manifest(path)
    assert len(manifest) == 2_000
    assert manifest.labels["class 3"] == "line 5"
    first = next(iter(manifest))
    assert not hasattr(first, "__dict__")
    assert manifest.items() is not manifest.items()
    assert sum(1 for _ in manifest) == 2_000


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_for_every_class(tmp_path: Path) -> None:
    for name in ("walk/v2.mp4", "walk/v10.MP4", "sit down/x.webm", "sit down/notes.txt", "empty/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "walk" / "v3").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "walk" / "v3" / "0.png")
    (tmp_path / "walk" / ".hidden.mp4").write_bytes(b"x")
    manifest = read_manifest(tmp_path)
    assert [(i.key, i.label) for i in manifest] == [
        ("sit down/x.webm", "sit down"),
        ("walk/v2.mp4", "walk"),
        ("walk/v3", "walk"),
        ("walk/v10.MP4", "walk"),
    ]
    assert len(manifest) == 4
    assert [i.path for i in manifest][1] == str(tmp_path / "walk" / "v2.mp4")
    assert set(manifest.labels) == {"sit down", "walk"}


def test_a_folder_without_videos_is_one_line(tmp_path: Path) -> None:
    for make in (lambda: None, lambda: (tmp_path / "walk").mkdir(), lambda: (tmp_path / "v.mp4").touch()):
        make()
        with pytest.raises(InputError, match="no folder in it holds videos"):
            read_manifest(tmp_path)


# ── generators ───────────────────────────────────────────────────────────────────────────────────────────

FRAMES = np.stack([coded(i, (24, 32)) for i in range(4)])


def clips() -> Iterator[Any]:
    yield FRAMES, "walk"
    yield torch.from_numpy(FRAMES).float() / 255, 3
    yield Item("mine", array=FRAMES, label=None, spectrum="ir")
    yield "somewhere.mp4", "run"


def test_a_function_yields_items_and_pairs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def clips():\n"
        "    for i in range(3):\n"
        "        yield np.full((4, 24, 32, 3), 10 * i, np.uint8), f'class {i}'\n"
    )
    manifest = read_manifest(f"{tmp_path}/mine.py:clips")
    assert manifest.count is None
    with pytest.raises(TypeError):
        len(manifest)
    for _ in range(2):
        items = list(manifest)
        assert [i.key for i in items] == ["000000", "000001", "000002"]
        assert [i.label for i in items] == ["class 0", "class 1", "class 2"]
        clip, truth = read_item(items[2], SMALL)
        assert float(clip.pixels.mean()) == pytest.approx(20 / 255)
        assert truth is None
    for source in (clips, list(clips())):
        manifest = read_manifest(source)
        assert [i.key for i in manifest] == ["000000", "000001", "mine", "somewhere.mp4"]
        assert [i.label for i in manifest] == ["walk", "3", None, "run"]
    assert len(manifest) == 4
    assert manifest.labels == {"walk": "item 0", "3": "item 1", "run": "item 3"}
    assert read_manifest(manifest) is manifest
    assert torch.equal(*(read_item(i, SMALL)[0].pixels for i in list(manifest)[:2]))


def test_faults_of_generators_are_one_line(tmp_path: Path) -> None:
    def fails() -> Iterator[Any]:
        yield FRAMES, "walk"
        raise ValueError("disk\non fire")

    def said(make: Any) -> str:
        with pytest.raises(InputError) as caught:
            list(read_manifest(make))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert said(fails) == "fails, after item 0: ValueError: disk on fire"
    assert "item 1: the key '000000' comes twice" in said([(FRAMES, "a"), Item("000000", array=FRAMES)])
    assert "item 0: must be an Item, or a pair" in said([FRAMES])
    assert "item 0: a video is a path or frames" in said([(5, "a")])
    assert "yields no clips" in said(lambda: ())
    assert "yields no clips" in said([])
    assert "before its first item: TypeError: 'NoneType'" in said(lambda: None)
    assert "read only once" in said(iter([]))
    assert "no such file" in said(f"{tmp_path}/none.py:clips")
    assert "cannot be imported" in said("no_such_module:clips")


# ── planted ──────────────────────────────────────────────────────────────────────────────────────────────


def test_planted_clips_with_their_truth() -> None:
    manifest = read_manifest("planted:infrared?n=3&seed=5")
    assert len(manifest) == 3
    assert set(manifest.labels) == set(labels("infrared"))
    spec = InputSpec(frames=16, size=(32, 32), bands=("IR", "R", "G", "B"))
    for item, again, seed in zip(manifest, manifest, range(5, 8), strict=True):
        clip = generate(seed, "infrared")
        assert item.key == again.key == f"planted:infrared#{seed}"
        assert item.label == clip.name
        assert item.array is None  # made when it is read
        read, truth = read_item(pickle.loads(pickle.dumps(item)), model_of(spec))
        assert read.bands == spec.bands
        assert torch.equal(read.pixels, clip.pixels[[3, 0, 1, 2]])
        assert truth is not None
        assert torch.equal(truth.mask, clip.truth)
        assert truth.distractor is not None
        assert torch.equal(truth.distractor, clip.distractor)
        assert truth.bands == ("IR",)
    (item,) = read_manifest("planted:key?n=1&size=32&frames=8")
    assert item.key == "planted:key,frames=8,size=32#0"
    with pytest.raises(InputError, match="has bands R, G, B, but the model takes IR, R, G, B"):
        read_item(item, model_of(spec))


def test_truth_of_the_pair_is_the_models_own() -> None:
    (item,) = read_manifest("planted:shortcut?n=1")
    spec = InputSpec(frames=16, size=(32, 32))
    clip = generate(0, "shortcut")
    for name in ("planted_honest", "planted_shortcut"):
        _, truth = read_item(item, model_of(spec, name=name))
        assert truth is not None
        assert torch.equal(truth.mask, clip.evidence_for(name).truth)
    assert clip.shortcut is not None
    assert torch.equal(truth.mask, clip.shortcut)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("planted:kee", r"unknown task 'kee' \(did you mean 'key'\?\)"),
        ("planted:key?m=3", "no option 'm'"),
        ("planted:key?n=0", "at least 1"),
        ("planted:key?n=x", "n must be a whole number, not 'x'"),
        ("planted:key?seed=-1", "seed must be a whole number"),
        ("planted:key?size=4", "size >= 16"),
    ],
)
def test_planted_options_that_mean_nothing(written: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        read_manifest(written)


# ── reading an item ──────────────────────────────────────────────────────────────────────────────────────


def test_a_part_of_a_video_is_sampled_as_if_it_were_the_whole(write: Callable[..., Path]) -> None:
    path = write(
        "path,label,start,end", "coded.mp4,x,,", "coded.mp4,x,0.4,1.2", "coded.mp4,x,1,", "coded.mp4,x,,1"
    )
    whole, part, late, early = (read_item(item, SMALL)[0] for item in read_manifest(path))
    assert clip_codes(whole.pixels) == [0, 16, 32, 49]
    assert clip_codes(part.pixels) == [10, 16, 22, 29]
    assert clip_codes(late.pixels) == [25, 33, 41, 49]
    assert clip_codes(early.pixels) == [0, 8, 16, 24]
    dense = read_item(list(read_manifest(path))[1], SMALL, "dense", stride=2)[0]
    assert clip_codes(dense.pixels) == [10, 12, 14, 16]


def test_boxes_and_masks_of_a_csv(write: Callable[..., Path], folder: Path) -> None:
    (folder / "m").mkdir()
    for n in range(50):
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[8:24, 2 * (n // 2) : 2 * (n // 2) + 16] = 255 * (n >= 10)
        Image.fromarray(mask).save(folder / "m" / f"{n}.png")
    rows = {str(n): [[2 * (n // 2), 8, 16, 16]] for n in range(10, 50)}
    (folder / "boxes.json").write_text(json.dumps({"clip": {"size": [48, 64], **rows}}))
    inline = json.dumps(rows).replace('"', '""')
    path = write(
        "path,label,boxes,masks,id",
        "coded.mp4,x,boxes.json#clip,,1",
        f'coded.mp4,x,"{inline}",,2',
        "coded.mp4,x,,m,3",
        "coded.mp4,x,,,4",
    )
    first, second, third, fourth = (read_item(item, SMALL) for item in read_manifest(path))
    assert fourth[1] is None
    assert first[1] is not None
    assert second[1] is not None
    assert third[1] is not None
    assert (first[1].kind, third[1].kind) == ("boxes", "masks")
    expected = torch.zeros(4, 24, 32, dtype=torch.bool)
    for t, n in ((1, 16), (2, 32), (3, 49)):
        expected[t, 4:12, n // 2 : n // 2 + 8] = True
    for truth in (first[1], second[1], third[1]):
        assert torch.equal(truth.mask, expected)
    (folder / "m" / "49.png").unlink()
    item = list(read_manifest(path))[2]
    with pytest.raises(InputError, match=r"^3: \S+/m: 49 masks for a video of 50 frames"):
        read_item(item, SMALL)


def test_truth_of_an_array_follows_the_models_crop() -> None:
    mask = torch.zeros(8, 48, 64, dtype=torch.bool)
    mask[4:, 16:32, 20:40] = True
    frames = np.zeros((8, 48, 64, 3), dtype=np.uint8)
    item = Item("a", array=frames, truth=Truth(mask), fps=10.0)
    clip, truth = read_item(item, SMALL)
    assert truth is not None
    assert clip.source.fps == 10.0
    assert torch.equal(truth.mask, mask[[0, 2, 4, 7]][:, ::2, ::2])
    with pytest.raises(InputError, match="a: the truth is of 7 frames, the video has 8"):
        read_item(Item("a", array=frames, truth=Truth(mask[1:])), SMALL)
    with pytest.raises(InputError, match="neither a path nor an array"):
        read_item(Item("a"), SMALL)
    with pytest.raises(VideoError):
        read_item(Item("a", "/nowhere.mp4"), SMALL)


def test_real_clips_with_boxes(tmp_path: Path) -> None:
    videos, gt = real("clips", "ucf101_24"), real("gt", "ucf101_24_boxes.json")
    names = sorted(json.loads(gt.read_text()))
    lines = [f"{videos}/{n}.mp4,{n.split('_')[1]},{gt}#{n}" for n in names]
    path = tmp_path / "ucf.csv"
    path.write_text("\n".join(["path,label,boxes", *lines]))
    manifest = read_manifest(path)
    assert len(manifest) == 9
    assert all(item.boxes is not None and item.boxes.size == (240, 320) for item in manifest)
    clip, truth = read_item(next(iter(manifest)), SMALL)
    assert isinstance(clip, Clip)
    assert truth is not None
    assert truth.mask.shape == (4, 24, 32)


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────

NAMES = ("walking", "sitting down", "run")


def test_labels_are_checked_against_the_models(write: Callable[..., Path]) -> None:
    path = write("path,label", "a.mp4,Walking", "b.mp4,sitting_down", "coded.mp4,2", "sub,")
    manifest = read_manifest(path)
    assert check_labels(manifest, NAMES) == {"Walking": 0, "sitting_down": 1, "2": 2}
    assert [label_index(i, model_of(InputSpec(), NAMES)) for i in manifest] == [0, 1, 2, None]
    bad = read_manifest(write("path,label", "a.mp4,walkin", "b.mp4,run", "coded.mp4,7", name="bad.csv"))
    with pytest.raises(TargetError, match=r"2 of 3 labels are none of the model's") as caught:
        check_labels(bad, NAMES)
    assert "line 2: unknown label 'walkin' (did you mean 'walking'?)" in str(caught.value)
    assert "line 4: class 7 is out of range" in str(caught.value)
    with pytest.raises(TargetError, match=r"^a\.mp4: unknown label 'walkin'"):
        label_index(next(iter(bad)), model_of(InputSpec(), NAMES))
    many = read_manifest([(FRAMES, f"label {i}") for i in range(9)])
    with pytest.raises(TargetError, match="and 6 more"):
        check_labels(many, NAMES)


def test_a_model_without_labels_needs_numbers() -> None:
    numbers = read_manifest([(FRAMES, 4), (FRAMES, 401)])
    assert check_labels(numbers, None) == {"4": 4, "401": 401}
    bare = model_of(InputSpec())
    assert [label_index(i, bare) for i in numbers] == [4, 401]
    with pytest.raises(TargetError, match="out of range"):
        label_index(list(numbers)[1], bare, classes=400)
    with pytest.raises(TargetError, match="this model has no labels"):
        check_labels(read_manifest([(FRAMES, "walk")]), None)
