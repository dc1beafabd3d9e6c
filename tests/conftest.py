"""What all tests share: real clips where present, small networks with activations of order one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker, or the workers fight for the cores
    torch.set_num_threads(1)

REALDATA = Path(__file__).parents[2] / "shared" / "realdata"


@pytest.fixture(scope="session")
def realdata() -> Path:
    if not REALDATA.is_dir():
        pytest.skip("no real data beside the repository")
    return REALDATA


def order_one(module: nn.Module, clips: torch.Tensor, seed: int = 0) -> nn.Module:
    """Re-initialise so that activations are of order one: default networks give logits that are all bias."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.Conv3d | nn.Linear):
            with torch.no_grad():
                fan = m.weight[0].numel()
                m.weight.copy_(torch.randn(m.weight.shape, generator=generator) * (2 / fan) ** 0.5)
                if m.bias is not None:
                    m.bias.copy_(torch.randn(m.bias.shape, generator=generator))
    module.train()
    for m in module.modules():
        if isinstance(m, nn.Dropout):
            m.eval()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm3d)]
    momentum = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the running statistics become just those of these clips
    with torch.no_grad():
        module(clips)
    for m, value in zip(norms, momentum, strict=True):
        m.momentum = value
    return module.eval()


@pytest.fixture(scope="session")
def initialise() -> Callable[..., nn.Module]:
    return order_one
