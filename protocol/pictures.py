"""Pictures of environments: the render modes that can be shown, and arrays as PNG."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

RENDER_MODES = ("rgb_array", "ansi")  # that can be shown, the best first
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLORS = {1: 0, 2: 4, 3: 2, 4: 6}  # the color type of a PNG by its number of channels


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """Return an array of uint8, height × width × channels, as a PNG."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, width * channels)
    head = struct.pack(">IIBBBBB", width, height, 8, COLORS[channels], 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 1)
    return b"".join((_SIGNATURE, _chunk(b"IHDR", head), _chunk(b"IDAT", body), _chunk(b"IEND")))


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))
