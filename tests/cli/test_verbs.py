"""Every verb but explain, end to end, and the command line as a process."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tubelens as tl
from tests.cli.commands import LABELS, SCRIPT, TINY, decoded, default_layer, done, tubelens
from tests.videos import coded_video, read_code
from tubelens.cli import VERBS, parse
from tubelens.cli.show import print_table
from tubelens.errors import OptionError
from tubelens.methods import METHODS
from tubelens.metrics import METRICS

# ── help ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("help",)])
def test_usage_names_every_verb(args: tuple[str, ...]) -> None:
    said = done(*args).out
    for verb, make in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape((make.__doc__ or '').splitlines()[0])}$", said, re.M)
    assert "Exit codes: 0 done, 1 the work failed, 2 bad usage or input" in said


def test_version() -> None:
    assert done("--version").out == f"tubelens {tl.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_parses(verb: str) -> None:
    said = done(verb, "--help").out
    examples = re.findall(r"^Example: (.*)$", said, re.M)
    assert examples
    for example in examples:
        program, *args = shlex.split(example)
        assert program == "tubelens"
        assert args[0] == verb
        assert isinstance(parse(args), VERBS[verb])
    assert "--json" in said
    assert "--debug" in said


# ── what there is ────────────────────────────────────────────────────────────────────────────────────────


def test_methods() -> None:
    assert re.search(r"^ *tubes +layers +1 F \+ 1 B_h", done("methods").out, re.M)
    (entry,) = [e for e in done("methods", "--json").json if e["name"] == "tubes"]
    assert set(entry) == {"name", "needs", "cost", "bands", "source"}


def test_one_method_and_one_metric() -> None:
    said = done("methods", "rise").out
    assert said.startswith("rise: tubelens.RISE\n")
    for option, default, values in (("n", 2000, "int"), ("normaliser", "density", r"density \| published")):
        assert re.search(rf"^ *{option} +{default} +{values} *$", said, re.M)
    said = done("metrics", "insertion(steps=16)").out
    assert said.startswith("insertion: tubelens.Insertion\n\nArea under")
    assert re.search(r"^better: +higher$", said, re.M)
    assert re.search(r"^ *score +prob +prob \| logit *$", said, re.M)
    for verb, table in (("methods", METHODS), ("metrics", METRICS)):
        for name, entry in table.items():
            found = done(verb, name, "--json").json
            assert hasattr(tl, found["class"].removeprefix("tubelens.")), found["class"]
            assert [o["name"] for o in found["options"]] == [f.name for f in fields(entry.make) if f.init]
            assert found["says"]
            assert "object at 0x" not in str(found)
    for verb, word in (("methods", "method 'risee'"), ("metrics", "metric 'risee'")):
        ran = tubelens(verb, "risee")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith(f"tubelens: unknown {word}")


def test_ones_own_metric_is_told_too() -> None:
    example = Path(__file__).parents[2] / "examples" / "own_metric.py"
    found = done("metrics", f"{example}:Flicker", "--json").json
    assert (found["class"], found["better"], found["truth"]) == ("own_metric.Flicker", "lower", "-")
    assert found["options"] == [{"name": "seed", "default": "0", "values": "int"}]


def test_planted_tells_where_other_metrics_run() -> None:
    ran = tubelens("planted", "--metric", "insertion")
    assert ran.code == 2
    assert "here are only the measures of localisation, ap, " in ran.err
    assert "`tubelens evaluate planted:TASK --metric ...`" in ran.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (object(), r"^<object .*> is not a method: lacks needs, explains, a call; its call takes"),
        (len, "is not a method: lacks needs, explains; its call takes \\(model, clip, targets, run\\)"),
        (tl.RISE, "^RISE is a class and not a method yet: write RISE\\(\\)"),
    ],
)
def test_what_is_no_method_hears_what_it_lacks(given: object, said: str) -> None:
    model = tl.load_model("nets.py:make")
    with pytest.raises(OptionError, match=said):
        tl.explain(model, model.read("a.mp4"), given)


def test_a_clip_is_printed_in_one_line() -> None:
    model = tl.load_model("nets.py:make")
    clip = model.read("a.mp4")
    assert repr(clip) == "<Clip 3x8x24x24 R,G,B of a.mp4>"
    assert clip == clip
    assert clip != model.read("a.mp4")
    assert len({clip, clip}) == 1


def test_layers() -> None:
    table = done("layers", "nets.py:make").out
    assert len(re.findall(r"^ *\S+ \* ", table, re.M)) == 1
    assert re.search(r"on a clip of 8x24x24 \(\* is the default\)", table)
    entries = done("layers", "nets.py:make", "--json").json
    assert [e["layer"] for e in entries if e["default"]] == [default_layer()]
    for entry in entries:
        assert set(entry) == {"layer", "kind", "shape", "pattern", "centres", "default"}
    (body,) = [e for e in entries if e["default"]]
    assert body["shape"] == [1, 6, 4, 6, 6]
    assert body["centres"] == {"t": [0, 2, 4, 6], "h": [0, 4, 8, 12, 16, 20], "w": [0, 4, 8, 12, 16, 20]}
    *_, body = done("layers", "nets.py:make", "--frames", 4, "--size", 16, "--json").json
    assert body["shape"] == [1, 6, 2, 4, 4]


# ── predict ──────────────────────────────────────────────────────────────────────────────────────────────


def test_predict() -> None:
    model = tl.load_model("nets.py:make")
    expected = tl.predict(model, model.read("a.mp4"), 5)
    found = done("predict", "a.mp4", *TINY, "--json").json
    assert found["video"] == "a.mp4"
    assert [(e["label"], pytest.approx(e["prob"])) for e in found["predicted"]] == list(expected)
    table = done("predict", "a.mp4", *TINY, "--top", 2).out
    assert "a.mp4: " in table
    assert [label for label in LABELS if label in table] == sorted(
        (label for label, _ in expected[:2]), key=LABELS.index
    )
    assert f"{expected[0][1]:.4f}" in table


def test_predict_reads_what_it_is_told_to() -> None:
    model = tl.load_model("nets.py:make")
    found = done("predict", "a.mp4", *TINY, "--sampling", "dense", "--start", "0.8", "--json").json
    expected = tl.predict(model, model.read("a.mp4", "dense", start=0.8))
    assert found["predicted"][0]["prob"] == pytest.approx(expected[0][1])
    assert expected[0][1] != pytest.approx(tl.predict(model, model.read("a.mp4"))[0][1])


def test_labels_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("eins\nzwei\ndrei\nvier\nfünf\n", encoding="utf-8")
    found = done(
        "predict", "a.mp4", "--model", "nets.py:unnamed", "--labels", tmp_path / "names.txt", "--json"
    )
    assert {e["label"] for e in found.json["predicted"]} == {"eins", "zwei", "drei", "vier", "fünf"}
    bare = done("predict", "a.mp4", "--model", "nets.py:unnamed", "--json").json
    assert {e["label"] for e in bare["predicted"]} == {f"class {i}" for i in range(5)}


def test_weights_from_a_file_and_at_random(tmp_path: Path) -> None:
    def probs(*args: object) -> list[float]:
        ran = done("predict", "a.mp4", "--model", "nets.py:bare", *args, "--json")
        return [e["prob"] for e in ran.json["predicted"]]

    assert probs("--seed", 1) == probs("--seed", 1) != probs("--seed", 2)
    net = tl.load_model("nets.py:bare", seed=2).module
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "w.pt")
    assert probs("--seed", 1, "--weights", tmp_path / "w.pt") == pytest.approx(probs("--seed", 2))


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────


def test_frames(tmp_path: Path) -> None:
    ran = done("frames", "a.mp4", "--out", tmp_path / "f", "--every", 7, "--max", 4)
    assert ran.out == f"4 frames of a.mp4 in {tmp_path}/f\n"
    found = {int(p.stem): read_code(np.asarray(Image.open(p))) for p in (tmp_path / "f").iterdir()}
    assert found == {0: 0, 7: 7, 14: 14, 21: 21}
    ran = done("frames", "a.mp4", "--out", tmp_path / "all", "--json")
    assert len(ran.json["frames"]) == 40
    assert all(read_code(np.asarray(Image.open(p))) == int(Path(p).stem) for p in ran.json["frames"])
    ran = done("frames", "frames", "--out", tmp_path / "again", "--every", 5, "--json")
    assert [Path(p).name for p in ran.json["frames"]] == ["00.png", "05.png", "10.png"]


def test_frames_may_be_extracted_again_but_nothing_else_is_deleted(tmp_path: Path) -> None:
    out = tmp_path / "f"
    done("frames", "a.mp4", "--out", out)
    done("frames", "a.mp4", "--out", out, "--every", 20)
    assert sorted(p.name for p in out.iterdir()) == ["00.png", "20.png"]
    (out / "thesis.tex").write_text("years of work")
    ran = tubelens("frames", "a.mp4", "--out", out)
    assert ran.code == 2
    assert re.fullmatch(r"tubelens: .*/f: .*thesis\.tex.*\n", ran.err)
    assert sorted(p.name for p in out.iterdir()) == ["00.png", "20.png", "thesis.tex"]


# ── demo ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_demo(tmp_path: Path, offline: list[object]) -> None:
    ran = done("demo", "--out", tmp_path / "demo", "--json")
    assert offline == []
    found = ran.json
    assert set(found) == {"truth", "predicted", "localisation", "out"}
    assert found["predicted"][0]["label"] == found["truth"]
    assert found["predicted"][0]["prob"] > 0.5
    written = [Path(path) for path in found["out"]]
    assert sorted(written) == sorted((tmp_path / "demo").iterdir())
    first, second = (e["label"].replace(" ", "-") for e in found["predicted"][:2])
    assert [p.name for p in written] == [
        *("clip.mp4", f"{first}.mp4", f"{first}.png", f"{second}.mp4", f"{second}.png"),
        *("tube.safetensors", "focus.webm", "both.mp4"),
    ]
    clip, _ = decoded(written[0])
    h, w, _ = clip[0].shape
    columns = {"clip.mp4": 1, f"{first}.mp4": 2, f"{second}.mp4": 2, "focus.webm": 1, "both.mp4": 3}
    for path in written:
        if path.name in columns:
            frames, _ = decoded(path)
            assert len(frames) == len(clip)
            assert frames[0].shape == (h, w * columns[path.name], 3)
            assert np.stack(frames).std() > 5
        elif path.suffix == ".png":
            with Image.open(path) as sheet:
                sheet.load()
                assert np.asarray(sheet).std() > 5
        else:
            why = tl.load_explanation(path)
            assert why.provenance.label == found["truth"]
            assert float(why.grid.sum()) + why.provenance.facts["constant"] == pytest.approx(
                why.provenance.score, rel=1e-3
            )
    tube = found["localisation"]["saliency tube"]
    for rival in ("random order", "centre prior", "frame difference"):
        assert tube["average precision"] > found["localisation"][rival]["average precision"]


def test_demo_prints_tables_and_paths(tmp_path: Path, offline: list[object]) -> None:
    out = tmp_path / "demo"
    said = done("demo", "--out", out, "--seed", 11).out
    assert offline == []
    assert re.search(r"its label is '(.*)'", said)
    assert re.search(r"^ *class +probability", said, re.M)
    assert re.search(r"^ *map +average precision +energy in tube +pointing +mass on distractors", said, re.M)
    for row in ("saliency tube", "random order", "centre prior", "frame difference"):
        assert re.search(rf"^ *{row}( +\d\.\d\d){{4}}", said, re.M)
    left, constant, score = map(
        float, re.search(r"logit: (-?[\d.]+) \+ (-?[\d.]+) = (-?[\d.]+)", said).groups()
    )
    assert left + constant == pytest.approx(score, abs=0.003)
    listed = said.partition("Written:\n")[2].split("\n")
    assert {Path(line.strip()) for line in listed if line.strip()} == set(out.iterdir())


# ── as a process ─────────────────────────────────────────────────────────────────────────────────────────


def process(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *map(str, args)], capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_process_explains(tmp_path: Path) -> None:
    """A factory is found in a module of the working folder, too."""
    ran = process("explain", "a.mp4", "--model", "nets:make", "--out", tmp_path / "why.mp4", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    (entry,) = json.loads(ran.stdout)
    assert entry["out"] == [f"{tmp_path}/why.mp4"]
    assert len(decoded(tmp_path / "why.mp4")[0]) == 40


def test_process_whose_reader_goes_away() -> None:
    with subprocess.Popen([SCRIPT, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        said = run.stderr.read()
    assert (run.returncode, said) == (0, b"")


def test_process_prints_names_that_are_not_text(tmp_path: Path) -> None:
    """A name that is not UTF-8."""
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(Path("a.mp4").read_bytes())
    ran = subprocess.run(
        [SCRIPT, "explain", tmp_path / name, *TINY, "--out", tmp_path / "out", "--format", "safetensors"],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_tables_show_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    """File names and labels are no markup."""
    print_table("run [/x] [bold]", ["[red]"], [["clip [final].mp4"], ["[/b]"]])
    said = capsys.readouterr().out
    for text in ("run [/x] [bold]", "[red]", "clip [final].mp4", "[/b]"):
        assert text in said


def test_brackets_and_percent_in_a_name(tmp_path: Path) -> None:
    path = coded_video(tmp_path / "plain.mp4", 10).rename(tmp_path / "clip [final] [b] %03d.mp4")
    ran = done("explain", path, *TINY, "--out", tmp_path / "out", "--format", "mp4", "png")
    assert "clip [final] [b] %03d.mp4" in ran.out
    assert len(list((tmp_path / "out").iterdir())) == 2
