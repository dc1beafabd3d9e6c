"""Tubelens shows where and when a video classifier looked, and measures whether that was why.

import tubelens as tl

model = tl.load_model("r3d_18", weights="KINETICS400_V1")
clip = model.read("surf.mp4")
why = tl.explain(model, clip, method="tubes", target="surfing water")
why.save("why.mp4")
"""

from tubelens import render, store, video
from tubelens.agreement import agreement
from tubelens.api import explain, explain_all, predict
from tubelens.capture import layers
from tubelens.clip import Clip, Source
from tubelens.errors import TubelensError
from tubelens.explanation import Explanation, Provenance
from tubelens.layout import Grid, Layout
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
from tubelens.model import BlackBox, InputSpec, Scorer, TorchModel
from tubelens.running import Budget, Run
from tubelens.store import load_explanation
from tubelens.target import Contrast, Logit, Prob, Target
from tubelens.video import read_clip
from tubelens.zoo.form import Input
from tubelens.zoo.two_stream import two_stream

__all__ = [
    "FEM",
    "LIME",
    "RISE",
    "SIDU",
    "SWAG",
    "AblationCAM",
    "AtLeast",
    "AttentionRollout",
    "BlackBox",
    "Budget",
    "Chefer",
    "Clip",
    "Contrast",
    "EigenCAM",
    "Explanation",
    "Extremal",
    "Gated",
    "GradCAM",
    "GradCAMpp",
    "Grid",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "Input",
    "InputSpec",
    "InputXGradient",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerCAM",
    "Layout",
    "Logit",
    "Occlusion",
    "Prob",
    "Provenance",
    "Pyramid",
    "Run",
    "Saliency",
    "ScoreCAM",
    "Scorer",
    "Selective",
    "SmoothGrad",
    "Soft",
    "Source",
    "Strongest",
    "Target",
    "TorchModel",
    "TubelensError",
    "Tubes",
    "XGradCAM",
    "agreement",
    "draw",
    "explain",
    "explain_all",
    "layers",
    "load_explanation",
    "load_model",
    "predict",
    "read_clip",
    "two_stream",
    "wrap",
    "wrap_scorer",
]

draw = render.draw
__version__ = "0.1.0"
del store, video
