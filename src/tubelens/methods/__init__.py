"""The methods by name. A method is a frozen dataclass that reads like its paper's formula."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tubelens.errors import OptionError, nearest
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
from tubelens.methods.surrogate import LIME, KernelSHAP
from tubelens.methods.swag import SWAG
from tubelens.methods.tubes import Tubes

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
    "method",
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


def method(name: str, **options: Any) -> Any:
    """The method of that name with its options, which may also stand in the name: `"rise(n=500, p=0.3)"`.

    Raises:
        OptionError: unknown name or option.
    """
    found = re.fullmatch(r"\s*([\w+-]+)\s*(?:\((.*)\))?\s*", name)
    if found is None or found[1] not in METHODS:
        known = found[1] if found else name
        if found is None and name.count("(") != name.count(")"):
            raise OptionError(f"method {name!r}: a bracket is missing: write it as in rise(n=500)")
        raise OptionError(f"unknown method {known!r}{nearest(known, METHODS)}: `tubelens methods` lists them")
    options = _options(found[1], found[2] or "") | options
    if isinstance(options.get("base"), str):
        options["base"] = method(options["base"])
    make = METHODS[found[1]].make
    known_options = option_names(found[1])
    for option in options:
        if option not in known_options:
            raise OptionError(
                f"method {found[1]!r} has no option {option!r}{nearest(option, known_options)}:"
                f" it has {', '.join(known_options) or 'none'}"
            )
    for option, value in options.items():
        if not accepts(found[1], option, value):
            allowed = " or ".join(map(str, _allowed(get_type_hints(make)[option])))
            raise OptionError(f"method {found[1]!r}: {option} must be {allowed}, not {value!r}")
    hints = get_type_hints(make)
    for option, value in options.items():
        kind = _KINDS.get(hints[option])
        if kind and (
            not isinstance(value, kind[0]) or (hints[option] is not bool and isinstance(value, bool))
        ):
            raise OptionError(f"method {found[1]!r}: {option} must be {kind[1]}, not {value!r}")
    try:
        return make(**options)
    except TypeError as error:
        raise OptionError(f"method {found[1]!r}: {error}") from error


_KINDS: dict[Any, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    bool: (bool, "true or false"),
}
_WORDS = {"true": True, "false": False, "none": None}


def accepts(name: str, option: str, value: Any) -> bool:
    """Whether the method has the option, and may have it at this value."""
    if option not in option_names(name):
        return False
    allowed = _allowed(get_type_hints(METHODS[name].make)[option])
    return not allowed or value is None or value in allowed


def _allowed(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, also where it may be None; none where any value will do."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = [part for part in get_args(hint) if part is not type(None)]
    return get_args(parts[0]) if len(parts) == 1 and get_origin(parts[0]) is Literal else ()


def option_names(name: str) -> list[str]:
    """The options of a method, by its name."""
    return [field.name for field in fields(METHODS[name].make)]  # type: ignore[arg-type]


def short_name(written: str) -> str:
    """The name in the table of a method's repr (`GradCAMpp(layer=None)` is `gradcam++`)."""
    kind = written.partition("(")[0]
    names = {getattr(entry.make, "__name__", ""): name for name, entry in METHODS.items()}
    return names.get(kind, kind)


def _options(name: str, text: str) -> dict[str, Any]:
    """`n=500, fill=blur, layer=blocks.0` as a dictionary; what is no Python value is a word."""
    found = {}
    for item in _split(text):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key.isidentifier() and equals and value):
            raise OptionError(
                f"method {name!r}: cannot read its options ({text}): write them as in rise(n=500, fill=blur)"
            )
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = method(value) if "(" in value else _WORDS.get(value.lower(), value)
    return found


def _split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    items, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return [item for item in items if item.strip()]
