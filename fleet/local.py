"""The engine `local`: agents on this machine, under a supervisor that outlives this process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gymwire.fleet.description import Fleet
from gymwire.fleet.engine import AgentPlan, RunningAgent
from gymwire.fleet.processes import spec_of
from gymwire.fleet.state import place_files, state_folder
from gymwire.fleet.supervisor import READY, SOCKET
from gymwire.protocol.errors import ConfigurationError, Refused

MAX_SOCKET_PATH = 100  # bytes; the kernel allows 107
ANSWER_S = 60.0  # for the supervisor, which may be killing agents or starting many


class LocalEngine:
    """Agents on this machine. Raises ConfigurationError where there are no Unix sockets."""

    def __init__(self, fleet: Fleet) -> None:
        if sys.platform == "win32":
            raise ConfigurationError("--on local needs Unix sockets, which this system lacks.")
        self._folder = state_folder(fleet.name)
        self._socket = self._folder / SOCKET
        if len(bytes(self._socket)) > MAX_SOCKET_PATH:
            raise ConfigurationError(
                f"The path {self._socket} is too long for a socket. Set XDG_STATE_HOME to a folder "
                f"with a short path."
            )

    def start(self, agents: Sequence[AgentPlan]) -> None:
        """Start agents; start the supervisor if it does not run."""
        specs = []
        for plan in agents:
            folder = self._folder / "agents" / str(plan.number)
            folder.mkdir(parents=True, exist_ok=True)
            files = place_files(plan.files, folder, copy=False)
            specs.append(asdict(spec_of(plan, files, folder / "log")))
        if self._ask("running") is None:
            self._start_supervisor()
        if self._ask("start", agents=specs) is None:
            raise Refused(f"The supervisor has ended. See {self._folder / 'log'}.")

    def running(self) -> list[RunningAgent]:
        """Return all agents that have not ended."""
        reply = self._ask("running")
        return [] if reply is None else [RunningAgent(**one) for one in reply["agents"]]

    def drain(self, names: Sequence[str]) -> None:
        """Let agents end within their grace period."""
        self._ask("drain", names=[*names])

    def stop(self, names: Sequence[str]) -> None:
        """Kill agents."""
        self._ask("stop", names=[*names])

    def _start_supervisor(self) -> None:
        log = self._folder / "log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gymwire.fleet.supervisor", str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        assert process.stdout is not None
        with process.stdout as pipe:
            is_ready = pipe.readline() == READY
        process.wait()  # only the process between: the supervisor is its child
        if not is_ready:
            raise Refused(f"The supervisor of the fleet cannot start. See {log}.")

    def _ask(self, do: str, **fields: Any) -> Mapping[str, Any] | None:
        """Return the supervisor's reply to a request; None if there is no supervisor."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            try:
                connection.connect(str(self._socket))
                connection.sendall(json.dumps({"do": do, **fields}).encode() + b"\n")
                with connection.makefile("rb") as file:
                    line = file.readline()
            except TimeoutError:
                raise Refused(
                    f"The supervisor of the fleet does not answer within {ANSWER_S:g} s. See "
                    f"{self._folder / 'log'}."
                ) from None
            except OSError:  # no socket, or nobody listens anymore
                return None
        if not line:  # it ended before it could answer
            return None
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise Refused(f"The supervisor of the fleet failed: {reply['error']}.")
        return reply
