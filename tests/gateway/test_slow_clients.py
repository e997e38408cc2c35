"""The web server cuts off clients that are too slow, and no others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")

from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send
from uvicorn.lifespan.off import LifespanOff
from uvicorn.server import ServerState

from gymwire.gateway import server
from gymwire.gateway.server import (
    ANSWER_S,
    CHECK_EVERY_S,
    REQUEST_S,
    STOP_S,
    Server,
    configuration,
)
from gymwire.gateway.tokens import Visitor
from gymwire.protocol.transport import kernel, open_files

BUFFER = 64 * 1024  # bytes
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
GET = HEAD.replace(b"HEAD", b"GET")
UPGRADE = GET.replace(
    b"\r\n\r\n",
    b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
)


class Loop(asyncio.SelectorEventLoop):
    """A loop whose clock moves only by `pass_time`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        """Return the time."""
        return self.now

    def pass_time(self, seconds: float) -> None:
        """Let time pass, so slowly that each timer is called at its time."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + CHECK_EVERY_S)
            self.turn()

    def turn(self) -> None:
        """Call what is due, and what follows from it."""
        for _ in range(10):
            self.call_soon(self.stop)
            self.run_forever()


class Transport(asyncio.Transport):
    """A connection of which the test decides what its client takes."""

    def __init__(self, protocol: Any, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self.protocol = protocol
        self.unsent = self.taken = 0
        self.is_cut_off = False
        protocol.connection_made(self)

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        self.unsent += len(data)
        if self.unsent > BUFFER:
            self.protocol.pause_writing()

    def take(self, size: int) -> None:
        size = min(size, self.unsent)
        self.taken, self.unsent = self.taken + size, self.unsent - size
        if self.unsent <= BUFFER:
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.is_cut_off = True
        self.protocol.connection_lost(ConnectionResetError())

    def is_closing(self) -> bool:
        return self.is_cut_off

    def close(self) -> None:  # as if not all were sent yet
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


Connect = Callable[[], Transport]


@pytest.fixture
def loop() -> Any:
    made = Loop()
    yield made
    for task in asyncio.all_tasks(made):
        task.cancel()
    made.turn()
    made.close()


@pytest.fixture
def connect(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what connects a client to a server with 4 strangers at most."""
    monkeypatch.setattr(open_files, "most", lambda: 4 * server.FILES_PER_STRANGER)
    config, state, made = configuration(answer), ServerState(), list[Transport]()
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def connect() -> Transport:
            protocol: Any = config.http_protocol_class
            protocol = protocol(config=config, server_state=state, app_state={}, _loop=loop)
            made.append(Transport(protocol, sock))
            return made[-1]

        config.load()
        monkeypatch.setattr(kernel, "bytes_taken", lambda _: made[-1].taken)
        yield connect
        for one in made:
            one.protocol.connection_lost(None)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer; with the method POST only after an hour, and at /stream without end."""
    scope["gymwire.visitor"] = Visitor("alice") if scope.get("method") == "HEAD" else None
    if scope["path"] == "/stream":
        scope["gymwire.stream"] = True
        await StreamingResponse(forever())(scope, receive, send)
    if scope.get("method") == "POST":
        await asyncio.sleep(3600)
    await PlainTextResponse("x" * 10_000)(scope, receive, send)


async def forever() -> AsyncIterator[str]:
    while True:
        yield "x" * 10_000
        await asyncio.sleep(0)


def test_a_client_that_sends_no_request_is_cut_off(loop: Loop, connect: Connect) -> None:
    client = connect()
    client.protocol.data_received(GET[:-1])
    loop.pass_time(REQUEST_S - CHECK_EVERY_S)
    assert not client.is_cut_off
    loop.pass_time(CHECK_EVERY_S)
    assert client.is_cut_off


@pytest.mark.parametrize("requests", [1, 1000])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_client_that_reads_no_answer_is_cut_off(
    loop: Loop, connect: Connect, monkeypatch: pytest.MonkeyPatch, requests: int, is_known: bool
) -> None:
    if not is_known:  # how much it has taken
        monkeypatch.setattr(kernel, "bytes_taken", lambda _: None)
    client = connect()
    client.protocol.data_received(requests * GET)
    loop.turn()
    loop.pass_time(ANSWER_S - CHECK_EVERY_S)
    assert not client.is_cut_off
    loop.pass_time(3 * CHECK_EVERY_S)
    assert client.is_cut_off


def test_a_client_that_reads_slowly_gets_its_answer(loop: Loop, connect: Connect) -> None:
    client = connect()
    client.protocol.data_received(GET)
    loop.turn()
    while client.unsent:
        loop.pass_time(ANSWER_S - 2 * CHECK_EVERY_S)
        assert not client.is_cut_off
        client.take(1000)
    loop.pass_time(CHECK_EVERY_S)
    loop.pass_time(REQUEST_S)
    assert client.is_cut_off


def test_a_client_that_waits_for_its_answer_is_not_cut_off(loop: Loop, connect: Connect) -> None:
    client = connect()
    client.protocol.data_received(GET.replace(b"GET", b"POST"))
    loop.pass_time(10 * ANSWER_S)
    assert not client.is_cut_off


def test_the_oldest_of_too_many_clients_without_a_token_is_cut_off(
    loop: Loop, connect: Connect
) -> None:
    first, known, *others = [connect() for _ in range(4)]
    known.protocol.data_received(HEAD)
    loop.turn()
    last = connect()
    assert first.is_cut_off
    others += [last, *(connect() for _ in range(2))]
    loop.turn()
    assert [one.is_cut_off for one in (known, *others)] == [False, True, *[False] * 4]


def test_a_client_that_has_not_read_its_answers_gets_no_websocket(
    loop: Loop, connect: Connect
) -> None:
    client = connect()
    client.protocol.data_received(HEAD + UPGRADE)
    loop.turn()
    assert client.unsent
    assert client.is_cut_off


@pytest.mark.parametrize(
    "request_", [GET.replace(b"GET", b"POST"), GET.replace(b"GET /", b"GET /stream")]
)
def test_a_server_that_stops_drops_what_does_not_end(
    loop: Loop, connect: Connect, caplog: pytest.LogCaptureFixture, request_: bytes
) -> None:
    client = connect()
    client.protocol.data_received(request_)
    loop.turn()
    stopped = Server(client.protocol.config)
    stopped.server_state, stopped.servers = client.protocol.server_state, []
    stopped.lifespan = LifespanOff(stopped.config)
    stopping = loop.create_task(stopped.shutdown())
    loop.turn()
    loop.pass_time(STOP_S)
    assert client.is_cut_off
    loop.pass_time(CHECK_EVERY_S)
    assert stopping.done()
    assert not caplog.records
