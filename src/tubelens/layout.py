"""From a layer's output to a grid that knows where in the clip each cell looks.

A `Layout` is an einops pattern (which dimension of the output is time, height, width) plus, per axis, the
input coordinate of every cell's centre. Coordinates count clip frames and clip pixels, a pixel's centre being
a whole number: in a network of total stride 16 and symmetric padding, cell `i` looks at pixel `16 i`, and
not, as an endpoint-aligned zoom assumes, at `i (111 / 6)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from einops import EinopsError, rearrange
from jaxtyping import Float
from torch import Tensor

from tubelens.errors import LayerError

Centres = tuple[float, ...]


@dataclass(frozen=True)
class Layout:
    """How a layer's output is laid out.

    Attributes:
        pattern: einops names of the output's dimensions, out of b, c, t, h, w and 1: `"b c t h w"` for a 3-D
            CNN, `"(b t) c h w"` for a 2-D network over frames, `"b (t h w) c"` for tokens. The order inside
            brackets matters: `(t h w)` and `(h w t)` have equal shapes and different content.
        sizes: sizes that the pattern alone does not tell, such as `{"t": 8, "h": 14}`.
        prefix: tokens before the grid's (a class token), skipped along the dimension of the grid.
        centres: per axis name the input coordinate of every cell's centre; axes that are absent are taken
            to tile the input evenly.
    """

    pattern: str = "b c t h w"
    sizes: Mapping[str, int] = field(default_factory=dict)
    prefix: int = 0
    centres: Mapping[str, Centres] = field(default_factory=dict)

    def to_grid(self, output: Tensor) -> Float[Tensor, "b c t h w"]:
        """The output as `(b, c, t, h, w)`; a view where possible, differentiable.

        Raises:
            LayerError: the output does not fit the pattern.
        """
        try:
            cells = output[:, self.prefix :] if self.prefix else output
            grid: Tensor = rearrange(cells, f"{self.pattern} -> b c t h w", **self.sizes)
        except (EinopsError, IndexError) as error:
            raise LayerError(
                f"a layer's output of shape {tuple(output.shape)} does not fit the layout {self.pattern!r}"
                f" with sizes {dict(self.sizes)} and {self.prefix} leading tokens"
            ) from error
        return grid

    def from_grid(self, grid: Float[Tensor, "b c t h w"]) -> Tensor:
        """The inverse of `to_grid`, for layouts without leading tokens."""
        output: Tensor = rearrange(grid, f"b c t h w -> {self.pattern}")
        return output

    def place(self, axis: str, cells: int, extent: int) -> Centres:
        """Centres of the `cells` along one axis of an input of `extent`; even tiling where not recorded."""
        known = self.centres.get(axis)
        if known is not None and len(known) == cells:
            return known
        return tiled(cells, extent)

    def grid(self, values: Float[Tensor, "t h w"], clip: tuple[int, int, int]) -> Grid:
        """A map over the cells, placed where they look in a clip of so many frames, rows and columns."""
        sizes = zip("thw", values.shape, clip, strict=True)
        t, y, x = (self.place(axis, cells, extent) for axis, cells, extent in sizes)
        return Grid(values.detach(), t, y, x, (0, clip[0]))


def tiled(cells: int, extent: int) -> Centres:
    """Centres of `cells` equal patches that tile `extent` pixels: `(i + 1/2) extent / cells - 1/2`."""
    return tuple((i + 0.5) * extent / cells - 0.5 for i in range(cells))


@dataclass(frozen=True, eq=False)
class Grid:
    """A map at a layer's native resolution, and where its cells look.

    Attributes:
        values: signed, unnormalised.
        t: clip frame that each time cell looks at; `y`, `x`: clip pixel, likewise.
        span: first clip frame that this grid speaks for, and the one after its last.
        weight: its share where several grids cover the same place.
        area: the part of the clip that it speaks for: top, left, bottom and right in pixels; None: all.
    """

    values: Float[Tensor, "t h w"]
    t: Centres
    y: Centres
    x: Centres
    span: tuple[int, int]
    weight: float = 1.0
    area: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        axes: Sequence[Centres] = (self.t, self.y, self.x)
        if tuple(len(c) for c in axes) != tuple(self.values.shape):
            raise LayerError(
                f"a grid of shape {tuple(self.values.shape)} needs as many cell centres, "
                f"got {tuple(len(c) for c in axes)}"
            )

    def cpu(self) -> Grid:
        """The same grid with its values on the CPU."""
        return self if self.values.device.type == "cpu" else replace(self, values=self.values.cpu())

    def shifted(self, frames: int) -> Grid:
        """The same grid `frames` clip frames later."""
        start, stop = self.span
        return Grid(
            self.values,
            tuple(c + frames for c in self.t),
            self.y,
            self.x,
            (start + frames, stop + frames),
            self.weight,
            self.area,
        )
