"""Pictures of environments: frames, and observations that are pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from gymwire.protocol import pictures
from gymwire.protocol.pictures import RENDER_MODES


def render_mode(metadata: Mapping[str, Any]) -> str | None:
    """Return the mode in which to render an environment with this metadata, if there is one."""
    modes = metadata.get("render_modes")
    known = modes if isinstance(modes, list | tuple) else ()  # an env agent chooses it
    return next((one for one in RENDER_MODES if one in known), None)


def png(value: Any) -> bytes | None:
    """Return an array of uint8, height × width × channels, as a PNG; None for anything else."""
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3:
        return None
    pixels: np.ndarray[Any, Any] = value
    if pixels.size == 0 or pixels.shape[2] not in (1, 3, 4):
        return None
    return pictures.png(pixels)


def data_url(picture: bytes) -> str:
    """Return the URL by which a page shows a PNG."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"
