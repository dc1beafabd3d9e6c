"""The methods by name. A method is a frozen dataclass that reads like its paper's formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tubelens.methods.ablationcam import AblationCAM
from tubelens.methods.attention import AttentionRollout, Chefer
from tubelens.methods.cam import GradCAM, GradCAMpp, HiResCAM, LayerCAM, XGradCAM
from tubelens.methods.eigen import FEM, EigenCAM
from tubelens.methods.extremal import Extremal
from tubelens.methods.gradients import InputXGradient, Saliency, SmoothGrad
from tubelens.methods.guided import Gated, GuidedBackprop, GuidedGradCAM
from tubelens.methods.integrated import IntegratedGradients
from tubelens.methods.occlusion import Occlusion
from tubelens.methods.pyramid import Pyramid
from tubelens.methods.rise import RISE
from tubelens.methods.scorecam import ScoreCAM
from tubelens.methods.selective import Selective
from tubelens.methods.sidu import SIDU
from tubelens.methods.spectrum import tells, why_not
from tubelens.methods.surrogate import LIME, KernelSHAP
from tubelens.methods.swag import SWAG
from tubelens.methods.tubes import Tubes
from tubelens.specs import Named

__all__ = [
    "FEM",
    "LIME",
    "METHODS",
    "RISE",
    "SIDU",
    "SWAG",
    "AblationCAM",
    "AttentionRollout",
    "Chefer",
    "EigenCAM",
    "Entry",
    "Extremal",
    "Gated",
    "GradCAM",
    "GradCAMpp",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "InputXGradient",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerCAM",
    "Occlusion",
    "Pyramid",
    "Saliency",
    "ScoreCAM",
    "Selective",
    "SmoothGrad",
    "Tubes",
    "XGradCAM",
    "accepts",
    "brief",
    "method",
    "name_of",
    "option_names",
    "short_name",
]


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        make: the class.
        cost: forwards F, backwards through the head only B_h, forwards and backwards through everything B;
            C channels of the layer, n, steps, windows W: the method's options; F_h a pass through the head.
        source: the paper.
    """

    make: Callable[..., Any]
    cost: str
    source: str

    @property
    def needs(self) -> str:
        """What it takes: a scorer (any black box), a network's layers, or gradients down to the pixels."""
        return str(self.make().needs)

    @property
    def spectrum(self) -> tuple[str, ...]:
        """How it can tell the bands of a clip apart (see `tubelens.methods.spectrum`); none: it cannot."""
        return tells(self.make())


METHODS: dict[str, Entry] = {
    # activations of a layer and gradients of the head
    "tubes": Entry(Tubes, "1 F + 1 B_h", "Stergiou et al., Saliency Tubes, ICIP 2019"),
    "gradcam": Entry(GradCAM, "1 F + 1 B_h", "Selvaraju et al., ICCV 2017"),
    "gradcam++": Entry(GradCAMpp, "1 F + 1 B_h", "Chattopadhyay et al., WACV 2018"),
    "xgradcam": Entry(XGradCAM, "1 F + 1 B_h", "Fu et al., BMVC 2020"),
    "hirescam": Entry(HiResCAM, "1 F + 1 B_h", "Draelos and Carin, 2020"),
    "layercam": Entry(LayerCAM, "1 F + 1 B_h", "Jiang et al., IEEE TIP 2021"),
    "eigencam": Entry(EigenCAM, "1 F", "Muhammad and Yeasin, IJCNN 2020"),
    "fem": Entry(FEM, "1 F", "Fuad et al., IPTA 2020"),
    "ablationcam": Entry(AblationCAM, "1 F + C F_h", "Desai and Ramaswamy, WACV 2020"),
    "scorecam": Entry(ScoreCAM, "(1 + C) F", "Wang et al., CVPR Workshops 2020"),
    "pyramid": Entry(Pyramid, "1 F", "Stergiou et al., Class Feature Pyramids, ICCV Workshops 2019"),
    # attention of a transformer
    "rollout": Entry(AttentionRollout, "1 F", "Abnar and Zuidema, ACL 2020"),
    "chefer": Entry(Chefer, "1 F + 1 B_h", "Chefer et al., ICCV 2021"),
    # perturbations of the clip
    "rise": Entry(RISE, "(1 + n) F", "Petsiuk et al., BMVC 2018"),
    "sidu": Entry(SIDU, "(1 + C) F", "Muddamsetty et al., ICIP 2020"),
    "occlusion": Entry(Occlusion, "(1 + W) F", "Zeiler and Fergus, ECCV 2014"),
    "extremal": Entry(Extremal, "steps B a volume", "Li et al., STEP, WACV 2021; Fong et al., ICCV 2019"),
    "lime": Entry(LIME, "(1 + n) F", "Ribeiro et al., KDD 2016"),
    "shap": Entry(KernelSHAP, "(1 + n) F", "Lundberg and Lee, NeurIPS 2017; Covert and Lee, AISTATS 2021"),
    # gradients down to the pixels
    "saliency": Entry(Saliency, "1 B", "Simonyan et al., ICLR Workshops 2014"),
    "inputxgradient": Entry(InputXGradient, "1 B", "Shrikumar et al., 2016"),
    "integrated_gradients": Entry(IntegratedGradients, "steps B", "Sundararajan et al., ICML 2017"),
    "smoothgrad": Entry(SmoothGrad, "n B", "Smilkov et al., 2017"),
    "guided_backprop": Entry(GuidedBackprop, "1 B", "Springenberg et al., ICLR Workshops 2015"),
    "guided_gradcam": Entry(GuidedGradCAM, "1 F + 1 B_h + 1 B", "Selvaraju et al., ICCV 2017"),
    "gated": Entry(Gated, "1 B", "input x gradient within the last layer's class map"),
    "swag": Entry(SWAG, "1 B", "Hartley et al., SWAG-V, WACV 2022"),
    "selective": Entry(Selective, "that of its base", "Hiley et al., selective relevance, 2019"),
}

_TABLE = {name: entry.make for name, entry in METHODS.items()}
_NAMED = Named("method", _TABLE, "methods", nested=("base",), why_not=why_not)


def method(name: str, **options: Any) -> Any:
    """The method of that name with its options, which may also stand in the name: `"rise(n=500, p=0.3)"`.

    The name is one of `METHODS`, one that another package offers (entry point `tubelens.methods`), or
    `module:Class` or `path.py:Class` of one's own.

    Raises:
        OptionError: unknown name or option.
    """
    return _NAMED.make(name, **options)


name_of, accepts, option_names = _NAMED.split, _NAMED.accepts, _NAMED.option_names


def short_name(written: str) -> str:
    """The name in the table of a method's repr (`GradCAMpp(layer=None)` is `gradcam++`)."""
    return _NAMED.short(written)


def brief(written: str) -> str:
    """A method's repr without the options that are at their defaults (`RISE(n=400)`), for titles."""
    return _NAMED.brief(written)
