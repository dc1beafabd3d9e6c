"""Guided backpropagation layer by layer by hand; guided Grad-CAM and the gate as products."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import order_one
from tests.test_gradients import spoilt
from tests.test_pixels import TARGETS, by_hand, pack, wrapped
from tests.test_tubes import Small, clip
from tests.test_untouched import Counting, assert_same, state
from tubelens.capture import capturing
from tubelens.errors import LayerError, OptionError
from tubelens.methods.gradients import InputXGradient, Saliency
from tubelens.methods.guided import Gated, GuidedBackprop, GuidedGradCAM
from tubelens.methods.protocol import Method
from tubelens.methods.tubes import Tubes
from tubelens.model import BlackBox, TorchModel
from tubelens.relu import Relus
from tubelens.target import Logit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import captum.attr

CLIP = clip(4, 16)
METHODS = [GuidedBackprop(), GuidedGradCAM(layer="body"), Gated(layer="body")]


class Plain(nn.Module):
    """Two convolutions; `relu` says how ReLU is written."""

    def __init__(self, relu: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 5, 3, 1, 1), nn.Conv3d(5, 6, 3, 1, 1)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.fc = nn.Linear(6, 5)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.relu, self.relu) if self.relu else (self.act1, self.act2)
        return self.fc(second(self.b(first(self.a(x)))).mean(dim=(2, 3, 4)))


def ignoring_the_result(x: Tensor) -> Tensor:
    x.relu_()
    return x


INPLACE = nn.ReLU(inplace=True)
WRITTEN: dict[str, Callable[[Tensor], Tensor] | None] = {
    "module": None,
    "in-place module": INPLACE,
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu in place, by position": lambda x: F.relu(x, True),
    "F.relu by name": lambda x: F.relu(input=x),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu by name": lambda x: torch.relu(input=x),
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "method in place, result ignored": ignoring_the_result,
}


def plain(relu: Callable[[Tensor], Tensor] | None = None) -> TorchModel:
    return wrapped(order_one(Plain(relu), pack(CLIP.pixels[None])))


def guided_by_hand(net: Plain, pixels: Tensor, k: int) -> Tensor:
    """Section 3.4, layer by layer: `R_l = 1[f_l > 0] 1[R_(l+1) > 0] R_(l+1)` at each ReLU."""
    with torch.no_grad():
        f1 = F.relu(net.a(pack(pixels[None])))
        f2 = F.relu(net.b(f1))
        r = (net.fc.weight[k] / f2[0, 0].numel())[None, :, None, None, None].expand_as(f2)
        r = (f2 > 0) * (r > 0) * r
        r = F.conv_transpose3d(r, net.b.weight, padding=1)
        r = (f1 > 0) * (r > 0) * r
        return F.conv_transpose3d(r, net.a.weight, padding=1)[0] / 0.3


@pytest.mark.parametrize("written", WRITTEN)
def test_guided_backprop_layer_by_layer(written: str):
    model = plain(WRITTEN[written])
    for k in (0, 3):
        expected = guided_by_hand(model.module, CLIP.pixels, k)
        got = GuidedBackprop().per_band(model, CLIP, [Logit(k)])[0]
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)
        assert not torch.allclose(got, by_hand(model.module, CLIP.pixels[None], Logit(k))[0], atol=1e-4)
        (why,) = GuidedBackprop()(model, CLIP, [Logit(k)])
        torch.testing.assert_close(why.grid, expected.abs().amax(0), atol=1e-6, rtol=1e-4)
        (summed,) = GuidedBackprop("sum")(model, CLIP, [Logit(k)])
        torch.testing.assert_close(summed.grid, expected.sum(0), atol=1e-5, rtol=1e-4)


def test_guided_backprop_equals_captum():
    """On modules that are not in place, which is what captum asks for."""
    model = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own hooks
        reference = captum.attr.GuidedBackprop(model.module)
        x = pack(CLIP.pixels[None]).requires_grad_()
        expected = reference.attribute(x, target=2)[0].detach() / 0.3
    got = GuidedBackprop().per_band(model, CLIP, [Logit(2)])[0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_the_forward_is_the_same_and_the_switch_is_read_in_the_backward():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    above = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    for in_place in (False, True):
        leaf = x.clone().requires_grad_()
        with Relus() as relus:
            given = leaf.clone()
            y = F.relu(given, inplace=in_place)
            F.gelu(leaf)
        assert relus.met == 1
        assert torch.equal(y, x.clamp_min(0))
        assert (given is y) == in_place
        (true,) = torch.autograd.grad(y, leaf, above, retain_graph=True)
        assert torch.equal(true, above * (x > 0))
        relus.guided = True
        (guided,) = torch.autograd.grad(y, leaf, above)
        assert torch.equal(guided, above * (x > 0) * (above > 0))


def test_other_activations_keep_their_gradient():
    net = nn.Sequential(
        nn.Conv3d(3, 4, 3), nn.GELU(), nn.Conv3d(4, 4, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1)
    )
    model = wrapped(order_one(nn.Sequential(*net, nn.Flatten(), nn.Linear(4, 5)), pack(CLIP.pixels[None])))
    got = GuidedBackprop().per_band(model, CLIP, [Logit(1)])[0]
    x = pack(CLIP.pixels[None]).requires_grad_()
    before = model.module[2](model.module[1](model.module[0](x)))
    with torch.no_grad():
        r = (model.module[6].weight[1] / before[0, 0].numel())[None, :, None, None, None]
        r = (before > 0) * r.clamp_min(0)
    (expected,) = torch.autograd.grad(before, x, r)
    torch.testing.assert_close(got, expected[0] / 0.3, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", [GuidedBackprop(), GuidedGradCAM(layer="1")])
def test_a_network_without_relus_is_refused(method: Method):
    net = nn.Sequential(nn.Conv3d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(LayerError, match=r"no ReLU was met in the forward of net.*use saliency"):
        method(wrapped(net), CLIP, [Logit(0)])


# ── gates ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small() -> TorchModel:
    return wrapped(order_one(Small(), pack(clip().pixels[None])))


def linear(grid: Any) -> Tensor:
    """A map between the centres where its cells look, linearly, one voxel at a time."""

    def read(place: float, centres: tuple[float, ...]) -> list[tuple[int, float]]:
        place = min(max(place, centres[0]), centres[-1])
        for i in range(len(centres) - 1):
            if centres[i] <= place <= centres[i + 1]:
                share = (place - centres[i]) / (centres[i + 1] - centres[i])
                return [(i, 1 - share), (i + 1, share)]
        return [(0, 1.0)]

    out = torch.zeros(CLIP.size)
    for t in range(CLIP.size[0]):
        for y in range(CLIP.size[1]):
            for x in range(CLIP.size[2]):
                for i, a in read(t, grid.t):
                    for j, b in read(y, grid.y):
                        for k, c in read(x, grid.x):
                            out[t, y, x] += a * b * c * float(grid.values[i, j, k])
    return out


def factors(model: TorchModel, layer: str, target: Any, kind: str) -> Tensor:
    """The layer's map over the voxels, from a capture."""
    with capturing(model, CLIP.pixels[None], layer) as capture:
        g, a = capture.gradients([target])[0, 0], capture.activations[0]
        terms = g * a if kind == "cell by cell" else g.mean(dim=(1, 2, 3), keepdim=True) * a
        return linear(capture.grid(terms.sum(dim=0).clamp_min(0)))


