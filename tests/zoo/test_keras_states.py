"""Keras models that remember or are shared, what a file's version means, and files of two kinds at once."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tubelens as tl
from tubelens.errors import CheckpointError, InputError
from tubelens.zoo import keras_files, keras_legacy
from tubelens.zoo.form import Input

h5py = pytest.importorskip("h5py", reason="the extra `keras` is not installed")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="the extra `keras` is not installed")
L = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SIZE = (4, 6, 6)


def filled(model: Any, seed: int = 0, gain: float = 2) -> Any:
    """Random weights that keep activations of order one, and drive some gates out of their linear part."""
    rng = np.random.default_rng(seed)
    for v in model.weights:
        shape = tuple(v.shape)
        scale = gain * (1 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 0.5
        v.assign((rng.standard_normal(shape) * scale).astype("float32"))
    return model


def pixels(seed: int = 3) -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def fed(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1)


# ── states ───────────────────────────────────────────────────────────────────────────────────────────────


@keras.saving.register_keras_serializable("tubelens_tests")
class Recalls(L.Layer):
    """Adds what it was given last, and fails when it is told to."""

    fails = False

    def build(self, shape: Any) -> None:
        self.last = self.add_weight(shape=(1, *shape[1:]), initializer="zeros", trainable=False, name="last")

    def call(self, x: Any) -> Any:
        before = keras.ops.copy(self.last.value)
        self.last.assign(x)
        if self.fails:
            raise ValueError("told to")
        return x + before


def remembering(kind: str) -> tuple[Any, list[Any]]:
    """A network with a state in it, and the variables that hold it."""
    inputs = keras.Input(batch_shape=(1, *SIZE, 3))
    x = L.Conv3D(4, 3, padding="same", activation="relu", name="cells")(inputs)
    rows = L.TimeDistributed(L.Flatten())(x)
    if kind == "lstm":
        layer = L.LSTM(4, stateful=True, name="memory")
        x, own = layer(rows), [layer]
    elif kind == "convlstm":
        layer = L.ConvLSTM2D(4, 3, padding="same", stateful=True, name="memory")
        x, own = L.GlobalAveragePooling2D()(layer(x)), [layer]
    elif kind == "both ways":
        layer = L.Bidirectional(L.GRU(4, stateful=True), name="memory")
        x, own = layer(rows), [layer.forward_layer, layer.backward_layer]
    elif kind == "stacked":
        layer = L.RNN([L.LSTMCell(4), L.GRUCell(3)], stateful=True, name="memory")
        inner = keras.Sequential([keras.Input(batch_shape=(1, *rows.shape[1:])), layer], name="inner")
        x, own = inner(rows), [layer]
    else:
        layer = Recalls(name="memory")
        x, own = L.GlobalAveragePooling3D()(layer(x)), []
    made = filled(keras.Model(inputs, L.Dense(3, "softmax", name="scores")(x)))
    states = [v for part in own for v in keras.tree.flatten(part.states)] or [made.get_layer("memory").last]
    return made, states


@pytest.mark.parametrize("kind", ["lstm", "convlstm", "both ways", "stacked", "of rank five"])
def test_a_network_that_remembers_starts_each_clip_from_the_same_state(kind: str):
    made, states = remembering(kind)
    rng = np.random.default_rng(8)
    before = [rng.standard_normal(tuple(v.shape)).astype("float32") for v in states]

    def reset() -> None:
        for variable, values in zip(states, before, strict=True):
            variable.assign(values)

    reset()
    model = keras_files.wrap(made)
    scores = [model(pixels(seed)) for seed in (1, 2, 1)]
    assert all(np.array_equal(v.numpy(), b) for v, b in zip(states, before, strict=True))
    assert torch.equal(scores[0], scores[2])
    expected = made(fed(pixels(1)))  # Keras alone, from that state, which it then changes
    assert torch.allclose(scores[0].softmax(1), expected, atol=1e-6)
    assert not torch.allclose(made(fed(pixels(1))), expected, atol=1e-4)
    reset()
    why = tl.explain(
        model,
        tl.Clip.from_array(fed(pixels(1))[0].numpy()),
        method="gradcam",
        signed=True,
        target=1,
        layer="cells",
    )
    assert float(why.grid.std()) > 0
    assert all(np.array_equal(v.numpy(), b) for v, b in zip(states, before, strict=True))


def test_states_are_put_back_after_an_error():
    inputs = keras.Input(batch_shape=(1, *SIZE, 3))
    memory = L.ConvLSTM2D(4, 3, stateful=True, return_sequences=True)
    last = Recalls()
    x = L.GlobalAveragePooling3D()(last(memory(inputs)))
    model = keras_files.wrap(filled(keras.Model(inputs, L.Dense(3, "softmax")(x))))
    scores = model(pixels())
    before = last.last.numpy().copy()
    last.fails = True
    with pytest.raises(InputError, match=r"ValueError: Exception encountered when calling Recalls"):
        model(pixels())
    last.fails = False
    assert [float(abs(v.numpy()).max()) for v in memory.states] == [0, 0]
    assert np.array_equal(last.last.numpy(), before)
    assert torch.equal(model(pixels()), scores)


def test_states_that_the_first_forward_makes_are_empty_after_it():
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.scores = L.LSTM(4, stateful=True), L.Dense(3)

        def call(self, x: Any) -> Any:
            return self.scores(self.memory(keras.ops.reshape(x, (1, SIZE[0], -1))))

    made = Own()
    model = keras_files.wrap(made, input=Input(frames=4, size=6, axes="b t h w c"))
    assert [float(abs(v.numpy()).max()) for v in made.memory.states] == [0, 0]
    assert torch.equal(model(pixels()), model(pixels()))


# ── threads ──────────────────────────────────────────────────────────────────────────────────────────────


class Meets(L.Layer):
    """Calls what the test says, in the midst of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.doing: Callable[[], None] = lambda: None

    def call(self, x: Any) -> Any:
        self.doing()
        return x


