"""The env agent under test: every frame that it sends is checked, and every wait is bounded."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from gymwire.conformance import audit
from gymwire.conformance.check import Silence, Violation, expect, shown
from gymwire.conformance.session import Session
from gymwire.conformance.wires import Wire
from gymwire.protocol.codec import PLAIN, Codec, Header
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    NONCE_SIZE,
    Busy,
    Error,
    Kind,
    Message,
    Open,
    Opened,
    Progress,
)

FIRST_OPEN = 2**40  # the least number of an OPEN: larger than that of any request of a session
OPEN_BITS = 52  # of the numbers of OPEN: at random, so that no env agent can guess them (§7.4)
WAITS = 6  # a whole check may take as long as this many answers at most
TOLERANCE = 1.0  # seconds by which the time in a PROGRESS may exceed that until the reply

T = TypeVar("T")
Received = tuple[Header, bytes]


@dataclass
class Request:
    """A request that was sent.

    Attributes:
        frame: the latest one with its numbers.
        sent_at: when it was sent first.
        took_s: the seconds until its reply came; None before that.
    """

    frame: bytes
    sent_at: float
    took_s: float | None = None


class Agent:
    """An env agent, seen from its broker or from a learner.

    Args:
        wire: the connection.
        clock: returns the time in seconds.
        timeout_s: how long the env agent may take for one answer, or after each PROGRESS.

    Attributes:
        address: the address under test.
        sent, received: the last frame in each direction, for reports.
        progress: how many PROGRESS it has sent.
        capacity: how many sessions it takes at once.
    """

    is_broker = False

    def __init__(self, wire: Wire, clock: Callable[[], float], timeout_s: float) -> None:
        self.wire = wire
        self.address = ""
        self.sent = self.received = b""
        self.progress = 0
        self.capacity = 1
        self._clock, self._timeout_s = clock, timeout_s
        self._inbox: dict[int, deque[Received]] = {}  # by sid, or by -seq of an OPEN
        self.sessions: dict[int, Session] = {}  # those of this check
        self._ends_at = 0.0
        self._heard_at = 0.0
        self._again: list[tuple[float, bytes]] = []  # frames to repeat after BUSY, and when
        self._requests: dict[tuple[int, int], Request] = {}  # by sid and seq
        self.begin()

    # --- checks -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a check."""
        self.sent = self.received = b""
        self._inbox.clear()
        self._requests.clear()
        self._again.clear()
        self.sessions.clear()
        self._ends_at = self._clock() + WAITS * self._timeout_s

    def end(self) -> None:
        """End the sessions of a check."""

    # --- sending and waiting ----------------------------------------------------------------------

    def send(self, message: Message, sid: int = 0, seq: int = 0, codec: Codec = PLAIN) -> bytes:
        """Send a message; returns its frame."""
        return self.send_frame(bytes(codec.encode(message, sid, seq)))

    def send_frame(self, frame: bytes) -> bytes:
        """Send bytes as they are."""
        self.sent = frame

        def is_sent() -> object:
            return self.wire.send(frame) or None

        self.wait_for(is_sent, "a connection")
        return frame

    def wait_for(self, found: Callable[[], T | None], expected: str) -> T:
        """Return what `found` returns as soon as it is not None. Raises Silence."""
        began = self._clock()
        while (result := found()) is None:
            now = self._clock()
            if now > min(max(began, self._heard_at) + self._timeout_s, self._ends_at):
                raise Silence(expected, f"nothing within {now - began:.1f} s")
            self._pump(now)
        return result

    def _pump(self, now: float) -> None:
        """Receive at most one frame, and sort it."""
        for due, again in [one for one in self._again if one[0] <= now]:
            self._again.remove((due, again))
            self.wire.send(again)
        frame = self.wire.receive()
        expect(not self.wire.parts, "messages of one part", "a message of several parts", "3.2")
        if not frame:  # nothing, or a probe of a routing id
            return
        try:
            header = audit.header_of(frame)
        except Violation:
            self.received = frame
            raise
        if header.sid in self._inbox or -header.seq in self._inbox:
            self.received = frame
            self._sort(header, frame, now)
        elif header.kind >= CONTROL_KINDS and header.kind not in (Kind.PROGRESS, Kind.OPENED):
            self.received = frame
            self.handle(audit.message_of(frame, header, PLAIN), header)

    def _sort(self, header: Header, frame: bytes, now: float) -> None:
        """Keep a frame of a session until `next_of` returns it."""
        if header.kind is Kind.PROGRESS:
            self._check_progress(header, audit.message_of(frame, header, PLAIN))
            self._heard_at = now
            return
        if header.kind is Kind.GONE and not self.is_broker:
            raise Violation("a session that lives", shown(PLAIN.decode(frame, header)), "7.12")
        if header.kind is Kind.BUSY and not self.is_broker:
            busy = PLAIN.decode(frame, header)
            assert isinstance(busy, Busy)
            again = self._requests.get((header.sid, header.seq))
            if again is not None:
                self._again.append((now + min(busy.retry_after_s, self._timeout_s), again.frame))
            return
        request = self._requests.get((header.sid, header.seq))
        if request is not None and request.took_s is None:
            request.took_s = self._clock() - request.sent_at
        key = -header.seq if header.seq >= FIRST_OPEN else header.sid
        if key in self._inbox:
            self._inbox[key].append((header, frame))

    def _check_progress(self, header: Header, message: Message) -> None:
        """Check a PROGRESS. It may come after the reply to its request, by another connection."""
        assert isinstance(message, Progress)
        self.progress += 1
        if header.seq >= FIRST_OPEN:
            return
        expected, actual = "PROGRESS of a request in flight", f"PROGRESS of request {header.seq}"
        request = self._requests.get((header.sid, header.seq))
        if request is None:
            raise Violation(expected, f"{actual}, which was not sent", "7.8")
        if request.took_s is not None and message.since_s > request.took_s + TOLERANCE:
            seconds = (
                f"{message.since_s:.1f} s, although its reply came after {request.took_s:.1f} s"
            )
            raise Violation(expected, f"{actual} with {seconds}", "7.8")

    def handle(self, message: Message, header: Header) -> None:
        """Handle a message that belongs to no session of this check."""

    def remember(self, sid: int, seq: int, frame: bytes) -> None:
        """Send this frame again if the broker answers its numbers with BUSY."""
        request = self._requests.setdefault((sid, seq), Request(frame, self._clock()))
        request.frame = frame

    def next_of(self, key: int, expected: str) -> Received:
        """Return the next frame of a session. Raises Silence."""
        box = self._inbox[key]
        return self.wait_for(lambda: box.popleft() if box else None, expected)

    # --- sessions ---------------------------------------------------------------------------------

    def new_sid(self) -> int:
        """Return the session id of the next OPEN; 0 if the broker chooses it."""
        return 0

    def ask_to_open(self, request: Open) -> tuple[bytes, bytes, Header, Message]:
        """Send OPEN. Returns its frame, the answer's frame and header, and the answer."""
        sid, seq = self.new_sid(), FIRST_OPEN + secrets.randbits(OPEN_BITS)
        self._inbox[-seq] = deque()
        frame = self.send(request, sid, seq)
        self.remember(0, seq, frame)
        again = (self._clock() + self._timeout_s / 2, frame)
        self._again.append(again)  # as learners do: an OPEN is lost with a connection
        header, answer = self.next_of(-seq, "OPENED or ERROR in answer to OPEN")
        if again in self._again:
            self._again.remove(again)
        same = header.seq == seq and header.sid == (sid or header.sid)
        expect(same, f"the sid and seq of OPEN, {sid} and {seq}", header, "3.10")
        return frame, answer, header, audit.message_of(answer, header, PLAIN)

    def request(self, **fields: Any) -> Open:
        """Return an OPEN with a nonce of its own."""
        return Open(self.address, secrets.token_bytes(NONCE_SIZE), **fields)

    def open(self, **fields: Any) -> Session:
        """Open a session and return it. Raises Violation."""
        opened = self.try_open(**fields)
        if isinstance(opened, Error):
            raise Violation("OPENED", shown(opened), "4.2.1")
        return opened

    def try_open(self, **fields: Any) -> Session | Error:
        """Open a session; returns it, or the reason why there is none. Raises Violation."""
        request = self.request(**fields)
        frame, answer, header, opened = self.ask_to_open(request)
        if isinstance(opened, Error):
            return opened
        expect(isinstance(opened, Opened), "OPENED or ERROR", opened, "4.2")
        assert isinstance(opened, Opened)
        self._inbox[header.sid] = deque()
        session = Session(self, header, frame, answer, opened, request.nonce)
        self.sessions[header.sid] = session
        return session

    def receive_for(self, sid: int) -> None:
        """Keep the frames of a session that nobody has opened."""
        self._inbox[sid] = deque()

    def message_for(self, sid: int, expected: str) -> Message:
        """Return the next message in a session that nobody has opened. Raises Violation."""
        header, frame = self.next_of(sid, expected)
        return audit.message_of(frame, header, PLAIN)
