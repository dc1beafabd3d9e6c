"""What methods will cost on a model, and fitting them to a budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tubelens.clip import Clip
from tubelens.methods.protocol import FromCapture, Scalable
from tubelens.model import Model, TorchModel
from tubelens.running import RUN, Budget, Passes, Run
from tubelens.scoring import pilots

BACKWARD = 3
"""Forwards that a forward and backward through everything counts as (measured: 2.9 to 3.4)."""


def within(
    method: Any,
    budget: Budget,
    model: Model,
    clip: Clip,
    run: Run = RUN,
    seconds: float = 0.0,
    windows: int = 1,
    looked_up: int = 0,
) -> tuple[Any, tuple[str, ...]]:
    """The method at the effort that the budget buys, and what the user should know.

    Args:
        method: any.
        budget: of the whole explanation.
        model: what will be run.
        clip: one clip of it.
        run: at what precision.
        seconds: what a forward takes.
        windows: over how many clips the budget is spread.
        looked_up: forwards spent before, to find the class.

    Raises:
        OptionError: not even the method's least effort fits.
    """
    if not isinstance(method, Scalable):
        amount = f"{budget.forwards} forwards" if budget.forwards else f"{budget.seconds:g} s"
        return method, (f"its cost is fixed: the budget of {amount} changes nothing",)
    forwards = budget.forwards or max(1, int((budget.seconds or 0) / max(seconds, 1e-6)))
    forwards = forwards // windows - looked_up
    if method.needs != "gradients":
        forwards -= pilots(model, run, forwards)
    return method.afford(max(1, forwards), model, clip), ()


def one_forward(model: Model, clip: Clip) -> float:
    """Seconds that a forward of this clip takes, the first one, which is slower, not counted."""
    clips = clip.pixels[None]
    model(clips)
    start = time.perf_counter()
    model(clips)
    return time.perf_counter() - start


def cost(methods: Sequence[Any], model: Model, clip: Clip) -> Passes:
    """Passes that all methods together need on one clip; those that share a forward are counted once."""
    shared = isinstance(model, TorchModel) and any(isinstance(m, FromCapture) for m in methods)
    forwards, backwards = int(shared), 0
    for m in methods:
        if isinstance(m, Scalable):
            passes = m.passes(model, clip)
            forwards, backwards = forwards + passes.forwards, backwards + passes.backwards
        elif not isinstance(m, FromCapture):
            backwards += 1
    return Passes(forwards, backwards)


def in_forwards(passes: Passes) -> int:
    """The cost counted in forwards."""
    return passes.forwards + BACKWARD * passes.backwards
