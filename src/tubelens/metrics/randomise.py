"""Networks of random weights, made of the user's own for a time and given back as they were.

Weights are randomised tensor by tensor: normal values with the tensor's own mean and standard deviation, so
that activations keep their order of magnitude (default initialisations often leave scores that are all bias).
A tensor of one equal value (a fresh bias or norm weight) therefore stays. Buffers stay too, the running means
and variances of batch norms among them: they are statistics of the data, which no gradient taught. Shared
weights are randomised once, and stay shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.clip import Clip
from tubelens.cut import hooked
from tubelens.model import TorchModel


@dataclass(frozen=True)
class Stage:
    """Weights that are randomised together: those of one layer.

    Attributes:
        name: of the layer; empty for what the network itself holds, such as embeddings of places.
        parameters: that no stage before it has.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]


def stages(model: TorchModel, clip: Clip | None = None) -> list[Stage]:
    """The layers that hold weights, from the head down.

    A weight belongs to the innermost layer that holds it, a shared one to the layer nearest to the head. With
    a clip, the order is that in which one forward calls the layers, reversed (a layer that is not called by
    itself keeps its place in the registration); without one it is that of registration, reversed.
    """
    layers = [("", model.module), *model.submodules()]
    called: dict[int, int] = {}

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        called.setdefault(id(layer), len(called))

    if clip is not None:
        with ExitStack() as stack:
            for _, layer in layers:
                stack.enter_context(hooked(layer, note))
            model(clip.pixels[None])
    keys: list[tuple[float, int]] = []
    for i, (_, layer) in enumerate(layers):
        # what holds other layers comes below all of them
        first = min((called[id(m)] for m in layer.modules() if id(m) in called), default=None)
        keys.append((keys[-1][0] if keys else 0.0, i) if first is None else (float(first), i))
    taken: set[int] = set()
    found = []
    for _, i in sorted(keys, reverse=True):
        name, layer = layers[i]
        own = [p for p in layer.parameters() if id(p) not in taken and p.is_floating_point()]
        taken |= {id(p) for p in own}
        if own:
            found.append(Stage(name, tuple(own)))
    return found


@contextmanager
def randomising(stages: Sequence[Stage], seed: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields a function that randomises the first so many stages; after the block all weights are back.

    The weights' own memory is never written to: each parameter points to other values for a time, then to its
    own again, so that even a graph that waits for its backward stays valid. What a weight is replaced by
    depends on the seed and its place only.

    Example:
        >>> with randomising(stages(model), seed=0) as upto:
        ...     upto(1)  # the head alone
        ...     random_head = method(model, clip, targets)
    """
    kept = [(p, p.data) for stage in stages for p in stage.parameters]
    by_memory: dict[tuple[int, ...], Tensor] = {}
    done = 0

    def upto(count: int) -> None:
        nonlocal done
        for number in range(done, count):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            for p in stages[number].parameters:
                own = p.data
                memory = (own.data_ptr(), *own.shape, *own.stride())
                if memory not in by_memory:  # two parameters may be views of one memory
                    by_memory[memory] = random_like(own, generator)
                p.data = by_memory[memory]
        done = max(done, count)

    try:
        yield upto
    finally:
        for p, own in kept:
            p.data = own


def random_like(weights: Float[Tensor, "..."], generator: torch.Generator) -> Float[Tensor, "..."]:
    """Normal values with the mean and the standard deviation of these, on their device."""
    values = weights.double()
    noise = torch.randn(weights.shape, generator=generator).to(values)
    drawn = torch.empty_like(weights)  # strides too
    return drawn.copy_(values.mean() + values.std(correction=0) * noise)
