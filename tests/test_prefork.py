"""No process that a test has started is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.fleet import until
from tests.prefork import ROOT

# Starts a process without the imports that `python -m tests.prefork` does first, and says its id.
TESTS = """
import os, signal, socket
from tests import prefork
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if os.fork() == 0:
    here.close()
    prefork.serve(there)  # returns in the process that was asked for
    signal.pause()
there.close()
prefork._open.append(here)
print(prefork.Forked([], env={}).pid, flush=True)
signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_tests_that_are_killed_leave_no_process_behind() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TESTS], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.kill()
        until(lambda: not is_running(pid), "the process ends")


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
