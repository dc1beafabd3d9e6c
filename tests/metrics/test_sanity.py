"""Sanity: random weights are put in and taken out without a trace; what looks at no weights is flagged."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch import Tensor, nn
from torchvision.models import get_model

import tubelens as tl
from tests.conftest import order_one
from tests.metrics.test_drop import explanation, random_map
from tests.test_untouched import assert_same, state
from tubelens.agreement import agreement
from tubelens.clip import Clip
from tubelens.errors import (
    HeadError,
    InputError,
    LayerError,
    OptionError,
    ScoreError,
    TargetError,
    TubelensError,
    WorkError,
)
from tubelens.explanation import Explanation
from tubelens.methods.cam import GradCAM
from tubelens.methods.gradients import InputXGradient, Saliency
from tubelens.methods.rise import RISE
from tubelens.methods.tubes import Tubes
from tubelens.metrics import metric as named
from tubelens.metrics.anchors import frame_difference
from tubelens.metrics.protocol import Metric
from tubelens.metrics.randomise import random_like, randomising, stages
from tubelens.metrics.sanity import (
    EfficientRandomisation,
    LabelRandomisation,
    ParameterRandomisation,
    entropy,
)
from tubelens.model import BlackBox, TorchModel
from tubelens.planted import generate
from tubelens.running import RUN, Run
from tubelens.target import Logit, Prob, Target

SIZE = (4, 12, 12)


class Odd(nn.Module):
    """Not registered in the order of the forward; a shared weight, one of its own, one that is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.place = nn.Parameter(torch.randn(6))
        self.last = nn.Conv3d(6, 6, 1, bias=False)
        self.norm = nn.BatchNorm3d(6)
        self.first = nn.Conv3d(3, 6, 3, (1, 2, 2), 1)
        self.twin = nn.Conv3d(6, 6, 1, bias=False)
        self.twin.weight = self.last.weight  # shared
        self.view = nn.Parameter(self.head.weight.data.view(3, 6), requires_grad=False)  # the same memory

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.last(x + self.twin(x)))
        return self.head(x.mean(dim=(2, 3, 4)) + 0 * self.place.sum() + 0 * self.view.sum())


