"""Attention is read as the network computes it, and rollout and chefer are their papers' formulas.

The reference (`explicit`) is the network again with every softmax, head and residual written out, its
probabilities leaves, and the papers' N x N products in loops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from tests.test_untouched import assert_same, state
from tubelens.attention import attending
from tubelens.attention_calls import Call, Watch, entered
from tubelens.clip import Clip
from tubelens.errors import InputError, LayerError, OptionError, ScoreError
from tubelens.layout import Layout
from tubelens.methods.attention import AttentionRollout, Chefer
from tubelens.model import Attention, BlackBox, TorchModel
from tubelens.target import Contrast, Logit

WIDTH, HEADS = 12, 3
SIZE = (4, 8, 12)  # patches of 2x4x4: 2x2x3 tokens


def softmaxed(x: Tensor) -> Tensor:
    """By its definition."""
    e = (x - x.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum(dim=-1, keepdim=True)


WRITTEN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fused": F.scaled_dot_product_attention,
    "functional": lambda q, k, v: F.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1, dtype=torch.float32) @ v,
    "method": lambda q, k, v: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v,
    "torch": lambda q, k, v: torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, 3) @ v,
    "three": lambda q, k, v: F.scaled_dot_product_attention(q[0], k[0], v[0])[None],
}
KINDS = (*WRITTEN, "multihead", "multihead with weights")


class Block(nn.Module):
    """`x + out(attention(norm(x)))`, then `x + mlp(x)`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.kind in WRITTEN:
            qkv = F.linear(y, self.attend.in_proj_weight, self.attend.in_proj_bias)
            q, k, v = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in qkv.chunk(3, dim=-1))
            y = self.attend.out_proj(WRITTEN[self.kind](q, k, v).transpose(1, 2).flatten(2))
        else:
            y = self.attend(y, y, y, need_weights="weights" in self.kind)[0]
        x = x + y
        return x + torch.tanh(self.mlp(x))


class Tiny(nn.Module):
    """Three blocks over 12 tokens, read at a class token or as the mean."""

    def __init__(self, kind: str = "fused", readout: str = "class", classes: int = 4) -> None:
        super().__init__()
        self.readout = readout
        self.patches = nn.Conv3d(3, WIDTH, (2, 4, 4), (2, 4, 4))
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 12, WIDTH) / 2)
        self.blocks = nn.ModuleList(Block(kind) for _ in range(3))
        self.fc = nn.Linear(WIDTH, classes)

    def tokens(self, clips: Tensor) -> Tensor:
        x = self.patches(clips).flatten(2).transpose(1, 2) + self.places
        return torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) if self.readout == "class" else x

    def read(self, x: Tensor) -> Tensor:
        return self.fc(x[:, 0] if self.readout == "class" else x.mean(dim=1))

    def forward(self, clips: Tensor) -> Tensor:
        x = self.tokens(clips)
        for block in self.blocks:
            x = block(x)
        return self.read(x)


def tiny(kind: str = "fused", readout: str = "class", seed: int = 0, **options: Any) -> TorchModel:
    torch.manual_seed(seed)
    net = Tiny(kind, readout, **options)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn_like(p) * (2.5 if p.shape[0] == 3 * WIDTH else 1) / p[0].numel() ** 0.5)
            else:
                p.copy_(torch.randn_like(p) / 2)
    layout = Layout("b (t h w) c", {"t": 2, "h": 2, "w": 3}, prefix=int(readout == "class"))
    blocks = tuple(f"blocks.{i}" for i in range(3))
    return TorchModel(
        net, pack=lambda x: x - 0.5, name="tiny", attention=Attention(blocks, "joint", readout, layout)
    )


def clip(seed: int = 0, size: tuple[int, int, int] = SIZE) -> Clip:
    return Clip.from_array(np.random.default_rng(seed).random((*size, 3), dtype=np.float32))


