"""The one loop over masked clips: batch size, precision, running out of memory, stopping in time.

Every batch leaves the network, the random state and the grad mode as they were before the next one is asked
for, so a consumer may stop anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.batching import FIRST, Pace, memory_used, native_bf16, runs_fp16
from tubelens.clip import Clip
from tubelens.errors import OptionError, ScoreError, WorkError
from tubelens.fill import Fill
from tubelens.masks import Masks
from tubelens.model import Scorer, TorchModel, frozen, is_out_of_memory, untouched
from tubelens.running import RUN, Precision, Run
from tubelens.target import Target, evaluate
from tubelens.variants import Masked, Variants

PILOT = 16  # masks on which a lower precision is compared with fp32
PILOT_BATCH = 8
WORTH = 8  # pilots that the work must be long for `auto` to make one
TOLERANCE = 0.02  # rms error of the pilot, as a share of the scores' standard deviation over the masks
FASTER = 0.9  # a lower precision must take less than this share of the time
LEAST = 16  # masks that are scored even where the time is up
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Part:
    """Masks that were scored together.

    Attributes:
        first: number of the first of them.
        masks: on the model's device; none where the versions were not made by masks.
        values: of every target, float32.
        scores: of every class, float32.
    """

    first: int
    masks: Float[Tensor, "_ *mask"]
    values: Float[Tensor, "n b"]
    scores: Float[Tensor, "b k"]


def score_masked(
    model: Scorer,
    clip: Clip,
    masks: Masks,
    fill: Fill,
    targets: Sequence[Target],
    run: Run = RUN,
    intact: Float[Tensor, "1 k"] | None = None,
) -> Scored:
    """Scores of a clip under every mask, streamed.

    Precision `auto` is bf16, channels-last, where the hardware has it natively, the work is long enough and
    a pilot on 16 masks spread over the family agrees with fp32: faster, and for every target an rms error of
    at most 2 % of the standard deviation of the scores over the masks. Otherwise fp32; the notes say so where
    the pilot disagreed. A precision asked for by name is kept even then, and the notes say by how much it is
    off. A batch that overflows is scored again in fp32, and so is all that follows.

    Args:
        model: a network or a black box. Black boxes are called as they are.
        clip: what is masked.
        masks: of the clip's size.
        fill: what takes the place of what is removed.
        targets: evaluated on every masked clip.
        run: batch size, precision, progress, time. A method that needs all its masks passes `seconds=None`.
        intact: scores of the clip itself, where they are known already.

    Raises:
        OptionError: masks of another size; fp16 where the CPU does not have it.
        ScoreError: NaN or infinity; names the masks.
        WorkError: a single clip is too much for the memory.
    """
    return Scored(model, clip, Masked(masks, fill), targets, run, intact)


def score_variants(
    model: Scorer,
    clip: Clip,
    variants: Variants,
    targets: Sequence[Target],
    run: Run = RUN,
    intact: Float[Tensor, "1 k"] | None = None,
) -> Scored:
    """Scores of altered versions of a clip, streamed: as `score_masked`, which is the case of masks.

    What the network's `pack` takes from a clip (its mean, say) is taken from the intact one.
    """
    return Scored(model, clip, variants, targets, run, intact)


def pilots(model: Scorer, run: Run, masks: int) -> int:
    """Forwards that comparing precisions will take ahead of so many masks; 0 where none is compared."""
    if not isinstance(model, TorchModel) or run.precision == "fp32" or not run.pilot:
        return 0
    if run.precision == "auto" and (masks < WORTH * PILOT or not native_bf16(model.device)):
        return 0
    return 2 * min(PILOT, masks)


class Scored:
    """Scores of a clip and, as a stream of parts in the order of the masks, of the clip under each of them.

    Nothing but the intact clip is scored until it is iterated; each iteration scores anew.

    Attributes:
        scores: of the intact clip, `(1, k)`.
        intact: the targets on it, `(n,)`.
        forwards: clips scored so far, the intact one, pilots and repeats included.
        precision: that is used.
        batch: clips in the last batch.
        done: masks scored; fewer than there are where `run.seconds` ran out, but 16 at least.
        notes: what the user should know.
    """

    def __init__(
        self,
        model: Scorer,
        clip: Clip,
        variants: Variants,
        targets: Sequence[Target],
        run: Run = RUN,
        intact: Float[Tensor, "1 k"] | None = None,
    ) -> None:
        if run.batch is not None and run.batch < 1:
            raise OptionError(f"a batch holds at least one clip, not {run.batch}")
        self._started = time.perf_counter()
        model = frozen(model, clip.pixels[None])
        self.model, self.targets, self.run, self.total = model, list(targets), run, len(variants)
        self.device = torch.device(getattr(model, "device", "cpu"))
        if run.precision == "fp16" and not runs_fp16(self.device):
            raise OptionError(
                "this CPU has no half-precision kernels: use precision auto, fp32 or bf16, or an accelerator"
            )
        self._used = memory_used(self.device)
        self._pixels = clip.pixels.to(self.device)
        self._make = variants.over(self._pixels)
        self.forwards, self.done, self.batch = 0, 0, 0
        named = isinstance(model, TorchModel) and not run.pilot and run.precision != "auto"
        self.precision: Precision = run.precision if named else "fp32"
        self.notes: tuple[str, ...] = ()
        self._ready = pilots(model, run, self.total) == 0
        if intact is None:
            found = self._attempt(lambda: self._forward(self._pixels[None], "fp32", False))
            if found is None:
                raise self._too_large()
            intact = self._finite(found, None)
        self.scores = intact
        self.intact: Float[Tensor, "n"] = evaluate(self.targets, intact, model.output)[:, 0]

    def __iter__(self) -> Iterator[Part]:
        self.done, total = 0, self.total
        pace = self._pace()
        if not self._ready:
            self._choose_precision(pace)
            self._ready = True
            pace = self._pace(pace.limit)
        while self.done < total and (size := self._size(pace)):
            begun = time.perf_counter()
            first = self.done
            found = self._attempt(partial(self._score, first, first + size, pace.setting[1]))
            if found is None:
                if not pace.failed(size):
                    raise self._too_large()
                continue
            masks, scores = found
            pace.report(size, time.perf_counter() - begun)
            self.done, self.batch = first + size, size
            self.run.tell(self.done, total)
            yield Part(first, masks, evaluate(self.targets, scores, self.model.output), scores)

    def _pace(self, limit: int | None = None) -> Pace:
        formats: tuple[bool, ...] = (False,)
        if isinstance(self.model, TorchModel):
            formats = (True,) if self.precision != "fp32" else (False,) if self.run.steady else (False, True)
        clip_bytes = self._pixels.numel() * self._pixels.element_size()
        return Pace(self.device, clip_bytes, self.total, self._fixed, formats, self._used, limit)

    @property
    def _fixed(self) -> int | None:
        return FIRST if self.run.batch is None and self.run.steady else self.run.batch

    def _size(self, pace: Pace) -> int:
        """Clips of the next batch; 0 where the time is up."""
        size = min(pace.setting[0], self.total - self.done)
        if self.run.seconds is None or self.done < LEAST:
            return size
        left = self.run.seconds - (time.perf_counter() - self._started)
        return max(0, min(size, int(left / pace.cost) if pace.cost else size))

    def _score(self, start: int, stop: int, channels_last: bool) -> tuple[Tensor, Tensor]:
        clips, masks = self._make(start, stop)
        scores = self._forward(clips, self.precision, channels_last)
        if self.precision != "fp32" and not bool(torch.isfinite(scores).all()):
            self.notes += (f"{self.precision} overflowed at mask {start}: fp32 from there on",)
            self.precision = "fp32"
            scores = self._forward(clips, "fp32", channels_last)
        masks = self._pixels.new_empty(0, *self._pixels.shape[1:]) if masks is None else masks
        return masks, self._finite(scores, range(start, stop))

    def _forward(
        self, clips: Float[Tensor, "b c T H W"], precision: str, channels_last: bool
    ) -> Float[Tensor, "b k"]:
        """One batch, unchecked, as float32."""
        model = self.model
        self.forwards += len(clips)
        with torch.no_grad():
            if not isinstance(model, TorchModel):
                return model(clips).detach().float()
            if channels_last:
                clips = clips.contiguous(memory_format=torch.channels_last_3d)
            lower = DTYPES.get(precision)
            cast = nullcontext() if lower is None else torch.autocast(self.device.type, lower)
            with untouched(model.module), cast:
                return model.run(clips).detach().float()

    def _finite(self, scores: Float[Tensor, "b k"], numbers: Sequence[int] | None) -> Float[Tensor, "b k"]:
        good = torch.isfinite(scores).all(dim=1)
        if not bool(good.all()):
            name = getattr(self.model, "name", type(self.model).__name__)
            bad = (~good).nonzero().flatten().tolist()
            where = "the intact clip"
            if numbers is not None:
                shown = ", ".join(str(numbers[i]) for i in bad[:8]) + (", ..." if len(bad) > 8 else "")
                where = f"the clip under mask {shown} of {self.total}"
            raise ScoreError(
                f"{name} returned NaN or infinity for {where}: check its weights and the normalisation of its"
                " input"
            )
        return scores

    def _attempt(self, work: Callable[[], T]) -> T | None:
        """The result, or None where memory ran out."""
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # only here, after the handler, are the tensors of the failed batch free
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _too_large(self) -> WorkError:
        shape = "x".join(map(str, self._pixels.shape))
        return WorkError(
            f"out of memory on {self.device} with a single clip of {shape}: use fewer frames, a smaller size"
            " or another device, or free some memory"
        )

    def _choose_precision(self, pace: Pace) -> None:
        asked = self.run.precision
        trial: Precision = "bf16" if asked == "auto" else asked
        count = min(PILOT, self.total)
        numbers = [i * self.total // count for i in range(count)]
        full, full_time = self._pilot(numbers, "fp32", pace)
        low, low_time = self._pilot(numbers, trial, pace)
        error = pilot_error(full, low)
        if asked != "auto":
            self.precision = trial
            if not error <= TOLERANCE:
                self.notes += (f"{trial} scores are off by {error:.1%} of their standard deviation",)
        elif not error <= TOLERANCE:
            self.notes += (f"fp32, as bf16 scores are off by {error:.1%} of their standard deviation",)
        elif self.run.steady or low_time < FASTER * full_time:
            self.precision = trial

    def _pilot(
        self, numbers: Sequence[int], precision: str, pace: Pace
    ) -> tuple[Float[Tensor, "n b"], float]:
        """Targets on a few masks, and seconds a clip at best."""
        values: list[Tensor] = []
        best, at = float("inf"), 0
        while at < len(numbers):
            some = numbers[at : at + min(PILOT_BATCH, pace.size)]

            def work(some: Sequence[int] = some) -> Tensor:
                clips = self._pixels.new_empty(len(some), *self._pixels.shape)
                for row, i in enumerate(some):
                    clips[row] = self._make(i, i + 1)[0][0]
                return self._forward(clips, precision, precision != "fp32")

            begun = time.perf_counter()
            scores = self._attempt(work)
            if scores is None:
                if not pace.failed(len(some)):
                    raise self._too_large()
                continue
            values.append(evaluate(self.targets, scores, self.model.output).cpu())
            best = min(best, (time.perf_counter() - begun) / len(some))
            at += len(some)
        return torch.cat(values, dim=1), best


def pilot_error(full: Float[Tensor, "n b"], low: Float[Tensor, "n b"]) -> float:
    """The largest rms error over the targets, as a share of the target's standard deviation over the masks.

    Infinite where the scores do not vary but differ, or where the lower precision overflowed.
    """
    error = (low - full).double().pow(2).mean(dim=1).sqrt()
    spread = full.double().std(dim=1, correction=0)
    share = torch.where(error == 0, 0.0, error / spread)
    return float(torch.where(share.isnan(), float("inf"), share).max())
