"""The ZeroMQ sockets: made, and their options set, in this module only (docs/protocol.md §3).

`zmq.ZMQError` does not leave this module for anything that a user can cause.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import re
import secrets
import socket as hostsocket
import struct
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, cast

import zmq
import zmq.backend
from zmq.utils.monitor import recv_monitor_message

from gymwire.protocol.address import check_url, is_local
from gymwire.protocol.errors import ConfigurationError, ConnectionFailed
from gymwire.protocol.messages import PRESENCE
from gymwire.protocol.security.keys import KeyPair, identity
from gymwire.protocol.security.zap import Allow, Authenticator

TICK_MS = 100  # how long a blocking receive blocks before timers get their turn
MAX_MESSAGE = 64 * 1024 * 1024
# A frame of this size or more is handed to libzmq without a copy; below, copying is cheaper than
# pyzmq's way of learning, through a thread of its own, that libzmq does not need it any more.
ZERO_COPY = 512 * 1024
# A received frame of this size or more is read where libzmq put it; below, as bytes.
KEEP = 4 * 1024
# Dead after IVL + TIMEOUT of silence, by the clock of libzmq's own thread: it answers for a process
# that is busy, not for one that is frozen.
HEARTBEAT_IVL_MS = 1500
HEARTBEAT_TIMEOUT_MS = 4000
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
HUNG_UP = 3  # handshakes that the other side breaks off in a row before that is suspicious

# Plain integers: to join pyzmq's flags anew for each frame costs more than sending it.
_NOW = int(zmq.DONTWAIT)
_MORE_NOW = int(zmq.DONTWAIT | zmq.SNDMORE)
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)

# The base class's methods skip several microseconds of Python in the subclass.
_send = zmq.backend.Socket.send
_recv = zmq.backend.Socket.recv

# Linux's struct tcp_info up to the milliseconds since data last came, its 14th 32-bit word.
_LAST_DATA_RECV = 52
_TCP_INFO_SIZE = _LAST_DATA_RECV + 4
# Linux's classic packet filter: one instruction, which keeps no byte of what comes.
_SO_ATTACH_FILTER = 26
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)

_context: tuple[int, zmq.Context[Any]] | None = None
_authenticator: tuple[int, Authenticator] | None = None
_domains = itertools.count(1)
_lock = threading.Lock()


def context() -> zmq.Context[Any]:
    """This process's context; a fork gets its own, and never touches its parent's."""
    global _context
    if _context is None or _context[0] != os.getpid():
        made: zmq.Context[Any] = zmq.Context()
        made.set(zmq.MAX_SOCKETS, 65535)
        _context = (os.getpid(), made)
    return _context[1]


def authenticator() -> Authenticator:
    """The thread of this process that libzmq asks about keys; started on first use."""
    global _authenticator
    with _lock:
        if _authenticator is None or _authenticator[0] != os.getpid():
            socket: zmq.Socket[bytes] = context().socket(zmq.REP)
            socket.linger = 0
            socket.bind(ZAP_ENDPOINT)
            thread = Authenticator(socket)
            thread.start()
            _authenticator = (os.getpid(), thread)
        return _authenticator[1]


def _common(socket: zmq.Socket[bytes], max_message: int, tick_ms: int = TICK_MS) -> None:
    socket.linger = 0
    socket.setsockopt(zmq.MAXMSGSIZE, max_message)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 3000)
    socket.setsockopt(zmq.TCP_MAXRT, 8000)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.rcvtimeo = tick_ms


def _dialling(
    rid: bytes, key: KeyPair | None, server_key: bytes | None, max_message: int
) -> zmq.Socket[bytes]:
    """A DEALER that has not dialled yet."""
    if (key is None) != (server_key is None):
        raise ConfigurationError("A connection needs both keys, its own and the other's.")
    socket: zmq.Socket[bytes] = context().socket(zmq.DEALER)
    _common(socket, max_message)
    socket.setsockopt(zmq.ROUTING_ID, rid)
    socket.setsockopt(zmq.RCVHWM, 0)  # bounded by the requests in flight
    # Only the dialling side pings; a TTL in each ping lets the other side miss the next. If a
    # listening socket pinged, any peer could abort its process: connect twice under one routing
    # id, speak on the first connection, close it, and libzmq's timer finds a dead engine.
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_IVL_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a broker that is not there
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    socket.sndtimeo = TICK_MS
    if key is not None and server_key is not None:
        socket.curve_publickey = key.public
        socket.curve_secretkey = key.secret
        socket.curve_serverkey = server_key
    return socket


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """A change of a connection. `fd`: the descriptor, as `fd_of` has it, or -1.

    `denied`: why the other side will not have this one, as the rest of a sentence; "" if it will.
    """

    up: bool
    fd: int
    denied: str = ""


class Monitor:
    """The connection events of one socket, read without blocking. `key`: a dialling socket's."""

    _FAILED = (
        zmq.Event.HANDSHAKE_FAILED_AUTH,
        zmq.Event.HANDSHAKE_FAILED_PROTOCOL,
        zmq.Event.HANDSHAKE_FAILED_NO_DETAIL,
    )

    def __init__(self, socket: zmq.Socket[bytes], key: KeyPair | None = None) -> None:
        self._watched = socket
        self._key = key
        self._hung_up = 0
        events = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED
        for event in self._FAILED:
            events |= event
        self._socket: zmq.Socket[bytes] = socket.get_monitor_socket(events)

    def close(self) -> None:
        """Stop watching."""
        self._watched.disable_monitor()
        self._socket.close(linger=0)

    def events(self) -> list[LinkEvent]:
        """What has happened since the last call."""
        found = []
        while self._socket.poll(0):
            message = recv_monitor_message(self._socket)
            event, value = zmq.Event(message["event"]), int(message["value"])
            if event in self._FAILED:  # the value is an error number then
                found.append(LinkEvent(False, -1, self._why(event, value)))
            else:
                up = event == zmq.Event.HANDSHAKE_SUCCEEDED
                if up:
                    self._hung_up = 0
                found.append(LinkEvent(up, value))
        return found

    def _why(self, event: zmq.Event, value: int) -> str:
        """Why a handshake failed, "" if it may yet succeed."""
        key = self._key
        if event == zmq.Event.HANDSHAKE_FAILED_AUTH:
            if key is None:
                return "it asks for a key. Give --key and --broker-key (key= and broker_key=)."
            return (
                f"it does not know the key {key.public.decode('ascii')} (identity "
                f"{identity(key.public)}). Ask its operator to let this key in."
            )
        if event == zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
            if value != zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                return ""
            if key is None:
                return (
                    "it uses keys and this side none. Give --key and --broker-key (key= and "
                    "broker_key=), as docs/security.md shows."
                )
            return (
                "it uses no keys and this side does. Start it with --key, or leave the keys away "
                "here."
            )
        # So is treated who was given a wrong key for a CURVE server; but a port forwarder does the
        # same while nobody is behind it.
        self._hung_up += value in (errno.EPIPE, errno.ECONNRESET)
        return ""

    @property
    def suspicion(self) -> str:
        """Why the other side may be hanging up on each handshake; "" if it does not."""
        if self._hung_up < HUNG_UP:
            return ""
        if self._key is None:
            return (
                "it hangs up on each handshake. If it uses keys, give --key and --broker-key "
                "(key= and broker_key=), as docs/security.md shows; it may also be no broker."
            )
        return (
            "it hangs up on each handshake. Either its public key is not the one given here as "
            "--broker-key (broker_key=), or it uses no keys."
        )


