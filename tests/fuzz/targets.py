"""What is fuzzed: each target takes bytes, and may raise only the errors that it promises."""

from __future__ import annotations

import random
import socket as hostsocket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector.utils import batch_space

from gymwire.broker import auth
from gymwire.broker.core import Core
from gymwire.broker.events import Sender
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import resolve
from gymwire.env_agent.sessions import SessionHost
from gymwire.learner_agent.client.exchange import Exchange
from gymwire.learner_agent.client.patience import Contact
from gymwire.protocol import address, codec, spaces, stamps, values
from gymwire.protocol.codec import FLAGS_AT, KIND_AT, NAME, PLAIN, TIMED
from gymwire.protocol.errors import ConfigurationError, GymwireError, ProtocolError, UsageError
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    LIVENESS_PREFIX,
    Act,
    Attach,
    Attached,
    Busy,
    Call,
    Close,
    Error,
    Find,
    Gone,
    Hello,
    Kind,
    Offer,
    Open,
    Opened,
    Percept,
    Ping,
    Progress,
    Render,
    Reset,
    Resume,
    Role,
    Welcome,
)
from gymwire.protocol.security import zap
from gymwire.protocol.space_codecs import NOT_COMPACT
from gymwire.protocol.step_codec import compile_steps
from gymwire.protocol.transport.stream import Stream
from tests.broker.harness import DISCRETE
from tests.hostile_values import HOSTILE, ext
from tests.space_zoo import ZOO

SID = 7
NONCE = b"n" * 16
SIZES = (100, 4_000, 60_000)  # of hostile values, in bytes


@dataclass
class Target:
    """`run` gets bytes. `seeds`: inputs, which are mutated.

    `decodes`: whether it does nothing but decode values, whose memory and CPU time have a budget.
    """

    name: str
    seeds: list[bytes]
    run: Callable[[bytes], None]
    decodes: bool = False


def _frames() -> list[bytes]:
    messages: list[Any] = [
        Hello(Role.LEARNER, b"a" * 16, "x", "h"),
        Hello(Role.ENV, b"a" * 16, "x", "h", [[SID, NONCE, "cartpole", ""]]),
        Welcome(1, "x", "", 1000, 30.0, "unix:///x", b"t"),
        Attach(b"t" * 16),
        Attached(),
        Offer("cartpole", "CartPole-v1", DISCRETE, DISCRETE, {}, {"a": 1}, 3, b"d" * 32),
        Open("cartpole", NONCE, None, {"a": [1, 2.5]}, 0, "", False),
        Opened(DISCRETE, DISCRETE, None, None, {}, {}, None, 0, {}, ""),
        Resume(NONCE, take_over=True),
        Find("cartpole"),
        Find("", ["cartpole", 0]),
        Ping(),
        Progress(1.5),
        Busy("rate", 0.1),
        Gone("gone"),
        Error("expected", "text", {"expected": 2}),
        Reset(3, {"a": (1, b"x")}),
        Act(1),
        Render(),
        Call("get", "np_random"),
        Call("call", "action_masks", (1,), {"a": None}),
        Close(),
    ]
    return [bytes(PLAIN.encode(one, SID, seq)) for one in messages for seq in (0, 1)]


def _hostile_frames() -> list[bytes]:
    """Return frames with fields that cost more than their size suggests."""
    large = [make(20_000) for make in HOSTILE.values()]
    seed = ext(3, bytes(1999) + b"\1")
    bodies = [(Kind.ACT, [value]) for value in (*large, seed)]
    bodies += [(Kind.RESET, [value, b"\xc0"]) for value in (*large, seed)]
    bodies += [(Kind.ERROR, [b"\xa1x", b"\xa1x", value]) for value in large]
    frames = []
    for kind, fields in bodies:
        head = bytes([0x90 + len(fields)]) + b"".join(fields)
        frames.append(bytes(codec.join(kind, 0, head, values.Tail(), SID, 1)))
    return frames


