"""Networks on colour, fed other bands: whose kernels, whose normalisation, and where the maps land."""

from __future__ import annotations

import copy
from dataclasses import is_dataclass, replace
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tubelens as tl
from tests.conftest import order_one
from tests.test_contract import METHODS, Branched, made
from tests.test_contract import clip as smooth
from tests.test_untouched import assert_same, state
from tests.zoo.test_contract_zoo import NAMES as FAMILIES
from tests.zoo.test_contract_zoo import SIZES, family
from tubelens.errors import OptionError, TubelensError
from tubelens.model import BlackBox, InputSpec, TorchModel, frozen
from tubelens.planted import generate
from tubelens.running import Run
from tubelens.zoo.bundled import bundled
from tubelens.zoo.first import first_convolutions
from tubelens.zoo.recipe import Pack

SPEC = InputSpec(8, (24, 24), resize=(24, 24))
FOUR = ("R", "G", "B", "LWIR")
SLOW = ("i3d_rgb", "c3d", "pan_full_r50")
MEANS, STDS = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def colour(pack: Any = None, bands: tuple[str, ...] = ("R", "G", "B"), seed: int = 0) -> TorchModel:
    torch.manual_seed(seed)
    net = order_one(Branched(), torch.rand(1, 3, 8, 24, 24), seed)
    return TorchModel(
        net, pack or Pack(MEANS, STDS), spec=replace(SPEC, bands=bands), layer="relu", name="colour"
    )


def pixels(bands: int, seed: int = 3) -> Tensor:
    return torch.rand(2, bands, 8, 24, 24, generator=torch.Generator().manual_seed(seed))


def kernel(model: TorchModel) -> Tensor:
    return model.submodule("stem.0").weight.detach()


# ── what each way computes ───────────────────────────────────────────────────────────────────────────────


def test_replicate_is_the_network_on_three_equal_bands():
    model = colour()
    warm = tl.adapt(model, "replicate", bands=("LWIR",))
    x = pixels(1)
    assert torch.equal(warm(x), model(torch.cat([x, x, x], dim=1)))
    assert warm.module is model.module
    assert warm.spec.bands == ("LWIR",)
    assert warm.weights == "as given, adapted: replicate LWIR"
    with pytest.raises(TubelensError, match="takes 1 band, the clip has 3"):
        warm(pixels(3))


def test_replicate_takes_black_boxes():
    model = colour()
    box = BlackBox(lambda clips: model(clips).numpy(), SPEC, name="box")
    warm = tl.adapt(box, "replicate", bands=["LWIR"])
    x = pixels(1)
    torch.testing.assert_close(warm(x), model(x.expand(-1, 3, -1, -1, -1)))
    assert tl.explain(warm, video(1), "rise(n=4)", 1).saliency.std() > 0
    with pytest.raises(OptionError, match="box is a black box: it can only be adapted by replicate"):
        tl.adapt(box, "average", bands=("LWIR",))


def test_replicate_keeps_the_statistics_of_the_intact_clip():
    scored = colour(Pack(zscore=True))
    warm = tl.adapt(scored, "replicate", bands=("LWIR",))
    x = pixels(1)
    dark = x.clone()
    dark[:, :, 4:] = 0
    three = [v.expand(-1, 3, -1, -1, -1) for v in (x, dark)]
    torch.testing.assert_close(frozen(warm, x)(dark), frozen(scored, three[0])(three[1]))
    assert not torch.allclose(frozen(warm, x)(dark), warm(dark), atol=1e-3)


def test_average_has_the_mean_kernel_and_mean_normalisation():
    model = colour()
    adapted = tl.adapt(model, "average", bands=("NIR", "SWIR", "MWIR", "LWIR"))
    mean = kernel(model).mean(dim=1)
    assert kernel(adapted).shape[1] == 4
    for band in range(4):
        torch.testing.assert_close(kernel(adapted)[:, band], mean * 3 / 4)
    x = pixels(4)
    torch.testing.assert_close(adapted.pack(x), (x - 0.4) / 0.25)
    assert adapted.weights == "as given, adapted: average NIR,SWIR,MWIR,LWIR"


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_average_answers_equal_bands_as_the_network_answers_grey(n: int):
    model = colour(Pack((0.4,) * 3, (0.25,) * 3))
    adapted = tl.adapt(model, "average", bands=[f"b{i}" for i in range(n)])
    x = pixels(1)
    torch.testing.assert_close(
        adapted(x.expand(-1, n, -1, -1, -1)), model(x.expand(-1, 3, -1, -1, -1)), rtol=1e-4, atol=1e-4
    )


