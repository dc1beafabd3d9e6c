"""Class activation maps: the papers' formulas done slowly in float64, identities between them, peers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import order_one
from tests.test_tubes import Small, clip, model
from tubelens.capture import capturing
from tubelens.errors import LayerError, OptionError
from tubelens.layout import Grid, Layout
from tubelens.methods.cam import GradCAM, GradCAMpp, HiResCAM, LayerCAM, XGradCAM
from tubelens.methods.fuse import fused
from tubelens.methods.tubes import Tubes
from tubelens.model import BlackBox, TorchModel
from tubelens.target import Contrast, Logit, Prob

CAMS = (GradCAM, GradCAMpp, XGradCAM, HiResCAM, LayerCAM)


class Deep(nn.Module):
    """A head that is not linear, read where activations take both signs; in-place ReLUs all along."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 5, 3, (1, 2, 2), 1), nn.ReLU(inplace=True))
        self.mid = nn.Conv3d(5, 6, 3, (2, 2, 2), 1)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Conv3d(6, 7, 3, 1, 1)
        self.end = nn.ReLU(inplace=True)
        self.fc = nn.Linear(7, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.mid(self.stem(6 * (x - 0.5))))
        return self.fc(self.end(self.last(x)).mean(dim=(2, 3, 4)))


@pytest.fixture(scope="module")
def deep() -> TorchModel:
    torch.manual_seed(1)
    return model(order_one(Deep(), clip().pixels[None]), "mid")


@pytest.fixture(scope="module")
def small() -> TorchModel:
    torch.manual_seed(0)
    return model(order_one(Small(), clip().pixels[None]), "body")


