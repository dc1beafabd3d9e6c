"""What a run over a data set consists of: networks, methods, metrics, and what all cells share.

All of it can be sent to another process. What was given by name travels by name and is made again there, so
that files of one's own (`path.py:Class`) need not be importable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tubelens.errors import InputError, OptionError
from tubelens.evaluate.identity import differing, scores, source
from tubelens.loading import load_model
from tubelens.methods import METHODS, method
from tubelens.methods.protocol import Method
from tubelens.metrics import METRICS, metric
from tubelens.model import BlackBox, InputSpec, Model, TorchModel
from tubelens.running import Precision, Run
from tubelens.zoo.adapt import ADAPTED

TargetRule = Literal["predicted", "label"]
"""What is explained on each clip: the strongest class, or that of the manifest."""
PIECE = 1 << 24
MOST_THREADS = 1024
LAST_SEED = 2**31 - 1
"""Seeds are kept in 32 bits."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a run: how it is loaded, and what the run calls it.

    Attributes:
        model: a name, as for `load_model`, or a model.
        weights, input, labels, device, seed, trust, adapt: as for `load_model`; without meaning for a model.
        trained: spectrum of the clips it was trained on, such as `visible` or `ir`, for the report.
        name: what the run calls it; by default the network's name and its weights.
    """

    model: str | Model
    weights: str | None = None
    input: str | None = None
    labels: tuple[str, ...] | None = None
    trained: str = ""
    name: str = ""
    device: str = "cpu"
    seed: int = 0
    trust: bool = False
    adapt: str | None = None

    def load(self) -> Model:
        """The model; see `load_model` for what can go wrong."""
        if not isinstance(self.model, str):
            return self.model
        try:
            return load_model(
                self.model,
                self.weights,
                input=self.input,
                seed=self.seed,
                labels=self.labels,
                device=self.device,
                trust=self.trust,
                adapt=self.adapt,
            )
        except SystemExit as error:
            raise OptionError(f"{self.model}: ended the program (exit code {error.code})") from error


@dataclass(frozen=True)
class Settings:
    """What all cells of a run share, fixed when the run is made.

    Attributes:
        target: what is explained on each clip.
        sampling, frames, stride: which frames make a clip, where that is not the network's own recipe.
        precision, batch: of scoring. Batches are of eight unless told, whatever pays.
        threads: of the CPU, on which the order of sums depends.
        device: kind of the device, likewise.
    """

    target: TargetRule = "predicted"
    sampling: str | None = None
    frames: int | None = None
    stride: int | None = None
    precision: Precision = "fp32"
    batch: int | None = None
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("stride", 1), ("batch", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name} must be at least {least}, not {value}")
        if self.threads > MOST_THREADS:
            raise OptionError(f"threads must be at most {MOST_THREADS}, not {self.threads}")
        if self.target not in ("predicted", "label"):
            raise OptionError(f"target must be predicted or label, not {self.target!r}")

    @property
    def shared(self) -> dict[str, Any]:
        """For the store."""
        return asdict(self)

    @property
    def run(self) -> Run:
        """How methods and metrics score: nothing depends on how long something took."""
        return Run(batch=self.batch, precision=self.precision, steady=True)

    def spec(self, model: Model) -> InputSpec:
        """What clips are read for a model; one of a spec is decoded once for all models that have it."""
        spec = model.spec
        if self.sampling is not None:
            spec = replace(spec, sampling=self.sampling)
        if self.frames is not None:
            spec = replace(spec, frames=self.frames)
        if self.stride is not None:
            sampling = self.sampling or "dense"  # as `model.read` takes a stride
            spec = replace(spec, stride=self.stride, rate=None, sampling=sampling)
        return spec


@dataclass(frozen=True)
class Asked:
    """A method or a metric of a run.

    Attributes:
        kind: which of the two.
        given: what was written, or the object.
        name: what the run calls it: the name in the table and the options that are not the defaults. The
            seed of a method is no part of it.
        made: the object.
        seeds: with which a method is run; one for those that draw nothing.
    """

    kind: Literal["method", "metric"]
    given: Any
    name: str
    made: Any
    seeds: tuple[int, ...] = (0,)

    def __reduce__(self) -> tuple[Any, ...]:
        return asked, (self.kind, self.given, self.seeds)

    @property
    def draws(self) -> bool:
        """Whether a method has a seed."""
        return self.kind == "method" and _has_seed(self.made)

    def at(self, seed: int) -> Any:
        """The method with that seed."""
        return replace(self.made, seed=seed) if self.draws else self.made

    @property
    def facts(self) -> dict[str, Any]:
        """For the store; other facts under an old name mean that the name has come to stand for another."""
        written = source(self.given, self.made)
        own = {} if written is None else {"source": written}
        if self.kind == "method":
            return {"repr": repr(self.at(0)), "needs": str(self.made.needs), **own}
        return {
            **own,
            "repr": repr(self.made),
            "kind": str(self.made.kind),
            "higher_is_better": self.made.higher_is_better,
            "needs_truth": bool(self.made.needs_truth),
            **({"truth_directs": True} if getattr(self.made, "truth_directs", False) else {}),
        }


def asked(kind: Literal["method", "metric"], given: Any, seeds: Sequence[int] = (0,)) -> Asked:
    """A method or a metric from what is written, or from the object.

    Args:
        kind: which.
        given: a name with options in brackets if wanted, or the object.
        seeds: for methods that draw, unless they say which.

    Raises:
        OptionError: unknown name or option, or an object that is neither.
    """
    made = _made(kind, given) if isinstance(given, str) else given
    if kind == "method" and not isinstance(made, Method):
        raise OptionError(f"{made!r} is not a method (`tubelens methods` lists them)")
    if kind == "metric" and not all(hasattr(made, a) for a in ("kind", "higher_is_better", "needs_truth")):
        raise OptionError(f"{made!r} is not a metric (`tubelens metrics` lists them)")
    own: tuple[int, ...] = (0,)
    if kind == "method" and _has_seed(made):
        own = tuple(seeds)
        if made.seed != 0 or (isinstance(given, str) and "seed=" in given.replace(" ", "")):
            own = (made.seed,)
    return Asked(kind, given, _name(kind, given, made), made, own)


def _made(kind: str, written: str) -> Any:
    try:
        return method(written) if kind == "method" else metric(written)
    except SystemExit as error:
        raise OptionError(f"{written}: ended the program (exit code {error.code})") from error


def _table(kind: str) -> Mapping[str, Any]:
    return METHODS if kind == "method" else METRICS


def _has_seed(made: Any) -> bool:
    return is_dataclass(made) and any(f.name == "seed" and f.init for f in fields(made))


def _name(kind: str, given: Any, made: Any) -> str:
    """`rise(n=500)`: equal for equal objects, however they were written."""
    known = [name for name, entry in _table(kind).items() if getattr(entry, "make", entry) is type(made)] or [
        given.partition("(")[0].strip() if isinstance(given, str) else _place(type(made))
    ]
    return known[0] + _options(made, without=("seed",) if kind == "method" else ())


def _place(kind: type[Any]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _options(made: Any, without: Sequence[str]) -> str:
    if not is_dataclass(made):
        return ""
    options = []
    for f in fields(made):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        value = getattr(made, f.name)
        if f.init and f.name not in without and not _equal(value, default):
            bare = isinstance(value, str) and value.isidentifier()
            options.append(f"{f.name}={value if bare else repr(value)}")
    return f"({', '.join(options)})" if options else ""


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)


@dataclass(frozen=True)
class Job:
    """All that a worker must know."""

    networks: tuple[Network, ...]
    methods: tuple[Asked, ...]
    metrics: tuple[Asked, ...]
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if not self.networks or not self.methods:
            raise OptionError("a run needs at least one model and one method")
        for what, rows in (("method", self.methods), ("metric", self.metrics)):
            names = [row.name for row in rows]
            for name in names:
                if names.count(name) > 1:
                    raise OptionError(f"{what} {name} is named twice: name it once")
        for seed in (seed for m in self.methods for seed in m.seeds):
            if not 0 <= seed <= LAST_SEED:
                raise OptionError(f"seeds must be whole numbers from 0 to {LAST_SEED}, not {seed}")

    def cells(self, truth: bool) -> list[tuple[int, int, int]]:
        """(method, seed, metric) of every score of one clip and model, as positions in the lists.

        Args:
            truth: whether it is known where the evidence lies; without it, metrics that need it are left out.
        """
        return [
            (i, seed, j)
            for i, m in enumerate(self.methods)
            for seed in m.seeds
            for j, metric in enumerate(self.metrics)
            if truth or not metric.made.needs_truth
        ]

    @property
    def maps(self) -> list[tuple[int, int]]:
        """(method, seed) of every map of one clip and model."""
        return [(i, seed) for i, m in enumerate(self.methods) for seed in m.seeds]


# ── what a model is ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Known:
    """What the run must know of a loaded model.

    Attributes:
        name: what the run calls it.
        labels: its classes.
        spec: what clips it is fed, the run's sampling included.
        facts: for the store: network, weights, their hash, and the like.
    """

    name: str
    labels: tuple[str, ...] | None
    spec: InputSpec
    facts: dict[str, Any]


def known(network: Network, model: Model, settings: Settings) -> Known:
    """What a model is, for the store."""
    facts = {
        "network": model.name,
        "weights": model.weights,
        "trained": network.trained,
        "hash": fingerprint(model, network.model if isinstance(network.model, str) else ""),
        "input": repr(model.spec),
        "output": model.output,
        "layer": getattr(model, "layer", None),
        "scores": scores(model),
    }
    labels = None if model.labels is None else tuple(model.labels)
    return Known(network.name or _called(network, model), labels, settings.spec(model), facts)


def _called(network: Network, model: Model) -> str:
    """Name, weights and adaptation; of a weights file its name alone, so that runs can be moved."""
    weights, adapted, how = str(model.weights).partition(ADAPTED)
    if isinstance(network.model, str) and ":" in network.model and network.weights in (None, "random"):
        called = network.model
    elif weights in ("as given", model.name) or model.name in weights:
        called = model.name
    else:
        called = f"{model.name} {Path(weights).name if '/' in weights else weights}"
    return called + adapted + how


def fingerprint(model: Model, file: str = "") -> str:
    """SHA-256 of a network's parameters and buffers, or of a black box's file; empty where it has neither."""
    digest = hashlib.sha256()
    if isinstance(model, BlackBox):
        own = str(model.weights).partition(ADAPTED)[0]
        paths = [Path(p) for p in (own, file) if p and Path(p).is_file()]
        if not paths:
            return ""
        with paths[0].open("rb") as opened:
            while piece := opened.read(PIECE):
                digest.update(piece)
        return digest.hexdigest()
    for name, value in sorted(_state(model).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _state(model: TorchModel) -> dict[str, torch.Tensor]:
    state = model.module.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


HOW = {
    "hash": "its weights were others",
    "scores": "it scored one and the same clip otherwise: what it is fed, or what it computes, was another",
    "source": "its source file was another",
    "digest": "its file or frames were others",
    "truth": "its boxes, masks or truth were others",
}
"""What is said of facts that say nothing themselves."""


def changed(what: str, name: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> InputError | None:
    """Why a name of a run no longer stands for what it stood for; None where it does."""
    differ = differing(now, then)
    if not differ:
        return None
    key = differ[0]
    how = HOW.get(key) or f"its {key} was {_short(then.get(key))} and is {_short(now.get(key))}"
    return OptionError(
        f"{what} {name!r} is no longer what it was when this run was made ({how}): give it another name,"
        " or give another --out"
    )


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 120 else f"{said[:117]}..."
