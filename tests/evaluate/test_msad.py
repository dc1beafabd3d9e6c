"""Data sets of several spectra: manifests of paired streams, the Multispectral Action Dataset's layout."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.commands import done, tubelens
from tests.videos import coded, read_code
from tubelens.errors import InputError, OptionError
from tubelens.evaluate.identity import content
from tubelens.evaluate.items import Item, read_item
from tubelens.evaluate.manifest import read_manifest
from tubelens.evaluate.planted_models import planted_model
from tubelens.evaluate.report.videos import frames_of
from tubelens.planted import generate
from tubelens.store import RunStore


def frames(path: Path, numbers: range, size: tuple[int, int] = (24, 32), suffix: str = "png") -> None:
    path.mkdir(parents=True)
    for place, number in enumerate(numbers):
        Image.fromarray(coded(number, size)[..., 0]).save(path / f"{place:04d}.{suffix}")


def table(path: Path, *rows: tuple[str, ...]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


# ── manifests of paired streams ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two scenes of a visible and an infrared folder, and a homography."""
    for scene in ("one", "two"):
        frames(tmp_path / "data" / scene / "v", range(8))
        frames(tmp_path / "data" / scene / "ir", range(100, 108))
    (tmp_path / "data" / "h.txt").write_text("1 0 0\n0 1 0\n0 0 1")
    return tmp_path


def test_cells_may_be_texts_of_streams(scenes: Path) -> None:
    cell = "visible=data/one/../one/v|ir=data/one/ir?offset=0.04&homography=data/h.txt"
    plain = str(scenes / "data" / "two" / "v")
    manifest = read_manifest(table(scenes / "a.csv", ("path", "label"), (cell, "3"), (plain, "4")))
    first, second = manifest
    assert first.key == "visible=data/one/v|ir=data/one/ir?offset=0.04&homography=data/h.txt"
    here = scenes / "data"
    assert first.path == f"visible={here}/one/v|ir={here}/one/ir?offset=0.04&homography={here}/h.txt"
    assert (second.key, second.path) == (plain, plain)


