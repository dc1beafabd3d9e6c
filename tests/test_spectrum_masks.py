"""Masks that tell bands apart, which method can, and what is said where one cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import tubelens as tl
from tests.spectral import clip, network, waves
from tests.test_api import labelled
from tests.videos import write_video
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.masks import EachBand, Grids, Independent, Windows
from tubelens.methods import METHODS, method
from tubelens.methods.protocol import Scalable
from tubelens.methods.spectrum import apart, check, seed_of, tells
from tubelens.running import Run
from tubelens.target import Logit, Prob

SIZE = (3, 5, 4)


# ── masks ────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_mask_on_one_group_after_the_other() -> None:
    family = Grids(5, SIZE, (2, 2, 2), seed=1)
    groups = ([3, 0], [1], [2])
    each = EachBand(family, groups, 4)
    found, own = each.batch(0, 15), family.batch(0, 5)
    assert (len(each), each.size) == (15, SIZE)
    assert own.min() < 0.1
    for i in range(5):
        for g, group in enumerate(groups):
            for band in range(4):
                expected = own[i] if band in group else torch.ones(SIZE)
                assert torch.equal(found[3 * i + g, band], expected)
    for start, stop in ((0, 1), (1, 2), (2, 9), (14, 15), (4, 4)):
        torch.testing.assert_close(each.batch(start, stop), found[start:stop], atol=1e-6, rtol=0)


def test_masks_of_their_own_for_every_group() -> None:
    families = [Grids(6, SIZE, (2, 2, 2), seed=s) for s in (1, 2)]
    both = Independent(families, ([1], [2, 0]))
    found = both.batch(2, 6)
    assert (len(both), found.shape) == (6, (4, 3, *SIZE))
    assert torch.equal(found[:, 1], families[0].batch(2, 6))
    for band in (0, 2):
        assert torch.equal(found[:, band], families[1].batch(2, 6))
    with pytest.raises(OptionError, match="every band once"):
        Independent(families, ([1], [2]))
    with pytest.raises(OptionError, match="of one size"):
        Independent([families[0], Windows(SIZE, SIZE, SIZE)], ([0], [1]))


def test_seeds_of_groups_are_pinned_and_never_shared() -> None:
    assert [seed_of(7, 0), seed_of(0, 0)] == [7, 0]
    assert seed_of(0, 1) == int(np.random.SeedSequence((0, 1)).generate_state(1, np.uint64)[0])
    seeds = {seed_of(seed, group) for seed in range(20) for group in range(6)}
    assert len(seeds) == 120
    torch.Generator().manual_seed(seed_of(-3, 1))  # any seed will do
    way = tl.RISE(n=4, cells=(2, 3, 3), seed=5)
    assert torch.equal(way.masks(SIZE, 0).batch(0, 4), way.masks(SIZE).batch(0, 4))
    assert not torch.equal(way.masks(SIZE, 1).batch(0, 4), way.masks(SIZE).batch(0, 4))
    longer = replace(way, n=9)
    assert torch.equal(longer.masks(SIZE, 1).batch(0, 4), way.masks(SIZE, 1).batch(0, 4))


# ── who can ──────────────────────────────────────────────────────────────────────────────────────────────

ALL = ("each", "independent")
CAN = {
    **dict.fromkeys(("rise", "lime", "shap", "extremal"), ALL),
    **dict.fromkeys(("occlusion", "scorecam", "sidu", "saliency", "inputxgradient"), ALL[:1]),
    **dict.fromkeys(("integrated_gradients", "smoothgrad", "guided_backprop", "gated", "swag"), ALL[:1]),
    **dict.fromkeys(("guided_gradcam", "selective"), ALL[:1]),
}


def test_the_table_tells_who_can() -> None:
    assert {name: entry.spectrum for name, entry in METHODS.items() if entry.spectrum} == CAN
    assert tells(method("selective(base=rise)")) == ALL
    assert tells(method("selective(base=gradcam)")) == ()


@pytest.mark.parametrize("name", METHODS)
def test_who_cannot_says_so_in_one_line(name: str) -> None:
    can = CAN.get(name, ())
    for way in ("each", "independent"):
        written = f"{name}(spectrum={way})"
        if way in can and name != "selective":
            made = method(written)
            assert made.spectrum == way
            assert method(repr(made).replace(type(made).__name__, name, 1)) == made
            continue
        with pytest.raises(OptionError) as caught:
            method(written)
        said = str(caught.value)
        assert "\n" not in said
        if name == "selective":
            assert "base=inputxgradient(spectrum=each)" in said
        elif can:
            assert "spectrum must be joint or each, not 'independent'" in said
            assert said.endswith("use spectrum='each'")
        else:
            assert "its layer has mixed the bands" in said
            assert "rise, occlusion, shap, integrated_gradients" in said


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tl.RISE(groups="RGB|IR"), r"tells none apart: give spectrum='each' too"),
        (lambda: tl.RISE(spectrum="each", groups=3), "RISE: groups are names of bands, as in RGB.IR, not 3"),
        (lambda: tl.RISE(spectrum="each", normaliser="published"), "once for every band"),
        (lambda: tl.RISE(spectrum="independent", parity="icpr2022"), "needs normaliser='density'"),
        (lambda: tl.SIDU(spectrum="each", parity="icpr2022"), "leave spectrum at joint"),
        (lambda: tl.methods.method("gradcam", spectrum="each"), "mixed the bands"),
        (lambda: tl.methods.method("tubes", groups="RGB|IR"), "no option 'groups': its layer has mixed"),
    ],
)
def test_refused(make, said: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(OptionError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "way", "said"),
    [
        (tl.Occlusion(), "independent", r"Occlusion: .*one box after the other.*use spectrum='each'"),
        (tl.ScoreCAM(), "independent", r"the same for every band; use"),
        (tl.Saliency(), "independent", r"masks nothing; use"),
        (tl.RISE(), "every", r"RISE: spectrum must be joint or each or independent, not 'every'$"),
    ],
)
def test_refused_where_types_are_not_checked(made: Any, way: str, said: str) -> None:
    """The tests' own type checker would be first at the constructor."""
    object.__setattr__(made, "spectrum", way)
    with pytest.raises(OptionError, match=said):
        check(made)


