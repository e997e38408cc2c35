"""The commands of a fleet's operator: up, status, scale, drain, down and watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from gymwire.fleet.description import Fleet
from gymwire.fleet.engine import DRAINING, RUNNING, Engine, RunningAgent
from gymwire.fleet.scaling import READY, STARTING, AgentLoad, Scaler, choose, number_of
from gymwire.protocol.errors import (
    ConfigurationError,
    Denied,
    GymwireError,
    UsageError,
    VersionMismatch,
)

Entry = dict[str, Any]  # of FOUND: one for each address and process (docs/protocol.md §6.3)
CHECK_S = 0.2  # how often a command that waits asks the engine and the broker
WATCH_S = 1.0  # the same for the autoscaler
END_S = 15.0  # agents that still run this long after the grace period are killed


@dataclass(frozen=True)
class AgentStatus:
    """One agent of a fleet.

    Attributes:
        name, host, pid, since, detail: as the engine reports them.
        state: "ready" (the broker lists all its addresses), "starting" (its process runs, and the
            broker does not list it), or what the engine reports: "running" if the broker does not
            answer.
        slots, used: of all addresses together.
        free: its free slots by address.
        is_foreign: whether it offers an address that the file does not.
    """

    name: str
    state: str
    host: str
    pid: int | None
    since: float
    detail: str
    slots: int = 0
    used: int = 0
    free: dict[str, int] = field(default_factory=dict)
    is_foreign: bool = False

    @property
    def load(self) -> AgentLoad:
        """What the rules of scaling need to know."""
        state = self.state if self.state in (READY, DRAINING) else STARTING
        return AgentLoad(self.name, state, self.used, self.free)


class FleetControl:
    """One fleet, its engine and its broker.

    Args:
        fleet: what fleet.toml says.
        engine: runs its agents.
        find: returns what the broker lists.
        turn: makes a context in which no other process starts agents.
    """

    def __init__(
        self,
        fleet: Fleet,
        engine: Engine,
        find: Callable[[], Iterable[Entry]],
        turn: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.fleet = fleet
        self._turn = turn
        self._engine = engine
        self._find = find
        self._log = structlog.get_logger()

    def status(self, running: Sequence[RunningAgent] | None = None) -> list[AgentStatus]:
        """Return all agents, in the order of their numbers. Raises what the broker's listing does.

        `running`: the agents, if the engine has just been asked.
        """
        return self._joined([*self._find()], running)

    def status_and_fault(self) -> tuple[list[AgentStatus], GymwireError | None]:
        """Return all agents, and the error if the broker does not answer.

        In this case the engine alone describes the agents.
        """
        try:
            entries: list[Entry] | None = [*self._find()]
            fault = None
        except GymwireError as error:
            entries, fault = None, error
        return self._joined(entries), fault

    def _joined(
        self, entries: Sequence[Entry] | None, running: Sequence[RunningAgent] | None = None
    ) -> list[AgentStatus]:
        agents = self._engine.running() if running is None else running
        return [
            AgentStatus(**asdict(agent) | {"detail": self.fleet.explain(agent.detail)})
            if entries is None
            else self._status_of(agent, entries)
            for agent in sorted(agents, key=lambda one: number_of(one.name))
        ]

    def names(self) -> list[str]:
        """Return the names of all agents, in the order of their numbers."""
        return sorted((one.name for one in self._engine.running()), key=number_of)

    def _status_of(self, agent: RunningAgent, entries: Sequence[Entry]) -> AgentStatus:
        slots = self.fleet.scale.slots
        listed = [one for one in entries if _is_of(one, agent)]
        own = [one for one in listed if one["address"] in slots]
        free = {
            one["address"]: one["capacity"] - one["used"] - one.get("stuck", 0)
            for one in own
            if one["state"] == "ready"
        }
        state = agent.state
        if state == RUNNING:
            state = READY if free.keys() == slots.keys() else STARTING
        # A restarted agent keeps its last error, which does not concern one that is ready.
        detail = "" if state == READY else self.fleet.explain(agent.detail)
        if state == STARTING and own:
            lacking = map(self.fleet.located, sorted(slots.keys() - free.keys()))
            detail = f"it does not offer {', '.join(lacking)}: its log says why"
        others = sorted({one["address"] for one in listed} - slots.keys())
        is_foreign = bool(others) and agent.pid is not None
        if is_foreign:
            detail = (
                f"it offers {', '.join(others)}, which {self.fleet.path.name} does not: another "
                f"file also has the name {self.fleet.name!r}, or this one has changed"
            )
        return AgentStatus(
            agent.name,
            state,
            agent.host,
            agent.pid,
            agent.since,
            detail,
            slots=sum(one["capacity"] for one in own),
            used=sum(one["used"] + one.get("stuck", 0) for one in own),
            free=free if state == READY else {},
            is_foreign=is_foreign,
        )

    def up(self) -> int:
        """Start agents until there are as many as the file demands; drain those beyond its limit.

        Returns how many there should be now.
        """
        with self._turn():
            running = self._engine.running()
            alive = sum(one.state != DRAINING for one in running)
            scale = self.fleet.scale
            count = min(max(alive, scale.least), scale.most)
            self._scale(count, running)
        return count

    def scale(self, count: int) -> None:
        """Start agents, or drain those with the fewest sessions, until there are `count`.

        Raises ConfigurationError if it would have to drain agents of another file.
        """
        with self._turn():
            self._scale(count, self._engine.running())

    def _scale(self, count: int, running: Sequence[RunningAgent]) -> None:
        alive = [one for one in running if one.state != DRAINING]
        if len(alive) <= count:
            self._start(count - len(alive), running)
            return
        agents = self.status(running)
        for one in agents:
            if one.is_foreign:
                raise ConfigurationError(
                    f"{one.name} would be drained, but {one.detail}. Give the fleets different "
                    f"names, or first end all agents of this name with `gymwire fleet down`."
                )
        self.drain(choose([one.load for one in agents], len(alive) - count))

    def _start(self, count: int, running: Sequence[RunningAgent | AgentStatus]) -> None:
        taken = {number_of(one.name) for one in running}
        free = (number for number in range(len(taken) + count) if number not in taken)
        plans = [self.fleet.plan(number) for number, _ in zip(free, range(count), strict=False)]
        if plans:
            self._engine.start(plans)
            self._log.info("agents started", agents=[one.name for one in plans])

    def drain(self, names: Sequence[str] | None = None) -> list[str]:
        """Drain these agents, or all; return the names of those that did not drain yet."""
        chosen = [
            one.name
            for one in self._engine.running()
            if one.state != DRAINING and (names is None or one.name in names)
        ]
        if chosen:
            self._engine.drain(chosen)
            self._log.info("agents draining", agents=chosen, at_most_s=self.fleet.grace_s)
        return chosen

    def wait_until_ready(
        self, count: int | None, deadline: float
    ) -> tuple[list[AgentStatus], GymwireError | None]:
        """Wait until the broker lists `count` agents, or fewer are left.

        Returns the same as `status_and_fault`.

        Args:
            count: how many; None: all that do not drain.
            deadline: when to give up, in monotonic seconds.
        """
        while True:
            agents, fault = self.status_and_fault()
            staying = sum(one.state != DRAINING for one in agents)
            ready = sum(one.state == READY for one in agents)
            is_over = ready >= staying if count is None else ready >= count or staying < count
            if is_over or time.monotonic() >= deadline or _is_final(fault):
                return agents, fault
            time.sleep(CHECK_S)

    def down(self) -> list[str]:
        """Drain all agents, wait until they have ended, and kill those that do not end in time.

        Returns the names of the killed ones.
        """
        self.drain()
        deadline = time.monotonic() + self.fleet.grace_s + END_S
        while agents := self._engine.running():
            # Ray may have restarted an agent on another node, which then does not drain.
            self.drain()
            if time.monotonic() >= deadline:
                names = [one.name for one in agents]
                self._engine.stop(names)
                self._log.error("agents killed", agents=names)
                return names
            time.sleep(CHECK_S)
        return []

    def watch(self, stopped: Callable[[float], bool]) -> None:
        """Scale by the broker's report until `stopped` returns true.

        `stopped`: waits for that many seconds, and returns whether to stop. While the broker does
        not answer, the fleet stays as it is.
        """
        scaler, why = Scaler(self.fleet.scale), ""
        while True:
            try:
                with self._turn():
                    agents = self.status()
                    decision = scaler.decide([one.load for one in agents], time.monotonic())
                    self._start(decision.start, agents)
                    if decision.drain:
                        self.drain(decision.drain)
                why = ""
            except GymwireError as error:
                if str(error) != why:
                    why = str(error)
                    self._log.warning("cannot scale", why=why)
            if stopped(WATCH_S):
                return


def _is_final(fault: GymwireError | None) -> bool:
    """Return whether the broker will answer in the same way again."""
    return isinstance(fault, Denied | VersionMismatch | UsageError)


def _is_of(entry: Entry, agent: RunningAgent) -> bool:
    """Return whether the broker lists this entry for this agent."""
    if entry["host"] != agent.host:
        return False
    return agent.pid is None or agent.pid in (entry.get("pid"), entry.get("agent_pid"))
