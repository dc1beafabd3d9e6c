"""How many clips go through a network at once, in which memory format, and what the hardware can do."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import torch

FIRST = 8  # clips in the first batch: where a CPU is already at its best
MOST = {"cpu": 32, "cuda": 512}
MOST_BYTES = {"cpu": 2**27, "cuda": 2**31}  # of the clips of one batch
SHARE = 0.5  # of free memory that a batch may take
CLIP_SHARES = 64  # a clip's working memory over its own, where it cannot be measured
TRIALS = 2  # batches timed per setting; the first of a shape also pays for setting up
GAIN = 0.97  # a larger batch, or another format, is kept only if a clip takes less than this share
Setting = tuple[int, bool]
"""Batch size, and whether clips are channels-last."""


class Pace:
    """Chooses batch size and memory format while the work goes on: every trial is work done.

    The first batches are run in both formats and the faster one stays; then the size is doubled as long as
    that pays and memory is expected to suffice.

    Args:
        device: where the network is.
        clip_bytes: of one clip.
        total: how many clips there are.
        fixed: a size that the user asked for; only the format is chosen.
        formats: memory formats to choose from, channels-last being True.
        used: memory in use before the first forward (`memory_used`), None where unknown.
        limit: at which memory sufficed after it had run out (`Pace.limit` of an earlier stretch).
    """

    def __init__(
        self,
        device: torch.device,
        clip_bytes: int,
        total: int,
        fixed: int | None = None,
        formats: Sequence[bool] = (False, True),
        used: int | None = None,
        limit: int | None = None,
    ) -> None:
        self.device, self.clip_bytes, self.used, self.limit = device, clip_bytes, used, limit
        self.fixed = fixed if fixed is None or limit is None else min(fixed, limit)
        kind = "cpu" if device.type == "cpu" else "cuda"
        self.most = max(1, min(MOST[kind], MOST_BYTES[kind] // clip_bytes, total, limit or total))
        self.size = self.fixed or max(1, min(FIRST, self.most, int(self._room() / self._peak(1))))
        self.channels_last = formats[0]
        self.cost: float | None = None
        self._formats = formats
        self._search = self._trials()
        self.setting: Setting = (self.size, self.channels_last)
        self._advance()

    def report(self, clips: int, seconds: float) -> None:
        """A batch took so long; one that was cut short, as the last may be, teaches nothing."""
        if clips == self.setting[0]:
            self.cost = seconds / clips
            self._advance(seconds / clips)

    def failed(self, size: int) -> bool:
        """Memory ran out at a batch of `size`: half of it from now on. False if it was a single clip."""
        self._search.close()
        self.limit = self.size = min(self.size, size) // 2
        self.setting = (self.size, self.channels_last)
        return self.size >= 1

    def _advance(self, cost: float | None = None) -> None:
        try:
            self.setting = next(self._search) if cost is None else self._search.send(cost)
        except StopIteration:
            self.setting = (self.size, self.channels_last)

    def _trials(self) -> Generator[Setting, float, None]:
        best = float("inf")
        if len(self._formats) > 1 or self.fixed is None:
            for channels_last in self._formats:
                cost = yield from self._timed(self.size, channels_last)
                if cost < GAIN * best:
                    best, self.channels_last = cost, channels_last
        while self.fixed is None and 2 * self.size <= self.most and self._peak(2) <= self._room():
            cost = yield from self._timed(2 * self.size, self.channels_last)
            if cost >= GAIN * best:
                break
            best, self.size = cost, 2 * self.size

    def _timed(self, size: int, channels_last: bool) -> Generator[Setting, float, float]:
        best = float("inf")
        for _ in range(TRIALS):
            best = min(best, (yield size, channels_last))
        return best

    def _peak(self, times: int) -> float:
        """Bytes that `times` the work of the largest batch so far will need; never too few."""
        peak = memory_peak(self.device)
        if peak is None or self.used is None:
            return times * self.clip_bytes * CLIP_SHARES
        return times * max(peak - self.used, self.clip_bytes)

    def _room(self) -> float:
        return SHARE * memory_free(self.device)


def memory_used(device: torch.device) -> int | None:
    """Bytes that this process holds now, on the device; None where that cannot be known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def memory_peak(device: torch.device) -> int | None:
    """The most bytes that it ever held: an upper bound for what the work just done needed."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_free(device: torch.device) -> float:
    """Bytes that can still be had: of the accelerator, or of the machine within its control group."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    free = float("inf")
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            free = min(free, int(most) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, KeyError):
        pass
    return max(free, 0.0) if free < float("inf") else 2.0**32


def native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself: CUDA from Ampere on; CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # absent from older torch
    probes = [getattr(torch.cpu, name) for name in names if hasattr(torch.cpu, name)]
    if probes:
        return any(probe() for probe in probes)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def runs_fp16(device: torch.device) -> bool:
    """Whether half precision can be used: any accelerator, and CPUs whose kernels have it."""
    if device.type != "cpu":
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    except (AttributeError, RuntimeError):
        return False
