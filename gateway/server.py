"""The web server: where it listens, when it cuts a connection off, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from functools import partial
from typing import Any

import h11
import structlog
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import Server as UvicornServer
from websockets.frames import Frame

from gymwire.protocol.codec import MAX_MESSAGE
from gymwire.protocol.ending_signals import ending_signals
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.transport import kernel, open_files
from gymwire.protocol.transport.hosts import unknown_host
from gymwire.protocol.transport.port_owner import listener_at

PING_INTERVAL_S = 2.0  # between two pings of a WebSocket
PING_TIMEOUT_S = 10.0  # a WebSocket that has not answered a ping for this long is lost
REQUEST_S = 10.0  # how long a client may take to send the head of a request
ANSWER_S = 30.0  # a client that reads nothing of its answer for this long is cut off
CHECK_EVERY_S = 1.0
MAX_STRANGERS = 256  # connections without a valid token at the same time
# descriptors for each of them; with a lower limit on open files, fewer are admitted
FILES_PER_STRANGER = 4
STOP_S = 2.0  # how long open requests may take to end when the gateway stops
BACKLOG = 1024
MAX_FRAGMENTS = 65_536  # of a message: empty ones do not count towards its largest size


class _WebSocket(WebSocketsSansIOProtocol):
    """A WebSocket that is cut off when its peer does not answer.

    A plain close waits until the peer has read what was sent, which may be never.
    """

    def keepalive_timeout(self) -> None:
        """Cut the connection off."""
        self.transport.abort()

    def handle_cont(self, event: Frame) -> None:
        """Keep a fragment of a message, unless there are so many that they take much memory."""
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self.transport.abort()


class _Http(H11Protocol):
    """HTTP whose clients must send their requests, and read the answers, in time.

    Each connection takes a descriptor. `strangers`: the newest connections; the oldest is cut off
    if it has shown no valid token.
    """

    def __init__(self, *args: Any, strangers: Strangers, **options: Any) -> None:
        super().__init__(*args, **options)
        self._strangers = strangers
        self._taken = 0  # bytes of answers that the client's system has acknowledged
        self._active_at = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(CHECK_EVERY_S, self._check)
        self._strangers.add(self)

    def on_response_complete(self) -> None:
        """Expect the next request."""
        self._active_at = self.loop.time()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Leave the connection to the protocol of WebSockets, which has pings."""
        self._forget()
        if self._unsent() or kernel.unread(self._fd()):
            # A usual client reads the last answer before it asks for a WebSocket. A client that
            # does not might never read a refusal either, so cut it off.
            self.transport.abort()
        else:
            super().handle_websocket_upgrade(event)

    def shutdown(self) -> None:
        """Let the answer under way end; a stream, which has no end of its own, ends at once."""
        if self._is_streaming:
            assert self.cycle is not None
            self.transport.write(self.conn.send(h11.EndOfMessage()))
            # The application reads that its client has gone, and nothing that it still sends is
            # written.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()
            self.transport.close()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect no more requests."""
        self._forget()
        super().connection_lost(exc)

    @property
    def has_token(self) -> bool:
        """Whether the last request had a valid token."""
        return self.cycle is not None and self.cycle.scope.get("gymwire.visitor") is not None

    @property
    def _is_streaming(self) -> bool:
        return (
            self.cycle is not None
            and not (self.cycle.response_complete or self.cycle.disconnected)
            and self.cycle.scope["method"] == "GET"  # the answer to a POST ends by itself
            and "gymwire.stream" in self.cycle.scope
        )

    def _forget(self) -> None:
        self._timer.cancel()
        self._strangers.remove(self)

    def _check(self) -> None:
        """Cut the connection off if its client has been too slow, and check it again otherwise."""
        now, unsent = self.loop.time(), self._unsent()
        taken = kernel.bytes_taken(self._fd())
        if taken is None:  # this system does not say
            taken = -unsent
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if taken != self._taken or (is_answering and not unsent):
            self._taken, self._active_at = taken, now
        if now - self._active_at >= (ANSWER_S if unsent else REQUEST_S):
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(CHECK_EVERY_S, self._check)

    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def _fd(self) -> int:
        found: int = self.transport.get_extra_info("socket").fileno()
        return found


class Strangers:
    """The newest connections, at most `most`.

    If there are more, the oldest is forgotten, and cut off unless its last request had a valid
    token.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._connections: dict[_Http, None] = {}

    def add(self, connection: _Http) -> None:
        """Add a connection, and cut off the oldest ones if there are too many."""
        self._connections[connection] = None
        while len(self._connections) > self._most:
            oldest = next(iter(self._connections))
            self.remove(oldest)
            if not oldest.has_token:
                oldest.transport.abort()

    def remove(self, connection: _Http) -> None:
        """Remove a connection if it is one of them."""
        self._connections.pop(connection, None)


