"""Names with options, budgets, black boxes, and several methods on one clip."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

import tubelens as tl
from tests.test_contract import ATTENTION, clip, net
from tubelens.api import OVER_WINDOWS
from tubelens.budget import cost, in_forwards
from tubelens.errors import InputError, LayerError, OptionError, ScoreError, TargetError
from tubelens.methods import METHODS, method, short_name
from tubelens.methods.protocol import FromCapture, Method, Scalable
from tubelens.running import Budget, Passes


def test_every_method_fits_the_protocol_and_has_a_short_name():
    for name, entry in METHODS.items():
        made = method(name)
        assert isinstance(made, Method)
        assert entry.needs in ("scorer", "layers", "gradients")
        assert made.explains in (tl.Logit, tl.Prob)
        assert short_name(repr(made)) == name
        assert getattr(tl, type(made).__name__) is type(made)
    assert sum(isinstance(method(name), FromCapture) for name in METHODS) >= 8


def test_methods_as_a_user_writes_them():
    assert method("rise(n=500, fill=blur, cells=(2, 4, 4))") == tl.RISE(n=500, fill="blur", cells=(2, 4, 4))
    assert method(" gradcam ( pool = hw ) ") == tl.GradCAM(pool="hw")
    assert method("selective(base=rise(n=5), part=appearance)") == tl.Selective(
        tl.RISE(n=5), part="appearance"
    )
    assert method("gradcam(signed=false)") == tl.GradCAM(signed=False)
    assert method("gradcam(signed=True)") == tl.GradCAM(signed=True)
    assert method("selective(base=gradcam)").base == tl.GradCAM()
    faults = {
        "rize": r"unknown method 'rize' .did you mean 'rise'",
        "rise(m=5)": r"method 'rise' has no option 'm'",
        "rise(n=)": r"cannot read its options .n=.: write them as in rise",
        "rise(5)": "cannot read its options",
        "rise(n=5": "a bracket is missing",
        "grad-cam": r"unknown method 'grad-cam' .did you mean 'gradcam'",
        "rise(n=lots)": "n must be a whole number, not 'lots'",
        "rise(n=10.5)": "n must be a whole number, not 10.5",
        "rise(p=half)": "p must be a number, not 'half'",
        "gradcam(signed=maybe)": "signed must be true or false, not 'maybe'",
        "gradcam(pool=tt)": r"pool must be thw or hw, not 'tt'",
        "gradcam(parity=paper)": r"parity must be icpr2022, not 'paper'",
        "rise(n=open('x'))": r"unknown method 'open'",
    }
    for written, message in faults.items():
        with pytest.raises(OptionError, match=message):
            method(written)


def test_budgets_as_a_user_writes_them():
    given = {500: Budget(500), "500": Budget(500), "30s": Budget(seconds=30), "2m": Budget(seconds=120)}
    given |= {"1.5h": Budget(seconds=5400), " 7 s ": Budget(seconds=7)}
    for written, budget in given.items():
        assert Budget.of(written) == budget
    for wrong in (0, "0", "0s", -3, "1.5", "ten", "", "5 x", "inf", "nan"):
        with pytest.raises(OptionError, match="a budget is a positive number"):
            Budget.of(wrong)


@pytest.mark.parametrize("name", [m for m in METHODS if m not in ATTENTION])
@pytest.mark.parametrize("forwards", [40, 150])
def test_a_budget_of_forwards_is_kept_or_refused(name: str, forwards: int):
    model, video = net("in-place")
    try:
        why = tl.explain(model, video, method(name), 1, budget=forwards)
    except OptionError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert forwards == 40 or name == "extremal"
        assert "budget" in refused
        return
    p = why.provenance
    if isinstance(method(name), Scalable):
        assert p.forwards + 2 * p.backwards <= forwards  # a backward alone counts as two
        assert not any("its cost is fixed" in note for note in p.notes)
    else:
        assert any(f"its cost is fixed: the budget of {forwards} forwards" in note for note in p.notes)


def test_more_budget_more_masks():
    model, video = net("in-place")
    few, many = (tl.explain(model, video, "rise", 1, budget=n).provenance for n in (50, 300))
    assert few.forwards <= 51
    assert 250 <= many.forwards <= 301


def test_a_budget_of_seconds():
    model, video = net("in-place")
    tl.explain(model, video, "rise(n=8)", 1)
    start = time.perf_counter()
    p = tl.explain(model, video, "rise(n=500000)", 1, budget="1s").provenance
    assert time.perf_counter() - start < 30  # 500,000 masks would take many minutes
    assert p.forwards > 16


def test_what_several_methods_cost():
    model, video = net("in-place")
    passes = cost([method("tubes"), method("gradcam"), method("rise(n=30)")], model, video)
    assert passes == Passes(32, 0)
    assert in_forwards(Passes(3, 4)) == 15
    assert cost([method("saliency")], model, video) == Passes(0, 1)


def test_a_label_stands_for_what_the_method_explains():
    model, video = net("bundled")
    rows = tl.explain_all(model, video, ["gradcam", "rise(n=4)"], ["ring", tl.Contrast(0, 1)])
    assert [[e.target for e in row] for row in rows] == [
        [tl.Logit(0), tl.Contrast(0, 1)],
        [tl.Prob(0), tl.Contrast(0, 1)],
    ]
    (top,) = tl.explain_all(model, video, ["rise(n=4)"])
    best = int(model(video.pixels[None]).argmax())
    assert [e.target for e in top] == [tl.Prob(best)]
    with pytest.raises(TargetError, match="did you mean"):
        tl.explain_all(model, video, ["rise(n=4)"], "rink")
    with pytest.raises(OptionError, match="no method given"):
        tl.explain_all(model, video, [])
    with pytest.raises(OptionError, match="is not a method"):
        tl.explain_all(model, video, [3])


def test_forwards_that_only_look_up_the_class_are_counted():
    model, video = net("bundled")
    named, strongest = (tl.explain(model, video, "saliency", t).provenance for t in ("ring", None))
    assert strongest.forwards == named.forwards + 1


def test_windows_of_a_black_box_and_of_several_methods(tmp_path):
    from tests.videos import coded_video

    coded_video(tmp_path / "v.mp4", 20)
    model, _ = net("in-place")
    spec = tl.InputSpec(frames=8, size=(24, 24))
    box = tl.BlackBox(lambda clips: model(clips), spec, labels=list("abcde"), name="box")
    calls = []
    windows = box.windows(str(tmp_path / "v.mp4"), overlap=0.5)
    ways = ["rise(n=6)", "occlusion(window=(4, 12, 12), stride=(4, 12, 12))"]
    run = tl.Run(progress=lambda done, total: calls.append((done, total)))
    rows = tl.explain_all(box, windows, ways, "top2", run=run)
    assert calls[-1] == (2 * len(windows), 2 * len(windows))
    for row in rows:
        assert len(row) == 2
        for e in row:
            assert e.size[0] == 20
            assert len(e.parts) == len(windows)
            assert e.provenance.notes[-1] == OVER_WINDOWS
            assert float(e.saliency.std()) > 0
    (clip_row,) = tl.explain_all(box, next(iter(windows))[1], ways[:1], [rows[0][0].target])
    first = rows[0][0].parts[0].values
    torch.testing.assert_close(first, clip_row[0].grid, atol=1e-5, rtol=1e-4)


def test_black_boxes():
    model, video = net("in-place")
    box = tl.wrap_scorer(lambda clips: model(clips).softmax(1).numpy(), output="probs", frames=8, size=24)
    why = tl.explain(box, video, "rise(n=6, seed=3)", 2)
    own = tl.explain(model, video, "rise(n=6, seed=3)", 2)
    torch.testing.assert_close(why.saliency, own.saliency, atol=1e-5, rtol=1e-4)
    assert why.provenance.prob == pytest.approx(own.provenance.prob, rel=1e-4)
    assert tl.predict(box, video, 2)[0][1] == pytest.approx(tl.predict(model, video, 2)[0][1], rel=1e-4)
    for name in ("tubes", "saliency", "sidu"):
        with pytest.raises(LayerError, match=r"black box.*choose rise"):
            tl.explain(box, video, name, 2)

    def shapeless(clips: Tensor) -> Tensor:
        return clips.mean(dim=(1, 2, 3, 4))

    def failing(clips: Tensor) -> Tensor:
        raise ValueError("service unavailable")

    with pytest.raises(InputError, match=r"must return scores of shape \(1, classes\), got \(1,\)"):
        tl.explain(tl.wrap_scorer(shapeless), video, "rise(n=4)", 0)
    with pytest.raises(InputError, match="ValueError: service unavailable"):
        tl.explain(tl.wrap_scorer(failing), video, "rise(n=4)", 0)
    with pytest.raises(ScoreError, match="NaN or infinity"):
        tl.explain(
            tl.wrap_scorer(lambda clips: torch.full((len(clips), 3), torch.nan)), video, "rise(n=4)", 0
        )


def test_a_clip_with_one_frame_goes_through_the_api():
    model, _ = net("branched")
    rows = tl.explain_all(model, clip(1), ["tubes", "rise(n=5)", "inputxgradient"], 2)
    assert all(e.saliency.shape == (1, 24, 24) for row in rows for e in row)
