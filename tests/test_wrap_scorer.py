"""Functions and services as black boxes: what they are fed, what they may answer, one line when they fail."""

from __future__ import annotations

import importlib.util
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tubelens as tl
from tests.perturbed import clip
from tubelens.errors import InputError, OptionError, ScoreError
from tubelens.zoo.bundled import bundled

SIZE = (6, 12, 12)
EXAMPLE = Path(__file__).parents[1] / "examples" / "http_scorer.py"


def test_a_numpy_function_is_fed_what_it_asks_for():
    seen: list[np.ndarray] = []

    def score(clips: np.ndarray) -> np.ndarray:
        seen.append(clips)
        return clips.mean(axis=(1, 2, 3)) @ np.eye(3)[:, :2]

    model = tl.wrap_scorer(
        score, numpy=True, axes="b t h w c", bands="BGR", scale=255.0, frames=6, size=12, labels=["a", "b"]
    )
    video = clip(SIZE)
    scores = model(video.pixels[None])
    assert isinstance(seen[0], np.ndarray)
    np.testing.assert_allclose(seen[0][0], video.pixels.permute(1, 2, 3, 0).numpy() * 255, rtol=1e-5)
    np.testing.assert_allclose(scores[0], seen[0].mean(axis=(0, 1, 2, 3))[:2], rtol=1e-4)
    assert model.spec.bands == ("B", "G", "R")
    assert tl.predict(model, video)[0][0] in ("a", "b")


def test_sigmoids_of_a_multi_label_network_are_not_softmaxed():
    given = np.array([[0.9, 0.8, 0.1]])
    model = tl.wrap_scorer(
        lambda clips: np.repeat(given, len(clips), 0) * clips.numpy().mean(axis=(1, 2, 3, 4))[:, None],
        output="sigmoid",
        frames=6,
        size=12,
    )
    video = clip(SIZE)
    mean = float(video.pixels.mean())
    found = dict(tl.predict(model, video, 3))
    assert found["class 0"] == pytest.approx(0.9 * mean, rel=1e-4)  # and they add up to more than one
    assert found["class 1"] == pytest.approx(0.8 * mean, rel=1e-4)
    why = tl.explain(model, video, "rise(n=8)", 0)
    assert why.provenance.score == pytest.approx(0.9 * mean, rel=1e-4)
    logit = tl.explain(model, video, "rise(n=8)", tl.Logit(0)).provenance.score
    assert logit == pytest.approx(np.log(0.9 * mean / (1 - 0.9 * mean)), rel=1e-3)


@pytest.mark.parametrize(
    ("score", "error", "said"),
    [
        (lambda c: np.zeros(len(c)), InputError, r"must return scores of shape \(1, classes\), got \(1,\)"),
        (lambda c: np.full((len(c), 2), np.nan), ScoreError, "NaN or infinity"),
        (lambda c: 1 / 0, InputError, "ZeroDivisionError"),
        (lambda c: "scores", InputError, "does not accept a clip batch of 1x3x6x12x12"),
    ],
)
def test_bad_answers_are_one_line(score: Any, error: type[Exception], said: str):
    with pytest.raises(error, match=said) as caught:
        tl.explain(tl.wrap_scorer(score, frames=6, size=12), clip(SIZE), "rise(n=4)", 0)
    assert "\n" not in str(caught.value)


# ── a real service ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("http_scorer", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def service(example: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    running = example.server(0)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{running.server_address[1]}"
    monkeypatch.setenv("TUBELENS_SCORER", url)
    try:
        yield url
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def test_a_model_behind_http_gives_the_same_map(service: str):
    model = tl.load_model(f"{EXAMPLE}:client")
    assert isinstance(model, tl.BlackBox)
    own = bundled()
    assert list(model.labels or ()) == list(own.labels or ())
    video = clip((16, 64, 64))
    torch.testing.assert_close(model(video.pixels[None]), own(video.pixels[None]), rtol=1e-4, atol=1e-4)
    far, near = (tl.explain(m, video, "rise(n=6)", "ring").saliency for m in (model, own))
    torch.testing.assert_close(far, near, rtol=1e-3, atol=1e-6)


def test_a_service_that_fails_or_is_gone_is_one_line(service: str, example: Any):
    model = example.client()
    with pytest.raises(InputError, match="does not accept a clip batch") as caught:
        model(torch.rand(1, 3, 16, 1, 1))  # too small for the server's model, so its answer breaks off
    assert "\n" not in str(caught.value)


def test_no_service_is_one_line(example: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TUBELENS_SCORER", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(urllib.error.URLError):
        example.client()
    with pytest.raises(OptionError, match="the factory failed: URLError") as caught:
        tl.load_model(f"{EXAMPLE}:client")
    assert "\n" not in str(caught.value)
