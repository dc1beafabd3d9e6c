"""What is written is read back: numbers, placement, record; and nothing half-written stays."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.test_upsample import explanation
from tubelens.errors import InputError, OptionError, OutputError
from tubelens.explanation import Explanation
from tubelens.files import replacing
from tubelens.layout import Grid
from tubelens.store import load_explanation
from tubelens.target import Contrast


def several_parts() -> Explanation:
    base = explanation(torch.randn(2, 3, 4), (6, 12, 16))
    later = Grid(torch.randn(2, 3, 4), (3.5, 5.0), (0.0, 4.0, 8.0), (0.0, 4.0, 8.0, 12.0), (2, 6), 0.5)
    return Explanation(
        (*base.parts, later), base.size, base.source, Contrast(3, 1), base.provenance, "endpoints"
    )


def test_everything_comes_back(tmp_path: Path):
    why = several_parts()
    again = load_explanation(why.save(tmp_path / "deep" / "why.safetensors"))
    for one, two in zip(why.parts, again.parts, strict=True):
        assert torch.equal(one.values, two.values)
        assert (one.t, one.y, one.x, one.span, one.weight) == (two.t, two.y, two.x, two.span, two.weight)
    assert again.source == why.source
    assert again.target == why.target
    assert again.provenance == why.provenance
    assert (again.size, again.align) == (why.size, why.align)
    torch.testing.assert_close(again.saliency, why.saliency)


def test_maps_of_bands_stand_apart_from_the_parts(tmp_path: Path):
    """A reader that knows of no bands finds the parts alone."""
    why = several_parts()
    bands = [
        (n, replace(g, values=g.values * (i + 2))) for i, n in enumerate(("RGB", "IR")) for g in why.parts
    ]
    path = replace(why, by_band=tuple(bands)).save(tmp_path / "why.safetensors")
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["explanation"])
        numbers = {key.partition(".")[0] for key in file.keys()}  # noqa: SIM118
    assert len(header["parts"]) == 2
    assert numbers == {"saliency", "part0", "part1", "band0", "band1", "band2", "band3"}
    again = load_explanation(path)
    assert [name for name, _ in again.by_band] == ["RGB", "RGB", "IR", "IR"]
    for (_, one), (_, two) in zip(bands, again.by_band, strict=True):
        assert torch.equal(one.values, two.values)
        assert (one.t, one.y, one.x, one.span, one.weight) == (two.t, two.y, two.x, two.span, two.weight)


def test_saliency_is_in_the_file_for_other_programs(tmp_path: Path):
    why = several_parts()
    with safe_open(why.save(tmp_path / "why.safetensors"), framework="pt") as file:
        torch.testing.assert_close(file.get_tensor("saliency"), why.saliency)


def test_faults_of_reading(tmp_path: Path):
    (tmp_path / "text.safetensors").write_text("no")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no such file"):
        load_explanation(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="cannot be read as a saved explanation"):
        load_explanation(tmp_path / "text.safetensors")
    with pytest.raises(InputError, match="not a saved explanation"):
        load_explanation(tmp_path / "other.safetensors")


def test_unknown_suffix(tmp_path: Path):
    with pytest.raises(OptionError, match=r"cannot write '.xyz': use one of .*\.mp4"):
        several_parts().save(tmp_path / "why.xyz")
    assert not list(tmp_path.iterdir())


def test_replacing_leaves_the_old_or_the_new_never_a_half(tmp_path: Path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        _ = 1 / 0
    assert target.read_text() == "old"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_replacing_a_folder(tmp_path: Path):
    for name in ("000.png", "001.png"):
        with replacing(tmp_path / "out", folder=True) as temporary:
            (temporary / name).write_text("frame")
    assert os.listdir(tmp_path / "out") == ["001.png"]
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(OutputError, match="a folder of that name is in the way"), replacing(tmp_path / "out"):
        pass


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match=r"thesis.tex"), replacing(tmp_path / "out", folder=True):
        pass
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_earlier_folder_comes_back_if_the_swap_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "000.png").write_text("earlier")
    real, calls = os.replace, []

    def second_fails(a: Path, b: Path) -> None:
        calls.append(a)
        if len(calls) == 2:
            raise OSError(5, "broken")
        real(a, b)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OutputError, match="broken"), replacing(tmp_path / "out", folder=True) as temporary:
        (temporary / "000.png").write_text("new")
    assert (tmp_path / "out" / "000.png").read_text() == "earlier"
    assert os.listdir(tmp_path) == ["out"]


def test_no_permission_or_a_file_in_the_way_is_an_output_error(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"), replacing(tmp_path / "file" / "below.txt"):
        pass
