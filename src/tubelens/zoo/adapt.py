"""A network that was trained on colour, on other bands: infrared alone, or infrared beside colour.

`replicate` feeds one band as R, G and B, and leaves the network as it is. `average` and `extend` give a copy
of it another first convolution, whose kernels are made of the trained ones (as Wang et al., Temporal Segment
Networks, ECCV 2016, section 3.2, initialise a network on flow from one on colour).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from numbers import Real
from typing import Any, Literal, SupportsFloat, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.errors import InputError, OptionError, nearest
from tubelens.model import BlackBox, Model, TorchModel, frozen, frozen_part, is_out_of_memory
from tubelens.target import ScoreKind, logits
from tubelens.zoo.first import First, first_convolutions
from tubelens.zoo.recipe import Pack

Way = Literal["replicate", "average", "extend"]
Numbers = SupportsFloat | Sequence[SupportsFloat] | None
M = TypeVar("M", TorchModel, BlackBox)
ADAPTED = ", adapted: "
"""Between what weights are called and how the network was adapted."""
FAR, ROUNDING = 0.05, 1e-5
"""By how much scores that should be equal may differ: as a share of what another clip makes of them (half
precision), and of the scores themselves."""
WRITTEN = "replicate:LWIR, average:LWIR,SWIR or extend:R,G,B,LWIR"


@dataclass(frozen=True)
class Replicate:
    """One band as all the bands that a network takes.

    Attributes:
        fed: the network's own `pack`, or a black box's `score`.
        bands: how many it takes.
    """

    fed: Callable[[Tensor], Any]
    bands: int = 3

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> Any:
        """What the network is fed, or what the black box says.

        Raises:
            InputError: clips of more than one band.
        """
        if clips.shape[1] != 1:
            raise InputError(f"the adapted model takes 1 band, the clip has {clips.shape[1]}")
        return self.fed(clips.expand(-1, self.bands, -1, -1, -1))

    def frozen(self, clips: Float[Tensor, "b c t h w"]) -> Replicate:
        """With the statistics of these intact clips, where the network's `pack` takes any."""
        return replace(self, fed=frozen_part(self.fed, clips.expand(-1, self.bands, -1, -1, -1)))


def adapt(
    model: M,
    way: Way,
    bands: Sequence[str] | str,
    *,
    new: Literal["mean", "zero"] = "mean",
    mean: Numbers = None,
    std: Numbers = None,
) -> M:
    """A network on R, G, B as one on other bands. The model that is given is never changed.

    - `replicate`, `bands=("LWIR",)`: the band is fed as R, G and B, each normalised as the network does. The
      network is the same object. This also works for Keras and ONNX files and for black boxes.
    - `average`, any `bands`: a copy whose first convolutions take these bands, each with the mean of the
      three kernels, times 3 / n: n equal bands are answered as three were, where R, G and B are normalised
      alike.
    - `extend`, `bands` with R, G, B among them: a copy in which these keep their kernels and every new band
      has the mean of the three, all times 3 / n. With `new="zero"` the kernels of new bands are nought and
      nothing is scaled: on R, G, B the network says what it said, until it is trained on.

    Wang et al. do not scale: their kernels are repeated as they are, and their batch norms are estimated
    again on the new bands. Without training, activations would grow by n / 3.

    Args:
        model: a network whose bands are R, G and B, in whatever order.
        way: see above.
        bands: of the clips that the adapted network takes, in order; a single name is one band.
        new: kernels of the bands that `extend` adds.
        mean: of the normalisation of the new bands, one number or one each, in the numbers that the network
            is fed (0..255 where it is fed these); default the mean over R, G and B.
        std: likewise.

    Returns:
        The model with its new bands; `weights` tells how it was adapted.

    Raises:
        OptionError: bands that do not fit the way, a network on something else than R, G and B, or one of
            which no convolution is fed the bands themselves, or that does more with them than its first
            convolutions do (it is tried out: with nought as the new kernels it must say what it said).
    """
    bands = _checked(model, way, (bands,) if isinstance(bands, str) else tuple(bands))
    told = f"{model.weights}{ADAPTED}{way} {','.join(bands)}" + (" (new: zero)" if new == "zero" else "")
    if way == "replicate":
        if new != "mean" or mean is not None or std is not None:
            raise OptionError("new, mean and std are for average and extend: replicate needs none")
        spec = replace(model.spec, bands=bands)
        part = "pack" if isinstance(model, TorchModel) else "score"
        fed: dict[str, Any] = {part: Replicate(getattr(model, part))}
        return replace(model, spec=spec, weights=told, **fed)
    if new not in ("mean", "zero") or (new == "zero" and way == "average"):
        raise OptionError(f"new must be mean or (to extend) zero, not {new!r}")
    if not isinstance(model, TorchModel):
        raise OptionError(f"{model.name} is a black box: it can only be adapted by replicate")
    if model.find is not None:
        raise OptionError(
            f"{model.name} is no plain torch network (Keras, or several networks fused), whose first"
            f" convolution cannot be changed here: use replicate, or {way} networks before they are fused"
        )
    with torch.inference_mode(False), torch.autocast(model.device.type, enabled=False):
        change = _Normalisation(model.spec.bands, bands, way, mean, std)
        adapted: Any = _other_kernels(model, way, bands, new, change, told)
    return adapted  # type: ignore[no-any-return]


