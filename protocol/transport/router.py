"""The listening ZeroMQ socket, and what the kernel knows about its connections.

`zmq.ZMQError` does not leave this module for anything that a user can cause.
"""

from __future__ import annotations

import ctypes
import itertools
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, cast

import zmq
import zmq.backend

from gymwire.protocol.address import check_url, is_local
from gymwire.protocol.codec import MAX_MESSAGE
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.security.zap import Allow
from gymwire.protocol.transport import kernel
from gymwire.protocol.transport.backlog import Backlogs
from gymwire.protocol.transport.binding import BACKLOG, bind_all, check_host, failure
from gymwire.protocol.transport.context import authenticator, context, set_common_options
from gymwire.protocol.transport.dealer import KEEP, ZERO_COPY
from gymwire.protocol.transport.inflow import Inflow
from gymwire.protocol.transport.interface import (
    TICK_MS,
    Delivery,
    LinkEvent,
    Origin,
    Received,
    Waitable,
)
from gymwire.protocol.transport.monitor import Monitor
from gymwire.protocol.transport.open_files import Watch, allow_more
from gymwire.protocol.transport.polling import EVENTS, POLLIN

# Plain integers: pyzmq's flags are slow to combine for each frame.
_NOW = int(zmq.DONTWAIT)
_MORE_NOW = int(zmq.DONTWAIT | zmq.SNDMORE)

# The base class's methods skip several microseconds of Python in the subclass.
_send = zmq.backend.Socket.send
_recv = zmq.backend.Socket.recv

# Bytes of complete messages that one connection may have waiting here, and the fewest and the most
# messages. libzmq signals the sender once for each half of the mark that was received.
RECEIVE_BYTES = 1024 * 1024 * 1024
MIN_MARK = 16
MAX_MARK = 1000
MAX_MULTIPART = 100  # senders of multipart messages to remember

_domains = itertools.count(1)


def fd_of(origin: Origin | None) -> int:
    """Return the descriptor of the sender's connection, as in `LinkEvent.fd`; -1 if unknown."""
    if origin is None:
        return -1
    try:
        return int(origin.get(zmq.SRCFD))
    except zmq.ZMQError:  # peers that do not speak ZMTP (HTTP clients, say) have no such property
        return -1


def public_key_of(origin: Origin) -> bytes | None:
    """Return the sender's authenticated public key (z85), or None without keys."""
    try:
        return str(origin.get("User-Id")).encode("ascii")
    except zmq.ZMQError:
        return None


