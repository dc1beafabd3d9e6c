"""Gradients at the pixels: equal to autograd by hand, whatever the chunks; nothing left on the model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import order_one
from tests.test_tubes import Small, activations, clip
from tests.test_untouched import Counting, Failing, assert_same, state
from tubelens.errors import InputError, LayerError, OptionError, ScoreError, TubelensError, WorkError
from tubelens.model import BlackBox, TorchModel
from tubelens.pixels import AtLayer, backward, differentiable, gradients, layer_of, stream, weighted_sum
from tubelens.relu import Relus
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob, Target

TARGETS: list[Target] = [Logit(1), Prob(3), Contrast(0, 4)]


def pack(x: Tensor) -> Tensor:
    return (x - 0.4) / 0.3


def wrapped(net: nn.Module, pack: Callable[[Tensor], Any] = pack, **fields: Any) -> TorchModel:
    return TorchModel(net.eval(), pack=pack, name="net", **fields)


@pytest.fixture
def small() -> TorchModel:
    return wrapped(order_one(Small(), pack(clip().pixels[None])))


@pytest.fixture
def clips() -> Tensor:
    return torch.stack([clip(4, 16, seed=i).pixels for i in range(5)])


def by_hand(net: nn.Module, clips: Tensor, target: Target, pack: Callable[[Tensor], Tensor] = pack) -> Tensor:
    """Autograd, one clip at a time."""
    found = []
    for c in clips:
        x = c[None].clone().requires_grad_()
        target(net(pack(x))).sum().backward()
        assert x.grad is not None
        found.append(x.grad[0])
    return torch.stack(found)


def test_equals_autograd_clip_by_clip(small: TorchModel, clips: Tensor):
    got, values = gradients(small, clips, TARGETS)
    for i, target in enumerate(TARGETS):
        torch.testing.assert_close(got[i], by_hand(small.module, clips, target), atol=1e-6, rtol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(values[i], target(small.module(pack(clips))))


def test_is_the_slope_before_normalisation():
    """A step along a direction in [0, 1] changes the score by the gradient times the step."""
    net = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    order_one(net, clip(4, 8).pixels[None])
    model = wrapped(net)
    x = clip(4, 8).pixels[None]
    (got,), _ = gradients(model, x, [Logit(1)])
    step = 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    change = model(x + step)[0, 1] - model(x - step)[0, 1]
    assert float(2 * (got * step).sum()) == pytest.approx(float(change), rel=1e-2)


class Seen(Small):
    """Notes the batches it is given, and has room for so many clips."""

    room = 99

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().forward(x)


def seen(room: int = 99) -> TorchModel:
    net = Seen()
    net.batches = []
    order_one(net, clip().pixels[None])
    net.room = room
    net.batches.clear()
    return wrapped(net)


@pytest.mark.parametrize(
    ("batch", "batches"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5]), (None, [5])]
)
def test_does_not_depend_on_the_batch(clips: Tensor, batch: int | None, batches: list[int]):
    model = seen()
    told: list[tuple[int, int]] = []
    got = backward(model, clips, TARGETS, Run(batch=batch, progress=lambda a, b: told.append((a, b))))
    assert model.module.batches == batches  # one forward for all targets
    assert told == [(int(n), 5) for n in np.cumsum(batches)]
    for i, target in enumerate(TARGETS):
        expected = by_hand(model.module, clips, target)
        torch.testing.assert_close(got.gradients[i], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got.scores, model(clips))


def test_the_default_chunk_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch, clips: Tensor):
    monkeypatch.setattr("tubelens.pixels.MAX_SAVED_BYTES", 2 * 128 * clips[0].numel() * 4)
    model = seen()
    gradients(model, clips, [Logit(0)])
    assert model.module.batches == [2, 2, 1]


def test_chunks_shrink_when_memory_runs_out(clips: Tensor):
    model = seen(room=2)
    got, _ = gradients(model, clips, [Logit(1)])
    assert model.module.batches == [5, 2, 2, 1]
    torch.testing.assert_close(got[0], by_hand(model.module, clips, Logit(1)), atol=1e-6, rtol=1e-5)
    with pytest.raises(WorkError, match=r"out of memory .* one clip of 3x4x16x16"):
        gradients(seen(room=0), clips, [Logit(1)])


def test_a_stream_takes_clips_as_it_needs_them(clips: Tensor):
    made: list[int] = []

    def making():
        for i, c in enumerate(clips):
            made.append(i)
            yield c

    chunks = stream(seen(), making(), 5, [Logit(0)], Run(batch=2))
    next(chunks)
    assert made == [0, 1]
    assert torch.is_grad_enabled()


def test_weighted_sums(small: TorchModel, clips: Tensor):
    weights = [0.5, -1.0, 2.0, 0.25, 3.0]
    each, _ = gradients(small, clips, TARGETS)
    for batch in (2, None):
        for power in (1, 2):
            got, n = weighted_sum(small, clips, weights, TARGETS, Run(batch=batch), power)
            expected = sum(w * each[:, i] ** power for i, w in enumerate(weights))
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
            assert n == 5
    late = time.perf_counter() - 1
    got, n = weighted_sum(small, clips, weights, TARGETS, Run(batch=2), until=late)
    assert n == 2
    torch.testing.assert_close(got, 0.5 * each[:, 0] - each[:, 1], atol=1e-6, rtol=1e-5)
    _, n = weighted_sum(small, clips, weights, TARGETS, Run(batch=2), until=late + 600)
    assert n == 5
    with pytest.raises(OptionError, match="zero at every pixel"):
        weighted_sum(small, clips, [0.0] * 5, TARGETS)
    with pytest.raises(OptionError, match="no clip"):
        weighted_sum(small, [], [], TARGETS)


def modes() -> dict[str, Any]:
    return {
        "no_grad": torch.no_grad(),
        "inference": torch.inference_mode(),
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16),
    }


@pytest.mark.parametrize("mode", modes())
def test_the_callers_modes_do_not_matter(small: TorchModel, clips: Tensor, mode: str):
    expected = by_hand(small.module, clips, Logit(1))
    with modes()[mode]:
        (got,), _ = gradients(small, clips.clone(), [Logit(1)])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_clips_of_another_type_are_differentiated_in_single_precision(small: TorchModel, clips: Tensor):
    (got,), _ = gradients(small, clips.double(), [Logit(1)])
    assert got.dtype == torch.float32


def test_pack_may_write_in_place(clips: Tensor):
    net = order_one(Small(), clips)
    before = clips.clone()
    for leaf in (clips, clips.clone().requires_grad_()):
        (got,), _ = gradients(wrapped(net, lambda x: x.sub_(0.4).div_(0.3)), leaf, [Logit(1)])
        torch.testing.assert_close(got, by_hand(net, clips, Logit(1)), atol=1e-6, rtol=1e-5)
    assert torch.equal(clips, before)
    with differentiable(wrapped(net, lambda x: x.mul_(2))) as score:
        x = clips.clone().requires_grad_()
        score(x)[:, 1].sum().backward()
        torch.testing.assert_close(x.grad, by_hand(net, clips, Logit(1), lambda x: 2 * x))
    assert torch.equal(x.detach(), before)


def test_a_graph_to_the_clips_and_nothing_else(small: TorchModel, clips: Tensor):
    small.module.fc.weight.requires_grad_(False)
    wanted = [p.requires_grad for p in small.module.parameters()]
    with torch.no_grad(), differentiable(small) as score:
        x = clips.clone().requires_grad_()
        scores = score(x)
        assert not any(p.requires_grad for p in small.module.parameters())
        assert not score(clips).requires_grad
        (got,) = torch.autograd.grad(scores[:, 2].sum(), x)
    torch.testing.assert_close(got, by_hand(small.module, clips, Logit(2)), atol=1e-6, rtol=1e-5)
    assert [p.requires_grad for p in small.module.parameters()] == wanted
    with pytest.raises(RuntimeError, match="stop"), differentiable(small):
        raise RuntimeError("stop")
    assert [p.requires_grad for p in small.module.parameters()] == wanted


# ── at a layer, in the same passes ───────────────────────────────────────────────────────────────────────


def layer_by_hand(net: nn.Module, layer: str, clips: Tensor, target: Target) -> Tensor:
    """Gradient at a layer's output, which a hook keeps."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()

    handle = net.get_submodule(layer).register_forward_hook(keep)
    scores = net(pack(clips.clone().requires_grad_()))
    handle.remove()
    return torch.autograd.grad(target(scores).sum(), kept[0])[0]


