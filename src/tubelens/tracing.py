"""The graph of a network's convolutions on a clip: what each reads, and which kernels fed what it reads.

Everything is read off one forward, by a dispatch mode that sees each operation with its tensors, whoever
wrote it and however it is nested: control flow that depends on data, functional convolutions and modules
called twice need nothing special, no graph for gradients is built, and the tensors are the true ones.
(Symbolic tracing by `torch.fx` gives the same edges where a network can be traced; the tests compare them.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from tubelens.axes import tensors
from tubelens.channels import ANY, Call, Flow, Key, carried, compressed, labels, pairs
from tubelens.dryrun import is_scripted
from tubelens.errors import LayerError
from tubelens.layout import Grid, Layout
from tubelens.model import TorchModel, checked, untouched
from tubelens.where import Where

KEPT_BYTES = 2**30
"""Activations kept from the forward, the latest first; what is missing costs a second forward."""


@dataclass(frozen=True, eq=False)
class Edge:
    """Which channels come from which kernels of one source.

    Attributes:
        source: `("layer", i)`: a layer by its number; `("site", i)`: channels of a tensor with time and
            space; `("clip", 0)`: the clip's bands.
        into: channels that are read.
        kernels: for each of them a kernel (or channel) of the source; a channel may occur several times.
        reversed: whether it arrives with the opposite sign.
        any: channels in which all kernels of the source are mixed.
    """

    source: Key
    into: Int[Tensor, "n"]
    kernels: Int[Tensor, "n"]
    reversed: Tensor
    any: Int[Tensor, "m"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or a linear layer, as the forward used it.

    Attributes:
        name: of the module or the parameter; a second call of the same is `name (call 2)`.
        kind: the operation.
        weights: mean of each kernel over its taps, rows are kernels and columns the channels of their group.
        groups: kernels and channels are split into so many groups.
        inputs: mean of every input channel over clip, time and space.
        sources: where the input channels come from; the channels of sites where the input has time and space,
            or had them before it was pooled.
    """

    name: str
    kind: str
    weights: Float[Tensor, "out own"]
    groups: int
    inputs: Float[Tensor, "in"]
    sources: tuple[Edge, ...]

    @property
    def kernels(self) -> int:
        """How many kernels (outputs) it has."""
        return self.weights.shape[0]

    def evidence(self, kernels: Int[Tensor, "n"]) -> tuple[Float[Tensor, "n own"], Int[Tensor, "n own"]]:
        """Mean weight times mean activation of each channel that the kernels read, and which channels."""
        own = self.weights.shape[1]
        group = torch.div(kernels, self.kernels // self.groups, rounding_mode="floor")
        channels = group[:, None] * own + torch.arange(own)
        return self.weights[kernels] * self.inputs[channels], channels

    def feeding(self, kind: str) -> tuple[Edge, ...]:
        """The edges from layers, or from sites."""
        return tuple(edge for edge in self.sources if edge.source[0] == kind)


@dataclass(eq=False)
class _Site:
    """A tensor with time and space that layers read, here or after pooling."""

    layout: Layout
    channels: int
    tensor: Tensor | None = None
    version: int = 0


@dataclass(frozen=True, eq=False)
class Trace:
    """The layers that a clip's forward reached, in the order it ran them.

    Attributes:
        layers: convolutions and linear layers.
        ends: from which kernels the scores come.
        scores: of the clip.
        notes: where the channels could not be followed exactly.
    """

    model: TorchModel
    clips: Float[Tensor, "1 c t h w"]
    layers: tuple[Layer, ...]
    ends: tuple[Edge, ...]
    scores: Float[Tensor, "1 k"]
    notes: tuple[str, ...]
    _sites: list[_Site] = field(repr=False)
    _runs: list[int] = field(repr=False)

    @property
    def forwards(self) -> int:
        """Forward passes so far."""
        return sum(self._runs)

    def channels(self, site: int) -> int:
        """Of a tensor with time and space."""
        return self._sites[site].channels

    def maps(self, weights: Mapping[int, Float[Tensor, "_ _"]]) -> dict[int, list[Grid]]:
        """For each site the sums of its channels under rows of weights `(n, channels)`, as grids.

        A second forward where a tensor was not kept, or was overwritten later in the forward.
        """
        found: dict[int, list[Grid]] = {}
        missing = {}
        for number, rows in weights.items():
            site = self._sites[number]
            if site.tensor is None or site.tensor._version != site.version:
                missing[number] = rows
            else:
                found[number] = self._sums(site.tensor, site.layout, rows)
        if missing:
            self._runs.append(1)
            again = _Tracer(self.model, Where(), {n: (rows, found, self) for n, rows in missing.items()})
            _forward(self.model, self.clips, again)
        return found

    def _sums(self, tensor: Tensor, layout: Layout, rows: Tensor) -> list[Grid]:
        grid = layout.to_grid(tensor)[0].float()
        frames, height, width = self.clips.shape[2:]
        _, t, h, w = grid.shape
        values = torch.einsum("nc,cthw->nthw", rows.to(grid), grid).cpu()
        places = layout.place("t", t, frames), layout.place("h", h, height), layout.place("w", w, width)
        return [Grid(each, *places, (0, frames)) for each in values]


def trace(model: TorchModel, clips: Float[Tensor, "1 c t h w"]) -> Trace:
    """One forward of a clip, without gradients; the model is as it was afterwards.

    Activations with time and space are kept up to `KEPT_BYTES` for as long as the trace lives.

    Raises:
        LayerError: no layer that the scores depend on was seen (a scripted network).
        ScoreError: NaN or infinity.
    """
    if is_scripted(model.module):
        raise LayerError(
            f"the layers of {model.name} cannot be told apart, because it is TorchScript (scripted, traced):"
            " give the Python module it was made from"
        )
    tracer = _Tracer(model, Where())
    scores = checked(_forward(model, clips, tracer), model.name)
    ends = tracer.edges(tracer.flow(scores), scores.shape[1], 1)
    if not any(edge.source[0] == "layer" for edge in ends):
        raise LayerError(f"the scores of {model.name} could not be followed back to a convolution")
    notes = tuple(
        f"the channels of {name} cannot be told apart after {where}: all of them count there"
        for name, where in tracer.mixes.items()
    )
    return Trace(model, clips, tuple(tracer.layers), ends, scores, notes, tracer.sites, [1])


def _forward(model: TorchModel, clips: Tensor, tracer: _Tracer) -> Tensor:
    pixels = clips.to(model.device)
    quiet = (untouched(model.module), torch.inference_mode(False), torch.no_grad())
    with quiet[0], quiet[1], quiet[2], tracer.naming(), tracer.where, tracer:
        tracer.where.start(pixels)
        tracer.flows[pixels] = {("clip", 0): (labels(pixels.shape[1], 5, 1),)}
        return model.run(pixels)


Wanted = tuple[Tensor, dict[int, list[Grid]], Trace]


class _Tracer(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """While active, passes the channels' labels on and notes the layers."""

    def __init__(self, model: TorchModel, where: Where, wanted: Mapping[int, Wanted] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.model, self.where, self.wanted = model, where, wanted
        self.flows: Any = WeakTensorKeyDictionary()
        self.numbers: Any = WeakTensorKeyDictionary()  # of tensors that are sites, with their version
        self.written: dict[int, tuple[Tensor, Flow]] = {}  # memory that was filled piece by piece
        self.layers: list[Layer] = []
        self.sites: list[_Site] = []
        self.mixes: dict[str, str] = {}  # layer -> the operation that mixed its channels
        self.calls: dict[str, int] = {}
        self.running: list[str] = []  # modules with a weight of their own, innermost last
        named = (*model.module.named_parameters(), *model.module.named_buffers())
        self.names = {p.data_ptr(): n.removesuffix(".weight") for n, p in named if p.ndim > 1}

    # ── the forward ──────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Knows which module runs, for weights that are computed on the way; the hooks go afterwards."""
        kinds = (nn.modules.conv._ConvNd, nn.Linear)
        inner = [(n, m) for n, m in self.model.submodules() if isinstance(m, kinds)]
        handles = []
        for name, module in inner:
            if not is_scripted(module):
                handles.append(module.register_forward_pre_hook(lambda m, i, n=name: self.running.append(n)))
                handles.append(module.register_forward_hook(lambda m, i, o: self.running.pop() and None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then pass the labels on."""
        kwargs = kwargs or {}
        given = list(tensors((*args, *kwargs.values())))
        sites = {id(a): (a, layout) for a in given if (layout := self._spatial(a))}
        result = func(*args, **kwargs)
        if not any(self.flow(a) for a in given):
            return result
        name = func.overloadpacket.__name__.rstrip("_")
        if self._layer(name, args, kwargs, result):
            return result
        outputs = list(tensors((result,)))
        pooled = {k: v for k, v in sites.items() if not any(self._spatial(out) for out in outputs)}

        def flow(tensor: Tensor) -> Flow:
            own = self.flow(tensor)
            return own | self._site(tensor, pooled[id(tensor)][1]) if id(tensor) in pooled else own

        for i, out in enumerate(outputs):
            if out.is_floating_point():
                found, mixed = carried(Call(flow, func, args, kwargs, out, i))
                if mixed:
                    self._note(found, name)
                if func._schema.is_mutable and args and out is args[0] and out not in self.flows:
                    self._write(out, found)
                self.flows[out] = found
        return result

    def flow(self, tensor: Tensor) -> Flow:
        """Where a tensor's channels come from."""
        known: Flow | None = self.flows.get(tensor)
        if known is None and self.written:
            known = self.written.get(_memory(tensor), (None, None))[1]
            every = torch.full((1,) * tensor.ndim, ANY, dtype=torch.int32)
            return dict.fromkeys(known or (), (every,))
        return known or {}

    def edges(self, flow: Flow, channels: int, dim: int) -> tuple[Edge, ...]:
        """The flow of a tensor read along its channel dimension."""
        found = []
        for key, alternatives in flow.items():
            into, label, loose = pairs(alternatives, channels, dim)
            if len(into) or len(loose):
                found.append(Edge(key, into, label // 2, (label % 2).bool(), loose))
        return tuple(found)

    # ── layers and sites ─────────────────────────────────────────────────────────────────────────────────

    def _layer(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> bool:
        """Note a product with a constant matrix or kernel as a layer."""
        match name:
            case "convolution":
                x, weight, groups = args[0], args[1], args[8] if len(args) > 8 else kwargs.get("groups", 1)
                transposed, dim = args[6] if len(args) > 6 else False, x.ndim - weight.ndim + 1
                means = _transposed(weight, groups) if transposed else weight.flatten(2).mean(dim=2)
            case "addmm" | "mm" | "linear":
                x, weight = args[1:3] if name == "addmm" else args[:2]
                groups, dim, means = 1, x.ndim - 1, weight if name == "linear" else weight.t()
            case _:
                return False
        if not self.flow(x) or self.flow(weight):
            return False
        flow = {key: value for key, value in self.flow(x).items() if key[0] != "site"}
        layout = self._spatial(x)
        if layout is None:  # pooled: what is known of before that
            flow = self.flow(x)
        elif any(key[0] == "layer" for key in flow):
            flow |= self._site(x, layout)
        channels = x.shape[dim]
        own = self._name(weight, name)
        mean = x.detach().float().movedim(dim, 0).flatten(1).mean(dim=1).cpu()
        number = len(self.layers)
        edges = self.edges(flow, channels, dim)
        self.layers.append(Layer(own, name, means.detach().float().cpu(), groups, mean, edges))
        self.flows[out] = {("layer", number): (labels(out.shape[dim], out.ndim, dim),)}
        return True

    def _name(self, weight: Tensor, kind: str) -> str:
        name = self.names.get(weight.data_ptr()) or (self.running[-1] if self.running else "") or kind
        self.calls[name] = self.calls.get(name, 0) + 1
        return name if self.calls[name] == 1 else f"{name} (call {self.calls[name]})"

    def _spatial(self, tensor: Tensor) -> Layout | None:
        """Its layout, if it has more than one place in space."""
        if self.where.records.get(tensor) is None:
            return None
        layout = self.where.layout(tensor)
        wide = layout is not None and layout.sizes["h"] * layout.sizes["w"] > 1
        return layout if wide else None

    def _site(self, tensor: Tensor, layout: Layout) -> Flow:
        """The tensor as a source of its own: each place has the label of its channel."""
        shape = layout.to_grid(tensor).shape
        if self.numbers.get(tensor, (0, -1))[1] != tensor._version:  # new, or overwritten since
            self.numbers[tensor] = (len(self.sites), tensor._version)
            self.sites.append(_Site(layout, shape[1], tensor, tensor._version))
            self._keep(len(self.sites) - 1)
        own = labels(shape[1], 5, 1).float().expand(shape)  # exact, and grids are numbers with a point
        return {("site", self.numbers[tensor][0]): (compressed(layout.from_grid(own).int()),)}

    def _keep(self, number: int) -> None:
        """Keep the tensor, or (in a second forward) only the sums that are wanted of it."""
        site = self.sites[number]
        if self.wanted is not None:
            if number in self.wanted and site.tensor is not None:
                rows, found, of = self.wanted[number]
                found[number] = of._sums(site.tensor, site.layout, rows)
            site.tensor = None
            return
        total = 0
        for other in reversed(self.sites):
            total += other.tensor.numel() * other.tensor.element_size() if other.tensor is not None else 0
            if total > KEPT_BYTES:
                other.tensor = None

    def _write(self, out: Tensor, flow: Flow) -> None:
        """Something was written into memory of which nothing was known, perhaps a part of a larger tensor."""
        known = self.written.get(_memory(out), (None, {}))[1]
        self.written[_memory(out)] = (out, known | flow)

    def _note(self, flow: Flow, operation: str) -> None:
        for kind, number in flow:
            if kind == "layer":
                self.mixes.setdefault(self.layers[number].name, operation)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """Means of transposed kernels `(in, out / groups, ...)` as `(out, in / groups)`."""
    means = weight.flatten(2).mean(dim=2)
    return torch.cat([block.t() for block in means.chunk(groups)])
