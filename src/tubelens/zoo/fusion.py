"""Late fusion: networks that look at bands of their own, their scores averaged.

One network a spectrum, as in two-stream networks (Simonyan & Zisserman, NeurIPS 2014), where the streams are
frames and optical flow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.errors import LayerError, OptionError
from tubelens.model import TorchModel, frozen_part
from tubelens.target import logits, probabilities

Average = Literal["logits", "probs"]


class Streams(nn.Module):
    """The networks, under their names, and the weighted mean of their scores."""

    def __init__(self, models: Mapping[str, TorchModel], weights: Sequence[float], average: Average):
        super().__init__()
        for name, model in models.items():
            self.add_module(name, model.module)
        self._models = tuple(models.values())
        self._weights = tuple(w / sum(weights) for w in weights)
        self._average = average

    def forward(self, packed: tuple[Any, ...]) -> Float[Tensor, "_ k"]:
        """Logits, probabilities or sigmoids of what the networks are fed."""
        kind = logits if self._average == "logits" else probabilities
        scores = [
            weight * kind(model.unpack(model.module(fed)), model.output)
            for model, fed, weight in zip(self._models, packed, self._weights, strict=True)
        ]
        mean = torch.stack(scores).sum(dim=0)
        # with several labels at once there is no softmax over log-odds
        several = self._average == "logits" and self._models[0].output == "sigmoid"
        return mean.sigmoid() if several else mean


@dataclass(frozen=True)
class Shared:
    """What each network is fed.

    Attributes:
        packs: their own.
        bands: numbers of the channels that each sees.
    """

    packs: tuple[Callable[[Tensor], Any], ...]
    bands: tuple[tuple[int, ...], ...]

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> tuple[Any, ...]:
        """The inputs of all."""
        return tuple(pack(clips[:, list(seen)]) for pack, seen in zip(self.packs, self.bands, strict=True))

    def frozen(self, clips: Float[Tensor, "b c t h w"]) -> Shared:
        """With the statistics of these intact clips, where any takes some."""
        pairs = zip(self.packs, self.bands, strict=True)
        return replace(self, packs=tuple(frozen_part(pack, clips[:, list(seen)]) for pack, seen in pairs))


def late_fusion(
    models: Mapping[str, TorchModel],
    *,
    bands: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    average: Average = "logits",
    name: str | None = None,
) -> TorchModel:
    """Several networks as one model, on clips with the bands of all.

    Args:
        models: of clips of one size, under names such as `visible` and `lwir`. Each is fed the bands that its
            `spec` names; two may see the same band.
        bands: of the clips, in order; by default those of the networks, one after the other.
        weights: of the networks in the mean; by default equal.
        average: what is averaged: logits, for which tubes of each network are exact, or softmax
            probabilities, as two-stream networks do. Of sigmoids the log-odds, made a sigmoid again.
        name: for captions and records.

    Returns:
        A model whose layers are those of the networks, as `visible.layer4` and `lwir.layer4`. The default is
        that of the first; methods that fuse layers take one of each. A network that shares
        modules with an earlier one (as after `replicate`) is copied, so that each layer is one stream's.

    Example:
        >>> warm = tl.adapt(tl.load_model("r3d_18", "lwir.pth"), "replicate", bands=("LWIR",))
        >>> both = tl.late_fusion({"visible": tl.load_model("r3d_18", "rgb.pth"), "lwir": warm})

    Raises:
        OptionError: names, bands, sizes, labels or classes that do not go together, or weights that do not
            add up to more than zero.
    """
    if len(models) < 2:
        raise OptionError("late fusion takes at least two networks, under names such as visible and lwir")
    for stream, model in models.items():
        if not isinstance(model, TorchModel):
            raise OptionError(
                f"{stream}: only networks are fused, and {getattr(model, 'name', model)} is none: average the"
                " scores in a function and give it to tubelens.wrap_scorer"
            )
        if not stream.isidentifier() or hasattr(nn.Module(), stream) or stream.startswith("_"):
            raise OptionError(
                f"a network cannot be called {stream!r}: give it a word such as visible or lwir"
            )
    models = _apart(models)
    parts = list(models.values())
    order = _bands(models, bands)
    _agree(parts)
    try:
        shares = tuple(map(float, weights)) if weights is not None else (1.0,) * len(parts)
    except (TypeError, ValueError) as error:
        raise OptionError(f"the weights of the streams are numbers, not {weights!r}") from error
    if len(shares) != len(parts):
        raise OptionError(f"{len(shares)} weights are given for {len(parts)} networks: give one each")
    if not (min(shares) >= 0 and 0 < sum(shares) < math.inf):  # also catches NaN
        raise OptionError(f"the weights of the streams must be positive, not {shares}")
    if average not in get_args(Average):
        raise OptionError(f"what is averaged is 'probs' or 'logits', not {average!r}")
    sigmoids = [m.output == "sigmoid" for m in parts]
    if any(sigmoids) and not all(sigmoids):
        raise OptionError(
            "one stream gives sigmoids, of several labels at once, and another does not: they have no mean"
        )
    first = parts[0]
    return TorchModel(
        module=Streams(models, shares, average),
        pack=Shared(
            tuple(m.pack for m in parts),
            tuple(tuple(order.index(band) for band in m.spec.bands) for m in parts),
        ),
        spec=replace(first.spec, bands=order),
        output="sigmoid" if all(sigmoids) else average,
        labels=next((m.labels for m in parts if m.labels is not None), None),
        layer=None if first.layer is None else f"{next(iter(models))}.{first.layer}",
        layouts={f"{s}.{layer}": known for s, m in models.items() for layer, known in m.layouts.items()},
        find=_find(models),
        walk=lambda: [(f"{s}.{layer}", found) for s, m in models.items() for layer, found in m.submodules()],
        tubes="the softmax of each stream follows its logits; average='logits' has none"
        if average == "probs"
        else "",
        name=name or " + ".join(m.name for m in parts),
        weights="; ".join(m.weights for m in parts),
        verified=first.verified if all(m.verified for m in parts) else "",
    )


def _apart(models: Mapping[str, TorchModel]) -> dict[str, TorchModel]:
    """The networks, those copied that share a module with an earlier one: a hook would see both."""
    seen: set[int] = set()
    found = {}
    for stream, model in models.items():
        own = {id(m) for m in (*model.module.modules(), *(m for _, m in model.submodules()))}
        found[stream] = _copied(stream, model) if own & seen else model
        seen |= own
    return found


def _copied(stream: str, model: TorchModel) -> TorchModel:
    memo: dict[int, Any] = {}
    try:
        with torch.inference_mode(False):
            module = copy.deepcopy(model.module, memo)
        layers = {name: memo[id(layer)] for name, layer in model.submodules()}
    except Exception as error:  # modules may hold what cannot be copied, or stand outside the network
        raise OptionError(
            f"{stream} shares modules with another stream and cannot be copied ({type(error).__name__}):"
            " load it once more for each stream"
        ) from error
    named = model.find is not None or model.walk is not None
    own: dict[str, Any] = {"find": layers.__getitem__, "walk": lambda: list(layers.items())} if named else {}
    return replace(model, module=module, **own)


def _bands(models: Mapping[str, TorchModel], given: Sequence[str] | None) -> tuple[str, ...]:
    """The bands of the clips: as given, if all networks find theirs among them."""
    needed = tuple(dict.fromkeys(band for m in models.values() for band in m.spec.bands))
    order = needed if given is None else tuple(given)
    for stream, model in models.items():
        lacking = [band for band in model.spec.bands if band not in order]
        if lacking:
            raise OptionError(f"{stream} needs {', '.join(lacking)}, which the bands {', '.join(order)} lack")
    if len(set(order)) < len(order) or set(order) - set(needed):
        raise OptionError(
            f"the bands must be those of the networks ({', '.join(needed)}), once each, not"
            f" {', '.join(order)}"
        )
    return order


def _agree(models: Sequence[TorchModel]) -> None:
    """Complain of networks that do not take the same clips, or do not have the same classes."""
    first = models[0]
    for other in models[1:]:
        ours, theirs = ((m.spec.frames, m.spec.size) for m in (first, other))
        if ours != theirs:
            raise OptionError(f"the streams must take clips of one size, not {ours} and {theirs}")
        if other.device != first.device:
            raise OptionError(f"the streams must be on one device, not on {first.device} and {other.device}")
    labelled = [list(m.labels) for m in models if m.labels is not None]
    if any(labels != labelled[0] for labels in labelled):
        raise OptionError("the streams must have the same labels in the same order")
    classes = [_classes(m) for m in models]
    if len(set(classes)) > 1:
        raise OptionError(f"the streams must have the same classes, not {' and '.join(map(str, classes))}")


def _classes(model: TorchModel) -> int:
    spec = model.spec
    return int(model(torch.zeros(1, len(spec.bands), spec.frames, *spec.size)).shape[1])


def _find(models: Mapping[str, TorchModel]) -> Callable[[str], nn.Module]:
    def find(layer: str) -> nn.Module:
        stream, _, rest = layer.partition(".")
        try:
            return models[stream].submodule(rest)
        except LayerError as error:  # the fusion says so, of the name that was given
            raise KeyError(layer) from error

    return find
