"""Whether the replies of many sessions have arrived, without work per session for each frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.session import RemoteSession


def all_ready(
    connection: BrokerConnection, sessions: Sequence[RemoteSession]
) -> Callable[[], bool]:
    """Return a condition: all these sessions have their replies.

    It raises EnvironmentLost as soon as one of them that has no reply is lost.
    """
    missing = [one for one in reversed(sessions) if not one.ready]
    losses = -1

    def are_ready() -> bool:
        nonlocal losses
        if losses != connection.losses:
            losses = connection.losses
            for one in missing:
                one.check_ready()
        while missing and missing[-1].check_ready():
            missing.pop()
        return not missing

    return are_ready


def one_ready(sessions: Sequence[RemoteSession]) -> Callable[[], bool]:
    """Return a condition: one of these sessions has its reply.

    It raises EnvironmentLost if none has, and one is lost.
    """
    return lambda: any(one.ready for one in sessions) or any(one.check_ready() for one in sessions)
