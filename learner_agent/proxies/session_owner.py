"""The session behind a ProxyEnv: opened, replaced after a loss or a fork, and closed."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.exchange import Exchange
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.session_token import SessionToken
from gymwire.learner_agent.proxies.interrupts import check_alone, close_alone
from gymwire.learner_agent.proxies.options import INHERITED_CONNECTIONS, ProxyOptions
from gymwire.learner_agent.proxies.remote_generators import RemoteGenerators
from gymwire.protocol.errors import EnvironmentClosed, ResetNeeded
from gymwire.protocol.messages import Act, Message, Reset, Status

_OWNERS: weakref.WeakSet[SessionOwner] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Mark in a forked process what belongs to its parent; asking for it costs a system call."""
    for owner in _OWNERS:
        owner.is_inherited = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class SessionOwner:
    """Owns one session of a plain environment and, unless the caller does, its connection.

    Dropping the last reference to it frees the slot, like `close`.

    Args:
        options: how to connect and what to open.
        connection: a connection to open the session on, which the caller closes; None: a new one.
        resumed: a session to use instead of opening one; its connection is owned.

    Attributes:
        session: the session in use.
        exchange: its exchange.
        returned: the number of the last request whose reply the caller had when the present call
            began.
        is_inherited: whether a parent process opened it, and a fork must leave it alone.
        closed: whether `close` has been called.
        in_call: true while a call of the proxy is under way.
        generators: the environment's random generator, once somebody has asked for it.

    Raises:
        What `ProxyOptions.connect` and `ProxyOptions.open_sessions` raise.
    """

    def __init__(
        self,
        options: ProxyOptions,
        *,
        connection: BrokerConnection | None = None,
        resumed: RemoteSession | None = None,
    ) -> None:
        self.options = options
        self.session: RemoteSession
        self.is_inherited: bool
        self.exchange: Exchange
        self.returned: int
        self.closed = False
        self.in_call: object = False
        self.generators: RemoteGenerators | None = None
        self._is_left = False  # whether `close` has returned
        _OWNERS.add(self)
        self._owns_connection = connection is None
        if resumed is None:
            self.open(connection)
        else:
            self._use(resumed, owns_connection=True)

    def open(
        self,
        connection: BrokerConnection | None,
        *,
        wait_s: float | None = None,
        prepare: Callable[[RemoteSession], None] = lambda _: None,
    ) -> None:
        """Open a session and use it from now on.

        An exception closes it, and leaves the present session in use.

        Args:
            connection: the connection to open it on; None: a new one, which is owned.
            wait_s: how long to wait for a free slot, in seconds; None: as long as the option says.
            prepare: called with the session before it is used.
        """
        made = None
        former = self.__dict__.get("session")
        known: frozenset[int] = frozenset()
        try:
            if connection is None:
                made = connection = self.options.connect()
            known = connection.sids
            (session,) = self.options.open_sessions(connection, wait_s=wait_s)
            prepare(session)
            self._use(session, owns_connection=self._owns_connection or made is not None)
            if former is not None and former.connection is connection:
                former.paths.close_direct()  # its env agent may be alive
        except BaseException:
            used = self.__dict__.get("session")
            if made is not None and (used is None or used.connection is not made):
                made.close()
            elif connection is not None:
                connection.close_others(known if used is None else known | {used.sid})
            raise

    def _use(self, session: RemoteSession, *, owns_connection: bool) -> None:
        exchange = session.exchange
        # All at once: an exception from outside comes before or after it. In a new dict, because
        # Python 3.11 reads attributes four times as slowly once `__dict__` has been read.
        self.__dict__ = {
            **self.__dict__,
            "session": session,
            "is_inherited": False,
            "_owns_connection": owns_connection,
            "exchange": exchange,
            "returned": exchange.returned,
        }

    def begin_call(self) -> None:
        """Begin a call of the proxy: from now on, `undo` returns to this moment."""
        if self.in_call:
            check_alone(self)
        if self.generators is not None:
            self.generators.before_request()
        self.in_call = True
        self.returned = self.exchange.returned

    def undo(self, error: BaseException) -> None:
        """End a call with an exception. Unless it is a reply, no reply counts as returned."""
        self.in_call = False
        self.exchange.undo(self.returned, error)

    @property
    def shared(self) -> object:
        """The same for all that the calls of one proxy use."""
        return self

    def reopen(self, *, wait_s: float | None = None) -> None:
        """Open another session on the same connection."""
        self.open(self.session.connection, wait_s=wait_s)

    def reopen_if_lost(self) -> None:
        """Open another session if the env agent was lost."""
        lost = self.session.exchange.lost is not None
        if lost and not self.closed and not self.is_inherited:
            self.reopen()

    def request(self, message: Message) -> Message:
        """Send a request and return its reply, as `RemoteSession.request` does.

        Raises:
            EnvironmentClosed: after `close`.
            ResetNeeded: a step in a forked process.
        """
        self.check_usable(message)
        return self.session.request(message, self.options.step_timeout_s)

    def reset(self, seed: Any, options: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the remote environment, and return the observation and the info."""
        status = self.request(Reset(seed, options))
        assert type(status) is Status
        return status.observation, status.info

    def check_usable(self, message: Message) -> None:
        """Raise unless `message` may be sent. In a forked process, open a session of its own."""
        verb = "step" if type(message) is Act else type(message).__name__.lower()
        if self.closed:
            raise EnvironmentClosed(f"Cannot {verb}: this environment is closed. Make a new one.")
        if not self.is_inherited:
            return
        if verb == "step":
            raise ResetNeeded(
                "This environment was made before the process forked, and its episode belongs to "
                "the parent process. Call reset() first: it opens a session for this process."
            )
        INHERITED_CONNECTIONS.append(self.session.connection)
        self.open(None)

    def token(self) -> bytes:
        """Return the token with which another process can resume the session."""
        self.check_usable(Reset())
        session, exchange = self.session, self.session.exchange
        session.connection.keeps_sessions = True
        return SessionToken(
            self.options.as_kwargs(),
            exchange.sid,
            session.open_msg.nonce,
            exchange.seq - session.pending,
            exchange.state,
            session.open_msg.challenge,
            session.signer,
        ).encode()

    def close(self) -> None:
        """End the session and free its slot. Idempotent; never waits for a step."""
        if self._is_left:
            return
        self.closed = True
        if self.is_inherited:
            INHERITED_CONNECTIONS.append(self.session.connection)
            return
        close_alone(self, self.session.connection, self._close)

    def _close(self) -> None:
        try:
            self.session.close()
        finally:  # an interrupt must not leave the connection open
            if self._owns_connection:
                self.session.connection.close()
        self._is_left = True  # last: after an interrupt, the next call goes on

    def __del__(self) -> None:
        session = self.__dict__.get("session")
        if session is None or self._is_left or sys.is_finalizing():
            return
        if self.is_inherited:
            INHERITED_CONNECTIONS.append(session.connection)
        elif self._owns_connection:
            session.connection.close()  # sends BYE and does not wait
