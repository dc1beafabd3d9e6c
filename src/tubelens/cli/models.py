"""`tubelens models`: the networks that load by name, what they need, and what of it is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import torch
import tyro

from tubelens import zoo
from tubelens.cli.show import print_json
from tubelens.errors import OptionError, nearest
from tubelens.zoo.extras import installed
from tubelens.zoo.recipe import EXACT, Recipe

PACKAGES = {"pytorchvideo": "pytorchvideo", "hf": "transformers", "keras": "keras", "onnx": "onnxruntime"}
"""The package that each extra brings, by which it is recognised."""
FILES = (
    ("net.keras, net.h5, net.json", "keras"),
    ("net.onnx", "onnx"),
    ("folders and hf:OWNER/NAME", "hf"),
)
"""What else loads, and the extra that it needs."""
LEGEND = """
tubes: yes where they are exact. weights: here where official ones are on this machine, official
where there are any to be had, else file. needs: an extra; no and its name where it is missing.
`tubelens models NAME` tells all of one: classes, sampling, files, licence.

package.module:factory and path.py:factory load too, and:"""
COLUMNS = ("name", "clip", "params", "layer", "tubes", "weights", "needs")
LONGEST = 18
"""Letters of a layer's name that the table shows."""


@dataclass
class Models:
    """List the models that load by name, and tell what one of them is.

    Example: tubelens models

    Example: tubelens models r3d_18
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """Only those whose name contains it; all that is known of the one that is called so."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """A table a family, or a list of what is known of one."""
        found = [r for r in zoo.MODELS.values() if self.name.lower() in r.name.lower()]
        if not found:
            raise OptionError(
                f"no model whose name contains {self.name!r}{nearest(self.name, zoo.MODELS)}:"
                " `tubelens models` lists them"
            )
        if self.json:
            print_json([facts(r) for r in found])
            return 0
        one = zoo.MODELS.get(self.name) or (found[0] if len(found) == 1 else None)
        if one is not None:
            _describe(one)
            others = [r.name for r in found if r is not one]
            if others:
                print(f"Also: {', '.join(others)}.")
            return 0
        print("\n".join(table(found)))
        if not self.name:
            print(LEGEND)
            for what, extra in FILES:
                print(f"  {what:28}  extra {extra}: {_installed(extra)}")
        return 0


def facts(r: Recipe) -> dict[str, Any]:
    """What is known of a recipe, ready for JSON."""
    spec = r.spec
    return {
        "name": r.name,
        "source": r.source,
        "frames": spec.frames,
        "size": list(spec.size),
        "resize": spec.resize,
        "stride": spec.stride,
        "rate": spec.rate,
        "bands": list(spec.bands),
        "sampling": spec.sampling,
        "snippet": spec.snippet,
        "parameters": r.parameters,
        "classes": r.classes,
        "output": r.output,
        "layer": r.layer,
        "tubes": r.tubes,
        "weights": list(r.official),
        "cached": {name: None if (at := cache(r, name)) is None else str(at) for name in r.official},
        "styles": [style.name for style in r.styles],
        "licence": r.licence,
        "extra": r.extra,
        "installed": r.extra is None or _is_installed(r.extra),
    }


def cache(r: Recipe, official: str) -> Path | None:
    """The file in which official weights lie on this machine; None where they do not."""
    if r.extra is not None and not _is_installed(r.extra):
        return None  # the library knows the name of the file
    if r.cached is not None:
        at = Path(r.cached(official))
        return at if at.exists() else None
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    return next(iter(sorted(hub.glob(f"{r.name}-*.pth"))), None)


def table(recipes: Sequence[Recipe]) -> list[str]:
    """Lines: families under the papers they come from, columns of one width throughout."""
    rows = [_row(r) for r in recipes]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  " + "  ".join(f"{c:{w}}" for c, w in zip(cells, widths, strict=True)).rstrip()

    families: dict[str, list[list[str]]] = {}
    for r, row in zip(recipes, rows, strict=True):
        families.setdefault(r.source, []).append(row)
    lines = [line(COLUMNS)]
    for source, family in families.items():
        lines += ["", shorten(source, 100, placeholder="…"), *map(line, family)]
    return lines


def _row(r: Recipe) -> list[str]:
    t, (h, w) = r.spec.frames, r.spec.size
    layer = r.layer if len(r.layer) <= LONGEST else f"{r.layer[: LONGEST - 11]}…{r.layer[-10:]}"
    here = r.shipped or any(cache(r, name) is not None for name in r.official)
    return [
        r.name,
        f"{t}x{h}x{w}",
        f"{r.parameters / 1e6:.2f}M",
        layer,
        "yes" if r.tubes == EXACT else "no",
        "here" if here else "official" if r.official else "file",
        "" if r.extra is None else r.extra if _is_installed(r.extra) else f"no {r.extra}",
    ]


def _describe(r: Recipe) -> None:
    spec = r.spec
    resize = f" of {spec.resize}" if spec.resize else ""
    step = f"{spec.rate:g} a second" if spec.rate is not None else f"every {_nth(spec.stride)}"
    snippet = f" of {spec.snippet}" if spec.snippet > 1 else ""
    weights = [f"{name} ({cache(r, name) or 'not here'})" for name in r.official] or ["none official"]
    if r.shipped:
        weights = ["bundled (in this package)"]
    rows = [
        ("source", r.source),
        ("clip", f"{spec.frames} frames, {spec.size[0]}x{spec.size[1]}{resize}, {' '.join(spec.bands)}"),
        ("sampling", f"{spec.sampling}{snippet}; dense: {step}"),
        ("parameters", f"{r.parameters:,} for {r.classes} classes"),
        ("gives", r.output),
        ("layer", r.layer),
        ("tubes", "exact" if r.tubes == EXACT else f"no: {r.tubes}"),
        ("weights", "\n".join([*weights, "or a file, or random"])),
        ("files as of", ", ".join(s.name for s in r.styles) or "its own names"),
        ("licence", r.licence or "not known"),
        ("needs", "nothing more" if r.extra is None else f"extra {r.extra}: {_installed(r.extra)}"),
    ]
    print(r.name)
    for name, said in rows:
        first, *more = said.split("\n")
        print("\n".join([f"  {name:12}  {first}", *(f"{'':16}{line}" for line in more)]))


def _nth(stride: int) -> str:
    return "frame" if stride == 1 else f"{stride}{ {2: 'nd', 3: 'rd'}.get(stride, 'th') } frame"


def _is_installed(extra: str) -> bool:
    return installed(PACKAGES.get(extra, extra))


def _installed(extra: str) -> str:
    return "installed" if _is_installed(extra) else f"pip install 'tubelens[{extra}]'"
