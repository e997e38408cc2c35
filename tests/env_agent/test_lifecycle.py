"""Environments of ended sessions that are still busy are bounded, for each address."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog.testing

from gymwire.env_agent.crew import Executor, Job
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.failure_reports import session_lost
from gymwire.env_agent.lifecycle import MAX_REASON, Lifecycle
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.unfinished import MIN_UNFINISHED, Unfinished
from gymwire.protocol.codec import PLAIN, read_header
from gymwire.protocol.messages import Code, Error, Open, Opened

ME = Executor()


class HeldCrew:
    """Threads whose jobs wait until the test executes them."""

    own = ME

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def assign(self, me: Executor) -> Executor:
        return Executor()

    def release(self, executor: Executor) -> None:
        pass

    def execute(self, me: Executor, executor: Executor, job: Job, *, alone: bool) -> None:
        self.jobs.append(job)

    def run(self, number: int = 0) -> None:
        """Execute a job, and what remains to be done after it."""
        sequel = self.jobs.pop(number)()
        assert sequel is not None
        sequel(ME)


class Loop:
    """The sessions of a serving loop, without sockets and threads."""

    def __init__(self, slots: int, unfinished: Unfinished | None = None) -> None:
        factory = Factory("CartPole-v1")
        services = [Service(name, factory, max_sessions=slots) for name in ("it", "other")]
        self.crew = cast(Any, HeldCrew())
        self.host = SessionHost(services, unfinished=unfinished)
        self._lifecycle = Lifecycle(self.host, self.crew, lambda error: None, time.monotonic)
        self.sent: list[Any] = []
        link = SimpleNamespace(send=self.sent.append)
        self._lifecycle.transports = SimpleNamespace(link=link, direct=None)  # type: ignore[assignment]
        self._sid = 0

    def begin(self, address: str = "it") -> int:
        """Begin to open a session, and return its sid."""
        self._sid += 1
        self.send_open(self._sid, address)
        return self._sid

    def send_open(self, sid: int, address: str = "it") -> None:
        request = Open(address, b"n" * 16)
        self._lifecycle.open(ME, read_header(PLAIN.encode(request, sid, 1)), request)

    def abandon(self, sid: int) -> None:
        self._lifecycle.abandon(ME, sid, session_lost("the learner has left"))

    def leave_stuck(self) -> None:
        """Open a session and end it; its environment does not close."""
        sid = self.begin()
        self.crew.run(-1)
        self.abandon(sid)

    def refusal(self, address: str = "it") -> str:
        """Open a session; return why it is refused, or "" if it opens."""
        before = len(self.crew.jobs)
        self.begin(address)
        if len(self.crew.jobs) > before:
            self.crew.run(-1)
        message = PLAIN.decode(self.sent[-1])
        assert isinstance(message, Error | Opened)
        if isinstance(message, Opened):
            return ""
        assert message.code == Code.NO_FREE_SLOT
        return message.text


@pytest.mark.parametrize("slots", [1, MIN_UNFINISHED + 3])
def test_no_session_opens_while_too_many_ended_ones_are_busy(slots: int) -> None:
    loop, most = Loop(slots), max(slots, MIN_UNFINISHED)
    for _ in range(most + 1):
        loop.leave_stuck()
    for number in (1, 2):
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):  # a learner may wait
                why = loop.refusal()
        assert f"{most + 1} environments of ended sessions at 'it' are still busy" in why
        assert [entry["why"] for entry in logs] == [why[:MAX_REASON]]
        assert loop.refusal("other") == ""
        loop.crew.run()  # one of them closes
        if number == 1:
            loop.leave_stuck()
    assert loop.refusal() == ""


def test_environments_that_nobody_waits_for_count_while_they_are_made() -> None:
    loop = Loop(1)
    for _ in range(MIN_UNFINISHED + 1):
        sid = loop.begin()
        for _ in range(2):
            loop.abandon(sid)
    assert f"{MIN_UNFINISHED + 1} environments" in loop.refusal()
    loop.crew.run()  # one of them is made, and must be closed
    assert f"{MIN_UNFINISHED + 1} environments" in loop.refusal()
    loop.crew.run(-1)
    assert loop.refusal() == ""


def test_the_loops_of_an_env_agent_count_together() -> None:
    unfinished = Unfinished()
    loops = [Loop(2, unfinished) for _ in range(2)]
    for number in range(MIN_UNFINISHED + 1):
        loops[number % 2].leave_stuck()
    assert all(f"{MIN_UNFINISHED + 1} environments" in loop.refusal() for loop in loops)


def test_sessions_that_close_are_forgotten() -> None:
    unfinished = Unfinished()
    loop = Loop(1, unfinished)
    for _ in range(3 * MIN_UNFINISHED):
        loop.leave_stuck()
        loop.crew.run()
    assert unfinished.excess("it", -1) == 0
    assert not unfinished._counts


def test_a_repeated_open_does_not_open_an_ended_session_again() -> None:
    loop = Loop(1)
    sid = loop.begin()
    loop.crew.run()
    loop.send_open(sid)  # during a long request, behind which a job would wait
    loop.abandon(sid)
    loop.send_open(sid)
    assert loop.sent == [loop.sent[0]] * 2
    while loop.crew.jobs:
        loop.crew.run()
    assert not loop.host.slots
