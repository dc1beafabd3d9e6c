"""The video transformers of `transformers`, as far as the methods need to know them: where their tokens look,
how their attention is composed, and what they are fed.

VideoMAE (Tong et al., NeurIPS 2022), TimeSformer (Bertasius et al., ICML 2021), ViViT (Arnab et al.,
ICCV 2021), V-JEPA 2 (Assran et al., 2025). Nothing here imports the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tubelens.errors import CheckpointError
from tubelens.model import Attention, InputSpec, LayoutOf
from tubelens.zoo.recipe import Pack
from tubelens.zoo.tubelets import Fitting, Tokens

AXES = "b t c h w"
SPANNING = 174  # classes of Something-Something, whose clips span the video; those of Kinetics have a stride
Readout = Literal["mean", "class", "first", "pooler"]
TUBES: Mapping[Readout, str] = {
    "mean": "the head normalises the mean of the tokens (a LayerNorm) before its linear layer",
    "class": "the head reads the class token, not a mean over cells",
    "first": "the head reads the first token alone, not a mean over cells",
    "pooler": "the head pools the tokens by attention, not by their mean",
}


@dataclass(frozen=True)
class Network:
    """What of a config the methods need.

    Attributes:
        frames, size: of the clip.
        tube: frames, rows and columns of a token.
        blocks: how many.
        readout: what the head reads.
        divided: whether attention along time and within frames take turns.
        pooler: self-attention blocks of the attentive pooler.
        channels: of the clip.
    """

    frames: int
    size: tuple[int, int]
    tube: tuple[int, int, int]
    blocks: int
    readout: Readout
    divided: bool = False
    pooler: int = 0
    channels: int = 3


@dataclass(frozen=True)
class Family:
    """One of the architectures.

    Attributes:
        name: its `model_type` in a config.
        prefix: of its classes in the package.
        source: the paper.
        blocks, embeddings, norm: names of the list of blocks, of what makes the tokens, of the last norm.
        inner: the module in a block that computes attention between tokens (of a frame).
        order: of the tokens.
        stride: from one frame to the next, as in the paper, by the number of frames; at 0 for all others.
        views: clips and crops that the paper tests with.
        read: a config -> what the methods need of it.
        network: of the published classifiers.
        parameters, classes: likewise.
        changed: what their config says other than the default.
        processor: what its processor does where a config does not say, in the words of its config.
        published: what the processors of the published classifiers say beyond that.
        longer, other: whether it takes other numbers of frames, other sizes.
    """

    name: str
    prefix: str
    source: str
    blocks: str
    embeddings: str
    norm: str
    inner: str
    order: str
    stride: Mapping[int, int]
    views: tuple[int, int]
    read: Callable[[Any], Network]
    network: Network
    parameters: int
    classes: int
    processor: Mapping[str, Any]
    published: Mapping[str, Any]
    changed: Mapping[str, int] | None = None
    longer: bool = False
    other: bool = False

    def tokens(self, network: Network, rotate: int = 0) -> Tokens:
        """Layout of the tokens between blocks."""
        return Tokens(network.tube, f"b ({self.order}) c", int(network.readout == "class"), rotate)

    def layouts(self, network: Network, rotate: int = 0) -> dict[str, LayoutOf]:
        """Of the blocks, of what comes before and after them, and of the norms beside a class token."""
        tokens = self.tokens(network, rotate)
        within = replace(tokens, pattern="(b t) (h w) c") if network.divided else tokens
        found: dict[str, LayoutOf] = {self.embeddings: tokens}
        for i in range(network.blocks):
            found[f"{self.blocks}.{i}"] = tokens
            if network.readout == "class":  # elsewhere they are found by following the forward
                found[f"{self.blocks}.{i}.layernorm_before"] = within
                found[f"{self.blocks}.{i}.layernorm_after"] = tokens
        return found | ({self.norm: tokens} if self.norm else {})

    def layer(self, network: Network) -> str:
        """The layer that is explained by default: the last that the head reads as a whole."""
        whole = network.readout in ("mean", "pooler")
        late = network.blocks - (1 if whole else 2)
        return f"{self.blocks}.{late}" if late >= 0 else self.embeddings

    def attention(self, network: Network, rotate: int = 0) -> Attention | None:
        """How attention is composed; None where it is one token of the grid that the head reads."""
        if network.readout == "first":
            return None
        names = (f"temporal_{self.inner}", self.inner) if network.divided else (self.inner,)
        blocks = [f"{self.blocks}.{i}.{name}" for i in range(network.blocks) for name in names]
        if network.readout == "pooler":
            blocks += [f"pooler.self_attention_layers.{i}.self_attn" for i in range(network.pooler)]
            blocks.append("pooler.cross_attention_layer.cross_attn")
        kind: Literal["joint", "divided"] = "divided" if network.divided else "joint"
        return Attention(tuple(blocks), kind, network.readout, self.tokens(network, rotate))

    def fitting(self, network: Network, pack: Pack) -> Fitting:
        """The `pack` that refuses sizes that the network does not take."""
        frames = network.tube[0] if self.longer else network.frames
        return Fitting(pack, self.name, frames, network.size, network.tube[1:], self.longer, self.other)

    def says(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All that a processor config says; one architecture may use the processor of another."""
        types = ("video_processor_type", "image_processor_type", "feature_extractor_type")
        kind = next((str(given[key]) for key in types if given.get(key)), self.prefix).lower()
        owner = next((f for f in FAMILIES.values() if kind.startswith(f.prefix.lower())), self)
        says = {**owner.processor, **given}
        if owner.name != "vivit" or "video_processor_type" in given:  # its older processor could be told
            says["offset"] = owner.name == "vivit"
        if owner.name == "vjepa2":  # its processor sets the size by the crop, whatever its config says
            says["size"] = int(pair(says["crop_size"])[0] * 256 / 224)
        return says

    def input(self, network: Network, given: Mapping[str, Any], classes: int) -> tuple[InputSpec, Pack]:
        """Which pixels of a video make a clip, and what is done to them.

        Args:
            network: what it takes.
            given: a checkpoint's processor config; what it leaves out is its class's.
            classes: how many; they tell the data set, and that which frames are taken.

        Raises:
            CheckpointError: another number of means than of channels.
        """
        says = self.says(given)
        named = {1: ("Y",), 3: ("R", "G", "B")}
        uniform = self.name in ("videomae", "timesformer") and classes == SPANNING
        spec = InputSpec(
            network.frames,
            network.size,
            _resize(says, network.size),
            stride=self.stride.get(network.frames, self.stride[0]),
            bands=named.get(network.channels, tuple(f"b{i}" for i in range(network.channels))),
            sampling="uniform" if uniform else "dense",
            views=(2, 3) if uniform and self.name == "videomae" else self.views,
        )
        scale = 255 * (says["rescale_factor"] if says["do_rescale"] else 1.0)
        scale = 1.0 if abs(scale - 1) < 1e-9 else scale  # 1/255 is rounded on its way through JSON
        shift = 1.0 if says["offset"] and says["do_rescale"] else 0.0
        mean, std = 0.0, 1.0
        if says["do_normalize"]:
            mean, std = says["image_mean"], says["image_std"]
        means, stds = (_per_channel(value, network.channels) for value in (mean, std))
        return spec, Pack(tuple(m + shift for m in means), stds, scale, AXES)


