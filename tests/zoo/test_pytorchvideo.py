"""pytorchvideo's networks: two pathways, heads without softmax, files of two projects, and where cells look.

Narrow networks of the package's own classes stand for the full ones, which are only counted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tubelens as tl
from tests.perturbed import clip
from tests.zoo.evidence import focused, misplaced
from tubelens import zoo
from tubelens.capture import capturing
from tubelens.errors import CheckpointError, HeadError, InputError, OptionError
from tubelens.model import TorchModel
from tubelens.target import Logit
from tubelens.zoo import pytorchvideo_hub
from tubelens.zoo.checkpoint import fit
from tubelens.zoo.extras import installed
from tubelens.zoo.pytorchvideo_hub import PATHWAYS, Pathways, build, slow_frames, url

RECIPES = {r.name: r for r in pytorchvideo_hub.RECIPES}
KEYS = {
    **{"slow_r50": 320, "c2d_r50": 320, "i3d_r50": 320, "slowfast_r50": 662, "slowfast_r101": 1274},
    **{"x3d_xs": 563, "x3d_s": 563, "x3d_m": 563, "x3d_l": 1141, "csn_r101": 626, "r2plus1d_r50": 416},
}
MVITS = ("mvit_base_16x4", "mvit_base_32x3")
DEEP = ("slowfast_r101", "x3d_s", "x3d_m", "x3d_l")
AFFINE = ("slow_r50", "c2d_r50", "i3d_r50", "csn_r101", "r2plus1d_r50")

pytestmark = pytest.mark.skipif(not installed("pytorchvideo"), reason="needs the extra pytorchvideo")


def narrow(name: str, classes: int = 4, **options: Any) -> nn.Module:
    if name.startswith("slowfast"):
        options = {"stem_dim_outs": (8, 1)} | options
    elif name.startswith("x3d"):
        options = {"width_factor": 0.5} | options
    elif name.startswith("mvit"):
        options = {"patch_embed_dim": 8} | options
    else:
        options = {"stem_dim_out": 8} | options
    return build(name, classes, **options)


def small(name: str, module: nn.Module | None = None) -> nn.Module:
    """A narrow network whose head averages windows of 2 x 2 cells: for clips of 96 pixels, 3 x 3 cells."""
    net = module or narrow(name)
    for at, child in list(net.named_modules()):
        if isinstance(child, nn.AvgPool3d):
            net.set_submodule(at, nn.AvgPool3d((child.kernel_size[0], 2, 2), 1))
    return net


def model_of(name: str, module: nn.Module, **fields: Any) -> TorchModel:
    """With the recipe's fields, but for the check of the size."""
    recipe = RECIPES[name]
    known = {"layer": recipe.layer, "layouts": recipe.layouts, "tubes": recipe.tubes}
    return TorchModel(module.eval(), pack=bare(name), name=name, **known | fields)


def bare(name: str) -> Any:
    return RECIPES[name].pack.pack  # type: ignore[attr-defined]


def random_clip(name: str, side: int = 96) -> tl.Clip:
    return clip((RECIPES[name].spec.frames, side, side))


def some(names: Any, slow: tuple[str, ...] = DEEP) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow if n in slow else ()) for n in names]


# ── what the package publishes ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", KEYS)
def test_parameters_and_keys(name: str):
    recipe = RECIPES[name]
    with torch.device("meta"):
        module = recipe.build(recipe.classes)
    assert sum(p.numel() for p in module.parameters()) == recipe.parameters
    assert len(module.state_dict()) == KEYS[name]
    assert module.state_dict()[recipe.head].shape[0] == recipe.classes == 400
    assert module.get_submodule(recipe.layer) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", MVITS)
def test_parameters_of_the_transformers(name: str):
    recipe = RECIPES[name]
    module = recipe.build(recipe.classes)
    assert sum(p.numel() for p in module.parameters()) == recipe.parameters
    assert module.state_dict()[recipe.head].shape[0] == 400
    assert recipe.attention is not None
    found = [n for n, m in module.named_modules() if type(m).__name__ == "MultiScaleAttention"]
    assert list(recipe.attention.blocks) == found


