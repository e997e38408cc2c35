"""The hostile peers by name: what each sends, at a bounded rate.

Each kind is a generator over one attempt: it sends, yields how many seconds to pause, and closes
its connections when it is closed. The rates are such that a test measures gymwire and not the
kernel.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import zmq

from gymwire.protocol import codec
from gymwire.protocol.codec import COMPACT, HEADER, MAGIC, PLAIN, Header
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.messages import (
    VERSION,
    Act,
    Close,
    Error,
    Find,
    Hello,
    Kind,
    Message,
    Offer,
    Open,
    Opened,
    Ping,
    Reset,
    Role,
)
from tests.broker.harness import DISCRETE
from tests.soak.place import CARTPOLE, SLOW, Place

ANSWER_S = 2.0  # how long a hostile peer waits for an answer before it begins again
INT, TUPLE = 3, 4  # extension types, see protocol/values.py
Pauses = Iterator[float]
Attack = Callable[[Place, str], Pauses]


# How many ERROR and BUSY replies each kind has read.
REFUSALS: Counter[str] = Counter()


class NoAnswer(Exception):
    """The broker or an env agent refused, or said nothing in time."""


class Peer:
    """A bare socket with the key of `name`. With `reads=False` its replies fill its connection."""

    def __init__(self, place: Place, name: str, *, reads: bool = True) -> None:
        self._name = name
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.sndtimeo = 200
        if not reads:
            self.socket.rcvhwm = 1
            self.socket.setsockopt(zmq.RCVBUF, 4096)
        pair = place.pair(name)
        self.socket.curve_publickey, self.socket.curve_secretkey = pair.public, pair.secret
        self.socket.curve_serverkey = place.pair("broker").public
        self.socket.setsockopt(zmq.ROUTING_ID, b"\x01" + os.urandom(15))
        self.socket.connect(place.url)

    def send(self, frame: Any) -> None:
        """Send a frame; drop it if the broker does not read."""
        with contextlib.suppress(zmq.Again):
            self.socket.send(frame)

    def say(self, message: Message, sid: int = 0, seq: int = 1) -> None:
        self.send(PLAIN.encode(message, sid, seq))

    def receive(self) -> tuple[Header, bytes] | None:
        """Return a frame that has arrived, if there is one."""
        while self.socket.poll(0):
            data = self.socket.recv()
            with contextlib.suppress(GymwireError):
                header = codec.read_header(data)
                REFUSALS[self._name] += header.kind in (Kind.ERROR, Kind.BUSY)
                return header, data
        return None

    def wait_for(self, *kinds: Kind) -> tuple[Header, bytes]:
        """Return the next frame of one of these kinds. Raises NoAnswer."""
        deadline = time.monotonic() + ANSWER_S
        while (left_s := deadline - time.monotonic()) > 0:
            if self.socket.poll(int(left_s * 1000)) and (got := self.receive()) is not None:
                if got[0].kind in kinds:
                    return got
                if got[0].kind is Kind.GONE:
                    break
        raise NoAnswer

    def close(self) -> None:
        self._context.destroy(linger=100)

    def drain(self) -> None:
        """Read and forget what has arrived."""
        while self.receive() is not None:
            pass

    def hello(self, role: str = Role.LEARNER) -> None:
        self.say(Hello(role, os.urandom(16), "soak", "elsewhere"))
        self.wait_for(Kind.WELCOME)


class Session:
    """A session of a hostile learner."""

    def __init__(self, peer: Peer, address: str) -> None:
        self.peer = peer
        self.seq = 1
        peer.say(Open(address, os.urandom(16)))
        self.header, _ = peer.wait_for(Kind.OPENED)
        self.sid = self.header.sid

    def request(self, frame: Any) -> None:
        """Send a frame that `framed` made for `seq`, and take the reply."""
        self.peer.send(frame)
        header, data = self.peer.wait_for(Kind.ERROR, Kind.STATUS, Kind.PERCEPT, Kind.CLOSED)
        self.seq += 1
        if header.kind is Kind.ERROR:
            error = PLAIN.decode(data)
            assert isinstance(error, Error)
            self.seq = error.details.get("expected", self.seq)

    def framed(self, kind: Kind, body: bytes, flags: int = 0) -> bytes:
        return framed(kind, body, self.sid, self.seq, flags)


@contextlib.contextmanager
def peer(place: Place, name: str, role: str | None = Role.LEARNER, **how: bool) -> Iterator[Peer]:
    """Connect, and say HELLO in this role."""
    made = Peer(place, name, **how)
    try:
        if role is not None:
            made.hello(role)
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def session(place: Place, name: str, address: str) -> Iterator[Session]:
    """Open a session, and close it."""
    with peer(place, name) as learner:
        made = Session(learner, address)
        try:
            yield made
        finally:
            learner.say(Close(), made.sid, made.seq)


def framed(kind: Kind, body: bytes, sid: int = 0, seq: int = 1, flags: int = 0) -> bytes:
    """Return a frame with this head."""
    return HEADER.pack(MAGIC, VERSION, kind, flags, len(body), sid, seq) + body


def integer(data: bytes) -> bytes:
    """Return an integer outside 64 bits, packed: `data` is its two's complement."""
    packed: bytes = msgpack.packb(msgpack.ExtType(INT, data))
    return packed


