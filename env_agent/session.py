"""One session at the env agent: the rule by which each request is executed exactly once.

However often a request arrives, it is executed once (docs/protocol.md §7). Every request begins
with `Session.judge` and ends with `Session.finish`; a step on the fast path uses `begin_step` and
`finish_step`, which do the same for an ACT and a PERCEPT. Nothing else changes the numbers.
"""

from __future__ import annotations

from enum import Enum

from gymwire.protocol import dialogue
from gymwire.protocol.codec import PLAIN, Frame, Pieces
from gymwire.protocol.errors import MoveError
from gymwire.protocol.messages import Code, Error, Kind

_EXECUTING: Frame = bytearray()
"""In the place of the reply while a request is being executed: an empty frame of its own."""

_ACT = Kind.ACT  # before Python 3.12, looking an enum member up takes 0.1 µs and more


class Verdict(Enum):
    """What to do with a request that has arrived."""

    EXECUTE = "execute"
    REPEAT = "repeat"  # send `Session.reply` again
    REFUSE = "refuse"  # send `Session.refusal`; the session has not changed
    DROP = "drop"


class Session:
    """The request numbers, the last reply, and the state of the dialogue.

    Attributes:
        sid: the session's id; `key` holds its eight bytes as they appear in a frame.
        nonce: the secret by which the learner proves that the session is its own.
        address: the address under which the learner opened the session.
        learner: the identity of the learner's key, "" without keys.
        state: the state of the dialogue between two requests.
        last_seq: the number of the last request that was executed.
        reply: the reply to the last request, kept in case the learner repeats the request; empty
            while a request is being executed.
        refusal: the ERROR to send when `judge` has returned REFUSE.
    """

    def __init__(self, sid: int, nonce: bytes, address: str, learner: str) -> None:
        self.sid = sid
        self.key = sid.to_bytes(8, "little")
        self.nonce = nonce
        self.address = address
        self.learner = learner
        self.state = dialogue.State.READY
        self.last_seq = 0
        self.reply: Frame | Pieces = b""
        self.refusal: Frame = b""
        self._may_step = False  # whether an ACT is legal in this state
        self._others = 0  # requests other than ACT that were executed
        self._kind: Kind | None = None  # of the request that `judge` has begun
        self._request: Frame | memoryview = b""  # being executed, or the last one executed

    def judge(self, kind: Kind, seq: int, request: Frame | memoryview) -> Verdict:
        """Decide what to do with a request, and begin it if it is to be executed.

        A request that has begun may be judged again until it is finished.

        Args:
            kind: the kind of the request.
            seq: its number.
            request: its frame, kept in order to recognize a repetition.

        Returns:
            EXECUTE: execute the request, then call `finish`. REPEAT: send `reply` again. REFUSE:
            send `refusal`. DROP: send nothing, since the learner has the reply already.
        """
        expected = self.last_seq + 1
        if seq == expected:
            try:
                dialogue.check_request(self.state, kind)
            except MoveError as error:
                return self._refuse(seq, Code.PROTOCOL, str(error))
            self._kind, self._request = kind, request
            # The learner has reply n-1 once it sends n; drop it, since it may alias memory of the
            # environment.
            self.reply = _EXECUTING
            return Verdict.EXECUTE
        if seq == self.last_seq:
            if request == self._request:
                return Verdict.REPEAT
            return self._refuse(
                seq,
                Code.PROTOCOL,
                f"Request {seq} was executed already, with different content. A repeated request "
                f"must be identical byte for byte.",
            )
        if seq < self.last_seq:
            return Verdict.DROP
        return self._refuse(
            seq,
            Code.EXPECTED,
            f"Request {seq} arrived, but request {expected} is next.",
            expected=expected,
        )

    def finish(self, reply: Kind, frame: Frame) -> None:
        """Record the reply to the request that has begun.

        Args:
            reply: the kind of the reply.
            frame: the reply as it is sent.

        Raises:
            MoveError: this kind does not answer the request.
        """
        kind = self._kind
        assert kind is not None, "no request has begun"
        self.state = dialogue.after(self.state, kind, reply)
        self._may_step = _ACT in dialogue.MOVES[self.state]
        self._kind = None
        self.last_seq += 1
        self._others += kind is not _ACT
        self.reply = frame

    @property
    def steps(self) -> int:
        """How many ACT requests were executed."""
        return self.last_seq - self._others

    @property
    def is_executing(self) -> bool:
        """Whether a request has begun and has no reply yet. May be read from any thread."""
        return self.reply is _EXECUTING

    def has_abandoned(self, seq: int) -> bool:
        """Return whether the learner has sent request `seq` without waiting for the one before.

        May be called from any thread.
        """
        return seq > self.last_seq + 1 and self.is_executing

    def begin_step(self, seq: int) -> bool:
        """Begin an ACT if `judge` would have it executed; the fast path of a step.

        Returns:
            Whether the caller must execute the step, and then call `finish_step`, or `judge` and
            `finish` if the reply is an ERROR. If not, nothing has changed, and `judge` says what
            to do.
        """
        if seq != self.last_seq + 1 or not self._may_step:
            return False
        self.reply = _EXECUTING  # see `judge`
        return True

    def finish_step(self, seq: int, request: Frame | memoryview, frame: Frame | Pieces) -> None:
        """Record the PERCEPT that answers the step `seq` which has begun, as `finish` does."""
        assert self.reply is _EXECUTING, "no request has begun"
        assert self._kind is None, "the request that has begun is not a step"
        self._request, self.reply = request, frame
        self.last_seq = seq  # a PERCEPT leaves the state of the dialogue as it is

    def abort(self) -> None:
        """Forget that a request has begun, so that its repetition is executed."""
        if self.reply is _EXECUTING:
            self._kind, self.reply = None, b""

    def restamp(self, frame: Frame) -> None:
        """Replace the reply by the same reply with time stamps."""
        self.reply = frame

    def detach_reply(self) -> Frame:
        """Copy the reply if parts of it are still in the environment's memory, and return it."""
        if isinstance(self.reply, Pieces):
            self.reply = bytes(self.reply)
        return self.reply

    def drop_reply(self) -> None:
        """Drop the reply, whose memory may be freed when the environment closes."""
        self.reply = b""

    def _refuse(self, seq: int, code: str, text: str, **details: object) -> Verdict:
        self.refusal = PLAIN.encode(Error(code, text, dict(details)), self.sid, seq)
        return Verdict.REFUSE
