"""Processes that an environment forks: they share the env agent's sockets, and must not use them.

Code that forks ends its child by an exception, such as that of `sys.exit`. The env agent takes the
exceptions of an environment for replies, so the child would answer in its place, and live on.
"""

from __future__ import annotations

import os
import sys
import traceback


def end_if_forked(pid: int, error: BaseException) -> None:
    """End this process because of an exception as Python does, unless it is the one with this id.

    `os._exit` ends it, because what else Python does at its end concerns the other process, too.
    """
    if os.getpid() == pid:
        return
    status: object = 1
    if isinstance(error, SystemExit):
        status = 0 if error.code is None else error.code
        if not isinstance(status, int):
            print(status, file=sys.stderr)  # noqa: T201 - as Python does
    else:
        traceback.print_exception(error)
    os._exit(status & 0xFF if isinstance(status, int) else 1)
