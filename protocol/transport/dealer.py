"""The dialing ZeroMQ sockets: `Dealer`, and the liveness connection of an env agent.

`zmq.ZMQError` does not leave this module for anything that a user can cause.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import zmq
import zmq.backend

from gymwire.protocol.address import check_url
from gymwire.protocol.codec import MAX_MESSAGE
from gymwire.protocol.errors import ConfigurationError, ConnectionFailed, EnvironmentClosed
from gymwire.protocol.messages import LIVENESS_AGENT_SIZE, LIVENESS_PREFIX
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport import kernel
from gymwire.protocol.transport.context import HANDSHAKE_MS, context, set_common_options
from gymwire.protocol.transport.hosts import DialPlan, first_reachable, url_with
from gymwire.protocol.transport.inflow import Inflow
from gymwire.protocol.transport.interface import SEND_ALL_S, TICK_MS, LinkEvent, Waitable
from gymwire.protocol.transport.monitor import Monitor
from gymwire.protocol.transport.polling import EVENTS, POLLIN

# Frames of this size or more are handed to libzmq without a copy. Below, copying costs less than
# the thread through which pyzmq learns that libzmq has finished with the memory.
ZERO_COPY = 512 * 1024
# Received frames of this size or more stay in the memory of libzmq; smaller ones become bytes.
KEEP = 4 * 1024
# A peer counts as dead after IVL + TIMEOUT of silence. libzmq's own thread measures this, so it
# detects a frozen process but not a busy one.
HEARTBEAT_IVL_MS = 1500
HEARTBEAT_TIMEOUT_MS = 4000
# An attempt to connect ends after this time. The next one resolves the name again, so a broker that
# has moved to another address is found although the old one swallows packets.
CONNECT_TIMEOUT_MS = 4000
# Until an attempt has failed, each ends sooner. The listener's kernel may still hold an earlier
# connection from the same port; the next attempt takes another port, or another address.
QUICK_CONNECT_MS = 1200
# Handshakes take milliseconds, so a path that swallows packets is dialed again soon. But on a host
# that is very busy all would fail: after some, each may take HANDSHAKE_MS.
QUICK_HANDSHAKE_MS = 3000
PATIENT_AFTER = 3  # handshakes that fail in a row

_NOW = int(zmq.DONTWAIT)  # a plain integer: pyzmq's flags are slow to combine for each frame

# The base class's methods skip several microseconds of Python in the subclass.
_send = zmq.backend.Socket.send
_recv = zmq.backend.Socket.recv


def _make_dealer(
    rid: bytes, key: KeyPair | None, server_key: bytes | None, max_message: int
) -> zmq.Socket[bytes]:
    """Return a DEALER socket that has not dialed yet."""
    if (key is None) != (server_key is None):
        raise ConfigurationError(
            "A connection with keys needs two: this side's key pair and the other side's public "
            "key. Give both or neither."
        )
    socket: zmq.Socket[bytes] = context().socket(zmq.DEALER)
    set_common_options(socket, max_message)
    socket.setsockopt(zmq.ROUTING_ID, rid)
    socket.setsockopt(zmq.RCVHWM, 0)  # the number of requests in flight bounds it
    socket.setsockopt(zmq.TCP_MAXRT, 8000)  # see `Inflow` for what a listening socket does instead
    # Only the dialing side sends pings; the TTL in each ping lets the other side detect the loss
    # of the next. If a listening socket sent pings, any peer could abort its process: connect twice
    # under one routing id, send on the first connection, close it, and libzmq's timer finds a dead
    # engine.
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_IVL_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing while there is no connection
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    socket.sndtimeo = TICK_MS
    if key is not None and server_key is not None:
        socket.curve_publickey = key.public
        socket.curve_secretkey = key.secret
        socket.curve_serverkey = server_key
    return socket


class Dealer:
    """A ZeroMQ `Transport`: one connection to a broker, or directly to an env agent.

    `key`, `server_key`: this side's key pair and the other side's public key, or neither.
    `max_message`: bytes of a received frame; a larger one ends the connection.

    Raises AddressError, ConfigurationError, ConnectionFailed; EnvironmentClosed if it is closed
    during a call.

    Attributes:
        on_up: called by `link_events` with the URL over which a connection was made, and with its
            descriptor. The URL names an address instead of the host if the name has several and
            libzmq did not reach the first.
    """

    has_buffered = has_frame = False
    takes_pieces = False

    def __init__(
        self,
        url: str,
        *,
        key: KeyPair | None = None,
        server_key: bytes | None = None,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        self.url = check_url(url)
        self.on_up: Callable[[str, int], None] = lambda _url, _fd: None
        self._plan = DialPlan(url)
        # New for each socket and never shown to others: a peer that guessed the routing id could
        # take over the connection.
        socket = _make_dealer(b"\x01" + os.urandom(15), key, server_key, max_message)
        self._socket = socket
        self._monitor = Monitor(socket, key)
        socket.setsockopt(zmq.HANDSHAKE_IVL, QUICK_HANDSHAKE_MS)
        self._is_patient = False
        socket.setsockopt(zmq.CONNECT_TIMEOUT, QUICK_CONNECT_MS)
        self._is_first_attempt = True
        self._inflow = Inflow(2 * max_message)
        self._suspects = self._inflow.suspects
        self._bare = cast(Any, socket)
        # Receiving a zmq.Frame costs as much as copying a small frame; copying a large one costs
        # more. The size of the last frame predicts the size of the next.
        self._expects_large = False
        try:
            socket.connect(url)
        except zmq.ZMQError as error:
            self.close()
            raise ConnectionFailed(f"Cannot dial {url}: {error.strerror}.") from None

    def send(self, frame: bytes | bytearray, wait: bool = False) -> bool:
        """Send one frame: now, or with `wait` within a tick.

        Returns False if there is no connection or its queue is full.
        """
        flags = 0 if wait else _NOW
        try:
            if len(frame) < ZERO_COPY:
                _send(self._bare, frame, flags)
            else:
                self._socket.send(frame, flags, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            self._check_open()
            raise
        return True

    def send_all(self, frames: Sequence[bytes | bytearray], wait: bool = False) -> bool:
        """Send several frames, each as `send` does; libzmq itself joins small ones.

        With `wait`, it waits up to SEND_ALL_S for room in the queue of a connection. Returns False
        if a frame was dropped.
        """
        ends_at, is_done = time.monotonic() + SEND_ALL_S, True
        for frame in frames:
            if not self.send(frame):
                wait = wait and self._send_before(frame, ends_at)
                is_done = is_done and wait
        return is_done

    def _send_before(self, frame: bytes | bytearray, ends_at: float) -> bool:
        """Send a frame as soon as there is room; return False if there is none until then."""
        while self._inflow.connections:
            if self.send(frame, wait=True):
                return True
            if time.monotonic() >= ends_at:
                return False
        return False

    def receive(self) -> bytes | memoryview | None:
        """Return the next frame, or None after a tick without one.

        The parts of a multipart message count as frames: all of them come from the one peer.
        """
        try:
            if self._expects_large:
                frame = _recv(self._bare, 0, False)
                self._expects_large = len(frame) >= KEEP
                if self._suspects:
                    self._inflow.all_heard()
                return frame.buffer if self._expects_large else frame.bytes
            data: bytes = _recv(self._bare)
        except zmq.Again:
            return None
        except zmq.ZMQError:
            self._check_open()
            raise
        if len(data) >= KEEP:
            self._expects_large = True
        if self._suspects:
            self._inflow.all_heard()
        return data

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Return whether a frame arrives within `timeout_s`."""
        try:
            if not timeout_s:
                return bool(self._bare.getsockopt(EVENTS) & POLLIN)
            return bool(self._socket.poll(int(timeout_s * 1000)))
        except zmq.ZMQError:
            self._check_open()
            raise

    def _check_open(self) -> None:
        """Raise EnvironmentClosed if a signal handler has closed the connection meanwhile."""
        if self._socket.closed:
            raise EnvironmentClosed(
                f"The connection to {self.url} has been closed. Make a new one."
            ) from None

    @property
    def handshake_hint(self) -> str:
        """Why the other side may be closing each handshake; "" if it does not."""
        return self._monitor.handshake_hint

    def link_events(self) -> list[LinkEvent]:
        """Return the connections made and lost since the last call.

        After a failed attempt to connect, dial the next address of the host's name. Close a
        connection that delivers bytes without end, but no complete message.
        """
        events = self._monitor.events()
        for event in events:
            self._inflow.note(event)
            if event.up:
                self.on_up(self._plan.current, event.fd)
        if self._socket.closed:  # by a signal handler
            return events
        self._inflow.close_overfull()
        if self._monitor.attempt_failed:
            self._monitor.attempt_failed = False
            former = self._plan.current
            if self._plan.attempt_failed(time.monotonic()) or self._is_first_attempt:
                self._is_first_attempt = False
                self._socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
                self._dial_instead_of(former)
        if self._monitor.failed_handshakes >= PATIENT_AFTER and not self._is_patient:
            self._is_patient = True
            self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
            self._dial_instead_of(self._plan.current)
        return events

    def dial_again(self) -> None:
        """Connect again after a handshake that was denied: ZeroMQ does not."""
        if not self._socket.closed:
            self._dial_instead_of(self._plan.current)

    def _dial_instead_of(self, former: str) -> None:
        self._socket.disconnect(former)
        self._socket.connect(self._plan.current)

    @property
    def waitable(self) -> zmq.Socket[bytes]:
        """The socket, for `polling.wait_among`."""
        return self._socket

    @property
    def signals(self) -> Sequence[Waitable]:
        """What has input if `receive` or `link_events` has news."""
        return self, self._monitor

    def close(self, linger_s: float = 0.0) -> None:
        """Close the connection. Frames sent last have `linger_s` seconds to leave. Idempotent.

        A socket that libzmq keeps open to send what is left takes no more messages. If the peer
        sends one then and closes the connection, the next heartbeat aborts this process. So a full
        connection gets its time before it is closed, and none after that.
        """
        if self._socket.closed:
            return
        deadline = time.monotonic() + linger_s
        if linger_s:
            for event in self._monitor.events():
                self._inflow.note(event)
        for fd in self._inflow.connections if linger_s else ():
            if not kernel.wait_until_sent(fd, deadline - time.monotonic()):
                linger_s = 0.0
        self._monitor.close()
        self._socket.close(linger=int(linger_s * 1000))


