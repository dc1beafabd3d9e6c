"""One forward, cut at one or several layers: what is captured, its gradients, and what is left behind."""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import order_one
from tests.test_tubes import Small, activations, clip, model
from tests.test_untouched import assert_same, state
from tubelens.api import explain
from tubelens.capture import answers, capturing, layers
from tubelens.cut import batch_dimension
from tubelens.errors import InputError, LayerError, OptionError, ScoreError
from tubelens.layout import Layout
from tubelens.methods.cam import GradCAM
from tubelens.methods.tubes import Tubes
from tubelens.model import TorchModel
from tubelens.target import Contrast, Logit, Prob, Target

TARGETS: list[Target] = [Logit(0), Prob(1), Contrast(2, 3)]


def pixels(clips: int = 1) -> Tensor:
    return torch.stack([clip(seed=seed).pixels for seed in range(clips)])


class Chain(nn.Module):
    """In-place ReLUs after what is read, a head that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv3d(3, 5, 3, (1, 2, 2), 1), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv3d(5, 6, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv3d(6, 6, 1))
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.b(self.a(6 * (x - 0.5)))).mean(dim=(2, 3, 4)) ** 2)


class Branches(nn.Module):
    """Two pathways at two rates that meet in the head, as in SlowFast; and a third that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Sequential(nn.Conv3d(3, 4, 3, 2, 1), nn.ReLU(inplace=True))
        self.fast = nn.Sequential(nn.Conv3d(3, 5, 3, (1, 2, 2), 1), nn.ReLU(inplace=True))
        self.after = nn.Conv3d(5, 5, 3, (1, 2, 2), 1)
        self.fc = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = 6 * (x - 0.5)
        slow = self.slow(x[:, :, ::2]).mean(dim=(2, 3, 4))
        fast = F.relu(self.after(self.fast(x))).mean(dim=(2, 3, 4))
        return self.fc(torch.cat([slow, fast], dim=1) ** 2)


class Tokens(nn.Module):
    """A transformer over tubelets with a class token, whose batch comes second inside."""

    def __init__(self, first: bool = True) -> None:
        super().__init__()
        self.first = first
        self.embed = nn.Conv3d(3, 8, (2, 8, 8), (2, 8, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.Linear(8, 8)
        self.mix = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(6 * (x - 0.5)).flatten(2).transpose(1, 2)
        if self.first:
            y = torch.cat([self.token.expand(len(y), -1, -1), y], dim=1)
        y = self.block(y if self.first else y.transpose(0, 1))
        y = y if self.first else y.transpose(0, 1)
        y = (y @ y.transpose(1, 2)).softmax(-1) @ self.mix(y)
        return self.fc(torch.tanh(y[:, 0] if self.first else y.mean(1)))


GRID = {"t": 4, "h": 3, "w": 3}
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], dict[str, Layout]]] = {
    "chain": (Chain, ("a", "a.0", "b.0", "b", "relu"), {}),
    "chain, asked backwards": (Chain, ("relu", "b", "b.0", "a.0"), {}),
    "branches": (Branches, ("slow", "fast"), {}),
    "branches, one inside": (Branches, ("after", "slow", "fast.0"), {}),
    "class token": (Tokens, ("embed", "block"), {"block": Layout("b (t h w) c", GRID, prefix=1)}),
    "batch second": (lambda: Tokens(False), ("block", "embed"), {"block": Layout("(t h w) b c", GRID)}),
}


def made(name: str, seed: int = 0) -> tuple[TorchModel, tuple[str, ...]]:
    build, names, layouts = NETS[name]
    torch.manual_seed(seed)
    net = order_one(build(), pixels(2))
    return TorchModel(net, pack=lambda x: x, layouts=layouts, name="net"), names


