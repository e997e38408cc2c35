"""How many files and sockets this process may open."""

from __future__ import annotations

import errno
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

from gymwire.protocol import logs

if sys.platform != "win32":
    import resource

MOST = 65_536  # some programs that a process starts close every number up to its limit
CHECK_S = 1.0  # between two checks whether a listening process may open more files
WARNING_S = 60.0  # between two warnings that it may not


def allow_more() -> bool:
    """Raise the soft limit to the hard one, or to MOST; return whether it was lower."""
    if sys.platform == "win32":
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # the system has a lower one for all processes
        return False
    return True


def most() -> int:
    """Return how many files and sockets this process may have open."""
    if sys.platform == "win32":
        return MOST
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if limit == resource.RLIM_INFINITY else limit


def is_none_left() -> bool:
    """Return whether this process has as many files and sockets open as it may."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno == errno.EMFILE
    return False


class Watch:
    """Warns if no descriptor is left: libzmq then tries all the time to accept connections."""

    def __init__(self) -> None:
        self._next = -math.inf

    def check(self, now: float) -> None:
        """Check this from time to time. `now`: in seconds, by the monotonic clock."""
        if now < self._next:
            return
        self._next = now + CHECK_S
        if is_none_left():
            self._next = now + WARNING_S
            limit = most()
            logs.logger().warning(
                "no file descriptors left",
                open=limit,
                limit=limit,
                why="new connections wait, and the attempts to accept them take a processor: raise "
                "the limit (ulimit -n), or find out who holds so many connections",
            )


class Lack(NamedTuple):
    """How many files and sockets this process may have open, and how many it needs."""

    limit: int
    needed: int


def lack_of(more: int) -> Lack | None:
    """Return what is lacking if this process may not open so many more files; None if it may.

    Also None on systems that do not say how many are open.
    """
    if sys.platform != "linux" or more == 0:
        return None
    allow_more()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len([*Path("/proc/self/fd").iterdir()]) + more
    return Lack(limit, needed) if needed > limit != resource.RLIM_INFINITY else None
