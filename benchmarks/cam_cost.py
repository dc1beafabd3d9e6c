"""The activation family against one bare forward of r3d_18 at 16x112x112, and against peers; fp32."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from statistics import median
from typing import Any

import numpy as np
import torch

import tubelens as tl
from tubelens.capture import capturing
from tubelens.methods.ablationcam import AblationCAM
from tubelens.methods.cam import GradCAM, GradCAMpp, HiResCAM, LayerCAM, XGradCAM
from tubelens.methods.eigen import FEM, EigenCAM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pytorch_grad_cam as pgc
    import torchcam.methods as torchcam
    from captum.attr import LayerGradCam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

LAYER = "layer4"
SEVEN = (GradCAM, GradCAMpp, XGradCAM, HiResCAM, LayerCAM, EigenCAM, FEM)
Job = Callable[[], Any]


def interleaved(jobs: dict[str, Job], repeats: int) -> dict[str, list[float]]:
    """Seconds of each job, taking turns, so that a slow minute hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return times


def table(title: str, times: dict[str, list[float]], base: str) -> None:
    print(f"{title} (median of {len(times[base])} interleaved runs)")
    for name, taken in times.items():
        ratio = median(t / b for t, b in zip(taken, times[base], strict=True))
        fastest = min(taken) / min(times[base])
        print(f"  {name:44} {median(taken) * 1e3:9.1f} ms  {ratio:7.3f} of {base}, fastest {fastest:.3f}")


