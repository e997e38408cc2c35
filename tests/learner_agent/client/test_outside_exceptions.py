"""An exception from outside, at any instruction of a request, neither loses nor doubles it.

A signal handler may raise any exception while `step` decodes a reply, and another thread may set
one. The same call again then returns the same reply.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from gymwire.env_agent.config import service
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol.errors import AttributeDenied, MoveError
from gymwire.protocol.messages import Act, Call, Message, Percept, Reset
from tests.learner_agent.opcodes import TIMES, FromOutside, Interruption
from tests.sameness import assert_same
from tests.wire import Network


def interrupted(call: Callable[[], object], instruction: int) -> str | None:
    """Raise at the n-th instruction of a call; return where that was, None: the call has ended."""
    interruption = Interruption(instruction)
    return interruption.where if interruption.run(call) else None


@pytest.fixture
def session() -> Iterator[RemoteSession]:
    with Network() as network:
        network.env_agent(service(address="lake", env="FrozenLake-v1"))
        yield network.connection().open("lake")


def step(session: RemoteSession, number: int, timeout_s: float | None) -> object:
    return session.step(number % 4, timeout_s)


def timed_step(session: RemoteSession, number: int, _: float | None) -> object:
    return session.timed_step(number % 4)[0]


@pytest.mark.parametrize("call", [step, timed_step])
@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_a_step_is_neither_lost_nor_doubled(
    session: RemoteSession, call: Callable[..., object], timeout_s: float | None
) -> None:
    with Network() as network:
        network.env_agent(service(address="lake", env="FrozenLake-v1"))
        undisturbed = network.connection().open("lake")
        instructions = itertools.count(step=TIMES)
        where: str | None = ""
        while where is not None:
            for one in (session, undisturbed):
                one.request(Reset(1))
            for number in range(3):  # the fourth might end the episode
                where = interrupted(partial(call, session, number, timeout_s), next(instructions))
                if where is None:
                    break
                expected = undisturbed.step(number % 4)
                assert_same(call(session, number, timeout_s), expected, where)
    assert next(instructions) > 50


def request(session: RemoteSession, message: Message) -> str:
    """Return the kind of the reply, or the name of the exception that it stands for."""
    try:
        return type(session.request(message)).__name__
    except AttributeDenied as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        (Reset(3), "Status"),
        (Act(1), "Percept"),
        (Call("get", "np_random_seed"), "Result"),
        (Call("get", "spec"), "AttributeDenied"),
    ],
)
def test_a_request_keeps_its_number_and_its_reply(
    session: RemoteSession, message: Message, reply: str
) -> None:
    for instruction in itertools.count(step=TIMES):
        session.request(Reset(1))
        seq = session.exchange.seq
        where = interrupted(partial(request, session, message), instruction)
        if where is None:
            break
        if reply == "AttributeDenied" and not session.pending and session.exchange.seq > seq:
            assert where.startswith(("RemoteSession.request", "Exchange.end_with"))  # its last
            continue
        assert request(session, message) == reply
        assert session.exchange.seq == seq + 1, where
    assert instruction > 50


def test_another_call_names_the_pending_one(
    session: RemoteSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.request(Reset(1))

    def interrupt(*_: object) -> None:
        raise FromOutside

    with monkeypatch.context() as patch:
        patch.setattr(session.exchange, "finish_step", interrupt)
        with pytest.raises(FromOutside):
            session.step(1)
    with pytest.raises(MoveError, match="The previous step is still under way"):
        session.step(2)
    assert session.ready
    assert isinstance(session.request(Act(1)), Percept)


def test_a_reply_that_has_arrived_is_kept_and_not_asked_for_again(
    session: RemoteSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.request(Reset(1))

    def interrupt(*_: object) -> None:
        raise FromOutside

    def refuse(_: object) -> None:
        pytest.fail("the request was sent again")

    with monkeypatch.context() as patch:
        patch.setattr(session.exchange, "finish_step", interrupt)
        with pytest.raises(FromOutside):
            session.step(1)
    with monkeypatch.context() as patch:
        patch.setattr(session.path, "send", refuse)
        assert len(session.step(1)) == 5
