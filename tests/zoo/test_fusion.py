"""Networks with bands of their own as one model: whose scores, whose layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch

import tubelens as tl
from tests.zoo.test_adapt import FOUR, colour, pixels, video
from tubelens.errors import HeadError, LayerError, OptionError
from tubelens.model import BlackBox, TorchModel


def fused(**options: Any) -> tuple[TorchModel, TorchModel, TorchModel]:
    visible = colour()
    warm = tl.adapt(colour(seed=7), "replicate", bands=("LWIR",))
    return tl.late_fusion({"visible": visible, "lwir": warm}, **options), visible, warm


@pytest.mark.parametrize("average", ["logits", "probs"])
def test_scores_of_both_are_averaged(average: str):
    model, visible, warm = fused(average=average, weights=(1, 3), bands=("LWIR", "R", "G", "B"))
    x = pixels(4)
    a, b = visible(x[:, 1:]), warm(x[:, :1])
    want = (a + 3 * b) / 4 if average == "logits" else (a.softmax(1) + 3 * b.softmax(1)) / 4
    torch.testing.assert_close(model(x), want)
    assert model.spec.bands == ("LWIR", "R", "G", "B")
    assert model.output == average
    assert model.weights == "as given; as given, adapted: replicate LWIR"


def test_three_networks_and_a_band_that_two_see():
    _, visible, warm = fused()
    other = tl.adapt(colour(seed=9), "average", bands=("B", "LWIR"))
    three = tl.late_fusion({"visible": visible, "lwir": warm, "both": other})
    assert three.spec.bands == FOUR
    x = pixels(4)
    want = (visible(x[:, :3]) + warm(x[:, 3:]) + other(x[:, 2:])) / 3
    torch.testing.assert_close(three(x), want)


def test_tubes_of_both_networks_and_the_biases_are_the_logit():
    model, visible, warm = fused()
    shown = replace_bands(video(4))
    maps = [tl.explain(model, shown, tl.Tubes(layer=f"{s}.relu"), 2) for s in ("visible", "lwir")]
    bias = float((visible.module.fc.bias + warm.module.fc.bias)[2].detach()) / 2
    logit = float(model(shown.pixels[None])[0, 2])
    assert sum(float(why.grid.sum()) for why in maps) + bias == pytest.approx(logit, abs=1e-4)
    with pytest.raises(HeadError, match="softmax of each stream"):
        tl.explain(fused(average="probs")[0], shown, "tubes", 2)


def test_layers_cam_and_rise_of_both():
    model, visible, _ = fused()
    shown = replace_bands(video(4))
    names = {info.name for info in tl.layers(model, shown.pixels[None])}
    assert {"visible.relu", "lwir.relu"} <= names
    colours = tl.Clip(shown.pixels[:3], FOUR[:3], shown.source)
    own = tl.explain(visible, colours, "gradcam", 2).saliency
    same = tl.explain(model, shown, tl.GradCAM(layer="visible.relu"), 2).saliency
    torch.testing.assert_close(same * 2, own, rtol=1e-3, atol=1e-5)  # it has half of the logit
    assert tl.explain(model, shown, tl.GradCAM(layer=("visible.relu", "lwir.relu")), 2).provenance.layer
    assert tl.explain(model, shown, "rise(n=8)", 2).saliency.std() > 0
    changed = shown.pixels.clone()
    changed[3] = 1 - changed[3]
    other = tl.explain(model, tl.Clip(changed, FOUR, shown.source), tl.GradCAM(layer="visible.relu"), 2)
    torch.testing.assert_close(other.saliency, same)  # infrared is none of its business


def test_a_network_and_its_own_replicate_have_maps_of_their_own():
    """Also where the streams of a fusion are fused again with one of them."""
    one = colour()
    warm = tl.adapt(one, "replicate", bands="LWIR")
    for visible in (one, tl.late_fusion({"a": one, "b": colour(seed=7)})):
        shown, inner = replace_bands(video(4)), "" if visible is one else "a."
        for models in ({"visible": visible, "lwir": warm}, {"lwir": warm, "visible": visible}):
            model = tl.late_fusion(models, bands=FOUR)
            for stream, alone, layer in (("visible", visible, inner + "relu"), ("lwir", warm, "relu")):
                own = tl.Clip(
                    shown.pixels[:3] if stream == "visible" else shown.pixels[3:],
                    alone.spec.bands,
                    shown.source,
                )
                want = tl.explain(alone, own, tl.Tubes(layer=layer), 2).saliency
                got = tl.explain(model, shown, tl.Tubes(layer=f"{stream}.{layer}"), 2).saliency
                torch.testing.assert_close(got * 2, want, rtol=1e-3, atol=1e-5)
    assert one.module is warm.module


def test_sigmoids_stay_sigmoids():
    """Several labels at once: the mean log-odds, each label by itself."""
    visible = replace(colour(), unpack=torch.sigmoid, output="sigmoid")
    warm = tl.adapt(replace(colour(seed=7), unpack=torch.sigmoid, output="sigmoid"), "replicate", "LWIR")
    model, x = tl.late_fusion({"visible": visible, "lwir": warm}), pixels(4) * 0.1
    a, b = visible(x[:, :3]), warm(x[:, 3:])
    assert model.output == "sigmoid"
    torch.testing.assert_close(model(x), ((a.logit(eps=1e-7) + b.logit(eps=1e-7)) / 2).sigmoid())
    for average in ("logits", "probs"):
        with pytest.raises(OptionError, match="they have no mean"):
            tl.late_fusion({"visible": visible, "lwir": colour(bands=("R", "G", "B"))}, average=average)


def test_layers_that_a_fusion_has_not():
    for layer in ("visible", "visible.nope", "nope"):
        with pytest.raises(LayerError, match=rf"has no layer '{layer}'"):
            fused()[0].submodule(layer)


def replace_bands(given: tl.Clip) -> tl.Clip:
    return tl.Clip(given.pixels, FOUR, given.source)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({"a": 0}, {}, "at least two networks"),
        ({"a": 0, "layer4.b": 0}, {}, "cannot be called 'layer4.b'"),
        ({"a": 0, "forward": 0}, {}, "cannot be called 'forward'"),
        ({"a": 0, "b": 0}, {"bands": ("R", "G")}, "a needs B, which the bands R, G lack"),
        ({"a": 0, "b": 0}, {"bands": FOUR}, "must be those of the networks"),
        ({"a": 0, "b": 0}, {"weights": (1,)}, "1 weights are given for 2 networks"),
        ({"a": 0, "b": 0}, {"weights": (0, 0)}, "must be positive"),
        ({"a": 0, "b": 0}, {"weights": ("a", 1)}, r"are numbers, not \('a', 1\)"),
    ],
)
def test_what_cannot_be_fused(
    models: dict[str, int], options: Any, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(OptionError, match=message):
        tl.late_fusion(dict.fromkeys(models, colour()), **options)


def test_black_boxes_are_not_fused():
    with pytest.raises(OptionError, match=r"box is none: average the scores.*wrap_scorer"):
        tl.late_fusion({"a": colour(), "b": BlackBox(lambda x: x, name="box")})
