"""The methods by name. A method is a frozen dataclass that reads like its paper's formula."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tubelens.errors import OptionError, nearest
from tubelens.methods.tubes import Tubes


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        make: the class.
        cost: forwards F, backwards through the head only B_h, forwards and backwards through everything B;
            C channels of the layer, n, steps, windows W: the method's options; F_h a pass through the head.
        source: the paper.
    """

    make: Callable[..., Any]
    cost: str
    source: str

    @property
    def needs(self) -> str:
        """What it takes: a scorer (any black box), a network's layers, or gradients down to the pixels."""
        return str(self.make.needs)  # type: ignore[attr-defined]


METHODS: dict[str, Entry] = {
    # activations of a layer and gradients of the head
    "tubes": Entry(Tubes, "1 F + 1 B_h", "Stergiou et al., Saliency Tubes, ICIP 2019"),
}


def method(name: str, **options: Any) -> Any:
    """The method of that name with its options, which may also stand in the name: `"rise(n=500, p=0.3)"`.

    Raises:
        OptionError: unknown name or option.
    """
    found = re.fullmatch(r"\s*([\w+]+)\s*(?:\((.*)\))?\s*", name)
    if found is None or found[1] not in METHODS:
        known = found[1] if found else name
        raise OptionError(f"unknown method {known!r}{nearest(known, METHODS)}: `tubelens methods` lists them")
    options = _options(found[1], found[2] or "") | options
    if isinstance(options.get("base"), str):
        options["base"] = method(options["base"])
    make = METHODS[found[1]].make
    known_options = option_names(found[1])
    for option in options:
        if option not in known_options:
            raise OptionError(
                f"method {found[1]!r} has no option {option!r}{nearest(option, known_options)}:"
                f" it has {', '.join(known_options) or 'none'}"
            )
    for option, value in options.items():
        if not accepts(found[1], option, value):
            allowed = " or ".join(map(str, _allowed(get_type_hints(make)[option])))
            raise OptionError(f"method {found[1]!r}: {option} must be {allowed}, not {value!r}")
    try:
        return make(**options)
    except TypeError as error:
        raise OptionError(f"method {found[1]!r}: {error}") from error


def accepts(name: str, option: str, value: Any) -> bool:
    """Whether the method has the option, and may have it at this value."""
    if option not in option_names(name):
        return False
    allowed = _allowed(get_type_hints(METHODS[name].make)[option])
    return not allowed or value is None or value in allowed


def _allowed(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, also where it may be None; none where any value will do."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = [part for part in get_args(hint) if part is not type(None)]
    return get_args(parts[0]) if len(parts) == 1 and get_origin(parts[0]) is Literal else ()


def option_names(name: str) -> list[str]:
    """The options of a method, by its name."""
    return [field.name for field in fields(METHODS[name].make)]  # type: ignore[arg-type]


def short_name(written: str) -> str:
    """The name in the table of a method's repr (`GradCAMpp(layer=None)` is `gradcam++`)."""
    kind = written.partition("(")[0]
    names = {getattr(entry.make, "__name__", ""): name for name, entry in METHODS.items()}
    return names.get(kind, kind)


def _options(name: str, text: str) -> dict[str, Any]:
    """`n=500, fill=blur` as a dictionary; a bare word is a string."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("options are written key=value")
        return {str(k.arg): _value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise OptionError(
            f"method {name!r}: cannot read its options ({text}): write them as in rise(n=500, fill=blur)"
        ) from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call):
        return method(ast.unparse(node))
    return ast.literal_eval(node)
