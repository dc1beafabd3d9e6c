"""Rollout and chefer on the video transformers of `transformers`, small and random.

References: the library's own attention and gradients in eager mode, put together in plain N x N products;
for TimeSformer its blocks again, with time and space as dense matrices over all tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from tests.test_untouched import assert_same, state
from tubelens.attention import attending
from tubelens.clip import Clip
from tubelens.errors import InputError
from tubelens.layout import Layout
from tubelens.loading import load_model
from tubelens.methods.attention import AttentionRollout, Chefer, Flow
from tubelens.model import Attention, TorchModel
from tubelens.target import Contrast, Logit

transformers = pytest.importorskip("transformers")
LAYERS, HEADS = 3, 4
SHARED: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "num_labels": 5,
    "patch_size": 8,
}
LAYER = {
    "videomae": "videomae.encoder.layer.{}.attention",
    "vivit": "vivit.layers.{}",
    "vjepa2": "vjepa2.encoder.layer.{}",
    "timesformer": "timesformer.encoder.layer.{}",
}
SIZES = {"timesformer": (3, 16, 32)}  # 3x2x4 tokens; of the others 2x4x4
TARGETS = [Logit(1), Logit(4), Contrast(0, 2)]


def config(name: str) -> Any:
    match name:
        case "videomae":
            return transformers.VideoMAEConfig(image_size=32, num_frames=4, **SHARED)
        case "vivit":
            return transformers.VivitConfig(image_size=32, num_frames=4, tubelet_size=[2, 8, 8], **SHARED)
        case "timesformer":
            return transformers.TimesformerConfig(image_size=32, num_frames=3, **SHARED)
    return transformers.VJEPA2Config(
        crop_size=32,
        frames_per_clip=4,
        num_pooler_layers=2,
        mlp_ratio=2.0,
        pred_num_hidden_layers=1,
        **SHARED,
    )


CLASS = {
    "videomae": "VideoMAEForVideoClassification",
    "vivit": "VivitForVideoClassification",
    "timesformer": "TimesformerForVideoClassification",
    "vjepa2": "VJEPA2ForVideoClassification",
}


@cache
def built(name: str) -> nn.Module:
    """Random, with attention far from uniform."""
    net: nn.Module = getattr(transformers, CLASS[name])(config(name)).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, p in net.named_parameters():
            sharp = 2.0 if any(word in key for word in ("query", "qkv", "q_proj", "key", "k_proj")) else 1.0
            drawn = torch.randn(p.shape, generator=g)
            fan = p[0].numel() if p.ndim > 1 and p.shape[0] > 1 else 1
            if p.ndim == 1:  # few biases, and norms that keep
                p.copy_(drawn * 0.1 + float("norm" in key and "weight" in key))
            else:
                p.copy_(drawn * sharp / fan**0.5)
    return net


def wrapped(name: str, attention: str | None = None) -> TorchModel:
    net: Any = copy.deepcopy(built(name))
    if attention and name != "timesformer":
        net.set_attn_implementation(attention)
    blocks = [LAYER[name].format(i) for i in range(LAYERS)]
    readout = {"videomae": "mean", "vjepa2": "pooler"}.get(name, "class")
    if name == "vjepa2":
        blocks += [f"pooler.self_attention_layers.{i}.self_attn" for i in range(2)]
        blocks += ["pooler.cross_attention_layer"]
    if name == "timesformer":
        layout, kind = Layout("b (h w t) c", {"t": 3, "h": 2, "w": 4}, 1), "divided"
    else:
        layout, kind = Layout("b (t h w) c", {"t": 2, "h": 4, "w": 4}, int(readout == "class")), "joint"
    return TorchModel(
        net,
        pack=lambda x: (x - 0.5).transpose(1, 2),
        unpack=lambda out: out.logits,
        name=name,
        attention=Attention(tuple(blocks), kind, readout, layout),  # type: ignore[arg-type]
    )


def clip(name: str, seed: int = 0) -> Clip:
    size = SIZES.get(name, (4, 32, 32))
    return Clip.from_array(np.random.default_rng(seed).random((*size, 3), dtype=np.float32))


def eager(name: str) -> tuple[Tensor, list[Tensor]]:
    """Logits and every `(heads, q, k)` in the graph, by the library's eager mode."""
    net: Any = wrapped(name, "eager").module
    found: list[Tensor] = []
    keep = [m for m in net.modules() if "Pooler" in type(m).__name__ and type(m).__name__[-9:] == "Attention"]
    kept: list[Tensor] = []
    for module in keep:
        module.register_forward_hook(lambda m, i, o: kept.append(o[1]))
    out = net((clip(name).pixels[None] - 0.5).transpose(1, 2), output_attentions=True)
    found = [*out.attentions, *kept]
    assert len(found) == LAYERS + (3 if name == "vjepa2" else 0)
    return out.logits, found


