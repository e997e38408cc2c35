"""How many files and sockets this process may open."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

if sys.platform != "win32":
    import resource

MOST = 65_536  # some programs that a process starts close every number up to its limit


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
