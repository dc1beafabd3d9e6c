"""Video transformers of `transformers`: scores, places of their tokens, and what methods find in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_untouched import assert_same, state
from tests.zoo.tiny_transformers import (
    BLOCKS,
    CLASS_TOKEN,
    FRAMES,
    NAMES,
    PREFIX,
    SIZE,
    WIDTH,
    clip_of,
    clips,
    config,
    folder,
    network,
    processor,
    save,
    tf,
    theirs,
    video,
)
from tubelens.api import explain
from tubelens.capture import capturing, layers
from tubelens.errors import HeadError, InputError, LayerError
from tubelens.loading import load_model
from tubelens.model import TorchModel
from tubelens.zoo.form import Input
from tubelens.zoo.transformers_networks import FAMILIES
from tubelens.zoo.transformers_video import RECIPES


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_package_on_its_own_processor(name: str):
    model = load_model(folder(name))
    assert isinstance(model, TorchModel)
    size = (40, 60) if SIZE[name] == (32, 48) else (54, 54)
    if name == "timesformer":
        size = (48, 56)
    stride = {"videomae": 4, "timesformer": 32, "vivit": 2, "vjepa2": 4}[name]  # of the papers
    frames = video(stride * FRAMES, size)
    clip = model.read(frames)
    expected = theirs(name, processor(name), frames[::stride])
    # nothing was resized: short sides as the processors make them
    torch.testing.assert_close(model(clip.pixels[None]), expected, rtol=1e-4, atol=1e-5)
    assert float(expected.std()) > 0.1
    assert float((model(clip.pixels[None].flip(2)) - expected).abs().max()) > 0.01
    assert model.name == name
    assert model.weights == str(folder(name))


Cell = tuple[int, int, int]


def placed(model: TorchModel, size: Cell, layer: str, cells: list[Cell], alone: bool = False) -> None:
    """Noise on the pixels of one token after another; that token has to be the one that changes most."""
    steps = (1 if model.name == "timesformer" else 2, 16, 16)
    generator = torch.Generator().manual_seed(5)
    batch = torch.rand(1, 3, *size, generator=generator).repeat(1 + len(cells), 1, 1, 1, 1)
    for clip, at in zip(batch[1:], cells, strict=True):
        patch = clip[(slice(None), *(slice(i * s, i * s + s) for i, s in zip(at, steps, strict=True)))]
        patch.copy_(torch.rand(patch.shape, generator=generator) * 4 - 1.5)
    with capturing(model, batch, layer) as capture:
        moved = (capture.activations[1:] - capture.activations[:1]).pow(2).sum(1)
        grid = capture.grid(moved[0])
    for change, at in zip(moved, cells, strict=True):
        t, h, w = np.unravel_index(int(change.argmax()), change.shape)
        truth = tuple(i * s + (s - 1) / 2 for i, s in zip(at, steps, strict=True))
        assert (grid.t[t], grid.y[h], grid.x[w]) == truth, (layer, at)
        if alone:  # no token has spoken to another yet
            assert int((change > 1e-9).sum()) == 1


def grid_of(name: str, height: int, width: int) -> list[Cell]:
    times = FRAMES if name == "timesformer" else FRAMES // 2
    return [(t, h, w) for t in range(times) for h in range(height // 16) for w in range(width // 16)]


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("name", NAMES)
def test_every_token_is_placed_where_its_pixels_are(name: str, rotate: int):
    model = load_model(folder(name), input=Input(rotate=rotate))
    assert isinstance(model, TorchModel)
    height, width = SIZE[name]
    if rotate % 180:
        height, width = width, height
    cells = grid_of(name, height, width)
    embeddings = {"vjepa2": "vjepa2.encoder.embeddings"}.get(name, f"{name}.embeddings")
    placed(model, (FRAMES, height, width), embeddings, cells, alone=True)
    assert model.layer == f"{BLOCKS[name]}.{1 if name in CLASS_TOKEN else 2}"
    placed(model, (FRAMES, height, width), model.layer, cells)


@pytest.mark.parametrize("layer", ["layernorm_before", "layernorm_after"])
@pytest.mark.parametrize("name", CLASS_TOKEN)
def test_norms_beside_a_class_token_are_placed_too(name: str, layer: str):
    model = load_model(folder(name))
    assert isinstance(model, TorchModel)
    placed(model, (FRAMES, *SIZE[name]), f"{BLOCKS[name]}.1.{layer}", grid_of(name, *SIZE[name]))


@pytest.mark.parametrize("name", ["videomae", "vjepa2"])
def test_declared_layouts_are_those_that_following_the_forward_finds(name: str):
    for rotate in (0, 90):
        model = load_model(folder(name), input=Input(rotate=rotate))
        assert isinstance(model, TorchModel)
        x = clips(name) if rotate % 180 == 0 else clips(name).transpose(3, 4)
        followed = {i.name: i.layout for i in layers(replace(model, layouts={}), x)}
        for layer in (f"{BLOCKS[name]}.0", f"{BLOCKS[name]}.2"):
            declared = model.layout(layer, x.shape)
            assert declared is not None
            assert followed[layer].pattern == declared.pattern
            assert followed[layer].centres == declared.centres


def zeroed(key: str) -> bool:
    """Whether this ends a branch beside the residual stream."""
    ends = ("output.dense", "o_proj", "mlp.fc2", "attention.proj", "self_attn.out_proj", "temporal_dense")
    return key.rsplit(".", 1)[0].endswith(ends)


def seeing(name: str) -> Any:
    """A network whose logit of class 2 is how bright patches are, summed; known without running a method.

    Feature 0 of a token is the brightness of its patch, the others are constant; blocks pass tokens on. Only
    the last block of a class-token network, or the pooler, gathers them, by equal attention.
    """
    module = getattr(tf, f"{PREFIX[name]}ForVideoClassification")(config(name))
    reads = {"timesformer": f"{BLOCKS[name]}.2.attention", "vivit": f"{BLOCKS[name]}.2.attention"}.get(
        name, "pooler.cross_attention_layer.cross_attn"
    )
    fan = {"timesformer": 256}.get(name, 512) * 3
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for key, value in module.named_parameters():
            if "patch_embeddings" in key and key.endswith("weight"):
                value.zero_()
                value[0] = 8 / fan
            elif "patch_embeddings" in key:
                value.copy_(torch.randn(value.shape, generator=generator))
            elif key == "classifier.weight":
                value.zero_()
                value[2, 0] = 1
            elif key.startswith(reads) and key.endswith(("qkv.weight", "v_proj.weight", "o_proj.weight")):
                value.zero_()
                value[-WIDTH:] = torch.eye(WIDTH)  # queries and keys stay zero: equal attention
            elif key.startswith(reads) and key.endswith("attention.output.dense.weight"):
                value.copy_(torch.eye(WIDTH))
            elif (
                (key.startswith(reads) and key.endswith("weight"))
                or zeroed(key)
                or "embeddings" in key
                or key.endswith("bias")
            ):
                value.zero_()
    if name == "videomae":  # not a parameter
        module.videomae.embeddings.position_embeddings.zero_()
    return module


@pytest.mark.parametrize("name", NAMES)
def test_gradcam_finds_planted_evidence(name: str, tmp_path: Path):
    save(seeing(name), tmp_path)
    model = load_model(tmp_path)
    if name == "videomae":
        assert isinstance(model, TorchModel)
        model.module.videomae.embeddings.position_embeddings.zero_()  # type: ignore[union-attr, operator]
    height, width = SIZE[name]
    pixels = torch.zeros(3, FRAMES, height, width)
    pixels[:, 2:, 16:32, 32:48] = 1  # its last half, in the middle or below, at the right
    why = explain(model, clip_of(pixels), method="gradcam", target=2)
    values = why.grid
    top = values >= 0.9 * values.max()
    half = FRAMES // 2 if name == "timesformer" else 1
    expected = torch.zeros_like(top)
    expected[half:, 1, 2] = True
    assert float(values.max()) > 0
    assert torch.equal(top, expected)


@pytest.mark.parametrize("name", CLASS_TOKEN)
def test_at_the_last_block_of_a_class_token_network_the_gradient_is_zero_and_said_to_be(name: str):
    model = load_model(folder(name))
    clip = clip_of(clips(name)[0])
    with pytest.raises(LayerError, match=r"zero at layer .*2'.*choose an earlier one"):
        explain(model, clip, method="gradcam", target=1, layer=f"{BLOCKS[name]}.2")
    assert model.layer == f"{BLOCKS[name]}.1"
    grid = explain(model, clip, method="gradcam", target=1, layer=f"{BLOCKS[name]}.1").grid
    assert float(grid.abs().max()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_several_targets_are_those_of_single_ones(name: str):
    model = load_model(folder(name))
    clip = clip_of(clips(name)[0])
    several = explain(model, clip, method="gradcam", target=[0, 3])
    for one, target in zip(several, (0, 3), strict=True):
        alone = explain(model, clip, method="gradcam", target=target)
        torch.testing.assert_close(one.grid, alone.grid, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("videomae", "LayerNorm"),
        ("timesformer", "class token"),
        ("vivit", "class token"),
        ("vjepa2", "attention"),
    ],
)
def test_tubes_say_why_they_do_not_apply(name: str, why: str):
    model = load_model(folder(name))
    with pytest.raises(HeadError, match=why):
        explain(model, clip_of(clips(name)[0]), method="tubes", target=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_left_as_it_was(name: str):
    model = load_model(folder(name))
    assert isinstance(model, TorchModel)
    before, said = state(model.module), model.module.config.to_dict()  # type: ignore[operator, union-attr]
    explain(model, clip_of(clips(name)[0]), method="gradcam", target=0)
    assert_same(before, state(model.module))
    assert model.module.config.to_dict() == said  # type: ignore[operator, union-attr]


COUNTS = {  # of the published classifiers, V-JEPA 2 without the predictor
    "videomae": (400, 86_534_800),
    "timesformer": (400, 121_566_352),
    "vivit": (400, 88_954_000),
    "vjepa2": (174, 353_399_982),
}

KEYS = {
    "videomae": "videomae.encoder.layer.11.attention.attention.query.weight",
    "timesformer": "timesformer.encoder.layer.11.temporal_attention.attention.qkv.weight",
    "vivit": "vivit.layers.11.attention.q_proj.weight",
    "vjepa2": "vjepa2.encoder.layer.23.attention.proj.weight",
}


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_the_published_networks(name: str):
    (recipe,) = (r for r in RECIPES if r.name == name)
    assert (recipe.classes, recipe.parameters) == COUNTS[name]
    with torch.device("meta"):
        module = recipe.build(recipe.classes)
    assert sum(p.numel() for p in module.parameters()) == recipe.parameters
    keys = module.state_dict().keys()
    assert KEYS[name] in keys
    assert not any("predictor" in key for key in keys)
    assert module.state_dict()[recipe.head].shape[0] == recipe.classes
    assert recipe.attention is not None
    for layer in (*recipe.layouts, *recipe.attention.blocks, recipe.layer):
        module.get_submodule(layer)
    family = FAMILIES[name]
    assert family.read(module.config) == family.network  # the numbers above are those of the config
    assert recipe.extra == "hf"
    assert recipe.spec.frames == {"videomae": 16, "timesformer": 8, "vivit": 32, "vjepa2": 16}[name]


ATTENTION = {
    "videomae": ("joint", "mean", ["attention.attention"] * 3),
    "timesformer": ("divided", "class", ["temporal_attention.attention", "attention.attention"] * 3),
    "vivit": ("joint", "class", ["attention"] * 3),
    "vjepa2": ("joint", "pooler", ["attention"] * 3 + ["self_attn", "cross_attn"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_attention_modules_are_named_in_the_order_they_run(name: str):
    model = load_model(folder(name))
    assert isinstance(model, TorchModel)
    assert model.attention is not None
    kind, readout, ends = ATTENTION[name]
    assert (model.attention.kind, model.attention.readout) == (kind, readout)
    for block, end in zip(model.attention.blocks, ends, strict=True):
        assert block.endswith(f".{end}")
    met: list[str] = []
    handles = [
        model.submodule(block).register_forward_hook(lambda *_, block=block: met.append(block))
        for block in model.attention.blocks
    ]
    model(clips(name))
    for handle in handles:
        handle.remove()
    assert met == list(model.attention.blocks)
    assert callable(model.attention.tokens)
    tokens = model.attention.tokens((FRAMES, *SIZE[name]))
    assert tokens == model.layout(f"{BLOCKS[name]}.0", (FRAMES, *SIZE[name]))
    assert tokens.prefix == int(readout == "class")


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (
            "videomae",
            (8, 32, 48),
            "videomae takes clips of 4 frames of 32 x 48 pixels, not of 8 frames",
        ),
        ("videomae", (4, 48, 32), "not of 4 frames of 48 x 32"),  # as many tokens
        ("vivit", (5, 32, 48), "vivit takes clips of 4 frames of 32 x 48 pixels, not of 5 frames"),
        ("vivit", (4, 64, 48), "not of 4 frames of 64 x 48"),
        ("timesformer", (8, 48, 48), "timesformer takes clips of 4 frames"),
        ("timesformer", (4, 16, 144), "not of 4 frames of 16 x 144"),  # as many tokens
        ("vjepa2", (3, 48, 48), "a multiple of 2 frames"),
        ("vjepa2", (4, 64, 64), "of 48 x 48 pixels, not of 4 frames of 64 x 64"),
    ],
)
def test_clips_of_a_size_that_it_cannot_take_are_refused_in_one_line(
    name: str, shape: tuple[int, int, int], said: str
):
    model = load_model(folder(name))
    with pytest.raises(InputError) as caught:
        model(torch.rand(1, 3, *shape))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_that_are_refused_would_mix_tokens_up():
    """TimeSformer attends along time over half of a place, V-JEPA 2 counts columns into the next row."""
    seen = []
    net = network("timesformer")
    handle = net.timesformer.encoder.layer[0].temporal_attention.register_forward_hook(
        lambda module, inputs, output: seen.append(tuple(inputs[0].shape))
    )
    with torch.no_grad():
        net(torch.rand(1, 2 * FRAMES, 3, 48, 48))
    handle.remove()
    assert seen == [(18, FRAMES, WIDTH)]  # and not nine places of eight frames
    attention = network("vjepa2").vjepa2.encoder.layer[0].attention
    rows = attention.get_position_ids(torch.zeros(1, 2 * 4 * 4, WIDTH))[1]
    assert rows[:4].tolist() == [0, 0, 0, 1]  # four patches of one row


@pytest.mark.parametrize(("name", "shape"), [("timesformer", (4, 48, 64)), ("vjepa2", (8, 48, 48))])
def test_other_sizes_that_work_are_taken(name: str, shape: tuple[int, int, int]):
    model = load_model(folder(name))
    x = torch.rand(1, 3, *shape)
    if name == "timesformer":
        x = torch.rand(1, 3, 4, 96, 48)  # six rows of three patches
    assert isinstance(model, TorchModel)
    with torch.no_grad():
        expected = network(name)(model.pack(x)).logits
    torch.testing.assert_close(model(x), expected)
    cells = [(3, 2, 1), (1, 0, 2)]
    placed(model, (x.shape[2], x.shape[3], x.shape[4]), f"{BLOCKS[name]}.0", cells)
