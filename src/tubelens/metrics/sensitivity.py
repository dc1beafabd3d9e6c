"""Max-sensitivity: how much a map may change when the clip hardly does (Yeh et al., "On the (In)fidelity and
Sensitivity of Explanations", NeurIPS 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.metrics.anchors import CENTRE, DIFFERENCE, RANDOM, TIME_MEAN, frame_difference, time_mean
from tubelens.metrics.protocol import Score
from tubelens.metrics.stability import cost
from tubelens.model import Scorer
from tubelens.running import RUN, Run
from tubelens.target import Target


def changes(
    original: Float[Tensor, "T H W"], perturbed: Sequence[Float[Tensor, "T H W"]]
) -> Float64[Tensor, "n"]:
    """`|phi(x + e) - phi(x)| / |phi(x)|` of each perturbed map, Euclidean norms over the voxels.

    Voxels that are NaN, which no crop saw, are left out; NaN where phi(x) is zero throughout.
    """
    seen = ~original.isnan()
    whole = original[seen].double()
    moved = torch.stack([other[seen].double() - whole for other in perturbed])
    found: Tensor = moved.norm(dim=1) / whole.norm()
    return found.where(whole.norm() > 0, torch.nan)


def nearby(clip: Clip, radius: float, n: int, seed: int = 0) -> Iterator[Clip]:
    """Clips within `radius` of every pixel (an L-infinity ball), uniformly drawn, one after the other.

    Pixels are cut off at 0 and 1, which keeps them in the ball: other values are no pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = clip.pixels
    for _ in range(n):
        noise = (2 * torch.rand(pixels.shape, generator=generator) - 1) * radius
        yield replace(clip, pixels=(pixels + noise.to(pixels)).clamp(0, 1))


@dataclass(frozen=True)
class MaxSensitivity:
    """The largest relative change of the map over small changes of the clip: lower is steadier.

    `max_i |phi(x + e_i) - phi(x)| / |phi(x)|` over n noises in the ball (a lower bound of the maximum over
    all of it). The method runs n times more, its own seed staying the same. Low alone is no merit: a map that
    looks at no model is steadiest, as the anchors show, of which `random` and `centre` do not change at all.

    Deviations: the quotient, as in captum (the definition has the difference alone, which depends on a map's
    units); noisy pixels are cut off at 0 and 1.

    Attributes:
        n: noises.
        radius: of the ball, in pixels of [0, 1].
        seed: of the noises.
    """

    kind: ClassVar[Literal["method"]] = "method"
    higher_is_better: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    n: int = 10
    radius: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 < self.radius < 1:
            raise OptionError(
                f"max-sensitivity needs n >= 1 and a radius within (0, 1), not {self.n} and {self.radius}"
            )

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        method: Any,
        target: Target,
        run: Run = RUN,
        explanation: Explanation | None = None,
    ) -> Score:
        """The score of a method on one clip; facts: the `mean` change, and its `sd` over the noises."""
        quiet = replace(run, progress=None, seconds=None)  # a map that is cut short differs for that alone
        made: list[Explanation] = []
        if explanation is None:
            made = [method(model, clip, [target], quiet)[0]]
        original = explanation or made[0]
        motions = []
        for i, other in enumerate(nearby(clip, self.radius, self.n, self.seed)):
            made.append(method(model, other, [target], quiet)[0])
            motions.append(frame_difference(other.pixels.cpu()))
            run.tell(i + 1, self.n)
        maps = [e.saliency for e in made[-self.n :]]
        found = changes(original.saliency, maps)
        still = changes(time_mean(original.saliency), [time_mean(m) for m in maps])
        motion = changes(frame_difference(clip.pixels.cpu()), motions)
        anchors = {RANDOM: 0.0, CENTRE: 0.0, DIFFERENCE: float(motion.max()), TIME_MEAN: float(still.max())}
        value = float(found.max())
        notes = ("the map is zero throughout, so that no change of it has a size",) if value != value else ()
        return Score(
            value,
            self.higher_is_better,
            anchors,
            forwards=sum(map(cost, made)),
            facts={"mean": float(found.mean()), "sd": float(found.std(correction=0))},
            notes=notes,
        )
