"""One session over a broker connection: requests and the replies that belong to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gymnasium import Space

from gymwire.learner_agent.client.direct import SessionPaths
from gymwire.learner_agent.client.exchange import Exchange, verb_of
from gymwire.learner_agent.client.failures import error_for, malformed, naming_agent
from gymwire.learner_agent.client.session_timers import Repeats
from gymwire.learner_agent.client.timings import Timings, apportion, waited
from gymwire.learner_agent.client.waiting import TICK_S
from gymwire.protocol import dialogue, logs, space_cache, spaces, stamps, vector_infos
from gymwire.protocol.capabilities import VALUES, common
from gymwire.protocol.codec import (
    MAX_MESSAGE,
    NAME,
    TIMED,
    Codec,
    Frame,
    Header,
    check_size,
    name_of,
    read_header,
)
from gymwire.protocol.errors import (
    BrokerUnreachable,
    DecodingError,
    GymwireError,
    RequestTimeout,
)
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    KINDS,
    Act,
    Close,
    Error,
    Kind,
    Message,
    Open,
    Opened,
    Percept,
)
from gymwire.protocol.outside_exceptions import is_from_outside
from gymwire.protocol.remote_space import SpaceCalls
from gymwire.protocol.security.signing import SignedCodec, Signer
from gymwire.protocol.step_codec import Step, StepCodec
from gymwire.protocol.transport.interface import Transport

if TYPE_CHECKING:
    from gymwire.learner_agent.client.connection import BrokerConnection

OTHER_PATHS_EVERY = 64  # steps after which a session serves the paths that it does not use
SMALL = 64 * 1024  # bytes of the largest request that the fast path sends
REPORTED_S = 3.0  # an env agent reports a request by then if it executes it
WAIT_ON = "Call it again with the same arguments to keep waiting"
DROP = ", or call reset() to drop the result"
GIVE_UP = ". If it never ends, close() and make a new proxy."
UNREPORTED = (
    " No report says that it is being executed: the environment may hold the interpreter's lock, "
    "or the path to the env agent may lose large packets (a wrong MTU)."
)
REPLACES = " The env agent may still execute the request before it, which this one replaces."
CLOSE_S = 1.0  # how long close() waits for the env agent to confirm

_READ_AHEAD = (Kind.PERCEPT, Kind.STATUS)  # the replies that many sessions get at the same time

Data = bytes | memoryview
T = TypeVar("T")


class RemoteSession:
    """One environment, or one vector of environments, at an env agent.

    Attributes:
        reads_ahead: whether to read replies as they arrive, while those of other sessions are under
            way, and not only when all of them are needed.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        sid: int,
        open_msg: Open,
        opened: Opened,
        signer: Signer | None = None,
    ) -> None:
        self.connection, self.signer = connection, signer
        self.sid, self.open_msg, self.opened = sid, open_msg, opened
        self.space_calls = SpaceCalls()
        self._spaces: dict[str, Space[Any]] = {}
        where = f"{open_msg.address!r}" + (f" ({opened.agent})" if opened.agent else "")
        with naming_agent(where):
            observation = space_cache.codec_of(opened.observation_space, "observation_space")
            action = space_cache.codec_of(opened.action_space, "action_space")
        extended = VALUES in common(opened.limits.get("capabilities"))
        self._codec = (Codec if signer is None else partial(SignedCodec, signer))(
            observation, action, extended=extended
        )
        largest = min(SMALL, connection.welcome.max_message if connection.welcome else MAX_MESSAGE)
        self._steps: StepCodec | None = None
        if signer is None:  # the fast path does not sign frames
            self._steps = connection.compile_steps(
                observation, action, open_msg.num_envs, largest, extended=extended
            )
            self._steps.renew()
        self.exchange = Exchange(
            sid,
            open_msg.nonce,
            where=where,
            contact=connection.contact,
            rng=connection.rng,
            steps=self._steps,
        )
        self.paths = SessionPaths(connection, sid, open_msg, opened, self.exchange)
        self.closed = False  # on this side; the agent may not have confirmed it yet
        self.reads_ahead = False
        self._ahead: tuple[int, Message] | None = None  # the reply that `_read_ahead` has read
        self._is_left = False  # whether `close` has returned
        self._least_network: dict[bool, int] = {}  # is it direct? → ns of a step, for `apportion`

    def space(self, name: str) -> Space[Any]:
        """Return the observation space or the action space, with a random generator of its own."""
        # No cached properties: those use `__dict__`, which makes each attribute slower.
        if name not in self._spaces:
            self._spaces[name] = self.build_space(name)
        return self._spaces[name]

    def build_space(self, name: str) -> Space[Any]:
        """Return a space that OPENED describes, each time with a random generator of its own."""
        with naming_agent(self.exchange.where):
            return spaces.build(getattr(self.opened, name), root=name, calls=self.space_calls)

    @property
    def path(self) -> Transport:
        """The connection that requests currently take."""
        return self.paths.current

    @property
    def is_direct(self) -> bool:
        """Whether requests currently take the direct path."""
        return self.paths.is_direct

    # --- requests ---------------------------------------------------------------------------------

    def request(self, message: Message, timeout_s: float | None = None) -> Message:
        """Send a request of the gym dialogue, wait for its reply, and return it.

        Args:
            message: the request. The same one again, after an exception, waits on.
            timeout_s: how long to wait, in seconds; None: as long as it takes.

        Raises:
            MoveError, EncodingError: nothing was sent.
            EnvironmentFailed, AttributeDenied: the agent's reply.
            EnvironmentLost: the session is lost.
            RequestTimeout: after `timeout_s`.
        """
        self.begin(message)
        request = self.exchange.request
        try:  # not by `finish`: after its return, an exception would find no handler
            self._wait(timeout_s)
            return self._take(self._read)  # type: ignore[return-value]
        except BaseException as error:
            self.exchange.end_with(request, error)
            raise

    def step(self, action: Any, timeout_s: float | None = None) -> Step:
        """Send an ACT, and return what `Env.step` returned, on the fast path where that can be.

        The infos of a vector are those that Gymnasium merges. Otherwise as `request`. An exception
        that comes from outside (a signal handler's, say) leaves the request numbered and its reply
        kept: the same call again returns it.
        """
        exchange, frame = self.exchange, None
        deadline = None if timeout_s is None else self.connection.clock() + timeout_s
        if timeout_s is None or timeout_s > TICK_S:  # else the first `receive` could take too long
            frame = exchange.begin_step(action)
        if frame is None:
            self.begin(Act(action))
        request, data = exchange.request, None
        try:
            if frame is not None:
                if not exchange.returned % OTHER_PATHS_EVERY:
                    self.paths.serve_others(self.connection.clock())
                path = self.paths.current
                path.send(frame)
                data = path.receive()
                if data is not None:
                    step = exchange.finish_step(data)
                    if step is not None:
                        return step if type(step[4]) is dict else finished(step, self, data)
                    if not self.receive_frame(data):
                        self.connection.tick(self.connection.clock(), (self,))
            return self._finish_step(timeout_s, deadline)
        except BaseException as error:
            exchange.end_with(request, error, data)
            raise

    @property
    def is_timed(self) -> bool:
        """Whether the env agent supports time stamps in this session."""
        return self._steps is not None and self.opened.limits.get("stamps") is True

    def timed_step(self, action: Any) -> tuple[Step, Timings | None]:
        """Return what `step` returns, and where its time went; None if that is unknown."""

        def encode(seq: int) -> Frame:
            return stamps.request_stamps(self._encode(Act(action), seq))

        exchange, clock = self.exchange, self.connection.clock_ns
        if not self.is_timed:
            return self.step(action), None
        if self._is_repeat(Kind.ACT, encode):
            return self._finish_step(None), None
        throttled = exchange.throttled
        began = clock()
        seq = exchange.begin(Kind.ACT)
        frame = encode(seq)
        self._check_size(Kind.ACT, frame)
        encoded = clock()
        self._send(Kind.ACT, seq, frame)
        request = exchange.request
        try:
            data = self.path.receive()
            arrived = clock()
            if data is not None:
                self.receive_frame(data)
            if not self.ready:
                self._wait(None)
                arrived = clock()
            step, taken = self._take(self._read_timed)
            readings = began, encoded, arrived, clock()
            is_throttled = exchange.throttled != throttled
            return step, None if taken is None else self._timings(readings, taken, is_throttled)
        except BaseException as error:
            exchange.end_with(request, error)
            raise

    def _timings(
        self, readings: tuple[int, int, int, int], taken: stamps.Stamps, is_throttled: bool
    ) -> Timings:
        is_direct = not taken.reply_sent
        least = self._least_network.get(is_direct, 0)
        timings = apportion(*readings, taken, least)
        if is_throttled:
            return replace(timings, throttled=True)
        if not waited(taken):
            network = round(timings.network_us * 1000)
            self._least_network[is_direct] = min(network, least or network)
        return timings

    def begin(self, message: Message) -> None:
        """Send a request without waiting. The same request again, while pending, waits on."""
        self.connection.check_open()
        kind = KINDS[type(message)]
        if self._is_repeat(kind, partial(self._codec.encode, message, self.sid)):
            return
        seq = self.exchange.begin(kind)
        frame = self._encode(message, seq)
        self._check_size(kind, frame)
        self._send(kind, seq, frame)

    def _is_repeat(self, kind: Kind, encode: Callable[[int], Frame]) -> bool:
        """Return whether a request is pending already; its caller waits on then."""
        if not self.exchange.is_repeat(kind, encode):
            return False
        self.exchange.keep_waiting(self.connection.clock())
        return True

    def _encode(self, message: Message, seq: int) -> Frame:
        frame = None
        if self._steps is not None and type(message) is Act:
            frame = self._steps.encode_act(message.action, name_of(self.sid, seq))
        return self._codec.encode(message, self.sid, seq) if frame is None else frame

    def _check_size(self, kind: Kind, frame: Frame) -> None:
        limit = self.connection.welcome.max_message if self.connection.welcome else 0
        if limit:
            check_size(kind.name, len(frame), limit)

    def _send(self, kind: Kind, seq: int, frame: Frame) -> None:
        if kind is Kind.RESET and self.paths.direct is None:
            # Not earlier: a process that only opens a session needs no local channel.
            self.connection.link.open_local_channel()
        self.exchange.sent(kind, seq, frame)
        if self.paths.direct is not None:
            self.paths.serve_others(self.connection.clock())
        self.path.send(frame)

    # --- replies ----------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the reply to the pending request has arrived."""
        return self.exchange.reply is not None

    @property
    def pending(self) -> bool:
        """Whether the caller does not have the reply to the last request yet."""
        return self.exchange.pending is not None

    def finish(self, timeout_s: float | None = None) -> Message:
        """Wait for the reply to the pending request, and return it."""
        request = self.exchange.request
        try:
            self._wait(timeout_s)
            # A `cast` would be a call, which a signal could interrupt after the reply was taken.
            return self._take(self._read)  # type: ignore[return-value]
        except BaseException as error:
            self.exchange.end_with(request, error)
            raise

    def peek(self, timeout_s: float | None = None) -> Message:
        """Wait for the reply to the pending request, and return it; it stays pending.

        Raises what `finish` raises. The reply stays then, too, even if it is the exception.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == self.exchange.request.seq:
            return ahead[1]
        self._wait(timeout_s)
        return self._decode(self._read)  # type: ignore[return-value]

    def _read_ahead(self, header: Header, data: Data) -> None:
        """Read a reply that has just arrived; the next `peek` returns it."""
        if header.kind in _READ_AHEAD:
            try:
                self._ahead = header.seq, self._read(header, data)
            except DecodingError:  # `peek` raises it
                self._ahead = None

    def _finish_step(self, timeout_s: float | None, deadline: float | None = None) -> Step:
        self._wait(timeout_s, deadline)
        return self._take(self._read_step)

    def _wait(self, timeout_s: float | None, deadline: float | None = None) -> None:
        """Wait for the reply: for `timeout_s` from now, or until `deadline`."""
        connection = self.connection
        if deadline is None and timeout_s is not None:
            deadline = connection.clock() + timeout_s
        if connection.wait(self.exchange.check_ready, deadline, (self,)):
            return
        pending, in_step_s = self.exchange.pending, self.exchange.in_step_s
        verb = "request" if pending is None else verb_of(pending.kind)
        doing = "" if in_step_s is None else f" (it has been executing for {in_step_s:.0f} s)"
        drop = "" if pending is not None and pending.kind == Kind.RESET else DROP
        advice = UNREPORTED if in_step_s is None and (timeout_s or 0.0) > REPORTED_S else ""
        advice = REPLACES if in_step_s is None and self.exchange.replaces_another else advice
        raise RequestTimeout(
            f"The {verb} at {self.open_msg.address!r} has not been "
            f"answered within {timeout_s:g} s{doing}. {WAIT_ON}{drop}{GIVE_UP}{advice}"
        )

    def _take(self, read: Callable[[Header, Data], T | Error]) -> T:
        """Return what `read` makes of the reply, or raise the exception that the reply stands for.

        After an exception the caller must call `Exchange.end_with`.
        """
        value = self._decode(read)
        self.exchange.mark_returned()
        return value

    def _decode(self, read: Callable[[Header, Data], T | Error]) -> T:
        """Return what `_take` returns, but do not record that the caller has the reply."""
        exchange = self.exchange
        reply = exchange.reply
        if reply is None:  # a signal handler has closed the session after its reply had come
            raise self.connection.link.closed_error()
        try:
            value = read(*reply)
        except DecodingError as error:  # the reply stays unreadable
            raise _unreadable(error, self, reply[0]) from None
        if isinstance(value, Error):
            raise exchange.set_failure(error_for(value))
        return value

    def _read(self, header: Header, data: Frame | memoryview) -> Message:
        if self._steps is not None and header.kind is Kind.PERCEPT:
            step = self._steps.decode_percept(data, bytes(data[NAME]))
            if step is not None:
                return Percept(*step)
        return self._codec.decode(data, header)

    def _read_step(self, header: Header, data: Data) -> Step | Error:
        frame = stamps.strip_reply(data)[0] if header.flags & TIMED else data
        reply = self._read(header, frame)
        if type(reply) is not Percept:
            assert type(reply) is Error
            return reply
        step = reply.observation, reply.reward, reply.terminated, reply.truncated, reply.info
        return _with_infos(step, self)

    def _read_timed(self, header: Header, data: Data) -> tuple[Step, stamps.Stamps | None] | Error:
        taken = stamps.strip_reply(data)[1] if header.flags & TIMED else None
        step = self._read_step(header, data)
        return step if isinstance(step, Error) else (step, taken)

    # --- frames and timers ------------------------------------------------------------------------

    def receive_frame(self, data: Data) -> bool:
        """Handle a frame from the session's path; return whether it answers a request."""
        return self.paths.receive_frame(data)

    def receive(self, header: Header, data: Data) -> bool:
        """Handle a frame of this session; return whether it is the reply to the request."""
        try:
            answered = self.exchange.receive(header, data, self.connection.clock())
        except GymwireError as error:
            if is_from_outside(error):
                raise
            # Whoever waits for this session gets the error; a caller that waits for another does
            # not.
            _keep_error(self, error, header)
            return True
        if answered and self.reads_ahead:
            self._read_ahead(header, data)
        if answered and self.closed:
            self.connection.forget(self)
        if not answered and header.kind < CONTROL_KINDS:
            self.connection.log_dropped(header)
        return answered

    def fail(self, error: GymwireError) -> None:
        """Let the call that waits for this session, or else the next one, raise an exception."""
        self.exchange.keep_error(error)
        self.connection.failures += 1

    def tick(self, now: float, repeats: Repeats) -> None:
        """Run the session's timers: send again what is due, as far as `repeats` allows it."""
        if self.paths.direct is not None:
            self.paths.follow(now)
            if self.paths.is_direct:  # its heartbeats show that the agent is alive
                self.exchange.keep_waiting(now)
        # RESUME comes first.
        waits_for_room = self.exchange.resume_pending and self.path in repeats.full
        may_send = repeats.left > 0 and not waits_for_room
        try:
            hello_first, frames = self.exchange.tick(now, may_send=may_send)
        except BrokerUnreachable:
            if not self.closed:
                raise
            self.connection.forget(self)  # nobody waits for it
            return
        if hello_first:
            self.connection.send_hello()
        self.paths.repeat(frames, now, repeats)

    # --- the end ----------------------------------------------------------------------------------

    def close(self, *, wait: bool = True) -> None:
        """End the session. Waits briefly for the agent, never for a step. Idempotent.

        Until the agent has confirmed it, the connection sends CLOSE again whenever it is used.
        """
        connection, exchange = self.connection, self.exchange
        if self._is_left or connection.is_inherited or connection.closed:
            return
        self.closed = True
        wait = exchange.resend_close(connection.clock()) and wait
        try:
            if exchange.state is not dialogue.State.CLOSED:
                self.begin(Close())
                if wait:
                    self.finish(CLOSE_S)
        except GymwireError as error:
            logs.logger().debug("close not confirmed", why=str(error))
        if exchange.unanswered is None or exchange.lost is not None:
            connection.forget(self)
        else:
            exchange.keep_waiting(connection.clock())  # starts the timers that send it again
        self.paths.close_direct()
        self._is_left = True  # last: after an interrupt, the next call goes on