@pytest.mark.parametrize("layer", ["stem", "stem.0", "body", "body.0"])  # an in-place ReLU follows the .0
@pytest.mark.parametrize("batch", [None, 2])
def test_a_layer_in_the_same_pass(small: TorchModel, clips: Tensor, layer: str, batch: int | None):
    got = backward(small, clips, TARGETS, Run(batch=batch), layer=layer)
    assert got.layer is not None
    torch.testing.assert_close(got.layer.activations, activations(small.module, layer, pack(clips)))
    for i, target in enumerate(TARGETS):
        expected = layer_by_hand(small.module, layer, clips, target)
        torch.testing.assert_close(got.layer.gradients[i], expected, atol=1e-6, rtol=1e-5)
        pixels = by_hand(small.module, clips, target)
        torch.testing.assert_close(got.gradients[i], pixels, atol=1e-6, rtol=1e-5)
    stride = 2 if layer.startswith("stem") else 4
    assert got.layer.layout.centres["w"] == tuple(range(0, 16, stride))


def test_a_declared_layout_wins_and_pack_is_followed(small: TorchModel, clips: Tensor):
    declared = backward(small, clips, [Logit(0)], layer="body").layer.layout
    tilted = wrapped(small.module, lambda x: pack(x).transpose(3, 4))
    found = backward(tilted, clips, [Logit(0)], layer="body").layer
    assert found.layout.pattern == "b c t w h"
    given = wrapped(small.module, lambda x: pack(x).transpose(3, 4), layouts={"body": declared})
    other = backward(given, clips, [Logit(0)], layer="body").layer
    assert other.layout is declared
    torch.testing.assert_close(other.activations, found.activations.transpose(3, 4))
    torch.testing.assert_close(other.gradients, found.gradients.transpose(4, 5))