def _resize(says: Mapping[str, Any], size: tuple[int, int]) -> int | tuple[int, int] | None:
    """The short side, or height and width, before the crop; scaled where the network's crop is another."""
    if not says["do_resize"]:
        return None
    if not says["do_center_crop"]:
        return size
    crop, before = pair(says["crop_size"]), says["size"]
    if isinstance(before, Mapping) and "height" in before:
        return before["height"] * size[0] // crop[0], before["width"] * size[1] // crop[1]
    short = before["shortest_edge"] if isinstance(before, Mapping) else int(before)
    return int(short * min(size) // min(crop))


def pair(size: Any) -> tuple[int, int]:
    """Height and width, from one number, two, or a mapping."""
    if isinstance(size, Mapping):
        size = (size["height"], size["width"]) if "height" in size else size["shortest_edge"]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _per_channel(value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    values = (float(value),) * channels if isinstance(value, int | float) else tuple(map(float, value))
    if len(values) != channels:
        raise CheckpointError(f"its processor has {len(values)} means, the network {channels} channels")
    return values


def _videomae(config: Any) -> Network:
    return Network(
        config.num_frames,
        pair(config.image_size),
        (int(config.tubelet_size), *pair(config.patch_size)),
        config.num_hidden_layers,
        "mean" if config.use_mean_pooling else "first",
        channels=config.num_channels,
    )


def _timesformer(config: Any) -> Network:
    if config.attention_type == "space_only":
        raise CheckpointError("a TimeSformer with space_only attention scores frames, not clips")
    return Network(
        config.num_frames,
        pair(config.image_size),
        (1, *pair(config.patch_size)),
        config.num_hidden_layers,
        "class",
        divided=config.attention_type == "divided_space_time",
        channels=config.num_channels,
    )


def _vivit(config: Any) -> Network:
    t, h, w = config.tubelet_size
    size, blocks = pair(config.image_size), config.num_hidden_layers
    return Network(config.num_frames, size, (t, h, w), blocks, "class", channels=config.num_channels)


def _vjepa2(config: Any) -> Network:
    return Network(
        config.frames_per_clip,
        pair(config.crop_size),
        (config.tubelet_size, *pair(config.patch_size)),
        config.num_hidden_layers,
        "pooler",
        pooler=config.num_pooler_layers,
        channels=config.in_chans,
    )


_IMAGENET: dict[str, Any] = {
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "rescale_factor": 1 / 255,
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
}
_HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}

VIDEOMAE = Family(
    "videomae",
    "VideoMAE",
    "Tong et al., VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video"
    " Pre-Training, NeurIPS 2022",
    "videomae.encoder.layer",
    "videomae.embeddings",
    "",
    "attention.attention",
    "t h w",
    {0: 4},
    (5, 3),
    _videomae,
    Network(16, (224, 224), (2, 16, 16), 12, "mean"),
    parameters=86_534_800,
    classes=400,
    processor=_IMAGENET | _HALF,
    published={"image_mean": _IMAGENET["image_mean"], "image_std": _IMAGENET["image_std"]},
)
TIMESFORMER = Family(
    "timesformer",
    "Timesformer",
    "Bertasius et al., Is Space-Time Attention All You Need for Video Understanding?, ICML 2021",
    "timesformer.encoder.layer",
    "timesformer.embeddings",
    "timesformer.layernorm",
    "attention.attention",
    "h w t",
    {0: 32, 8: 32, 16: 16, 96: 4},
    (1, 3),
    _timesformer,
    Network(8, (224, 224), (1, 16, 16), 12, "class", divided=True),
    parameters=121_566_352,
    classes=400,
    processor=_IMAGENET,
    published={"image_mean": 0.45, "image_std": 0.225},
    other=True,
)
VIVIT = Family(
    "vivit",
    "Vivit",
    "Arnab et al., ViViT: A Video Vision Transformer, ICCV 2021",
    "vivit.layers",
    "vivit.embeddings",
    "vivit.layernorm",
    "attention",
    "t h w",
    {0: 2},
    (4, 3),
    _vivit,
    Network(32, (224, 224), (2, 16, 16), 12, "class"),
    parameters=88_954_000,
    classes=400,
    processor=_IMAGENET
    | _HALF
    | {"size": {"shortest_edge": 256}, "rescale_factor": 1 / 127.5, "offset": True},
    published={"size": {"shortest_edge": 224}},
)
VJEPA2 = Family(
    "vjepa2",
    "VJEPA2",
    "Assran et al., V-JEPA 2: Self-Supervised Video Models Enable Understanding, Prediction and Planning,"
    " 2025",
    "vjepa2.encoder.layer",
    "vjepa2.encoder.embeddings",
    "vjepa2.encoder.layernorm",
    "attention",
    "t h w",
    {0: 4},
    (2, 3),
    _vjepa2,
    Network(16, (256, 256), (2, 16, 16), 24, "pooler", pooler=3),
    parameters=353_399_982,
    classes=174,
    processor=_IMAGENET | {"size": {"shortest_edge": 292}, "crop_size": {"height": 256, "width": 256}},
    published={},
    changed={"frames_per_clip": 16},
    longer=True,
)
FAMILIES = {family.name: family for family in (VIDEOMAE, TIMESFORMER, VIVIT, VJEPA2)}
