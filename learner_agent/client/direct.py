"""The direct path to an env agent, beside the one through the broker (docs/protocol.md §9)."""

from __future__ import annotations

import copy
import math
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gymwire.learner_agent.client.session_timers import Repeats
from gymwire.learner_agent.client.waiting import Source, Waiting, wait
from gymwire.protocol import codec, logs
from gymwire.protocol.address import parse_address
from gymwire.protocol.codec import PLAIN, Frame, Header
from gymwire.protocol.errors import (
    ConnectionFailed,
    DecodingError,
    Denied,
    GymwireError,
)
from gymwire.protocol.messages import Busy, BusyReason, Kind, Open, Opened, Resume
from gymwire.protocol.outside_exceptions import is_from_outside
from gymwire.protocol.security.keys import KeyPair, identity, is_public_key
from gymwire.protocol.transport.interface import Transport
from gymwire.protocol.transport.registry import dial_first, usable

if TYPE_CHECKING:
    from gymwire.learner_agent.client.connection import BrokerConnection
    from gymwire.learner_agent.client.exchange import Exchange
    from gymwire.learner_agent.client.session import RemoteSession

AUTO_S = 0.5  # how long direct="auto" waits for a direct connection before it uses the relay
ALWAYS_S = 2.5  # and how long direct="always" waits
# So many losses within this time, each during a request, suggest that the path loses large packets.
MAX_DIRECT_LOSSES = 3
LOSSES_WITHIN_S = 60.0
CHECK_EVERY_S = 0.002  # the pause between two checks of connections that are being made
# The most that one pause between two checks counts: the process may have been suspended.
COUNTED_PAUSE_S = 0.25


class DirectLink:
    """A connection to an env agent, which all sessions of a learner connection share.

    Attributes:
        transport: the connection itself.
        sessions: sid → the session's use of it.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.sessions: dict[int, DirectPath] = {}
        self._is_connected = False
        self._not_up: dict[int, DirectPath] = {}  # those that the agent has not confirmed

    @property
    def path(self) -> Transport:
        """The connection, as a source of frames."""
        return self.transport

    def add(self, path: DirectPath) -> None:
        """Let a session use this connection, once the agent has confirmed it."""
        path.must_resume = self._is_connected
        self.sessions[path.sid] = self._not_up[path.sid] = path

    def remove(self, path: DirectPath) -> None:
        """End a session's use."""
        self.sessions.pop(path.sid, None)
        self._not_up.pop(path.sid, None)

    def check(self) -> None:
        """Handle what has happened to the connection, and attach the sessions that are not up."""
        for event in self.transport.link_events():
            self._is_connected = event.up
            for path in self.sessions.values():
                path.go_down(must_resume=event.up, is_lost=True)
                path.denied = path.denied or bool(event.denied)
            self._not_up = dict(self.sessions)
        if not self._not_up:
            return
        for path in self._not_up.values():
            if path.must_resume:
                path.must_resume = not self.transport.send(path.resume)
        for _ in range(len(self._not_up)):
            if not self.transport.poll():
                return
            data = self.transport.receive()
            if data is not None:
                self.receive_frame(data)

    def receive_frame(self, data: bytes | memoryview) -> bool:
        """Handle a frame from the env agent; return whether it answers a request.

        RESUMED opens the path of its session. As long as that is not open, other frames and those
        that cannot be read are ignored, because the session still has the relayed path. Later, the
        sessions of this agent get the error: a caller that waits for another agent's does not.
        """
        try:
            header = codec.read_header(data)
        except GymwireError as error:
            if is_from_outside(error):
                raise
            if self._not_up:
                return False
            logs.logger().debug("malformed message", url=self.transport.url, why=str(error))
            for each in self.sessions.values():
                each.session.fail(copy.copy(error))
            return True
        path = self.sessions.get(header.sid)
        if path is None:
            return False
        if header.kind is Kind.RESUMED:
            path.up = True
            self._not_up.pop(path.sid, None)
            return False
        if path.up and header.kind is Kind.BUSY and _is_unbound(data, header):
            path.go_down(must_resume=True)
            self._not_up[path.sid] = path
            return False
        return path.up and path.session.receive(header, data)


def _is_unbound(data: bytes | memoryview, header: Header) -> bool:
    """Return whether the env agent has not bound the session to this connection (§7.7, §9.3)."""
    try:
        busy = PLAIN.decode(data, header)
    except DecodingError:  # an error of the session, which decodes it again
        return False
    return isinstance(busy, Busy) and busy.reason == BusyReason.HELLO


