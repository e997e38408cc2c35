"""What the reader of a serving loop does with frames while other threads execute something."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from gymwire.env_agent.bad_frames import BadFrames
from gymwire.env_agent.busy_tracker import BusyTracker
from gymwire.env_agent.crew import MAX_JOBS, Crew, Executor
from gymwire.env_agent.jobs import Jobs
from gymwire.env_agent.shared_reading import COLLECT_EVERY, SharedReading
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.timed_steps import TimedSteps
from gymwire.env_agent.transports import RELAY, Transports
from gymwire.protocol.codec import FLAGS_AT, HEAD_LEN, PLAIN, TIMED
from gymwire.protocol.messages import Act, Message, Ping, Reset
from gymwire.protocol.transport.interface import Received
from tests.env_agent.test_loop import SERVICE
from tests.wire import Network

FOREVER = float("inf")
COUNT = 3  # sessions
PATH = b"\x02a direct path"


class Arriving:
    """Transports with frames that arrived together: the first has to be waited for."""

    zero_copy = None
    direct: Any = None

    def __init__(self) -> None:
        self.frames: list[Received] = []
        self.waits = 0
        self.bound: set[int] = set()  # sessions that are bound to `PATH`

    def receive_buffered(self) -> Received | None:
        return self.frames.pop(0) if self.frames else None

    def receive_or_wake(self, _: object) -> tuple[Received | None, bool]:
        self.waits += 1
        return self.receive_buffered(), False

    def bound_listener(self, sid: int, path: bytes, _: object) -> object:
        return self if path == PATH and sid in self.bound else None


class Shared:
    """A reader with the sessions of other threads, in which nobody executes their jobs."""

    def __init__(self, network: Network) -> None:
        loop = network.env_agent(SERVICE)
        for _ in range(COUNT):
            network.connection().open("failing").request(Reset())
        self.slots = list(loop.host.slots.values())
        for slot in self.slots:
            slot.executor, slot.is_fast = Executor(), False
        self.crew = Crew(lambda me: None)
        self.collected: list[int] = []  # how many frames were left when results were sent
        self.crew.collect = lambda me: self.collected.append(len(self.arriving.frames))  # type: ignore[method-assign]
        self.arriving = Arriving()
        self.turns: list[Slot] = []
        timed = TimedSteps(loop.host.requests, time.monotonic_ns)
        jobs = Jobs(loop.host.requests, timed, lambda _: None, lambda *_: None, time.monotonic)
        self.bad_frames = BadFrames(loop.host, self.crew, jobs, time.monotonic)
        self.reading = SharedReading(
            loop.host,
            self.crew,
            jobs,
            self.bad_frames,
            BusyTracker(time.monotonic_ns),
            self.turns.append,
            time.monotonic,
        )
        self.reading.transports = cast(Transports, self.arriving)

    def add(self, slot: Slot, message: Message | None = None, path: bytes = RELAY) -> bytes:
        """Let the next request of a session arrive, by default a step."""
        seq = slot.session.last_seq + 1
        frame = bytes(slot.codec.encode(message or Act(1), slot.session.sid, seq))
        self.arriving.frames.append((path, None, frame))
        return frame

    def receive(self, until: float = FOREVER) -> Received | None:
        return self.reading.receive(self.crew.own, until)

    @property
    def given(self) -> list[int]:
        """How many jobs the thread of each session has got."""
        return [len(slot.executor.inbox) for slot in self.slots]


@pytest.fixture
def shared() -> Iterator[Shared]:
    with Network() as network:
        made = Shared(network)
        yield made
        if made.crew.wakeup is not None:
            made.crew.wakeup.close()


def test_steps_that_arrived_together_are_given_without_a_wait_for_each(
    shared: Shared,
) -> None:
    for slot in shared.slots:
        shared.add(slot)
    assert shared.receive() is None
    assert shared.given == [1] * COUNT
    assert shared.turns == shared.slots
    assert shared.crew.outside == COUNT
    assert shared.arriving.waits == 2  # for the first one, and after the last one
    assert all(slot.executor.inbox.popleft()() for slot in shared.slots)
    assert [slot.session.steps for slot in shared.slots] == [1] * COUNT


def test_results_are_sent_although_frames_keep_arriving(shared: Shared) -> None:
    for _ in range(3 * COLLECT_EVERY):
        shared.add(shared.slots[0])
    assert shared.receive() is None
    gaps = [a - b for a, b in zip(shared.collected, shared.collected[1:], strict=False)]
    assert max(gaps) == COLLECT_EVERY + 1
    assert shared.collected[-1] == 0


def test_a_session_with_many_unfinished_steps_gets_no_more(shared: Shared) -> None:
    for _ in range(2 * MAX_JOBS):
        shared.add(shared.slots[0])
    assert shared.receive() is None
    assert shared.given == [MAX_JOBS, 0, 0]


def test_the_next_frame_is_returned_when_it_is_time_for_something_else(shared: Shared) -> None:
    frame = shared.add(shared.slots[0])
    assert shared.receive(until=0.0) == (RELAY, None, frame)
    assert shared.given == [0, 0, 0]


@pytest.mark.parametrize("message", [Reset(), Ping()])
def test_a_frame_that_is_no_step_is_left_to_the_reader(shared: Shared, message: Message) -> None:
    shared.add(shared.slots[1])
    frame = shared.add(shared.slots[0], message)
    assert shared.receive() == (RELAY, None, frame)
    assert shared.given == [0, 1, 0]


def test_a_step_of_the_reader_of_a_fast_session_or_of_none_is_left_to_the_reader(
    shared: Shared,
) -> None:
    own, fast, _ = shared.slots
    own.executor, fast.is_fast = shared.crew.own, True
    for slot in (own, fast):
        frame = shared.add(slot)
        assert shared.receive() == (RELAY, None, frame)
    frame = bytes(PLAIN.encode(Act(1), 7, 2))
    shared.arriving.frames = [(RELAY, None, frame)]
    assert shared.receive() == (RELAY, None, frame)
    assert shared.given == [0, 0, 0]


def test_a_timed_or_a_malformed_step_is_left_to_the_reader(shared: Shared) -> None:
    step = shared.add(shared.slots[0])
    timed, long, wrong = bytearray(step), bytearray(step), bytearray(step)
    timed[FLAGS_AT] |= TIMED
    long[HEAD_LEN] = (len(step)).to_bytes(4, "little")
    wrong[0] ^= 1
    shared.arriving.frames = [(RELAY, None, bytes(one)) for one in (timed, long, wrong, step[:20])]
    for frame in list(shared.arriving.frames):
        assert shared.receive() == frame
    assert shared.given == [0, 0, 0]


def test_a_direct_step_is_given_only_if_its_session_is_bound_to_the_path(
    shared: Shared,
) -> None:
    one, other, _ = shared.slots
    shared.add(one, path=PATH)
    frame = shared.add(other, path=PATH)
    shared.arriving.direct = shared.arriving
    shared.arriving.bound = {one.session.sid}
    assert shared.receive() == (PATH, None, frame)
    shared.arriving.direct = None  # it was closed meanwhile
    frame = shared.add(one, path=PATH)
    assert shared.receive() == (PATH, None, frame)
    assert shared.given == [1, 0, 0]


def test_an_exception_in_the_middle_concerns_one_frame_only(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Received] = []
    monkeypatch.setattr(shared.bad_frames, "failed", lambda _, arrived, __: failed.append(arrived))
    give = shared.crew.give

    def give_or_raise(executor: Executor, job: Any) -> None:
        if executor is shared.slots[1].executor:
            raise KeyboardInterrupt
        give(executor, job)

    monkeypatch.setattr(shared.crew, "give", give_or_raise)
    frames = [shared.add(slot) for slot in shared.slots]
    assert shared.receive() is None
    assert shared.given == [1, 0, 1]
    assert failed == [(RELAY, None, frames[1])]


def test_nothing_is_received_after_an_exception_that_hands_the_role_over(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        shared.crew.reader = shared.slots[1].executor

    def give(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shared.bad_frames, "failed", fail)
    monkeypatch.setattr(shared.crew, "give", give)
    for slot in shared.slots:
        shared.add(slot)
    assert shared.receive() is None
    assert len(shared.arriving.frames) == COUNT - 1


def test_results_are_sent_before_the_next_frame_after_one_for_the_loop(shared: Shared) -> None:
    shared.add(shared.slots[0])
    shared.add(shared.slots[1], Reset())
    shared.add(shared.slots[2])
    assert shared.receive() is not None
    assert shared.collected == [3]  # before the first frame
    assert shared.receive() is None
    assert shared.collected == [3, 1, 0]


def test_nothing_is_received_after_the_role_was_handed_over(shared: Shared) -> None:
    def collect(me: Executor) -> None:
        shared.crew.reader = shared.slots[0].executor

    shared.crew.collect = collect  # type: ignore[method-assign]
    shared.arriving.frames = [(RELAY, None, bytes(PLAIN.encode(Ping())))]
    assert shared.receive() is None
    assert len(shared.arriving.frames) == 1
