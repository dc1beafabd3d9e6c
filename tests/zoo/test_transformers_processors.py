"""What a checkpoint of `transformers` says of its input, its classes and its frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.zoo.tiny_transformers import (
    FRAMES,
    NAMES,
    PREFIX,
    clips,
    config_of_processor,
    copied,
    folder,
    processor,
    tf,
    theirs,
    video,
)
from tubelens import zoo
from tubelens.errors import OptionError
from tubelens.loading import load_model
from tubelens.model import TorchModel
from tubelens.zoo.form import Input
from tubelens.zoo.transformers_networks import FAMILIES

LABELS = ["run", "jump", "wave", "sit", "fall"]


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_resized_as_the_processor_does(name: str):
    model = load_model(folder(name))
    rough = video(FRAMES, (9, 12)).repeat(10, axis=1).repeat(10, axis=2)
    assert isinstance(model, TorchModel)
    clip = model.read(rough, stride=1)
    fed = next(iter(processor(name)(list(rough), return_tensors="pt").values()))
    ours = model.pack(clip.pixels[None])
    # both round to bytes after resizing, seldom to another one
    step = 1 / 255 / 0.2 * (2 if name == "vivit" else 1)
    off = (ours - fed).abs()
    assert float(off.max()) < 1.01 * step
    assert float((off > 1e-3).float().mean()) < 0.1
    assert float(fed.std()) > 0.5


@pytest.mark.parametrize("name", ["videomae", "vivit"])
def test_older_image_processors_are_read_too(name: str, tmp_path: Path):
    made = getattr(tf, f"{PREFIX[name]}ImageProcessor")(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 48}, image_mean=[0.2, 0.3, 0.4]
    )
    made.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(folder(name) / file)
    model = load_model(tmp_path)
    frames = video(FRAMES, (32, 48))
    assert isinstance(model, TorchModel)
    ours = model(model.read(frames, stride=1).pixels[None])
    torch.testing.assert_close(ours, theirs(name, made, frames), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("says", "black", "white"),
    [
        ({"do_normalize": False}, -1, 1),  # the processor of ViViT centres at zero by itself
        ({"do_normalize": False, "offset": False}, 0, 2),
        ({"do_rescale": False, "offset": False, "image_mean": 100.0, "image_std": 10.0}, -10, 15.5),
        ({"image_mean": [0.0, 0.5, 1.0], "image_std": 0.5}, [-2, -3, -4], [2, 1, 0]),
    ],
)
def test_each_switch_of_a_processor_counts(says: dict[str, Any], black: Any, white: Any, tmp_path: Path):
    config_of_processor(copied(folder("vivit"), tmp_path), **says)
    model = load_model(tmp_path)
    assert isinstance(model, TorchModel)
    for level, expected in ((0.0, black), (1.0, white)):
        fed = model.pack(torch.full((1, 3, FRAMES, 32, 48), level))
        assert fed.shape == (1, FRAMES, 3, 32, 48)
        assert fed.amax(dim=(0, 1, 3, 4)).tolist() == pytest.approx(np.broadcast_to(expected, 3), abs=1e-5)
        assert float(fed.std(dim=(1, 3, 4)).max()) < 1e-5


@pytest.mark.parametrize(
    ("says", "resize"),
    [
        ({"size": 36}, 36),
        ({"size": {"height": 50, "width": 70}}, (50, 70)),
        ({"size": {"shortest_edge": 80}, "crop_size": 64}, 40),  # of a network of twice the size
        ({"do_resize": False}, None),
        ({"do_center_crop": False}, (32, 48)),
    ],
)
def test_sizes_of_a_processor(says: dict[str, Any], resize: Any, tmp_path: Path):
    config_of_processor(copied(folder("videomae"), tmp_path), **says)
    model = load_model(tmp_path)
    assert model.spec.size == (32, 48)
    assert model.spec.resize == resize
    assert ("another size than 32 x 48" in model.weights) == ("crop_size" in says)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_processor_the_default_of_its_class_is_taken_and_said(name: str, tmp_path: Path):
    model = load_model(copied(folder(name), tmp_path, "video_preprocessor_config.json"))
    assert f"no processor config: normalised by the default of {name}" in model.weights
    plain = getattr(tf, f"{PREFIX[name]}VideoProcessor")
    if name == "vjepa2":
        plain = plain()  # it computes its size
    known = FAMILIES[name].processor
    for key in ("image_mean", "image_std"):
        assert list(known[key]) == list(getattr(plain, key)), key
    for key in ("rescale_factor", "do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        assert known[key] == getattr(plain, key), key
    assert known["size"]["shortest_edge"] == plain.size["shortest_edge"]
    crop = plain.crop_size if isinstance(plain.crop_size, int) else plain.crop_size["height"]
    assert known["crop_size"] == {"height": crop, "width": crop}


@pytest.mark.parametrize(
    ("name", "classes", "frames", "sampling", "stride", "views"),
    [
        ("videomae", 400, 16, "dense", 4, (5, 3)),
        ("videomae", 174, 16, "uniform", 4, (2, 3)),
        ("timesformer", 400, 8, "dense", 32, (1, 3)),
        ("timesformer", 600, 16, "dense", 16, (1, 3)),
        ("timesformer", 400, 96, "dense", 4, (1, 3)),
        ("timesformer", 174, 8, "uniform", 32, (1, 3)),
        ("vivit", 400, 32, "dense", 2, (4, 3)),
        ("vjepa2", 174, 64, "dense", 4, (2, 3)),
    ],
)
def test_frames_are_taken_as_in_the_papers(
    name: str, classes: int, frames: int, sampling: str, stride: int, views: tuple[int, int]
):
    family = FAMILIES[name]
    spec, _ = family.input(replace(family.network, frames=frames), {}, classes)
    assert (spec.frames, spec.sampling, spec.stride, spec.views) == (frames, sampling, stride, views)


def test_labels_come_from_the_config_unless_they_are_only_numbers(tmp_path: Path):
    assert load_model(folder("vivit")).labels is None
    assert load_model(folder("vivit"), labels=LABELS).labels == LABELS
    copied(folder("vivit"), tmp_path)
    says = json.loads((tmp_path / "config.json").read_text())
    says["id2label"] = {str(i): label for i, label in enumerate(LABELS)}
    (tmp_path / "config.json").write_text(json.dumps(says))
    assert load_model(tmp_path).labels == LABELS


def test_what_the_user_says_of_the_input_replaces_what_the_checkpoint_says():
    own = load_model(folder("vjepa2"))
    told = load_model(folder("vjepa2"), input="frames=8, stride=3, sampling=random, mean=0.5, std=0.25")
    assert isinstance(own, TorchModel)
    assert isinstance(told, TorchModel)
    assert (told.spec.frames, told.spec.stride, told.spec.sampling) == (8, 3, "random")
    assert (told.spec.size, told.spec.resize) == (own.spec.size, own.spec.resize)
    x = torch.rand(1, 3, 8, 48, 48)
    torch.testing.assert_close(told.pack(x), (x.transpose(1, 2) - 0.5) / 0.25)
    with pytest.raises(OptionError, match="'b t c h w', not 'b t h w c'"):
        load_model(folder("vjepa2"), input="axes=b t h w c")


def test_what_is_said_counts_even_where_it_is_the_default_of_others():
    own = load_model(folder("vjepa2"))
    assert isinstance(own, TorchModel)
    assert (own.spec.stride, own.spec.sampling) == (4, "dense")
    for told in (
        load_model(folder("vjepa2"), input="mean=0, std=1, stride=1, sampling=uniform"),
        load_model(folder("vjepa2"), input=Input(mean=0.0, std=1.0, stride=1, sampling="uniform")),
    ):
        assert isinstance(told, TorchModel)
        assert (told.spec.stride, told.spec.sampling) == (1, "uniform")
        assert replace(told.spec, stride=4, sampling="dense") == own.spec
        x = clips("vjepa2")
        torch.testing.assert_close(told.pack(x), x.transpose(1, 2))
        assert not torch.allclose(own.pack(x), x.transpose(1, 2))


def test_a_clips_own_statistics_are_frozen():
    model = load_model(folder("videomae"), input=Input(zscore=True))
    assert isinstance(model, TorchModel)
    x = clips("videomae")
    torch.testing.assert_close(
        model.pack.frozen(x)(x / 2), model.pack(x) / 2 - (x.mean() / x.std(correction=0)) / 2
    )


def test_the_processor_of_another_architecture(tmp_path: Path):
    """The published TimeSformer names that of VideoMAE; one of ViViT would shift by one."""
    frames = video(FRAMES, (48, 48))
    for other, shift in (("VideoMAE", 0), ("Vivit", 1)):
        copied(folder("timesformer"), tmp_path)
        config_of_processor(tmp_path, video_processor_type=f"{other}VideoProcessor")
        model = load_model(tmp_path)
        assert isinstance(model, TorchModel)
        fed = model.pack(model.read(frames, stride=1).pixels[None])
        made = getattr(tf, f"{other}VideoProcessor").from_pretrained(tmp_path)
        expected = next(iter(made(list(frames), return_tensors="pt").values()))
        torch.testing.assert_close(fed, expected, rtol=1e-4, atol=1e-4)
        assert float(fed[:, :, 0].min()) == pytest.approx((0 - 0.3 - shift) / 0.2, abs=0.05)


@pytest.mark.parametrize(
    ("name", "fed", "resize"),
    [
        ("videomae", [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225], 224),
        ("timesformer", [0.05 / 0.225] * 3, 224),
        ("vivit", [-1.0] * 3, 224),  # (2 / 2 - 1 - 0.5) / 0.5
        ("vjepa2", [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225], 292),
    ],
)
def test_recipes_normalise_as_the_published_checkpoints(name: str, fed: list[float], resize: int):
    recipe = zoo.MODELS[name]
    grey = torch.full((1, 3, recipe.spec.frames, *recipe.spec.size), 0.5)
    assert recipe.pack(grey)[0, -1, :, 3, 5].tolist() == pytest.approx(fed, abs=1e-5)
    assert recipe.spec.resize == resize