def _other_kernels(
    model: TorchModel, way: str, bands: tuple[str, ...], new: str, change: _Normalisation, told: str
) -> TorchModel:
    """A copy of the network with other first convolutions, once it is known that these are all it takes."""
    pack = _changed(model.pack, change)
    if (change.mean is not None or change.std is not None) and pack is model.pack:
        raise OptionError(f"{model.name} has a `pack` of its own: put mean and std of the new bands there")
    found = first_convolutions(model)
    try:
        module = copy.deepcopy(model.module)
    except Exception as error:  # modules may hold what cannot be copied
        raise OptionError(f"{model.name} cannot be copied ({type(error).__name__}): use replicate") from error
    made = replace(model, module=module, verified="")
    try:
        alike = (_extends if way == "extend" else _averages)(model, made, found, bands)
    except Exception as error:  # whatever someone's network, or its `pack`, raises
        if is_out_of_memory(error):
            raise
        said = str(error).strip().split("\n")[0][:300]
        several = "1 band" if len(bands) == 1 else f"{len(bands)} bands"
        raise OptionError(f"{model.name} cannot be fed {several}: {said}: use replicate") from error
    if not alike:
        raise OptionError(
            f"{model.name} does more with the bands than its first convolution does (another part reads them"
            " too, or its `pack` orders or weighs them): use replicate"
        )
    _set(model, module, found, _mixing(model.spec.bands, bands, way, new))
    return replace(made, pack=pack, spec=replace(model.spec, bands=bands), weights=told)


def _extends(model: TorchModel, made: TorchModel, found: Sequence[First], bands: tuple[str, ...]) -> bool:
    """Whether the copy says what the network says, whatever new bands hold, their kernels being nought."""
    old = model.spec.bands
    shown = _noise(model, len(bands))
    own = shown[:, [bands.index(band) for band in old]]
    model = frozen(model, own)  # a mean of the whole clip would be another with more bands
    _set(model, made.module, found, _mixing(old, bands, "extend", "zero"))
    pack = _changed(model.pack, _Normalisation(old, bands, "extend", None, None))
    return _alike(replace(made, pack=pack)(shown), model(own), model(1 - own), model.output)


