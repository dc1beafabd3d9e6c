"""PAN against loops, published names, the authors' sampling, and evidence put at one place."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import tubelens as tl
from tests.perturbed import clip
from tests.zoo.test_tsm import calibrated, model, on_meta, spread, trunk_keys
from tubelens.capture import capturing
from tubelens.clip import Segments
from tubelens.errors import CheckpointError, HeadError, InputError
from tubelens.target import Logit
from tubelens.zoo import pan, tsm
from tubelens.zoo.checkpoint import fit, unwrap

RECIPES = {recipe.name: recipe for recipe in pan.RECIPES}
SINGLE = [name for name in RECIPES if "full" not in name]
SIZES = {  # (parameters, names) of the authors' modules with 174 classes
    "pan_lite_r50": (23_875_542, 324),
    "pan_rgb_r50": (23_864_950, 322),
    "pan_pa_r50": (23_866_134, 324),
    "pan_lite_r101": (42_867_670, 630),
    "pan_rgb_r101": (42_857_078, 628),
    "pan_pa_r101": (42_858_262, 630),
    "pan_lite_r50_avg": (23_875_150, 322),
    "pan_rgb_r50_avg": (23_864_558, 320),
    "pan_pa_r50_avg": (23_865_742, 322),
    "pan_lite_r101_avg": (42_867_278, 628),
    "pan_rgb_r101_avg": (42_856_686, 626),
    "pan_pa_r101_avg": (42_857_870, 628),
}


def keys(name: str) -> Iterator[str]:
    """Names in the authors' files, written down from their code."""
    yield from trunk_keys(101 if "r101" in name else 50)
    if "rgb" not in name:
        yield from ("PA.shallow_conv.weight", "PA.shallow_conv.bias")
    if name.endswith("_avg"):
        yield from ("new_fc.weight", "new_fc.bias")
    else:
        yield from ("base_model.fc.TES.0.weight", "base_model.fc.TES.2.weight")
        yield from ("base_model.fc.pred.weight", "base_model.fc.pred.bias")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    """The three networks of 50 layers and `full`, for five classes."""
    fed, first = pan.pack(random(2, 3, 16, 64, 64, seed=1)), pan.pack(random(2, 3, 4, 64, 64, seed=1))
    built = {
        kind: calibrated(RECIPES[f"pan_{kind}_r50"].build(5), first if kind == "rgb" else fed, seed)
        for seed, kind in enumerate(("rgb", "pa", "lite"))
    }
    with torch.device("meta"):
        full = RECIPES["pan_full_r50"].build(5)
    merged = pan.merge([built["pa"].state_dict(), built["rgb"].state_dict()])
    full.load_state_dict(merged, strict=True, assign=True)
    return {**built, "full": full.eval()}


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────


def slow_persistence(frames: list[Tensor], conv: nn.Conv2d) -> Tensor:
    """Place by place: the distance of the 8 features of one frame from those of the next."""
    maps = []
    for now, then in pairwise(frames):
        a, b = conv(now[None])[0], conv(then[None])[0]
        out = torch.zeros(a.shape[1:])
        for y in range(a.shape[1]):
            for x in range(a.shape[2]):
                out[y, x] = sum((float(a[c, y, x] - b[c, y, x]) + 1e-6) ** 2 for c in range(8)) ** 0.5
        maps.append(out)
    return torch.stack(maps)


def test_persistence_is_the_loop():
    torch.manual_seed(0)
    module = pan.Persistence()
    clips = random(2, 12, 3, 5, 6)  # three segments of four
    with torch.no_grad():
        given = module([clips[:, j::4] for j in range(4)])
        for b in range(2):
            for s in range(3):
                frames = [clips[b, 4 * s + j] for j in range(4)]
                torch.testing.assert_close(given[3 * b + s], slow_persistence(frames, module.shallow_conv))


