"""Messages that take the broker long, and how everyone else goes on meanwhile."""

from __future__ import annotations

import gc
import math
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import zmq

from gymwire.broker import turns
from gymwire.broker.announcements import ROWS_AT_ONCE
from gymwire.broker.core import Core
from gymwire.broker.decoding import takes_long
from gymwire.broker.events import Sender
from gymwire.broker.recovery import STARTING_S
from gymwire.broker.server import Server
from gymwire.broker.turns import Turns
from gymwire.cli import broker as command
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.control_limits import MAX_PARTS
from gymwire.protocol.ending_signals import StopEvent
from gymwire.protocol.messages import (
    Act,
    Busy,
    BusyReason,
    Code,
    Error,
    Find,
    Gone,
    Hello,
    Message,
    Offered,
    Open,
    Opened,
    Ping,
    Pong,
    Resume,
    Resumed,
    Role,
    Welcome,
)
from tests.broker.harness import STARTED, Broker, SentMessage, decoded, offer, only
from tests.chaos.fleet import until

ENV, ENV2, LEARNER = b"\x01env", b"\x01env2", b"\x01learner"
MANY = 16_000


def nonce_of(sid: int) -> bytes:
    return sid.to_bytes(16)


def rows(first: int, count: int) -> list[object]:
    return [[sid, nonce_of(sid), "cartpole", ""] for sid in range(first, first + count)]


def announce(
    broker: Broker, rid: bytes, listed: list[object], key: bytes | None = None
) -> list[SentMessage]:
    """Deliver a long HELLO without what the broker does about it later."""
    hello = Hello(Role.ENV, rid, "gymwire test", "host", listed, ["pages"], 7)
    sender = Sender(rid, hash(rid), key, "")
    return decoded(broker.core.receive(sender, bytes(PLAIN.encode(hello)), broker.now))


def take_over(core: Core, now: float) -> list[SentMessage]:
    """Take over the sessions that wait."""
    sent = []
    while core.has_announcements:
        sent += decoded(core.take_over(now))
    return sent


# --- HELLO ----------------------------------------------------------------------------------------


def test_a_long_hello_is_answered_before_its_sessions_are_taken_over() -> None:
    broker = Broker()
    only(announce(broker, ENV, rows(1, MANY)), Welcome)
    sessions, parts = broker.core._tables.sessions, 0
    assert broker.core._tables.peers[ENV].pid == 7
    while broker.core.has_announcements:
        before = len(sessions)
        assert broker.core.take_over(broker.now) == []
        assert 0 < len(sessions) - before <= ROWS_AT_ONCE
        parts += 1
    assert parts == MANY // ROWS_AT_ONCE - 1
    assert [session.nonce for session in sessions.values()] == list(
        map(nonce_of, range(1, MANY + 1))
    )


def test_the_sessions_of_several_loops_are_taken_over_in_turn() -> None:
    broker = Broker()
    announce(broker, ENV, rows(1, 500))
    announce(broker, ENV2, rows(1001, 200))
    for _ in range(6):
        broker.core.take_over(broker.now)
    peers = broker.core._tables.peers
    assert [len(peers[rid].sessions) for rid in (ENV, ENV2)] == [4 * ROWS_AT_ONCE] * 2


def test_a_learner_waits_for_a_session_that_is_still_to_be_taken_over() -> None:
    broker = Broker(now=STARTED)
    broker.learner(LEARNER)
    broker.now += STARTING_S + 1
    announce(broker, ENV, rows(1, 500))
    busy = only(broker_say(broker, Resume(nonce_of(500)), 500), Busy)
    assert busy.reason == BusyReason.STARTING
    take_over(broker.core, broker.now)
    only(broker_say(broker, Resume(nonce_of(500)), 500), Resumed)
    refused = only(broker_say(broker, Resume(nonce_of(501)), 501), Error)
    assert refused.code == Code.SESSION_LOST


def broker_say(broker: Broker, message: Message, sid: int) -> list[SentMessage]:
    """Deliver a learner's message without taking over what waits."""
    sender = Sender(LEARNER, broker.fds[LEARNER], None, "")
    return decoded(broker.core.receive(sender, bytes(PLAIN.encode(message, sid, 1)), broker.now))


@pytest.mark.parametrize(
    "row", [{}, [1] * 100, ["x" * 5000], [2**70], [0, nonce_of(0), "a", ""], 7], ids=repr
)
def test_a_malformed_row_far_behind_ends_the_list_with_an_error(row: object) -> None:
    broker = Broker()
    only(announce(broker, ENV, [*rows(1, 200), row, *rows(1001, 200)]), Welcome)
    error = only(take_over(broker.core, broker.now), Error)
    assert error.code == Code.PROTOCOL
    assert 150 <= len(broker.core._tables.sessions) <= 200


