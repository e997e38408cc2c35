"""The direct path to an env agent, beside the one through the broker (docs/protocol.md §9)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gymwire.learner_agent.client.waiting import wait
from gymwire.protocol import codec, logs
from gymwire.protocol.address import parse_address
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import (
    ConnectionFailed,
    DecodingError,
    Denied,
    GymwireError,
)
from gymwire.protocol.messages import Kind, Open, Opened, Resume
from gymwire.protocol.security.keys import KeyPair, identity, is_public_key
from gymwire.protocol.transport.interface import Transport
from gymwire.protocol.transport.registry import dial_first, usable

if TYPE_CHECKING:
    from gymwire.learner_agent.client.connection import BrokerConnection
    from gymwire.learner_agent.client.exchange import Exchange
    from gymwire.learner_agent.client.session import RemoteSession

AUTO_S = 0.5  # how long direct="auto" waits for a direct connection before it uses the relay
ALWAYS_S = 2.5  # and how long direct="always" waits
CHECK_EVERY_S = 0.002  # the pause between two checks of connections that are being made


class DirectConnection:
    """A connection to the env agent of one session, at the endpoint that OPENED names.

    Attributes:
        up: whether requests can take this path now.
        denied: whether the agent rejects the connection.
    """

    def __init__(
        self,
        endpoint: Mapping[str, Any],
        sid: int,
        nonce: bytes,
        key: KeyPair | None,
        dial: Callable[..., Transport] = dial_first,
    ) -> None:
        server_key = _key_of(endpoint)
        if server_key is None:
            key = None
        elif key is None:
            raise ConnectionFailed("The env agent's direct endpoint requires a key.")
        self.transport = dial(_urls_for_this_host(endpoint), key=key, server_key=server_key)
        self.up = self.denied = False
        self._must_resume = False
        self._resume = PLAIN.encode(Resume(nonce), sid)

    def receive_frame(self, data: bytes | memoryview) -> None:
        """Handle a frame that is not a reply: RESUMED opens this path.

        A frame that cannot be read is ignored, because the session still has the relayed path.
        """
        with contextlib.suppress(GymwireError):
            if codec.read_header(data).kind is Kind.RESUMED:
                self.up = True

    def check(self) -> bool:
        """Handle what has happened to the connection; return whether it went down."""
        was_up = self.up
        for event in self.transport.link_events():
            self.up, self._must_resume = False, event.up
            self.denied = self.denied or bool(event.denied)
        if self._must_resume:
            self._must_resume = not self.transport.send(self._resume)
        if not self.up and self.transport.poll():
            data = self.transport.receive()
            if data is not None:
                self.receive_frame(data)
        return was_up and not self.up

    def close(self) -> None:
        """Close the connection."""
        self.transport.close(linger_s=0.3)


class SessionPaths:
    """The relayed path of a session, and the direct one, if there is one.

    Attributes:
        current: the connection that requests take at present.
        direct: the direct connection.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        sid: int,
        open_msg: Open,
        opened: Opened,
        exchange: Exchange,
    ) -> None:
        self.current: Transport = connection.link
        self.direct: DirectConnection | None = None
        self._connection = connection
        self._sid = sid
        self._open_msg = open_msg
        self._endpoint = opened.direct
        self._exchange = exchange

    @property
    def is_direct(self) -> bool:
        """Whether requests take the direct path at present."""
        return self.direct is not None and self.direct.up

    def dial_direct(self) -> DirectConnection:
        """Dial the env agent itself. Raises GymwireError if it cannot be dialled."""
        endpoint = self._endpoint
        if endpoint is None:
            raise ConnectionFailed("it offers no direct connection (--direct).")
        key, pin = self._connection.credentials.key, parse_address(self._open_msg.address).identity
        if pin is not None and _identity_in(endpoint) != pin:
            raise Denied("Its direct endpoint does not belong to the pinned agent.")
        self.direct = DirectConnection(endpoint, self._sid, self._open_msg.nonce, key)
        return self.direct

    def finish_setup(self, why: str, *, required: bool) -> None:
        """Use the direct path from now on if it is up; else the relayed one.

        `why`: why the agent was not dialled, if it was not. Raises ConnectionFailed if a direct
        path is `required`.
        """
        self._choose()
        if self.is_direct:
            return
        if self.direct is not None:
            why = f"{self.direct.transport.url} does not answer."
            self.close_direct()
        address = self._open_msg.address
        if required:
            raise ConnectionFailed(
                f"The env agent at {address!r} cannot be reached directly: {why} Use "
                f'direct="auto" to go through the broker then.'
            )
        logs.logger().debug("session relayed", address=address, why=why)

    def close_direct(self) -> None:
        """Close the direct connection, if there is one."""
        if self.direct is not None:
            self.direct.close()
            self.direct = None
            self._choose()

    def _choose(self) -> None:
        self.current = self._connection.link
        if self.direct is not None and self.direct.up:
            self.current = self.direct.transport

    def serve_others(self, now: float) -> None:
        """Handle what arrives on the other paths, and what happens to their connections."""
        connection, exchange = self._connection, self._exchange
        if self.direct is not None and self.direct.check():
            exchange.resend(now)
        self._choose()
        connection.check_link(now)
        if self.direct is None:
            return
        connection.drain()
        if exchange.resume_pending:
            exchange.resume_pending = False
            connection.send_hello()
            connection.link.send(PLAIN.encode(Resume(self._open_msg.nonce), self._sid))