def values(scores: Tensor) -> list[Tensor]:
    """Of `TARGETS`."""
    return [scores[0, 1], scores[0, 4], scores[0, 0] - scores[0, 2]]


JOINT = ["videomae", "vivit", "vjepa2"]


@pytest.mark.parametrize("mode", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*JOINT, "timesformer"])
def test_attention_and_its_gradients_are_those_of_eager_mode(name: str, mode: str):
    model, video = wrapped(name, mode), clip(name)
    scores, expected = eager(name)
    with attending(model, video.pixels[None], "rollout") as met:
        torch.testing.assert_close(met.scores, scores.detach(), atol=1e-5, rtol=1e-5)
        assert torch.equal(met.scores, model(video.pixels[None]))
    matrices = met.matrices[1::2] if name == "timesformer" else met.matrices  # it shows space alone
    for matrix, a in zip(matrices, expected, strict=True):
        torch.testing.assert_close(matrix, a.detach().mean(dim=1), atol=1e-6, rtol=1e-4)
        assert float(a.detach().std()) > 0.3 / a.shape[-1]
    with attending(model, video.pixels[None], "chefer", gradients=True) as met:
        for target, value in zip(TARGETS, values(scores), strict=True):
            found: dict[int, Tensor] = {}
            met.weighted(target, found.__setitem__)
            gradients = torch.autograd.grad(value, expected, retain_graph=True)
            for i, (a, g) in enumerate(zip(expected, gradients, strict=True)):
                weighted = (a * g).detach().clamp(min=0).mean(dim=1)
                at = 2 * i + 1 if name == "timesformer" else i
                torch.testing.assert_close(found[at], weighted, atol=1e-6, rtol=1e-3)
                assert float(weighted.amax()) > 1e-4


def as_grid(row: Tensor, name: str) -> Tensor:
    """Of a row over tokens in the order of each network's own code."""
    if name == "timesformer":
        return row[1:].reshape(2, 4, 3).permute(2, 0, 1)
    return row[-32:].reshape(2, 4, 4)


