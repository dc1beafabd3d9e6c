"""Tubelens shows where and when a video classifier looked, and measures whether that was why.

import tubelens as tl

model = tl.load_model("r3d_18", weights="KINETICS400_V1")
clip = model.read("surf.mp4")
why = tl.explain(model, clip, method="tubes", target="surfing water")
why.save("why.mp4")
tl.Deletion()(model, clip, [why])[0].value
"""

from tubelens import render, store, video
from tubelens.accounts import Ledger
from tubelens.agreement import agreement
from tubelens.api import explain, explain_all, predict
from tubelens.capture import layers
from tubelens.clip import Clip, Source
from tubelens.errors import TubelensError
from tubelens.evaluate import Item, Network, evaluate, read_manifest
from tubelens.explanation import Explanation, Provenance
from tubelens.layout import Grid, Layout
from tubelens.ledger import ledger
from tubelens.loading import load_model, wrap, wrap_scorer
from tubelens.methods import (
    FEM,
    LIME,
    RISE,
    SIDU,
    SWAG,
    AblationCAM,
    AttentionRollout,
    Chefer,
    EigenCAM,
    Extremal,
    Gated,
    GradCAM,
    GradCAMpp,
    GuidedBackprop,
    GuidedGradCAM,
    HiResCAM,
    InputXGradient,
    IntegratedGradients,
    KernelSHAP,
    LayerCAM,
    Occlusion,
    Pyramid,
    Saliency,
    ScoreCAM,
    Selective,
    SmoothGrad,
    Tubes,
    XGradCAM,
)
from tubelens.methods.select import AtLeast, Soft, Strongest
from tubelens.metrics import (
    ROAD,
    AverageDrop,
    AverageGain,
    AverageIncrease,
    AveragePrecision,
    BandShare,
    Complexity,
    Deletion,
    DistractorMass,
    EfficientRandomisation,
    EnergyInTube,
    Forwards,
    Infidelity,
    Insertion,
    LabelRandomisation,
    MaxSensitivity,
    ParameterRandomisation,
    PointingGame,
    ROADLeRF,
    Score,
    SeedStability,
    Sparseness,
    Split,
    TemporalEdit,
    TemporalIoU,
    TubeIoU,
    Windows,
)
from tubelens.model import BlackBox, InputSpec, Scorer, TorchModel
from tubelens.running import Budget, Run
from tubelens.store import load_explanation
from tubelens.target import Contrast, Logit, Prob, Target
from tubelens.truth import Truth
from tubelens.video import read_clip
from tubelens.zoo.adapt import adapt
from tubelens.zoo.form import Input
from tubelens.zoo.fusion import late_fusion
from tubelens.zoo.two_stream import two_stream

__all__ = [
    "FEM",
    "LIME",
    "RISE",
    "ROAD",
    "SIDU",
    "SWAG",
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
    "ROADLeRF",
    "Run",
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

draw = render.draw
__version__ = "0.1.0"
del store, video