@pytest.mark.parametrize("layer", ["body", "stem"])
def test_guided_gradcam_is_the_product(small: TorchModel, layer: str):
    for bands in ("max", "sum"):
        found = GuidedGradCAM(layer, bands)(small, CLIP, TARGETS)  # type: ignore[arg-type]
        guided = GuidedBackprop(bands)(small, CLIP, TARGETS)  # type: ignore[arg-type]
        for why, sharp, target in zip(found, guided, TARGETS, strict=True):
            cam = factors(small, layer, target, "pooled")
            torch.testing.assert_close(why.grid, sharp.grid * cam, atol=1e-5, rtol=1e-4)
            record = why.provenance
            assert (record.layer, record.forwards, record.backwards) == (layer, 1, 6)
    assert not torch.allclose(
        factors(small, "stem", TARGETS[0], "pooled"), factors(small, "stem", TARGETS[0], "cell by cell")
    )


@pytest.mark.parametrize("layer", ["body", "stem"])
@pytest.mark.parametrize("baseline", ["mean", "black"])
def test_gated_is_the_product(small: TorchModel, layer: str, baseline: str):
    found = Gated(layer, baseline)(small, CLIP, TARGETS)
    products = InputXGradient("abs", baseline)(small, CLIP, TARGETS)
    for why, product, target in zip(found, products, TARGETS, strict=True):
        gate = factors(small, layer, target, "cell by cell")
        with capturing(small, CLIP.pixels[None], layer) as capture:
            peak = float((capture.gradients([target])[0, 0] * capture.activations[0]).sum(0).max())
        gate = gate / peak
        torch.testing.assert_close(why.grid, product.grid * gate, atol=1e-5, rtol=1e-4)
        record = why.provenance
        assert (record.layer, record.forwards, record.backwards, record.notes) == (layer, 1, 3, ())
        open_voxels = gate > 1 - 1e-6
        assert open_voxels.any()  # where the gate is 1 the map is input times gradient
        torch.testing.assert_close(why.grid[open_voxels], product.grid[open_voxels], atol=1e-6, rtol=1e-4)


