"""Trains the networks of a plan, each once: weights that are there are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import networks
import numpy as np
import torch
from plan import Plan
from safetensors import safe_open
from torch import nn

from tubelens.evaluate.items import Item

Report = Callable[[str], None]
DECAY = 1e-2
EVERY = 50  # updates from one line about the loss to the next


@dataclass(frozen=True, eq=False)
class Trained:
    """A network and what is known of it: its kind, what it was trained on, and the seconds that took."""

    network: str
    training: str
    net: nn.Module
    seconds: float

    @property
    def name(self) -> str:
        """What the run calls it."""
        return f"{self.network} {self.training}"


def train(plan: Plan, network: str, training: str, out: Path, seed: int, report: Report = print) -> Trained:
    """The network, from its file in `out` where it was trained with the same settings, else trained now."""
    made = networks.untrained(network, len(plan.labels), plan.size, seed)
    path = out / "weights" / f"{network}_{training}.safetensors"
    told = {"plan": plan.name, "seed": str(seed), "steps": str(plan.steps), "peak": str(plan.peak)}
    told |= {"labels": ", ".join(plan.labels), **{key: str(fact) for key, fact in plan.told.items()}}
    if path.is_file():
        with safe_open(path, "pt") as file:
            kept = dict(file.metadata() or {})
        if {key: kept.get(key) for key in told} == told:
            net = networks.load(made, path)
            return Trained(network, training, net.eval().requires_grad_(False), float(kept["seconds"]))
    start = time.process_time()
    net = fit(
        plan, made, plan.trainings[training], seed, lambda line: report(f"{network} {training}: {line}")
    )
    seconds = time.process_time() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    networks.save(net, path, told | {"seconds": f"{seconds:.1f}"})
    return Trained(network, training, net.eval().requires_grad_(False), seconds)


def fit(plan: Plan, net: nn.Module, spectra: Sequence[str], seed: int, report: Report) -> nn.Module:
    """AdamW on a one-cycle schedule; the last layer learns faster, because it reads means over the clip."""
    rest = [p for name, p in net.named_parameters() if not name.startswith("head.")]
    groups = [{"params": rest}, {"params": net.head.parameters()}]
    peaks = [plan.peak, plan.peak * plan.faster]
    optimiser = torch.optim.AdamW(groups, lr=plan.peak, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peaks, total_steps=plan.steps + 1, pct_start=0.2
    )
    seen: list[torch.Tensor] = []
    hook = net.blocks.register_forward_hook(lambda _, __, out: seen.append(out))
    net.train()
    losses = []
    for step, batch in enumerate(plan.batches(spectra, seed, plan.steps), start=1):
        loss = nn.functional.cross_entropy(net(networks.normalised(batch.pixels)), batch.goal)
        loss = loss + batch.sparse * seen.pop().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % EVERY == 0 or step == plan.steps:
            report(f"update {step} of {plan.steps}, loss {np.mean(losses[-EVERY:]):.3f}")
    hook.remove()
    return net


@torch.no_grad()
def predicted(net: nn.Module, items: Sequence[Item]) -> np.ndarray:
    """The class that the network gives to each clip."""
    found = []
    for i in range(0, len(items), 50):
        pixels = torch.stack([torch.from_numpy(item.array).permute(3, 0, 1, 2) for item in items[i : i + 50]])
        found.append(net(networks.normalised(pixels)).argmax(dim=1))
    return torch.cat(found).numpy()


def known(items: Sequence[Item], labels: Sequence[str]) -> np.ndarray:
    """The class of each clip."""
    number: Mapping[str, int] = {label: i for i, label in enumerate(labels)}
    return np.array([number[item.label or ""] for item in items])
