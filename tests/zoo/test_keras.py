"""Keras models: files of Keras 2 and 3, the logits behind a softmax, geometry, and what must not change."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tubelens as tl
from tests.videos import coded, write_video
from tubelens.capture import capturing, layers
from tubelens.errors import CheckpointError, HeadError, InputError, LayerError, OptionError
from tubelens.model import TorchModel
from tubelens.where import Where
from tubelens.zoo import keras_files, keras_legacy
from tubelens.zoo.form import Input

pytest.importorskip("h5py", reason="the extra `keras` is not installed")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="the extra `keras` is not installed")
L = keras.layers
# Keras's own, when it writes files
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SIZE = (6, 16, 16)


def filled(model: Any, seed: int = 0) -> Any:
    """Random weights that keep activations of order one."""
    rng = np.random.default_rng(seed)
    for v in model.weights:
        shape, kind = tuple(v.shape), v.path.rsplit("/", 1)[-1]
        noise = rng.standard_normal(shape)
        if kind.endswith("kernel"):
            noise *= (2 / np.prod(shape[:-1])) ** 0.5
        elif kind in ("gamma", "moving_variance"):
            noise = 0.5 + rng.random(shape)
        v.assign(noise.astype("float32"))
    return model


def tower(x: Any, order: str = "channels_last") -> Any:
    x = L.Conv3D(5, 3, (2, 2, 2), "same", order, activation="relu", name="first")(x)
    return L.Conv3D(7, 3, (1, 2, 2), "same", order, activation="relu", name="last")(x)


def net(head: str = "dense", order: str = "channels_last", size: tuple[Any, ...] = SIZE) -> Any:
    """Two convolutions and a head of 4 classes."""
    shape = (*size, 3) if order == "channels_last" else (3, *size)
    inputs = keras.Input(shape)
    x = tower(inputs, order)
    pooled = L.GlobalAveragePooling3D(order)
    if head == "dense":
        x = L.Dense(4, "softmax", name="scores")(pooled(x))
    elif head == "layer":
        x = L.Softmax()(L.Dense(4, name="scores")(pooled(x)))
    elif head == "activation":
        x = L.Activation("softmax")(pooled(L.Conv3D(4, 1, data_format=order, name="scores")(x)))
    elif head == "sigmoid":
        x = L.Dense(4, "sigmoid", name="scores")(pooled(x))
    elif head == "averaged":  # a softmax in every cell, then their mean
        x = pooled(L.Conv3D(4, 1, data_format=order, activation="softmax", name="scores")(x))
    elif head == "flattened":
        x = L.Conv3D(4, (3, 4, 4), activation="softmax", name="scores")(x)
        x = L.Flatten()(x)
    elif head == "max":
        x = L.Dense(4, "softmax", name="scores")(L.GlobalMaxPooling3D(data_format=order)(x))
    return filled(keras.Model(inputs, x, name="net"))


def clip(size: tuple[int, int, int] = SIZE, seed: int = 3) -> tl.Clip:
    return tl.Clip.from_array(np.random.default_rng(seed).random((*size, 3), dtype=np.float32))


def fed(x: tl.Clip) -> np.ndarray:
    return x.pixels.permute(1, 2, 3, 0)[None].numpy()


def exact(model: TorchModel, x: tl.Clip, target: int | str = 2, **options: Any) -> tl.Explanation:
    why = tl.explain(model, x, method="tubes", target=target, **options)
    constant = why.provenance.facts["constant"]
    score = why.provenance.score
    assert abs(float(why.grid.sum()) + constant - score) <= 1e-4 * abs(score - constant)
    return why


# ── scores and tubes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("head", ["dense", "layer", "activation", "flattened"])
def test_the_softmax_is_passed_over_and_tubes_are_exact(head: str):
    made = net(head)
    probs = made.predict(fed(clip()), verbose=0)
    model = keras_files.wrap(made)
    assert model.output == "logits"
    z = model(clip().pixels[None])
    assert torch.allclose(z.softmax(1), torch.from_numpy(probs), atol=1e-6)
    assert not torch.allclose(z.sum(1), torch.ones(1), atol=1e-2)
    why = exact(model, clip(), layer="last" if head != "flattened" else None)
    # again from the layer's output and the weights of the head
    cells = keras.Model(made.inputs, made.get_layer("last").output)(torch.from_numpy(fed(clip())))
    kernel = made.get_layer("scores").kernel.value
    if head != "flattened":
        expected = (cells @ kernel.reshape(7, 4)[:, 2])[0] / cells[0, ..., 0].numel()
        assert torch.allclose(why.grid, expected.detach(), atol=1e-5)
    else:
        assert why.provenance.layer == "last"  # the scores' own layer has one cell
        assert torch.allclose(why.grid, (cells[0] * kernel[..., 2]).sum(-1).detach(), atol=1e-5)
    assert torch.equal(torch.from_numpy(made.predict(fed(clip()), verbose=0)), torch.from_numpy(probs))


def test_a_mean_of_softmaxes_stays_probabilities():
    """There the scores without the softmax are not the logits of those with it."""
    made = net("averaged")
    model = keras_files.wrap(made)
    assert model.output == "probs"
    scores = model(clip().pixels[None])
    assert torch.allclose(scores, made(torch.from_numpy(fed(clip()))), atol=1e-6)
    with pytest.raises(HeadError):
        tl.explain(model, clip(), method="tubes", target=1, layer="last")


def test_sigmoids_and_declared_outputs():
    made = net("sigmoid")
    assert keras_files.wrap(made).output == "sigmoid"
    exact(keras_files.wrap(made), clip())
    declared = keras_files.wrap(net(), input=Input(6, 16, axes="b t h w c", output="probs"))
    assert declared.output == "probs"
    assert torch.allclose(declared(clip().pixels[None]).sum(1), torch.ones(1))


def test_a_global_maximum_is_why_tubes_refuse():
    model = keras_files.wrap(net("max"))
    with pytest.raises(HeadError, match="the head takes a global maximum"):
        tl.explain(model, clip(), method="tubes")
    assert float(tl.explain(model, clip(), method="gradcam", target=1).saliency.std()) > 0


def test_channels_first():
    """The torch backend convolves channels-first too; as channels-last with the same weights."""
    first, last = net("dense", "channels_first"), net("dense")
    model = keras_files.wrap(first)
    assert model.pack(clip().pixels[None]).shape == (1, 3, *SIZE)
    assert torch.allclose(model(clip().pixels[None]), keras_files.wrap(last)(clip().pixels[None]), atol=1e-5)
    exact(model, clip())
    assert {i.name: i.layout.pattern for i in layers(model, clip().pixels[None])}["last"] == "b c t h w"


def test_every_kind_of_method_runs_and_nothing_is_left():
    made = net()
    before = [v.numpy().copy() for v in made.variables]
    model = keras_files.wrap(made)
    rows = tl.explain_all(model, clip(), [tl.RISE(n=30, seed=0), "gradcam", "guided_backprop", "tubes"], 1)
    for row in rows:
        assert float(row[0].saliency.std()) > 0
    cam, tubes = rows[1][0].grid, rows[3][0].grid
    assert cam.shape == tubes.shape
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, made.variables, strict=True))
    assert not any(layer._forward_hooks for layer in made.layers)
    assert made.get_layer("scores").activation is keras.activations.softmax
    assert all(v.value.requires_grad for v in made.trainable_variables)


def test_clips_of_a_batch_do_not_touch():
    model = keras_files.wrap(net())
    both = torch.stack([clip(seed=1).pixels, clip(seed=2).pixels])
    assert torch.allclose(model(both)[1:], model(both[1:]), atol=1e-5)


def test_after_an_error_all_is_as_it_was():
    made = net("layer")
    model = keras_files.wrap(made)
    with pytest.raises(InputError, match="does not accept a clip batch of 1x3x5x16x16"):
        model(torch.rand(1, 3, 5, 16, 16))
    assert not any(layer._forward_hooks for layer in made.layers)
    dense = net("dense")
    model = keras_files.wrap(dense)
    with pytest.raises(InputError), capturing(model, torch.rand(1, 3, 5, 16, 16), "last"):
        pass
    assert dense.get_layer("scores").activation is keras.activations.softmax


# ── randomness and state ─────────────────────────────────────────────────────────────────────────────────


@keras.saving.register_keras_serializable("tubelens_tests")
class Noisy(L.Layer):
    """Noise in inference too, and a state that every call changes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dice = keras.random.SeedGenerator(7)

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(1,), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any) -> Any:
        self.calls.assign_add([1.0])
        return x + keras.random.normal(keras.ops.shape(x), seed=self.dice)


