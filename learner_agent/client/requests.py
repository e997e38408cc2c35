"""The learner's requests to the broker itself, any number at once: numbers, resending, answers.

OPEN is one of them: the broker passes it on, and an agent answers. No socket and no clock is seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gymwire.protocol.codec import PLAIN, Frame, Header
from gymwire.protocol.messages import Kind, Message

RESEND_S = 0.5  # the first silence after which a request is sent again; doubles each time
RESEND_MAX_S = 4.0
FIRST_SEQ = 2**40  # beyond the requests of sessions: a late ERROR of one answers no question
ANSWERS = (Kind.OPENED, Kind.FOUND, Kind.RESUMED, Kind.ERROR)

Answer = tuple[Header, Message, bytes | memoryview]


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request to the broker. `answer`: once it is here, with its header and its frame."""

    seq: int
    frame: Frame
    resend_at: float
    resend_s: float = RESEND_S
    answer: Answer | None = None


class BrokerRequests:
    """The requests to the broker that somebody waits for."""

    def __init__(self) -> None:
        self._seq = FIRST_SEQ
        self._questions: dict[int, PendingRequest] = {}

    def ask(self, request: Message, sid: int, now: float) -> PendingRequest:
        """A new question, whose frame is to be sent now."""
        self._seq += 1
        frame = PLAIN.encode(request, sid, self._seq)
        question = self._questions[self._seq] = PendingRequest(self._seq, frame, now + RESEND_S)
        return question

    def take(self, header: Header, data: bytes | memoryview) -> bool:
        """Whether a frame answers a question; it is kept there then."""
        question = self._questions.get(header.seq)
        if question is None or header.kind not in ANSWERS:
            return False
        if question.answer is None:
            question.answer = (header, PLAIN.decode(data, header), data)
        return True

    def forget(self, questions: Iterable[PendingRequest]) -> None:
        """Nobody waits for these any more."""
        for question in questions:
            self._questions.pop(question.seq, None)

    def relinked(self, now: float) -> None:
        """The connection was made anew: all goes out again."""
        for question in self._questions.values():
            question.resend_at = now

    def due(self, now: float) -> list[Frame]:
        """What is to be sent again, the same bytes, since nothing has answered for a while."""
        frames: list[Frame] = []
        for question in self._questions.values():
            if question.answer is None and now >= question.resend_at:
                frames.append(question.frame)
                question.resend_s = min(question.resend_s * 2, RESEND_MAX_S)
                question.resend_at = now + question.resend_s
        return frames
