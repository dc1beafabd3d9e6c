"""Trains the networks of the planted tasks: minutes on a core, from nothing, seeded.

    python -m tubelens.evaluate.train --out planted.safetensors              # the bundled one: key and dir
    python -m tubelens.evaluate.train --task order --out order.safetensors   # a small one of one task

Every clip is fresh, so there is nothing to overfit (but for the network `labels`, below). Two habits are
trained in on purpose, because explanations are measured by removing things: cells of half of the clips are
greyed out at random (the network must not collapse under occlusion), and some clips come without what decides
and with a flat target, or with the label `neither` where the task has it (without evidence it must not fall
back on a favourite class), some without the other objects (which must not matter). A small price on the last
activations keeps them where the evidence is.

The bundled network spends most of its steps on very short clips, many at a time: shapes are learned from many
different objects, and the frames of one clip all show the same. So do the small ones, but for `order`, which
needs all frames. Their first clips come without distractors too (not those of `order`, which learns without
that, nor of `shortcut`, which is to choose between two things): what decides covers a few percent of the
voxels, and the mean over them hides it until it is known. `transient` has its habits from the start: where
no clip is empty, a network needs no detector for one of the classes, and later does not find it any more.
`xor` is also told at first which two cues it sees, by a layer that is thrown away: neither cue alone has to
do with the class, so there is no slope to learn them on.

Two networks learn task `shortcut`. For `honest` the mark is independent of the class. For `shortcut` the mark
always tells it, and the direction does in 40 % of the clips only: where the direction always tells it too, a
pooled CNN follows the motion and ignores the mark.

`labels` is for the label-randomisation check (Adebayo et al., "Sanity checks for saliency maps", NeurIPS
2018): the network of task `transient` fitted to labels that were drawn at random. On fresh clips there would
be nothing to learn and its weights would tend to zero, so it learns a fixed set of clips by heart, without
the habits above.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from safetensors.torch import save_file
from torch import Tensor, nn

from tubelens.evaluate.lessons import (
    BUNDLED,
    FIRST_SEED,
    RECIPES,
    SEEDS_PER_RUN,
    Lesson,
    Settings,
    by_heart,
    lesson,
    names,
)
from tubelens.files import replacing
from tubelens.planted import generate
from tubelens.zoo.bundled import BLOCKS, SMALL, PlantedNet, initialised
from tubelens.zoo.recipe import Pack

__all__ = ["FIRST_SEED", "RECIPES", "Settings", "Trained", "top1", "train_planted"]


@dataclass(frozen=True)
class Trained:
    """What came out: where the weights are, top-1, and seconds of processor time that training took.

    Top-1 is on fresh clips; of a network that learned by heart, on the clips that it learned.
    """

    path: Path
    accuracy: float
    seconds: float


def train_planted(
    out: str | Path,
    seed: int = 0,
    settings: Settings | None = None,
    fresh: int = 1000,
    report: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train from nothing and write the weights.

    Args:
        out: safetensors file; its metadata holds the seed, the settings and the accuracy. The weights of the
            small networks are rounded to half precision, and measured so.
        seed: of weights, clips and greyed cells.
        settings: see `Settings` and `RECIPES`; by default those of the bundled network.
        fresh: clips to measure the accuracy on, of seeds 0 to `fresh - 1`.
        report: called with the step and its loss after each step.

    Raises:
        OutputError: the file could not be written; an earlier one stays.
    """
    settings = settings or Settings()
    start = time.process_time()
    net = _fit(untrained(settings, seed), seed, settings, report)
    seconds = time.process_time() - start
    if settings.network != BUNDLED:
        with torch.no_grad():
            for value in (*net.parameters(), *net.buffers()):
                if value.is_floating_point():
                    value.copy_(value.half())
    if settings.by_heart:
        clips, known = by_heart(seed, settings)
        accuracy = _share_right(net, clips, known)
    else:
        accuracy = top1(net, range(fresh), network=settings.network)
    with replacing(out) as path:
        save_file(_stored(net, settings), path, metadata=facts(seed, settings, accuracy))
    return Trained(Path(out), accuracy, seconds)


def facts(seed: int, settings: Settings, accuracy: float) -> dict[str, str]:
    """What the file of a trained network says about it, as text."""
    told = {"seed": seed, "settings": asdict(settings), "labels": names(settings)}
    return {name: str(fact) for name, fact in told.items()} | {"accuracy": str(round(accuracy, 4))}


def untrained(settings: Settings, seed: int) -> PlantedNet:
    """The network with random weights of a seed; the global generator is left alone."""
    if settings.task is None:
        return initialised(seed)
    bands = len(generate(0, settings.task).bands)
    return initialised(seed, len(names(settings)), bands, SMALL)


