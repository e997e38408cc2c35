"""Whether and where the replies of many sessions arrive, without work per session and frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.waiting import Source


def all_ready(
    connection: BrokerConnection, sessions: Sequence[RemoteSession]
) -> Callable[[], bool]:
    """Return a condition: all these sessions have their replies.

    It raises EnvironmentLost as soon as one of them that has no reply is lost, and the exception
    that a malformed frame of one of them has caused.
    """
    missing = [*reversed(sessions)]
    failures: int | None = None

    def are_ready() -> bool:
        nonlocal missing, failures
        if failures != connection.failures:
            failures = connection.failures
            missing = [one for one in missing if not one.exchange.check_ready()]
        while missing and missing[-1].exchange.check_ready():
            missing.pop()
        return not missing

    return are_ready


def one_ready(sessions: Sequence[RemoteSession]) -> Callable[[], bool]:
    """Return a condition: one of these sessions has its reply.

    If none has, it raises EnvironmentLost if one is lost, and the exception that a malformed frame
    of one of them has caused.
    """
    return lambda: (
        any(one.ready for one in sessions) or any(one.exchange.check_ready() for one in sessions)
    )


class Sources:
    """Where the frames of some sessions of a connection arrive now, each place once."""

    def __init__(self, sessions: Sequence[RemoteSession]) -> None:
        self._sessions = sessions
        self._path_changes: int | None = None
        self._found: list[Source] = []

    def __contains__(self, session: object) -> bool:
        """Return whether this is one of the sessions."""
        return session in self._sessions

    def __iter__(self) -> Iterator[Source]:
        changes = self._sessions[0].connection.path_changes
        if self._path_changes != changes:
            self._found = [*dict.fromkeys([one.paths.source for one in self._sessions])]
            self._path_changes = changes
        return iter(self._found)
