"""What a network of one's own is fed: words to pixels, checked against the arithmetic written out."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tubelens as tl
from tests.perturbed import clip
from tubelens.errors import InputError, OptionError
from tubelens.fill import Black
from tubelens.masks import Masks
from tubelens.model import frozen
from tubelens.scoring import score_masked
from tubelens.target import Logit
from tubelens.zoo.form import Input, kind_of
from tubelens.zoo.recipe import Pack

CLIPS = torch.rand(2, 3, 4, 6, 5, generator=torch.Generator().manual_seed(0))


def test_pack_against_numpy():
    pack = Pack((0.1, 0.2, 0.3), (2.0, 4.0, 8.0), scale=3.0, axes="b t h w c", order=(2, 1, 0), rotate=90)
    x = CLIPS.numpy()[:, ::-1] * 3
    x = np.stack([(x[:, i] - (0.1, 0.2, 0.3)[i]) / (2.0, 4.0, 8.0)[i] for i in range(3)], axis=1)
    x = np.rot90(x, 1, axes=(3, 4)).transpose(0, 2, 3, 4, 1)
    np.testing.assert_allclose(pack(CLIPS).numpy(), x, rtol=1e-5, atol=1e-6)


def test_rotation_is_counter_clockwise():
    corner = torch.zeros(1, 1, 1, 2, 3)
    corner[0, 0, 0, 0, 2] = 1  # top right
    turned = Pack(rotate=90)(corner)
    assert turned.shape == (1, 1, 1, 3, 2)
    assert turned[0, 0, 0, 0, 0] == 1  # goes to the top left


def test_segments_are_folded_into_channels_in_order():
    packed = Pack(axes="b (t c) h w")(CLIPS)
    for t in range(4):
        assert torch.equal(packed[:, 3 * t : 3 * t + 3], CLIPS[:, :, t])


def test_pack_gives_a_new_tensor_with_a_gradient():
    assert Pack()(CLIPS) is not CLIPS
    leaf = CLIPS.clone().requires_grad_()
    Pack((0.5,) * 3, (0.5,) * 3, axes="b t c h w")(leaf).sum().backward()
    assert torch.allclose(leaf.grad, torch.full_like(CLIPS, 2.0))


def test_zscore_is_over_each_clip_and_frozen_on_the_intact_one():
    pack = Pack(zscore=True, scale=255.0)
    x = CLIPS.double()
    want = torch.stack([(one - one.mean()) / one.std(correction=0) for one in x])
    torch.testing.assert_close(pack(x), want)
    intact = CLIPS[:1]
    held = pack.frozen(intact)
    dark = CLIPS.clone()
    dark[:, :, 2:] = 0
    torch.testing.assert_close(
        held(dark), (dark - intact.mean()) / intact.std(correction=0), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(held(dark), pack(dark), atol=1e-2)
    assert held.frozen(dark) is held  # the first clip's statistics stay


class Late(nn.Module):
    """Reads the last frames only; what is before them must not matter."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 4:].mean(dim=(2, 3, 4))