def test_dice_and_states_are_put_back():
    made = keras.Sequential([keras.Input((*SIZE, 3)), Noisy(name="noisy"), *net().layers[1:]])
    noisy = made.get_layer("noisy")
    seed = noisy.dice.state.numpy().copy()
    torch.manual_seed(4)
    state = torch.get_rng_state()
    model = keras_files.wrap(made)
    scores = [model(clip().pixels[None]) for _ in range(2)]
    assert torch.equal(*scores)
    assert np.array_equal(noisy.dice.state.numpy(), seed)
    assert noisy.calls.numpy() == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_draws_from_nobodys_generator(tmp_path: Path):
    net().save(tmp_path / "net.keras")
    (tmp_path / "net.json").write_text(net().to_json())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    keras_files.load(tmp_path / "net.keras")
    made = [keras_files.load(tmp_path / "net.json", "random", seed=s)(clip().pixels[None]) for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2], atol=1e-3)
    # Keras draws seeds from Python's generator (as does the checking of types in these tests)
    python = random.getstate()
    with keras_files._fair_dice(3):
        net()
    assert random.getstate() == python


# ── files of Keras 3 ─────────────────────────────────────────────────────────────────────────────────────


def saved(made: Any, folder: Path, form: str) -> tuple[Path, Path | None]:
    """The model as files: the name, and the weights where they are by themselves."""
    if form in ("keras", "h5"):
        path = folder / f"net.{form}"
        made.save(path)
        return path, None
    (folder / "net.json").write_text(made.to_json())
    if form == "whole":
        made.save(folder / "whole.h5")
        return folder / "net.json", folder / "whole.h5"
    made.save_weights(folder / "net.weights.h5")
    if form == "renamed":
        return folder / "net.json", (folder / "net.weights.h5").rename(folder / "net.h5")
    return folder / "net.json", folder / "net.weights.h5"


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("form", ["keras", "h5", "weights.h5", "renamed", "whole"])
def test_every_form_of_file(form: str, tmp_path: Path):
    made = net()
    path, weights = saved(made, tmp_path, form)
    model = tl.load_model(path, weights, labels=["a", "b", "c", "d"])
    assert isinstance(model, TorchModel)
    z = model(clip().pixels[None])
    assert torch.allclose(z.softmax(1), made(torch.from_numpy(fed(clip()))), atol=1e-6)
    assert model.labels == ["a", "b", "c", "d"]
    assert (model.spec.frames, model.spec.size, model.layer) == (6, (16, 16), "last")
    assert model.weights == str(weights or path)
    exact(model, clip(), "c")


