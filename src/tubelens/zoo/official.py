"""Official weights: the folder that torch.hub keeps them in, downloads into it, and their hashes."""

from __future__ import annotations

import re
import urllib.error
from pathlib import Path

import torch

from tubelens.errors import CheckpointError
from tubelens.files import sha256_of

HASH_LENGTH = 8


def kept(url: str) -> Path:
    """The file that the weights at `url` are kept in, whether or not it is there."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def downloaded(url: str, network: str, weights: str) -> Path:
    """The file with the weights at `url`, downloaded if absent; its hash is checked where its name has one.

    Args:
        url: of the weights.
        network: what it is called, for the message.
        weights: likewise.

    Raises:
        CheckpointError: they are not on this machine and cannot be had.
    """
    file = kept(url)
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=hash_in_name(file), progress=False)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{network}: the weights {weights} are not on this machine and cannot be downloaded"
                f" ({getattr(error, 'reason', error)}): fetch {url} elsewhere and put it at {file},"
                " or pass the file as weights"
            ) from error
    return file


def hash_in_name(file: Path) -> str | None:
    """The first eight digits of the sha256, with which torchvision ends the name of a weights file."""
    found = re.fullmatch(rf".+-([0-9a-f]{{{HASH_LENGTH}}})", file.stem)
    return found[1] if found else None


def is_official(file: Path, url: str) -> bool:
    """Whether the file is the one at `url`, by its name and by the hash in it."""
    expected = hash_in_name(file)
    if expected is None or file.name != url.rsplit("/", 1)[-1]:
        return False
    return sha256_of(file).startswith(expected)