def test_the_gate_is_the_positive_part_of_the_tubes(small: TorchModel):
    (tubes,) = Tubes(layer="body")(small, CLIP, [Logit(1)])
    positive = tubes.upsample(order=1) > 0
    (why,) = Gated(layer="body")(small, CLIP, [Logit(1)])
    assert not bool((why.grid[tubes.upsample(order=0) < 0] > 0).all())
    assert (why.grid >= 0).all()
    assert (why.grid > 0)[positive].float().mean() > 0.99


def test_a_target_that_nothing_positive_reaches_is_told():
    net = order_one(Small(), pack(CLIP.pixels[None]))
    with torch.no_grad():
        net.fc.weight[1] = -net.fc.weight[1].abs()
    blocked, other = GuidedBackprop()(wrapped(net), CLIP, [Logit(1), Logit(2)])
    assert not blocked.grid.any()
    assert blocked.provenance.notes == (
        "no positive gradient comes through the ReLUs for this target, and the map is zero",
    )
    assert other.grid.any()
    assert other.provenance.notes == ()


def test_one_forward_serves_both_factors(small: TorchModel):
    for method, calls in ((GuidedGradCAM("body"), [1]), (Gated("body"), [1]), (Gated(), [1, 1])):
        seen: list[int] = []
        handle = small.module.fc.register_forward_hook(lambda m, i, o, seen=seen: seen.append(len(o)))
        (why,) = method(small, CLIP, [Logit(1)])
        handle.remove()
        assert seen == calls  # without a layer a dry run looks for one
        assert why.provenance.forwards == len(calls)
        assert why.provenance.layer == "body"


def test_a_map_that_is_nowhere_positive_is_told():
    net = order_one(Small(), pack(CLIP.pixels[None]))
    with torch.no_grad():
        net.fc.weight[1] = -net.fc.weight[1].abs()
    model = wrapped(net, layer="body")
    for method in (Gated(), GuidedGradCAM()):
        against, other = method(model, CLIP, [Logit(1), Logit(2)])
        assert not against.grid.any()
        assert other.grid.any()
        (note,) = against.provenance.notes
        assert note.startswith("the layer's map is nowhere positive")
        assert other.provenance.notes == ()


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────────


def test_several_targets_are_each_as_alone(small: TorchModel):
    for method in METHODS:
        for target, why in zip(TARGETS, method(small, CLIP, TARGETS), strict=True):
            (alone,) = method(small, CLIP, [target])
            torch.testing.assert_close(alone.grid, why.grid, atol=1e-6, rtol=1e-5)


def test_guided_is_not_the_gradient(small: TorchModel):
    (guided,) = GuidedBackprop()(small, CLIP, [Logit(1)])
    (true,) = Saliency()(small, CLIP, [Logit(1)])
    assert not torch.allclose(guided.grid, true.grid, atol=1e-4)
    assert guided.provenance.backwards == 1


def test_reprs_rebuild_and_options_are_checked():
    for method in (*METHODS, GuidedBackprop("abs"), GuidedGradCAM("a.b", "sum"), Gated("x", "grey")):
        assert eval(repr(method)) == method
        assert isinstance(method, Method)
        assert (method.needs, method.explains) == ("gradients", Logit)
    with pytest.raises(OptionError, match="no fill 'blak'"):
        Gated(baseline="blak")
    for method in (GuidedBackprop(), GuidedGradCAM()):
        with pytest.raises(OptionError, match="bands must be"):
            spoilt(method, bands="mean").__post_init__()


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_as_it_was(method: Method):
    net = Counting().train()
    before = state(net)
    method(TorchModel(net, pack=pack), CLIP, TARGETS)
    with pytest.raises(Exception, match="out of range"):
        method(TorchModel(net, pack=pack), CLIP, [Logit(99)])
    assert_same(before, state(net))
    with pytest.raises(LayerError, match="served is a black box"):
        method(BlackBox(lambda x: x.mean(dim=(2, 3, 4)), name="served"), CLIP, [Logit(0)])
