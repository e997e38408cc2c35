"""Reading while other threads execute something: give them their steps, and send their replies.

Thousands of sessions send their next steps together. What a step costs here delays all the others,
so this is a hot path, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gymwire.env_agent.bad_frames import BadFrames
from gymwire.env_agent.busy_tracker import BusyTracker
from gymwire.env_agent.crew import MAX_JOBS, Crew, Executor
from gymwire.env_agent.jobs import Jobs
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.transports import Transports
from gymwire.protocol.codec import COMPACT, HEAD_LEN, HEADER_SIZE, MAGIC, SID, UP_TO_FLAGS
from gymwire.protocol.messages import VERSION, Kind
from gymwire.protocol.transport.interface import Received

COLLECT_EVERY = 16  # frames that arrived together; fewer would be sent with more calls
# How the frame of a step without time stamps begins.
_STEPS = {bytes((MAGIC, VERSION, Kind.ACT, flags)) for flags in (0, COMPACT)}


class SharedReading:
    """Receives for the reader of one serving loop while other threads execute something.

    Args:
        host: the sessions.
        crew: the threads of the loop.
        jobs: what executors do.
        bad_frames: replies to frames whose handling raises.
        tracker: tracks when frames are read.
        note_turn: called with the slot of each step that is given to its thread.
        clock: returns the time in seconds.

    Attributes:
        transports: what the loop receives with, once it is connected.
    """

    transports: Transports

    def __init__(
        self,
        host: SessionHost,
        crew: Crew,
        jobs: Jobs,
        bad_frames: BadFrames,
        tracker: BusyTracker,
        note_turn: Callable[[Slot], None],
        clock: Callable[[], float],
    ) -> None:
        self._host = host
        self._crew = crew
        self._jobs = jobs
        self._bad_frames = bad_frames
        self._tracker = tracker
        self._note_turn = note_turn
        self._clock = clock
        self._frames_left = 0  # to receive before the results of other threads are sent

    def receive(self, me: Executor, until: float) -> Received | None:
        """Return the next frame that the reader `me` must handle, or None after a tick without one.

        Meanwhile, other threads get their steps, and their results are sent.
        `me` may then be the reader no longer.

        Args:
            me: the reader.
            until: when to return the next frame anyway, in monotonic seconds.
        """
        transports, clock, give, crew = self.transports, self._clock, self._give, self._crew
        while True:
            arrived = None
            if self._frames_left:
                self._frames_left -= 1
                arrived = transports.receive_buffered()
            if arrived is None:
                arrived = self._wait(me)
                self._frames_left = 0 if self._tracker.is_active else COLLECT_EVERY
            now = clock()
            if arrived is None or now >= until or not give(me, arrived, now):
                self._frames_left = 0  # results go first: the caller may be busy with this frame
                return arrived
            if crew.reader is not me:  # an exception was handled, and then the role handed over
                return None

    def _wait(self, me: Executor) -> Received | None:
        """Return the next frame, or None after a tick without one; send results meanwhile."""
        crew, tracker = self._crew, self._tracker
        while True:
            try:
                crew.collect(me)
            except BaseException as error:  # noqa: BLE001 - a bug must not end the loop
                self._jobs.count_failure(error)
            if crew.reader is not me:
                return None
            if not crew.announce_wait() or crew.wakeup is None:
                continue
            waited = tracker.is_active and not self.transports.poll()
            arrived, woken = self.transports.receive_or_wake(crew.wakeup)
            crew.end_wait(woken=woken)
            if arrived is not None and tracker.is_active:
                tracker.frame_read(waited)
            if arrived is not None or not woken:
                return arrived

    def _give(self, me: Executor, arrived: Received, now: float) -> bool:
        """Give a step to its thread with less work than the loop; return False for other frames.

        It must have no time stamps, and belong to one of several sessions, with slow steps.
        """
        path, origin, data = arrived
        if bytes(data[UP_TO_FLAGS]) not in _STEPS or HEADER_SIZE + int.from_bytes(
            data[HEAD_LEN], "little"
        ) > len(data):
            return False
        try:
            host, transports = self._host, self.transports
            slot = host.by_key.get(bytes(data[SID]))
            if slot is None or slot.is_fast or slot.executor is me or len(host.slots) == 1:
                return False
            if path:
                direct = transports.direct
                if direct is None or not direct.bound_listener(slot.session.sid, path, origin):
                    return False
            self._note_turn(slot)
            if slot.executor.jobs < MAX_JOBS:  # else the learner repeats it
                if transports.zero_copy is not None:
                    transports.detach_reply()
                slot.heard_at = now
                self._crew.give(slot.executor, partial(self._jobs.execute, slot, path, data, None))
        except BaseException as error:  # noqa: BLE001 - a bug must not end the loop
            self._bad_frames.failed(me, arrived, error)
        return True
