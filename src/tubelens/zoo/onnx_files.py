"""Networks in ONNX files, run by onnxruntime (the extra `onnx`): black boxes, for methods that need no more
than scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tubelens.errors import CheckpointError, InputError, OptionError
from tubelens.model import BlackBox
from tubelens.zoo.extras import need
from tubelens.zoo.form import Fed, Input, kind_of

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
BANDS = {1: ("Y",), 3: ("R", "G", "B")}
ORDERS = ("b c t h w", "b t c h w", "b t h w c")
Dimension = int | str | None


@dataclass(frozen=True)
class Session:
    """An ONNX network as a function of one array.

    Attributes:
        run: the session's `run`.
        input: name of the input.
        dtype: of the input.
        output: name of the output that is read.
        batch: clips that it takes at once, None: any number.
        takes: its dimensions, for messages.
    """

    run: Any
    input: str
    dtype: Any
    output: str
    batch: int | None
    takes: str

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Scores `(b, k)`, clips being fed as many at a time as the network takes; bytes are rounded to.

        Raises:
            InputError: the network does not take clips of this size, or gives no row of scores a clip.
        """
        if np.issubdtype(self.dtype, np.integer):
            clips = np.rint(clips).clip(0, 255)
        fed = clips.astype(self.dtype)
        if self.batch is None:
            return self._scores(fed)
        if self.batch != 1:
            raise InputError(f"the network takes batches of {self.batch} clips only: export it with batch 1")
        return np.concatenate([self._scores(one[None]) for one in fed])

    def _scores(self, fed: np.ndarray) -> np.ndarray:
        try:
            (scores,) = self.run([self.output], {self.input: fed})
        except Exception as error:  # of onnxruntime's own kinds
            shape = "x".join(map(str, fed.shape))
            said = str(error).strip().splitlines()[0][:200]
            raise InputError(f"it takes {self.takes}, not {shape} ({said})") from error
        shape, n = np.shape(scores), len(fed)
        if shape[:1] != (n,) or any(side != 1 for side in shape[2:]):
            given = "x".join(map(str, shape)) or "one number"
            raise InputError(
                f"its output {self.output!r} is {given} for {n} clip(s), not one row of scores a clip: wrap"
                " it in a function with tubelens.wrap_scorer"
            )
        return np.asarray(scores, dtype=np.float32).reshape(n, -1)


def load(
    name: str | Path,
    weights: Any = None,
    *,
    input: Input | None = None,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    device: str = "cpu",
) -> BlackBox:
    """The network in an ONNX file.

    Args:
        name: the file.
        weights: must be None: an ONNX file holds its own.
        input: what it is fed; where None, size and order of dimensions are read off the file, and pixels are
            fed as they are, in [0, 1].
        seed: without meaning here.
        labels: names of the classes.
        device: `cpu`, or `cuda` where onnxruntime has it.

    Raises:
        OptionError: the extra or the device is missing, weights are given, or the file does not tell what it
            is fed.
        CheckpointError: no such file, or not an ONNX network.
        InputError: it takes another size than `input` says.
    """
    path = Path(name)
    if weights not in (None, "random"):
        raise OptionError(f"{path}: an ONNX file holds its own weights: leave the weights out")
    ort = need("onnxruntime", "onnx", path.name)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    kind, _, number = device.partition(":")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(kind)
    if provider not in ort.get_available_providers():
        raise OptionError(f"onnxruntime has no {kind} here: use the cpu")
    where = {"device_id": int(number or 0)} if kind == "cuda" else {}
    try:
        session = ort.InferenceSession(str(path), providers=[(provider, where)])
    except Exception as error:  # of onnxruntime's own kinds
        raise CheckpointError(
            f"{path}: cannot be read as an ONNX network: {str(error).splitlines()[0][:160]}"
        ) from error
    given, shape = _clip_input(session, path)
    fed = _fed(shape, path, input)
    takes = "x".join(str(n) if isinstance(n, int) else "?" for n in shape)
    if given.type not in TYPES:
        raise InputError(f"{path}: its input is {given.type}, which is not fed pixels")
    if given.type == "tensor(uint8)" and "scale" not in fed.given:
        fed = replace(fed, scale=255.0)
    output = _score_output(session, path)
    first = shape[0] if isinstance(shape[0], int) else None
    run = Session(session.run, given.name, TYPES[given.type], output, first, takes)
    black = torch.zeros(2, len(tuple(fed.bands)), fed.frames, *fed.spec().size)
    score = Fed(run, fed.pack(), numpy=True)
    model = BlackBox(score, fed.spec(), fed.output or "logits", labels, path.stem, str(path))
    noise = torch.rand(black.shape, generator=torch.Generator().manual_seed(0))
    scores = model(noise)
    return replace(model, output=fed.output or kind_of(scores))


def _clip_input(session: Any, path: Path) -> tuple[Any, list[Dimension]]:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise InputError(
            f"{path}: it has {len(inputs)} inputs ({names}), and a clip is one: wrap it in a function with"
            " tubelens.wrap_scorer"
        )
    return inputs[0], list(inputs[0].shape)


def _score_output(session: Any, path: Path) -> str:
    """The output that holds a row of scores a clip: one with two dimensions, or with ones after them."""
    outputs = session.get_outputs()
    if not outputs:
        raise InputError(f"{path}: it has no output")
    flat = [o for o in outputs if len(o.shape or ()) >= 2 and all(side == 1 for side in o.shape[2:])]
    name: str = min(flat, key=lambda o: len(o.shape)).name if flat else outputs[0].name
    return name


def _fed(shape: Sequence[Dimension], path: Path, given: Input | None) -> Input:
    """What the file tells, and over it what was named; where the order is named, nothing but that."""
    if given is None:
        return _read_off(shape, path)
    try:
        told = _read_off(shape, path)
    except OptionError:
        return given
    return given if "axes" in given.given else given.over(told)


def _read_off(shape: Sequence[Dimension], path: Path) -> Input:
    """Frames, size and order of dimensions from the input's shape, where it tells them.

    Raises:
        OptionError: it does not.
    """
    asked = (
        f"{path}: its input is {'x'.join(str(n) if isinstance(n, int) else '?' for n in shape)}, which does"
        " not tell what it is fed: say so with --input, as in --input 'frames=16, size=112, axes=b c t h w'"
    )
    if len(shape) != 5:
        raise OptionError(asked)
    fits = []
    for order in ORDERS:
        sizes = dict(zip(order.split(), shape, strict=True))
        if sizes["c"] in BANDS and all(isinstance(sizes[axis], int) for axis in "thw"):
            fits.append((order, sizes))
    if len(fits) != 1:
        raise OptionError(asked)
    order, sizes = fits[0]
    frames, height, width, bands = (int(sizes[axis] or 0) for axis in "thwc")
    return Input(frames=frames, size=(height, width), axes=order, bands=BANDS[bands])
