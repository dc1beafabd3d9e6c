"""SIDU: the formula mask by mask, with empty and repeated masks counted; the published variant; its cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from tests.conftest import order_one
from tests.perturbed import Box, clip
from tubelens.errors import LayerError, OptionError, ScoreError
from tubelens.methods.protocol import Scalable
from tubelens.methods.sidu import SIDU, uniqueness
from tubelens.model import TorchModel
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob

SIZE = (6, 16, 16)


class Net(nn.Module):
    """Kernel and stride 4 in space, 2 in time; of ten channels two are off and two pairs are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv3d(3, 10, (2, 4, 4), (2, 4, 4))
        self.mix, self.fc = nn.Conv3d(10, 6, 3, 1, 1), nn.Linear(6, 4)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.fc(torch.tanh(self.mix(self.body(x).relu())).mean(dim=(2, 3, 4)))


def network(scale: float = 8.0) -> TorchModel:
    net = order_one(Net(), clip(SIZE).pixels[None])
    with torch.no_grad():
        net.body.weight.mul_(4)
        net.body.bias[:] = 0.3 - net.body(clip(SIZE).pixels[None]).mean(dim=(0, 2, 3, 4)) + net.body.bias
        net.body.bias[[3, 8]] = -90.0
        net.body.weight[5], net.body.bias[5] = net.body.weight[1], net.body.bias[1]
        net.body.weight[9], net.body.bias[9] = net.body.weight[2], net.body.bias[2]
        net.fc.weight.mul_(scale)
    net.seen.clear()
    return TorchModel(net, pack=lambda x: x, layer="body", name="net")


def activations(model: TorchModel) -> np.ndarray:
    with torch.no_grad():
        return model.module.body(clip(SIZE).pixels[None])[0].numpy()


def upsampled(a: np.ndarray, ends: bool) -> np.ndarray:
    """Where cells look: cell i of total stride s is centred at `s i + (s - 1) / 2`; or corner to corner."""
    axes = []
    for n, cells in zip(SIZE, a.shape, strict=True):
        s = n / cells
        at = np.arange(n) * (cells - 1) / (n - 1) if ends else (np.arange(n) - (s - 1) / 2) / s
        axes.append(np.clip(at, 0, cells - 1))
    return map_coordinates(a.astype(np.float64), np.meshgrid(*axes, indexing="ij"), order=1)


def slow(model: TorchModel, k: int, logits: bool, ends: bool, tau: float, channels: list[int]) -> np.ndarray:
    """Every channel scored, the empty ones and the repeated ones too."""
    x = clip(SIZE).pixels
    masks = [upsampled((activations(model)[j] > tau).astype(float), ends) for j in channels]
    batch = torch.stack([x, *(x * torch.from_numpy(m).float() for m in masks)])
    with torch.no_grad():
        scores = model.module(batch).double()
    f = (scores if logits else scores.softmax(1)).numpy()
    sd = [math.sqrt(math.exp(-((f[0, k] - row[k]) ** 2) / 0.25**2)) for row in f[1:]]
    u = np.array([sum(np.linalg.norm(row - other) for other in f[1:]) for row in f[1:]])
    u = (u - u.min()) / (u.max() - u.min())
    n = len(channels)
    return sum(sd[i] * u[i] * masks[i] for i in range(n)) / (n * 0.5)


ALL = list(range(10))


@pytest.mark.parametrize("tau", [0.5, 0.1])
def test_equals_the_slow_formula(tau: float):
    model = network()
    found = SIDU(threshold=tau)(model, clip(SIZE), [Prob(0), Prob(3)])
    for why, k in zip(found, (0, 3), strict=True):
        expected = slow(model, k, logits=False, ends=False, tau=tau, channels=ALL)
        assert expected.std() > 0.01
        np.testing.assert_allclose(why.grid, expected, atol=1e-5)
        np.testing.assert_allclose(why.saliency, expected, atol=1e-5)
        assert why.provenance.facts == {"channels": 10, "masks": 7}
        assert why.provenance.layer == "body"
    assert found[0].target == Prob(0)


def test_parity_is_the_published_formula():
    """Logits, corner to corner, black; asked for a probability it explains the logit, and records it so."""
    model = network(scale=0.5)
    found = SIDU(parity="icpr2022", fill="mean")(model, clip(SIZE), [Prob(0), Logit(3)])
    for why, k in zip(found, (0, 3), strict=True):
        expected = slow(model, k, logits=True, ends=True, tau=0.5, channels=ALL)
        assert expected.std() > 0.01
        np.testing.assert_allclose(why.grid, expected, atol=1e-5)
        assert why.target == Logit(k)
    (own,) = SIDU()(model, clip(SIZE), [Prob(0)])
    assert (own.grid - found[0].grid).abs().max() > 0.01


def test_a_target_is_compared_in_its_own_units():
    model = network(scale=0.3)
    (why,) = SIDU()(model, clip(SIZE), [Contrast(0, 2)])
    x = clip(SIZE).pixels
    masks = [upsampled((activations(model)[j] > 0.5).astype(float), False) for j in ALL]
    with torch.no_grad():
        z = model.module(torch.stack([x, *(x * torch.from_numpy(m).float() for m in masks)])).double()
    gap = (z[:, 0] - z[:, 2]).numpy()
    p = z.softmax(1)[1:]
    u = torch.stack([(p - row).norm(dim=1).sum() for row in p]).numpy()
    u = (u - u.min()) / (u.max() - u.min())
    weights = np.exp(-((gap[1:] - gap[0]) ** 2) / (2 * 0.25**2)) * u
    np.testing.assert_allclose(
        why.grid, sum(w * m for w, m in zip(weights, masks, strict=True)) / 5, atol=1e-5
    )


