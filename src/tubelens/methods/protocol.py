"""What a method is. Frozen dataclasses that fit these shapes; there is no base class.

A method says what it needs (`needs`), what a class name stands for when it explains it (`explains`: the logit
or the probability), and turns one clip and several targets into one explanation each. Activation methods can
also read a capture that others share (`FromCapture`); methods whose effort can be chosen say what they will
cost and fit themselves to a budget (`Scalable`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from tubelens.capture import Capture
from tubelens.clip import Clip
from tubelens.explanation import Explanation
from tubelens.running import RUN, Passes, Run
from tubelens.target import Target

Needs = Literal["scorer", "layers", "gradients"]
"""A black box will do; activations (and gradients) at a layer; gradients down to the pixels."""


@runtime_checkable
class Method(Protocol):
    """Explains one clip."""

    needs: ClassVar[Needs]
    explains: ClassVar[Any]

    def __call__(
        self, model: Any, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target."""
        ...


@runtime_checkable
class FromCapture(Method, Protocol):
    """Reads activations and head gradients off one forward, which other methods may share."""

    needs_probe: ClassVar[bool]
    layer: str | tuple[str, ...] | None

    def from_capture(
        self, capture: Capture, clip: Clip, targets: Sequence[Target], start: float | None = None
    ) -> list[Explanation]:
        """The same from a capture that holds this method's layers; `start` is when the work began."""
        ...


@runtime_checkable
class Scalable(Method, Protocol):
    """Its number of passes can be chosen."""

    def passes(self, model: Any, clip: Clip) -> Passes:
        """What it will cost on this clip, at most one cheap dry run ahead of the work."""
        ...

    def afford(self, forwards: int, model: Any, clip: Clip) -> Any:
        """The same method at the effort that so many forwards buy (a forward and backward counts as three).

        Raises:
            OptionError: not even its least effort fits; the message says what that is.
        """
        ...


def refusal(made: Any) -> str:
    """Why something is not a method, and what it lacks."""
    if isinstance(made, type):
        return f"{made.__name__} is a class and not a method yet: write {made.__name__}(), with its options"
    lacking = [name for name in ("needs", "explains") if not hasattr(made, name)]
    lacking += [] if callable(made) else ["a call"]
    shown = repr(made)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    said = f"lacks {', '.join(lacking)}; " if lacking else ""
    return f"{shown} is not a method: {said}its call takes (model, clip, targets, run)"
