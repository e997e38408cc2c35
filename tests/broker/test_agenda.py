"""Steps come first, and what peers ask of the broker itself waits in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import zmq

from gymwire.broker import server as server_module
from gymwire.broker import turns
from gymwire.broker.agenda import (
    HOLD,
    ITEM_BYTES,
    LONG_PAUSE,
    MAX_HOLD_S,
    PAUSE,
    SHORT_WAIT_S,
    Agenda,
    Piece,
)
from gymwire.broker.rate_limit import BURST, DEBT, DEMANDING_SHARE, RATE, Admission
from gymwire.broker.server import Server
from gymwire.protocol import codec
from gymwire.protocol.capabilities import WATCH
from gymwire.protocol.codec import PLAIN, Header
from gymwire.protocol.ending_signals import StopEvent
from gymwire.protocol.messages import (
    Act,
    Bye,
    Code,
    Error,
    Hello,
    Message,
    Offered,
    Open,
    Opened,
    Percept,
    Ping,
    Pong,
    Role,
    Watch,
    Watched,
    Welcome,
)
from tests.broker.harness import Broker, offer, opened
from tests.chaos.fleet import until

ENV, LEARNER = b"\x01env", b"\x01learner"
NOW = 1000.0
UNIT_S = 2**-14  # a short piece; its multiples add up without rounding


def agenda(sessions: list[int] | None = None) -> Agenda[str]:
    """Return an empty agenda; sessions of a HELLO wait while `sessions` has any."""
    return Agenda(lambda: bool(sessions))


def following(
    waiting: Agenda[str], now: float, *, is_idle: bool = False, is_relaying: bool = True
) -> Piece | None:
    return waiting.next(now, is_idle=is_idle, is_relaying=is_relaying)


# --- when the next piece may begin ----------------------------------------------------------------


def ended(
    waiting: Agenda[str], piece: Piece, took_s: float, *, at: float = NOW, is_relaying: bool = True
) -> None:
    waiting.ended(piece, at, took_s, is_relaying=is_relaying)


def test_steps_are_relayed_for_as_long_as_the_last_piece_took() -> None:
    waiting = agenda()
    assert waiting.is_free(NOW)
    ended(waiting, Piece.SHORT, 0.002)
    assert not waiting.is_free(NOW + PAUSE * 0.001)
    waiting.put(b"a", 100, "one", Piece.SHORT)
    assert waiting.due == pytest.approx(NOW + PAUSE * 0.002)
    assert following(waiting, NOW + PAUSE * 0.001) is None
    assert following(waiting, NOW + PAUSE * 0.003) is Piece.SHORT


def test_short_messages_do_not_wait_while_no_frame_arrives() -> None:
    waiting = agenda()
    waiting.put(b"a", 100, "one", Piece.SHORT)
    ended(waiting, Piece.SHORT, 0.002)
    assert following(waiting, NOW, is_idle=True) is Piece.SHORT


def test_a_long_message_waits_for_ten_times_the_time_of_the_last_one() -> None:
    waiting = agenda()
    waiting.put(b"a", 100, "long", Piece.LONG)
    ended(waiting, Piece.LONG, 0.002, is_relaying=False)
    assert waiting.due == pytest.approx(NOW + LONG_PAUSE * 0.002)
    assert following(waiting, NOW + LONG_PAUSE * 0.001, is_idle=True, is_relaying=False) is None
    waiting.put(b"b", 100, "short", Piece.SHORT)
    assert following(waiting, NOW + LONG_PAUSE * 0.001) is Piece.SHORT
    assert following(waiting, NOW + LONG_PAUSE * 0.003) is Piece.LONG


def test_peers_that_ask_for_much_share_a_tenth_of_the_time_while_steps_are_relayed() -> None:
    waiting = agenda()
    waiting.put(b"a", 100, "of much", Piece.DEMANDING)
    assert not waiting.is_free(NOW)
    ended(waiting, Piece.DEMANDING, 0.0004)
    assert waiting.due == pytest.approx(NOW + LONG_PAUSE * 0.0004)
    assert following(waiting, NOW + LONG_PAUSE * 0.0003, is_idle=True) is None
    assert following(waiting, NOW, is_idle=True, is_relaying=False) is Piece.DEMANDING
    waiting.put(b"b", 100, "of little", Piece.SHORT)
    assert following(waiting, NOW + LONG_PAUSE * 0.0003) is Piece.SHORT
    assert following(waiting, NOW + LONG_PAUSE * 0.0005) is Piece.DEMANDING


@pytest.mark.parametrize("last", [Piece.LONG, Piece.SESSIONS, Piece.DEMANDING])
def test_all_that_is_not_urgent_shares_a_tenth_of_the_time(last: Piece) -> None:
    waiting = agenda([1])
    waiting.put(b"a", 100, "long", Piece.LONG)
    waiting.put(b"a", 100, "of much", Piece.DEMANDING)
    ended(waiting, last, 0.0004)
    assert following(waiting, NOW + LONG_PAUSE * 0.0003, is_idle=True) is None
    assert following(waiting, NOW + LONG_PAUSE * 0.0005) not in (None, last)


def after_long(took_s: float, *, is_relaying: bool = True) -> Agenda[str]:
    """Return an agenda after a long message of a key that has more of them."""
    waiting = agenda()
    waiting.put(b"a", 100, "long", Piece.LONG)
    waiting.put(b"a", 100, "next", Piece.LONG)
    assert waiting.take(Piece.LONG) == "long"
    ended(waiting, Piece.LONG, took_s, is_relaying=is_relaying)
    return waiting


@pytest.mark.parametrize("took_s", [0.0007, 0.001, 0.0017])
def test_no_key_lets_more_than_one_step_in_two_hundred_wait_for_long(took_s: float) -> None:
    waiting = after_long(took_s)
    assert waiting.due - NOW == pytest.approx(HOLD * (took_s - SHORT_WAIT_S))
    assert HOLD == 200


def test_a_key_with_costly_long_messages_does_not_hold_up_the_others() -> None:
    waiting = after_long(0.001)
    assert following(waiting, NOW + LONG_PAUSE * 0.0011) is None
    waiting.put(b"b", 100, "of another", Piece.LONG)
    assert waiting.due == pytest.approx(NOW + LONG_PAUSE * 0.001)
    assert following(waiting, NOW + LONG_PAUSE * 0.0011) is Piece.LONG
    assert waiting.take(Piece.LONG) == "of another"
    ended(waiting, Piece.LONG, 0.0001, at=NOW + LONG_PAUSE * 0.0011)
    assert following(waiting, NOW + HOLD * 0.0006) is Piece.LONG
    assert waiting.take(Piece.LONG) == "next"


def test_a_key_is_held_up_for_a_message_that_it_sends_later_too() -> None:
    waiting = agenda()
    waiting.put(b"a", 100, "long", Piece.LONG)
    waiting.take(Piece.LONG)
    ended(waiting, Piece.LONG, 0.001)
    waiting.put(b"a", 100, "next", Piece.LONG)
    assert following(waiting, NOW + LONG_PAUSE * 0.0011) is None
    assert waiting.due == pytest.approx(NOW + HOLD * 0.0005)


def test_keys_with_costly_long_messages_share_one_step_in_two_hundred() -> None:
    waiting, keys, took_s, now = agenda(), [b"a", b"b", b"c", b"d", b"e"], 0.001, NOW
    handled: list[str] = []
    for key in keys * 100:
        waiting.put(key, 100, key.decode(), Piece.LONG)
    while now < NOW + 10.0:
        assert following(waiting, now) is Piece.LONG
        handled.append(waiting.take(Piece.LONG) or "")
        ended(waiting, Piece.LONG, took_s, at=now)
        now = waiting.due
    expected = 10.0 / (HOLD * (took_s - SHORT_WAIT_S)) + len(keys)
    assert len(handled) == pytest.approx(expected, abs=1)
    each = [handled.count(key.decode()) for key in keys]
    assert max(each) - min(each) <= 1


def test_costly_long_messages_of_others_do_not_hold_up_a_key_with_cheap_ones() -> None:
    waiting = after_long(0.003)
    for now in (NOW + 0.1, NOW + 0.2, NOW + 0.3):
        waiting.put(b"b", 100, "cheap", Piece.LONG)
        assert following(waiting, now) is Piece.LONG
        assert waiting.take(Piece.LONG) == "cheap"
        ended(waiting, Piece.LONG, SHORT_WAIT_S, at=now)


def test_one_message_postpones_the_next_by_half_a_second_at_most() -> None:
    assert after_long(0.015).due == pytest.approx(NOW + MAX_HOLD_S)


def test_no_key_is_held_up_while_no_step_is_relayed() -> None:
    assert after_long(0.002, is_relaying=False).due == pytest.approx(NOW + LONG_PAUSE * 0.002)


def took(took_s: dict[Piece, float], pieces: int, waiting: Agenda[str]) -> dict[Piece, int]:
    """Do so many pieces, each as soon as it is due; return how many of each kind."""
    done, now = dict.fromkeys(took_s, 0), waiting.due
    for _ in range(pieces):
        piece = following(waiting, now)
        assert piece is not None
        done[piece] += 1
        ended(waiting, piece, took_s[piece], at=now)
        now = waiting.due
    return done


def test_what_is_not_urgent_takes_turns_by_the_time_that_it_takes() -> None:
    waiting = agenda([1])
    waiting.put(b"a", 100, "long", Piece.LONG)
    done = took({Piece.LONG: 4 * UNIT_S, Piece.SESSIONS: UNIT_S}, 100, waiting)
    assert done == {Piece.LONG: 20, Piece.SESSIONS: 80}


def test_what_has_not_waited_for_a_while_has_no_claim_to_more_than_its_turn() -> None:
    waiting = agenda([1])
    for _ in range(100):
        ended(waiting, Piece.SESSIONS, UNIT_S)
    waiting.put(b"a", 100, "long", Piece.LONG)
    done = took({Piece.LONG: UNIT_S, Piece.SESSIONS: UNIT_S}, 20, waiting)
    assert done[Piece.LONG] == pytest.approx(10, abs=1)


def test_the_short_messages_of_an_owner_stay_in_order() -> None:
    waiting = agenda()
    waiting.put(b"a", 100, "first", Piece.DEMANDING)
    waiting.put(b"a", 100, "second", Piece.SHORT)
    assert waiting.take(Piece.SHORT) is None
    assert [waiting.take(Piece.DEMANDING) for _ in range(2)] == ["first", "second"]
    waiting.put(b"a", 100, "third", Piece.SHORT)
    assert waiting.take(Piece.SHORT) == "third"


def test_there_is_a_pause_between_pieces_of_different_kinds() -> None:
    waiting = agenda([1])
    waiting.put(b"a", 100, "long", Piece.LONG)
    waiting.put(b"a", 100, "short", Piece.SHORT)
    for piece in (Piece.LONG, Piece.SESSIONS, Piece.SHORT):
        ended(waiting, piece, 0.002)
        assert following(waiting, NOW + PAUSE * 0.001) is None


def test_sessions_are_taken_over_without_a_pause_only_while_no_step_is_relayed() -> None:
    waiting = agenda([1])
    ended(waiting, Piece.SESSIONS, 0.0004)
    assert following(waiting, NOW, is_idle=True) is None
    assert following(waiting, NOW, is_relaying=False) is None
    assert following(waiting, NOW, is_idle=True, is_relaying=False) is Piece.SESSIONS
    assert following(waiting, NOW + LONG_PAUSE * 0.0005) is Piece.SESSIONS


def test_sessions_that_are_taken_over_without_a_pause_do_not_delay_long_messages() -> None:
    waiting = agenda([1])
    waiting.put(b"a", 100, "long", Piece.LONG)
    ended(waiting, Piece.SESSIONS, 0.0004, is_relaying=False)
    assert waiting.due == pytest.approx(NOW + PAUSE * 0.0004)
    assert following(waiting, NOW, is_idle=True, is_relaying=False) is Piece.LONG


def test_an_empty_agenda_is_never_due() -> None:
    waiting = agenda()
    assert not waiting
    assert waiting.due == math.inf
    assert following(waiting, NOW, is_idle=True, is_relaying=False) is None


def test_small_messages_that_wait_are_bounded_too() -> None:
    waiting = agenda()
    most = turns.MAX_WAITING_BYTES // (24 + ITEM_BYTES)
    kept = [waiting.put(b"a", 24, "one", Piece.SHORT) for _ in range(most + 1)]
    assert kept == [True] * most + [False]
    assert waiting.put(b"b", 24, "one", Piece.SHORT)


# --- what waits -----------------------------------------------------------------------------------


def test_only_frames_of_the_senders_own_sessions_do_not_wait() -> None:
    broker = Broker()
    broker.env(ENV)
    broker.learner(LEARNER)
    sid = broker.open(LEARNER)

    def admitted(message: Message, sid: int) -> Admission:
        return broker.core.admit(LEARNER, bytes(PLAIN.encode(message, sid, 1)), None, broker.now)

    assert admitted(Act(0), sid) is Admission.PASS
    assert admitted(Act(0), sid + 1) is Admission.WAIT
    assert admitted(Ping(), sid) is Admission.WAIT
    assert admitted(Open("cartpole", b"n" * 16), 0) is Admission.WAIT


def test_a_frame_of_an_own_session_that_the_broker_may_decode_waits() -> None:
    broker = Broker()
    broker.say(ENV, Hello(Role.ENV, ENV, "gymwire test", "host", [], [WATCH]))
    broker.say(ENV, offer("cartpole"))
    broker.learner(LEARNER)
    sid = broker.open(LEARNER)
    [asked] = broker.say(LEARNER, Watch(), sid, 500)
    error = Error(Code.ENVIRONMENT_FAILED, "it raised")
    answers: list[tuple[Message, int]] = [
        (error, 1),
        (opened(), 1),
        (Watched(1, "image/png", b""), asked.header.seq),
    ]
    frames = [bytes(PLAIN.encode(message, sid, seq)) for message, seq in answers]
    percept = bytes(PLAIN.encode(Percept(0, 0.0, False, False, {}), sid, 1))

    def admitted() -> list[Admission]:
        return [broker.core.admit(ENV, frame, None, broker.now) for frame in frames]

    for _ in range(int(BURST + DEBT) + 1):  # however many
        assert admitted() == [Admission.WAIT] * 3
    for frame in frames:
        broker.now += BURST / RATE
        assert admitted() == [Admission.WAIT] * 3
        for _ in range(40):  # it takes long to decode
            broker.core.charge(ENV, frame, 0.004, broker.now)
        assert admitted() == [Admission.DEMANDING] * 3
        assert broker.core.admit(ENV, percept, None, broker.now) is Admission.PASS
        broker.now += BURST * (1 - DEMANDING_SHARE) / RATE
        for _ in range(2048):  # honest ones
            broker.core.charge(ENV, frame, 0.0001, broker.now)
        assert admitted() == [Admission.WAIT] * 3


def test_a_peer_that_has_used_half_of_its_bucket_is_demanding() -> None:
    broker = Broker()
    broker.learner(LEARNER)
    ping = bytes(PLAIN.encode(Ping()))
    found = [broker.core.admit(LEARNER, ping, None, broker.now) for _ in range(int(BURST))]
    changed = found.index(Admission.DEMANDING)
    assert changed == pytest.approx(DEMANDING_SHARE * BURST, abs=2)
    assert set(found[:changed]) == {Admission.WAIT}
    assert set(found[changed:-1]) == {Admission.DEMANDING}
    later = broker.now + BURST / RATE
    assert broker.core.admit(LEARNER, ping, None, later) is Admission.WAIT


class Bench:
    """A broker whose loop runs only when a test says so, and bare peers."""

    def __init__(self, *, local_channels: bool) -> None:
        self.server = Server(["tcp://127.0.0.1:*"], local_channels=local_channels)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def connect(self, rid: bytes, role: str = Role.LEARNER) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        self._sockets.append(socket)
        socket.setsockopt(zmq.ROUTING_ID, rid)
        socket.connect(self.server.urls[0])
        socket.send(PLAIN.encode(Hello(role, rid, "gymwire test", "elsewhere")))
        assert isinstance(self.answer(socket)[1], Welcome)
        return socket

    def answer(self, socket: zmq.Socket[bytes]) -> tuple[Header, Message]:
        """Serve until the broker sends this peer something but a probe; return it."""

        def serve() -> bool:
            is_idle = self.server._serve()
            if self.server._agenda:
                self.server._work(is_idle)
            self.server._timers(time.monotonic())
            return bool(socket.poll(0))

        until(serve, "the broker answers")
        received = self.received(socket)
        return self.answer(socket) if received is None else received

    @staticmethod
    def received(socket: zmq.Socket[bytes]) -> tuple[Header, Message] | None:
        """Return the message that has arrived at this peer; None: none, or a probe.

        The broker sends a probe if the kernel has dropped a packet of the connection.
        """
        if not socket.poll(0):
            return None
        data = socket.recv()
        header = codec.read_header(data)
        message = PLAIN.decode(data, header)
        return None if isinstance(message, Ping) else (header, message)

    def steps_only(self) -> None:
        """Let everything that can wait do so while frames arrive, as after a very long piece."""
        self.server._agenda._due = math.inf

    def serve_until(self, condition: Callable[[], object], what: str) -> None:
        """Serve frames, but nothing that waits."""

        def serve() -> object:
            self.server._serve()
            self.server._timers(time.monotonic())
            return condition()

        until(serve, what)

    def note_handled(self, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
        """Return the list of the peers whose messages are handled from now on."""
        handled: list[bytes] = []
        handle = self.server._handle

        def noted(frame: server_module.ReceivedFrame, now: float) -> float:
            handled.append(frame.sender.rid)
            return handle(frame, now)

        monkeypatch.setattr(self.server, "_handle", noted)
        return handled

    @property
    def waiting(self) -> int:
        """How many short messages wait."""
        return sum(len(queue) for queue in self.server._agenda._short._waiting.values())

    def opening(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes], Header]:
        """Return an env agent, a learner, and the header of the OPEN that has reached the agent."""
        env, learner = self.connect(ENV, Role.ENV), self.connect(LEARNER)
        env.send(PLAIN.encode(offer("cartpole"), 0, 1))
        assert isinstance(self.answer(env)[1], Offered)
        learner.send(PLAIN.encode(Open("cartpole", b"n" * 16), 0, 1))
        header, message = self.answer(env)
        assert isinstance(message, Open)
        return env, learner, header

    def close(self) -> None:
        stop = StopEvent()
        stop.set()
        self.server.run(stop)
        for socket in self._sockets:
            socket.close(linger=0)
        self._context.term()


def test_a_step_is_relayed_before_all_that_waits(bench: Bench) -> None:
    env, learner, header = bench.opening()
    env.send(PLAIN.encode(opened(), header.sid, header.seq))
    assert isinstance(bench.answer(learner)[1], Opened)
    others = [bench.connect(b"\x01other%d" % number) for number in range(8)]
    bench.steps_only()
    failed = Error(Code.ENVIRONMENT_FAILED, "it raised")
    for answer in (failed, opened()):
        env.send(PLAIN.encode(answer, header.sid, header.seq))
    for other in others:
        for _ in range(5):
            other.send(PLAIN.encode(Ping()))
    learner.send(PLAIN.encode(Act(1), header.sid, 1))
    bench.serve_until(lambda: env.poll(0) and bench.waiting == 42, "the step, and all wait")
    assert PLAIN.decode(env.recv()) == Act(1)
    assert [bench.received(peer) for peer in (learner, *others)] == [None] * 9
    assert bench.answer(learner)[1] == failed
    for other in others:
        for _ in range(5):
            assert isinstance(bench.answer(other)[1], Pong)


def test_the_broker_does_one_piece_at_a_time_and_peers_take_turns(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = bench.connect(b"\x01one"), bench.connect(b"\x01other")
    monkeypatch.setattr(server_module, "PIECE_S", 0.0)
    handled = bench.note_handled(monkeypatch)
    bench.steps_only()
    for _ in range(3):
        one.send(PLAIN.encode(Ping()))
    bench.serve_until(lambda: bench.waiting == 3, "three wait")
    other.send(PLAIN.encode(Ping()))
    bench.serve_until(lambda: bench.waiting == 4, "four wait")
    for left in (3, 2, 1, 0):
        bench.server._work(is_idle=True)
        assert bench.waiting == left
    assert handled == [b"\x01one", b"\x01other", b"\x01one", b"\x01one"]


def test_a_message_to_an_idle_broker_does_not_wait(bench: Bench) -> None:
    peer = bench.connect(LEARNER)
    bench.server._agenda._due = 0.0
    peer.send(PLAIN.encode(Ping()))
    bench.serve_until(lambda: peer.poll(0), "the broker answers")
    assert bench.waiting == 0


def test_bye_counts_after_its_connection_has_ended_and_an_open_does_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, learner = bench.connect(ENV, Role.ENV), bench.connect(LEARNER)
    peers, router = bench.server.core._tables.peers, bench.server._router
    connections = [(peers[rid].fd, peers[rid].connection) for rid in (ENV, LEARNER)]
    bench.steps_only()
    env.send(PLAIN.encode(Bye()))
    learner.send(PLAIN.encode(Open("cartpole", b"n" * 16), 0, 1))
    bench.serve_until(lambda: bench.waiting == 2, "both wait")
    for socket in (env, learner):
        socket.close(linger=0)
    until(
        lambda: all(router.connection_id(fd) != known for fd, known in connections),
        "both connections have ended",
    )
    handled = bench.note_handled(monkeypatch)
    while bench.waiting:
        bench.server._work(is_idle=True)
    assert handled == [ENV]
    assert ENV not in peers
