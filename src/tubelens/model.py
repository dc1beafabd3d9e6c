"""What is explained: a scorer (any callable), or a torch model whose layers can be read.

`TorchModel` is final. A new family of networks is a recipe that fills its fields (see `tubelens.zoo`), never
a subclass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.clip import READERS, Clip
from tubelens.errors import InputError, LayerError, OptionError, ScoreError, TubelensError, nearest
from tubelens.layout import Layout
from tubelens.target import ScoreKind

Video = str | PathLike[str] | np.ndarray | Tensor
"""A file, a folder of frames, or frames `(t, h, w, c)`."""
LayoutOf = Callable[[tuple[int, int, int]], Layout]
"""A layout for a clip of so many frames, rows and columns."""
Layouts = Mapping[str, Layout | LayoutOf]


def resolved(known: Layout | LayoutOf, clip: Sequence[int]) -> Layout:
    """A layout for a clip; frames, height and width come last in the shape `clip`."""
    if isinstance(known, Layout):
        return known
    frames, height, width = clip[-3:]
    return known((frames, height, width))


def same(out: Any) -> Any:
    """What a network returns, as it is."""
    return out


@runtime_checkable
class Scorer(Protocol):
    """A black box: clips in [0, 1], before normalisation, to scores."""

    @property
    def output(self) -> ScoreKind:
        """What the scores are."""
        ...

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """Scores of a batch of clips."""
        ...


@dataclass(frozen=True)
class InputSpec:
    """What a network was trained on, and so how a video becomes its clip.

    Attributes:
        frames: clip length.
        size: height and width of the centre crop.
        resize: the short side in pixels, or height and width, before the crop; None: the short side just
            covers the crop.
        stride: frames from one sampled frame to the next in training, used by dense sampling.
        rate: frames a second of training; where given, dense sampling takes the stride that comes nearest to
            it on each video, instead of `stride`.
        bands: what the channels are.
        antialias: whether resizing filters before it shrinks.
        sampling: which frames `model.read` takes unless told: `uniform`, `dense`, `segments`, `random`.
        snippet: consecutive frames in each segment of `segments` sampling.
        views: clips and crops that the network is tested with, where that is known (`model.views`).
    """

    frames: int = 16
    size: tuple[int, int] = (112, 112)
    resize: int | tuple[int, int] | None = None
    stride: int = 1
    rate: float | None = None
    bands: tuple[str, ...] = ("R", "G", "B")
    antialias: bool = True
    sampling: str = "uniform"
    snippet: int = 1
    views: tuple[int, int] = (1, 1)

    def stride_at(self, fps: float) -> int:
        """The training stride on a video of `fps` frames a second, at least 1."""
        return self.stride if self.rate is None else max(1, round(fps / self.rate))


def _reader(kind: str) -> Callable[..., Any]:
    if kind not in READERS:
        raise OptionError("reading video needs `import tubelens`, which registers the readers")
    return READERS[kind]


def _read(self: Any, path: Video, sampling: str | None = None, **options: Any) -> Clip:
    """The clip of a video as the recipe makes it: its own frames, resize and crop.

    `path` is a video file, a folder of frames or an array; `sampling` is `uniform`, `dense`, `segments` or
    `random`, by default the recipe's; `options` are `start` (seconds), `stride`, `frames`, `seed` and `pad`,
    in place of the recipe's, and `span` (seconds, `(start, end)`): the part of the video that is sampled.
    """
    clip: Clip = _reader("clip")(path, self.spec, sampling, **options)
    return clip


def _windows(self: Any, path: Video, **options: Any) -> Any:
    """The whole video as overlapping clips, streamed; `tubelens.explain` takes it in place of a clip."""
    return _reader("windows")(path, self.spec, **options)


def _views(self: Any, path: Video, **options: Any) -> Any:
    """Views of the video: `clips` spread over it, each in `crops` spread over the longer side.

    By default as many as the network is tested with; `tubelens.explain` takes them in place of a clip.
    """
    return _reader("views")(path, self.spec, **options)


@dataclass(frozen=True)
class Attention:
    """How a transformer's attention is composed, for the methods that read it.

    Attributes:
        blocks: names of the modules within whose calls attention is computed, in order.
        kind: `joint`: all tokens attend to all; `divided`: time first, then space, in each block; `windows`:
            within (shifted) windows; `pooled`: keys or queries at a lower resolution.
        readout: what the head reads: the `class` token, the `mean` of the tokens, or an attentive `pooler`.
        tokens: layout of the tokens between blocks, the class token being its prefix.
    """

    blocks: tuple[str, ...]
    kind: Literal["joint", "divided", "windows", "pooled"]
    readout: Literal["class", "mean", "pooler"]
    tokens: Layout | LayoutOf


@dataclass(frozen=True, eq=False)
class TorchModel:
    """A torch network and the few facts that the methods need.

    Attributes:
        module: the network; never changed.
        pack: canonical clips `(b, c, t, h, w)` in [0, 1] to whatever the network eats; differentiable, a
            fresh object each call.
        unpack: scores `(b, k)` out of whatever the network returns.
        spec: what it was trained on.
        output: whether the scores are logits, softmax probabilities or sigmoids.
        labels: names of the classes.
        layer: the layer to explain; None: the last one whose output still has time and space.
        layouts: layouts declared for layers, by name, fixed or made for a clip's size; found by following the
            forward where absent.
        find: a submodule by name; by default `module.get_submodule`.
        walk: all submodules with their names; by default `module.named_modules()`.
        attention: how its attention is composed, for the attention methods.
        tubes: why tubes do not apply, where that is known; empty otherwise.
        name, weights: what it is called and where its weights came from, for the record.
        verified: how the weights were recognised as those of this network; empty: by names and shapes alone.
    """

    module: nn.Module
    pack: Callable[[Tensor], Any]
    unpack: Callable[[Any], Tensor] = same
    spec: InputSpec = InputSpec()
    output: ScoreKind = "logits"
    labels: Sequence[str] | None = None
    layer: str | None = None
    layouts: Layouts = field(default_factory=dict)
    find: Callable[[str], nn.Module] | None = None
    walk: Callable[[], Iterable[tuple[str, nn.Module]]] | None = None
    attention: Attention | None = None
    tubes: str = ""
    name: str = "model"
    weights: str = "as given"
    verified: str = ""

    @property
    def device(self) -> torch.device:
        """Where its parameters are; the CPU where it has none."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """Scores of a batch, in inference mode, without a graph.

        Raises:
            ScoreError: NaN or infinity.
            InputError: the network does not take clips of this size.
        """
        with untouched(self.module), torch.no_grad():
            return checked(self.run(clips), self.name)

    def run(
        self, clips: Float[Tensor, "b c t h w"], rows: Callable[[], int] | None = None
    ) -> Float[Tensor, "_ k"]:
        """One forward as the caller's context has set it up; shapes are checked, values are not.

        Args:
            clips: a batch.
            rows: asked afterwards how many scores are expected, where a hook widened the batch on the way.
        """
        packed = self.pack(clips.to(self.device))
        try:
            scores = self.unpack(self.module(packed))
        except Exception as error:  # whatever someone's network raises
            if isinstance(error, TubelensError) or is_out_of_memory(error):
                raise
            said = str(error).strip().split("\n")[0][:300]
            reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
            shape = "x".join(map(str, clips.shape))
            raise InputError(f"{self.name} does not accept a clip batch of {shape}: {reason}") from error
        expected = rows() if rows else clips.shape[0]
        if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[0] != expected:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise InputError(
                f"{self.name} must return scores of shape ({expected}, classes), got {got}: "
                "give an `unpack` that takes them out"
            )
        return scores

    def submodule(self, layer: str) -> nn.Module:
        """A layer by name.

        Raises:
            LayerError: no such layer; the nearest names are offered.
        """
        try:
            found = self.find(layer) if self.find else self.module.get_submodule(layer)
        except (AttributeError, KeyError, ValueError, RuntimeError):  # the last by scripted modules
            found = None
        if found is None or not layer:
            names = [name for name, _ in self.submodules()]
            raise LayerError(f"{self.name} has no layer {layer!r}{nearest(layer, names)}")
        return found

    def submodules(self) -> list[tuple[str, nn.Module]]:
        """Every layer with its name."""
        return [(n, m) for n, m in (self.walk or self.module.named_modules)() if n]

    def layout(self, layer: str, clip: Sequence[int]) -> Layout | None:
        """The layout that is declared for a layer, None where it is to be found.

        Args:
            layer: its name.
            clip: the shape of a clip or of a batch: frames, height and width come last.
        """
        known = self.layouts.get(layer)
        return None if known is None else resolved(known, clip)

    read = _read
    windows = _windows
    views = _views


@dataclass(frozen=True, eq=False)
class BlackBox:
    """Any function from clips to scores: a served model, another framework, an ensemble.

    Methods that need only scores (`tubelens methods`) explain it; it has no layers and no gradients.

    Attributes:
        score: clips `(b, c, t, h, w)` in [0, 1] to scores `(b, k)`, as a tensor or an array.
        spec, output, labels, name, weights: as those of `TorchModel`.
    """

    score: Callable[[Tensor], Any]
    spec: InputSpec = InputSpec()
    output: ScoreKind = "logits"
    labels: Sequence[str] | None = None
    name: str = "black box"
    weights: str = "as given"

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """Scores of a batch, as float32 on the CPU.

        Raises:
            ScoreError: NaN or infinity.
            InputError: it failed, or gave something else than one row of scores a clip.
        """
        shape = "x".join(map(str, clips.shape))
        try:
            with torch.no_grad():
                given = self.score(clips)
                scores = torch.as_tensor(given, dtype=torch.float32, device="cpu").detach()
        except Exception as error:  # whatever someone's function raises
            if isinstance(error, TubelensError) or is_out_of_memory(error):
                raise
            said = str(error).strip().split("\n")[0][:300]
            raise InputError(
                f"{self.name} does not accept a clip batch of {shape}: {type(error).__name__}: {said}"
            ) from error
        if scores.ndim != 2 or scores.shape[0] != clips.shape[0]:
            got = tuple(scores.shape)
            raise InputError(
                f"{self.name} must return scores of shape ({clips.shape[0]}, classes), got {got}"
            )
        return checked(scores, self.name)

    read = _read
    windows = _windows
    views = _views


Model = TorchModel | BlackBox
M = TypeVar("M")


def frozen(model: M, clips: Float[Tensor, "b c t h w"]) -> M:
    """The model with whatever its `pack` (or `score`) takes from a clip taken from these intact ones.

    So a normalisation by the clip's own mean does not change when evidence is removed from it.
    """
    for name in ("pack", "score"):
        part = getattr(model, name, None)
        if hasattr(part, "frozen"):
            return replace(model, **{name: frozen_part(part, clips)})  # type: ignore[type-var]
    return model


def frozen_part(part: M, clips: Float[Tensor, "b c t h w"]) -> M:
    """A `pack` or a `score` likewise; as it is where it takes nothing from a clip."""
    freeze = getattr(part, "frozen", None)
    return part if freeze is None else freeze(clips)


def network(model: Scorer, who: str) -> TorchModel:
    """The model, if it is a network and no black box.

    Raises:
        LayerError: naming `who` needs one.
    """
    if isinstance(model, TorchModel):
        return model
    raise LayerError(
        f"{who} needs a network's layers or gradients, and {getattr(model, 'name', 'this model')} is a black"
        " box that gives only scores: choose rise, occlusion, lime or shap, or give the network itself"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on an accelerator or on the CPU (a plain RuntimeError there)."""
    said = ("not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(s in str(error) for s in said)


def checked(scores: Float[Tensor, "b k"], name: str) -> Float[Tensor, "b k"]:
    """The scores, if they are all finite.

    Raises:
        ScoreError: naming the clips of the batch that are not.
    """
    if not bool(torch.isfinite(scores).all()):
        bad = (~torch.isfinite(scores)).any(dim=1).nonzero().flatten().tolist()
        raise ScoreError(
            f"{name} returned NaN or infinity for clip {', '.join(map(str, bad))} of a batch of"
            f" {scores.shape[0]}: check its weights and the normalisation of its input"
        )
    return scores


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Inference mode for the time of the block; then mode, buffers and random state as they were.

    Flags are set directly, because a network may override `train()`. A buffer that the forward changed is
    written back: rebound where it was replaced, copied where it was written in place.
    """
    modes = [(m, m.training) for m in module.modules()]
    buffers = [
        (m, key, value, value._version, value.clone())
        for m in module.modules()
        for key, value in m._buffers.items()
        if value is not None
    ]
    cpu = torch.get_rng_state()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        for m, _ in modes:
            m.training = False
        yield
    finally:
        for m, mode in modes:
            m.training = mode
        for m, key, value, version, copy in buffers:
            if m._buffers.get(key) is not value:
                m._buffers[key] = value
            if value._version != version:
                with torch.no_grad():
                    value.copy_(copy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
