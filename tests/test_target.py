"""Targets on each kind of score, and classes as a user names them."""

from __future__ import annotations

import pytest
import torch

from tubelens.errors import TargetError, nearest
from tubelens.target import (
    Contrast,
    Logit,
    Prob,
    Target,
    class_index,
    describe,
    label_of,
    logits,
    probabilities,
)

Z = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 3.0]])


def test_on_logits():
    p = Z.exp() / Z.exp().sum(1, keepdim=True)
    torch.testing.assert_close(Logit(1)(Z), Z[:, 1])
    torch.testing.assert_close(Prob(2)(Z), p[:, 2])
    torch.testing.assert_close(Contrast(0, 2)(Z), Z[:, 0] - Z[:, 2])


def test_on_probabilities_nothing_is_softmaxed_twice():
    p = Z.softmax(1)
    torch.testing.assert_close(Prob(2)(p, "probs"), p[:, 2])
    torch.testing.assert_close(probabilities(p, "probs"), p)
    # the logit is known up to one constant a clip, so differences are exact
    torch.testing.assert_close(Contrast(0, 2)(p, "probs"), Z[:, 0] - Z[:, 2])
    torch.testing.assert_close(Logit(1)(p, "probs"), p[:, 1].log())
    assert torch.isfinite(Logit(0)(torch.tensor([[0.0, 1.0]]), "probs")).all()


def test_on_sigmoids():
    s = Z.sigmoid()
    torch.testing.assert_close(Logit(0)(s, "sigmoid"), Z[:, 0])
    torch.testing.assert_close(Prob(0)(s, "sigmoid"), s[:, 0])
    torch.testing.assert_close(logits(s, "sigmoid"), Z)
    assert torch.isfinite(Logit(0)(torch.tensor([[1.0, 0.0]]), "sigmoid")).all()


@pytest.mark.parametrize("target", [Logit(3), Prob(-1), Contrast(0, 5), Contrast(7, 0)])
def test_out_of_range(target: Target):
    with pytest.raises(TargetError, match="out of range: the model has 3 classes, 0 to 2"):
        target(Z)


def test_repr_rebuilds_and_equality_is_by_value():
    for target in (Logit(3), Prob(1), Contrast(0, 5)):
        assert eval(repr(target)) == target
        assert isinstance(target, Target)


def test_class_index():
    labels = ["surfing water", "Walk_Dog", "12", "run", "run"]
    assert class_index("Surfing  Water", 5, labels) == 0
    assert class_index("walk dog", 5, labels) == 1
    assert class_index("12", 5, labels) == 2  # a label that is a number comes before the number
    assert class_index("3", 5, labels) == 3
    assert class_index(4, 5, None) == 4
    with pytest.raises(TargetError, match=r"names classes \[3, 4\]: give the index"):
        class_index("run", 5, labels)
    with pytest.raises(TargetError, match="no labels, give a class index"):
        class_index("run", 5, None)
    with pytest.raises(TargetError, match=r"unknown label 'surfing' .did you mean 'surfing water'"):
        class_index("surfing", 5, labels)
    with pytest.raises(TargetError, match="class -1 is out of range"):
        class_index("-1", 5, labels)


def test_captions():
    assert describe(Logit(1), ["a", "b"]) == "b"
    assert describe(Contrast(1, 0), ["a", "b"]) == "b rather than a"
    assert label_of(4, None) == "class 4"
    assert label_of(4, ["a"]) == "class 4"


def test_nearest_names():
    assert nearest("layr4", ["layer4", "layer3", "fc"]) == " (did you mean 'layer4' or 'layer3'?)"
    assert nearest("zzz", ["layer4"]) == ""
    assert nearest("conv", ["stem.conv", "x"]) == " (did you mean 'stem.conv'?)"
