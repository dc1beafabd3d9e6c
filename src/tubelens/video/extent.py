"""How long a file says it is: the outermost boxes of MP4, Matroska and AVI carry their size.

A file that is shorter was cut off, which libav reports as an ordinary end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_short(file: Path) -> bool:
    """Whether the file ends before its own structure does; False where that says nothing."""
    size = file.stat().st_size
    with file.open("rb") as data:
        head = data.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return any(end > size for _, end in _boxes(data, size))
        if head[:4] == EBML:
            end = _segment_end(data)
            return end is not None and end > size
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return int.from_bytes(head[4:8], "little") + 8 > size
    return False


def lacks_moov(file: Path) -> bool:
    """Whether it begins like an MP4 or MOV file but has no `moov`, the index of all frames."""
    with file.open("rb") as data:
        kinds = [kind for kind, _ in _boxes(data, file.stat().st_size)]
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds


def _boxes(data: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Kind and end of each outermost box of an MP4 file."""
    at = 0
    while at < size:
        data.seek(at)
        head = data.read(16)
        length, least = int.from_bytes(head[:4], "big"), 8
        if length == 1:  # a 64-bit length follows
            length, least = int.from_bytes(head[8:16], "big"), 16
        if length == 0:  # up to the end of the file
            length = size - at
        if len(head) < 8 or length < least:
            if len(head) < 8:
                yield b"", at + 8
            return
        at += length
        yield head[4:8], at


def _segment_end(data: BinaryIO) -> int | None:
    """Where a Matroska segment ends, None where its size was left open (a live recording)."""
    data.seek(4)
    length = _varint(data)
    if length is None:
        return None
    data.seek(length, 1)
    if data.read(4) != SEGMENT:
        return None
    length = _varint(data)
    return None if length is None else data.tell() + length


def _varint(data: BinaryIO) -> int | None:
    """A Matroska size: leading zero bits say how many bytes follow the first; all ones: unknown."""
    first = data.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (1 << (7 - more)) - 1]) + data.read(more), "big")
    return None if value == (1 << (7 * (more + 1))) - 1 else value