def colliding_map(entries: int) -> bytes:
    """Return a map whose keys all have the hash 0: multiples of 2**61 - 1."""
    step = 2**61 - 1
    keys = (integer((step * i).to_bytes(12, "little")) for i in range(8, 8 + entries))
    return b"\xdf" + entries.to_bytes(4) + b"\xc0".join(keys) + b"\xc0"


def offer(address: str, size: int = 0) -> Offer:
    """Return an offer with `size` bytes of metadata."""
    metadata = {"x": bytes(size)} if size else {}
    return Offer(address, "x", DISCRETE, DISCRETE, {}, metadata, 4, b"")


# --- work -----------------------------------------------------------------------------------------


def long_integers(place: Place, name: str) -> Pauses:
    """Send actions of 2,000 bytes where a small number is expected."""
    with session(place, name, CARTPOLE) as one:
        body = b"\x91" + integer(b"\x7f" * 2000)
        while True:
            one.request(one.framed(Kind.ACT, body, COMPACT))
            yield 0.2


def huge_seeds(place: Place, name: str) -> Pauses:
    """Reset with seeds of 200 kB."""
    with session(place, name, CARTPOLE) as one:
        body = b"\x92" + integer(b"\x7f" * 200_000) + b"\xc0"
        while True:
            one.request(one.framed(Kind.RESET, body))
            yield 1.0


