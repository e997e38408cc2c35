"""A broker's core with a clock that only tests move, and peers that speak in messages."""

from __future__ import annotations

import itertools
import random
from typing import Any, NamedTuple, TypeVar

from gymwire.broker.auth import NO_POLICY, Policy, Rights
from gymwire.broker.core import Core
from gymwire.broker.events import Send, Sender
from gymwire.broker.rate_limit import Admission
from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN, Header
from gymwire.protocol.messages import (
    Act,
    Hello,
    Message,
    Offer,
    Offered,
    Open,
    Opened,
    Role,
    Welcome,
)

M = TypeVar("M", bound=Message)
LEASE_S = 30.0
DISCRETE = [["Discrete", "<i8", 2, 0]]
STARTED = 1000.0
LONG_AFTER_START = STARTED + 100.0  # long after the time in which agents announce themselves


class SentMessage(NamedTuple):
    """A message that a peer was sent."""

    rid: bytes
    header: Header
    message: Message


def decoded(sends: list[Send]) -> list[SentMessage]:
    """Return the messages that the core sends."""
    found = []
    for send in sends:
        header = codec.read_header(send.frame)
        found.append(SentMessage(send.rid, header, PLAIN.decode(send.frame, header)))
    return found


def only(sends: list[SentMessage], kind: type[M]) -> M:
    """Return the only message that was sent, which must have this type."""
    assert [type(one.message) for one in sends] == [kind], sends
    message = sends[0].message
    assert isinstance(message, kind)
    return message


class Broker:
    """One run of a broker, seen from its peers."""

    def __init__(
        self,
        *,
        epoch: int = 1,
        now: float = LONG_AFTER_START,
        seed: int = 0,
        policy: Policy = NO_POLICY,
        local: tuple[str, str] | None = None,
    ) -> None:
        self.now = now
        self.on_host = True
        self.unread = 0
        self.core = Core(
            epoch=epoch,
            now=STARTED if now == LONG_AFTER_START else now,
            rng=random.Random(seed),
            software="gymwire test",
            lease_s=LEASE_S,
            policy=policy,
            local=local,
        )
        self._fds = itertools.count(100)
        self.fds: dict[bytes, int] = {}

    def frame(
        self, rid: bytes, data: bytes | bytearray, key: bytes | None = None, fd: int | None = None
    ) -> list[SentMessage]:
        """Deliver a frame; return what the broker sends, including relayed frames."""
        to = self.core.relay(rid, bytes(data), key)
        if to is not None:
            return decoded([Send(to, data)])
        admission = self.core.admit(rid, bytes(data), key, self.now)
        if admission in (Admission.THROTTLE, Admission.CUT_OFF, Admission.DROP):
            return (
                [] if admission is Admission.DROP else decoded(self.core.throttle(rid, bytes(data)))
            )
        fd = self.fds.setdefault(rid, next(self._fds)) if fd is None else fd
        identity = "" if key is None else key.decode()
        sender = Sender(rid, fd, key, identity, on_host=self.on_host, unread=self.unread)
        sends = self.core.receive(sender, bytes(data), self.now)
        while self.core.has_announcements:
            sends += self.core.take_over(self.now)
        return decoded(sends)

    def say(
        self,
        rid: bytes,
        message: Message,
        sid: int = 0,
        seq: int = 0,
        *,
        key: bytes | None = None,
        fd: int | None = None,
    ) -> list[SentMessage]:
        """Deliver a message of a peer; return what the broker sends."""
        return self.frame(rid, PLAIN.encode(message, sid, seq), key, fd)

    def hello(
        self,
        rid: bytes,
        role: str,
        *,
        agent: bytes = b"",
        sessions: list[Any] | None = None,
        key: bytes | None = None,
        fd: int | None = None,
    ) -> list[SentMessage]:
        """Deliver HELLO of a peer; return what the broker sends."""
        hello = Hello(role, agent or rid, "gymwire test", "host", sessions or [])
        return self.say(rid, hello, key=key, fd=fd)

    def learner(self, rid: bytes = b"\x01learner", *, key: bytes | None = None) -> bytes:
        """Connect a learner; return its routing id."""
        only(self.hello(rid, Role.LEARNER, key=key), Welcome)
        return rid

    def env(
        self,
        rid: bytes = b"\x01env",
        *addresses: str,
        capacity: int = 4,
        digest: bytes = b"d",
        agent: bytes = b"",
        key: bytes | None = None,
    ) -> bytes:
        """Connect a serving loop that offers these addresses; return its routing id."""
        only(self.hello(rid, Role.ENV, agent=agent, key=key), Welcome)
        for address in addresses or ("cartpole",):
            only(self.say(rid, offer(address, capacity, digest), key=key), Offered)
        return rid

    def open(
        self,
        learner: bytes,
        address: str = "cartpole",
        *,
        nonce: bytes = b"n" * 16,
        key: bytes | None = None,
        env_key: bytes | None = None,
    ) -> int:
        """Open a session, from OPEN to OPENED; return its sid."""
        [forwarded] = self.say(learner, Open(address, nonce), seq=1, key=key)
        assert isinstance(forwarded.message, Open), forwarded
        sid = forwarded.header.sid
        [answer] = self.say(forwarded.rid, opened(), sid, 1, key=env_key)
        assert (answer.rid, answer.header.sid) == (learner, sid)
        return sid

    def reaches(self, sender: bytes, sid: int, seq: int = 1) -> bytes | None:
        """Return the routing id to which an ACT of this session is relayed, if any."""
        return self.core.relay(sender, bytes(PLAIN.encode(Act(0), sid, seq)), None)

    def expire(self, after_s: float = 0.0) -> list[SentMessage]:
        """Let time pass; return what the broker sends."""
        self.now += after_s
        return decoded(self.core.expire(self.now))


def offer(address: str, capacity: int = 4, digest: bytes = b"d") -> Offer:
    """Return an offer of an environment with two actions. `digest`: its first bytes."""
    digest = digest.ljust(32, b".")
    return Offer(address, "CartPole-v1", DISCRETE, DISCRETE, {}, {}, capacity, digest)


def opened() -> Opened:
    """Return OPENED of the same environment."""
    return Opened(DISCRETE, DISCRETE, None, None, {}, {}, None, 0, {}, "")


def limited_broker(env: bytes, learner: bytes, **limits: float) -> Broker:
    """Return a broker with an env agent and a learner, whose key may have limits."""
    rights = Rights("alice", offer=("*",), use=("*",), **limits)  # type: ignore[arg-type]
    broker = Broker(policy=Policy(anyone=rights))
    broker.env(env)
    broker.learner(learner)
    return broker