def test_a_learner_and_a_progress_connection_may_send_a_long_hello_too() -> None:
    broker = Broker()
    broker.hello(LEARNER, Role.LEARNER, sessions=rows(1, 500))
    assert not broker.core._tables.sessions
    broker.hello(ENV, Role.PROGRESS, sessions=rows(1, 500))
    assert len(broker.core._peers._recovery._expected_sessions) == 500


def test_what_a_peer_that_has_left_announced_is_forgotten() -> None:
    broker = Broker()
    announce(broker, ENV, rows(1, 500))
    broker.core._peers.bye(broker.core._tables.peers[ENV])
    assert take_over(broker.core, broker.now) == []
    assert not broker.core._tables.sessions


def test_a_peer_that_announces_too_much_at_once_has_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "MAX_WAITING_BYTES", 30_000)
    broker = Broker()
    only(announce(broker, ENV, rows(1, 600)), Welcome)
    assert only(announce(broker, ENV, rows(1, 600)), Busy).reason == BusyReason.RATE
    only(announce(broker, ENV2, rows(1001, 600)), Welcome)
    take_over(broker.core, broker.now)
    only(announce(broker, ENV, rows(1, 600)), Welcome)


def test_sessions_that_the_broker_cannot_take_get_gone_in_small_numbers() -> None:
    broker = Broker()
    announce(broker, ENV, rows(1, 500))
    take_over(broker.core, broker.now)
    announce(broker, ENV2, [[sid, b"other nonce 1234", "cartpole", ""] for sid in range(1, 501)])
    while broker.core.has_announcements:
        sends = decoded(broker.core.take_over(broker.now))
        assert len(sends) <= ROWS_AT_ONCE
        assert {type(one.message) for one in sends} == {Gone}


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "large",
    [
        *([0] * 900_000, [{}] * 100_000, [[[]]] * 50_000, [1.5] * 50_001),
        *([(1,)] * 5_000, [np.float64(1)] * 4_200, [2**70] * 4_100),
    ],
    ids=len,
)
def test_an_offer_of_too_many_parts_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch, large: object
) -> None:
    broker = Broker()
    broker.hello(ENV, Role.ENV)
    frame = bytes(PLAIN.encode(replace(offer("cartpole"), metadata={"x": large}), 0, 1))
    monkeypatch.setattr(type(PLAIN), "decode", lambda *_: pytest.fail("it was decoded"))
    sends = broker.core.receive(Sender(ENV, broker.fds[ENV], None, ""), frame, broker.now)
    monkeypatch.undo()
    error = only(decoded(sends), Error)
    assert error.code == Code.TOO_LARGE
    assert str(MAX_PARTS) in error.text


def test_an_opened_or_an_error_of_many_parts_is_passed_on() -> None:
    broker = Broker()
    broker.env(ENV)
    broker.learner(LEARNER)
    many = {"x": [0] * 50_000}
    broker.say(LEARNER, Open("cartpole", b"n" * 16), seq=1)
    (sid,) = broker.core._tables.sessions
    space = [["Discrete", "<i8", 2, 0]]
    opened = Opened(space, space, None, None, {}, many, None, 0, {}, "")
    only(broker.say(ENV, opened, sid, 1), Opened)
    only(broker.say(ENV, Error(Code.ENVIRONMENT_FAILED, "It broke.", many), sid, 2), Error)
    assert sid in broker.core._tables.sessions


# --- turns ----------------------------------------------------------------------------------------


def test_owners_take_turns() -> None:
    waiting: Turns[int] = Turns()
    for number in range(3):
        assert waiting.put(b"a", 1, number)
    assert waiting.put(b"b", 1, 10)
    assert [waiting.take() for _ in range(5)] == [0, 10, 1, 2, None]
    assert not waiting


def test_what_waits_of_one_owner_is_bounded() -> None:
    waiting: Turns[int] = Turns()
    most = turns.MAX_WAITING_BYTES
    assert waiting.put(b"a", most, 1)
    assert not waiting.put(b"a", 1, 2)
    assert waiting.put(b"b", most, 3)
    assert [waiting.take(), waiting.take()] == [1, 3]
    assert waiting.put(b"a", most, 4)


def test_what_takes_long_is_known_by_kind_and_size() -> None:
    large = {"x": bytes(5_000)}
    assert takes_long(bytes(PLAIN.encode(replace(offer("a"), metadata=large))))
    assert takes_long(bytes(PLAIN.encode(Find())))
    assert not takes_long(bytes(PLAIN.encode(Error(Code.PROTOCOL, "x", large), 1, 1)))
    assert not takes_long(bytes(PLAIN.encode(offer("a"))))
    assert not takes_long(bytes(PLAIN.encode(Act(bytes(5_000)), 1, 1)))  # it is relayed unread
    assert not takes_long(b"")


