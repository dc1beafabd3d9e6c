"""Keras models in files that Keras 2 and 3 wrote, read by Keras 3 with torch underneath.

Files are only data here: what carries code (Lambda layers, pickled modules) is refused before Keras sees it,
and Keras's own safe mode is on. Keras itself is imported when it is first needed (the extra `keras`).
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tubelens.errors import CheckpointError, OptionError, TubelensError
from tubelens.model import TorchModel
from tubelens.zoo import keras_legacy
from tubelens.zoo.extras import need
from tubelens.zoo.form import Input
from tubelens.zoo.keras_network import is_model, keras_on_torch, wrap

__all__ = ["is_model", "load", "wrap"]

WITH_CODE = ("Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
FROM_TENSORFLOW = ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "ClassMethod")


def load(
    name: str | Path,
    weights: str | Path | None = None,
    *,
    input: Input | None = None,  # the word of the field
    seed: int = 0,
    labels: Sequence[str] | None = None,
    device: str = "cpu",
) -> TorchModel:
    """A Keras model from files.

    Args:
        name: a `.keras` or a whole `.h5` file; or the architecture as JSON, with its weights as `weights`.
        weights: an HDF5 file of weights (`.h5`, `.weights.h5`), a whole model's, or `"random"`; None: those
            in the file.
        input: what the network is fed; None: frames, size and order of dimensions are read off its input
            shape, where they are fixed.
        seed: of random weights.
        labels: names of the classes.
        device: where it runs.

    Raises:
        OptionError: Keras is missing or runs on another backend; no weights.
        CheckpointError: a file that cannot be read, that carries code, or weights that do not fit.
        InputError: `input` contradicts the model's input shape; several inputs or outputs.
    """
    who = str(name)
    path = Path(name)
    if not path.is_file():
        raise CheckpointError(f"{who}: no such file")
    if weights not in (None, "random") and not Path(str(weights)).is_file():
        raise CheckpointError(f"{weights}: no such file")
    keras = keras_on_torch(who)
    with _fair_dice(seed), keras.device(device):
        try:
            model, put = _built(keras, path, weights)
        except TubelensError:
            raise
        except Exception as error:  # whatever Keras and HDF5 raise
            raise CheckpointError(f"{who}: Keras cannot read it: {_said(error)}") from error
    origin = str(weights) if weights is not None else who
    made = wrap(model, input=input, labels=labels, name=path.name)
    return replace(made, weights=origin, verified=put)


def _built(keras: ModuleType, path: Path, weights: str | Path | None) -> tuple[Any, str]:
    """The model, and how its weights were matched where that was our doing."""
    config, version = _architecture(path)
    _without_code(config, str(path), keras)
    source = path if weights is None else Path(str(weights))
    if source == path and path.suffix.lower() == ".json":
        raise OptionError(f"{path} is an architecture alone: give its weights, a file or 'random'")
    if weights is None and (path.suffix.lower() == ".keras" or version >= 3):
        model, put = keras.saving.load_model(str(path), compile=False, safe_mode=True), ""
    else:
        if keras_legacy.is_legacy(config):
            config = keras_legacy.modernise(config, str(path))
        model = keras.models.model_from_json(json.dumps(config))
        put = "" if weights == "random" else _fill(keras, model, source)
    if version < 3:
        keras_legacy.as_before_keras_3(model)
    return model, put


def _architecture(path: Path) -> tuple[Mapping[str, Any], int]:
    """The description of a model, and which Keras wrote it."""
    suffix, version = path.suffix.lower(), "3"
    if suffix == ".json":
        config = json.loads(path.read_text())
        if isinstance(config, dict):
            version = str(config.get("keras_version", "2" if keras_legacy.is_legacy(config) else "3"))
    elif _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            if "metadata.json" in archive.namelist():  # Keras 2.12 to 2.15 wrote archives too
                version = str(json.loads(archive.read("metadata.json")).get("keras_version", "3"))
    elif suffix == ".keras":
        raise CheckpointError(f"{path}: not a .keras file (which is a zip archive)")
    else:
        with need("h5py", "keras", str(path)).File(path, "r") as file:
            text, version = file.attrs.get("model_config"), str(file.attrs.get("keras_version", "2"))
        if text is None:
            raise CheckpointError(
                f"{path} holds weights alone: give the architecture (a JSON file) as the model, and this file"
                " as its weights"
            )
        config = json.loads(text)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not the architecture of a Keras model")
    return config, int(version.split(".")[0])


def _is_archive(path: Path) -> bool:
    """Whether it is Keras 3's zip archive. One file may be HDF5 too: it is then what Keras takes it for."""
    if not zipfile.is_zipfile(path):
        return False
    return path.suffix == ".keras" or not need("h5py", "keras", str(path)).is_hdf5(path)


def _without_code(config: Any, where: str, keras: ModuleType) -> None:
    """Refuse what would run code that comes with the file, or that Keras would look for elsewhere.

    Raises:
        CheckpointError: naming the layer.
    """
    if isinstance(config, list | tuple):
        for value in config:
            _without_code(value, where, keras)
    if not isinstance(config, Mapping):
        return
    kind, module = config.get("class_name"), config.get("module")
    if kind is not None:
        inner = config.get("config")
        name = inner.get("name", kind) if isinstance(inner, Mapping) else kind
        mend = "rebuild the model in Python and give it to `tubelens.wrap`"
        if kind in WITH_CODE:
            raise CheckpointError(f"{where}: {name!r} is a {kind}: code in a file is not run: {mend}")
        if kind in FROM_TENSORFLOW:
            raise CheckpointError(f"{where}: {name!r} is an operation of TensorFlow ({kind}): {mend}")
        known = keras.saving.get_registered_object(config.get("registered_name") or "") is not None
        if module is not None and module.split(".")[0] not in ("keras", "builtins") and not known:
            raise CheckpointError(
                f"{where}: {name!r} is of the class {module}.{kind}, which is not here: {mend}"
            )
    for value in config.values():
        _without_code(value, where, keras)


def _fill(keras: ModuleType, model: Any, source: Path) -> str:
    """Load weights, whoever wrote them and however the file is called."""
    archive = _is_archive(source)
    if not archive:
        with need("h5py", "keras", str(source)).File(source, "r") as file:
            entries = keras_legacy.read_weights(file, str(source))
        if entries is not None:
            return keras_legacy.put(model, entries, str(source))
    ending = ".keras" if archive else ".weights.h5"
    with ExitStack() as stack:
        if not str(source).endswith(ending):  # Keras goes by the name
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            source = Path(shutil.copy(source, Path(folder) / f"copy{ending}"))
        model.load_weights(str(source))
    return ""


@contextmanager
def _fair_dice(seed: int) -> Iterator[None]:
    """Seeded for building, which draws from Python's generator; all generators are as before afterwards."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


def _said(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
