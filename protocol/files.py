"""Read files that a person has named. They may be anything, even an endless device."""

from __future__ import annotations

import errno
from pathlib import Path

MAX_TEXT_FILE = 16 * 1024 * 1024  # bytes


def read_text(path: Path, limit: int = MAX_TEXT_FILE) -> str:
    """Return the text of a file. Raises OSError, also beyond `limit` bytes, and ValueError."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return data.decode("utf-8")
