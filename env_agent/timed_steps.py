"""Steps whose learner requests time stamps (docs/protocol.md §8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymwire.env_agent.busy_tracker import BusyTracker
from gymwire.env_agent.requests import RequestHandler
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.transports import Transports
from gymwire.protocol import codec, stamps
from gymwire.protocol.codec import KIND_AT, PLAIN, SEQ, Frame, Pieces
from gymwire.protocol.errors import ProtocolError
from gymwire.protocol.messages import Code, Error, Kind
from gymwire.protocol.transport.interface import Received

BusyTimes = tuple[int, int]
"""Since when the loop was busy, and when it read the request (monotonic nanoseconds)."""


class TimedSteps:
    """Executes the timed steps of one serving loop. `clock` returns monotonic nanoseconds."""

    def __init__(self, requests: RequestHandler, clock: Callable[[], int]) -> None:
        self.tracker = BusyTracker(clock)
        self._requests = requests
        self._clock = clock

    def receive(self, transports: Transports, sessions: int) -> Received | None:
        """Return the next frame as `Transports.receive` does, and note when it was read."""
        waited = not transports.poll()
        arrived = transports.receive(sessions)
        if arrived is not None:
            self.tracker.frame_read(waited)
        return arrived

    def step(self, slot: Slot, data: bytes | memoryview, busy: BusyTimes) -> Frame | None:
        """Execute an ACT that requests time stamps, and return its reply.

        `busy`: what `tracker.stamps_requested` returned to the reader.

        Returns None if the frame is not such an ACT, or needs no reply.
        """
        if data[KIND_AT] != Kind.ACT or slot.steps is None:
            return None
        busy_since, received = busy
        try:
            # The session judges the request, and compares a repetition, without its stamps.
            request, passed = stamps.strip_request(data)
            header = codec.read_header(request)
        except ProtocolError as error:
            seq = int.from_bytes(data[SEQ], "little")
            return PLAIN.encode(Error(Code.PROTOCOL, str(error)), slot.session.sid, seq)
        at: list[int] = []

        def run_step(action: Any) -> Any:
            at.append(self._clock())
            step = slot.runner.step(action)
            at.append(self._clock())
            return step

        requests = self._requests
        reply = requests.step(slot, request, run_step)
        if reply is None:
            reply = requests.handle(slot, header, request, run_step)
        if isinstance(reply, Pieces):
            reply = slot.session.detach_reply()
        # Without two stamps, the step was not executed now: the reply is a repetition or an ERROR.
        if reply is None or len(at) != 2 or reply[KIND_AT] != Kind.PERCEPT:
            return reply
        if len(reply) + stamps.REPLY_SIZE > requests.max_message:
            return reply
        started, ended = at
        # The learner sent this request after the last reply: the loop was not busy for it before.
        busy_since = max(busy_since, slot.replied_at)
        reply = stamps.append_reply(
            reply, passed, busy_since, received, started, ended, self._clock
        )
        slot.session.restamp(reply)
        slot.replied_at = self._clock()
        return reply