def explicit(model: TorchModel, video: Clip, bump: tuple[Any, float] | None = None) -> tuple[Tensor, list]:
    """Scores, and probabilities `(heads, n, n)` of each block as leaves of the graph."""
    net: Any = model.module
    x = net.tokens(video.pixels[None] - 0.5)[0].detach()
    found = []
    for number, block in enumerate(net.blocks):
        y = block.norm(x)
        weight, bias = block.attend.in_proj_weight.detach(), block.attend.in_proj_bias.detach()
        q, k, v = (y @ weight[i * WIDTH : (i + 1) * WIDTH].T + bias[i * WIDTH :][:WIDTH] for i in range(3))
        d = WIDTH // HEADS
        parts = [slice(h * d, (h + 1) * d) for h in range(HEADS)]
        a = torch.stack([softmaxed(q[:, s] @ k[:, s].T / d**0.5) for s in parts])
        if not a.requires_grad:
            a.requires_grad_()
        found.append(a)
        if bump is not None and bump[0][0] == number:
            change = torch.zeros_like(a)
            change[bump[0][1:]] = bump[1]
            a = a + change
        x = x + block.attend.out_proj(torch.cat([a[h] @ v[:, s] for h, s in enumerate(parts)], dim=1))
        x = x + torch.tanh(block.mlp(x))
    return net.read(x[None]), found


def cells(row: Tensor, readout: str) -> Tensor:
    """A row over the tokens as a map."""
    return row[int(readout == "class") :].reshape(2, 2, 3)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Of two matrices, in loops."""
    n, x, y = range(len(a)), a.tolist(), b.tolist()
    return torch.tensor([[sum(x[i][k] * y[k][j] for k in n) for j in n] for i in n])


def read_row(matrix: Tensor, readout: str) -> Tensor:
    return matrix[0] if readout == "class" else matrix.mean(dim=0)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_the_network(kind: str):
    model, video = tiny(kind), clip()
    with attending(model, video.pixels[None], "rollout") as met:
        pass
    scores, expected = explicit(model, video)
    torch.testing.assert_close(met.scores, scores.detach(), atol=1e-5, rtol=1e-5)
    assert torch.equal(met.scores, model(video.pixels[None])) or "multihead" in kind  # fast path: rounding
    assert [c.block for c in met.calls] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [c.shape for c in met.calls] == [(1, 13, 13)] * 3
    for matrix, a in zip(met.matrices, expected, strict=True):
        torch.testing.assert_close(matrix[0], a.mean(dim=0).detach(), atol=1e-6, rtol=1e-5)
        assert float(a.detach().std()) > 0.03  # far from uniform, which is 1/13


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_at_the_probabilities_are_the_true_ones(kind: str):
    model, video = tiny(kind), clip()
    scores, a = explicit(model, video)
    with attending(model, video.pixels[None], "chefer", gradients=True) as met:
        assert met.matrices == []
        for target, value in ((Logit(2), scores[0, 2]), (Contrast(1, 0), scores[0, 1] - scores[0, 0])):
            order: list[int] = []
            found: dict[int, Tensor] = {}
            met.weighted(target, lambda i, m, o=order, f=found: (o.append(i), f.__setitem__(i, m))[0])
            assert order == [2, 1, 0]
            gradients = torch.autograd.grad(value, a, retain_graph=True)
            for i, (p, g) in enumerate(zip(a, gradients, strict=True)):
                expected = torch.stack([(p[h] * g[h]).clamp(min=0) for h in range(HEADS)]).mean(dim=0)
                torch.testing.assert_close(found[i][0], expected.detach(), atol=1e-6, rtol=1e-4)
                assert float(expected.detach().amax()) > 1e-3


def test_the_reference_gradient_is_a_difference_quotient():
    """Of the probabilities themselves: one is changed, and what follows answers."""
    model, video = tiny(), clip()
    scores, a = explicit(model, video)
    for at in ((0, 1, 3, 5), (1, 0, 0, 7), (2, 2, 0, 0)):
        up, down = (explicit(model, video, (at, e))[0][0, 2].item() for e in (0.01, -0.01))
        gradient = torch.autograd.grad(scores[0, 2], a[at[0]], retain_graph=True)[0][at[1:]]
        assert (up - down) / 0.02 == pytest.approx(float(gradient), rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("readout", ["class", "mean"])
@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("discard", [0.0, 0.4])
def test_rollout_is_the_papers_product(readout: str, heads: str, discard: float):
    model, video = tiny(readout=readout), clip()
    n = 12 + (readout == "class")
    rolled = torch.eye(n)
    for a in explicit(model, video)[1]:
        a = a.detach()
        a = {"mean": a.mean(dim=0), "max": a.amax(dim=0), "min": a.amin(dim=0)}[heads]
        smallest = sorted(a.flatten().tolist())[: int(discard * n * n)]
        a = torch.where(a <= smallest[-1], 0, a) if smallest else a
        p = (a + torch.eye(n)) / 2
        for i in range(n):
            p[i] /= p[i].sum()
        rolled = product(p, rolled)
    expected = cells(read_row(rolled, readout), readout)
    first, second = AttentionRollout(heads, discard)(model, video, [Logit(0), Logit(3)])
    torch.testing.assert_close(first.grid, expected, atol=1e-6, rtol=1e-4)
    assert torch.equal(first.grid, second.grid)
    assert "does not depend on the target" in first.provenance.notes[0]
    assert (first.provenance.forwards, first.provenance.backwards) == (1, 0)
    assert first.provenance.layer == "blocks.0 to blocks.2"
    assert float(expected.std() / expected.mean()) > 0.1


@pytest.mark.parametrize("readout", ["class", "mean"])
@pytest.mark.parametrize("kind", ["fused", "method"])
def test_chefer_is_the_papers_recursion(readout: str, kind: str):
    model, video = tiny(kind, readout), clip(1)
    targets = [Logit(2), Logit(0), Contrast(1, 3)]
    found = Chefer()(model, video, targets)
    scores, a = explicit(model, video)
    n = a[0].shape[1]
    values = [scores[0, 2], scores[0, 0], scores[0, 1] - scores[0, 3]]
    for why, value in zip(found, values, strict=True):
        r = torch.eye(n)
        for p, g in zip(a, torch.autograd.grad(value, a, retain_graph=True), strict=True):
            r = r + product((p * g).clamp(min=0).mean(dim=0).detach(), r)
        expected = cells(read_row(r - torch.eye(n), readout), readout)
        torch.testing.assert_close(why.grid, expected, atol=1e-6, rtol=1e-4)
        assert why.provenance.score == pytest.approx(value.item(), abs=1e-5)
        assert (why.provenance.forwards, why.provenance.backwards) == (1, 3)
    assert not torch.allclose(found[0].grid, found[1].grid, rtol=0.1)


@pytest.mark.parametrize("readout", ["class", "mean"])
def test_small_relevance_is_not_lost_beside_the_identity(readout: str):
    """A head of a hundred-thousandth gives a map of a hundred-thousandth: M is linear in the gradient."""
    model = tiny(readout=readout)
    (large,) = Chefer()(model, clip(), [Logit(1)])
    with torch.no_grad():
        model.module.fc.weight.mul_(1e-6)
    (small,) = Chefer()(model, clip(), [Logit(1)])
    with torch.no_grad():
        model.module.fc.weight.mul_(0.1)
    (tenth,) = Chefer()(model, clip(), [Logit(1)])
    torch.testing.assert_close(tenth.grid, small.grid / 10, rtol=1e-3, atol=0)
    assert float(large.grid.max()) > 1e4 * float(small.grid.max())


class Attends(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)


class Planted(nn.Module):
    """One block: the class token attends to tokens that are red (head 0) or green (head 1).

    Head 0 carries their redness to class 0 alone, head 1 their greenness to class 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.block = Attends()

    def forward(self, clips: Tensor) -> Tensor:
        seen = F.avg_pool3d(clips, (2, 4, 4)).flatten(2)[:, :2]  # red and green of each token
        value = torch.cat([torch.zeros_like(seen[..., :1]), seen], dim=2)[..., None]
        query = torch.zeros_like(value)
        query[:, :, 0] = 8
        return self.block(query, value, value)[:, :, 0, 0]