def by_the_book(net: TorchModel, layer: str, clips: Tensor, targets: list[Target]) -> tuple[Tensor, Tensor]:
    """Activations and gradients of a whole backward, one layer and one target at a time."""
    kept: list[Tensor] = []

    def hook(m: nn.Module, i: Any, out: Tensor) -> Tensor:
        kept.append(out)
        return out.clone()

    found = []
    for target in targets:
        handle = net.module.get_submodule(layer).register_forward_hook(hook)
        with torch.enable_grad():
            score = target(net.module(clips.clone().requires_grad_()), "logits").sum()
            found.append(torch.autograd.grad(score, kept[-1])[0])
        handle.remove()
    layout = net.layouts.get(layer, Layout())
    return layout.to_grid(kept[-1].detach()), torch.stack([layout.to_grid(g) for g in found])


@pytest.mark.parametrize("probe", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_several_layers_from_one_forward(name: str, probe: bool):
    """Each as by a full backward of its own, whatever the order; with a probe at each layer in turn."""
    net, names = made(name)
    passes: list[int] = []
    counter = net.module.register_forward_hook(lambda m, i, o: passes.append(len(o)))
    for at in names if probe else (False,):
        for clips in (pixels(1), pixels(2)):
            passes.clear()
            with capturing(net, clips, names, probe=at) as capture:
                wide_passes = list(passes)
                wide = wide_passes == ([2 * len(clips)] if probe else [len(clips)])
                assert wide or (name.startswith("branches") and probe and passes == 2 * [len(clips)])
                assert capture.layer == names[0]
                assert set(capture.layers) == set(names)
                for layer in reversed(names):
                    here = capture.at(layer)
                    a, g = by_the_book(net, layer, clips, TARGETS)
                    torch.testing.assert_close(here.activations, a)
                    torch.testing.assert_close(here.gradients(TARGETS), g, atol=1e-6, rtol=1e-4)
                    assert here.probed == (layer == at)
                assert capture.forwards == len(wide_passes)
    counter.remove()


@pytest.mark.parametrize("name", NETS)
def test_the_probe_is_what_the_head_was_given(name: str):
    """The head's answer to it, and its gradient there, whichever layer it stands at and which are read."""
    net, names = made(name)
    clips = pixels(1)
    for at in names:
        with capturing(net, clips, names, probe=at) as capture:
            here = capture.at(at)
            raw = capture.forward.probe
            assert raw is not None
            leaf = raw.detach().clone().requires_grad_()
            handle = net.module.get_submodule(at).register_forward_hook(
                lambda m, i, o, leaf=leaf: leaf.clone()
            )
            with torch.enable_grad():
                replayed = net.module(clips)
                mix = torch.tensor([1.0, -2.0, 0.5])
                total = sum(w * t(replayed, "logits").sum() for w, t in zip(mix, TARGETS, strict=True))
                (want,) = torch.autograd.grad(total, leaf)
            handle.remove()
            layout = net.layouts.get(at, Layout())
            torch.testing.assert_close(here.probe, layout.to_grid(raw.detach()))
            torch.testing.assert_close(here.probe_scores, replayed, atol=1e-5, rtol=1e-4)
            assert float((here.probe_scores - here.scores).detach().abs().max()) > 1e-2
            found = here.probe_gradient_of(mix, TARGETS)
            torch.testing.assert_close(found, layout.to_grid(want), atol=1e-6, rtol=1e-4)
            gradients = here.gradients(TARGETS)
            torch.testing.assert_close(
                here.gradient_of(mix, TARGETS), torch.einsum("n,n...->...", mix, gradients)
            )
            with pytest.raises(LayerError, match="captured without a probe"):
                capture.at(next(n for n in names if n != at)).probe


def test_same_gradients_at_several_layers_are_one_pass():
    net, names = made("chain")
    with capturing(net, pixels(1), names) as capture:
        found = capture.prepare(names, TARGETS)
        assert capture.backwards == 3
        for one in found:
            one.gradients(TARGETS)
        capture.at("b").gradients(tuple(TARGETS))
        assert capture.backwards == 3
        capture.gradients([Logit(1)])
        assert capture.backwards == 4


def test_remembered_gradients_stay_within_bounds(monkeypatch: pytest.MonkeyPatch):
    net, _ = made("chain")
    monkeypatch.setattr("tubelens.capture.MAX_GRADIENT_BYTES", 4 * 864 * 4)  # four of layer b
    with capturing(net, pixels(1), ("b", "relu")) as capture:
        first = capture.gradients(TARGETS)
        assert capture.backwards == 3
        capture.gradients([Logit(3), Logit(2)])
        again = capture.gradients(TARGETS)  # was forgotten
        assert capture.backwards == 8
        torch.testing.assert_close(first, again)
        both = capture.prepare(("b", "relu"), TARGETS)  # more than fits, and still right
        torch.testing.assert_close(both[0].gradients(TARGETS), first)


def test_clips_of_a_batch():
    """Each clip of a batch as if it were alone, from gradients that are shared."""
    net, names = made("chain")
    with capturing(net, pixels(3), names, probe=True) as capture:
        capture.gradients(TARGETS)
        for i in range(3):
            mine = capture.clip(i)
            with capturing(net, pixels(3)[i : i + 1], names, probe=True) as alone:
                assert mine.activations.shape[0] == mine.scores.shape[0] == 1
                for layer in names:
                    torch.testing.assert_close(mine.at(layer).activations, alone.at(layer).activations)
                torch.testing.assert_close(mine.scores, alone.scores)
                torch.testing.assert_close(mine.values(TARGETS), alone.values(TARGETS))
                torch.testing.assert_close(
                    mine.gradients(TARGETS), alone.gradients(TARGETS), atol=1e-6, rtol=1e-4
                )
                assert torch.equal(mine.clips, alone.clips)
                assert mine.clip(0).index == i
                row = capture.activations[i : i + 1] * 0.5
                torch.testing.assert_close(mine.answers(row), alone.answers(row))
        assert capture.backwards == 3
        with pytest.raises(IndexError):
            capture.clip(3)
        with pytest.raises(InputError, match="one clip at a time"):
            capture.answers(capture.activations)
    pooled = model(order_one(Small(), pixels(2)), "body")
    with capturing(pooled, pixels(2), probe=True) as capture:
        for method in (Tubes(), GradCAM()):
            for i in range(2):
                (shared,) = method.from_capture(capture.clip(i), clip(seed=i), [Logit(1)])
                (alone_,) = method(pooled, clip(seed=i), [Logit(1)])
                torch.testing.assert_close(shared.grid, alone_.grid)
                assert shared.provenance.score == pytest.approx(alone_.provenance.score, rel=1e-5)


def test_the_default_layer_among_several():
    net, _ = made("chain")
    with capturing(net, pixels(1), ("a", None)) as capture:  # a dry run tells
        assert capture.forwards == 2
        assert capture.at(None).layer == "relu"
        assert capture.layer == "a"
    with capturing(net, pixels(1), ("a", "relu")) as capture:  # asked for later
        assert capture.forwards == 1
        assert capture.at(None).layer == "relu"
        assert capture.at(None).forwards == 2
    with capturing(net, pixels(1), "a") as capture:  # whoever cut there meant it
        assert capture.at(None).layer == "a"
    named = model(net.module, "b")
    with capturing(named, pixels(1), ("a", "b", None)) as capture:
        assert capture.at(None).layer == "b"
        assert capture.layers == ("a", "b")
        with pytest.raises(LayerError, match=r"layer 'c' was not captured .captured: a, b."):
            capture.at("c")
    with capturing(named, pixels(1), "a") as capture, pytest.raises(LayerError, match="'b' was not captured"):
        capture.at(None)
    for layer, probe, said in (((), False, "no layer given"), (("a",), "b", "to be probed and not captured")):
        with pytest.raises(OptionError, match=said), capturing(named, pixels(1), layer, probe):
            pass


@pytest.mark.parametrize("name", NETS)
def test_answers_equal_a_forward_with_the_layer_replaced(name: str, monkeypatch: pytest.MonkeyPatch):
    net, names = made(name)
    clips = pixels(1)
    for layer in names:
        layout = net.layouts.get(layer, Layout())
        with capturing(net, clips, layer) as capture:
            a = capture.activations
            others = torch.cat(
                [a, 0 * a, torch.randn(5, *a.shape[1:], generator=torch.Generator().manual_seed(0))]
            )
            mine = capture.answers(others)
            assert capture.forwards == 1 + (len(others) if name.startswith("branches") else 1)
        torch.testing.assert_close(mine[:1], net(clips), atol=1e-5, rtol=1e-4)
        for i, other in enumerate(others):

            def put(
                m: nn.Module, inputs: Any, out: Tensor, other: Tensor = other, layout: Layout = layout
            ) -> Tensor:
                new = out.clone()
                layout.to_grid(new).copy_(other[None])  # a view, so that class tokens stay
                return new

            handle = net.module.get_submodule(layer).register_forward_hook(put)
            torch.testing.assert_close(mine[i : i + 1], net(clips), atol=1e-5, rtol=1e-4)
            handle.remove()
        assert float(mine.std(dim=0).max()) > 1e-2
        with monkeypatch.context() as patch:
            patch.setattr("tubelens.head.MAX_ANSWER_BYTES", 2 * 4 * a[0].numel())
            torch.testing.assert_close(answers(net, clips, layer, others), mine, atol=1e-5, rtol=1e-4)


def test_answers_shrink_where_memory_does_not_do():
    net, _ = made("chain")
    sizes: list[int] = []

    def short(m: nn.Module, inputs: Any, out: Tensor) -> None:
        sizes.append(len(out))
        if len(out) > 2:
            raise MemoryError

    a = torch.rand(5, 6, 4, 6, 6)
    whole = answers(net, pixels(1), "b", a)
    handle = net.module.relu.register_forward_hook(short)
    torch.testing.assert_close(answers(net, pixels(1), "b", a), whole)
    handle.remove()
    assert sizes[-3:] == [2, 2, 1]
    with torch.no_grad():
        net.module.fc.weight[0, 0] = float("nan")
    with pytest.raises(ScoreError, match="NaN"):
        answers(net, pixels(1), "b", a)


def test_a_layer_that_is_called_more_than_once_is_read_the_last_time():
    class Shared(Chain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.a[0](6 * (x - 0.5)))
            y = self.relu(self.b[0](y))
            return self.fc(self.relu(y.mean(dim=(2, 3, 4)) - 0.1) ** 2)

    torch.manual_seed(0)
    net = model(order_one(Shared(), pixels(1)))
    for probe in (False, True):
        with capturing(net, pixels(1), "relu", probe) as capture:
            a = capture.activations
            assert a.shape == (1, 6, 4, 6, 6)
            torch.testing.assert_close(capture.answers(a), net(pixels(1)))
            step = 1e-2 * a * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
            change = (capture.answers(a + step) - capture.answers(a - step))[0, 0]
            gradient = capture.gradients([Logit(0)])[0]
            torch.testing.assert_close((gradient * step).sum() * 2, change, rtol=0.02, atol=1e-5)


class Pair(Chain):
    """The layer gives a named tuple."""

    Out = namedtuple("Out", "x more")

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Pair.Out(x, 3)

    def __init__(self) -> None:
        super().__init__()
        self.two = Pair.Two()

    def forward(self, x: Tensor) -> Tensor:
        out = self.two(self.b(self.a(6 * (x - 0.5))))
        assert isinstance(out, Pair.Out)
        assert out.more == 3
        return self.fc(out.x.mean(dim=(2, 3, 4)) ** 2)


def test_layers_that_give_tuples():
    torch.manual_seed(0)
    net = model(order_one(Pair(), pixels(1)), "two")
    with capturing(net, pixels(1), probe=True) as capture:
        a, g = capture.activations, capture.gradients([Logit(0)])
        torch.testing.assert_close(capture.answers(a), net(pixels(1)))
    with capturing(net, pixels(1), "b") as capture:
        torch.testing.assert_close(capture.activations, a)
        torch.testing.assert_close(capture.gradients([Logit(0)]), g)


# ── whatever the model is like ───────────────────────────────────────────────────────────────────────────


class Detached(Chain):
    """Runs its backbone without gradients, as fine-tuned heads do."""

    mode: Any = torch.no_grad

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            y = self.b(self.a(6 * (x - 0.5)))
        return self.fc(self.relu(y).mean(dim=(2, 3, 4)) ** 2)


@pytest.mark.parametrize("outer", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["plain", "frozen", "no_grad inside", "forward under no_grad", "training"])
def test_the_same_gradients_whatever_is_switched_off(kind: str, outer: Any):
    torch.manual_seed(0)
    net = order_one(Detached() if kind == "no_grad inside" else Chain(), pixels(1))
    if kind == "frozen":
        net.requires_grad_(False)
    if kind == "training":
        net.train()
    plain = Chain().eval()
    plain.load_state_dict(net.state_dict())
    reference = TorchModel(plain, pack=lambda x: x)
    if kind == "forward under no_grad":
        net.forward = torch.no_grad()(net.forward)
    before = state(net)
    want = {name: by_the_book(reference, name, pixels(1), TARGETS) for name in ("b", "relu")}
    for names in (("b",), ("b", "relu")):
        with outer(), capturing(TorchModel(net, pack=lambda x: x), pixels(1), names, True) as capture:
            for name in names:
                a, g = want[name]
                torch.testing.assert_close(capture.at(name).activations, a)
                torch.testing.assert_close(capture.at(name).gradients(TARGETS), g, atol=1e-6, rtol=1e-4)
    assert_same(before, state(net))


def test_nothing_is_kept_for_the_backward_before_the_layer_or_beside_it():
    """Bytes saved by autograd: only what the head needs, whatever requires grad."""
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    for name, layer, limit in (("chain", "relu", 10), ("branches", "slow", 30), ("branches", "after", 2000)):
        net, _ = made(name)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), capturing(net, pixels(1), layer):
            pass
        weights = net.module.fc.weight.numel()
        assert sum(saved) <= limit + weights, (name, layer, saved)