@pytest.mark.parametrize("end", ["activation", "layer"])
def test_threads_take_turns_and_leave_the_softmax(end: str):
    inputs = keras.Input((*SIZE, 3))
    meets = Meets()
    x = meets(L.GlobalAveragePooling3D()(L.Conv3D(4, 3, activation="relu")(inputs)))
    x = L.Dense(3, "softmax", name="p")(x) if end == "activation" else L.Softmax()(L.Dense(3, name="p")(x))
    made = filled(keras.Model(inputs, x))
    probs = made(fed(pixels())).detach()
    models = [keras_files.wrap(made) for _ in range(2)]  # two views of one network
    logits = models[0](pixels())
    first, second, done = (threading.Event() for _ in range(3))
    got: dict[str, Tensor] = {}

    def meet() -> None:
        if threading.current_thread().name == "first":  # within its forward, the others start theirs
            first.set()
            second.wait(0.5)
            got["keras"] = alone()
        elif threading.current_thread().name == "second":
            second.set()
            done.wait(0.5)  # were it let in, it would go on when the first has put back the softmax

    def alone() -> Tensor:
        """The user's own call, from a third thread, while a forward of ours runs."""
        kept: list[Tensor] = []
        other = threading.Thread(target=lambda: kept.append(made(fed(pixels())).detach()))
        other.start()
        other.join()
        return kept[0]

    def run(index: int, name: str) -> None:
        got[name] = models[index](pixels())
        if name == "first":
            done.set()

    meets.doing = meet
    threads = [threading.Thread(target=run, args=(i, n), name=n) for i, n in enumerate(("first", "second"))]
    threads[0].start()
    assert first.wait(20)
    threads[1].start()
    for thread in threads:
        thread.join()
    meets.doing = lambda: None
    assert torch.equal(got["first"], logits)
    assert torch.equal(got["second"], logits)
    assert torch.allclose(got["keras"], probs, atol=1e-6)
    assert made.get_layer("p").activation is keras.activations.get("softmax" if end == "activation" else None)
    assert not any(layer._forward_hooks for layer in made.layers)
    assert torch.allclose(made(fed(pixels())), probs, atol=1e-6)


# ── Keras 2's hard sigmoid ───────────────────────────────────────────────────────────────────────────────


@keras.saving.register_keras_serializable("tubelens_tests")
def steep(x: Any) -> Any:
    """Keras 2's hard sigmoid, bound by bound."""
    return torch.where(x < -2.5, torch.zeros_like(x), torch.where(x > 2.5, torch.ones_like(x), 0.2 * x + 0.5))


