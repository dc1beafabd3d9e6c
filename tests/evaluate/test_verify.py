"""Verification of planted clips, on scorers whose answers are written into the pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

import tubelens as tl
from tubelens.clip import Clip
from tubelens.errors import OptionError, ScoreError, TargetError
from tubelens.evaluate.verify import ALLOWED, NEEDED, Check, verified, verify
from tubelens.planted import generate
from tubelens.running import Run
from tubelens.truth import Truth

LABELS = ["other", "right"]


@dataclass(frozen=True)
class Fake:
    """A grey clip: its brightness is the probability of `right`; with two more for what remains of it."""

    prob: float
    bare: float = 0.0
    alone: float = 1.0
    name: str = "right"
    label: int = 1
    true: int = 2
    frames: int = 2

    def clip(self) -> Clip:
        return Clip.from_array(torch.full((self.frames, 2, 2, 3), self.prob))

    def known(self) -> Truth:
        mask = torch.zeros(8, dtype=torch.bool)
        mask[: self.true] = True
        return Truth(mask.view(2, 2, 2))

    def without_truth(self) -> Fake:
        return replace(self, prob=self.bare)

    def without_distractors(self) -> Fake:
        return replace(self, prob=self.alone)


class Reads:
    """Counts the clips that it scores."""

    def __init__(self) -> None:
        self.clips = 0

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        self.clips += len(clips)
        p = clips.mean(dim=(1, 2, 3, 4))
        return torch.stack([1 - p, p], dim=1)


def box(score=None, labels=LABELS, output="probs") -> tl.BlackBox:
    return tl.BlackBox(score or Reads(), output=output, labels=labels, name="fake")


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (Fake(0.75, 0.25, 0.75), None),  # just so much
        (Fake(0.75, 0.2501, 0.75), "evidence not used"),
        (Fake(0.75, 0.0, 0.7001), None),
        (Fake(0.75, 0.0, 0.6999), "distractors used"),
        (Fake(0.75, 0.0, 1.0), None),  # it may rise
        (Fake(0.75, 1.0, 0.75), "evidence not used"),
        (Fake(0.4, 0.0, 0.4), "misclassified"),
        (Fake(0.4, 0.4, 0.0, name="other", label=0), "evidence not used"),  # the class's own probability
        (Fake(0.1, 0.9, 0.1, name="other", label=0), None),
        (Fake(0.9, 0.9, 0.0), "evidence not used"),  # the first that holds
        (Fake(0.75, 0.25, 0.75, true=0), "out of view"),
    ],
)
def test_clips_are_excluded_for_a_reason(fake: Fake, reason: str | None) -> None:
    assert (NEEDED, ALLOWED) == (0.5, 0.05)
    assert verify(box(), fake).reason == reason


def test_a_check_says_what_was_found() -> None:
    score = Reads()
    check = verify(box(score), Fake(0.75, 0.125, 0.625))
    assert check == Check(0.75, 0.125, 0.625, True, 0.25)
    assert score.clips == 3


def test_scores_become_probabilities() -> None:
    logits = box(
        lambda clips: 2 * clips.mean(dim=(1, 2, 3, 4))[:, None] * torch.tensor([[0.0, 1.0]]), None, "logits"
    )
    check = verify(logits, Fake(1.0, 0.5, 0.0))
    expected = [float(torch.sigmoid(torch.tensor(2 * p))) for p in (1.0, 0.5, 0.0)]
    assert [check.prob, check.bare, check.alone] == pytest.approx(expected)


def test_classes_go_by_their_names() -> None:
    turned = box(lambda clips: Reads()(clips).flip(1), ["right", "other"])
    assert verify(turned, Fake(0.75, 0.25, 0.75)).reason is None  # though its label says 1
    assert verify(box(labels=None), Fake(0.75, 0.25, 0.75, name="nobody knows")).reason is None
    with pytest.raises(TargetError, match="unknown label 'wrong'"):
        verify(box(), Fake(0.75, name="wrong"))


def test_kept_clips_stay_in_order_and_the_others_are_counted() -> None:
    good, bad = [Fake(p, 0.0, p) for p in (0.75, 0.875, 1.0)], Fake(0.75, 0.75, 0.75)
    found = verified(box(), [bad, good[0], Fake(0.2), good[1], bad, good[2]])
    assert found.kept == tuple(good)
    assert found.excluded == {"evidence not used": 2, "misclassified": 1}
    assert [check.reason is None for check in found.checks] == [False, True, False, True, False, True]
    assert verified(box(), []).kept == ()


def test_how_it_is_run_changes_nothing() -> None:
    model = tl.load_model("bundled")
    clip = generate(5, "dir")
    assert verify(model, clip, Run(precision="bf16", seconds=0.0, batch=1)) == verify(model, clip)


def test_what_cannot_be_scored_is_an_error() -> None:
    with pytest.raises(ScoreError, match="NaN"):
        verify(box(lambda clips: torch.full((len(clips), 2), torch.nan)), Fake(0.75))

    class Shrinks(Fake):
        def without_truth(self) -> Fake:
            return replace(self, frames=1)

    with pytest.raises(OptionError, match="must have the size"):
        verify(box(), Shrinks(0.75))


def test_the_bundled_network_looks_at_the_evidence() -> None:
    clips = [generate(seed, task) for seed in range(900, 908) for task in ("key", "dir")]
    found = verified(tl.load_model("bundled"), clips)
    assert len(found.kept) >= 11
    assert len(found.kept) + sum(found.excluded.values()) == 16
    # a network that knows nothing keeps none
    random = verified(tl.load_model("bundled", weights="random"), clips[:4])
    assert not random.kept