@pytest.mark.parametrize("when", ["in the forward", "in the block"])
def test_nothing_is_left_after_an_error(when: str):
    class Broken(Chain):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("broken inside")

    net = order_one(Chain(), pixels(1)).train()
    net.a[0].weight.requires_grad_(False)
    net.unused = nn.Conv3d(3, 3, 1)
    if when == "in the forward":
        net.__class__ = Broken
    before = state(net)
    wanted = InputError if when == "in the forward" else KeyError
    with pytest.raises(wanted), capturing(model_as_is(net), pixels(1), ("a", "b", "relu"), True):
        raise KeyError("mine")
    assert_same(before, state(net))
    net.__class__ = Chain
    with pytest.raises(LayerError, match="was not reached"):
        capturing(model_as_is(net), pixels(1), ("a", "unused"), True).__enter__()
    with pytest.raises(InputError):
        answers(model_as_is(net), pixels(1), "b", torch.ones(2, 9, 4, 6, 6))
    assert_same(before, state(net))


def model_as_is(net: nn.Module) -> TorchModel:
    return TorchModel(net, pack=lambda x: x, name="net")


def test_a_layer_without_a_way_to_the_scores():
    class Dead(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.b(self.a(x)).detach().mean(dim=(2, 3, 4)))

    with pytest.raises(LayerError, match="no gradient flows from the scores back to layer 'b'"):
        capturing(model(Dead()), pixels(1), "b").__enter__()


