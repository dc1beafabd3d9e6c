"""The pictures that a source of several spectra is drawn as, and whose heat lies on each.

    source                         each                      overlay                  first, NAME
    visible=a.mp4|lwir=b.npy       [visible] [lwir]          [lwir over visible]      [visible], [lwir]

A picture is tinted by a palette where it shows one band; where a map tells the bands apart, a picture carries
the map of its own bands, and all such maps of an explanation share one scale: a band without effect stays as
cold as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8

from tubelens.errors import OptionError, nearest
from tubelens.explanation import Explanation
from tubelens.render import colour
from tubelens.render.palettes import PALETTES, heat_on, overlaid, palette, tinted
from tubelens.render.source import Moments, open_source
from tubelens.spectra import COLOURS
from tubelens.video import Frames
from tubelens.video.arrays import ArrayFrames
from tubelens.video.display import shown
from tubelens.video.measured import MeasuredFrames, is_measured
from tubelens.video.paired import PairedFrames
from tubelens.video.streams import is_visible, streams

EACH, FIRST, OVERLAY = "each", "first", "overlay"
PLAIN, LAID_OVER = PALETTES[0], "iron"
"""Palettes used where none is chosen: of single pictures, and of what is laid over another."""
COLOUR = "RGB"
"""Bands that are seen as one picture, and what a group of them is called."""
GREY = 6
"""So far apart R, G and B of a grey picture may lie, after compression."""
PROBES = 5
"""Frames looked at to tell whether a picture is grey."""


@dataclass(frozen=True)
class Picture:
    """One picture that a source has of every moment.

    Attributes:
        name: of the spectrum; empty where there is only one.
        bands: that it shows.
        channels: of the frames that the source yields; None: they are the picture.
        grey: it is measured, and of one band; pictures of files are looked at.
    """

    name: str = ""
    bands: tuple[str, ...] = ()
    channels: tuple[int, ...] | None = None
    grey: bool = False

    def of(self, frame: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        """RGB to look at."""
        if self.channels is None:
            return frame
        first, last = self.channels[0], self.channels[-1]
        if self.channels == tuple(range(first, last + 1)):
            return shown(np.ascontiguousarray(frame[..., first : last + 1]))
        return shown(frame[..., list(self.channels)])


@dataclass(frozen=True)
class View:
    """One picture of a drawing: of a spectrum, or of one laid over another.

    Attributes:
        name: what captions call it; empty where it is the only one.
        picture: that is shown.
        over: whose brightness it is laid over.
        table: palette that it is tinted with; None: its own colours.
    """

    name: str = ""
    picture: Picture = Picture()
    over: Picture | None = None
    table: colour.Lut | None = None

    def of(self, frame: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        """RGB of what the source yields."""
        picture = self.picture.of(frame)
        if self.table is not None:
            picture = tinted(picture, self.table)
        return picture if self.over is None else overlaid(self.over.of(frame), picture)


@dataclass(frozen=True)
class Layer:
    """The heat that lies on a view.

    Attributes:
        explanation: its map.
        said: which bands it is of, where the maps of an explanation differ.
    """

    explanation: Explanation
    said: str = ""


def asked(names: Sequence[str], which: str, bands: Sequence[Sequence[str]] = ()) -> str:
    """`each`, `first`, `overlay`, or the name of a picture: what was asked for, whatever its capitals.

    Args:
        names: of the source's pictures.
        which: what was asked for; a band stands for the picture that shows it.
        bands: of each picture, as far as they are known.

    Raises:
        OptionError: a spectrum that there is not, or an overlay of one.
    """
    known = (EACH, FIRST, *((OVERLAY, *names) if len(names) > 1 else names))
    for name in known:
        if name.lower() == which.lower():
            return name
    for name, own in zip(names, bands, strict=False):
        if name and which.lower() in (band.lower() for band in (*own, _joined(own))):
            return name
    if len(names) < 2:
        raise OptionError(
            f"spectra={which!r} needs a source of several spectra, as in visible=a.mp4|lwir=b/:"
            " this one has one picture"
        )
    raise OptionError(f"unknown spectra {which!r}{nearest(which, known)}: one of {', '.join(known)}")


def check_spectra(source: str, which: str) -> None:
    """Whether they are there, before a source is opened, as far as its text tells.

    Raises:
        OptionError: a spectrum that there is not, or an overlay of one.
    """
    parts = streams(source)
    told = [part.bands or (tuple(COLOUR) if is_visible(part.name) else ()) for part in parts]
    if len(parts) > 1 or not is_measured(parts[0]):  # bands of one file are not known yet
        asked([part.name for part in parts], which, told)


def views(
    video: Frames,
    many: Sequence[Explanation],
    indices: Sequence[int],
    which: str = EACH,
    tint: str | None = None,
) -> tuple[View, ...]:
    """What every moment is drawn as; the source is told to yield the pictures needed.

    Args:
        video: the source, open.
        many: explanations drawn on it.
        indices: frames that are drawn; a few are looked at where a palette needs to know what is grey.
        which: `each`, `first`, `overlay`, or the name of a spectrum or of one of its bands.
        tint: name of a palette.

    Raises:
        OptionError: a spectrum that there is not, an unknown palette.
    """
    pictures = _pictures(video, many)
    which = asked([p.name for p in pictures], which, [p.bands for p in pictures])
    pairs: list[tuple[Picture | None, Picture]]
    if which == OVERLAY:
        base = next((i for i, p in enumerate(pictures) if _visible(p)), 0)
        pairs = [(pictures[base], p) for i, p in enumerate(pictures) if i != base]
    elif which == FIRST or len(pictures) == 1:
        pairs = [(None, pictures[0])]
    else:
        pairs = [(None, p) for p in pictures if which in (EACH, p.name)]
    if isinstance(video, PairedFrames):
        video.each = any(p is not None and p is not pictures[0] for pair in pairs for p in pair)
    name = tint or (LAID_OVER if which == OVERLAY else PLAIN)
    table = palette(name)
    greys = set() if name == PLAIN else _greys(video, [p for _, p in pairs], len(pictures), indices)
    return tuple(
        View(
            "" if len(pictures) == 1 else p.name if base is None else f"{p.name} over {base.name}",
            p,
            base,
            table if p.name in greys else None,
        )
        for base, p in pairs
    )


def heat_colours(shown: Sequence[View], tint: str | None, which: str) -> colour.Lut:
    """The colours of heat in a drawing of these views: one table for all, so that one bar explains them."""
    if all(view.table is None for view in shown):
        return heat_on(PLAIN)
    return heat_on(tint or (LAID_OVER if which.lower() == OVERLAY else PLAIN))


def untinted(many: Sequence[Explanation], tint: str | None, which: str = EACH) -> bool:
    """Whether that palette would change nothing in a drawing of them: all that it would show is in colour.

    Raises:
        OptionError: a spectrum that there is not, an unknown palette.
        VideoError: the source is gone or has changed.
    """
    if tint in (None, PLAIN):
        return False
    with open_source(many[0].source) as video:
        return all(
            view.table is None for view in views(video, many, Moments.of(video, many).indices, which, tint)
        )


# ── whose heat ───────────────────────────────────────────────────────────────────────────────────────────


def layers(e: Explanation, shown: Sequence[View]) -> tuple[Layer, ...]:
    """The heat on each view: the map of its own bands where the map tells them apart, else the whole."""
    if not e.by_band:
        return (Layer(e),) * len(shown)
    own = [_own(e.bands, view) for view in shown]
    own = [names if len(names) < len(e.bands) else () for names in own]
    maps = band_maps(e, [names for names in own if names])
    whole = Layer(e, "all bands" if any(own) else "")
    return tuple(
        Layer(maps[names], f"{_joined(names)}'s own heat · same scale for all bands") if names else whole
        for names in own
    )


def band_rows(e: Explanation, shown: Sequence[View]) -> list[tuple[str, Explanation, int]]:
    """Name, map and view of each band that a map tells apart, in one scale."""
    maps = band_maps(e)
    own = [_own(e.bands, view) for view in shown]
    views = {name: next((i for i, names in enumerate(own) if name in names), 0) for name in e.bands}
    return [(name, maps[(name,)], views[name]) for name in e.bands]


def band_maps(e: Explanation, together: Sequence[tuple[str, ...]] = ()) -> dict[tuple[str, ...], Explanation]:
    """The maps of the bands, each by itself and some `together`, with limits that are common to all of them.

    A scale of its own would draw a band without effect as hot as the one that decided.
    """
    own = {name: e.band(name) for name in e.bands}  # of windows and views several parts each
    found = {}
    for names in dict.fromkeys([*((name,) for name in e.bands), *together]):
        parts = tuple(
            replace(same[0], values=torch.stack([part.values for part in same]).sum(dim=0))
            for same in zip(*(own[name].parts for name in names), strict=True)
        )
        record = replace(e.provenance, label=f"{e.provenance.label} · {_joined(names)}")
        found[names] = replace(own[names[0]], parts=parts, provenance=record)
    limits = [m.limits for m in found.values()]
    common = min(low for low, _ in limits), max(high for _, high in limits)
    for m in found.values():
        vars(m)["limits"] = common  # a cached property: what stands here is what drawing reads
    return found


def _own(groups: Sequence[str], view: View) -> tuple[str, ...]:
    """Groups of bands that a view shows; none on an overlay, which shows two spectra."""
    if view.over is not None:
        return ()
    return tuple(
        g for g in groups if all(_made_of(part.strip(), view.picture.bands) for part in g.split("+"))
    )


def _made_of(name: str, bands: Sequence[str]) -> bool:
    """Whether a group's name is names of these bands, one after the other."""
    return not name or any(name.startswith(b) and _made_of(name[len(b) :], bands) for b in bands if b)


