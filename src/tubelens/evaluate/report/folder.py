"""A folder of results that takes its place whole: made beside, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tubelens.errors import OptionError, OutputError

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
    strangers = sorted(_inside(target) - _ours(target)) if target.is_dir() else []
    if strangers:
        raise OptionError(
            f"{target}: this folder holds other files ({strangers[0]}), which would go: give another --out"
        )
    room: Path | None = None
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}-", dir=target.parent))
        made = room / "new"
        made.mkdir()
        yield made
        names = sorted(_inside(made))
        (made / LIST).write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
        if target.exists():
            os.replace(target, room / "earlier")
        try:
            os.replace(made, target)
        except BaseException:
            if (room / "earlier").exists():
                os.replace(room / "earlier", target)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{target}: cannot be written: {reason}; nothing was left behind: give another --out"
        ) from error
    finally:
        if room is not None:
            shutil.rmtree(room, ignore_errors=True)
        for parent in missing:  # those that were made for nothing are empty
            with suppress(OSError):
                parent.rmdir()


def _inside(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def _ours(folder: Path) -> set[str]:
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
        return {str(name) for name in listed} | {LIST}
    except (OSError, ValueError, TypeError):
        return set()
