"""The methods by name. A method is a frozen dataclass that reads like its paper's formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tubelens.errors import OptionError, nearest
from tubelens.methods.tubes import Tubes


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        make: the class.
        needs: what it takes: a scorer, or a torch model with layers.
        cost: forwards F and backwards through the head only, B_h, or through everything, B.
        source: the paper.
    """

    make: type[Any]
    needs: str
    cost: str
    source: str


METHODS: dict[str, Entry] = {
    "tubes": Entry(Tubes, "layers, affine head", "1 F + 1 B_h", "Stergiou et al., Saliency Tubes, ICIP 2019"),
}


def method(name: str, **options: Any) -> Any:
    """The method of that name with its options.

    Raises:
        OptionError: unknown name or option.
    """
    if name not in METHODS:
        raise OptionError(f"unknown method {name!r}{nearest(name, METHODS)}: `tubelens methods` lists them")
    try:
        return METHODS[name].make(**options)
    except TypeError as error:
        raise OptionError(f"method {name!r}: {error}") from error


def short_name(written: str) -> str:
    """The name in the table of a method's repr (`GradCAMpp(layer=None)` is `gradcam++`)."""
    kind = written.partition("(")[0]
    names = {getattr(entry.make, "__name__", ""): name for name, entry in METHODS.items()}
    return names.get(kind, kind)
