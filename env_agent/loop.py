"""The serving loop: one connection, one host of sessions, one thread; requests in, replies out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from gymwire.env_agent import failure_reports
from gymwire.env_agent.registration import Registration
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.timed_steps import TimedSteps
from gymwire.env_agent.transports import RELAY, Transports
from gymwire.protocol import codec
from gymwire.protocol.codec import (
    FLAGS_AT,
    MAX_MESSAGE,
    PLAIN,
    SEQ,
    SID,
    TIMED,
    Frame,
    Header,
    Pieces,
)
from gymwire.protocol.errors import AddressTaken, Denied, ProtocolError, Refused, VersionMismatch
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    Bye,
    Closed,
    Code,
    Error,
    Gone,
    Kind,
    Offer,
    Open,
    Ping,
    Welcome,
)
from gymwire.protocol.transport.interface import Listener, Origin, Received

TIMERS_S = 0.1  # how often timers run even if frames keep arriving
AWAY_S = 300.0  # close idle sessions when the broker has been away for this long
MAX_REASON = 200  # characters of what the broker says, in a log entry
WARN_EVERY_S = 10.0  # how often invalid frames are logged; each entry says how many there were
# What the broker refuses ends a loop; nothing else that the handling of a frame raises does.
REFUSED_BY_BROKER = (AddressTaken, Denied, Refused)

CurrentRequest = tuple[int, int, float]
"""The request that a loop is executing: sid, seq, and since when (monotonic seconds)."""


class ServingLoop:
    """Serves the sessions of its offers over one connection. Use it in one thread.

    Args:
        make_transports: dials the broker, and listens for direct connections.
        host: the sessions and their environments.
        agent: the random bytes that identify this process.
        logs_broker_state: whether this loop logs when the broker is lost and found again. One
            loop of an agent does, since all loops see the same.
        clock: returns the time in seconds.
        clock_ns: returns the time in nanoseconds.

    Attributes:
        current_request: the request being executed, or None. May be read from any thread.
        stop: ends `run` after the current request. May be set from any thread.
        failed_requests: how many frames could not be handled because of a bug.
        invalid_frames: how many frames could not be decoded.
        drain: withdraws the offers, and ends `run` after the last session. May be set from any
            thread.
    """

    def __init__(
        self,
        make_transports: Callable[[], Transports],
        host: SessionHost,
        agent: bytes,
        *,
        logs_broker_state: bool = True,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.host = host
        self.current_request: CurrentRequest | None = None
        self.failed_requests = 0
        self.invalid_frames = 0
        self.stop = threading.Event()
        self.drain = threading.Event()
        self._make_transports = make_transports
        self._agent = agent
        self._logs_broker_state = logs_broker_state
        self._log = structlog.get_logger()
        self._clock = clock
        self._next_warning = 0.0
        self._timed_steps = TimedSteps(host.requests, clock_ns)
        # The slot whose last reply was sent from, and still is in, its environment's memory.
        self._zero_copy_slot: Slot | None = None

    @property
    def sessions(self) -> list[list[Any]]:
        """The live sessions as HELLO lists them. May be read from other threads."""
        return [
            [slot.session.sid, slot.session.nonce, slot.session.address, slot.session.learner]
            for slot in list(self.host.slots.values())
        ]

    @property
    def idle(self) -> bool:
        """Whether no session is open."""
        return not self.host.slots

    def connect(self, offers: Sequence[Offer], wait_s: float) -> bool:
        """Introduce this loop to the broker, and register its offers.

        Returns False if `stop` or `drain` was set meanwhile. Raises BrokerUnreachable after
        `wait_s` seconds, Denied, VersionMismatch or AddressTaken.
        """
        self._transports = self._make_transports()
        link = self._link = self._transports.link
        registration = self._registration = Registration(
            link, self._agent, offers, lambda: self.sessions, self._log_broker_state
        )
        connected = False
        try:
            connected = registration.connect(
                self._clock,
                wait_s,
                pump=self._pump,
                stopped=lambda: self.stop.is_set() or self.drain.is_set(),
            )
        finally:
            if not connected:
                self._transports.close()
        return connected

    def _pump(self) -> None:
        data = self._link.receive()
        if data is None:
            return
        try:
            self._control(codec.read_header(data), data)
        except (*REFUSED_BY_BROKER, VersionMismatch):
            raise
        except BaseException as error:  # noqa: BLE001 - a bug must not end the loop
            self._request_failed(RELAY, None, data, error)

    def run(self) -> None:
        """Serve until `stop` is set, or until `drain` is set and the last session has ended."""
        try:
            while not self.stop.is_set():
                self.turn()
                if self._registration.withdrawn and self.idle:
                    break
        finally:
            self.host.close_all()
            self._link.send(PLAIN.encode(Bye("the env agent stops")))
            self._transports.close()

    def turn(self) -> None:
        """Serve the frames that arrive within a tick, then run the timers."""
        self._serve()
        self._transports.watch()
        now = self._clock()
        self._registration.run_timers(now)
        self._close_abandoned(now)
        self._end_lost()
        if self.drain.is_set() and not self._registration.withdrawn:
            self._registration.withdraw()

    # --- one frame --------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Serve frames until none arrives for a tick, or until timers are due.

        This is the hot path. An untimed step calls only the transports, the request handler and the
        session.
        """
        transports, by_key, slots = self._transports, self.host.by_key, self.host.slots
        link, direct, clock = transports.link, transports.direct, self._clock
        bound_listener = None if direct is None else direct.bound_listener
        requests, timed_steps = self.host.requests, self._timed_steps
        until = clock() + TIMERS_S
        receive = self._receive_tracked if timed_steps.tracker.is_active else transports.receive
        now = 0.0
        while now < until:
            arrived = receive(len(slots))
            if arrived is None:
                self._detach_reply()
                return
            now = clock()
            path, origin, data = arrived
            listener: Listener | None = None
            try:
                slot = by_key.get(bytes(data[SID]))
                if self._zero_copy_slot is not None and self._zero_copy_slot is not slot:
                    self._detach_reply()
                if path and slot is not None and bound_listener is not None:
                    listener = bound_listener(slot.session.sid, path, origin)
                if slot is None or (path and listener is None):
                    self._handle(path, origin, data)
                    continue
                seq = int.from_bytes(data[SEQ], "little")
                slot.heard_at = now
                self.current_request = (slot.session.sid, seq, now)
                reply: Frame | Pieces | None
                if data[FLAGS_AT] & TIMED:
                    reply = timed_steps.step(slot, seq, data)
                    receive = self._receive_tracked
                else:
                    reply = requests.step(slot, seq, data)
                self.current_request = None
                if reply is None:
                    self._handle(path, origin, data)
                elif type(reply) is Pieces:
                    self._send_pieces(slot, path, listener, reply)
                elif listener is None:
                    link.send(reply)
                else:
                    listener.send(path, reply)  # type: ignore[arg-type]
            except REFUSED_BY_BROKER:
                raise
            except BaseException as error:  # noqa: BLE001 - a bug must not end the loop
                self._request_failed(path, origin, data, error)

    def _request_failed(
        self, path: bytes, origin: Origin | None, data: bytes | memoryview, error: BaseException
    ) -> None:
        """Log a bug in the handling of one frame, count it, and reply with an ERROR.

        This is the one place that keeps such a bug from ending the loop: docs/reliability.md.
        """
        self.current_request = None
        self.failed_requests += 1
        try:
            self._log.error(
                "request failed, a bug in gymwire",
                error=failure_reports.summary(error)[:200],
                traceback=failure_reports.trace_of(error),
                failed_requests=self.failed_requests,
            )
            header = codec.read_header(data)
            if not header.sid or header.kind is Kind.ERROR:
                return
            slot = self.host.slots.get(header.sid)
            reply: Frame | Pieces | None = None
            if slot is None or header.kind is Kind.OPEN:
                failed = failure_reports.handling_failed(header.kind.name, error)
                if header.kind is Kind.OPEN:
                    failed = replace(failed, code=Code.OPEN_FAILED)
                if header.kind is Kind.OPEN or header.kind < CONTROL_KINDS:
                    reply = PLAIN.encode(failed, header.sid, header.seq)
            elif header.kind < CONTROL_KINDS and self._may_request(slot, path, origin):
                reply = self.host.requests.fail(slot, header, data, error)
            if reply is not None:
                self._transports.send(path, bytes(reply))
        except BaseException as second:  # noqa: BLE001 - the learner repeats its request
            self._log.error("no reply to a failed request", error=failure_reports.summary(second))

    def _may_request(self, slot: Slot, path: bytes, origin: Origin | None) -> bool:
        """Return whether a frame on this path is a request of the session's learner."""
        direct = self._transports.direct
        if not path or direct is None:
            return not path
        return direct.bound_listener(slot.session.sid, path, origin) is not None

    def _handle(self, path: bytes, origin: Origin | None, data: bytes | memoryview) -> None:
        """Handle a frame that the fast path does not: everything but the next step."""
        try:
            header = codec.read_header(data)
            slot = self.host.slots.get(header.sid)
            if path:
                session = None if slot is None else slot.session
                direct = self._transports.direct
                if direct is None or not direct.admit(session, path, origin, header, data):
                    return
            if slot is None or header.kind >= CONTROL_KINDS or header.kind is Kind.ERROR:
                self._control(header, data)
                return
        except ProtocolError as error:
            self._refuse_frame(path, data, error)
            return
        self.current_request = (header.sid, header.seq, self._clock())
        reply = self.host.requests.handle(slot, header, data)
        self.current_request = None
        if isinstance(reply, Pieces):
            self._send_pieces(slot, path, self._transports.listener_of(path), reply)
        elif reply is not None:
            self._transports.send(path, reply)
        if header.kind is Kind.CLOSE:
            if path:  # the broker frees the slot when it receives CLOSED
                self._link.send(PLAIN.encode(Closed(), header.sid, header.seq))
            self._end_session(slot, "closed")

    def _receive_tracked(self, sessions: int) -> Received | None:
        waited = not self._transports.poll()
        arrived = self._transports.receive(sessions)
        if arrived is not None:
            self._timed_steps.tracker.frame_read(waited)
        return arrived

    def _send_pieces(
        self, slot: Slot, path: bytes, listener: Listener | None, reply: Pieces
    ) -> None:
        """Send a reply from the environment's memory if the path's transport supports that.

        `listener`: of a direct path; None: the path through the broker.

        A request for step n+1 proves that reply n arrived, so the reply need not be kept when the
        environment overwrites that memory in its next step.
        """
        frame: Frame | Pieces = reply
        if (self._link if listener is None else listener).takes_pieces:
            self._zero_copy_slot = slot
        else:
            frame = slot.session.detach_reply()
        if listener is None:
            self._link.send(frame)
        else:
            listener.send(path, frame)  # type: ignore[arg-type]

    def _detach_reply(self) -> None:
        """Copy the last reply before anything but the next step of its session happens."""
        if self._zero_copy_slot is not None:
            self._zero_copy_slot.session.detach_reply()
            self._zero_copy_slot = None

    def _control(self, header: Header, data: bytes | memoryview) -> None:
        """Handle a frame that is not a request of an open session."""
        kind = header.kind
        if kind is Kind.ERROR and header.sid:  # it does not concern this loop
            return
        if kind < CONTROL_KINDS and kind is not Kind.ERROR:
            reply = Closed() if kind is Kind.CLOSE else failure_reports.session_lost()
            self._link.send(PLAIN.encode(reply, header.sid, header.seq))
            return
        message = PLAIN.decode(data, header)
        match message:
            case Open():
                self._open(header, message)
            case Gone():
                slot = self.host.slots.get(header.sid)
                if slot is not None:
                    self._end_session(slot, message.reason[:MAX_REASON])
            case _:
                if isinstance(message, Welcome):
                    self.host.requests.max_message = min(MAX_MESSAGE, message.max_message)
                self._registration.handle(message, self._clock())

    def _refuse_frame(self, path: bytes, data: bytes | memoryview, error: ProtocolError) -> None:
        """Count a frame that cannot be decoded, and reply, so that its sender does not wait.

        Anyone who reaches a direct port without keys can send such frames, so few are logged.
        """
        self.invalid_frames += 1
        now = self._clock()
        if now >= self._next_warning:
            self._next_warning = now + WARN_EVERY_S
            self._log.warning("invalid frame", error=str(error), invalid_frames=self.invalid_frames)
        try:
            header = codec.read_header(data)
        except ProtocolError:
            return  # the frame does not say which request to reply to
        if header.sid:
            refusal = Error(Code.PROTOCOL, str(error))
            self._transports.send(path, PLAIN.encode(refusal, header.sid, header.seq))

    # --- sessions ---------------------------------------------------------------------------------

    def _open(self, header: Header, request: Open) -> None:
        sid = header.sid
        known = sid in self.host.slots
        began = self._clock()
        self.current_request = (sid, header.seq, began)
        direct = self._transports.direct if request.direct else None
        if direct is not None:
            direct.expect(sid, request.learner)
        offer = None if direct is None else direct.offer
        frame = self.host.open(sid, header.seq, request, offer)
        self.current_request = None
        slot = self.host.slots.get(sid)
        if slot is None:
            if self._transports.direct is not None:
                self._transports.direct.detach(sid)
            self._log.warning("session refused", address=request.address, why=_error_text(frame))
        elif not known:
            slot.opened_at = self._clock()
            self._log.info(
                "session opened", address=request.address, num_envs=request.num_envs or 1
            )
        self._link.send(frame)

    def _end_session(self, slot: Slot, why: str) -> None:
        session = slot.session
        self.host.close(session.sid)
        if self._transports.direct is not None:
            self._transports.direct.detach(session.sid)
        self._link.send(PLAIN.encode(Ping()))  # shows that this loop can open another session
        lasted_s = self._clock() - slot.opened_at
        self._log.info(
            "session ended",
            address=session.address,
            why=why,
            steps=session.steps,
            steps_per_s=round(session.steps / lasted_s) if lasted_s > 0 else 0,
        )

    def _end_lost(self) -> None:
        """End the sessions whose environment ran in a process that has ended."""
        if not self.host.environments.may_be_lost:
            return
        for slot in list(self.host.slots.values()):
            if why := slot.runner.lost:
                # The broker frees the slot, and tells a learner that has no request under way.
                lost = failure_reports.session_lost(f"The environment is lost: {why}.")
                self._link.send(PLAIN.encode(lost, slot.session.sid))
                self._end_session(slot, why)

    def _close_abandoned(self, now: float) -> None:
        """Close the sessions that are idle while the broker is away."""
        away_since = self._registration.away_since
        if away_since is not None and now - away_since > AWAY_S:
            for slot in list(self.host.slots.values()):
                if now - slot.heard_at > AWAY_S:
                    self._end_session(slot, f"the broker has been away for {AWAY_S:g} s")

    def _log_broker_state(self, event: str) -> None:
        """Log an event that concerns the broker, unless this agent is stopping anyway."""
        if self._logs_broker_state and not self.drain.is_set() and not self.stop.is_set():
            self._log.info(event, broker=self._link.url)


def _error_text(frame: Frame) -> str:
    message = PLAIN.decode(frame)
    return message.text[:MAX_REASON] if isinstance(message, Error) else ""
