"""From stored frames to displayed ones: upright, and RGB without transparency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

Frame = UInt8[np.ndarray, "h w c"]
LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in a grey band (BT.601)."""


@dataclass(frozen=True)
class Turn:
    """A mirroring left to right, then a rotation by a multiple of 90 degrees counter-clockwise."""

    degrees: int = 0
    mirror: bool = False

    @classmethod
    def of(cls, frame: Any) -> Turn:
        """What a decoded frame's display matrix asks for; angles between the multiples of 90 are rounded."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        # 3x3, row vectors: (x', y') = (a x + c y, b x + d y), y pointing down.
        a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].astype(float)
        mirror = a * d - b * c < 0
        if mirror:
            a, b = -a, -b
        angle = np.degrees(np.arctan2(-b, a))
        return cls(int(round(angle / 90) * 90) % 360, bool(mirror))

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """Height and width once turned."""
        return stored[::-1] if self.degrees % 180 else stored


def upright(frame: UInt8[np.ndarray, "h w c"], turn: Turn) -> UInt8[np.ndarray, "..."]:
    """The frame as displayed, contiguous."""
    if turn.mirror:
        frame = frame[:, ::-1]
    return np.ascontiguousarray(np.rot90(frame, turn.degrees // 90))


def over_black(frame: UInt8[np.ndarray, "h w _"]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB, with transparent parts laid over black."""
    if frame.shape[2] == 3:
        return frame
    colour, alpha = frame[..., :3].astype(np.uint16), frame[..., 3:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


def shown(frame: np.ndarray) -> Frame:
    """uint8 RGB to look at: one channel as grey, the first three of several (two: the third is zero)."""
    values = frame if frame.dtype == np.uint8 else np.round(frame * 255).astype(np.uint8)
    channels = values.shape[2]
    if channels == 1:
        return np.repeat(values, 3, axis=2)
    if channels == 2:
        return np.concatenate([values, np.zeros_like(values[..., :1])], axis=2)
    return np.ascontiguousarray(values[..., :3])
