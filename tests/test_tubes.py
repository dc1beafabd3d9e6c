"""Saliency Tubes: the paper's formula done slowly, the sum that must be the logit, the refusal elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from tests.conftest import order_one
from tubelens.capture import capturing, layers, vjp
from tubelens.clip import Clip
from tubelens.errors import HeadError, LayerError, OptionError, ScoreError
from tubelens.methods.select import AtLeast, Soft, Strongest
from tubelens.methods.tubes import Tubes
from tubelens.model import TorchModel
from tubelens.target import Contrast, Logit, Prob


class Small(nn.Module):
    """Two convolutions, an in-place ReLU after the layer that is read, a pooled linear head."""

    def __init__(self, classes: int = 5, head: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 6, 3, (1, 2, 2), 1), nn.BatchNorm3d(6), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv3d(6, 8, 3, 2, 1), nn.ReLU(inplace=True))
        self.pool = head or (lambda x: x.mean(dim=(2, 3, 4)))
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.body(self.stem(x))))


def clip(frames: int = 8, size: int = 24, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip.from_array(rng.random((frames, size, size, 3), dtype=np.float32))


def model(net: nn.Module, layer: str | None = None, seed: int = 0, **fields: object) -> TorchModel:
    torch.manual_seed(seed)
    return TorchModel(net.eval(), pack=lambda x: x, layer=layer, name="net", **fields)  # type: ignore[arg-type]


@pytest.fixture
def small() -> TorchModel:
    torch.manual_seed(0)
    return model(order_one(Small(), clip().pixels[None]))


def activations(net: nn.Module, layer: str, pixels: Tensor) -> Tensor:
    """By the book: a hook that copies."""
    kept: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.append(o.detach().clone()))
    with torch.no_grad():
        net(pixels)
    handle.remove()
    return kept[-1]


def test_equals_the_papers_formula_feature_by_feature(small: TorchModel):
    """Slow: for each feature j add w_cj A_j, zoom it up with scipy, as the published script does."""
    a = activations(small.module, "body", clip().pixels[None])[0].numpy()
    weights = small.module.fc.weight.detach().numpy()
    for c in range(5):
        published = np.zeros(a.shape[1:])
        for j in range(8):
            for t in range(a.shape[1]):
                for y in range(a.shape[2]):
                    for x in range(a.shape[3]):
                        published[t, y, x] += weights[c, j] * a[j, t, y, x]
        (why,) = Tubes(parity="paper")(small, clip(), [Logit(c)])
        np.testing.assert_allclose(why.grid.numpy(), published, atol=1e-5)
        factors = [n / m for n, m in zip(why.size, published.shape, strict=True)]
        np.testing.assert_allclose(
            why.saliency.numpy(), scipy.ndimage.zoom(published, factors, order=3), atol=1e-5
        )
        (own,) = Tubes()(small, clip(), [Logit(c)])
        torch.testing.assert_close(own.grid * own.grid.numel(), why.grid)
        assert not torch.allclose(own.saliency * own.grid.numel(), why.saliency, atol=1e-2)  # placement


COMPLETE = [
    ("r3d_18", (16, 112, 112)),
    ("r3d_18", (9, 100, 120)),
    ("mc3_18", (8, 112, 112)),
    ("mc3_18", (13, 90, 90)),
    ("r2plus1d_18", (16, 112, 112)),
    ("r2plus1d_18", (20, 96, 96)),
    ("s3d", (16, 224, 224)),
    ("s3d", (32, 224, 240)),
]


@pytest.mark.parametrize(("name", "size"), COMPLETE)
def test_contributions_and_constant_are_the_logit(name: str, size: tuple[int, int, int]):
    frames, h, w = size
    rng = np.random.default_rng(1)
    video = Clip.from_array(rng.random((frames, h, w, 3), dtype=np.float32))
    net = order_one(get_model(name, weights=None, num_classes=7), video.pixels[None])
    layer = "features" if name == "s3d" else "layer4"
    with torch.no_grad():
        logits = net(video.pixels[None])[0]
    bias = (net.classifier[1] if name == "s3d" else net.fc).bias.detach()
    targets = [Logit(0), Logit(6), Contrast(2, 5)]
    found = Tubes()(TorchModel(net, pack=lambda x: x, layer=layer), video, targets)
    expected = [(logits[0], bias[0]), (logits[6], bias[6]), (logits[2] - logits[5], bias[2] - bias[5])]
    for why, (logit, constant) in zip(found, expected, strict=True):
        total = float(why.grid.double().sum())
        own = abs(float(logit - constant))
        assert own > 1e-3  # the test is empty where the head's constant is all there is
        assert abs(total + why.provenance.facts["constant"] - float(logit)) <= 1e-4 * max(1, own)
        assert why.provenance.facts["constant"] == pytest.approx(float(constant), abs=1e-3 * max(1, own))
        assert why.provenance.facts["completeness_error"] < 1e-3
        assert why.provenance.score == pytest.approx(float(logit), abs=1e-4 * max(1, own))


def test_sliding_pool_weighs_the_ends_half():
    """S3D averages sliding pairs of time steps: an edge step is in one pair, an inner one in two."""
    video = Clip.from_array(np.random.default_rng(2).random((32, 224, 224, 3), dtype=np.float32))
    net = order_one(get_model("s3d", weights=None, num_classes=3), video.pixels[None])
    with capturing(TorchModel(net, pack=lambda x: x, layer="features"), video.pixels[None]) as capture:
        gradient = capture.gradients([Logit(1)])[0, 0]
    share = gradient.abs().sum(dim=(0, 2, 3))
    torch.testing.assert_close(share / share[0], torch.tensor([1.0, 2.0, 2.0, 1.0]))


HEADS = {
    "max pool": lambda x: x.amax(dim=(2, 3, 4)),
    "squared": lambda x: (x**2).mean(dim=(2, 3, 4)),
    "attention": lambda x: (x * x.mean(1, keepdim=True).flatten(2).softmax(-1).view_as(x[:, :1])).sum(
        (2, 3, 4)
    ),
    "relu after shift": lambda x: F.relu(x - 0.3).mean(dim=(2, 3, 4)),
}


@pytest.mark.parametrize("head", HEADS)
def test_heads_that_are_not_affine_are_refused(head: str):
    net = order_one(Small(head=HEADS[head]), clip().pixels[None])
    with pytest.raises(HeadError, match=r"affine from layer 'body' on.*gradcam"):
        Tubes()(model(net, "body"), clip(), [Logit(0)])


def test_a_probability_is_not_affine_and_an_inner_layer_neither(small: TorchModel):
    with pytest.raises(HeadError, match="affine"):
        Tubes()(small, clip(), [Prob(1)])
    with pytest.raises(HeadError, match="affine"):
        Tubes(layer="stem")(small, clip(), [Logit(1)])


def test_in_place_relu_after_the_layer_does_not_rewrite_it(small: TorchModel):
    """`body.0` is followed by an in-place ReLU: what is captured is the convolution's own output."""
    with capturing(small, clip().pixels[None], "body.0") as capture:
        got = capture.activations
    torch.testing.assert_close(got, activations(small.module, "body.0", clip().pixels[None]))
    assert got.min() < 0


