"""The loop over masked clips: what is scored, how it is batched, what happens when something fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import order_one
from tubelens import scoring
from tubelens.clip import Clip
from tubelens.errors import OptionError, ScoreError, WorkError
from tubelens.fill import Black, Freeze, Mean
from tubelens.masks import Grids, Windows
from tubelens.model import BlackBox, TorchModel
from tubelens.running import Run
from tubelens.scoring import Scored, score_masked
from tubelens.target import Contrast, Logit, Prob

FP32 = Run(precision="fp32")


class Small(nn.Module):
    """With a buffer that forwards change, dropout, and batch norm: all there is to leave untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(3, 6, 3, 2, 1), nn.BatchNorm3d(6), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(1))
        self.sizes: list[int] = []
        self.before: Callable[[Tensor], object] = lambda x: None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sizes.append(len(x))
        self.before(x)
        return self.fc(self.drop(self.body(x).mean(dim=(2, 3, 4))))


def clip(frames: int = 4, size: int = 12, seed: int = 0) -> Clip:
    return Clip.from_array(np.random.default_rng(seed).random((frames, size, size, 3), dtype=np.float32))


@pytest.fixture
def small() -> TorchModel:
    net = order_one(Small(), clip().pixels[None])
    net.sizes.clear()
    return TorchModel(net.train(), pack=lambda x: 2 * x - 1, name="small")


TARGETS = [Prob(1), Logit(0), Contrast(2, 3)]


def masks(n: int = 21, seed: int = 0) -> Grids:
    return Grids(n, (4, 12, 12), (2, 3, 3), seed=seed)


