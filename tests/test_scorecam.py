"""Score-CAM: algorithm 1 of the paper channel by channel, a peer on a network it places alike, its cost."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from tests.conftest import order_one
from tests.perturbed import Box, clip
from tubelens.errors import LayerError, OptionError, ScoreError
from tubelens.methods.protocol import Scalable
from tubelens.methods.scorecam import ScoreCAM, extremes, read_features
from tubelens.model import TorchModel
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob

SIZE = (6, 18, 18)


class Net(nn.Module):
    """Cells tile the clip (kernel and stride 3 in space, 1 in time); one channel is off, one constant."""

    def __init__(self, channels: int = 7, relu: bool = True) -> None:
        super().__init__()
        self.body = nn.Conv3d(3, channels, (1, 3, 3), (1, 3, 3))
        self.act = nn.ReLU() if relu else nn.Identity()
        self.mix = nn.Conv3d(channels, 6, (3, 3, 3), 1, 1)
        self.fc = nn.Linear(6, 4)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        y = self.act(self.body(x))
        return self.fc(torch.tanh(self.mix(y)).mean(dim=(2, 3, 4)))


def network(channels: int = 7, relu: bool = True) -> TorchModel:
    net = order_one(Net(channels, relu), clip(SIZE).pixels[None])
    with torch.no_grad():
        net.body.bias[: channels - 2].sub_(0.5)
        net.body.bias[-1] = -50.0 if relu else 0.0  # off
        net.body.weight[-2] = 0.0  # constant
        net.body.bias[-2] = 1.5
        net.fc.weight.mul_(20)
    net.seen.clear()
    return TorchModel(net, pack=lambda x: x, layer="act", name="net")


def activations(model: TorchModel) -> np.ndarray:
    with torch.no_grad():
        return model.module.act(model.module.body(clip(SIZE).pixels[None]))[0].numpy()


def upsampled(a: np.ndarray) -> np.ndarray:
    """Cell i of a row looks at pixel 3 i + 1, held beyond the outermost cells; frames map one to one."""
    row = np.clip((np.arange(18) - 1) / 3, 0, 5)
    t, y, x = np.meshgrid(np.arange(6.0), row, row, indexing="ij")
    return map_coordinates(a.astype(np.float64), [t, y, x], order=1)


def slow(model: TorchModel, k: int) -> tuple[np.ndarray, list[int], list[float]]:
    """Algorithm 1: the signed map, the channels scored, and their logits."""
    a, x = activations(model), clip(SIZE).pixels
    chosen, logits = [], []
    for j in range(len(a)):
        m = upsampled(a[j])
        if m.max() - m.min() < 1e-9:
            continue
        h = torch.from_numpy((m - m.min()) / (m.max() - m.min())).float()
        with torch.no_grad():
            logits.append(float(model.module((x * h)[None])[0, k]))
        chosen.append(j)
    e = [np.exp(s) for s in logits]
    return sum(w / sum(e) * a[j] for w, j in zip(e, chosen, strict=True)), chosen, logits


@pytest.mark.parametrize("relu", [True, False])
def test_equals_algorithm_one(relu: bool):
    model = network(relu=relu)
    found = ScoreCAM()(model, clip(SIZE), [Logit(0), Logit(3)])
    free = ScoreCAM(signed=True)(model, clip(SIZE), [Logit(0), Logit(3)])
    for why, raw, k in zip(found, free, (0, 3), strict=True):
        expected, chosen, logits = slow(model, k)
        assert np.ptp(logits) > 0.3  # the softmax is not flat
        assert chosen == ([0, 1, 2, 3, 4] if relu else [0, 1, 2, 3, 4, 6])
        np.testing.assert_allclose(raw.grid, expected, atol=1e-5)
        np.testing.assert_allclose(why.grid, np.maximum(expected, 0), atol=1e-5)
        assert why.provenance.facts == {"channels": len(chosen)}
        assert why.provenance.layer == "act"
        np.testing.assert_allclose(why.upsample(order=1), upsampled(why.grid.numpy()), atol=1e-5)
    assert relu or float(free[0].grid.min()) < 0


def test_one_forward_and_one_a_channel():
    """The capture's forward also gives the intact score: `1 + C'` in all, whatever the number of targets."""
    model = network()
    (why, *_) = ScoreCAM()(model, clip(SIZE), [Logit(0), Prob(1), Contrast(0, 2)], Run(precision="fp32"))
    assert sum(map(len, model.module.seen)) == 1 + 5 == why.provenance.forwards
    assert ScoreCAM().passes(model, clip(SIZE)).forwards == 6
    assert ScoreCAM(channels=2).passes(model, clip(SIZE)).forwards == 3


def test_any_target_from_the_same_forwards():
    model = network()
    for target, why in zip(
        (Prob(1), Contrast(0, 2)),
        ScoreCAM(signed=True)(model, clip(SIZE), [Prob(1), Contrast(0, 2)]),
        strict=True,
    ):
        a = torch.from_numpy(activations(model))[:5]
        masks = torch.stack([torch.from_numpy(upsampled(x.numpy())).float() for x in a])
        low, high = masks.amin((1, 2, 3), keepdim=True), masks.amax((1, 2, 3), keepdim=True)
        with torch.no_grad():
            scores = model.module(((masks - low) / (high - low))[:, None] * clip(SIZE).pixels)
        weights = target(scores).softmax(0)
        torch.testing.assert_close(why.grid, torch.einsum("k,kthw->thw", weights, a), atol=1e-5, rtol=1e-4)


def test_equals_torchcam_where_cells_tile():
    """It scales before it upsamples, which is the same where a pixel lies on every cell's centre."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchcam.methods import ScoreCAM as Peer
    net = order_one(nn.Sequential(nn.Conv3d(3, 5, 3, 3), nn.ReLU(), Head()), clip((9, 18, 18)).pixels[None])
    video = clip((9, 18, 18))
    with torch.no_grad():
        net[0].bias.add_(1)  # no channel is off: it would be scored, and have a share of the softmax, there
        net[2].fc.weight.mul_(20)
    with Peer(net, "1", input_shape=(3, *video.size)) as peer:
        with torch.no_grad():
            out = net(video.pixels[None])
        weights = peer._get_weights(2, out)[0]
    with torch.no_grad():
        a = net[1](net[0](video.pixels[None]))[0]
    assert weights.std() > 0.01
    (why,) = ScoreCAM()(TorchModel(net, pack=lambda x: x, layer="1"), video, [Logit(2)])
    expected = torch.einsum("k,kthw->thw", weights[0], a).relu()
    torch.testing.assert_close(why.grid, expected, atol=1e-5, rtol=1e-4)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.fc = nn.Conv3d(5, 6, 3, 1, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.mix(x)).mean(dim=(2, 3, 4)))


def test_the_strongest_channels_only():
    model = network()
    a = torch.from_numpy(activations(model))
    means = a.mean(dim=(1, 2, 3))
    best = [k for k in means.argsort(descending=True).tolist() if k < 5][:2]
    (why,) = ScoreCAM(channels=2)(model, clip(SIZE), [Logit(1)])
    _, chosen, logits = slow(model, 1)
    e = np.exp([logits[chosen.index(k)] for k in best])
    expected = np.einsum("k,kthw->thw", e / e.sum(), a.numpy()[best])
    np.testing.assert_allclose(why.grid, expected, atol=1e-5)
    assert why.provenance.forwards == 3
    (all_,) = ScoreCAM(channels=99)(model, clip(SIZE), [Logit(1)])
    assert all_.provenance.forwards == 6


def test_out_of_time_is_the_channels_so_far():
    model = network(channels=40)
    (short,) = ScoreCAM()(model, clip(SIZE), [Logit(1)], Run(batch=4, seconds=1e-9, precision="fp32"))
    done = int(short.provenance.facts["channels"])
    assert done < 38
    (same,) = ScoreCAM(channels=done)(model, clip(SIZE), [Logit(1)])
    torch.testing.assert_close(short.grid, same.grid, atol=1e-5, rtol=1e-4)


def test_batches_change_nothing():
    model = network()
    (whole,) = ScoreCAM()(model, clip(SIZE), [Logit(1)])
    for batch in (1, 3, 64):
        (why,) = ScoreCAM()(model, clip(SIZE), [Logit(1)], Run(batch=batch))
        torch.testing.assert_close(why.grid, whole.grid, atol=1e-5, rtol=1e-4)


def test_extremes_are_found_a_few_channels_at_a_time(monkeypatch: pytest.MonkeyPatch):
    model = network()
    features = read_features(model, clip(SIZE), None, "a test")
    monkeypatch.setattr("tubelens.methods.scorecam.CHUNK", 2 * 6 * 18 * 18)
    low, high = extremes(features)
    for k, a in enumerate(features.activations):
        m = upsampled(a.numpy())
        assert float(low[k]) == pytest.approx(m.min(), abs=1e-5)
        assert float(high[k]) == pytest.approx(m.max(), abs=1e-5)


def test_fill_stands_behind_the_masks():
    model, x = network(), clip(SIZE).pixels
    (why,) = ScoreCAM(fill="mean", signed=True)(model, clip(SIZE), [Logit(0)])
    a = activations(model)[:5]
    logits = []
    for j in range(5):
        m = upsampled(a[j])
        h = torch.from_numpy((m - m.min()) / (m.max() - m.min())).float()
        with torch.no_grad():
            logits.append(
                float(model.module((x * h + (1 - h) * x.mean((1, 2, 3), keepdim=True))[None])[0, 0])
            )
    e = np.exp(logits)
    np.testing.assert_allclose(why.grid, np.einsum("k,kthw->thw", e / e.sum(), a), atol=1e-5)


def test_budget():
    model = network()
    assert isinstance(ScoreCAM(), Scalable)
    assert ScoreCAM(layer="body").afford(4, model, clip(SIZE)) == ScoreCAM(layer="body", channels=3)
    with pytest.raises(OptionError, match="at least 2 forwards, the budget is 1"):
        ScoreCAM().afford(1, model, clip(SIZE))


def test_faults_leave_the_network_alone():
    model = network()
    with pytest.raises(OptionError, match="channels >= 1"):
        ScoreCAM(channels=0)
    with pytest.raises(OptionError, match=r"no fill 'blak'"):
        ScoreCAM(fill="blak")
    with pytest.raises(LayerError, match="black box"):
        ScoreCAM()(Box(SIZE), clip(SIZE), [Logit(0)])
    with torch.no_grad():
        model.module.body.weight.zero_()
    with pytest.raises(LayerError, match="every channel of layer 'act' is constant"):
        ScoreCAM()(model, clip(SIZE), [Logit(0)])


def test_the_network_is_as_it_was_also_after_an_error_in_the_middle():
    class Breaks(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(F.dropout(x, 0.0, self.training))
            return y * float("nan") if len(self.seen) > 3 else y

    net = order_one(Breaks(), clip(SIZE).pixels[None])
    net.seen.clear()
    net.train()
    before, mode = [p.clone() for p in net.parameters()], torch.is_grad_enabled()
    with pytest.raises(ScoreError):
        ScoreCAM(layer="act")(
            TorchModel(net, pack=lambda x: x), clip(SIZE), [Logit(0)], Run(batch=1, precision="fp32")
        )
    assert net.training
    assert torch.is_grad_enabled() == mode
    assert not any(m._forward_hooks for m in net.modules())
    for p, old in zip(net.parameters(), before, strict=True):
        assert p.requires_grad
        assert p.grad is None
        assert torch.equal(p, old)


def test_repr_rebuilds():
    method = ScoreCAM("a.b", True, 12, "grey")
    assert eval(repr(method)) == method
