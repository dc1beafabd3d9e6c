"""What is known of the evidence in a clip: masks over its voxels, from planting, boxes or segmentations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from tubelens.errors import InputError

Kind = Literal["planted", "boxes", "masks"]


@dataclass(frozen=True, eq=False)
class Truth:
    """Where the evidence lies.

    Attributes:
        mask: voxels of the clip that are evidence.
        distractor: voxels that look like evidence and decide nothing; None where nobody knows.
        events: parts of the evidence that are all needed, each a mask; empty: one part.
        bands: names of the bands that carry it; empty where nobody knows.
        kind: how it is known. Boxes hold more than the evidence, so mass outside the object but inside the
            box counts as found.
    """

    mask: Bool[Tensor, "T H W"]
    distractor: Bool[Tensor, "T H W"] | None = None
    events: tuple[Bool[Tensor, "T H W"], ...] = ()
    bands: tuple[str, ...] = ()
    kind: Kind = "planted"

    def __post_init__(self) -> None:
        for name, other in (("distractor", self.distractor), *(("event", e) for e in self.events)):
            if other is not None and other.shape != self.mask.shape:
                raise InputError(
                    f"the {name} mask is {tuple(other.shape)} and the evidence {tuple(self.mask.shape)}:"
                    " both must have the clip's frames, height and width"
                )

    @property
    def volume(self) -> float:
        """Share of the voxels that are evidence."""
        return float(self.mask.double().mean())
