"""Writing without leaving halves: under a temporary name beside the target, renamed when complete."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tubelens.errors import OptionError, OutputError


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


@contextmanager
def replacing(
    path: str | os.PathLike[str],
    folder: bool = False,
    strangers: Callable[[Path], Sequence[str]] | None = None,
) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix; it takes the target's place if the block succeeds.

    Missing parent folders are made. On any error these and the temporary are removed, and an earlier target
    stays.

    Args:
        path: the target.
        folder: the target is a folder; the temporary one exists already, and is empty. An earlier one is
            replaced whole, and so it must hold nothing of anybody else's.
        strangers: what in an earlier folder is somebody else's; by default all but numbered frames.

    Raises:
        OptionError: the folder holds something else.
        OutputError: the block, or the renaming, failed with an OSError (disk full, no permission, ...).
    """
    target = Path(path)
    made: Path | None = None
    missing: list[Path] = []
    try:
        if target.is_dir() != folder and target.exists():
            kind = "a folder" if target.is_dir() else "a file"
            raise OutputError(f"{target}: cannot write here: {kind} of that name is in the way")
        if folder and target.is_dir() and (found := (strangers or _no_frames)(target)):
            raise OptionError(
                f"{target}: this folder holds other files ({found[0]}), which would go: give a new folder"
            )
        missing = [parent for parent in target.parents if not parent.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}-", dir=target.parent))
        made = room
        temporary = room / target.name
        if folder:
            temporary.mkdir()
        yield temporary
        _swap(temporary, target, room / "earlier") if folder else os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{target}: cannot be written: {reason}; nothing was left behind") from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        for parent in missing:  # those that were made for nothing are empty
            with suppress(OSError):
                parent.rmdir()


def _no_frames(folder: Path) -> list[str]:
    """What is in a folder besides numbered frames and their `info.json`."""
    return sorted(p.name for p in folder.iterdir() if not re.fullmatch(r"\d+\.png|info\.json", p.name))


def _swap(temporary: Path, target: Path, aside: Path) -> None:
    """Put a folder in another's place; the earlier one comes back if that fails."""
    if not target.exists():
        os.replace(temporary, target)
        return
    os.replace(target, aside)
    try:
        os.replace(temporary, target)
    except BaseException:
        os.replace(aside, target)
        raise