def test_extend_keeps_three_kernels_and_scales_them():
    model = colour()
    adapted = tl.adapt(model, "extend", bands=FOUR)
    old = kernel(model)
    want = torch.cat([old, old.mean(dim=1, keepdim=True)], dim=1) * 3 / 4
    torch.testing.assert_close(kernel(adapted), want)
    x = pixels(4)
    means = torch.tensor([*MEANS, 0.4]).view(-1, 1, 1, 1)
    stds = torch.tensor([*STDS, 0.25]).view(-1, 1, 1, 1)
    torch.testing.assert_close(adapted.pack(x), (x - means) / stds)


def test_extend_from_zero_says_what_the_network_said_whatever_the_new_bands_are():
    model = colour()
    adapted = tl.adapt(model, "extend", bands=(*FOUR, "SWIR"), new="zero")
    x, other = pixels(3), pixels(2, seed=4)
    torch.testing.assert_close(adapted(torch.cat([x, other], dim=1)), model(x), rtol=1e-5, atol=1e-5)
    assert "new: zero" in adapted.weights
    moved = copy.deepcopy(adapted.module)
    with torch.no_grad():
        moved.stem[0].weight[:, 3] += 1  # a kernel like the others, once it is trained
    assert not torch.allclose(replace(adapted, module=moved)(torch.cat([x, other], dim=1)), model(x))


def test_bands_find_their_kernels_whatever_the_order():
    """Fed B, G, R in 0..255 less a mean a channel, from clips whose bands stand in yet another order."""
    model = colour(Pack((90.0, 98.0, 102.0), scale=255.0, order=(2, 1, 0)))
    adapted = tl.adapt(model, "extend", bands=("LWIR", "G", "R", "B"), new="zero", mean=77)
    x, other = pixels(3), pixels(1, seed=4)
    mixed = torch.cat([other, x[:, [1]], x[:, [0]], x[:, [2]]], dim=1)
    torch.testing.assert_close(adapted(mixed), model(x), rtol=1e-3, atol=1e-2)
    want = 255 * mixed - torch.tensor([77.0, 98, 102, 90]).view(-1, 1, 1, 1)
    torch.testing.assert_close(adapted.pack(mixed), want)
    named = colour(bands=("B", "G", "R"))  # and a network that names its own bands so
    adapted = tl.adapt(named, "extend", bands=FOUR, new="zero")
    torch.testing.assert_close(adapted(torch.cat([x[:, [2, 1, 0]], other], dim=1)), named(x))


def test_given_normalisation_is_that_of_the_new_bands_alone():
    adapted = tl.adapt(colour(), "extend", bands=(*FOUR, "SWIR"), mean=(0.1, 0.2), std=2)
    assert adapted.pack.mean == (*MEANS, 0.1, 0.2)
    assert adapted.pack.std == (*STDS, 2.0, 2.0)
    adapted = tl.adapt(colour(Pack()), "average", bands=("LWIR", "SWIR"), mean=0.5)
    assert (adapted.pack.mean, adapted.pack.std) == ((0.5, 0.5), ())


@pytest.mark.parametrize(("way", "bands"), [("replicate", ("LWIR",)), ("average", FOUR), ("extend", FOUR)])
def test_the_network_that_was_given_stays_bit_for_bit_what_it_was(way: str, bands: tuple[str, ...]):
    model = colour()
    before, conv = state(model.module), model.submodule("stem.0")
    adapted = tl.adapt(model, way, bands=bands)
    if way != "replicate":
        with torch.no_grad():
            for p in adapted.module.parameters():
                p.add_(1)
        assert adapted.submodule("stem.0").in_channels == 4
    assert_same(before, state(model.module))
    assert conv is model.submodule("stem.0")
    assert conv.in_channels == 3
    assert model.spec.bands == ("R", "G", "B")


# ── which convolutions ───────────────────────────────────────────────────────────────────────────────────