def test_relu_rules_are_for_the_way_to_the_pixels_only(clips: Tensor):
    """With a ReLU in the head, a rule that leaked into it would change the layer's gradient."""
    net = order_one(Small(head=lambda x: (x.mean(dim=(2, 3, 4)) - 0.3).relu()), pack(clips))
    model = wrapped(net)
    plain = backward(model, clips, TARGETS, layer="stem")
    ruled = backward(model, clips, TARGETS, layer="stem", relus=Relus())
    torch.testing.assert_close(ruled.layer.gradients, plain.layer.gradients)
    assert not torch.allclose(ruled.gradients, plain.gradients, atol=1e-4)
    assert plain.layer.gradients.min() < 0


def test_maps_are_drawn_where_the_cells_look(small: TorchModel, clips: Tensor):
    found = backward(small, clips, [Logit(0)], layer="body").layer
    cam = torch.rand(found.activations.shape[2:], generator=torch.Generator().manual_seed(0))
    got = found.over_clip(cam, (4, 16, 16)).numpy()
    expected = cam.numpy()
    for axis, name, size in ((0, "t", 4), (1, "h", 16), (2, "w", 16)):
        centres = found.layout.centres[name]
        expected = np.apply_along_axis(
            lambda row, c=centres, n=size: np.interp(np.arange(n), c, row), axis, expected
        )
    np.testing.assert_allclose(got, expected, atol=1e-6)
    even = AtLayer(found.activations, found.gradients, type(found.layout)())  # nothing recorded: even tiling
    assert even.over_clip(torch.tensor([[[0.0, 1.0]]]), (1, 1, 4))[0, 0].tolist() == [0, 0.25, 0.75, 1]


def test_layers_by_name_or_default(small: TorchModel, clips: Tensor):
    assert layer_of(small, clips, "stem") == ("stem", 0)
    assert layer_of(small, clips, None) == ("body", 1)
    assert layer_of(wrapped(small.module, layer="stem"), clips, None) == ("stem", 0)


