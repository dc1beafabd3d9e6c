"""Tokens that stand for tubes of pixels: where they look, and which clips a network of them takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from tubelens.errors import InputError
from tubelens.layout import Layout
from tubelens.zoo.recipe import Pack


@dataclass(frozen=True)
class Tokens:
    """The layout of tokens that stand for tubes of pixels, for a clip of any size.

    Attributes:
        tube: frames, rows and columns of one token, on the clip as the network is fed it.
        pattern: of the output; the order inside brackets is that of the tokens.
        prefix: class tokens before them.
        rotate: degrees counter-clockwise by which the clip is turned before it is fed.
    """

    tube: tuple[int, int, int]
    pattern: str = "b (t h w) c"
    prefix: int = 0
    rotate: int = 0

    def __call__(self, clip: tuple[int, int, int]) -> Layout:
        """The layout for a clip of so many frames, rows and columns."""
        turns = self.rotate // 90 % 4
        frames, height, width = clip
        # the axes of the clip that the fed rows and columns run along, and whether backwards
        names, fed = ("wh", (width, height)) if turns % 2 else ("hw", (height, width))
        backwards = (turns in (1, 2), turns in (2, 3))
        centres = {"t": _spaced(frames, self.tube[0])}
        for name, extent, step, back in zip(names, fed, self.tube[1:], backwards, strict=True):
            along = _spaced(extent, step)
            centres[name] = tuple(extent - 1 - x for x in along) if back else along
        pattern = self.pattern.translate(str.maketrans("hw", names))
        return Layout(pattern, {name: len(c) for name, c in centres.items()}, self.prefix, centres)


def _spaced(extent: int, step: int) -> tuple[float, ...]:
    """Centres of patches that lie side by side; what is left over at the end is not read."""
    return tuple(i * step + (step - 1) / 2 for i in range(extent // step))


@dataclass(frozen=True)
class Fitting:
    """A `Pack` that refuses clips of a size that the network does not take, or only seems to take.

    TimeSformer and V-JEPA 2 run on other sizes too, and mix their tokens up: one sorts them by the number of
    frames in its config, the other counts rows and columns by the size in it.

    Attributes:
        pack: what the clips then go through.
        who: for the message.
        frames: exactly these, or a multiple of them where `longer`.
        size: height and width as fed.
        patch: height and width.
        longer, other: whether it takes other numbers of frames, other sizes.
    """

    pack: Pack
    who: str
    frames: int
    size: tuple[int, int]
    patch: tuple[int, int]
    longer: bool = False
    other: bool = False

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> Tensor:
        """The network's input, `(b, t, c, h, w)`.

        Raises:
            InputError: it does not take clips of this size.
        """
        fed: Tensor = self.pack(clips)
        t, (h, w) = fed.shape[1], fed.shape[3:]
        right = t % self.frames == 0 if self.longer else t == self.frames
        if not right or not self._takes((h, w)):
            count = f"{'a multiple of ' if self.longer else ''}{self.frames}"
            raise InputError(
                f"{self.who} takes clips of {count} frames of {self.size[0]} x {self.size[1]} pixels, not of"
                f" {t} frames of {h} x {w}"
            )
        return fed

    def _takes(self, size: tuple[int, int]) -> bool:
        if size == self.size or not self.other:
            return size == self.size
        rows, columns = (n // p for n, p in zip(size, self.patch, strict=True))
        known = tuple(n // p for n, p in zip(self.size, self.patch, strict=True))
        # positions are interpolated where there are more or fewer of them, and only there
        return (rows, columns) == known or rows * columns != known[0] * known[1]

    def frozen(self, clips: Float[Tensor, "b c t h w"]) -> Fitting:
        """With the statistics of these intact clips, where `pack` takes any."""
        return replace(self, pack=self.pack.frozen(clips))
