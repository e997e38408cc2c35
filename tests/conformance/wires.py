"""A wire without an env agent."""

from __future__ import annotations


class DeafWire:
    """A wire to an env agent that answers nothing, or the same frame without end.

    `clock` is a time that passes with each receive, and `sent` what was sent to the agent.
    """

    parts = False
    routing_id = welcome = b""

    def __init__(self, frame: bytes | None = None) -> None:
        self.now = 0.0
        self.frame = frame
        self.sent: list[bytes] = []

    def clock(self) -> float:
        return self.now

    def send(self, frame: bytes) -> bool:
        self.sent.append(frame)
        return True

    def receive(self) -> bytes | None:
        self.now += 0.25
        return self.frame

    def renew(self) -> bool:
        return False

    def close(self) -> None:
        pass