def _averages(model: TorchModel, made: TorchModel, found: Sequence[First], bands: tuple[str, ...]) -> bool:
    """Whether equal bands are answered as three of them are, and others whatever their order."""

    def averaged(names: tuple[str, ...]) -> TorchModel:
        _set(model, made.module, found, _mixing(model.spec.bands, names, "average", "mean"))
        change = _Normalisation(model.spec.bands, names, "average", None, None)
        return replace(made, pack=_changed(model.pack, change))

    shown = _noise(model, len(bands))
    grey, three = shown[:, :1], averaged(model.spec.bands)
    want, other = (three(x.expand(-1, 3, -1, -1, -1)) for x in (grey, 1 - grey))
    several = averaged(bands)
    equal = several(grey.expand_as(shown))
    return _alike(equal, want, other, model.output) and _alike(
        several(shown.roll(1, dims=1)), several(shown), other, model.output
    )


def _noise(model: TorchModel, bands: int) -> Float[Tensor, "1 c t h w"]:
    """A clip of coloured patches, the same each time."""
    spec, numbers = model.spec, torch.Generator().manual_seed(0)
    patches = torch.rand(1, bands, min(spec.frames, 4), 4, 4, generator=numbers)
    return nn.functional.interpolate(patches, (spec.frames, *spec.size))


def _alike(
    got: Float[Tensor, "1 k"], want: Float[Tensor, "1 k"], other: Float[Tensor, "1 k"], kind: ScoreKind
) -> bool:
    """Whether scores are those wanted, seen against those of another clip."""
    z, z_want, z_other = (logits(s.detach().double(), kind) for s in (got, want, other))
    far = float((z_want - z_other).abs().max())
    return float((z - z_want).abs().max()) <= FAR * far + ROUNDING * float(z_want.abs().max())


def adapt_as_written(model: Model, written: str) -> Model:
    """The model adapted as written: `replicate:LWIR`, `average:LWIR,SWIR`, `extend:R,G,B,LWIR`.

    Raises:
        OptionError: it cannot be read, or the network cannot be adapted so.
    """
    way, colon, names = (part.strip() for part in written.partition(":"))
    bands = [name.strip() for name in names.split(",")]
    if way not in get_args(Way):
        raise OptionError(f"--adapt {written}{nearest(way, get_args(Way))}: write it as in {WRITTEN}")
    if not colon or not all(bands):
        raise OptionError(f"--adapt {written}: names of bands are missing: write it as in {WRITTEN}")
    try:
        return adapt(model, way, bands)  # type: ignore[type-var, arg-type]
    except OptionError as error:
        raise OptionError(f"--adapt {written}: {error}") from error


def _checked(model: Model, way: str, bands: tuple[str, ...]) -> tuple[str, ...]:
    if way not in get_args(Way):
        raise OptionError(f"networks are adapted by {', '.join(get_args(Way))}, not by {way!r}")
    if sorted(model.spec.bands) != ["B", "G", "R"]:
        raise OptionError(
            f"{model.name} takes the bands {', '.join(model.spec.bands)}: only networks on R, G and B are"
            " adapted"
        )
    if not bands or len(set(bands)) < len(bands) or not all(isinstance(b, str) and b for b in bands):
        raise OptionError(f"bands must have one name each, not {', '.join(map(str, bands)) or 'none'}")
    if way == "replicate" and len(bands) != 1:
        raise OptionError(
            f"replicate feeds one band as R, G and B, not {len(bands)} ({', '.join(bands)}): average or"
            " extend take several"
        )
    if way == "extend" and not set(bands) > {"R", "G", "B"}:
        raise OptionError(
            f"extend adds bands to R, G and B, as in R,G,B,LWIR: {', '.join(bands)} "
            + ("adds none" if set(bands) <= {"R", "G", "B"} else "lacks some of them: average does without")
        )
    return bands


def _mixing(old: Sequence[str], bands: Sequence[str], way: str, new: str) -> Float[Tensor, "n 3"]:
    """How much of each of the old kernels the kernel of every band is."""
    rows = torch.zeros(len(bands), len(old))
    for row, band in zip(rows, bands, strict=True):
        if way == "extend" and band in old:
            row[old.index(band)] = 1.0
        elif new == "mean":
            row[:] = 1 / len(old)
    return rows if new == "zero" else rows * len(old) / len(bands)


