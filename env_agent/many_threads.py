"""What the interpreter and Linux must know about a process with thousands of threads."""

from __future__ import annotations

import ctypes
import sys

FEW_THREADS = 32  # up to this many, the interpreter switches threads as often as usual
MAX_SWITCH_S = 0.3  # how long a thread may keep the interpreter if there are very many

# Linux 6.16 and later: how many buckets the process's table of waiting threads has.
_PR_FUTEX_HASH, _SET_SLOTS, _GET_SLOTS = 78, 1, 2

if sys.platform == "linux":
    _prctl = ctypes.CDLL(None).prctl
    _prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class ThreadSettings:
    """Adapts the process to its number of threads, until `restore`."""

    def __init__(self) -> None:
        self._usual_s = sys.getswitchinterval()

    def adapt(self, threads: int) -> None:
        """Set what suits this number of threads, most of which wait. Call it regularly."""
        # Each thread that waits for the interpreter wakes up once per interval. If a thousand
        # steps end at once, that would take more time than the threads need.
        usual_s = self._usual_s
        switch_s = max(usual_s, min(usual_s * threads / FEW_THREADS, MAX_SWITCH_S))
        if abs(sys.getswitchinterval() - switch_s) > usual_s:
            sys.setswitchinterval(switch_s)
        allow_waiting(threads)

    def restore(self) -> None:
        """Let the interpreter switch threads as often as before."""
        sys.setswitchinterval(self._usual_s)


def allow_waiting(threads: int) -> None:
    """Let this many threads wait without slowing down each use of a lock, if Linux permits it.

    Waking a thread takes the longer the more threads wait in the same bucket, and Linux makes only
    four buckets for each processor.
    """
    buckets = waiting_buckets()
    if 0 < buckets < threads:
        _prctl(_PR_FUTEX_HASH, _SET_SLOTS, 1 << (threads - 1).bit_length(), 0, 0)


def waiting_buckets() -> int:
    """Return how many buckets this process has for waiting threads.

    Returns 0 or less where the kernel has one table for all processes, or does not say.
    """
    return _prctl(_PR_FUTEX_HASH, _GET_SLOTS, 0, 0, 0) if sys.platform == "linux" else 0
