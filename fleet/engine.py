"""The interface of engines, which place and restart the agents of a fleet."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gymwire.fleet.engines import ENGINES
from gymwire.fleet.scaling import number_of
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.extras import missing

if TYPE_CHECKING:
    from gymwire.fleet.description import Fleet

PENDING = "pending"  # the engine has not placed it yet
RUNNING = "running"  # its process runs; the broker may not list it yet
RESTARTING = "restarting"  # its process has died and will be restarted after a pause
DRAINING = "draining"  # it takes no new sessions, and is not restarted

SPREAD, PACKED = "spread", "packed"


@dataclass(frozen=True)
class Resources:
    """What one agent needs.

    Attributes:
        cpus, gpus: how many; fractions are shares of one.
        memory: bytes; None: no limit.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int | None = None


@dataclass(frozen=True)
class AgentFile:
    """A file that an agent needs wherever it runs, such as its key.

    Attributes:
        variable: the environment variable for its path, such as GYMWIRE_KEY.
        text: its content. An engine that copies it makes it readable by the user only, and writes
            it to no log.
        path: where it is on this machine; None: it is not a file yet.
    """

    variable: str
    text: str = field(repr=False)
    path: Path | None = None


@dataclass(frozen=True)
class AgentPlan:
    """One agent to be started.

    Attributes:
        name: the name of the fleet and a number, such as lab/3.
        arguments: those of the command `gymwire`, such as ("serve", "--broker", …). They name no
            file and no key.
        variables: environment variables in addition to those that the engine has.
        files: files that it needs; their paths become variables.
        folder: that of fleet.toml, in which it runs if its machine has such a folder.
        resources: what it needs.
        place: SPREAD, PACKED, or the labels that a node must have.
        grace_s: for how long its sessions may go on after SIGTERM, in seconds.
        runtime_env: what Ray installs for it.
    """

    name: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    files: tuple[AgentFile, ...]
    folder: Path
    resources: Resources = Resources()
    place: str | Mapping[str, str] = SPREAD
    grace_s: float = 10.0
    runtime_env: Mapping[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The number in its name."""
        return number_of(self.name)


@dataclass(frozen=True)
class RunningAgent:
    """An agent that has not ended.

    Attributes:
        name: as in its plan.
        state: PENDING, RUNNING, RESTARTING or DRAINING.
        host: the name of the host, as `socket.gethostname` returns it there; "": none yet.
        pid: the id of its process `gymwire serve` on that host; None: unknown.
        since: when it was started or last restarted, in seconds since 1970.
        detail: why it is not running, as a text for people.
    """

    name: str
    state: str
    host: str = ""
    pid: int | None = None
    since: float = 0.0
    detail: str = ""


class Engine(Protocol):
    """Starts, heals and ends the agents of one fleet.

    The agents outlive this process: another process that makes an engine of the same fleet finds
    them by the fleet's name. All calls return soon, and `running` shows their effect. Errors are
    GymwireErrors.
    """

    def start(self, agents: Sequence[AgentPlan]) -> None:
        """Start agents whose names are not in use, and restart them whenever they die.

        Only one process of a machine may call this at a time.
        """

    def running(self) -> list[RunningAgent]:
        """Return all agents that have not ended, including those that are not placed yet."""

    def drain(self, names: Sequence[str]) -> None:
        """Let agents end: they take no new sessions, and the others get the grace period.

        They are not restarted. Unknown names are ignored: those agents have ended.
        """

    def stop(self, names: Sequence[str]) -> None:
        """Kill agents now; their sessions are lost."""


def open_engine(kind: str, fleet: Fleet) -> Engine:
    """Return the engine of this name for a fleet. Raises ConfigurationError if it is missing."""
    module, name, extra = ENGINES[kind]
    try:
        engine: Engine = getattr(importlib.import_module(module), name)(fleet)
    except ModuleNotFoundError as error:
        if not extra or error.name is None:
            raise
        raise ConfigurationError(missing(f"--on {kind} needs {error.name}", extra)) from None
    return engine
