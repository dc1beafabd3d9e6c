"""The user's model is sacred: bytes, mode, hooks, gradients and random state stay, also after an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from tests.test_tubes import Small, clip
from tubelens.api import explain
from tubelens.capture import layers
from tubelens.clip import Clip
from tubelens.errors import InputError, TubelensError
from tubelens.loading import wrap
from tubelens.methods.tubes import Tubes
from tubelens.model import TorchModel
from tubelens.target import Logit


class Counting(Small):
    """Writes to buffers in its forward, one in place and one anew, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = torch.ones(2)
        torch.rand(3)
        return super().forward(x)


class Failing(Small):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise RuntimeError("broken inside")


def state(net: nn.Module) -> dict[str, Any]:
    hooks = [
        len(getattr(m, name))
        for m in net.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ]
    return {
        "tensors": {k: v.detach().clone() for k, v in net.state_dict().items()},
        "ids": [id(v) for v in (*net.parameters(), *net.buffers())],
        "modes": [m.training for m in net.modules()],
        "hooks": hooks,
        "grads": [p.grad for p in net.parameters()],
        "requires": [p.requires_grad for p in net.parameters()],
        "attributes": [sorted(vars(m)) for m in net.modules()],
        "rng": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in before:
        if key == "tensors":
            assert before[key].keys() == after[key].keys()
            for name, value in before[key].items():
                assert torch.equal(value, after[key][name]), name
        elif key == "rng":
            assert torch.equal(before[key], after[key])
        else:
            assert before[key] == after[key], key


NETS: dict[str, Callable[[], nn.Module]] = {
    "small, training": lambda: Small().train(),
    "small, mixed modes": lambda: Small().train().stem.eval() and Small(),
    "writes buffers": lambda: Counting().train(),
    "frozen": lambda: Small().requires_grad_(False),
    "r3d_18": lambda: get_model("r3d_18", weights=None, num_classes=5).train(),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("action", ["tubes", "layers", "predict", "all targets"])
def test_nothing_is_left_on_the_model(name: str, action: str):
    net = NETS[name]()
    if name == "small, mixed modes":
        net.train()
        net.stem.eval()
    model = TorchModel(net, pack=lambda x: x)
    before = state(net)
    match action:
        case "tubes":
            Tubes()(model, clip(), [Logit(1)])
        case "layers":
            layers(model, clip().pixels[None])
        case "predict":
            model(clip().pixels[None])
        case "all targets":
            explain(model, clip(), target=list(range(5)))
    assert_same(before, state(net))


FAILURES: dict[str, Callable[[TorchModel], Any]] = {
    "unknown layer": lambda m: Tubes(layer="nowhere")(m, clip(), [Logit(0)]),
    "class out of range": lambda m: Tubes()(m, clip(), [Logit(99)]),
    "head not affine": lambda m: Tubes(layer="stem")(m, clip(), [Logit(0)]),
    "wrong channels": lambda m: Tubes()(
        m, Clip.from_array(np.zeros((8, 24, 24, 1), "uint8"), "I"), [Logit(0)]
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_nothing_is_left_after_an_error(failure: str):
    net = Counting().train()
    model = TorchModel(net, pack=lambda x: x, layer="body")
    before = state(net)
    with pytest.raises(TubelensError):
        FAILURES[failure](model)
    assert_same(before, state(net))


@pytest.mark.parametrize("grad", [True, False])
def test_nothing_is_left_when_the_network_itself_breaks(grad: bool):
    net = Failing().train()
    with torch.set_grad_enabled(grad):
        before = state(net)
        with pytest.raises(InputError, match="broken inside"):
            Tubes(layer="body")(TorchModel(net, pack=lambda x: x), clip(), [Logit(0)])
        with pytest.raises(InputError, match="broken inside"):
            layers(TorchModel(net, pack=lambda x: x), clip().pixels[None])
        assert_same(before, state(net))


def test_existing_gradients_and_hooks_stay():
    net = Small()
    net(clip().pixels[None]).sum().backward()
    grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    seen: list[int] = []
    net.fc.register_forward_hook(lambda m, i, o: seen.append(1))
    Tubes()(TorchModel(net, pack=lambda x: x, layer="body"), clip(), [Logit(0)])
    assert seen
    assert len(net.fc._forward_hooks) == 1
    for before, p in zip(grads, net.parameters(), strict=True):
        assert torch.equal(before, p.grad)  # type: ignore[arg-type]


def test_wrapping_finds_the_layer_and_gives_the_same_map():
    net = Small().eval()
    reference = Tubes()(TorchModel(net, pack=lambda x: x, layer="body"), clip(), [Logit(2)])[0]
    twin = copy.deepcopy(net)
    model = wrap(twin, frames=8, size=24, name="twin")
    assert model.layer == "body"
    torch.testing.assert_close(explain(model, clip(), target=2).grid, reference.grid)
    assert torch.equal(twin.fc.weight, net.fc.weight)


def test_inference_does_not_depend_on_the_mode():
    net = Small()
    net(torch.rand(4, 3, 8, 24, 24))  # other running statistics than those of one clip
    one = Tubes()(TorchModel(net.train(), pack=lambda x: x, layer="body"), clip(), [Logit(0)])[0]
    two = Tubes()(TorchModel(net.eval(), pack=lambda x: x, layer="body"), clip(), [Logit(0)])[0]
    torch.testing.assert_close(one.grid, two.grid)
