"""What a client makes of OBSERVED, and what it says if it cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from gymwire.env_agent.config import service
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.observing import observe, stop_agent, stop_session
from gymwire.protocol.capabilities import CAPABILITIES
from gymwire.protocol.errors import DecodingError, EnvironmentLost, Refused, VersionMismatch
from gymwire.protocol.messages import Message, Observe, Observed, Reset, Welcome
from tests.test_hostile_fields import DECODED, named
from tests.wire import Network

SERVICE = service(address="cartpole", env="CartPole-v1", max_sessions=8)
BROKER: dict[str, Any] = {
    "epoch": 1, "software": "gymwire test", "uptime_s": 3, "peers": 2, "sessions": 1, "frames": 9,
    "bytes": 99, "sessions_opened": 1, "sessions_recovered": 0, "sessions_closed": 0,
    "sessions_lost": {"learner left": 2}, "refusals": {}, "busy": {}, "dropped": {},
}  # fmt: skip
OFFER: dict[str, Any] = {
    "address": "cartpole", "env_id": "CartPole-v1", "agent": "0a1b2c3d4e", "host": "lab", "pid": 11,
    "agent_pid": None, "software": "gymwire test", "identity": "", "name": "anyone", "slots": 4,
    "used": 1, "stuck": 0, "state": "ready", "direct": None,
}  # fmt: skip
SESSION: dict[str, Any] = {
    "sid": 7, "address": "cartpole", "agent": "0a1b2c3d4e", "host": "lab", "pid": 11,
    "learner": None, "identity": "", "learner_host": "desk", "learner_pid": 12, "state": "open",
    "direct": None, "age_s": 1.5, "frames": 3, "steps": 1, "steps_per_s": 2.0, "p50_s": 0.1,
    "p99_s": 1, "in_step_s": None,
}  # fmt: skip


@dataclass
class Answers:
    """Stands in for a connection whose broker gives these answers."""

    answers: Sequence[Message]
    url: str = "tcp://b:1"
    welcome: Welcome = field(
        default_factory=lambda: Welcome(1, "gymwire 9", "", 1, 1.0, capabilities=[*CAPABILITIES])
    )
    asked: list[Message] = field(default_factory=list)

    def ask(
        self, message: Message, sid: int, timeout_s: float | None
    ) -> tuple[None, Message, None]:
        self.asked.append(message)
        return None, self.answers[len(self.asked) - 1], None

    def observe(self) -> Any:
        return observe(cast(BrokerConnection, self))


def page(
    rest: list[Any] | None = None,
    *,
    broker: Any = BROKER,
    offers: tuple[Any, ...] = (OFFER,),
    sessions: tuple[Any, ...] = (SESSION,),
) -> Observed:
    return Observed(broker, list(offers), list(sessions), rest or [])


def test_all_pages_are_one_observation() -> None:
    rests = [["offers", "b", 0], ["offers", "b", 1], ["sessions", -1, 0], ["sessions", 9, 10], []]
    connection = Answers([page(rest) for rest in rests])
    found = connection.observe()
    assert [cast(Observe, one).after for one in connection.asked] == [[], *rests[:-1]]
    assert len(found.offers) == len(found.sessions) == 5
    assert dataclasses.asdict(found.offers[0]) == OFFER
    assert dataclasses.asdict(found.sessions[0]) == SESSION
    assert dataclasses.asdict(found.broker) == BROKER
    assert found.sessions[0].id == "0000000000000007"


def test_unknown_keys_are_ignored() -> None:
    found = Answers([page(sessions=({**SESSION, "later": 1},))]).observe()
    assert len(found.sessions) == 1


@pytest.mark.parametrize(
    "rests",
    [
        [["offers", "a", 1], ["offers", "a", 1]],
        [["offers", "b", 0], ["offers", "a", 9]],
        [["sessions", 1, 1], ["offers", "a", 1]],
        [["sessions", 5, 1], ["sessions", 4, 9]],
        [["offers", "a", 1], ["sessions", "a", 2]],
        [["x"]], [[1, 2, 3]], [[None]], [["offers", 1.5, 2]],
    ],
    ids=repr,
)  # fmt: skip
def test_pages_that_do_not_advance_are_a_fault_of_the_broker(rests: list[list[Any]]) -> None:
    with pytest.raises(DecodingError, match=r"broker at tcp://b:1 .* rest"):
        Answers([page(rest) for rest in rests] + [page()]).observe()


@pytest.mark.parametrize(
    ("part", "key"),
    [(part, key) for part, row in enumerate((BROKER, OFFER, SESSION)) for key in row],
)
def test_any_value_of_a_row_is_an_error_or_is_what_was_sent(part: int, key: str) -> None:
    for label, value in DECODED.items():
        rows = [BROKER, OFFER, SESSION]
        rows[part] = {**rows[part], key: value}
        broker, offer, session = rows
        with named(label):
            try:
                found = Answers(
                    [page(broker=broker, offers=(offer,), sessions=(session,))]
                ).observe()
            except DecodingError as error:
                wrong = str(error)
            else:
                read = (found.broker, found.offers[0], found.sessions[0])[part]
                assert getattr(read, key) == value
                continue
            assert repr(key) in wrong
            assert len(wrong) < 400


@pytest.mark.parametrize("key", SESSION)
def test_a_missing_value_is_named(key: str) -> None:
    row = {name: value for name, value in SESSION.items() if name != key}
    with pytest.raises(DecodingError, match=f"lacks '{key}'"):
        Answers([page(sessions=(row,))]).observe()


@pytest.mark.parametrize("label", DECODED)
def test_no_row_may_be_anything_but_a_map(label: str) -> None:
    with pytest.raises(DecodingError):
        Answers([page(sessions=(DECODED[label],))]).observe()


def test_a_broker_of_the_previous_release_is_named() -> None:
    connection = Answers([], welcome=Welcome(1, "gymwire 0.1.0", "", 1, 1.0))
    with pytest.raises(VersionMismatch, match=r"broker at tcp://b:1 \(gymwire 0.1.0\).*Upgrade"):
        connection.observe()


def test_an_operator_sees_and_stops_a_session_of_the_real_broker() -> None:
    with Network() as network:
        network.env_agent(SERVICE)
        learner, operator = network.connection(), network.connection()
        session = learner.open("cartpole")
        session.request(Reset(1))
        found = observe(operator)
        assert [one.sid for one in found.sessions] == [session.sid]
        assert found.broker.sessions == 1
        assert stop_session(operator, session.sid)
        assert not stop_session(operator, session.sid)
        with pytest.raises(
            EnvironmentLost, match=r"an operator \('anyone', process \d+ on .*\) has"
        ):
            session.request(Reset(1))
        assert not observe(operator).sessions
        with pytest.raises(Refused, match="No env agent 'nobody'"):
            stop_agent(operator, "nobody")
        with pytest.raises(Refused, match="no session 00000000000003e7"):
            stop_session(operator, 999)
