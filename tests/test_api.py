"""The public face."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

import tubelens as tl
from tests.test_tubes import Small, clip
from tests.videos import write_video
from tubelens.api import resolve_targets
from tubelens.errors import InputError, LayerError, OptionError, TargetError

PUBLIC = [
    "AblationCAM",
    "AtLeast",
    "AttentionRollout",
    "AverageDrop",
    "AverageGain",
    "AverageIncrease",
    "AveragePrecision",
    "BandShare",
    "BlackBox",
    "Budget",
    "Chefer",
    "Clip",
    "Complexity",
    "Contrast",
    "Deletion",
    "DistractorMass",
    "EfficientRandomisation",
    "EigenCAM",
    "EnergyInTube",
    "Explanation",
    "Extremal",
    "FEM",
    "Forwards",
    "Gated",
    "GradCAM",
    "GradCAMpp",
    "Grid",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "Infidelity",
    "Input",
    "InputSpec",
    "InputXGradient",
    "Insertion",
    "IntegratedGradients",
    "Item",
    "KernelSHAP",
    "LIME",
    "LabelRandomisation",
    "LayerCAM",
    "Layout",
    "Ledger",
    "Logit",
    "MaxSensitivity",
    "Network",
    "Occlusion",
    "ParameterRandomisation",
    "PointingGame",
    "Prob",
    "Provenance",
    "Pyramid",
    "RISE",
    "ROAD",
    "ROADLeRF",
    "Run",
    "SIDU",
    "SWAG",
    "Saliency",
    "Score",
    "ScoreCAM",
    "Scorer",
    "SeedStability",
    "Selective",
    "SmoothGrad",
    "Soft",
    "Source",
    "Sparseness",
    "Split",
    "Strongest",
    "Target",
    "TemporalEdit",
    "TemporalIoU",
    "TorchModel",
    "Truth",
    "TubeIoU",
    "TubelensError",
    "Tubes",
    "Windows",
    "XGradCAM",
    "adapt",
    "agreement",
    "draw",
    "evaluate",
    "explain",
    "explain_all",
    "late_fusion",
    "layers",
    "ledger",
    "load_explanation",
    "load_model",
    "predict",
    "read_clip",
    "read_manifest",
    "two_stream",
    "wrap",
    "wrap_scorer",
]


def test_the_public_names_are_these():
    assert sorted(tl.__all__) == PUBLIC
    for name in PUBLIC:
        assert hasattr(tl, name)


def labelled() -> tl.TorchModel:
    torch.manual_seed(0)
    return tl.wrap(Small().eval(), frames=8, size=24, labels=["run", "walk_dog", "swim", "swing", "run up"])


def test_targets_as_a_user_writes_them(monkeypatch: pytest.MonkeyPatch):
    model = labelled()
    scores = torch.tensor([[0.1, 3.0, -1.0, 2.0, 0.0]])
    cases = {
        None: [1],
        "top1": [1],
        "top3": [1, 3, 0],
        2: [2],
        "4": [4],
        "Walk dog": [1],
        "RUN": [0],
    }
    for given, expected in cases.items():
        assert resolve_targets(model, given, scores) == [tl.Logit(i) for i in expected]
    mixed = resolve_targets(model, ["swim", "top2", tl.Prob(3), tl.Contrast(0, 1)], scores)
    assert mixed == [tl.Logit(2), tl.Logit(1), tl.Logit(3), tl.Prob(3), tl.Contrast(0, 1)]
    faults = {
        "swin": r"unknown label 'swin' .did you mean 'swing' or 'swim'",
        "5": r"class 5 is out of range: the model has 5 classes, 0 to 4",
        "top9": r"the model has 5 classes",
        "top0": r"the model has 5 classes",
    }
    for given, message in faults.items():
        with pytest.raises(TargetError, match=message):
            resolve_targets(model, given, scores)
    with pytest.raises(TargetError, match="out of range"):
        resolve_targets(model, tl.Contrast(0, 7), scores)
    with pytest.raises(TargetError, match="no target given"):
        resolve_targets(model, [], scores)
    for index in (np.int64(1), torch.tensor(1)):
        assert (
            resolve_targets(model, index, scores) == resolve_targets(model, [index], scores) == [tl.Logit(1)]
        )
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(TargetError, match=r"a target is a label.*, not 2\.5"):
        resolve_targets(model, 2.5, scores)


def test_explain_gives_one_or_a_list():
    model = labelled()
    one = tl.explain(model, clip())
    assert isinstance(one, tl.Explanation)
    assert one.provenance.label == one.provenance.predicted[0][0]
    several = tl.explain(model, clip(), target=["run", 2])
    assert [e.provenance.label for e in several] == ["run", "swim"]
    assert len(tl.explain(model, clip(), target="top3")) == 3
    by_object = tl.explain(model, clip(), tl.Tubes(layer="body"), target="run")
    torch.testing.assert_close(by_object.grid, several[0].grid)
    probs = dict(tl.predict(model, clip(), 5))
    assert one.provenance.prob == pytest.approx(probs[one.provenance.label])
    assert sum(probs.values()) == pytest.approx(1)


def test_wrong_methods_and_options():
    with pytest.raises(OptionError, match=r"unknown method 'tube' .did you mean 'tubes'"):
        tl.explain(labelled(), clip(), "tube")
    with pytest.raises(OptionError, match="'tubes' has no option 'nodes': it has layer, select, parity"):
        tl.explain(labelled(), clip(), "tubes", nodes=3)
    with pytest.raises(OptionError, match="options go with a method's name"):
        tl.explain(labelled(), clip(), tl.Tubes(), layer="body")


def test_wrap_finds_layer_and_kind_of_scores():
    class Softmaxed(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).softmax(1)

    assert tl.wrap(Small(), frames=8, size=24).output == "logits"
    assert tl.wrap(Softmaxed(), frames=8, size=24).output == "probs"
    assert tl.wrap(Softmaxed(), frames=8, size=24, output="sigmoid").output == "sigmoid"
    assert tl.wrap(Small(), frames=8, size=24).layer == "body"
    with pytest.raises(InputError, match="5 classes, but 2 labels"):
        tl.wrap(Small(), frames=8, size=24, labels=["a", "b"])
    with pytest.raises(LayerError, match=r"no layer 'bod' .did you mean"):
        tl.wrap(Small(), frames=8, size=24, layer="bod")
    with pytest.raises(InputError, match="does not accept a clip batch of 1x1x8x24x24"):
        tl.wrap(Small(), frames=8, size=24, bands="I", pack=lambda x: x)
    with pytest.raises(OptionError, match="one number or 3"):
        tl.wrap(Small(), mean=[0.5, 0.5])

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3 * 8 * 24 * 24, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1))

    with pytest.raises(LayerError, match="time and space"):
        tl.wrap(Flat(), frames=8, size=24)
    with pytest.raises(InputError, match="must return scores of shape"):
        tl.wrap(nn.Conv3d(3, 2, 1), frames=8, size=24)


def test_a_declared_layout_turns_tokens_into_a_grid():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv3d(3, 8, 3, 2, 1)
            self.mix = nn.Identity()
            self.fc = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.mix(self.body(x).flatten(2).transpose(1, 2).sin().clone())
            return self.fc(tokens.mean(1))

    torch.manual_seed(0)
    net = Tokens().eval()
    found = tl.explain(tl.wrap(net, frames=8, size=24, layer="mix"), clip(), target=1)
    layout = tl.Layout("b (t h w) c", {"t": 4, "h": 12, "w": 12})
    declared = tl.explain(tl.wrap(net, frames=8, size=24, layer="mix", layout=layout), clip(), target=1)
    assert found.grid.shape == (4, 12, 12)
    torch.testing.assert_close(found.grid, declared.grid)
    wrong = tl.Layout("b (t h w) c", {"t": 5, "h": 12, "w": 12})
    with pytest.raises(LayerError, match="does not fit the layout"):
        tl.explain(tl.wrap(net, frames=8, size=24, layer="mix", layout=wrong), clip(), target=1)
    with pytest.raises(OptionError, match="give its name too"):
        tl.wrap(net, frames=8, size=24, layout=layout)


def test_unpack_takes_scores_out():
    class Tupled(Small):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:  # type: ignore[override]
            return super().forward(x), 3

    model = tl.wrap(Tupled(), frames=8, size=24, unpack=lambda out: out[0])
    assert tl.explain(model, clip()).grid.shape == (4, 6, 6)


def test_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "mynet.py"
    file.write_text(
        "import torch.nn as nn\nimport tubelens as tl\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.body = nn.Conv3d(3, 4, 3, 2, 1)\n        self.fc = nn.Linear(4, 2)\n"
        "    def forward(self, x):\n        return self.fc(self.body(x).mean((2, 3, 4)))\n"
        "def make():\n    return Net()\n"
        "def wrapped():\n    return tl.wrap(Net(), frames=4, size=20, labels=['a', 'b'])\n"
        "def wrong():\n    return 3\n"
    )
    model = tl.load_model(f"{file}:make")
    assert model.layer == "body"
    assert tl.load_model(f"{file}:wrapped").labels == ["a", "b"]
    assert torch.equal(model.module.fc.weight, tl.load_model(f"{file}:make").module.fc.weight)  # seeded
    torch.save(model.module.state_dict(), tmp_path / "w.pt")
    again = tl.load_model(f"{file}:wrapped", tmp_path / "w.pt", seed=9)
    assert torch.equal(again.module.fc.weight, model.module.fc.weight)
    monkeypatch.syspath_prepend(tmp_path)
    assert tl.load_model("mynet:make").layer == "body"
    for spec, message in {
        f"{file}:nothing": "has no function 'nothing'",
        f"{tmp_path}/none.py:make": "no such file",
        "no.such.package:make": "cannot be imported",
        f"{file}:wrong": "must return a module",
    }.items():
        with pytest.raises(OptionError, match=message):
            tl.load_model(spec)


def test_windows_are_stitched_and_averaged(tmp_path: Path):
    """Against explaining every window by itself and averaging by hand."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (30, 32, 32, 3), dtype=np.uint8)
    video = write_video(tmp_path / "long.mkv", frames, fps=10)
    model = labelled()
    windows = model.windows(video, stride=2)
    whole = tl.explain(model, windows, target="swim")
    assert whole.size[0] == 15
    total, count = torch.zeros(15, 24, 24), torch.zeros(15, 1, 1)
    scores = []
    for first, window in windows:
        alone = tl.explain(model, window, target="swim")
        total[first : first + 8] += alone.saliency
        count[first : first + 8] += 1
        scores.append(alone.provenance.score)
    assert len(scores) == len(windows) == 3
    torch.testing.assert_close(whole.saliency, total / count)
    assert whole.provenance.score == pytest.approx(np.mean(scores))
    assert whole.provenance.facts["windows"] == 3
    # the strongest class is one for the whole video, by the mean over windows
    best = torch.cat([model(w.pixels[None]) for _, w in windows]).mean(0).argmax()
    top = tl.explain(model, windows)
    assert top.target == tl.Logit(int(best))
    assert top.provenance.forwards == 6


def test_importing_tubelens_imports_no_extra():
    code = (
        "import sys, tubelens\n"
        "extras = ('scipy', 'captum', 'transformers', 'keras', 'cv2', 'matplotlib.pyplot')\n"
        "bad = [m for m in extras if m in sys.modules]\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
