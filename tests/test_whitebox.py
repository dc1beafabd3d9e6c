"""White boxes: their values by brute force and in closed form, and estimators that must arrive at them."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from tubelens.errors import OptionError
from tubelens.masks import Cells
from tubelens.methods import surrogate
from tubelens.methods.cam import GradCAM
from tubelens.methods.gradients import InputXGradient
from tubelens.methods.integrated import IntegratedGradients
from tubelens.methods.rise import RISE
from tubelens.methods.surrogate import LIME, KernelSHAP
from tubelens.planted.whitebox import (
    GAMES,
    Game,
    WhiteBox,
    WhiteBoxClip,
    all_of,
    at_least,
    game,
    majority,
    parity,
    products,
    whitebox,
)
from tubelens.running import Run
from tubelens.target import Prob

RUN = Run(precision="fp32", batch=32)
SIZE = (8, 16, 16)


def drawn(n: int, seed: int = 0) -> Game:
    """A function of no symmetry: each set of players has a random worth, the empty one too."""
    values = np.random.default_rng(seed).random(2**n)
    return game(n, lambda present: values[sum(1 << i for i in present)])


SOME = [
    *(all_of(n) for n in (1, 2, 4)),
    at_least(1, 3),
    at_least(2, 4),
    majority(5),
    parity(2),
    parity(3),
    products([((0,), 0.4), ((2, 1), 0.6), ((0, 1, 3), -0.2)], 5),
    drawn(4),
]


def worth(g: Game, present: tuple[int, ...]) -> float:
    there = torch.zeros(1, g.players)
    there[0, list(present)] = 1
    return float(g.worth(there))


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("g", SOME, ids=lambda g: g.name)
def test_shapley_values_are_means_over_all_orders(g: Game) -> None:
    totals, orders = np.zeros(g.players), list(permutations(range(g.players)))
    for order in orders:
        for place, player in enumerate(order):
            totals[player] += worth(g, order[: place + 1]) - worth(g, order[:place])
    np.testing.assert_allclose(g.shapley().numpy(), totals / len(orders), atol=1e-6)
    everybody = worth(g, tuple(range(g.players)))
    assert float(g.shapley().sum()) == pytest.approx(everybody - worth(g, ()), abs=1e-6)


@pytest.mark.parametrize("p", [0.5, 0.2])
@pytest.mark.parametrize("g", SOME, ids=lambda g: g.name)
def test_banzhaf_values_are_means_over_random_company(g: Game, p: float) -> None:
    for player in range(g.players):
        others = [i for i in range(g.players) if i != player]
        mean = 0.0
        for size in range(g.players):
            for company in combinations(others, size):
                chance = p**size * (1 - p) ** (len(others) - size)
                mean += chance * (worth(g, (*company, player)) - worth(g, company))
        assert float(g.banzhaf(p)[player]) == pytest.approx(mean, abs=1e-6)


def test_closed_forms() -> None:
    for n in (1, 2, 3, 6):
        assert all_of(n).shapley().tolist() == pytest.approx([1 / n] * n)
        assert all_of(n).banzhaf().tolist() == pytest.approx([2.0 ** (1 - n)] * n)
        odd = float(n % 2)
        assert parity(n).shapley().tolist() == pytest.approx([odd / n] * n)
        assert parity(n).banzhaf().tolist() == pytest.approx([float(n == 1)] * n)
        for k in range(1, n + 1):
            assert at_least(k, n).shapley().tolist() == pytest.approx([1 / n] * n)
            pivotal = math.comb(n - 1, k - 1) / 2 ** (n - 1)
            assert at_least(k, n).banzhaf().tolist() == pytest.approx([pivotal] * n)
    assert majority(5) == at_least(3, 5)
    assert products([((0,), 0.4), ((1, 2), 0.6)], 4).shapley().tolist() == pytest.approx([0.4, 0.3, 0.3, 0])


def test_a_game_takes_the_values_that_it_was_made_of() -> None:
    values = np.random.default_rng(3).random(16)
    g = game(4, lambda present: values[sum(1 << i for i in present)])
    for number in range(16):
        present = tuple(i for i in range(4) if number >> i & 1)
        assert worth(g, present) == pytest.approx(values[number], abs=1e-6)


def test_a_game_is_linear_in_each_share() -> None:
    g = drawn(3)
    share = torch.tensor([[0.3, 0.0, 1.0], [0.3, 1.0, 1.0], [0.3, 0.25, 1.0]])
    without, whole, part = g.worth(share).tolist()
    assert part == pytest.approx(0.75 * without + 0.25 * whole, abs=1e-6)


def test_games_that_mean_nothing_are_refused() -> None:
    with pytest.raises(OptionError, match="from 0 to 1"):
        products([((0, 2), 1.0)], 2)
    with pytest.raises(OptionError, match="increasing"):
        Game(3, (((1, 1), 1.0),))
    with pytest.raises(OptionError, match="1 to 16 players"):
        game(17, lambda present: 0.0)


# ── the scorer ───────────────────────────────────────────────────────────────────────────────────────────


def test_how_much_of_a_tube_is_there() -> None:
    planted = whitebox(1, frames=8, size=16)
    net = planted.model().module
    assert isinstance(net, WhiteBox)
    mask = torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    mixed = mask * planted.pixels + (1 - mask) * planted.absent
    contents = net.contents(mixed[None])[0]
    for tube, channel in zip(planted.tubes, contents, strict=True):
        change = ((planted.pixels - planted.absent) ** 2).sum(dim=0)[tube]
        share = float((mask[tube] * change).sum() / change.sum())
        assert float(channel[tube].mean()) == pytest.approx(share, abs=1e-5)
        assert not bool(channel[~tube].any())


@pytest.mark.parametrize("seed", range(len(GAMES)))
def test_a_white_box_scores_what_its_game_says(seed: int) -> None:
    planted = whitebox(seed, frames=8, size=16)
    model, box = planted.model(), planted.black_box()
    for present in [(), (0,), (1,), (0, 1), (1, 2), tuple(range(planted.game.players))]:
        pixels = planted.absent.clone()
        for i in present:
            pixels[:, planted.tubes[i]] = planted.pixels[:, planted.tubes[i]]
        expected = worth(planted.game, present)
        scores = model(pixels[None])[0].tolist()
        assert scores == pytest.approx([expected, 1 - expected], abs=1e-5)
        assert box(pixels[None])[0].tolist() == pytest.approx(scores)


def test_a_white_box_needs_tubes_that_can_be_removed() -> None:
    planted = whitebox(0, frames=8, size=16)
    two = planted.tubes[:2]
    with pytest.raises(OptionError, match="3 players, but 2 tubes"):
        WhiteBox(planted.pixels, two, all_of(3), planted.absent)
    with pytest.raises(OptionError, match="overlap"):
        WhiteBox(planted.pixels, two[[0, 0]], all_of(2), planted.absent)
    with pytest.raises(OptionError, match="empty, or equal"):
        WhiteBox(planted.pixels, two & False, all_of(2), planted.absent)
    with pytest.raises(OptionError, match="empty, or equal"):
        WhiteBox(planted.absent, two, all_of(2), planted.absent)


# ── clips ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clip_is_determined_by_its_seed() -> None:
    torch.manual_seed(0)
    one, again, other = whitebox(11), whitebox(11), whitebox(12)
    assert torch.equal(one.pixels, again.pixels)
    assert torch.equal(one.tubes, again.tubes)
    assert not torch.equal(one.pixels, other.pixels)
    assert 0 <= float(one.pixels.min()) <= float(one.pixels.max()) <= 1
    assert one.pixels.shape == (3, 16, 32, 32)


def test_the_truth_is_the_tubes_that_are_worth_something() -> None:
    for seed in range(8):
        planted = whitebox(seed, frames=8, size=16)
        assert int(planted.tubes.sum(dim=0).max()) == 1
        worthy = planted.game.shapley() > 0
        assert torch.equal(planted.truth, planted.tubes[worthy].any(dim=0))
        assert torch.equal(planted.distractor, planted.tubes[~worthy].any(dim=0))
        assert int((~worthy).sum()) == 2
        known = planted.known()
        assert torch.equal(known.mask, planted.truth)
        assert [int(event.sum()) for event in known.events] == [int(t.sum()) for t in planted.tubes[worthy]]
        model, label = planted.model(), planted.label
        intact, bare, alone = (
            float(model(p.pixels[None])[0, label])
            for p in (planted, planted.without_truth(), planted.without_distractors())
        )
        assert (intact, bare, alone) == pytest.approx((1, 0, 1), abs=1e-5)
        # the network is that of the complete clip, whatever was removed from it
        assert float(planted.without_truth().model()(planted.pixels[None])[0, 0]) == pytest.approx(1)


def test_tubes_lie_anywhere() -> None:
    middles = []
    for seed in range(60):
        places = whitebox(seed, frames=8, size=16).tubes[0].nonzero().double()
        middles.append(places.mean(dim=0) / torch.tensor(SIZE))
    spread = torch.stack(middles)
    assert bool(((spread.mean(dim=0) - 0.5).abs() < 0.12).all())  # of the frame; deviation about .03
    assert bool((spread.std(dim=0) > 0.15).all())  # of a uniform middle .23


def test_clips_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(OptionError, match="no room in a clip of 1x2x2"):
        whitebox(1, frames=1, size=2)
    with pytest.raises(OptionError, match="0 or more"):
        whitebox(-1)


# ── estimators ───────────────────────────────────────────────────────────────────────────────────────────


def labelled(planted: WhiteBoxClip) -> torch.Tensor:
    """Region 0 is the rest of the clip, region i + 1 is tube i."""
    numbers = torch.arange(1, len(planted.tubes) + 1)[:, None, None, None]
    return (planted.tubes * numbers).sum(dim=0)


def subsets(d: int) -> torch.Tensor:
    return (torch.arange(2**d)[:, None] >> torch.arange(d)) % 2 == 1


@pytest.fixture(params=[*range(len(GAMES)), len(GAMES)])
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> WhiteBoxClip:
    """One clip a game, and one of parity; the regions of surrogates are its tubes and the rest."""
    seed = request.param
    made = whitebox(seed, GAMES[seed] if seed < len(GAMES) else parity(3), frames=8, size=16)
    monkeypatch.setattr(surrogate, "supervoxels", lambda pixels, n: labelled(made))
    return made


def of_tubes(planted: WhiteBoxClip, saliency: torch.Tensor) -> torch.Tensor:
    """The value that all voxels of a tube have."""
    values = torch.stack([saliency[tube][0] for tube in planted.tubes])
    for value, tube in zip(values, planted.tubes, strict=True):
        torch.testing.assert_close(saliency[tube], value.expand(int(tube.sum())))
    return values.double()


def test_kernel_shap_arrives_at_the_shapley_values(planted: WhiteBoxClip) -> None:
    exact = KernelSHAP(n=2 ** (len(planted.tubes) + 1))
    (why,) = exact(planted.model(), planted.clip(), [Prob(0)], RUN)
    values = of_tubes(planted, why.saliency)
    torch.testing.assert_close(values, planted.game.shapley(), atol=1e-5, rtol=0)
    rest = why.saliency[~planted.tubes.any(dim=0)]
    assert float(rest.abs().max()) < 1e-5


@pytest.mark.parametrize("game", [*GAMES, parity(3)], ids=lambda g: g.name)
def test_kernel_shap_of_a_sample_comes_nearer_with_its_size(
    game: Game, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = whitebox(5, game, frames=8, size=16)
    frames = torch.arange(8)[:, None, None].expand(SIZE)  # the rest in eight regions: thousands of sets
    labels = torch.where(planted.tubes.any(dim=0), 7 + labelled(planted), frames)
    monkeypatch.setattr(surrogate, "supervoxels", lambda pixels, n: labels)
    errors = []
    for n in (60, 1200):
        (why,) = KernelSHAP(n=n, seed=1)(planted.black_box(), planted.clip(), [Prob(0)], RUN)
        assert why.provenance.facts["exact"] == 0
        errors.append(float((of_tubes(planted, why.saliency) - planted.game.shapley()).abs().max()))
    assert errors[1] < min(errors[0] / 2, 0.1)


def test_lime_without_its_kernel_arrives_at_the_banzhaf_values(
    planted: WhiteBoxClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the best linear approximation over all sets, each as likely (Hammer and Holzman 1992)
    repeated = subsets(len(planted.tubes) + 1).repeat(4, 1)  # the intact clip counts once more, of so many
    monkeypatch.setattr(LIME, "samples", lambda self, cells: repeated)
    lime = LIME(n=len(repeated), width=1e4, ridge=0.0)
    (why,) = lime(planted.model(), planted.clip(), [Prob(0)], RUN)
    values = of_tubes(planted, why.saliency)
    torch.testing.assert_close(values, planted.game.banzhaf(), atol=0.02, rtol=0)


def test_rise_over_all_masks_of_tubes_is_half_the_banzhaf_value(
    planted: WhiteBoxClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    # E[f | i kept] - E[f] = (1 - p) (E[f | i kept] - E[f | i removed]) = (1 - p) Banzhaf_i at p = 1/2
    cells = Cells(labelled(planted), subsets(len(planted.tubes) + 1))
    monkeypatch.setattr(RISE, "masks", lambda self, size, group=0: cells)
    (why,) = RISE(n=len(cells))(planted.model(), planted.clip(), [Prob(0)], RUN)
    values = of_tubes(planted, why.saliency)
    torch.testing.assert_close(values, planted.game.banzhaf() / 2, atol=1e-5, rtol=0)


def test_rise_with_other_masks_takes_the_value_at_their_rate(
    planted: WhiteBoxClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, generator = 0.7, torch.Generator().manual_seed(0)
    kept = torch.rand(3000, len(planted.tubes) + 1, generator=generator) < p
    monkeypatch.setattr(RISE, "masks", lambda self, size, group=0: Cells(labelled(planted), kept))
    (why,) = RISE(n=len(kept))(planted.model(), planted.clip(), [Prob(0)], RUN)
    expected = (1 - p) * planted.game.banzhaf(p)
    torch.testing.assert_close(of_tubes(planted, why.saliency), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("seed", range(len(GAMES)))
def test_rise_as_it_is_finds_the_tubes_that_decide(seed: int) -> None:
    planted = whitebox(seed, frames=8, size=16)
    (why,) = RISE(n=1500, cells=(4, 6, 6))(planted.model(), planted.clip(), [Prob(0)], RUN)
    means = torch.stack([why.saliency[tube].mean() for tube in planted.tubes])
    worthy = planted.game.shapley() > 0
    assert bool((means[worthy] > 0).all())
    assert float(means[worthy].min()) > 2 * float(means[~worthy].abs().max())


def test_integrated_gradients_arrive_at_the_shapley_values(planted: WhiteBoxClip) -> None:
    # from what stands for removed, all shares grow together, and that is Owen's way to the Shapley value
    (why,) = IntegratedGradients(steps=8, baseline="mean")(planted.model(), planted.clip(), [Prob(0)], RUN)
    sums = torch.stack([why.saliency[tube].sum() for tube in planted.tubes]).double()
    torch.testing.assert_close(sums, planted.game.shapley(), atol=1e-4, rtol=0)
    assert float(why.saliency[~planted.tubes.any(dim=0)].abs().max()) < 1e-7


def test_gradients_see_what_one_player_can_do_alone(planted: WhiteBoxClip) -> None:
    (why,) = InputXGradient(baseline="mean")(planted.model(), planted.clip(), [Prob(0)], RUN)
    sums = torch.stack([why.saliency[tube].sum() for tube in planted.tubes]).double()
    alone = planted.game.banzhaf(1.0)  # the others all there: nothing, where one of three may be missing
    torch.testing.assert_close(sums, alone, atol=1e-4, rtol=0)


def test_activation_methods_read_the_contents() -> None:
    planted = whitebox(1, frames=8, size=16)
    (why,) = GradCAM()(planted.model(), planted.clip(), [Prob(0)], RUN)
    assert why.provenance.layer == "contents"
    inside = why.saliency[planted.truth]
    assert float(inside.mean()) > 0
    assert float(why.saliency[~planted.truth].abs().max()) < 1e-3 * float(inside.max())