def clip(seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip.from_array(rng.random((*SIZE, 3), dtype=np.float32))


def odd() -> Odd:
    torch.manual_seed(0)
    net = Odd()
    order_one(net, clip().pixels[None])
    with torch.no_grad():
        net.norm.weight.add_(0.1 * torch.randn(6))  # constant tensors would stay as they are
        net.norm.bias.add_(0.1 * torch.randn(6))
    return net


def wrapped(net: nn.Module) -> TorchModel:
    return TorchModel(net, pack=lambda x: x, layer="norm", name="odd")


@dataclass(frozen=True)
class Edges:
    """A "method" that looks at the clip alone: how much a pixel differs from its neighbours."""

    needs: ClassVar[str] = "scorer"
    explains: ClassVar[type[Prob]] = Prob

    def __call__(self, model: Any, clip: Clip, targets: list[Target], run: Run = RUN) -> list[Explanation]:
        dy, dx = (clip.pixels.diff(dim=a, append=clip.pixels.narrow(a, -1, 1)) for a in (2, 3))
        m = (dy**2 + dx**2).sum(dim=0).sqrt() + frame_difference(clip.pixels, sigma=0)
        return [explanation(m, t) for t in targets]


@dataclass(frozen=True)
class Weights:
    """A "method" whose map is the weights of the head, for stages that can be told apart."""

    fail: int = -1
    needs: ClassVar[str] = "layers"
    explains: ClassVar[type[Logit]] = Logit
    seen: ClassVar[list[dict[str, Tensor]]] = []

    def __call__(self, model: Any, clip: Clip, targets: list[Target], run: Run = RUN) -> list[Explanation]:
        self.seen.append({k: p.detach().clone() for k, p in model.module.named_parameters()})
        if self.fail >= 0 and len(self.seen) > self.fail:
            raise HeadError("nothing there") if self.fail == 0 else RuntimeError("broken inside")
        return [explanation(model.module.head.weight.detach().view(1, 3, 6).clone(), t) for t in targets]


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────


def test_stages_go_from_the_head_down():
    model = wrapped(odd())
    by_forward = [s.name for s in stages(model, clip())]
    assert by_forward == ["head", "last", "norm", "first", ""]  # `twin` shares the weight of `last`
    assert [s.name for s in stages(model)] == ["twin", "first", "norm", "head", ""]  # as registered
    every = [id(p) for s in stages(model, clip()) for p in s.parameters]
    assert sorted(every) == sorted(id(p) for p in model.module.parameters())
    r3d = TorchModel(get_model("r3d_18", weights=None, num_classes=3), pack=lambda x: x)
    names = [s.name for s in stages(r3d, clip())]
    assert names[0] == "fc"
    assert names[-1] == "stem.0"
    assert len(names) == 41


def test_a_layer_that_is_not_called_by_itself_keeps_its_place():
    """The output projection of torch's attention is read, never called."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 4)
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x.flatten(2).mT)
            return self.head(self.attention(x, x, x)[0].mean(dim=1))

    names = [s.name for s in stages(TorchModel(Attends().eval(), pack=lambda x: x), clip())]
    assert names == ["head", "attention.out_proj", "attention", "embed"]


def test_weights_are_replaced_stage_by_stage_and_come_back():
    net = odd()
    net.first.weight.requires_grad_(False)
    model, before = wrapped(net), state(net)
    own = {k: p.detach().clone() for k, p in net.named_parameters()}
    memory = {k: p.data_ptr() for k, p in net.named_parameters()}
    found = stages(model, clip())
    with randomising(found, seed=1) as upto:
        for count in range(1, len(found) + 1):
            upto(count)
            random = {id(p) for s in found[:count] for p in s.parameters}
            for name, p in net.named_parameters():
                shared = name == "view"  # memory of the head's weight
                fresh = id(p) in random
                assert torch.equal(p, own[name]) == (not fresh), name
                assert not (shared and fresh) or torch.equal(p, net.head.weight)
        drawn = {k: p.detach().clone() for k, p in net.named_parameters()}
        assert net.twin.weight is net.last.weight
        for name, p in drawn.items():
            kept, new = own[name].double(), p.double()
            if p.numel() > 100:
                assert float(new.mean()) == pytest.approx(float(kept.mean()), abs=0.1 * float(kept.std()))
                assert float(new.std()) == pytest.approx(float(kept.std()), rel=0.15)
    first, second = ((drawn[k] - own[k].mean()) / own[k].std(correction=0) for k in ("place", "norm.weight"))
    assert not torch.allclose(first, second, atol=1e-3)  # a noise of its own for each stage
    assert_same(before, state(net))
    assert {k: p.data_ptr() for k, p in net.named_parameters()} == memory
    with randomising(found, seed=1) as upto:
        upto(len(found))
        assert all(torch.equal(p, drawn[k]) for k, p in net.named_parameters())
    with randomising(found, seed=2) as upto:
        upto(1)
        assert not torch.equal(net.head.weight, drawn["head.weight"])


def test_a_graph_that_waits_for_its_backward_stays_valid():
    net = odd()
    loss = net(clip().pixels[None]).square().sum()
    expected = torch.autograd.grad(net(clip().pixels[None]).square().sum(), net.first.weight)[0]
    with randomising(stages(wrapped(net)), seed=0) as upto:
        upto(5)
    torch.testing.assert_close(torch.autograd.grad(loss, net.first.weight)[0], expected)


def test_random_values_keep_mean_spread_type_and_strides():
    weights = (3 + 2 * torch.randn(40, 50, generator=torch.Generator().manual_seed(0))).half().T
    made = random_like(weights, torch.Generator().manual_seed(1))
    assert (made.dtype, made.stride()) == (weights.dtype, weights.stride())
    assert float(made.float().mean()) == pytest.approx(3, abs=0.1)
    assert float(made.float().std()) == pytest.approx(float(weights.float().std()), rel=0.06)
    assert abs(float(torch.corrcoef(torch.stack([made.flatten(), weights.flatten()]).float())[0, 1])) < 0.1
    assert torch.equal(random_like(torch.ones(3), torch.Generator()), torch.ones(3))


def test_views_of_one_memory_stay_tied():
    """Transposed, and two thirds of a whole; each keeps its own mean and spread where it is drawn first."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(40, 30, bias=False)
            self.two = nn.Linear(30, 40, bias=False)
            self.two.weight = nn.Parameter(self.one.weight.data.t())
            self.part = nn.Parameter(self.one.weight.data[:20])
            self.expanded = nn.Parameter(torch.tensor([[1.0, 2.0]]).expand(3, 2))
            self.nothing = nn.Parameter(torch.zeros(0))

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x.mean(dim=(2, 3, 4))))

    net = Tied()
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    memory = {k: (p.data_ptr(), p.stride()) for k, p in net.named_parameters()}
    found = stages(TorchModel(net, pack=lambda x: x))
    assert [s.name for s in found] == ["two", "one", ""]
    with randomising(found) as upto:
        upto(1)
        assert not torch.equal(net.two.weight, before["two.weight"])
        assert torch.equal(net.one.weight, before["one.weight"])
        drawn = net.two.weight.detach().clone()
        upto(3)
        assert torch.equal(net.two.weight, drawn)
        assert torch.equal(net.one.weight, drawn.t())
        assert torch.equal(net.part, drawn.t()[:20])
        assert not torch.equal(net.expanded, before["expanded"])
        assert float(drawn.std()) == pytest.approx(float(before["one.weight"].std()), rel=0.1)
    assert all(torch.equal(p, before[k]) for k, p in net.named_parameters())
    assert {k: (p.data_ptr(), p.stride()) for k, p in net.named_parameters()} == memory
    part, whole = found[2].parameters[0], found[1].parameters[0]
    with randomising([replace(found[0], parameters=(part,)), replace(found[0], parameters=(whole,))]) as upto:
        upto(1)
        drawn = part.detach().clone()
        upto(2)
        assert torch.equal(whole[:20], drawn)
        assert not torch.equal(whole[20:], before["one.weight"][20:])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_tensors_that_a_forward_keeps_are_given_back():
    """The weight of old-style weight norm, and what was not there before."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.utils.weight_norm(nn.Conv3d(3, 6, 3, padding=1))
            self.head = nn.Linear(6, 3)
            self.double: Tensor | None = None
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.double = 2 * self.head.weight
            self.new = self.double + 1
            x = self.first(x).relu().mean(dim=(2, 3, 4))
            return nn.functional.linear(x, self.double, self.head.bias)

    net = Keeps()
    with torch.no_grad():
        net(clip().pixels[None])
    copied, double = net.first.weight.detach().clone(), net.double
    model = wrap_plain(net)
    score = ParameterRandomisation(steps=2, draws=1)(model, clip(), Saliency(), Logit(0))
    assert score.value < 0.9
    assert torch.equal(net.first.weight, copied)
    assert net.double is not None
    assert torch.equal(net.double, 2 * net.head.weight)
    assert torch.equal(net.double, double)
    calls, weight = net.calls, net.first.weight
    found = stages(model)
    net.double = None
    del net.new
    with randomising(found) as upto:
        upto(2)
        model(clip().pixels[None])
        assert net.double is not None
        assert not torch.equal(net.first.weight, copied)
    assert net.first.weight is weight
    assert net.double is None
    assert not hasattr(net, "new")
    assert net.calls == calls + 1  # what is no tensor does not hang on weights


def wrap_plain(net: nn.Module) -> TorchModel:
    return TorchModel(net.eval(), pack=lambda x: x, name="plain")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_scripted_networks_take_no_hooks():
    """Their layers are taken in the order of registration."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    plain.append(nn.Linear(6, 3))
    scripted = torch.jit.script(copy.deepcopy(plain).eval())
    names = [s.name for s in stages(wrap_plain(scripted), clip())]
    assert names == ["4", "0"]
    before = scripted(clip().pixels[None])
    scores = [
        ParameterRandomisation(steps=2, draws=2)(wrap_plain(net), clip(), Saliency(), Logit(0))
        for net in (plain, scripted)
    ]
    assert scores[0].value == pytest.approx(scores[1].value, abs=1e-4)
    assert scores[0].facts == pytest.approx(scores[1].facts, abs=1e-4)
    assert torch.equal(before, scripted(clip().pixels[None]))


