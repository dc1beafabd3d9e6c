"""Every error that Tubelens raises on purpose.

    TubelensError                 exit code of the command line
    ├── InputError                2   what was given cannot be used
    │   ├── VideoError              a file, folder or stream that cannot be read as video
    │   ├── TargetError             unknown label, class index out of range
    │   ├── LayerError              no such layer, or its output has no place in time and space
    │   ├── HeadError               the method needs a kind of head that this model does not have
    │   ├── CheckpointError         weights missing, unreadable, or of another architecture
    │   └── OptionError             a value or combination of options that means nothing
    └── WorkError                 1   the input was fine, the work failed
        ├── ScoreError              the model gave NaN or infinity
        └── OutputError             the result could not be written (disk full, no permission)

Each message is one line: what is wrong, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TubelensError(Exception):
    """Base of all errors below; `exit_code` is what the command line returns.

    `nothing` is true where a method works on this kind of network, but finds nothing to explain with these
    weights on this clip: a gradient that is zero, a layer without a varying channel.
    """

    exit_code = 1

    def __init__(self, message: str, *, nothing: bool = False) -> None:
        super().__init__(" ".join(str(message).split()))
        self.nothing = nothing


class InputError(TubelensError):
    """What was given cannot be used."""

    exit_code = 2


class VideoError(InputError):
    """A file, folder or stream that cannot be read as video."""


class TargetError(InputError):
    """An unknown label or a class index out of range."""


class LayerError(InputError):
    """No such layer, or a layer whose output has no place in time and space."""


class HeadError(InputError):
    """The method needs a kind of head that this model does not have."""


class CheckpointError(InputError):
    """Weights that are missing, unreadable, or of another architecture."""


class OptionError(InputError):
    """A value or a combination of options that means nothing."""


class WorkError(TubelensError):
    """The input was fine; the work failed."""


class ScoreError(WorkError):
    """The model returned NaN or infinity."""


class OutputError(WorkError):
    """The result could not be written."""


def nearest(word: str, known: Iterable[str], n: int = 3) -> str:
    """A hint for a mistyped name: `" (did you mean 'a' or 'b'?)"`, or `""` when nothing is near.

    Matching ignores case; names that contain the word count as near.
    """
    names = list(known)
    by_lower = {name.lower(): name for name in names}
    close = [by_lower[m] for m in difflib.get_close_matches(word.lower(), by_lower, n=n, cutoff=0.6)]
    inside = [name for name in names if word and word.lower() in name.lower() and name not in close]
    found = (close + inside)[:n]
    return f" (did you mean {' or '.join(repr(name) for name in found)}?)" if found else ""
