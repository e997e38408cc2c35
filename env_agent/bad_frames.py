"""Frames that cannot be handled: invalid ones, and those whose handling fails because of a bug."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gymwire.env_agent import failure_reports
from gymwire.env_agent.crew import Crew, Executor
from gymwire.env_agent.jobs import Jobs
from gymwire.env_agent.lifecycle import open_failed
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.transports import Transports
from gymwire.protocol import codec, logs
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import AddressTaken, Denied, ProtocolError, Refused
from gymwire.protocol.messages import CONTROL_KINDS, Code, Error, Kind
from gymwire.protocol.outside_exceptions import has_foreign_frame
from gymwire.protocol.transport.interface import Origin, Received

# What the broker refuses ends a loop; nothing else that the handling of a frame raises does.
REFUSED_BY_BROKER = (AddressTaken, Denied, Refused)
WARN_EVERY_S = 10.0  # how often invalid frames are logged; each entry says how many there were


class BadFrames:
    """Replies to the frames of one serving loop that cannot be handled. Used by its reader.

    Args:
        host: the sessions.
        crew: the threads of the loop.
        jobs: what executors do.
        clock: returns the time in seconds.

    Attributes:
        invalid: how many frames could not be decoded.
        transports: what the loop sends with, once it is connected.
    """

    transports: Transports

    def __init__(
        self, host: SessionHost, crew: Crew, jobs: Jobs, clock: Callable[[], float]
    ) -> None:
        self.invalid = 0
        self._host = host
        self._crew = crew
        self._jobs = jobs
        self._clock = clock
        self._log = logs.logger()
        self._next_warning = 0.0
        self._strays = 0
        self._next_stray = 0.0

    def refuse(self, path: bytes, data: bytes | memoryview, error: ProtocolError) -> None:
        """Count a frame that cannot be decoded, and reply, so that its sender does not wait.

        Anyone who reaches a direct port without keys can send such frames, so few are logged.
        """
        self.invalid += 1
        now = self._clock()
        if now >= self._next_warning:
            self._next_warning = now + WARN_EVERY_S
            self._log.warning("invalid frame", error=str(error), invalid_frames=self.invalid)
        try:
            header = codec.read_header(data)
        except ProtocolError:
            return  # the frame does not say which request to reply to
        if header.sid:
            refusal = Error(Code.PROTOCOL, str(error))
            self.transports.send(path, PLAIN.encode(refusal, header.sid, header.seq))

    def is_stray(self, me: Executor, error: BaseException) -> bool:
        """Return whether an environment has raised between two requests; if so, log it.

        Python runs the signal handlers of an environment in the main thread, at any instruction. A
        timer may raise many such exceptions, so few are logged. `me`: the executor that it hit.
        """
        if not has_foreign_frame(error) and type(error) is not KeyboardInterrupt:
            return False
        me.lent.pop(0, None)  # so that nobody relieves a reader that executes nothing
        self._strays += 1
        now = self._clock()
        if now >= self._next_stray:
            self._next_stray = now + WARN_EVERY_S
            self._log.warning(
                "exception between requests ignored",
                error=failure_reports.summary(error)[:200],
                why="a signal handler of an environment raised it outside of the environment",
                ignored=self._strays,
            )
        return True

    def failed(self, me: Executor, arrived: Received, error: BaseException) -> None:
        """Log a bug in the handling of one frame, count it, and reply with an ERROR.

        This, and `Jobs.failure_reply`, keep such a bug from ending the loop: docs/reliability.md.
        Raises the error itself if it says that the broker refuses this loop.
        """
        if isinstance(error, REFUSED_BY_BROKER):
            raise error
        path, origin, data = arrived
        try:
            self._jobs.count_failure(error)
            header = codec.read_header(data)
            if not header.sid or header.kind is Kind.ERROR:
                return
            slot = self._host.slots.get(header.sid)
            if header.kind is Kind.OPEN:
                self.transports.link.send(open_failed(header, error))
            elif header.kind >= CONTROL_KINDS:
                return
            elif slot is None:
                failed = failure_reports.handling_failed(header.kind.name, error)
                self.transports.send(path, PLAIN.encode(failed, header.sid, header.seq))
            elif self._may_request(slot, path, origin):
                fail = partial(self._host.requests.fail, slot, header, data, error)
                job = partial(self._jobs.fail, path, fail)
                self._crew.execute(me, slot.executor, job, alone=False)
        except BaseException as second:  # noqa: BLE001 - the learner repeats its request
            self._log.error("no reply to a failed request", error=failure_reports.summary(second))

    def _may_request(self, slot: Slot, path: bytes, origin: Origin | None) -> bool:
        """Return whether a frame on this path is a request of the session's learner."""
        direct = self.transports.direct
        if not path or direct is None:
            return not path
        return direct.bound_listener(slot.session.sid, path, origin) is not None