class Narrow(nn.Module):
    """Two pathways on the bands, frames stacked in one; and a later layer of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Conv3d(3, 3, 3, (2, 1, 1), 1)
        self.fast = nn.Conv2d(24, 4, 3, 1, 1)
        self.late = nn.Conv3d(3, 4, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.late(self.slow(x)).mean(dim=(2, 3, 4))
        b = self.fast(x.transpose(1, 2).flatten(1, 2)).mean(dim=(2, 3))
        return self.fc(torch.cat([a, b], dim=1))


def test_every_pathway_and_no_later_layer_of_three_channels():
    torch.manual_seed(0)
    model = TorchModel(Narrow().eval(), Pack(MEANS, STDS), spec=SPEC, layer="late", name="narrow")
    found = {first.name: first.channels for first in first_convolutions(model)}
    assert found == {"slow": (0, 1, 2), "fast": (0, 1, 2) * 8}
    x = pixels(3)
    adapted = tl.adapt(model, "extend", bands=FOUR, new="zero")
    assert adapted.submodule("fast").in_channels == 32
    torch.testing.assert_close(adapted(torch.cat([x, pixels(1, seed=4)], dim=1)), model(x))


def inner(pack: Any) -> Pack:
    return pack if isinstance(pack, Pack) else inner(pack.pack)


def with_inner(pack: Any, made: Pack) -> Any:
    return made if isinstance(pack, Pack) else replace(pack, pack=with_inner(pack.pack, made))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FAMILIES],
)
def test_families_of_the_zoo(name: str):
    model, video = family(name)
    frames, *size = SIZES[name]
    model = replace(model, spec=replace(model.spec, frames=frames, size=tuple(size)))
    x = video.pixels[None]
    before = state(model.module)
    adapted = tl.adapt(model, "extend", bands=FOUR, new="zero")
    got, want = adapted(torch.cat([x, x.flip(2)[:, :1]], dim=1)), model(x)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
    known = inner(model.pack)
    mean, std = ((sum(numbers) / 3,) * len(numbers) for numbers in (known.mean, known.std))
    even = replace(known, mean=mean, std=std)
    one = tl.adapt(model, "average", bands=("LWIR", "SWIR"))
    got, want = one(x[:, [1, 1]]), replace(model, pack=with_inner(model.pack, even))(x[:, [1, 1, 1]])
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2 * float(want.std()))
    assert is_dataclass(one.pack)
    assert_same(before, state(model.module))


def test_transformers_that_count_channels():
    tiny = pytest.importorskip("tests.zoo.tiny_transformers")
    for name in ("videomae", "timesformer"):
        model = tl.load_model(str(tiny.folder(name)))
        x = torch.rand(1, 3, model.spec.frames, *model.spec.size)
        adapted = tl.adapt(model, "extend", bands=FOUR, new="zero")
        torch.testing.assert_close(adapted(torch.cat([x, x[:, :1]], dim=1)), model(x), rtol=1e-4, atol=1e-4)


# ── the methods ──────────────────────────────────────────────────────────────────────────────────────────


def video(bands: int) -> tl.Clip:
    """The first of three of colour, or these and after them bands of another clip."""
    found = smooth()
    names = ("LWIR",) if bands == 1 else (*FOUR[:3], "N0")[:bands]
    return tl.Clip(torch.cat([found.pixels, smooth(seed=2).pixels])[:bands], names, found.source)


OTHERWISE = (
    "lime",
    "shap",
    "swag",
    "smoothgrad",
)  # supervoxels, and noise, of all bands: not those of colour alone


@pytest.mark.parametrize("name", METHODS)
def test_methods_say_of_a_network_extended_from_zero_what_they_said_before(name: str):
    model = colour()
    adapted = tl.adapt(model, "extend", bands=(*FOUR[:3], "N0"), new="zero")
    way = made(name)
    before = state(adapted.module)
    target = way.explains(1)
    (first,), (again,) = (way(adapted, video(4), [target], Run(batch=b)) for b in (2, 3))
    assert_same(before, state(adapted.module))
    scale = float(first.saliency.abs().max())
    assert scale > 0
    torch.testing.assert_close(first.saliency, again.saliency, atol=2e-4 * scale, rtol=1e-3)
    if name not in OTHERWISE:
        (want,) = way(model, video(3), [target], Run(batch=2))
        close = torch.corrcoef(torch.stack([first.saliency.flatten(), want.saliency.flatten()]))[0, 1]
        assert float(close) > 0.999


@pytest.mark.parametrize("name", METHODS)
def test_methods_say_of_one_band_what_they_said_of_three_equal_ones(name: str):
    model = colour()
    warm = tl.adapt(model, "replicate", bands=("LWIR",))
    one = video(1)
    three = tl.Clip(one.pixels.expand(3, -1, -1, -1), ("R", "G", "B"), one.source)
    way = made(name)
    target = way.explains(1)
    (why,) = way(warm, one, [target], Run(batch=2))
    assert why.saliency.shape == (8, 24, 24)
    assert float(why.saliency.std()) > 0
    if name not in OTHERWISE and METHODS[name].needs != "gradients":  # of one band: their sum, not their mean
        (want,) = way(model, three, [target], Run(batch=2))
        scale = float(want.saliency.abs().max())
        torch.testing.assert_close(why.saliency, want.saliency, atol=1e-3 * scale, rtol=1e-3)


def test_planted_evidence_is_found_where_the_network_found_it():
    """The bundled network with infrared added: tubes and Grad-CAM lie on the object as they did before."""
    model = bundled()
    extended = tl.adapt(model, "extend", bands=FOUR)
    lifts: dict[str, list[float]] = {"colour": [], "extended": []}
    for seed in range(6):
        planted = generate(seed)
        shown = planted.clip()
        inside = planted.truth.float()
        four = tl.Clip(torch.cat([shown.pixels, shown.pixels.mean(dim=0, keepdim=True)]), FOUR, shown.source)
        for called, network, seen in (("colour", model, shown), ("extended", extended, four)):
            for way in ("tubes", "gradcam"):
                heat = tl.explain(network, seen, way, planted.label).saliency.clamp_min(0)
                lifts[called].append(float((heat * inside).sum() / heat.sum() / inside.mean()))
    colour_, extended_ = (sum(found) / len(found) for found in lifts.values())
    assert colour_ > 5
    assert extended_ > 0.8 * colour_


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────────────


def grey(x: Tensor) -> Tensor:
    return x.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1, -1)


def own(x: Tensor) -> Tensor:
    return x - torch.tensor(MEANS).view(-1, 1, 1, 1)


def grouped() -> TorchModel:
    net = nn.Sequential(nn.Conv3d(3, 6, 3, padding=1, groups=3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    return TorchModel(net.eval(), Pack(MEANS, STDS), spec=SPEC, name="grouped")


def normed() -> TorchModel:
    net = nn.Sequential(nn.InstanceNorm3d(3), nn.Conv3d(3, 6, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    return TorchModel(net.eval(), Pack(MEANS, STDS), spec=SPEC, name="normed")


@pytest.mark.parametrize(
    ("make", "way", "bands", "options", "message"),
    [
        (colour, "replicate", ("LWIR", "SWIR"), {}, "feeds one band as R, G and B, not 2"),
        (colour, "replicate", ("LWIR",), {"mean": 0.5}, "for average and extend"),
        (colour, "average", ("LWIR", "LWIR"), {}, "one name each"),
        (colour, "average", (), {}, "one name each, not none"),
        (colour, "average", ("LWIR",), {"new": "zero"}, "new must be mean"),
        (colour, "average", ("LWIR",), {"std": 0.0}, "std must be more than 0"),
        (colour, "average", ("LWIR",), {"mean": (1, 2)}, "one number, or one each for LWIR"),
        (colour, "extend", ("R", "G", "B"), {}, "R, G, B adds none"),
        (colour, "extend", ("R", "LWIR"), {}, "lacks some of them: average does without"),
        (lambda: colour(bands=("U", "V")), "average", ("LWIR",), {}, "takes the bands U, V: only"),
        (lambda: tl.late_fusion({"a": colour(), "b": colour()}), "extend", FOUR, {}, "before they are fused"),
        (lambda: colour(lambda x: x * 2 - 1), "average", FOUR, {"mean": 0.1}, "a `pack` of its own"),
        (lambda: colour(grey), "average", FOUR, {}, "no convolution of colour is fed the bands themselves"),
        (lambda: colour(own), "extend", FOUR, {}, "cannot be fed 4 bands: .*use replicate"),
        (lambda: colour(own), "average", ("LWIR", "U"), {}, "cannot be fed 2 bands: .*use replicate"),
        (lambda: aside(False), "average", (1,), {}, "one name each, not 1"),
        (colour, "average", ("LWIR",), {"mean": "x"}, "one number, or one each for LWIR, not x"),
        (colour, "average", ("LWIR",), {"mean": (None,)}, "one number, or one each for LWIR"),
        (grouped, "average", ("LWIR",), {}, "channels apart or weights that are computed: use replicate"),
        (normed, "average", ("LWIR",), {}, "no convolution of normed is fed the bands themselves"),
    ],
)
def test_what_cannot_be_adapted(
    make: Any, way: Any, bands: Any, options: Any, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(OptionError, match=message) as error:
        tl.adapt(make(), way, bands=bands, **options)
    assert "\n" not in str(error.value)


class Aside(nn.Module):
    """The bands go elsewhere too, past the first convolution, which computes in half precision if asked."""

    def __init__(self, elsewhere: bool, half: bool = False) -> None:
        super().__init__()
        self.elsewhere, self.half = elsewhere, half
        self.conv, self.fc = nn.Conv3d(3, 4, 3), nn.Linear(4, 3)
        self.to(torch.bfloat16 if half else torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        x = x.bfloat16() if self.half else x
        out = self.fc(self.conv(input=x).relu().mean(dim=(2, 3, 4))).float()
        return out + x[:, 2:].mean(dim=(1, 2, 3, 4))[:, None].float() * self.elsewhere


def aside(elsewhere: bool = True, half: bool = False) -> TorchModel:
    torch.manual_seed(0)
    return TorchModel(Aside(elsewhere, half).eval(), Pack(MEANS, STDS), spec=SPEC, name="aside")


def flipped() -> TorchModel:
    return colour(lambda x: x.flip(1) * 2 - 1)


@pytest.mark.parametrize(
    ("make", "way", "bands"),
    [
        (flipped, "extend", FOUR),
        (aside, "extend", FOUR),
        (aside, "average", FOUR),
        (aside, "average", ("U", "V", "W")),
    ],
)
def test_a_network_that_does_more_with_its_bands_is_refused(make: Any, way: Any, bands: tuple[str, ...]):
    with pytest.raises(OptionError, match=r"does more with the bands .*: use replicate"):
        tl.adapt(make(), way, bands)


def test_average_does_not_mind_in_which_order_a_pack_puts_bands():
    adapted, x = tl.adapt(flipped(), "average", FOUR), pixels(1)
    want = flipped()(x.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(adapted(x.expand(-1, 4, -1, -1, -1)), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_convolutions_that_are_called_by_name_or_compute_in_half_precision(half: bool):
    model, x = aside(False, half), pixels(4)
    adapted = tl.adapt(model, "extend", FOUR, new="zero")
    torch.testing.assert_close(adapted(x), model(x[:, :3]), rtol=1e-2, atol=1e-2)


def test_neither_autocast_nor_inference_mode_changes_what_is_made():
    want = tl.adapt(colour(), "extend", FOUR)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kernel(tl.adapt(colour(), "extend", FOUR)), kernel(want))
    model = colour()
    with torch.inference_mode():
        adapted = tl.adapt(model, "extend", FOUR)
    assert not any(p.is_inference() for p in adapted.module.parameters())
    assert adapted.submodule("stem.0").weight.requires_grad
    adapted.module(adapted.pack(pixels(4))).sum().backward()


def test_what_was_verified_is_no_longer_once_kernels_are_others():
    model = replace(colour(), verified="by its hash")
    assert tl.adapt(model, "replicate", "LWIR").verified
    assert not tl.adapt(model, "average", "LWIR").verified
    assert not tl.adapt(model, "extend", FOUR).verified


def test_a_name_is_one_band_and_numbers_may_be_of_numpy_or_torch():
    assert tl.adapt(colour(), "average", "LWIR").spec.bands == ("LWIR",)
    for one in (np.float32(0.25), torch.tensor(0.25), np.array([0.25])):
        assert tl.adapt(colour(), "average", "LWIR", mean=one).pack.mean == (0.25,)


def normed_weights(norm: Any) -> TorchModel:
    model = colour()
    norm(model.submodule("stem.0"))
    return model


@pytest.mark.filterwarnings("ignore:.*_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_are_computed(norm: Any):
    with pytest.raises(OptionError, match="weights that are computed: use replicate"):
        tl.adapt(normed_weights(norm), "average", "LWIR")


def test_a_pack_of_ones_own_may_take_any_number_of_bands():
    adapted = tl.adapt(colour(lambda x: x * 2 - 1), "average", bands=("LWIR", "SWIR"))
    x = pixels(1)
    want = colour(lambda x: x * 2 - 1)(x.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(adapted(x.expand(-1, 2, -1, -1, -1)), want, rtol=1e-4, atol=1e-4)
