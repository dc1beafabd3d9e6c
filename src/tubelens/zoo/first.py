"""The convolutions of a network that are fed the bands of the clip themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tubelens.errors import OptionError
from tubelens.model import TorchModel, frozen_part, untouched

LEVELS = (0.2317, 0.4113, 0.6719)
"""What the three bands of the clip are painted that is followed; such that no mean makes them nought."""
CHANGED = 0.8331
"""Another level for each."""


@dataclass(frozen=True)
class First:
    """A convolution that is fed bands.

    Attributes:
        name: of the module.
        channels: for each channel of its input the number of the band that it is; None: something else.
    """

    name: str
    channels: tuple[int | None, ...]

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """The channels that are the three bands of one frame, frame after frame.

        Raises:
            OptionError: they are not next to each other.
        """
        found, at = [], 0
        while at < len(self.channels):
            three = tuple(range(at, min(at + 3, len(self.channels))))
            if sorted(str(band) for band in self.seen(three)) == ["0", "1", "2"]:
                found.append(three)
                at += 3
            elif self.channels[at] is None:
                at += 1
            else:
                raise OptionError(
                    f"{self.name} is fed the bands of a frame apart from each other: use replicate"
                )
        return found

    def seen(self, channels: tuple[int, ...]) -> list[int | None]:
        """The bands that these channels are."""
        return [self.channels[c] for c in channels]


def first_convolutions(model: TorchModel) -> list[First]:
    """The convolutions whose input has the three bands as channels, untouched but for the `pack`.

    A clip is painted in three plain colours. What the `pack` makes of each is found by changing one after
    the other; a channel of a convolution's input that holds this value, and nothing else but padding, is
    that band. So maps that a network computes first (PAN's persistence) are told from bands.

    Raises:
        OptionError: there is none.
    """
    spec = model.spec
    clip = torch.tensor(LEVELS).view(1, 3, 1, 1, 1).expand(1, 3, spec.frames, *spec.size).clone()
    pack = frozen_part(model.pack, clip)
    none = f"no convolution of {model.name} is fed the bands themselves: use replicate"
    values = _levels(pack(clip.to(model.device)))
    levels = []
    for band in range(3):
        other = clip.clone()
        other[:, band] = CHANGED
        gone = [v for v in values if not _among(v, _levels(pack(other.to(model.device))))]
        if len(gone) != 1 or gone[0] == 0:  # mixed by the pack, or not to be told from padding
            raise OptionError(none)
        levels.append(gone[0])
    if len(set(levels)) < 3:  # a mean of the bands changes with each of them
        raise OptionError(none)
    calls: dict[str, list[tuple[int | None, ...]]] = {}
    with ExitStack() as stack:
        for name, module in model.submodules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):

                def look(conv: Any, inputs: Any, named: dict[str, Any], name: str = name) -> None:
                    x = next(iter((*inputs, *named.values())), None)
                    if isinstance(x, Tensor):
                        calls.setdefault(name, []).append(_bands(x, levels))

                stack.callback(module.register_forward_pre_hook(look, with_kwargs=True).remove)
        with untouched(model.module), torch.no_grad():
            model.run(clip)
    found = [First(name, seen[0]) for name, seen in calls.items() if any({*s} - {None} for s in seen)]
    for first in found:
        module = model.submodule(first.name)
        if any(seen != first.channels for seen in calls[first.name]):
            raise OptionError(f"{first.name} is fed bands and features in turn: use replicate")
        own = dict(module.named_parameters(recurse=False))  # under weight norm the kernels are none of them
        if getattr(module, "groups", 1) != 1 or "weight" not in own:
            raise OptionError(f"{first.name} has channels apart or weights that are computed: use replicate")
        assert first.groups  # or says why it cannot be
    if not found:
        raise OptionError(none)
    return found


def _bands(x: Tensor, levels: list[float]) -> tuple[int | None, ...]:
    """Which band each channel `(b, c, ...)` is."""
    found: list[int | None] = []
    for channel in x.transpose(0, 1).flatten(1):
        values = [v for v in (float(channel.amin()), float(channel.amax())) if v != 0]  # nought is padding
        fits = [
            band
            for band, level in enumerate(levels)
            if values and all(_among(v, _rounded(level)) for v in values)
        ]
        found.append(fits[0] if fits else None)
    return tuple(found)


def _rounded(level: float) -> list[float]:
    """A level, and what is left of it where a network computes in half precision."""
    exact = torch.tensor(level, dtype=torch.float64)
    return [level, *(float(exact.to(dtype)) for dtype in (torch.bfloat16, torch.float16))]


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5)


def _among(value: float, values: list[float]) -> bool:
    return any(_same(value, v) for v in values)


def _levels(packed: Any) -> list[float]:
    """The values in what a network is fed."""
    found: list[float] = []
    for tensor in _tensors(packed):
        for value in torch.unique(tensor.detach()).tolist():
            if not _among(value, found):
                found.append(value)
    return found


def _tensors(packed: Any) -> Iterator[Tensor]:
    if isinstance(packed, Tensor):
        yield packed
    elif isinstance(packed, Mapping):
        for value in packed.values():
            yield from _tensors(value)
    elif isinstance(packed, list | tuple):
        for value in packed:
            yield from _tensors(value)
