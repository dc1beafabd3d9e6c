"""The loop over masked clips: what is scored, how it is batched, what happens when something fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import order_one
from tubelens import batching, scoring
from tubelens.batching import Pace
from tubelens.clip import Clip
from tubelens.errors import OptionError, ScoreError, WorkError
from tubelens.fill import Black, Freeze, Mean
from tubelens.masks import Grids, Windows
from tubelens.model import BlackBox, TorchModel
from tubelens.running import Run
from tubelens.scoring import Scored, pilot_error, score_masked
from tubelens.target import Contrast, Logit, Prob

FP32 = Run(precision="fp32")
CPU = torch.device("cpu")


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
    scored = score_masked(small, clip(), masks(), Black(), TARGETS, Run(batch=batch, precision="fp32"))
    assert scored.forwards == 1
    told: list[tuple[int, int]] = []
    scored.run = Run(batch, "fp32", lambda done, total: told.append((done, total)))
    parts = list(scored)
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


class Lossy(nn.Module):
    """Answers wrongly under autocast, by a share of what it says; linear in the pixels."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off, self.lower, self.formats = off, 0, []  # type: ignore[var-annotated]
        self.weight = nn.Parameter(
            torch.randn(3 * 4 * 12 * 12, 3, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = x.flatten(1) @ self.weight
        if torch.is_autocast_enabled("cpu"):
            self.lower += len(x)
            self.formats.append(x.is_contiguous(memory_format=torch.channels_last_3d))
            sign = torch.tensor([1.0, -1.0]).repeat(len(x))[: len(x), None]
            y = y + self.off * sign
        return y


def lossy(off: float) -> tuple[TorchModel, float]:
    """The model, and the smallest standard deviation of its logits over the pilot's masks."""
    model = TorchModel(Lossy(off).eval(), pack=lambda x: x)
    family = masks(200)
    logits = torch.cat(
        [model(clip().pixels[None] * family.batch(i * 200 // 16, i * 200 // 16 + 1)) for i in range(16)]
    )
    return model, float(logits.std(dim=0, correction=0).min())


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "native_bf16", lambda device: True)
    monkeypatch.setattr(scoring, "FASTER", float("inf"))  # whatever the clock says


LOGITS = [Logit(0), Logit(1), Logit(2)]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("share", "taken"), [(0.01, True), (0.03, False)])
def test_auto_takes_bf16_where_the_pilot_agrees(share: float, taken: bool):
    spread = lossy(0.0)[1]
    model, _ = lossy(share * spread)
    scored = score_masked(model, clip(), masks(200), Black(), LOGITS)
    parts = list(scored)
    assert sum(len(p.masks) for p in parts) == 200
    assert scored.forwards == 1 + 2 * 16 + 200
    assert model.module.lower == 16 + 200 * taken
    assert all(model.module.formats)  # channels-last
    if taken:
        assert (scored.precision, scored.notes) == ("bf16", ())
    else:
        assert scored.precision == "fp32"
        assert scored.notes == ("fp32, as bf16 scores are off by 3.0% of their standard deviation",)
        expected = (masks(200).batch(0, 200)[:, None] * clip().pixels).flatten(1) @ model.module.weight
        torch.testing.assert_close(torch.cat([p.scores for p in parts]), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.usefixtures("native")
def test_bf16_asked_for_is_kept_and_noted():
    model, spread = lossy(0.0)
    model.module.off = 0.5 * spread
    scored = score_masked(model, clip(), masks(200), Black(), LOGITS, Run(precision="bf16"))
    list(scored)
    assert scored.precision == "bf16"
    assert scored.notes == ("bf16 scores are off by 50.0% of their standard deviation",)


def test_auto_stays_with_fp32_without_hardware_or_where_it_is_not_worth_it(monkeypatch: pytest.MonkeyPatch):
    for able, faster, n in ((False, 9.0, 200), (True, 9.0, 127), (True, 0.0, 200)):
        monkeypatch.setattr(scoring, "native_bf16", lambda device, able=able: able)
        monkeypatch.setattr(scoring, "FASTER", faster)
        model, _ = lossy(0.0)
        scored = score_masked(model, clip(), masks(n), Black(), LOGITS)
        list(scored)
        assert scored.precision == "fp32"
        assert model.module.lower == (16 if able and n == 200 else 0)


@pytest.mark.usefixtures("native")
def test_an_overflow_of_the_lower_precision_is_scored_again_in_fp32():
    model, _ = lossy(0.0)
    net = model.module

    def overflow(x: Tensor) -> Tensor:
        y = Lossy.forward(net, x)
        return y / 0 if torch.is_autocast_enabled("cpu") and net.lower > 50 else y

    net.forward = overflow
    scored = score_masked(model, clip(), masks(200), Black(), LOGITS, Run(batch=20))
    got = torch.cat([p.scores for p in scored])
    assert scored.precision == "fp32"
    assert scored.notes == ("bf16 overflowed at mask 20: fp32 from there on",)
    expected = (masks(200).batch(0, 200)[:, None] * clip().pixels).flatten(1) @ net.weight
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)
    assert net.lower == 16 + 40


def test_pilot_error():
    full = torch.tensor([[0.0, 2.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert pilot_error(full, full) == 0
    assert pilot_error(full[:1], full[:1] + torch.tensor([0.1, -0.1, 0.1, -0.1])) == pytest.approx(0.1)
    assert pilot_error(full, full + 0.1) == float("inf")  # the second does not vary
    assert pilot_error(full[:1], full[:1] / 0) == float("inf")
    two = torch.cat([full[:1], 10 * full[:1]])
    assert pilot_error(two, two + 0.5) == pytest.approx(0.5)  # the worst of them


def test_fp16_needs_a_cpu_that_has_it(small: TorchModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "runs_fp16", lambda device: False)
    with pytest.raises(OptionError, match="no half-precision kernels: use precision auto"):
        score_masked(small, clip(), masks(), Black(), TARGETS, Run(precision="fp16"))


def test_capabilities_are_asked_without_crashing(monkeypatch: pytest.MonkeyPatch):
    assert batching.native_bf16(torch.device("mps")) is False
    for amx, avx in itertools.product((False, True), repeat=2):
        fake = SimpleNamespace(
            _is_amx_tile_supported=lambda a=amx: a, _is_avx512_bf16_supported=lambda a=avx: a
        )
        monkeypatch.setattr(batching.torch, "cpu", fake)
        assert batching.native_bf16(CPU) is (amx or avx)
    monkeypatch.setattr(
        batching.torch, "cpu", SimpleNamespace()
    )  # an older torch: the kernel's list of flags
    for flags, able in (("fpu avx512_bf16", True), ("amx_bf16 sse", True), ("avx512f", False)):
        monkeypatch.setattr(batching.Path, "read_text", lambda self, flags=flags: flags)
        assert batching.native_bf16(CPU) is able
    asked: list[bool] = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation) or True
    )
    assert batching.native_bf16(torch.device("cuda"))
    assert asked == [False]
    assert batching.runs_fp16(torch.device("cuda"))
    monkeypatch.setattr(batching.torch, "ops", SimpleNamespace())
    assert batching.runs_fp16(CPU) is False


def run_pace(pace: Pace, cost: Callable[[int, bool], float], batches: int = 30) -> list[tuple[int, bool]]:
    settings = []
    for _ in range(batches):
        size, channels_last = pace.setting
        settings.append((size, channels_last))
        pace.report(size, size * cost(size, channels_last))
    return settings


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "memory_free", lambda device: 1e12)
    monkeypatch.setattr(batching, "memory_peak", lambda device: 2_000_000)


@pytest.mark.usefixtures("roomy")
def test_pace_takes_the_faster_format_and_doubles_while_that_pays():
    pace = Pace(CPU, 1000, 10_000, used=1_000_000)
    seen = run_pace(pace, lambda size, last: (0.5 if last else 1) * (1 + 8 / min(size, 16)))
    assert seen[:8] == [(8, False)] * 2 + [(8, True)] * 2 + [(16, True)] * 2 + [(32, True)] * 2
    assert set(seen[8:]) == {(16, True)}  # 32 was no faster
    slower = run_pace(Pace(CPU, 1000, 10_000, used=0), lambda size, last: 1.2 if last else 1.0)
    assert slower[4:6] == [(16, False)] * 2
    assert set(slower[6:]) == {(8, False)}
    best_of_two = iter([9.0, 1.0, 1.1, 1.1] + [2.0] * 99)  # a first batch that is slow says nothing
    assert run_pace(Pace(CPU, 1000, 10_000, used=0), lambda size, last: next(best_of_two))[-1] == (8, False)


@pytest.mark.usefixtures("roomy")
def test_pace_is_bounded_by_the_user_the_work_the_clip_and_the_memory(monkeypatch: pytest.MonkeyPatch):
    def gain(size: int, last: bool) -> float:
        return 1 / size

    assert {s for s, _ in run_pace(Pace(CPU, 1000, 10_000, fixed=5), gain)} == {5}
    assert max(s for s, _ in run_pace(Pace(CPU, 1000, 10_000, used=0), gain)) == 32
    assert max(s for s, _ in run_pace(Pace(CPU, 1000, 20, used=0), gain)) == 16
    assert Pace(CPU, 1000, 3, used=0).size == 3
    assert max(s for s, _ in run_pace(Pace(CPU, 2**27 // 9, 10_000, used=0), gain)) == 8
    largest = [1]  # a clip takes a megabyte, on top of two that were there before
    monkeypatch.setattr(batching, "memory_peak", lambda device: 2_000_000 + 1_000_000 * largest[0])

    def takes(size: int, last: bool) -> float:
        largest[0] = max(largest[0], size)
        return 1 / size

    for free, most in ((1.9e6, 1), (5e6, 2), (15e6, 7), (33e6, 16)):  # half of it may be used
        largest[0] = 1
        monkeypatch.setattr(batching, "memory_free", lambda device, free=free: free)
        seen = run_pace(Pace(CPU, 1000, 10_000, used=2_000_000), takes)
        assert max(s for s, _ in seen) == most
    monkeypatch.setattr(batching, "memory_peak", lambda device: None)
    monkeypatch.setattr(batching, "memory_free", lambda device: 4 * 2 * 64_000.0)
    assert Pace(CPU, 1000, 10_000).size == 4


@pytest.mark.usefixtures("roomy")
def test_pace_after_running_out_of_memory():
    pace = Pace(CPU, 1000, 10_000, used=0)
    run_pace(pace, lambda size, last: 1 / size, 6)
    assert pace.setting[0] == 32
    assert pace.failed(32)
    assert set(run_pace(pace, lambda size, last: 1 / size)) == {(8, False)}  # half of what had worked
    pace = Pace(CPU, 1000, 10_000, fixed=1)
    assert not pace.failed(1)


def test_memory_is_known_on_this_machine():
    used, peak = batching.memory_used(CPU), batching.memory_peak(CPU)
    if used is not None and peak is not None:
        assert 10e6 < used < 1e12
        block = torch.ones(2**26)  # 256 MB
        grown = batching.memory_used(CPU)
        assert grown is not None
        assert 200e6 < grown - used < 320e6
        assert batching.memory_peak(CPU) >= grown - 50e6  # type: ignore[operator]
        del block
    assert batching.memory_free(CPU) > 1e6


def test_refused(small: TorchModel):
    with pytest.raises(OptionError, match="masks of 4x12x13 do not fit a clip of 4x12x12"):
        score_masked(small, clip(), Windows((4, 12, 13), (2, 2, 2), (2, 2, 2)), Black(), TARGETS)
    with pytest.raises(OptionError, match="at least one clip, not 0"):
        score_masked(small, clip(), masks(), Black(), TARGETS, Run(batch=0))
    assert isinstance(score_masked(small, clip(), masks(), Black(), TARGETS), Scored)
