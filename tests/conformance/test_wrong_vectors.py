"""Our own env agent, with bytes changed on the way, fails the checks of its optional parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gymwire.conformance import suite
from gymwire.conformance.as_broker import BrokersAgent
from gymwire.conformance.checks import attributes, frames, vectors
from gymwire.conformance.wires import Wire
from gymwire.protocol import values
from gymwire.protocol.arrays import ALIGNMENT
from gymwire.protocol.codec import HEADER_SIZE, KIND_AT, read_header
from gymwire.protocol.messages import Kind
from tests.conformance.agents import rich_agent

Change = Callable[[list[Any]], list[Any]]
CHECKS = (*vectors.CHECKS, *attributes.CHECKS, *frames.CHECKS)


class ChangingWire:
    """A wire that changes the fields of messages of one kind, in either direction."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.kind: Kind | None = None
        self.change: Change = lambda fields: fields

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)

    def __setattr__(self, name: str, value: object) -> None:
        target = self._wire if name == "welcome" else self
        object.__setattr__(target, name, value)

    def send(self, frame: bytes) -> bool:
        return self._wire.send(self._changed(frame))

    def receive(self) -> bytes | None:
        frame = self._wire.receive()
        return self._changed(frame) if frame else frame

    def _changed(self, frame: bytes) -> bytes:
        if len(frame) <= KIND_AT or frame[KIND_AT] != self.kind:
            return frame
        end = HEADER_SIZE + read_header(frame).head_len
        tail = frame[-(-end // ALIGNMENT) * ALIGNMENT :]
        head = values.encode(self.change(values.unpack(frame[HEADER_SIZE:end], memoryview(tail))))
        padding = bytes(-(HEADER_SIZE + len(head)) % ALIGNMENT) if tail else b""
        size = len(head).to_bytes(4, "little")
        return frame[:4] + size + frame[8:HEADER_SIZE] + head + padding + tail


@pytest.fixture(name="agent", scope="module")
def _agent() -> Iterator[BrokersAgent]:
    with rich_agent() as agent:
        agent.wire = ChangingWire(agent.wire)
        yield agent


def without(key: str) -> Change:
    """Leave a key out of the infos of a PERCEPT."""

    def change(fields: list[Any]) -> list[Any]:
        info = fields[4]
        plain = info[0] if isinstance(info, list) else info
        plain = {name: value for name, value in plain.items() if name != key}
        places = [one for one in info[1] if one[0][0] != key] if isinstance(info, list) else []
        return [*fields[:4], [plain, places, []]]

    return change


def no_seeds(fields: list[Any]) -> list[Any]:
    return [None if isinstance(fields[0], list) else fields[0], fields[1]]


def no_mask(fields: list[Any]) -> list[Any]:
    return [fields[0], None]


def always_one(fields: list[Any]) -> list[Any]:
    return [fields[0], np.ones_like(fields[1]), *fields[2:]]


WRONG: dict[str, tuple[str, Kind, Change]] = {
    "batches the spaces of a vector": ("4.2.2", Kind.OPENED, lambda f: [*f[:7], 0, *f[8:]]),
    "batches rewards and flags": ("4.4.1", Kind.PERCEPT, lambda f: [f[0], 1.0, *f[2:]]),
    "resets in the next step with NextStep": ("4.4.4", Kind.PERCEPT, always_one),
    "resets in the same step with SameStep": ("4.4.4", Kind.PERCEPT, without("final_obs")),
    "resets those of a mask with Disabled": ("4.4.2", Kind.RESET, no_mask),
    "seeds each environment of a vector by itself": ("4.4.2", Kind.RESET, no_seeds),
    "reads an attribute of each environment of a vector": (
        "4.1",
        Kind.RESULT,
        lambda f: [{"value": 1} if f[0] else None],
    ),
    "reads each attribute that it exposes": ("4.1", Kind.RESULT, lambda _: [1]),
    "sets attributes that it exposes": ("4.1", Kind.RESULT, lambda f: f if f[0] else [1]),
    "answers ERROR too-large instead of a reply over the limit": (
        "3.6",
        Kind.WELCOME,
        lambda f: [*f[:3], 2**26, *f[4:]],
    ),
}


@pytest.mark.parametrize("title", WRONG)
def test_a_wrong_optional_part_is_caught(agent: BrokersAgent, title: str) -> None:
    clause, kind, change = WRONG[title]
    one = next(one for one in CHECKS if one.title == title)
    wire = agent.wire
    assert isinstance(wire, ChangingWire)
    wire.kind, wire.change = kind, change
    outcome, _ = suite.run_one(agent, one)
    wire.kind = None
    assert (outcome.status, outcome.clause) == (suite.FAILED, clause), outcome


def test_a_mask_that_is_missing_is_caught(agent: BrokersAgent) -> None:
    one = next(one for one in CHECKS if one.title == "batches rewards and flags")
    wire = agent.wire
    assert isinstance(wire, ChangingWire)
    wire.kind, wire.change = Kind.PERCEPT, without("_steps")
    outcome, _ = suite.run_one(agent, one)
    wire.kind = None
    assert (outcome.status, outcome.clause) == (suite.FAILED, "4.4.3"), outcome
