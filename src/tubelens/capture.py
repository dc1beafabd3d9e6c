"""Activations at layers and gradients of the scores there, at about the cost of one forward.

No graph is built before the first of the layers: the parameters are frozen for the forward, and a hook puts
a leaf in place of the layer's output (see `tubelens.cut`). Only the head is differentiated, for all targets
at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.cut import MAX_GRADIENT_BYTES, Cut, Tap, hooked, recording
from tubelens.dryrun import LayerInfo, default_layer, layers, readable
from tubelens.errors import InputError, LayerError, OptionError
from tubelens.head import Rows, answer, answers, nbytes, vjp, vjps
from tubelens.layout import Grid, Layout
from tubelens.model import TorchModel, checked, untouched
from tubelens.target import Target, evaluate
from tubelens.where import Where

__all__ = [
    "Capture",
    "LayerInfo",
    "Rows",
    "answers",
    "capturing",
    "default_layer",
    "layers",
    "vjp",
]

Layers = str | None | Sequence[str | None]


@dataclass(eq=False)
class _Forward:
    """One forward: what all captures that share it have in common."""

    model: TorchModel
    clips: Tensor
    taps: dict[str, Tap]
    scores: Tensor
    default: str | None
    probed: str | None = None
    probe: Tensor | None = None
    probe_scores: Tensor | None = None
    alone: Tensor | None = None
    forwards: int = 1
    backwards: int = 0
    gradients: dict[tuple[str, tuple[Target, ...]], Tensor] = field(default_factory=dict)

    def differentiate(self, names: Sequence[str], targets: Sequence[Target]) -> list[Tensor]:
        """Gradients `(n, b, c, t, h, w)` at each layer, from one batched pass; remembered while they fit."""
        key = tuple(targets)
        missing = [n for n in dict.fromkeys(names) if (n, key) not in self.gradients]
        if not missing:
            return [self.gradients[n, key] for n in names]
        tensors = [self.taps[n].tensor for n in missing]
        per_target = sum(t.numel() * t.element_size() for t in tensors)
        chunk = max(1, MAX_GRADIENT_BYTES // max(1, per_target))
        parts: list[list[Tensor]] = [[] for _ in missing]
        with torch.inference_mode(False), torch.enable_grad():
            for i in range(0, len(targets), chunk):
                values = evaluate(targets[i : i + chunk], self.scores, self.model.output).sum(dim=1)
                for part, rows in zip(parts, vjps(values, tensors), strict=True):
                    part.append(rows)
        self.backwards += len(targets)
        found = {n: self._grids(n, torch.cat(p), targets) for n, p in zip(missing, parts, strict=True)}
        if sum(map(nbytes, (*self.gradients.values(), *found.values()))) > MAX_GRADIENT_BYTES:
            kept = {(n, key): self.gradients[n, key] for n in names if n not in found}
            self.gradients.clear()
            self.gradients.update(kept)
        self.gradients.update({(n, key): grids for n, grids in found.items()})
        return [self.gradients[n, key] for n in names]

    def _grids(self, name: str, raw: Tensor, targets: Sequence[Target]) -> Tensor:
        layout = self.taps[name].layout
        plain = layout.pattern == "b c t h w" and not layout.prefix
        grids = raw if plain else torch.stack([layout.to_grid(g) for g in raw])
        dead = (grids.flatten(1).abs().amax(dim=1) == 0).nonzero().flatten().tolist()
        if dead:
            raise LayerError(
                f"the gradient of {targets[dead[0]]!r} is zero at layer {name!r}: the scores do not"
                " depend on it; choose an earlier one (in a class-token transformer, the last block's input)",
                nothing=True,
            )
        return grids


@dataclass(frozen=True, eq=False)
class Capture:
    """What one forward left at a layer. Valid inside the `capturing` block.

    Other layers of the same forward are `at(name)`, single clips of a batch `clip(i)`; they share scores,
    gradients and counts.

    Attributes:
        layer: where the forward was cut.
        index: the clip of the batch that this is about; None: all of them.
    """

    forward: _Forward
    layer: str
    index: int | None = None

    @property
    def model(self) -> TorchModel:
        """What was run."""
        return self.forward.model

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer captured, in the order the forward reached them."""
        return tuple(self.forward.taps)

    @property
    def forwards(self) -> int:
        """Forward passes of one clip that were needed so far."""
        return self.forward.forwards

    @property
    def backwards(self) -> int:
        """Passes back through the head so far."""
        return self.forward.backwards

    @property
    def clips(self) -> Float[Tensor, "b c t h w"]:
        """The canonical clips."""
        return self.forward.clips[self._rows]

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Frames, height and width of the clips."""
        _, _, t, h, w = self.forward.clips.shape
        return t, h, w

    @property
    def layout(self) -> Layout:
        """Of the layer's output."""
        return self.forward.taps[self.layer].layout

    @property
    def activations(self) -> Float[Tensor, "b c t h w"]:
        """The layer's output as a grid, detached."""
        return self.layout.to_grid(self.forward.taps[self.layer].tensor.detach())[self._rows]

    @property
    def scores(self) -> Float[Tensor, "b k"]:
        """The model's answer, differentiable back to the layer."""
        return self.forward.scores if self.index is None else self.forward.scores[self._rows]

    @property
    def probed(self) -> bool:
        """Whether random activations were put at this layer."""
        return self.forward.probed == self.layer

    @property
    def probe(self) -> Float[Tensor, "b c t h w"]:
        """The random activations, as a grid, detached.

        Raises:
            LayerError: the forward was not asked to probe this layer.
        """
        if not self.probed:
            raise LayerError(f"layer {self.layer!r} was captured without a probe")
        assert self.forward.probe is not None
        return self.layout.to_grid(self.forward.probe.detach())[self._rows]

    @property
    def probe_scores(self) -> Float[Tensor, "b k"]:
        """The head's answer to the random activations."""
        assert self.forward.probe_scores is not None, "capture with probe=True"
        return self.forward.probe_scores[self._rows]

    @property
    def alone(self) -> Float[Tensor, "cells k"] | None:
        """The head's answer to no activations at all, then to each cell's alone, the others zero.

        Only where `capturing` was asked for more targets than there are cells.
        """
        return self.forward.alone if self.probed else None

    def at(self, layer: str | None) -> Capture:
        """The capture of another layer of the same forward; None: the model's default.

        Raises:
            LayerError: it was not captured.
        """
        name = layer or self._default()
        if name not in self.forward.taps:
            raise LayerError(f"layer {name!r} was not captured (captured: {', '.join(self.layers)})")
        return Capture(self.forward, name, self.index)

    def clip(self, i: int) -> Capture:
        """The capture of clip `i` of those that this one is about."""
        clips = range(len(self.forward.clips)) if self.index is None else [self.index]
        return Capture(self.forward, self.layer, clips[i])

    def values(self, targets: Sequence[Target]) -> Float[Tensor, "n b"]:
        """The targets on each clip."""
        return evaluate(targets, self.scores, self.model.output)

    def gradients(self, targets: Sequence[Target]) -> Float[Tensor, "n b c t h w"]:
        """Gradient of every target at the layer, as grids; one batched pass back through the head.

        They are remembered, so that several methods cost one pass.

        Raises:
            LayerError: a gradient is zero throughout: the scores do not depend on this layer's grid.
        """
        return self.forward.differentiate([self.layer], targets)[0][:, self._rows]

    def prepare(self, layers: Sequence[str | None], targets: Sequence[Target]) -> list[Capture]:
        """The captures of several layers, their gradients taken together in one pass."""
        found = [self.at(name) for name in layers]
        self.forward.differentiate([c.layer for c in found], targets)
        return found

    def gradient_of(self, mix: Float[Tensor, "n"], targets: Sequence[Target]) -> Tensor:
        """Gradient `(b, c, t, h, w)` of one combination of the targets at the layer."""
        self.forward.backwards += 1
        return self._mixed(mix, targets, self.forward.scores, self.forward.taps[self.layer].tensor)

    def probe_gradient_of(self, mix: Float[Tensor, "n"], targets: Sequence[Target]) -> Tensor:
        """Likewise at the random activations; as a test of the head it is not counted."""
        assert self.forward.probe is not None, "capture with probe=True"
        assert self.forward.probe_scores is not None
        return self._mixed(mix, targets, self.forward.probe_scores, self.forward.probe)

    def answers(self, activations: Rows) -> Float[Tensor, "m k"]:
        """The head's scores for other activations at the layer, the rest of the clip's forward unchanged.

        See the function of this name. Only for the capture of one clip.
        """
        tap = self.forward.taps[self.layer]
        scores, runs = answer(self.model, self.clips, self.layer, activations, tap.layout, tap.call)
        self.forward.forwards += runs
        return scores

    def chunk(self) -> int:
        """For how many targets at once the gradients at this layer stay within bounds."""
        # a formula needs a few arrays of that size
        return max(1, MAX_GRADIENT_BYTES // 4 // max(1, nbytes(self.forward.taps[self.layer].tensor)))

    def grid(self, values: Float[Tensor, "t h w"]) -> Grid:
        """A map over the layer's cells, placed where they look."""
        return self.layout.grid(values, self.clip_size)

    @property
    def _rows(self) -> slice:
        b = len(self.forward.clips)
        return slice(0, b) if self.index is None else slice(self.index, self.index + 1)

    def _default(self) -> str:
        if self.forward.default is None:
            if len(self.forward.taps) == 1:  # whoever cut there meant it
                return self.layer
            self.forward.default = default_layer(layers(self.model, self.forward.clips)).name
            self.forward.forwards += 1
        return self.forward.default

    def _mixed(self, mix: Tensor, targets: Sequence[Target], scores: Tensor, at: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            values = evaluate(targets, scores, self.model.output)
            gradient = vjp((mix.to(values) @ values).sum()[None], at)[0]
        return self.layout.to_grid(gradient)[self._rows]


@contextmanager
def capturing(
    model: TorchModel,
    clips: Float[Tensor, "b c t h w"],
    layer: Layers = None,
    probe: bool | str = False,
    targets: int = 1,
) -> Iterator[Capture]:
    """Run the model once and cut the graph at layers; the model is as it was when the block ends.

    Args:
        model: the network.
        clips: canonical clips.
        layer: name; None: the model's own, else the default that a dry run finds; or several of these, all
            from one forward. The capture is that of the first, the others are `capture.at(name)`.
        probe: also put random activations at the (first, or named) layer, as extra rows of the same forward,
            so that the head can be tested (or in a second forward, where the head does not take a wider
            batch).
        targets: how many will be explained. Where a probe is wanted and there are more targets than cells,
            each cell of one clip is also put through the head alone: for an affine head that gives the
            contributions to all targets without a backward for each.

    Raises:
        LayerError: no such layer, not reached, without time and space, or in a scripted network.
        ScoreError: NaN or infinity.
    """
    asked = [layer] if layer is None or isinstance(layer, str) else list(layer)
    if not asked:
        raise OptionError("no layer given: name at least one (`tubelens layers`), or None for the default")
    default, dry = model.layer, 0
    if default is None and None in asked:
        default, dry = default_layer(layers(model, clips)).name, 1
    names = list(dict.fromkeys(name or default or "" for name in asked))
    modules = {name: readable(model, name) for name in names}
    probed = names[0] if probe is True else (probe or None)
    if probed is not None and probed not in names:
        raise OptionError(f"layer {probed!r} is to be probed and not captured: name it as a layer too")
    with untouched(model.module):
        cut, scores, runs = _run(model, modules, clips, probed, targets)
        b = clips.shape[0]
        with torch.inference_mode(False), torch.enable_grad():  # slices that are still in the graph
            mine, probes, alone = scores[:b], scores[b : 2 * b], scores[2 * b :]
        checked(mine.detach(), model.name)
        forward = _Forward(model, clips, cut.taps, mine, default, probed, forwards=runs + dry)
        if probed is not None:
            forward.probe, forward.probe_scores = cut.probe, probes
            forward.alone = alone.detach() if cut.cells else None
        try:
            yield Capture(forward, names[0])
        finally:
            forward.gradients.clear()


def _run(
    model: TorchModel, modules: dict[str, nn.Module], clips: Tensor, probed: str | None, targets: int
) -> tuple[Cut, Tensor, int]:
    """The cut, the scores (those of the probe after the clips') and the forwards it took."""
    if probed is None:
        return *_forward(model, modules, clips), 1
    try:
        return *_forward(model, modules, clips, probed, targets), 1
    except LayerError:
        raise
    except InputError:
        # the head does not take a wider batch: a second forward with the probe in the layer's place
        cut, scores = _forward(model, modules, clips)
        other, answer = _forward(model, {probed: modules[probed]}, clips, probed, swap=True)
        cut.probe = other.probe
        return cut, torch.cat([scores, answer]), 2


def _forward(
    model: TorchModel,
    modules: dict[str, nn.Module],
    clips: Tensor,
    probed: str | None = None,
    targets: int = 1,
    swap: bool = False,
) -> tuple[Cut, Tensor]:
    where = Where()
    declared = {name: found for name in modules if (found := model.layout(name, clips.shape))}
    cut = Cut(where, declared, len(clips), probed, targets, swap)
    pixels = clips.to(model.device)
    with ExitStack() as stack:
        stack.enter_context(recording([*model.module.parameters(), *model.module.buffers()]))
        for name, module in modules.items():
            stack.enter_context(hooked(module, cut.hook(name)))
        with where:
            where.start(pixels)
            scores = model.run(pixels, rows=cut.rows)
    for name in modules:
        if name not in cut.seen:
            raise LayerError(f"layer {name!r} was not reached in the forward of {model.name}")
        if name not in cut.taps:
            shape = "x".join(map(str, cut.seen[name]))
            raise LayerError(
                f"layer {name!r} has no known place in time and space (output {shape}): choose one that"
                " `tubelens layers` lists, or declare its `layout`"
            )
    if not scores.requires_grad:
        raise LayerError(f"no gradient flows from the scores back to layer {next(iter(modules))!r}")
    return cut, scores
