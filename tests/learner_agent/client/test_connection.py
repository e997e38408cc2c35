"""Requests to the broker: sessions that no caller waits for anymore free their slots."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import pytest
import structlog

from gymwire.broker import rate_limit
from gymwire.env_agent.config import service
from gymwire.env_agent.loop import ServingLoop
from gymwire.learner_agent.client import open_sessions, session_timers
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.readiness import Sources, all_ready
from gymwire.learner_agent.client.requests import Keep, PendingRequest, ignore
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.session_timers import Repeats
from gymwire.learner_agent.client.waiting import TICK_S
from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN, Frame
from gymwire.protocol.errors import (
    AddressUnknown,
    BrokerUnreachable,
    Denied,
    EnvironmentClosed,
    EnvironmentLost,
    NoFreeSlot,
    RequestTimeout,
)
from gymwire.protocol.messages import (
    Act,
    Code,
    EndedBy,
    Error,
    Find,
    Gone,
    Kind,
    Message,
    Percept,
    Reset,
)
from gymwire.protocol.percept_layouts import MAX_MISSES
from gymwire.protocol.transport.interface import LinkEvent
from tests.learner_agent.client.network_faults import delay
from tests.wire import Dealer, Faults, Network

ENV = "CartPole-v1"
AWAY_S = 20.0


def agent(network: Network, slots: int = 1) -> ServingLoop:
    return network.env_agent(service(address="cartpole", env=ENV, max_sessions=slots))


def answers_late(network: Network, loop: ServingLoop, patch: pytest.MonkeyPatch) -> None:
    """Delay the agent's OPENED by AWAY_S."""
    delay(network, loop, Kind.OPENED, AWAY_S, patch)


def interrupt() -> None:
    raise KeyboardInterrupt