def packing(bands: int) -> Pack:
    """What a clip goes through on its way into the networks: [0, 1] to [-1, 1]."""
    return Pack((0.5,) * bands, (0.5,) * bands)


def top1(net: nn.Module, seeds: Sequence[int], chunk: int = 50, network: str = BUNDLED) -> float:
    """Share of the clips of `seeds` that the network gets right; the network is left in inference mode.

    Args:
        net: it.
        seeds: of clips of its task; right is what `PlantedClip.evidence_for` says.
        chunk: clips at a time.
        network: its name in `RECIPES`.
    """
    right = 0.0
    for i in range(0, len(seeds), chunk):
        clips = [generate(s, RECIPES[network].task).evidence_for(network) for s in seeds[i : i + chunk]]
        known = torch.tensor([clip.label for clip in clips])
        right += len(clips) * _share_right(net, torch.stack([clip.pixels for clip in clips]), known)
    return right / len(seeds)


def _share_right(net: nn.Module, pixels: Float32[Tensor, "b c T H W"], known: Int64[Tensor, "b"]) -> float:
    net.eval()
    with torch.no_grad():
        guess = torch.cat([net(packing(part.shape[1])(part)).argmax(dim=1) for part in pixels.split(50)])
    return int((guess == known).sum()) / len(known)


def _stored(net: nn.Module, settings: Settings) -> dict[str, Tensor]:
    # contiguous copies: safetensors refuses views
    state = {name: value.detach().contiguous().clone() for name, value in net.state_dict().items()}
    if settings.network == BUNDLED:
        return state
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


def _fit(
    net: PlantedNet, seed: int, settings: Settings, report: Callable[[int, float], None] | None
) -> PlantedNet:
    rng = np.random.default_rng((seed, 0))
    half = len(net.blocks) // 2
    hint = _hint(half, seed, settings)
    peaks = [settings.peak, *[settings.peak * settings.faster] * 2]
    groups = [{"params": part.parameters()} for part in (net.blocks, net.head, hint)]
    optimiser = torch.optim.AdamW(groups, lr=settings.peak, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peaks, total_steps=settings.steps, pct_start=0.2
    )
    net.to(memory_format=torch.channels_last_3d)  # a seventh faster on a CPU
    net.train()
    fresh = itertools.count(FIRST_SEED + seed * SEEDS_PER_RUN)
    learned = by_heart(seed, settings) if settings.by_heart else None
    for step in range(settings.steps):
        short = step < settings.short * settings.steps
        now = _repeated(*learned, rng, settings) if learned else lesson(fresh, rng, settings, short)
        packed = packing(now.pixels.shape[1])(now.pixels).contiguous(memory_format=torch.channels_last_3d)
        middle = net.blocks[:half](packed)
        activations = net.blocks[half:](middle)
        loss = nn.functional.cross_entropy(net.score(activations), now.goal)
        loss = loss + (0 if short else settings.sparse) * activations.mean()
        if settings.hint and short:
            told = hint(middle.mean(dim=(2, 3, 4)))
            loss = loss + settings.hint * nn.functional.binary_cross_entropy_with_logits(told, now.cues)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if report is not None:
            report(step, float(loss.detach()))
    return net.to(memory_format=torch.contiguous_format)


def _hint(after: int, seed: int, settings: Settings) -> nn.Linear:
    """A layer for the time of training, that reads the cues off the first `after` blocks."""
    width = (BLOCKS if settings.task is None else SMALL)[after - 1][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, len(generate(0, settings.task).cues) or 1)


def _repeated(
    pixels: Float32[Tensor, "n c T H W"],
    known: Int64[Tensor, "n"],
    rng: np.random.Generator,
    settings: Settings,
) -> Lesson:
    """Some of the clips that are learned by heart."""
    some = torch.from_numpy(rng.choice(len(pixels), settings.whole[0], replace=False))
    goal = torch.eye(len(names(settings)))[known[some]]
    return Lesson(pixels[some], goal, torch.zeros(len(some), 0))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tubelens.evaluate.train", description=__doc__)
    parser.add_argument("--task", choices=RECIPES, default=BUNDLED, help="which network")
    parser.add_argument("--out", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--fresh", type=int, default=1000, help="clips to measure the accuracy on")
    options = parser.parse_args(arguments)
    settings = RECIPES[options.task]
    if options.steps is not None:
        settings = replace(settings, steps=options.steps)

    def report(step: int, loss: float) -> None:
        if (step + 1) % 25 == 0:
            print(f"step {step + 1} of {settings.steps}: loss {loss:.3f}", file=sys.stderr)

    result = train_planted(options.out, options.seed, settings, options.fresh, report)
    where = "the clips it learned" if settings.by_heart else "fresh clips"
    print(f"{result.path}: top-1 {result.accuracy:.2%} on {where}, {result.seconds:.0f} s of processor time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