def planted(red: tuple[int, int, int], green: tuple[int, int, int]) -> tuple[TorchModel, Clip]:
    net = Planted()
    array = np.zeros((*SIZE, 3), dtype=np.float32)
    for band, (t, h, w) in enumerate((red, green)):
        array[2 * t : 2 * t + 2, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4, band] = 1
    layout = Layout("b (t h w) c", {"t": 2, "h": 2, "w": 3}, prefix=1)
    attention = Attention(("block",), "joint", "class", layout)
    return TorchModel(net, pack=lambda x: x, name="planted", attention=attention), Clip.from_array(array)


def test_planted_evidence_is_found():
    places = (1, 0, 2), (0, 1, 0)
    model, video = planted(*places)
    (both,) = AttentionRollout()(model, video, [Logit(0)])
    top = set(both.grid.flatten().topk(2).indices.tolist())
    assert top == {np.ravel_multi_index(p, (2, 2, 3)) for p in places}
    for why, place in zip(Chefer()(model, video, [Logit(0), Logit(1)]), places, strict=True):
        assert np.unravel_index(int(why.grid.argmax()), (2, 2, 3)) == place
        assert float(why.grid.sum()) == pytest.approx(float(why.grid[place]), rel=1e-4)  # nowhere else
        part = why.parts[0]
        centre = [axis[i] for axis, i in zip((part.t, part.y, part.x), place, strict=True)]
        assert centre == [2 * place[0] + 0.5, 4 * place[1] + 1.5, 4 * place[2] + 1.5]
        assert part.span == (0, 4)