class DirectPath:
    """The use of a `DirectLink` by one session.

    Attributes:
        session: the session; it gets the frames.
        up: whether requests can take this path now.
        denied: whether the agent rejects the connection.
        must_resume: whether RESUME has to be sent.
        went_down: whether the path was up and has gone down; the session resets it.
        was_lost: whether that was because the connection was lost; the session resets it.
    """

    def __init__(self, link: DirectLink, session: RemoteSession) -> None:
        self.link, self.session, self.sid = link, session, session.sid
        self.resume = PLAIN.encode(Resume(session.open_msg.nonce), session.sid)
        self.up = self.denied = self.must_resume = self.went_down = self.was_lost = False
        # the times of the last losses during a request
        self._losses = deque([-math.inf] * MAX_DIRECT_LOSSES, maxlen=MAX_DIRECT_LOSSES)
        link.add(self)

    @property
    def transport(self) -> Transport:
        """The connection."""
        return self.link.transport

    def go_down(self, *, must_resume: bool, is_lost: bool = False) -> None:
        """Let requests take the relayed path until the agent has confirmed this one again."""
        self.went_down = self.went_down or self.up
        self.was_lost = self.was_lost or (is_lost and self.up)
        self.up, self.must_resume = False, must_resume

    def lost_again(self, now: float) -> bool:
        """Note a loss during a request; return whether there were too many of them."""
        self._losses.append(now)
        return now - self._losses[0] <= LOSSES_WITHIN_S


class DirectLinks:
    """The direct connections of one learner connection: one for each endpoint of an env agent."""

    def __init__(self, dial: Callable[..., Transport] = dial_first) -> None:
        self._dial = dial
        self._links: dict[object, DirectLink] = {}

    def link(self, endpoint: Mapping[str, Any], key: KeyPair | None) -> DirectLink:
        """Return the connection to this endpoint. Raises GymwireError if it cannot be dialed."""
        server_key = _key_of(endpoint)
        if server_key is None:
            key = None
        elif key is None:
            raise ConnectionFailed("The env agent's direct endpoint requires a key.")
        urls = _urls_for_this_host(endpoint)
        found = self._links.get((*urls, server_key))
        if found is None:
            transport = self._dial(urls, key=key, server_key=server_key)
            found = self._links[*urls, server_key] = DirectLink(transport)
        return found

    @property
    def all(self) -> list[DirectLink]:
        """The current connections."""
        return list(self._links.values())

    def remove(self, path: DirectPath) -> None:
        """End a session's use of its connection, and close that after the last one."""
        link = path.link
        link.remove(path)
        if not link.sessions:
            self._links = {key: one for key, one in self._links.items() if one is not link}
            link.transport.close(linger_s=0.3)

    def check(self) -> bool:
        """Check all connections; return whether there are any."""
        for link in list(self._links.values()):
            link.check()
        return bool(self._links)


