"""Class feature pyramids (Stergiou et al., "Class Feature Pyramids for Video Explanation", ICCV Workshops
2019), for networks with branches, shortcuts and groups.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.layout import Grid
from tubelens.methods.protocol import Needs
from tubelens.methods.pyramid_graph import (
    Dependency,
    Parity,
    Selected,
    Step,
    features,
    links_of,
    order,
    select,
)
from tubelens.methods.record import Recorder
from tubelens.model import TorchModel
from tubelens.running import RUN, Run
from tubelens.target import Logit, ScoreKind, Target, describe
from tubelens.tracing import Trace, trace
from tubelens.upsample import fractional_index, resample

Fuse = Literal["mean", "geometric"]
Tubes = dict[int, tuple[Grid, ...]]


@dataclass(frozen=True)
class Pyramid:
    """Step back from the class through layers and kernels; show what the selected kernels saw.

    With `W_kj` the mean of a kernel k over its taps for channel j and `a_j` the mean of that channel over the
    clip, the evidence of j for k is `s_kj = W_kj a_j`. Scaled over the channels that k reads to [0, 1], those
    with `s_kj >= theta` are selected; the kernels they come from are stepped back from in turn. The class
    itself is the first kernel, with its row of the last layer's weights (for a contrast the difference of two
    rows; in general the target's gradient over the scores).

    What each layer keeps is a set, so that a kernel which several others select is stepped back from once.
    Its *strength* is that of the best chain of links from the class down to it: the largest product of the
    scaled evidence along one, in (0, 1]. Branches that are concatenated divide the channels, a sum (shortcut)
    passes the set to both sides, a group reads its own channels, and where a batch norm scales a kernel by a
    negative factor the evidence for that kernel is taken with the opposite sign. Channels that cannot be told
    apart (after attention, say) all count, and a note says so.

    A layer's tube is the sum of its selected kernels' activations, weighted by strength, as the next layer
    reads them. The map fuses the tubes of all layers: each scaled by its maximum, interpolated linearly to
    the finest of the grids at the places where its cells look, then averaged.

    Read it as where the features that the class builds on are active, not as evidence for this class against
    others: the kernels of early layers serve all classes, and the map of another class is much the same. The
    last layers (`depth=1`), or a method such as tubes, tell classes apart.

    Deviations from the paper's code: it takes weights alone for the class (here weight x activation), divides
    the evidence by its sum before scaling (which turns the order round where the sum is negative), adds the
    activations without weights, expands a tree, and needs the network rewritten. With `parity="cfp"` the
    first three are as published and `Dependency.tree` gives the tree; groups and shortcuts are still followed
    as they are. A kernel that reads one channel, or only equal ones, selects them unless they are zero.

    Attributes:
        theta: threshold of the scaled evidence, in (0, 1]; larger keeps fewer kernels.
        depth: steps back from the class by the shortest way through the network; None: all, down to the clip.
        layer: show the tube of this layer alone; None: all fused.
        fuse: `"mean"` over the layers, or `"geometric"` mean of their positive parts, high where all are.
        parity: `"cfp"`: the published selection and sums.
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit

    theta: float = 0.65
    depth: int | None = None
    layer: str | None = None
    fuse: Fuse = "mean"
    parity: Parity | None = None

    def __post_init__(self) -> None:
        if not 0 < self.theta <= 1:
            raise OptionError(f"pyramid: theta must be above 0 and at most 1, not {self.theta:g}")
        if self.depth is not None and self.depth < 1:
            raise OptionError(f"pyramid: depth must be at least 1, not {self.depth}")
        if self.fuse not in ("mean", "geometric"):
            raise OptionError(f"pyramid: fuse must be mean or geometric, not {self.fuse!r}")
        if self.parity not in (None, "cfp"):
            raise OptionError(f"pyramid: parity must be cfp or nothing, not {self.parity!r}")

    def __call__(
        self, model: TorchModel, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, all from one forward.

        Raises:
            OptionError: the layer is not in the pyramid; no layer with time and space is; a target that is no
                single class, with `parity`.
            LayerError: no convolution could be seen. ScoreError: NaN or infinity.
        """
        start = time.perf_counter()
        traced = trace(model, clip.pixels[None])
        chosen = [self._select(traced, target) for target in targets]
        tubes = self._tubes(traced, chosen)
        return [
            self._fused(traced, clip, target, each, shown, start)
            for target, each, shown in zip(targets, chosen, tubes, strict=True)
        ]

    def graph(self, model: TorchModel, clip: Clip, target: Target) -> Dependency:
        """The sets of kernels, the links between them, and a tube a layer, from one forward.

        Raises: as a call.
        """
        start = time.perf_counter()
        traced = trace(model, clip.pixels[None])
        found = self._select(traced, target)
        (tubes,) = self._tubes(traced, [found])
        whole = self._fused(traced, clip, target, found, tubes, start)
        steps = []
        for number in order(found):
            layer, strength = traced.layers[number], found.of(number)
            kernels = strength.nonzero()[:, 0]
            shown = None
            if number in tubes:
                record = self._record(traced, layer.name, start)
                facts = {"kernels": float(len(kernels)), "back": float(found.back[number])}
                (shown,) = record.write([tubes[number]], clip, [target], [facts])
            steps.append(
                Step(layer.name, found.back[number], layer.kernels, kernels, strength[kernels], shown)
            )
        return Dependency(
            describe(target, model.labels),
            repr(target),
            model.name,
            model.weights,
            repr(self),
            tuple(steps),
            links_of(traced, found),
            whole,
            traced.notes,
        )

    def _select(self, traced: Trace, target: Target) -> Selected:
        if self.parity == "cfp" and not isinstance(target, Logit):
            raise OptionError(f"pyramid: the published selection is for one class, not for {target!r}")
        weights = score_weights(target, traced.scores.cpu(), traced.model.output)
        return select(traced, weights, self.theta, self.depth, self.parity)

    def _tubes(self, traced: Trace, chosen: Sequence[Selected]) -> list[Tubes]:
        """The tube of every layer for every target; all of a tensor's sums in one product."""
        plain = self.parity == "cfp"
        wanted: dict[int, list[Tensor]] = {}
        places: list[dict[int, list[tuple[int, int]]]] = []
        for found in chosen:
            places.append({})
            for number in order(found):
                for site, weights in features(traced, found, number, plain).items():
                    rows = wanted.setdefault(site, [])
                    places[-1].setdefault(number, []).append((site, len(rows)))
                    rows.append(weights)
        sums = traced.maps({site: torch.stack(rows) for site, rows in wanted.items()})
        return [{n: tuple(sums[site][i] for site, i in at) for n, at in each.items()} for each in places]

    def _record(self, traced: Trace, layer: str | None, start: float) -> Recorder:
        return Recorder(
            self,
            traced.model,
            traced.scores,
            layer=layer,
            forwards=traced.forwards,
            notes=traced.notes,
            start=start,
        )

    def _fused(
        self, traced: Trace, clip: Clip, target: Target, found: Selected, tubes: Tubes, start: float
    ) -> Explanation:
        names = {traced.layers[n].name: n for n in tubes}
        if not tubes:
            raise OptionError(
                f"pyramid: no layer with time and space was selected for {target!r}", nothing=True
            )
        if self.layer is not None and self.layer not in names:
            known = ", ".join(list(names)[:12])
            raise OptionError(f"pyramid: layer {self.layer!r} is not among those selected: {known} ...")
        parts = [tubes[names[self.layer]]] if self.layer else list(tubes.values())
        grid = parts[0] if self.layer else fused([g for each in parts for g in each], self.fuse)
        facts = {
            "layers": float(len(order(found))),
            "kernels": float(sum(int((found.of(n) > 0).sum()) for n in order(found))),
        }
        record = self._record(traced, self.layer, start)
        return record.write([grid], clip, [target], [facts])[0]


def score_weights(target: Target, scores: Float[Tensor, "1 k"], kind: ScoreKind) -> Float[Tensor, "k"]:
    """The target's gradient over the logits: one at the class, minus one at the other of a contrast."""
    with torch.inference_mode(False), torch.enable_grad():
        given = scores.detach().clone()
        match kind:
            case "logits":
                leaf = given.requires_grad_()
                value = target(leaf, kind)
            case "probs":
                leaf = given.clamp_min(torch.finfo(given.dtype).tiny).log().requires_grad_()
                value = target(leaf.softmax(dim=1), kind)
            case "sigmoid":
                leaf = torch.logit(given, eps=1e-7).requires_grad_()
                value = target(leaf.sigmoid(), kind)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return gradient[0]


def fused(grids: Sequence[Grid], how: Fuse) -> Grid:
    """Several maps as one on the finest of their grids, each scaled by its maximum."""
    finest = max(grids, key=lambda g: g.values.numel())
    placed = []
    for grid in grids:
        top = grid.values.max()
        own = grid.values / top if top > 0 else torch.zeros_like(grid.values)
        axes = zip((finest.t, finest.y, finest.x), (grid.t, grid.y, grid.x), strict=True)
        t, y, x = (fractional_index(places, centres) for places, centres in axes)
        placed.append(resample(own, (t, y, x), order=1))
    stacked = torch.stack(placed)
    if how == "mean":
        return replace(finest, values=stacked.mean(dim=0))
    product = stacked.clamp_min(0).double().prod(dim=0)  # of many layers: too small for single precision
    return replace(finest, values=product.pow(1 / len(grids)).float())
