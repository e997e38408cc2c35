"""A session whose episodes are recorded: it passes each request and its reply to the recorder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymwire.env_agent.environments import Service
from gymwire.env_agent.recorder import Recorder
from gymwire.env_agent.session import Session, Verdict
from gymwire.protocol.codec import Frame, Pieces
from gymwire.protocol.messages import Kind, Open, Opened
from gymwire.protocol.process_ids import session_text


class RecordedSession(Session):
    """A session that records what it executes.

    It does so where a request begins and ends, so that a session without recording costs nothing.

    Args:
        recorder: writes the episodes.
        header: the facts about the session that each of its files begins with.
        read_generator: returns the state of the environment's generator, None if it has none.
        tag_size: the bytes of the tag of a signed session, which are not recorded.
    """

    def __init__(
        self,
        session: Session,
        recorder: Recorder,
        header: dict[str, Any],
        read_generator: Callable[[], Any],
        tag_size: int = 0,
    ) -> None:
        super().__init__(session.sid, session.nonce, session.address, session.learner)
        self._recorder = recorder
        self._header = header
        self._read_generator = read_generator
        self._signed = slice(0, -tag_size) if tag_size else slice(None)
        self._episode = recorder.none()
        self._episodes = 0
        self._generator: Any = None

    def judge(self, kind: Kind, seq: int, request: Frame | memoryview) -> Verdict:
        """Judge a request as `Session` does, and read the generator before a reset."""
        verdict = super().judge(kind, seq, request)
        if kind is Kind.RESET and verdict is Verdict.EXECUTE:
            self._generator = self._read_generator()
        return verdict

    def finish(self, reply: Kind, frame: Frame) -> None:
        """Record the reply as `Session` does, and the exchange."""
        kind = self._kind
        super().finish(reply, frame)
        if kind is Kind.RESET:
            self._end("reset")
            if reply is Kind.STATUS:
                self._episodes += 1
                header = {**self._header, "episode": self._episodes, "generator": self._generator}
                self._episode = self._recorder.begin(header, self._episode)
        elif kind is Kind.CLOSE:
            self._end("closed")
        if kind not in (Kind.RENDER, Kind.CLOSE):
            self._put(frame)

    def finish_step(self, seq: int, request: Frame | memoryview, frame: Frame | Pieces) -> None:
        """Record the PERCEPT as `Session` does, and the step."""
        super().finish_step(seq, request, frame)
        self._put(frame)

    def drop_reply(self) -> None:
        """Drop the reply, and end the episode: the environment closes."""
        super().drop_reply()
        self._end("closed")

    def _put(self, frame: Frame | Pieces) -> None:
        signed = self._signed
        # Both may be in memory that is reused: that of the environment, or of a socket.
        self._recorder.put(self._episode, bytes(self._request[signed]), bytes(frame)[signed])

    def _end(self, why: str) -> None:
        self._recorder.end(self._episode, why)


def header_of(service: Service, opened: Opened, request: Open, sid: int) -> dict[str, Any]:
    """Return the facts about a session that each of its files begins with."""
    return {
        "address": service.address,
        "spec": opened.spec,
        "observation_space": opened.observation_space,
        "action_space": opened.action_space,
        "metadata": opened.metadata,
        "num_envs": request.num_envs,
        "autoreset_mode": request.autoreset_mode,
        "env_kind": request.env_kind,
        "render_mode": request.render_mode,
        "env_kwargs": request.env_kwargs,
        "agent_env_kwargs": dict(service.factory.kwargs),
        "python": getattr(service.factory, "python", None),
        "agent": opened.agent,
        "learner": request.learner,
        "session": session_text(sid),
    }