def gated(gate: Any) -> Any:
    """Every kind of layer that has gates, and activations."""
    inputs = keras.Input((*SIZE, 3))
    x = L.Conv3D(3, 1, activation=gate)(inputs)
    x = L.ConvLSTM2D(4, 3, recurrent_activation=gate, return_sequences=True)(x)
    x = L.TimeDistributed(L.Dense(3, activation=gate))(L.Activation(gate)(x))
    x = L.TimeDistributed(L.Flatten())(x)
    x = L.Bidirectional(L.GRU(3, recurrent_activation=gate, return_sequences=True))(x)
    x = L.LSTM(4, activation=gate, recurrent_activation=gate, return_sequences=True)(x)
    inner = keras.Sequential(
        [keras.Input(x.shape[1:]), L.RNN([L.LSTMCell(4, recurrent_activation=gate), L.GRUCell(3)])]
    )
    return filled(keras.Model(inputs, L.Dense(3)(inner(x))), gain=4)


@pytest.mark.parametrize(("version", "gate"), [("2.15.0", steep), ("3.15.1", "hard_sigmoid")])
def test_archives_have_the_hard_sigmoid_of_the_keras_that_wrote_them(version: str, gate: Any, tmp_path: Path):
    gated("hard_sigmoid").save(tmp_path / "net.keras")
    with (
        zipfile.ZipFile(tmp_path / "net.keras") as old,
        zipfile.ZipFile(tmp_path / "new.keras", "w") as new,
    ):
        for name in old.namelist():
            metadata = json.dumps({"keras_version": version}).encode()
            new.writestr(name, metadata if name == "metadata.json" else old.read(name))
    expected, other = (gated(g)(fed(pixels())) for g in (gate, "sigmoid"))
    scores = tl.load_model(tmp_path / "new.keras")(pixels())
    assert torch.allclose(scores, expected, atol=1e-5)
    assert not torch.allclose(scores, other, atol=1e-3)
    assert not torch.allclose(gated(steep)(fed(pixels())), gated("hard_sigmoid")(fed(pixels())), atol=1e-3)


UNITS = 5


def lstm_json() -> dict[str, Any]:
    """Frames, flat, through an LSTM, as Keras 2.2.4 wrote it."""
    flat = {"class_name": "Flatten", "config": {"name": "f", "data_format": "channels_last"}}
    memory = {
        "units": UNITS,
        "activation": "tanh",
        "recurrent_activation": "hard_sigmoid",
        "implementation": 1,
    }
    parts = [
        {
            "class_name": "TimeDistributed",
            "config": {"name": "td", "batch_input_shape": [None, *SIZE, 3], "layer": flat},
        },
        {"class_name": "LSTM", "config": {"name": "lstm", "unit_forget_bias": True, **memory}},
        {"class_name": "Dense", "config": {"name": "d", "units": 3, "activation": "linear"}},
    ]
    return {"class_name": "Sequential", "config": {"name": "s", "layers": parts}}


@pytest.mark.parametrize("form", ["json", "json without a version", "h5"])
def test_an_lstm_of_keras_2_by_hand(form: str, tmp_path: Path):
    rng = np.random.default_rng(0)
    inputs = SIZE[1] * SIZE[2] * 3
    kernel, recurrent = rng.standard_normal((inputs, 4 * UNITS)) / 3, rng.standard_normal((UNITS, 4 * UNITS))
    bias, last = rng.standard_normal(4 * UNITS), rng.standard_normal((UNITS, 3))
    config = lstm_json()
    if form == "json":
        config |= {"keras_version": "2.2.4", "backend": "tensorflow"}
    (tmp_path / "net.json").write_text(json.dumps(config))
    stored = {
        "lstm": {"lstm/kernel:0": kernel, "lstm/recurrent_kernel:0": recurrent, "lstm/bias:0": bias},
        "d": {"d/kernel:0": last, "d/bias:0": np.zeros(3)},
    }
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(config), "2.2.4"
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [n.encode() for n in stored]
        for name, values in stored.items():
            group.create_group(name).attrs["weight_names"] = [n.encode() for n in values]
            for weight, array in values.items():
                group[name][weight] = array.astype("float32")
    x = fed(pixels())[0].reshape(SIZE[0], -1).double()
    h = c = torch.zeros(UNITS, dtype=torch.float64)
    beyond = 0
    for row in x:
        z = row @ torch.from_numpy(kernel) + h @ torch.from_numpy(recurrent) + torch.from_numpy(bias)
        beyond += int((z.abs() > 2.5).sum())
        i, f, g, o = z.split(UNITS)
        c = steep(f) * c + steep(i) * g.tanh()
        h = steep(o) * c.tanh()
    assert beyond > 5  # both parts of the function matter
    files = (tmp_path / "net.h5",) if form == "h5" else (tmp_path / "net.json", tmp_path / "net.h5")
    scores = tl.load_model(*files)(pixels())[0]
    assert torch.allclose(scores.double(), h @ torch.from_numpy(last), atol=1e-5)


