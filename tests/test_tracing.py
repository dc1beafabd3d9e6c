"""The graph of convolutions: known edges, an outside reference (torch.fx), and the model left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torchvision.models import DenseNet, get_model

from tests.conftest import order_one
from tubelens import tracing
from tubelens.errors import LayerError, ScoreError
from tubelens.model import TorchModel
from tubelens.tracing import Layer, Trace, trace
from tubelens.zoo.bundled import bundled

CLIP = torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
Pairs = set[tuple[int, int]]
ANY = 10**6


def wrap(net: nn.Module) -> TorchModel:
    return TorchModel(net.eval(), pack=lambda x: x, name="net")


def traced(net: nn.Module, clip: Tensor = CLIP) -> Trace:
    torch.manual_seed(0)
    return trace(wrap(net), clip)


def layer(found: Trace, name: str) -> Layer:
    (one,) = [each for each in found.layers if each.name == name]
    return one


def sources(found: Trace, name: str) -> dict[str, Pairs]:
    """(channel, kernel) pairs by source; a kernel that arrives reversed is negative: -1 - kernel."""
    return {
        found.layers[edge.source[1]].name: {
            (j, -1 - k if r else k)
            for j, k, r in zip(edge.into.tolist(), edge.kernels.tolist(), edge.reversed.tolist(), strict=True)
        }
        | {(j, ANY) for j in edge.any.tolist()}
        for edge in layer(found, name).feeding("layer")
    }


def same(n: int, start: int = 0, kernel: int = 0) -> Pairs:
    return {(start + i, kernel + i) for i in range(n)}


# ── an outside reference: symbolic tracing ───────────────────────────────────────────────────────────────


class Leaves(fx.Tracer):
    """Stops at every convolution, also at subclasses that the default would enter (Conv3DSimple)."""

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return isinstance(m, _ConvNd | nn.Linear) or super().is_leaf_module(m, name)


def symbolic(net: nn.Module) -> dict[str, set[str]]:
    """Each convolution or linear layer, and those whose output reaches it through anything else."""
    tracer = Leaves()
    graph = tracer.trace(net)
    modules = dict(net.named_modules())
    reach: dict[fx.Node, set[str]] = {}
    found: dict[str, set[str]] = {}
    for node in graph.nodes:
        before = set().union(*(reach[n] for n in node.all_input_nodes))
        reach[node] = before
        if node.op == "call_module" and isinstance(modules[node.target], _ConvNd | nn.Linear):
            found[node.target] = before
            reach[node] = {node.target}
    return found


NETS = {
    "r3d_18": (20, (1, 3, 4, 32, 32)),
    "mc3_18": (20, (1, 3, 4, 32, 32)),
    "r2plus1d_18": (37, (1, 3, 4, 32, 32)),
    "s3d": (78, (1, 3, 16, 64, 64)),
}


@pytest.mark.parametrize("name", NETS)
def test_all_convolutions_and_edges_of_the_video_networks(name: str):
    count, shape = NETS[name]
    net = get_model(name, weights=None, num_classes=5).eval()
    if name == "s3d":
        net.avgpool = nn.AvgPool3d((2, 2, 2), stride=1)  # its own needs 224 pixels
    found = traced(net, torch.rand(shape))
    convolutions = [each for each in found.layers if each.kind == "convolution"]
    assert len(convolutions) == count
    assert {each.name: set(sources(found, each.name)) for each in found.layers} == symbolic(net)
    assert not found.notes
    for each in found.layers:  # and channel by channel: nothing here reorders them
        for source, pairs in sources(found, each.name).items():
            size = layer(found, source).kernels
            start = min(j for j, _ in pairs)
            signs = {k >= 0 for _, k in pairs}
            assert pairs == same(size, start)
            assert signs == {True}


def test_shortcuts_of_a_residual_network():
    found = traced(get_model("r3d_18", weights=None).eval(), torch.rand(1, 3, 4, 32, 32))
    names = {"layer2.0.conv2.0", "layer2.0.downsample.0"}
    assert sources(found, "layer2.1.conv1.0") == {name: same(128) for name in names}
    assert set(sources(found, "fc")) == {"layer4.1.conv2.0", "layer4.0.conv2.0", "layer4.0.downsample.0"}
    assert [found.layers[edge.source[1]].name for edge in found.ends] == ["fc"]


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "densenet", "googlenet"])
def test_families_of_image_networks_over_frames(name: str):
    """Shuffles, gates, dense concatenation: the same layers reach each other as in symbolic tracing."""
    if name == "densenet":
        inner: nn.Module = DenseNet(growth_rate=4, block_config=(2, 3), num_init_features=8, num_classes=3)
    else:
        options = {"init_weights": False} if name == "googlenet" else {}
        inner = get_model(name, weights=None, num_classes=3, **options)
    inner.eval()

    class PerFrame(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            b, c, t, h, w = x.shape
            y = self.inner(x.transpose(1, 2).reshape(b * t, c, h, w))
            return y.view(b, t, -1).mean(1)

    found = traced(PerFrame(), torch.rand(1, 3, 2, 48, 48))
    expected = symbolic(inner)
    got = {each.name: set(sources(found, each.name)) for each in found.layers}
    if name == "shufflenet_v2_x0_5":  # the halves of a split reach different layers: fx sees them as one
        assert all(got[f"inner.{n}"] <= {f"inner.{s}" for s in of} for n, of in expected.items())
    else:
        assert got == {f"inner.{n}": {f"inner.{s}" for s in of} for n, of in expected.items()}
    assert not found.notes
    (head,) = [each for each in found.layers if each.kind == "addmm" and each.feeding("site")]
    assert head.feeding("site")[0].kernels.tolist() == list(range(len(head.inputs)))  # what was pooled


# ── a network with everything, edges by hand ─────────────────────────────────────────────────────────────


class Mixed(nn.Module):
    """Groups, a reversed batch norm, concatenated branches, a shuffle, a shortcut, a flattened head."""

    def __init__(self, branch: Callable[[Tensor], bool] | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm3d(6)
        self.left = nn.Conv3d(6, 4, 1, groups=2)
        self.right = nn.Conv3d(6, 2, 3, padding=1)
        self.join = nn.Conv3d(6, 6, 1, bias=False)
        self.head = nn.Linear(6 * 2 * 2 * 2, 5)
        self.branch = branch
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([1.0, -1.0, 2.0, 0.0, 0.5, -2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        y = torch.cat([self.left(x), F.max_pool3d(self.right(x), 3, 1, 1)], dim=1)
        b, c, *rest = y.shape
        y = y.view(b, 2, c // 2, *rest).transpose(1, 2).reshape(b, c, *rest)  # shuffled in two groups
        if self.branch is not None and not self.branch(y):
            y = y * 0
        z = x + self.join(y)
        z = F.adaptive_avg_pool3d(z, 2).flatten(1)
        return self.head(z)


def test_groups_branches_shuffle_shortcut_and_flattened_head():
    found = traced(Mixed())
    stem = {(0, 0), (1, -2), (2, 2), (4, 4), (5, -6)}  # scale 0 lets nothing through
    assert sources(found, "left") == {"stem": stem}
    assert sources(found, "right") == {"stem": stem}
    # y is left 0 1 2 3, right 0 1; shuffled: left 0, left 3, left 1, right 0, left 2, right 1
    assert sources(found, "join") == {"left": {(0, 0), (1, 3), (2, 1), (4, 2)}, "right": {(3, 0), (5, 1)}}
    head = sources(found, "head")
    assert head["join"] == {(8 * c + i, c) for c in range(6) for i in range(8)}
    assert head["stem"] == {(8 * j + i, k) for j, k in stem for i in range(8)}
    assert layer(found, "left").groups == 2
    (site,) = layer(found, "head").feeding("site")
    assert set(zip(site.into.tolist(), site.kernels.tolist(), strict=True)) == head["join"]
    (end,) = found.ends
    assert end.source == ("layer", 4)
    assert end.into.tolist() == end.kernels.tolist() == [0, 1, 2, 3, 4]


def test_weights_and_inputs_are_the_true_ones():
    net = order_one(Mixed(), CLIP)
    seen: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            module.register_forward_pre_hook(lambda m, i, n=name: seen.__setitem__(n, i[0].clone()))
    found = traced(net)
    assert [each.name for each in found.layers] == ["stem", "left", "right", "join", "head"]
    for each in found.layers:
        weight = net.get_submodule(each.name).weight.detach()
        means = weight.mean(dim=(2, 3, 4)) if weight.ndim == 5 else weight
        torch.testing.assert_close(each.weights, means)
        x = seen[each.name]
        torch.testing.assert_close(each.inputs, x.mean(dim=(0, 2, 3, 4)) if x.ndim == 5 else x[0])
    evidence, channels = layer(found, "left").evidence(torch.tensor([1, 2]))
    assert channels.tolist() == [[0, 1, 2], [3, 4, 5]]
    mean = seen["left"].mean(dim=(0, 2, 3, 4))
    weight = net.left.weight.detach()[:, :, 0, 0, 0]
    torch.testing.assert_close(evidence, torch.stack([weight[1] * mean[:3], weight[2] * mean[3:]]))


def test_control_flow_that_depends_on_data():
    """Symbolic tracing gives up on it; the edges are those of the twin without it."""
    torch.manual_seed(0)
    plain = order_one(Mixed(), CLIP)
    choosing = Mixed(lambda y: bool(y.sum() > -1e9))
    choosing.load_state_dict(plain.state_dict())
    with pytest.raises(fx.proxy.TraceError):
        symbolic(choosing)
    one, two = traced(plain), traced(choosing)
    assert [each.name for each in one.layers] == [each.name for each in two.layers]
    for each in one.layers:
        assert sources(one, each.name) == sources(two, each.name)
        torch.testing.assert_close(layer(two, each.name).inputs, each.inputs)


class Functional(nn.Module):
    """Weights that are parameters, computed ones, a transposed convolution, and a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 1, 3, 3))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv3d(4, 4, 1))
        self.up = nn.ConvTranspose3d(4, 6, 2, stride=2, groups=2)
        self.again = nn.Conv3d(6, 6, 1)
        self.out = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv3d(x, self.kernel).relu()
        x = self.again(self.again(self.up(self.normed(x))))
        return F.linear(x.mean(dim=(2, 3, 4)), self.out)


