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
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.errors import InputError, OptionError, nearest
from tubelens.model import BlackBox, Model, TorchModel, frozen_part
from tubelens.zoo.first import First, first_convolutions
from tubelens.zoo.recipe import Pack

Way = Literal["replicate", "average", "extend"]
M = TypeVar("M", TorchModel, BlackBox)
ADAPTED = ", adapted: "
"""Between what weights are called and how the network was adapted."""
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
    bands: Sequence[str],
    *,
    new: Literal["mean", "zero"] = "mean",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> M:
    """A network on R, G, B as one on other bands. The model that is given is never changed.

    - `replicate`, `bands=("LWIR",)`: the band is fed as R, G and B, each normalised as the network does. The
      network is the same object. This also works for Keras and ONNX files and for black boxes.
    - `average`, any `bands`: a copy whose first convolutions take these bands, each with the mean of the
      three kernels, times 3 / n: n equal bands are answered as three were.
    - `extend`, `bands` with R, G, B among them: a copy in which these keep their kernels and every new band
      has the mean of the three, all times 3 / n. With `new="zero"` the kernels of new bands are nought and
      nothing is scaled: on R, G, B the network says what it said, until it is trained on.

    Wang et al. do not scale: their kernels are repeated as they are, and their batch norms are estimated
    again on the new bands. Without training, activations would grow by n / 3.

    Args:
        model: a network whose bands are R, G and B, in whatever order.
        way: see above.
        bands: of the clips that the adapted network takes, in order.
        new: kernels of the bands that `extend` adds.
        mean: of the normalisation of the new bands, one number or one each, in the numbers that the network
            is fed (0..255 where it is fed these); default the mean over R, G and B.
        std: likewise.

    Returns:
        The model with its new bands; `weights` tells how it was adapted.

    Raises:
        OptionError: bands that do not fit the way, a network on something else than R, G and B, or one of
            which no convolution is fed the bands themselves.
    """
    bands = _checked(model, way, tuple(bands))
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
    found = first_convolutions(model)
    kernels = _mixing(model.spec.bands, bands, way, new)
    try:
        module = copy.deepcopy(model.module)
    except Exception as error:  # modules may hold what cannot be copied
        raise OptionError(f"{model.name} cannot be copied ({type(error).__name__}): use replicate") from error
    for first in found:
        _replace(module, first, kernels)
    change = _Normalisation(model.spec.bands, bands, way, mean, std)
    pack = _changed(model.pack, change)
    if (mean is not None or std is not None) and pack is model.pack:
        raise OptionError(f"{model.name} has a `pack` of its own: put mean and std of the new bands there")
    changed: dict[str, Any] = {"module": module, "pack": pack, "weights": told}
    adapted = replace(model, spec=replace(model.spec, bands=bands), **changed)
    try:
        adapted(torch.full((1, len(bands), model.spec.frames, *model.spec.size), 0.5))
    except InputError as error:
        raise OptionError(f"{model.name} cannot be fed {len(bands)} bands: {error}: use replicate") from error
    return adapted


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
    if not bands or len(set(bands)) < len(bands) or not all(bands):
        raise OptionError(f"bands must have one name each, not {', '.join(bands) or 'none'}")
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


def _replace(module: nn.Module, first: First, mixing: Float[Tensor, "n 3"]) -> None:
    """Other kernels for a convolution, in place of those of each group of three channels."""
    conv: Any = module.get_submodule(first.name)
    weight = conv.weight.detach()
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
    conv.weight = nn.Parameter(made, requires_grad=conv.weight.requires_grad)
    conv.in_channels = made.shape[1]
    for name in (first.name, first.name.rpartition(".")[0]):  # some tokenisers count the channels themselves
        owner: Any = module.get_submodule(name)
        if getattr(owner, "num_channels", None) == mixing.shape[1]:
            owner.num_channels = len(mixing)


@dataclass(frozen=True)
class _Normalisation:
    """A `Pack` for other bands."""

    old: tuple[str, ...]
    bands: tuple[str, ...]
    way: str
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None

    def __call__(self, pack: Pack) -> Pack:
        """With one mean and deviation a band; bands enter in the order of the clip."""
        mean = self._numbers("mean", pack.mean, self.mean, pack.order, 0.0)
        std = self._numbers("std", pack.std, self.std, pack.order, 1.0)
        return replace(pack, mean=mean, std=std, order=tuple(range(len(self.bands))) if pack.order else ())

    def _numbers(
        self,
        what: str,
        known: tuple[float, ...],
        given: float | Sequence[float] | None,
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
        if given is None:
            values = [sum(known) / len(known)] * len(fresh)
        else:
            values = [float(given)] * len(fresh) if isinstance(given, int | float) else [*map(float, given)]
        if len(values) != len(fresh) or not all(map(math.isfinite, values)):
            raise OptionError(f"{what} must be one number, or one each for {', '.join(fresh)}, not {given}")
        if what == "std" and min(values) <= 0:
            raise OptionError(f"std must be more than 0, not {given}")
        of |= dict(zip(fresh, values, strict=True))
        return tuple(of[band] for band in self.bands)


def _changed(pack: Callable[[Tensor], Any], change: Callable[[Pack], Pack]) -> Callable[[Tensor], Any]:
    """The `pack` with its normalisation changed, within whatever else it does to clips."""
    if isinstance(pack, Pack):
        return change(pack)
    inner = getattr(pack, "pack", None)
    if inner is not None and is_dataclass(pack) and not isinstance(pack, type):
        within = _changed(inner, change)
        return pack if within is inner else replace(pack, pack=within)
    return pack