def test_a_gru_that_does_not_say_when_it_resets_does_so_before():
    config = lstm_json()
    config["config"]["layers"][1] = {"class_name": "GRU", "config": {"name": "gru", "units": UNITS}}
    made = keras.models.model_from_json(json.dumps(keras_legacy.modernise(config, "net.json")))
    assert not made.get_layer("gru").reset_after
    assert made.get_layer("gru").cell.bias.shape == (3 * UNITS,)  # with a second bias otherwise
    config["config"]["layers"][1]["config"]["reset_after"] = True
    made = keras.models.model_from_json(json.dumps(keras_legacy.modernise(config, "net.json")))
    assert made.get_layer("gru").reset_after


def test_the_hard_sigmoid_of_keras_2():
    x = torch.tensor([-9.0, -2.5, -2.0, 0.0, 1.0, 2.5, 2.75])
    assert torch.allclose(keras_legacy.hard_sigmoid(x), torch.tensor([0, 0, 0.1, 0.5, 0.7, 1, 1]))


# ── files that are HDF5 and a zip archive ────────────────────────────────────────────────────────────────


def plain() -> Any:
    inputs = keras.Input((*SIZE, 3))
    return filled(keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling3D()(L.Conv3D(4, 3)(inputs)))))


def test_a_file_is_checked_as_what_keras_reads_it_for(tmp_path: Path):
    plain().save(tmp_path / "good.keras")
    inputs = keras.Input((*SIZE, 3))
    x = L.Lambda(lambda x: x * 2, name="twice", output_shape=(*SIZE, 3))(inputs)
    keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling3D()(x))).save(tmp_path / "net.h5")
    harmless = (tmp_path / "good.keras").read_bytes()
    both = (tmp_path / "net.h5").read_bytes() + harmless
    for name in ("both.h5", "both.hdf5"):
        (tmp_path / name).write_bytes(both)
        assert zipfile.is_zipfile(tmp_path / name)
        with pytest.raises(CheckpointError, match="'twice' is a Lambda: code in a file is not run"):
            tl.load_model(tmp_path / name)
    # Keras goes by the name: this one is an archive to it
    (tmp_path / "both.keras").write_bytes(both)
    expected = plain()(fed(pixels()))
    assert torch.allclose(tl.load_model(tmp_path / "both.keras")(pixels()), expected, atol=1e-6)


def test_weights_in_a_file_of_two_kinds_are_those_of_hdf5(tmp_path: Path):
    made = plain()
    (tmp_path / "net.json").write_text(made.to_json())
    made.save_weights(tmp_path / "net.weights.h5")
    filled(made, seed=1).save(tmp_path / "other.keras")
    with (tmp_path / "net.weights.h5").open("ab") as file:
        file.write((tmp_path / "other.keras").read_bytes())
    expected = plain()(fed(pixels()))
    scores = tl.load_model(tmp_path / "net.json", tmp_path / "net.weights.h5")(pixels())
    assert torch.allclose(scores, expected, atol=1e-6)
    # an archive by another name is read all the same
    (tmp_path / "other.h5").write_bytes((tmp_path / "other.keras").read_bytes())
    scores = tl.load_model(tmp_path / "net.json", tmp_path / "other.h5")(pixels())
    assert torch.allclose(scores, made(fed(pixels())), atol=1e-6)
