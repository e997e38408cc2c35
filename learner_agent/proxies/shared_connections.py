"""Connections that proxies share: one for all that a thread makes with the same broker and key."""

from __future__ import annotations

import os
import threading
from typing import Any

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.proxies.options import ProxyOptions
from gymwire.protocol import logs
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.messages import Ping
from gymwire.protocol.security.keys import credentials
from gymwire.protocol.transport.handshake import CONNECT_S


class Share:
    """A proxy's use of a connection, which is closed with the last one.

    Args:
        connection: the connection.
        others: the shares in the same connection.

    Attributes:
        connection: the same.
    """

    def __init__(self, connection: BrokerConnection, others: set[Share] | None = None) -> None:
        self.connection = connection
        self._all = set() if others is None else others
        self._all.add(self)

    def take(self) -> bool:
        """Reserve the connection for this proxy. Returns False if another proxy uses it, too.

        If reserved, it belongs to the thread that calls this.
        """
        with _lock:
            if not self.is_last:
                return False
            _withdraw(self._all)
        self.connection.use.begin()
        return True

    @property
    def is_last(self) -> bool:
        """Whether no other proxy uses the connection: `end` closes it."""
        return not self._all - {self}  # after an interrupted `close`, this share has ended

    def end(self, *, goodbye: bool = True) -> None:
        """End the use; the last one closes the connection.

        After an interrupt, call it again. `goodbye`: as `BrokerConnection.close` takes it.
        """
        with _lock:
            self._all.discard(self)
            if self._all:
                return
            _withdraw(self._all)
        self.connection.close(goodbye=goodbye)


def share(options: ProxyOptions, *, alone: bool = False) -> Share:
    """Return the use of a connection that fits these options, and that this thread may use now.

    `alone`: no other proxy may use the connection, ever. Raises what `ProxyOptions.connect` raises.
    """
    if alone or not options.SHARES:
        return Share(options.connect())
    keys = credentials(options.key, options.broker_key)
    use = (threading.get_ident(), options.CONNECTION, options.broker, options.timeout_s, keys)
    found = _join(use)
    if found is not None:
        try:
            if _is_usable(found.connection):
                found.connection.use.begin()  # a former thread may have had the same number
                return found
        except BaseException:
            found.end()
            raise
        found.end()
    made = Share(options.connect())
    with _lock:
        _shared[use] = made.connection, made._all  # noqa: SLF001 - of this module
    return made


def _join(use: tuple[Any, ...]) -> Share | None:
    """Return another use of the connection that this thread shares, if there is one.

    A destructor, which may run at any time, could have closed the connection meanwhile.
    """
    with _lock:
        found = _shared.get(use)
        return None if found is None else Share(*found)


def _withdraw(shares: set[Share]) -> None:
    """Let no other proxy use the connection of these shares."""
    for use in [use for use, (_, found) in _shared.copy().items() if found is shares]:
        _shared.pop(use, None)  # a destructor may have done it meanwhile


def _is_usable(connection: BrokerConnection) -> bool:
    """Return whether a shared connection is usable now: no call uses it, and the broker answers."""
    if connection.use.caller is not None:
        return False
    began = connection.clock()
    try:
        connection.contact.watch(began)  # what it notes after a pause must not look like an answer
        connection.check_link(began)
        if connection.broker_lost:
            return False
        connection.link.send(PLAIN.encode(Ping()))
        at_most_s = min(CONNECT_S, connection.timeout_s)
        return connection.wait(lambda: connection.contact.last > began, began + at_most_s)
    except GymwireError as error:  # a new connection raises it, too, or works
        logs.logger().debug("connection not shared anymore", why=str(error))
        return False


_lock = threading.RLock()  # for a destructor that runs while this thread has it
_shared: dict[tuple[Any, ...], tuple[BrokerConnection, set[Share]]] = {}


def _leave_to_parent() -> None:
    """Forget the parent's connections after a fork; a thread of the parent may hold the lock."""
    global _lock
    _lock = threading.RLock()
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
