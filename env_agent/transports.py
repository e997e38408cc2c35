"""The two ways to a serving loop: relayed by the broker, and direct (docs/protocol.md §9).

A reply goes back the way its request came. Both ways may be used for one session at any time: the
numbers of the requests make the switch safe.
"""

from __future__ import annotations

import hmac
import platform
import socket
from typing import Any, NamedTuple

from gymwire.env_agent.session import Session
from gymwire.protocol.address import is_local
from gymwire.protocol.codec import Frame, Pieces
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.security.keys import KeyPair, identity
from gymwire.protocol.transport.broker_link import Link
from gymwire.protocol.transport.private_folder import PrivateFolder
from gymwire.protocol.transport.unix import CAN_LISTEN, MARK, SCHEME, UnixReceived, UnixRouter
from gymwire.protocol.transport.zmq_sockets import (
    TICK_MS,
    Origin,
    Received,
    Router,
    public_key_of,
    wait_among,
)

RELAY = b""  # the way through the broker; a direct one is its connection's routing id
DIRECT_TICK_MS = 20  # how often the rest is looked at while all sessions use one direct socket
LOOK_EVERY = 64  # frames of that socket after which the rest is looked at all the same
NEWCOMERS = 1000  # frames, or ticks of rest, in which a learner comes who can come directly


# The way that a frame came, what libzmq knows of it (if it came by libzmq), and the frame.
Arrived = Received | UnixReceived


class DirectSettings(NamedTuple):
    """What `--direct` asks for.

    `url`: tcp://HOST:PORT of the first loop, PORT+1 of the next …; None: within this host only.
    """

    url: str | None
    key: KeyPair | None = None
    insecure: bool = False


class DirectEndpoint:
    """One loop's listening sockets, and who may use them for which session.

    Learners of this host take the Unix socket; with keys, which are proved over ZeroMQ only, ipc.

    `newcomers`: for so many frames yet somebody may come who was told of these sockets just now.
    """

    def __init__(self, settings: DirectSettings, index: int, broker: str) -> None:
        self._expected: dict[int, str] = {}
        # by sid: the connection that the session is bound to, and its key
        self.attached: dict[int, tuple[bytes, bytes | None]] = {}
        # the socket that all of these use, if it is one
        self.sole: Router | UnixRouter | None = None
        self.newcomers = 0
        self._coming: set[int] = set()  # their sessions
        self._folder = PrivateFolder()
        near = f"{self._folder.path}/direct"
        urls = [] if settings.url is None else [_at_port(settings.url, index)]
        self.unix: UnixRouter | None = None
        self.router: Router | None = None
        try:
            if settings.key is None and CAN_LISTEN:
                self.unix = UnixRouter(SCHEME + near, ended=self._left, tick_ms=DIRECT_TICK_MS)
            elif platform.system() != "Windows":
                urls.append(f"ipc://{near}")
            if urls:
                self.router = Router(
                    urls,
                    key=settings.key,
                    allow=self._admits,
                    insecure=settings.insecure,
                    tick_ms=DIRECT_TICK_MS,
                    elsewhere="give --direct another port: each thread takes the next one",
                )
        except BaseException:
            if self.unix is not None:
                self.unix.close()
            self._folder.remove()
            raise
        self._key = settings.key
        if self.router is not None and settings.url is not None:
            port = self.router.urls[0].rpartition(":")[2]
            urls[0] = f"tcp://{_advertised_host(settings.url, broker)}:{port}"
        self.offer: dict[str, Any] = {
            "urls": [*urls, *([self.unix.url] if self.unix else [])],
            "host": socket.gethostname(),
            "key": b"" if settings.key is None else settings.key.public,
        }

    def attach(self, session: Session, nonce: bytes, rid: bytes, origin: Origin | None) -> bool:
        """Bind the session to this connection if it is its learner's."""
        if not hmac.compare_digest(nonce, session.nonce):
            return False
        key = None
        if self._key is not None:
            key = None if origin is None else public_key_of(origin)
            if key is None or identity(key) != session.learner:
                return False
        self.attached[session.sid] = (rid, key)
        self._has_come(session.sid)
        self._choose_sole()
        return True

    def _choose_sole(self) -> None:
        on_unix = {rid[0] == MARK for rid, _ in self.attached.values()}
        self.sole = None
        if len(on_unix) == 1:
            self.sole = self.unix if on_unix.pop() else self.router

    def send(self, rid: bytes, frame: Frame | Pieces) -> None:
        """Send to this connection; if it is gone, or does not read, its learner will ask again.

        In pieces to a Unix socket only.
        """
        if rid[0] != MARK:
            assert not isinstance(frame, Pieces)
            if self.router is not None:
                self.router.send(rid, frame)
        elif self.unix is not None:
            self.unix.send(rid, frame)

    def expect(self, sid: int, learner: str) -> None:
        """The learner of this session may connect."""
        self._expected[sid] = learner
        if not self.newcomers:
            self._coming.clear()
        self.newcomers = NEWCOMERS
        self._coming.add(sid)

    def _has_come(self, sid: int) -> None:
        """The learner of this session is here, or will not come."""
        self._coming.discard(sid)
        if not self._coming:
            self.newcomers = 0

    def _admits(self, key: bytes) -> bool:
        """Whether this key is that of a session's learner. Asked in another thread."""
        return identity(key) in tuple(self._expected.values())

    def allows(self, sid: int, rid: bytes, origin: Origin | None) -> bool:
        """Whether this connection is the session's; a routing id alone does not show that."""
        bound = self.attached.get(sid)
        if bound is None or bound[0] != rid:
            return False
        return self._key is None or (origin is not None and bound[1] == public_key_of(origin))

    def detach(self, sid: int) -> None:
        """The session has ended."""
        self._expected.pop(sid, None)
        self._has_come(sid)
        if self.attached.pop(sid, None) is not None:
            self._choose_sole()

    def _left(self, rid: bytes) -> None:
        """This connection has ended: its sessions may come back over another, or the relay."""
        for sid in [sid for sid, bound in self.attached.items() if bound[0] == rid]:
            del self.attached[sid]
        self._choose_sole()

    def close(self) -> None:
        """Close the sockets."""
        if self.router is not None:
            self.router.close(linger_s=0.3)
        if self.unix is not None:
            self.unix.close()
        self._folder.remove()