class SessionPaths:
    """The relayed path of a session, and the direct one, if there is one.

    Attributes:
        current: the connection that requests take now.
        direct: the session's use of a direct connection.
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
        self.direct: DirectPath | None = None
        self._connection = connection
        self._sid = sid
        self._open_msg = open_msg
        self._endpoint = opened.direct
        self._exchange = exchange

    @property
    def source(self) -> Source:
        """The current connection as a source of frames."""
        direct = self.direct
        if direct is not None and direct.transport is self.current:
            return direct.link
        return self._connection

    @property
    def is_direct(self) -> bool:
        """Whether requests currently take the direct path."""
        return self.direct is not None and self.direct.up

    def dial_direct(self, session: RemoteSession) -> DirectPath:
        """Dial the env agent itself for a session. Raises GymwireError if it cannot be dialed."""
        endpoint = self._endpoint
        if endpoint is None:
            raise ConnectionFailed("it offers no direct connection (--direct).")
        key, pin = self._connection.credentials.key, parse_address(self._open_msg.address).identity
        if pin is not None and _identity_in(endpoint) != pin:
            raise Denied("Its direct endpoint does not belong to the pinned agent.")
        link = self._connection.direct_links.link(endpoint, key)
        self.direct = DirectPath(link, session)
        return self.direct

    def finish_setup(self, why: str, *, required: bool) -> None:
        """Use the direct path from now on if it is up; else the relayed one.

        `why`: why the agent was not dialed, if it was not. Raises ConnectionFailed if a direct
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
                f'direct="auto" to fall back to the broker.'
            )
        logs.logger().debug("session relayed", address=address, why=why)

    def close_direct(self) -> None:
        """Close the direct connection, if there is one; after an interrupt, call it again."""
        direct = self.direct
        if direct is not None:
            direct.up = False
            self._choose()  # no request may take a connection that is closed
            self._connection.direct_links.remove(direct)
            self.direct = None

    def _choose(self) -> None:
        direct = self.direct
        current = direct.transport if direct is not None and direct.up else self._connection.link
        if self.current is not current:
            self._connection.path_changes += 1
            self.current = current  # last: after an interrupt, the next call goes on

    def repeat(self, frames: Sequence[Frame], now: float, repeats: Repeats) -> None:
        """Send what the timers repeat."""
        for frame in frames:
            kind = codec.read_header(frame).kind
            path = self._connection.link if kind is Kind.PING else self.current
            if path not in repeats.full and path.send(frame):
                repeats.left -= 1
                if kind not in (Kind.PING, Kind.RESUME):
                    self._exchange.sent_again(now)
                continue
            repeats.full.add(path)
            if kind is Kind.RESUME:
                self._exchange.resume_pending = True
            if kind is not Kind.PING:
                self._exchange.resend(now)

    def receive_frame(self, data: bytes | memoryview) -> bool:
        """Handle a frame from the current path; return whether it answers a request."""
        return self.source.receive_frame(data)

    def serve_others(self, now: float) -> None:
        """Handle the frames of the other paths, and changes of their connections."""
        connection = self._connection
        if self.direct is not None:
            connection.use.check()  # first: a session that has moved must not be resumed here
        direct = self.direct
        if direct is not None:
            direct.link.check()
        self.follow(now)
        if self.direct is None:
            connection.check_link(now)
        else:
            connection.serve(now)
            self._resume_if_needed()

    def follow(self, now: float) -> None:
        """Take the direct path while it is up; send again what was lost with it."""
        direct = self.direct
        if direct is not None and direct.went_down:
            was_lost, direct.went_down, direct.was_lost = direct.was_lost, False, False
            self._exchange.resend(now)
            if was_lost and self._exchange.unanswered is not None and direct.lost_again(now):
                logs.logger().warning(
                    "direct connection given up, session relayed",
                    address=self._open_msg.address,
                    why=f"{direct.transport.url} was lost {MAX_DIRECT_LOSSES} times during "
                    f"requests within {LOSSES_WITHIN_S:g} s. The path may lose large packets, as "
                    f"behind a tunnel with a wrong MTU",
                )
                self.close_direct()
        self._choose()
        if direct is not None:
            self._resume_if_needed()

    def _resume_if_needed(self) -> None:
        """Introduce the session to a broker that has asked for it."""
        connection, exchange = self._connection, self._exchange
        if exchange.resume_pending:
            exchange.resume_pending = False
            connection.send_hello()
            connection.link.send(PLAIN.encode(Resume(self._open_msg.nonce), self._sid))


def connect_directly(sessions: Sequence[RemoteSession], *, required: bool) -> None:
    """Connect these sessions to their env agents, all at the same time, where that is possible.

    Raises ConnectionFailed if it is `required` and an agent cannot be reached.
    """
    dialed: list[DirectPath] = []
    why: dict[int, str] = {}
    for session in sessions:
        try:
            dialed.append(session.paths.dial_direct(session))
        except GymwireError as error:
            why[session.sid] = str(error)
    if dialed:
        connection = sessions[0].connection
        timeout_s = ALWAYS_S if required else AUTO_S
        wait_until_attached(dialed, timeout_s, connection.clock, connection.waiting)
    for session in sessions:
        try:
            session.paths.finish_setup(why.get(session.sid, ""), required=required)
        except ConnectionFailed:
            session.close()
            raise


def wait_until_attached(
    dialed: Sequence[DirectPath],
    timeout_s: float,
    clock: Callable[[], float],
    waiting: Waiting = wait,
) -> None:
    """Wait until each of these is up or denied.

    Wait for at most `timeout_s` seconds, without the time in which the process was suspended.
    """
    setup = _Setup(dialed, timeout_s, clock())
    setup.check(clock())
    waiting(
        lambda: not setup.pending or setup.left_s <= 0,
        None,
        sources=(setup,),
        run_timers=setup.check,
        clock=clock,
        tick_s=CHECK_EVERY_S,
    )


class _Setup:
    """Direct paths that are being opened; as a source of frames, the first of them."""

    def __init__(self, dialed: Sequence[DirectPath], timeout_s: float, now: float) -> None:
        self.pending = list(dialed)
        self.left_s, self._checked_at = timeout_s, now

    def check(self, now: float) -> None:
        """Drop the paths that are up or denied."""
        self.left_s -= min(now - self._checked_at, COUNTED_PAUSE_S)
        self._checked_at = now
        for link in {id(one.link): one.link for one in self.pending}.values():
            link.check()
        self.pending = [one for one in self.pending if not one.up and not one.denied]

    @property
    def path(self) -> Transport:
        return self.pending[0].transport

    def receive_frame(self, data: bytes | memoryview) -> bool:
        self.pending[0].link.receive_frame(data)
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