class Peers:
    """Bare peers of a real broker."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._stop = StopEvent()
        self._thread = threading.Thread(target=server.run, args=(self._stop,))
        self._thread.start()

    def connect(self, rid: bytes, role: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        self._sockets.append(socket)
        socket.setsockopt(zmq.ROUTING_ID, rid)
        socket.rcvtimeo = 30_000
        socket.connect(self.server.urls[0])
        socket.send(PLAIN.encode(Hello(role, rid, "gymwire test", "elsewhere")))
        assert isinstance(PLAIN.decode(socket.recv()), Welcome)
        return socket

    def delay_long_messages(self, until: float) -> None:
        """Handle no long message before this time, as after one that took very long."""
        self.server._agenda._patient_due = until

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for socket in self._sockets:
            socket.close(linger=0)
        self._context.term()


@pytest.fixture(name="peers", params=[True, False], ids=["with local channels", "without"])
def _peers(request: pytest.FixtureRequest) -> Iterator[Peers]:
    made = Peers(Server(["tcp://127.0.0.1:*"], local_channels=request.param))
    yield made
    made.close()


def test_a_long_message_waits_for_its_turn_and_others_do_not(peers: Peers) -> None:
    env, other = peers.connect(ENV, Role.ENV), peers.connect(ENV2, Role.ENV)
    peers.delay_long_messages(math.inf)
    env.send(PLAIN.encode(replace(offer("cartpole"), metadata={"x": bytes(20_000)})))
    for socket in (env, other):
        for _ in range(3):
            socket.send(PLAIN.encode(Ping()))
            assert isinstance(PLAIN.decode(socket.recv()), Pong)
    assert env.poll(0) == 0
    peers.delay_long_messages(0.0)
    assert isinstance(PLAIN.decode(env.recv()), Offered)


def test_a_flood_of_long_messages_gets_busy(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MAX_WAITING_BYTES", 30_000)
    env = peers.connect(ENV, Role.ENV)
    peers.delay_long_messages(math.inf)
    for _ in range(2):
        env.send(PLAIN.encode(replace(offer("cartpole"), metadata={"x": bytes(20_000)})))
    busy = PLAIN.decode(env.recv())
    assert isinstance(busy, Busy)
    assert busy.reason == BusyReason.RATE
    peers.delay_long_messages(0.0)
    assert isinstance(PLAIN.decode(env.recv()), Offered)


def test_what_an_ended_connection_has_left_is_dropped(peers: Peers) -> None:
    env, other = peers.connect(ENV, Role.ENV), peers.connect(ENV2, Role.ENV)
    server = peers.server
    connected = server.core._tables.peers[ENV]
    peers.delay_long_messages(math.inf)
    env.send(PLAIN.encode(replace(offer("cartpole"), metadata={"x": bytes(20_000)})))
    until(lambda: bool(server._agenda), "the offer waits")
    env.close(linger=0)
    until(
        lambda: server._router.connection_id(connected.fd) != connected.connection,
        "the connection has ended",
    )
    other.send(PLAIN.encode(replace(offer("taxi"), metadata={"x": bytes(20_000)})))
    peers.delay_long_messages(0.0)
    assert isinstance(PLAIN.decode(other.recv()), Offered)
    assert server.core._tables.names == ["taxi"]


def test_a_real_broker_takes_over_all_sessions_of_a_long_hello(peers: Peers) -> None:
    env = peers.connect(ENV, Role.ENV)
    env.send(PLAIN.encode(Hello(Role.ENV, ENV, "gymwire test", "elsewhere", rows(1, 5000))))
    assert isinstance(PLAIN.decode(env.recv()), Welcome)
    learner = peers.connect(LEARNER, Role.LEARNER)
    answer: Message = Busy(BusyReason.STARTING, 0.0)
    while isinstance(answer, Busy):
        learner.send(PLAIN.encode(Resume(nonce_of(5000)), 5000, 1))
        answer = PLAIN.decode(learner.recv())
    assert isinstance(answer, Resumed)
    assert len(peers.server.core._tables.sessions) == 5000


def test_the_broker_collects_all_garbage_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class FakeServer:
        def run(self, _stop: StopEvent) -> None:
            seen.append(gc.get_threshold())

    monkeypatch.setattr(command, "make_server", lambda _: FakeServer())
    before = gc.get_threshold()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert command.command(None, None) == 0  # type: ignore[arg-type]
    finally:
        gc.set_threshold(*before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert seen == [(*before[:2], command.RARELY)]
