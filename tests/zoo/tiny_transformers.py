"""Tiny video transformers of `transformers`, saved as the package saves them, for tests."""

from __future__ import annotations

import atexit
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tubelens.clip import Clip

tf = pytest.importorskip("transformers", exc_type=ImportError)

NAMES = ("videomae", "timesformer", "vivit", "vjepa2")

PREFIX = {"videomae": "VideoMAE", "timesformer": "Timesformer", "vivit": "Vivit", "vjepa2": "VJEPA2"}

SIZE = {"videomae": (32, 48), "timesformer": (48, 48), "vivit": (32, 48), "vjepa2": (48, 48)}

BLOCKS = {
    "videomae": "videomae.encoder.layer",
    "timesformer": "timesformer.encoder.layer",
    "vivit": "vivit.layers",
    "vjepa2": "vjepa2.encoder.layer",
}

CLASS_TOKEN = ("timesformer", "vivit")

FRAMES, CLASSES, WIDTH = 4, 5, 48


def config(name: str, **more: Any) -> Any:
    common: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_labels": CLASSES,
    }
    own: dict[str, dict[str, Any]] = {
        "videomae": {"image_size": [32, 48], "num_frames": FRAMES, "intermediate_size": 64},
        "timesformer": {"image_size": 48, "num_frames": FRAMES, "intermediate_size": 64},
        "vivit": {"image_size": [32, 48], "num_frames": FRAMES, "intermediate_size": 64},
        "vjepa2": {
            "crop_size": 48,
            "frames_per_clip": FRAMES,
            "mlp_ratio": 2.0,
            "num_pooler_layers": 1,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 1,
        },
    }
    return getattr(tf, f"{PREFIX[name]}Config")(**common | own[name] | more)


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn so that it matters: activations of order one, positions and class token too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:
                value.copy_(noise / 5 + float("norm" in key and key.endswith("weight")))
            else:
                value.copy_(noise * (2 / value[0].numel()) ** 0.5 if value.shape[0] > 1 else noise)
    return module.eval()


def save(module: Any, folder: Path) -> None:
    """As the package saves it, without the progress bar it draws."""
    bars = tf.utils.logging
    bars.disable_progress_bar()
    try:
        module.save_pretrained(folder)
    finally:
        bars.enable_progress_bar()


@cache
def network(name: str) -> Any:
    module = getattr(tf, f"{PREFIX[name]}ForVideoClassification")(config(name))
    return lively(module)


def processor(name: str, **more: Any) -> Any:
    height, width = SIZE[name]
    options: dict[str, Any] = {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": height, "width": width},
        "image_mean": [0.3, 0.5, 0.6],
        "image_std": [0.2, 0.4, 0.3],
    }
    if name == "timesformer":
        options["size"] = {"shortest_edge": 48}
    return getattr(tf, f"{PREFIX[name]}VideoProcessor")(**options | more)


HELD = tempfile.TemporaryDirectory()
atexit.register(HELD.cleanup)


@cache
def folder(name: str) -> Path:
    """A checkpoint of one, with a processor whose numbers are no one's default."""
    path = Path(HELD.name) / name
    save(network(name), path)
    processor(name).save_pretrained(path)
    return path


def clips(name: str, seed: int = 1, frames: int = FRAMES) -> Tensor:
    return torch.rand(1, 3, frames, *SIZE[name], generator=torch.Generator().manual_seed(seed))


def clip_of(pixels: Tensor) -> Clip:
    return Clip.from_array(pixels.permute(1, 2, 3, 0))


def video(frames: int, size: tuple[int, int], seed: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8)


def theirs(name: str, made: Any, frames: np.ndarray) -> Tensor:
    """Logits of the package's own network on what its own processor makes of frames `(t, h, w, c)`."""
    fed = made(list(frames), return_tensors="pt")
    with torch.no_grad():
        scores: Tensor = network(name)(**fed).logits
    return scores


def config_of_processor(folder: Path, **changes: Any) -> None:
    file = folder / "video_preprocessor_config.json"
    says = json.loads(file.read_text())
    if "offset" in changes:  # the processor of videos cannot be told
        says["image_processor_type"] = says.pop("video_processor_type").replace("Video", "Image")
    file.write_text(json.dumps(says | changes))


def copied(folder: Path, into: Path, *but: str) -> Path:
    for file in folder.iterdir():
        if file.name not in but:
            (into / file.name).write_bytes(file.read_bytes())
    return into
