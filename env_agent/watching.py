"""Frames for watchers, rendered between two requests of a session and only while somebody watches.

Several watchers of an environment share its frames. Each WATCH gets one answer: nothing is queued.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from gymwire.env_agent import failure_reports
from gymwire.env_agent.crew import MAX_JOBS, Crew, Executor, Sequel
from gymwire.env_agent.forks import end_if_forked
from gymwire.env_agent.pictures import shown
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.slot import Slot
from gymwire.protocol.codec import MAX_CONTROL, PLAIN, Frame, Header
from gymwire.protocol.dialogue import State
from gymwire.protocol.messages import Watch, Watched

FORGET_S = 1.0  # an environment that nobody has watched for this long has no share of the rate
MAX_WATCHERS = 64  # that wait for one frame
HEAD_BYTES = 1024  # of a WATCHED, at most, without the frame
MAX_WHY = 300  # characters


@dataclass(slots=True)
class _View:
    """The latest frame of an environment, and the WATCH requests that wait for the next one."""

    frame: Watched = field(default_factory=partial(Watched, 0))
    rendered_at: float = -math.inf
    asked_at: float = 0.0
    waiting: dict[int, int] = field(default_factory=dict)  # `after`, by the number of the request


class Watching:
    """Answers WATCH for the sessions of one serving loop. Used by its reader.

    Args:
        host: the sessions.
        crew: the threads of the loop.
        send: sends a frame to the broker.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        host: SessionHost,
        crew: Crew,
        send: Callable[[Frame], object],
        clock: Callable[[], float],
    ) -> None:
        self._host = host
        self._crew = crew
        self._send = send
        self._clock = clock
        self._views: dict[int, dict[int, _View]] = {}  # by sid and environment

    def watch(self, me: Executor, header: Header, request: Watch) -> None:
        """Answer with the latest frame; render one first if there is a newer one to see."""
        slots, sid, number = self._host.slots, header.sid, header.seq
        slot = slots.get(sid)
        if slot is None or (why := _why_not(slot, request.env)):
            why = "The session has ended." if slot is None else why
            self._send(PLAIN.encode(Watched(0, why=why), sid, number))
            return
        view, interval_s = self._view_of(slot, request.env)
        if view.waiting:  # for the session's thread, which may be in a long step
            if len(view.waiting) < MAX_WATCHERS:
                view.waiting[number] = request.after
            return
        is_new = view.frame.request != slot.session.last_seq
        if not is_new or self._clock() < view.rendered_at + interval_s:
            self._answer(slot, number, request.after, view.frame)
        elif slot.executor.jobs < MAX_JOBS:  # if not, the watcher asks again
            view.waiting[number] = request.after
            job = partial(self._render, slot, request.env, view)
            self._crew.execute(me, slot.executor, job, alone=len(slots) == 1)

    def _view_of(self, slot: Slot, env: int) -> tuple[_View, float]:
        """Return the view of an environment, and the shortest time between two frames of it.

        The environments of a vector that are watched at the same time share the session's rate.
        """
        sid, now = slot.session.sid, self._clock()
        if sid not in self._views:
            slots = self._host.slots
            self._views = {known: one for known, one in self._views.items() if known in slots}
        views = self._views[sid] = {
            index: one
            for index, one in self._views.get(sid, {}).items()
            if index == env or one.waiting or now < one.asked_at + FORGET_S
        }
        view = views.setdefault(env, _View())
        view.asked_at = now
        return view, len(views) / slot.watch_rate

    def _render(self, slot: Slot, env: int, view: _View) -> Sequel:
        """Render a frame; a job of the session's thread."""
        session, began, pid = slot.session, self._clock(), os.getpid()
        number = session.last_seq
        # The learner's next request waits for this, too.
        slot.executor.current_request = (session.sid, number + 1, began)
        limit = min(MAX_CONTROL, self._host.requests.max_message) - HEAD_BYTES
        try:
            frame = Watched(number)
            if session.state is State.EPISODE:
                frame = Watched(number, *shown(slot.runner.render_unnoticed(env), limit))
        except BaseException as error:  # noqa: BLE001 - the environment's
            end_if_forked(pid, error)
            frame = Watched(number, why=failure_reports.summary(error)[:MAX_WHY])
        slot.executor.current_request = None
        return partial(self._rendered, slot, view, frame)

    def _rendered(self, slot: Slot, view: _View, frame: Watched, me: Executor) -> None:
        view.frame, view.rendered_at = frame, self._clock()
        waiting, view.waiting = view.waiting, {}
        for number, after in waiting.items():
            self._answer(slot, number, after, frame)

    def _answer(self, slot: Slot, number: int, after: int, frame: Watched) -> None:
        if after == frame.request:
            frame = Watched(after)
        frame = replace(frame, envs=slot.opened.num_envs)
        self._send(PLAIN.encode(frame, slot.session.sid, number))


def _why_not(slot: Slot, env: int) -> str:
    """Return why an environment of a session cannot be watched; "" if it can be."""
    count = max(1, slot.opened.num_envs)
    if not slot.unwatchable and not 0 <= env < count:
        return f"It has no environment {env}: they have the numbers 0 to {count - 1}."
    return slot.unwatchable
