"""The progress connection: reports steps to the broker, and takes its orders to stop.

It runs in a thread of its own, and needs the interpreter only briefly each second. If an
environment does not release the interpreter at all, the liveness connection still shows that the
process is alive.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gymwire.env_agent.crew import CLOSING, CurrentRequest, Wakeup
from gymwire.env_agent.lifecycle import MAX_REASON
from gymwire.env_agent.loop import ServingLoop
from gymwire.env_agent.step_times import Running, StepReports
from gymwire.protocol.capabilities import OBSERVE
from gymwire.protocol.codec import KIND_AT, PLAIN
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.messages import (
    Bye,
    Kind,
    Message,
    Ping,
    Progress,
    Report,
    Role,
    Stop,
    Welcome,
    Withdraw,
)
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.handshake import Handshake
from gymwire.protocol.transport.polling import wait_among

EVERY_S = 1.0
LEAVE_S = 1.0  # for the broker to read the last frame
SLOW_S = 1.0  # report requests that take longer
ROWS_PER_REPORT = 100  # few, so that the broker handles each between two steps
AT_ONCE = 1000  # sessions that are looked at before others have the interpreter, for
PAUSE_S = 0.005
MAX_REPORTS = 500  # at once: the broker answers 1,000 messages a second on one connection


class ProgressReporter(threading.Thread):
    """Reports the long requests and the steps of these loops until `stop` is called.

    `on_stop`: called with the reason if an operator of the broker stops this env agent.
    """

    def __init__(
        self,
        make_dealer: Callable[[], Dealer],
        loops: Sequence[ServingLoop],
        agent: bytes,
        on_stop: Callable[[str], None],
    ) -> None:
        super().__init__(name="progress", daemon=True)
        self._link = BrokerLink(make_dealer())  # here, so that the caller sees a failure
        self._loops = loops
        self._agent = agent
        self._on_stop = on_stop
        self._step_reports = StepReports()
        self._stopping = threading.Event()
        self._wakeup = Wakeup()
        self._farewell = ""
        self._withdrawn: Sequence[str] = ()
        self._reported = 0

    def run(self) -> None:
        """Run the thread."""
        link = self._link
        handshake = Handshake(link, Role.PROGRESS, self._agent, self._sessions)
        next_report = 0.0
        try:
            while not self._stopping.is_set():
                data, now = self._receive_until(next_report), time.monotonic()
                with contextlib.suppress(GymwireError):  # the loops report what is wrong
                    handshake.watch(now)
                    if data is not None:
                        self._receive(handshake, PLAIN.decode(data), now)
                withdrawn, self._withdrawn = self._withdrawn, ()
                for address in withdrawn:
                    link.send(PLAIN.encode(Withdraw(address)))
                if now >= next_report:
                    next_report = now + EVERY_S
                    link.send(PLAIN.encode(Ping()))  # else the broker closes the connection
                    requests = [loop.current_requests for loop in self._loops]
                    self._report(link, [one for found in requests for one in found], now)
                    running = running_sessions(self._loops, requests, self._pause)
                    rows = self._step_reports.rows(running, now)  # takes the times
                    if OBSERVE in handshake.capabilities:
                        for start in range(0, len(rows), ROWS_PER_REPORT):
                            link.send(PLAIN.encode(Report(rows[start : start + ROWS_PER_REPORT])))
        finally:
            if self._farewell:
                link.send_last(PLAIN.encode(Bye(self._farewell)))
                _wait_until_read(link)
            link.close()
            self._wakeup.close()

    def _receive_until(self, until: float) -> bytes | memoryview | None:
        """Return the next frame, or None if there is something else to do, or nothing to receive.

        `until`: how long to wait at most, in monotonic seconds.
        """
        signals = self._link.signals
        if signals is None:
            return self._link.receive()
        wait_among([*signals, self._wakeup], max(0.0, until - time.monotonic()))
        self._wakeup.clear()
        return self._link.receive() if self._link.poll() else None

    def _pause(self) -> None:
        """Let other threads have the interpreter."""
        self._stopping.wait(PAUSE_S)

    def _receive(self, handshake: Handshake, message: Message, now: float) -> None:
        match message:
            case Stop(reason=reason):
                self._on_stop(reason[:MAX_REASON])
            case Welcome(epoch=epoch) if handshake.welcome and handshake.welcome.epoch != epoch:
                self._step_reports.forget()
        handshake.handle(message, now)

    def _sessions(self) -> list[list[Any]]:
        """Return all sessions, since a loop in a long step cannot announce its own."""
        return [row for loop in self._loops for row in loop.host.listed]

    def withdraw(self, addresses: Sequence[str]) -> None:
        """Withdraw the offers of all loops soon, also of a loop that executes a long step."""
        self._withdrawn = tuple(addresses)
        self._wakeup.notify()

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()
        self._wakeup.notify()

    def leave(self, why: str) -> None:
        """Let the broker end all sessions for this reason, and end the thread.

        For a process that ends although its loops execute something.
        """
        self._farewell = why
        self.stop()
        self.join(2 * LEAVE_S)

    def _report(self, link: BrokerLink, requests: Sequence[CurrentRequest], now: float) -> None:
        due, self._reported = choose(requests, now, self._reported)
        for sid, seq, since in due:
            link.send(PLAIN.encode(Progress(round(now - since, 3)), sid, seq))


def _wait_until_read(link: BrokerLink) -> None:
    """Wait until the broker has read what was sent: the process ends, and libzmq would drop it."""
    link.send(PLAIN.encode(Ping()))  # BUSY answers it, for the broker has just forgotten this peer
    deadline = time.monotonic() + LEAVE_S
    while time.monotonic() < deadline:
        data = link.receive()
        if data is not None and data[KIND_AT] == Kind.BUSY:
            return


def running_sessions(
    loops: Sequence[ServingLoop],
    requests: Iterable[Iterable[CurrentRequest]],
    pause: Callable[[], object],
) -> Iterator[Running]:
    """Yield the live sessions of these loops, and their steps.

    Args:
        loops: the loops.
        requests: what each of them executes.
        pause: called after each `AT_ONCE` sessions, so that no step has to wait for all of them.
    """
    seen = 0
    for loop, executed in zip(loops, requests, strict=True):
        busy = {sid: since for sid, seq, since in executed if seq != CLOSING}
        for sid, one in list(loop.host.slots.items()):
            steps, direct = one.session.steps, loop.is_direct(sid)
            yield Running(sid, steps, one.times, busy.get(sid), one.opened_at, direct)
            seen += 1
            if seen % AT_ONCE == 0:
                pause()


def choose(
    requests: Sequence[CurrentRequest], now: float, reported: int
) -> tuple[list[CurrentRequest], int]:
    """Return the requests to report now, and `reported` for the next call.

    If there are too many long ones, they take turns. `reported`: the sid of the last one reported.
    """
    long = sorted(request for request in requests if now - request[2] >= SLOW_S)
    after = [request for request in long if request[0] > reported]
    due = (after + long)[: min(MAX_REPORTS, len(long))]
    return due, due[-1][0] if due else 0
