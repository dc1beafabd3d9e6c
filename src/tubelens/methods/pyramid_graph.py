"""The stepping of class feature pyramids: from the class back through layers, as sets of kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.tracing import Edge, Layer, Trace

Parity = Literal["cfp"]


@dataclass(frozen=True, eq=False)
class Step:
    """The kernels of one layer that matter for the target.

    Attributes:
        layer: its name.
        back: steps back from the class by the shortest way; 0 is the layer that gives the scores.
        size: kernels that the layer has.
        kernels: those selected, increasing; for step 0 the target's classes.
        strengths: of each, in (0, 1]; see `Pyramid`.
        explanation: its tube; None where what it gives has no time and space (a hidden linear layer).
    """

    layer: str
    back: int
    size: int
    kernels: Int[Tensor, "n"]
    strengths: Float[Tensor, "n"]
    explanation: Explanation | None = None


@dataclass(frozen=True, eq=False)
class Link:
    """Which selected kernels of a layer selected which kernels of a layer before it.

    Attributes:
        reader: the layer nearer to the class. `source`: the one whose kernels it reads.
        pairs: (kernel of the reader, kernel of the source).
        weights: scaled evidence of each pair, in [theta, 1].
    """

    reader: str
    source: str
    pairs: Int[Tensor, "n 2"]
    weights: Float[Tensor, "n"]


@dataclass(frozen=True, eq=False)
class Dependency:
    """What a class depends on: sets of kernels, layer by layer, and the links between them.

    Attributes:
        label: of the target. `target`, `model`, `weights`, `method`: what was asked, as text.
        steps: the layers with selected kernels, from the class back to the clip.
        links: between them.
        explanation: the tubes of all layers fused into one.
        notes: where channels could not be told apart.
    """

    label: str
    target: str
    model: str
    weights: str
    method: str
    steps: tuple[Step, ...]
    links: tuple[Link, ...]
    explanation: Explanation
    notes: tuple[str, ...] = field(default=())

    @property
    def explanations(self) -> list[Explanation]:
        """One tube a layer, from the class back."""
        return [step.explanation for step in self.steps if step.explanation is not None]

    def step(self, layer: str) -> Step:
        """The step of a layer.

        Raises:
            OptionError: it is not in the pyramid; those that are, are named.
        """
        for step in self.steps:
            if step.layer == layer:
                return step
        known = ", ".join(step.layer for step in self.steps[:12])
        raise OptionError(f"layer {layer!r} is not in the pyramid of {self.label!r} (in it: {known} ...)")

    def to_json(self) -> dict[str, Any]:
        """Everything but the maps, as what `json.dump` takes."""
        return {
            "format": "tubelens.pyramid",
            "version": 1,
            "label": self.label,
            "target": self.target,
            "model": self.model,
            "weights": self.weights,
            "method": self.method,
            "layers": [
                {
                    "layer": step.layer,
                    "back": step.back,
                    "size": step.size,
                    "kernels": step.kernels.tolist(),
                    "strengths": _short(step.strengths),
                    "grid": None if step.explanation is None else list(step.explanation.grid.shape),
                }
                for step in self.steps
            ],
            "links": [
                {
                    "reader": link.reader,
                    "source": link.source,
                    "pairs": link.pairs.tolist(),
                    "weights": _short(link.weights),
                }
                for link in self.links
            ],
            "notes": list(self.notes),
        }

    def tree(self, limit: int = 100_000) -> dict[str, Any]:
        """The published output: under each kernel the kernels it selects, again and again.

        Keys are `layer:kernel`. A kernel that several others select is written out under each of them, so
        that the tree grows exponentially with the depth; the sets in `steps` and `links` do not.

        Raises:
            OptionError: more than `limit` entries.
        """
        children: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for link in self.links:
            for reader, source in link.pairs.tolist():
                children.setdefault((link.reader, reader), []).append((link.source, source))
        counter = count(1)

        def expand(node: tuple[str, int]) -> dict[str, Any]:
            if next(counter) > limit:
                raise OptionError(
                    f"the tree of {self.label!r} has more than {limit} entries: give a smaller depth or a"
                    " larger theta, or read the sets in `steps`"
                )
            return {f"{layer}:{k}": expand((layer, k)) for layer, k in children.get(node, ())}

        top = self.steps[0]
        return {f"{top.layer}:{k}": expand((top.layer, k)) for k in top.kernels.tolist()}


def _short(values: Tensor) -> list[float]:
    return [round(v, 6) for v in values.tolist()]


# ── stepping ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False)
class Selected:
    """The sets of a target, by the layers' numbers.

    Attributes:
        back: steps back of each layer that was reached.
        strength: `(2, kernels)` of each: as they are, and reversed; 0 where not selected.
        pairs: (reader, source) -> pairs and weights.
        roots: kernels of the layers that give the scores.
    """

    back: dict[int, int]
    strength: dict[int, Float[Tensor, "2 k"]]
    pairs: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, layer: int) -> Float[Tensor, "k"]:
        """Strength of each kernel, either way."""
        return self.strength[layer].amax(dim=0)


def select(
    trace: Trace, weights: Float[Tensor, "k"], theta: float, depth: int | None, parity: Parity | None
) -> Selected:
    """Step back from the scores.

    Args:
        trace: the network's layers on a clip.
        weights: of the scores in the target (their gradient).
        theta: threshold of the scaled evidence.
        depth: how many steps; None: down to the clip.
        parity: the published selection.
    """
    back = distances(trace)
    back = {layer: steps for layer, steps in back.items() if depth is None or steps <= depth}
    found = Selected(back, {n: torch.zeros(2, trace.layers[n].kernels) for n in back})
    tops = dict(_tops(trace, weights))
    for number in sorted(back, reverse=True):  # the forward's order backwards: readers before sources
        layer = trace.layers[number]
        sides, kernels = found.strength[number].nonzero(as_tuple=True)
        if len(kernels):
            _feed(trace, found, number, _rows(layer, kernels, sides, theta, parity), kernels, sides)
        if number in tops:
            size = tops[number].abs()
            found.strength[number][0] = torch.maximum(found.strength[number][0], unit(size[None])[0])
            main = size.argmax()[None]
            row = _top_row(layer, tops[number], theta, parity)
            _feed(trace, found, number, row, main, torch.zeros_like(main))
    return found


def distances(trace: Trace) -> dict[int, int]:
    """Steps back from the scores to each layer, by the shortest way."""
    back = {edge.source[1]: 0 for edge in trace.ends if edge.source[0] == "layer"}
    queue = list(back)
    for number in queue:
        for edge in trace.layers[number].feeding("layer"):
            if edge.source[1] not in back:
                back[edge.source[1]] = back[number] + 1
                queue.append(edge.source[1])
    return back


def unit(values: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Each row from its minimum 0 to its maximum 1; a row of equal values is all 1, of zeros all 0."""
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    spread = high - low
    scaled = (values - low) / spread.where(spread != 0, torch.ones_like(spread))
    return scaled.where(spread != 0, (values != 0).to(values))


