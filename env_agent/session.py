"""One session at the env agent: which request is new, which was answered, which must not be.

A request happens exactly once however often it arrives (docs/protocol.md §7).
"""

from __future__ import annotations

from enum import Enum

from gymwire.protocol import dialogue
from gymwire.protocol.codec import PLAIN, Frame, Pieces
from gymwire.protocol.errors import MoveError
from gymwire.protocol.messages import Code, Error, Kind


class Verdict(Enum):
    """What to do with a request that has arrived."""

    EXECUTE = "execute"
    REPEAT = "repeat"  # send `Session.answer` again
    REFUSE = "refuse"  # send `Session.refusal`; nothing has moved
    DROP = "drop"


class Session:
    """Numbers, the last reply, and the state of the dialogue."""

    def __init__(self, sid: int, nonce: bytes, address: str, learner: str) -> None:
        self.sid = sid
        self.key = sid.to_bytes(8, "little")  # as it stands in a frame
        self.nonce = nonce
        self.address = address
        self.learner = learner
        self.state = dialogue.State.READY
        self.last_seq = 0  # the number of the last request that was executed
        self.steps = 0
        self.answer: Frame | Pieces = b""
        self.refusal: Frame = b""
        self._request: Frame | memoryview = b""
        self._executing: tuple[Kind, int, Frame | memoryview] | None = None

    def stepped(self, seq: int, request: Frame | memoryview, frame: Frame | Pieces) -> None:
        """The ACT that was next was answered with this frame: a PERCEPT."""
        self.last_seq, self._request, self.answer = seq, request, frame
        self.steps += 1

    def settle(self) -> None:
        """Keep a copy of the last answer, if parts of it still lie with the environment."""
        if isinstance(self.answer, Pieces):
            self.answer = bytes(self.answer)

    def judge(self, kind: Kind, seq: int, data: Frame | memoryview) -> Verdict:
        """Decide about a request. EXECUTE must be followed by `executed`."""
        if seq == self.last_seq + 1:
            try:
                dialogue.check_request(self.state, kind)
            except MoveError as error:
                return self._refuse(seq, Code.PROTOCOL, str(error))
            self._executing = (kind, seq, data)
            # Who asks for this has had that; and it may lie in memory of the environment's.
            self.answer = b""
            return Verdict.EXECUTE
        if seq == self.last_seq:
            if data != self._request:
                return self._refuse(
                    seq,
                    Code.PROTOCOL,
                    f"Request {seq} was executed already, with another content: a repeated "
                    f"request must be the same to the byte.",
                )
            return Verdict.REPEAT
        if seq < self.last_seq:
            return Verdict.DROP
        return self._refuse(
            seq,
            Code.EXPECTED,
            f"Request {seq} came, but {self.last_seq + 1} is next.",
            expected=self.last_seq + 1,
        )

    def executed(self, reply: Kind, frame: Frame) -> None:
        """The request that `judge` let through was answered with this frame."""
        assert self._executing is not None
        kind, self.last_seq, self._request = self._executing
        self._executing = None
        self.state = dialogue.after(self.state, kind, reply)
        self.steps += kind is Kind.ACT
        self.answer = frame

    def _refuse(self, seq: int, code: str, text: str, **details: object) -> Verdict:
        self.refusal = PLAIN.encode(Error(code, text, dict(details)), self.sid, seq)
        return Verdict.REFUSE
