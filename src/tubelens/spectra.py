"""Which bands of a clip belong together: the players among whom evidence is shared out."""

from __future__ import annotations

from collections.abc import Sequence

from tubelens.errors import OptionError

MOST = 6
"""Players: 64 versions of a clip."""
COLOURS = {"R", "G", "B"}


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
