"""Keras 2: its architecture JSON in the words of Keras 3, and its HDF5 weights put by name.

Keras 3 reads whole Keras 2 files only in part and its JSON not at all, and puts Keras 2 weights by their
order in the file, so that two layers of equal shape may be swapped without a word. Here the names decide.
A hard sigmoid of Keras 2 is steeper than one of Keras 3.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tubelens.errors import CheckpointError

Entry = tuple[str, np.ndarray]
"""A weight's name in the file and its values."""

GRAPHS = {"Model": "Functional", "Functional": "Functional", "Sequential": "Sequential"}
FUNCTIONAL = "keras.src.models.functional"  # as Keras 3 itself writes it
OF_LAYERS = ("name", "trainable", "dtype", "input_shape", "batch_shape", "batch_size", "autocast")
HARMLESS = (
    "implementation",
    "time_major",
    "unroll",
    "fused",
    "input_dim",
    "input_length",
    "ragged",
    "sparse",
)
TRAINING_ONLY = ("_initializer", "_regularizer", "_constraint")
RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}, "InputLayer": {"batch_input_shape": "batch_shape"}}


def is_legacy(config: Mapping[str, Any]) -> bool:
    """Whether an architecture is written as Keras 2 writes it: without the module of each class."""
    return "module" not in config


