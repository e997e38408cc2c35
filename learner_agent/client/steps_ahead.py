"""Steps in two parts, on the fast path: send actions, and receive results later."""

from __future__ import annotations

from typing import Any

from gymwire.learner_agent.client.session import OTHER_PATHS_EVERY, RemoteSession, finished
from gymwire.protocol.codec import Frame
from gymwire.protocol.messages import Act
from gymwire.protocol.step_codec import Step
from gymwire.protocol.transport.interface import Transport

MAX_TOGETHER = 64  # ACTs that are sent at the same time


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


class Outbox:
    """The ACTs of one step of several sessions, which are sent with few calls of the kernel.

    The first one is sent at once, so that its env agent can begin; then 2, 4, 8 and so on. Each is
    recorded as sent before. If an exception then keeps it from being sent, the timers repeat it,
    like a frame that was lost; if a full connection does so, they repeat it as soon as possible.
    """

    def __init__(self) -> None:
        self._acts: dict[Transport, list[tuple[RemoteSession, Frame]]] = {}
        self._count, self._limit = 0, 1  # how many there are, and how many are sent together
        self._full: set[Transport] = set()  # they have dropped frames, and get no more

    def add(self, session: RemoteSession, action: Any) -> None:
        """Send an ACT, at the latest with `flush`. Raises what `RemoteSession.begin` raises."""
        session.connection.check_open()
        frame = session.exchange.begin_step(action)
        if frame is None:
            session.begin(Act(action))
            return
        paths = session.paths
        direct = paths.direct
        if direct is not None and (direct.went_down or paths.current not in self._acts):
            paths.serve_others(session.connection.clock())
        acts = self._acts.get(paths.current)
        if acts is None:
            acts = self._acts[paths.current] = []
        acts.append((session, frame))
        self._count += 1
        if self._count >= self._limit:
            self._limit = min(2 * self._limit, MAX_TOGETHER)
            self.flush()

    def flush(self) -> None:
        """Send what has been added."""
        acts, self._acts, self._count = self._acts, {}, 0
        for path, some in acts.items():
            if path in self._full or not path.send_all([act for _, act in some], wait=True):
                self._full.add(path)
                for session, _ in some:
                    session.exchange.resend(session.connection.clock())


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
        return finished(step, session, data)
    except BaseException as error:
        exchange.end_with(request, error, data)
        raise