class Dealer:
    """A dialling socket: one connection to one broker, or to one agent directly.

    It reconnects by itself for ever. Used from one thread.
    """

    holds = False

    def __init__(
        self,
        url: str,
        *,
        key: KeyPair | None = None,
        server_key: bytes | None = None,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        self.url = check_url(url)
        # Ours alone, new for each socket, and never shown to others (guessing it would let a peer
        # take the connection over).
        socket = _dialling(b"\x01" + os.urandom(15), key, server_key, max_message)
        self._socket = socket
        self._monitor = Monitor(socket, key)
        self._bare = cast(Any, socket)
        # To ask libzmq for a frame as such costs as much as a small one; as bytes, a large one.
        self._expects_large = False
        try:
            socket.connect(url)
        except zmq.ZMQError as error:
            self.close()
            raise ConnectionFailed(f"Cannot dial {url}: {error.strerror}.") from None

    def send(self, frame: bytes | bytearray, wait: bool = False) -> bool:
        """Send one frame; with `wait`, within a tick, else now.

        False: there is no connection at present, or its queue is full.
        """
        flags = 0 if wait else _NOW
        try:
            if len(frame) < ZERO_COPY:
                _send(self._bare, frame, flags)
            else:
                self._socket.send(frame, flags, copy=False)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | memoryview | None:
        """The next frame, or None after a tick without one.

        Here the parts of a message are frames like any others: they all come from the one peer.
        """
        try:
            if self._expects_large:
                frame = _recv(self._bare, 0, False)
                self._expects_large = len(frame) >= KEEP
                return frame.buffer if self._expects_large else frame.bytes
            data: bytes = _recv(self._bare)
        except zmq.Again:
            return None
        if len(data) >= KEEP:
            self._expects_large = True
        return data

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Whether a frame is there within `timeout_s`."""
        return bool(self._socket.poll(int(timeout_s * 1000)))

    @property
    def suspicion(self) -> str:
        """Why the other side may be hanging up on each handshake; "" if it does not."""
        return self._monitor.suspicion

    def link_events(self) -> list[LinkEvent]:
        """Connections made and lost since the last call."""
        return self._monitor.events()

    @property
    def waitable(self) -> zmq.Socket[bytes]:
        """The socket, for a poll over several."""
        return self._socket

    def close(self, linger_s: float = 0.0) -> None:
        """Close; what was sent last has `linger_s` seconds to leave."""
        self._monitor.close()
        self._socket.close(linger=int(linger_s * 1000))


class Presence:
    """A connection that shows a broker that this process is there, also where an environment holds
    the interpreter's lock: libzmq alone says so, each time that it has made the connection anew.

    `agent`: the 16 bytes of HELLO. `hold` belongs into a thread of its own.
    """

    def __init__(
        self, url: str, agent: bytes, *, key: KeyPair | None = None, server_key: bytes | None = None
    ) -> None:
        self._socket = _dialling(PRESENCE + agent[:15], key, server_key, MAX_MESSAGE)
        self._socket.setsockopt(zmq.PROBE_ROUTER, 1)  # an empty message on each new connection
        self._socket.setsockopt(zmq.RCVHWM, 10)  # nobody reads
        self._socket.connect(check_url(url))
        self._held, self._release = os.pipe()

    def hold(self) -> None:
        """Block until `release`, without the interpreter's lock."""
        # POLLERR: the poll must watch the connection, but not end with a message from the broker.
        zmq.zmq_poll([(self._socket, zmq.POLLERR), (self._held, zmq.POLLIN)], timeout=-1)
        self._socket.close(linger=0)
        os.close(self._held)

    def release(self) -> None:
        """End `hold`; from any thread, once."""
        os.write(self._release, b"x")  # to close it is not enough if an environment has forked
        os.close(self._release)


Origin = zmq.Frame
"""What libzmq knows of a received frame, see `fd_of` and `public_key_of`."""

Received = tuple[bytes, Origin, bytes | memoryview]
"""The sender's routing id, the frame's origin, and its bytes; large ones where libzmq put them."""


def fd_of(origin: Origin) -> int:
    """The descriptor of the sender's connection, as LinkEvent has it; -1 if it is unknown."""
    try:
        return int(origin.get(zmq.SRCFD))
    except zmq.ZMQError:  # what is no ZeroMQ of this century (HTTP, say) has none
        return -1


def public_key_of(origin: Origin) -> bytes | None:
    """The sender's authenticated public key (z85), None where there is no authentication."""
    try:
        return str(origin.get("User-Id")).encode("ascii")
    except zmq.ZMQError:
        return None


class Delivery(Enum):
    """What became of a frame that was sent."""

    DONE = "done"
    UNREACHABLE = "unreachable"  # no such connection now
    FULL = "full"  # its queue is full: the peer does not read


class Router:
    """A listening socket. Sends never block: what cannot be delivered is told at once.

    With `key`, peers must hold one, too, for which `allow` is true (asked at each connection, in
    another thread). Without, it listens on this host only, unless `insecure`.

    `elsewhere`: what to do where a port is in use.

    `stirred`: something may be here of which `descriptor` does not tell any more.
    """

    holds = False
    stirred = True

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
            raise ConfigurationError(
                f"Refusing to listen at {remote[0]} without keys: anyone who reaches this port "
                f"could use and offer environments. Give a key (--key FILE, made by `python -m "
                f"protocol keygen`), or --insecure if the network is yours alone."
            )
        # libzmq names peers without an id of their own from rand(), which nobody seeds: whoever
        # guesses the next name can abort the process. Start it somewhere unknown.
        ctypes.CDLL(None).srand(secrets.randbits(32))
        socket: zmq.Socket[bytes] = context().socket(zmq.ROUTER)
        self._domain = ""
        _common(socket, max_message, tick_ms)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.SNDHWM, 1000)
        socket.setsockopt(zmq.RCVHWM, 1000)
        socket.setsockopt(zmq.BACKLOG, 1024)
        if key is not None:
            socket.curve_server = True
            socket.curve_publickey = key.public
            socket.curve_secretkey = key.secret
            # Answered for before the socket listens: nobody gets in between.
            self._domain = f"gymwire-{next(_domains)}"
            authenticator().admit(self._domain, allow)
            socket.setsockopt_string(zmq.ZAP_DOMAIN, self._domain)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._socket = socket
        self._bare = cast(Any, socket)
        self._monitor = Monitor(socket)
        self.urls: list[str] = []
        for url in checked:
            try:
                socket.bind(url)
            except zmq.ZMQError as error:
                self.close()
                raise ConfigurationError(_bind_failure(url, error, elsewhere)) from None
            self.urls.append(_readable(socket.get_string(zmq.LAST_ENDPOINT)))

    @property
    def descriptor(self) -> int:
        """What can be read when it is time to look; not for what came before the last call here."""
        return int(self._bare.getsockopt(zmq.FD))

    def look(self) -> bool:
        """Whether `receive` will not wait."""
        self.stirred = bool(self._bare.getsockopt(_EVENTS) & _POLLIN)
        return self.stirred

    def receive(self) -> Received | None:
        """The next frame, or None after a tick without one. A message of more frames is dropped."""
        bare = self._bare
        try:
            rid = _recv(bare)
            frame = _recv(bare, 0, False)
        except zmq.Again:
            return None
        if frame.more:
            # A loop that read on would take the third frame for the next sender's id.
            _drop_rest(bare, frame)
            return None
        return rid, frame, frame.bytes if len(frame) < KEEP else frame.buffer

    def send(self, rid: bytes, frame: bytes | bytearray | memoryview | Origin) -> Delivery:
        """Send one frame to the peer of this routing id, now or not at all.

        A received frame that is passed on as its origin is not copied.
        """
        bare = self._bare
        self.stirred = True
        try:
            _send(bare, rid, _MORE_NOW)
            if type(frame) is Origin or len(frame) < ZERO_COPY:
                _send(bare, frame, _NOW)
            else:
                self._socket.send(frame, _NOW, copy=False)
        except zmq.Again:
            return Delivery.FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return Delivery.UNREACHABLE
            raise
        return Delivery.DONE

    def connection(self, fd: int) -> int:
        """A number that stands for the connection which has this descriptor now; 0: none has."""
        try:
            return os.fstat(fd).st_ino
        except OSError:
            return 0

    def quiet_s(self, fd: int) -> float | None:
        """For how many seconds nothing has come over this connection, heartbeats included.

        None: unknown, as for ipc, and where the kernel does not tell.
        """
        if sys.platform != "linux":
            return None
        watched = _borrowed(fd)
        if watched is None:
            return None
        try:
            level, option = hostsocket.IPPROTO_TCP, hostsocket.TCP_INFO
            info = watched.getsockopt(level, option, _TCP_INFO_SIZE)
        except OSError:
            return None
        finally:
            watched.detach()
        return int.from_bytes(info[_LAST_DATA_RECV:], sys.byteorder) / 1000

    def mute(self, fd: int) -> bool:
        """Let nothing in any more over this connection until it is hung up on.

        The kernel drops what comes, so that the peer can send no more. False: it cannot do that.
        """
        if sys.platform != "linux":
            return False
        muted = _borrowed(fd)
        if muted is None:
            return False
        try:
            if muted.family not in (hostsocket.AF_INET, hostsocket.AF_INET6):
                return False
            verdict = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
            program = struct.pack("HP", 1, ctypes.addressof(verdict))
            muted.setsockopt(hostsocket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        except OSError:
            return False
        finally:
            muted.detach()
        return True

    def hang_up(self, fd: int, connection: int = 0) -> None:
        """Close the connection with this descriptor; libzmq sees it end as if the peer had.

        `connection`: only if it still is this one; 0: whichever it is.
        """
        if connection and self.connection(fd) != connection:
            return
        hung_up = _borrowed(fd)
        if hung_up is None:
            return
        try:
            hung_up.shutdown(hostsocket.SHUT_RDWR)
        except OSError:
            return
        finally:
            hung_up.detach()

    def link_events(self) -> list[LinkEvent]:
        """Connections made and lost since the last call."""
        return self._monitor.events()

    @property
    def waitable(self) -> zmq.Socket[bytes]:
        """The socket, for a poll over several."""
        return self._socket

    def close(self, linger_s: float = 0.0) -> None:
        """Close; what was sent last has `linger_s` seconds to leave."""
        if self._domain:
            authenticator().forget(self._domain)
        self._monitor.close()
        self._socket.close(linger=int(linger_s * 1000))


def unknown_host(url: str) -> str:
    """Why the host of this URL is not known here, as the rest of a sentence; "" if it is."""
    if url.startswith("tcp://"):
        host = url.removeprefix("tcp://").rpartition(":")[0].strip("[]")
        try:
            hostsocket.getaddrinfo(host, None)
        except OSError as error:
            return f"the host {host!r} is not known here ({error.strerror})"
    return ""


def _borrowed(fd: int) -> hostsocket.socket | None:
    """libzmq's connection with this descriptor, to be detached after use; None: there is none."""
    try:
        return hostsocket.socket(fileno=fd)
    except (OSError, ValueError):  # it is closed already; libzmq did not know it
        return None


def _readable(url: str) -> str:
    """An endpoint as people write it: libzmq shows an IPv4 address as mapped into IPv6."""
    return re.sub(r"\[::ffff:([0-9.]+)\]", r"\1", url)


class Waitable(Protocol):
    """What `wait_among` takes: sockets of this module, and of `unix_sockets`."""

    @property
    def holds(self) -> bool:
        """Whether a frame may be here that a poll of `waitable` does not see any more."""

    @property
    def waitable(self) -> Any:
        """A ZeroMQ socket, or a descriptor."""


def wait_among(sockets: Sequence[Waitable], timeout_s: float) -> list[int]:
    """Wait at most `timeout_s` until some of these have a frame; returns which, by their places."""
    held = [i for i, socket in enumerate(sockets) if socket.holds]
    if held:
        return held
    polled = [(socket.waitable, zmq.POLLIN) for socket in sockets]
    ready = {_named(socket) for socket, _ in zmq.zmq_poll(polled, timeout=int(timeout_s * 1000))}
    return [i for i, (socket, _) in enumerate(polled) if _named(socket) in ready]


def _named(polled: Any) -> int:
    """A descriptor by its number, which libzmq gives back as another object; a socket as itself."""
    return polled if isinstance(polled, int) else id(polled)


def _drop_rest(bare: Any, frame: zmq.Frame) -> None:
    while frame.more:
        frame = _recv(bare, 0, False)


def _bind_failure(url: str, error: zmq.ZMQError, elsewhere: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"{url} is in use: another broker, or another program, listens there, and whoever "
            f"dials it reaches that one, not this one. Stop it, or {elsewhere}."
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return f"{url} is not an address of this host: bind one that is, or tcp://*:PORT for all."
    return f"Cannot listen at {url}: {zmq.strerror(error.errno or 0)}."