def _tops(trace: Trace, weights: Float[Tensor, "k"]) -> Iterator[tuple[int, Float[Tensor, "m"]]]:
    """The layers that give the scores, and the target's weight of each of their kernels."""
    for edge in trace.ends:
        if edge.source[0] == "layer":
            own = torch.zeros(trace.layers[edge.source[1]].kernels)
            sign = 1.0 - 2.0 * edge.reversed.float()
            own.index_add_(0, edge.kernels, weights[edge.into] * sign)
            own += weights[edge.any].sum()
            yield edge.source[1], own


def _top_row(
    layer: Layer, weights: Float[Tensor, "m"], theta: float, parity: Parity | None
) -> Float[Tensor, "1 c"]:
    """Scaled evidence of the last features for the target, 0 below the threshold."""
    kernels = weights.nonzero()[:, 0]
    if parity == "cfp":
        scaled = unit(layer.weights.flatten()[None]).view_as(layer.weights)[kernels[:1]]
        return _wide(layer, scaled * (scaled >= theta), kernels[:1])
    evidence, channels = layer.evidence(kernels)
    row = torch.zeros(len(layer.inputs))
    row.index_add_(0, channels.flatten(), (weights[kernels, None] * evidence).flatten())
    scaled = unit(row[None])
    return scaled * (scaled >= theta)


