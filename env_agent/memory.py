"""Return the memory of large messages to the system (docs/security.md, "Decoding").

glibc keeps freed memory for later, in arenas: at most 64 MiB at the end of each, and any amount in
between. By default there are eight arenas for each processor, and each thread that decodes a large
message soon has filled one.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from typing import Any

LARGE = 1024 * 1024  # bytes of a message after which memory is returned
ARENAS = 2  # of which one belongs to the main thread
EVERY_S = 1.0  # returning takes some milliseconds, in which a thread may wait for its arena
_M_ARENA_MAX = -8


def _find(name: str) -> Any:
    """Return a function of glibc; None with another library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def limit_arenas() -> None:
    """Let all threads share `ARENAS` arenas. Call it before there are threads."""
    set_option = _find("mallopt")
    if set_option is not None:
        set_option(_M_ARENA_MAX, ARENAS)


class LargeMessages:
    """Returns freed memory to the system after large messages."""

    def __init__(self) -> None:
        self._trim = _find("malloc_trim")
        self._is_due = threading.Event()
        self._is_kept = False
        self._returned_at = 0.0

    def note(self) -> None:
        """Note that a message of `LARGE` bytes or more was handled. For any thread."""
        self._is_kept = True
        self._is_due.set()

    def note_end(self) -> None:
        """Note that a session has ended, which may have kept a large request until then."""
        if self._is_kept:
            self._is_kept = False
            self._is_due.set()

    def return_memory(self) -> None:
        """Return what is free if it is due. Called regularly by one thread."""
        now = time.monotonic()
        if self._is_due.is_set() and now - self._returned_at >= EVERY_S:
            self._is_due.clear()
            self._returned_at = now
            if self._trim is not None:
                self._trim(0)


LARGE_MESSAGES = LargeMessages()
"""Those of this process, which has one heap."""
