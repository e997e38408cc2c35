"""PROGRESS may be late, but it belongs to a request that was sent."""

from __future__ import annotations

from collections import deque

import pytest

from gymwire.conformance.agent import TOLERANCE, Agent
from gymwire.conformance.check import Violation
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Close, Closed, Message, Progress
from tests.conformance.wires import DeafWire

SID, TIMEOUT_S = 5, 4.0


class ScriptedWire(DeafWire):
    """A wire whose env agent sends these frames, one at each receive."""

    def __init__(self, *replies: tuple[Message, int]) -> None:
        super().__init__()
        self.frames = deque(bytes(PLAIN.encode(message, SID, seq)) for message, seq in replies)

    def receive(self) -> bytes | None:
        super().receive()
        return self.frames.popleft() if self.frames else None


def asked(*replies: tuple[Message, int]) -> Agent:
    """Return an agent that was sent request 1, and then 2, and answers so."""
    wire = ScriptedWire(*replies)
    agent = Agent(wire, wire.clock, TIMEOUT_S)
    agent.receive_for(SID)
    for seq in (1, 2):
        agent.remember(SID, seq, bytes(PLAIN.encode(Close(), SID, seq)))
    return agent


def read_all(agent: Agent) -> list[int]:
    """Return the numbers of the two replies."""
    return [agent.next_of(SID, "a reply")[0].seq for _ in range(2)]


def test_progress_may_arrive_after_the_reply() -> None:
    agent = asked((Closed(), 1), (Progress(1.2), 1), (Closed(), 2))
    assert read_all(agent) == [1, 2]
    assert agent.progress == 1


def test_progress_of_a_request_in_flight_may_take_any_time() -> None:
    agent = asked((Progress(1e6), 1), (Closed(), 1), (Closed(), 2))
    assert read_all(agent) == [1, 2]


def test_a_request_that_is_over_executes_no_longer() -> None:
    agent = asked((Closed(), 1), (Progress(0.5 + TOLERANCE), 1), (Closed(), 2))
    with pytest.raises(Violation, match=r"1\.5 s, although its reply came after 0\.2 s") as caught:
        read_all(agent)
    assert caught.value.clause == "7.8"


def test_progress_of_a_request_that_was_not_sent() -> None:
    agent = asked((Closed(), 1), (Progress(1.0), 3), (Closed(), 2))
    with pytest.raises(Violation, match="request 3, which was not sent") as caught:
        read_all(agent)
    assert caught.value.clause == "7.8"


def test_progress_of_an_opening_needs_no_request() -> None:
    agent = asked((Progress(1.0), 2**41), (Closed(), 1), (Closed(), 2))
    assert read_all(agent) == [1, 2]