def test_nested_models_have_their_layers(tmp_path: Path):
    deep = keras.Model(i := keras.Input((*SIZE, 3)), tower(i), name="body")
    x = L.GlobalAveragePooling3D()(deep(j := keras.Input((*SIZE, 3))))
    made = filled(keras.Model(j, L.Dense(4, "softmax", name="scores")(x), name="outer"))
    path, _ = saved(made, tmp_path, "keras")
    model = tl.load_model(path, input=Input(6, 16, axes="b t h w c"))
    assert isinstance(model, TorchModel)
    found = [i.name for i in layers(model, clip().pixels[None])]
    assert found == ["body/first", "body"]  # the nested model gives what its last layer gives
    a = exact(model, clip(), layer="body/last")
    assert torch.allclose(a.grid, exact(model, clip(), layer="body").grid)
    with pytest.raises(LayerError, match=r"has no layer 'last' \(did you mean .*'body/last'"):
        tl.explain(model, clip(), method="gradcam", layer="last")


def test_the_input_is_read_off(tmp_path: Path):
    assert keras_files.wrap(net(size=(None, None, None))).spec.size == (112, 112)
    i = keras.Input((16, 16, 6, 1))
    x = L.Rescaling(1 / 255)(i)
    x = L.GlobalAveragePooling3D()(L.Conv3D(4, 3, activation="relu")(x))
    model = keras_files.wrap(filled(keras.Model(i, x)))
    assert (model.spec.frames, model.spec.size, len(model.spec.bands)) == (6, (16, 16), 1)
    one = torch.rand(1, 1, 6, 16, 16)
    assert torch.allclose(model.pack(one), one.permute(0, 3, 4, 2, 1) * 255)
    assert model.output == "logits"  # no softmax: numbers of any size


