"""Gradients at the pixels that are guided: by ReLUs that pass only the positive, or by a layer's map."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.explanation import Explanation
from tubelens.fill import Fill, fill
from tubelens.methods.gradients import Bands, contrast, known_bands, over_bands
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder, voxels
from tubelens.methods.spectrum import Apart, ByBand, apart, check
from tubelens.model import Model
from tubelens.pixels import AtLayer, backward, layer_of
from tubelens.relu import Relus
from tubelens.running import RUN, Run
from tubelens.target import Logit, Target

EMPTY = "the layer's map is nowhere positive: nothing speaks for the target there, and this map is zero"
BLOCKED = "no positive gradient comes through the ReLUs for this target, and the map is zero"


@dataclass(frozen=True)
class GuidedBackprop:
    """The gradient, with every ReLU passing back only what is positive on both ways.

    Springenberg et al., "Striving for Simplicity: The All Convolutional Net" (ICLR workshop 2015), section
    3.4. At a ReLU with output f, what comes back as R' goes on as `R = 1[f > 0] 1[R' > 0] R'`. Every call of
    ReLU is met: modules and functions, in place or not; other activations keep their true gradient. The map
    is sharp, but partly the clip's own edges: it changes little when the later layers are randomised (Adebayo
    et al., "Sanity Checks for Saliency Maps", NeurIPS 2018).

    Attributes:
        bands: how the bands are reduced. The paper shows them in colour; the largest magnitude is ours.
        spectrum: `"each"`: also a map of every group of bands, see `tubelens.methods.gradients`.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "gradients"
    explains: ClassVar[type[Logit]] = Logit

    bands: Bands = "max"
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        known_bands(self.bands)

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from one forward and a backward a target.

        Raises:
            LayerError: the network has no ReLU; a black box.
            OptionError, ScoreError: see `tubelens.pixels.gradients`.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        found = backward(model, clip.pixels[None], targets, run, relus=Relus())
        maps = over_bands(found.gradients[:, 0], self.bands)
        by_band = split.reduced(found.gradients[:, 0], partial(over_bands, bands=self.bands))
        record = Recorder(self, model, found.scores, backwards=len(targets), start=start)
        notes: list[tuple[str, ...]] = [() if bool(m.any()) else (BLOCKED,) for m in maps]
        return _written(record, maps, notes, clip, targets, by_band)

    def per_band(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> Float[Tensor, "n c t h w"]:
        """The guided gradient, band by band."""
        return backward(model, clip.pixels[None], targets, run, relus=Relus()).gradients[:, 0]


@dataclass(frozen=True)
class GuidedGradCAM:
    """Guided backpropagation times Grad-CAM: fine detail, where the class is.

    Selvaraju et al., "Grad-CAM" (ICCV 2017), section 3.2. With `a_k` the mean over the cells of the true
    gradient at feature k, the second factor is `ReLU(sum_k a_k A_k)`, interpolated linearly to the voxels
    where its cells look. One forward serves both factors.

    Attributes:
        layer: of Grad-CAM; None: the model's default.
        bands: how the bands of the guided gradient are reduced.
        spectrum: `"each"`: also a map of every group of bands, see `tubelens.methods.gradients`.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "gradients"
    explains: ClassVar[type[Logit]] = Logit

    layer: str | None = None
    bands: Bands = "max"
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        known_bands(self.bands)

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from one forward, and for each target a backward and one of the head.

        Raises:
            LayerError: the network has no ReLU, or no such layer; a black box.
            OptionError, ScoreError: see `tubelens.pixels.gradients`.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        layer, dry = layer_of(model, clip.pixels[None], self.layer)
        found = backward(model, clip.pixels[None], targets, run, layer, Relus())
        assert found.layer is not None
        weights = found.layer.gradients[:, 0].mean(dim=(2, 3, 4))
        cams = torch.einsum("nk,kthw->nthw", weights, found.layer.activations[0]).clamp_min(0)
        gates, notes = _over_clip(found.layer, cams, clip)
        maps = over_bands(found.gradients[:, 0], self.bands) * gates
        by_band = split.reduced(found.gradients[:, 0], lambda own: over_bands(own, self.bands) * gates)
        record = Recorder(
            self,
            model,
            found.scores,
            layer=layer,
            forwards=1 + dry,
            backwards=2 * len(targets),
            start=start,
        )
        return _written(record, maps, notes, clip, targets, by_band)


@dataclass(frozen=True)
class Gated:
    """The magnitude of input times gradient, where the last layer's map is positive.

    `sum_c |(I_c - B_c) dS/dI_c| G`, with the gate `G = ReLU(sum_k g_k A_k) / max`, in [0, 1], of the layer's
    activations A and gradients g, cell by cell; on an affine head that is the positive part of the tubes. It
    is interpolated linearly to the voxels where its cells look. The first factor finds the pixels, the second
    keeps out those of objects that speak against the target or for nothing. One forward and one backward a
    target give both.

    Ours. On planted clips (30 a task) it finds more (average precision .91 by shape, .97 by direction) than
    either factor (.76 and .95, .79 and .57), and more than with the magnitude of the signed sum (.88, .95) or
    a black baseline (.72, .66).

    Attributes:
        layer: of the gate; None: the model's default.
        baseline: what pixels are compared with: a fill or its name. `mean`, each band's mean over the clip,
            so that dark objects count like bright ones.
        spectrum: `"each"`: also a map of every group of bands, see `tubelens.methods.gradients`.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "gradients"
    explains: ClassVar[type[Logit]] = Logit

    layer: str | None = None
    baseline: str | Fill = "mean"
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        fill(self.baseline)

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from one forward and a backward a target.

        Raises:
            LayerError: no such layer; a black box.
            OptionError, ScoreError: see `tubelens.pixels.gradients`.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        layer, dry = layer_of(model, clip.pixels[None], self.layer)
        found = backward(model, clip.pixels[None], targets, run, layer)
        assert found.layer is not None
        cams = torch.einsum(
            "nkthw,kthw->nthw", found.layer.gradients[:, 0], found.layer.activations[0]
        ).clamp_min(0)
        peaks = cams.amax(dim=(1, 2, 3), keepdim=True)
        gates, notes = _over_clip(found.layer, cams / peaks.clamp_min(1e-30), clip)
        product = found.gradients[:, 0] * contrast(clip, self.baseline).to(found.gradients)
        maps = over_bands(product, "abs") * gates
        by_band = split.reduced(product, lambda own: over_bands(own, "abs") * gates)
        record = Recorder(
            self,
            model,
            found.scores,
            layer=layer,
            forwards=1 + dry,
            backwards=len(targets),
            start=start,
        )
        return _written(record, maps, notes, clip, targets, by_band)


def _over_clip(
    layer: AtLayer, cams: Float[Tensor, "n t h w"], clip: Clip
) -> tuple[Float[Tensor, "n T H W"], list[tuple[str, ...]]]:
    """The maps over the voxels, and for each a note where it is empty."""
    notes: list[tuple[str, ...]] = [() if bool(cam.any()) else (EMPTY,) for cam in cams]
    return torch.stack([layer.over_clip(cam, clip.size) for cam in cams]), notes


def _written(
    record: Recorder,
    maps: Float[Tensor, "n t h w"],
    notes: Sequence[tuple[str, ...]],
    clip: Clip,
    targets: Sequence[Target],
    by_band: ByBand,
) -> list[Explanation]:
    """One explanation a target, each with its own notes."""
    return [
        why
        for own, note, target, bands in zip(maps, notes, targets, by_band, strict=True)
        for why in replace(record, notes=note).write([voxels(own)], clip, [target], by_band=[bands])
    ]
