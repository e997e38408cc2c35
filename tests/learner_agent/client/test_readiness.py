"""Whether and where the replies of many sessions arrive."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gymwire.env_agent.config import service
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.readiness import Sources, all_ready
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.protocol.codec import PLAIN, read_header
from gymwire.protocol.errors import EnvironmentLost
from gymwire.protocol.messages import EndedBy, Gone, Reset
from tests.wire import Network


class Link:
    """A direct connection."""

    path = object()


@pytest.fixture
def connection() -> Iterator[BrokerConnection]:
    with Network() as network:
        network.env_agent(service(address="cartpole", env="CartPole-v1", max_sessions=3))
        yield network.connection()


@pytest.fixture
def sessions(connection: BrokerConnection) -> list[RemoteSession]:
    return connection.open_all("cartpole", [0] * 3)


def test_the_sources_of_many_sessions_are_few_and_follow_their_paths(
    connection: BrokerConnection, sessions: list[RemoteSession]
) -> None:
    sources = Sources(sessions)
    assert [*sources] == [connection]
    link = Link()
    direct = SimpleNamespace(up=True, went_down=False, link=link, transport=link.path)
    for one in sessions[:2]:
        one.paths.direct = cast(Any, direct)
        one.paths.follow(0.0)
        assert one.path is link.path
    assert [*sources] == [link, connection]
    direct.up = False
    for one in sessions[:2]:
        one.paths.follow(0.0)
        assert one.path is connection.link
    assert [*sources] == [connection]


def test_all_are_ready_with_the_last_reply(
    connection: BrokerConnection, sessions: list[RemoteSession]
) -> None:
    are_ready = all_ready(connection, sessions)
    for one in reversed(sessions):
        assert not are_ready()
        one.begin(Reset(1))
        assert connection.wait(lambda one=one: one.ready)  # type: ignore[misc]
    assert are_ready()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_loss_ends_the_wait_for_all_unless_its_reply_is_there(
    connection: BrokerConnection, sessions: list[RemoteSession], when: str
) -> None:
    def lose(session: RemoteSession) -> None:
        frame = PLAIN.encode(Gone("crashed"), session.sid)
        session.receive(read_header(frame), bytes(frame))

    are_ready = all_ready(connection, sessions)
    if when == "after":
        assert not are_ready()
    sessions[0].begin(Reset(1))
    assert connection.wait(lambda: sessions[0].ready)
    lose(sessions[0])
    assert not are_ready()
    lose(sessions[2])
    with pytest.raises(EnvironmentLost):
        are_ready()


@pytest.mark.parametrize("ended_by", [EndedBy.POLICY, EndedBy.OPERATOR])
def test_the_error_of_a_vector_advises_a_reset_unless_the_policy_ended_a_session(
    connection: BrokerConnection, ended_by: str
) -> None:
    def open_all(link: BrokerConnection, sizes: Any, wait_s: float | None) -> list[RemoteSession]:
        return link.open_all("cartpole", [0])

    group = SessionGroup(connection, [slice(0, 1)], "'x'", open_all)
    with pytest.raises(EnvironmentLost):
        group[0].exchange.lose("policy-1 is gone", ended_by)
    error = group.lost_error()
    assert error.ended_by == ended_by
    advises = ended_by != EndedBy.POLICY
    assert "Its episode cannot be recovered." in str(error)
    assert ("Call reset() to open a new session for it." in str(error)) is advises
    group.sizes = [2]
    assert "Their episodes cannot be recovered." in str(group.lost_error())
