"""Words about what a network in a file is fed change what they name and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tubelens as tl
from tubelens.errors import InputError
from tubelens.zoo.extras import installed
from tubelens.zoo.form import Input

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def test_named_fields_go_over_what_a_file_tells():
    base = Input(frames=20, size=(64, 48), axes="b t h w c")
    over = Input.parse("bands=BGR, stride=2").over(base)
    assert over == Input(frames=20, size=(64, 48), axes="b t h w c", bands="BGR", stride=2)
    assert Input(mean=0.0).over(Input(mean=0.5)).mean == 0.0  # said, though it is the default
    assert Input().over(base) == base


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not installed("keras"):
        pytest.skip("keras is not installed")
    from tubelens.zoo.keras_network import keras_on_torch

    keras = keras_on_torch("a test")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = keras.Sequential(
        [
            layers.Input((6, 12, 10, 3)),
            layers.Conv3D(4, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling3D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    file = tmp_path_factory.mktemp("keras") / "net.keras"
    net.save(file)
    return file


def test_a_channels_last_file_stays_so(saved: Path):
    plain, turned = tl.load_model(saved), tl.load_model(saved, input="bands=BGR, stride=2, mean=0.5")
    assert (turned.spec.frames, turned.spec.size, turned.spec.stride) == (6, (12, 10), 2)
    assert turned.spec.bands == ("B", "G", "R")
    x = torch.rand(2, 3, 6, 12, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned(x), plain(x - 0.5))


def test_named_axes_tell_which_size_is_which(saved: Path):
    model = tl.load_model(saved, input="axes=b h w t c")  # someone who knows better than the usual order
    assert (model.spec.frames, model.spec.size) == (10, (6, 12))
    turned = tl.load_model(saved, input="axes=b t h w c, rotate=90")
    assert (turned.spec.frames, turned.spec.size) == (6, (10, 12))
    assert turned(torch.rand(1, 3, 6, 10, 12)).shape == (1, 3)


def test_a_contradiction_names_both(saved: Path):
    with pytest.raises(InputError, match=r"takes 6 frames of 12x10x3 \(b t h w c\), the input says 8 frames"):
        tl.load_model(saved, input="frames=8")
