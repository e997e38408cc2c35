"""Move a session to another connection of this process, in the middle of an episode."""

from __future__ import annotations

import contextlib

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.direct import connect_directly
from gymwire.learner_agent.client.failures import error_for
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol.errors import EnvironmentLost
from gymwire.protocol.messages import Code, Error, Resume


def move(session: RemoteSession, connection: BrokerConnection) -> RemoteSession:
    """Return a session like this one that uses another connection from now on.

    A request that is under way is sent again there. Nothing in `session` changes, so another thread
    may be using its connection; it must not be used anymore.

    Raises what `BrokerConnection.ask` raises, and Denied.
    """
    sid, exchange = session.sid, session.exchange
    moved = connection.session_type(
        connection, sid, session.open_msg, session.opened, session.signer
    )
    moved.exchange.continue_from(exchange)
    if exchange.lost is not None:
        return moved
    _, answer, _ = connection.ask(Resume(exchange.nonce, take_over=True), sid)
    if isinstance(answer, Error):
        if answer.code != Code.SESSION_LOST:
            raise error_for(answer)
        with contextlib.suppress(EnvironmentLost):  # the next request raises it
            moved.exchange.lose(answer.text, answer.details.get("ended_by"))
        return moved
    connection.add(moved)
    if session.is_direct:
        connect_directly([moved], required=False)
    if not moved.is_direct:
        connection.link.open_local_channel()
    moved.exchange.resend(connection.clock())
    return moved
