"""How many agents to start, and which ones to drain: rules without a clock of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STARTING, READY, DRAINING = "starting", "ready", "draining"
PATIENCE_S = 60.0  # an agent that is not listed after this long no longer counts as on its way


@dataclass(frozen=True)
class Scale:
    """How many agents there are.

    Attributes:
        least, most: bounds of their number; equal if it is fixed.
        free_slots: at each address, agents are started while fewer slots are free.
        idle_s: agents above `least` are drained after this many seconds without a session.
        slots: the slots of one agent by address.
    """

    least: int
    most: int
    free_slots: int
    idle_s: float
    slots: Mapping[str, int]


@dataclass(frozen=True)
class AgentLoad:
    """One agent, as the engine and the broker see it together.

    Attributes:
        name: its name.
        state: STARTING (the broker does not list it), READY or DRAINING.
        used: its sessions at all addresses, and ended ones whose environment is still busy.
        free: its free slots by address.
    """

    name: str
    state: str
    used: int
    free: Mapping[str, int]


@dataclass(frozen=True)
class Decision:
    """What to do now: how many agents to start, and which ones to drain."""

    start: int = 0
    drain: tuple[str, ...] = ()


class Scaler:
    """Decides for one fleet, from successive reports.

    It drains only agents without a session. A session that opens meanwhile has the grace period.
    """

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._starting_since: dict[str, float] = {}
        self._idle_since: dict[str, float] = {}

    def decide(self, agents: Sequence[AgentLoad], now: float) -> Decision:
        """Return what to do. `now`: in seconds, of a monotonic clock."""
        alive = [one for one in agents if one.state != DRAINING]
        self._starting_since = {
            one.name: self._starting_since.get(one.name, now)
            for one in alive
            if one.state == STARTING
        }
        self._idle_since = {
            one.name: self._idle_since.get(one.name, now)
            for one in alive
            if one.state == READY and not one.used
        }
        surplus = len(alive) - self._scale.most
        if surplus > 0:
            return Decision(drain=choose(alive, surplus, only_idle=True))
        start = self._missing(alive, now)
        if start:
            # Draining agents still use resources, so they count, except where `least` is not met.
            room = self._scale.most - len(agents)
            return Decision(start=max(self._scale.least - len(alive), min(start, room), 0))
        return Decision(drain=self._unneeded(alive, now))

    def _missing(self, alive: Sequence[AgentLoad], now: float) -> int:
        """Return how many agents to start."""
        coming = sum(now - since < PATIENCE_S for since in self._starting_since.values())
        wanted = 0
        for address, slots in self._scale.slots.items():
            free = sum(one.free.get(address, 0) for one in alive)
            lacking = self._scale.free_slots - free - coming * slots
            wanted = max(wanted, math.ceil(lacking / slots))
        return max(self._scale.least - len(alive), wanted, 0)

    def _unneeded(self, alive: Sequence[AgentLoad], now: float) -> tuple[str, ...]:
        """Return the agents that have been idle for long enough and whose slots are not needed."""
        free = {
            address: sum(one.free.get(address, 0) for one in alive) for address in self._scale.slots
        }
        left = len(alive)
        drained: list[str] = []
        for agent in sorted(alive, key=lambda one: self._idle_since.get(one.name, math.inf)):
            if now - self._idle_since.get(agent.name, math.inf) < self._scale.idle_s:
                break
            rest = {address: count - agent.free.get(address, 0) for address, count in free.items()}
            if left <= self._scale.least or min(rest.values()) < self._scale.free_slots:
                break
            free, left = rest, left - 1
            drained.append(agent.name)
        return tuple(drained)


def choose(agents: Sequence[AgentLoad], count: int, *, only_idle: bool = False) -> tuple[str, ...]:
    """Return the agents to drain if there are `count` too many: those with the fewest sessions.

    Of these, agents that have not started yet come first, and then those with the highest numbers.
    """
    able = [one for one in agents if one.state != DRAINING and not (only_idle and one.used)]
    able.sort(key=lambda one: (one.used, one.state != STARTING, -number_of(one.name)))
    return tuple(one.name for one in able[:count])


def number_of(name: str) -> int:
    """Return the number in the name of an agent: 3 of lab/3."""
    return int(name.rpartition("/")[2])
