"""What an environment does with signals is undone, but for what its event loop needs."""

from __future__ import annotations

import subprocess
import sys

# Signals belong to a whole process.
PROGRAM = """
import asyncio, os, queue, signal
from gymwire.env_agent import signals

got = queue.Queue()
restore = signals.watch(got.put)

def arrives(number):
    os.kill(os.getpid(), number)
    return got.get(timeout=20) == number

for former in (signal.SIG_IGN, signal.SIG_DFL):
    signal.signal(signal.SIGINT, former)
    signal.set_wakeup_fd(-1)
    restore()
    assert arrives(signal.SIGINT)

async def use_a_loop():
    noted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, noted.set)
    restore()
    os.kill(os.getpid(), signal.SIGUSR2)
    await asyncio.wait_for(noted.wait(), 20)

asyncio.run(use_a_loop())
restore()
assert arrives(signal.SIGTERM)
"""


def test_the_agents_handlers_are_restored_and_those_of_an_event_loop_stay() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("signal handler restored") == 1
