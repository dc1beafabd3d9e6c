"""Eigen-CAM by a full singular value decomposition, FEM cell by cell, and peers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import order_one
from tests.test_cam import Deep, capture_pgc, wrong
from tests.test_tubes import clip, model
from tubelens.capture import capturing
from tubelens.errors import LayerError, OptionError
from tubelens.methods.eigen import FEM, EigenCAM, along_first_component
from tubelens.model import BlackBox, TorchModel
from tubelens.target import Logit


@pytest.fixture(scope="module")
def deep() -> TorchModel:
    torch.manual_seed(1)
    return model(order_one(Deep(), clip().pixels[None]), "mid")


def activations(net: TorchModel, layer: str) -> np.ndarray:
    with capturing(net, clip().pixels[None], layer) as capture:
        return capture.activations[0].double().numpy()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("layer", ["stem", "mid", "act"])
def test_eigencam_is_the_projection_on_the_first_singular_vector(deep: TorchModel, layer: str, centred: bool):
    a = activations(deep, layer)
    m = a.reshape(len(a), -1).T
    m = m - m.mean(axis=0) if centred else m
    _, _, v = np.linalg.svd(m, full_matrices=False)
    want = (m @ v[0]).reshape(a.shape[1:])
    want = want * np.sign((want * m.sum(axis=1).reshape(want.shape)).sum())
    found = EigenCAM(layer=layer, centred=centred, signed=True)(deep, clip(), [Logit(0), Logit(3)])
    for why in found:
        np.testing.assert_allclose(why.grid, want, atol=1e-5 * np.abs(want).max())
    assert "does not depend on the target" in found[0].provenance.notes[0]
    assert (found[0].provenance.forwards, found[0].provenance.backwards) == (1, 0)
    (plain,) = EigenCAM(layer=layer, centred=centred)(deep, clip(), [Logit(0)])
    np.testing.assert_allclose(plain.grid, np.maximum(want, 0), atol=1e-5 * np.abs(want).max())


def test_wide_and_tall_matrices_agree(monkeypatch: pytest.MonkeyPatch):
    """The smaller Gram matrix gives the map; its length is the first singular value."""
    rng, sizes, eigh = np.random.default_rng(0), [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda gram: sizes.append(len(gram)) or eigh(gram))
    for shape in ((7, 30), (30, 7), (9, 9)):
        m = torch.from_numpy(rng.standard_normal(shape))
        along = along_first_component(m)
        _, s, v = torch.linalg.svd(m, full_matrices=False)
        want = m @ v[0]
        want = want * torch.sign(want @ m.sum(dim=1))
        torch.testing.assert_close(along, want)
        assert float(along.norm()) == pytest.approx(float(s[0]))
    assert sizes == [7, 7, 9]


def test_the_sign_is_fixed():
    """Not negative where activations are not; and where nothing tells, the largest is positive."""
    m = torch.rand(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (along_first_component(m) > 0).all()
    assert (along_first_component(-m) < 0).all()
    balanced = torch.tensor([[1.0, -1.0], [-2.0, 2.0], [0.5, -0.5]], dtype=torch.float64)
    for m in (balanced, -balanced):
        along = along_first_component(m)
        assert along[1] > 0
        torch.testing.assert_close(along / along[1], torch.tensor([-0.5, 1.0, -0.25], dtype=torch.float64))
    assert (along_first_component(torch.zeros(4, 3, dtype=torch.float64)) == 0).all()


@pytest.mark.parametrize("sigma", [0.5, 2.0])
@pytest.mark.parametrize("layer", ["stem", "mid"])
def test_fem_cell_by_cell(deep: TorchModel, layer: str, sigma: float):
    a = activations(deep, layer)
    mean_votes, share_votes = np.zeros(a.shape[1:]), np.zeros(a.shape[1:])
    for k in range(len(a)):
        mu, sd = a[k].mean(), np.sqrt(((a[k] - a[k].mean()) ** 2).mean())
        strong = a[k] > mu + sigma * sd
        for cell in np.ndindex(a[k].shape):
            mean_votes[cell] += mu * strong[cell]
            share_votes[cell] += strong.mean() * a[k][cell]
    for votes, want in (("mean", mean_votes), ("share", share_votes)):
        method = FEM(layer=layer, sigma=sigma, votes=votes, signed=True)  # type: ignore[arg-type]
        first, second = method(deep, clip(), [Logit(0), Logit(1)])
        np.testing.assert_allclose(first.grid, want, atol=1e-5)
        assert torch.equal(first.grid, second.grid)
        assert np.abs(want).max() > 1e-2
        (plain,) = FEM(layer=layer, sigma=sigma, votes=votes)(deep, clip(), [Logit(0)])  # type: ignore[arg-type]
        np.testing.assert_allclose(plain.grid, np.maximum(want, 0), atol=1e-5)
    assert "does not depend on the target" in first.provenance.notes[0]


def test_pytorch_grad_cam_agrees(deep: TorchModel):
    """At a ReLU's output: what an in-place ReLU then overwrites it reads wrongly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_grad_cam as pgc
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        kept = capture_pgc(
            pgc.FEM(deep.module, [deep.module.act]), clip().pixels[None], [ClassifierOutputTarget(0)]
        )
        (ours,) = FEM("act", votes="share", signed=True)(deep, clip(), [Logit(0)])
        np.testing.assert_allclose(ours.grid, kept, atol=1e-5)
        kept = capture_pgc(
            pgc.EigenCAM(deep.module, [deep.module.act]), clip().pixels[None], [ClassifierOutputTarget(0)]
        )
        (ours,) = EigenCAM("act", centred=True, signed=True)(deep, clip(), [Logit(0)])
        sign = np.sign((kept * ours.grid.numpy()).sum())  # its own is whatever LAPACK returns
        np.testing.assert_allclose(ours.grid, sign * kept, atol=1e-4 * np.abs(kept).max())


@pytest.mark.parametrize("make", [EigenCAM, FEM])
def test_several_layers_options_and_black_boxes(deep: TorchModel, make: Any):
    (why,) = make(layer=("stem", "mid"))(deep, clip(), [Logit(0)])
    one, two = (make(layer=name)(deep, clip(), [Logit(0)])[0] for name in ("stem", "mid"))
    assert why.parts[0].y == one.parts[0].y
    coarse = np.asarray(two.grid)
    for axis, (to, given) in enumerate(
        [(one.parts[0].t, two.parts[0].t), (one.parts[0].y, two.parts[0].y), (one.parts[0].x, two.parts[0].x)]
    ):
        coarse = np.apply_along_axis(lambda v, to=to, given=given: np.interp(to, given, v), axis, coarse)
    want = (np.asarray(one.grid) / float(one.grid.max()) + coarse / coarse.max()) / 2
    np.testing.assert_allclose(why.grid, want, atol=1e-5)
    assert eval(repr(make(layer=("a", "b"), fuse="max"))) == make(layer=("a", "b"), fuse="max")
    with pytest.raises(LayerError, match=f"{make.__name__} needs a network.s layers"):
        make()(BlackBox(lambda x: torch.zeros(len(x), 3)), clip(), [Logit(0)])


def test_fem_refuses_what_means_nothing(deep: TorchModel):
    for sigma in (-1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="sigma must be 0 or more"):
            FEM(sigma=sigma)(deep, clip(), [Logit(0)])
    with pytest.raises(OptionError, match="votes must be one of 'mean', 'share', not 'all'"):
        wrong(FEM(), votes="all")(deep, clip(), [Logit(0)])
