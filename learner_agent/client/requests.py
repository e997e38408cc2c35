"""The learner's requests to the broker itself: numbers, resending, answers.

OPEN is one of them: the broker forwards it, and an env agent answers. This module uses no socket
and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from gymwire.protocol.codec import (
    HEADER_SIZE,
    PLAIN,
    SID,
    Frame,
    Header,
)
from gymwire.protocol.control_limits import check_control
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import KINDS, Kind, Message, Ping

BROKER_RESEND_S = 0.5  # the first silence after which a request is sent again; doubles each time
BROKER_RESEND_MAX_S = 4.0
MAX_REPEATED = 64  # requests that are sent again at one time
MAX_SHARED = 64  # different messages of which the sessions that are opened together share one
MAX_SHARED_SIZE = 64 * 1024  # bytes of such a message; of larger ones, only the first is shared
MIN_RETRY_S = 0.05  # the shortest pause after BUSY
FIRST_SEQ = 2**40  # beyond the numbers of sessions: a late ERROR of a session answers none of these
SEQ_BITS = 52  # random, so that no env agent can answer a request that it did not get
_ADVICE = {
    Kind.OPEN: "Make env_kwargs smaller: for example, pass the name of a file that the env agent "
    "can read.",
}
ANSWERS = (
    Kind.OPENED,
    Kind.FOUND,
    Kind.RESUMED,
    Kind.OBSERVED,
    Kind.STOPPED,
    Kind.WATCHED,
    Kind.ERROR,
)

Answer = tuple[Header, Message, bytes | memoryview]


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request to the broker, and its answer, once it has arrived, with header and frame.

    `error`: that of an answer that could not be decoded.
    """

    seq: int
    frame: Frame
    resend_at: float
    resend_s: float = BROKER_RESEND_S
    answer: Answer | None = None
    error: DecodingError | None = None


Keep = Callable[[PendingRequest], object]


def ignore(_: PendingRequest) -> None:
    """Do nothing with a request."""


class BrokerRequests:
    """The requests to the broker that a caller waits for.

    Args:
        ping_s: the pause between two PINGs, in seconds.
        random_bits: takes a number of bits, and returns an unpredictable integer of this size.

    Attributes:
        answered: those that have an answer, by their numbers.
    """

    def __init__(self, ping_s: float, random_bits: Callable[[int], int]) -> None:
        self.answered: dict[int, PendingRequest] = {}
        self._ping_s, self._random_bits = ping_s, random_bits
        self._ping_at = 0.0
        self._pending: dict[int, PendingRequest] = {}
        # Of sessions that are opened together: OPENED by its content, which many of them share.
        self._opened: dict[bytes, Message] = {}

    def add(self, message: Message, sid: int, now: float, keep: Keep = ignore) -> PendingRequest:
        """Return a new request, whose frame the caller sends now.

        Raises ConfigurationError if it is larger than a broker accepts.

        Args:
            message: the request.
            sid: the session that it concerns, or 0.
            now: the time in monotonic seconds.
            keep: called with the request before it can be sent.
        """
        while (seq := FIRST_SEQ + self._random_bits(SEQ_BITS)) in self._pending:
            pass
        frame = PLAIN.encode(message, sid, seq)
        kind = KINDS[type(message)]
        check_control(kind.name, frame, _ADVICE.get(kind, ""))
        request = PendingRequest(seq, frame, now + BROKER_RESEND_S)
        keep(request)
        self._pending[request.seq] = request
        return request

    def receive(self, header: Header, data: bytes | memoryview) -> bool:
        """Keep a frame that answers a request; return whether it does."""
        request = self._pending.get(header.seq)
        if request is None or header.kind not in ANSWERS:
            return False
        if request.answer is None:
            request.answer = (header, self._decode(header, data), data)
        self.answered[header.seq] = request
        return True

    def fail(self, header: Header, error: DecodingError) -> bool:
        """Keep the error of a frame that answers a request; return whether it does."""
        request = self._pending.get(header.seq)
        if request is None or header.kind not in ANSWERS:
            return False
        request.error = error
        self.answered[header.seq] = request
        return True

    def _decode(self, header: Header, data: bytes | memoryview) -> Message:
        if header.kind is not Kind.OPENED:
            return PLAIN.decode(data, header)
        content = bytes(data[: SID.start]) + bytes(data[HEADER_SIZE:])  # all but the numbers
        message = self._opened.get(content)
        if message is None:
            message = PLAIN.decode(data, header)
            is_small = len(content) <= MAX_SHARED_SIZE
            if len(self._opened) < (MAX_SHARED if is_small else 1):
                self._opened[content] = message
        return message

    def first_answered(self, pending: Container[int]) -> int | None:
        """Return the number of one of these requests that has an answer, or None.

        Raises DecodingError if the answer is malformed.
        """
        for number, request in self.answered.items():
            if number in pending:
                if request.error is not None:
                    raise request.error
                return number
        return None

    def throttled(self, seq: int, retry_after_s: float, now: float) -> None:
        """Repeat a request that the broker has not handled when its rate limit admits it."""
        request = self._pending.get(seq)
        if request is not None:
            request.resend_at = now + min(max(MIN_RETRY_S, retry_after_s), BROKER_RESEND_MAX_S)

    def forget(self, requests: Iterable[PendingRequest]) -> None:
        """Drop requests whose answers nobody waits for anymore."""
        for request in requests:
            self._pending.pop(request.seq, None)
            self.answered.pop(request.seq, None)
        if not self._pending:
            self._opened = {}

    def reconnected(self, now: float) -> None:
        """Send all requests again over a new connection."""
        for request in self._pending.values():
            request.resend_at = now

    @property
    def is_waiting(self) -> bool:
        """Whether a request has no answer yet."""
        return any(request.answer is None for request in self._pending.values())

    @property
    def largest(self) -> int:
        """The size of the largest request that has no answer yet, in bytes."""
        waiting = (one for one in self._pending.values() if one.answer is None)
        return max((len(one.frame) for one in waiting), default=0)

    def send_due(self, now: float, send: Callable[[Frame], bool]) -> bool:
        """Send what is due; return whether there were requests, and all of them were accepted."""
        pings, requests = self.pings(now), self.due(now)
        for frame in (*pings, *requests):
            if not send(frame):
                return False  # each further attempt could wait for a tick
        return bool(requests)

    def pings(self, now: float) -> list[Frame]:
        """Return a PING if one is due: an env agent may take long to answer, the broker may not."""
        if now < self._ping_at or not self.is_waiting:
            return []
        self._ping_at = now + self._ping_s
        return [PLAIN.encode(Ping())]

    def due(self, now: float) -> list[Frame]:
        """Return the requests that are to be sent again, with the same bytes."""
        frames: list[Frame] = []
        for request in self._pending.values():
            if request.answer is None and now >= request.resend_at:
                frames.append(request.frame)
                request.resend_s = min(request.resend_s * 2, BROKER_RESEND_MAX_S)
                request.resend_at = now + request.resend_s
                if len(frames) == MAX_REPEATED:  # the others the next time
                    break
        return frames
