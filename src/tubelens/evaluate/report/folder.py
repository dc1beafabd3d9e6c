"""A folder of results that takes its place whole: made beside, then renamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tubelens.errors import OptionError, OutputError
from tubelens.files import replacing

LIST = "files.json"
"""What a folder holds, by which a later report knows that it may take its place."""


@contextmanager
def whole(target: str | Path) -> Iterator[Path]:
    """A temporary folder beside `target`; it takes its place if the block succeeds, and goes if not.

    An earlier folder is replaced only if nothing is in it but what an earlier call put there.

    Raises:
        OptionError: it holds other files, or is a file.
        OutputError: it could not be written.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise OptionError(f"{target}: a report is a folder, and this is a file: give another --out")
    try:
        with replacing(target, folder=True, strangers=_strangers) as made:
            yield made
            names = sorted(_inside(made))
            (made / LIST).write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    except OutputError as error:
        raise OutputError(f"{error}: give another --out") from error


def _strangers(folder: Path) -> list[str]:
    """What an earlier call did not put there."""
    return sorted(_inside(folder) - _ours(folder))


def _inside(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def _ours(folder: Path) -> set[str]:
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
        return {str(name) for name in listed} | {LIST}
    except (OSError, ValueError, TypeError):
        return set()
