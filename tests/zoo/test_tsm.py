"""TSM against loops, published names, evidence put at one place, and the sum that must be the logit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tubelens as tl
from tests.perturbed import clip
from tubelens.capture import capturing
from tubelens.errors import CheckpointError
from tubelens.model import TorchModel
from tubelens.target import Logit
from tubelens.zoo import tsm
from tubelens.zoo.checkpoint import fit, unwrap
from tubelens.zoo.recipe import Recipe

RECIPES = {recipe.name: recipe for recipe in tsm.RECIPES}
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def shifts(depth: int, stage: int, block: int) -> bool:
    """The authors' rule: every block, but every second one where the third stage has 23."""
    return depth == 50 or block in range(0, BLOCKS[101][stage], 2)


def trunk_keys(depth: int) -> Iterator[str]:
    """Names in the authors' files, written down from their code."""
    yield "base_model.conv1.weight"
    yield from (f"base_model.bn1.{n}" for n in NORM)
    for stage, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            at = f"base_model.layer{stage + 1}.{block}"
            yield f"{at}.conv1.net.weight" if shifts(depth, stage, block) else f"{at}.conv1.weight"
            yield from (f"{at}.conv2.weight", f"{at}.conv3.weight")
            yield from (f"{at}.bn{i}.{n}" for i in (1, 2, 3) for n in NORM)
            if block == 0:
                yield f"{at}.downsample.0.weight"
                yield from (f"{at}.downsample.1.{n}" for n in NORM)


def mmaction_keys(depth: int) -> Iterator[tuple[str, str]]:
    """Names in mmaction2's files and the authors' for the same tensor."""
    for key in trunk_keys(depth):
        at, _, leaf = key.removeprefix("base_model.").rpartition(".")
        name = {"conv1": "conv1.conv", "bn1": "conv1.bn"}.get(at)
        if name is None:
            block, part = ".".join(at.split(".")[:2]), ".".join(at.split(".")[2:])
            part = {
                **{"conv1.net": "conv1.conv.net", "conv1": "conv1.conv", "bn1": "conv1.bn"},
                **{"conv2": "conv2.conv", "bn2": "conv2.bn", "conv3": "conv3.conv", "bn3": "conv3.bn"},
                **{"downsample.0": "downsample.conv", "downsample.1": "downsample.bn"},
            }[part]
            name = f"{block}.{part}"
        yield f"backbone.{name}.{leaf}", key
    yield from ((f"cls_head.fc_cls.{n}", f"new_fc.{n}") for n in ("weight", "bias"))


def on_meta(recipe: Recipe, classes: int | None = None) -> nn.Module:
    with torch.device("meta"):
        return recipe.build(classes or recipe.classes)


def calibrated(net: nn.Module, fed: Tensor, seed: int = 0) -> nn.Module:
    """Random weights, norms with the statistics of `fed`: activations of order one, no two norms alike."""
    g = torch.Generator().manual_seed(seed)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                m.weight.normal_(0, (2 / m.weight[0].numel()) ** 0.5, generator=g)
                if m.bias is not None:
                    m.bias.normal_(generator=g)
        for m in norms:
            m.weight.uniform_(0.5, 1.5, generator=g)
            m.bias.normal_(0, 0.3, generator=g)
            m.reset_running_stats()
            m.momentum = None
        net.eval()
        for m in norms:
            m.train()
        net(fed)
    return net.eval()


