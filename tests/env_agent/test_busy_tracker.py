"""Since when a serving loop works without a rest, with a clock in the test's hand."""

from __future__ import annotations

import pytest

from gymwire.env_agent.busy_tracker import KEEP, BusyTracker


class Clock:
    now = 1000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> BusyTracker:
    """One that was asked for stamps at 1000."""
    made = BusyTracker(clock)
    made.asked()
    return made


def test_nobody_is_watched_before_somebody_asks(clock: Clock) -> None:
    assert not BusyTracker(clock).is_on()


def test_the_first_request_passes_for_one_that_was_waited_for(clock: Clock) -> None:
    assert BusyTracker(clock).asked() == (1000, 1000)


def test_a_request_that_was_waited_for_found_nothing_before_it(
    watch: BusyTracker, clock: Clock
) -> None:
    clock.now = 2000
    watch.read(waited=True)
    clock.now = 2500  # what is asked for is when it was read
    assert watch.asked() == (2000, 2000)


def test_a_request_behind_others_was_behind_all_since_the_last_rest(
    watch: BusyTracker, clock: Clock
) -> None:
    for clock.now, waited in ((2000, True), (3000, False), (4000, False)):
        watch.read(waited)
    assert watch.asked() == (2000, 4000)


def test_the_watch_ends_when_nobody_has_asked_for_a_while(watch: BusyTracker, clock: Clock) -> None:
    for _ in range(KEEP):
        assert watch.is_on()
        watch.read(waited=True)
    assert not watch.is_on()


def test_what_was_read_before_the_watch_ended_is_forgotten(
    watch: BusyTracker, clock: Clock
) -> None:
    for _ in range(KEEP):
        watch.read(waited=True)
    clock.now = 5000
    assert watch.asked() == (5000, 5000)
