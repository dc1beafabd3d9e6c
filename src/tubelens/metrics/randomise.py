"""Networks of random weights, made of the user's own for a time and given back as they were.

Weights are randomised tensor by tensor: normal values with the tensor's own mean and standard deviation, so
that activations keep their order of magnitude (default initialisations often leave scores that are all bias).
A tensor of one equal value (a fresh bias or norm weight) therefore stays. Buffers stay too, the running means
and variances of batch norms among them: they are statistics of the data, which no gradient taught. Shared
weights are randomised once, and stay shared, also where they are different views of one memory.

Meanwhile the network itself is the random one: no other thread may use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.clip import Clip
from tubelens.cut import hooked
from tubelens.errors import LayerError
from tubelens.model import TorchModel


@dataclass(frozen=True)
class Stage:
    """Weights that are randomised together: those of one layer.

    Attributes:
        name: of the layer; empty for what the network itself holds, such as embeddings of places.
        parameters: that no stage before it has.
        network: that all stages belong to.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    network: nn.Module


def stages(model: TorchModel, clip: Clip | None = None) -> list[Stage]:
    """The layers that hold weights, from the head down.

    A weight belongs to the innermost layer that holds it, a shared one to the layer nearest to the head. With
    a clip, the order is that in which one forward calls the layers, reversed (a layer that is not called by
    itself, or is compiled by TorchScript, keeps its place in the registration); without one it is that of
    registration, reversed.

    Raises:
        LayerError: no layer holds any.
    """
    layers = [("", model.module), *model.submodules()]
    called: dict[int, int] = {}

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        called.setdefault(id(layer), len(called))

    if clip is not None:
        with ExitStack() as stack:
            for _, layer in layers:
                with suppress(RuntimeError):  # a scripted module takes no hooks
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
        every = (p for p in layer.parameters() if p.is_floating_point() and p.numel())
        own = [p for p in every if id(p) not in taken]
        taken |= {id(p) for p in own}
        if own:
            found.append(Stage(name, tuple(own), model.module))
    if not found:
        raise LayerError(f"{model.name} has no weights to randomise")
    return found


@contextmanager
def randomising(stages: Sequence[Stage], seed: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields a function that randomises the first so many stages; after the block all weights are back.

    The weights' own memory is never written to: each parameter points to other values for a time, then to its
    own again, so that even a graph that waits for its backward stays valid. What a weight is replaced by
    depends on the seed and its place only. Plain tensors that layers keep as attributes, as old-style weight
    norm does in each forward, are given back too (the same tensors; one that was written to in place keeps
    what was written).

    Example:
        >>> with randomising(stages(model), seed=0) as upto:
        ...     upto(1)  # the head alone
        ...     random_head = method(model, clip, targets)
    """
    kept = [(p, p.data) for stage in stages for p in stage.parameters]
    attributes = [(m, dict(vars(m))) for m in stages[0].network.modules()] if stages else []
    twins: dict[tuple[int, torch.dtype], _Twin] = {}
    done = 0

    def upto(count: int) -> None:
        nonlocal done
        for number in range(done, count):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            for p in stages[number].parameters:
                own = p.data
                key = (own.untyped_storage().data_ptr(), own.dtype)
                if key not in twins:
                    twins[key] = _Twin(own)
                p.data = twins[key].random(own, generator)
        done = max(done, count)

    try:
        yield upto
    finally:
        for p, own in kept:
            p.data = own
        for m, before in attributes:
            _give_back(m, before)


class _Twin:
    """Random values in place of a memory that one parameter or several are views of."""

    def __init__(self, weights: Tensor) -> None:
        size = weights.untyped_storage().nbytes() // weights.element_size()
        self.values = torch.empty(size, dtype=weights.dtype, device=weights.device)
        self.drawn = torch.zeros(size, dtype=torch.bool, device=weights.device)

    def random(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """The view of these weights; what another view of them drew before stays."""
        if any(n > 1 and step == 0 for n, step in zip(own.shape, own.stride(), strict=True)):
            return random_like(own, generator)  # expanded: it cannot be written to place by place
        view, drawn = (
            flat.as_strided(own.shape, own.stride(), own.storage_offset())
            for flat in (self.values, self.drawn)
        )
        if not bool(drawn.all()):
            view.copy_(view.where(drawn, random_like(own, generator)))
            drawn.fill_(True)
        return view


def _give_back(module: nn.Module, before: dict[str, Any]) -> None:
    """The attributes that hold tensors, or held them, as they were."""
    now = vars(module)
    for name in [*now.keys() | before.keys()]:
        old, new = before.get(name), now.get(name)
        if new is old or not (isinstance(old, Tensor) or isinstance(new, Tensor)):
            continue
        if name in before:
            now[name] = old
        else:
            del now[name]


def random_like(weights: Float[Tensor, "..."], generator: torch.Generator) -> Float[Tensor, "..."]:
    """Normal values with the mean and the standard deviation of these, on their device."""
    values = weights.double()
    noise = torch.randn(weights.shape, generator=generator).to(values)
    drawn = torch.empty_like(weights)  # strides too
    return drawn.copy_(values.mean() + values.std(correction=0) * noise)