def _core() -> Callable[[bytes], None]:
    core = Core(epoch=1, now=0.0, rng=random.Random(0), software="fuzz", local=("l", "h"))
    now = 100.0
    rng = random.Random(1)
    rids = [b"\x01env", b"\x01learner", b"\x01third", LIVENESS_PREFIX + b"a" * 15]

    def run(data: bytes) -> None:
        nonlocal core, now
        now += 0.01
        rid = rids[rng.randrange(len(rids))]
        to = core.relay(rid, data, None)
        if to is None:
            core.receive(Sender(rid, 5, None, "", on_host=True), data, now)
            core.attach(data, now)
        else:
            core.undelivered(to, data, rid, rng.random() < 0.5, now)
        core.take_over(now)
        core.expire(now)
        core.take_notes()
        if len(core._tables.sessions) > 1000 or len(core._tables.peers) > 1000:
            core = Core(epoch=1, now=now, rng=random.Random(0), software="fuzz", local=("l", "h"))

    return run


def _host() -> Callable[[bytes], None]:
    service = Service("cartpole", resolve("CartPole-v1", {}))
    host = SessionHost([service])
    seq = 1

    def run(data: bytes) -> None:
        nonlocal seq
        if SID not in host.slots:
            host.open(SID, 1, Open("cartpole", NONCE), None)
            seq = 1
        try:
            header = codec.read_header(data)
        except ProtocolError:
            return
        slot = host.slots[SID]
        # Mostly the number that is next, so that the body is looked at.
        header = header._replace(sid=SID, seq=seq if header.seq % 4 else header.seq)
        if header.kind < CONTROL_KINDS:
            host.requests.handle(slot, header, data)
            seq = slot.session.last_seq + 1
            if header.kind is Kind.CLOSE:
                host.remove(slot)
                host.close(slot)

    return run


def _exchange() -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        exchange = Exchange(SID, NONCE, where="here", contact=Contact(60.0), rng=random.Random(0))
        sent = exchange.begin(Kind.RESET)
        exchange.sent(Kind.RESET, sent, b"frame")
        try:
            exchange.receive(codec.read_header(data), data, 1.0)
            exchange.tick(20.0)
        except GymwireError:
            return

    return run


def _decode(data: bytes) -> None:
    try:
        PLAIN.decode(data)
    except ProtocolError:
        return


def _values(data: bytes) -> None:
    try:
        values.decode(data)
    except ProtocolError:
        return


def _spaces(data: bytes) -> None:
    try:
        description = values.decode(data)
        spaces.build(description, root="space")
    except (ProtocolError, UsageError):
        return


def _in_space() -> Callable[[bytes], None]:
    codecs = [
        codec.Codec(spaces.compile(space), spaces.compile(space))
        for space in list(ZOO.values())[:12]
    ]
    rng = random.Random(2)

    def run(data: bytes) -> None:
        one = codecs[rng.randrange(len(codecs))]
        try:
            one.decode(data)
        except ProtocolError:
            return

    return run


def _steps() -> tuple[list[bytes], Callable[[bytes], None]]:
    """Return frames of steps, and a check that the compact and the general codec agree on them."""
    pairs, seeds = [], []
    name = codec.name_of(SID, 1)
    for space in list(ZOO.values())[:16]:
        form = spaces.compile(space)
        short, long = compile_steps(form, form), codec.Codec(form, form)
        pairs.append((short, long))
        act = short.encode_act(space.sample(), name)
        step = (space.sample(), 0.5, False, True, {"lives": 3, "x": np.float64(1)})
        seeds += [bytes(act or b""), bytes(short.encode_percept(step, name) or b"")]
    vector = batch_space(Box(-1, 1, (3,), np.float32), 2)
    form = spaces.compile(vector)
    short, long = compile_steps(form, form, 2), codec.Codec(form, form)
    pairs.append((short, long))
    flags = np.zeros(2, bool)
    ones: Any = (vector.sample(), np.ones(2), flags, flags, {})
    seeds.append(bytes(short.encode_percept(ones, name) or b""))

    def run(data: bytes) -> None:
        for short, long in pairs:
            action = short.decode_act(data)
            if action is not NOT_COMPACT:
                act = long.decode(data)
                assert isinstance(act, Act)
                assert values.encode(action) == values.encode(act.action)
            step = short.decode_percept(data, data[NAME])
            if step is not None:
                percept = long.decode(data)
                assert isinstance(percept, Percept)
                assert values.encode(step) == values.encode(_fields(percept))

    return seeds, run


def _fields(percept: Percept) -> tuple[Any, ...]:
    ends = percept.terminated, percept.truncated
    return (percept.observation, percept.reward, *ends, percept.info)


def _framed(frames: list[bytes]) -> list[bytes]:
    """Frames as they follow each other over a Unix socket."""
    one_by_one = [len(frame).to_bytes(4, "little") + frame for frame in frames]
    return [*one_by_one, b"".join(one_by_one[:3]), (5000).to_bytes(4, "little") + bytes(5000)]