class LivenessConnection:
    """A connection that shows the broker that this process is alive.

    libzmq alone keeps it up and reconnects it, also while an environment holds the interpreter's
    lock. Nobody reads it, so it keeps only the last message that it receives. `agent`: the 16 bytes
    that HELLO carries. Call `hold` in a thread of its own, and `follow` when another connection has
    reached the broker: libzmq alone dials only one address.
    """

    def __init__(
        self, url: str, agent: bytes, *, key: KeyPair | None = None, server_key: bytes | None = None
    ) -> None:
        self._socket = _make_dealer(
            LIVENESS_PREFIX + agent[:LIVENESS_AGENT_SIZE], key, server_key, MAX_MESSAGE
        )
        self._socket.setsockopt(zmq.PROBE_ROUTER, 1)  # sends an empty message on each connection
        # Not a small RCVHWM, with which the broker could abort this process (docs/design.md).
        self._socket.setsockopt(zmq.CONFLATE, 1)
        # Only libzmq dials again later, so it must get an address that works.
        self._given_url = url
        self._url = self._next_url = first_reachable(check_url(url))
        self._socket.connect(self._url)
        self._orders, self._order = os.pipe()
        self._is_released = False
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Block until `release` is called, without holding the interpreter's lock."""
        is_released = False
        while not is_released:
            # POLLERR: the poll must service the connection, but not end when the broker sends.
            zmq.zmq_poll([(self._socket, zmq.POLLERR), (self._orders, zmq.POLLIN)], timeout=-1)
            os.read(self._orders, 1)
            with self._lock:  # `release` does not write after this
                is_released = self._is_released
            former, self._url = self._url, self._next_url
            if former != self._url:
                self._socket.disconnect(former)
                self._socket.connect(self._url)
        self._socket.close(linger=0)
        os.close(self._orders)

    def follow(self, url: str, fd: int) -> None:
        """Dial where another connection has reached the broker, if that is another address.

        Call it from any thread. `url`, `fd`: the URL and the descriptor of the other connection. If
        this one dials an address, and the other one a name, only the descriptor shows the address.
        """
        with self._lock:
            if url == self._given_url != self._next_url:
                address = kernel.peer_address(fd)
                url = url_with(url, address) if address else self._next_url
            if url != self._next_url and not self._is_released:
                self._next_url = url
                os.write(self._order, b"x")

    def release(self) -> None:
        """End `hold`. Call it once, from any thread."""
        # Closing the pipe alone does not end `hold` if an environment has forked.
        with self._lock:
            self._is_released = True
            os.write(self._order, b"x")
            os.close(self._order)