def nested_containers(place: Place, name: str) -> Pauses:
    """Reset with options of 16 MiB that take far more memory once they are decoded."""
    size = 16 * 1024 * 1024
    tuples = msgpack.packb(msgpack.ExtType(TUPLE, b"\x91\x80"))
    bodies = [
        b"\x92\xc0\x81\xa1x\xdd" + (size // len(item)).to_bytes(4) + item * (size // len(item))
        for item in (b"\x80", tuples, b"\x91\x91\x80")
    ]
    with session(place, name, CARTPOLE) as one:
        while True:
            for body in bodies:
                one.request(one.framed(Kind.RESET, body))
                yield 3.0


def colliding_keys(place: Place, name: str) -> Pauses:
    """Say HELLO with 167 kB of map keys that collide."""
    rows = colliding_map(10_000)
    strings = b"\xa7learner" + b"\xc4\x10" + os.urandom(16) + b"\xa1x\xa1x"
    with peer(place, name, None) as one:
        while True:
            one.send(framed(Kind.HELLO, b"\x95" + strings + b"\x91" + rows))
            one.drain()
            yield 2.0


def colliding_details(place: Place, name: str) -> Pauses:
    """Offer an environment, and answer its session with details whose keys collide."""
    body = b"\x93\xacsession-lost\xa1x" + colliding_map(10_000)
    with peer(place, name, Role.ENV) as agent, peer(place, name) as learner:
        agent.say(offer("m/details"))
        agent.wait_for(Kind.OFFERED)
        learner.say(Open("m/details", os.urandom(16)))
        header, _ = agent.wait_for(Kind.OPEN)
        opened = Opened(DISCRETE, DISCRETE, None, None, {}, {}, None, 0, {}, "")
        agent.say(opened, header.sid, header.seq)
        while True:
            agent.send(framed(Kind.ERROR, body, header.sid, 1))
            agent.drain()
            learner.drain()
            yield 2.0


def unknown_addresses(place: Place, name: str) -> Pauses:
    """Offer 2,048 long names, and open others that resemble them."""
    with contextlib.ExitStack() as stack:
        for number in range(8):
            agent = stack.enter_context(peer(place, name, Role.ENV))
            for row in range(256):
                agent.say(offer("m/" + "ab" * 59 + f"{number}{row:04}"))
                if row % 64 == 63:
                    agent.drain()
                    yield 0.05
        learner = stack.enter_context(peer(place, name))
        for number in range(1_000_000):
            learner.say(Open("m/" + "ba" * 59 + f"{number % 100_000:05}", os.urandom(16)))
            learner.drain()
            yield 0.1


# --- memory and shares ----------------------------------------------------------------------------


def slow_find(place: Place, name: str) -> Pauses:
    """Offer 8 MiB, and list it again and again without reading the replies."""
    with peer(place, name, Role.ENV) as agent, peer(place, name, None, reads=False) as learner:
        for number in range(8):
            agent.say(offer(f"m/find-{number}", 900_000))
            yield 0.2
        learner.say(Hello(Role.LEARNER, os.urandom(16), "soak", "elsewhere"))
        while True:
            learner.say(Find())
            agent.say(Ping())
            agent.drain()
            yield 0.05


def frames_in_a_step(place: Place, name: str) -> Pauses:
    """Send actions of 32 MiB to an env agent that is in a step of 20 s."""
    body = b"\x91\xc6" + (32 * 1024 * 1024).to_bytes(4) + bytes(32 * 1024 * 1024)
    with session(place, name, SLOW) as one:
        one.request(PLAIN.encode(Reset(1, {"slow": [[1, 20.0]]}), one.sid, one.seq))
        one.peer.say(Act(1), one.sid, one.seq)
        one.seq += 1
        for _ in range(20):
            one.peer.send(one.framed(Kind.ACT, body))
            one.peer.drain()
            yield 1.0


def invented_sessions(place: Place, name: str) -> Pauses:
    """Announce 16,000 sessions that nobody opened, on each of seven connections."""
    with contextlib.ExitStack() as stack:
        agents = [stack.enter_context(peer(place, name, None)) for _ in range(7)]
        while True:
            for agent in agents:
                rows = [[int.from_bytes(os.urandom(7)), b"n" * 16, "m/x", ""] for _ in range(16000)]
                agent.say(Hello(Role.ENV, os.urandom(16), "soak", "elsewhere", rows))
                agent.drain()
                yield 2.0


def progress_ids(place: Place, name: str) -> Pauses:
    """Name sessions by ids of 60 kB over a progress connection."""
    strings = b"\xa5pulse" + b"\xc4\x10" + os.urandom(16) + b"\xa1x\xa1x"
    with peer(place, name, None) as one:
        while True:
            rows = b"".join(b"\x91" + integer(os.urandom(59_999) + b"\x01") for _ in range(15))
            one.send(framed(Kind.HELLO, b"\x95" + strings + b"\x9f" + rows))
            one.drain()
            yield 1.0


def big_offers(place: Place, name: str) -> Pauses:
    """Offer 64 MiB in all, from eight connections."""
    with contextlib.ExitStack() as stack:
        agents = []
        for number in range(8):
            agents.append(stack.enter_context(peer(place, name, Role.ENV)))
            for row in range(8):
                agents[-1].say(offer(f"m/big-{number}-{row}", 900_000))
                yield 0.1
        while True:
            for agent in agents:
                agent.say(Ping())
                agent.drain()
            yield 1.0


def old_numbers(place: Place, name: str) -> Pauses:
    """Repeat a request number that the env agent has forgotten, 1,000 times a second."""
    with session(place, name, CARTPOLE) as one:
        old = PLAIN.encode(Reset(1), one.sid, one.seq)
        one.request(old)
        for _ in range(3):
            one.request(PLAIN.encode(Reset(1), one.sid, one.seq))
        while True:
            for _ in range(20):
                one.peer.send(old)
            one.peer.drain()
            yield 0.02


def late_duplicates(place: Place, name: str) -> Pauses:
    """Send each request again after its reply has arrived."""
    with session(place, name, CARTPOLE) as one:
        while True:
            frame = PLAIN.encode(Reset(1), one.sid, one.seq)
            one.request(frame)
            one.peer.send(frame)
            yield 0.01


# The kinds whose messages exceed the limits that the policy sets for all others.
WITHOUT_LIMITS = {"nested-containers", "frames-in-a-step"}
KINDS: dict[str, Attack] = {
    each.__name__.replace("_", "-"): each
    for each in (
        long_integers,
        huge_seeds,
        nested_containers,
        colliding_keys,
        colliding_details,
        unknown_addresses,
        slow_find,
        frames_in_a_step,
        invented_sessions,
        progress_ids,
        big_offers,
        old_numbers,
        late_duplicates,
    )
}
