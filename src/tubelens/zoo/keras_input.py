"""What a Keras model is fed, as its layers and its input shape tell; and its layers by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from tubelens.errors import InputError
from tubelens.zoo.form import Input

BANDS = {1: ("grey",), 3: ("R", "G", "B")}


def walk(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every layer with its name, `outer/inner` for those of nested models."""
    inner = getattr(model, "layers", None)
    if not isinstance(inner, list):  # a layer that someone wrote, with layers as its attributes
        inner = [m for m in model.children() if hasattr(m, "get_config")]
    for layer in inner:
        yield prefix + layer.name, layer
        yield from walk(layer, f"{prefix}{layer.name}/")


def input_shape(model: Any, who: str) -> tuple[int | None, ...] | None:
    """Of the one input, without the batch; None where the model does not say."""
    try:
        inputs, outputs = model.inputs, model.outputs
    except AttributeError:
        return None
    if not inputs or not outputs:
        return None
    for what, found in (("inputs", inputs), ("outputs", outputs)):
        if len(found) != 1:
            raise InputError(
                f"{who} has {len(found)} {what}, one is needed: make a keras.Model of the part to explain and"
                " give it to `tubelens.wrap`"
            )
    return tuple(inputs[0].shape[1:])


def fed_to(model: Any, shape: tuple[int | None, ...] | None, given: Input | None, who: str) -> Input:
    """What the input shape tells, and over it what was named.

    Raises:
        InputError: neither tells it.
    """
    if given is None:
        return _read_off(model, shape, who)
    if shape is None or len(shape) != 4:
        return given
    told = _read_off(model, shape, who)
    axes = given.axes.split()[1:]
    if "axes" in given.given and sorted(axes) == ["c", "h", "t", "w"]:  # sizes stand where these names do
        sizes = {axis: n for axis, n in zip(axes, shape, strict=True) if n is not None}
        if given.rotate % 180:
            sizes |= {to: sizes[of] for of, to in (("h", "w"), ("w", "h")) if of in sizes}
        told = replace(
            told,
            axes=given.axes,
            frames=sizes.get("t", told.frames),
            size=(sizes["h"], sizes["w"]) if {"h", "w"} <= set(sizes) else told.size,
            bands=BANDS.get(sizes.get("c", 0), told.bands),
        )
    return given.over(told)


def _read_off(model: Any, shape: tuple[int | None, ...] | None, who: str) -> Input:
    """Frames, size and order of dimensions, where the shape fixes them; time is first unless it cannot be.

    Raises:
        InputError: the input is not of rank 5.
    """
    if shape is None or len(shape) != 4:
        rank = "has no fixed input" if shape is None else f"takes {_sizes(shape)}"
        raise InputError(
            f"{who} {rank}: say what it is fed, as in input='frames=16, size=112, axes=b t h w c'"
        )
    first = _channels_first(model, shape)
    places = shape[1:] if first else shape[:3]
    order = "thw"
    if places[0] is not None and places[0] == places[1] != places[2]:
        order = "hwt"  # frames are square far oftener than clips are as long as they are high
    sizes = dict(zip(order, places, strict=True))
    channels = (shape[0] if first else shape[3]) or 3
    usual = Input()
    height, width = (sizes[side] or sizes[other] or usual.size for side, other in ("hw", "wh"))
    spaced = " ".join(order)
    return Input(
        frames=sizes["t"] or usual.frames,
        size=(int(str(height)), int(str(width))),
        bands=BANDS.get(channels) or tuple(f"band {i + 1}" for i in range(channels)),
        scale=255.0 if _rescales(model) else 1.0,
        axes=f"b c {spaced}" if first else f"b {spaced} c",
    )


def _channels_first(model: Any, shape: Sequence[int | None]) -> bool:
    for _, layer in walk(model, ""):
        inner = getattr(layer, "layer", layer)  # what a wrapper wraps
        if (order := getattr(inner, "data_format", None)) is not None:
            return bool(order == "channels_first")
    return shape[0] in BANDS and shape[3] not in BANDS


def _rescales(model: Any) -> bool:
    """Whether the model itself brings pixels from 0..255 to about one."""
    found = (m for _, m in walk(model, "") if type(m).__name__ == "Rescaling")
    return any(isinstance(m.scale, int | float) and 0 < m.scale < 0.02 for m in found)


def agree(fed: Input, shape: tuple[int | None, ...], who: str) -> None:
    """Complain where what is fed is not what the network takes.

    Raises:
        InputError: naming both.
    """
    spec = fed.spec()
    clip = torch.zeros(1, len(spec.bands), spec.frames, *spec.size)
    given = tuple(fed.pack()(clip).shape[1:])
    if len(given) == len(shape) and all(n is None or n == m for n, m in zip(shape, given, strict=True)):
        return
    height, width = spec.size
    said = f"{spec.frames} frames of {height}x{width}x{len(spec.bands)} ({fed.axes})"
    raise InputError(f"{who} takes {_expected(fed, shape)}, the input says {said}: change `input`")


def _expected(fed: Input, shape: Sequence[int | None]) -> str:
    axes = fed.axes.split()[1:]
    if sorted(axes) != ["c", "h", "t", "w"] or len(shape) != 4:
        return f"an input of {_sizes(shape)}"
    sizes = {axis: "any" if n is None else n for axis, n in zip(axes, shape, strict=True)}
    height, width = (sizes["w"], sizes["h"]) if fed.rotate % 180 else (sizes["h"], sizes["w"])
    return f"{sizes['t']} frames of {height}x{width}x{sizes['c']} ({fed.axes})"


def _sizes(shape: Sequence[int | None]) -> str:
    return "x".join("any" if n is None else str(n) for n in shape)
