"""Packages that only some models need: imported when asked for, never by `import tubelens`."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from tubelens.errors import OptionError


def need(package: str, extra: str, who: str) -> ModuleType:
    """The package.

    Args:
        package: what is imported.
        extra: of this project, that installs it.
        who: needs it, for the message.

    Raises:
        OptionError: it is not installed, or it cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise OptionError(
            f"{who} needs the extra {extra!r} ({error.name} is not installed):"
            f" pip install 'tubelens[{extra}]'"
        ) from error
    except ImportError as error:
        raise OptionError(f"{who} needs {package}, which cannot be imported: {error}") from error


def installed(package: str) -> bool:
    """Whether the package is there, without importing it."""
    return importlib.util.find_spec(package) is not None
