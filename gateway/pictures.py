"""Pictures of environments: frames, and observations that are pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box
from PIL import Image

RENDER_MODES = ("rgb_array", "ansi")  # the first one that the environment has is used


def render_mode(metadata: Mapping[str, Any]) -> str | None:
    """Return the mode in which to render an environment with this metadata, if there is one."""
    modes = metadata.get("render_modes") or ()
    return next((one for one in RENDER_MODES if one in modes), None)


def is_picture(space: Space[Any]) -> bool:
    """Return whether observations of this space can be shown as pictures."""
    if not isinstance(space, Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) == 3 and space.shape[2] in (1, 3, 4)


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """Return an array of uint8, height × width × channels, as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "png")
    return file.getvalue()


def data_url(picture: bytes) -> str:
    """Return the URL by which a page shows a PNG."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"