def _joined(names: Sequence[str]) -> str:
    return "".join(names) if set(names) <= COLOURS else "+".join(names)


# ── the pictures of a source ─────────────────────────────────────────────────────────────────────────────


def _pictures(video: Frames, many: Sequence[Explanation]) -> list[Picture]:
    if isinstance(video, PairedFrames):
        own = zip(video.pictures, video.bands_of, video.videos, strict=True)
        return [
            Picture(
                name,
                bands,
                (3 * i, 3 * i + 1, 3 * i + 2),
                isinstance(one, MeasuredFrames) and len(bands) == 1,
            )
            for i, (name, bands, one) in enumerate(own)
        ]
    bands = tuple(video.bands)
    if not isinstance(video, ArrayFrames | MeasuredFrames):
        return [Picture("", bands)]
    names = bands if set(bands) >= COLOURS else _named_by(many, len(bands))
    if len(bands) < 4 or not names:
        return [Picture("", bands, grey=len(bands) == 1)]
    video.exact = True
    colours = tuple(names.index(c) for c in COLOUR)
    return [
        Picture(COLOUR, tuple(COLOUR), colours),
        *(Picture(n, (n,), (c,), True) for c, n in enumerate(names) if n not in COLOURS),
    ]


def _named_by(many: Sequence[Explanation], channels: int) -> tuple[str, ...]:
    """Names of an array's channels, which has none itself, as the maps that tell them apart know them."""
    for e in many:
        names = [n for g in e.bands for n in (COLOUR if g == COLOUR else g.split("+"))]
        if len(names) == channels and set(names) >= COLOURS:
            return tuple(names)
    return ()


def _visible(picture: Picture) -> bool:
    return is_visible(picture.name) or set(picture.bands) == COLOURS


def _greys(video: Frames, used: Sequence[Picture], several: int, indices: Sequence[int]) -> set[str]:
    """Names of the pictures that are one band, shown as grey; the visible one of several is left as it is."""
    greys = {p.name for p in used if p.grey}
    unsure = [p for p in used if p.name not in greys and not (several > 1 and is_visible(p.name))]
    if not unsure:
        return greys
    places = sorted({indices[round(i * (len(indices) - 1) / (PROBES - 1))] for i in range(PROBES)})
    for _, _, frame in video.pick(places):
        unsure = [p for p in unsure if not _coloured(p.of(frame))]
    return greys | {p.name for p in unsure}


def _coloured(picture: colour.Frame) -> bool:
    return int((picture.max(axis=2) - picture.min(axis=2)).max()) > GREY