@pytest.mark.parametrize("name", [name for name in CAN if name != "selective"])
def test_one_group_has_nothing_to_tell_apart(name: str) -> None:
    rng = np.random.default_rng(0)
    grey = Clip.from_array(rng.random((4, 12, 12, 1), dtype=np.float32), bands=("IR",))
    for way in CAN[name]:
        made = method(name, spectrum=way)
        with pytest.raises(OptionError, match="one group of bands, IR, so there is nothing to tell apart"):
            made(network(), grey, [Logit(0)])
    with pytest.raises(OptionError, match="one group of bands, RGBIR, so"):
        apart(method(name, spectrum="each", groups="RGBIR"), clip())
    with pytest.raises(OptionError, match="no band begins 'LWIR'"):
        method(name, spectrum="each", groups="RGB|LWIR")(network(), clip(), [Logit(0)])


# ── what comes out, whoever made it ──────────────────────────────────────────────────────────────────────

EFFORT = {
    "rise": "n=6, cells=(2, 3, 3)",
    "occlusion": "window=(2, 6, 6)",
    "lime": "n=10, supervoxels=6",
    "shap": "n=12, supervoxels=6",
    "extremal": "steps=2, volumes=(0.2,), cells=(2, 3, 3)",
    "integrated_gradients": "steps=3",
    "smoothgrad": "n=3",
    "swag": "n=8",
}
WAYS = [(name, way) for name in CAN for way in CAN[name] if name != "selective"]


