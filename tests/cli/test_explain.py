"""`tubelens explain` end to end: formats, targets, styles, sampling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tubelens as tl
from tests.cli.commands import SCHEMA, TINY, decoded, default_layer, done, has_sound, tubelens
from tests.videos import coded_video, read_code

# ── explain ──────────────────────────────────────────────────────────────────────────────────────────────


def test_explain_writes_the_source_with_heat(tmp_path: Path) -> None:
    ran = done("explain", "a.mp4", *TINY, "--out", tmp_path / "why.mp4")
    assert "why.mp4" in ran.out
    assert "nets.py:make" in ran.out or "Net" in ran.out
    frames, times = decoded(tmp_path / "why.mp4")
    assert len(frames) == 40
    assert frames[0].shape == (240 + 32, 320, 3)  # few pixels: drawn larger, the words below
    np.testing.assert_allclose(times, np.arange(40) / 25, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["why.mp4"]
    colour = np.ptp(np.stack(frames).astype(int), axis=3)
    assert colour.max() > 60  # the source is grey: the heat is not


def test_explain_draws_each_frame_on_its_own(tmp_path: Path) -> None:
    done("explain", "a.mp4", *TINY, "--beside", "--plain", "--out", tmp_path / "why.mp4")
    frames, _ = decoded(tmp_path / "why.mp4")
    assert frames[0].shape == (240, 640, 3)
    assert [read_code(frame[:, :320]) for frame in frames] == list(range(40))


def test_explain_into_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, videos: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = done("explain", videos / "a.mp4", "--model", f"{videos}/nets.py:make", "--json")
    (entry,) = ran.json
    label = entry["target"].replace(" ", "_")
    assert entry["out"] == [f"tubes/a.tubes.{label}.mp4"]
    assert (tmp_path / entry["out"][0]).is_file()


def test_explain_says_everything_in_json(tmp_path: Path) -> None:
    ran = done("explain", "a.mp4", *TINY, "--target", "swimming", "--json", "--out", tmp_path)
    (entry,) = ran.json
    assert set(entry) == SCHEMA
    assert (entry["video"], entry["method"], entry["target"]) == ("a.mp4", "tubes", "swimming")
    assert entry["layer"] == default_layer()
    assert entry["grid"] == [4, 6, 6]
    assert entry["padded"] == 0
    assert sum(e["prob"] for e in entry["predicted"]) == pytest.approx(1)
    model = tl.load_model("nets.py:make")
    why = tl.explain(model, model.read("a.mp4"), target="swimming")
    assert entry["score"] == pytest.approx(why.provenance.score)
    assert entry["prob"] == pytest.approx(why.provenance.prob)
    assert entry["facts"]["constant"] + float(why.grid.sum()) == pytest.approx(entry["score"], rel=1e-4)
    assert [Path(path).name for path in entry["out"]] == ["a.tubes.swimming.mp4"]


def test_explain_several_targets(tmp_path: Path) -> None:
    ran = done(
        *("explain", "a.mp4", *TINY, "--target", "Swimming", "juggling_balls", "0"),
        *("--out", tmp_path, "--json", "--format", "safetensors"),
    )
    assert [e["target"] for e in ran.json] == ["swimming", "juggling balls", "surfing water"]
    for entry in ran.json:
        (path,) = entry["out"]
        assert tl.load_explanation(path).provenance.label == entry["target"]
    table = done(
        *(
            "explain",
            "a.mp4",
            *TINY,
            "--target",
            "Swimming",
            "0",
            "--out",
            tmp_path,
            "--format",
            "safetensors",
        )
    ).out
    assert "a.tubes.surfing_water.safetensors" in table
    assert "a.tubes.swimming.safetensors" in table


def test_explain_the_strongest(tmp_path: Path) -> None:
    ran = done("explain", "a.mp4", *TINY, "--target", "top3", "--out", tmp_path, "--json")
    probs = [e["prob"] for e in ran.json]
    assert probs == sorted(probs, reverse=True)
    assert [e["target"] for e in ran.json] == [e["label"] for e in ran.json[0]["predicted"][:3]]
    assert len(list(tmp_path.glob("*.mp4"))) == 3
    (default,) = done("explain", "a.mp4", *TINY, "--out", tmp_path, "--json").json
    assert default["target"] == ran.json[0]["target"]


def test_explain_targets_side_by_side_in_one_file(tmp_path: Path) -> None:
    out = tmp_path / "both.mp4"
    ran = done("explain", "a.mp4", *TINY, "--target", "top2", "--beside", "--out", out, "--json")
    assert [e["out"] for e in ran.json] == [[str(out)]] * 2
    assert decoded(out)[0][0].shape == (240 + 30, 960, 3)  # few pixels: drawn larger, the words below
    ran = done("explain", "a.mp4", *TINY, "--target", "top2", "--beside", "--out", tmp_path / "f", "--json")
    first, second = (e["target"].replace(" ", "_") for e in ran.json)
    assert [p.name for p in (tmp_path / "f").iterdir()] == [f"a.tubes.{first}+{second}.mp4"]


def test_explain_one_top_class_into_a_file(tmp_path: Path) -> None:
    """`top1`, in any case, and a label that begins with top are one target."""
    for target in ("top1", "TOP1"):
        done("explain", "a.mp4", *TINY, "--target", target, "--out", tmp_path / "a.safetensors")
    (tmp_path / "names.txt").write_text("topple\nb\nc\nd\ne\n")
    done(
        *("explain", "a.mp4", "--model", "nets.py:unnamed", "--labels", tmp_path / "names.txt"),
        *("--target", "topple", "--out", tmp_path / "b.safetensors"),
    )
    assert tl.load_explanation(tmp_path / "b.safetensors").target == tl.Logit(0)


def test_explain_every_format(tmp_path: Path) -> None:
    kinds = ("mp4", "png", "safetensors", "frames", "gif", "webm")
    ran = done(
        "explain", "a.mp4", *TINY, "--target", "swimming", "--format", *kinds, "--out", tmp_path, "--json"
    )
    (entry,) = ran.json
    base, folder = tmp_path / "a.tubes.swimming", tmp_path / "a_tubes_swimming"
    assert entry["out"] == [str(folder) if k == "frames" else f"{base}.{k}" for k in kinds]
    assert {p.name for p in tmp_path.iterdir()} == {Path(path).name for path in entry["out"]}
    assert len(decoded(Path(f"{base}.mp4"))[0]) == 40
    assert len(decoded(Path(f"{base}.webm"))[0]) == 40
    with Image.open(f"{base}.gif") as gif:
        assert (gif.n_frames, gif.size) == (40, (320, 240 + 29))
    with Image.open(f"{base}.png") as sheet:
        assert sheet.width > 1000
    why = tl.load_explanation(f"{base}.safetensors")
    assert why.provenance.score == pytest.approx(entry["score"])
    assert list(why.grid.shape) == entry["grid"]
    assert sorted(p.name for p in folder.iterdir()) == [f"{i:03d}.png" for i in range(40)] + ["info.json"]
    assert json.loads((folder / "info.json").read_text())["label"] == "swimming"


@pytest.mark.parametrize("suffix", ["mp4", "MP4", "gif", "webm", "png", "safetensors"])
def test_the_suffix_decides(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "deep" / f"x.{suffix}"
    done("explain", "a.mp4", *TINY, "--sampling", "dense", "--out", out)
    head = out.read_bytes()[:12]
    magic: dict[str, Callable[[bytes], bool]] = {
        "mp4": lambda b: b[4:8] == b"ftyp",
        "gif": lambda b: b[:6] == b"GIF89a",
        "webm": lambda b: b[:4] == b"\x1aE\xdf\xa3",
        "png": lambda b: b[:4] == b"\x89PNG",
        "safetensors": lambda b: b[8:9] == b"{",
    }
    assert magic[suffix.lower()](head)


@pytest.mark.parametrize("style", ["heat", "focus", "contour", "paper"])
def test_styles_differ(tmp_path: Path, style: str) -> None:
    options = ("--sampling", "dense", "--plain", "--target", "0", "--format", "frames")
    done("explain", "a.mp4", *TINY, *options, "--style", style, "--out", tmp_path / style)
    done("explain", "a.mp4", *TINY, *options, "--colormap", "gray", "--out", tmp_path / "gray")
    (folder,) = (tmp_path / style).iterdir()
    (gray,) = (tmp_path / "gray").iterdir()
    assert json.loads((folder / "info.json").read_text())["style"] == [style]
    picture = np.asarray(Image.open(folder / "004.png").convert("RGB")).astype(int)
    plain = np.asarray(Image.open(gray / "004.png").convert("RGB")).astype(int)
    assert np.ptp(plain, axis=2).max() == 0  # grey heat on a grey video
    assert np.abs(picture - plain).max() > 20
    if style == "focus":
        assert Image.open(folder / "004.png").mode == "RGBA"


def test_plain_leaves_caption_and_strip_out(tmp_path: Path) -> None:
    options = ("--sampling", "dense", "--format", "frames", "--json")
    full = done("explain", "a.mp4", *TINY, *options, "--out", tmp_path / "full").json[0]["out"][0]
    plain = done("explain", "a.mp4", *TINY, *options, "--plain", "--out", tmp_path / "plain").json[0]["out"][
        0
    ]
    a, b = (np.asarray(Image.open(Path(p) / "000.png")).astype(int) for p in (full, plain))
    assert len(a) > len(b) == 240
    assert np.array_equal(a[:240], b)  # the words stand below what is drawn larger


def test_equal_names_are_numbered(tmp_path: Path) -> None:
    ran = done("explain", "one/same.mp4", "two/same.mp4", "frames", *TINY, "--out", tmp_path, "--json")
    names = [Path(e["out"][0]).name.partition(".tubes.")[0] for e in ran.json]
    assert names == ["same", "same-2", "frames"]
    assert [e["video"] for e in ran.json] == ["one/same.mp4", "two/same.mp4", "frames"]
    assert len(list(tmp_path.iterdir())) == 3


def test_one_bad_video_among_good_ones(tmp_path: Path) -> None:
    ran = tubelens("explain", "one/same.mp4", "gone.mp4", "b.mkv", *TINY, "--out", tmp_path, "--json")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("tubelens: gone.mp4: no such file")
    assert [e["video"] for e in ran.json] == ["one/same.mp4", "b.mkv"]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_sound_is_kept(tmp_path: Path) -> None:
    done("explain", "sound.mp4", "a.mp4", *TINY, "--target", "0", "--out", tmp_path)
    assert has_sound(tmp_path / "sound.tubes.surfing_water.mp4")
    assert not has_sound(tmp_path / "a.tubes.surfing_water.mp4")


def test_odd_sides_grow_by_one_in_mp4_only(tmp_path: Path) -> None:
    done("explain", "odd.avi", *TINY, "--target", "0", "--format", "mp4", "webm", "--out", tmp_path)
    assert decoded(tmp_path / "odd.tubes.surfing_water.mp4")[0][0].shape == (286, 366, 3)
    frames, _ = decoded(tmp_path / "odd.tubes.surfing_water.webm")
    assert frames[0].shape == (286, 365, 3)
    assert len(frames) == 20


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────


def sampled(out: Path, *options: object) -> tl.Explanation:
    done("explain", "a.mp4", *TINY, "--target", "0", "--out", out, *options)
    return tl.load_explanation(out)


def numbers(why: tl.Explanation) -> list[int]:
    return [round(t * 25) for t in why.source.times]


def test_sampling(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    cases: dict[tuple[object, ...], list[int]] = {
        (): [0, 5, 11, 16, 22, 27, 33, 39],
        ("--sampling", "uniform", "--frames", 4): [0, 13, 26, 39],
        ("--sampling", "segments"): [2, 7, 12, 17, 22, 27, 32, 37],
        ("--sampling", "dense"): list(range(8)),
        ("--sampling", "dense", "--start", 0.4, "--stride", 3): list(range(10, 34, 3)),
        ("--start", 0.4): list(range(10, 18)),
        ("--sampling", "windows", "--stride", 2): list(range(0, 40, 2)),
    }
    for options, expected in cases.items():
        assert numbers(sampled(out, *options)) == expected, options


def test_random_sampling_is_seeded(tmp_path: Path) -> None:
    options = ("--sampling", "random")
    runs = [sampled(tmp_path / f"{i}.safetensors", *options, "--seed", s) for i, s in enumerate((3, 3, 4, 5))]
    assert numbers(runs[0]) == numbers(runs[1])
    assert torch.equal(runs[0].grid, runs[1].grid)
    assert len({tuple(numbers(run)) for run in runs}) > 1
    assert all(np.diff(numbers(run)).tolist() == [1] * 7 for run in runs)
    assert [run.provenance.seed for run in runs] == [3, 3, 4, 5]
    assert sampled(tmp_path / "u.safetensors").provenance.seed is None


def test_dense_draws_only_its_span(tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    done(
        *("explain", "a.mp4", *TINY, "--sampling", "dense", "--start", "0.4", "--stride", 2),
        *("--beside", "--plain", "--out", out),
    )
    assert [read_code(frame[:, :320]) for frame in decoded(out)[0]] == list(range(10, 25))


def test_windows_cover_the_whole_video(tmp_path: Path) -> None:
    ran = done(
        *("explain", "a.mp4", *TINY, "--sampling", "windows", "--overlap", 0.25, "--beside", "--plain"),
        *("--format", "mp4", "safetensors", "--out", tmp_path, "--json"),
    )
    (entry,) = ran.json
    assert entry["facts"]["windows"] == 7
    assert entry["forwards"] >= 7
    video, numbers_file = map(Path, entry["out"])
    assert [read_code(frame[:, :320]) for frame in decoded(video)[0]] == list(range(40))
    why = tl.load_explanation(numbers_file)
    assert [part.span for part in why.parts] == [(i, i + 8) for i in (0, 6, 12, 18, 24, 30, 32)]
    assert why.saliency.shape == (40, 24, 24)


def test_views_spread_clips_and_crops(tmp_path: Path) -> None:
    ran = done(
        *("explain", "a.mp4", *TINY, "--views", "3x2", "--stride", 2, "--json"),
        *("--format", "safetensors", "png", "--out", tmp_path),
    )
    (entry,) = ran.json
    assert entry["facts"]["windows"] == 6
    why = tl.load_explanation(Path(entry["out"][0]))
    assert len(why.parts) == 6
    firsts = [why.source.times[part.span[0]] * 25 for part in why.parts[::2]]
    assert [round(first) for first in firsts] == [0, 12, 25]  # 15 frames long each, of 40
    assert len({part.area for part in why.parts}) == 2


def test_layer_strongest_and_parity_reach_the_method(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    plain = sampled(out)
    strongest = sampled(out, "--strongest", 2)
    assert "Strongest(k=2" in strongest.provenance.method
    assert not torch.allclose(plain.grid, strongest.grid)
    paper = sampled(out, "--parity", "paper")
    torch.testing.assert_close(paper.grid, plain.grid * 4 * 6 * 6)
    assert paper.align == "endpoints"
    assert sampled(out, "--layer", "body").provenance.layer == "body"


def test_padding_is_said_and_is_no_error(tmp_path: Path) -> None:
    coded_video(tmp_path / "short.mp4", 5)
    for sampling in ("uniform", "dense", "random", "windows"):
        ran = tubelens(
            *("explain", tmp_path / "short.mp4", *TINY, "--sampling", sampling, "--json"),
            *("--out", tmp_path / sampling),
        )
        assert ran.code == 0
        assert (
            ran.err
            == f"note: {tmp_path}/short.mp4: too short for the clip: 3 frames were repeated or padded\n"
        )
        assert ran.json[0]["padded"] == 3
        (out,) = ran.json[0]["out"]
        assert len(decoded(Path(out))[0]) == 5
    ran = tubelens("predict", tmp_path / "short.mp4", *TINY)
    assert ran.code == 0
    assert "3 frames were repeated or padded" in ran.err
    one = coded_video(tmp_path / "one.mp4", 1)
    ran = tubelens("explain", one, *TINY, "--out", tmp_path / "one.png", "--json")
    assert (ran.code, ran.json[0]["padded"]) == (0, 7)


def test_black_padding(tmp_path: Path) -> None:
    coded_video(tmp_path / "short.mp4", 5)
    scores = {
        pad: tubelens(
            *("explain", tmp_path / "short.mp4", *TINY, "--target", "0", "--sampling", "dense", "--pad", pad),
            *("--out", tmp_path / "x.safetensors", "--json"),
        ).json[0]["score"]
        for pad in ("clamp", "zero")
    }
    assert abs(scores["clamp"] - scores["zero"]) > 1e-3