def test_gradients_are_finite_where_nothing_moves(nets: dict[str, nn.Module]):
    for kind in ("pa", "lite"):
        still = random(1, 3, 1, 32, 32).expand(1, 3, 16, 32, 32).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nets[kind](pan.pack(still))[0, 2], still)
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().max()) > 1e-6


def slow_vap(pooled: Tensor, head: pan.VAP) -> Tensor:
    """Of one clip `(segments, features)`: dilated maxima, their means, two layers, softmax, weighted sum."""
    n = len(pooled)
    vectors = []
    for scale in (1, 2, 4):
        for start in range(scale):
            best = pooled[start]
            for segment in range(start + scale, n, scale):
                best = torch.maximum(best, pooled[segment])
            vectors.append(best)
    assert len(vectors) == 7
    hidden = [max(0.0, sum(float(w) * float(v.mean()) for w, v in zip(row, vectors, strict=True)))
              for row in head.TES[0].weight]  # fmt: skip
    raised = [sum(float(w) * h for w, h in zip(row, hidden, strict=True)) for row in head.TES[2].weight]
    e = torch.tensor(raised).exp()
    mixed = sum(float(w) * v for w, v in zip(e / e.sum(), vectors, strict=True))
    return head.pred.weight @ mixed + head.pred.bias


@pytest.mark.parametrize("segments", [8, 4, 16])
def test_vap_is_the_loop(segments: int):
    torch.manual_seed(0)
    head = pan.VAP(3).eval()
    pooled = torch.randn(2 * segments, 2048) * 2 + torch.arange(2.0 * segments)[:, None] / 3
    with torch.no_grad():
        for m in head.TES[0], head.TES[2]:
            m.weight.mul_(3)
        given = head(pooled, segments)
        for b in range(2):
            expected = slow_vap(pooled[b * segments : (b + 1) * segments], head)
            torch.testing.assert_close(given[b], expected, atol=1e-4, rtol=1e-4)
    assert (given[0] - given[1]).abs().max() > 0.1


# ── networks ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["rgb", "pa", "lite"])
def test_what_the_trunk_is_fed(nets: dict[str, nn.Module], kind: str):
    """The segment's first frame, and the persistence in its four; `rgb` has one frame a segment."""
    n = 1 if kind == "rgb" else 4
    clips, net = random(2, 3, 4 * n, 8, 9, seed=5), nets[kind]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    kept: list[Tensor] = []
    handle = net.base_model.conv1.register_forward_hook(lambda m, args, out: kept.append(args[0]))
    with torch.no_grad():
        net(pan.pack(clips))
        handle.remove()
        for b in range(2):
            for s in range(4):
                frames = [
                    (clips[b, :, n * s + j] - mean[:, None, None]) / std[:, None, None] for j in range(n)
                ]
                parts = [] if kind == "pa" else [frames[0]]
                if kind != "rgb":
                    parts.append(slow_persistence(frames, net.PA.shallow_conv))
                torch.testing.assert_close(kept[0][4 * b + s], torch.cat(parts), atol=1e-5, rtol=1e-5)


def test_rgb_is_tsm_but_for_its_head(nets: dict[str, nn.Module]):
    """With the mean over segments it is TSM; with VAP the pooled features of TSM go through the loop."""
    net, clips = nets["rgb"], random(2, 3, 4, 48, 40, seed=6)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("base_model.fc.")}
    head = {"new_fc.weight": torch.randn(5, 2048), "new_fc.bias": torch.randn(5)}
    with torch.device("meta"):
        other, mean = tsm.TSM(50, 5).eval(), RECIPES["pan_rgb_r50_avg"].build(5).eval()
    for module in (other, mean):
        module.load_state_dict(state | head, strict=True, assign=True)
    pooled: list[Tensor] = []
    handle = other.base_model.avgpool.register_forward_hook(lambda m, args, out: pooled.append(out))
    with torch.no_grad():
        fed = pan.pack(clips)
        assert torch.equal(mean(fed), other(fed))
        handle.remove()
        rows = pooled[0].flatten(1).unflatten(0, (2, 4))
        expected = torch.stack([slow_vap(row, net.base_model.fc) for row in rows])
        torch.testing.assert_close(net(fed), expected, atol=1e-4, rtol=1e-4)
        assert (expected[0] - expected[1]).abs().max() > 0.05