def test_one_forward_and_one_a_different_mask():
    """Ten channels, of which two are never on (one black clip) and two are repeated: seven masks."""
    model = network()
    (why, _) = SIDU()(model, clip(SIZE), [Prob(0), Prob(1)], Run(precision="fp32"))
    assert sum(map(len, model.module.seen)) == 1 + 7 == why.provenance.forwards
    assert SIDU().passes(model, clip(SIZE)).forwards == 8


def test_the_strongest_channels_only():
    model = network()
    best = activations(model).mean(axis=(1, 2, 3)).argsort()[::-1][:4].tolist()
    (why,) = SIDU(channels=4)(model, clip(SIZE), [Prob(1)])
    expected = slow(model, 1, logits=False, ends=False, tau=0.5, channels=best)
    np.testing.assert_allclose(why.grid, expected, atol=1e-5)
    assert why.provenance.facts["channels"] == 4


def test_uniqueness_counts_repeats_and_survives_a_single_mask():
    f = torch.tensor([[0.0, 0], [3, 4], [3, 4.5]], dtype=torch.double)
    n = torch.tensor([1.0, 2, 1], dtype=torch.double)
    far = 2 * 5 + (9 + 4.5**2) ** 0.5
    raw = torch.tensor([far, 5 + 0.5, (9 + 4.5**2) ** 0.5 + 2 * 0.5], dtype=torch.double)
    torch.testing.assert_close(uniqueness(f, n), (raw - raw.min()) / (raw.max() - raw.min()))
    assert uniqueness(f[:1], n[:1]).tolist() == [1]


def test_batches_and_running_out_of_time():
    model = network()
    (whole,) = SIDU()(model, clip(SIZE), [Prob(1)])
    for batch in (1, 3, 64):
        (why,) = SIDU()(model, clip(SIZE), [Prob(1)], Run(batch=batch))
        torch.testing.assert_close(why.grid, whole.grid, atol=1e-5, rtol=1e-4)


class Wide(nn.Module):
    """Forty channels, so that time can run out between batches."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv3d(3, 40, (2, 4, 4), (2, 4, 4)), nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).relu().mean(dim=(2, 3, 4)))


def test_out_of_time_is_the_channels_so_far():
    net = order_one(Wide(), clip(SIZE).pixels[None])
    with torch.no_grad():  # about half of the cells of each channel are active
        net.body.bias.sub_(net.body(clip(SIZE).pixels[None]).mean(dim=(0, 2, 3, 4)))
    model = TorchModel(net, pack=lambda x: x, layer="body")
    method = SIDU(threshold=0.0)
    run = Run(batch=4, seconds=1e-9, precision="fp32")
    (short,) = method(model, clip(SIZE), [Prob(1)], run)
    done = int(short.provenance.facts["channels"])
    assert done == short.provenance.facts["masks"] < method.passes(model, clip(SIZE)).forwards - 1
    (same,) = SIDU(threshold=0.0, channels=done)(model, clip(SIZE), [Prob(1)])
    torch.testing.assert_close(short.grid, same.grid, atol=1e-5, rtol=1e-4)


def test_budget():
    model = network()
    assert isinstance(SIDU(), Scalable)
    assert SIDU(threshold=0.2).afford(4, model, clip(SIZE)) == SIDU(threshold=0.2, channels=3)
    with pytest.raises(OptionError, match="at least 2 forwards, the budget is 1"):
        SIDU().afford(1, model, clip(SIZE))


def test_faults():
    model = network()
    with pytest.raises(OptionError, match="channels >= 1"):
        SIDU(channels=0)
    with pytest.raises(OptionError, match=r"no fill 'blak'"):
        SIDU(fill="blak")
    method = SIDU()
    object.__setattr__(method, "parity", "paper")  # the type checker of the tests would come first
    with pytest.raises(OptionError, match="parity 'icpr2022' or None, not 'paper'"):
        method.__post_init__()
    with pytest.raises(LayerError, match="black box"):
        SIDU()(Box(SIZE), clip(SIZE), [Prob(0)])
    with pytest.raises(LayerError, match=r"no channel of layer 'body' is above 1e.06 anywhere.*threshold"):
        SIDU(threshold=1e6)(model, clip(SIZE), [Prob(0)])


def test_the_network_is_as_it_was_also_after_an_error_in_the_middle():
    model = network()
    net = model.module
    net.train()
    handle = net.fc.register_forward_hook(lambda m, i, o: o * float("nan") if len(net.seen) > 3 else o)
    with pytest.raises(ScoreError):
        SIDU()(model, clip(SIZE), [Prob(0)], Run(batch=1, precision="fp32"))
    handle.remove()
    assert net.training
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_repr_rebuilds():
    method = SIDU("a.b", 0.2, 12, "grey", "icpr2022")
    assert eval(repr(method)) == method
