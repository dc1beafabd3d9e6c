"""Ablation-CAM: every feature removed in a forward of its own, against the head alone and the closed form."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import order_one
from tests.test_cam import Deep
from tests.test_tubes import Small, clip, model
from tests.test_untouched import assert_same, state
from tubelens.capture import capturing
from tubelens.errors import InputError, LayerError, OptionError
from tubelens.methods.ablationcam import AblationCAM
from tubelens.model import BlackBox, TorchModel
from tubelens.target import Contrast, Logit, Prob, Target


@pytest.fixture(scope="module")
def deep() -> TorchModel:
    torch.manual_seed(1)
    return model(order_one(Deep(), clip().pixels[None]), "mid")


@pytest.fixture(scope="module")
def small() -> TorchModel:
    torch.manual_seed(0)
    return model(order_one(Small(), clip().pixels[None]), "body")


def slow(net: nn.Module, layer: str, target: Target, keep: list[int] | None = None) -> np.ndarray:
    """The signed sum: the whole network once for every feature, that one zeroed by a hook."""
    held: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(lambda m, i, o: held.append(o.clone()))
    with torch.no_grad():
        y = target(net(clip().pixels[None])).item()
        handle.remove()
        a = held[0][0].double().numpy()
        out = np.zeros(a.shape[1:])
        for k in range(len(a)) if keep is None else keep:

            def silence(m: nn.Module, i: Any, o: Tensor, k: int = k) -> Tensor:
                o = o.clone()
                o[:, k] = 0
                return o

            handle = net.get_submodule(layer).register_forward_hook(silence)
            without = target(net(clip().pixels[None])).item()
            handle.remove()
            out += (y - without) / abs(y) * a[k]
    return out


TARGETS: list[Target] = [Logit(0), Logit(1), Logit(2), Prob(3), Contrast(2, 1)]


@pytest.mark.parametrize("layer", ["stem", "mid", "last"])
def test_the_head_alone_equals_a_forward_a_feature(deep: TorchModel, layer: str):
    found = AblationCAM(layer=layer, signed=True)(deep, clip(), TARGETS)
    plain = AblationCAM(layer=layer)(deep, clip(), TARGETS)
    assert {why.provenance.score > 0 for why in found} == {True, False}  # |y|, not y
    for target, why, positive in zip(TARGETS, found, plain, strict=True):
        want = slow(deep.module, layer, target)
        np.testing.assert_allclose(why.grid, want, atol=2e-5 * np.abs(want).max())
        np.testing.assert_allclose(positive.grid, np.maximum(want, 0), atol=2e-5 * np.abs(want).max())
    features = {"stem": 5, "mid": 6, "last": 7}[layer]
    assert why.provenance.notes == (f"The head ran {features} times with a feature removed.",)
    assert why.provenance.forwards == 2  # the clip's own with the probe, and one for the head's widened batch


def test_closed_form_on_an_affine_head(small: TorchModel):
    calls: list[int] = []
    handle = small.module.fc.register_forward_hook(lambda m, i, o: calls.append(len(o)))
    targets = [Logit(0), Logit(4), Contrast(2, 1)]
    found = AblationCAM(signed=True)(small, clip(), targets)
    handle.remove()
    assert calls == [2]  # the clip and the probe; no pass for a feature
    assert found[0].provenance.notes == ()
    for target, why in zip(targets, found, strict=True):
        want = slow(small.module, "body", target)
        np.testing.assert_allclose(why.grid, want, atol=1e-4 * np.abs(want).max())
    (not_affine,) = AblationCAM(signed=True)(small, clip(), [Prob(0)])
    want = slow(small.module, "body", Prob(0))
    np.testing.assert_allclose(not_affine.grid, want, atol=1e-4 * np.abs(want).max())
    assert not_affine.provenance.notes == ("The head ran 8 times with a feature removed.",)


def test_without_a_probe_the_head_is_asked(small: TorchModel):
    with capturing(small, clip().pixels[None]) as capture:
        (asked,) = AblationCAM(signed=True).from_capture(capture, clip(), [Logit(1)])
    (closed,) = AblationCAM(signed=True)(small, clip(), [Logit(1)])
    torch.testing.assert_close(asked.grid, closed.grid, atol=1e-5, rtol=1e-4)
    assert asked.provenance.notes
    assert not closed.provenance.notes


@pytest.mark.parametrize("fixture", ["small", "deep"])
def test_the_strongest_features_first(fixture: str, request: pytest.FixtureRequest):
    net: TorchModel = request.getfixturevalue(fixture)
    layer = net.layer or ""
    with capturing(net, clip().pixels[None]) as capture:
        means = capture.activations[0].mean(dim=(1, 2, 3))
    order = means.argsort(descending=True).tolist()
    for n in (1, 3, 99):
        (why,) = AblationCAM(channels=n, signed=True)(net, clip(), [Logit(1)])
        want = slow(net.module, layer, Logit(1), order[:n])
        np.testing.assert_allclose(why.grid, want, atol=1e-4 * np.abs(want).max())
    with pytest.raises(OptionError, match="channels must be at least 1, not 0"):
        AblationCAM(channels=0)(net, clip(), [Logit(1)])


def test_a_silent_feature_costs_nothing_and_all_silent_gives_zeros():
    class Silent(Deep):
        def __init__(self, all_of_it: bool) -> None:
            super().__init__()
            self.layer = nn.Identity()
            self.all_of_it = all_of_it

        def forward(self, x: Tensor) -> Tensor:
            y = self.mid(self.stem(x))
            y = self.layer(
                y * (0.0 if self.all_of_it else torch.tensor([1.0, 0, 1, 1, 0, 1])[:, None, None, None])
            )
            return self.fc(torch.tanh(self.last(y)).mean(dim=(2, 3, 4)))

    torch.manual_seed(0)
    net = model(order_one(Silent(False), clip().pixels[None]), "layer")
    (why,) = AblationCAM(signed=True)(net, clip(), [Logit(0)])
    assert why.provenance.notes == ("The head ran 4 times with a feature removed.",)
    want = slow(net.module, "layer", Logit(0))
    np.testing.assert_allclose(why.grid, want, atol=1e-4 * np.abs(want).max())
    net = model(order_one(Silent(True), clip().pixels[None]), "layer")
    with capturing(net, clip().pixels[None]) as capture:
        (why,) = AblationCAM().from_capture(capture, clip(), [Logit(0)])
    assert float(why.grid.abs().max()) == 0


@dataclass(frozen=True)
class Above:
    """Logit 0 above a constant."""

    constant: float
    classes: ClassVar[tuple[int, ...]] = (0,)

    def __call__(self, scores: Tensor, kind: str = "logits") -> Tensor:
        return scores[:, 0] - self.constant


def test_a_target_of_zero_divides_by_one(deep: TorchModel):
    (plain,) = AblationCAM(signed=True)(deep, clip(), [Above(0.0)])
    y = plain.provenance.score
    (zero,) = AblationCAM(signed=True)(deep, clip(), [Above(y)])
    assert zero.provenance.score == 0
    torch.testing.assert_close(zero.grid, plain.grid * abs(y), atol=1e-5, rtol=1e-3)


def test_results_do_not_depend_on_the_chunk(deep: TorchModel, monkeypatch: pytest.MonkeyPatch):
    (whole,) = AblationCAM(signed=True)(deep, clip(), [Logit(0)])
    monkeypatch.setattr("tubelens.head.MAX_ANSWER_BYTES", 4 * 2 * 864)  # two features of mid
    (parts,) = AblationCAM(signed=True)(deep, clip(), [Logit(0)])
    torch.testing.assert_close(whole.grid, parts.grid)
    assert parts.provenance.forwards == 4


def test_several_layers(deep: TorchModel):
    """Only the first is probed; the others ask the head."""
    (why,) = AblationCAM(layer=("last", "mid"), fuse="max")(deep, clip(), [Logit(2)])
    one, two = (AblationCAM(layer=n)(deep, clip(), [Logit(2)])[0].grid for n in ("last", "mid"))
    torch.testing.assert_close(why.grid, torch.maximum(one / one.max(), two / two.max()))


def test_nothing_is_left_on_the_model_also_after_an_error(deep: TorchModel):
    class Breaks(Deep):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if len(out) > 2:
                raise RuntimeError("too many")
            return out

    net = order_one(Breaks(), clip().pixels[None]).train()
    before = state(net)
    with pytest.raises(InputError, match="too many"):
        AblationCAM(layer="mid")(model_as_is(net), clip(), [Logit(0)])
    assert_same(before, state(net))
    net = order_one(Deep(), clip().pixels[None]).train()
    before = state(net)
    AblationCAM(layer="mid")(model_as_is(net), clip(), [Logit(0)])
    assert_same(before, state(net))


def model_as_is(net: nn.Module) -> TorchModel:
    return TorchModel(net, pack=lambda x: x)


def test_repr_and_black_boxes():
    made = AblationCAM(("a", "b"), 5, True, "max")
    assert eval(repr(made)) == made
    with pytest.raises(LayerError, match=r"AblationCAM needs a network.s layers"):
        AblationCAM()(BlackBox(lambda x: torch.zeros(len(x), 3)), clip(), [Logit(0)])


def test_pytorch_grad_cam_agrees_on_an_image():
    """It fails on clips. It silences a feature by its minimum: the same as zero after a ReLU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam import AblationCAM as Theirs
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        from tubelens.layout import Layout

        class Still(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
                self.next = nn.Conv2d(6, 7, 3, 1, 1)
                self.fc = nn.Linear(7, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(torch.relu(self.next(self.conv(x))).mean(dim=(2, 3)))

        torch.manual_seed(3)
        net = Still().eval()
        image = clip(frames=1, size=32)
        with torch.no_grad():
            index = int(net(image.pixels[None][:, :, 0]).argmax())
        cam = Theirs(net, [net.conv])
        theirs = cam(input_tensor=image.pixels[None][:, :, 0], targets=[ClassifierOutputTarget(index)])[0]
        net.zero_grad(set_to_none=True)
        folded = {"conv": Layout("(b t) c h w", {"t": 1})}
        still = TorchModel(net, pack=lambda x: x[:, :, 0], layer="conv", layouts=folded)
        (why,) = AblationCAM()(still, image, [Logit(index)])
        ours = why.upsample(size=(1, 32, 32), order=1)[0]
        assert np.corrcoef(ours.flatten(), theirs.flatten())[0, 1] > 0.95  # zoomed differently
