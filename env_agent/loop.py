"""The serving loop: one connection, one host of sessions; requests in, replies out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from gymwire.env_agent import failure_reports
from gymwire.env_agent.bad_frames import BadFrames
from gymwire.env_agent.crew import MAX_JOBS, Crew, CurrentRequest, Executor, Order, Sequel
from gymwire.env_agent.jobs import Jobs
from gymwire.env_agent.lifecycle import MAX_REASON, Lifecycle
from gymwire.env_agent.registration import Registration
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.shared_reading import SharedReading
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.timed_steps import TimedSteps
from gymwire.env_agent.transports import RELAY, Transports
from gymwire.env_agent.watching import Watching
from gymwire.protocol import codec, logs
from gymwire.protocol.codec import (
    FLAGS_AT,
    MAX_MESSAGE,
    PLAIN,
    SID,
    TIMED,
    Frame,
    Header,
    Pieces,
)
from gymwire.protocol.errors import ProtocolError, VersionMismatch
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    Bye,
    Closed,
    Gone,
    Kind,
    Offer,
    Open,
    Watch,
    Welcome,
)
from gymwire.protocol.transport.interface import Listener, Received

TIMERS_S = 0.1  # how often timers run even if frames keep arriving
AWAY_S = 300.0  # close idle sessions when the broker has been away for this long


class ServingLoop:
    """Serves the sessions of its offers over one connection.

    Its own thread calls `connect` and `run`. The other threads are those of its crew.

    Args:
        make_transports: dials the broker, and listens for direct connections.
        host: the sessions and their environments.
        agent: the random bytes that identify this process.
        logs_broker_state: whether this loop logs when the broker is lost and found again. One
            loop of an agent does, since all loops see the same.
        has_threads: whether each session beyond the first gets a thread of its own.
        clock: returns the time in seconds.
        clock_ns: returns the time in nanoseconds.

    Attributes:
        crew: the threads that read and execute.
        stop: ends `run` after the current requests. May be set from any thread.
        jobs: what executors do; `failed_requests` counts bugs.
        bad_frames: replies to frames that cannot be handled, and counts them.
        drain: withdraws the offers, and ends `run` after the last session. May be set from any
            thread.
        why: why it ends although it has sessions, for their learners; "": it was told to end.
    """

    def __init__(
        self,
        make_transports: Callable[[], Transports],
        host: SessionHost,
        agent: bytes,
        *,
        logs_broker_state: bool = True,
        has_threads: bool = True,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.host = host
        self.crew = Crew(self._read, self._failed, grows=has_threads)
        self.stop, self.drain = Order(self.crew), Order(self.crew)
        self.why = ""
        self._make_transports = make_transports
        self._agent = agent
        self._logs_broker_state = logs_broker_state
        self._log = logs.logger()
        self._clock = clock
        self._timed_steps = TimedSteps(host.requests, clock_ns)
        self.jobs = Jobs(
            host.requests,
            self._timed_steps,
            lambda replies: self._transports.send_all(replies),
            lambda *arguments: self._lifecycle.closed(*arguments),
            clock,
        )
        self._watching = Watching(host, self.crew, lambda frame: self._link.send(frame), clock)
        self._lifecycle = Lifecycle(host, self.crew, self.jobs.count_failure, clock)
        self.bad_frames = BadFrames(host, self.crew, self.jobs, clock)
        self._shared = SharedReading(
            host,
            self.crew,
            self.jobs,
            self.bad_frames,
            self._timed_steps.tracker,
            self._note_turn,
            clock,
        )
        self._failure: BaseException | None = None
        self._is_quiet = False  # whether nothing has arrived for a tick
        self._turn = 0  # changes when another session than the last one sends a request

    @property
    def current_requests(self) -> list[CurrentRequest]:
        """The requests being executed. May be read from any thread."""
        slots = list(self.host.slots.values()) + self._lifecycle.ending
        found = [executor.current_request for executor in list(self.crew.executors)]
        found += [slot.current_request for slot in slots]
        return [request for request in found if request is not None]

    def is_direct(self, sid: int) -> bool:
        """Return whether the learner of a live session is connected directly. For any thread."""
        direct = self._transports.direct
        return direct is not None and sid in direct.attached

    @property
    def idle(self) -> bool:
        """Whether no session is open, opening or closing."""
        return self._lifecycle.idle

    def connect(self, offers: Sequence[Offer], wait_s: float) -> bool:
        """Introduce this loop to the broker, and register its offers.

        Returns False if `stop` or `drain` was set meanwhile. Raises BrokerUnreachable after
        `wait_s` seconds, Denied, VersionMismatch or AddressTaken.
        """
        self._transports = self._make_transports()
        self._lifecycle.transports = self.bad_frames.transports = self._transports
        self._shared.transports = self._transports
        self._receive_tracked = partial(self._timed_steps.receive, self._transports)
        link = self._link = self._transports.link
        registration = self._registration = Registration(
            link, self._agent, offers, lambda: self.host.listed, self._log_broker_state
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
                self._leave()
        return connected

    def _leave(self) -> None:
        """Send BYE, also if the broker has not confirmed the offers yet, and close."""
        self._link.send(PLAIN.encode(Bye(self.why)))
        self._transports.close()
        if self.crew.wakeup is not None:
            self.crew.wakeup.close()

    def _pump(self) -> None:
        data = self._link.receive()
        if data is None:
            return
        try:
            self._control(self.crew.own, codec.read_header(data), data)
        except VersionMismatch:
            raise
        except BaseException as error:  # noqa: BLE001 - a bug must not end the loop
            self.bad_frames.failed(self.crew.own, (RELAY, None, data), error)

    def run(self) -> None:
        """Serve until `stop` is set, or until `drain` is set and the last session has ended."""
        try:
            self.crew.run(self.crew.own)
            if self._failure is not None:
                raise self._failure
        finally:
            self.host.environments.close_spares()
            self._leave()

    def _read(self, me: Executor) -> None:
        """Serve for a while, or end. Called in the thread that is the reader."""
        if self.stop.is_set() or (self._registration.withdrawn and self.idle):
            self._end(me)
        else:
            quiet = self._is_quiet and not self._lifecycle.may_lose_sessions
            due_s, orders = self._registration.due_at - self._clock(), (self.stop, self.drain)
            rested = quiet and self.crew.wait_for(self._transports.signals, due_s, orders)
            self.turn(me, rested=rested)

    def _failed(self, me: Executor, error: BaseException) -> None:
        """End because of an exception, which `run` raises in the loop's own thread."""
        if not self.bad_frames.is_stray(me, error):
            self._failure = error
            self.stop.set()

    def _end(self, me: Executor) -> None:
        """Close all sessions, each after its current request, and then end all threads."""
        crew = self.crew
        self._lifecycle.end_all(me)
        crew.collect(me)
        if crew.reader is not me:
            return
        if crew.outside:
            crew.wait(TIMERS_S)
        elif me is crew.own:
            crew.end()
        else:
            crew.hand_over(me, crew.own)

    def turn(self, me: Executor | None = None, *, rested: bool = False) -> None:
        """Serve the frames that arrive within a tick, then run the timers.

        Args:
            me: the reader; by default the loop's own thread.
            rested: whether it has just waited for frames.
        """
        me = me or self.crew.own
        self._is_quiet = rested or self._serve(me)
        if self.crew.reader is not me:
            return
        self._transports.watch(now := self._clock())
        self._registration.run_timers(now)
        away_since = self._registration.away_since
        if away_since is not None and now - away_since > AWAY_S:
            away = failure_reports.session_lost(f"the broker has been away for {AWAY_S:g} s")
            self._lifecycle.end_idle(me, now - AWAY_S, away)
        self._lifecycle.end_lost(me)
        if self.drain.is_set() and not self._registration.withdrawn:
            self._registration.withdraw()

    # --- one frame --------------------------------------------------------------------------------

    def _serve(self, me: Executor) -> bool:
        """Serve frames until none arrives for a tick, until timers are due, or as another reads.

        Returns whether none has arrived for a tick.
        """
        crew, slots = self.crew, self.host.slots
        now = self._clock()
        until = now + TIMERS_S
        self._transports.watch_after_pause(now)
        tracked = self._timed_steps.tracker.is_active
        self._receive = self._receive_tracked if tracked else self._transports.receive
        arrived, me.handed = me.handed, None
        receive_shared = self._shared.receive
        while now < until and crew.reader is me:
            if arrived is None:
                arrived = receive_shared(me, until) if crew.outside else self._receive(len(slots))
            if arrived is None:
                if crew.reader is me:
                    self._transports.detach_reply()
                return crew.reader is me
            # While other threads execute something, their results must be sent after each frame.
            self._serve_steps(me, arrived, 0.0 if crew.outside else until)
            arrived, now = None, self._clock()
        return False

    def _serve_steps(self, me: Executor, arrived: Received | None, until: float) -> None:
        """Serve a frame, and those that follow it while each is a step to execute at once.

        This is the hot path: a step calls only the transports, the request handler and the
        session. It is executed at once, by the reader `me`, if its session is the only one, or has
        short steps. Any other frame ends this method.

        Args:
            me: the reader.
            arrived: the frame.
            until: when to stop receiving, in monotonic seconds.
        """
        host, transports, receive, clock = self.host, self._transports, self._receive, self._clock
        find, step, sessions, lent = host.by_key.get, host.requests.step, len(host.slots), me.lent
        direct, send_relayed, alone = transports.direct, self._link.send, sessions == 1
        while arrived is not None:
            path, origin, data = arrived
            try:
                slot = find(bytes(data[SID]))
                listener = (
                    direct.bound_listener(slot.session.sid, path, origin)
                    if path and slot is not None and direct is not None
                    else None
                )
                if (
                    slot is None
                    or slot.executor is not me
                    or not (alone or slot.is_fast)
                    or (path and listener is None)
                ):
                    self._dispatch(me, slot, listener, arrived)
                    return
                if transports.zero_copy is not None and transports.zero_copy is not slot.session:
                    transports.detach_reply()
                slot.began_at = began = clock()
                lent[0] = arrived
                try:
                    reply = step(slot, data)
                except BaseException as error:  # noqa: BLE001 - a bug must not end the loop
                    failure = self.jobs.failure_reply(slot, data, error)
                    self.crew.finish(me, self.jobs.reply(slot, path, data, failure))
                    return
                try:
                    del lent[0]
                except KeyError:  # it took long, so another thread reads now
                    self._finish_relieved(me, slot, arrived, reply)
                    return
                if reply is None:
                    self._handle(me, arrived)
                    return
                if type(reply) is Pieces:
                    transports.send_pieces(slot.session, path, listener, reply)
                elif listener is None:
                    send_relayed(reply)
                else:
                    listener.send(path, reply)  # type: ignore[arg-type]
                took_s = clock() - began  # after the reply, which it must not delay
                slot.times.append(took_s)
                if not alone:
                    self._note_turn(slot)
                    slot.note_step(took_s)
            except BaseException as error:  # noqa: BLE001 - a bug must not end the loop
                self.bad_frames.failed(me, arrived, error)
                return
            if began + took_s >= until:  # after a long step, `watch` comes first
                return
            arrived = receive(sessions)
        transports.detach_reply()

    def _dispatch(
        self, me: Executor, slot: Slot | None, listener: Listener | None, arrived: Received
    ) -> None:
        """Let another thread than the reader `me` serve this frame if it can, else handle it.

        A thread whose steps are short becomes the reader together with its frame, which costs one
        change of threads. Otherwise the reader must remain one that can read.
        """
        if slot is not None:
            self._note_turn(slot)
        if (
            slot is not None
            and (slot.is_fast or len(self.host.slots) == 1)
            and (listener is not None or not arrived[0])
            and self.crew.is_idle(slot.executor)
        ):
            self._transports.detach_reply()
            self.crew.hand_over(me, slot.executor, arrived)
        else:
            self._handle(me, arrived)

    def _note_turn(self, slot: Slot) -> None:
        """Note that a session has sent a request, perhaps another session than the last one."""
        if slot.turn != self._turn:
            self._turn += 1
            slot.turn, slot.steps_alone = self._turn, 0

    def _finish_relieved(
        self, me: Executor, slot: Slot, arrived: Received, reply: Frame | Pieces | None
    ) -> None:
        """Leave the reply to a step to the thread that has become the reader meanwhile."""
        if reply is None:
            sequel: Sequel | None = partial(self._handle, arrived=arrived)
        else:
            path, _, data = arrived
            slot.times.append(self._clock() - slot.began_at)
            sequel = self.jobs.reply(slot, path, data, reply)
        self.crew.end_job(me, sequel)

    def _handle(self, me: Executor, arrived: Received) -> None:
        """Handle a frame that the fast path does not: everything but the next step."""
        path, origin, data = arrived
        try:
            header = codec.read_header(data)
            slot = self.host.slots.get(header.sid)
            if path:
                session = None if slot is None else slot.session
                direct = self._transports.direct
                if direct is None or not direct.admit(session, path, origin, header, data):
                    return
            if slot is None or header.kind >= CONTROL_KINDS or header.kind is Kind.ERROR:
                self._control(me, header, data)
                return
            if header.kind is Kind.CLOSE and slot.session.has_abandoned(header.seq):
                slot.codec.decode(data, header)  # a signed session's has a tag
                closed = slot.codec.encode(Closed(), header.sid, header.seq)
                self._lifecycle.closed(slot, path, header.seq, closed, me)
                return
        except ProtocolError as error:
            self.bad_frames.refuse(path, data, error)
            return
        executor = slot.executor
        if executor.jobs >= MAX_JOBS:
            return  # the learner repeats it
        self._transports.detach_reply()
        slot.heard_at = self._clock()
        alone, busy = len(self.host.slots) == 1, None
        if data[FLAGS_AT] & TIMED:
            self._receive = self._receive_tracked
            busy = self._timed_steps.tracker.stamps_requested()
            alone = alone or slot.is_fast  # as without time stamps
        job = partial(self.jobs.execute, slot, path, data, busy)
        self.crew.execute(me, executor, job, alone=alone)

    # --- what only the reader does ----------------------------------------------------------------

    def _control(self, me: Executor, header: Header, data: bytes | memoryview) -> None:
        """Handle a frame that is not a request of an open session."""
        kind = header.kind
        if kind is Kind.ERROR and header.sid:  # it does not concern this loop
            return
        if kind < CONTROL_KINDS and kind is not Kind.ERROR:
            reply = Closed() if kind is Kind.CLOSE else failure_reports.session_lost()
            self._link.send(PLAIN.encode(reply, header.sid, header.seq))
            return
        self._transports.detach_reply()
        match message := PLAIN.decode(data, header):
            case Open():
                self._lifecycle.open(me, header, message)
            case Gone(reason, ended_by):
                loss = failure_reports.session_lost(reason[:MAX_REASON], ended_by)
                self._lifecycle.abandon(me, header.sid, loss)
            case Watch():
                self._watching.watch(me, header, message)
            case _:
                if isinstance(message, Welcome):
                    self.host.requests.max_message = min(MAX_MESSAGE, message.max_message)
                self._registration.handle(message, self._clock())

    def _log_broker_state(self, event: str) -> None:
        """Log an event that concerns the broker, unless this agent is stopping anyway."""
        if self._logs_broker_state and not self.drain.is_set() and not self.stop.is_set():
            self._log.info(event, broker=self._link.url)