def scripted(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(net)


def traced(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net, pixels(1))


@pytest.mark.parametrize("kind", [scripted, traced])
def test_layers_of_a_scripted_network_cannot_be_read(kind: Callable[[nn.Module], nn.Module]):
    whole = model_as_is(kind(Chain().eval()))
    for ask in (
        lambda: capturing(whole, pixels(1)).__enter__(),
        lambda: capturing(whole, pixels(1), "b").__enter__(),
        lambda: answers(whole, pixels(1), "b", torch.rand(1, 6, 4, 6, 6)),
        lambda: layers(whole, pixels(1)),
    ):
        with pytest.raises(
            LayerError, match=r"of net cannot be read, because TorchScript.*rise or occlusion"
        ):
            ask()


@pytest.mark.parametrize("kind", [scripted, traced])
def test_a_scripted_part_of_a_python_network(kind: Callable[[nn.Module], nn.Module]):
    """Its own layers are hidden; those around it are read, and gradients pass through it."""

    class Around(Chain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.b(self.a(6 * (x - 0.5))))
            return self.fc(y.mean(dim=(2, 3, 4)) ** 2)

    torch.manual_seed(0)
    net = order_one(Around(), pixels(1))
    with capturing(model_as_is(net), pixels(1), ("a", "relu")) as capture:
        want = [capture.at(n).gradients([Logit(0), Logit(1)]) for n in ("a", "relu")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.b = kind(net.b) if kind is scripted else torch.jit.trace(net.b, torch.rand(1, 5, 8, 12, 12))
    assert not [i.name for i in layers(model_as_is(net), pixels(1)) if i.name.startswith("b")]
    before = [p.requires_grad for p in net.parameters()]
    with capturing(model_as_is(net), pixels(1), ("a", "relu"), probe="relu") as capture:
        for name, gradient in zip(("a", "relu"), want, strict=True):
            found = capture.at(name).gradients([Logit(0), Logit(1)])
            torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)
    assert [p.requires_grad for p in net.parameters()] == before
    with pytest.raises(LayerError, match=r"layer 'b\.0' of net cannot be read, because TorchScript"):
        capturing(model_as_is(net), pixels(1), "b.0").__enter__()


def test_where_the_batch_is():
    cases = {"b c t h w": 0, "(b t) c h w": 0, "b (t h w) c": 0, "(t h w) b c": 1, "c 1 (b h) t w": 2}
    for pattern, place in cases.items():
        assert batch_dimension(Layout(pattern)) == place
    with pytest.raises(InputError, match="not outermost"):
        batch_dimension(Layout("(t b) c h w"))
    with pytest.raises(InputError, match="no batch"):
        batch_dimension(Layout("t c h w"))


def test_a_probe_where_the_batch_is_inside_a_group_takes_a_second_forward():
    class Folded(Chain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(6 * (x - 0.5)))
            n, c, t, h, w = y.shape
            y = self.relu(y.permute(2, 0, 1, 3, 4).reshape(t * n, c, h, w))
            return self.fc(y.view(t, n, c, h, w).mean(dim=(0, 3, 4)))

    torch.manual_seed(0)
    net = order_one(Folded(), pixels(1))
    folded = TorchModel(
        net, pack=lambda x: x, layer="relu", layouts={"relu": Layout("(t b) c h w", {"t": 4})}
    )
    (why,) = Tubes()(folded, clip(), [Logit(1)])
    assert why.provenance.forwards == 2
    logit = float(folded(pixels(1))[0, 1])
    assert float(why.grid.sum()) + float(net.fc.bias[1].detach()) == pytest.approx(logit, rel=1e-4)


def test_explaining_with_tubes_and_cams_together_is_one_forward():
    from tubelens.api import explain_all
    from tubelens.methods.cam import LayerCAM

    net = model(order_one(Small(), pixels(1)), "body")
    found = explain_all(net, clip(), [Tubes(), GradCAM(layer=("stem", "body")), LayerCAM()], [1, 2])
    for row, method in zip(found, (Tubes(), GradCAM(layer=("stem", "body")), LayerCAM()), strict=True):
        assert row[0].provenance.forwards == 1
        for why, alone in zip(row, explain(net, clip(), method, [1, 2]), strict=True):
            torch.testing.assert_close(why.grid, alone.grid)


def test_captured_values_are_those_of_a_copying_hook():
    net, names = made("chain")
    with capturing(net, pixels(1), names) as capture:
        for name in names:
            torch.testing.assert_close(capture.at(name).activations, activations(net.module, name, pixels(1)))
        assert (capture.at("b.0").activations < 0).any()  # an in-place ReLU follows
        assert (capture.at("a.0").activations < 0).any()