def test_a_network_without_weights_is_refused():
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0].mean(dim=(1, 2, 3)), x[:, 1].mean(dim=(1, 2, 3))], dim=1)

    for made in (ParameterRandomisation(), EfficientRandomisation()):
        with pytest.raises(LayerError, match="plain has no weights to randomise"):
            made(wrap_plain(Bare()), clip(), Saliency(), Logit(0))


METRICS: dict[str, Callable[[], Any]] = {
    "parameters": lambda: ParameterRandomisation(steps=3, draws=1),
    "efficient": lambda: EfficientRandomisation(draws=1),
    "labels": lambda: LabelRandomisation(wrapped(odd())),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("method", [GradCAM(), Saliency(), RISE(n=4, cells=(2, 2, 2)), Weights(fail=2)])
def test_the_users_network_is_left_as_it_was(name: str, method: Any):
    """Bits, buffers, modes, hooks, gradients, frozen weights, random state; also after an error."""
    net = odd().train()
    net.norm.eval()
    net.last.weight.requires_grad_(False)
    net.first.weight.grad = torch.ones_like(net.first.weight)
    before, grads = state(net), [p.grad for p in net.parameters()]
    Weights.seen.clear()
    run = partial(METRICS[name](), wrapped(net), clip(), method, Logit(0))
    if method == Weights(fail=2) and name == "parameters":
        with pytest.raises(RuntimeError, match="broken inside"):
            run()
        assert len(Weights.seen) == 3
        assert not torch.equal(Weights.seen[-1]["head.weight"], Weights.seen[0]["head.weight"])
    else:
        run()
    assert_same(before, state(net))
    assert all(a is b for a, b in zip(grads, (p.grad for p in net.parameters()), strict=True))


# ── parameter randomisation ──────────────────────────────────────────────────────────────────────────────


def test_the_cascade_done_by_hand():
    """Copies of the network, weights put in one layer after the other, agreement averaged over draws."""
    net, c = odd(), clip()
    model, method = wrapped(net), Saliency()
    score = ParameterRandomisation(steps=3, draws=2, seed=4)(model, c, method, Logit(1))
    first = method(model, c, [Logit(1)])[0]
    found = stages(model, c)
    names = {id(p): n for n, p in net.named_parameters()}
    rows = []
    for seed in (4, 5):
        with randomising(found, seed) as upto:
            upto(len(found))
            drawn = {n: p.detach().clone() for n, p in net.named_parameters()}
        row = []
        for count in (1, 3, 5):
            twin = copy.deepcopy(net)
            chosen = {names[id(p)] for s in found[:count] for p in s.parameters}
            with torch.no_grad():
                for n, p in twin.named_parameters():
                    if n in chosen:
                        p.copy_(drawn[n])
            row.append(agreement(first, method(wrapped(twin), c, [Logit(1)])[0]))
        rows.append(row)
    means = np.mean(rows, axis=0).tolist()
    assert score.curve is not None
    assert score.curve[0] == (0, 1 / 5, 3 / 5, 1)
    assert score.curve[1] == pytest.approx((1, *means), abs=1e-6)
    assert score.value == pytest.approx(means[-1], abs=1e-6)
    assert list(score.facts)[:3] == ["after head", "after norm", "after all"]
    assert score.facts["sd"] == pytest.approx(abs(rows[0][2] - rows[1][2]) / 2, abs=1e-6)
    assert score.forwards == 1 + 7 * (1 + 2)
    given = ParameterRandomisation(steps=3, draws=2, seed=4)(model, c, method, Logit(1), explanation=first)
    assert given.value == score.value
    assert given.forwards == 1 + 6 * (1 + 2)


def test_absolute_values_do_not_mind_a_sign():
    """The map is the head's weights; turned over, its ranks are reversed and its size is the same."""

    @dataclass(frozen=True)
    class Turned:
        needs: ClassVar[str] = "layers"
        explains: ClassVar[type[Logit]] = Logit

        def __call__(self, model: Any, clip: Clip, targets: Any, run: Run = RUN) -> list[Explanation]:
            sign = 1 if torch.equal(model.module.head.weight, own) else -1
            return [explanation(sign * random_map(0, SIZE), t) for t in targets]

    net = odd()
    own = net.head.weight.detach().clone()
    signed, absolute = (
        ParameterRandomisation(steps=1, draws=1, absolute=a)(wrapped(net), clip(), Turned(), Logit(0))
        for a in (False, True)
    )
    assert signed.value == pytest.approx(-1, abs=1e-3)
    assert absolute.value == pytest.approx(1, abs=1e-3)
    assert (signed.facts["insensitive"], absolute.facts["insensitive"]) == (0, 1)
    assert signed.curve is not None
    assert signed.curve[0] == (0, 1)


@pytest.mark.parametrize("task", ["key", "dir"])
def test_edges_are_flagged_and_gradcam_is_not(task: Any):
    model = tl.load_model("bundled")
    planted = generate(11, task=task, frames=8)
    c, target = planted.clip(), Logit(planted.label)
    parameters, efficient = ParameterRandomisation(steps=1), EfficientRandomisation()
    for metric, value in ((parameters, 1), (efficient, 0)):
        edges = metric(model, c, Edges(), target)
        assert edges.value == pytest.approx(value)
        assert edges.facts["insensitive"] == 1
        assert any("does not depend on the weights" in note for note in edges.notes)
    for method in (GradCAM(), Tubes(), InputXGradient()):
        cascade, entropies = (metric(model, c, method, target) for metric in (parameters, efficient))
        assert cascade.value < 0.3
        assert entropies.facts["correlation"] < 0.3
        for score in (cascade, entropies):
            assert score.facts["insensitive"] == 0
            assert not any("weights" in note for note in score.notes)
    assert entropies.value > 0.5  # of the last, input x gradient


def test_one_random_network_that_differs_lifts_the_flag():
    """By chance two maps of unrelated networks are alike; not three times in a row."""

    @dataclass(frozen=True)
    class AlikeAtFirst:
        seen: ClassVar[list[int]] = []
        needs: ClassVar[str] = "layers"
        explains: ClassVar[type[Logit]] = Logit

        def __call__(self, model: Any, clip: Clip, targets: Any, run: Run = RUN) -> list[Explanation]:
            self.seen.append(1)
            return [explanation(random_map(int(len(self.seen) == 3), SIZE)) for _ in targets]

    first = explanation(random_map(0, SIZE))
    for metric in (ParameterRandomisation(steps=1), EfficientRandomisation()):
        AlikeAtFirst.seen.clear()
        score = metric(wrapped(odd()), clip(), AlikeAtFirst(), Logit(0), explanation=first)
        mean = score.facts.get("correlation", score.value)
        assert mean > 0.5
        assert score.facts["insensitive"] == 0
        assert not score.notes


@pytest.mark.slow
def test_no_map_of_the_bundled_network_is_flagged():
    """What the threshold rests on."""
    model = tl.load_model("bundled")
    for name in ("gradcam", "tubes", "hirescam", "saliency", "inputxgradient", "gated"):
        method = tl.methods.method(name)
        for seed in range(12):
            planted = generate(seed)
            metric = ParameterRandomisation(steps=1)
            score = metric(model, planted.clip(), method, Logit(planted.label))
            assert score.facts["insensitive"] == 0, (name, seed)


def test_a_random_network_without_a_map_counts_as_not_alike():
    Weights.seen.clear()
    net = odd()
    first = explanation(random_map(0, SIZE))
    score = ParameterRandomisation(steps=1, draws=2)(
        wrapped(net), clip(), Weights(fail=0), Logit(0), explanation=first
    )
    assert score.value == 0
    assert score.notes == ("no map on a randomised network: nothing there",)
    assert len(Weights.seen) == 2
    nothing = EfficientRandomisation(draws=1)(
        wrapped(net), clip(), Weights(fail=0), Logit(0), explanation=first
    )
    assert math.isnan(nothing.value)


@dataclass(frozen=True)
class Fails:
    """A "method" that fails on the networks whose head's weights are not these."""

    error: TubelensError
    head: Tensor
    needs: ClassVar[str] = "layers"
    explains: ClassVar[type[Logit]] = Logit

    def __call__(self, model: Any, clip: Clip, targets: list[Target], run: Run = RUN) -> list[Explanation]:
        if not torch.equal(model.module.head.weight, self.head):
            raise self.error
        return [explanation(random_map(0, SIZE), t) for t in targets]


@pytest.mark.parametrize(
    "error",
    [
        LayerError("odd has no layer 'nope'"),
        OptionError("no gradient flows from the scores of odd back to the pixels"),
        TargetError("class 7 is out of range"),
        InputError("odd does not accept a clip: ValueError: the gradient of a is zero at b"),  # its own words
        ScoreError("odd returned NaN or infinity for the intact clip"),
        WorkError("out of memory on cpu with a single clip of 3x4x12x12"),
    ],
)
@pytest.mark.parametrize("name", METRICS)
def test_a_failure_is_no_score(name: str, error: TubelensError):
    """Of the method, on a network of random weights or labels alone."""
    net = odd()
    before = state(net)
    method = Fails(error, net.head.weight.detach().clone())
    made = METRICS[name]() if name != "labels" else LabelRandomisation(zeroed("head.weight"))
    with pytest.raises(type(error)) as caught:
        made(wrapped(net), clip(), method, Logit(0))
    assert str(caught.value) == str(error)
    assert_same(before, state(net))


def test_an_option_that_no_network_fits_is_no_score_either():
    """With an explanation that was made before, so that the method first runs on the random network."""
    first = GradCAM()(wrapped(odd()), clip(), [Logit(0)])[0]
    for made in (ParameterRandomisation(steps=1), EfficientRandomisation()):
        with pytest.raises(LayerError, match="no layer 'nope'"):
            made(wrapped(odd()), clip(), GradCAM(layer="nope"), Logit(0), explanation=first)


def zeroed(*names: str) -> TorchModel:
    net = odd()
    with torch.no_grad():
        for name in names:
            net.get_parameter(name).zero_()
    return wrapped(net)


@pytest.mark.parametrize(
    "method",
    ["gradcam", "hirescam", "guided_gradcam", "saliency", "smoothgrad", "pyramid", "scorecam", "sidu"],
)
def test_nothing_to_explain_is_told_from_a_failure(method: str):
    """By what the methods themselves say of a network whose last layers let nothing through."""
    dead, made = zeroed("norm.weight", "norm.bias"), tl.methods.method(method)
    if method == "sidu":
        made = replace(made, threshold=0.0)
    with pytest.raises(TubelensError) as caught:
        made(dead, clip(), [Logit(0)])
    labels = LabelRandomisation(dead)(wrapped(odd()), clip(), made, Logit(0))
    assert math.isnan(labels.value)
    assert labels.facts["insensitive"] == 0
    assert labels.notes == (f"no map on a randomised network: {caught.value}",)
    # those zeros are a network's own, so that they stay: also after all else is random
    first = explanation(random_map(0, SIZE))
    score = ParameterRandomisation(steps=1, draws=1)(dead, clip(), made, Logit(0), explanation=first)
    assert score.value == 0
    assert score.notes[0].startswith("no map on a randomised network: ")


def test_a_map_that_random_weights_make_flat_is_not_alike():
    @dataclass(frozen=True)
    class Flattened(Fails):
        def __call__(self, model: Any, clip: Clip, targets: Any, run: Run = RUN) -> list[Explanation]:
            own = torch.equal(model.module.head.weight, self.head)
            return [explanation(random_map(0, SIZE) if own else torch.zeros(SIZE), t) for t in targets]

    net = odd()
    method = Flattened(LayerError(""), net.head.weight.detach().clone())
    score = ParameterRandomisation(steps=2, draws=2)(wrapped(net), clip(), method, Logit(0))
    assert (score.value, score.facts["insensitive"], score.notes) == (0, 0, ())


def test_maps_that_are_the_same_everywhere():
    flat = explanation(torch.zeros(SIZE))
    score = ParameterRandomisation(steps=1, draws=1)(
        wrapped(odd()), clip(), GradCAM(), Logit(0), explanation=flat
    )
    assert math.isnan(score.value)
    assert "no ranks" in score.notes[-1]
    assert score.facts["insensitive"] == 0
    other = EfficientRandomisation(draws=1)(wrapped(odd()), clip(), GradCAM(), Logit(0), explanation=flat)
    assert math.isnan(other.value)
    assert "no entropy" in other.notes[0]


def test_a_black_box_has_no_weights():
    model = BlackBox(lambda clips: clips.mean(dim=(2, 3, 4)))
    for metric in (ParameterRandomisation(), EfficientRandomisation()):
        with pytest.raises(LayerError, match="black box"):
            metric(model, clip(), RISE(n=4), Prob(0))


# ── the efficient variant ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bins", [10, 100])
def test_entropy_is_scipys_of_numpys_histogram(bins: int):
    m = random_map(0, (5, 9, 11)) ** 3
    counts, _ = np.histogram(m.double().numpy(), bins=bins)
    assert entropy(m, bins) == pytest.approx(float(scipy_entropy(counts)), abs=1e-5)
    assert entropy(5 * m - 2, bins) == pytest.approx(entropy(m, bins), abs=1e-3)
    seen = m.clone()
    seen[:, :4] = float("nan")
    assert entropy(seen, bins) == pytest.approx(entropy(m[:, 4:], bins))
    assert entropy(torch.linspace(0, 1, 10 * bins + 1)[:-1].view(1, 1, -1), bins) == pytest.approx(
        math.log(bins), abs=1e-2
    )
    assert entropy(torch.ones(2, 2, 2), bins) == 0


def test_the_rise_of_entropy_by_hand():
    net, c, method = odd(), clip(), InputXGradient()
    model = wrapped(net)
    score = EfficientRandomisation(bins=50, draws=2, seed=3)(model, c, method, Logit(2))
    first = method(model, c, [Logit(2)])[0]
    after, alike = [], []
    for seed in (3, 4):
        with randomising(stages(model), seed) as upto:
            upto(len(stages(model)))
            e = method(model, c, [Logit(2)])[0]
        after.append(entropy(e.saliency, 50))
        alike.append(agreement(first, e))
    before = entropy(first.saliency, 50)
    assert score.value == pytest.approx((sum(after) / 2 - before) / before)
    assert score.facts["entropy"] == pytest.approx(before)
    assert score.facts["entropy_random"] == pytest.approx(sum(after) / 2)
    assert score.facts["correlation"] == pytest.approx(sum(alike) / 2)
    assert score.forwards == 3 * (1 + 2)
    assert score.higher_is_better is True


# ── label randomisation ──────────────────────────────────────────────────────────────────────────────────


def test_label_randomisation_compares_two_networks(tmp_path: Path):
    c, method = clip(), Saliency()
    one, two = wrapped(odd()), wrapped(order_one(Odd(), c.pixels[None], seed=9))
    expected = agreement(method(one, c, [Logit(0)])[0], method(two, c, [Logit(0)])[0])
    score = LabelRandomisation(two)(one, c, method, Logit(0))
    assert score.value == pytest.approx(expected)
    assert score.value < 0.5
    assert score.facts["insensitive"] == 0
    assert score.forwards == 2 * (1 + 2) + 2  # a forward of each for the number of classes
    labelled = (replace(m, labels=("a", "b", "c")) for m in (one, two))
    assert LabelRandomisation(next(labelled))(next(labelled), c, method, Logit(0)).forwards == 2 * (1 + 2)
    assert LabelRandomisation(lambda: two)(one, c, method, Logit(0)).value == score.value
    edges = LabelRandomisation(two)(one, c, Edges(), Logit(0))
    assert edges.value == pytest.approx(1)
    assert "random labels" in edges.notes[0]
    absolute = LabelRandomisation(two, absolute=True)(one, c, InputXGradient(), Logit(0))
    maps = [InputXGradient()(m, c, [Logit(0)])[0] for m in (one, two)]
    maps = [replace(e, parts=(replace(e.parts[0], values=e.grid.abs()),)) for e in maps]
    assert absolute.value == pytest.approx(agreement(*maps))
    file = tmp_path / "mine.py"
    file.write_text("import tubelens as tl\ndef make():\n    return tl.load_model('bundled')\n")
    assert LabelRandomisation(f"{file}:make").model().labels == tl.load_model("bundled").labels  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match="no such file"):
        LabelRandomisation("nowhere.py:make")(one, c, method, Logit(0))
    with pytest.raises(OptionError, match="not int"):
        LabelRandomisation(3)(one, c, method, Logit(0))
    with pytest.raises(OptionError, match="it has 2 of them, the explained one 3"):
        LabelRandomisation(BlackBox(lambda x: x.mean(dim=(2, 3, 4))[:, :2]))(one, c, RISE(n=4), Prob(0))
    for bare in (odd(), odd):
        with pytest.raises(OptionError, match="bare Odd as its other model: wrap it first"):
            LabelRandomisation(bare)(one, c, method, Logit(0))
    with pytest.raises(LayerError, match="black box"):
        LabelRandomisation(BlackBox(lambda x: x.mean(dim=(2, 3, 4))))(one, c, method, Logit(0))
    flat = LabelRandomisation(two)(one, c, method, Logit(0), explanation=explanation(torch.zeros(SIZE)))
    assert math.isnan(flat.value)
    assert "no ranks" in flat.notes[0]