def connect_directly(sessions: Sequence[RemoteSession], *, required: bool) -> None:
    """Connect these sessions to their env agents, all at the same time, where that is possible.

    Raises ConnectionFailed if it is `required` and an agent cannot be reached.
    """
    dialled: list[DirectConnection] = []
    why: dict[int, str] = {}
    for session in sessions:
        try:
            dialled.append(session.paths.dial_direct())
        except GymwireError as error:
            why[session.sid] = str(error)
    if dialled:
        wait_until_attached(dialled, ALWAYS_S if required else AUTO_S, sessions[0].connection.clock)
    for session in sessions:
        try:
            session.paths.finish_setup(why.get(session.sid, ""), required=required)
        except ConnectionFailed:
            session.close()
            raise


def wait_until_attached(
    dialled: Sequence[DirectConnection], timeout_s: float, clock: Callable[[], float]
) -> None:
    """Wait until each of these connections is up or denied, for at most `timeout_s` seconds."""
    setup = _Setup(dialled)
    setup.check()
    wait(
        lambda: not setup.pending,
        clock() + timeout_s,
        sources=(setup,),
        run_timers=setup.check,
        clock=clock,
        tick_s=CHECK_EVERY_S,
    )


class _Setup:
    """Connections that are being made; as a source of frames, the first of them."""

    def __init__(self, dialled: Sequence[DirectConnection]) -> None:
        self.pending = list(dialled)

    def check(self, _now: float = 0.0) -> None:
        """Drop the connections that are up or denied."""
        for one in self.pending:
            one.check()
        self.pending = [one for one in self.pending if not one.up and not one.denied]

    @property
    def path(self) -> Transport:
        return self.pending[0].transport

    def receive_frame(self, data: bytes | memoryview) -> bool:
        self.pending[0].receive_frame(data)
        return False  # so that `check` is next


def _urls_for_this_host(endpoint: Mapping[str, Any]) -> list[str]:
    """Return the endpoints that this host can dial, the nearest first. Raises DecodingError."""
    urls = endpoint.get("urls")
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls) or not urls:
        raise DecodingError("The env agent's direct endpoint has no URL.")
    host = endpoint.get("host")
    same_host = isinstance(host, str) and host == socket.gethostname()
    return usable(urls, same_host=same_host, keyed=_key_of(endpoint) is not None)


def _key_of(endpoint: Mapping[str, Any]) -> bytes | None:
    """Return the public key of the endpoint; None: it uses no keys. Raises DecodingError."""
    key = endpoint.get("key")
    if key is None:
        return None
    if not isinstance(key, bytes) or (key and not is_public_key(key.decode("latin-1"))):
        raise DecodingError("The env agent's direct endpoint has a malformed key.")
    return key or None


def _identity_in(endpoint: Mapping[str, Any]) -> str:
    key = endpoint.get("key")
    return identity(key) if isinstance(key, bytes) else ""