@pytest.mark.parametrize(
    ("pool", "name"),
    [
        (lambda x: F.avg_pool3d(x, (2, 6, 6), 1).mean(dim=(2, 3, 4)), "sliding"),
        (lambda x: x.flatten(2)[..., ::2].sum(-1), "uneven"),
    ],
)
def test_every_affine_head_is_taken(pool: Callable[[Tensor], Tensor], name: str):
    net = order_one(Small(head=pool), clip().pixels[None])
    (why,) = Tubes()(model(net, "body"), clip(), [Logit(2)])
    with torch.no_grad():
        logit = float(net(clip().pixels[None])[0, 2])
    constant = net.fc.bias[2].item()
    assert float(why.grid.sum()) + constant == pytest.approx(logit, rel=1e-4)


def test_a_head_that_remembers_its_batch_size_falls_back_to_two_forwards():
    class Fixed(Small):
        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            y = self.body(self.stem(x))
            return self.fc(
                y.reshape(n, 8, -1).mean(-1) if y.shape[0] == n else y.reshape(n, 8, 2, -1).mean(-1)
            )

    net = order_one(Fixed(), clip().pixels[None])
    (why,) = Tubes()(model(net, "body"), clip(), [Logit(3)])
    assert why.provenance.forwards == 2
    with torch.no_grad():
        logit = float(net(clip().pixels[None])[0, 3])
    assert (why.grid.sum() + net.fc.bias[3]).item() == pytest.approx(logit, rel=1e-4)


def test_a_backbone_under_its_own_no_grad_still_has_a_differentiable_head():
    class Frozen(Small):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.body(self.stem(x))
            return self.fc(self.pool(y))

    net = order_one(Frozen(), clip().pixels[None])
    (why,) = Tubes()(model(net, "body"), clip(), [Logit(0)])
    assert why.grid.abs().max() > 0


def test_terms_add_up_to_the_map(small: TorchModel):
    terms = Tubes().features(small, clip(), Logit(1))
    (why,) = Tubes()(small, clip(), [Logit(1)])
    assert terms.shape == (8, *why.grid.shape)
    torch.testing.assert_close(terms.sum(0), why.grid)
    a = activations(small.module, "body", clip().pixels[None])[0]
    published = small.module.fc.weight.detach()[1][:, None, None, None] * a
    torch.testing.assert_close(Tubes(parity="paper").features(small, clip(), Logit(1)), published)