def modernise(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A Keras 2 architecture as Keras 3 writes one.

    Initialisers, regularisers and constraints, which matter in training only, are left out.

    Args:
        config: `class_name` and `config` of the model.
        where: the file, for messages.

    Raises:
        CheckpointError: a class or an option that Keras 3 has no counterpart of; or it is no architecture.
    """
    if not isinstance(config, Mapping) or config.get("class_name") not in GRAPHS or "config" not in config:
        raise CheckpointError(
            f"{where}: not the architecture of a functional or sequential Keras model: rebuild it in Python"
            " and give it to `tubelens.wrap`"
        )
    slashed = {name: name.replace("/", "_") for name in _names(config) if "/" in name}
    made: dict[str, Any] = _graph(_replaced(config, slashed) if slashed else config, where)
    return made


def _graph(graph: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind, own = GRAPHS[graph["class_name"]], graph["config"]
    if isinstance(own, list):  # sequential models before Keras 2.2.3
        own = {"name": "sequential", "layers": own}
    layers = [_layer(layer, where) for layer in own["layers"]]
    name = str(own.get("name") or kind.lower())
    if kind == "Sequential":
        first = layers[0]["config"] if layers else {}
        shape = first.pop("input_shape", None)
        if shape is not None:
            named = {"batch_shape": shape, "name": f"{name}_input"}
            layers.insert(0, {"module": "keras.layers", "class_name": "InputLayer", "config": named})
        return {"module": "keras", "class_name": kind, "config": {"name": name, "layers": layers}}
    for new, old in zip(layers, own["layers"], strict=True):
        new |= {"name": old["name"], "inbound_nodes": old.get("inbound_nodes", [])}
    ends = {key: _alone(own[key]) for key in ("input_layers", "output_layers")}
    inner = {"name": name, "trainable": own.get("trainable", True), "layers": layers, **ends}
    return {"module": FUNCTIONAL, "class_name": kind, "config": inner}


def _alone(ends: Sequence[Any]) -> Any:
    """One input or output by itself, as in a list of one."""
    return ends[0] if len(ends) == 1 and isinstance(ends[0], list) else ends


def _layer(layer: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = str(layer["class_name"])
    if kind in GRAPHS:
        return _graph(layer, where)
    import keras

    made = getattr(keras.layers, kind, None)
    name = layer["config"].get("name", layer.get("name", ""))
    if made is None:
        raise CheckpointError(
            f"{where}: layer {name!r} is a {kind}, which Keras 3 does not have: rebuild the model in Python"
            " and give it to `tubelens.wrap`"
        )
    parameters = inspect.signature(made.__init__).parameters
    own: dict[str, Any] = {}
    for key, value in layer["config"].items():
        word = RENAMED.get(kind, {}).get(key, "input_shape" if key == "batch_input_shape" else key)
        if word.endswith(TRAINING_ONLY):
            continue
        if word in parameters or word in OF_LAYERS:
            own[word] = _value(word, value, where)
        elif value and key not in HARMLESS:
            raise CheckpointError(
                f"{where}: {kind} {name!r} has {key}={value!r}, which Keras 3 does not know"
            )
    if kind in ("GRU", "GRUCell"):
        own.setdefault("reset_after", False)  # the first Keras 2 did not know it; Keras 3's default is True
    return {"module": "keras.layers", "class_name": kind, "config": own, "registered_name": None}


def _value(key: str, value: Any, where: str) -> Any:
    if key == "dtype":
        policy = value.get("config", {}).get("name") if isinstance(value, Mapping) else value
        return "float32" if policy is None or str(policy).startswith("mixed") else policy
    if key == "axis" and isinstance(value, list) and len(value) == 1:
        return int(value[0])
    if isinstance(value, Mapping) and value.get("type") == "ndarray":
        return value["value"]
    if isinstance(value, Mapping) and "class_name" in value and "config" in value:
        return _layer(value, where)  # what a wrapper wraps
    return value


def _names(config: Any) -> Iterable[str]:
    """Names of all layers."""
    if isinstance(config, Mapping):
        if "class_name" in config and isinstance(config.get("config"), Mapping):
            yield str(config["config"].get("name", ""))
        for value in config.values():
            yield from _names(value)
    elif isinstance(config, list):
        for value in config:
            yield from _names(value)


def _replaced(config: Any, words: Mapping[str, str]) -> Any:
    if isinstance(config, Mapping):
        return {key: _replaced(value, words) for key, value in config.items()}
    if isinstance(config, list):
        return [_replaced(value, words) for value in config]
    return words.get(config, config) if isinstance(config, str) else config


def hard_sigmoid(x: Tensor) -> Tensor:
    """`clip(0.2 x + 0.5, 0, 1)`, as in Keras 1 and 2; Keras 3 has `clip(x / 6 + 0.5, 0, 1)` by this name."""
    return (0.2 * x + 0.5).clamp(0, 1)


def as_before_keras_3(model: Any) -> None:
    """Give a model that an older Keras wrote, as Keras 3 builds it, the activations it was trained with."""
    import keras

    for layer in model._flatten_layers():  # cells of recurrent layers and what wrappers wrap are among them
        for word in ("activation", "recurrent_activation"):
            if vars(layer).get(word) is keras.activations.hard_sigmoid:
                setattr(layer, word, hard_sigmoid)


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────


def read_weights(file: Any, where: str) -> dict[str, list[Entry]] | None:
    """Weights of each layer that has any, in the order of the file; None where it is not written so.

    Args:
        file: an open HDF5 file, of weights alone or of a whole model.
        where: its name, for messages.

    Raises:
        CheckpointError: the kernels are mirrored (Theano), or a weight is not in the file.
    """
    group = file.get("model_weights", file)
    if not any(key.startswith("layer_names") for key in group.attrs):
        return None
    if _text(group.attrs.get("backend", "")) == "theano":
        raise CheckpointError(f"{where}: written with Theano, whose kernels are mirrored: convert it first")
    found: dict[str, list[Entry]] = {}
    for name in _strings(group, "layer_names"):
        names = _strings(group[name], "weight_names")
        if names:
            held = [(weight, group[name].get(weight)) for weight in names]
            lost = [weight for weight, values in held if not _inside(values, file)]
            if lost:
                raise CheckpointError(f"{where}: weight {lost[0]!r} of layer {name!r} is not in the file")
            found[name.replace("/", "_")] = [(weight, np.asarray(values)) for weight, values in held]
    return found


def put(model: Any, entries: Mapping[str, list[Entry]], where: str) -> str:
    """Fill a model's variables; returns how they were matched: `by name`, or `by order` where no name fits.

    Raises:
        CheckpointError: every layer that is missing, left over, or of another shape.
    """
    wanted = {layer.name: layer for layer in model.layers if layer.weights}
    order = set(wanted) != set(entries)
    if order and (set(wanted) & set(entries) or len(wanted) != len(entries)):
        missing, extra = sorted(set(wanted) - set(entries)), sorted(set(entries) - set(wanted))
        faults = [f"no weights for {', '.join(missing[:5])}"] if missing else []
        faults += [f"weights of {', '.join(extra[:5])}, which it does not have"] if extra else []
        raise CheckpointError(f"{where} does not fit the architecture: {'; '.join(faults)}")
    faults, pairs = [], []
    for layer, given in zip(
        wanted.values(), entries.values() if order else (entries[name] for name in wanted), strict=True
    ):
        for variable, (name, values) in _matched(layer, given, where):
            if tuple(variable.shape) != values.shape:
                needed = "x".join(map(str, variable.shape))
                faults.append(f"{name} is {'x'.join(map(str, values.shape))} and not {needed}")
            pairs.append((variable, values))
    if faults:
        raise CheckpointError(f"{where} does not fit the architecture: {'; '.join(faults)}")
    for variable, values in pairs:
        variable.assign(values)
    return "by order" if order else "by name"


def _matched(layer: Any, given: list[Entry], where: str) -> list[tuple[Any, Entry]]:
    """A layer's variables with their weights: by layer and weight name, else in Keras 2's order."""
    own = [*layer.trainable_weights, *layer.non_trainable_weights]
    if len(own) != len(given):
        raise CheckpointError(
            f"{where} does not fit the architecture: layer {layer.name!r} has {len(own)} weights, the file"
            f" {len(given)}"
        )
    mine = {_key(variable.path): variable for variable in own}
    theirs = {_key(entry[0]): entry for entry in given}
    if len(mine) == len(own) and set(mine) == set(theirs):
        return [(mine[key], theirs[key]) for key in theirs]
    return list(zip(own, given, strict=True))


def _key(path: str) -> tuple[str, ...]:
    """The layer and the weight at the end of `outer/conv/kernel:0`."""
    return tuple(path.split(":")[0].split("/")[-2:])


def _inside(values: Any, file: Any) -> bool:
    """Whether it is an array of this very file: HDF5 can also point at other files."""
    if not hasattr(values, "shape"):
        return False
    return values.file.filename == file.filename and not values.external and not values.is_virtual


def _strings(group: Any, key: str) -> list[str]:
    """A list of names, which is split over several attributes where it is long."""
    if key in group.attrs:
        return [_text(n) for n in group.attrs[key]]
    found: list[str] = []
    number = 0
    while f"{key}{number}" in group.attrs:
        found += [_text(n) for n in group.attrs[f"{key}{number}"]]
        number += 1
    return found


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