def test_columns_may_hold_a_spectrum_each(scenes: Path) -> None:
    header = ("path:visible", "label", "path:ir", "place")
    rows = [("data/one/v", "3", "data/one/ir?offset=0.04", "yard"), ("", "4", "data/two/ir", "hall")]
    first, second = read_manifest(table(scenes / "a.csv", header, *rows))
    assert first.key == "visible=data/one/v|ir=data/one/ir?offset=0.04"
    assert first.path == f"visible={scenes}/data/one/v|ir={scenes}/data/one/ir?offset=0.04"
    assert (second.key, second.extra) == ("ir=data/two/ir", {"place": "hall"})


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (("path", "path:ir", "label"), ("a", "b", "1"), "line 1: columns path and path:ir: give one way"),
        (("path:", "label"), ("a", "1"), "line 1: 'path:' names no spectrum"),
        (("path:2", "label"), ("a", "1"), "line 1: 'path:2' names no spectrum"),
        (("path:ir",), ("a",), "has no column 'label'"),
        (("path:ir", "path:tv", "label"), ("", "", "1"), "line 2: no path"),
        (("path", "label"), ("visible=data/one/v|data/one/ir", "1"), "line 2: .* need names of their own"),
        (("path", "label"), ("visible=data/one/v?spam=1", "1"), "line 2: .*unknown option 'spam'"),
        (("path", "label"), ("visible=data/one/v|ir=gone", "1"), r"files are missing \(line 2: .*gone\)"),
        (
            ("path", "label"),
            ("visible=data/one/v|ir=data/one/ir?homography=no.txt", "1"),
            r"missing \(line 2: .*no\.txt\)",
        ),
    ],
)
def test_bad_manifests_of_streams_are_one_line(
    scenes: Path, header: tuple[str, ...], row: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        read_manifest(table(scenes / "a.csv", header, row))


def test_a_scene_that_lacks_a_file_may_be_left_out(scenes: Path) -> None:
    header = ("path:visible", "path:ir", "label")
    rows = [("data/one/v", "data/one/gone", "1"), ("data/two/v", "data/two/ir", "1")]
    manifest = read_manifest(table(scenes / "a.csv", header, *rows), missing="skip")
    assert [item.key for item in manifest] == ["visible=data/two/v|ir=data/two/ir"]
    assert manifest.skipped == (f"line 2: {scenes}/data/one/gone",)


def test_the_identity_of_a_clip_is_of_all_its_streams(scenes: Path) -> None:
    v, ir, h = (scenes / "data" / name for name in ("one/v", "one/ir", "h.txt"))

    def of(text: str) -> str:
        found = content(Item("k", text))
        assert found is not None
        return found

    alone = of(str(v))
    text = f"visible={v}|ir={ir}?homography={h}"
    known = {alone, of(text), of(f"visible={v}|ir={ir}"), of(f"visible={v}|ir={v}"), of(f"tv={v}|ir={ir}")}
    assert len(known) == 5
    h.write_text("1 0 5\n0 1 0\n0 0 1")
    assert of(text) not in known
    before = of(f"visible={v}|ir={ir}")
    assert before in known
    Image.fromarray(coded(999, (24, 32))[..., 0]).save(ir / "0007.png")
    assert of(f"visible={v}|ir={ir}") not in known
    assert of(str(v)) == alone
    assert content(Item("k", f"visible={v}|ir=gone")) is None


def test_frames_of_a_clip_are_found_again(scenes: Path) -> None:
    text = f"visible={scenes}/data/one/v|ir={scenes}/data/one/ir"
    model = planted_model("infrared")
    clip, _ = read_item(Item("k", text), model)
    with frames_of("k", clip.source) as video:
        assert video.path == text
    os.rename(scenes / "data", scenes / "moved")
    written = "visible=data/one/v|ir=data/one/ir"
    (scenes / "new").mkdir()
    os.rename(scenes / "moved", scenes / "new" / "data")
    with frames_of(written, clip.source, data=scenes / "new") as video:
        assert video.path == f"visible={scenes}/new/data/one/v|ir={scenes}/new/data/one/ir"


def test_a_paired_data_set_of_planted_clips_is_evaluated(tmp_path: Path) -> None:
    """Visible light as PNG frames and infrared as 16-bit PNG or as npy give what the array itself gives."""
    model = planted_model("xor")
    rows, clips = [], []
    for seed in range(3):
        clip = generate(seed, "xor")
        assert clip.bands == ("R", "G", "B", "IR")
        values = clip.pixels.permute(1, 2, 3, 0).numpy()
        visible, ir = tmp_path / f"v{seed}", tmp_path / f"ir{seed}"
        visible.mkdir()
        for n, frame in enumerate(values):
            Image.fromarray(np.round(frame[..., :3] * 255).astype(np.uint8)).save(visible / f"{n:02d}.png")
        if seed:
            ir.mkdir()
            for n, frame in enumerate(values):
                plane = np.round(frame[..., 3] * 16383).astype(np.uint16)
                Image.fromarray(plane).save(ir / f"{n:02d}.png")
            cell = f"{ir.name}?bits=14"
        else:
            np.save(tmp_path / "ir0.npy", values[..., 3] * 40 - 10)
            cell = "ir0.npy?range=-10:30"
        rows.append((visible.name, cell, clip.name))
        clips.append(clip)
    manifest = table(tmp_path / "clips.csv", ("path:rgb", "path:ir", "label"), *rows)
    for item, clip in zip(read_manifest(manifest), clips, strict=True):
        read, _ = read_item(item, model)
        assert read.bands == model.spec.bands
        assert (read.pixels - clip.pixels).abs().max() < 0.6 / 255
        assert (read.pixels[3] - clip.pixels[3]).abs().max() < 0.6 / 16383
        assert torch.allclose(model(read.pixels[None]), model(clip.pixels[None]), atol=0.2)
    out = tmp_path / "run"
    (tmp_path / "nets.py").write_text(
        "from tubelens.evaluate.planted_models import planted_model\n\nxor = lambda: planted_model('xor')\n"
    )
    command = (
        *("evaluate", manifest, "--model", tmp_path / "nets.py:xor", "--method", "gradcam", "--workers", "1"),
        *("--metric", "sparseness", "--target", "label", "--out", out, "--threads", "1"),
    )
    assert "3 scores, 0 there before" in done(*command).out
    with RunStore.read(out) as store:
        named = [row.name for row in store.names("clips")]
        found = store.predictions()
        assert found["predicted"].tolist() == found["label"].tolist()
    assert named[1] == "rgb=v1|ir=ir1?bits=14"
    assert "0 scores, 3 there before" in done(*command).out
    Image.fromarray(np.ones((32, 32), np.uint16)).save(tmp_path / "ir2" / "00.png")
    again = tubelens(*command)
    assert again.code == 2
    assert "clip 'rgb=v2|ir=ir2?bits=14' is no longer what it was when this run was made" in again.err


# ── the Multispectral Action Dataset ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three scenes in two classes, one of them in infrared alone; lists of two of them."""
    root = tmp_path / "SOIB"
    for n, (kind, scene, spectra) in enumerate(
        [("wave", "001", ("IR", "TV")), ("wave", "002", ("IR",)), ("clap", "001", ("IR", "TV"))]
    ):
        for spectrum in spectra:
            first = 100 * (spectrum == "IR") + 10 * n
            frames(root / spectrum / kind / scene, range(first, first + 9))
    (root / "file_lists").mkdir()
    for spectrum in ("IR", "TV"):
        (root / "file_lists" / f"{spectrum}_test.txt").write_text(
            f"{spectrum}/wave/001 9 7\n\n{spectrum}/clap/001 9 2\n"
        )
    (root / "file_lists" / "IRTV_train.txt").write_text("IR/wave/002 9 7\nTV/wave/001 9 7\n")
    return root


def told(text: str) -> list[tuple[str, str, str | None]]:
    return [(item.key, item.spectrum, item.label) for item in read_manifest(text)]


def test_each_spectrum_of_the_folders(dataset: Path) -> None:
    ir = [("IR/clap/001", "ir", "clap"), ("IR/wave/001", "ir", "wave"), ("IR/wave/002", "ir", "wave")]
    tv = [("TV/clap/001", "visible", "clap"), ("TV/wave/001", "visible", "wave")]
    assert told(f"msad:{dataset}?spectrum=IR") == ir
    assert told(f"msad:{dataset}?spectrum=tv") == tv
    assert told(f"msad:{dataset}") == told(f"msad:{dataset}?spectrum=IRTV") == tv + ir
    manifest = read_manifest(f"msad:{dataset}")
    assert len(manifest) == 5
    assert set(manifest.labels) == {"clap", "wave"}


def test_infrared_alone_is_fed_as_three_equal_channels(dataset: Path) -> None:
    (item, *_) = read_manifest(f"msad:{dataset}?spectrum=IR")
    clip, _ = read_item(item, planted_model("key"))
    assert clip.bands == ("R", "G", "B")
    assert torch.equal(clip.pixels[0], clip.pixels[1])
    assert torch.equal(clip.pixels[0], clip.pixels[2])
    assert clip.pixels.std() > 0.1


def test_both_spectra_of_a_scene_are_one_clip(dataset: Path) -> None:
    assert told(f"msad:{dataset}?spectrum=paired") == [
        ("clap/001", "visible+ir", "clap"),
        ("wave/001", "visible+ir", "wave"),
    ]
    _, wave = read_manifest(f"msad:{dataset}?spectrum=paired")
    clip, _ = read_item(wave, planted_model("xor"))
    assert clip.bands == ("R", "G", "B", "IR")
    visible, ir = clip.pixels[:3, 0], clip.pixels[3:, 0].repeat(3, 1, 1)
    assert [read_code(p.permute(1, 2, 0).numpy()) for p in (visible, ir)] == [0, 100]


def test_the_published_lists(dataset: Path) -> None:
    test = [("TV/wave/001", "visible", "7"), ("TV/clap/001", "visible", "2")]
    infrared = [("IR/wave/001", "ir", "7"), ("IR/clap/001", "ir", "2")]
    assert told(f"msad:{dataset}?spectrum=TV&split=test") == test
    assert told(f"msad:{dataset}?split=test") == test + infrared
    joint = [("TV/wave/001", "visible", "7"), ("IR/wave/002", "ir", "7")]
    assert told(f"msad:{dataset}?split=train") == joint
    paired = told(f"msad:{dataset}?spectrum=paired&split=test")
    assert paired == [("wave/001", "visible+ir", "7"), ("clap/001", "visible+ir", "2")]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?spectrum=XR", "spectrum cannot be 'XR'"),
        ("?split=dev", "split cannot be 'dev'"),
        ("?spektrum=IR", r"no option 'spektrum' \(did you mean 'spectrum'\?\)"),
    ],
)
def test_bad_options_are_one_line(dataset: Path, query: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        read_manifest(f"msad:{dataset}{query}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("TV/wave/001", "line 1: must be PATH NUM_FRAMES LABEL, not 'TV/wave/001'"),
        ("TV/wave/001 9 wave", "line 1: must be PATH NUM_FRAMES LABEL"),
        ("TV/wave/009 9 1", "line 1: .*009 is not there"),
        ("TV/wave/001 10 1", "line 1: 10 frames are listed, .*001 has 9"),
        ("IR/wave/001 9 1", "line 1: a clip of IR in the list of TV"),
        ("", "TV_test.txt: names no clips of TV"),
    ],
)
def test_bad_lists_are_one_line(dataset: Path, line: str, said: str) -> None:
    (dataset / "file_lists" / "TV_test.txt").write_text(line)
    with pytest.raises(InputError, match=said):
        read_manifest(f"msad:{dataset}?spectrum=TV&split=test")


