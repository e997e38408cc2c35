"""How many files and sockets this process may open."""

from __future__ import annotations

import sys

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
