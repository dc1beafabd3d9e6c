"""Which layers can be explained: one forward that only looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from tubelens.errors import LayerError
from tubelens.layout import Layout
from tubelens.model import TorchModel, untouched
from tubelens.where import Where


@dataclass(frozen=True)
class LayerInfo:
    """One candidate layer, as a dry run found it.

    Attributes:
        name, kind: the module's name and class.
        shape: of its output.
        layout: where its cells look.
        default: whether it is the one that is explained unless another is asked for.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    layout: Layout
    default: bool = False


def layers(model: TorchModel, clips: Float[Tensor, "b c t h w"]) -> list[LayerInfo]:
    """Every layer whose output has time and space, in the order they finish, from one dry run.

    Where several modules give the same tensor (a block and the ReLU that ends it) only the outermost is
    listed. The default is the model's own layer, else the last one with more than one place in space.

    Raises:
        LayerError: the network is scripted or traced throughout, so that its layers cannot be read.
    """
    where = Where()
    found: dict[str, tuple[int, LayerInfo]] = {}
    names = {id(m): n for n, m in model.submodules()}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple | list) and output else output
        name = names[id(module)]
        if not isinstance(tensor, Tensor):
            return
        layout = model.layout(name, clips.shape) or where.layout(tensor)
        if layout is not None:
            serial = serials.setdefault(tensor, next(fresh))
            if name != model.layer and found.get(model.layer or "", (None,))[0] == serial:
                return  # the model names the inner one
            for other in [n for n, (key, _) in found.items() if key == serial or n == name]:
                del found[other]
            found[name] = (serial, LayerInfo(name, type(module).__name__, tuple(tensor.shape), layout))

    # a number for each tensor, without keeping it alive: long clips would not fit
    serials: Any = WeakTensorKeyDictionary()
    fresh = count()
    inner = [m for _, m in model.submodules() if not is_scripted(m)]
    if is_scripted(model.module) and not inner:
        raise _hidden(model)
    handles = [m.register_forward_hook(note) for m in inner]
    pixels = clips.to(model.device)
    try:
        with untouched(model.module), torch.no_grad(), where:
            where.start(pixels)
            model.run(pixels)
    finally:
        for handle in handles:
            handle.remove()
    infos = [info for _, info in found.values()]
    wide = [i for i in infos if i.layout.sizes.get("h", 2) * i.layout.sizes.get("w", 2) > 1]
    chosen = model.layer or (wide[-1].name if wide else None)
    return [LayerInfo(i.name, i.kind, i.shape, i.layout, i.name == chosen) for i in infos]


def default_layer(infos: Sequence[LayerInfo]) -> LayerInfo:
    """The default among candidates.

    Raises:
        LayerError: no layer has time and space.
    """
    for info in infos:
        if info.default:
            return info
    raise LayerError("no layer of this model has an output with time and space: give `layer` and `layout`")


def readable(model: TorchModel, layer: str) -> nn.Module:
    """A layer by name, if hooks are called there.

    Raises:
        LayerError: no such layer, or TorchScript hides it.
    """
    if is_scripted(model.module):
        raise _hidden(model, layer)
    module = model.submodule(layer)
    if is_scripted(module):
        raise _hidden(model, layer)
    return module


def is_scripted(module: nn.Module) -> bool:
    """Whether it runs as TorchScript, which calls no hooks on what is inside."""
    return isinstance(module, torch.jit.ScriptModule)


def _hidden(model: TorchModel, layer: str | None = None) -> LayerError:
    which = "the layers" if layer is None else f"layer {layer!r}"
    return LayerError(
        f"{which} of {model.name} cannot be read, because TorchScript (a scripted or traced network) calls"
        " no hooks: give the Python module it was made from, or choose a method that needs only scores,"
        " such as rise or occlusion"
    )
