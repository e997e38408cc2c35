"""The two ways to a serving loop: relayed by the broker, and direct (docs/protocol.md §9).

A reply goes back the way its request came. Both ways may be used for one session at any time: the
numbers of the requests make the switch safe.
"""

from __future__ import annotations

import hmac
import socket
from typing import Any, NamedTuple

from gymwire.env_agent.session import Session
from gymwire.protocol.address import is_local
from gymwire.protocol.codec import KIND_AT, Frame, Pieces
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import CONTROL_KINDS
from gymwire.protocol.security.keys import KeyPair, identity
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.interface import TICK_MS, Listener, Origin, Received, Waitable
from gymwire.protocol.transport.polling import wait_among
from gymwire.protocol.transport.private_folder import PrivateFolder
from gymwire.protocol.transport.registry import ListenOptions, listen, local_url
from gymwire.protocol.transport.router import public_key_of

RELAY = b""  # the way through the broker; a direct one is its connection's routing id
DIRECT_TICK_MS = 20  # how often the rest is looked at while all sessions use one direct socket
LOOK_EVERY = 64  # frames of that socket after which the rest is looked at all the same
NEWCOMERS = 1000  # frames, or ticks of rest, in which a learner comes who can come directly


# The way that a frame came, what libzmq knows of it (if it came by libzmq), and the frame.
Arrived = Received


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
        self.sole: Listener | None = None
        self.newcomers = 0
        self._coming: set[int] = set()  # their sessions
        self._folder = PrivateFolder()
        urls = [] if settings.url is None else [_at_port(settings.url, index)]
        near = local_url(f"{self._folder.path}/direct", keyed=settings.key is not None)
        if near is not None:
            urls.append(near)
        options = ListenOptions(
            key=settings.key,
            allow=self._admits,
            insecure=settings.insecure,
            ended=self._left,
            tick_ms=DIRECT_TICK_MS,
            elsewhere="give --direct another port: each thread takes the next one",
        )
        try:
            self.listeners = listen(urls, options)
        except BaseException:
            self._folder.remove()
            raise
        self._by_mark = {listener.mark: listener for listener in self.listeners}
        self._key = settings.key
        if settings.url is not None:
            port = self.listeners[0].urls[0].rpartition(":")[2]
            urls[0] = f"tcp://{_advertised_host(settings.url, broker)}:{port}"
        self.offer: dict[str, Any] = {
            "urls": urls,
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
        used = {id(found): found for rid, _ in self.attached.values() if (found := self.of(rid))}
        self.sole = next(iter(used.values())) if len(used) == 1 else None

    def of(self, rid: bytes) -> Listener | None:
        """Return the listener of this connection."""
        return self._by_mark.get(rid[0]) or self._by_mark.get(-1)

    def send(self, rid: bytes, frame: Frame | Pieces) -> None:
        """Send to this connection; if it is gone, or does not read, its learner will ask again.

        `Pieces` only where `takes_pieces` says so.
        """
        listener = self._by_mark.get(rid[0]) or self._by_mark.get(-1)
        if listener is not None:
            listener.send(rid, frame)  # type: ignore[arg-type]

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
        for listener in self.listeners:
            listener.close(linger_s=0.3)
        self._folder.remove()


class Paths:
    """Receives from both ways and sends on either."""

    def __init__(self, dealer: BrokerLink, direct: DirectEndpoint | None) -> None:
        self.dealer = dealer
        self.direct = direct
        self._turn = 0
        self._all = 0  # direct frames for which all sockets are waited for
        self._listeners = [] if direct is None else direct.listeners
        self._sockets: list[Waitable] = [dealer, *self._listeners]

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
            if not place:
                relayed = self._relayed()
                # A request of a session, not a message of the broker itself.
                if (
                    relayed is not None
                    and len(relayed[2]) > KIND_AT
                    and relayed[2][KIND_AT] < CONTROL_KINDS
                ):
                    self._all = LOOK_EVERY
                return relayed
            arrived = self._listeners[place - 1].receive(wait=False)
            if arrived is not None:
                self._all -= bool(self._all)
                return arrived
        return None

    def _relayed(self) -> Arrived | None:
        data = self.dealer.receive()
        return None if data is None else (RELAY, None, data)

    def takes_pieces(self, way: bytes) -> bool:
        """Whether a frame may go this way in pieces: libzmq wants it in one."""
        if not way or self.direct is None:
            return self.dealer.takes_pieces
        listener = self.direct.of(way)
        return listener is not None and listener.takes_pieces

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
