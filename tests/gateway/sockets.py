"""Peers of a broker that speak over a WebSocket."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gymwire.protocol.codec import PLAIN, Codec, Header, read_header
from gymwire.protocol.messages import Busy, Hello, Kind, Message, Role, Welcome
from tests.processes import PATIENCE_S, Program, Programs

M = TypeVar("M", bound=Message)


class Peer:
    """A WebSocket, and messages over it."""

    def __init__(self, url: str, **options: Any) -> None:
        from websockets.sync.client import connect
        from websockets.typing import Subprotocol

        self._stack = contextlib.ExitStack()
        opening = connect(
            f"{url.replace('http', 'ws', 1)}/ws",
            subprotocols=[Subprotocol("gymwire")],
            max_size=None,
            compression=None,
            proxy=None,
            open_timeout=PATIENCE_S,
            **options,
        )
        self.socket = self._stack.enter_context(opening)

    def send(self, message: Message, sid: int = 0, seq: int = 0, codec: Codec = PLAIN) -> bytes:
        frame = bytes(codec.encode(message, sid, seq))
        self.socket.send(frame)
        return frame

    def frame(self) -> tuple[Header, bytes]:
        """Return the next frame that is not a PING."""
        while True:
            data = self.socket.recv(PATIENCE_S)
            assert isinstance(data, bytes)
            header = read_header(data)
            if header.kind is not Kind.PING:
                return header, data

    def expect(self, kind: type[M], codec: Codec = PLAIN) -> tuple[Header, M]:
        """Return the next message, which must be of this type."""
        header, data = self.frame()
        message = codec.decode(data, header)
        assert isinstance(message, kind), message
        return header, message

    def hello(self, role: str, agent: bytes = bytes(16), sessions: Any = ()) -> Welcome:
        """Introduce this peer, and return the broker's answer."""
        self.send(Hello(role, agent, "test", "elsewhere", list(sessions)), 0, 1)
        while True:
            header, data = self.frame()
            message = PLAIN.decode(data, header)
            if isinstance(message, Welcome):
                return message
            assert isinstance(message, Busy), message

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def learner(url: str, **options: Any) -> Iterator[Peer]:
    """Yield a learner that the broker knows."""
    peer = Peer(url, **options)
    try:
        peer.hello(Role.LEARNER)
        yield peer
    finally:
        peer.close()


def gateway(programs: Programs, broker: str, *options: str) -> tuple[Program, str]:
    """Start a gateway. Returns it and its URL."""
    program = programs.start(
        *("gymwire", "web", "--listen", "127.0.0.1:0", "--broker", broker),
        *("--log-format", "json", *options),
    )
    return program, str(program.wait_for("gateway listening")["url"])


def private(path: Path, text: str) -> Path:
    """Write a file that only its owner can read."""
    path.write_text(text)
    path.chmod(0o600)
    return path


def until(done: Callable[[], bool]) -> None:
    """Call `done` until it returns True."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
