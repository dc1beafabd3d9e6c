"""VideoMAE, TimeSformer, ViViT and V-JEPA 2 as `transformers` publishes them; needs the extra `hf`.

Frames, size and labels come from a checkpoint's config, mean, standard deviation and resizing from its
processor, the stride from the paper. Clips are taken densely, at the stride of Kinetics training; by VideoMAE
and TimeSformer trained on Something-Something uniformly, over the whole video.

Where the head reads the mean of the tokens, or pools them by attention, the last block's output is explained.
Where it reads a class token, that is the output of the block before: what patch tokens tell the class token
they tell it inside the last block, and what they are after it reaches no score.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tubelens.errors import CheckpointError, OptionError
from tubelens.model import InputSpec, TorchModel
from tubelens.zoo.checkpoint import read_checkpoint
from tubelens.zoo.extras import need
from tubelens.zoo.form import Input
from tubelens.zoo.recipe import Pack, Recipe, Style
from tubelens.zoo.transformers_networks import AXES, FAMILIES, TUBES, Family, pair

EXTRA, HUB = "hf", "hf:"
NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
BILINEAR = 2
LISTED = 4
PICKLED = "pytorch_model.bin"
CODE = (
    "it would run code that is in their file; if you trust where it comes from, give that file as the"
    " weights, with --trust (trust=True)"
)
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".tar", ".ckpt", ".pkl")  # of files of weights


def load(
    name: str | Path,
    weights: str | Path | None = None,
    *,
    input: Input | None = None,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    device: str = "cpu",
    family: str | None = None,
    trust: bool = False,
) -> TorchModel:
    """A classifier that was saved by `transformers`.

    Args:
        name: a folder with `config.json`, or `hf:OWNER/NAME`, taken from the local cache or downloaded.
        weights: None: the checkpoint's own; `"random"`: its architecture, seeded; or a file of weights.
        input: what of the input shall be other than the checkpoint says: fields that are given replace its
            own, those of the normalisation (mean, std, scale, zscore) together.
        seed: of random weights; the global generator is left alone.
        labels: names of the classes, in place of the checkpoint's.
        device: where the network is put.
        family: the architecture that it has to be.
        trust: unpickle weights even where that runs code that is in their file.

    Raises:
        OptionError: the extra is not installed, or an `input` that such a network cannot have.
        CheckpointError: it cannot be had or read, is of another architecture, or has no classifier.
    """
    source = _source(name)
    with _quiet(str(name)) as library:
        config, found = _config(library, source, str(name), family)
        network = found.read(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module, notes = _module(library, found, source, str(name), config, weights, trust)
        given, more = _processor(found, source, str(name))
    spec, pack = found.input(network, given, config.num_labels)
    if given and pair(found.says(given)["crop_size"]) != network.size:
        more.append(f"its processor crops to another size than {network.size[0]} x {network.size[1]}")
    if input is not None:
        spec, pack = _told(input, spec, pack)
    own = str(name) if weights is None else f"{name}, {weights}"
    origin = f"{own} (seed {seed})" if weights == "random" else own
    return TorchModel(
        module=module.eval().to(device),
        pack=found.fitting(network, pack),
        unpack=logits,
        spec=spec,
        output=(input and input.output) or "logits",
        labels=labels if labels is not None else _labels(config),
        layer=found.layer(network),
        layouts=found.layouts(network, pack.rotate),
        attention=found.attention(network, pack.rotate),
        tubes=TUBES[network.readout],
        name=found.name,
        weights="; ".join([origin, *notes, *more]),
        verified="random" if weights == "random" else "",
    )


def logits(out: Any) -> Tensor:
    """The scores out of what a classifier returns."""
    scores: Tensor = out.logits if hasattr(out, "logits") else out[0]
    return scores


def _source(name: str | Path) -> str:
    """What `transformers` is given: a folder, or OWNER/NAME."""
    text = str(name).removeprefix(HUB)
    if (Path(text) / "config.json").is_file():
        return text
    if Path(text).is_dir():
        raise CheckpointError(f"{text}: a folder without config.json is no checkpoint of transformers")
    if not _is_hub(text):
        raise CheckpointError(f"{name}: neither a folder with config.json nor {HUB}OWNER/NAME")
    return text


def _is_hub(text: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None


@contextmanager
def _quiet(who: str) -> Iterator[Any]:
    """The package; it warns of nothing, draws no bars and converts no one's files. Afterwards all as before.

    Raises:
        OptionError: it is not installed.
    """
    before = os.environ.get(NO_CONVERSION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = need("transformers", EXTRA, who)
        log = library.utils.logging
        verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity(log.CRITICAL)
        log.disable_progress_bar()
        os.environ[NO_CONVERSION] = "1"
        try:
            yield library
        finally:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
            if before is None:
                del os.environ[NO_CONVERSION]
            else:
                os.environ[NO_CONVERSION] = before


def _config(library: Any, source: str, name: str, family: str | None) -> tuple[Any, Family]:
    try:
        kind = library.PreTrainedConfig.get_config_dict(source)[0].get("model_type")
        found = FAMILIES.get(kind)
        if found is not None and family in (None, kind):
            return getattr(library, f"{found.prefix}Config").from_pretrained(source), found
    except Exception as error:  # of the network, of the hub, of JSON, of a config that is none
        raise CheckpointError(f"{name}: cannot be had: {_line(error)}") from error
    wanted = f"a {family}" if family else f"one of the video classifiers known here: {', '.join(FAMILIES)}"
    raise CheckpointError(f"{name}: is a {kind}, not {wanted}")


def _module(
    library: Any,
    family: Family,
    source: str,
    name: str,
    config: Any,
    weights: str | Path | None,
    trust: bool,
) -> tuple[nn.Module, list[str]]:
    """The network, and what there is to say of its weights."""
    maker = getattr(library, f"{family.prefix}ForVideoClassification")
    if weights == "random":
        return _without_predictor(maker(config)), []
    pickled = Path(source) / PICKLED
    if weights is None and trust and pickled.is_file() and not any(pickled.parent.glob("*.safetensors")):
        weights = pickled  # the package itself unpickles no code
    state = None if weights is None else read_checkpoint(weights, trust)
    try:
        module, info = maker.from_pretrained(
            source if state is None else None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed below
            weights_only=True,
        )
    except Exception as error:  # whatever is wrong with a file
        said = CODE if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error) else _line(error)
        raise CheckpointError(f"{name}: the weights cannot be loaded: {said}") from error
    missing = sorted(key for key in info["missing_keys"] if ".predictor." not in key)
    shapes = sorted(f"{key} {tuple(a)} instead of {tuple(b)}" for key, a, b in info["mismatched_keys"])
    wrong = {"missing": missing, "of another shape": shapes, "unreadable": list(info.get("error_msgs", ()))}
    faults = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in wrong.items() if keys]
    if faults:
        raise CheckpointError(
            f"{name}: these are not weights of a {family.name} classifier: {'; '.join(faults)}"
        )
    unused = sorted(info["unexpected_keys"])
    return _without_predictor(module), [f"{len(unused)} tensors not used: {_some(unused)}"] if unused else []


def _without_predictor(module: nn.Module) -> nn.Module:
    """V-JEPA 2 less what predicts masked tokens in pre-training; no classifier runs it."""
    base = getattr(module, "vjepa2", None)
    if base is not None:
        del base.predictor
    return module


def _processor(family: Family, source: str, name: str) -> tuple[Mapping[str, Any], list[str]]:
    """What the checkpoint's processor does, and what there is to say of it."""
    utilities = need("transformers.video_processing_utils", EXTRA, name)
    try:
        given: dict[str, Any] = utilities.BaseVideoProcessor.get_video_processor_dict(source)[0]
    except Exception:  # there is none, or none to be had
        return {}, [f"no processor config: normalised by the default of {family.name}"]
    known = {key: value for key, value in given.items() if value is not None}
    if known.get("resample", BILINEAR) != BILINEAR:
        return known, ["resized bilinearly, by its own processor otherwise"]
    return known, []


