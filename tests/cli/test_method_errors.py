"""Methods that cannot do what is asked, through the command line: one line with the mend, nothing written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.commands import TINY, tubelens


@dataclass(frozen=True)
class Case:
    """Options of `explain a.mp4`, what the line says, and the exit code."""

    options: tuple[str, ...]
    words: tuple[str, ...]
    code: int = 2


BLACK_BOX = ("remote is a black box", "choose rise, occlusion, lime or shap")
CASES = {
    "layers of a black box": Case(("--model", "nets.py:box", "--method", "gradcam"), ("GradCAM", *BLACK_BOX)),
    "gradients of a black box": Case(
        ("--model", "nets.py:box", "--method", "saliency"), ("Saliency", *BLACK_BOX)
    ),
    "one of two": Case(("--model", "nets.py:box", "--method", "rise(n=4)", "sidu"), ("SIDU", *BLACK_BOX)),
    "zero gradient at the layer": Case(
        ("--model", "nets.py:deaf", "--method", "gradcam"),
        ("gradient of", "is zero at layer 'body", "earlier"),
    ),
    "zero gradient at the pixels": Case(
        ("--model", "nets.py:deaf", "--method", "saliency"), ("gradient", "zero")
    ),
    "bands that a layer has mixed": Case(
        ("--method", "gradcam(spectrum=each)"),
        ("'gradcam' has no option 'spectrum': its layer has mixed the bands", "rise, occlusion, shap"),
    ),
    "bands that boxes cannot tell at once": Case(
        ("--method", "occlusion(spectrum=independent)"),
        ("spectrum must be joint or each, not 'independent': ", "use spectrum='each'"),
    ),
    "no such band": Case(
        ("--method", "rise(n=4, spectrum=each, groups=RG|IR)"), ("no band begins 'IR': the clip has R, G, B",)
    ),
    "no affine head": Case(
        ("--model", "nets.py:pooled_by_max", "--method", "tubes"), ("affine", "such as gradcam or rise")
    ),
    "budget of nothing": Case(("--budget", "0"), ("a budget is a positive number", "not '0'")),
    "budget of no time": Case(("--budget", "0s"), ("a budget is a positive number", "not '0s'")),
    "budget in words": Case(("--budget", "little"), ("a budget is a positive number", "not 'little'")),
    "budget too small": Case(("--method", "shap", "--budget", "2"), ("budget",)),
    "unknown method": Case(("--method", "gradcan"), ("unknown method 'gradcan'", "did you mean 'gradcam'")),
    "unknown option": Case(("--method", "rise(masks=5)"), ("'rise' has no option 'masks'", "it has n, ")),
    "option of another kind": Case(("--method", "rise(n=0)"), ("n",)),
    "density": Case(("--method", "rise(p=1.5)"), ("p", "1.5")),
    "unknown fill": Case(("--method", "rise(fill=blak)"), ("'blak'", "did you mean 'black'")),
    "unreadable options": Case(
        ("--method", "rise(n=)"), ("cannot read its options", "rise(n=500, fill=blur)")
    ),
    "layer for a method without": Case(
        ("--method", "rise", "--layer", "body"), ("--layer", "means nothing to rise")
    ),
    "parity of another method": Case(
        ("--method", "rise", "--parity", "paper"), ("--parity", "nothing to rise")
    ),
    "unknown layer": Case(("--method", "gradcam", "--layer", "bodi"), ("no layer 'bodi'", "did you mean")),
    "batch of none": Case(("--batch", "0"), ("--batch must be at least 1",)),
    "half precision": Case(("--method", "rise(n=4)", "--precision", "fp15"), ("precision",)),
    "NaN in the middle": Case(
        ("--model", "nets.py:nan_where_masked", "--method", "rise(n=4)"), ("NaN or infinity", "mask"), 1
    ),
    "out of memory while scoring": Case(
        ("--model", "nets.py:hungry", "--method", "rise(n=4)", "--target", "swimming"),
        ("out of memory", "single clip", "fewer frames"),
        1,
    ),
    "out of memory at a layer": Case(
        ("--model", "nets.py:hungry", "--method", "gradcam"), ("out of memory", "fewer --frames"), 1
    ),
    "out of memory down to the pixels": Case(
        ("--model", "nets.py:hungry", "--method", "saliency", "--target", "swimming"), ("out of memory",), 1
    ),
    "numbers of two methods in a file": Case(
        ("--method", "tubes", "gradcam", "--out", "OUT.safetensors"), ("one method", "give a folder")
    ),
    "two methods apart in a file": Case(
        ("--method", "tubes", "gradcam", "--apart", "--out", "OUT.mp4"),
        ("--apart one method", "give a folder"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_says_what_to_do(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    options = [str(tmp_path / option) if option.startswith("OUT") else option for option in case.options]
    out = [] if "--out" in options else ["--out", str(tmp_path / "why.mp4")]
    model = [] if "--model" in options else TINY
    ran = tubelens("explain", "a.mp4", *model, *options, *out)
    assert ran.code == case.code, ran
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("tubelens: ")
    for words in case.words:
        assert words in ran.err, ran.err
    assert ran.out == ""
    assert list(tmp_path.iterdir()) == []
