"""Whatever a peer writes into a field of a message, its receiver goes on, and says or counts it.

For each kind of message, one field at a time is replaced by each value of `VALUES`: wrong types,
huge and negative numbers, NaN, text that is not UTF-8 or commands a terminal, and empty ones.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import msgpack
import numpy as np
import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.broker.events import Sender
from gymwire.cli import ls
from gymwire.env_agent.config import service
from gymwire.env_agent.session import Session
from gymwire.env_agent.transports import DirectEndpoint, DirectSettings
from gymwire.learner_agent.client.listing import find_all
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol import codec, values
from gymwire.protocol.codec import EXTENDED, FLAGS_AT, PLAIN
from gymwire.protocol.errors import DecodingError, GymwireError, ProtocolError
from gymwire.protocol.messages import KINDS, Bye, Found, Kind, Message, Opened, Reset, Role
from tests.broker.harness import Broker
from tests.hostile_values import ext
from tests.learner_agent.client.test_interrupted import in_memory
from tests.protocol.examples import EXAMPLES
from tests.wire import BROKER, Dealer, Network, close_all

pack: Callable[[Any], bytes] = msgpack.packb
VALUES: dict[str, bytes] = {
    "nil": b"\xc0",
    "true": b"\xc3",
    "zero": b"\0",
    "negative": b"\xff",
    "largest of 64 bits": pack(2**64 - 1),
    "least of 64 bits": pack(-(2**63)),
    "huge": ext(3, bytes(255) + b"\x7f"),
    "hugely negative": ext(3, bytes(255) + b"\x80"),
    "NaN": pack(float("nan")),
    "infinite": pack(float("inf")),
    "negative float": pack(-1e308),
    "empty text": b"\xa0",
    "long text": pack("x" * 50_000),
    "not UTF-8": b"\xa3\xff\xfe\x80",
    "a lone surrogate": b"\xa3\xed\xa0\x80",
    "escape sequences": pack("\x1b[2J\0\r\n\u202e"),
    "no bytes": b"\xc4\0",
    "many bytes": pack(bytes(5000)),
    "empty list": b"\x90",
    "odd list": pack([None, [], {}, -1, b"", "", [0, 0, 0, 0]]),
    "list of arrays": b"\x91" + values.encode(np.arange(3)),
    "empty map": b"\x80",
    "map without text": pack({1: 2, b"x": None}),
    "map of arrays": values.encode(
        {"type": np.arange(3), "id": np.arange(2), "urls": np.arange(2)}
    ),
    "array": values.encode(np.arange(3)),
    "NumPy scalar": values.encode(np.float32("nan")),
    "tuple": values.encode((1, "2")),
    "opaque": values.encode(values.Opaque("a", "b")),
    "a timestamp of msgpack": b"\xd6\xff\0\0\0\1",
    "no type at all": b"\xc1",
}
DECODED: dict[str, Any] = {}
for _label, _value in VALUES.items():
    with contextlib.suppress(DecodingError):
        DECODED[_label] = values.decode(_value)


def frames(message: Message) -> Iterator[tuple[str, bytes]]:
    """Return the message with each field replaced by each value, and the names of both."""
    kind = KINDS[type(message)]
    fields = {name: values.encode(getattr(message, name)) for name in codec._FIELDS[kind]}
    for replaced, (label, value) in itertools.product(fields, VALUES.items()):
        packed = b"".join(value if name == replaced else own for name, own in fields.items())
        head = pack([None] * len(fields))[: -len(fields) or None] + packed
        frame = codec.join(kind, 0, head, values.Tail(), 0, 0)
        yield f"{kind.name}.{replaced}: {label}", bytes(frame)
    plain = PLAIN.encode(type(message)(*(getattr(message, name) for name in fields)))
    for replaced, (label, value) in itertools.product(
        codec._EXTENSIONS.get(kind, ()), VALUES.items()
    ):
        if len(value) < 1000:
            extensions = b"\x81" + pack(replaced) + value
            frame = bytearray(b"".join((plain, extensions, len(extensions).to_bytes(4, "little"))))
            frame[FLAGS_AT] |= EXTENDED
            yield f"{kind.name}.{replaced}: {label}", bytes(frame)


MESSAGES = {
    kind: next(one for one, _, _ in EXAMPLES.values() if KINDS[type(one)] is kind)
    for kind in Kind
    if codec._FIELDS[kind]
}
each_kind = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.name)
SERVICE = service(address="cartpole", env="CartPole-v1", max_sessions=8)
LONGEST_ERROR = 50_000  # characters, with its traceback


@pytest.fixture(autouse=True)
def _broker_on_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let agents consider the local channels that WELCOME offers."""
    monkeypatch.setattr(Dealer, "url", "tcp://127.0.0.1:1")


