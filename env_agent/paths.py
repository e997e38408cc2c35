"""The two ways to a serving loop: relayed by the broker, and direct (docs/protocol.md §9).

A reply goes back the way its request came. Both ways may be used for one session at any time: the
numbers of the requests make the switch safe.
"""

from __future__ import annotations

import hmac
import platform
import socket
from typing import Any, NamedTuple

from env_agent.private_folder import PrivateFolder
from env_agent.session import Session
from protocol.address import is_local
from protocol.codec import Frame
from protocol.errors import ConfigurationError
from protocol.keys import KeyPair, identity
from protocol.transport import Dealer, Origin, Received, Router, public_key_of, wait_for

RELAY = b""  # the way through the broker; a direct one is its connection's routing id
DIRECT_TICK_MS = 20  # how often the broker is looked at while all sessions are direct
LOOK_EVERY = 64  # direct frames after which the broker is looked at all the same


# The way that a frame came, what libzmq knows of a direct one, and the frame.
Arrived = Received | tuple[bytes, None, bytes | memoryview]


class DirectSettings(NamedTuple):
    """What `--direct` asks for. `url`: tcp://HOST:PORT of the first loop; PORT+1 of the next …"""

    url: str
    key: KeyPair | None = None
    insecure: bool = False


class DirectEndpoint:
    """One loop's listening socket, and who may use it for which session."""

    def __init__(self, settings: DirectSettings, index: int, broker: str) -> None:
        self._expected: dict[int, str] = {}
        self._folder = PrivateFolder()
        urls = [_at_port(settings.url, index)]
        if platform.system() != "Windows":
            urls.append(f"ipc://{self._folder.path}/direct")
        try:
            self.router = Router(
                urls,
                key=settings.key,
                allow=self._admits,
                insecure=settings.insecure,
                tick_ms=DIRECT_TICK_MS,
            )
        except BaseException:
            self._folder.remove()
            raise
        self._key = settings.key
        port = self.router.urls[0].rpartition(":")[2]
        host = _advertised_host(settings.url, broker)
        self.offer: dict[str, Any] = {
            "urls": [f"tcp://{host}:{port}", *urls[1:]],
            "host": socket.gethostname(),
            "key": b"" if settings.key is None else settings.key.public,
        }
        # by sid: the connection that the session is bound to, and its key
        self.attached: dict[int, tuple[bytes, bytes | None]] = {}

    def attach(self, session: Session, nonce: bytes, rid: bytes, origin: Origin) -> bool:
        """Bind the session to this connection if it is its learner's."""
        if not hmac.compare_digest(nonce, session.nonce):
            return False
        key = None
        if self._key is not None:
            key = public_key_of(origin)
            if key is None or identity(key) != session.learner:
                return False
        self.attached[session.sid] = (rid, key)
        return True

    def expect(self, sid: int, learner: str) -> None:
        """The learner of this session may connect."""
        self._expected[sid] = learner

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
        self.attached.pop(sid, None)
        self._expected.pop(sid, None)

    def close(self) -> None:
        """Close the socket."""
        self.router.close(linger_s=0.3)
        self._folder.remove()


class Paths:
    """Receives from both ways and sends on either."""

    def __init__(self, dealer: Dealer, direct: DirectEndpoint | None) -> None:
        self.dealer = dealer
        self.direct = direct
        self._turn = 0

    def poll(self) -> bool:
        """Whether a frame is there already."""
        direct = self.direct
        return self.dealer.poll() or (direct is not None and bool(direct.router.waitable.poll(0)))

    def receive(self, sessions: int) -> Arrived | None:
        """The next frame and the way it came, or None after a tick; `sessions`: how many are open.

        While all of them are direct, only that socket is waited for: a poll over both costs 2 µs.
        """
        direct = self.direct
        if direct is None:
            data = self.dealer.receive()
            return None if data is None else (RELAY, None, data)
        router = direct.router
        if sessions and sessions == len(direct.attached):
            self._turn = turn = (self._turn + 1) % LOOK_EVERY
            if turn or not self.dealer.poll():
                received = router.receive()
                if received is not None or not self.dealer.poll():
                    return received
            return self._relayed()
        match wait_for(self.dealer, router):
            case "first":
                return self._relayed()
            case "second":
                return router.receive()
        return None

    def _relayed(self) -> Arrived | None:
        data = self.dealer.receive()
        return None if data is None else (RELAY, None, data)

    def send(self, way: bytes, frame: Frame) -> None:
        """Send a reply the way its request came; if that is gone, the learner will ask again."""
        if not way:
            self.dealer.send(frame)
        elif self.direct is not None:
            self.direct.router.send(way, frame)

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