class Kernel(nn.Module):
    def __init__(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> None:
        super().__init__()
        self.inputs, self.options = (q, k, v), options

    def forward(self) -> Tensor:
        return F.scaled_dot_product_attention(*self.inputs, **self.options)


def test_a_map_of_nothing_says_so():
    """What the class token attends to speaks against the class alone."""
    model, video = planted((1, 0, 2), (0, 1, 0))
    (why,) = Chefer()(replace(model, unpack=lambda scores: -scores), video, [Logit(0)])
    assert not why.grid.any()
    assert "The map of Logit(index=0) is zero" in why.provenance.notes[0]
    assert Chefer()(model, video, [Logit(0)])[0].provenance.notes == ()


def test_a_gradient_that_is_no_number():
    model, video = planted((1, 0, 2), (0, 1, 0))
    broken = replace(model, unpack=lambda scores: (scores - scores.detach()).abs().sqrt())  # 0 / 0
    with pytest.raises(ScoreError, match="the gradient of planted at its attention has NaN or infinity"):
        Chefer()(broken, video, [Logit(0)])


@pytest.mark.parametrize("how", ["mask", "bool mask", "causal", "scale", "shared keys", "values", "half"])
def test_options_of_the_fused_kernel(how: str):
    """Forward, matrices, and the gradients that go on to queries, keys and values."""
    g = torch.Generator().manual_seed(0)
    few = 2 if how == "shared keys" else 4
    wide = 5 if how == "values" else 3
    sizes = ((2, 4, 6, 3), (2, few, 6 if how == "causal" else 7, 3))
    q, k = (torch.randn(s, generator=g) for s in sizes)
    v = torch.randn(*k.shape[:3], wide, generator=g)
    if how == "half":
        q, k, v = q.half(), k.half(), v.half()
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    bias = torch.randn(4, 6, 7, generator=g)
    options: dict[str, Any] = {
        "mask": {"attn_mask": bias},
        "bool mask": {"attn_mask": bias[0] > -0.5},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.3},
        "shared keys": {"enable_gqa": True},
    }.get(how, {})
    repeated = [x.float().repeat_interleave(4 // few, dim=1) for x in (k, v)]
    logits = q.float() @ repeated[0].mT * options.get("scale", 3**-0.5)
    if how == "mask":
        logits = logits + bias
    if how == "bool mask":
        logits = logits.masked_fill(bias[0] <= -0.5, -torch.inf)
    if how == "causal":
        logits = logits.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    a = softmaxed(logits)
    out = a @ repeated[1]
    weights = torch.randn(out.shape, generator=g)
    at_a, *expected = torch.autograd.grad((out * weights).sum(), (a, q, k, v))

    met: dict[int, Tensor] = {}
    module = Kernel(q, k, v, options)
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if how == "half" else {"atol": 1e-5, "rtol": 1e-4}
    for gradients in (False, True):
        watch = Watch("mean", gradients)
        watch.begin(met.__setitem__)
        with entered(module, "block", watch.inside), watch:
            got = module()
        torch.testing.assert_close(got.float(), out, **tolerance)
        assert watch.calls == [Call("block", (2, 6, logits.shape[-1]))]
        if not gradients:
            torch.testing.assert_close(watch.matrices[0], a.mean(dim=1).detach(), **tolerance)
    found = torch.autograd.grad((got.float() * weights).sum(), (q, k, v))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, **tolerance)
    torch.testing.assert_close(met[0], (a * at_a).clamp(min=0).mean(dim=1), **tolerance)


class Swapped(Tiny):
    """Keeps its tokens in another order, and reads the clip in no differentiable way."""

    def tokens(self, clips: Tensor) -> Tensor:
        x = self.patches(clips).permute(0, 3, 4, 2, 1).flatten(1, 3) + self.places
        return torch.cat([self.first.expand(len(x), -1, -1), x], dim=1)


def test_the_order_of_the_tokens_is_that_of_the_layout():
    """The same network with its tokens in another order has the same map."""
    model, video = tiny(), clip()
    other = Swapped()
    other.load_state_dict(model.module.state_dict())
    with torch.no_grad():
        moved = model.module.places.view(2, 2, 3, WIDTH).permute(1, 2, 0, 3).reshape(1, 12, WIDTH)
        other.places.copy_(moved)
    layout = Layout("b (h w t) c", {"t": 2, "h": 2, "w": 3}, 1, {"t": (7.0, 9.0), "w": (1.0, 2.0, 3.0)})
    attention = replace(model.attention, tokens=lambda size: layout if size == SIZE else None)
    twin = replace(model, module=other, attention=attention, pack=lambda x: x.detach() - 0.5)
    for way in (AttentionRollout(), Chefer()):
        one, two = (way(m, video, [Logit(1)])[0] for m in (model, twin))
        torch.testing.assert_close(one.grid, two.grid, atol=1e-6, rtol=1e-4)
        part = two.parts[0]
        assert (part.t, part.y, part.x) == ((7.0, 9.0), (1.5, 5.5), (1.0, 2.0, 3.0))


@pytest.mark.parametrize("way", [AttentionRollout(), Chefer()])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left(way: Any, kind: str):
    model, video = tiny(kind), clip()
    model.module.train()
    model.module.blocks[1].requires_grad_(False)
    seen: list[int] = []
    model.module.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    fast = torch.backends.mha.get_fastpath_enabled()
    before = state(model.module)
    way(model, video, [Logit(1)])
    broken = replace(model, unpack=lambda out: out["logits"])
    with pytest.raises(InputError, match="does not accept"):
        way(broken, video, [Logit(1)])
    model.module.blocks[2].mlp = nn.Linear(3, 3)  # fails inside the last block
    inside = state(model.module)
    with pytest.raises(InputError, match="does not accept"), torch.no_grad():
        way(model, video, [Logit(1)])
    assert_same(inside, state(model.module))
    model.module.blocks[2].mlp = tiny(kind).module.blocks[2].mlp
    before["ids"] = inside["ids"] = state(model.module)["ids"]
    assert_same(before, state(model.module))
    assert len(seen) == 3
    assert _get_current_function_mode_stack() == []
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_heads_are_not_kept():
    """Neither by a forward, nor for a backward through the fused kernel."""
    model, video = tiny(), clip(size=(16, 16, 24))
    model.module.places = nn.Parameter(torch.zeros(1, 8 * 4 * 6, WIDTH))
    layout = Layout("b (t h w) c", {"t": 8, "h": 4, "w": 6}, 1)
    model = replace(model, attention=replace(model.attention, tokens=layout))
    one = 193 * 193
    saved: list[int] = []
    sizes: list[int] = []
    watching = torch.autograd.graph.saved_tensors_hooks(
        lambda x: (saved.append(x.numel()), x)[1], lambda x: x
    )
    with watching, attending(model, video.pixels[None], "chefer", gradients=True) as met:
        met.weighted(Logit(0), lambda i, m: sizes.append(m.numel()))
    assert len(saved) > 20
    assert max(saved) < one / 4
    assert sizes == [one] * 3
    with attending(model, video.pixels[None], "rollout") as met:
        assert [m.numel() for m in met.matrices] == [one] * 3


class Cut(Tiny):
    """Something between the blocks and the scores is missing."""

    how = ""

    def forward(self, clips: Tensor) -> Tensor:
        x = self.tokens(clips)
        with torch.set_grad_enabled(self.how != "no grad"):
            x = self.blocks[0](x)
            x = self.blocks[1](x)
        x = self.blocks[2](x.detach() if self.how == "detached" else x)
        if self.how == "zero":
            x = x * 0
        out = self.read(x.detach() if self.how == "all" else x)
        return out * torch.nan if self.how == "nan" else out


ERRORS: dict[str, tuple[type[Exception], str]] = {
    "detached": (LayerError, r"no gradient of Logit\(index=1\) flows back to the attention of 'blocks.0'"),
    "all": (LayerError, "no gradient flows from the scores back to the attention of tiny"),
    "zero": (LayerError, r"the gradient of Logit\(index=1\) is zero at the attention of tiny"),
    "nan": (ScoreError, "NaN or infinity"),
}


@pytest.mark.parametrize("how", ERRORS)
def test_networks_through_which_no_gradient_flows(how: str):
    model = tiny()
    model.module.__class__ = Cut
    model.module.how = how
    with pytest.raises(ERRORS[how][0], match=ERRORS[how][1]):
        Chefer()(model, clip(), [Logit(1)])
    if how == "nan":
        with pytest.raises(ScoreError, match="NaN or infinity"):
            AttentionRollout()(model, clip(), [Logit(1)])
    else:
        assert float(AttentionRollout()(model, clip(), [Logit(1)])[0].grid.sum()) > 0.5


def test_a_network_that_switches_gradients_off_inside():
    model, video = tiny(), clip()
    expected = Chefer()(model, video, [Logit(1)])[0].grid
    model.module.__class__ = Cut
    model.module.how = "no grad"
    assert torch.equal(Chefer()(model, video, [Logit(1)])[0].grid, expected)


def declared(**changes: Any) -> TorchModel:
    model = tiny()
    return replace(model, layer="norm", attention=replace(model.attention, **changes))


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (
        lambda: replace(tiny(), attention=None),
        "tiny has no attention that Tubelens knows; rollout and",
    ),
    "windows": (lambda: declared(kind="windows"), "within windows.*use gradcam at layer 'norm'"),
    "pooled": (
        lambda: declared(kind="pooled"),
        "between pooled queries and keys.*use gradcam at layer 'norm'",
    ),
    "box": (lambda: BlackBox(lambda x: x.mean(dim=(2, 3, 4)), name="box"), "box is a black box"),
    "block": (lambda: declared(blocks=("blocks.0", "blocks.9")), "tiny has no layer 'blocks.9'"),
    "empty": (lambda: declared(blocks=("blocks.0", "blocks.1.mlp")), "no attention within 'blocks.1.mlp'"),
    "divided": (lambda: declared(kind="divided"), "layout 'b .t h w. c'"),
    "layout": (lambda: declared(tokens=Layout("b (t h w) c", {"t": 5, "h": 2})), "does not fit the layout"),
    "pooler": (lambda: declared(readout="pooler"), "matrices of 1x1x13 in 'blocks.2' of tiny, and 1x13x13"),
    "class": (
        lambda: declared(tokens=Layout("b (t h w) c", {"t": 13, "h": 1, "w": 1})),
        "tiny has no class token in the layout of tokens",
    ),
}


