"""What the tests of the multispectral experiment share: its files as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "multispectral"
Module = Callable[[str], ModuleType]
"""Gives a file of the example by its name."""


@pytest.fixture(scope="module")
def module() -> Iterator[Module]:
    """Files of the example by name; they import each other, as scripts do."""
    names = {path.stem for path in EXAMPLE.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & set(sys.modules)}
    sys.path.insert(0, str(EXAMPLE))
    yield importlib.import_module
    sys.path.remove(str(EXAMPLE))
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)