class Transports:
    """Receives from both ways and sends on either."""

    def __init__(self, dealer: Link, direct: DirectEndpoint | None) -> None:
        self.dealer = dealer
        self.direct = direct
        self._turn = 0
        self._all = 0  # direct frames for which all sockets are waited for
        self._sockets: list[Link | Router | UnixRouter] = [dealer]
        if direct is not None:
            if direct.router is not None:
                self._sockets.append(direct.router)
            if direct.unix is not None:
                self._sockets.append(direct.unix)

    def poll(self) -> bool:
        """Whether a frame is there already."""
        return self.dealer.poll() if self.direct is None else bool(wait_among(self._sockets, 0))

    def receive(self, sessions: int) -> Arrived | None:
        """The next frame and the way it came, or None after a tick; `sessions`: how many are open.

        While all of them use one socket, only that is waited for: a poll over all costs more than
        2 µs. Who came directly may ask through the broker all the same: all are then.
        """
        direct = self.direct
        if direct is None:
            return self._relayed()
        sole, attached = direct.sole, len(direct.attached)
        if direct.newcomers:
            direct.newcomers -= 1
            return self._any(TICK_MS / 1000)
        if attached and (self._all or sole is None or attached != sessions):
            return self._any(TICK_MS / 1000)
        self._turn = turn = (self._turn + 1) % LOOK_EVERY
        received: Arrived | None = None
        if turn:
            received = self._relayed() if sole is None else sole.receive()
        if received is None:
            received = self._any(0)
        return received

    def _any(self, wait_s: float) -> Arrived | None:
        """A frame of any socket, the relay's first."""
        for place in wait_among(self._sockets, wait_s):
            match self._sockets[place]:
                case Link():
                    arrived = self._relayed()
                    # A session's request, and nothing of the broker's own.
                    if arrived is not None and len(arrived[2]) > 2 and arrived[2][2] < 16:
                        self._all = LOOK_EVERY
                    return arrived
                case Router() as router:
                    self._all -= bool(self._all)
                    return router.receive()
                case UnixRouter() as unix:
                    arrived = unix.receive(wait=False)
                    if arrived is not None:
                        self._all -= bool(self._all)
                        return arrived
        return None

    def _relayed(self) -> Arrived | None:
        data = self.dealer.receive()
        return None if data is None else (RELAY, None, data)

    def takes_pieces(self, way: bytes) -> bool:
        """Whether a frame may go this way in pieces: libzmq wants it in one."""
        return way[0] == MARK if way else self.dealer.takes_pieces

    def send(self, way: bytes, frame: Frame | Pieces) -> None:
        """Send a reply the way its request came; if that is gone, the learner will ask again."""
        if not way:
            self.dealer.send(frame)
        elif self.direct is not None:
            self.direct.send(way, frame)

    def close(self) -> None:
        """Close both."""
        self.dealer.close(linger_s=0.3)
        if self.direct is not None:
            self.direct.close()


def _at_port(url: str, index: int) -> str:
    head, _, port = url.rpartition(":")
    return url if port == "*" else f"{head}:{int(port) + index}"


def _advertised_host(url: str, broker: str) -> str:
    """The host that learners dial: the one given, or for `*` that which faces the broker."""
    host = url.removeprefix("tcp://").rpartition(":")[0]
    if host not in ("*", "0.0.0.0", "[::]"):
        return host
    if is_local(broker):
        return "127.0.0.1"
    target = broker.removeprefix("tcp://").rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            target[0].strip("[]"), int(target[2]), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing: it only picks the interface
            name = str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigurationError(
            f"--direct {url}: cannot tell which of this host's addresses learners should dial "
            f"({error.strerror}); name it: --direct tcp://HOST:PORT."
        ) from None
    return f"[{name}]" if ":" in name else name
