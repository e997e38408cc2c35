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

    `os._exit` ends it, because what else Python does at its end concerns the other process, too. It
    ends whatever its output raises.
    """
    if os.getpid() == pid:
        return
    code = error.code if isinstance(error, SystemExit) else 1
    status = code if isinstance(code, int) else int(code is not None)
    try:
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        elif not (code is None or isinstance(code, int)):
            print(code, file=sys.stderr)  # noqa: T201 - as Python does
        sys.stdout.flush()
    finally:
        os._exit(status & 0xFF)