def test_functional_computed_transposed_and_reused_weights():
    torch.manual_seed(0)
    net = Functional()
    found = traced(net)
    assert [each.name for each in found.layers] == [
        "kernel",
        "normed",
        "up",
        "again",
        "again (call 2)",
        "out",
    ]
    assert sources(found, "again (call 2)") == {"again": same(6)}
    assert sources(found, "normed") == {"kernel": same(4)}
    weight = net.up.weight.detach().mean(dim=(2, 3, 4))  # in, out / groups
    expected = torch.stack([weight[2 * (k // 3) : 2 * (k // 3) + 2, k % 3] for k in range(6)])
    torch.testing.assert_close(layer(found, "up").weights, expected)
    torch.testing.assert_close(layer(found, "normed").weights, net.normed.weight.detach()[..., 0, 0, 0])


# ── tubes, memory, and what is left behind ───────────────────────────────────────────────────────────────


def by_hook(net: nn.Module, name: str) -> Tensor:
    kept: list[Tensor] = []
    handle = net.get_submodule(name).register_forward_pre_hook(lambda m, i: kept.append(i[0].clone()))
    with torch.no_grad():
        net(CLIP)
    handle.remove()
    return kept[0]


def site_of(found: Trace, name: str) -> int:
    (edge,) = layer(found, name).feeding("site")
    return edge.source[1]


class Overwriting(nn.Module):
    """A block that adds its result into what its convolution read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv3d(3, 4, 3), nn.Conv3d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x += self.body(x)
        return self.head(x.mean(dim=(2, 3, 4)))


@pytest.mark.parametrize("kept", [2**30, 0])
def test_sums_of_channels_also_where_tensors_were_not_kept(kept: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracing, "KEPT_BYTES", kept)
    net = order_one(Overwriting(), CLIP)
    found = traced(net)
    body, head = site_of(found, "body"), site_of(found, "head")
    rows = torch.randn(2, 4)
    maps = found.maps({body: rows, head: rows[:1]})
    x = by_hook(net, "body")[0]
    for grid, row in zip(maps[body], rows, strict=True):
        torch.testing.assert_close(grid.values, torch.einsum("c,cthw->thw", row, x))
    after = x + net.body(x[None])[0].detach()
    torch.testing.assert_close(maps[head][0].values, torch.einsum("c,cthw->thw", rows[0], after))
    assert found.forwards == 2  # the body's input was overwritten, whatever was kept
    assert maps[body][0].t == (1, 2)
    assert maps[body][0].y == tuple(range(1, 15))


def test_a_convolution_after_the_pool_shows_what_was_pooled():
    class Pooled(Overwriting):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv3d(4, 3, 1)  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu() * 2
            return self.head(F.adaptive_avg_pool3d(x, (2, 1, 1))).mean(dim=(2, 3, 4))

    net = order_one(Pooled(), CLIP)
    found = traced(net)
    (grid,) = found.maps({site_of(found, "head"): torch.ones(1, 4)})[site_of(found, "head")]
    torch.testing.assert_close(grid.values, (net.stem(CLIP).relu() * 2)[0].sum(0).detach())


def test_the_latest_tensors_are_kept(monkeypatch: pytest.MonkeyPatch):
    net = order_one(Mixed(), CLIP)
    size = 6 * 4 * 16 * 16 * 4
    monkeypatch.setattr(tracing, "KEPT_BYTES", 2 * size)
    found = traced(net)
    found.maps({site_of(found, "join"): torch.ones(1, 6), site_of(found, "head"): torch.ones(1, 6)})
    assert found.forwards == 1
    found.maps({site_of(found, "left"): torch.ones(1, 6)})
    assert found.forwards == 2


def state(net: nn.Module) -> list[Any]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in net.modules()]
    values = [t.clone() for t in net.state_dict().values()]
    return [hooks, values, [p.requires_grad for p in net.parameters()], torch.is_grad_enabled()]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool):
    net = Mixed((lambda y: 1 / 0) if fails else None).train()  # type: ignore[arg-type, return-value]
    before, random = state(net), torch.get_rng_state()
    model = TorchModel(net, pack=lambda x: x)
    if fails:
        with pytest.raises(Exception, match="ZeroDivisionError"):
            trace(model, CLIP)
    else:
        trace(model, CLIP)
    torch.testing.assert_close(before, state(net))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())


def test_what_cannot_be_traced_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        script = torch.jit.trace(Mixed().eval(), CLIP)
    with pytest.raises(LayerError, match="TorchScript"):
        trace(TorchModel(script, pack=lambda x: x), CLIP)

    class NoLayer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(2, 3, 4))

    with pytest.raises(LayerError, match="followed back to a convolution"):
        traced(NoLayer())
    broken = Mixed()
    with torch.no_grad():
        broken.head.weight[0, 0] = float("nan")
    with pytest.raises(ScoreError, match="NaN"):
        traced(broken)


def test_the_bundled_network():
    model = bundled()
    found = trace(model, torch.rand(1, 3, 16, 64, 64))
    names = [*(f"blocks.{i}.0" for i in range(5)), "head"]
    assert [each.name for each in found.layers] == names
    for before, after in pairwise(names):
        ((source, pairs),) = sources(found, after).items()
        assert source == before
        scale = model.module.blocks[names.index(before)][1].weight.detach()
        assert pairs == {(k, k if scale[k] > 0 else -1 - k) for k in range(len(scale))}
    assert found.forwards == 1
