"""What places and heals the agents of a fleet: one interface, and the engines by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gymwire.protocol.errors import ConfigurationError

if TYPE_CHECKING:
    from gymwire.fleet.description import Fleet

PENDING = "pending"  # the engine has not placed it yet
RUNNING = "running"  # its process runs; whether the broker lists it is another question
RESTARTING = "restarting"  # its process has died and is started again after a pause
DRAINING = "draining"  # it takes no new sessions, and is not started again
STATES = (PENDING, RUNNING, RESTARTING, DRAINING)

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
        variable: the variable with its path, such as GYMWIRE_KEY.
        text: its content. An engine that copies it makes it readable by the user only, and writes
            it to no log.
        path: where it is on this machine; None: it is no file yet.
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
        files: files that it needs, which also become variables.
        folder: where it runs, if that folder exists there: that of fleet.toml.
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
        return int(self.name.rpartition("/")[2])


@dataclass(frozen=True)
class RunningAgent:
    """An agent that the engine has, in any state.

    Attributes:
        name: as in its plan.
        state: one of STATES.
        host: the name of the host, as `socket.gethostname` returns it there; "": none yet.
        pid: of the process of `gymwire serve`, as its host counts; None: unknown.
        since: when it was started or last restarted, in seconds since 1970.
        detail: why it is not running, for people.
    """

    name: str
    state: str
    host: str = ""
    pid: int | None = None
    since: float = 0.0
    detail: str = ""


class Engine(Protocol):
    """Starts, heals and ends the agents of one fleet.

    It keeps the fleet outside of this process: another process that makes an engine of the same
    fleet finds its agents by the fleet's name. All calls return soon; `running` says what became
    of them. Errors are GymwireErrors.
    """

    def start(self, agents: Sequence[AgentPlan]) -> None:
        """Start agents whose names are not in use, and start them again whenever they die."""

    def running(self) -> list[RunningAgent]:
        """Return all agents that have not ended, also those that wait for a place."""

    def drain(self, names: Sequence[str]) -> None:
        """Let agents end: no new sessions, and at most the grace period for those that run.

        They are not started again. Unknown names are ignored: those agents have ended.
        """

    def stop(self, names: Sequence[str]) -> None:
        """Kill agents now; their sessions are lost."""


# name → module, class, and the extra that it needs
ENGINES = {
    "local": ("gymwire.fleet.local", "LocalEngine", ""),
    "ray": ("gymwire.fleet.ray_engine", "RayEngine", "ray"),
    "slurm": ("gymwire.fleet.slurm", "SlurmEngine", "slurm"),
}


def open_engine(kind: str, fleet: Fleet) -> Engine:
    """Return the engine of this name for a fleet. Raises ConfigurationError if it is missing."""
    module, name, extra = ENGINES[kind]
    try:
        engine: Engine = getattr(importlib.import_module(module), name)(fleet)
    except ModuleNotFoundError as error:
        if not extra or error.name is None:
            raise
        raise ConfigurationError(
            f"--on {kind} needs {error.name}, which is not installed. Install it with: "
            f"pip install 'gymwire[{extra}]'"
        ) from None
    return engine