def test_full_is_the_mean_of_the_two(nets: dict[str, nn.Module]):
    clips = random(2, 3, 32, 32, 40, seed=7)
    with torch.no_grad():
        rgb = nets["rgb"](pan.pack(clips[:, :, [0, 5, 9, 13, 18, 22, 26, 31]]))
        pa = nets["pa"](pan.pack(clips))
        torch.testing.assert_close(nets["full"](pan.pack(clips)), (rgb + pa) / 2, atol=1e-5, rtol=1e-5)
    assert (rgb - pa).abs().max() > 0.1


@pytest.mark.parametrize("n", [32, 36, 57, 64, 100, 333])
def test_full_shows_rgb_the_frames_of_the_authors_to_within_one(n: int):
    """They sample the two networks apart: one frame a segment, and four."""
    alone, together = Segments(8).pick(n), Segments(32, 4).pick(n)
    for x, i in enumerate(pan.nearest_frames(8)):
        assert abs(together[i] - alone[x]) <= 1


def test_clips_that_do_not_divide(nets: dict[str, nn.Module]):
    with pytest.raises(
        InputError, match="4 consecutive frames a segment: give a multiple of 4 frames, not 6"
    ):
        model(nets["lite"], RECIPES["pan_lite_r50"])(random(1, 3, 6, 32, 32))
    with pytest.raises(InputError, match="every 4th segment: give a multiple of 4 segments, not 6"):
        model(nets["rgb"], RECIPES["pan_rgb_r50"])(random(1, 3, 6, 32, 32))


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SINGLE)
def test_names_and_sizes_are_the_published_ones(name: str):
    recipe = RECIPES[name]
    module = on_meta(recipe)
    assert set(module.state_dict()) == set(keys(name))
    parameters = sum(p.numel() for p in module.parameters())
    assert (parameters, len(module.state_dict())) == SIZES[name]
    assert recipe.parameters == parameters
    assert recipe.classes == module.state_dict()[recipe.head].shape[0] == 174
    theirs = {"arch": "resnet50", "state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}
    state = unwrap(theirs, "file")
    assert not any(style.fits(state) for style in recipe.styles)
    fit(on_meta(recipe), state, "file", name)


@pytest.mark.parametrize("name", [name for name in RECIPES if "full" in name])
def test_full_takes_the_two_published_files(name: str):
    recipe = RECIPES[name]
    files = [on_meta(RECIPES[name.replace("full", kind)]).state_dict() for kind in ("pa", "rgb")]
    module = on_meta(recipe)
    for order in (files, files[::-1]):
        state = pan.merge(order)
        assert not any(style.fits(state) for style in recipe.styles)
        fit(module, state, "file", name)
    expected = {f"{kind}.{key}" for kind in ("rgb", "pa") for key in keys(name.replace("full", kind))}
    assert set(module.state_dict()) == expected
    assert recipe.parameters == sum(p.numel() for p in module.parameters())
    assert recipe.parameters == sum(SIZES[name.replace("full", kind)][0] for kind in ("pa", "rgb"))
    assert module.state_dict()[recipe.head].shape == (174, 2048)
    for wrong in (files[:1], files[:1] * 2, [*files, files[0]]):
        with pytest.raises(CheckpointError, match="one of a PA and one of an RGB network"):
            pan.merge(wrong)


@pytest.mark.parametrize("name", RECIPES)
def test_another_head_is_named(name: str):
    other = name.removesuffix("_avg") if name.endswith("_avg") else f"{name}_avg"
    (style,) = (s for s in RECIPES[name].styles if s.fits(on_meta(RECIPES[other]).state_dict()))
    with pytest.raises(CheckpointError, match=f"not of {name}: load them as {other}$"):
        style.convert({})


# ── explanations ─────────────────────────────────────────────────────────────────────────────────────────


def test_time_and_place_of_the_cells(nets: dict[str, nn.Module]):
    """A cell stands for its snippet, whose middle is 1.5 frames in; `rgb` inside `full` for its one frame."""
    clips = random(1, 3, 16, 70, 64)
    middles = (1.5, 5.5, 9.5, 13.5)
    strides = {"layer1.0": 4, "layer1": 4, "layer2.3": 8, "layer3": 16, "layer4": 32}
    for kind in ("pa", "lite"):
        names = [f"base_model.{name}" for name in strides]
        with capturing(model(nets[kind], RECIPES[f"pan_{kind}_r50"]), clips, names) as capture:
            for name, stride in zip(names, strides.values(), strict=True):
                layout = capture.at(name).layout
                _, _, _, h, w = capture.at(name).activations.shape
                assert layout.pattern == "(b t) c h w"
                assert layout.centres == {
                    "t": middles,
                    "h": tuple(stride * i for i in range(h)),
                    "w": tuple(stride * i for i in range(w)),
                }
    with capturing(model(nets["full"], RECIPES["pan_full_r50"]), clips) as capture:
        assert capture.layer == "both"
        # the frames of `rgb` are 0, 5, 10, 15: between each and the middle of its snippet
        assert capture.layout.centres["t"] == (0.75, 5.25, 9.75, 14.25)
        assert capture.layout.centres["w"] == (0, 32)
        assert capture.activations.shape == (1, 4096, 4, 3, 2)


@pytest.mark.parametrize(("kind", "frame"), [("lite", 9), ("pa", 10)])
def test_cells_look_where_the_evidence_is(nets: dict[str, nn.Module], kind: str, frame: int):
    """Centroid of the change within a quarter of the stride: 4 frames, 32 pixels."""
    size = (16, 192, 224)
    t, y, x, most = spread(nets[kind], RECIPES[f"pan_{kind}_r50"], size, frame, slice(80, 112)).tolist()
    assert abs(t - 9.5) < 1
    assert abs(y - 95.5) < 8
    assert abs(x - 95.5) < 8
    assert most == 2


def test_tubes_say_why_not(nets: dict[str, nn.Module]):
    recipe = RECIPES["pan_lite_r50"]
    with pytest.raises(HeadError, match=r"maxima at several time scales \(VAP\)"):
        tl.Tubes()(model(nets["lite"], recipe), clip((16, 32, 32)), [Logit(1)])


def test_tubes_of_full_without_vap_are_exact(nets: dict[str, nn.Module]):
    """At `both` the whole logit, from two networks."""
    recipe = RECIPES["pan_full_r50_avg"]
    with torch.device("meta"):
        net = recipe.build(5).eval()
    state = {k: v for k, v in nets["full"].state_dict().items() if ".fc." not in k}
    g = torch.Generator().manual_seed(8)
    for kind in ("rgb", "pa"):
        state[f"{kind}.new_fc.weight"] = torch.randn(5, 2048, generator=g) / 30
        state[f"{kind}.new_fc.bias"] = torch.randn(5, generator=g)
    net.load_state_dict(state, strict=True, assign=True)
    video = clip((12, 40, 70))
    found = tl.Tubes()(model(net, recipe), video, [Logit(0), Logit(4)])
    logits = model(net, recipe)(video.pixels[None])[0]
    for k, why in zip((0, 4), found, strict=True):
        bias = float(state["rgb.new_fc.bias"][k] + state["pa.new_fc.bias"][k]) / 2
        own = float(logits[k]) - bias
        assert why.grid.shape == (3, 2, 3)
        assert float(why.grid.sum()) == pytest.approx(own, abs=1e-4 * max(1, abs(own)))
        assert abs(own) > 0.05
