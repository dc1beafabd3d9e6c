"""Methods and metrics of a study, under one name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tubelens.errors import OptionError, nearest


@dataclass(frozen=True)
class Preset:
    """What a study scores, and by what.

    Attributes:
        methods: by name, with options in brackets if wanted.
        metrics: likewise; those that need to know where the evidence is are left out where nobody does.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]


PRESETS: dict[str, Preset] = {
    # Grad-CAM, RISE and SIDU as in the ICPR 2022 study; beside them saliency tubes, and the method that finds
    # most on the planted benchmark
    "multispectral": Preset(
        ("gradcam", "rise", "sidu", "tubes", "gated"), ("insertion", "deletion", "energy", "sparseness")
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in PRESETS:
        raise OptionError(f"unknown --preset {name!r}{nearest(name, PRESETS)}: one of {', '.join(PRESETS)}")
    return PRESETS[name]


def filled(
    name: str | None, methods: Sequence[str], metrics: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Methods and metrics, those of the preset where none are given; without one, tubes and no metric."""
    known = Preset(("tubes",), ()) if name is None else preset(name)
    return tuple(methods) or known.methods, tuple(metrics) or known.metrics
