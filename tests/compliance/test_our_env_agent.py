"""Our own env agent complies: in memory, and as a process over real sockets."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from gymwire.env_agent.config import service
from gymwire.env_agent.loop import ServingLoop
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.transports import Transports
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Hello, Role
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.interface import LinkEvent
from gymwire.protocol.transport.router import Router
from tests.compliance.suite import Agent, EnvAgentCompliance
from tests.processes import programs

ENV = "CartPole-v1"
PATIENCE_S = 20.0


class MemoryDealer:
    """What a Dealer is to a serving loop, and a Link to the suite: two queues."""

    url = "memory://broker"
    handshake_hint = ""
    has_buffered = False

    def __init__(self) -> None:
        self.to_agent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.to_broker: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def send(self, frame: bytes | bytearray, wait: bool = False) -> bool:
        self.to_broker.put(bytes(frame))
        return True

    def receive(self) -> bytes | None:
        try:
            return self.to_agent.get(timeout=0.02)
        except queue.Empty:
            return None

    def link_events(self) -> list[LinkEvent]:
        return []

    def close(self, linger_s: float = 0.0) -> None:
        pass


class MemoryLink:
    def __init__(self, dealer: MemoryDealer) -> None:
        self._dealer = dealer

    def send(self, frame: bytes) -> None:
        self._dealer.to_agent.put(frame)

    def receive(self) -> bytes | None:
        try:
            return self._dealer.to_broker.get(timeout=PATIENCE_S)
        except queue.Empty:
            return None


class SocketLink:
    """A broker's socket, at the first serving loop that introduces itself there."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._loop: bytes | None = None

    def send(self, frame: bytes) -> None:
        assert self._loop is not None
        self._router.send(self._loop, frame)

    def receive(self) -> bytes | None:
        for _ in range(int(PATIENCE_S * 10)):  # the socket waits for a tenth of a second
            received = self._router.receive()
            if received is None:
                continue
            frame = bytes(received[2])
            if self._loop is None:
                hello = PLAIN.decode(frame)
                if isinstance(hello, Hello) and hello.role == Role.ENV:
                    self._loop = received[0]
            if received[0] == self._loop:
                return frame
        return None


@pytest.fixture(scope="module")
def served() -> Iterator[Agent]:
    """Our env agent as a process; all tests share it, each with sessions of its own."""
    router = Router(["tcp://127.0.0.1:*"])
    options = ("--address", "lab/cartpole", "--env", ENV, "--threads", "1", "--grace", "0")
    with programs() as started:
        started.start("gymwire.env_agent", "--broker", router.urls[0], *options)
        yield Agent(SocketLink(router))
    router.close()


class TestInMemory(EnvAgentCompliance):
    @pytest.fixture
    def agent(self) -> Iterator[Agent]:
        dealer = MemoryDealer()
        offered = service(address="lab/cartpole", env=ENV)
        host = SessionHost([offered])
        offers = [host.environments.describe(offered, 4, None)]
        link = BrokerLink(cast(Any, dealer), eager=True)
        loop = ServingLoop(lambda: Transports(link, None), host, b"a" * 16, has_threads=False)

        def serve() -> None:
            loop.connect(offers, PATIENCE_S)
            loop.run()

        thread = threading.Thread(target=serve)
        thread.start()
        yield Agent(MemoryLink(dealer))
        loop.stop.set()
        thread.join()


class TestOverSockets(EnvAgentCompliance):
    @pytest.fixture
    def agent(self, served: Agent) -> Agent:
        return served
