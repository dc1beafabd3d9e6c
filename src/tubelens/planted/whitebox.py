"""Scorers whose parts are known exactly: what each tube of a clip is worth can be written down.

The players of a game are tubes, boxes in time, height and width. How much of tube i is there is

    z_i(x) = <x - b, x0 - b> / |x0 - b|^2    over the voxels of tube i

with x0 the intact clip and b what stands for removed: 1 on x0, 0 on b, and under a mask m that mixes the two
to `m x0 + (1 - m) b`, the mean of m over the tube (weighted by how far x0 is from b). It is linear in the
pixels, so gradients exist everywhere. The score is a polynomial of the z_i, at most linear in each.

    planted = whitebox(seed=7)           # a clip, its tubes, and a game
    planted.model()                      # a network of which all is known
    planted.game.shapley()               # what each tube is worth

Any function of what is there and what is not has one such polynomial, `f(z) = sum_S c_S prod_(i in S) z_i`,
whose coefficients are Harsanyi's dividends (1963), `c_S = sum_(R in S) (-1)^(|S| - |R|) f(R)`. Both values
are sums over them, because both are linear and the members of one product are alike:

    Shapley_i = sum_(S with i) c_S / |S|        Banzhaf_i = sum_(S with i) c_S / 2^(|S| - 1)

(Owen, "Multilinear extensions of games", 1972, for both.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor, nn

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.fill import Fill, fill
from tubelens.model import BlackBox, InputSpec, TorchModel, same
from tubelens.truth import Truth

LABELS = ("present", "absent")
"""Class 0 has the game's score, class 1 the rest."""
MOST = 16
"""Players of a game that is given as a function: all of its 2^n values are asked for."""


@dataclass(frozen=True)
class Game:
    """A score of what is there: `sum_S c_S prod_(i in S) z_i`.

    Attributes:
        players: how many tubes; those in no product are worth nothing.
        dividends: products, each the numbers of its players, and their coefficients.
        name: what it is called.
    """

    players: int
    dividends: tuple[tuple[tuple[int, ...], float], ...]
    name: str = "game"

    def __post_init__(self) -> None:
        for members, _ in self.dividends:
            if sorted(set(members)) != list(members) or (
                members and not 0 <= members[0] <= members[-1] < self.players
            ):
                raise OptionError(
                    f"a product of {self.name} has players {members}: increasing numbers from 0 to"
                    f" {self.players - 1} are wanted"
                )

    def worth(self, there: Float[Tensor, "b players"]) -> Float[Tensor, "b"]:
        """The score, differentiable; shares between 0 and 1 are taken as the polynomial has it."""
        total = there.new_zeros(len(there))
        for members, dividend in self.dividends:
            total = total + dividend * there[:, list(members)].prod(dim=1)
        return total

    def shapley(self) -> Float64[Tensor, "players"]:
        """Each player's mean contribution over all orders of arrival; they sum to f(all) - f(none)."""
        return self._shares(lambda size: 1 / size)

    def banzhaf(self, p: float = 0.5) -> Float64[Tensor, "players"]:
        """Each player's mean contribution where the others are there independently with probability p.

        One half is Banzhaf's (1965) value; `p` in general is what masks that keep a share p of the clip see.
        """
        return self._shares(lambda size: p ** (size - 1))

    def _shares(self, share: Callable[[int], float]) -> Float64[Tensor, "players"]:
        values = torch.zeros(self.players, dtype=torch.double)
        for members, dividend in self.dividends:
            values[list(members)] += dividend * share(len(members)) if members else 0.0
        return values


# ── games ────────────────────────────────────────────────────────────────────────────────────────────────


def products(terms: Iterable[tuple[Sequence[int], float]], players: int, name: str = "products") -> Game:
    """A sum of products: coefficients of groups that must be there together."""
    return Game(players, tuple((tuple(sorted(members)), float(c)) for members, c in terms), name)


def all_of(n: int) -> Game:
    """All n must be there: Shapley value 1 / n each, Banzhaf value 1 / 2^(n - 1)."""
    return products([(range(n), 1.0)], n, f"all of {n}")


def at_least(k: int, n: int) -> Game:
    """Any k of n are enough: Shapley value 1 / n each, Banzhaf value `binom(n - 1, k - 1) / 2^(n - 1)`."""
    return game(n, lambda present: float(len(present) >= k), f"{k} of {n}")


