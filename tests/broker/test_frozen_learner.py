"""A learner that is frozen, and one that only computes, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from gymwire.broker import connections
from gymwire.broker.connections import Connections
from gymwire.broker.server import Server
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol.ending_signals import StopEvent
from tests.chaos.fleet import until
from tests.prefork import Forked
from tests.processes import Programs

# Steps once, then waits for a line on standard input before each further step.
LEARNER = """
import sys
from gymwire import ProxyEnv
env = ProxyEnv("cartpole", sys.argv[1], direct="never")
env.reset(seed=1)
while True:
    env.step(0)
    print("stepped", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A broker that soon disconnects a silent learner and ends its session."""
    monkeypatch.setattr(connections, "LEARNER_SILENCE_S", 3.0)
    server = Server(["tcp://127.0.0.1:*"], lease_s=0.5)
    stop = StopEvent()
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    yield server.urls[0]
    stop.set()
    thread.join()


@contextlib.contextmanager
def learner(url: str) -> Iterator[Forked]:
    """Start a learner, and return it once it has stepped."""
    pipe = subprocess.PIPE
    process = Forked(["-c", LEARNER, url], env=os.environ, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            assert process.stdout.readline() == b"stepped\n"
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_frozen_learner_frees_its_slot_and_one_that_thinks_keeps_it(
    url: str, programs: Programs
) -> None:
    programs.env_agent(url, "--address", "cartpole", "--env", "CartPole-v1")
    with (
        contextlib.closing(BrokerConnection(url)) as connection,
        learner(url) as thinks,
        learner(url) as other,
    ):

        def used() -> int:
            return sum(offer["used"] for offer in connection.find("cartpole"))

        assert used() == 2
        # Frozen right after a step, before its next heartbeat: libzmq itself never misses it.
        other.send_signal(signal.SIGSTOP)
        until(lambda: used() == 1, "the slot of the frozen learner is free")
        assert thinks.stdin is not None
        assert thinks.stdout is not None
        thinks.stdin.write(b"step\n")
        assert thinks.stdout.readline() == b"stepped\n"
        assert used() == 1


def test_the_slot_of_a_killed_learner_is_freed_although_all_probes_succeeded(
    url: str, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of libzmq may report the end of a connection, and only seconds later close it."""
    reported: list[int] = []
    link_down = Connections.link_down

    def probes_succeed_at_first(self: Connections, fd: int) -> None:
        if fd in reported:
            link_down(self, fd)
        reported.append(fd)

    monkeypatch.setattr(Connections, "link_down", probes_succeed_at_first)
    programs.env_agent(url, "--address", "cartpole", "--env", "CartPole-v1")
    with contextlib.closing(BrokerConnection(url)) as connection, learner(url) as killed:

        def used() -> int:
            return sum(offer["used"] for offer in connection.find("cartpole"))

        assert used() == 1
        killed.kill()
        until(lambda: used() == 0, "the slot of the killed learner is free")
