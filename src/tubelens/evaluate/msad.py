"""The layout of the Multispectral Action Dataset: scenes in long-wave infrared (`IR`) and visible (`TV`).

The data set is given on request only. What is known of its layout is what the published code of "Deep
Saliency Map Generators for Multispectral Video Classification" (ICPR 2022) reads: spectra named `IR`, `TV`
and `IRTV` (both together), eight classes, clips as folders of frames `0000.png`, `0001.png`, ..., and lists
`file_lists/{IR,TV,IRTV}_{train,test}.txt`, a clip a line: its folder beneath the root, how many frames, the
number of its class. That without lists the clips lie in `{IR,TV}/CLASS/CLIP/` is assumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tubelens.errors import InputError, OptionError, nearest
from tubelens.evaluate.items import Item, Manifest
from tubelens.video.streams import paired, read_options

PREFIX = "msad:"
FOLDERS = {"TV": "visible", "IR": "ir"}
"""Folder of each spectrum, and what the column `spectrum` calls it."""
SPECTRA = ("IR", "TV", "IRTV", "paired")
SPLITS = ("train", "test")
LISTS = "file_lists"
USAGE = "msad:FOLDER?spectrum=IR (or TV, IRTV, paired), and split=train or split=test where it has lists"


@dataclass(frozen=True)
class Recording:
    """One clip in one spectrum.

    Attributes:
        scene: its folder beneath that of the spectrum: the same in both.
        spectrum: `IR` or `TV`.
        path: its folder.
        label: of its class.
        where: file and line, or folder, that names it.
    """

    scene: str
    spectrum: str
    path: str
    label: str
    where: str


def msad_manifest(text: str, clips: Callable[[Path], list[str]]) -> Manifest:
    """The manifest of `msad:FOLDER?spectrum=IRTV&split=test`.

    Args:
        text: folder and options. `spectrum`: `IR`, `TV`, both as clips of their own (`IRTV`), or both of a
            scene as one clip of bands R, G, B and IR (`paired`). `split`: that of the lists; without, all
            clips in `FOLDER/SPECTRUM/CLASS/CLIP`.
        clips: names of the clips in a folder, in order.

    Raises:
        OptionError: an unknown option or value.
        InputError: the folder is not laid out like that.
    """
    root, spectrum, split = _asked(text)
    names = [name for name in FOLDERS if name in spectrum or spectrum == "paired"]
    if split:
        found = {name: list(_listed(root, name, split)) for name in names}
    else:
        found = {name: list(_walked(root, name, clips)) for name in names}
    items = _paired(found, text) if spectrum == "paired" else _apart(found)
    labels: dict[str, str] = {}
    for item, where in items:
        labels.setdefault(str(item.label), where)
    made = [item for item, _ in items]
    return Manifest(text, lambda: iter(made), len(made), labels)


def _asked(text: str) -> tuple[Path, str, str]:
    folder, _, query = text.removeprefix(PREFIX).partition("?")
    given = {"spectrum": "IRTV", "split": ""}
    for key, value in read_options(query, text):
        if key not in given:
            raise OptionError(f"{text}: no option {key!r}{nearest(key, given)}: {USAGE}")
        given[key] = value
    known = {name.lower(): name for name in SPECTRA}
    if given["spectrum"].lower() not in known:
        raise OptionError(f"{text}: spectrum cannot be {given['spectrum']!r}: {USAGE}")
    if given["split"] not in ("", *SPLITS):
        raise OptionError(f"{text}: split cannot be {given['split']!r}: {USAGE}")
    if not os.path.isdir(folder):
        raise InputError(f"{text}: {folder or 'nothing'} is no folder: {USAGE}")
    return Path(folder), known[given["spectrum"].lower()], given["split"]


# ── with lists ───────────────────────────────────────────────────────────────────────────────────────────


def _listed(root: Path, spectrum: str, split: str) -> Iterator[Recording]:
    """Clips of `file_lists/SPECTRUM_SPLIT.txt`, or those of a spectrum in the list of both."""
    file = root / LISTS / f"{spectrum}_{split}.txt"
    both = root / LISTS / f"IRTV_{split}.txt"
    joint = not file.is_file() and both.is_file()
    try:
        lines = (both if joint else file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'}): without split= all"
            f" clips in {spectrum}/CLASS/CLIP are taken"
        ) from error
    count = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{both if joint else file}, line {number}"
        recording = _of_line(line, where, root, spectrum, joint)
        if recording is not None:
            count += 1
            yield recording
    if not count:
        raise InputError(f"{both if joint else file}: names no clips of {spectrum}")


def _of_line(line: str, where: str, root: Path, spectrum: str, joint: bool) -> Recording | None:
    """The clip of a line `PATH NUM_FRAMES LABEL`; None in a list of both where it is in the other."""
    parts = line.rsplit(maxsplit=2)
    if len(parts) < 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        raise InputError(f"{where}: must be PATH NUM_FRAMES LABEL, not {line.strip()!r}")
    folder, frames, label = os.path.normpath(parts[0]), int(parts[1]), parts[2]
    steps = folder.split(os.sep)
    place = next((n for n, step in enumerate(steps) if step in FOLDERS), None)
    if place is not None and steps[place] != spectrum:
        if joint:
            return None
        raise InputError(f"{where}: a clip of {steps[place]} in the list of {spectrum}")
    if joint and place is None:
        raise InputError(f"{where}: {folder} does not tell its spectrum: no folder of it is IR or TV")
    path = root / folder
    if not path.is_dir():
        raise InputError(f"{where}: {path} is not there: paths are relative to {root}")
    there = sum(entry.suffix.lower() in (".png", ".jpg", ".jpeg") for entry in path.iterdir())
    if there < frames:
        raise InputError(f"{where}: {frames} frames are listed, {path} has {there}")
    rest = steps if place is None else steps[:place] + steps[place + 1 :]
    return Recording("/".join(rest), spectrum, str(path), label, where)


# ── without ──────────────────────────────────────────────────────────────────────────────────────────────


def _walked(root: Path, spectrum: str, clips: Callable[[Path], list[str]]) -> Iterator[Recording]:
    """Clips in `SPECTRUM/CLASS/CLIP`."""
    folder = root / spectrum
    if not folder.is_dir():
        has = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())) or "no folders"
        raise InputError(f"{root}: has no folder {spectrum}, but {has}: clips lie in {spectrum}/CLASS/CLIP/")
    count = 0
    for kind in sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[:1] != "."):
        for name in clips(kind):
            count += 1
            yield Recording(f"{kind.name}/{name}", spectrum, str(kind / name), kind.name, str(kind))
    if not count:
        raise InputError(f"{folder}: no folder CLASS/CLIP in it holds frames")


# ── items ────────────────────────────────────────────────────────────────────────────────────────────────


def _apart(found: Mapping[str, list[Recording]]) -> list[tuple[Item, str]]:
    """A clip a spectrum."""
    every = [recording for recordings in found.values() for recording in recordings]
    return [
        (Item(f"{r.spectrum}/{r.scene}", r.path, label=r.label, spectrum=FOLDERS[r.spectrum]), r.where)
        for r in every
    ]


def _paired(found: Mapping[str, list[Recording]], text: str) -> list[tuple[Item, str]]:
    """A clip a scene that both spectra show, of four bands."""
    infrared = {recording.scene: recording for recording in found["IR"]}
    items = []
    for visible in found["TV"]:
        ir = infrared.get(visible.scene)
        if ir is None:
            continue
        if ir.label != visible.label:
            raise InputError(f"{ir.where}: {visible.scene} is class {ir.label}, but {visible.label} in TV")
        source = paired(visible=visible.path, ir=ir.path)
        items.append((Item(visible.scene, source, label=visible.label, spectrum="visible+ir"), visible.where))
    if not items:
        raise InputError(f"{text}: no scene is in both spectra: they are matched by CLASS/CLIP")
    return items