def receive_mark(max_message: int) -> int:
    """Return the receive high-water mark of a socket whose messages have `max_message` bytes."""
    return min(max(RECEIVE_BYTES // max_message, MIN_MARK), MAX_MARK)


class Router:
    """A ZeroMQ `Listener` at one or several URLs. Sends never block.

    Args:
        urls: `tcp://HOST:PORT` or `ipc://PATH`; HOST and PORT may be `*`.
        key: this side's key pair. Peers then need a key, too. Without it, listening is limited to
            this host unless `insecure`.
        allow: whether the owner of a public key may connect. It runs in another thread.
        insecure: allow listening beyond this host without keys.
        max_message: bytes of a received frame; a larger one ends its connection.
        tick_ms: how long `receive` waits.
        elsewhere: what the user can do if a port is in use, for the error.

    Attributes:
        urls: the URLs that it is bound to, with real ports.
        may_have_unsignalled_input: whether frames may be waiting that `descriptor` no longer
            signals.

    Raises AddressError, ConfigurationError.
    """

    has_buffered = False
    takes_pieces = False
    mark = -1
    may_have_unsignalled_input = True

    def __init__(
        self,
        urls: Iterable[str],
        *,
        key: KeyPair | None = None,
        allow: Allow = lambda _key: True,
        insecure: bool = False,
        max_message: int = MAX_MESSAGE,
        tick_ms: int = TICK_MS,
        elsewhere: str = "choose another port",
    ) -> None:
        checked = [check_url(url, bind=True) for url in urls]
        remote = [url for url in checked if not is_local(url)]
        if remote and key is None and not insecure:
            check_host(remote[0])  # a key would not help
            raise ConfigurationError(
                f"Refusing to listen at {remote[0]} without keys: anyone who reaches this port "
                f"could use and offer environments. Give a key (--key FILE, made by `gymwire "
                f"keygen`), or --insecure if you trust everyone on this network."
            )
        # libzmq takes the routing ids of peers that set none from rand(), unseeded. A peer that
        # guesses the next one can abort the process, so seed it from a secret.
        ctypes.CDLL(None).srand(secrets.randbits(32))
        allow_more()  # many peers may connect
        socket: zmq.Socket[bytes] = context().socket(zmq.ROUTER)
        self._domain = ""
        set_common_options(socket, max_message, tick_ms)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.SNDHWM, 1000)
        socket.setsockopt(zmq.BACKLOG, BACKLOG)
        if key is not None:
            socket.curve_server = True
            socket.curve_publickey = key.public
            socket.curve_secretkey = key.secret
            # Before the socket listens, so that no peer connects without a check.
            self._domain = f"gymwire-{next(_domains)}"
            authenticator().admit(self._domain, allow)
            socket.setsockopt_string(zmq.ZAP_DOMAIN, self._domain)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._socket = socket
        self._bare = cast(Any, socket)
        self._files = Watch()
        self._backlogs = Backlogs()
        self._inflow = Inflow(2 * max_message)
        self._suspects = self._inflow.suspects
        self._multipart: set[bytes] = set()
        self._monitor = Monitor(socket, listens=True)
        self.urls: list[str] = []
        for url in checked:
            try:
                self.urls += bind_all(socket, url, receive_mark(max_message))
            except zmq.ZMQError as error:
                self.close()
                raise ConfigurationError(failure(url, error, elsewhere)) from None

    @property
    def descriptor(self) -> int:
        """A descriptor that becomes readable once on new input; call `has_input` after that."""
        return int(self._bare.getsockopt(zmq.FD))

    def has_input(self) -> bool:
        """Return whether `receive` has a frame without waiting."""
        self.may_have_unsignalled_input = bool(self._bare.getsockopt(EVENTS) & POLLIN)
        return self.may_have_unsignalled_input

    def receive(self, wait: bool = True) -> Received | None:
        """Return the next frame, or None after a tick (without `wait`: at once) without one.

        It skips multipart messages, see `take_multipart`.
        """
        bare = self._bare
        try:
            rid = _recv(bare, 0 if wait else _NOW)
            frame = _recv(bare, 0, False)
        except zmq.Again:
            return None
        if frame.more:
            # Left in the queue, the third part would pass for the next sender's routing id.
            while frame.more:
                frame = _recv(bare, 0, False)
            self._inflow.heard(fd_of(frame))
            if len(self._multipart) < MAX_MULTIPART:
                self._multipart.add(rid)
            return None
        if self._suspects:
            self._inflow.heard(fd_of(frame))
        return rid, frame, frame.bytes if len(frame) < KEEP else frame.buffer

    def take_multipart(self) -> set[bytes]:
        """Return who has sent messages of several parts since the last call: MAX_MULTIPART peers.

        Such messages are not read.
        """
        taken, self._multipart = self._multipart, set()
        return taken

    def send(self, rid: bytes, frame: bytes | bytearray | memoryview | Origin) -> Delivery:
        """Send one frame to the peer with this routing id, now or not at all.

        To relay a received frame without a copy, pass its origin. FULL: too many frames, or too
        many bytes, wait for the peer (see `backlog`).
        """
        bare = self._bare
        self.may_have_unsignalled_input = True
        try:
            if type(frame) is Origin or len(frame) >= KEEP:
                return self._send_large(rid, frame)
            _send(bare, rid, _MORE_NOW)
            _send(bare, frame, _NOW)
        except zmq.Again:
            return Delivery.FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                self._backlogs.forget(rid)
                return Delivery.UNREACHABLE
            raise
        return Delivery.DONE

    def _send_large(self, rid: bytes, frame: bytes | bytearray | memoryview | Origin) -> Delivery:
        bare, size, mark = self._bare, len(frame), None
        backlog = self._backlogs.of(rid)
        if not backlog.has_room(size):
            return Delivery.FULL
        _send(bare, rid, _MORE_NOW)
        if backlog.needs_mark(size):
            data = frame.buffer if isinstance(frame, Origin) else frame
            marked = zmq.Frame(data, track=True, copy=False, copy_threshold=0)
            self._socket.send(marked, _NOW, copy=False, track=True)
            mark = marked.tracker
        elif type(frame) is Origin or size < ZERO_COPY:
            _send(bare, frame, _NOW)
        else:
            self._socket.send(frame, _NOW, copy=False)
        backlog.sent(size, mark)
        return Delivery.DONE

    def connection_id(self, fd: int) -> int:
        """Return a number that identifies the connection with this descriptor; 0 if there is none.

        The system reuses descriptors but not these numbers.
        """
        return kernel.connection_id(fd)

    def is_from_host(self, fd: int) -> bool:
        """Return whether the other end of a connection is on this host."""
        return kernel.is_from_host(fd)

    def unread(self, fd: int) -> int:
        """Return how many bytes a connection holds that its other end has not taken.

        Returns 0 if that is unknown: on systems other than Linux.
        """
        return kernel.unread(fd)

    def idle_s(self, fd: int) -> float | None:
        """Return for how many seconds nothing has arrived on a connection, heartbeats included.

        Returns None if that is unknown: for ipc, and on systems other than Linux.
        """
        return kernel.idle_s(fd)

    def drop_input(self, fd: int) -> bool:
        """Let the kernel drop all data that arrives on a connection, until it is closed.

        Returns False where that is impossible: for ipc, and on systems other than Linux.
        """
        self._inflow.ignore(fd)
        return kernel.drop_input(fd)

    def hang_up(self, fd: int, connection: int = 0) -> None:
        """Close the connection with this descriptor; libzmq sees it end as if the peer had.

        `connection`: close it only if `connection_id` still returns this number; 0: in any case.
        """
        if connection and self.connection_id(fd) != connection:
            return
        kernel.finish_at_close(fd)  # it may have been told why
        kernel.shut_down(fd)

    def link_events(self) -> list[LinkEvent]:
        """Return the connections made and lost since the last call.

        Close those that deliver bytes without end, but no complete message, and those whose other
        end is gone. Warn if no more can be accepted.
        """
        events = self._monitor.events()
        for event in events:
            self._inflow.note(event)
        self._inflow.close_overfull()
        self._files.check(time.monotonic())
        return events

    def has_failed(self) -> bool:
        """Return whether the next `receive` could abort this process.

        That is so if a connection has failed while its queue was full (docs/design.md). Ask after
        each pause in which the kernel may have given a connection up, after `link_events`. Then
        this socket can only be closed.
        """
        return self._inflow.has_failed()

    def take_doubtful(self) -> list[int]:
        """Return the descriptors of connections that may have been reset since the last call.

        Only if something is sent there, `link_events` finds out whether they were.
        """
        taken = list(self._inflow.doubtful)
        self._inflow.doubtful.clear()
        return taken

    @property
    def waitable(self) -> zmq.Socket[bytes]:
        """The socket, for `polling.wait_among`."""
        return self._socket

    @property
    def signals(self) -> Sequence[Waitable] | None:
        """What has input if there is something to do; None while connections must be checked."""
        return None if self._inflow.connections else (self, self._monitor)

    def close(self, linger_s: float = 0.0) -> None:
        """Close all connections. Frames sent last have `linger_s` seconds to leave."""
        if self._domain:
            authenticator().forget(self._domain)
        for event in self._monitor.events():
            self._inflow.note(event)
        self._inflow.finish()
        self._monitor.close()
        self._socket.close(linger=int(linger_s * 1000))