def _told(input: Input, spec: InputSpec, pack: Pack) -> tuple[InputSpec, Pack]:
    """With what the user says of the input."""
    said, theirs = input.given, input.spec()
    if "axes" in said and input.axes != AXES:
        raise OptionError(f"networks of transformers are fed {AXES!r}, not {input.axes!r}")
    taken = said & {f.name for f in fields(InputSpec)}
    taken |= {"resize"} if "size" in taken else frozenset()
    spec = replace(spec, **{key: getattr(theirs, key) for key in taken})
    if said & {"mean", "std", "scale", "zscore"}:
        pack = replace(input.pack(), axes=AXES)
    return spec, replace(pack, rotate=input.rotate)


def _labels(config: Any) -> list[str] | None:
    """Names of the classes, if the checkpoint has more than numbers for them."""
    names = [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels)]
    return None if all(label == f"LABEL_{i}" for i, label in enumerate(names)) else names


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:LISTED]) + (", ..." if len(keys) > LISTED else "")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def build(name: str, classes: int) -> nn.Module:
    """One of the four in its published size, randomly initialised.

    Raises:
        OptionError: the extra is not installed.
    """
    family = FAMILIES[name]
    with _quiet(name) as library:
        config = getattr(library, f"{family.prefix}Config")(num_labels=classes, **(family.changed or {}))
        module: nn.Module = getattr(library, f"{family.prefix}ForVideoClassification")(config)
    return _without_predictor(module)