def one_by_one(model: TorchModel, family: Grids, base: Tensor) -> Tensor:
    """Slow: each clip by itself, in inference mode, in plain fp32."""
    model.module.eval()
    x, rows = clip().pixels, []
    with torch.no_grad():
        for i in range(len(family)):
            m = family.batch(i, i + 1)[0]
            rows.append(model.module(2 * (x * m + base * (1 - m))[None] - 1)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("batch", [1, 4, 21, 50, None])
def test_scores_every_mask_once_in_order_whatever_the_batch(small: TorchModel, batch: int | None):
    graphs: list[bool] = []
    small.module.before = lambda x: graphs.append(torch.is_grad_enabled())
    scored = score_masked(small, clip(), masks(), Black(), TARGETS, Run(batch=batch, precision="fp32"))
    assert scored.forwards == 1
    told: list[tuple[int, int]] = []
    scored.run = Run(batch, "fp32", lambda done, total: told.append((done, total)))
    parts = list(scored)
    assert not any(graphs)
    assert [p.first for p in parts] == [0, *itertools.accumulate(len(p.masks) for p in parts)][:-1]
    if batch:
        assert {len(p.masks) for p in parts[:-1]} <= {batch}
    got = torch.cat([p.scores for p in parts])
    expected = one_by_one(small, masks(), torch.zeros(()))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    values = torch.cat([p.values for p in parts], dim=1)
    torch.testing.assert_close(values[0], expected.softmax(1)[:, 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values[2], expected[:, 2] - expected[:, 3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([p.masks for p in parts]), masks().batch(0, 21))
    assert (scored.done, scored.forwards, scored.precision, scored.notes) == (21, 22, "fp32", ())
    assert scored.batch == len(parts[-1].masks)
    assert told == [(p.first + len(p.masks), 21) for p in parts]


def test_intact_clip_is_scored_once_or_given(small: TorchModel):
    small.module.eval()
    with torch.no_grad():
        expected = small.module(2 * clip().pixels[None] - 1)
    scored = score_masked(small, clip(), masks(), Mean(), TARGETS, FP32)
    torch.testing.assert_close(scored.scores, expected)
    torch.testing.assert_close(scored.intact[2], expected[0, 2] - expected[0, 3])
    given = score_masked(small, clip(), masks(), Mean(), TARGETS, FP32, intact=expected + 1)
    assert given.forwards == 0
    torch.testing.assert_close(given.intact[1], expected[0, 0] + 1)


def test_the_fill_is_applied_in_pixels_before_packing(small: TorchModel):
    scored = score_masked(small, clip(), masks(), Mean(), TARGETS, FP32)
    got = torch.cat([p.scores for p in scored])
    mean = clip().pixels.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(got, one_by_one(small, masks(), mean), atol=1e-5, rtol=1e-5)
    frozen = torch.cat([p.scores for p in score_masked(small, clip(), masks(), Freeze(), TARGETS, FP32)])
    assert not torch.allclose(frozen, got, atol=1e-3)


def state(model: TorchModel) -> list[Tensor]:
    m = model.module
    modes = torch.tensor([sub.training for sub in m.modules()])
    hooks = torch.tensor([len(sub._forward_hooks) + len(sub._forward_pre_hooks) for sub in m.modules()])
    return [
        *(p.clone() for p in m.parameters()),
        *(b.clone() for b in m.buffers()),
        modes,
        hooks,
        torch.get_rng_state(),
        torch.tensor([torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]),
        torch.tensor([p.stride() for p in m.parameters() if p.ndim == 5]),
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("end", ["whole", "break", "held", "consumer", "model"])
def test_the_model_is_untouched_also_between_batches(small: TorchModel, end: str, precision: str):
    before = state(small)

    def same() -> None:
        for a, b in zip(before, state(small), strict=True):
            assert torch.equal(a, b)
        assert all(p.grad is None and p.requires_grad for p in small.module.parameters())

    scored = score_masked(
        small,
        clip(),
        masks(40),
        Mean(),
        TARGETS,
        Run(batch=4, precision=precision),  # type: ignore[arg-type]
    )
    same()
    stream = iter(scored)
    if end == "model":
        next(stream)

        def fail(x: Tensor) -> None:
            raise RuntimeError("broken")

        small.module.before = fail
        with pytest.raises(Exception, match=r"does not accept a clip batch of 4x3x4x12x12.*broken"):
            next(stream)
    else:
        with pytest.raises(ZeroDivisionError) if end == "consumer" else nullcontext():
            for i, part in enumerate(stream):
                assert not part.scores.requires_grad
                assert not part.values.requires_grad
                assert torch.is_grad_enabled()
                same()  # while the stream is still open
                if i == 2 and end == "break":
                    break
                if i == 2 and end == "held":
                    break
                if i == 2 and end == "consumer":
                    1 / 0
    if end == "break":
        stream.close()  # type: ignore[attr-defined]
    same()


def test_a_black_box_is_called_as_it_is():
    seen: list[Tensor] = []

    def score(clips: Tensor) -> np.ndarray:
        seen.append(clips)
        assert not torch.is_autocast_enabled("cpu")
        return np.stack([clips.mean(dim=(1, 2, 3, 4)).numpy(), 1 - clips[:, 0, 0, 0, 0].numpy()], axis=1)

    box = BlackBox(score, output="probs")
    scored = score_masked(box, clip(), masks(200), Black(), [Prob(0)], Run(batch=16, precision="bf16"))
    got = torch.cat([p.values[0] for p in scored])
    torch.testing.assert_close(
        got, (masks(200).batch(0, 200)[:, None] * clip().pixels).mean(dim=(1, 2, 3, 4))
    )
    assert scored.precision == "fp32"
    assert all(c.is_contiguous() and c.dtype == torch.float32 for c in seen)
    bare = lambda clips: torch.stack([clips.mean(dim=(1, 2, 3, 4))] * 2, dim=1)  # noqa: E731
    bare.output = "probs"  # type: ignore[attr-defined]
    again = score_masked(bare, clip(), masks(200), Black(), [Prob(0)])  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat([p.values[0] for p in again]), got)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] not enough memory")]
)
def test_out_of_memory_halves_the_batch_and_scores_again(small: TorchModel, error: Exception):
    def limited(x: Tensor) -> None:
        if len(x) > 3:
            raise error

    small.module.before = limited
    scored = score_masked(small, clip(), masks(), Black(), TARGETS, Run(batch=16, precision="fp32"))
    parts = list(scored)
    assert [len(p.masks) for p in parts] == [2] * 10 + [1]
    assert small.module.sizes[:5] == [1, 16, 8, 4, 2]
    assert scored.batch == 1
    small.module.before = lambda x: None
    expected = one_by_one(small, masks(), torch.zeros(()))
    torch.testing.assert_close(torch.cat([p.scores for p in parts]), expected, atol=1e-5, rtol=1e-5)


def test_out_of_memory_in_the_pilot_is_remembered(small: TorchModel):
    def limited(x: Tensor) -> None:
        if len(x) > 3:
            raise MemoryError

    small.module.before = limited
    for batch in (16, None):
        small.module.sizes.clear()
        scored = score_masked(small, clip(), masks(40), Black(), TARGETS, Run(batch, "bf16"))
        assert [len(p.masks) for p in scored] == [2] * 20
        assert small.module.sizes == [1, 8, 4] + [2] * (8 + 8 + 20)


def test_out_of_memory_on_a_single_clip_is_an_error_with_the_mend(small: TorchModel):
    scored = score_masked(small, clip(), masks(), Black(), TARGETS, FP32)

    def full(x: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    small.module.before = full
    for again in (lambda: list(scored), lambda: score_masked(small, clip(), masks(), Black(), TARGETS)):
        with pytest.raises(
            WorkError, match=r"out of memory on cpu with a single clip of 3x4x12x12: use fewer"
        ):
            again()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_names_the_masks(small: TorchModel, bad: float):
    net = small.module

    def spoil(x: Tensor) -> Tensor:
        y = Small.forward(net, x)
        if len(net.sizes) == 4:  # intact, masks 0-4, 5-9, 10-14
            y[[1, 3], 2] = bad
        return y

    net.forward = spoil  # type: ignore[method-assign]
    stream = iter(score_masked(small, clip(), masks(), Black(), TARGETS, Run(batch=5, precision="fp32")))
    next(stream), next(stream)
    with pytest.raises(
        ScoreError, match=r"small returned NaN or infinity for the clip under mask 11, 13 of 21"
    ):
        next(stream)
    with torch.no_grad():
        net.fc.bias[0] = bad
    with pytest.raises(ScoreError, match="the intact clip"):
        score_masked(small, clip(), masks(), Black(), TARGETS, FP32)


def test_stops_when_the_time_is_up_but_not_before_some_are_scored(
    small: TorchModel, monkeypatch: pytest.MonkeyPatch
):
    clock = [0.0]
    monkeypatch.setattr(scoring.time, "perf_counter", lambda: clock[0])

    def tick(x: Tensor) -> None:
        clock[0] += len(x)  # a second a clip

    small.module.before = tick
    scored = score_masked(small, clip(), masks(200), Black(), TARGETS, Run(5, "fp32", seconds=64.0))
    list(scored)
    assert scored.done == 63  # one second went to the intact clip; the last batch was cut to what was left
    late = score_masked(small, clip(), masks(200), Black(), TARGETS, Run(5, "fp32", seconds=0.5))
    list(late)
    assert late.done == 20  # 16 at least, in batches of five
    whole = score_masked(small, clip(), masks(50), Black(), TARGETS, Run(5, "fp32", seconds=1e6))
    list(whole)
    assert whole.done == 50


def test_each_iteration_starts_anew(small: TorchModel):
    scored = score_masked(small, clip(), masks(), Black(), TARGETS, FP32)
    first = torch.cat([p.scores for p in scored])
    torch.testing.assert_close(torch.cat([p.scores for p in scored]), first)
    assert scored.done == 21
    assert scored.forwards == 43


def test_fp16_needs_a_cpu_that_has_it(small: TorchModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "runs_fp16", lambda device: False)
    with pytest.raises(OptionError, match="no half-precision kernels: use precision auto"):
        score_masked(small, clip(), masks(), Black(), TARGETS, Run(precision="fp16"))


def test_refused(small: TorchModel):
    with pytest.raises(OptionError, match="masks of 4x12x13 do not fit a clip of 4x12x12"):
        score_masked(small, clip(), Windows((4, 12, 13), (2, 2, 2), (2, 2, 2)), Black(), TARGETS)
    with pytest.raises(OptionError, match="at least one clip, not 0"):
        score_masked(small, clip(), masks(), Black(), TARGETS, Run(batch=0))
    assert isinstance(score_masked(small, clip(), masks(), Black(), TARGETS), Scored)