def by_the_book(net: nn.Module, layer: str, pixels: Tensor, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A and dy/dA in float64: full graph, retained gradient, one target at a time."""
    kept: list[Tensor] = []

    def keep(m: nn.Module, i: Any, out: Tensor) -> Tensor:
        out.retain_grad()
        kept.append(out)
        return out.clone()

    handle = net.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            net(pixels)[0, index].backward()
    finally:
        handle.remove()
        net.zero_grad(set_to_none=True)
    gradient = kept[-1].grad
    assert gradient is not None
    return kept[-1].detach()[0].double().numpy(), gradient[0].double().numpy()


def slow(name: str, a: np.ndarray, g: np.ndarray, per_step: bool) -> np.ndarray:
    """The signed sum over features, cell by cell, as the papers write it."""
    out = np.zeros(a.shape[1:])
    for k in range(a.shape[0]):
        steps = [slice(t, t + 1) for t in range(a.shape[1])] if per_step else [slice(None)]
        for s in steps:
            cells = [
                (t, y, x) for t in range(a.shape[1])[s] for y in range(a.shape[2]) for x in range(a.shape[3])
            ]
            total = sum(a[k][c] for c in cells)
            weight = 0.0
            for c in cells:
                d = g[k][c]
                if name == "GradCAM":
                    weight += d / len(cells)
                elif name == "GradCAMpp":
                    below = 2 * d**2 + total * d**3
                    alpha = d**2 / below if below != 0 else 0.0
                    weight += alpha * max(d, 0.0)
                elif name == "XGradCAM":
                    weight += d * a[k][c] / total if total != 0 else 0.0
            for c in cells:
                if name == "HiResCAM":
                    out[c] += g[k][c] * a[k][c]
                elif name == "LayerCAM":
                    out[c] += max(g[k][c], 0.0) * a[k][c]
                else:
                    out[c] += weight * a[k][c]
    return out


@pytest.mark.parametrize("layer", ["mid", "act", "last"])
@pytest.mark.parametrize("make", CAMS)
def test_equals_the_papers_formula(deep: TorchModel, make: Any, layer: str):
    for pool in ("thw", "hw") if make in CAMS[:3] else (None,):
        options = {} if pool is None else {"pool": pool}
        targets = [Logit(i) for i in range(4)]
        signed = make(layer=layer, signed=True, **options)(deep, clip(), targets)
        plain = make(layer=layer, **options)(deep, clip(), targets)
        mixed = False
        for i in range(4):
            a, g = by_the_book(deep.module, layer, clip().pixels[None], i)
            want = slow(make.__name__, a, g, pool == "hw")
            np.testing.assert_allclose(signed[i].grid, want, atol=1e-5 * np.abs(want).max(), rtol=1e-4)
            np.testing.assert_allclose(
                plain[i].grid, np.maximum(want, 0), atol=1e-5 * np.abs(want).max(), rtol=1e-4
            )
            assert plain[i].parts[0].y == plain[i].parts[0].x == (0.0, 4.0, 8.0, 12.0, 16.0, 20.0)
            mixed |= bool((want < 0).any() and (want > 0).any())
        assert mixed or make is LayerCAM or (layer == "act" and make is GradCAMpp)


def test_features_that_sum_to_zero_and_zero_denominators_have_no_weight():
    """A feature that is silent, and one whose Grad-CAM++ denominator 2 + g sum(A) is zero."""

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            a = x.mean(dim=(3, 4), keepdim=True)  # a grid of two cells in time
            a = torch.cat([0 * a[:, :1], -a[:, :1] / a[:, :1].sum(2, keepdim=True), a[:, 2:]], dim=1)
            y = (self.layer(a) * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None]).sum(dim=(1, 2, 3, 4))
            return torch.stack([y, -y], dim=1)

    video = clip(frames=2, size=4)
    net = model(Made(), "layer", layouts={"layer": Layout()})
    with capturing(net, video.pixels[None]) as capture:
        a = capture.activations[0]
        assert float(a[0].abs().sum()) == 0
        assert float(a[1].sum()) == pytest.approx(-1)
    (found,) = GradCAMpp(signed=True)(net, video, [Logit(0)])
    want = a[2] * (2 * 3 / (2 + 3 * a[2].sum()))
    torch.testing.assert_close(found.grid, want)
    (found,) = XGradCAM(signed=True)(net, video, [Logit(0)])
    torch.testing.assert_close(found.grid, 2 * a[1] + 3 * a[2])


def test_one_pooled_linear_head_five_names_for_the_same_map(small: TorchModel):
    """The gradient is the same in every cell: Grad-CAM = HiResCAM = XGrad-CAM = ReLU(tubes)."""
    targets = [Logit(2), Contrast(0, 3)]
    tubes = Tubes()(small, clip(), targets)
    for i in range(2):
        for make in (GradCAM, HiResCAM, XGradCAM):
            torch.testing.assert_close(make(signed=True)(small, clip(), targets)[i].grid, tubes[i].grid)
            torch.testing.assert_close(make()(small, clip(), targets)[i].grid, tubes[i].grid.relu())
        weights = small.module.fc.weight.detach()
    positive = LayerCAM(signed=True)(small, clip(), [Logit(2)])[0].grid
    with capturing(small, clip().pixels[None]) as capture:
        a = capture.activations[0]
    cells = a[0].numel()
    torch.testing.assert_close(positive, torch.einsum("k,kthw->thw", weights[2].relu() / cells, a))


def test_hirescam_adds_up_to_the_logit_on_an_affine_head():
    net = order_one(Small(head=lambda x: x.flatten(2)[..., ::2].sum(-1)), clip().pixels[None])
    with torch.no_grad():
        logits = net(clip().pixels[None])[0]
    found = HiResCAM(layer="body", signed=True)(model(net), clip(), [Logit(i) for i in range(5)])
    for i, why in enumerate(found):
        assert float(why.grid.sum()) + float(net.fc.bias[i].detach()) == pytest.approx(
            float(logits[i]), rel=1e-4
        )
        pooled = GradCAM(layer="body", signed=True)(model(net), clip(), [Logit(i)])[0]
        assert not torch.allclose(pooled.grid, why.grid, atol=1e-2 * float(why.grid.abs().max()))


def test_pooling_over_space_only_differs_where_the_gradient_changes_over_time(deep: TorchModel):
    for make in CAMS[:3]:
        whole = make(layer="mid", signed=True)(deep, clip(), [Logit(0)])[0].grid
        steps = make(layer="mid", signed=True, pool="hw")(deep, clip(), [Logit(0)])[0].grid
        assert float((whole - steps).abs().max()) > 1e-2 * float(whole.abs().max())


def test_parity_is_the_published_code(deep: TorchModel):
    """Per feature: ReLU(sum of the gradient times A), zoomed trilinearly, corners aligned, then summed."""
    for layer in ("mid", "last"):
        found = GradCAM(layer=layer, parity="icpr2022")(deep, clip(), [Logit(i) for i in range(4)])
        for i, why in enumerate(found):
            a, g = by_the_book(deep.module, layer, clip().pixels[None], i)
            maps = np.stack([np.maximum(g[k].sum() * a[k], 0) for k in range(len(a))])
            np.testing.assert_allclose(why.grid, maps.sum(0), atol=1e-5 * maps.sum(0).max())
            zoomed = F.interpolate(
                torch.from_numpy(maps)[None], (8, 24, 24), mode="trilinear", align_corners=True
            )[0].sum(0)
            np.testing.assert_allclose(why.upsample(order=1), zoomed, atol=1e-5 * float(zoomed.max()))
    plain = GradCAM(layer="mid")(deep, clip(), [Logit(0)])[0].grid
    other = GradCAM(layer="mid", parity="icpr2022")(deep, clip(), [Logit(0)])[0].grid
    assert np.corrcoef(plain.flatten(), other.flatten())[0, 1] < 0.99
    for bad in (GradCAM(parity="icpr2022", signed=True), GradCAM(parity="icpr2022", pool="hw")):
        with pytest.raises(OptionError, match="pools over thw and is not signed"):
            bad(deep, clip(), [Logit(0)])


def test_one_forward_and_one_backward_for_all_methods(deep: TorchModel):
    targets = [Logit(0), Prob(1), Contrast(2, 3)]
    with capturing(deep, clip().pixels[None], ("mid", "last")) as capture:
        for make in CAMS:
            shared = make(layer="mid").from_capture(capture, clip(), targets)
            assert shared[0].provenance.forwards == 1
            assert shared[0].provenance.backwards == 3
            for mine, alone in zip(shared, make(layer="mid")(deep, clip(), targets), strict=True):
                torch.testing.assert_close(mine.grid, alone.grid)
                assert mine.provenance.layer == "mid"
                assert mine.provenance.method == repr(make(layer="mid"))
        assert capture.backwards == 3


def test_many_targets_in_chunks_are_the_same(deep: TorchModel, monkeypatch: pytest.MonkeyPatch):
    targets = [Logit(i) for i in range(4)]
    for make in CAMS:
        whole = make(signed=True)(deep, clip(), targets)
        with monkeypatch.context() as patch:
            patch.setattr("tubelens.capture.MAX_GRADIENT_BYTES", 4 * 4 * 2 * 864)  # two gradients of mid
            parts = make(signed=True)(deep, clip(), targets)
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(one.grid, other.grid)


def test_several_layers_are_fused_where_their_cells_look(deep: TorchModel):
    """A coarse and a fine grid, by hand: linear at the finest centres, scaled, combined."""
    fine = GradCAM(layer="stem")(deep, clip(), [Logit(1)])[0].parts[0]
    coarse = GradCAM(layer="act")(deep, clip(), [Logit(1)])[0].parts[0]
    placed = coarse.values.numpy().astype(float)
    for axis, (to, given) in enumerate([(fine.t, coarse.t), (fine.y, coarse.y), (fine.x, coarse.x)]):
        placed = np.apply_along_axis(lambda v, to=to, given=given: np.interp(to, given, v), axis, placed)
    a, b = fine.values.numpy() / fine.values.abs().max().item(), placed / np.abs(placed).max()
    for how, want in {"mean": (a + b) / 2, "max": np.maximum(a, b), "product": a * b}.items():
        (why,) = GradCAM(layer=("stem", "act"), fuse=how)(deep, clip(), [Logit(1)])  # type: ignore[arg-type]
        np.testing.assert_allclose(why.grid, want, atol=1e-5)
        assert (why.parts[0].t, why.parts[0].y) == (fine.t, fine.y)
        assert why.provenance.layer == "stem, act"
        assert (why.provenance.forwards, why.provenance.backwards) == (1, 1)
        assert len(why.parts) == 1


def test_fusing_takes_the_finest_of_each_axis_and_keeps_zeros_and_signs():
    ones = Grid(torch.tensor([[[-4.0, 2.0]]]), (3.5,), (1.5,), (0.5, 2.5), (0, 8))
    tall = Grid(torch.tensor([[[1.0]], [[3.0]]]), (1.5, 5.5), (1.5,), (1.5,), (0, 8))
    none = Grid(torch.zeros(1, 1, 1), (3.5,), (1.5,), (1.5,), (0, 8))
    both = fused([ones, tall], "max")
    assert both.values.tolist() == [[[-1.0, 0.5]], [[-1.0, 1.0]]]  # 1/3 loses to -1 and to 1/2
    assert (both.t, both.x, both.span) == ((1.5, 5.5), (0.5, 2.5), (0, 8))
    assert fused([ones, none], "mean").values.tolist() == [[[-0.5, 0.25]]]
    assert fused([ones], "product") is ones


def wrong(method: Any, **options: Any) -> Any:
    """With values that the type checker of the tests would not let through."""
    for name, value in options.items():
        object.__setattr__(method, name, value)
    return method


def test_bad_options_are_one_line(deep: TorchModel):
    cases: list[tuple[Any, str]] = [
        (wrong(GradCAM(), pool="t"), "pool must be one of 'thw', 'hw', not 't'"),
        (wrong(LayerCAM(), fuse="sum"), "fuse must be one of 'mean', 'max', 'product', not 'sum'"),
        (wrong(GradCAM(), parity="paper"), "parity must be one of 'icpr2022', not 'paper'"),
        (XGradCAM(layer=("mid", "act"), signed=True, fuse="product"), "two negatives a positive"),
        (HiResCAM(layer=()), "at least one"),
    ]
    for method, said in cases:
        with pytest.raises(OptionError, match=said):
            method(deep, clip(), [Logit(0)])


@pytest.mark.parametrize("make", CAMS)
def test_a_black_box_has_no_layers(make: Any):
    box = BlackBox(lambda x: torch.zeros(len(x), 3), name="served")
    with pytest.raises(
        LayerError, match=rf"{make.__name__} needs a network.s layers.*served is a black box.*rise"
    ):
        make()(box, clip(), [Logit(0)])


def test_repr_rebuilds_the_method():
    for made in (*(make() for make in CAMS), GradCAM(("a", "b"), "hw", True, "max", None)):
        assert eval(repr(made)) == made


def test_random_weights_differ_from_trained_ones_in_every_map():
    """The maps read the network: another one gives another map."""
    nets = [model(order_one(Deep(), clip().pixels[None], seed), "mid") for seed in (0, 1)]
    for make in CAMS:
        one, other = (make(signed=True)(net, clip(), [Logit(0)])[0].grid for net in nets)
        assert np.corrcoef(one.flatten(), other.flatten())[0, 1] < 0.9


# ── peers, where they are right ──────────────────────────────────────────────────────────────────────────


def peers() -> tuple[Any, Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import captum.attr
        import pytorch_grad_cam
        import torchcam.methods
    return captum.attr, pytorch_grad_cam, torchcam.methods


def same(ours: Tensor, theirs: Any, rtol: float = 1e-4) -> None:
    """Equal up to a positive scale, as peers divide by the maximum."""
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    assert a.max() > 0
    np.testing.assert_allclose(a / a.max(), b / b.max(), atol=rtol)


def test_captum_agrees(deep: TorchModel):
    captum, _, _ = peers()
    for layer in ("mid", "act"):
        theirs = captum.LayerGradCam(deep.module, deep.module.get_submodule(layer)).attribute(
            clip().pixels[None], 2, relu_attributions=True
        )
        torch.testing.assert_close(
            GradCAM(layer=layer)(deep, clip(), [Logit(2)])[0].grid, theirs[0, 0].detach()
        )


def test_torchcam_agrees(deep: TorchModel):
    _, _, torchcam = peers()
    kinds: dict[Any, str] = {GradCAM: "GradCAM", XGradCAM: "XGradCAM", LayerCAM: "LayerCAM"}
    for make, name in kinds.items():
        with getattr(torchcam, name)(deep.module, "act", input_shape=(3, 8, 24, 24)) as cam:
            (theirs,) = cam(2, deep.module(clip().pixels[None].requires_grad_()))
        ours = make(layer="act")(deep, clip(), [Logit(2)])[0].grid
        same(ours - ours.min(), theirs[0] - theirs[0].min())  # it also subtracts the minimum


class Still(nn.Module):
    """A 2-D network, for peers that fail on clips: time is one frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.next = nn.Conv2d(6, 7, 3, 1, 1)
        self.fc = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        # large gradients, beside which the 1e-6 that it adds to denominators does not count
        return 1e4 * self.fc(torch.relu(self.next(torch.relu(self.conv(x)))).mean(dim=(2, 3)))


def test_pytorch_grad_cam_agrees(deep: TorchModel):
    """On a clip where it is right (Grad-CAM, HiResCAM, LayerCAM), else on a single image."""
    _, pgc, _ = peers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        torch.manual_seed(3)
        net = Still().eval()
        folded = {"conv": Layout("(b t) c h w", {"t": 1})}
        still = TorchModel(net, pack=lambda x: x[:, :, 0], layer="conv", layouts=folded)
        image = clip(frames=1, size=32)
        names: dict[Any, str] = {
            GradCAM: "GradCAM",
            GradCAMpp: "GradCAMPlusPlus",
            XGradCAM: "XGradCAM",
            HiResCAM: "HiResCAM",
            LayerCAM: "LayerCAM",
        }
        for make, name in names.items():
            cam = getattr(pgc, name)(net, [net.conv])
            kept = capture_pgc(cam, image.pixels[None][:, :, 0], [ClassifierOutputTarget(1)])
            ours = make(signed=make is not LayerCAM)(still, image, [Logit(1)])[0].grid[0]
            np.testing.assert_allclose(ours, kept, atol=2e-4 * np.abs(kept).max())
        for make in (GradCAM, HiResCAM, LayerCAM):
            cam = getattr(pgc, names[make])(deep.module, [deep.module.act])
            kept = capture_pgc(cam, clip().pixels[None], [ClassifierOutputTarget(1)])
            ours = make(layer="act", signed=make is not LayerCAM)(deep, clip(), [Logit(1)])[0].grid
            np.testing.assert_allclose(ours, kept, atol=1e-4 * np.abs(kept).max())


def capture_pgc(cam: Any, pixels: Tensor, targets: Any) -> np.ndarray:
    """Its map before it is scaled and zoomed to the input."""
    kept: list[np.ndarray] = []
    inner: Callable[..., np.ndarray] = cam.get_cam_image

    def spy(*args: Any, **kwargs: Any) -> np.ndarray:
        kept.append(inner(*args, **kwargs))
        return kept[-1]

    cam.get_cam_image = spy
    try:
        cam(input_tensor=pixels, targets=targets)
    finally:
        cam.activations_and_grads.release()
        cam.model.zero_grad(set_to_none=True)
    return kept[0][0]