PUBLISHED = {
    "slow_r50": (
        *("blocks.0.conv.weight", "blocks.0.norm.running_mean", "blocks.1.res_blocks.0.branch1_conv.weight"),
        *("blocks.4.res_blocks.2.branch2.norm_c.bias", "blocks.5.proj.weight"),
    ),
    "slowfast_r50": (
        *("blocks.0.multipathway_blocks.1.conv.weight", "blocks.6.proj.weight"),
        *("blocks.0.multipathway_fusion.conv_fast_to_slow.weight",),
        *("blocks.4.multipathway_blocks.1.res_blocks.2.branch2.conv_b.weight",),
    ),
    "x3d_xs": (
        *("blocks.0.conv.conv_t.weight", "blocks.5.pool.pre_conv.weight", "blocks.5.pool.post_conv.weight"),
        *("blocks.1.res_blocks.0.branch2.norm_b.1.block.0.weight", "blocks.5.proj.bias"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_are_those_of_the_published_files(name: str):
    with torch.device("meta"):
        state = RECIPES[name].build(400).state_dict()
    assert not set(PUBLISHED[name]) - set(state)


@pytest.mark.parametrize("name", RECIPES)
def test_official_weights_are_those_of_the_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = RECIPES[name]
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert recipe.cached is not None
    file = recipe.cached(recipe.official[0])
    assert file == tmp_path / "checkpoints" / f"{recipe.official[0]}.pyth"
    assert url(name).endswith(f"/kinetics/{file.name}")
    assert url("slow_r50") == (
        "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/SLOW_8x8_R50.pyth"
    )


def test_official_weights_load_with_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file of the official name, made here; its labels are those of Kinetics-400, in published order."""
    recipe = RECIPES["x3d_xs"]
    monkeypatch.setitem(zoo.MODELS, "x3d_xs", recipe)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded .*put it at .*X3D_XS.pyth"):
        zoo.load("x3d_xs", "X3D_XS")
    torch.manual_seed(1)
    twin = build("x3d_xs", 400)
    torch.save({"model_state": twin.state_dict()}, tmp_path / "checkpoints" / "X3D_XS.pyth")
    model = zoo.load("x3d_xs", "X3D_XS")
    assert torch.equal(model.module.state_dict()["blocks.5.proj.weight"], twin.blocks[5].proj.weight)
    assert model.labels is not None
    published = {0: "abseiling", 57: "clapping", 234: "playing harp", 290: "sharpening knives", 399: "zumba"}
    assert {i: model.labels[i] for i in published} == published
    torch.save({"model_state": build("x3d_xs", 7).state_dict()}, tmp_path / "mine.pyth")
    mine = zoo.load("x3d_xs", tmp_path / "mine.pyth")
    assert (mine.module.blocks[5].proj.out_features, mine.labels) == (7, None)


def test_normalisation():
    x = torch.rand(1, 3, 8, 256, 256)
    torch.testing.assert_close(RECIPES["slow_r50"].pack(x), (x - 0.45) / 0.225)


@pytest.mark.parametrize("name", ["x3d_xs", "r2plus1d_r50"])
def test_softmax_is_left_out(name: str):
    """The package's own network, softmax and all, gives the softmax of ours (one window)."""
    options = {"width_factor": 0.5} if name == "x3d_xs" else {"stem_dim_out": 8}
    theirs = getattr(pytorchvideo_hub._hub(name), name)(pretrained=False, model_num_class=4, **options)
    ours = small(name)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        packed = bare(name)(random_clip(name, side=64).pixels[None])
        scores = ours.eval()(packed)
        torch.testing.assert_close(scores.softmax(1), small(name, theirs).eval()(packed))
    assert abs(float(scores.sum()) - 1) > 1e-2


# ── two pathways ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_slow_pathway_sees_every_fourth_frame():
    assert slow_frames(32) == [0, 4, 8, 13, 17, 22, 26, 31]  # evenly from the first to the last, rounded down
    assert slow_frames(64) == [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]
    x = torch.rand(2, 3, 32, 4, 6)
    slow, fast = Pathways()(x)
    torch.testing.assert_close(fast, (x - 0.45) / 0.225)
    for i, t in enumerate((0, 4, 8, 13, 17, 22, 26, 31)):
        assert torch.equal(slow[:, :, i], fast[:, :, t])


def test_each_call_gets_its_own_list():
    """The network overwrites the list that it is given."""
    pack = bare("slowfast_r50")
    net = small("slowfast_r50").eval()
    x = random_clip("slowfast_r50", side=64).pixels[None]
    given = pack(x)
    first, kept = given[0], given[0].clone()
    with torch.no_grad():
        net(given)
    assert given[0] is not first  # as the package does
    assert torch.equal(first, kept)
    model = model_of("slowfast_r50", net)
    assert torch.equal(model(x), model(x))


@pytest.fixture(scope="module")
def slowfast() -> TorchModel:
    x = random_clip("slowfast_r50").pixels[None]
    return model_of("slowfast_r50", focused(small("slowfast_r50"), bare("slowfast_r50")(x)))


def test_tubes_of_the_two_pathways_and_the_bias_make_the_logit(slowfast: TorchModel):
    video = random_clip("slowfast_r50")
    logit = float(slowfast(video.pixels[None])[0, 1])
    bias = float(slowfast.module.blocks[6].proj.bias.detach()[1])
    slow, fast = (tl.Tubes(layer=layer)(slowfast, video, [Logit(1)])[0] for layer in PATHWAYS)
    sums = [float(why.grid.double().sum()) for why in (slow, fast)]
    assert (slow.grid.shape, fast.grid.shape) == ((8, 3, 3), (32, 3, 3))
    for why, own, other in ((slow, *sums), (fast, *sums[::-1])):
        constant = why.provenance.facts["constant"]
        assert constant == pytest.approx(bias + other, abs=1e-4 * abs(logit - bias))
        assert own + constant == pytest.approx(logit, abs=1e-4 * abs(logit - bias))
    assert min(map(abs, sums)) > 1e-2 * abs(logit - bias)
    # columns of the classifier: first the slow pathway's features, then the fast one's
    weight = slowfast.module.blocks[6].proj.weight.detach()[1]
    with capturing(slowfast, video.pixels[None], PATHWAYS) as capture:
        maps = [capture.at(name).activations[0] for name in PATHWAYS]
    wide = maps[0].shape[0]
    windows = torch.tensor([1.0, 2, 1])  # in how many of the head's windows a row or a column is
    for own, a, w in zip(sums, maps, (weight[:wide], weight[wide:]), strict=True):
        mean = torch.einsum("cthw,h,w->c", a, windows, windows) / (16 * a.shape[1])
        assert float((mean * w).sum()) == pytest.approx(own, rel=1e-4)


def test_full_slowfast_has_the_published_columns():
    with torch.device("meta"):
        net = RECIPES["slowfast_r50"].build(400)
    last = [net.get_submodule(f"{layer}.res_blocks.2.branch2.conv_c") for layer in PATHWAYS]
    assert [conv.out_channels for conv in last] == [2048, 256]
    assert net.blocks[6].proj.in_features == 2304


def test_both_pathways_fused(slowfast: TorchModel):
    why = tl.GradCAM(layer=PATHWAYS)(slowfast, random_clip("slowfast_r50"), [Logit(0)])[0]
    assert why.grid.shape == (32, 3, 3)
    assert float(why.grid.max()) > 0


@pytest.mark.parametrize("name", some(["slowfast_r50", "slowfast_r101"]))
def test_both_pathways_look_where_they_are_followed_to(name: str):
    base = random_clip(name).pixels[None]
    model = model_of(name, focused(small(name), bare(name)(base), fall=0.2))
    for layer, at in ((PATHWAYS[0], (0.3, 0.0, 0.5)), (PATHWAYS[1], (0.7, 0.5, 1.0))):
        found = misplaced(model, [layer], base, at)[layer]
        assert max(map(abs, found)) <= 0.25, f"{layer}: off by {found} strides along t, y, x"
    with capturing(model, base, PATHWAYS) as capture:
        slow, fast = (capture.at(layer).layout.centres for layer in PATHWAYS)
    assert fast["t"] == tuple(range(32))
    # between its own frames and those of the fast pathway that are joined to it, every fourth
    assert all(4 * i <= t <= f for i, (t, f) in enumerate(zip(slow["t"], slow_frames(32), strict=True)))
    assert slow["t"][-1] == pytest.approx(28 + 3 * 0.8**4)
    assert slow["w"] == fast["w"] == (0, 32, 64)


# ── one pathway ──────────────────────────────────────────────────────────────────────────────────────────

GRIDS = {  # stride in time and where the first cell looks
    **{"slow_r50": (1, 0.0), "c2d_r50": (2, 0.5), "i3d_r50": (2, 0.5), "csn_r101": (8, 0.0)},
    **{"r2plus1d_r50": (4, 0.0), "x3d_xs": (1, 0.0), "x3d_s": (1, 0.0), "x3d_m": (1, 0.0), "x3d_l": (1, 0.0)},
}


@pytest.mark.parametrize("name", some(GRIDS))
def test_cells_look_where_they_are_followed_to(name: str):
    base = random_clip(name).pixels[None]
    recipe = RECIPES[name]
    net = focused(small(name), bare(name)(base), fall=0.1 if name.startswith("x3d") else 0.3)
    model = model_of(name, net)
    stride, first = GRIDS[name]
    with capturing(model, base) as capture:
        centres = capture.layout.centres
    assert centres["t"] == tuple(first + stride * i for i in range(recipe.spec.frames // stride))
    assert centres["h"] == centres["w"] == (0, 32, 64)
    found = misplaced(model, [recipe.layer], base, (0.3, 0.5, 1.0))[recipe.layer]
    assert max(map(abs, found)) <= 0.25, f"off by {found} strides along t, y, x"


@pytest.mark.slow
@pytest.mark.parametrize("name", MVITS)
def test_transformer_tokens_look_where_the_layout_says(name: str):
    recipe = RECIPES[name]
    video = random_clip(name, 224)
    base = video.pixels[None]
    net = focused(narrow(name), recipe.pack(base))
    for module in net.modules():
        if type(module).__name__ == "MultiScaleAttention":  # the shortcuts carry the place
            module.proj.weight.data.mul_(0.02)
            module.proj.bias.data.zero_()
    model = model_of(name, net)
    with capturing(model, base) as capture:
        assert capture.activations.shape[2:] == (recipe.spec.frames // 2, 7, 7)
    for layer, at in ((recipe.layer, (0.3, 0.3, 0.7)), ("blocks.4.norm1", (0.7, 0.8, 0.4))):
        found = misplaced(model, [layer], base, at)[layer]
        assert max(map(abs, found)) <= 0.25, f"{layer}: off by {found} strides along t, y, x"
    with pytest.raises(HeadError):
        tl.Tubes()(model, video, [Logit(0)])


@pytest.mark.parametrize("name", some(AFFINE))
def test_tubes_are_exact_also_where_the_head_slides(name: str):
    """Of 3 x 3 cells the head averages 2 x 2 windows of 2 x 2 (of 8 x 8 at 256 pixels, windows of 7 x 7)."""
    recipe = RECIPES[name]
    assert recipe.tubes == "exact"
    video = random_clip(name)
    net = focused(small(name), bare(name)(video.pixels[None]))
    model = model_of(name, net)
    logits = model(video.pixels[None])[0]
    whys = tl.Tubes()(model, video, [Logit(k) for k in range(3)])
    bias = net.get_parameter(recipe.head.replace("weight", "bias")).detach()
    for k, why in enumerate(whys):
        constant = why.provenance.facts["constant"]
        own = abs(float(logits[k]) - constant)
        assert constant == pytest.approx(float(bias[k]), abs=1e-3 * own)
        assert float(why.grid.double().sum()) + constant == pytest.approx(float(logits[k]), abs=1e-4 * own)
    windows = torch.tensor([1.0, 2, 1])  # in how many of them a row or a column is
    weight = net.get_parameter(recipe.head).detach()[0]
    with capturing(model, video.pixels[None]) as capture:
        a = capture.activations[0]
    slow = torch.einsum("c,cthw,h,w->thw", weight, a, windows, windows) / (16 * a.shape[1])
    torch.testing.assert_close(whys[0].grid, slow, rtol=1e-3, atol=1e-5 * float(slow.abs().max()))


def test_x3d_has_no_tubes():
    assert RECIPES["x3d_xs"].tubes == "the head has a ReLU between the pooling and the classifier"
    video = random_clip("x3d_xs")
    model = model_of("x3d_xs", focused(small("x3d_xs"), bare("x3d_xs")(video.pixels[None])))
    with pytest.raises(HeadError):
        tl.Tubes()(model, video, [Logit(0)])


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", some(KEYS, (*DEEP, "csn_r101")))
def test_the_smallest_clips_are_really_the_smallest(name: str):
    """Without the check the network takes the smallest size, and raises something obscure one pixel below."""
    recipe = RECIPES[name]
    with torch.device("meta"):
        net = narrow(name).eval()
    frames, side = recipe.pack.frames, recipe.pack.side  # type: ignore[attr-defined]
    pathways = Pathways(pack=lambda x: x)

    def run(t: int, h: int, w: int) -> Any:
        x = torch.rand(1, 3, t, h, w)
        fed = pathways(x) if name.startswith("slowfast") else x
        return net([p.to("meta") for p in fed] if isinstance(fed, list) else fed.to("meta"))

    assert run(frames, side, side).shape == (1, 4)
    for size in ((frames, side - 1, side), (frames, side, side - 1), (frames - 1, side, side)):
        with pytest.raises(RuntimeError):
            run(*size)
        with pytest.raises(
            InputError, match=rf"{name} takes clips of .*{frames} frames of at least {side} x"
        ):
            recipe.pack(torch.rand(1, 3, *size))
    if name.startswith("slowfast"):
        with pytest.raises(RuntimeError):
            run(36, side, side)
        with pytest.raises(InputError, match="of 32 frames of at least 193 x 193"):
            recipe.pack(torch.rand(1, 3, 36, side, side))
    else:
        assert recipe.pack(torch.rand(1, 3, frames + 4, side, side + 2)).shape[2] == frames + 4
    assert frames <= recipe.spec.frames
    assert side <= min(recipe.spec.size)


# ── files of mmaction2 ───────────────────────────────────────────────────────────────────────────────────

SLOWONLY = {  # names in its files and in pytorchvideo's
    "backbone.conv1.conv.weight": "blocks.0.conv.weight",
    "backbone.conv1.bn.running_var": "blocks.0.norm.running_var",
    "backbone.layer1.0.conv1.conv.weight": "blocks.1.res_blocks.0.branch2.conv_a.weight",
    "backbone.layer1.0.downsample.conv.weight": "blocks.1.res_blocks.0.branch1_conv.weight",
    "backbone.layer2.0.downsample.bn.num_batches_tracked": (
        "blocks.2.res_blocks.0.branch1_norm.num_batches_tracked"
    ),
    "backbone.layer3.5.conv2.bn.bias": "blocks.3.res_blocks.5.branch2.norm_b.bias",
    "backbone.layer4.2.conv3.conv.weight": "blocks.4.res_blocks.2.branch2.conv_c.weight",
    "cls_head.fc_cls.weight": "blocks.5.proj.weight",
    "cls_head.fc_cls.bias": "blocks.5.proj.bias",
}


def as_mmaction(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole state dict with the names of mmaction2's SlowOnly, built up from its structure."""
    found = {"data_preprocessor.mean": torch.zeros(3, 1, 1, 1)}
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def pair(theirs: str, conv: str, norm: str) -> None:
        found[f"{theirs}.conv.weight"] = state[f"{conv}.weight"]
        found.update({f"{theirs}.bn.{part}": state[f"{norm}.{part}"] for part in parts})

    pair("backbone.conv1", "blocks.0.conv", "blocks.0.norm")
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for i in range(depth):
            own = f"blocks.{stage}.res_blocks.{i}"
            for n, letter in enumerate("abc", start=1):
                at = f"{own}.branch2"
                pair(f"backbone.layer{stage}.{i}.conv{n}", f"{at}.conv_{letter}", f"{at}.norm_{letter}")
        first = f"blocks.{stage}.res_blocks.0"
        pair(f"backbone.layer{stage}.0.downsample", f"{first}.branch1_conv", f"{first}.branch1_norm")
    for part in ("weight", "bias"):
        found[f"cls_head.fc_cls.{part}"] = state[f"blocks.5.proj.{part}"]
    return found


def test_slowonly_of_mmaction2_is_slow_r50():
    style = RECIPES["slow_r50"].styles[0]
    own = narrow("slow_r50").state_dict()
    theirs = as_mmaction(own)
    assert not set(SLOWONLY) - set(theirs)
    assert style.fits(theirs)
    assert not style.fits(own)
    converted = style.convert(theirs)
    for name, ours in SLOWONLY.items():
        assert torch.equal(converted[ours], theirs[name]), name
    other = narrow("slow_r50")
    fit(other, converted, "file", "slow_r50")
    assert all(torch.equal(value, own[key]) for key, value in other.state_dict().items())
    assert style.pack is not None
    grey = torch.full((1, 3, 8, 256, 256), 0.5)  # its mean and deviation are those of ImageNet on 0..255
    bands = style.pack(grey)[0, :, 0, 0, 0]
    expected = (127.5 - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(bands, expected)
    with pytest.raises(InputError, match="slow_r50 takes clips of at least 8 frames"):
        style.pack(torch.rand(1, 3, 4, 224, 224))


def test_i3d_of_mmaction2_is_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(zoo.MODELS, "i3d_r50", RECIPES["i3d_r50"])
    theirs = {"backbone.layer1.0.conv1.conv.weight": torch.zeros(1), "cls_head.fc_cls.weight": torch.zeros(1)}
    torch.save({"meta": {}, "state_dict": theirs}, tmp_path / "i3d.pth")
    with pytest.raises(CheckpointError, match="other strides than pytorchvideo's i3d_r50"):
        zoo.load("i3d_r50", tmp_path / "i3d.pth")


# ── the extra ────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_imported_until_it_is_needed():
    code = "import sys, tubelens, tubelens.zoo.pytorchvideo_hub; print('pytorchvideo' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_without_the_extra_one_line_says_so(monkeypatch: pytest.MonkeyPatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "pytorchvideo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorchvideo", None)
    with pytest.raises(
        OptionError, match=r"slow_r50 needs the extra 'pytorchvideo' .*tubelens\[pytorchvideo\]"
    ):
        RECIPES["slow_r50"].build(4)