class Odd(Small):
    """With a layer that is not used, one beside the graph, and one that the scores ignore."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv3d(3, 2, 1)
        self.beside = nn.Conv3d(3, 2, 3, padding=1)
        self.ignored = nn.Conv3d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        self.ignored(x)
        with torch.no_grad():
            extra = self.beside(x).mean(dim=(1, 2, 3, 4))
        return super().forward(x) + extra[:, None]


def test_layer_faults(clips: Tensor):
    model = wrapped(order_one(Odd(), pack(clips)))
    faults = {
        "stme": "no layer 'stme' .did you mean 'stem'",
        "unused": "'unused' was not reached",
        "fc": "'fc' has no known place in time and space .output 5x5.",
        "beside": "'beside' has no gradient back to the pixels",
        "ignored": r"gradient of Logit.index=0. is zero at layer 'ignored'",
    }
    for layer, message in faults.items():
        with pytest.raises(LayerError, match=message):
            backward(model, clips, [Logit(0)], layer=layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.script(nn.Sequential(nn.Conv3d(3, 4, 1)))
    net = nn.Sequential(traced, nn.AdaptiveAvgPool3d(1), nn.Flatten())
    with pytest.raises(LayerError, match="TorchScript"):
        backward(wrapped(net), clips, [Logit(0)], layer="0")


# ── what has no gradient ─────────────────────────────────────────────────────────────────────────────────


def test_no_gradient_is_one_clear_line(small: TorchModel, clips: Tensor):
    net = small.module
    with pytest.raises(OptionError, match="no gradient flows from the scores of net back to the pixels"):
        gradients(wrapped(net, lambda x: torch.from_numpy(x.detach().numpy())), clips, [Logit(0)])
    with pytest.raises(OptionError, match=r"gradient of Logit.index=0. is zero at every pixel.*RISE"):
        gradients(wrapped(net, lambda x: (x * 255).round() / 255), clips, [Logit(0)])
    black_box = BlackBox(lambda x: x.mean(dim=(2, 3, 4)), name="served")
    with pytest.raises(LayerError, match="served is a black box"):
        gradients(black_box, clips, [Logit(0)])
    with pytest.raises(LayerError, match="served is a black box"):
        layer_of(black_box, clips, None)


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt().mean(dim=(2, 3, 4))


def test_nan_is_an_error(small: TorchModel, clips: Tensor):
    with pytest.raises(ScoreError, match="gradient of net at the pixels has NaN"):
        gradients(wrapped(Root(), lambda x: x), torch.zeros_like(clips), [Logit(0)])
    with torch.no_grad():
        small.module.fc.weight[0, 0] = float("nan")
    with pytest.raises(ScoreError, match="net returned NaN or infinity for clip 0"):
        gradients(small, clips, [Logit(1)])
    with differentiable(small) as score, pytest.raises(ScoreError, match="net returned NaN"):
        score(clips)


# ── the model is sacred ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("relus", [False, True])
def test_nothing_is_left_on_the_model(relus: bool, clips: Tensor):
    net = Counting().train()
    net.stem.eval()
    net.fc.bias.requires_grad_(False)
    before = state(net)
    model = TorchModel(net, pack=pack)
    backward(model, clips, TARGETS, layer="body", relus=Relus() if relus else None)
    assert_same(before, state(net))
    with torch.no_grad():  # no function mode is left either
        assert torch.equal(torch.relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


FAILURES: dict[str, Callable[[TorchModel, Tensor], Any]] = {
    "class out of range": lambda m, x: backward(m, x, [Logit(99)], layer="body", relus=Relus()),
    "layer not reached": lambda m, x: backward(m, x, [Logit(0)], layer="fc"),
    "wrong channels": lambda m, x: gradients(m, x[:, :1], [Logit(0)]),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_nothing_is_left_after_an_error(failure: str, clips: Tensor):
    net = Counting().train()
    before = state(net)
    with pytest.raises(TubelensError):
        FAILURES[failure](TorchModel(net, pack=pack), clips)
    assert_same(before, state(net))


def test_nothing_is_left_when_the_network_breaks(clips: Tensor):
    net = Failing().train()
    before = state(net)
    with pytest.raises(InputError, match="broken inside"):
        backward(TorchModel(net, pack=pack), clips, [Logit(0)], layer="body", relus=Relus())
    assert_same(before, state(net))
    with torch.no_grad():
        assert torch.relu(torch.tensor([1.0])).grad_fn is None
