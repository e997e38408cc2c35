"""Commands that honcho has started end with it.

Each has a process session of its own, so the SIGHUP of a closed terminal ends honcho only, at once.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading


def end_with_honcho() -> None:
    """Send this process SIGTERM when nobody reads its output any more, if honcho has started it."""
    if "HONCHO_PROCESS_NAME" in os.environ and sys.platform != "win32":
        threading.Thread(target=_wait_for_end, name="honcho", daemon=True).start()


def _wait_for_end() -> None:
    poller = select.poll()
    poller.register(1, 0)  # standard output: only whether it has failed
    poller.poll()
    os.kill(os.getpid(), signal.SIGTERM)