def model(net: nn.Module, recipe: Recipe) -> TorchModel:
    return TorchModel(
        module=net,
        pack=recipe.pack,
        spec=recipe.spec,
        layer=recipe.layer,
        layouts=recipe.layouts,
        tubes="" if recipe.tubes == "exact" else recipe.tubes,
        name=recipe.name,
    )


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A TSM-50 with seven classes."""
    torch.manual_seed(0)
    fed = tsm.pack(torch.rand(2, 3, 3, 64, 96, generator=torch.Generator().manual_seed(1)))
    return calibrated(RECIPES["tsm_r50"].build(7), fed)


def slowly_shifted(x: Tensor, segments: int) -> Tensor:
    """Channel by channel: an eighth from the segment after, an eighth from the one before, zeros beyond."""
    n, channels = x.shape[:2]
    out = torch.zeros_like(x)
    for row in range(n):
        segment = row % segments
        for channel in range(channels):
            step = 1 if channel < channels // 8 else -1 if channel < 2 * (channels // 8) else 0
            if 0 <= segment + step < segments:
                out[row, channel] = x[row + step, channel]
    return out


@pytest.mark.parametrize(("segments", "channels"), [(1, 8), (2, 16), (5, 24), (8, 20)])
def test_shift_is_the_loop(segments: int, channels: int):
    x = torch.rand(2 * segments, channels, 2, 3)
    before = x.clone()
    assert torch.equal(tsm.shifted(x, segments), slowly_shifted(x, segments))
    assert torch.equal(x, before)


def test_network_is_a_resnet_with_shifted_residual_branches(net: nn.Module):
    """By hand, with functional layers and the slow shift; three segments instead of the usual eight."""
    state, clips = net.state_dict(), torch.rand(2, 3, 3, 40, 48, generator=torch.Generator().manual_seed(2))

    def norm(x: Tensor, name: str) -> Tensor:
        p = [state[f"base_model.{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *p)

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    frames = [(c[:, t].permute(1, 2, 0) - mean) / std for c in clips for t in range(3)]
    x = torch.stack(frames).permute(0, 3, 1, 2)
    x = F.relu(norm(F.conv2d(x, state["base_model.conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            w = [state[f"base_model.{at}.{n}.weight"] for n in ("conv1.net", "conv2", "conv3")]
            y = F.relu(norm(F.conv2d(slowly_shifted(x, 3), w[0]), f"{at}.bn1"))
            y = F.relu(norm(F.conv2d(y, w[1], stride=stride, padding=1), f"{at}.bn2"))
            y = norm(F.conv2d(y, w[2]), f"{at}.bn3")
            if block == 0:
                x = F.conv2d(x, state[f"base_model.{at}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{at}.downsample.1")
            x = F.relu(x + y)
    each = x.mean(dim=(2, 3)) @ state["new_fc.weight"].T + state["new_fc.bias"]
    expected = torch.stack([each[:3].mean(dim=0), each[3:].mean(dim=0)])
    scores = model(net, RECIPES["tsm_r50"])(clips)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert (scores[0] - scores[1]).abs().max() > 0.05  # the clips matter, not the biases alone


@pytest.mark.parametrize(("depth", "keys"), [(50, 320), (101, 626)])
def test_names_and_sizes_are_the_published_ones(depth: int, keys: int):
    recipe = RECIPES[f"tsm_r{depth}"]
    module = on_meta(recipe)
    assert set(module.state_dict()) == {*trunk_keys(depth), "new_fc.weight", "new_fc.bias"}
    assert len(module.state_dict()) == keys
    assert sum(p.numel() for p in module.parameters()) == recipe.parameters
    assert module.state_dict()[recipe.head].shape == (400, 2048)


@pytest.mark.parametrize("depth", [50, 101])
def test_published_files_fit(depth: int):
    recipe = RECIPES[f"tsm_r{depth}"]
    shapes = on_meta(recipe, 174).state_dict()
    theirs = {f"module.{key}": shapes[key] for key in (*trunk_keys(depth), "new_fc.weight", "new_fc.bias")}
    state = unwrap({"epoch": 50, "arch": f"resnet{depth}", "state_dict": theirs, "best_prec1": 0.5}, "file")
    assert not any(style.fits(state) for style in recipe.styles)
    fit(on_meta(recipe, 174), state, "file", recipe.name)


@pytest.mark.parametrize("depth", [50, 101])
def test_files_of_mmaction2_fit(depth: int):
    recipe = RECIPES[f"tsm_r{depth}"]
    ours = on_meta(recipe).state_dict()
    pairs = list(mmaction_keys(depth))
    theirs = {their: ours[own].clone() for their, own in pairs}
    extra = {"data_preprocessor.mean": torch.zeros(3, 1, 1)}
    (style,) = (s for s in recipe.styles if s.fits(theirs))
    converted = style.convert({**theirs, **extra})
    assert set(converted) == set(ours)
    assert all(converted[own] is theirs[their] for their, own in pairs)
    fit(on_meta(recipe), converted, "file", recipe.name)


def test_depths_are_told_apart():
    with pytest.raises(CheckpointError, match=r"not weights of tsm_r101: .* missing: .*layer3"):
        fit(on_meta(RECIPES["tsm_r101"]), on_meta(RECIPES["tsm_r50"]).state_dict(), "file", "tsm_r101")


def test_a_segment_moves_its_own_cells_and_by_each_shift_its_neighbours(net: nn.Module):
    clips = torch.rand(4, 3, 5, 32, 32, generator=torch.Generator().manual_seed(3))
    clips[1:] = clips[0]
    segments = (0, 2, 4)
    for row, segment in enumerate(segments, start=1):
        clips[row, :, segment] = 1 - clips[row, :, segment]
    reach = {"base_model.maxpool": 0, "base_model.layer1.0": 1, "base_model.layer1.1": 2}
    with capturing(TorchModel(net, tsm.pack), clips, list(reach)) as capture:
        for layer, steps in reach.items():
            seen = capture.at(layer).activations
            moved = (seen[1:] - seen[:1]).abs().amax(dim=(1, 3, 4)) > 1e-4
            assert moved.tolist() == [[abs(t - segment) <= steps for t in range(5)] for segment in segments]


def spread(net: nn.Module, recipe: Recipe, size: tuple[int, int, int], frame: int, place: slice) -> Tensor:
    """How much each cell of the explained layer moves when noise is put at one place of one frame."""
    g = torch.Generator().manual_seed(4)
    clips = torch.rand(1, 3, *size, generator=g)
    changed = clips.clone()
    patch = changed[:, :, frame, place, place]
    patch += torch.randn(patch.shape, generator=g)
    what = model(net, recipe)
    with capturing(what, clips) as capture:
        before = capture.activations
        grid = capture.grid(torch.zeros(before.shape[2:]))
    with capturing(what, changed) as capture:
        moved = (capture.activations - before).pow(2).sum(dim=(0, 1))
    t, y, x = (
        float((moved.sum(dim=[a for a in range(3) if a != axis]) * torch.tensor(cells)).sum() / moved.sum())
        for axis, cells in enumerate((grid.t, grid.y, grid.x))
    )
    return torch.tensor([t, y, x, int(moved.sum(dim=(1, 2)).argmax())])


def test_cells_look_where_the_evidence_is(net: nn.Module):
    """Centroid of the change within a quarter of the stride of 32; the segment that moves most is the one."""
    recipe = RECIPES["tsm_r50"]
    t, y, x, most = spread(net, recipe, (5, 192, 224), frame=2, place=slice(80, 112)).tolist()
    assert abs(t - 2) < 0.25
    assert abs(y - 95.5) < 8
    assert abs(x - 95.5) < 8
    assert most == 2


def test_tubes_are_exact(net: nn.Module):
    recipe, biases = RECIPES["tsm_r50"], net.state_dict()["new_fc.bias"]
    video = clip((5, 40, 70))
    found = tl.Tubes()(model(net, recipe), video, [Logit(k) for k in range(7)])
    logits = model(net, recipe)(video.pixels[None])[0]
    for k, why in enumerate(found):
        bias, logit = float(biases[k]), float(logits[k])
        assert why.grid.shape == (5, 2, 3)
        assert why.provenance.facts["constant"] == pytest.approx(bias, abs=1e-4)
        assert float(why.grid.sum()) + bias == pytest.approx(logit, abs=1e-4 * max(1, abs(logit - bias)))
        assert abs(logit - bias) > 0.05