@pytest.mark.parametrize("name", JOINT)
def test_rollout_of_joint_attention(name: str):
    *blocks, last = [a.detach()[0].mean(dim=0) for a in eager(name)[1]]
    if name != "vjepa2":
        blocks = [*blocks, last]
    eye = torch.eye(blocks[0].shape[0])
    rolled = eye
    for a in blocks:
        rolled = (a + eye) / 2 @ rolled
    row = {"videomae": rolled.mean(dim=0), "vivit": rolled[0], "vjepa2": last[0] @ rolled}[name]
    assert float(row.sum()) == pytest.approx(1, abs=1e-5)
    found = AttentionRollout()(wrapped(name), clip(name), TARGETS)
    for why in found:
        torch.testing.assert_close(why.grid, as_grid(row, name), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", JOINT)
def test_chefer_of_joint_attention(name: str):
    scores, attention = eager(name)
    found = Chefer()(wrapped(name), clip(name), TARGETS)
    for why, value in zip(found, values(scores), strict=True):
        gradients = torch.autograd.grad(value, attention, retain_graph=True)
        weighted = [
            (a * g)[0].detach().clamp(min=0).mean(dim=0) for a, g in zip(attention, gradients, strict=True)
        ]
        *blocks, last = weighted if name == "vjepa2" else [*weighted, torch.zeros(0)]
        eye = torch.eye(blocks[0].shape[0])
        r = eye
        for m in blocks:
            r = r + m @ r
        left = r - eye
        if name == "vjepa2":  # eqs. 8 to 10, the query's own relevance being 1
            row = (last @ (left / left.sum(dim=1, keepdim=True) + eye))[0]
        else:
            row = left[0] if name == "vivit" else left.mean(dim=0)
        torch.testing.assert_close(why.grid, as_grid(row, name), atol=1e-6, rtol=1e-3)
        assert float(why.grid.std() / why.grid.mean()) > 0.05
    assert not torch.allclose(found[0].grid, found[1].grid, rtol=0.1)


def dense(name: str = "timesformer") -> tuple[Tensor, list[Tensor]]:
    """TimeSformer with dense matrices `(heads, 25, 25)` over tokens `1 + (h w t)`, in the graph."""
    model = wrapped(name)
    net: Any = model.module
    base = net.timesformer
    with torch.no_grad():
        x = base.embeddings((clip(name).pixels[None] - 0.5).transpose(1, 2))[0]
    place = [(-1, -1)] + [(p, t) for p in range(8) for t in range(3)]  # token: place and frame
    n, d, found = len(place), 32 // HEADS, []

    def attention(module: Any, before: Tensor, sees: Callable[[int, int], bool], copies: bool) -> Tensor:
        q, k, value = module.attention.qkv(before).split(32, dim=1)
        matrix = torch.zeros(HEADS, n, n)
        for h in range(HEADS):
            s = slice(h * d, (h + 1) * d)
            for i in range(n):
                for frame in range(3) if copies and i == 0 else [None]:
                    # a copy of the class token sees its frame alone; the answers of the copies are averaged
                    seen = [
                        j for j in range(n) if sees(i, j) and (frame is None or place[j][1] in (-1, frame))
                    ]
                    if seen:
                        p = torch.softmax(torch.stack([q[i, s] @ k[j, s] for j in seen]) / d**0.5, dim=0)
                        matrix[h, i, seen] += p / (1 if frame is None else 3)
        found.append(matrix)
        out = torch.cat([matrix[h] @ value[:, h * d : (h + 1) * d] for h in range(HEADS)], dim=1)
        return module.output.dense(out)

    def in_time(i: int, j: int) -> bool:
        return i > 0 and j > 0 and place[i][0] == place[j][0]

    def in_space(i: int, j: int) -> bool:
        return i == 0 or j == 0 or place[i][1] == place[j][1]

    patches = torch.ones(n, 1)
    patches[0] = 0
    for layer in base.encoder.layer:
        out = attention(layer.temporal_attention, layer.temporal_layernorm(x), in_time, False)
        x = x + patches * layer.temporal_dense(out)
        x = x + attention(layer.attention, layer.layernorm_before(x), in_space, True)
        x = x + layer.output(layer.intermediate(layer.layernorm_after(x)))
    return net.classifier(base.layernorm(x)[:1]), found


@cache
def dense_once() -> tuple[Tensor, list[Tensor]]:
    return dense()


def test_the_dense_timesformer_is_timesformer():
    scores = wrapped("timesformer")(clip("timesformer").pixels[None])
    torch.testing.assert_close(dense_once()[0].detach(), scores, atol=1e-4, rtol=1e-4)


def test_rollout_of_divided_attention():
    eye = torch.eye(25)
    rolled = eye
    for a in dense_once()[1]:
        p = a.detach().mean(dim=0) + eye
        rolled = (p / p.sum(dim=1, keepdim=True)) @ rolled
    (why,) = AttentionRollout()(wrapped("timesformer"), clip("timesformer"), [Logit(0)])
    torch.testing.assert_close(why.grid, as_grid(rolled[0], "timesformer"), atol=1e-6, rtol=1e-3)
    assert float(why.grid.std() / why.grid.mean()) > 0.1


def test_chefer_of_divided_attention():
    scores, attention = dense_once()
    found = Chefer()(wrapped("timesformer"), clip("timesformer"), TARGETS)
    for why, value in zip(found, values(scores), strict=True):
        r = torch.eye(25)
        for a, g in zip(attention, torch.autograd.grad(value, attention, retain_graph=True), strict=True):
            r = r + (a * g).detach().clamp(min=0).mean(dim=0) @ r
        torch.testing.assert_close(why.grid, as_grid(r[0], "timesformer"), atol=1e-6, rtol=1e-3)
    assert not torch.allclose(found[0].grid, found[1].grid, rtol=0.1)


@pytest.mark.parametrize("name", [*JOINT, "timesformer"])
def test_cells_are_the_tokens_of_their_patches(name: str):
    """A changed patch changes the token that its cell names."""
    model, video = wrapped(name), clip(name)
    with attending(model, video.pixels[None], "rollout") as met:
        cells = Flow.of(met).cells
    depth = video.pixels.shape[1] // len(cells)
    for t, h, w in ((0, 0, 0), (1, 1, 3), (1, 0, 2)):
        pixels = video.pixels.clone()
        pixels[:, depth * t : depth * (t + 1), 8 * h : 8 * h + 8, 8 * w : 8 * w + 8] = 0
        seen: list[Tensor] = []
        with model.submodule(LAYER[name].format(0).removesuffix(".attention")).register_forward_pre_hook(
            lambda m, args, s=seen: s.append(args[0])
        ):
            model(video.pixels[None])
            model(pixels[None])
        changed = (seen[0] - seen[1]).abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
        assert changed == [int(cells[t, h, w])]


@pytest.mark.parametrize("way", [AttentionRollout(), Chefer()])
@pytest.mark.parametrize("mode", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*JOINT, "timesformer"])
def test_nothing_is_left(name: str, mode: str, way: Any):
    """Neither after an explanation, nor when the network fails within a block."""
    model, video = wrapped(name, mode), clip(name)
    net: Any = model.module
    net.train()
    before = state(net)
    settings = [net.config.to_dict(), net.config._attn_implementation]
    settings += [id(m.config) for m in net.modules() if hasattr(m, "config")]
    first = way(model, video, [Logit(1)])[0]

    def breaks(module: nn.Module, args: Any) -> None:
        raise RuntimeError("broken inside")

    with (
        model.submodule(model.attention.blocks[1]).register_forward_pre_hook(breaks),  # type: ignore[union-attr]
        pytest.raises(InputError, match="broken inside"),
    ):
        way(model, video, [Logit(1)])
    assert_same(before, state(net))
    again = [net.config.to_dict(), net.config._attn_implementation]
    assert settings == again + [id(m.config) for m in net.modules() if hasattr(m, "config")]
    assert _get_current_function_mode_stack() == []
    torch.testing.assert_close(way(model, video, [Logit(1)])[0].grid, first.grid)