def test_the_input_that_is_given_wins_unless_it_cannot_be():
    with pytest.raises(
        InputError,
        match=r"net takes 6 frames of 16x16x3 \(b t h w c\), the input says 16 frames of 112x112x3",
    ):
        keras_files.wrap(net(), input=Input(16, 112, axes="b t h w c"))
    with pytest.raises(InputError, match=r"takes 6 frames of 16x16x3 .* 6 frames of 16x16x1"):
        keras_files.wrap(net(), input=Input(6, 16, bands="Y", axes="b t h w c"))
    with pytest.raises(InputError, match=r"takes 16 frames of 6x16x3 \(b c t h w\)|an input of"):
        keras_files.wrap(net(), input=Input(6, 16, axes="b (t c) h w"))
    shape = (6, 12, 16)
    turned = keras_files.wrap(net(size=shape), input=Input(6, (16, 12), axes="b t h w c", rotate=90))
    assert turned.spec.size == (16, 12)
    with pytest.raises(InputError, match=r"takes 6 frames of 16x12x3"):
        keras_files.wrap(net(size=shape), input=Input(6, (12, 16), axes="b t h w c", rotate=90))
    two = keras.Model([i := keras.Input((*SIZE, 3)), j := keras.Input((*SIZE, 3))], tower(i + j))
    with pytest.raises(InputError, match="has 2 inputs, one is needed"):
        keras_files.wrap(two)
    flat = keras.Sequential([keras.Input((32, 32, 3)), L.Flatten(), L.Dense(2)])
    with pytest.raises(InputError, match="takes 32x32x3: say what it is fed"):
        keras_files.wrap(flat)


def test_a_model_that_someone_wrote():
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="own")
            self.conv = L.Conv3D(5, 3, 2, activation="relu", name="conv")
            self.pool, self.scores = L.GlobalAveragePooling3D(), L.Dense(3, name="scores")

        def call(self, x: Any) -> Any:
            return self.scores(self.pool(self.conv(x)))

    own = Own()
    own(torch.zeros(1, *SIZE, 3))
    model = keras_files.wrap(filled(own), input=Input(6, 16, axes="b t h w c"), labels=["a", "b", "c"])
    assert model.layer == "conv"
    exact(model, clip(), "b")


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────


