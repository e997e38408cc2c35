"""Steps in two parts, on the fast path: send the action, and receive the result later."""

from __future__ import annotations

from typing import Any

from gymwire.learner_agent.client.session import OTHER_PATHS_EVERY, RemoteSession, with_infos
from gymwire.protocol.messages import Act
from gymwire.protocol.step_codec import Step


def send_step(session: RemoteSession, action: Any) -> None:
    """Send an ACT without waiting. Raises what `RemoteSession.begin` raises."""
    exchange = session.exchange
    frame = exchange.begin_step(action)
    if frame is None:
        session.begin(Act(action))
        return
    if not exchange.returned % OTHER_PATHS_EVERY:
        session.paths.serve_others(session.connection.clock())
    session.paths.current.send(frame)


def receive_step(session: RemoteSession) -> Step | None:
    """Wait for the next frame; return what `RemoteSession.step` returns if it is the reply.

    None: wait on with `RemoteSession.peek`. After an exception, the reply is kept.
    """
    exchange = session.exchange
    request, data = exchange.request, None
    try:
        data = session.paths.current.receive() if exchange.reply is None else None
        if data is None:
            return None
        step = exchange.finish_step(data)
        if step is None:
            session.receive_frame(data)
            return None
        return with_infos(step, session)
    except BaseException as error:
        exchange.end_with(request, error, data)
        raise
