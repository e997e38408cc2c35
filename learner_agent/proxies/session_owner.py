"""The session behind a ProxyEnv: opened, replaced after a loss or a fork, moved, and closed."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import get_ident
from typing import Any

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.connection_use import ConnectionUse, closed_elsewhere
from gymwire.learner_agent.client.exchange import Exchange
from gymwire.learner_agent.client.moving import move
from gymwire.learner_agent.client.session import CLOSE_S, RemoteSession
from gymwire.learner_agent.client.session_token import SessionToken
from gymwire.learner_agent.proxies.interrupts import check_alone, close_alone, is_in_call
from gymwire.learner_agent.proxies.options import INHERITED_CONNECTIONS, ProxyOptions
from gymwire.learner_agent.proxies.remote_generators import RemoteGenerators
from gymwire.learner_agent.proxies.shared_connections import Share, share
from gymwire.protocol import logs
from gymwire.protocol.errors import EnvironmentClosed, GymwireError, ResetNeeded
from gymwire.protocol.messages import Act, Call, Message, Reset, Status
from gymwire.protocol.transport.context import TooFewFiles

READ_GENERATOR = Call("get", "np_random")
_OWNERS: weakref.WeakSet[SessionOwner] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Mark in a forked process what belongs to its parent; asking for it costs a system call."""
    for owner in _OWNERS:
        owner.is_inherited = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class SessionOwner:
    """Owns one session of a plain environment.

    It shares a connection with the others that its thread makes, unless the caller gives it one.
    The session moves to another connection if another thread uses it, or if it is used during a
    call of another proxy, as by a signal handler.

    Dropping the last reference to it frees the slot, like `close`.

    Args:
        options: how to connect and what to open.
        connection: a connection to open the session on, which the caller closes; None: a shared
            one.
        resumed: a session to use instead of opening one; its connection is owned.

    Attributes:
        session: the session in use.
        exchange: its exchange.
        use: the use of its connection by this proxy and those that share it.
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
        self.use: ConnectionUse
        self.returned: int
        self.closed = False
        self.in_call: object = False
        self.generators: RemoteGenerators | None = None
        self._share: Share | None = None  # None: the caller owns the connection
        self._has_moved = False
        self._is_left = False  # whether `close` has returned
        _OWNERS.add(self)
        if resumed is None:
            self.open(connection)
        else:
            self._use(resumed, Share(resumed.connection))

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
            connection: the connection to open it on; None: that which this thread shares.
            wait_s: how long to wait for a free slot, in seconds; None: as long as the option says.
            prepare: called with the session before it is used.
        """
        held = self._share
        former = self.__dict__.get("session")
        known: frozenset[int] | None = None
        try:
            if connection is None:
                held = share(self.options)
                connection = held.connection
            known = connection.sids
            if held is not None:
                connection.use.caller = self
                wait_s = self.options.wait_s if wait_s is None else wait_s
            (session,) = self.options.open_sessions(connection, wait_s=wait_s)
            prepare(session)
            if self.closed:  # by a signal handler
                raise connection.link.closed_error()
            self._use(session, held)
            if former is not None and former.connection is connection:
                former.paths.close_direct()  # its env agent may be alive
            self._end_call(connection)  # so that no exception from outside can prevent it
        except BaseException:
            used = self.__dict__.get("session")
            ended = None if held is self._share else held
            try:
                is_closed = ended is not None and ended.is_last
                if connection is not None and known is not None and not is_closed:
                    connection.close_others(known if used is None else known | {used.sid})
                    if held is not None:  # others may keep it unused
                        with contextlib.suppress(GymwireError):
                            connection.close_given_up()
            finally:
                if ended is not None:  # not earlier: the last one that uses it closes it
                    ended.end()
            raise
        finally:
            self._end_call(connection)

    def _end_call(self, connection: BrokerConnection | None) -> None:
        """Let others use the connection, unless a call goes on."""
        if not self.in_call and connection is not None and connection.use.caller is self:
            connection.use.caller = None

    def _use(self, session: RemoteSession, made: Share | None) -> None:
        exchange = session.exchange
        # All at once: an exception from outside comes before or after it. In a new dict, because
        # Python 3.11 reads attributes four times as slowly once `__dict__` has been read.
        self.__dict__ = {
            **self.__dict__,
            "session": session,
            "is_inherited": False,
            "_share": made,
            "exchange": exchange,
            # That of the caller's connection is the caller's affair.
            "use": ConnectionUse() if made is None else session.connection.use,
            "returned": exchange.returned,
        }

    # --- the use of the connection ----------------------------------------------------------------

    def _is_used_by_others(self) -> bool:
        """Return whether another thread uses the connection, or a call that this one interrupts."""
        use = self.use
        if use.thread_id != get_ident():
            return True
        return use.caller is not None and use.caller is not self and is_in_call(use.caller)

    def leave(self, *, to_close: bool = False) -> None:
        """Use a connection that nobody else uses at the moment.

        The first time, that is the one that this thread shares; later, one of its own, if the
        process may open enough files.

        Raises what `ProxyOptions.connect` and `move` raise; the session then stays as it is.
        """
        held, former, options = self._share, self.session, self.options
        if held is None or held.take():
            self.use.begin()
            return
        if to_close:
            options = replace(options, wait_s=0.0, timeout_s=CLOSE_S)
        else:  # a call waits that long for the broker
            options = replace(options, wait_s=options.timeout_s)
        try:
            made = share(options, alone=self._has_moved or to_close)
        except TooFewFiles:
            made = share(self.options)
        try:
            self._use(move(former, made.connection), made)
            self._has_moved = True
        finally:
            if self._share is made:
                former.connection.use.left.append(partial(_forget, former))
                held.end()
            else:  # another call may go on with the session, but none after `close`
                made.end(goodbye=to_close)

    def begin_call(self) -> None:
        """Begin a call of the proxy: from now on, `undo` returns to this moment."""
        if self.in_call:
            check_alone(self)
        if not self.is_inherited and not self.closed and self._is_used_by_others():
            self.in_call = True  # no other thread may use the proxy meanwhile
            self.leave()
            if self.closed:  # `close` may not have known of the connection that is in use now
                raise closed_elsewhere()
        if self.generators is not None:
            self.generators.before_request()
        self.in_call, self.use.caller = True, self
        self.returned = self.exchange.returned

    def end_call(self) -> None:
        """End a call of the proxy."""
        self.in_call, self.use.caller = False, None

    def undo(self, error: BaseException) -> None:
        """End a call with an exception. Unless it is a reply, no reply counts as returned."""
        self.end_call()
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
            ResetNeeded: a step, or a draw from the random generator, in a forked process.
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
        if verb == "step" or message == READ_GENERATOR:  # not the generator of another episode
            raise ResetNeeded(
                "This environment was made before the process forked, and its episode belongs to "
                "the parent process. Call reset() first: it opens a session for this process."
            )
        INHERITED_CONNECTIONS.append(self.session.connection)
        self.open(None)

    def token(self) -> bytes:
        """Return the token with which another process can resume the session."""
        self.check_usable(Reset())
        self._has_moved = True
        self.leave()  # the sessions of other proxies are not kept
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
        ended = True if self._share is None else self
        close_alone(self, self.session.connection, self._close, ended)

    def _close(self) -> None:
        use, former = self.use, self.session
        try:
            if use.caller is self or self._is_used_by_others():
                self.leave(to_close=True)
            if self.session is not former and use.caller is self:  # a signal handler closes it
                former.fail(former.connection.link.closed_error())
            self.use.caller = self
            self.session.close()
        except BaseException as error:
            # The thread that uses the connection closes it, with its next timers.
            use.left.append(partial(former.close, wait=False))
            if not isinstance(error, GymwireError):
                raise
            logs.logger().debug("session not closed yet", why=str(error))
        finally:  # an interrupt must not leave the connection open
            if self.use is not use or use.caller is self:
                self.use.caller = None
            if self._share is not None:
                self._share.end()
        self._is_left = True  # last: after an interrupt, the next call goes on

    def __del__(self) -> None:
        session = self.__dict__.get("session")
        if session is None or self._is_left or sys.is_finalizing():
            return
        if self.is_inherited:
            INHERITED_CONNECTIONS.append(session.connection)
        elif self._share is not None:
            use = self.use
            use.left.append(partial(session.close, wait=False))
            try:
                if use.thread_id == get_ident() and use.caller is None:
                    use.caller = self
                    with contextlib.suppress(GymwireError):  # at exit, all calls must end
                        use.check()
            finally:
                if use.caller is self:
                    use.caller = None
                self._share.end()  # not earlier: the last one that uses the connection closes it


def _forget(session: RemoteSession) -> None:
    """Forget a session that has moved to another connection."""
    session.paths.close_direct()
    session.connection.forget(session)
