"""ONNX files as black boxes, against the torch network that they were exported from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tubelens as tl
from tests.perturbed import clip
from tubelens.errors import CheckpointError, InputError, LayerError, OptionError
from tubelens.zoo import extras

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SIZE = (6, 12, 10)


class Net(nn.Module):
    """What the ONNX graph below computes."""

    def __init__(self, axes: tuple[int, ...] = (0, 1, 2, 3, 4), softmax: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)
        self.back, self.softmax = axes, softmax

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(self.conv(x.permute(self.back)).relu().mean(dim=(2, 3, 4)) * 5)
        return z.softmax(1) if self.softmax else z


def graph(net: Net, shape: list[Any], kind: int = TensorProto.FLOAT, extra: bool = False) -> Any:
    """The network of `Net` written out operation by operation."""
    arrays = {
        "w": net.conv.weight.detach().numpy(),
        "b": net.conv.bias.detach().numpy(),
        "f": net.fc.weight.detach().numpy().T * 5,
        "g": net.fc.bias.detach().numpy(),
        "axes": np.array([2, 3, 4]),
    }
    nodes = [
        helper.make_node("Cast", ["clip"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["x"], ["y"], perm=net.back),
        helper.make_node("Conv", ["y", "w", "b"], ["z"], pads=[1] * 6),
        helper.make_node("Relu", ["z"], ["r"]),
        helper.make_node("ReduceMean", ["r", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "f"], ["n"]),
        helper.make_node("Add", ["n", "g"], ["logits"]),
    ]
    if net.softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=1))
    out = "scores" if net.softmax else "logits"
    outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, [shape[0], 4])]
    if extra:
        outputs.insert(0, helper.make_tensor_value_info("r", TensorProto.FLOAT, [shape[0], 8, *SIZE]))
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("clip", kind, shape)],
        outputs,
        [numpy_helper.from_array(a, name) for name, a in arrays.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write(tmp_path: Path, *args: Any, **options: Any) -> Path:
    file = tmp_path / "net.onnx"
    onnx.save(graph(*args, **options), file)
    return file


ORDERS = {  # order of the input -> how to get back to b c t h w, and its shape
    "b c t h w": ((0, 1, 2, 3, 4), [3, *SIZE]),
    "b t c h w": ((0, 2, 1, 3, 4), [SIZE[0], 3, *SIZE[1:]]),
    "b t h w c": ((0, 4, 1, 2, 3), [*SIZE, 3]),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch", ["n", 1])
def test_scores_and_a_rise_map_are_those_of_the_torch_network(order: str, batch: Any, tmp_path: Path):
    back, shape = ORDERS[order]
    model = tl.load_model(write(tmp_path, Net(back), [batch, *shape]))
    assert isinstance(model, tl.BlackBox)
    assert (model.spec.frames, model.spec.size, model.spec.bands) == (6, (12, 10), ("R", "G", "B"))
    video = clip(SIZE)
    torch_model = tl.TorchModel(Net().eval(), pack=lambda x: x.clone())
    pair = torch.stack([video.pixels, video.pixels.flip(1)])
    torch.testing.assert_close(model(pair), torch_model(pair), rtol=1e-4, atol=1e-4)
    mine, theirs = (tl.explain(m, video, "rise(n=20)", 2).saliency for m in (model, torch_model))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_probabilities_are_found_and_not_softmaxed_again(tmp_path: Path):
    model = tl.load_model(write(tmp_path, Net(softmax=True), ["n", 3, *SIZE]))
    assert model.output == "probs"
    video = clip(SIZE)
    want = Net(softmax=True)(video.pixels[None])[0].detach()
    (_, p), *_ = tl.predict(model, video)
    assert p == pytest.approx(float(want.max()), abs=1e-5)


def test_uint8_and_half_inputs_and_a_second_output(tmp_path: Path):
    video = clip(SIZE)
    bytes_ = (video.pixels * 255).floor()
    model = tl.load_model(write(tmp_path, Net(), ["n", 3, *SIZE], TensorProto.UINT8, extra=True))
    torch.testing.assert_close(
        model((bytes_ / 255 + 1e-4)[None]), Net()(bytes_[None]).detach(), rtol=1e-3, atol=1e-3
    )
    half = tl.load_model(write(tmp_path, Net(), ["n", 3, *SIZE], TensorProto.FLOAT16))
    torch.testing.assert_close(
        half(video.pixels[None]), Net()(video.pixels[None]).detach(), rtol=1e-2, atol=1e-2
    )


def reduced(tmp_path: Path, out: list[Any], kind: int = TensorProto.FLOAT, node: Any = None) -> Path:
    """A graph that averages clips `(n, 6, 12, 10, 3)` over frames and pixels, or runs `node`."""
    nodes = [
        helper.make_node("Cast", ["clip"], ["x"], to=TensorProto.FLOAT),
        node or helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=0),
    ]
    made = helper.make_graph(
        nodes,
        "reduced",
        [helper.make_tensor_value_info("clip", kind, ["n", *SIZE, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
    )
    file = tmp_path / "reduced.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    return file


def test_pixels_are_rounded_to_bytes_and_not_cut_off(tmp_path: Path):
    file = reduced(tmp_path, ["n", 3], TensorProto.UINT8)
    model = tl.load_model(file)
    for level, byte in ((0.0, 0), (99.9999, 100), (100.4, 100), (100.9, 101), (255.0, 255)):
        assert model(torch.full((1, 3, *SIZE), level / 255)).tolist() == [[byte] * 3], level
    told = tl.load_model(file, input="frames=6, size=12x10, axes=b t h w c, scale=300")
    assert told(torch.ones(1, 3, *SIZE)).tolist() == [[255] * 3]  # and does not start again at 0
    # what is said is what is done, even the default
    told = tl.load_model(file, input="frames=6, size=12x10, axes=b t h w c, scale=1")
    assert told(torch.ones(1, 3, *SIZE)).tolist() == [[1] * 3]


@pytest.mark.parametrize(
    ("node", "out", "given"),
    [
        (helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0), ["n", 6, 3], "2x6x3"),
        (helper.make_node("Identity", ["x"], ["y"]), ["n", *SIZE, 3], "2x6x12x10x3"),
        (
            helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=1),
            ["n", 1, 1, 1, 3],
            "2x1x1x1x3",
        ),
        (helper.make_node("ReduceMean", ["x"], ["y"], axes=[0, 1, 2, 3], keepdims=0), [3], "3"),
        (helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0), [], "one number"),
    ],
)
def test_an_output_that_is_no_row_of_scores_is_refused(node: Any, out: list[Any], given: str, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        tl.load_model(reduced(tmp_path, out, node=node))
    assert f"its output 'y' is {given} for 2 clip(s), not one row of scores a clip" in str(caught.value)
    assert "wrap_scorer" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("axes", "keepdims", "out"),
    [([2, 3, 4], 1, ["n", 6, 1, 1, 1]), ([2, 3, 4], 0, ["n", 6]), ([1, 2, 3, 4], 0, ["n"])],
)
def test_rows_with_ones_after_them_are_rows(axes: list[int], keepdims: int, out: list[Any], tmp_path: Path):
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=axes, keepdims=keepdims)
    model = tl.load_model(reduced(tmp_path, out, node=node))
    pixels = clip(SIZE).pixels[None]
    want = pixels.mean(dim=(1, 3, 4)) if len(axes) == 3 else pixels.mean().view(1, 1)
    torch.testing.assert_close(model(pixels), want)


def test_what_the_file_does_not_tell_is_asked_for(tmp_path: Path):
    file = write(tmp_path, Net(), ["n", 3, "t", "h", "w"])
    with pytest.raises(OptionError, match=r"\?x3x\?x\?x\?.*does not tell.*--input"):
        tl.load_model(file)
    model = tl.load_model(file, input="frames=6, size=12x10, mean=0.5, std=0.5")
    video = clip(SIZE)
    torch.testing.assert_close(
        model(video.pixels[None]),
        Net()((video.pixels[None] - 0.5) / 0.5).detach(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_faults_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path, Net(), [1, 3, *SIZE])
    with pytest.raises(InputError, match="takes 1x3x6x12x10, not 1x3x8x12x10"):
        tl.load_model(file, input="frames=8, size=12x10")
    with pytest.raises(OptionError, match="holds its own weights"):
        tl.load_model(file, weights="w.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        tl.load_model(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(CheckpointError, match="cannot be read as an ONNX network"):
        tl.load_model(tmp_path / "bad.onnx")
    with pytest.raises(LayerError, match="black box"):
        tl.explain(tl.load_model(file), clip(SIZE), "gradcam", 0)
    with pytest.raises(InputError, match="batches of 2 clips only"):
        tl.load_model(write(tmp_path, Net(), [2, 3, *SIZE]))

    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(OptionError, match=r"needs the extra 'onnx' .*pip install 'tubelens\[onnx\]'"):
        tl.load_model(file)