def _stream(data: bytes) -> None:
    """Read any bytes from a Unix socket: frames, or its end."""
    ours, theirs = hostsocket.socketpair()
    stream = Stream(64 * 1024)
    stream.start(ours, 1)
    with theirs:
        theirs.setblocking(False)
        theirs.send(data[:32_000])
    read = 0
    while stream.up:
        frame = stream.read(0)
        if frame is not None:
            assert len(frame) >= codec.HEADER_SIZE
            read += len(frame) + 4
    assert read <= len(data)


def _policy(data: bytes) -> None:
    try:
        auth.parse(data.decode("utf-8", "replace"))
    except ConfigurationError:
        return


def _addresses(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (address.parse_address, address.check_url):
        try:
            parse(text)
        except UsageError:
            continue


def _zap(data: bytes) -> None:
    # libzmq itself is the only one who asks: the count of parts is its own, their content is not.
    mechanism, rest = (b"CURVE", data[:32]) if len(data) % 2 else (data[:5], data[5:])
    reply = zap.answer([b"1.0", b"1", data[:9], data[9:30], b"", mechanism, rest], {})
    assert reply[2] == b"400"


def _timed() -> list[bytes]:
    """Return a timed ACT and its PERCEPT as the learner, the broker and the env agent send them."""
    clock = iter(range(100, 1000)).__next__
    act = bytes(stamps.request_stamps(PLAIN.encode(Act(1), SID, 1)))
    passed = bytes(stamps.stamp_relay(act, 50, clock))
    percept = PLAIN.encode(Percept(0, 0.0, False, False, {}), SID, 1)
    reply = bytes(stamps.append_reply(percept, stamps.strip_request(passed)[1], 1, 2, 3, 4, clock))
    back = stamps.stamp_relay(reply, 60, clock)
    return [bytes(frame) for frame in (act, passed, reply, back)]


def _stamps(data: bytes) -> None:
    """Treat a timed frame as the broker, the env agent and the learner do.

    Frames shorter than a header and other kinds do not get that far.
    """
    if len(data) < codec.HEADER_SIZE or not data[FLAGS_AT] & TIMED or data[2] not in (3, 4):
        return
    passed = bytes(stamps.stamp_relay(data, 5, lambda: 6))
    assert len(passed) == len(data)
    size = stamps.REQUEST_SIZE if data[KIND_AT] == Kind.ACT else stamps.REPLY_SIZE
    try:
        frame = (
            stamps.strip_request(passed)[0]
            if data[KIND_AT] == Kind.ACT
            else stamps.strip_reply(passed)[0]
        )
    except ProtocolError:
        return
    assert frame[:3] == data[:3]
    assert bytes(frame[4:]) == data[4:-size]
    assert frame[3] == data[3] & ~TIMED


POLICY = b"""
[peer.lab]
key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
offer = ["lab/*"]
sessions = 4
steps_per_s = 2.5
[anyone]
use = ["demo/*"]
"""


def targets() -> list[Target]:
    """Return all targets, newly made."""
    frames = _frames()
    hostile = frames + _hostile_frames()
    described = [values.encode(spaces.describe(space, root="space")) for space in ZOO.values()]
    samples = [values.encode(space.sample()) for space in ZOO.values()]
    return [
        Target("broker.core", hostile, _core()),
        Target("gymwire.env_agent.sessions", hostile, _host()),
        Target("gymwire.learner_agent.client.exchange", hostile, _exchange()),
        Target("protocol.codec", hostile, _decode, decodes=True),
        Target("protocol.codec with spaces", frames, _in_space()),
        Target("protocol.step_codec", *_steps()),
        Target("gymwire.protocol.transport.unix", _framed(frames), _stream),
        Target(
            "protocol.values",
            samples + described + [make(size) for make in HOSTILE.values() for size in SIZES],
            _values,
            decodes=True,
        ),
        Target("protocol.spaces", described, _spaces),
        Target("broker.auth", [POLICY], _policy),
        Target(
            "protocol.address", [b"lab/cartpole@abcdefghijklmnop", b"tcp://[::1]:5555"], _addresses
        ),
        Target("gymwire.protocol.security.zap", [b"x" * 64], _zap),
        Target("protocol.stamps", _timed(), _stamps),
    ]
