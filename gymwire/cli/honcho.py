"""Commands that honcho has started end when its terminal is closed.

Each has a process session of its own, so the SIGHUP of the terminal ends only honcho, at once, and
the processes with which honcho reads their output.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import sys
import threading

from gymwire.protocol.ending_signals import ending_signals


def end_with_honcho() -> None:
    """Send this process SIGHUP when honcho no longer reads its output, if honcho has started it.

    If `nohup` started honcho, send SIGUSR1 to an env agent, which may get it more than once, and
    SIGTERM to others.
    """
    if "HONCHO_PROCESS_NAME" in os.environ and sys.platform != "win32" and _is_read_by_honcho():
        hangs_up = signal.SIGHUP in ending_signals()
        threading.Thread(target=_wait_for_end, args=[hangs_up], name="honcho", daemon=True).start()


def _is_read_by_honcho() -> bool:
    """Return whether standard output and standard error are one pipe, as honcho makes it."""
    with contextlib.suppress(OSError):  # one of them is closed
        output = os.fstat(1)
        return stat.S_ISFIFO(output.st_mode) and os.path.samestat(output, os.fstat(2))
    return False


def _wait_for_end(hangs_up: bool) -> None:
    poller = select.poll()
    poller.register(1, 0)  # standard output: only whether it has failed
    poller.poll()
    drains = callable(signal.getsignal(signal.SIGUSR1))
    other = signal.SIGUSR1 if drains else signal.SIGTERM
    os.kill(os.getpid(), signal.SIGHUP if hangs_up else other)
