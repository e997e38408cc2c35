"""An env agent returns the memory of large messages, whichever threads have decoded them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from gymwire import ProxyVectorEnv
from tests.processes import PATIENCE_S, programs

MIB = 1024 * 1024
KEPT = 96 * MIB  # the end of an arena, and what the interpreter keeps
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident(pid: int) -> int:
    """Return the bytes of memory that belong to a process, its part of shared memory included."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("Pss:")[1].split()[0]) * 1024


def settled(pid: int, at_most: int) -> int:
    """Wait until a process has at most so many bytes; return how many it has then, or at last."""
    deadline = time.monotonic() + PATIENCE_S / 4
    while (found := resident(pid)) > at_most and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_memory_does_not_grow_with_the_threads_that_have_decoded_large_messages(
    broker_url: str,
) -> None:
    with programs() as started:
        agent = started.env_agent(
            broker_url, "--address", "memory", "--env", "CartPole-v1", "--max-sessions", "16"
        )
        pid = agent.process.pid

        def send(sessions: int) -> None:
            with ProxyVectorEnv("memory", sessions, broker_url, sessions=sessions) as envs:
                envs.reset(options={"x": bytes(16 * MIB)})

        small = resident(pid)
        for _ in range(3):
            send(8)
        assert settled(pid, small + KEPT) <= small + KEPT