def interrupted_open(network: Network, connection: BrokerConnection) -> None:
    network.after(0.5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        connection.open("cartpole")


def used(connection: BrokerConnection) -> int:
    return int(connection.find("cartpole")[0]["used"])


def listen(network: Network, connection: BrokerConnection) -> None:
    """Use a connection, which then receives what has arrived in the meantime."""
    network.pass_time(AWAY_S)
    connection.find()
    network.pass_time(1.0)


def test_a_session_that_opens_after_an_interrupt_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Network() as network:
        loop = agent(network)
        connection = network.connection()
        answers_late(network, loop, monkeypatch)
        interrupted_open(network, connection)
        assert not loop.idle
        listen(network, connection)
        assert loop.idle
        assert used(connection) == 0


def test_a_session_that_opens_after_a_silence_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Network() as network:
        loop = agent(network)
        connection = network.connection(timeout_s=5.0)
        answers_late(network, loop, monkeypatch)
        network.after(0.1, lambda: monkeypatch.setattr(network, "faults", Faults(drop=1.0)))
        with pytest.raises(BrokerUnreachable):
            connection.open("cartpole")
        monkeypatch.setattr(network, "faults", Faults())
        assert not loop.idle
        listen(network, connection)
        assert loop.idle
        assert used(connection) == 0


def test_an_unwanted_session_is_closed_even_if_the_first_close_gets_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Network() as network:
        loop = agent(network)
        connection = network.connection()
        answers_late(network, loop, monkeypatch)
        interrupted_open(network, connection)
        network.pass_time(AWAY_S)
        network.faults = Faults(drop=1.0)
        assert connection.pump()  # OPENED; what is sent now gets lost
        network.faults = Faults()
        assert not loop.idle
        listen(network, connection)
        assert loop.idle


def test_the_slot_of_an_unwanted_session_can_be_used_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Network() as network:
        loop = agent(network)
        connection = network.connection()
        answers_late(network, loop, monkeypatch)
        interrupted_open(network, connection)
        listen(network, connection)
        session = connection.open("cartpole")
        session.request(Reset(1))
        assert len(loop.host.listed) == 1


@pytest.mark.parametrize("late", [Kind.OPENED, Kind.ERROR])
def test_of_several_sessions_all_are_closed_when_one_has_no_slot(
    late: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Network() as network:
        loop = agent(network, slots=2)
        connection = network.connection()
        dealer = cast(Any, connection.link._dealer)
        at_once = dealer.arrived

        def arrived(frame: bytes) -> None:
            delay_s = 5.0 if codec.read_header(frame).kind is late else 0.0
            network.after(delay_s, lambda: at_once(frame))

        monkeypatch.setattr(dealer, "arrived", arrived)
        with pytest.raises(NoFreeSlot, match="has only 2 slots"):
            connection.open_all("cartpole", [0, 0, 0])
        listen(network, connection)
        assert loop.idle
        assert used(connection) == 0


def test_an_open_session_of_the_connection_counts_towards_those_that_are_needed() -> None:
    with Network() as network:
        agent(network, slots=2)
        connection = network.connection()
        connection.open("cartpole")
        with pytest.raises(NoFreeSlot, match=r"3 sessions are needed .* has only 2 slots"):
            connection.open_all("cartpole", [0, 0])


def test_a_slot_that_becomes_free_in_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gymwire.protocol.logs.logger", structlog.get_logger
    )  # as where it is configured
    with Network() as network:
        agent(network)
        other = network.connection()
        session = other.open("cartpole")
        began = network.now
        network.after(20.0, session.close)
        with structlog.testing.capture_logs() as logged:
            network.connection(wait_s=60.0).open("cartpole").close()
        assert 20.0 <= network.now - began < 22.0
        waiting = [row for row in logged if row["event"] == "waiting for a slot"]
        assert [row["at_most_s"] for row in waiting] == [60.0]
        assert waiting[0]["why"].startswith("The only slot of 'cartpole' is in use")


def test_an_env_agent_that_is_waited_for_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gymwire.protocol.logs.logger", structlog.get_logger)
    with Network() as network:
        connection = network.connection(wait_s=60.0)
        with (
            structlog.testing.capture_logs() as logged,
            pytest.raises(AddressUnknown, match="No env agent offers 'cartpole'"),
        ):
            connection.open("cartpole")
    assert [row["event"] for row in logged] == ["waiting for an env agent"]


@pytest.mark.parametrize("wait_s", [0.0, 5.0])
def test_a_slot_is_waited_for_no_longer_than_asked(wait_s: float) -> None:
    with Network() as network:
        agent(network)
        network.connection().open("cartpole")
        began = network.now
        with pytest.raises(NoFreeSlot, match="The only slot"):
            network.connection(wait_s=wait_s).open("cartpole")
        assert wait_s <= network.now - began < wait_s + 2.0


def test_sessions_that_are_opened_together_come_in_the_order_asked_for() -> None:
    with Network(seed=3) as network:
        agent(network, slots=8)
        connection = network.connection()
        network.faults = Faults(late=1.0, late_s=3.0)
        sizes = [3, 1, 4, 1, 5]
        sessions = connection.open_all("cartpole", sizes, autoreset_mode="NextStep")
        assert [session.opened.num_envs for session in sessions] == sizes
        assert len({session.sid for session in sessions}) == len(sizes)


def test_a_learner_that_opens_thousands_of_sessions_is_not_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scale = 20  # all numbers are smaller by as much, so that the test is quick
    for name in ("RATE", "BURST", "DEBT", "CUT_OFF_DEBT"):
        monkeypatch.setattr(rate_limit, name, getattr(rate_limit, name) / scale)
    monkeypatch.setattr(open_sessions, "MAX_OPENING", open_sessions.MAX_OPENING // scale)
    count = 10_000 // scale
    with Network() as network:
        agent(network, slots=count)
        connection = network.connection()
        sessions = connection.open_all("cartpole", [0] * count)
        assert len({session.sid for session in sessions}) == count
        assert network.floods == 0


def test_a_learner_with_many_sessions_in_long_steps_is_not_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scale, count = 10, 150  # 1,500 sessions, each with a PING every second
    for name in ("RATE", "BURST", "DEBT", "CUT_OFF_DEBT"):
        monkeypatch.setattr(rate_limit, name, getattr(rate_limit, name) / scale)
    repeats = session_timers.REPEATS_PER_SECOND / scale
    monkeypatch.setattr(session_timers, "REPEATS_PER_SECOND", repeats)
    with Network() as network:
        loop = agent(network, slots=count)
        connection = network.connection()
        sessions = connection.open_all("cartpole", [0] * count)
        for session in sessions:
            session.request(Reset(1))
        delay(network, loop, Kind.PERCEPT, 2 * AWAY_S, monkeypatch)
        began = network.now
        for session in sessions:
            session.begin(Act(0))
        for session in sessions:
            assert isinstance(session.finish(), Percept)
        assert network.now - began > AWAY_S
        assert network.floods == 0


@pytest.mark.parametrize(("sessions", "share"), [(2, 1.0), (100, 0.06)])
def test_the_timers_of_many_sessions_take_a_small_share_of_the_time(
    sessions: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Network() as network:
        agent(network, slots=sessions)
        connection = network.connection()
        connection.open_all("cartpole", [0] * sessions)
        spent_s = 0.0

        def tick(session: RemoteSession, now: float, repeats: object) -> None:
            nonlocal spent_s
            network.now += 0.0001
            spent_s += 0.0001

        monkeypatch.setattr(RemoteSession, "tick", tick)
        began = network.now
        for _ in range(1000):
            connection.tick(network.now)
            network.now += 0.01
        elapsed_s = network.now - began
        assert 0 < spent_s <= share * elapsed_s
        assert sessions > 2 or spent_s == pytest.approx(0.2)  # those of few run each time


@contextlib.contextmanager
def hundred_episodes(
    timeout_s: float = 60.0,
) -> Iterator[tuple[Network, BrokerConnection, list[RemoteSession]]]:
    """Yield a hundred sessions of one connection, each of which has been reset."""
    with Network() as network:
        agent(network, slots=100)
        connection = network.connection(timeout_s=timeout_s)
        sessions = connection.open_all("cartpole", [0] * 100)
        for session in sessions:
            session.request(Reset(1))
        yield network, connection, sessions


def test_a_full_connection_is_tried_once_a_time_and_gets_all_repetitions_when_it_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hundred_episodes() as (network, connection, sessions):
        attempts: list[float] = []
        send = connection.link.send

        def refuse(frame: Frame, wait: bool = False) -> bool:
            attempts.append(network.now)
            network.now += TICK_S  # as long as a full connection is waited for
            return False

        with monkeypatch.context() as patch:
            patch.setattr(connection.link, "send", refuse)
            for session in sessions:
                session.begin(Act(0))
            attempts.clear()
            until = network.now + 20.0
            while network.now < until:
                connection.tick(network.now)
                network.now += 0.05
        assert 15 <= len(attempts) <= 25  # one a second
        assert connection.link.send is send
        began = network.now
        for session in sessions:
            assert isinstance(session.finish(), Percept)
        assert network.now - began < 3.0  # although each had been refused for long


def test_slow_timers_of_many_sessions_do_not_hide_that_the_broker_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hundred_episodes(timeout_s=10.0) as (network, _, sessions):
        tick = RemoteSession.tick

        def slow(session: RemoteSession, now: float, repeats: Repeats) -> None:
            network.now += 0.001
            tick(session, now, repeats)

        monkeypatch.setattr(RemoteSession, "tick", slow)
        network.faults = Faults(drop=1.0)
        began = network.now
        with pytest.raises(BrokerUnreachable):
            sessions[0].request(Act(0), timeout_s=60.0)
        assert network.now - began < 13.0


@contextlib.contextmanager
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a hundred sessions send as rarely as thousands: each of them once in 10 s."""
    with monkeypatch.context() as patch:
        patch.setattr(session_timers, "MANY_TIMERS", 10)
        patch.setattr(session_timers, "REPEATS_PER_SECOND", 10)
        patch.setattr(session_timers, "MAX_REPEATED", 1)
        yield


@contextlib.contextmanager
def hundred_waiting(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> Iterator[tuple[Network, list[RemoteSession]]]:
    """Yield a hundred sessions that wait for a silent broker, and may rarely send."""
    with few_repeats(monkeypatch), hundred_episodes(timeout_s) as (network, _, sessions):
        network.faults = Faults(drop=1.0)
        for session in sessions:
            session.begin(Act(0))
        yield network, sessions


@pytest.mark.parametrize("timeout_s", [2.0, 10.0, 60.0])
@pytest.mark.parametrize("number", [0, 50, 99])
def test_the_silence_of_the_broker_is_noticed_in_time_by_sessions_that_may_rarely_ping_it(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float, number: int
) -> None:
    with hundred_waiting(monkeypatch, timeout_s) as (network, sessions):
        began = network.now
        with pytest.raises(BrokerUnreachable):
            sessions[number].finish(timeout_s=1000.0)
        assert timeout_s < network.now - began < timeout_s + 2.0


@pytest.mark.parametrize("number", [0, 50, 99])
def test_the_silence_for_one_session_is_noticed_in_time_when_the_others_began_to_wait_later(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def wait_later() -> None:
        for session in sessions[:number] + sessions[number + 1 :]:
            session.exchange.keep_waiting(network.now)

    with hundred_waiting(monkeypatch, 10.0) as (network, sessions):
        network.after(9.5, wait_later)
        began = network.now
        with pytest.raises(BrokerUnreachable):
            sessions[number].finish()
        assert 10.0 < network.now - began < 12.0


@pytest.fixture
def beside_abandoned() -> Iterator[tuple[Network, RemoteSession, RemoteSession]]:
    """Yield two sessions whose broker is silent; a request of the first was given up after 8 s."""
    with hundred_episodes(timeout_s=10.0) as (network, _, (abandoned, other, *_)):
        network.faults = Faults(drop=1.0)
        with pytest.raises(RequestTimeout):
            abandoned.request(Act(0), timeout_s=8.0)
        yield network, abandoned, other


def test_an_abandoned_request_ends_no_call_of_another_session(
    beside_abandoned: tuple[Network, RemoteSession, RemoteSession],
) -> None:
    network, abandoned, other = beside_abandoned
    network.after(5.0, lambda: setattr(network, "faults", Faults()))
    assert isinstance(other.request(Act(0)), Percept)
    assert isinstance(abandoned.request(Act(0)), Percept)


def test_each_call_beside_an_abandoned_request_waits_for_the_broker_as_long(
    beside_abandoned: tuple[Network, RemoteSession, RemoteSession],
) -> None:
    network, abandoned, other = beside_abandoned
    for session in (other, other, abandoned, other):
        began = network.now
        with pytest.raises(BrokerUnreachable):
            session.request(Act(0))
        assert 10.0 < network.now - began < 12.0


@pytest.mark.parametrize("number", [0, 50, 99])
def test_a_caller_of_many_sessions_notices_the_silence_for_any_of_them(number: int) -> None:
    with hundred_episodes(timeout_s=10.0) as (network, connection, sessions):
        network.faults = Faults(drop=1.0)
        sessions[number].begin(Act(0))
        network.pass_time(1.0)
        began, ready = network.now, all_ready(connection, [sessions[number], *sessions])
        with pytest.raises(BrokerUnreachable):
            connection.wait(ready, began + 30.0, Sources(sessions))
        assert network.now - began < 12.0


@pytest.mark.parametrize("timeout_s", [5.0, 10.0, 60.0])
def test_sessions_that_begin_to_wait_beside_many_others_notice_silence_in_time(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    noticed: dict[int, float] = {}
    tick = RemoteSession.tick

    def note(session: RemoteSession, now: float, repeats: Repeats) -> None:
        try:
            tick(session, now, repeats)
        except BrokerUnreachable:  # as in gymwire.aio, only the caller of this session gets it
            noticed.setdefault(session.sid, network.now - began)

    monkeypatch.setattr(RemoteSession, "tick", note)
    with few_repeats(monkeypatch), hundred_episodes(timeout_s) as (network, connection, sessions):
        network.faults = Faults(drop=1.0)
        began = network.now
        for session in sessions[:80]:
            session.begin(Act(0))
        connection.wait(lambda: False, began + 1.5)
        for session in sessions[80:]:
            session.begin(Act(0))
        connection.wait(lambda: len(noticed) == 100, began + 3 * timeout_s)
    late_s = [
        noticed[one.sid] - timeout_s - (0.0 if one in sessions[:80] else 1.5) for one in sessions
    ]
    assert min(late_s) > 0.0
    assert max(late_s) < 2.5


@pytest.mark.parametrize("idle_s", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("timeout_s", [2.0, 12.0])
def test_a_request_to_a_silent_broker_says_that_it_is_silent(
    idle_s: float, timeout_s: float
) -> None:
    with Network() as network:
        connection = network.connection(timeout_s=timeout_s)
        network.faults = Faults(drop=1.0)
        network.pass_time(idle_s)
        with pytest.raises(BrokerUnreachable, match=f"silent for {timeout_s:g} s"):
            connection.find()
        with pytest.raises(RequestTimeout, match=r"no answer within 1 s\. Try again"):
            connection.ask(Find(), timeout_s=1.0)


def test_time_in_which_the_process_is_suspended_is_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def suspend() -> None:
        network.now += 3600.0

    with hundred_waiting(monkeypatch, 10.0) as (network, sessions):
        network.after(5.0, suspend)
        began = network.now
        with pytest.raises(BrokerUnreachable):
            sessions[50].finish()
        assert 3610.0 < network.now - began < 3620.0


def test_a_broker_that_each_session_rarely_asks_is_not_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with few_repeats(monkeypatch), hundred_episodes(timeout_s=4.0) as (network, _, sessions):
        delay(network, network.loops[0], Kind.PERCEPT, 2 * AWAY_S, monkeypatch)
        began = network.now
        for session in sessions:
            session.begin(Act(0))
        for session in sessions:
            assert isinstance(session.finish(), Percept)
        assert network.now - began > AWAY_S


def test_a_full_connection_gets_each_resume_after_one_hello(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hundred_episodes() as (network, connection, sessions):
        hellos: list[bytes] = []
        with monkeypatch.context() as patch:
            patch.setattr(connection.link, "send_hello", lambda frame, *_: hellos.append(frame))
            patch.setattr(connection.link, "send", lambda frame, wait=False: False)
            for session in sessions:
                session.begin(Act(0))
                session.exchange.reconnected(network.now)
            connection.tick(network.now)
        assert len(hellos) == 1
        assert all(one.exchange.resume_pending for one in sessions)
        for session in sessions:
            assert isinstance(session.finish(), Percept)


def test_each_of_many_openings_may_take_as_long_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_sessions, "MAX_OPENING", 2)
    with Network() as network:
        loop = agent(network, slots=8)
        answers_late(network, loop, monkeypatch)
        connection, began = network.connection(), network.now
        connection.open_all("cartpole", [0] * 6, timeout_s=1.5 * AWAY_S)
        assert 3 * AWAY_S <= network.now - began < 4 * AWAY_S
        with pytest.raises(RequestTimeout):
            network.connection().open_all("cartpole", [0] * 2, timeout_s=0.5 * AWAY_S)


def test_after_a_refusal_no_more_sessions_are_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_sessions, "MAX_OPENING", 2)
    with Network() as network:
        loop = agent(network, slots=3)
        connection = network.connection()
        sent: list[Message] = []
        send = connection.send_request

        def count(message: Message, sid: int = 0, keep: Keep = ignore) -> PendingRequest:
            sent.append(message)
            return send(message, sid, keep)

        monkeypatch.setattr(connection, "send_request", count)
        with pytest.raises(NoFreeSlot, match="has only 3 slots"):
            connection.open_all("cartpole", [0] * 50)
        assert len(sent) <= 5
        listen(network, connection)
        assert loop.idle


def test_a_closed_connection_says_so() -> None:
    with Network() as network:
        network.env_agent(service(address="lake", env="FrozenLake-v1"))
        connection = network.connection()
        session = connection.open("lake")
        session.request(Reset(1))
        connection.close()
        for call in (
            partial(session.step, 1),
            partial(connection.open, "lake"),
            partial(connection.find, "lake"),
        ):
            with pytest.raises(EnvironmentClosed, match=r"connection .* closed"):
                call()


@pytest.mark.parametrize(("request_", "drops"), [(Reset(1), False), (Act(1), True)])
def test_the_error_about_a_time_out_says_what_helps(request_: Message, drops: bool) -> None:
    with Network() as network:
        agent(network)
        session = network.connection().open("cartpole")
        session.request(Reset(1))
        network.faults = Faults(drop=1.0)
        with pytest.raises(
            RequestTimeout, match=r"arguments to keep waiting.* make a new "
        ) as caught:
            session.request(request_, timeout_s=0.5)
        assert ("or call reset() to drop the result" in str(caught.value)) is drops


def test_a_session_that_is_closed_during_a_step_frees_its_slot_when_the_step_has_ended() -> None:
    with Network() as network:
        loop = agent(network)
        connection = network.connection()
        session = connection.open("cartpole")
        session.request(Reset(1))
        network.faults = Faults(drop=1.0)
        with pytest.raises(RequestTimeout):
            session.request(Act(1), timeout_s=0.5)
        session.close()
        network.faults = Faults()
        assert not loop.idle
        listen(network, connection)
        assert loop.idle


def test_a_late_error_of_a_lost_session_answers_nothing_else() -> None:
    with Network() as network:
        agent(network)
        connection = network.connection()
        session = connection.open("cartpole")
        connection.forget(session)
        dealer = cast(Any, connection.link._dealer)
        for seq in range(5):
            late = PLAIN.encode(Error(Code.SESSION_LOST, "It is gone."), session.sid, seq)
            network.after(0.0001, partial(dealer.arrived, late))
        assert used(connection) == 1


def test_a_connection_that_breaks_during_an_open_is_waited_for() -> None:
    with Network() as network:
        agent(network)
        connection = network.connection()
        dealer = cast(Any, connection.link._dealer)
        assert isinstance(dealer, Dealer)
        network.after(0.0005, lambda: network.cut(dealer, 2.0))
        assert connection.open("cartpole").opened.num_envs == 0


REMOVED = "This key was removed from this broker's policy."


@pytest.mark.parametrize("message", [Error(Code.SESSION_LOST, REMOVED), Gone(REMOVED), None])
def test_a_session_that_is_lost_as_the_key_is_denied_says_why(
    message: Message | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Network() as network:
        loop = agent(network)
        connection = network.connection()
        session = connection.open("cartpole")
        session.request(Reset(1))
        delay(network, loop, Kind.PERCEPT, AWAY_S, monkeypatch)
        dealer, tick = cast(Dealer, connection.link._dealer), connection.tick

        def deny(now: float, **awaited: Any) -> None:
            # All of it arrives between a poll and the timers.
            monkeypatch.setattr(connection, "tick", tick)
            if message is not None:
                dealer.inbox.append(bytes(PLAIN.encode(message, session.sid, 0)))
            dealer.news += [LinkEvent(False, 1), LinkEvent(False, 1, denied="unknown key")]
            tick(now, **awaited)

        monkeypatch.setattr(connection, "tick", deny)
        text = "unknown key" if message is None else "removed from this broker's policy"
        with pytest.raises(Denied if message is None else EnvironmentLost, match=text):
            session.request(Act(0))


def test_all_calls_after_the_removal_of_the_key_say_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Network() as network:
        agent(network, slots=3)
        connection = network.connection()
        sessions = [connection.open("cartpole") for _ in range(2)]
        dealer = cast(Dealer, connection.link._dealer)
        for one in sessions:
            dealer.inbox.append(bytes(PLAIN.encode(Gone(REMOVED, EndedBy.POLICY), one.sid, 0)))
        dealer.inbox.append(bytes(PLAIN.encode(Error(Code.DENIED, REMOVED), 0, 0)))
        connection.drain()
        for one in sessions:
            with pytest.raises(EnvironmentLost, match=REMOVED) as caught:
                one.request(Reset(1))
            assert caught.value.ended_by == "policy"
        with monkeypatch.context() as patch:
            patch.setattr(network, "carry", lambda *_: None)  # nobody answers
            dealer.inbox.append(bytes(PLAIN.encode(Error(Code.DENIED, "Another text."), 0, 0)))
            with pytest.raises(Denied, match=REMOVED):
                connection.find()
            denied = LinkEvent(False, 1, denied="unknown key")
            patch.setattr(dealer, "dial_again", lambda: dealer.news.append(denied))
            dealer.news.append(denied)
            for _ in range(2):
                with pytest.raises(Denied, match=REMOVED):
                    connection.open("cartpole")
        dealer.news += [LinkEvent(True, 1)]  # the key is back
        connection.open("cartpole")


def test_a_denial_that_answers_the_dial_of_an_earlier_call_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Network() as network:
        loop = agent(network)
        connection = network.connection()
        session = connection.open("cartpole")
        session.request(Reset(0))
        delay(network, loop, Kind.PERCEPT, AWAY_S, monkeypatch)
        dealer = cast(Dealer, connection.link._dealer)
        denied = LinkEvent(False, 1, denied="unknown key")
        dealer.news += [LinkEvent(False, 1), denied]
        with monkeypatch.context() as patch:
            patch.setattr(network, "carry", lambda *_: None)  # nobody answers
            with pytest.raises(RequestTimeout):
                connection.ask(Find("cartpole"), timeout_s=0.5)
        assert dealer.dialed_again == 1
        network.pass_time(5.0)
        dealer.news.append(denied)  # the answer; the next call reads it, when the key is back
        session.request(Act(0))
        assert dealer.dialed_again == 2
        dealer.news.append(denied)
        with monkeypatch.context() as patch:
            patch.setattr(network, "carry", lambda *_: None)
            patch.setattr(dealer, "dial_again", lambda: dealer.news.append(denied))
            with pytest.raises(Denied, match="unknown key"):  # it answers the dial of this call
                connection.find()


def test_each_session_may_teach_the_codec_of_steps_that_it_shares() -> None:
    with Network() as network:
        agent(network, slots=2)
        connection = network.connection()
        shared = connection.open("cartpole")._steps
        assert shared is not None
        layouts = cast(Any, shared.renew).__self__
        layouts._misses_left = 0
        assert connection.open("cartpole")._steps is shared
        assert layouts._misses_left == MAX_MISSES