def test_the_other_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And again where its file has changed; what goes wrong in it is one line."""
    source = """
from tubelens.model import BlackBox
made = []
def make():
    made.append(1)
    assert len(made) == 1
    return BlackBox(lambda x: x.mean(dim=(2, 3, 4)), name=NAME)
def fails():
    raise FileNotFoundError("no weights.pt here")
def refuses():
    from tubelens.errors import CheckpointError
    raise CheckpointError("weights.pt: is not of this network")
def full():
    raise MemoryError
"""
    file = tmp_path / "others.py"
    file.write_text(source.replace("NAME", "'one'"))
    made = named(f"label_randomisation(other={file}:make)")
    assert made == LabelRandomisation(f"{file}:make")
    assert named("label_randomisation(other=package.module:make)").other == "package.module:make"
    first = made.model()
    assert first.name == "one"
    assert made.model() is first
    assert named(f"label_randomisation(other={file}:make, absolute=true)").model() is first
    file.write_text(source.replace("NAME", "'two'"))
    os.utime(file, ns=(1, 1))
    assert made.model().name == "two"
    for name, error, said in (
        ("fails", OptionError, "others.py:fails: .*FileNotFoundError: no weights.pt here"),
        ("refuses", InputError, "^weights.pt: is not of this network"),
        ("full", MemoryError, None),
    ):
        with pytest.raises(error, match=said):
            named(f"label_randomisation(other={file}:{name})").model()
    (tmp_path / "other_module.py").write_text(source.replace("NAME", "'three'"))
    monkeypatch.syspath_prepend(tmp_path)
    third = named("label_randomisation(other=other_module:make)")
    assert third.model().name == "three"
    assert third.model() is third.model()
    calls: list[int] = []

    def make() -> BlackBox:
        calls.append(1)
        return BlackBox(lambda x: x.mean(dim=(2, 3, 4)))

    held = LabelRandomisation(make)
    assert held.model() is held.model()
    assert len(calls) == 1


def test_options(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    for metric in (
        ParameterRandomisation(steps=2, draws=1, absolute=True),
        EfficientRandomisation(bins=9, seed=2),
        LabelRandomisation("package.module:make"),
    ):
        assert eval(repr(metric)) == metric
        assert isinstance(metric, Metric)
        assert metric.kind == "method"
    for wrong in ({"steps": 0}, {"draws": 0}):
        with pytest.raises(OptionError):
            ParameterRandomisation(**wrong)
    for wrong in ({"bins": 1}, {"draws": 0}):
        with pytest.raises(OptionError):
            EfficientRandomisation(**wrong)
