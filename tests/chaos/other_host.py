"""`python -m tests.chaos.other_host MODULE ARGUMENT…`: run a module as if on another host.

On the broker's host it would get a local channel, which the relays of these tests do not harm.
"""

from __future__ import annotations

import runpy
import socket
import sys

if __name__ == "__main__":
    socket.gethostname = lambda: "another-host"
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