class First(Masks):
    """One mask: the first half of the clip removed."""

    size = (8, 6, 6)

    def __len__(self) -> int:
        return 1

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
        mask = torch.ones(stop - start, *self.size)
        mask[:, : self.size[0] // 2] = 0
        return mask.to(device)


def test_removing_evidence_does_not_shift_the_statistics_of_a_zscore():
    video = clip((8, 6, 6))
    for model in (
        tl.TorchModel(Late(), Pack(zscore=True)),
        tl.wrap_scorer(Late(), frames=8, size=6, zscore=True),
    ):
        scored = score_masked(model, video, First(), Black(), [Logit(0)])
        (part,) = list(scored)
        torch.testing.assert_close(part.scores, scored.scores)  # unfrozen, all pixels would move
        removed = video.pixels.clone()
        removed[:, :4] = 0
        assert not torch.allclose(model(removed[None]), scored.scores, atol=1e-2)
        torch.testing.assert_close(frozen(model, video.pixels[None])(removed[None]), scored.scores)


@pytest.mark.parametrize(
    "method", ["integrated_gradients(steps=4)", "smoothgrad(n=2)", "extremal(steps=4, fill=black)"]
)
def test_gradient_methods_freeze_the_statistics_too(method: str):
    video = clip((8, 6, 6))
    seen: list[float] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(float(x.detach().mean().abs()))
            return x.mean(dim=(3, 4)).flatten(1) @ torch.ones(24, 3).cumsum(1)

    tl.explain(tl.TorchModel(Spy(), Pack(zscore=True)), video, method, 1)
    # with its own statistics every perturbed clip would have the mean zero
    assert max(seen) > 1e-3


def test_parse_reads_words_and_toml(tmp_path: Path):
    want = Input(
        frames=20, size=(64, 48), axes="b t h w c", bands=("B", "G", "R"), mean=(0.1, 0.2, 0.3), zscore=True
    )
    words = "frames=20, size=64x48, axes=b t h w c, bands=B G R, mean=.1 .2 .3, zscore"
    assert Input.parse(words) == want
    file = tmp_path / "in.toml"
    file.write_text(
        'frames = 20\nsize = [64, 48]\naxes = "b t h w c"\nbands = "B G R"\n'
        "mean = [0.1, 0.2, 0.3]\nzscore = true\n"
    )
    assert Input.parse(str(file)) == want
    assert Input.parse("axes=b (t c) h w").axes == "b (t c) h w"
    assert Input.parse("size=64, mean=0.5").spec().size == (64, 64)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("frame=20", "unknown 'frame' (did you mean 'frames' or 'rate'?)"),
        ("frames=many", "frames cannot be 'many'"),
        ("frames=0", "--input: frames must be a whole number from 1 up, not 0"),
        ("axes=b t h w", "must name b, c, t, h and w once each"),
        ("rotate=45", "multiple of 90"),
        ("mean=1 2", "one number or 3, one a band, got 2"),
        ("output=prob", "'probs'"),
        ("zscore=maybe", "zscore cannot be 'maybe'"),
        ("missing.toml", "cannot be read"),
        ("std=0", "--input: std must be a number, or one a band, more than 0, not 0.0"),
        ("std=.2 -.1 .3", "std must be"),
        ("mean=inf", "mean must be a number, or one a band, not inf"),
        ("scale=nan", "scale must be a number other than 0, not nan"),
        ("scale=0", "scale must be"),
        ("rate=0", "rate must be frames a second, more than 0, not 0.0"),
        ("rate=inf", "rate must be"),
        ("stride=0", "stride must be a whole number from 1 up, not 0"),
        ("size=64x0", "size must be one or two whole numbers of pixels, not (64, 0)"),
        ("size=1x2x3", "size must be"),
        ("bands=", "bands must be letters as in 'RGB', or a name for each, not ''"),
        ("sampling=segment", "(did you mean 'segments'?)"),
        ("sampling=windows", "one of uniform, dense, segments, random"),
        ("sampling=segments, frames=8, snippet=3", "8 frames are no whole number of snippets of 3"),
        ("frames=16,frames=20", "--input: frames is said twice"),
        ("zscore, size=3, zscore=no", "zscore is said twice"),
        ("frames=20, Size=64", "unknown 'Size' (did you mean 'size'"),
        ("frames=20, bands", "bands needs a value"),
    ],
)
def test_bad_words_are_one_line(words: str, said: str):
    with pytest.raises(OptionError) as error:
        Input.parse(words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("frames = 16.7", "frames must be a whole number from 1 up, not 16.7"),
        ("frames = true", "frames must be a whole number from 1 up, not True"),
        ("rotate = 90.9", "rotate must be a multiple of 90 degrees, not 90.9"),
        ("size = [64.5, 64]", "size must be one or two whole numbers of pixels, not [64.5, 64]"),
        ("resize = []", "resize must be"),
        ("bands = 3", "bands must be letters as in 'RGB', or a name for each, not 3"),
        ('bands = ["R", 1]', "bands must be"),
        ('output = ["a"]', "output must be one of logits, probs, sigmoid, not ['a']"),
        ("sampling = 3", "sampling must be one of uniform, dense, segments, random, not 3"),
        ("axes = 3", "axes must be names as in 'b t h w c', not 3"),
        ("zscore = 1", "zscore must be true or false, not 1"),
        ("rate = true", "rate must be"),
        ("mean = [true]", "mean must be"),
        ("mean = [[0.1]]", "mean must be"),
        ("std = [0.1, 0.2]", "one number or 3, one a band, got 2"),
        ("frames = 1\nframes = 2", "not TOML"),
        ("[input]\nframes = 3", "unknown 'input'"),
    ],
)
def test_bad_toml_is_one_line_that_names_the_file(text: str, said: str, tmp_path: Path):
    file = tmp_path / "in.toml"
    file.write_text(text)
    with pytest.raises(OptionError) as error:
        Input.parse(str(file))
    assert str(error.value).startswith(f"{file}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_values_are_checked_for_callers_from_python_too():
    for wrong in ({"stride": 0}, {"std": 0.0}, {"scale": float("nan")}, {"rate": -1.0}, {"bands": ""}):
        (name,) = wrong
        with pytest.raises(OptionError, match=f"^{name} must be"):
            Input(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bands", "want"),
    [
        ("BGR", ("B", "G", "R")),
        ("UV", ("U", "V")),
        ("Y", ("Y",)),
        ("grey", ("grey",)),  # one word, not four letters
        ("IR", ("IR",)),
        ("nir,red,g", ("nir", "red", "g")),
        ("nir red", ("nir", "red")),
    ],
)
def test_bands_are_letters_or_names(bands: str, want: tuple[str, ...]):
    read = Input.parse(f"frames=3,bands={bands}, size=8;zscore")
    assert (read.frames, read.spec().bands, read.size, read.zscore) == (3, want, 8, True)
    assert read.pack().mean == (0.0,) * len(want)
    assert Input(bands=want).bands == want
    if "," not in bands and " " not in bands:
        assert Input(bands=bands) == Input(bands=want)


def test_an_input_knows_what_was_said_of_it():
    assert Input().given == set()
    for one in (Input(mean=0.0, bands="RGB"), Input.parse("bands=RGB, mean=0")):
        assert one.given == {"mean", "bands"}
        assert one == Input()
        assert hash(one) == hash(Input())
        assert repr(one) == repr(Input())
    assert Input(16, 112, stride=1).given == {"frames", "size", "stride"}
    assert pickle.loads(pickle.dumps(Input(mean=0.0))).given == {"mean"}
    assert copy.deepcopy(Input(mean=0.0)).given == {"mean"}
    # whoever replaces one field has not said the others
    assert replace(Input(frames=8), stride=2).given == {"frames", "stride"}


def test_a_wrong_band_count_names_both_numbers():
    with pytest.raises(InputError, match="takes 3 bands, the clip has 2"):
        Pack((0.0,) * 3, (1.0,) * 3)(CLIPS[:, :2])


def test_kinds_are_told_apart():
    x = torch.randn(4, 5)
    assert kind_of(x.softmax(1)) == "probs"
    assert kind_of(x) == "logits"
    assert kind_of(x.abs()) == "logits"
    assert kind_of(torch.ones(3, 1)) == "logits"  # one class cannot be a softmax


def test_wrap_takes_the_same_words():
    net = nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    model = tl.wrap(net, frames=6, size=10, mean=0.5, std=0.25)
    same = tl.wrap(net, input=Input(frames=6, size=10, mean=0.5, std=0.25))
    x = torch.rand(1, 3, 6, 10, 10)
    assert torch.equal(model(x), same(x))
    torch.testing.assert_close(model(x), net((x - 0.5) / 0.25).detach())
    with pytest.raises(OptionError, match="unknown argument 'frame'"):
        tl.wrap(net, frame=6)
    with pytest.raises(OptionError, match="not both"):
        tl.wrap(net, input=Input(), frames=6)
