"""The actions of several sessions are sent together, each exactly once, whatever drops them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from gymwire import ProxyVectorEnv
from gymwire.env_agent.config import service
from gymwire.learner_agent.client.exchange import RESEND_S, Exchange
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.learner_agent.client.steps_ahead import MAX_TOGETHER, Outbox
from gymwire.protocol.codec import Frame, read_header
from gymwire.protocol.errors import EnvironmentClosed
from gymwire.protocol.messages import Kind, Percept, Reset
from tests.learner_agent.client.test_interrupted import in_memory
from tests.sameness import assert_same
from tests.vector_envs import Moody
from tests.wire import BROKER, Network


class Path:
    """A connection that keeps what is sent, and drops all of it while `is_full`."""

    def __init__(self) -> None:
        self.bundles: list[list[Frame]] = []
        self.is_full = False

    def send_all(self, frames: Sequence[Frame], wait: bool = False) -> bool:
        assert wait
        self.bundles.append([*frames])
        return not self.is_full


class Paths:
    """The paths of a session; `serve_others` notices that the direct one was lost."""

    def __init__(self, current: Path, other: Path | None = None) -> None:
        self.current = current
        self._other = other
        self.direct = None if other is None else SimpleNamespace(went_down=True)

    def serve_others(self, now: float) -> None:
        assert self._other is not None
        assert self.direct is not None
        self.current, self.direct.went_down = self._other, False


def session(number: int, paths: Paths, resent: list[int] | None = None) -> RemoteSession:
    """Return a session that adds its number to `resent` when its request is to be repeated."""
    exchange = SimpleNamespace(
        begin_step=lambda action: b"%d %d" % (number, action),
        resend=lambda now: [] if resent is None else resent.append(number),
    )
    connection = SimpleNamespace(clock=lambda: 0.0, check_open=lambda: None)
    made = SimpleNamespace(exchange=exchange, paths=paths, connection=connection)
    return cast(RemoteSession, made)


@pytest.fixture
def sessions() -> Iterator[list[RemoteSession]]:
    """Return sessions in an episode, at an agent in memory; `ledgers_of` has what they executed."""
    count = 3 * MAX_TOGETHER
    with Network() as network:
        network.env_agent(service(address="cartpole", env="CartPole-v1", max_sessions=count))
        opened = network.connection().open_all("cartpole", [0] * count)
        for one in opened:
            one.request(Reset(1))
        yield opened
        steps = [[name for name, _ in ledger].count("step") for ledger in network.ledgers.values()]
        assert steps == [1] * count


def finish(sessions: Sequence[RemoteSession]) -> None:
    for one in sessions:
        assert type(one.finish()) is Percept


def test_the_first_action_leaves_at_once_and_more_and_more_together_after_it(
    sessions: list[RemoteSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = sessions[0].connection.link
    send_all, bundles = link.send_all, list[list[Frame]]()

    def send(frames: list[Frame], wait: bool = False) -> bool:
        bundles.append(frames)
        return send_all(frames, wait)

    monkeypatch.setattr(link, "send_all", send)
    outbox = Outbox()
    for one in sessions:
        outbox.add(one, 1)
    outbox.flush()
    assert [len(one) for one in bundles] == [1, 2, 4, 8, 16, 32, 64, 64, 1]
    headers = [read_header(frame) for bundle in bundles for frame in bundle]
    assert [one.sid for one in headers] == [one.sid for one in sessions]
    assert {(one.kind, one.seq) for one in headers} == {(Kind.ACT, 2)}
    finish(sessions)


def test_a_path_that_drops_actions_gets_no_more_and_the_timers_send_them(
    sessions: list[RemoteSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = sessions[0].connection.link
    send_all, sizes = link.send_all, list[int]()

    def send(frames: list[Frame], wait: bool = False) -> bool:
        sizes.append(len(frames))
        send_all(frames[: len(frames) // 2], wait)
        return len(frames) < 16

    monkeypatch.setattr(link, "send_all", send)
    outbox = Outbox()
    for one in sessions:
        outbox.add(one, 1)
    outbox.flush()
    assert sizes == [1, 2, 4, 8, 16]
    finish(sessions)


def test_a_path_that_is_full_does_not_hold_up_the_others() -> None:
    full, free, resent = Path(), Path(), list[int]()
    full.is_full = True
    outbox = Outbox()
    for number in range(6):
        outbox.add(session(number, Paths(free if number % 2 else full), resent), 7)
    outbox.flush()
    assert resent == [0, 2, 4]  # by the timers, at once
    assert full.bundles == [[b"0 7"]]
    assert [frame for bundle in free.bundles for frame in bundle] == [b"1 7", b"3 7", b"5 7"]


def test_an_action_takes_the_path_that_is_left_when_the_direct_one_was_lost() -> None:
    lost, left = Path(), Path()
    outbox = Outbox()
    for number in range(3):
        outbox.add(session(number, Paths(lost, left)), 7)
    outbox.flush()
    assert lost.bundles == []
    assert [frame for bundle in left.bundles for frame in bundle] == [b"0 7", b"1 7", b"2 7"]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_an_interrupt_before_actions_are_sent_leaves_them_to_the_next_call(
    monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    flush = Outbox.flush
    left = calls

    def interrupted(outbox: Outbox) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            flush(outbox)
        elif not left:
            outbox._acts = {}  # they are recorded as sent
            raise KeyboardInterrupt

    with in_memory():
        remote = ProxyVectorEnv("moody", 6, BROKER, sessions=6)
        local = [Moody() for _ in range(6)]
        remote.reset(seed=1)
        for i, env in enumerate(local):
            env.reset(seed=1 + i)
        actions = np.arange(6) % 2
        monkeypatch.setattr(Outbox, "flush", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remote.step_async(actions)
        remote.step_async(actions)
        got = remote.step_wait()
        expected = [env.step(action) for env, action in zip(local, actions, strict=True)]
        assert_same(got[0], np.stack([one[0] for one in expected]))
        assert_same(got[1], np.array([float(one[1]) for one in expected]))
        remote.close()


def test_actions_that_were_recorded_before_an_interrupt_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin_step, count = Exchange.begin_step, 0

    def interrupted(exchange: Exchange, action: object) -> Frame | None:
        nonlocal count
        count += 1
        if count == 5:  # three have been sent, and the fourth waits for others
            raise KeyboardInterrupt
        return begin_step(exchange, action)

    with in_memory() as network:
        remote = ProxyVectorEnv("moody", 6, BROKER, sessions=6)
        remote.reset(seed=1)
        monkeypatch.setattr(Exchange, "begin_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remote.step_async(np.zeros(6, np.int64))
        network.pass_time(RESEND_S / 2)  # the timers send nothing yet
        group = remote._group
        group.connection.drain()
        assert [group[i].ready for i in range(6)] == [True] * 4 + [False] * 2
        remote.step(np.zeros(6, np.int64))
        assert [group[i].exchange.seq for i in range(6)] == [2] * 6
        remote.close()


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("ends", [False, True])
def test_a_close_while_actions_are_sent_is_an_error_that_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, number: int, ends: bool
) -> None:
    with in_memory():
        remote = ProxyVectorEnv("moody", 6, BROKER, sessions=6)
        remote.reset(seed=1)
        begin = SessionGroup.begin_step

        def begin_and_close(group: SessionGroup, i: int, actions: Any, outbox: Outbox) -> None:
            begin(group, i, actions, outbox)
            if i == number:
                remote.close()
                if ends:
                    raise SystemExit(3)

        monkeypatch.setattr(SessionGroup, "begin_step", begin_and_close)
        with pytest.raises(SystemExit if ends else EnvironmentClosed):
            remote.step_async(np.zeros(6, np.int64))