def written(name: str, way: str, more: str = "") -> str:
    return f"{name}({', '.join(part for part in (EFFORT.get(name), f'spectrum={way}', more) if part)})"


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_the_same_by_any_batch_and_as_costed(name: str, way: str, tmp_path: Path) -> None:
    model, video, made = network(), waves(), method(written(name, way))
    targets = [made.explains(0), made.explains(1)]
    found = made(model, video, targets, Run(precision="fp32", batch=1))
    again = made(model, video, targets, Run(precision="fp32", batch=7))
    for why, other in zip(found, again, strict=True):
        assert why.bands == other.bands == ("RGB", "IR")
        torch.testing.assert_close(why.grid, other.grid, atol=2e-5, rtol=1e-3)
        for band in why.bands:
            torch.testing.assert_close(why.band(band).grid, other.band(band).grid, atol=2e-5, rtol=1e-3)
        assert why.band("IR").provenance.label.endswith(" · IR")
        assert not torch.allclose(why.band("IR").grid, why.band("RGB").grid, atol=1e-6)
        if getattr(made, "bands", "sum") != "max" and name != "swag":
            torch.testing.assert_close(why.grid, sum(why.band(b).grid for b in why.bands))
    if isinstance(made, Scalable):
        passes = made.passes(model, video)
        (one,) = made(model, video, targets[:1])
        assert (passes.backwards or one.provenance.backwards) == one.provenance.backwards
        if not passes.backwards:
            assert passes.forwards == one.provenance.forwards
        fitted = made.afford(150, model, video)
        assert fitted.spectrum == way
        cost = fitted.passes(model, video)
        assert 100 < cost.forwards + 3 * cost.backwards <= 150 or name in ("scorecam", "sidu", "occlusion")
        assert cost.forwards + 3 * cost.backwards <= 150
        with pytest.raises(OptionError, match="at least"):
            made.afford(2, model, video)
    why = found[1]
    why.save(tmp_path / "a.safetensors")
    kept = tl.load_explanation(tmp_path / "a.safetensors")
    assert kept.bands == why.bands
    for band in why.bands:
        assert torch.equal(kept.band(band).grid, why.band(band).grid)
        assert kept.band(band).provenance == why.band(band).provenance


@pytest.mark.parametrize("name", ["rise", "lime", "shap"])
@pytest.mark.parametrize("way", ALL)
def test_seed_decides(name: str, way: str) -> None:
    """Twelve regions are too many for SHAP to score every set."""
    model, video = network(), waves()
    one, same, other = (
        method(written(name, way, f"seed={seed}"))(model, video, [Prob(1)])[0] for seed in (3, 3, 4)
    )
    for band in one.bands:
        assert torch.equal(one.band(band).grid, same.band(band).grid)
        assert not torch.equal(one.band(band).grid, other.band(band).grid)


def test_windows_are_stitched_band_by_band(tmp_path: Path) -> None:
    """Against explaining every window by itself and averaging by hand."""
    frames = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), dtype=np.uint8)
    video = write_video(tmp_path / "long.mkv", frames, fps=10)
    model, way = labelled(), tl.InputXGradient(spectrum="each", groups="RG|B")
    windows = model.windows(video, stride=1)
    whole = tl.explain(model, windows, way, "swim")
    assert (whole.bands, len(windows) > 1) == (("RG", "B"), True)
    for band in whole.bands:
        total, count = torch.zeros(whole.size), torch.zeros(whole.size[0], 1, 1)
        for first, window in windows:
            total[first : first + 8] += tl.explain(model, window, way, "swim").band(band).saliency
            count[first : first + 8] += 1
        torch.testing.assert_close(whole.band(band).saliency, total / count)
    whole.save(tmp_path / "a.safetensors")
    kept = tl.load_explanation(tmp_path / "a.safetensors")
    assert torch.equal(kept.band("B").saliency, whole.band("B").saliency)


def test_motion_of_every_band() -> None:
    """Both parts of the split, band by band, are the base's band again."""
    model, video = network(), waves()
    base = tl.InputXGradient(spectrum="each")
    (why,) = base(model, video, [Logit(1)])
    parts = [
        tl.Selective(base=base, part=part, sigma=0.5)(model, video, [Logit(1)])[0]
        for part in ("motion", "appearance")
    ]
    for band in why.bands:
        both = [part.band(band).grid for part in parts]
        assert all(half.abs().max() > 0 for half in both)
        torch.testing.assert_close(both[0] + both[1], why.band(band).saliency)
        assert torch.equal(both[0] != 0, (parts[0].grid != 0) & (why.band(band).saliency != 0))


def test_a_budget_too_small_for_all_groups() -> None:
    with pytest.raises(OptionError, match="at least 5 forwards"):
        tl.RISE(spectrum="each").afford(4, network(), clip())
    assert tl.RISE(spectrum="each").afford(9, network(), clip()).n == 4
    assert tl.RISE(spectrum="independent").afford(9, network(), clip()).n == 8
