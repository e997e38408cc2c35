"""How the sessions of one serving loop open and end, each environment in its own executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from gymwire.env_agent import failure_reports
from gymwire.env_agent.crew import CLOSING, Crew, Executor, Sequel
from gymwire.env_agent.elsewhere import EnvironmentGone
from gymwire.env_agent.memory import LARGE, LARGE_MESSAGES
from gymwire.env_agent.sessions import SessionHost, learner_facts
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.transports import Transports
from gymwire.protocol import logs
from gymwire.protocol.codec import PLAIN, Frame, Header
from gymwire.protocol.messages import Closed, Code, Error, Open, Ping
from gymwire.protocol.process_ids import session_text

MAX_REASON = 200  # characters of what the broker or an environment says, in a log entry


class Lifecycle:
    """Opens and ends the sessions of one serving loop. Used by its reader.

    Args:
        host: the sessions and their environments.
        crew: the threads of the loop.
        count_failure: logs a bug.
        clock: returns the time in seconds.

    Attributes:
        transports: what the loop sends with, once it is connected.
    """

    transports: Transports

    def __init__(
        self,
        host: SessionHost,
        crew: Crew,
        count_failure: Callable[[BaseException], None],
        clock: Callable[[], float],
    ) -> None:
        self._host = host
        self._crew = crew
        self._count_failure = count_failure
        self._clock = clock
        self._log = logs.logger()
        self._given_up: set[int] = set()  # sessions that have ended while they open
        self._refusing: set[str] = set()  # addresses without room for a session, as the log says

    @property
    def idle(self) -> bool:
        """Whether no session is open, opening or closing. May be read from any thread."""
        return not (self._host.slots or self._host.opening or self._host.ending)

    @property
    def ending(self) -> list[Slot]:
        """The ended sessions that are not closed yet. May be read from any thread."""
        return list(self._host.ending.values())

    def open(self, me: Executor, header: Header, request: Open) -> None:
        """Open a session; its first request follows the reply."""
        sid = header.sid
        if sid in self._host.opening or sid in self._host.ending:
            return  # a repetition, whose reply will come, or came before the session ended
        # At once: after a long request, the session may have ended.
        if again := self._host.repeat_opened(sid, header.seq):
            self.transports.link.send(again)
            return
        if refusal := self._host.refusal(request.address):
            if request.address not in self._refusing:  # learners that wait ask again and again
                self._refusing.add(request.address)
                self._log_refused(sid, request, refusal.text[:MAX_REASON])
            self.transports.link.send(PLAIN.encode(refusal, sid, header.seq))
            return
        self._refusing.discard(request.address)
        alone, executor = self.idle, self._crew.assign(me)
        if executor is None:
            self.transports.link.send(PLAIN.encode(failure_reports.no_thread(), sid, header.seq))
            return
        direct = self.transports.direct if request.direct else None
        if direct is not None:
            direct.expect(sid, request.learner)
        offer = None if direct is None else direct.offer
        self._host.opening[sid] = request.address
        job = partial(self._make, executor, header, request, offer)
        self._crew.execute(me, executor, job, alone=alone)

    def _make(
        self, executor: Executor, header: Header, request: Open, direct: dict[str, Any] | None
    ) -> Sequel:
        """Make the environment of a new session; the first job of its executor."""
        executor.current_request = (header.sid, header.seq, self._clock())
        slot: Slot | None = None
        try:
            slot, frame = self._host.make(
                header.sid, header.seq, request, direct, uses_spare=executor is self._crew.own
            )
        except BaseException as error:  # noqa: BLE001 - a bug must not end the thread
            self._count_failure(error)
            frame = open_failed(header, error)
        executor.current_request = None
        if header.head_len >= LARGE:
            LARGE_MESSAGES.note()
        return partial(self._opened, executor, header, request, slot, frame)

    def _opened(
        self,
        executor: Executor,
        header: Header,
        request: Open,
        slot: Slot | None,
        frame: Frame,
        me: Executor,
    ) -> None:
        sid = header.sid
        del self._host.opening[sid]
        if has_ended := sid in self._given_up:
            self._given_up.remove(sid)
            self._host.unfinished.remove(request.address)
        if slot is None:
            if self.transports.direct is not None:
                self.transports.direct.detach(sid)
            self._log_refused(sid, request, _error_text(frame))
            self._crew.release(executor)
        else:
            slot.executor, slot.opened_at = executor, self._clock()
            self._host.add(slot)
            self._log.info("session opened", **slot.facts, num_envs=request.num_envs or 1)
            if has_ended:
                loss = failure_reports.session_lost("it was given up while it was opened")
                self.end(me, slot, loss)
                return
        self.transports.link.send(frame)

    def _log_refused(self, sid: int, request: Open, why: str) -> None:
        facts = {"session": session_text(sid), "address": request.address}
        self._log.warning("session refused", **facts, **learner_facts(request), why=why)

    def closed(self, slot: Slot, path: bytes, seq: int, frame: Frame | None, me: Executor) -> None:
        """Reply to CLOSE, and end the session."""
        sid = slot.session.sid
        is_open = self._host.slots.get(sid) is slot
        if is_open and path:
            # First: the broker frees the slot when it receives CLOSED, and the learner may open its
            # next session as soon as it has the reply.
            self.transports.link.send(PLAIN.encode(Closed(), sid, seq))
        if frame:
            self.transports.send(path, frame)
        if is_open:
            self.end(me, slot)

    def end(self, me: Executor, slot: Slot, loss: Error | None = None) -> None:
        """End a session. `loss`: why it is lost; None: its learner has closed it."""
        self._close(me, slot, partial(self._ended, slot, loss), loss)

    def _close(self, me: Executor, slot: Slot, sequel: Sequel, loss: Error | None = None) -> None:
        """Forget a session, and let its executor close the environment after its current job."""
        session, executor = slot.session, slot.executor
        self._host.remove(slot)
        if self.transports.direct is not None:
            self.transports.direct.detach(session.sid, loss)
        alone = self.idle
        self._host.ending[session.sid] = slot
        self._host.unfinished.add(session.address)

        def close() -> Sequel:
            executor.current_request = (session.sid, CLOSING, self._clock())
            self._host.close(slot)
            executor.current_request = None
            return release

        def release(reader: Executor) -> None:
            del self._host.ending[session.sid]
            self._host.unfinished.remove(session.address)
            self._crew.release(executor)
            sequel(reader)
            LARGE_MESSAGES.note_end()

        self._crew.execute(me, executor, close, alone=alone)

    def _ended(self, slot: Slot, loss: Error | None, me: Executor) -> None:
        session = slot.session
        # It shows that this loop can open another session.
        self.transports.link.send(PLAIN.encode(Ping()))
        lasted_s = self._clock() - slot.opened_at
        facts = {**slot.facts, "why": loss.text} if loss else slot.facts
        self._log.info(
            "session lost" if loss else "session closed",
            **facts,
            steps=session.steps,
            steps_per_s=round(session.steps / lasted_s) if lasted_s > 0 else 0,
        )

    def abandon(self, me: Executor, sid: int, loss: Error) -> None:
        """End the session with this sid, if there is one, also while it opens."""
        slot = self._host.slots.get(sid)
        if slot is not None:
            self.end(me, slot, _own_loss(slot) or loss)  # the learner may have left because of it
        elif sid in self._host.opening:
            self._give_up(sid)

    def _give_up(self, sid: int) -> None:
        """Note that a session has ended while its environment is made."""
        if sid not in self._given_up:
            self._given_up.add(sid)
            self._host.unfinished.add(self._host.opening[sid])

    @property
    def may_lose_sessions(self) -> bool:
        """Whether `end_lost` must be called regularly."""
        return self._host.environments.may_be_lost and bool(self._host.slots)

    def end_lost(self, me: Executor) -> None:
        """End the sessions whose environment ran in a process that has ended."""
        if not self.may_lose_sessions:
            return
        for slot in list(self._host.slots.values()):
            if self._crew.reader is me and (loss := _own_loss(slot)):
                # The broker frees the slot, and tells a learner that has no request under way.
                self.transports.link.send(PLAIN.encode(loss, slot.session.sid))
                self.end(me, slot, loss)

    def end_idle(self, me: Executor, since: float, loss: Error) -> None:
        """End the sessions that have been idle since this time."""
        for slot in list(self._host.slots.values()):
            if self._crew.reader is me and max(slot.began_at, slot.heard_at) < since:
                self.end(me, slot, loss)

    def end_all(self, me: Executor) -> None:
        """Close all environments, those of other threads first, as long as `me` is the reader."""
        for sid in self._host.opening:
            self._give_up(sid)
        for slot in sorted(self._host.slots.values(), key=lambda slot: slot.executor is me):
            if self._crew.reader is me:
                self._close(me, slot, lambda _me: None)


def _own_loss(slot: Slot) -> Error | None:
    """Return why the environment of a session is gone, None if it is not."""
    why = slot.runner.lost
    return failure_reports.request_failed(EnvironmentGone(why), None) if why else None


def _error_text(frame: Frame) -> str:
    message = PLAIN.decode(frame)
    return message.text[:MAX_REASON] if isinstance(message, Error) else ""


def open_failed(header: Header, error: BaseException) -> Frame:
    """Return the reply to an OPEN that a bug has prevented."""
    failed = failure_reports.handling_failed(header.kind.name, error)
    return PLAIN.encode(replace(failed, code=Code.OPEN_FAILED), header.sid, header.seq)
