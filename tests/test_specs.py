"""Names with options, also those of other people's classes."""

import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Literal

import pytest

from tubelens import plugins
from tubelens.errors import OptionError
from tubelens.methods import METHODS, RISE, brief, method
from tubelens.specs import Named


@dataclass(frozen=True)
class Round:
    size: int = 1
    way: Literal["up", "down"] = "up"
    inner: object = None


@dataclass(frozen=True)
class Square:
    side: float = 0.5


SHAPES = Named("shape", {"round": Round, "square": Square}, "methods", nested=("inner",))


def test_a_name_alone_and_with_options():
    assert SHAPES.make("round") == Round()
    assert SHAPES.make("round(size=3, way=down)") == Round(3, "down")
    assert SHAPES.make(" square ( side = 2 ) ") == Square(2)
    assert SHAPES.make("round(size=3)", way="down") == Round(3, "down")
    assert SHAPES.make("round(inner=square(side=1))").inner == Square(1)
    assert SHAPES.make("round(inner=square)").inner == Square()


def test_a_repr_is_a_name_again():
    for made in (RISE(n=7, cells=(2, 3, 4)), Round(5, "down")):
        table = Named("thing", {type(made).__name__: type(made)}, "methods")
        assert table.make(repr(made)) == made


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("rond", "did you mean 'round'"),
        ("round(size=1", "a bracket is missing"),
        ("round(size)", "cannot read its options"),
        ("round(sise=1)", "did you mean 'size'"),
        ("round(way=left)", "way must be up or down"),
        ("round(size=1.5)", "must be a whole number"),
        ("round(size=true)", "must be a whole number"),
        ("square(side=wide)", "must be a number"),
        ("", "unknown shape ''"),
        ("no_such_module:Round", "cannot be imported"),
        ("tests.test_specs:nothing", "has no class 'nothing'"),
        ("tests.test_specs:SHAPES", "has no class"),
        ("tests.test_specs:test_a_repr_is_a_name_again", "must be a dataclass"),
        ("none.py:Round", "no such file"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(written: str, said: str):
    with pytest.raises(OptionError, match=said) as caught:
        SHAPES.make(written)
    assert "\n" not in str(caught.value)


def test_a_class_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert SHAPES.make("tests.test_specs:Round(size=4)") == Round(4)
    file = tmp_path / "own_shape.py"
    file.write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Own:\n    size: int = 2\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = SHAPES.make(f"{file}:Own(size=9)")
    assert (type(made).__name__, made.size) == ("Own", 9)
    sys.modules.pop("own_shape")


def test_other_packages_offer_names(monkeypatch: pytest.MonkeyPatch):
    entries = [
        EntryPoint("mine", "tests.test_specs:Round", "tubelens.methods"),
        EntryPoint("broken", "tests.no_such:Round", "tubelens.methods"),
    ]

    def found(group: str, **wanted: str) -> EntryPoints:
        return EntryPoints(e for e in entries if e.group == group and e.matches(**wanted))

    monkeypatch.setattr(plugins, "entry_points", found)
    assert SHAPES.make("mine(size=2)") == Round(2)
    assert plugins.offered("methods") == ["broken", "mine"]
    assert plugins.offered("metrics") == []
    with pytest.raises(OptionError, match=r"broken \(tests.no_such:Round\): cannot be imported"):
        SHAPES.make("broken")
    with pytest.raises(OptionError, match="did you mean 'mine'"):
        SHAPES.make("min")


def test_every_method_is_written_by_its_name():
    for name in METHODS:
        assert method(name) == METHODS[name].make()


@pytest.mark.parametrize(
    ("written", "short"),
    [
        (repr(RISE()), "RISE()"),
        (repr(RISE(n=400, cells=(2, 4, 4), seed=2)), "RISE(n=400, cells=(2, 4, 4), seed=2)"),
        (repr(method("selective(base=rise(n=9))")), "Selective(base=RISE(n=9))"),
        ("Tubes(layer='a', parity=None)", "Tubes(layer='a')"),
        ("Tubes(layer='None', select=None)", "Tubes(layer='None')"),
        ("Own(a=1, b=None)", "Own(a=1, b=None)"),
        ("RISE(400)", "RISE(400)"),
        ("by hand, twice", "by hand, twice"),
        ("RISE(n=", "RISE(n="),
        ("", ""),
    ],
)
def test_titles_tell_only_the_options_that_were_changed(written: str, short: str):
    assert brief(written) == short
    if written.endswith(")") and short.startswith("RISE(n"):
        assert repr(method(short.lower().replace("'", ""))) == written  # it still says all
