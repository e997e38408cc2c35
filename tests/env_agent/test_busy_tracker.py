"""Since when a serving loop has been busy, with a fake clock."""

from __future__ import annotations

import pytest

from gymwire.env_agent.busy_tracker import TRACKED_READS, BusyTracker


class Clock:
    now = 1000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> BusyTracker:
    """A tracker from which stamps were requested at 1000."""
    made = BusyTracker(clock)
    made.stamps_requested()
    return made


def test_a_new_tracker_is_inactive(clock: Clock) -> None:
    assert not BusyTracker(clock).is_active


def test_the_first_request_counts_as_one_that_the_loop_waited_for(clock: Clock) -> None:
    assert BusyTracker(clock).stamps_requested() == (1000, 1000)


def test_a_request_that_the_loop_waited_for_was_not_queued(
    tracker: BusyTracker, clock: Clock
) -> None:
    clock.now = 2000
    tracker.frame_read(waited=True)
    clock.now = 2500  # the time of reading counts, not the time of the request for stamps
    assert tracker.stamps_requested() == (2000, 2000)


def test_a_queued_request_was_behind_all_requests_since_the_last_wait(
    tracker: BusyTracker, clock: Clock
) -> None:
    for clock.now, waited in ((2000, True), (3000, False), (4000, False)):
        tracker.frame_read(waited)
    assert tracker.stamps_requested() == (2000, 4000)


def test_tracking_ends_when_no_stamps_are_requested_for_a_while(
    tracker: BusyTracker, clock: Clock
) -> None:
    for _ in range(TRACKED_READS):
        assert tracker.is_active
        tracker.frame_read(waited=True)
    assert not tracker.is_active


def test_a_frame_read_while_tracking_was_off_has_no_old_time(
    tracker: BusyTracker, clock: Clock
) -> None:
    for _ in range(TRACKED_READS):
        tracker.frame_read(waited=True)
    clock.now = 5000
    assert tracker.stamps_requested() == (5000, 5000)
