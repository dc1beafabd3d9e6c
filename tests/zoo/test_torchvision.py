"""torchvision's transformers: what they are fed, where their tokens look, which of their heads are affine."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import SwinTransformer3d

import tubelens as tl
from tests.perturbed import clip
from tests.zoo.evidence import focused, misplaced
from tubelens import zoo
from tubelens.capture import capturing
from tubelens.errors import CheckpointError, HeadError, InputError, LayerError
from tubelens.layout import Layout
from tubelens.model import TorchModel
from tubelens.target import Logit
from tubelens.zoo import official, torchvision_transformers, torchvision_video
from tubelens.zoo.torchvision_transformers import merged_tokens, mvit_layouts, pooled_tokens

RECIPES = {r.name: r for r in torchvision_transformers.RECIPES}
KEYS = {"mvit_v1_b": 313, "mvit_v2_s": 397, "swin3d_t": 185, "swin3d_s": 353, "swin3d_b": 353}
SIZE = (8, 64, 96)  # no two axes alike
MVITS = ("mvit_v1_b", "mvit_v2_s")


def tiny_mvit(v2: bool, size: tuple[int, int, int] = SIZE, classes: int = 5) -> nn.Module:
    """An MViT of 16 blocks with the published pooling, eight channels a head."""
    halving = (1, 3, 14)
    blocks, width = [], 8
    for i in range(16):
        into = width
        if (i if v2 else i + 1) in halving:
            width *= 2
        kv = max(1, 8 // 2 ** sum(i >= h for h in halving))
        q = ([3, 3, 3], [1, 2, 2]) if i in halving else ([], [])
        heads = (width if v2 else into) // 8
        blocks.append(MSBlockConfig(heads, into, width, q[0], [3, 3, 3], q[1], [1, kv, kv]))
    return MViT(size[1:], size[0], blocks, v2, False, v2, v2, num_classes=classes, stochastic_depth_prob=0.0)


def tiny_swin(classes: int = 5) -> nn.Module:
    """Four stages of two blocks, so that every other one shifts its windows."""
    return SwinTransformer3d(
        [2, 4, 4], 8, [2, 2, 2, 2], [1, 2, 4, 8], [2, 3, 3], stochastic_depth_prob=0.0, num_classes=classes
    )


def model_of(module: nn.Module, name: str, **fields: Any) -> TorchModel:
    recipe = RECIPES[name]
    pack = getattr(recipe.pack, "pack", recipe.pack)  # without the check of the size
    known = {"layouts": recipe.layouts, "layer": recipe.layer, "tubes": recipe.tubes}
    return TorchModel(module.eval(), pack, attention=recipe.attention, name=name, **known | fields)


def local(net: nn.Module, base: Tensor, seed: int = 1) -> nn.Module:
    """Attention speaks softly, so that the shortcuts around it carry the evidence and its place."""
    net = focused(net, base, seed=seed)
    for name, module in net.named_modules():
        if name.endswith((".attn.proj", ".attn.project.0")):
            with torch.no_grad():
                module.weight.mul_(0.02)
                module.bias.zero_()
    return net


# ── what torchvision publishes ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_agree_with_torchvision(name: str):
    recipe = RECIPES[name]
    with torch.device("meta"):
        module = recipe.build(recipe.classes)
    state = module.state_dict()
    assert len(state) == KEYS[name]
    assert recipe.parameters == sum(p.numel() for p in module.parameters())
    assert state[recipe.head].shape[0] == 400
    assert set(recipe.official) | {"DEFAULT"} == set(get_model_weights(name).__members__)
    for weights in get_model_weights(name):
        preset = weights.transforms()
        assert recipe.parameters == weights.meta["num_params"]
        assert (list(recipe.spec.size), [recipe.spec.resize]) == (preset.crop_size, preset.resize_size)
        assert not recipe.spec.antialias  # the preset resizes with antialias=False
        rate = f"`frame_rate={recipe.spec.rate:g}`"
        assert rate in weights.meta["_docs"]
        assert f"`clip_len={recipe.spec.frames}`" in weights.meta["_docs"]
        frames = torch.randint(0, 256, (recipe.spec.frames, 3, *recipe.spec.size), dtype=torch.uint8)
        preset.resize_size = list(recipe.spec.size)
        expected = preset(frames)
        ours = recipe.pack((frames / 255).transpose(0, 1)[None])[0]
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", RECIPES)
def test_attention_is_where_the_recipe_says(name: str):
    recipe = RECIPES[name]
    assert recipe.attention is not None
    with torch.device("meta"):
        module = recipe.build(3)
    found = [n for n, m in module.named_modules() if type(m).__name__.endswith(("Attention", "Attention3d"))]
    assert list(recipe.attention.blocks) == found
    tokens = recipe.attention.tokens
    assert not isinstance(tokens, Layout)
    if recipe.attention.readout == "class":
        assert tokens((16, 224, 224)).sizes == {"t": 8, "h": 7, "w": 7}
        assert tokens((16, 224, 224)).prefix == 1


def test_where_official_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    recipe = RECIPES["swin3d_b"]
    assert recipe.cached is not None
    files = [recipe.cached(name) for name in recipe.official]
    assert files == [
        tmp_path / "checkpoints" / "swin3d_b_1k-24f7c7c6.pth",
        tmp_path / "checkpoints" / "swin3d_b_22k-7c6ae6fa.pth",
    ]
    cnn = torchvision_video.RECIPES[0]
    assert cnn.cached is not None
    assert cnn.cached("KINETICS400_V1").name == "r3d_18-b3b3357e.pth"
    with pytest.raises(CheckpointError, match=r"no weights 'KINETICS400_V2' .did you mean 'KINETICS400_V1'"):
        recipe.cached("KINETICS400_V2")


def test_official_files_are_known_by_name_and_hash(tmp_path: Path):
    content = b"weights"
    digits = hashlib.sha256(content).hexdigest()[:8]
    right = tmp_path / f"net_b-{digits}.pth"
    right.write_bytes(content)
    assert official.hash_in_name(right) == digits
    assert official.is_official(right, f"https://example.org/models/{right.name}")
    assert not official.is_official(right, "https://example.org/models/other-00000000.pth")
    changed = tmp_path / f"changed-{digits}.pth"
    changed.write_bytes(content + b"!")
    assert not official.is_official(changed, f"https://example.org/{changed.name}")
    plain = tmp_path / "SLOW_8x8_R50.pyth"
    plain.write_bytes(content)
    assert official.hash_in_name(plain) is None
    assert not official.is_official(plain, f"https://example.org/{plain.name}")


def test_loading_labels_and_the_way_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = RECIPES["swin3d_t"]
    monkeypatch.setitem(zoo.MODELS, recipe.name, recipe)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def unreachable(url: str, file: str, hash_prefix: str | None, progress: bool) -> None:
        asked.append((url, hash_prefix))
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded .*put it at .*swin3d_t-7615ae03.pth"):
        zoo.load("swin3d_t", "KINETICS400_V1")
    assert asked == [("https://download.pytorch.org/models/swin3d_t-7615ae03.pth", "7615ae03")]
    file = tmp_path / "checkpoints" / "swin3d_t-7615ae03.pth"
    torch.save({"head.weight": torch.zeros(400, 768)}, file)
    with pytest.raises(CheckpointError, match=r"184 missing"):  # the kept file is read
        zoo.load("swin3d_t", "KINETICS400_V1")


# ── where cells look ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
def test_mvit_tokens_look_where_the_layout_says(v2: bool):
    """A wrong order of t, h and w, or a wrong stride, is off by cells."""
    size = (6, 96, 128)
    base = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0))
    model = model_of(local(tiny_mvit(v2, size), base), "mvit_v2_s")
    layers = {1: 4, 2: 8, 3: 8, 4: 16, 14: 16, 15: 32}
    with capturing(model, base, [f"blocks.{i}.norm1" for i in layers]) as capture:
        for i, stride in layers.items():
            at = capture.at(f"blocks.{i}.norm1")
            assert at.activations.shape[2:] == (3, 96 // stride, 128 // stride)
            assert at.layout.centres["t"] == (0, 2, 4)
            assert at.layout.centres["w"][:3] == (0, stride, 2 * stride)
    for layer, place in (("blocks.15.norm1", (0.0, 0.5, 0.7)), ("blocks.14.norm1", (1.0, 0.4, 0.3))):
        found = misplaced(model, [layer], base, place)[layer]
        assert max(map(abs, found)) <= 0.25, f"{layer}: off by {found} strides along t, y, x"


def test_swin_cells_look_where_they_are_followed_to():
    net = tiny_swin()
    base = torch.rand((1, 3, *SIZE), generator=torch.Generator().manual_seed(0))
    model = model_of(local(net, base), "swin3d_t")
    with capturing(model, base) as capture:
        assert capture.layout.pattern == "b t h w c"
        assert capture.layout.centres == merged_tokens(SIZE).centres
        assert capture.layout.centres == {
            "t": (0.5, 2.5, 4.5, 6.5),
            "h": (15.5, 47.5),
            "w": (15.5, 47.5, 79.5),
        }
    for at in ((0.3, 0.0, 1.0), (0.7, 1.0, 0.5)):
        found = misplaced(model, ["norm"], base, at)["norm"]
        assert max(map(abs, found)) <= 0.25, f"off by {found} strides along t, y, x"


def test_swin_takes_other_sizes():
    """Uneven clips are padded at the end: the cells there go on in steps."""
    odd = (7, 40, 66)
    model = model_of(tiny_swin(), "swin3d_t")
    with capturing(model, torch.rand(1, 3, *odd)) as capture:
        assert capture.activations.shape[2:] == (4, 2, 3)
        for axis, centres in merged_tokens(odd).centres.items():
            assert capture.layout.centres[axis] == pytest.approx(centres)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_full_networks_have_the_published_grids(name: str):
    recipe = RECIPES[name]
    torch.manual_seed(0)
    frames = 16
    model = model_of(recipe.build(3), name)
    layers = [f"blocks.{i}.norm1" for i in (0, 1, 2, 4, 15)] if "mvit" in name else ["norm"]
    with capturing(model, torch.rand(1, 3, frames, 224, 224), layers) as capture:
        grids = [tuple(capture.at(layer).activations.shape[2:]) for layer in layers]
    sides = (56, 56, 28, 14, 7) if "mvit" in name else (7,)
    assert grids == [(8, side, side) for side in sides]


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────────────


def test_mvit_refuses_a_size_that_it_would_mix_up():
    """As many tokens in another shape pass through the network itself, their positions mixed up."""
    net = tiny_mvit(False)
    turned = torch.rand(1, 3, 8, 96, 64)
    assert net.eval()(turned).shape == (1, 5)
    for name in MVITS:
        pack = RECIPES[name].pack
        assert pack(torch.rand(1, 3, 16, 224, 224)).shape == (1, 3, 16, 224, 224)
        for size in ((8, 224, 448), (32, 224, 112), (16, 112, 448), (8, 224, 224), (17, 224, 224)):
            with pytest.raises(InputError, match=rf"{name} takes clips of 16 frames of 224 x 224 .*, not of"):
                pack(torch.rand(1, 3, *size))


# ── heads ────────────────────────────────────────────────────────────────────────────────────────────────


def test_swin_tubes_are_exact():
    net = focused(tiny_swin(), torch.rand(2, 3, *SIZE), seed=2)
    model = model_of(net, "swin3d_t")
    video = clip(SIZE)
    logits = model(video.pixels[None])[0]
    for k in (0, 4):
        why = tl.Tubes()(model, video, [Logit(k)])[0]
        constant = why.provenance.facts["constant"]
        assert constant == pytest.approx(float(net.head.bias.detach()[k]), abs=1e-4)
        own = abs(float(logits[k]) - constant)
        assert abs(float(why.grid.sum()) + constant - float(logits[k])) <= 1e-4 * max(own, 1e-2)
    weight = net.head.weight.detach()[2]
    with capturing(model, video.pixels[None]) as capture:
        slow = torch.einsum("c,cthw->thw", weight, capture.activations[0]) / capture.activations[0, 0].numel()
    torch.testing.assert_close(tl.Tubes()(model, video, [Logit(2)])[0].grid, slow, rtol=1e-4, atol=1e-6)


def test_mvit_reads_its_class_token():
    net = focused(tiny_mvit(False), torch.rand(1, 3, *SIZE), seed=2)
    layouts = mvit_layouts() | {"blocks.15": partial(pooled_tokens)}
    model = model_of(net, "mvit_v1_b", layouts=layouts)
    video = clip(SIZE)
    assert RECIPES["mvit_v1_b"].tubes == "the head reads the class token"
    with pytest.raises(HeadError):
        tl.Tubes()(model, video, [Logit(1)])
    # what leaves the last block is not read, what enters its attention is
    with pytest.raises(LayerError, match="zero"):
        tl.GradCAM(layer="blocks.15")(model, video, [Logit(1)])
    why = tl.GradCAM(signed=True)(model, video, [Logit(1)])[0]
    assert why.grid.shape == (4, 2, 3)
    assert float(why.grid.abs().max()) > 0
