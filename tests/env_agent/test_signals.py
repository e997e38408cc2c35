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

# The handlers of an environment that has left them raise again while their first exception is
# examined. A handler that does nothing is left for a child's end.
AT_END = """
import signal, subprocess, sys
from gymwire.env_agent import signals

restore = signals.watch(print)
outside = {"__name__": "environment"}
exec("def expired(number, frame): raise TimeoutError", outside)
examine, raised = signals.is_from_signal_handler, []

def raise_again(error):
    raised.append(error)
    if len(raised) < 3:
        signal.raise_signal(signal.SIGUSR2)
    return examine(error)

def set_timer(timer, seconds):
    if not raised:
        signal.raise_signal(signal.SIGUSR2)
    return set_it(timer, seconds)

signals.is_from_signal_handler = raise_again
set_it, signal.setitimer = signal.setitimer, set_timer
signal.signal(signal.SIGUSR2, outside["expired"])
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.signal(signal.SIGINT, signal.SIG_IGN)
restore(at_end=True)
assert len(raised) == 3
assert callable(signal.getsignal(signal.SIGINT))
assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
assert subprocess.run([sys.executable, "-c", "raise SystemExit(7)"]).returncode == 7
"""


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_agents_handlers_are_restored_and_those_of_an_event_loop_stay() -> None:
    assert run(PROGRAM).count("signal handler restored") == 1


def test_at_the_end_handlers_that_raise_again_and_again_are_removed() -> None:
    run(AT_END)
