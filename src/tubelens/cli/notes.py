"""What a user should know of a map before trusting what it seems to say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from tubelens.capture import LayerInfo, layers
from tubelens.errors import TubelensError
from tubelens.explanation import Explanation
from tubelens.model import Model, TorchModel


@dataclass
class Finer:
    """Finds, for maps without a time axis, the next layer up that has one; a dry run a network and clip size.

    Attributes:
        seen: layers of the networks that were looked at.
    """

    seen: dict[tuple[int, tuple[int, int, int]], list[LayerInfo]] = field(default_factory=dict)

    def noted(self, model: Model, e: Explanation) -> Explanation:
        """The explanation; with a note where its layer has one time step and the clip several.

        Windows that follow each other tell when, whatever each has.
        """
        layer = e.provenance.layer
        flat = e.size[0] > 1 and all(len(part.t) == 1 for part in e.parts)
        if layer is None or not flat or len({part.span for part in e.parts}) > 1:
            return e
        if not isinstance(model, TorchModel):
            return e
        text = f"{layer} has one time step, so the map does not tell when"
        finer = self._above(model, layer, e.size)
        if finer is not None:
            text += f": --layer {finer[0]} has {finer[1]}"
        return replace(e, provenance=replace(e.provenance, notes=(*e.provenance.notes, text)))

    def _above(self, model: TorchModel, layer: str, size: tuple[int, int, int]) -> tuple[str, int] | None:
        key = (id(model), size)
        if key not in self.seen:
            try:
                self.seen[key] = layers(model, torch.zeros(1, len(model.spec.bands), *size))
            except TubelensError:
                self.seen[key] = []
        return next_layer(self.seen[key], layer)


def next_layer(infos: list[LayerInfo], layer: str) -> tuple[str, int] | None:
    """Name and time steps of the last layer before `layer` that has several; None where there is none.

    Layers as deeply nested as `layer` come first: `layer3` rather than the last convolution within `layer4`.
    """
    names = [info.name for info in infos]
    before = infos[: names.index(layer)] if layer in names else []
    several = [(info.name, steps) for info in before if (steps := _steps(info)) > 1]
    level = [pair for pair in several if pair[0].count(".") == layer.count(".")]
    found = level or several
    return found[-1] if found else None


def _steps(info: LayerInfo) -> int:
    return len(info.layout.centres.get("t", ())) or int(info.layout.sizes.get("t", 0))
