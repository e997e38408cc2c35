"""The learner's side of a session: request numbers, resending, deadlines, matching of replies.

A reply is matched by its number, never assumed: a reply to an older request is dropped
(docs/protocol.md §7). This module uses no socket and no clock.

Three facts say where a session stands, and each changes in a single assignment, so that an
exception that interrupts this code anywhere leaves a valid state: the last request, the last reply,
and the number of the last request whose reply the caller has.
"""

from __future__ import annotations

import contextlib
import random
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from gymwire.learner_agent.client.failures import cut, lost_because
from gymwire.learner_agent.client.patience import Contact, Patience
from gymwire.protocol import dialogue
from gymwire.protocol.codec import PLAIN, Frame, Header, read_header
from gymwire.protocol.errors import (
    BrokerUnreachable,
    EnvironmentLost,
    GymwireError,
    MoveError,
    ProtocolError,
)
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    Busy,
    BusyReason,
    Code,
    Error,
    Gone,
    Kind,
    Ping,
    Progress,
    Resume,
    Resumed,
)
from gymwire.protocol.step_codec import Step, StepCodec

E = TypeVar("E", bound=BaseException)

RESEND_S = 1.0  # the first silence after which a request is sent again; doubles each time
RESEND_MAX_S = 15.0

# Before Python 3.12, looking an enum member up takes 0.1 µs and more.
_ACT, _ERROR = Kind.ACT, Kind.ERROR
_EPISODE = dialogue.State.EPISODE
_tuple = tuple.__new__  # makes a NamedTuple without a call of a Python function

Reply = tuple[Header, bytes | memoryview]


class Pending(NamedTuple):
    """A request that was sent."""

    kind: Kind
    seq: int
    frame: Frame


