"""Other people's methods and metrics: entry points; and whatever else is named `module:name`.

They are looked for only when a name is given that is not ours, so importing Tubelens imports none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from tubelens.errors import OptionError, TubelensError

Group = Literal["methods", "metrics"]


def named(group: Group, name: str) -> Any | None:
    """What another package offers under that name (entry point `tubelens.methods`, ...), None if nothing.

    Raises:
        OptionError: it is offered but cannot be imported.
    """
    for entry in entry_points(group=f"tubelens.{group}", name=name):
        try:
            return entry.load()
        except Exception as error:  # whatever the other package does
            raise OptionError(
                f"{name} ({entry.value}): cannot be imported: {type(error).__name__}: {error}"
            ) from error
    return None


def offered(group: Group) -> list[str]:
    """The names that other packages offer."""
    return sorted({entry.name for entry in entry_points(group=f"tubelens.{group}")})


def imported(spec: str, what: str = "function") -> Any:
    """What `package.module:name` or `path.py:name` names.

    Raises:
        OptionError: no such file, it cannot be imported, or it has nothing callable of that name.
    """
    where, _, name = spec.rpartition(":")
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise OptionError(f"{where}: no such file")
            loaded = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert loaded is not None
            assert loaded.loader is not None
            module = importlib.util.module_from_spec(loaded)
            sys.modules.setdefault(Path(where).stem, module)  # dataclasses look themselves up there
            beside = os.path.dirname(os.path.realpath(where))
            if beside not in sys.path:
                sys.path.append(beside)  # for the modules beside it, as when Python runs the file
            loaded.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except TubelensError:
        raise
    except Exception as error:  # whatever the user's file does
        raise OptionError(f"{spec}: cannot be imported: {type(error).__name__}: {error}") from error
    made = getattr(module, name, None)
    if not callable(made):
        raise OptionError(f"{spec}: {where} has no {what} {name!r}")
    return made
