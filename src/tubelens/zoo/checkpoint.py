"""Weights from files: read without unpickling code unless the user trusts them, unwrapped, fitted to a
network, every fault listed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tubelens.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state")
LISTED = 4


def read_checkpoint(path: str | Path, trust: bool = False) -> dict[str, Tensor]:
    """The state dict in a safetensors or torch file.

    Taken out of `{"state_dict": ...}` or `{"model_state": ...}` where it is wrapped, and freed of the
    `module.` that parallel training puts before every name.

    Args:
        path: the file.
        trust: unpickle a torch file even where that runs code that is in it.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that would need to run code when loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the weights file is empty")
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=not trust)
        )
    except pickle.UnpicklingError as error:
        if trust:
            raise CheckpointError(f"{path}: cannot be read as weights: {_first_line(error)}") from error
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = (
            f"not plain weights: loading them would run code that is in the file ({culprit[1]})"
            if culprit
            else "cannot be read as weights without running code, if that is what it holds"
        )
        raise CheckpointError(
            f"{path}: {what}; if you trust where it comes from, say so with --trust (trust=True); better,"
            " save `model.state_dict()` as safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError, ImportError) as error:
        raise CheckpointError(f"{path}: cannot be read as weights: {_first_line(error)}") from error
    return unwrap(content, str(path))


def unwrap(content: Any, name: str) -> dict[str, Tensor]:
    """The tensors by name, without wrapping and without `module.`."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{name}: holds no state dict (a mapping of names to tensors)")
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def fit(module: nn.Module, state: Mapping[str, Tensor], name: str, architecture: str) -> None:
    """Load `state` strictly; the step counters of batch norm, absent from old files, may be missing.

    Raises:
        CheckpointError: lists what is missing, unexpected, and of another shape.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    misshapen = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or unexpected or misshapen:
        faults = [
            f"{len(keys)} {what}: {', '.join(keys[:LISTED])}{', ...' if len(keys) > LISTED else ''}"
            for keys, what in (
                (missing, "missing"),
                (unexpected, "unexpected"),
                (misshapen, "of another shape"),
            )
            if keys
        ]
        raise CheckpointError(f"{name}: these are not weights of {architecture}: {'; '.join(faults)}")
    module.load_state_dict(dict(state), strict=False)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
