"""`python -m tests.chaos.elsewhere MODULE ARGUMENT…`: run a module as if on a host of its own.

Who is on the broker's host is given a way that no relay harms.
"""

from __future__ import annotations

import runpy
import socket
import sys

if __name__ == "__main__":
    socket.gethostname = lambda: "elsewhere"
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