def test_bad_layouts_are_one_line(dataset: Path, tmp_path: Path) -> None:
    joint = dataset / "file_lists" / "IRTV_train.txt"
    joint.unlink()
    with pytest.raises(InputError, match=r"IR_train\.txt: cannot be read \(No such file or directory\)"):
        read_manifest(f"msad:{dataset}?spectrum=IR&split=train")
    joint.write_text("wave/001 9 7")
    with pytest.raises(InputError, match="wave/001 does not tell its spectrum"):
        read_manifest(f"msad:{dataset}?spectrum=IR&split=train")
    with pytest.raises(InputError, match="is no folder: msad:FOLDER"):
        read_manifest(f"msad:{tmp_path}/gone")
    (tmp_path / "other" / "visible").mkdir(parents=True)
    with pytest.raises(InputError, match="other: has no folder TV, but visible: clips lie in TV/CLASS/CLIP/"):
        read_manifest(f"msad:{tmp_path}/other")
    (tmp_path / "other" / "TV" / "wave").mkdir(parents=True)
    with pytest.raises(InputError, match="TV: no folder CLASS/CLIP in it holds frames"):
        read_manifest(f"msad:{tmp_path}/other?spectrum=TV")
    frames(tmp_path / "other" / "TV" / "wave" / "1", range(2), suffix="jpg")
    frames(tmp_path / "other" / "IR" / "clap" / "1", range(2))
    with pytest.raises(InputError, match="no scene is in both spectra"):
        read_manifest(f"msad:{tmp_path}/other?spectrum=paired")
    (dataset / "file_lists" / "IR_test.txt").write_text("IR/wave/001 9 5\n")
    with pytest.raises(InputError, match=r"IR_test\.txt, line 1: wave/001 is class 5, but 7 in TV"):
        read_manifest(f"msad:{dataset}?spectrum=paired&split=test")