class Exchange:
    """The requests of one session, and the replies to them.

    Args:
        sid: the session's number.
        nonce: the 16 bytes that prove the ownership of the session.
        where: the env agent, as errors name it.
        contact: of the connection; what the broker sends to any of its sessions counts.
        rng: the source of the random part of pauses.
        steps: the codec of the fast path for steps, which encodes no ACT that is larger than the
            broker accepts; None: every step takes the general path.
    """

    def __init__(
        self,
        sid: int,
        nonce: bytes,
        *,
        where: str,
        contact: Contact,
        rng: random.Random,
        steps: StepCodec | None = None,
    ) -> None:
        self.sid = sid
        self.nonce = nonce
        self.state = dialogue.State.READY
        self.request = Pending(Kind.OPEN, 0, b"")  # the last one; only `sent` may change it
        self._reply: Reply | None = None
        self.returned = 0  # the number of the last request whose reply the caller has; see `undo`
        self.lost: str | None = None
        self.ended_by = ""  # by whom it was ended, if it is lost; see `EndedBy`
        self._error: tuple[int, GymwireError] | None = None  # kept for a call of this request
        self.in_step_s: float | None = None  # from the last PROGRESS
        self.expected: int | None = None  # the request number that the agent says it expects
        self.resume_pending = False  # the broker must get HELLO and RESUME before anything else
        self.throttled = 0  # how often the broker delayed a request because of a rate limit
        # The exception that the last reply stands for; weak, because it holds the caller's frames.
        self._failure: Callable[[], BaseException | None] = lambda: None
        # The functions of `steps`. Without the first one, steps take the general path.
        self._encode_act = None if steps is None else steps.encode_act
        self._decode_percept = _no_percept if steps is None else steps.decode_percept
        self._sid_bytes = sid.to_bytes(8, "little")
        self._name = b""  # of the step that `begin_step` began: sid and number, as in a frame
        self.where = where
        self._rng = rng
        self._abandoned: list[Pending] = []
        self._armed = 0  # the request for which the timers below are set
        self._contact = contact
        self._patience = Patience(contact)
        self._resend_at = 0.0
        self._resend_s = RESEND_S
        self._ping_at = 0.0
        self._busy = 0

    # --- requests ---------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        """The number of the last request."""
        return self.request.seq

    @property
    def pending(self) -> Pending | None:
        """The request whose reply the caller does not have yet, answered or not."""
        request = self.request
        return None if request.seq == self.returned else request

    @property
    def unanswered(self) -> Pending | None:
        """The request whose reply has not arrived yet."""
        request, reply = self.request, self._reply  # each other property would be a call
        seq = request.seq
        is_over = seq == self.returned or (reply is not None and reply[0].seq == seq)
        return None if is_over else request

    @property
    def replaces_another(self) -> bool:
        """Whether the pending request replaces one that was not answered."""
        return bool(self._abandoned)

    @property
    def is_stepping(self) -> bool:
        """Whether the caller does not have the reply to an ACT yet."""
        pending = self.pending
        return pending is not None and pending.kind is Kind.ACT

    @property
    def reply(self) -> Reply | None:
        """The reply to the pending request, once it has arrived."""
        reply, seq = self._reply, self.request.seq
        return reply if reply is not None and reply[0].seq == seq != self.returned else None

    def check_ready(self) -> bool:
        """Return whether the reply to the pending request has arrived.

        Raises EnvironmentLost if no reply can come. Raises an error that `keep_error` has kept for
        this request, once.
        """
        if self.reply is not None:
            return True
        if self.lost is not None:
            raise self.lost_error()
        kept, self._error = self._error, None
        if kept is not None and kept[0] >= self.seq:
            raise kept[1]
        return False

    def begin(self, kind: Kind) -> int:
        """Return the number for a new request, and change nothing.

        A RESET or a CLOSE may replace a pending request, whose reply is dropped then. No other
        request may: nobody could say what the environment has executed.

        Raises:
            MoveError: the dialogue or a pending request does not allow this request.
            EnvironmentLost: the session is lost.
        """
        if self.lost is not None:
            raise self.lost_error()
        dialogue.check_request(self.state, kind)
        pending = self.pending
        if pending is not None and kind not in (Kind.RESET, Kind.CLOSE):
            dialogue.check_request(self.state, kind)  # a signal handler may have closed it just now
            raise MoveError(
                f"The previous {verb_of(pending.kind)} is still under way. Call it again with the "
                f"same arguments to wait for its reply; or call reset() or close()."
            )
        return self.seq + 1

    def is_repeat(self, kind: Kind, encode: Callable[[int], Frame]) -> bool:
        """Return whether a request is the pending one: the same kind, and the same bytes.

        `encode` returns the request's frame for a request number.
        """
        pending = self.pending
        return pending is not None and pending.kind is kind and encode(pending.seq) == pending.frame

    def sent(self, kind: Kind, seq: int, frame: Frame) -> None:
        """Record that a request was sent, or will be with the next resend."""
        unanswered = self.unanswered
        if unanswered is not None:
            self._abandoned.append(unanswered)
        self.request = Pending(kind, seq, frame)

    def restore_position(self, seq: int, state: dialogue.State) -> None:
        """Continue after request `seq` of a process that has ended."""
        self.returned, self.state = seq, state
        self.request = Pending(Kind.OPEN, seq, b"")

    def continue_from(self, other: Exchange) -> None:
        """Continue where the exchange of the same session on another connection stands.

        What the other does from now on has no effect here.
        """
        self.state, self._failure = other.state, other._failure
        self.lost, self.ended_by = other.lost, other.ended_by
        self._error, self._reply, self.throttled = other._error, other._reply, other.throttled
        self._abandoned = list(other._abandoned)
        self.request, self.returned = other.request, other.returned
        if self.lost is not None:
            self._encode_act = None

    def check_position(self) -> None:
        """Raise MoveError if the agent has executed more than the request after `seq`."""
        assert self.expected is not None
        missed = self.expected - 1 - self.seq
        if missed > 1:
            raise MoveError(
                f"This token is old: {missed} requests were executed at {self.where} after it was "
                f"made, and only the process that sent them had their replies. Open a new session, "
                f"and take a new token after each step from which you may want to continue."
            )

    # --- the fast path of a step ------------------------------------------------------------------

    @property
    def may_step(self) -> bool:
        """Whether the session is not lost, and a step is legal in its state."""
        return self.lost is None and self.state is _EPISODE

    def begin_step(self, action: Any) -> Frame | None:
        """Return the frame of a new step, recorded as sent; None: use `begin` and `sent`."""
        encode, returned = self._encode_act, self.returned
        if encode is None or self.request.seq != returned or self.state is not _EPISODE:
            return None
        seq = returned + 1
        self._name = name = self._sid_bytes + seq.to_bytes(8, "little")
        frame = encode(action, name)
        if frame is not None:
            self.request = _tuple(Pending, (_ACT, seq, frame))
        return frame

    def finish_step(self, data: bytes | memoryview) -> Step | None:
        """Return the step's result if this frame is its reply; None: use `receive`."""
        decode = self._decode_percept  # a local, which Python 3.11 calls faster than an attribute
        step = decode(data, self._name)
        if step is not None:
            self.returned = self.request.seq  # last: until here the same call gets the reply again
        return step

    # --- what arrives -----------------------------------------------------------------------------

    def receive(self, header: Header, data: bytes | memoryview, now: float) -> bool:
        """Handle a frame of this session; return whether it is the reply to the pending request.

        Raises:
            EnvironmentLost: the frame says that the session is lost.
            ProtocolError: the frame breaks the protocol.
        """
        kind, request = header.kind, self.unanswered
        if kind >= CONTROL_KINDS:
            self._arm(now)
            self._receive_control(header, data, now)
            return False
        if request is None or header.seq != request.seq:
            self._arm(now)
            return self._stray(header, data)
        if kind is _ERROR:
            self._arm(now)
            if self._handle_error(data, now):
                return False
        try:
            self.state = dialogue.after(self.state, request.kind, kind)
        except MoveError as error:
            text = f"The env agent at {self.where} broke the protocol: {error}"
            raise ProtocolError(text) from None
        if self._abandoned:
            self._abandoned.clear()
        self._reply = header, data
        return True

    def _receive_control(self, header: Header, data: bytes | memoryview, now: float) -> None:
        match PLAIN.decode(data, header):
            case Progress(since_s):
                request = self.unanswered
                if request is not None and header.seq == request.seq:
                    self._patience.renew(now)  # the request has passed
                    self.in_step_s = since_s
                    self._resend_at = now + RESEND_MAX_S
            case Resumed():
                self._resend_at = now
            case Busy(reason, retry_after_s):
                self._handle_busy(reason, retry_after_s, now)
            case Gone(reason, ended_by):
                self.lose(reason, ended_by)

    def mark_returned(self) -> None:
        """Record that the caller has the reply to the last request."""
        self.returned = self.request.seq

    def set_failure(self, failure: E) -> E:
        """Record the exception that the last reply stands for, and return it to be raised.

        The caller must not keep it: with its traceback, it would keep the proxy alive.
        """
        self._failure = weakref.ref(failure)
        return failure

    def is_failure(self, error: BaseException) -> bool:
        """Return whether the last reply stands for this exception."""
        return self._failure() is error

    def undo(self, returned: int, error: BaseException) -> None:
        """End a call with an exception that is not a reply: the caller has no reply of this call.

        Args:
            returned: the attribute `returned` as it was when the call began. Any number below that
                of the last request has the same effect.
            error: the exception. Nothing changes if the last reply stands for it.
        """
        if not self.is_failure(error):
            self.returned = returned

    def end_with(
        self, request: Pending, error: BaseException, data: bytes | memoryview | None = None
    ) -> None:
        """End a call of a request with an exception.

        The failure that the reply stands for is the reply, and the caller has it now. Any other
        exception leaves the request pending and its reply kept: the same call again returns it.

        Args:
            request: the request that was under way.
            error: the exception.
            data: the frame that arrived last, if any.
        """
        if self.request is not request:
            return
        if self.is_failure(error):
            self.returned = request.seq
            return
        self.returned = request.seq - 1
        if data is None or self.reply is not None:
            return
        with contextlib.suppress(GymwireError):  # it is not readable: the request is sent again
            header = read_header(data)
            if (header.kind, header.sid, header.seq) == (Kind.PERCEPT, self.sid, request.seq):
                self._reply = header, data

    def _stray(self, header: Header, data: bytes | memoryview) -> bool:
        if header.kind is Kind.ERROR and header.seq == 0:
            self._handle_error(data, self._patience.heard)
        elif header.kind is Kind.ERROR and header.seq > self.seq:
            match PLAIN.decode(data, header):
                case Error(code=Code.EXPECTED, details={"expected": int(expected)}):
                    self.expected = expected
        return False

    def _handle_error(self, data: bytes | memoryview, now: float) -> bool:
        """Handle what an ERROR says about the session; return False if it is a reply."""
        error = PLAIN.decode(data)
        assert isinstance(error, Error)
        if error.code == Code.SESSION_LOST:
            self.lose(error.text, error.details.get("ended_by"))
        if error.code == Code.EXPECTED and self._abandoned:
            # An abandoned request did not arrive: all of them are sent again, in order.
            self._resend_at = now
            return True
        return False

    def _handle_busy(self, reason: str, retry_after_s: float, now: float) -> None:
        self._busy += 1
        if reason == BusyReason.HELLO:
            self.resume_pending = True
        elif reason == BusyReason.RATE:
            self.throttled += 1
        pause_s = min(max(0.0, retry_after_s) * 2 ** min(self._busy, 5), 1.0)
        self._resend_at = now + pause_s * (0.5 + self._rng.random() / 2)

    def lose(self, reason: str, ended_by: object = "") -> None:
        """Record that the session is lost. Raises EnvironmentLost, as every later request does.

        `ended_by`: see `EndedBy`; the other side may send anything.
        """
        self._encode_act = None
        self.lost = cut(reason)
        self.ended_by = ended_by if isinstance(ended_by, str) else ""
        raise self.lost_error()

    def keep_error(self, error: GymwireError) -> None:
        """Keep the exception that a frame has caused, for whoever waits for a reply.

        It concerns the request that has no reply yet, or else the next one. If the reply comes
        first, nobody needs the exception.
        """
        error.__context__ = None  # it and the traceback hold the frame
        seq = self.seq if self.unanswered is not None else self.seq + 1
        self._error = seq, error.with_traceback(None)

    def lost_error(self) -> EnvironmentLost:
        """Return the error that says which session is lost, at which request, and why."""
        at = "" if self.seq == 0 else f" at request {self.seq}"
        why = (self.lost or "the env agent is gone").rstrip(".")
        text = f"The session at {self.where} is lost{at}: {why}. Its episode cannot be recovered."
        advice = "Call reset() to continue with a fresh environment."
        return lost_because(self.ended_by, text, advice)

    # --- time and connections ---------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        """Set the timers of the last request, unless they are set."""
        seq = self.request.seq
        if self._armed == seq:
            return
        self._armed = seq
        self.in_step_s = None
        self._patience.begin(now)
        self._resend_s = RESEND_S
        self._resend_at = now + RESEND_S
        self._ping_at = now + self._contact.ping_s
        self._busy = 0

    def reconnected(self, now: float) -> None:
        """Send RESUME over the new connection, then the pending request again."""
        self._arm(now)
        self._patience.reconnected(now)
        self.resume_pending = True
        self._resend_at = now

    def resend(self, now: float) -> None:
        """Send the pending request again at once: the path has changed, or did not accept it."""
        self._arm(now)
        self._resend_s = RESEND_S
        self._resend_at = now

    def sent_again(self, now: float) -> None:
        """Note that the pending request was sent again."""
        self._patience.sent_again(now)

    def resend_close(self, now: float) -> bool:
        """Send a pending CLOSE again: an interrupt may have come before it was sent.

        Returns whether no other request is unanswered.
        """
        request = self.unanswered
        if request is not None and request.kind is Kind.CLOSE:
            self.resend(now)
            return True
        return request is None

    def tick(self, now: float, *, may_send: bool = True) -> tuple[bool, list[Frame]]:
        """Return whether HELLO must be sent first, and the frames that are due if any may be sent.

        Raises BrokerUnreachable if the broker has been silent for longer than `timeout_s`.
        """
        request = self.unanswered
        if request is None:
            return False, []
        if self._armed != request.seq:
            self._arm(now)
        if self._patience.is_over(now):
            raise self._silence_error(request)
        if not may_send:
            return False, []
        frames: list[Frame] = []
        if now >= self._resend_at:
            if self.resume_pending:
                self.resume_pending = False
                self._resend_at = now + RESEND_S
                return True, [PLAIN.encode(Resume(self.nonce), self.sid, self.seq)]
            frames += [one.frame for one in (*self._abandoned, request)]
            self._resend_s = min(self._resend_s * 2, RESEND_MAX_S)
            self._resend_at = now + self._resend_s
        if now >= self._ping_at:
            self._ping_at = now + self._contact.ping_s
            frames.append(PLAIN.encode(Ping(), self.sid, request.seq))
        return False, frames

    def _silence_error(self, request: Pending) -> BrokerUnreachable:
        verb = f"{verb_of(request.kind)} at {self.where}"
        lost_again = self._patience.lost_again(f"a {verb}", len(request.frame))
        if lost_again is not None:
            return BrokerUnreachable(
                lost_again, advice="Check the MTU along the path. Call again to keep waiting."
            )
        return BrokerUnreachable(
            f"The broker has been silent for {self._contact.timeout_s:g} s while a {verb} was "
            f"under way: it has stopped, or cannot be reached.",
            advice="The session continues if the broker returns: call again to keep waiting.",
        )

    def keep_waiting(self, now: float) -> None:
        """Count the silence of the broker from now: the caller waits on."""
        self._arm(now)
        self._patience.renew(now)


def _no_percept(data: bytes | memoryview, name: bytes) -> Step | None:
    """Read no frame: a session without a codec for steps reads all of them by the general path."""
    return None


def verb_of(kind: Kind) -> str:
    """Return what a request of this kind is called in errors."""
    return "step" if kind is Kind.ACT else kind.name.lower()