UNUSED = r"\.predictor\.|^vivit\.pooler\."
OLDER = (  # names in files of transformers before 5, and now
    (r"(videomae\..*\.attention)\.q_bias$", r"\1.query.bias"),
    (r"(videomae\..*\.attention)\.v_bias$", r"\1.value.bias"),
    (r"^vivit\.encoder\.layer\.", "vivit.layers."),
    (r"^(vivit\.layers\.\d+\.attention)\.attention\.([qkv])[a-z]+\.", r"\1.\2_proj."),
    (r"^(vivit\.layers\.\d+\.attention)\.output\.dense\.", r"\1.o_proj."),
    (r"^(vivit\.layers\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(vivit\.layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)


def _is_older(state: Mapping[str, Tensor]) -> bool:
    return any(re.search(pattern, key) for key in state for pattern in (UNUSED, *(old for old, _ in OLDER)))


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for old, now in OLDER:
            key = re.sub(old, now, key)
        if not re.search(UNUSED, key):
            renamed[key] = value
    return renamed


def is_checkpoint(weights: str | Path) -> bool:
    """Whether this names what `load` takes, and not a file of weights."""
    text, path = str(weights), Path(weights)
    if text.startswith(HUB) or path.is_dir():
        return True
    as_file = path.is_file() or path.suffix.lower() in SUFFIXES or path.parent.is_dir()
    return not as_file and _is_hub(text)


def checkpoint(family: str, weights: str | Path, **options: Any) -> TorchModel | None:
    """The model of a folder or hub name that is given as weights; None for a file of weights."""
    return load(weights, family=family, **options) if is_checkpoint(weights) else None


def _recipe(family: Family) -> Recipe:
    network = family.network
    spec, pack = family.input(network, family.published, family.classes)
    return Recipe(
        family.name,
        partial(build, family.name),
        spec,
        family.fitting(network, pack),
        layer=family.layer(network),
        head="classifier.weight",
        source=family.source,
        parameters=family.parameters,
        classes=family.classes,
        styles=(Style("before transformers 5, or with parts that no classifier runs", _is_older, _renamed),),
        unpack=logits,
        layouts=family.layouts(network),
        extra=EXTRA,
        tubes=TUBES[network.readout],
        attention=family.attention(network),
        checkpoint=partial(checkpoint, family.name),
    )


RECIPES = tuple(map(_recipe, FAMILIES.values()))
