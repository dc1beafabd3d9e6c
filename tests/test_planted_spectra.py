"""Task `spectra`: one actor in visible light and in infrared, and each clip of one camera is enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool2d

from tubelens.planted import PlantedClip, generate, labels
from tubelens.planted.generator import KINDS
from tubelens.planted.scene import STEPS
from tubelens.planted.spectra import CLUTTER

RGB, IR = slice(0, 3), slice(3, 4)
SEEDS = range(6)


def changed(a: PlantedClip, b: PlantedClip, bands: slice) -> torch.Tensor:
    return (a.pixels[bands] - b.pixels[bands]).abs().amax(dim=0) > 1e-6


def around(mask: torch.Tensor) -> torch.Tensor:
    """With the two pixels next to it, where antialiased tips end."""
    return max_pool2d(mask.float(), 5, stride=1, padding=2) > 0


def moves(weights: torch.Tensor) -> np.ndarray:
    """Displacement of a mask's middle (rows, columns) a frame, by least squares over whole frames of it."""
    t = torch.arange(len(weights), dtype=torch.float64)
    rows, cols = (torch.arange(n, dtype=torch.float64) for n in weights.shape[1:])
    mass = weights.double().sum(dim=(1, 2))
    y = (weights.double().sum(dim=2) * rows).sum(dim=1) / mass
    x = (weights.double().sum(dim=1) * cols).sum(dim=1) / mass
    return np.array([np.polyfit(t, values, 1)[0] for values in (y, x)])


def within(mask: torch.Tensor) -> bool:
    """In all frames, and never cut off by the border."""
    edge = mask[:, [0, 1, -2, -1]].any() or mask[:, :, [0, 1, -2, -1]].any()
    return bool(mask.any(dim=(1, 2)).all() and not edge)


def test_the_actor_is_painted_in_both_spectra_and_nothing_else_is() -> None:
    for seed in SEEDS:
        clip = generate(seed, "spectra")
        assert clip.parts == ("distractors", CLUTTER, "actor")
        assert clip.truth_bands == clip.bands == ("R", "G", "B", "IR")
        for bands in (RGB, IR):
            gone = changed(clip, clip.without_truth(), bands)
            assert not (gone & ~around(clip.truth)).any()
            assert (gone & clip.truth).sum() > 0.9 * clip.truth.sum()
        assert not changed(clip, clip.without("distractors"), IR).any()
        assert changed(clip, clip.without("distractors"), RGB).any()
        assert not changed(clip, clip.without(CLUTTER), RGB).any()
        assert changed(clip, clip.without(CLUTTER), IR).any()


def test_the_truth_is_the_whole_actor_whatever_is_in_the_way() -> None:
    """It is painted last in both spectra, so its mask is the same there."""
    for seed in SEEDS:
        clip = generate(seed, "spectra")
        alone = clip.without_distractors()
        for bands in (RGB, IR):
            full = alone.pixels[bands][:, clip.truth]
            assert torch.allclose(full, clip.pixels[bands][:, clip.truth], atol=0.35)  # rims are antialiased
            assert ((full - clip.pixels[bands][:, clip.truth]).abs().amax(dim=0) < 1e-6).float().mean() > 0.7
        assert not (clip.truth & clip.distractor).any()


@pytest.mark.parametrize("label", range(4))
def test_the_label_is_the_way_that_the_actor_moves(label: int) -> None:
    assert labels("spectra")[label] == f"actor moves {list(STEPS)[label]}"
    found = 0
    for seed in range(40):
        clip = generate(seed, "spectra", label)
        if not within(clip.truth):
            continue
        found += 1
        speed, step = moves(clip.truth), np.array(list(STEPS.values())[label])
        assert speed @ step > 0.9 * np.linalg.norm(speed)
        assert 0.6 < np.linalg.norm(speed) < 1.5
    assert found > 3


def test_what_is_hot_and_invisible_stands_still() -> None:
    """Of the clutter, what is as hot as the actor has no direction: motion tells them apart in infrared."""
    found = 0
    for seed in range(30):
        clip = generate(seed, "spectra")
        bare = clip.without("actor", CLUTTER).pixels[3]
        added = clip.without("actor").pixels[3] - bare
        hot = added > 0.2
        if within(hot):
            found += 1
            assert np.abs(moves(hot)).max() < 0.35  # where cold things pass before it its middle shifts
    assert found > 3


def test_contrast_in_visible_light_varies_and_the_actor_is_hot_in_infrared() -> None:
    contrasts, heats = [], []
    for seed in range(60):
        clip = generate(seed, "spectra")
        ground = clip.without("actor", "distractors", CLUTTER)
        inner = clip.truth & ~around(~clip.truth)
        if not inner.any():
            continue
        red, green, blue = (float(clip.pixels[i][inner].mean()) for i in range(3))
        contrasts.append(red - (green + blue) / 2)
        heats.append(float((clip.pixels[3] - ground.pixels[3])[inner].mean()))
    assert min(contrasts) > 0.1
    assert max(contrasts) > 2.5 * min(contrasts)
    assert min(heats) > 0.05


def test_another_label_changes_the_actor_alone() -> None:
    for seed in SEEDS:
        one, two = generate(seed, "spectra", 0), generate(seed, "spectra", 3)
        assert not ((one.pixels - two.pixels).abs().amax(dim=0) > 1e-6)[~around(one.truth | two.truth)].any()
        assert torch.equal(one.without_truth().pixels, two.without_truth().pixels)


def test_classes_are_drawn_evenly() -> None:
    counts = np.bincount([generate(s, "spectra", frames=2, size=16).label for s in range(80)])
    assert len(counts) == len(KINDS["spectra"].classes) == 4
    assert counts.min() >= 10
