"""Shapes as signed distances, with outlines of equal area, so that size says nothing about the class.

Each takes coordinates in units of the radius of the disc of equal area, and returns a distance in that unit:
negative inside, exact near the outline's straight parts, which is all that antialiasing needs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "..."]
REACH = 1.7
"""No shape extends farther from its middle, in units of that radius."""


def disc(u: Plane, v: Plane) -> Plane:
    """The unit disc; area pi, like all the others."""
    distance: Plane = np.hypot(u, v) - 1.0
    return distance


def square(u: Plane, v: Plane) -> Plane:
    """Sides along the axes."""
    distance: Plane = np.maximum(np.abs(u), np.abs(v)) - np.sqrt(np.pi) / 2
    return distance


def diamond(u: Plane, v: Plane) -> Plane:
    """A square on its corner."""
    distance: Plane = (np.abs(u) + np.abs(v)) / np.sqrt(2) - np.sqrt(np.pi) / 2
    return distance


def ring(u: Plane, v: Plane) -> Plane:
    """The disc with a hole of half its radius."""
    distance: Plane = np.abs(np.hypot(u, v) - 0.75) - 0.25
    return distance


def cross(u: Plane, v: Plane) -> Plane:
    """Two bars, a third as wide as long: area `(8/3 - 4/9) length^2` with half-length `length`."""
    length = np.sqrt(np.pi / (8 / 3 - 4 / 9))
    long, wide, a, b = length, length / 3, np.abs(u), np.abs(v)
    distance: Plane = np.minimum(np.maximum(a - long, b - wide), np.maximum(a - wide, b - long))
    return distance


def triangle(u: Plane, v: Plane) -> Plane:
    """Equilateral, one corner up; its inradius follows from area `3 sqrt(3) inradius^2 = pi`."""
    inradius = np.sqrt(np.pi / (3 * np.sqrt(3)))
    sides = [np.cos(a) * u + np.sin(a) * v for a in np.pi / 2 + np.arange(3) * 2 * np.pi / 3]
    distance: Plane = np.maximum(np.maximum(sides[0], sides[1]), sides[2]) - inradius
    return distance


def bars(u: Plane, v: Plane) -> Plane:
    """The square without its middle third: two level bars and a gap, all equally high."""
    half = np.sqrt(np.pi) / 2
    distance: Plane = np.maximum(np.abs(u) - half, np.abs(np.abs(v) - 2 * half / 3) - half / 3)
    return distance


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    shape.__name__: shape for shape in (ring, cross, triangle, bars, disc, square, diamond)
}
OUTLINES = SHAPES | {"ring": disc, "bars": square}
"""The same with holes and gaps filled: a ring's hole is what tells it from a disc, so it is evidence too."""
