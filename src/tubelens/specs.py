"""Frozen dataclasses by name, with their options: `rise(n=500, fill=blur)` is `RISE(n=500, fill="blur")`.

Methods and metrics are written like this on the command line, in records and in manifests. A name is one of
a table, one that another package offers (an entry point), or `module:Class`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tubelens.errors import OptionError, nearest
from tubelens.plugins import Group, imported, named, offered

_KINDS: dict[Any, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    bool: (bool, "true or false"),
}
_WORDS = {"true": True, "false": False, "none": None}
_WRITTEN = re.compile(r"\s*([^()\s,=]+)\s*(?:\((.*)\))?\s*", re.DOTALL)


def _nothing(make: Callable[..., Any], option: str, value: Any) -> str:
    return ""


@dataclass(frozen=True)
class Named:
    """A table of classes, and how what stands in it is written.

    Attributes:
        word: what an entry is called, such as `method`.
        table: name -> class.
        group: entry points of other packages.
        nested: options whose value is itself one of these.
        why_not: of a class, an option that it does not have or not at this value: what to say beyond that.
    """

    word: str
    table: Mapping[str, Callable[..., Any]]
    group: Group
    nested: tuple[str, ...] = ()
    why_not: Callable[[Callable[..., Any], str, Any], str] = _nothing

    def make(self, written: str, **options: Any) -> Any:
        """What is written, with more options.

        Raises:
            OptionError: unknown name or option, or a value that the option cannot have.
        """
        name, text = self.split(written)
        make = self.find(name)
        options = self._options(name, text) | options
        for key in self.nested:
            if isinstance(options.get(key), str):
                options[key] = self.make(options[key])
        self._check(name, make, options)
        try:
            return make(**options)
        except TypeError as error:
            raise OptionError(f"{self.word} {name!r}: {error}") from error

    def split(self, written: str) -> tuple[str, str]:
        """The name, and what stands in its brackets.

        Raises:
            OptionError: a bracket is missing.
        """
        found = _WRITTEN.fullmatch(written)
        if found is None:
            if written.count("(") != written.count(")"):
                raise OptionError(
                    f"{self.word} {written!r}: a bracket is missing: write it as in {self._example()}"
                )
            self.find(written)  # complains
            raise OptionError(f"cannot read {self.word} {written!r}: write it as in {self._example()}")
        return found[1], found[2] or ""

    def find(self, name: str) -> Callable[..., Any]:
        """The class of that name.

        Raises:
            OptionError: nobody knows it; the nearest names are offered.
        """
        if name in self.table:
            return self.table[name]
        make = imported(name, "class") if ":" in name else named(self.group, name)
        if make is None:
            near = nearest(name, [*self.table, *offered(self.group)])
            raise OptionError(
                f"unknown {self.word} {name!r}{near}: `tubelens {self.word}s` lists them; one's own is"
                " written module:Class"
            )
        if not (isinstance(make, type) and is_dataclass(make)):
            raise OptionError(f"{self.word} {name!r}: must be a dataclass, so that its repr rebuilds it")
        return make

    def option_names(self, name: str) -> list[str]:
        """The options of a class, by its name."""
        return [field.name for field in fields(self.find(name)) if field.init]  # type: ignore[arg-type]

    def accepts(self, name: str, option: str, value: Any) -> bool:
        """Whether it has the option, and may have it at this value."""
        if option not in self.option_names(name):
            return False
        allowed = _allowed(get_type_hints(self.find(name))[option])
        return not allowed or value is None or value in allowed

    def short(self, written: str) -> str:
        """The name in the table of a repr (`GradCAMpp(layer=None)` is `gradcam++`)."""
        kind = written.partition("(")[0]
        names = {getattr(make, "__name__", ""): name for name, make in self.table.items()}
        return names.get(kind, kind)

    def brief(self, written: str) -> str:
        """A repr without the options that are at their defaults: `RISE(n=400)`; as it is where it is none."""
        try:
            return self._brief(ast.parse(written, mode="eval").body, written)
        except (SyntaxError, ValueError):
            return written

    def _brief(self, node: ast.expr, written: str) -> str:
        text = ast.get_source_segment(written, node) or written
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            return text
        makes = {getattr(make, "__name__", ""): make for make in self.table.values()}
        make = makes.get(node.func.id)
        if not is_dataclass(make) or node.args or any(key.arg is None for key in node.keywords):
            return text
        usual = {f.name: repr(f.default) for f in fields(make)}
        said = [
            (str(key.arg), ast.get_source_segment(written, key.value), key.value) for key in node.keywords
        ]
        shown = [
            f"{name}={self._brief(value, written)}" for name, now, value in said if usual.get(name) != now
        ]
        return f"{node.func.id}({', '.join(shown)})"

    def _check(self, name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
        known = self.option_names(name)
        for option, value in options.items():
            if option not in known:
                others = f"{nearest(option, known)}: it has {', '.join(known) or 'none'}"
                why = self.why_not(make, option, value) or others
                raise OptionError(f"{self.word} {name!r} has no option {option!r}{why}")
        for option, value in options.items():
            if not self.accepts(name, option, value):
                allowed = " or ".join(map(str, _allowed(get_type_hints(make)[option])))
                why = self.why_not(make, option, value)
                raise OptionError(f"{self.word} {name!r}: {option} must be {allowed}, not {value!r}{why}")
        hints = get_type_hints(make)
        for option, value in options.items():
            kind = _KINDS.get(hints[option])
            if kind and (
                not isinstance(value, kind[0]) or (hints[option] is not bool and isinstance(value, bool))
            ):
                raise OptionError(f"{self.word} {name!r}: {option} must be {kind[1]}, not {value!r}")

    def _options(self, name: str, text: str) -> dict[str, Any]:
        """`n=500, fill=blur, layer=blocks.0` as a dictionary; what is no Python value is a word."""
        found = {}
        for item in _split(text):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not (key.isidentifier() and equals and value):
                raise OptionError(
                    f"{self.word} {name!r}: cannot read its options ({text}): write them as in"
                    f" {self._example()}"
                )
            try:
                found[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found[key] = self.make(value) if "(" in value else _WORDS.get(value.lower(), value)
        return found

    def _example(self) -> str:
        return "rise(n=500, fill=blur)" if self.word == "method" else "insertion(steps=32, fill=blur)"


def _allowed(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, also where it may be None; none where any value will do."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = [part for part in get_args(hint) if part is not type(None)]
    return get_args(parts[0]) if len(parts) == 1 and get_origin(parts[0]) is Literal else ()


def _split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    items, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return [item for item in items if item.strip()]