def _set(model: TorchModel, module: nn.Module, found: Sequence[First], mixing: Float[Tensor, "n 3"]) -> None:
    """Other kernels for the first convolutions of a copy of the network."""
    for first in found:
        _set_one(model.module, module, first, mixing)


def _set_one(original: nn.Module, module: nn.Module, first: First, mixing: Float[Tensor, "n 3"]) -> None:
    """In place of the kernels of each group of three channels."""
    conv: Any = module.get_submodule(first.name)
    old: Any = original.get_submodule(first.name)
    weight = old.weight.detach()
    mix = mixing.to(weight)
    parts, at = [], 0
    for group in first.groups:
        parts.append(weight[:, at : group[0]])
        # columns of the mixing are bands, channels of the group the bands in the network's own order
        order = torch.tensor([c for _, c in sorted(zip(first.seen(group), group, strict=True))])
        parts.append(torch.einsum("nk,ok...->on...", mix, weight[:, order]))
        at = group[-1] + 1
    parts.append(weight[:, at:])
    made = torch.cat(parts, dim=1).contiguous(memory_format=torch.preserve_format)
    conv.weight = nn.Parameter(made, requires_grad=old.weight.requires_grad)
    conv.in_channels = made.shape[1]
    for name in (first.name, first.name.rpartition(".")[0]):  # some tokenisers count the channels themselves
        owner: Any = module.get_submodule(name)
        if getattr(original.get_submodule(name), "num_channels", None) == mixing.shape[1]:
            owner.num_channels = len(mixing)


@dataclass(frozen=True)
class _Normalisation:
    """A `Pack` for other bands."""

    old: tuple[str, ...]
    bands: tuple[str, ...]
    way: str
    mean: Numbers
    std: Numbers

    def __call__(self, pack: Pack) -> Pack:
        """With one mean and deviation a band; bands enter in the order of the clip."""
        mean = self._numbers("mean", pack.mean, self.mean, pack.order, 0.0)
        std = self._numbers("std", pack.std, self.std, pack.order, 1.0)
        return replace(pack, mean=mean, std=std, order=tuple(range(len(self.bands))) if pack.order else ())

    def _numbers(
        self,
        what: str,
        known: tuple[float, ...],
        given: Numbers,
        order: tuple[int, ...],
        none: float,
    ) -> tuple[float, ...]:
        kept = self.old if self.way == "extend" else ()
        fresh = [band for band in self.bands if band not in kept]
        if not known and given is None:
            return ()
        known = known or (none,) * len(self.old)
        # `order` says which band of the clip each channel is, and means are of channels
        of = {self.old[band]: known[channel] for channel, band in enumerate(order or range(len(self.old)))}
        values = [sum(known) / len(known)] * len(fresh) if given is None else _floats(given, len(fresh))
        if len(values) != len(fresh) or not all(map(math.isfinite, values)):
            raise OptionError(f"{what} must be one number, or one each for {', '.join(fresh)}, not {given}")
        if what == "std" and min(values) <= 0:
            raise OptionError(f"std must be more than 0, not {given}")
        of |= dict(zip(fresh, values, strict=True))
        return tuple(of[band] for band in self.bands)


def _floats(given: Any, n: int) -> list[float]:
    """One number `n` times, or those given; none where they are no numbers."""
    try:
        one = isinstance(given, Real) or getattr(given, "ndim", None) == 0
        return [float(given)] * n if one else [] if isinstance(given, str) else [*map(float, given)]
    except (TypeError, ValueError):
        return []


def _changed(pack: Callable[[Tensor], Any], change: Callable[[Pack], Pack]) -> Callable[[Tensor], Any]:
    """The `pack` with its normalisation changed, within whatever else it does to clips."""
    if isinstance(pack, Pack):
        return change(pack)
    inner = getattr(pack, "pack", None)
    if inner is not None and is_dataclass(pack) and not isinstance(pack, type):
        within = _changed(inner, change)
        return pack if within is inner else replace(pack, pack=within)
    return pack