def test_selecting_features(small: TorchModel):
    terms = Tubes().features(small, clip(), Logit(1))
    a = activations(small.module, "body", clip().pixels[None])[0].mean(dim=(1, 2, 3))
    w = small.module.fc.weight.detach()[1]

    def unit(x: Tensor) -> Tensor:
        return (x - x.min()) / (x.max() - x.min())

    cases = {
        Strongest(3): (w * a) >= (w * a).sort(descending=True).values[2],
        Strongest(2, by="activation"): a >= a.sort(descending=True).values[1],
        Strongest(99, by="weight"): torch.ones(8),
        AtLeast(0.6): unit(w) >= 0.6,
        AtLeast(0.4, by="activation"): unit(a) >= 0.4,
        Soft(0.5, slope=9.0): 1 / (1 + torch.exp(-9 * (unit(w) - 0.5))),
        Soft(0.2, by="contribution"): 1 / (1 + torch.exp(-20 * (unit(w * a) - 0.2))),
    }
    for select, kept in cases.items():
        (why,) = Tubes(select=select)(small, clip(), [Logit(1)])
        torch.testing.assert_close(why.grid, (terms * kept.float()[:, None, None, None]).sum(0))
    with pytest.raises(OptionError, match="k >= 1"):
        Tubes(select=Strongest(0))(small, clip(), [Logit(1)])


def test_one_pass_for_all_targets(small: TorchModel):
    calls: list[int] = []
    handle = small.module.fc.register_forward_hook(lambda m, i, o: calls.append(o.shape[0]))
    found = Tubes(layer="body")(small, clip(), [Logit(i) for i in range(5)])
    handle.remove()
    assert calls == [2]  # the clip and the probe, in one forward
    assert found[0].provenance.forwards == 1
    for i, why in enumerate(found):
        (alone,) = Tubes()(small, clip(), [Logit(i)])
        torch.testing.assert_close(alone.grid, why.grid)


@pytest.mark.parametrize("parity", [None, "paper"])
def test_more_targets_than_cells_give_the_same_maps(parity: str | None):
    """Cell by cell through the head, instead of a backward a target."""
    torch.manual_seed(0)
    net = order_one(Small(classes=150), clip().pixels[None])
    method = Tubes(layer="body", parity=parity)  # type: ignore[arg-type]
    many = method(model(net), clip(), [*(Logit(i) for i in range(150)), Contrast(3, 4)])
    assert many[0].provenance.backwards == 1
    for i in (0, 77, 149):
        (alone,) = method(model(net), clip(), [Logit(i)])
        torch.testing.assert_close(many[i].grid, alone.grid, atol=1e-5, rtol=1e-4)
        facts, own = many[i].provenance.facts, alone.provenance.facts
        assert facts["constant"] == pytest.approx(own["constant"], abs=1e-5)
    torch.testing.assert_close(many[150].grid, many[3].grid - many[4].grid, atol=1e-5, rtol=1e-4)
    with pytest.raises(HeadError, match="affine"):
        Tubes(layer="body")(
            model(order_one(Small(150, HEADS["squared"]), clip().pixels[None])),
            clip(),
            [Logit(i) for i in range(150)],
        )


def test_repr_rebuilds_the_method():
    for method in (Tubes(), Tubes(layer="a.b", select=AtLeast(0.5), parity="paper")):
        assert eval(repr(method)) == method


def test_layers_lists_candidates_once_and_marks_the_last(small: TorchModel):
    infos = layers(small, clip().pixels[None])
    assert [i.name for i in infos] == ["stem.0", "stem", "body.0", "body"] or [i.name for i in infos] == [
        "stem.0",
        "stem",
        "body",
    ]
    assert [i.name for i in infos if i.default] == ["body"]
    assert infos[-1].layout.centres["h"] == (0, 4, 8, 12, 16, 20)
    assert infos[-1].shape == (1, 8, 4, 6, 6)


def test_layer_faults(small: TorchModel):
    with pytest.raises(LayerError, match=r"no layer 'bodi' .did you mean 'body'"):
        Tubes(layer="bodi")(small, clip(), [Logit(0)])
    with pytest.raises(LayerError, match="no known place in time and space"):
        Tubes(layer="fc")(small, clip(), [Logit(0)])

    class Beside(Small):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Conv3d(3, 2, 1)
            self.aside = nn.Conv3d(6, 8, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.fc(self.pool(self.body(y)) + 0 * self.pool(self.aside(y)))

    net = order_one(Beside(), clip().pixels[None])
    with pytest.raises(LayerError, match="was not reached"):
        Tubes(layer="unused")(model(net), clip(), [Logit(0)])
    with pytest.raises(LayerError, match=r"gradient of Logit.index=0. is zero at layer 'aside'"):
        Tubes(layer="aside")(model(net), clip(), [Logit(0)])


def test_nan_is_an_error_that_names_the_model(small: TorchModel):
    with torch.no_grad():
        small.module.fc.weight[0, 0] = float("nan")
    with pytest.raises(ScoreError, match="net returned NaN or infinity"):
        Tubes()(small, clip(), [Logit(1)])


def test_vjp_falls_back_where_batching_fails():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x * 2

        @staticmethod
        def backward(ctx, g):  # type: ignore[no-untyped-def]
            return torch.from_numpy(g.numpy() * 2)  # leaves torch: cannot be batched

    leaf = torch.randn(3, requires_grad=True)
    weights = torch.randn(2, 3)
    torch.testing.assert_close(vjp(weights @ Odd.apply(leaf), leaf), 2 * weights)
