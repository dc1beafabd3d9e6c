"""Games over a few players, solved exactly: what each brings, and what they bring together.

A game is the value of every coalition, `(2^n,)`: player i is in coalition s where bit i of s is set.
"""

from __future__ import annotations

from itertools import combinations
from math import comb, factorial

import numpy as np
from jaxtyping import Float64

LEAST = 0.01
"""A total below which shares of it mean nothing."""


def shapley(game: Float64[np.ndarray, "s"]) -> Float64[np.ndarray, "n"]:
    """Shapley values of a game, exactly.

        phi_i = sum_S |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)),   S without i

    Shapley, "A value for n-person games" (1953). They add up to `v(all) - v(none)`.
    """
    n = _players(game)
    values = np.zeros(n)
    for i in range(n):
        for s in range(2**n):
            if not s >> i & 1:
                size = s.bit_count()
                weight = factorial(size) * factorial(n - size - 1) / factorial(n)
                values[i] += weight * (game[s | 1 << i] - game[s])
    return values


def interactions(game: Float64[np.ndarray, "s"]) -> Float64[np.ndarray, "n n"]:
    """Shapley interaction indices of all pairs, exactly; symmetric, zeros on the diagonal.

        I_ij = sum_S |S|! (n - |S| - 2)! / (n - 1)! (v(S + i + j) - v(S + i) - v(S + j) + v(S))

    over all S without i and j.

    Grabisch and Roubens, "An axiomatic approach to the concept of interaction among players in cooperative
    games" (1999). Positive: together they are worth more than each for itself (synergy); negative: each can
    stand for the other (redundancy). They do not add up to anything: see `taylor`.
    """
    n = _players(game)
    values = np.zeros((n, n))
    for i, j in combinations(range(n), 2):
        both = 1 << i | 1 << j
        for s in range(2**n):
            if not s & both:
                size = s.bit_count()
                weight = factorial(size) * factorial(n - size - 2) / factorial(n - 1)
                values[i, j] += weight * (game[s | both] - game[s | 1 << i] - game[s | 1 << j] + game[s])
    return values + values.T


def dividends(game: Float64[np.ndarray, "s"]) -> Float64[np.ndarray, "s"]:
    """What every coalition is worth beyond all the smaller ones within it (Harsanyi's dividends).

        m(S) = sum over T in S of (-1)^(|S| - |T|) v(T),   so that   v(S) = sum over T in S of m(T)

    Harsanyi, "A simplified bargaining model for the n-person cooperative game" (1963).
    """
    found = game.copy()
    for i in range(_players(game)):
        pairs = found.reshape(-1, 2, 1 << i)  # without player i, with it
        pairs[:, 1] -= pairs[:, 0]
    return found


def taylor(
    game: Float64[np.ndarray, "s"],
) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n n"]]:
    """Shapley-Taylor indices of order two: what players are worth alone, and what pairs are worth together.

        alone_i    = m({i}) = v({i}) - v(none)
        synergy_ij = sum of m(S) / C(|S|, 2) over the S with i and j

    with the dividends m (see `dividends`). Sundararajan, Dhamdhere and Agarwal, "The Shapley Taylor
    interaction index" (ICML 2020). Nothing is left over and nothing is counted twice:

        sum of alone_i + sum over pairs of synergy_ij = v(all) - v(none)
        alone_i + 1/2 sum over j of synergy_ij        = phi_i, the Shapley value

    Returns:
        `alone`, and `synergy`: symmetric, zeros on the diagonal. Negative: each can stand for the other.
    """
    n = _players(game)
    m = dividends(game)
    alone = np.array([m[1 << i] for i in range(n)])
    synergy = np.zeros((n, n))
    for s in range(2**n):
        members = [i for i in range(n) if s >> i & 1]
        for i, j in combinations(members, 2):
            synergy[i, j] += m[s] / comb(len(members), 2)
    return alone, synergy + synergy.T


def _players(game: Float64[np.ndarray, "s"]) -> int:
    return len(game).bit_length() - 1