def majority(n: int) -> Game:
    """More than half of n."""
    return at_least(n // 2 + 1, n)


def parity(n: int) -> Game:
    """An odd number of n (exclusive or): Shapley value 1 / n for odd n and 0 for even; Banzhaf value 0.

    For n = 1 both are 1. Whoever averages over halves of the clip is blind to it.
    """
    return game(n, lambda present: float(len(present) % 2), f"parity of {n}")


def game(n: int, worth: Callable[[frozenset[int]], float], name: str = "game") -> Game:
    """The game of a function of the set of players that are there, by its dividends.

    Raises:
        OptionError: more than 16 players.
    """
    if not 1 <= n <= MOST:
        raise OptionError(f"a game by its function needs 1 to {MOST} players, not {n}")
    dividends: dict[tuple[int, ...], float] = {}
    for size in range(n + 1):
        for members in combinations(range(n), size):
            below = (part for k in range(size) for part in combinations(members, k))
            dividends[members] = worth(frozenset(members)) - sum(dividends[part] for part in below)
    return Game(n, tuple((members, c) for members, c in dividends.items() if c), name)


# ── the scorer ───────────────────────────────────────────────────────────────────────────────────────────


class Contents(nn.Module):
    """How much of each voxel of each tube is there: a channel a player, 1 on average over its intact tube."""

    absent: Tensor
    direction: Tensor
    scale: Tensor
    share: Tensor

    def __init__(
        self,
        pixels: Float[Tensor, "c T H W"],
        absent: Float[Tensor, "c T H W"],
        tubes: Bool[Tensor, "n T H W"],
    ) -> None:
        super().__init__()
        change = (pixels - absent).double()
        size = (tubes[:, None] * change**2).sum(dim=(1, 2, 3, 4))
        self.register_buffer("absent", absent)
        self.register_buffer("direction", change.float())
        volume = tubes.sum(dim=(1, 2, 3))
        self.register_buffer("scale", (tubes * (volume / size).view(-1, 1, 1, 1)).float())
        self.register_buffer("share", (tubes / volume.view(-1, 1, 1, 1)).float())

    def forward(self, clips: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b n T H W"]:
        """Their mean over the tube is z."""
        along = ((clips - self.absent) * self.direction).sum(dim=1, keepdim=True)
        out: Tensor = along * self.scale
        return out


class WhiteBox(nn.Module):
    """Shares of tubes, and a game of them: probabilities of `present` and `absent`.

    Raises:
        OptionError: a tube that is empty, that overlaps another, or whose content is what stands for removed.
    """

    def __init__(
        self,
        pixels: Float[Tensor, "c T H W"],
        tubes: Bool[Tensor, "n T H W"],
        game: Game,
        absent: Float[Tensor, "c T H W"],
    ) -> None:
        super().__init__()
        if len(tubes) != game.players:
            raise OptionError(f"{game.name} has {game.players} players, but {len(tubes)} tubes are given")
        if int(tubes.sum(dim=0).max()) > 1:
            raise OptionError("the tubes overlap: a voxel belongs to one player")
        differs = (pixels != absent).any(dim=0)
        if not bool((tubes & differs).any(dim=(1, 2, 3)).all()):
            raise OptionError("a tube is empty, or equal to what takes its place: it cannot be removed")
        self.contents = Contents(pixels, absent, tubes)
        self.game = game

    def forward(self, clips: Float[Tensor, "b c T H W"]) -> Float[Tensor, "_ 2"]:  # a hook may add rows
        """The score, and one minus it."""
        return self.score(self.contents(clips))

    def score(self, contents: Float[Tensor, "b n T H W"]) -> Float[Tensor, "b 2"]:
        """From the contents."""
        worth = self.game.worth((contents * self.contents.share).sum(dim=(2, 3, 4)))
        return torch.stack([worth, 1 - worth], dim=1)


# ── clips ────────────────────────────────────────────────────────────────────────────────────────────────

GAMES: tuple[Game, ...] = (
    all_of(2),
    all_of(3),
    majority(3),
    products([((0,), 0.4), ((1, 2), 0.6)], 3, "0.4 a + 0.6 b c"),
)
"""What `whitebox` chooses from. (Not parity: of an even number nothing is left to explain.)"""
IDLE = 2
"""Tubes that look like the others and are worth nothing."""


@dataclass(frozen=True, eq=False)
class WhiteBoxClip:
    """A clip with tubes, and what they are worth.

    Attributes:
        pixels: `(3, frames, size, size)`, float32 in [0, 1].
        intact: the same with nothing removed.
        tubes: one mask a player, the idle ones last; they do not overlap.
        game: over all of the tubes.
        absent: what stands for removed.
        seed: what it was drawn from.
    """

    pixels: Float32[Tensor, "3 T H W"]
    intact: Float32[Tensor, "3 T H W"]
    tubes: Bool[Tensor, "n T H W"]
    game: Game
    absent: Float32[Tensor, "3 T H W"]
    seed: int
    label: int = 0
    task: str = "whitebox"

    @property
    def name(self) -> str:
        """The label as words."""
        return LABELS[self.label]

    @property
    def truth(self) -> Bool[Tensor, "T H W"]:
        """The tubes that are worth something in some company."""
        return self._union(deciding=True)

    @property
    def distractor(self) -> Bool[Tensor, "T H W"]:
        """The idle tubes."""
        return self._union(deciding=False)

    def known(self) -> Truth:
        """What is known of the evidence; every deciding tube is an event."""
        events = tuple(tube for tube, deciding in zip(self.tubes, self._deciding, strict=True) if deciding)
        return Truth(self.truth, self.distractor, events)

    def clip(self, fps: float = 8.0) -> Clip:
        """As a clip that models and methods take."""
        return Clip.from_array(self.pixels.permute(1, 2, 3, 0), fps=fps)

    def without_truth(self) -> WhiteBoxClip:
        """The deciding tubes removed."""
        return self._without(self.truth)

    def without_distractors(self) -> WhiteBoxClip:
        """The idle tubes removed."""
        return self._without(self.distractor)

    def model(self) -> TorchModel:
        """The scorer as a network; its layer `contents` has one channel a player, one cell a voxel."""
        return TorchModel(
            module=WhiteBox(self.intact, self.tubes, self.game, self.absent).eval(),
            pack=same,
            spec=InputSpec(frames=self.pixels.shape[1], size=(self.pixels.shape[2], self.pixels.shape[3])),
            output="probs",
            labels=LABELS,
            layer="contents",
            name="whitebox",
            weights=self.game.name,
        )

    def black_box(self) -> BlackBox:
        """The same, of which only scores can be had."""
        net = self.model()
        return BlackBox(net, spec=net.spec, output="probs", labels=LABELS, name="whitebox")

    @property
    def _deciding(self) -> list[bool]:
        used = {i for members, _ in self.game.dividends for i in members}
        return [i in used for i in range(len(self.tubes))]

    def _union(self, deciding: bool) -> Bool[Tensor, "T H W"]:
        chosen = torch.tensor(self._deciding) == deciding
        return self.tubes[chosen].any(dim=0)

    def _without(self, mask: Bool[Tensor, "T H W"]) -> WhiteBoxClip:
        return replace(self, pixels=torch.where(mask, self.absent, self.pixels))


def whitebox(
    seed: int, game: Game | None = None, frames: int = 16, size: int = 32, removed: str | Fill = "mean"
) -> WhiteBoxClip:
    """A clip of a seed: a smooth ground, one box a player, each of its own colour, and idle ones.

    Args:
        seed: not negative.
        game: of the deciding tubes; None: one of `GAMES`, in turn.
        frames: frames.
        size: height and width in pixels.
        removed: the fill that stands for removed: values are exact for methods that use the same.

    Raises:
        OptionError: a negative seed, or a clip in which so many tubes find no room.
    """
    if seed < 0:
        raise OptionError(f"a seed is 0 or more, not {seed}")
    chosen = GAMES[seed % len(GAMES)] if game is None else game
    players = chosen.players + IDLE
    rng = np.random.default_rng((seed, 97))
    pixels = _ground(rng, frames, size)
    tubes = _tubes(rng, players, frames, size)
    for tube in tubes:
        # far from the ground's grey in every band, so that there is something to remove
        colour = 0.5 + rng.choice([-1, 1], size=3) * rng.uniform(0.25, 0.45, size=3)
        pixels[:, tube] = torch.from_numpy(colour).float()[:, None]
    nothing = torch.zeros(1, frames, size, size)
    absent = fill(removed).over(pixels)(nothing)[0]
    whole = Game(players, chosen.dividends, chosen.name)
    return WhiteBoxClip(pixels, pixels, tubes, whole, absent, seed)


def _ground(rng: np.random.Generator, frames: int, size: int) -> Float32[Tensor, "3 T H W"]:
    """Greyish and smooth, 0.35 to 0.65, moving a little."""
    knots = torch.from_numpy(rng.uniform(0.35, 0.65, size=(1, 3, 3, 5, 5))).float()
    sized = (frames, size, size)
    return nn.functional.interpolate(knots, sized, mode="trilinear", align_corners=True)[0]


def _tubes(rng: np.random.Generator, n: int, frames: int, size: int) -> Bool[Tensor, "n T H W"]:
    """Boxes that do not overlap, their places uniform over the clip."""
    extents = (frames, size, size)
    found = torch.zeros(n, *extents, dtype=torch.bool)
    for i in range(n):
        for _ in range(1000):
            sides = [max(1, int(extent * rng.uniform(0.15, 0.3))) for extent in extents]
            box = []
            for extent, side in zip(extents, sides, strict=True):
                first = int(rng.integers(extent - side + 1))
                box.append(slice(first, first + side))
            t, h, w = box
            if not bool(found[:, t, h, w].any()):
                found[i, t, h, w] = True
                break
        else:
            raise OptionError(
                f"{n} tubes find no room in a clip of {frames}x{size}x{size}: fewer, or a larger one"
            )
    return found