def test_code_in_a_file_is_not_run(tmp_path: Path):
    trace = tmp_path / "ran"
    made = keras.Sequential(
        [keras.Input((*SIZE, 3)), L.Lambda(lambda x: x * 2, name="twice", output_shape=(*SIZE, 3))]
    )
    made.save(tmp_path / "net.keras")
    with pytest.raises(CheckpointError, match="'twice' is a Lambda: code in a file is not run"):
        tl.load_model(tmp_path / "net.keras")
    config = {
        "module": "subprocess",
        "class_name": "Popen",
        "config": {"args": ["touch", str(trace)]},
        "registered_name": None,
    }
    (tmp_path / "net.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"is of the class subprocess\.Popen, which is not here"):
        tl.load_model(tmp_path / "net.json", "random")
    old = legacy_json({"class_name": "TFOpLambda", "config": {"name": "tf.nn.relu", "function": "nn.relu"}})
    (tmp_path / "net.json").write_text(json.dumps(old))
    with pytest.raises(CheckpointError, match=r"'tf\.nn\.relu' is an operation of TensorFlow"):
        tl.load_model(tmp_path / "net.json", "random")
    assert not trace.exists()


def test_files_that_cannot_be_used(tmp_path: Path):
    path, weights = saved(net(), tmp_path, "weights.h5")
    with pytest.raises(CheckpointError, match=r"gone.keras: no such file"):
        tl.load_model(tmp_path / "gone.keras")
    with pytest.raises(CheckpointError, match=r"gone.h5: no such file"):
        tl.load_model(path, tmp_path / "gone.h5")
    with pytest.raises(OptionError, match="is an architecture alone: give its weights"):
        tl.load_model(path)
    with pytest.raises(CheckpointError, match="holds weights alone"):
        tl.load_model(weights or "")
    for name, content in (("a.keras", "no zip"), ("a.h5", "no HDF5"), ("a.json", "{"), ("b.json", "[1]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(CheckpointError, match=name) as caught:
            tl.load_model(tmp_path / name, "random")
        assert "\n" not in str(caught.value)
    other = net(size=(6, 16, 16), head="activation")
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(CheckpointError, match="Keras cannot read it"):
        tl.load_model(path, tmp_path / "other.weights.h5")


def test_keras_has_to_be_there_and_on_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "net.json").write_text(net().to_json())
    with monkeypatch.context() as patched:
        patched.setattr(keras.config, "backend", lambda: "jax")
        with pytest.raises(OptionError, match="imported with the backend 'jax': set KERAS_BACKEND=torch"):
            tl.load_model(tmp_path / "net.json", "random")
    seen = []

    def missing(name: str) -> Any:
        seen.append(os.environ.get("KERAS_BACKEND"))
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, "keras")
        patched.setenv("KERAS_BACKEND", "tensorflow")
        patched.setattr("tubelens.zoo.extras.importlib.import_module", missing)
        with pytest.raises(OptionError, match=r"needs the extra 'keras' .*pip install 'tubelens\[keras\]'"):
            tl.load_model(tmp_path / "net.json", "random")
        assert seen == ["torch"]
        assert os.environ["KERAS_BACKEND"] == "tensorflow"
        assert not keras_files.is_model(torch.nn.Linear(1, 1))


# ── geometry ─────────────────────────────────────────────────────────────────────────────────────────────


def test_same_padding_of_tensorflow():
    """An even length at stride 2 is padded at its end alone: cells look at 2 i + 1, then 4 i + 3."""
    model = keras_files.wrap(net(size=(8, 16, 13)))
    found = {i.name: i.layout.centres for i in layers(model, torch.rand(1, 3, 8, 16, 13))}
    assert found["first"]["t"] == (1, 3, 5, 7)
    assert found["first"]["h"][:3] == (1, 3, 5)
    assert found["first"]["w"] == (0, 2, 4, 6, 8, 10, 12)  # an odd one at both
    assert found["last"]["h"] == (3, 7, 11, 15)
    assert found["last"]["w"] == (0, 4, 8, 12)


def follows(function: Callable[[Tensor], Tensor]) -> bool:
    """Whether the axes of a clip are followed through it."""
    where, x = Where(), torch.rand(1, 3, 4, 6, 6)
    with where:
        where.start(x)
        y = function(x)
    return where.layout(y) is not None


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cells_look_where_they_are_said_to(pool: bool, axis: int):
    """Noise at one place: the centroid of what changes at the layer is that place, to 1/4 stride."""
    if pool and not follows(lambda x: F.pad(x, (0, 1) * 3, mode="replicate")):
        pytest.skip("axes are not followed through replicated edges")
    size = tuple(32 if a == axis else 8 for a in range(3))
    i = keras.Input((*size, 3))
    x = L.Conv3D(32, 3, 2, "same", activation="relu")(i)
    x = L.MaxPooling3D(3, 2, "same", name="last")(x) if pool else L.Conv3D(32, 3, 2, "same", name="last")(x)
    made = filled(keras.Model(i, L.Dense(3)(L.GlobalAveragePooling3D()(x))))
    model = keras_files.wrap(made, input=Input(size[0], size[1:], axes="b t h w c"))
    base = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with capturing(model, base, "last") as capture:
        before = capture.activations
        grid = capture.grid(torch.zeros(before.shape[2:]))
    cells = torch.tensor((grid.t, grid.y, grid.x)[axis])
    at = int(cells[len(cells) // 2])
    changed = base.clone()
    changed.movedim(2 + axis, 2)[:, :, at - 2 : at + 3] *= -2
    with capturing(model, changed, "last") as capture:
        moved = (capture.activations - before).pow(2).movedim(2 + axis, 0).flatten(1).sum(1)
    centroid = float((moved * cells).sum() / moved.sum())
    assert abs(centroid - at) <= 4 / 4


# ── Keras 2 ──────────────────────────────────────────────────────────────────────────────────────────────


def legacy_layer(kind: str, name: str, *sources: str, **config: Any) -> dict[str, Any]:
    """A layer as Keras 2.2.4 wrote it."""
    nodes = [[[source, 0, 0, {}] for source in sources]] if sources else []
    return {"name": name, "class_name": kind, "config": {"name": name, **config}, "inbound_nodes": nodes}


def convolution(name: str, source: str, filters: int, size: int, stride: int = 1) -> dict[str, Any]:
    scaling = {"scale": 2.0, "mode": "fan_in", "distribution": "normal", "seed": None}
    return legacy_layer(
        "Conv3D",
        name,
        source,
        trainable=True,
        filters=filters,
        kernel_size=[size] * 3,
        strides=[stride] * 3,
        padding="same",
        data_format="channels_last",
        dilation_rate=[1, 1, 1],
        activation="linear",
        use_bias=True,
        kernel_initializer={"class_name": "VarianceScaling", "config": scaling},
        bias_initializer={"class_name": "Zeros", "config": {}},
        kernel_regularizer={"class_name": "L1L2", "config": {"l1": 0.0, "l2": 1e-4}},
        kernel_constraint=None,
    )


def legacy_json(*more: dict[str, Any]) -> dict[str, Any]:
    """A residual network with the names that Keras 2 networks of that family carry."""
    one = {"axis": 4, "momentum": 0.99, "epsilon": 0.001, "center": True, "scale": True}
    parts = [
        legacy_layer(
            "InputLayer",
            "input_1",
            batch_input_shape=[None, 24, 16, 16, 3],
            dtype="float32",
            sparse=False,
        ),
        convolution("conv1", "input_1", 6, 3, 2),
        legacy_layer("BatchNormalization", "bn_conv1", "conv1", trainable=True, **one),
        legacy_layer("Activation", "activation_1", "bn_conv1", activation="relu"),
        convolution("res5c_branch2a", "activation_1", 6, 1),
        legacy_layer("Activation", "activation_2", "res5c_branch2a", activation="relu"),
        convolution("res5c_branch2b", "activation_2", 6, 3, 2),
        legacy_layer("LeakyReLU", "leaky", "res5c_branch2b", alpha=0.125),
        convolution("res5c_branch2c", "leaky", 6, 1),
        convolution("res5c_branch1", "activation_1", 6, 1, 2),
        legacy_layer("Add", "add_1", "res5c_branch2c", "res5c_branch1"),
        legacy_layer("GlobalAveragePooling3D", "pool", "add_1", data_format="channels_last"),
        legacy_layer("Dense", "predictions", "pool", units=5, activation="softmax", use_bias=True),
        *({**layer, "name": layer["config"]["name"], "inbound_nodes": []} for layer in more),
    ]
    ends = {"input_layers": [["input_1", 0, 0]], "output_layers": [["predictions", 0, 0]]}
    inner = {"name": "resnet3d", "layers": parts, **ends}
    return {"class_name": "Model", "config": inner, "keras_version": "2.2.4", "backend": "tensorflow"}


Weights = dict[str, dict[str, np.ndarray]]


def legacy_weights(seed: int = 5) -> Weights:
    """Drawn by hand, in the order in which no network would list them."""
    rng = np.random.default_rng(seed)

    def kernel(*shape: int) -> dict[str, np.ndarray]:
        scale = (2 / np.prod(shape[:-1])) ** 0.5
        draws = rng.standard_normal(shape) * scale, rng.standard_normal(shape[-1]) / 2
        return {"kernel:0": draws[0].astype("float32"), "bias:0": draws[1].astype("float32")}

    names = ("gamma:0", "beta:0", "moving_mean:0", "moving_variance:0")
    return {
        "res5c_branch1": kernel(1, 1, 1, 6, 6),
        "predictions": kernel(6, 5),
        "res5c_branch2c": kernel(1, 1, 1, 6, 6),
        "res5c_branch2a": kernel(1, 1, 1, 6, 6),
        "bn_conv1": {n: (0.5 + rng.random(6)).astype("float32") for n in names},
        "res5c_branch2b": kernel(3, 3, 3, 6, 6),
        "conv1": kernel(3, 3, 3, 3, 6),
    }


def write_legacy(path: Path, weights: Weights, config: dict[str, Any] | None = None) -> Path:
    """As Keras 2.2.4 wrote it: names in attributes, arrays below."""
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights") if config else file
        if config:
            file.attrs["model_config"] = json.dumps(config).encode()
            file.attrs["keras_version"] = b"2.2.4"
        group.attrs["layer_names"] = [n.encode() for n in ("input_1", *weights)]
        group.attrs["backend"] = b"tensorflow"
        group.create_group("input_1").attrs["weight_names"] = []
        for name, values in weights.items():
            group.create_group(name).attrs["weight_names"] = [f"{name}/{w}".encode() for w in values]
            for w, array in values.items():
                group[name][f"{name}/{w}"] = array
    return path


def by_hand(x: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """The residual network from its description: branch2c, the shortcut and the logits."""
    w = {name: {k: torch.from_numpy(v) for k, v in values.items()} for name, values in weights.items()}

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[name]["kernel:0"]
        widths = []
        for n in reversed(x.shape[2:]):
            total = max(0, (-(-n // stride) - 1) * stride + kernel.shape[0] - n)
            widths += [total // 2, total - total // 2]
        return F.conv3d(F.pad(x, widths), kernel.permute(4, 3, 0, 1, 2), w[name]["bias:0"], stride)

    bn = w["bn_conv1"]
    stats = bn["moving_mean:0"], bn["moving_variance:0"], bn["gamma:0"], bn["beta:0"]
    x = F.batch_norm(conv(x, "conv1", 2), *stats, eps=0.001).relu()
    deep = F.leaky_relu(conv(conv(x, "res5c_branch2a").relu(), "res5c_branch2b", 2), 0.125)
    last, short = conv(deep, "res5c_branch2c"), conv(x, "res5c_branch1", 2)
    pooled = (last + short).mean(dim=(2, 3, 4))
    return last, short, pooled @ w["predictions"]["kernel:0"] + w["predictions"]["bias:0"]


LABELS = ["bowling", "hammering", "juggling", "surfing", "waving"]
FED = "frames=24, size=16, stride=6, sampling=dense, axes=b t h w c"


@pytest.mark.parametrize("whole", [False, True])
def test_json_weights_video_and_label_of_keras_2(whole: bool, tmp_path: Path):
    """Model JSON, weights, video, label, layer `res5c_branch2c`: the tubes are exact, the numbers by hand."""
    weights = legacy_weights()
    (tmp_path / "net.json").write_text(json.dumps(legacy_json()))
    stored = write_legacy(tmp_path / "net.h5", weights, legacy_json() if whole else None)
    video = write_video(tmp_path / "v.mp4", [coded(i, (16, 24)) for i in range(150)])
    files = (stored, None) if whole else (tmp_path / "net.json", stored)
    model = tl.load_model(*files, input=FED, labels=LABELS)
    assert isinstance(model, TorchModel)
    assert model.verified == "by name"
    x = model.read(video)
    assert x.source.times == pytest.approx([i * 6 / 25 for i in range(24)])
    last, _, logits = by_hand(x.pixels[None], weights)
    assert torch.allclose(model(x.pixels[None]), logits, atol=1e-4)
    why = exact(model, x, "juggling", layer="res5c_branch2c")
    column = torch.from_numpy(weights["predictions"]["kernel:0"][:, 2])
    cells = last[0, 0].numel()
    assert torch.allclose(why.grid, torch.einsum("c,cthw->thw", column, last[0]) / cells, atol=1e-5)
    assert model.layer == "add_1"
    assert tl.explain(model, x, tl.GradCAM(layer="res5c_branch2c"), "juggling").grid.shape == (6, 4, 4)


def test_weights_go_by_name_and_faults_are_named(tmp_path: Path):
    """Layers of equal shape in another order: Keras itself would swap them."""
    config, weights = legacy_json(), legacy_weights()
    (tmp_path / "net.json").write_text(json.dumps(config))
    turned = dict(reversed(weights.items()))
    a, b = (
        tl.load_model(tmp_path / "net.json", write_legacy(tmp_path / f"{i}.h5", w), input=FED)
        for i, w in enumerate((weights, turned))
    )
    x = torch.rand(1, 3, 24, 16, 16)
    assert torch.equal(a(x), b(x))
    # other names throughout: the order is all there is
    order = ("conv1", "bn_conv1", "res5c_branch2a", "res5c_branch2b", "res5c_branch2c", "res5c_branch1")
    renamed = {f"layer_{i}": weights[n] for i, n in enumerate((*order, "predictions"))}
    c = tl.load_model(tmp_path / "net.json", write_legacy(tmp_path / "c.h5", renamed), input=FED)
    assert c.verified == "by order"  # type: ignore[union-attr]
    assert torch.equal(a(x), c(x))
    faults = {
        "no weights for conv1; weights of conv9, which it does not have": {
            ("conv9" if n == "conv1" else n): w for n, w in weights.items()
        },
        "predictions/kernel:0 is 6x4 and not 6x5": weights
        | {"predictions": {"kernel:0": np.zeros((6, 4)), "bias:0": np.zeros(5)}},
        "layer 'predictions' has 2 weights, the file 1": weights
        | {"predictions": {"kernel:0": np.zeros((6, 5))}},
    }
    for i, (said, given) in enumerate(faults.items()):
        with pytest.raises(CheckpointError, match=said):
            tl.load_model(tmp_path / "net.json", write_legacy(tmp_path / f"bad{i}.h5", given), input=FED)


def test_a_weight_is_not_fetched_from_another_file(tmp_path: Path):
    import h5py

    (tmp_path / "net.json").write_text(json.dumps(legacy_json()))
    write_legacy(tmp_path / "other.h5", legacy_weights())
    path = write_legacy(tmp_path / "net.h5", legacy_weights())
    with h5py.File(path, "a") as file:
        del file["conv1/conv1/kernel:0"]
        file["conv1/conv1/kernel:0"] = h5py.ExternalLink("other.h5", "conv1/conv1/kernel:0")
    with pytest.raises(CheckpointError, match="weight 'conv1/kernel:0' of layer 'conv1' is not in the file"):
        tl.load_model(tmp_path / "net.json", path, input=FED)
    with h5py.File(write_legacy(path, legacy_weights()), "a") as file:
        file.attrs["backend"] = "theano"
    with pytest.raises(CheckpointError, match="written with Theano"):
        tl.load_model(tmp_path / "net.json", path, input=FED)


def test_sequential_keras_2(tmp_path: Path):
    """A list of layers, the input's shape on the first, a wrapper, a name with a slash, a policy as dtype."""
    inner = {"class_name": "Conv2D", "config": {"name": "c", "filters": 4, "kernel_size": [3, 3]}}
    policy = {"class_name": "Policy", "config": {"name": "mixed_float16"}}
    parts = [
        {
            "class_name": "TimeDistributed",
            "config": {"name": "each/frame", "batch_input_shape": [None, 6, 16, 16, 3], "layer": inner},
        },
        {"class_name": "BatchNormalization", "config": {"name": "bn", "axis": [4], "renorm": False}},
        {"class_name": "Reshape", "config": {"name": "r", "target_shape": [6, 14, 14, 4], "dtype": policy}},
        {"class_name": "GlobalAveragePooling3D", "config": {"name": "gap"}},
        {"class_name": "Dense", "config": {"name": "scores", "units": 3, "activation": "softmax"}},
    ]
    for layout in (parts, {"name": "seq", "layers": parts}):
        config = keras_legacy.modernise({"class_name": "Sequential", "config": layout}, "net.json")
        made = keras.models.model_from_json(json.dumps(config))
        assert made.input_shape == (None, 6, 16, 16, 3)
        assert [layer.name for layer in made.layers] == ["each_frame", "bn", "r", "gap", "scores"]
        assert made.get_layer("r").compute_dtype == "float32"
    assert torch.allclose(
        keras_files.wrap(filled(made))(clip().pixels[None]).softmax(1).sum(1), torch.ones(1)
    )


def test_layers_that_go_frame_by_frame():
    if not follows(lambda x: torch.stack([x[:, :, i] for i in range(4)], 2)):
        pytest.skip("axes are not followed through frames that are taken one by one")
    i = keras.Input((*SIZE, 3))
    x = L.TimeDistributed(L.Conv2D(5, 3, 2, "same", activation="relu"), name="each")(i)
    x = L.Dense(3, "softmax", name="scores")(L.GlobalAveragePooling3D()(x))
    model = keras_files.wrap(filled(keras.Model(i, x)))
    found = {i.name: i.layout for i in layers(model, clip().pixels[None])}
    assert found["each"].pattern == "b t h w c"
    assert found["each"].centres["t"] == tuple(range(6))
    assert found["each"].centres["h"] == (1, 3, 5, 7, 9, 11, 13, 15)
    why = exact(model, clip())
    pixels = clip().pixels[None].clone()
    pixels[:, :, 4] = 0
    with capturing(model, pixels) as capture:
        cells = torch.einsum("cthw,c->thw", capture.activations[0], model.find("scores").kernel.value[:, 2])
    changed = (cells.detach() / cells.numel() - why.grid).abs().amax(dim=(1, 2))
    assert (changed > 1e-4).tolist() == [False] * 4 + [True, False]


def test_what_keras_3_has_no_word_for():
    unknown = legacy_json({"class_name": "CuDNNLSTM", "config": {"name": "memory"}})
    with pytest.raises(CheckpointError, match="layer 'memory' is a CuDNNLSTM, which Keras 3 does not have"):
        keras_legacy.modernise(unknown, "net.json")
    odd = legacy_json({"class_name": "BatchNormalization", "config": {"name": "b", "adjustment": 2}})
    with pytest.raises(CheckpointError, match="BatchNormalization 'b' has adjustment=2, which Keras 3"):
        keras_legacy.modernise(odd, "net.json")
    with pytest.raises(CheckpointError, match="not the architecture of a functional or sequential"):
        keras_legacy.modernise({"class_name": "Own", "config": {}}, "net.json")


def test_nested_weights_of_keras_2_go_by_name(tmp_path: Path):
    """Within a nested model the order is Keras's; the names in the file say which is which."""
    body = keras.Model(
        i := keras.Input((*SIZE, 3)),
        L.Conv3D(3, 1, name="right")(L.Conv3D(3, 1, name="left")(i)),
        name="body",
    )
    made = keras.Model(j := keras.Input((*SIZE, 3)), L.GlobalAveragePooling3D()(body(j)))
    shapes = {"kernel:0": (1, 1, 1, 3, 3), "bias:0": (3,)}
    rng = np.random.default_rng(0)
    entries = [
        (f"body/{n}/{w}", rng.random(s).astype("float32"))
        for n in ("right", "left")
        for w, s in shapes.items()
    ]
    assert keras_legacy.put(made, {"body": entries}, "net.h5") == "by name"
    assert np.array_equal(body.get_layer("right").kernel.numpy(), entries[0][1])
    assert np.array_equal(body.get_layer("left").bias.numpy(), entries[3][1])
