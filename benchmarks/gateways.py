"""A step through the WebSocket gateway."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from benchmarks import ours
from benchmarks.harness import Running, Side
from gymwire.protocol.codec import PLAIN, Header, read_header
from gymwire.protocol.messages import Act, Hello, Kind, Message, Open, Reset, Role

PATH: ours.SessionPath = "relayed, same host"
ENV = "benchmarks.environments:Picture"
KWARGS = {"shape": [4], "dtype": "float32"}
WAIT_S = 60.0  # for a program to start


def through_gateway() -> Side:
    """Return a side whose learner speaks the protocol over a WebSocket of `gymwire web`."""
    return Side("gymwire relayed, WebSocket", _through_gateway)


@contextlib.contextmanager
def _through_gateway() -> Iterator[Running]:
    with contextlib.ExitStack() as stack:
        url, pids = stack.enter_context(ours.service(ENV, PATH, env_kwargs=KWARGS))
        at = f"127.0.0.1:{ours.free_port()}"
        web = ours.program("gymwire web", "--broker", url, "--listen", at)
        gateway = stack.enter_context(web)
        learner = _Learner(stack.enter_context(_connected(f"ws://{at}/ws")))
        learner.ask(Hello(Role.LEARNER, os.urandom(16), "benchmark", "elsewhere", []), Kind.WELCOME)
        opened = learner.ask(Open("it", os.urandom(16)), Kind.OPENED)
        learner.enter(opened.sid)
        learner.ask(Reset(1), Kind.STATUS)
        yield Running(lambda: learner.ask(Act(0), Kind.PERCEPT), {**pids, "gateway": gateway.pid})


def _connected(url: str) -> ClientConnection:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return connect(url, subprotocols=[Subprotocol("gymwire")], compression=None, proxy=None)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise


class _Learner:
    """A learner over a WebSocket, as small as possible."""

    def __init__(self, socket: ClientConnection) -> None:
        self._sid = self._seq = 0
        self._socket = socket

    def enter(self, sid: int) -> None:
        """Send what follows in a session, whose requests have numbers of their own."""
        self._sid, self._seq = sid, 0

    def ask(self, request: Message, kind: Kind) -> Header:
        """Send a request, and return the header of its answer, which must be of this kind."""
        self._seq += 1
        self._socket.send(bytes(PLAIN.encode(request, self._sid, self._seq)))
        while True:
            data = self._socket.recv()
            assert isinstance(data, bytes)
            header = read_header(data)
            if header.kind is kind:
                return header
            if header.kind not in (Kind.PING, Kind.BUSY):
                raise RuntimeError(f"{header.kind.name} instead of {kind.name}: {data!r:.200}")