class Server(UvicornServer):
    """A web server that ends without errors, at the latest STOP_S after it was stopped."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all connections, and drop what has not ended after STOP_S."""
        dropping = asyncio.get_running_loop().call_later(STOP_S, self._drop)
        await super().shutdown(sockets)
        dropping.cancel()

    def _drop(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in self.server_state.tasks:
            task.cancel()
        self.server_state.tasks.clear()  # one may wait for a thread that never ends


def _cancellable(app: ASGIApp) -> ASGIApp:
    """Return the application, which ends quietly if its request is cancelled.

    Otherwise, uvicorn would log an error.
    """

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if scope["type"] == "lifespan":
                raise

    return handle


class _Log(logging.Handler):
    """Writes what uvicorn reports to the log of gymwire."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = self.format(record)
        structlog.get_logger().error("web server failed", text=text)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, and may have many connections. Raises ConfigurationError."""
    open_files.allow_more()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            owner = listener_at(port) or "another program"
            why = f"{owner} listens there. Stop it, or choose another port with --listen"
        elif error.errno == errno.EADDRNOTAVAIL:
            why = "it is not an address of this host. Give one that is, or 0.0.0.0 for all"
        elif error.errno == errno.EACCES:
            why = "this user may not use that port. Choose one above 1023"
        else:
            why = unknown_host(f"tcp://[{host}]:{port}") or error.strerror or str(error)
        raise ConfigurationError(f"Cannot listen at {host}:{port}: {why}.") from None


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configuration(
    app: ASGIApp,
    *,
    ping_interval_s: float = PING_INTERVAL_S,
    ping_timeout_s: float = PING_TIMEOUT_S,
) -> uvicorn.Config:
    """Return how uvicorn serves the application."""
    most = min(MAX_STRANGERS, open_files.most() // FILES_PER_STRANGER)
    return uvicorn.Config(
        _cancellable(app),
        http=partial(_Http, strangers=Strangers(most)),  # type: ignore[arg-type]
        loop="asyncio",
        ws=_WebSocket,
        ws_max_size=MAX_MESSAGE,
        ws_ping_interval=ping_interval_s,
        ws_ping_timeout=ping_timeout_s,
        ws_per_message_deflate=False,  # a small message must not become a large one
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        server_header=False,
    )


def run(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP."""
    logger = logging.getLogger("uvicorn")
    logger.addHandler(_Log(logging.ERROR))
    logger.propagate = False
    server = Server(configuration(app))
    # uvicorn handles SIGINT and SIGTERM, and raises them again when it has ended.
    for number in ending_signals():
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    log = structlog.get_logger()
    log.info("gateway listening", url=url_of(listener), pid=os.getpid())
    server.run(sockets=[listener])
    log.info("gateway stopped")


def leave(status: int) -> None:
    """End the process if a session waits for an environment that may never answer.

    Python would wait for its thread. The broker notices that the connection has ended.
    """
    until = time.monotonic() + STOP_S
    others = [one for one in threading.enumerate() if one is not threading.main_thread()]
    waited_for = [one for one in others if not one.daemon]
    for thread in waited_for:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in waited_for):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
