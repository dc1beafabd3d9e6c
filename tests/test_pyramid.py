"""Class feature pyramids: the published recursion done slowly, the rule by hand, what is shown of it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import order_one
from tubelens import tracing
from tubelens.clip import Clip
from tubelens.errors import LayerError, OptionError
from tubelens.layout import Grid
from tubelens.methods.pyramid import Pyramid, fused, score_weights
from tubelens.methods.pyramid_graph import unit
from tubelens.metrics.localisation import average_precision
from tubelens.model import TorchModel
from tubelens.planted import generate
from tubelens.target import Contrast, Logit, Prob
from tubelens.upsample import fractional_index, resample
from tubelens.zoo.bundled import bundled


def clip(frames: int = 4, size: int = 16, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip.from_array(rng.random((frames, size, size, 3), dtype=np.float32))


def wrap(net: nn.Module, **fields: Any) -> TorchModel:
    return TorchModel(net.eval(), pack=lambda x: x, name="net", **fields)


class Plain(nn.Module):
    """A chain of convolutions with batch norms, as in the paper."""

    def __init__(self, positive: bool = False) -> None:
        super().__init__()
        widths = [3, 5, 7, 6]
        self.convs = nn.ModuleList(nn.Conv3d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm3d(b) for b in widths[1:])
        self.fc = nn.Linear(6, 4)
        self.positive = positive

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.fc(x.mean(dim=(2, 3, 4)))


def plain(positive: bool = False, seed: int = 0) -> Plain:
    torch.manual_seed(seed)
    net = order_one(Plain(positive), clip().pixels[None], seed)
    assert isinstance(net, Plain)
    if positive:  # then every sum of evidence is positive, which the published division needs
        with torch.no_grad():
            for conv in net.convs:
                conv.weight.abs_()
    return net


def inputs(net: Plain) -> list[Tensor]:
    """What each convolution reads, then the last features: (c, t, h, w) each."""
    x, kept = clip().pixels[None], []
    with torch.no_grad():
        for conv, norm in zip(net.convs, net.norms, strict=True):
            kept.append(x[0])
            x = F.relu(norm(conv(x)))
    return [*kept, x[0]]


def minmax(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(v - low) / (high - low) for v in values]


# ── the published recursion ──────────────────────────────────────────────────────────────────────────────


def published(net: Plain, c: int, theta: float, depth: int) -> dict[str, Any]:
    """Kernel by kernel and channel by channel, as a tree."""
    features = inputs(net)

    def expand(level: int, k: int, left: int) -> dict[str, Any]:
        if left == 0 or level == 0:
            return {}
        weight = net.convs[level].weight.detach()
        s = [float(weight[k, j].mean()) * float(a.mean()) for j, a in enumerate(features[level])]
        total = sum(s)
        scaled = minmax([v / total for v in s])
        return {
            f"convs.{level - 1}:{j}": expand(level - 1, j, left - 1)
            for j, v in enumerate(scaled)
            if v >= theta
        }

    fc = net.fc.weight.detach()
    flat = minmax(fc.flatten().tolist())
    row = flat[c * fc.shape[1] : (c + 1) * fc.shape[1]]
    return {f"fc:{c}": {f"convs.2:{k}": expand(2, k, depth - 1) for k, v in enumerate(row) if v >= theta}}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("c", "theta"), [(0, 0.4), (1, 0.55), (3, 0.65)])
def test_parity_is_the_published_tree(c: int, theta: float, depth: int):
    net = plain(positive=True)
    method = Pyramid(theta=theta, depth=depth, parity="cfp")
    found = method.graph(wrap(net), clip(), Logit(c))
    tree = published(net, c, theta, depth)
    assert found.tree() == tree
    assert tree[f"fc:{c}"]
    features = inputs(net)
    for step in found.steps[1:]:  # activations are added without weights
        a = features[int(step.layer[-1]) + 1]
        assert step.explanation is not None
        torch.testing.assert_close(step.explanation.grid, a[step.kernels].sum(dim=0))


def test_parity_divides_by_the_sum_also_where_that_turns_the_order_round():
    net = plain()
    levels = {}
    for parity in (None, "cfp"):
        found = Pyramid(theta=0.5, parity=parity).graph(wrap(net), clip(), Logit(0))  # type: ignore[arg-type]
        levels[parity] = found
    assert levels["cfp"].tree() == published(net, 0, 0.5, 9)
    features = inputs(net)
    weight = net.convs[2].weight.detach().mean(dim=(2, 3, 4))
    evidence = weight * features[2].mean(dim=(1, 2, 3))
    (link,) = [e for e in levels["cfp"].links if e.reader == "convs.2"]
    turned = [k for k in link.pairs[:, 0].unique().tolist() if evidence[k].sum() < 0]
    assert turned  # the test is empty without such a kernel
    for k in turned:
        worst = int(evidence[k].argmin())
        assert [k, worst] in link.pairs.tolist()


# ── the signed rule, as sets ─────────────────────────────────────────────────────────────────────────────


def by_hand(net: Plain, row: Tensor, theta: float) -> list[dict[int, float]]:
    """Strength of each selected kernel, from the last convolution to the first: the best chain."""
    features = inputs(net)
    s = (row * features[3].mean(dim=(1, 2, 3))).tolist()
    strengths = [{j: v for j, v in enumerate(minmax(s)) if v >= theta}]
    for level in (2, 1):
        weight = net.convs[level].weight.detach()
        scale = net.norms[level].weight.detach()
        below: dict[int, float] = {}
        for k, strength in strengths[-1].items():
            sign = 1.0 if scale[k] >= 0 else -1.0
            s = [sign * float(weight[k, j].mean() * a.mean()) for j, a in enumerate(features[level])]
            for j, v in enumerate(minmax(s)):
                if v >= theta:
                    below[j] = max(below.get(j, 0.0), strength * v)
        strengths.append(below)
    return strengths


@pytest.mark.parametrize("theta", [0.3, 0.65, 1.0])
@pytest.mark.parametrize("target", [Logit(0), Logit(2), Contrast(1, 3), Prob(1)])
def test_sets_strengths_and_tubes_are_the_rule_done_by_hand(target: Any, theta: float):
    net = plain()
    with torch.no_grad():
        for norm in net.norms:
            norm.weight[::2] = -norm.weight[::2]
    w = net.fc.weight.detach()
    if isinstance(target, Logit):
        row = w[target.index]
    elif isinstance(target, Contrast):
        row = w[target.index] - w[target.other]
    else:
        with torch.no_grad():
            p = net(clip().pixels[None])[0].softmax(0)
        row = p[1] * (w[1] - p @ w)
    expected = by_hand(net, row, theta)
    found = Pyramid(theta=theta).graph(wrap(net), clip(), target)
    assert [step.layer for step in found.steps] == ["fc", "convs.2", "convs.1", "convs.0"]
    assert [step.back for step in found.steps] == [0, 1, 2, 3]
    assert [step.size for step in found.steps] == [4, 6, 7, 5]
    features = inputs(net)
    for step, strengths, a in zip(found.steps[1:], expected, (3, 2, 1), strict=True):
        assert step.kernels.tolist() == sorted(strengths)
        values = torch.tensor([strengths[k] for k in sorted(strengths)])
        torch.testing.assert_close(step.strengths, values)
        assert step.explanation is not None
        tube = torch.einsum("k,kthw->thw", values, features[a][step.kernels])
        torch.testing.assert_close(step.explanation.grid, tube)
        assert step.explanation.provenance.layer == step.layer
    assert found.explanations == [step.explanation for step in found.steps[1:]]


def test_links_join_the_sets():
    found = Pyramid(theta=0.5).graph(wrap(plain()), clip(), Logit(1))
    sets = {step.layer: set(step.kernels.tolist()) for step in found.steps}
    assert [(link.reader, link.source) for link in found.links] == [
        ("fc", "convs.2"),
        ("convs.2", "convs.1"),
        ("convs.1", "convs.0"),
    ]
    for link in found.links:
        assert set(link.pairs[:, 0].tolist()) == sets[link.reader]
        assert set(link.pairs[:, 1].tolist()) == sets[link.source]
        assert bool(((link.weights >= 0.5) & (link.weights <= 1)).all())
        assert float(link.weights.max()) == 1


def test_json_rebuilds_the_sets():
    found = Pyramid(theta=0.4).graph(wrap(plain(), labels=list("abcd")), clip(), Logit(1))
    read = json.loads(json.dumps(found.to_json()))
    assert read["label"] == "b"
    assert eval(read["method"]) == Pyramid(theta=0.4)
    assert eval(read["target"]) == Logit(1)
    # sets and strengths again, from the class and the links alone
    strengths: dict[str, dict[int, float]] = {read["layers"][0]["layer"]: {1: 1.0}}
    for link in read["links"]:
        own = strengths.setdefault(link["source"], {})
        for (k, j), weight in zip(link["pairs"], link["weights"], strict=True):
            own[j] = max(own.get(j, 0.0), strengths[link["reader"]][k] * weight)
    for entry, step in zip(read["layers"], found.steps, strict=True):
        assert sorted(strengths[entry["layer"]]) == entry["kernels"] == step.kernels.tolist()
        again = [strengths[entry["layer"]][k] for k in entry["kernels"]]
        np.testing.assert_allclose(entry["strengths"], again, atol=1e-5)
        assert (entry["back"], entry["size"]) == (step.back, step.size)
    assert [entry["grid"] for entry in read["layers"]] == [None, [4, 16, 16], [4, 16, 16], [4, 16, 16]]


def test_a_row_of_equal_values_is_selected_unless_it_is_zero():
    rows = torch.tensor([[3.0, 3, 3], [0, 0, 0], [-2, -2, -2], [-1, 0, 3]])
    torch.testing.assert_close(unit(rows), torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0.25, 1]]))
    torch.testing.assert_close(unit(torch.tensor([[5.0], [0.0]])), torch.tensor([[1.0], [0.0]]))


# ── the fused map ────────────────────────────────────────────────────────────────────────────────────────


class Shrinking(Plain):
    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool3d(F.relu(norm(conv(x))), (1, 2, 2))
        return self.fc(x.mean(dim=(2, 3, 4)))


@pytest.mark.parametrize("fuse", ["mean", "geometric"])
def test_the_map_fuses_the_tubes_where_their_cells_look(fuse: Any):
    torch.manual_seed(0)
    model = wrap(order_one(Shrinking(), clip().pixels[None]))
    found = Pyramid(fuse=fuse).graph(model, clip(), Logit(0))
    grids = [e.parts[0] for e in found.explanations]
    assert [g.values.shape[1] for g in grids] == [2, 4, 8]
    finest = grids[-1]
    placed = []
    for g in grids:
        axes = zip((finest.t, finest.y, finest.x), (g.t, g.y, g.x), strict=True)
        placed.append(resample(g.values, tuple(fractional_index(a, b) for a, b in axes), 1) / g.values.max())
    whole = torch.stack(placed)
    expected = whole.mean(0) if fuse == "mean" else whole.clamp_min(0).prod(0) ** (1 / 3)
    torch.testing.assert_close(found.explanation.grid, expected)
    assert found.explanation.parts[0].y == finest.y
    (called,) = Pyramid(fuse=fuse)(model, clip(), [Logit(0)])
    torch.testing.assert_close(called.grid, found.explanation.grid)
    assert called.provenance.forwards == 1
    assert called.provenance.backwards == 0
    assert called.provenance.facts["layers"] == 4
    assert called.provenance.facts["kernels"] == sum(len(step.kernels) for step in found.steps)
    (alone,) = Pyramid(layer="convs.1")(model, clip(), [Logit(0)])
    torch.testing.assert_close(alone.grid, grids[1].values)
    assert alone.provenance.layer == "convs.1"


def test_fusing_maps_that_are_flat_or_negative():
    places: Any = ((0.0,), (0.0, 1.0), (0.0,))
    grids = [Grid(torch.tensor(v).view(1, 2, 1), *places, (0, 1)) for v in ([1.0, 2.0], [-1.0, -3.0])]
    torch.testing.assert_close(fused(grids, "mean").values.flatten(), torch.tensor([0.25, 0.5]))
    assert fused(grids, "geometric").values.flatten().tolist() == [0, 0]
    both = [Grid(torch.tensor(v).view(1, 2, 1), *places, (0, 1)) for v in ([1.0, -1.0], [2.0, -1.0])]
    assert fused(both, "geometric").values.flatten().tolist() == [1, 0]  # two wrongs make no right


def test_several_targets_from_one_forward(monkeypatch: pytest.MonkeyPatch):
    net = plain()
    calls: list[int] = []
    net.fc.register_forward_hook(lambda m, i, o: calls.append(1))
    targets = [Logit(0), Logit(3), Contrast(1, 2)]
    found = Pyramid()(wrap(net), clip(), targets)
    assert len(calls) == 1
    for e, target in zip(found, targets, strict=True):
        (alone,) = Pyramid()(wrap(net), clip(), [target])
        torch.testing.assert_close(alone.grid, e.grid)
    monkeypatch.setattr(tracing, "KEPT_BYTES", 0)
    again = Pyramid()(wrap(net), clip(), targets)
    assert [e.provenance.forwards for e in again] == [2, 2, 2]
    for one, two in zip(found, again, strict=True):
        torch.testing.assert_close(one.grid, two.grid)


@pytest.mark.parametrize("kind", ["logits", "probs", "sigmoid"])
def test_weights_of_the_scores(kind: Any):
    """The target's slope over the logits, by differences."""
    z = torch.tensor([0.3, -1.0, 0.7], dtype=torch.double)
    given = {"logits": lambda v: v, "probs": lambda v: v.softmax(-1), "sigmoid": torch.sigmoid}[kind]
    for target in (Logit(2), Contrast(0, 1), Prob(1)):
        expected = []
        for i in range(3):
            step = torch.zeros(3, dtype=torch.double)
            step[i] = 1e-5
            up, down = (float(target(given((z + s)[None]), kind)) for s in (step, -step))
            expected.append((up - down) / 2e-5)
        got = score_weights(target, given(z[None]), kind)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.double), atol=1e-6, rtol=1e-5)