@pytest.mark.parametrize("way", [AttentionRollout(), Chefer()])
@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_composed_is_refused_in_one_line(way: Any, what: str):
    make, message = WRONG[what]
    model = make()
    with pytest.raises(LayerError, match=message):
        way(model, clip(), [Logit(1)])
    if isinstance(model, TorchModel):
        assert_same(state(tiny().module) | {"ids": []}, state(model.module) | {"ids": []})


def test_a_batch_of_several_heads_is_told_apart():
    """`nn.MultiheadAttention` folds both into one dimension before its softmax."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    x = torch.randn(5, 7, WIDTH) * 4
    watch = Watch("mean", False)
    with torch.no_grad(), entered(module, "block", watch.inside), watch:
        _, weights = module(x, x, x)
    assert watch.calls == [Call("block", (5, 7, 7))]
    torch.testing.assert_close(watch.matrices[0], weights, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("how", ["dropout", "mask", "dimensions"])
def test_attention_that_cannot_be_shown(how: str):
    q = torch.randn(1, 2, 5, 3)
    options: dict[str, Any] = {}
    if how == "dropout":
        options["dropout_p"] = 0.1
    if how == "mask":
        options["attn_mask"] = torch.zeros(5, 5, requires_grad=True)
    module = Kernel(*([q[None] if how == "dimensions" else q] * 3), options)
    watch = Watch("mean", True)
    said = {"dropout": "draws dropout", "mask": "a mask that is computed", "dimensions": "has 5 dimensions"}
    with entered(module, "block", watch.inside), watch, pytest.raises(LayerError, match=said[how]):
        module()
    assert watch.inside == []


def test_a_softmax_over_something_else_is_not_attention():
    class Gated(Block):
        def forward(self, x: Tensor) -> Tensor:
            gates = x.softmax(dim=1) + x.mean(dim=1).softmax(dim=-1)[:, None]
            return super().forward(x) + 0 * gates

    model, video = tiny(), clip()
    expected = AttentionRollout()(model, video, [Logit(1)])[0].grid
    for block in model.module.blocks:
        block.__class__ = Gated
    assert torch.equal(AttentionRollout()(model, video, [Logit(1)])[0].grid, expected)


def test_options():
    for way in (AttentionRollout(), AttentionRollout("max", 0.9), Chefer()):
        assert eval(repr(way)) == way
        assert way.needs == "layers"
    with pytest.raises((OptionError, TypeCheckError), match="heads"):
        AttentionRollout("sum")
    for wrong in (-0.1, 1.0):
        with pytest.raises(OptionError, match="discard is a share"):
            AttentionRollout(discard=wrong)
