"""Which bands of a clip belong together: the players among whom evidence is shared out."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tubelens.errors import OptionError

MOST = 6
"""Players: 64 versions of a clip."""
COLOURS = {"R", "G", "B"}
WORDS = {2: "two", 3: "three"}


def spectra(bands: Sequence[str], groups: str = "") -> dict[str, list[int]]:
    """The channels of each group of bands, by the group's name.

    Args:
        bands: of the clip.
        groups: separated by `|`; within one, bands separated by `+`, or by nothing (`RGB|IR`): the longest
            name that fits is read first. Empty: R, G and B are one group, `RGB`, where there are other bands
            too; every other band is by itself.

    Raises:
        OptionError: a band that the clip does not have, twice or left out; more than 6 groups.
    """
    if len(set(bands)) < len(bands):
        raise OptionError(f"the clip's bands {', '.join(bands)} must have names of their own")
    if not groups:
        colour = [band for band in bands if band in COLOURS]
        together = len(colour) == 3 < len(bands)
        first = "".join(colour) if together else ""
        names = ([first] if together else []) + [b for b in bands if not (together and b in COLOURS)]
        parts = [colour if together and name == first else [name] for name in names]
    else:
        names = [part.strip() for part in groups.split("|")]
        if not all(word.strip() for name in names for word in name.split("+")):
            raise OptionError(f"groups {groups!r} has one without a name: write them as in RGB|IR")
        parts = [_parsed(name, bands, groups) for name in names]
    players = {name: [bands.index(b) for b in own] for name, own in zip(names, parts, strict=True)}
    used = sorted(b for own in players.values() for b in own)
    if used != list(range(len(bands))) or len(players) < len(names):
        raise OptionError(f"groups {groups!r} must name each of the bands {', '.join(bands)} once")
    if len(players) > MOST:
        raise OptionError(
            f"{len(players)} bands have {2 ** len(players)} subsets: give up to {MOST} groups, as in"
            f" groups='{'+'.join(bands[:2])}|{'+'.join(bands[2:])}'"
        )
    return players


def told_apart(
    pixels: Float[Tensor, "c T H W"], bands: Sequence[str], groups: str = ""
) -> dict[str, list[int]]:
    """The groups of a clip's bands where they are weighed against each other or given maps of their own.

    Raises:
        OptionError: as `spectra`; or R, G and B are bit for bit the same, as where a network on colour is fed
            infrared, repeated: what a copy brings beside its likes tells nothing of any band.
    """
    found = spectra(bands, groups)
    first, *others = pixels
    replicated = len(found) > 1 and COLOURS.issuperset(bands)  # only they are made by repeating one
    if replicated and all(bool((band == first).all()) for band in others):
        *names, last = bands
        raise OptionError(
            f"{', '.join(names)} and {last} are {WORDS[len(bands)]} copies of one band,"
            " so there is nothing to weigh: give a clip of several spectra, or leave the bands together"
        )
    return found


def _parsed(name: str, bands: Sequence[str], groups: str) -> list[str]:
    found = []
    for word in name.split("+"):
        rest = word.strip()
        while True:
            fits = [b for b in bands if b and rest.startswith(b)]
            if not fits:
                raise OptionError(
                    f"groups {groups!r}: no band begins {rest!r}: the clip has {', '.join(bands)}"
                )
            found.append(max(fits, key=len))
            rest = rest[len(found[-1]) :]
            if not rest:
                break
    return found