# ── options and errors ───────────────────────────────────────────────────────────────────────────────────


def test_repr_rebuilds_the_method():
    for method in (Pyramid(), Pyramid(0.5, 3, "a.b", "geometric", "cfp")):
        assert eval(repr(method)) == method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"theta": 0}, "theta must be above 0 and at most 1, not 0"),
        ({"theta": 1.2}, "theta must be above 0"),
        ({"depth": 0}, "depth must be at least 1, not 0"),
        ({"fuse": "sum"}, "'sum'"),
        ({"parity": "paper"}, "'paper'"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str):
    with pytest.raises(
        (OptionError, TypeError), match=re.escape(message)
    ):  # or the checker of types is first
        Pyramid(**options)


def test_what_cannot_be_shown():
    model = wrap(plain())
    with pytest.raises(OptionError, match=r"layer 'convs.9' is not among those selected: convs.2, convs.1"):
        Pyramid(layer="convs.9")(model, clip(), [Logit(0)])
    with pytest.raises(OptionError, match="for one class, not for Contrast"):
        Pyramid(parity="cfp")(model, clip(), [Contrast(0, 1)])
    with pytest.raises(OptionError, match="more than 3 entries"):
        Pyramid(theta=0.1).graph(model, clip(), Logit(0)).tree(limit=3)
    with pytest.raises(
        OptionError, match=r"layer 'x' is not in the pyramid of 'class 0' .in it: fc, convs.2"
    ):
        Pyramid().graph(model, clip(), Logit(0)).step("x")

    class Dead(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 0) * 0 + self.fc(torch.zeros(1, 6))

    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mean(dim=(2, 3, 4)))

    with pytest.raises(OptionError, match="no layer with time and space was selected"):
        Pyramid()(wrap(Vector()), clip(), [Logit(0)])
    with pytest.raises(LayerError, match="followed back"):
        Pyramid()(wrap(nn.Flatten()), Clip.from_array(np.zeros((1, 1, 2, 3), np.float32)), [Logit(0)])


# ── does it find what is known to be there ───────────────────────────────────────────────────────────────


def test_planted_evidence():
    """Measured over 20 clips: average precision .90 (centre prior .07)."""
    model, found = bundled(), []
    for seed in range(3_500_000, 3_500_006):
        planted = generate(seed)
        (why,) = Pyramid()(model, planted.clip(), [Logit(planted.label)])
        found.append(average_precision(why.saliency, planted.truth))
    assert np.mean(found) > 0.8
