"""The one waiting loop of the learner agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from gymwire.protocol.transport.interface import TICK_MS
from gymwire.protocol.transport.polling import wait_among

TICK_S = TICK_MS / 1000
TIMERS_EVERY = 64  # frames after which timers run even if answers arrive without a pause
TIMERS_SHARE = 40  # the pause between two runs of many sessions' timers, in durations of a run
TIMERS_PAUSE_S = 1.0  # the longest such pause: over a full connection, a run takes much longer


class Source(Protocol):
    """A place from which frames arrive, and their receiver."""

    @property
    def path(self) -> Any:
        """The current connection: it can `poll`, `receive` and stand in `wait_among`."""

    def receive_frame(self, data: bytes | memoryview) -> bool:
        """Handle a frame; return whether it answers a request."""


class Waiting(Protocol):
    """A way to wait: `wait`, or what does the same in another way."""

    def __call__(
        self,
        until: Callable[[], bool],
        deadline: float | None,
        *,
        sources: Iterable[Source],
        run_timers: Callable[[float], None],
        clock: Callable[[], float],
        tick_s: float = TICK_S,
        longest_pause_s: float = TIMERS_PAUSE_S,
    ) -> bool:
        """Receive frames until a condition holds; return False if the deadline comes first."""


def wait(
    until: Callable[[], bool],
    deadline: float | None,
    *,
    sources: Iterable[Source],
    run_timers: Callable[[float], None],
    clock: Callable[[], float],
    tick_s: float = TICK_S,
    longest_pause_s: float = TIMERS_PAUSE_S,
) -> bool:
    """Receive frames until a condition holds; return False if the deadline comes first.

    Timers run after each tick without a frame, after each frame that answers no request (it may
    have moved a timer), and after every `TIMERS_EVERY` frames; while frames arrive, they take at
    most a fortieth of the time, unless a run takes more than 25 ms.

    Args:
        until: the condition; whatever it raises ends the waiting.
        deadline: a reading of `clock`, in seconds; None: wait without limit.
        sources: where frames arrive; asked again after the timers ran.
        run_timers: called with the time; whatever it raises ends the waiting.
        clock: returns the time in seconds.
        tick_s: the longest pause between two runs of the timers while no frame arrives, at most
            TICK_S.
        longest_pause_s: the longest pause while frames arrive.
    """
    frames = frames_before = 0  # altogether, and when the timers ran last
    timers_at = 0.0
    by_path: dict[Any, Source] = {}  # empty: the timers may have changed the paths
    is_due = False  # whether a frame may have moved a timer since the timers ran
    while not until():
        by_path = by_path or {source.path: source for source in sources}
        left_s = tick_s if deadline is None else min(max(deadline - clock(), 0.0), tick_s)
        if is_due:
            left_s = min(left_s, max(timers_at - clock(), 0.0))
        received, strays = _receive(by_path, left_s)
        frames += received
        is_due = is_due or strays > 0
        if received and not strays and frames - frames_before < TIMERS_EVERY:
            continue
        now = clock()
        if received and now < timers_at:
            continue
        # The timers may raise something else than what an answer in the same bundle has brought.
        if 0 < strays < received and until():
            return True
        run_timers(now)
        timers_at, is_due, by_path = now + timers_pause(clock() - now, longest_pause_s), False, {}
        frames_before = frames
        # A frame that has arrived in time counts, even if it is read later.
        if deadline is not None and now >= deadline and (not received or frames > TIMERS_EVERY):
            return until()
    return True


def timers_pause(spent_s: float, most_s: float = TIMERS_PAUSE_S) -> float:
    """Return the pause after a run of the timers that took `spent_s`: at most `most_s` seconds."""
    return min(TIMERS_SHARE * spent_s, most_s)


def _receive(by_path: Mapping[Any, Source], timeout_s: float) -> tuple[int, int]:
    """Receive what arrives first, and the whole frames that came with it.

    Returns how many frames arrived, and how many of them answer no request. Raises what handling a
    frame raises; the later ones stay where they are.
    """
    if len(by_path) > 1:
        paths = [*by_path]
        ready = [paths[i] for i in wait_among(paths, timeout_s)]
    else:
        (path,) = by_path
        # A receive that blocks for a tick needs no poll before it.
        ready = [path] if timeout_s == TICK_S or path.poll(timeout_s) else []
    received = strays = 0
    for path in ready:
        source = by_path[path]
        for _ in range(TIMERS_EVERY):
            data = path.receive()
            if data is None:
                break
            received += 1
            strays += not source.receive_frame(data)
            if not path.has_frame:
                break
    return received, strays
