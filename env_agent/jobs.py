"""The jobs that execute requests: what executors do, and how the reader sends the replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from gymwire.env_agent import failure_reports
from gymwire.env_agent.crew import Executor, Reply, Sequel
from gymwire.env_agent.memory import LARGE, LARGE_MESSAGES
from gymwire.env_agent.requests import RequestHandler
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.timed_steps import BusyTimes, TimedSteps
from gymwire.protocol import codec, logs
from gymwire.protocol.codec import KIND_AT, SEQ, Frame, Pieces
from gymwire.protocol.messages import Kind
from gymwire.protocol.outside_exceptions import is_from_signal_handler

_ACT = Kind.ACT  # before Python 3.12, looking an enum member up takes 0.1 µs and more


class Jobs:
    """Executes the requests of one serving loop, each in the thread of its executor.

    Args:
        requests: executes them.
        timed_steps: executes steps with time stamps.
        send: sends replies, each with its path; called by the reader.
        closed: ends the session of a CLOSE that was executed; called by the reader.
        clock: returns the time in seconds.

    Attributes:
        failed_requests: how many frames could not be handled because of a bug.
    """

    def __init__(
        self,
        requests: RequestHandler,
        timed_steps: TimedSteps,
        send: Callable[[Sequence[tuple[bytes, Frame]]], None],
        closed: Callable[[Slot, bytes, int, Frame | None, Executor], None],
        clock: Callable[[], float],
    ) -> None:
        self.failed_requests = 0
        self._requests = requests
        self._timed_steps = timed_steps
        self._send = send
        self._closed = closed
        self._clock = clock
        self._log = logs.logger()

    def execute(
        self, slot: Slot, path: bytes, data: bytes | memoryview, busy: BusyTimes | None
    ) -> Sequel | None:
        """Execute a request; a job of the slot's executor."""
        slot.began_at = began = self._clock()
        requests, is_act = self._requests, data[KIND_AT] == _ACT
        reply: Frame | Pieces | None = None
        try:
            if busy is not None:
                reply = self._timed_steps.step(slot, data, busy)
            elif is_act:
                reply = requests.step(slot, data)
            if reply is None:
                reply = requests.handle(slot, codec.read_header(data), data)
        except BaseException as error:  # noqa: BLE001 - a bug must not end the thread
            reply = self.failure_reply(slot, data, error)
        if len(data) >= LARGE:
            LARGE_MESSAGES.note()
        if is_act:
            took_s = self._clock() - began
            slot.times.append(took_s)
            slot.note_step(took_s)
            if type(reply) is bytes:  # the usual case
                return Reply(path, reply, self._send) if reply else None
        return self.reply(slot, path, data, reply)

    def reply(
        self, slot: Slot, path: bytes, data: bytes | memoryview, reply: Frame | Pieces | None
    ) -> Sequel | None:
        """Return the sequel that sends the reply to a request. Called by the slot's executor."""
        frame = slot.session.detach_reply() if isinstance(reply, Pieces) else reply
        if data[KIND_AT] == Kind.CLOSE:
            return partial(self._closed, slot, path, int.from_bytes(data[SEQ], "little"), frame)
        return Reply(path, frame, self._send) if frame else None

    def failure_reply(
        self, slot: Slot, data: bytes | memoryview, error: BaseException
    ) -> Frame | Pieces:
        """Return the reply to a request whose handling raised because of a bug; b"": no reply."""
        try:
            self.count_failure(error, slot)
            header = codec.read_header(data)
            return self._requests.fail(slot, header, data, error) or b""
        except BaseException as second:  # noqa: BLE001 - the learner repeats its request
            slot.session.abort()
            self._log.error("no reply to a failed request", error=failure_reports.summary(second))
            return b""

    def count_failure(self, error: BaseException, slot: Slot | None = None) -> None:
        """Log a bug in the handling of a request, which may be one of a session.

        An exception of an environment's signal handler is not a bug of ours, and the log says so.
        """
        facts = {} if slot is None else slot.facts
        text = failure_reports.summary(error)[:200]
        if is_from_signal_handler(error):
            why = "a signal handler of an environment raised it outside of the environment"
            self._log.warning(
                "request failed, a signal handler raised", **facts, error=text, why=why
            )
            return
        self.failed_requests += 1
        self._log.error(
            "request failed, a bug in gymwire",
            **facts,
            error=text,
            traceback=failure_reports.trace_of(error),
            failed_requests=self.failed_requests,
        )

    def fail(self, path: bytes, fail: Callable[[], Frame | Pieces | None]) -> Sequel | None:
        """Return the sequel that sends the reply to a failed request; a job of an executor."""
        try:
            frame = fail()
            return None if frame is None else Reply(path, bytes(frame), self._send)
        except BaseException as error:  # noqa: BLE001 - the learner repeats its request
            self._log.error("no reply to a failed request", error=failure_reports.summary(error))
            return None
