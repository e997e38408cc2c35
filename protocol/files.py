"""Read files that a person named: they may be anything, also a device without an end."""

from __future__ import annotations

import errno
from pathlib import Path

MAX_TEXT_FILE = 16 * 1024 * 1024  # bytes


def read_text(path: Path, most: int = MAX_TEXT_FILE) -> str:
    """Return the text of a file. Raises OSError if it has more than `most` bytes; ValueError."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return data.decode("utf-8")
