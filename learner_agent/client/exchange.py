"""The learner's side of a session: request numbers, resending, deadlines, matching of replies.

A reply is matched by its number, never assumed: what answers an older request is dropped
(docs/protocol.md §7). No socket and no clock is seen here.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from gymwire.protocol import dialogue
from gymwire.protocol.codec import PLAIN, Frame, Header
from gymwire.protocol.errors import BrokerUnreachable, EnvironmentLost, MoveError, ProtocolError
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    Busy,
    BusyReason,
    Code,
    Error,
    Gone,
    Kind,
    Ping,
    Pong,
    Progress,
    Resume,
    Resumed,
)

RESEND_S = 1.0  # the first silence after which a request is sent again; doubles each time
RESEND_MAX_S = 15.0
PING_S = 1.0
UNWATCHED_S = 2.0  # a PING overdue for longer says that nobody has looked in the meantime


_EPISODE = dialogue.State.EPISODE
_tuple = tuple.__new__  # a NamedTuple without the Python function in between


class Pending(NamedTuple):
    """A request that was sent and not answered yet."""

    kind: Kind
    seq: int
    frame: Frame


class Exchange:
    """One session's requests. `timeout_s`: the longest silence of the broker that is tolerated."""

    def __init__(
        self,
        sid: int,
        nonce: bytes,
        *,
        where: str,
        timeout_s: float,
        rng: random.Random,
        seq: int = 0,
        state: dialogue.State = dialogue.State.READY,
    ) -> None:
        self.sid = sid
        self.nonce = nonce
        self.seq = seq  # the number of the last request
        self.state = state
        self.pending: Pending | None = None  # of an ACT, whoever has its PERCEPT may set it to None
        self.lost: str | None = None
        self.in_step_s: float | None = None  # what the last PROGRESS said
        self._where = where
        self._timeout_s = timeout_s
        self._rng = rng
        self._abandoned: list[Pending] = []
        self._armed = 0  # the request for which the timers below are set
        self._heard = 0.0
        self._resend_at = 0.0
        self._resend_s = RESEND_S
        self._ping_at = 0.0
        self._ping_s = min(PING_S, timeout_s / 4)
        self.expected: int | None = None  # the request that the agent awaits, by its own word
        self.resuming = False  # HELLO and RESUME are owed to the broker
        self._busy = 0
        self.held_back = 0  # how often the broker said that this key asks too much

    # --- requests ---------------------------------------------------------------------------------

    def begin(self, kind: Kind) -> int:
        """The number of a new request. Raises MoveError or EnvironmentLost. Nothing moves yet.

        A request that is still pending can be given up for a RESET or a CLOSE, when that is sent:
        its reply will be dropped. For nothing else, since nobody could say then what the
        environment has executed.
        """
        if self.lost is not None:
            raise self.lost_error()
        dialogue.check_request(self.state, kind)
        if self.pending is not None and kind not in (Kind.RESET, Kind.CLOSE):
            raise MoveError(still_under_way(self.pending.kind))
        return self.seq + 1

    def rejoin(self, seq: int, state: dialogue.State) -> None:
        """Go on after request `seq` of a process that has ended."""
        self.seq, self.state = seq, state

    def check_rejoined(self) -> None:
        """Raise MoveError if the agent has executed more than the request after `seq`."""
        assert self.expected is not None
        missed = self.expected - 1 - self.seq
        if missed > 1:
            raise MoveError(
                f"This token is old: {missed} requests were executed at {self._where} since it was "
                f"made, and what they returned is gone with the process that asked. Take a new "
                f"token after each step that you may want to go on from."
            )

    def next_step(self) -> int:
        """The number of a new ACT if one is legal and nothing is pending, else 0: use `begin`."""
        if self.pending is None and self.lost is None and self.state is _EPISODE:
            return self.seq + 1
        return 0

    def sent(self, kind: Kind, seq: int, frame: Frame) -> None:
        """The request went out (or will, with the next resend)."""
        if self.pending is not None:
            self._abandoned.append(self.pending)
        pending = _tuple(Pending, (kind, seq, frame))
        # Both or none: a call in between could end with a KeyboardInterrupt.
        self.seq = seq
        self.pending = pending

    def _arm(self, now: float) -> None:
        """Set the timers of the pending request, now that it has not been answered at once."""
        if self._armed == self.seq:
            return
        self._armed = self.seq
        self.in_step_s = None
        self._heard = now
        self._resend_s = RESEND_S
        self._resend_at = now + RESEND_S
        self._ping_at = now + self._ping_s
        self._busy = 0

    # --- what arrives -----------------------------------------------------------------------------

    def receive(self, header: Header, data: bytes | memoryview, now: float) -> bool:
        """Take a frame of this session. True: it is the reply to the pending request.

        Raises EnvironmentLost, or ProtocolError if the other side broke the protocol.
        """
        kind, pending = header.kind, self.pending
        self._arm(now)
        if kind < CONTROL_KINDS:
            if pending is None or header.seq != pending.seq:
                return self._stray(header, data)
            if kind is Kind.ERROR and self._take_error(data, now):
                return False
            try:
                self.state = dialogue.after(self.state, pending.kind, kind)
            except MoveError as error:
                raise ProtocolError(
                    f"The agent at {self._where} broke the rules: {error}"
                ) from None
            self._abandoned.clear()
            self.pending = None  # nothing is called until the caller has the reply: see `sent`
            return True
        match PLAIN.decode(data, header):
            case Progress(since_s):
                self._heard = now
                if pending is not None and header.seq == pending.seq:
                    self.in_step_s = since_s
                    self._resend_at = now + RESEND_MAX_S
            case Pong():
                self._heard = now
            case Resumed():
                self._heard = now
                self._resend_at = now
            case Busy(reason, retry_after_s):
                self._take_busy(reason, retry_after_s, now)
            case Gone(reason):
                self.lose(reason)
            case _:
                return False
        return False

    def _stray(self, header: Header, data: bytes | memoryview) -> bool:
        if header.kind is Kind.ERROR and header.seq == 0:
            self._take_error(data, self._heard)
        elif header.kind is Kind.ERROR and header.seq > self.seq:
            match PLAIN.decode(data, header):
                case Error(code=Code.EXPECTED, details={"expected": int(expected)}):
                    self.expected = expected
        return False

    def _take_error(self, data: bytes | memoryview, now: float) -> bool:
        """Handle an ERROR that is not an answer of the environment. True: it was one."""
        error = PLAIN.decode(data)
        assert isinstance(error, Error)
        if error.code == Code.SESSION_LOST:
            self.lose(error.text)
        if error.code == Code.EXPECTED and self._abandoned:
            # An abandoned request never arrived; they all go out again, in order.
            self._resend_at = now
            return True
        return False

    def _take_busy(self, reason: str, retry_after_s: float, now: float) -> None:
        self._heard = now
        self._busy += 1
        if reason == BusyReason.HELLO:
            self.resuming = True
        elif reason == BusyReason.RATE:
            self.held_back += 1
        pause_s = min(max(0.0, retry_after_s) * 2 ** min(self._busy, 5), 1.0)
        self._resend_at = now + pause_s * (0.5 + self._rng.random() / 2)

    def lose(self, reason: str) -> None:
        """The session is gone. Raises EnvironmentLost, now and for every later request."""
        self.lost = reason
        raise self.lost_error()

    def lost_error(self) -> EnvironmentLost:
        """Which session is lost, where in it, and why."""
        request = "" if self.seq == 0 else f" at request {self.seq}"
        return EnvironmentLost(
            f"The session at {self._where} is lost{request}: {self.lost}. Its episode cannot be "
            f"recovered.",
            advice="Call reset() to go on with a fresh environment.",
        )

    # --- time and connections ---------------------------------------------------------------------

    def relinked(self, now: float) -> None:
        """The connection was made anew: say RESUME, then send the pending request again."""
        self._arm(now)
        self.resuming = True
        self._resend_at = now

    def resend(self, now: float) -> None:
        """The way to the agent has changed: send the pending request again at once."""
        self._arm(now)
        self._resend_at = now

    def tick(self, now: float) -> tuple[bool, list[Frame]]:
        """What silence calls for: (whether HELLO must go first, frames to send).

        Raises BrokerUnreachable when the silence has lasted too long.
        """
        if self.pending is None:
            return False, []
        self._arm(now)
        if now - self._ping_at > UNWATCHED_S:  # frozen, or not waiting: it cannot tell silence
            self._heard = now
        if now - self._heard > self._timeout_s:
            raise BrokerUnreachable(
                f"The broker has been silent for {self._timeout_s:g} s while a "
                f"{_verb(self.pending.kind)} at {self._where} was under way: it is gone, or cut "
                f"off.",
                advice="The session goes on if it comes back: call again to wait on.",
            )
        frames: list[Frame] = []
        if now >= self._resend_at:
            if self.resuming:
                self.resuming = False
                self._resend_at = now + RESEND_S
                return True, [PLAIN.encode(Resume(self.nonce), self.sid, self.seq)]
            frames += [one.frame for one in (*self._abandoned, self.pending)]
            self._resend_s = min(self._resend_s * 2, RESEND_MAX_S)
            self._resend_at = now + self._resend_s
        if now >= self._ping_at:
            self._ping_at = now + self._ping_s
            frames.append(PLAIN.encode(Ping(), self.sid, self.pending.seq))
        return False, frames

    def is_due(self, now: float) -> bool:
        """Whether `tick` has something to send already."""
        pending = self.pending
        return pending is not None and self._armed == pending.seq and now >= self._resend_at

    def keep_waiting(self, now: float) -> None:
        """The caller waits on for the pending request: the silence counts from now."""
        self._arm(now)
        self._heard = now


def still_under_way(kind: Kind) -> str:
    """Why nothing else can be asked for before the request of this kind is through."""
    return (
        f"The {_verb(kind)} before is still under way. Call it again, with the same arguments, to "
        f"go on waiting for its answer; or call reset() or close()."
    )


def _verb(kind: Kind) -> str:
    return "step" if kind is Kind.ACT else kind.name.lower()
