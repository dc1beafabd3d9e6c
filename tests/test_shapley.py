"""Games over a few players: against their definitions as averages over all orders, and on known games."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelens.shapley import dividends, interactions, shapley, taylor


def drawn(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=2**n)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_shapley_values_are_the_mean_over_all_orders(n, seed):
    game = drawn(n, seed)
    slow, pairs = np.zeros(n), np.zeros((n, n))
    for order in itertools.permutations(range(n)):
        here = 0
        for player in order:
            slow[player] += game[here | 1 << player] - game[here]
            here |= 1 << player
    slow /= len(list(itertools.permutations(range(n))))
    np.testing.assert_allclose(shapley(game), slow, atol=1e-9)
    assert shapley(game).sum() == pytest.approx(game[-1] - game[0])

    # the interaction of two is the value of both as one player, less that of each where the other is away
    for i, j in itertools.combinations(range(n), 2):
        others = [k for k in range(n) if k not in (i, j)]
        merged = [*((1 << k,) for k in others), (1 << i | 1 << j,)]

        def value(players: list[tuple[int]], game: np.ndarray = game) -> float:
            index = [sum(p[0] for b, p in enumerate(players) if s >> b & 1) for s in range(2 ** len(players))]
            return float(shapley(game[index])[-1])

        alone = [value([*((1 << k,) for k in others), (1 << one,)]) for one in (i, j)]
        pairs[i, j] = pairs[j, i] = value(merged) - sum(alone)
    np.testing.assert_allclose(interactions(game), pairs, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_taylor_indices_are_the_mean_over_all_orders(n, seed):
    """Sundararajan, Dhamdhere and Agarwal (2020), section 2.2: an order's second differences.

    What an order says of a pair is their second difference where those who come before both are there.
    """
    game = drawn(n, seed)
    together = np.zeros((n, n))
    orders = list(itertools.permutations(range(n)))
    for order in orders:
        for i, j in itertools.combinations(range(n), 2):
            before = sum(1 << k for k in order[: min(order.index(i), order.index(j))])
            a, b = 1 << i, 1 << j
            second = game[before | a | b] - game[before | a] - game[before | b] + game[before]
            together[i, j] += second / len(orders)
    alone, synergy = taylor(game)
    np.testing.assert_allclose(synergy, together + together.T, atol=1e-9)
    np.testing.assert_allclose(alone, [game[1 << i] - game[0] for i in range(n)], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_the_ledger_balances(n, seed):
    """Nothing is left over; and a player's Shapley value is what it has alone and half of what it shares."""
    game = drawn(n, seed)
    alone, synergy = taylor(game)
    assert alone.sum() + synergy.sum() / 2 == pytest.approx(game[-1] - game[0])
    np.testing.assert_allclose(alone + synergy.sum(axis=1) / 2, shapley(game), atol=1e-9)
    np.testing.assert_array_equal(synergy, synergy.T)
    assert not np.diag(synergy).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_a_coalition_is_worth_the_dividends_within_it(n, seed):
    game = drawn(n, seed)
    before = game.copy()
    m = dividends(game)
    np.testing.assert_array_equal(game, before)
    for s in range(2**n):
        inside = [t for t in range(2**n) if t & s == t]
        assert sum(m[t] for t in inside) == pytest.approx(game[s])
        assert m[s] == pytest.approx(sum((-1) ** (s.bit_count() - t.bit_count()) * game[t] for t in inside))


def test_known_games():
    both = np.array([0.0, 0, 0, 1])
    assert shapley(both).tolist() == [0.5, 0.5]
    assert interactions(both).tolist() == [[0, 1], [1, 0]]
    assert [part.tolist() for part in taylor(both)] == [[0, 0], [[0, 1], [1, 0]]]
    either = np.array([0.0, 1, 1, 1])
    assert interactions(either)[0, 1] == -1
    assert [part.tolist() for part in taylor(either)] == [[1, 1], [[0, -1], [-1, 0]]]
    added = np.array([0.0, 2, 3, 5])
    assert shapley(added).tolist() == [2, 3]
    assert interactions(added)[0, 1] == 0
    assert taylor(added)[1][0, 1] == 0
    three = np.array([0.0, 0, 0, 0, 0, 0, 0, 1])  # what only three can do, each pair of them has a third of
    np.testing.assert_allclose(taylor(three)[1], (1 - np.eye(3)) / 3)
