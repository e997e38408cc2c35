"""A video of the episodes that a command plays."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.extras import missing

MODE = "rgb_array"  # the render mode that a video needs
SUFFIX = ".mp4"
USUAL_FPS = 30  # of an environment whose metadata does not say


def check(path: Path) -> None:
    """Raise ConfigurationError if no video can be written to `path`."""
    if path.suffix.lower() != SUFFIX:
        raise ConfigurationError(f"{path} must end with {SUFFIX}.")
    if find_spec("moviepy") is None:
        raise ConfigurationError(missing("Videos need moviepy", "video"))
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path}: there is no folder {path.parent}. Make it first.")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written. Choose another name.")


class Video:
    """A video file, written frame by frame. The file begins with the first frame."""

    def __init__(self, path: Path, env: gymnasium.Env[Any, Any]) -> None:
        self._path, self._env = path, env
        self._writer: Any = None
        fps = env.metadata.get("render_fps")
        self._fps = float(fps) if isinstance(fps, Real) and 0 < float(fps) < math.inf else USUAL_FPS
        self._shape: tuple[int, ...] = ()
        self.frames = 0

    def add_frame(self) -> None:
        """Add what the environment renders now. Raises ConfigurationError if it is not an image."""
        frame: Any = self._env.render()
        is_image = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
        if not is_image or frame.shape[2] != 3 or not frame.size:
            raise ConfigurationError(
                f"--video needs images of bytes (height × width × 3); the environment renders "
                f"{getattr(frame, 'dtype', type(frame).__name__)} {getattr(frame, 'shape', '')}."
            )
        if self._shape not in ((), frame.shape):
            raise ConfigurationError(
                f"--video needs images of one size; that of the environment has changed from "
                f"{self._shape} to {frame.shape}."
            )
        self._shape = frame.shape
        # The usual encoding takes colours for squares of two by two pixels.
        height, width = (size + size % 2 for size in frame.shape[:2])
        frame = np.pad(
            frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)), mode="edge"
        )
        if self._writer is None:
            from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

            self._writer = FFMPEG_VideoWriter(
                str(self._path), (width, height), self._fps, logfile=None
            )
        self._writer.write_frame(frame)
        self.frames += 1

    def close(self) -> None:
        """Complete the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