@contextlib.contextmanager
def named(label: str) -> Iterator[None]:
    """Say in every failure which input it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"The input was {label}.")
        raise


def assert_readable(error: GymwireError) -> None:
    assert len(str(error)) < LONGEST_ERROR


def addressed(frame: bytes, sid: int, seq: int) -> bytes:
    """Return a frame with another session and number in its header."""
    return frame[:8] + sid.to_bytes(8, "little") + seq.to_bytes(8, "little") + frame[24:]


@each_kind
def test_a_learner_in_a_request(kind: Kind) -> None:
    with Network() as network:
        network.env_agent(SERVICE)
        session = None
        for is_current, (label, frame) in itertools.product((True, False), frames(MESSAGES[kind])):
            if session is None or session.exchange.lost is not None:
                session = network.connection(timeout_s=3.0).open("cartpole")
            sid, seq = (session.sid, session.exchange.seq + 1) if is_current else (0, 0)
            with named(label):
                session.connection.link._dealer.arrived(addressed(frame, sid, seq))  # type: ignore[attr-defined]
                try:
                    session.request(Reset(2), timeout_s=3.0)
                except GymwireError as error:
                    assert_readable(error)
                    if not is_current:
                        session.connection.close()
                        session = None


@each_kind
def test_an_env_agent(kind: Kind) -> None:
    with Network() as network:
        loop = network.env_agent(SERVICE)
        connection = network.connection()
        session = None
        for in_session, (label, frame) in itertools.product((True, False), frames(MESSAGES[kind])):
            if session is None or loop.idle:
                session = connection.open("cartpole")
            with named(label):
                seq = loop.host.slots[session.sid].session.last_seq + 1
                loop._link._dealer.arrived(addressed(frame, session.sid * in_session, seq))  # type: ignore[attr-defined]
                assert loop.jobs.failed_requests == 0
        close_all(loop.host)
        connection.open("cartpole").request(Reset(1))


@each_kind
def test_a_broker(kind: Kind) -> None:
    broker, pulse = Broker(), b"\x01pulse"
    env, numbers = broker.env(), itertools.count()
    broker.hello(pulse, Role.PROGRESS, agent=env)
    for in_session, (label, frame) in itertools.product((True, False), frames(MESSAGES[kind])):
        stranger, learner = (b"\x01%s%d" % (one, next(numbers)) for one in (b"s", b"l"))
        sid = broker.open(broker.learner(learner), nonce=learner.ljust(16))
        data = addressed(frame, sid * in_session, 1)
        for rid in (learner, pulse, stranger, env):
            with named(label):
                broker.core.receive(Sender(rid, 5, None, "", on_host=True), data, broker.now)
        broker.core.attach(data, broker.now)
        broker.expire(0.001)
        broker.say(stranger, Bye())
        broker.say(learner, Bye())
        if kind in (Kind.BYE, Kind.OFFER, Kind.WITHDRAW):
            broker.env()
    broker.core.snapshot(broker.now)
    broker.open(broker.learner(), nonce=b"m" * 16)
    assert "frame failed, a bug in gymwire" not in [one.event for one in broker.core.take_notes()]


def test_a_stranger_on_a_direct_path() -> None:
    endpoint = DirectEndpoint(DirectSettings(None), 0, BROKER)
    try:
        session = Session(7, b"n" * 16, "cartpole", "")
        for label, frame in frames(MESSAGES[Kind.RESUME]):
            for sid in (None, session):
                with named(label), contextlib.suppress(ProtocolError):
                    header = codec.read_header(frame)
                    assert not endpoint.admit(sid, b"\x01stranger", None, header, frame)
    finally:
        endpoint.close()


# --- what is built from OPENED and FOUND ----------------------------------------------------------


def decoded(message: Message) -> Iterator[tuple[str, Message]]:
    """Return the message with each field replaced by each value that can be decoded."""
    for label, frame in frames(message):
        with contextlib.suppress(DecodingError):
            yield label, PLAIN.decode(frame)


OPENED_PARTS: list[tuple[str, str]] = [
    ("direct", "urls"), ("direct", "host"), ("direct", "key"),
    ("limits", "attributes"), ("limits", "stamps"), ("limits", "capabilities"),
    ("metadata", "autoreset_mode"), ("metadata", "render_modes"), ("metadata", "render_fps"),
    ("spec", "id"), ("spec", "reward_threshold"), ("spec", "max_episode_steps"),
    ("spec", "nondeterministic"), ("spec", "kwargs"),
]  # fmt: skip


def parts_replaced(opened: Opened) -> Iterator[tuple[str, Opened]]:
    """Return OPENED with each value in each entry of its maps."""
    for (field, name), (label, value) in itertools.product(OPENED_PARTS, DECODED.items()):
        changed: Any = {**(getattr(opened, field) or {}), name: value}
        yield f"OPENED.{field}[{name!r}]: {label}", replace(opened, **{field: changed})


@pytest.mark.parametrize("num_envs", [0, 2])
def test_a_proxy_that_is_opened(num_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_memory() as network:
        make: Callable[[], Any] = partial(ProxyEnv, "moody", BROKER)
        if num_envs:
            make = partial(ProxyVectorEnv, "moody", num_envs, BROKER)
        proxy = make()
        honest = proxy._group[0].opened if num_envs else proxy._session.opened
        proxy.close()
        answers: list[Any] = []
        init = RemoteSession.__init__

        def opened(
            self: Any, connection: Any, sid: int, open_msg: Any, _: Any, signer: Any
        ) -> None:
            init(self, connection, sid, open_msg, answers[-1], signer)

        monkeypatch.setattr(RemoteSession, "__init__", opened)
        for label, lie in itertools.chain(decoded(honest), parts_replaced(honest)):
            answers.append(lie)
            with named(label):
                try:
                    made: Any = make()
                except GymwireError as error:
                    assert_readable(error)
                    continue
                str(made), repr(made), made.spec, made.metadata, made.render_mode
                with contextlib.suppress(AttributeError):
                    _ = made.no_such_name
                with contextlib.suppress(GymwireError):
                    made.reset(seed=1)
                made.close()
        assert network.loops[0].jobs.failed_requests == 0


def answer(found: Found, _: object) -> Found:
    return found


def test_a_listing() -> None:
    entry: dict[str, Any] = {
        "address": "cartpole", "env_id": "CartPole-v1", "observation_space": None,
        "action_space": None, "metadata": {}, "capacity": 1, "used": 0, "host": "h",
        "software": "s", "identity": "", "direct": None, "state": "ready",
        "pid": 1, "agent_pid": 1, "stuck": 0,
    }  # fmt: skip
    founds = [one for _, one in decoded(Found([entry]))]
    founds += [
        Found([entry, {**entry, name: value}]) for name in entry for value in DECODED.values()
    ]
    for found in founds:
        assert isinstance(found, Found)
        try:
            listings = ls.group(find_all("", partial(answer, found), BROKER))
        except DecodingError as error:
            assert_readable(error)
            continue
        for line in ls.table(listings, verbose=True, width=80):
            assert line.plain.isprintable()
        json.dumps([ls.as_json(one) for one in listings])