@contextmanager
def saved_bytes() -> Any:
    """Bytes of the activations that autograd keeps for the backward; parameters are there anyway."""
    kept: dict[tuple[int, int], int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if not isinstance(t, torch.nn.Parameter):
            kept[t.untyped_storage().data_ptr(), t._version] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield kept


def scaled(a: Any) -> np.ndarray:
    values = np.asarray(torch.as_tensor(a).detach(), dtype=float).ravel()
    return values - values.mean()


def correlation(a: Any, b: Any) -> float:
    x, y = scaled(a), scaled(b)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def main(repeats: int = 7) -> None:
    model = tl.load_model("r3d_18", "random")
    clip = tl.Clip.from_array(np.random.default_rng(0).random((16, 112, 112, 3), dtype=np.float32))
    net = model.module.eval()
    packed = model.pack(clip.pixels[None])
    one, many = [tl.Logit(7)], [tl.Logit(i) for i in range(400)]

    def forward() -> None:
        with torch.no_grad():
            net(packed)

    def shared() -> None:
        with capturing(model, clip.pixels[None], LAYER) as capture:
            for make in SEVEN:
                make().from_capture(capture, clip, one)

    jobs: dict[str, Job] = {"a forward": forward}
    jobs |= {f"{make.__name__}, 1 target": lambda make=make: make()(model, clip, one) for make in SEVEN}
    jobs |= {
        "AblationCAM, 1 target, closed form": lambda: AblationCAM()(model, clip, one),
        "seven methods on one capture": shared,
        "GradCAM, 400 targets, native grids": lambda: GradCAM()(model, clip, many),
        "GradCAM, 1 target, three layers": lambda: GradCAM(("layer2", "layer3", "layer4"))(model, clip, one),
    }
    print(f"r3d_18, 16x112x112, {torch.get_num_threads()} threads")
    table("Ours", interleaved(jobs, repeats), "a forward")

    eight = packed.repeat(8, 1, 1, 1, 1)

    def sixteen() -> None:
        with torch.no_grad():
            net(eight)
            net(eight)

    def scored() -> None:
        tl.ScoreCAM(channels=15)(model, clip, one, tl.Run(batch=8, precision="fp32"))

    few = max(1, repeats // 2)
    table(
        "Score-CAM",
        interleaved({"16 forwards": sixteen, "ScoreCAM, 15 channels": scored}, few),
        "16 forwards",
    )

    target = [ClassifierOutputTarget(7)]
    layer = net.get_submodule(LAYER)

    def ours() -> Any:
        return GradCAM()(model, clip, one)[0].upsample(order=1)

    def by_pgc() -> Any:
        with pgc.GradCAM(net, [layer]) as cam:
            return cam(input_tensor=packed.clone(), targets=target)[0]

    def by_captum() -> Any:
        return LayerGradCam(net, layer).attribute(packed, 7, relu_attributions=True)[0, 0]

    def by_torchcam() -> Any:
        with torchcam.GradCAM(net, LAYER, input_shape=(3, 16, 112, 112)) as cam:
            return cam(7, net(packed.clone().requires_grad_()))[0]

    peers: dict[str, Job] = {
        "ours, upsampled": ours,
        "ours": lambda: GradCAM()(model, clip, one),
        "pytorch-grad-cam (upsampled)": by_pgc,
        "captum LayerGradCam": by_captum,
        "torchcam": by_torchcam,
    }
    table("Grad-CAM, 1 target", interleaved(peers, repeats), "ours")
    native = GradCAM()(model, clip, one)[0].grid
    # theirs is moved to zero before it is zoomed, and what the spline undershoots is cut off
    zoomed = (GradCAM()(model, clip, one)[0].upsample(order=3, align="endpoints") - native.min()).clamp_min(0)
    print(f"  correlation with captum            {correlation(native, by_captum()):.6f}")
    print(f"  correlation with torchcam          {correlation(native, by_torchcam()[0]):.6f}")
    print(f"  correlation with pytorch-grad-cam  {correlation(zoomed, by_pgc()):.6f} (corner-aligned zoom)")
    print("Bytes kept for the backward, parameters not counted")
    sizes = {}
    for name, job in {
        "ours": peers["ours"],
        "captum": by_captum,
        "torchcam": by_torchcam,
        "pgc": by_pgc,
    }.items():
        with saved_bytes() as kept:
            job()
        sizes[name] = sum(kept.values())
        print(f"  {name:10} {sizes[name] / 1e6:10.3f} MB")
    net.zero_grad(set_to_none=True)
    eigen(model, clip, packed, max(1, repeats // 3))
    ablation(max(1, repeats // 3))


def eigen(model: tl.TorchModel, clip: tl.Clip, packed: torch.Tensor, repeats: int) -> None:
    """Eigen-CAM at 98 and at 6,272 cells: the peer computes as many singular vectors, we the first one."""
    for name in ("layer4", "layer2"):
        layer = model.module.get_submodule(name)

        def theirs(layer: Any = layer) -> Any:
            with pgc.EigenCAM(model.module, [layer]) as cam:
                return cam(input_tensor=packed.clone(), targets=[ClassifierOutputTarget(7)])

        jobs = {
            "ours": lambda name=name: EigenCAM(name, centred=True)(model, clip, [tl.Logit(7)]),
            "pytorch-grad-cam": theirs,
        }
        table(f"Eigen-CAM at {name}", interleaved(jobs, repeats), "ours")


class Image(torch.nn.Module):
    """A 2-D ResNet-18: pytorch-grad-cam's Ablation-CAM fails on clips, so both explain one image."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.net = resnet18(weights=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out


def ablation(repeats: int) -> None:
    torch.manual_seed(0)
    net = Image().eval()
    folded = {name: tl.Layout("(b t) c h w", {"t": 1}) for name in ("net.layer3", "net.layer4")}
    model = tl.TorchModel(net, pack=lambda x: x[:, :, 0], layouts=folded)
    image = tl.Clip.from_array(np.random.default_rng(0).random((1, 224, 224, 3), dtype=np.float32))
    for name in folded:
        layer = net.get_submodule(name)

        def theirs(layer: Any = layer) -> Any:
            with redirect_stderr(StringIO()), pgc.AblationCAM(net, [layer]) as cam:
                return cam(input_tensor=image.pixels[None][:, :, 0], targets=[ClassifierOutputTarget(7)])

        jobs = {
            "ours": lambda name=name: AblationCAM(name)(model, image, [tl.Logit(7)]),
            "pytorch-grad-cam": theirs,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table(f"Ablation-CAM, resnet18 on an image, {name}", interleaved(jobs, repeats), "ours")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