def _keep_error(session: RemoteSession, error: GymwireError, header: Header) -> None:
    """Keep the exception that a frame of a session has caused, unless the session is lost."""
    exchange, connection = session.exchange, session.connection
    if exchange.lost is not None:
        connection.forget(session)
        connection.failures += 1
        return
    if isinstance(error, DecodingError):
        is_of_agent = header.kind < CONTROL_KINDS or session.is_direct
        agent, broker = f"The env agent of {exchange.where}", f"The broker at {connection.url}"
        error = malformed(error, agent if is_of_agent else broker, header)
    logs.logger().debug("malformed message", why=str(error))
    session.fail(error)


def finished(step: Step, session: RemoteSession, data: Data) -> Step:
    """Return the step that `Exchange.finish_step` has read from a frame, with its infos merged."""
    try:
        return _with_infos(step, session)
    except DecodingError as error:
        raise _unreadable(error, session, read_header(data)) from None


def _with_infos(step: Step, session: RemoteSession) -> Step:
    """Return a vector's step with its infos as Gymnasium merges them; another step as it is."""
    if type(step[4]) is dict or not session.open_msg.num_envs:
        return step
    exact = session.connection.exact_infos
    return *step[:4], vector_infos.from_wire(step[4], exact=exact)[0]


def _unreadable(error: DecodingError, session: RemoteSession, header: Header) -> DecodingError:
    """Return the exception that a reply stands for if it cannot be read."""
    exchange = session.exchange
    return exchange.set_failure(malformed(error, f"The env agent of {exchange.where}", header))
