"""What a watcher sees of an environment: a rendered array as a PNG, or a text."""

from __future__ import annotations

from typing import Any

import numpy as np

from gymwire.protocol.pictures import COLORS, png

TEXT_BYTES = 64 * 1024  # of a text; the rest is left out


def shown(rendered: Any, limit: int) -> tuple[str, bytes]:
    """Return the media type and the bytes of what `render` has returned, at most `limit` of them.

    Raises TypeError if it is neither a picture nor a text.
    """
    if isinstance(rendered, str):
        text = rendered.encode("utf-8", "replace")[: min(TEXT_BYTES, limit)]
        return "text/plain", text.decode("utf-8", "ignore").encode()
    if isinstance(rendered, np.ndarray) and rendered.dtype == np.uint8 and rendered.size:
        pixels = rendered[..., np.newaxis] if rendered.ndim == 2 else rendered
        if pixels.ndim == 3 and pixels.shape[2] in COLORS:
            # Rows that cannot be compressed grow a little.
            return "image/png", png(_shrunk(pixels, limit - limit // 256 - 128))
    what = type(rendered).__name__
    if isinstance(rendered, np.ndarray):
        what = f"an array of {rendered.dtype} with the shape {rendered.shape}"
    raise TypeError(f"render() returned {what}, which is neither a picture nor a text")


def _shrunk(pixels: np.ndarray[Any, Any], limit: int) -> np.ndarray[Any, Any]:
    """Return every n-th row and column, for the smallest n with at most `limit` bytes in all."""
    step = 1
    while _row_bytes(pixels[::step, ::step]) > limit:
        step += 1
    return pixels[::step, ::step]


def _row_bytes(pixels: np.ndarray[Any, Any]) -> int:
    height, width, channels = pixels.shape
    return int(height * (1 + width * channels))
