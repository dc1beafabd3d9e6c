"""Families of masks over a clip: 1 keeps a voxel, 0 removes it.

Whatever is random is drawn when the family is made (bits and offsets, a few hundred bytes a mask); masks are
made from it batch by batch on the device that scores them, so that neither results nor memory depend on how
many there are or how they are batched.
"""

from tubelens.masks.bands import EachBand, Independent
from tubelens.masks.family import AXES, Masks, Triple
from tubelens.masks.grids import Features, Grids, Published
from tubelens.masks.regions import Cells, Ranks, ranking, supervoxels
from tubelens.masks.windows import Tracked, Windows

__all__ = [
    "AXES",
    "Cells",
    "EachBand",
    "Features",
    "Grids",
    "Independent",
    "Masks",
    "Published",
    "Ranks",
    "Tracked",
    "Triple",
    "Windows",
    "ranking",
    "supervoxels",
]
