"""Which faults come, in which order, for how long: a function of the seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of fault. `shortest_s`, `longest_s`: how long it lasts; 0: it happens at once.

    `loses`: sessions may be lost, since their env agent is gone for longer than is waited for; by
    every other fault none may.
    """

    name: str
    target: str
    shortest_s: float
    longest_s: float
    loses: bool = False


KINDS = (
    Kind("killed", "broker", 0.0, 0.0),
    Kind("away", "broker", 0.5, 4.0),
    Kind("restarted ten times", "broker", 0.0, 0.0),
    Kind("frozen", "broker", 0.5, 12.0),
    Kind("killed", "learner", 0.0, 0.0),
    Kind("frozen", "learner", 0.5, 12.0),
    Kind("frozen shortly", "env agent", 0.5, 3.0),
    Kind("frozen for long", "env agent", 10.0, 12.0, loses=True),
    Kind("killed", "env agent", 0.0, 0.0, loses=True),
    Kind("killed", "worker", 0.0, 0.0, loses=True),
    Kind("dropped", "messages", 3.0, 5.0),
    Kind("doubled", "messages", 3.0, 5.0),
    Kind("delayed and reordered", "messages", 3.0, 5.0),
    Kind("reset", "learner's link", 0.0, 0.0),
    Kind("stalled", "learner's link", 1.0, 12.0),
    Kind("throttled", "learner's link", 2.0, 4.0),
    Kind("black hole", "learner's link", 1.0, 12.0),
    Kind("half-open", "learner's link", 0.0, 0.0),
    Kind("reset", "agent's link", 0.0, 0.0),
    Kind("stalled", "agent's link", 0.5, 3.0),
    Kind("throttled", "agent's link", 2.0, 4.0),
    Kind("black hole", "agent's link", 10.0, 12.0, loses=True),
    Kind("half-open", "agent's link", 0.0, 0.0, loses=True),
)


class Fault(NamedTuple):
    """One fault of a run. `pick`: chooses among several targets, in [0, 1)."""

    kind: Kind
    lasts_s: float
    pick: float


def faults(seed: int) -> Iterator[Fault]:
    """Every kind in a shuffled order, then all again in another, without end."""
    rng = random.Random(seed)
    while True:
        for kind in rng.sample(KINDS, len(KINDS)):
            yield Fault(kind, rng.uniform(kind.shortest_s, kind.longest_s), rng.random())
