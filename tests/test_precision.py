"""Which precision masked clips are scored in: networks that answer wrongly under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.test_scoring import clip, masks
from tubelens import scoring
from tubelens.fill import Black
from tubelens.model import BlackBox, TorchModel
from tubelens.running import Run
from tubelens.scoring import pilot_error, pilots, score_masked
from tubelens.target import Logit


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


@pytest.mark.usefixtures("native")
def test_pilots_are_foretold():
    model, _ = lossy(0.0)
    for n, run in ((200, Run()), (127, Run()), (200, Run(precision="fp32")), (7, Run(precision="bf16"))):
        scored = score_masked(model, clip(), masks(n), Black(), LOGITS, run)
        list(scored)
        assert scored.forwards == 1 + n + pilots(model, run, n)
    assert pilots(model, Run(), 200) == 32
    assert pilots(BlackBox(lambda clips: clips), Run(), 200) == 0


@pytest.mark.usefixtures("native")
def test_without_a_pilot_a_named_precision_is_taken_as_it_is_and_auto_is_fp32():
    for asked, used in (("bf16", "bf16"), ("auto", "fp32"), ("fp32", "fp32")):
        model, spread = lossy(0.0)
        model.module.off = 0.5 * spread
        run = Run(precision=asked, pilot=False)
        scored = score_masked(model, clip(), masks(200), Black(), LOGITS, run)
        list(scored)
        assert (scored.precision, scored.notes) == (used, ())
        assert (scored.forwards, pilots(model, run, 200)) == (201, 0)
        assert model.module.lower == (200 if used == "bf16" else 0)


@pytest.mark.usefixtures("native")
def test_steady_runs_choose_by_agreement_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "FASTER", 0.0)  # never fast enough
    for run, used in ((Run(steady=True), "bf16"), (Run(), "fp32")):
        model, _ = lossy(0.0)
        scored = score_masked(model, clip(), masks(200), Black(), LOGITS, run)
        list(scored)
        assert scored.precision == used
        assert used == "fp32" or all(model.module.formats)