def test_attention_that_is_not_shown_is_an_error():
    """A kernel of its own is met nowhere, and not taken for no attention."""
    model, video = wrapped("videomae"), clip("videomae")

    class Own(type(model.module.videomae.encoder.layer[1].attention)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
            with torch._C.DisableTorchFunction():
                return super().forward(hidden_states, **options)

    model.module.videomae.encoder.layer[1].attention.__class__ = Own
    with pytest.raises(InputError, match=r"no attention within 'videomae\.encoder\.layer\.1\.attention'"):
        AttentionRollout()(model, video, [Logit(1)])


def test_a_pooler_that_is_not_among_the_blocks():
    model = wrapped("vjepa2")
    attention = replace(model.attention, blocks=model.attention.blocks[:-1])  # type: ignore[union-attr,type-var]
    with pytest.raises(InputError, match=r"matrices of 1x1x32 in 'pooler\.self_attention"):
        Chefer()(replace(model, attention=attention), clip("vjepa2"), [Logit(1)])


@pytest.mark.parametrize("name", [*JOINT, "timesformer"])
def test_networks_from_a_folder_declare_their_attention(name: str, tmp_path: Path):
    built(name).save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    own = replace(wrapped(name), pack=model.pack)  # as declared by hand above
    for way in (AttentionRollout(), Chefer()):
        for found, why in zip(way(model, clip(name), TARGETS), way(own, clip(name), TARGETS), strict=True):
            torch.testing.assert_close(found.grid, why.grid, atol=1e-7, rtol=1e-3)
            assert found.parts[0].x == (3.5, 11.5, 19.5, 27.5)
