"""A metric of one's own: how much a map flickers.

    tubelens evaluate "planted:dir?n=10" --method tubes rise --metric examples/own_metric.py:Flicker

A metric is a frozen dataclass. It says what it looks at, which way is better and whether it needs the truth,
and returns a score beside what a map that looks at no model gets: a bare value misleads.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

import tubelens as tl


@dataclass(frozen=True)
class Flicker:
    """Change from frame to frame over the map, `sum |s[t+1] - s[t]| / sum |s|`: 0 where it stands still."""

    kind: ClassVar[str] = "map"  # or "curve", or "method"
    higher_is_better: ClassVar[bool] = False  # None: neither is better
    needs_truth: ClassVar[bool] = False

    seed: int = 0

    def __call__(self, explanation, clip=None, truth=None):
        saliency = torch.nan_to_num(torch.as_tensor(explanation.saliency))  # NaN: no crop looked there
        order = torch.randperm(saliency.numel(), generator=torch.Generator().manual_seed(self.seed))
        shuffled = saliency.flatten()[order].view_as(saliency)
        return tl.Score(flicker(saliency), self.higher_is_better, anchors={"random": flicker(shuffled)})


def flicker(saliency):
    """The formula; NaN for a map of zeros."""
    return float(saliency.diff(dim=0).abs().sum() / saliency.abs().sum())
