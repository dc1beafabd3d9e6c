"""Batch sizes, memory formats and what the hardware can do; on clocks and memories that the tests make up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from tubelens import batching
from tubelens.batching import Pace

CPU = torch.device("cpu")


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
