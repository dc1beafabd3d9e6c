"""I3D: TensorFlow's padding, the network written out as formulas, three ways of naming, tubes, places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tubelens as tl
from tests.zoo.registered import clip_of, loaded, misplaced, varied
from tubelens.capture import capturing
from tubelens.errors import CheckpointError, InputError
from tubelens.model import TorchModel
from tubelens.zoo import i3d
from tubelens.zoo.i3d import I3D, Pool, Unit

RGB, FLOW = i3d.RECIPES
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BLOCKS = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
# the same unit in the three publications: piergiaj, hassony2, DeepMind
STEM = [
    ("Conv3d_1a_7x7", "conv3d_1a_7x7", "Conv3d_1a_7x7"),
    ("Conv3d_2b_1x1", "conv3d_2b_1x1", "Conv3d_2b_1x1"),
    ("Conv3d_2c_3x3", "conv3d_2c_3x3", "Conv3d_2c_3x3"),
]
BRANCHES = [
    ("b0", "branch_0", "Branch_0/Conv3d_0a_1x1"),
    ("b1a", "branch_1.0", "Branch_1/Conv3d_0a_1x1"),
    ("b1b", "branch_1.1", "Branch_1/Conv3d_0b_3x3"),
    ("b2a", "branch_2.0", "Branch_2/Conv3d_0a_1x1"),
    ("b2b", "branch_2.1", "Branch_2/Conv3d_0b_3x3"),
    ("b3b", "branch_3.1", "Branch_3/Conv3d_0b_1x1"),
]


def units() -> list[tuple[str, str, str]]:
    found = list(STEM)
    for block in BLOCKS:
        for ours, theirs, tf in BRANCHES:
            # the one misprint in the published variables
            tf = "Branch_2/Conv3d_0a_3x3" if (block, ours) == ("5b", "b2b") else tf
            found.append((f"Mixed_{block}.{ours}", f"mixed_{block}.{theirs}", f"Mixed_{block}/{tf}"))
    return found


def names() -> set[str]:
    keys = {"logits.conv3d.weight", "logits.conv3d.bias"}
    for ours, _, _ in units():
        keys |= {f"{ours}.conv3d.weight", *(f"{ours}.bn.{p}" for p in NORM)}
    return keys


def padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """The least padding with which there is a window for every `stride` cells; the odd one at the end."""
    total = 0
    while (size + total - kernel) // stride + 1 < -(-size // stride) or size + total < kernel:
        total += 1
    return total // 2, total - total // 2


def around(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=2):
        before, after = padding(x.shape[axis], k, s)
        shape = list(x.shape)
        shape[axis] = before
        front = x.new_zeros(shape)
        shape[axis] = after
        x = torch.cat([front, x, x.new_zeros(shape)], axis)
    return x


def reference(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """`Mixed_5c` and the logits, from parameters by name."""

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv3d.weight"]
        x = F.conv3d(around(x, tuple(weight.shape[2:]), (stride,) * 3), weight, stride=stride)
        mean, var, scale, bias = (
            state[f"{name}.bn.{p}"].view(-1, 1, 1, 1)
            for p in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-3).sqrt() * scale + bias).clamp(min=0)

    def pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        return F.max_pool3d(around(x, kernel, stride), kernel, stride)

    x = pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    for block in BLOCKS:
        at = f"Mixed_{block}"
        if block == "4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if block == "5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        x = torch.cat(
            [
                unit(x, f"{at}.b0"),
                unit(unit(x, f"{at}.b1a"), f"{at}.b1b"),
                unit(unit(x, f"{at}.b2a"), f"{at}.b2b"),
                unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{at}.b3b"),
            ],
            1,
        )
    weight, bias = state["logits.conv3d.weight"].flatten(1), state["logits.conv3d.bias"]
    t, h, w = x.shape[2:]
    slid = [
        x[:, :, i : i + 2, j : j + 7, k : k + 7].mean((2, 3, 4)) @ weight.T + bias
        for i in range(t - 1)
        for j in range(h - 6)
        for k in range(w - 6)
    ]
    return x, torch.stack(slid).mean(0)


@pytest.fixture(scope="module")
def base() -> Tensor:
    """17 frames, 240 pixels high: odd in time, and more than one window there and along the height."""
    return torch.rand((1, 3, 17, 240, 200), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model(base: Tensor) -> TorchModel:
    net = varied(I3D(5), base[:, :, :9, :193, :193] * 2 - 1)
    return TorchModel(net, pack=RGB.pack, layer=RGB.layer, spec=RGB.spec)


@pytest.mark.parametrize(
    ("recipe", "classes", "parameters"),
    [(RGB, 400, 12_697_264), (FLOW, 400, 12_675_312), (RGB, 157, 12_448_189)],
)
def test_parameters_and_names(recipe: tl.zoo.Recipe, classes: int, parameters: int):
    with torch.device("meta"):
        net = recipe.build(classes)
    assert parameters == sum(p.numel() for p in net.parameters())
    assert recipe.parameters == parameters or classes != recipe.classes
    assert len(names()) == 344
    assert set(net.state_dict()) == names()
    assert net.state_dict()[recipe.head].shape[0] == classes


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
def test_padding_is_tensorflows(kernel: int, stride: int):
    for size in range(7, 31):
        assert i3d.same_padding(size, kernel, stride) == padding(size, kernel, stride)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_maxima_and_convolutions_cell_by_cell(stride: int, axis: int):
    """Along one axis, from what each window covers; what is outside counts as zero, also for the maximum."""
    generator = torch.Generator().manual_seed(axis)
    kernels = [1, 1, 1]
    kernels[axis] = 3
    strides = [1, 1, 1]
    strides[axis] = stride
    pool = Pool((kernels[0], kernels[1], kernels[2]), (strides[0], strides[1], strides[2]))
    unit = Unit(2, 3, kernel=3, stride=stride, norm=False)
    wide = Unit(2, 3, kernel=7, stride=2, norm=False)
    for size in range(7, 31):
        shape = [1, 1, 1]
        shape[axis] = size
        x = torch.randn((1, 2, *shape), generator=generator) - 1  # mostly negative: zeros outside matter
        line = x.flatten(2)[0]

        def windows(kernel: int, stride: int, line: Tensor = line, size: int = size) -> list[Tensor]:
            first = -padding(size, kernel, stride)[0]
            cells = [
                [line[:, j] if 0 <= j < size else torch.zeros(2) for j in range(i, i + kernel)]
                for i in range(first, first + -(-size // stride) * stride, stride)
            ]
            return [torch.stack(c, 1) for c in cells]

        expected = torch.stack([w.amax(1) for w in windows(3, stride)], 1)
        torch.testing.assert_close(pool(x).flatten(2)[0], expected)
        for conv, kernel, step in ((unit, 3, stride), (wide, 7, 2)):
            # the other axes are of length 1: of them only the kernel's middle sees anything
            taps = conv.conv3d.weight.detach().movedim(2 + axis, -1)[:, :, kernel // 2, kernel // 2]
            bias = conv.conv3d.bias.detach() if conv.conv3d.bias is not None else 0
            sums = torch.stack([torch.einsum("nck,ck->n", taps, w) + bias for w in windows(kernel, step)], 1)
            torch.testing.assert_close(conv(x).detach().flatten(2)[0], sums, rtol=1e-4, atol=1e-5)


def test_it_is_the_network_of_the_paper(model: TorchModel):
    clips = torch.rand((1, 3, 9, 193, 226), generator=torch.Generator().manual_seed(5))
    before, logits = reference(model.module.state_dict(), clips * 2 - 1)
    with capturing(model, clips) as capture:
        torch.testing.assert_close(capture.activations, before, rtol=1e-3, atol=5e-4)
        torch.testing.assert_close(capture.scores.detach(), logits, rtol=1e-3, atol=5e-4)
    assert before.std() > 0.3
    assert before.shape == (1, 1024, 2, 7, 8)


def saved(style: str, file: Path, bands: int = 3) -> dict[str, Tensor]:
    """A file in a published style, and what our keys must hold."""
    modules = ("RGB", "Flow")[bands == 2]
    net = I3D(6, bands)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm3d) and m.running_mean is not None and m.running_var is not None:
            torch.nn.init.normal_(m.running_mean)
            torch.nn.init.uniform_(m.running_var)
            torch.nn.init.normal_(m.bias)
            if style != "tensorflow":
                torch.nn.init.normal_(m.weight)
    ours = net.state_dict()
    theirs: dict[str, Tensor] = {}
    for unit, hassony2, tf in [*units(), ("logits", "conv3d_0c_1x1", "Logits/Conv3d_0c_1x1")]:
        weight = ours[f"{unit}.conv3d.weight"]
        params = ("weight", "bias", "running_mean", "running_var") if unit != "logits" else ()
        if style == "piergiaj":
            theirs |= {
                f"{unit}.conv3d.weight": weight,
                **{f"{unit}.bn.{p}": ours[f"{unit}.bn.{p}"] for p in params},
            }
        elif style == "hassony2":
            theirs[f"{hassony2}.conv3d.weight"] = weight
            theirs |= {f"{hassony2}.batch3d.{p}": ours[f"{unit}.bn.{p}"] for p in params}
        else:
            at = f"{modules}/inception_i3d/{tf}"
            theirs[f"{at}/conv_3d/w"] = weight.movedim((0, 1), (4, 3)).contiguous()
            if params:
                for theirs_p, p in (
                    ("beta", "bias"),
                    ("moving_mean", "running_mean"),
                    ("moving_variance", "running_var"),
                ):
                    theirs[f"{at}/batch_norm/{theirs_p}"] = ours[f"{unit}.bn.{p}"].view(1, 1, 1, 1, -1)
    bias = {"piergiaj": "logits.conv3d.bias", "hassony2": "conv3d_0c_1x1.conv3d.bias"}
    theirs[bias.get(style, f"{modules}/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/b")] = ours[
        "logits.conv3d.bias"
    ]
    torch.save(theirs, file)
    return ours


@pytest.mark.parametrize("style", ["piergiaj", "hassony2", "tensorflow"])
@pytest.mark.parametrize("recipe", [RGB, FLOW], ids=["rgb", "flow"])
def test_published_files_load(
    style: str, recipe: tl.zoo.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "model.pt"
    expected = saved(style, file, len(recipe.spec.bands))
    model = loaded(recipe, file, monkeypatch)
    found = model.module.state_dict()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    # the first and the last pixel value become -1 and 1
    ends = torch.tensor([0.0, 0.5, 1.0]).expand(len(recipe.spec.bands), 3)[None, :, :, None, None]
    torch.testing.assert_close(model.pack(ends), ends * 2 - 1)


def test_files_of_other_networks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved("hassony2", tmp_path / "flow.pth", bands=2)
    with pytest.raises(
        CheckpointError, match=r"another shape: Conv3d_1a_7x7.conv3d.weight \(64, 2, 7, 7, 7\)"
    ):
        loaded(RGB, tmp_path / "flow.pth", monkeypatch)
    saved("tensorflow", tmp_path / "tf.pt")
    state = torch.load(tmp_path / "tf.pt", weights_only=True)
    state["RGB/inception_i3d/Mixed_3b/Branch_9/Conv3d_0a_1x1/conv_3d/w"] = torch.zeros(1, 1, 1, 2, 3)
    torch.save(state, tmp_path / "tf.pt")
    with pytest.raises(CheckpointError, match=r"1 unexpected: RGB/inception_i3d/Mixed_3b/Branch_9"):
        loaded(RGB, tmp_path / "tf.pt", monkeypatch)


def test_recipes():
    assert RGB.spec.bands == ("R", "G", "B")
    assert FLOW.spec.bands == ("U", "V")
    for recipe in (RGB, FLOW):
        spec = recipe.spec
        assert (spec.frames, spec.size, spec.resize, spec.rate) == (64, (224, 224), 256, 25)
        with pytest.raises(InputError, match="bands"):
            recipe.pack(torch.rand(1, 1, 2, 2, 2))


def test_tubes_are_exact_and_the_ends_weigh_less(model: TorchModel, base: Tensor):
    """3 x 8 x 7 cells: two windows along time and height, so each end of these is in one of them only."""
    state = model.module.state_dict()
    with capturing(model, base, probe=True) as capture:
        (why,) = tl.Tubes().from_capture(capture, clip_of(base[0]), [tl.Logit(2)])
        before, logit = capture.activations[0], capture.scores[0, 2].detach()
        assert capture.layout.centres["t"] == pytest.approx((2, 10, 18))
        assert capture.layout.centres["h"] == pytest.approx([23 + 32 * i for i in range(8)])
    assert before.shape == (1024, 3, 8, 7)
    time, height = torch.tensor([1.0, 2.0, 1.0]) / 4, torch.tensor([1.0, *[2.0] * 6, 1.0]) / 14
    share = time[:, None, None] * height[:, None] / 7
    expected = torch.einsum("cthw,c->thw", before, state["logits.conv3d.weight"][2].flatten()) * share
    torch.testing.assert_close(why.grid, expected, rtol=1e-4, atol=1e-6)
    constant, bias = why.provenance.facts["constant"], state["logits.conv3d.bias"][2]
    assert abs(constant - bias) <= 1e-4 * abs(logit - bias)
    assert abs(why.grid.sum() + constant - logit) <= 1e-4 * abs(logit - bias)


def test_cells_look_where_the_layout_says(model: TorchModel, base: Tensor):
    off = misplaced(model, base[:, :, :, :200], "Mixed_5c")
    assert max(off.values()) <= 0.25, off


def test_one_frame_or_pixel_less_is_too_little(model: TorchModel):
    for size in ((8, 193, 193), (9, 192, 193), (9, 193, 192)):
        with pytest.raises(InputError, match=r"at least 9 frames of 193x193, got \d of") as caught:
            model(torch.rand(1, 3, *size))
        assert "\n" not in str(caught.value)