def _rows(
    layer: Layer, kernels: Int[Tensor, "n"], sides: Int[Tensor, "n"], theta: float, parity: Parity | None
) -> Float[Tensor, "n c"]:
    """Scaled evidence of every input channel for each kernel, 0 below the threshold."""
    evidence, _ = layer.evidence(kernels)
    if parity == "cfp":
        evidence = evidence / evidence.sum(dim=1, keepdim=True)
    else:
        evidence = evidence * (1 - 2 * sides[:, None])
    scaled = unit(evidence)
    return _wide(layer, scaled * (scaled >= theta), kernels)


def _wide(layer: Layer, own: Float[Tensor, "n own"], kernels: Int[Tensor, "n"]) -> Float[Tensor, "n c"]:
    """Rows over the channels of the kernels' groups as rows over all channels."""
    if layer.groups == 1:
        return own
    _, channels = layer.evidence(kernels)
    return torch.zeros(len(kernels), len(layer.inputs)).scatter_(1, channels, own)


def _feed(trace: Trace, found: Selected, number: int, rows: Tensor, kernels: Tensor, sides: Tensor) -> None:
    """Pass what a layer's kernels selected among its channels on to the kernels that these come from."""
    strength = found.strength[number][sides, kernels]
    for edge in trace.layers[number].feeding("layer"):
        source = edge.source[1]
        if source not in found.back:
            continue
        links = scattered(rows, edge, trace.layers[source].kernels)
        reached = (links * strength[:, None, None]).amax(dim=0)
        found.strength[source] = torch.maximum(found.strength[source], reached.T)
        either = links.amax(dim=2)
        i, k = either.nonzero(as_tuple=True)
        pairs, weights = torch.stack([kernels[i], k], dim=1), either[i, k]
        old = found.pairs.get((number, source))
        if old is not None:
            pairs, weights = torch.cat([old[0], pairs]), torch.cat([old[1], weights])
        found.pairs[number, source] = pairs, weights


def scattered(rows: Float[Tensor, "n c"], edge: Edge, kernels: int) -> Float[Tensor, "n k 2"]:
    """Rows over channels as rows over the source's kernels (as they are, reversed): the strongest channel."""
    wide = rows.new_zeros(len(rows), 2 * kernels)
    label = (2 * edge.kernels + edge.reversed.long())[None].expand(len(rows), -1)
    wide.scatter_reduce_(1, label, rows[:, edge.into], "amax")
    found = wide.view(len(rows), kernels, 2)
    if len(edge.any):
        found[..., 0] = torch.maximum(found[..., 0], rows[:, edge.any].amax(dim=1, keepdim=True))
    return found


def features(trace: Trace, found: Selected, number: int, plain: bool) -> dict[int, Float[Tensor, "c"]]:
    """Weights of channels with time and space that show a layer's selected kernels, by site.

    The first reader that has such an input is asked: what it reads is what the layer gives after its batch
    norm, its activation and the shortcuts that join.
    """
    strength = found.of(number)
    weight = (strength > 0).float() if plain else strength
    for reader in sorted(
        r for (r, source), (pairs, _) in found.pairs.items() if source == number and len(pairs)
    ):
        layer = trace.layers[reader]
        sites = layer.feeding("site")
        if not sites:
            continue
        channels = torch.zeros(len(layer.inputs))
        for edge in layer.feeding("layer"):
            if edge.source[1] == number:
                channels.scatter_reduce_(0, edge.into, weight[edge.kernels], "amax")
                channels[edge.any] = weight.amax()
        return {
            site.source[1]: scattered(channels[None], site, trace.channels(site.source[1])).amax(dim=2)[0]
            for site in sites
        }
    return {}


def links_of(trace: Trace, found: Selected) -> tuple[Link, ...]:
    """The links, from the class back; pairs that were reached both ways once, with their larger weight."""
    links = []
    for (reader, source), (pairs, weights) in sorted(found.pairs.items(), reverse=True):
        if not len(pairs):
            continue
        many = trace.layers[source].kernels
        codes, place = torch.unique(pairs[:, 0] * many + pairs[:, 1], return_inverse=True)
        best = torch.zeros(len(codes)).scatter_reduce_(0, place, weights, "amax")
        both = torch.stack([codes // many, codes % many], dim=1)
        links.append(Link(trace.layers[reader].name, trace.layers[source].name, both, best))
    return tuple(links)


def order(found: Selected) -> Sequence[int]:
    """Layers with selected kernels, from the class back: by steps, then against the forward's order."""
    reached = [n for n in found.back if bool(found.of(n).any())]
    return sorted(reached, key=lambda n: (found.back[n], -n))
