"""The engine `ray`: agents on the nodes of a Ray cluster.

Ray runs in a process of its own, the driver (`ray_driver`): it may exit without a word when the
cluster fails, wait for minutes, and replace the handlers of signals.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import IO, Any

from gymwire.env_agent.workers import meaning
from gymwire.fleet.description import Fleet
from gymwire.fleet.engine import PENDING, AgentPlan, Resources, RunningAgent
from gymwire.fleet.processes import last_line
from gymwire.protocol.errors import ConfigurationError, Refused
from gymwire.protocol.extras import install_line

if find_spec("ray") is None:
    raise ModuleNotFoundError(
        f"gymwire fleet --on ray needs Ray. Install it with: {install_line('ray')}",
        name="ray",
    )

PROBE_S = 3.0  # for the head of the cluster to accept a connection
CONNECT_S = 60.0  # for the driver to connect to the cluster
ANSWER_S = 60.0  # for the driver to answer; it may wait for actors that do not
NO_ROOM = "Ray has found no node with room for it yet"


class RayEngine:
    """Agents on the nodes of a Ray cluster: that of RAY_ADDRESS, or of this machine.

    The fleet's name is the namespace of its actors. Raises ConfigurationError without a cluster.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._namespace = f"gymwire-fleet-{fleet.name}"
        self._fleet = fleet
        self._driver: _Driver | None = None
        self._ask("nodes")

    def start(self, agents: Sequence[AgentPlan]) -> None:
        """Make an actor for each agent; Ray places them when there is room."""
        self._ask("start", agents=[asdict(plan) for plan in agents])

    def running(self) -> list[RunningAgent]:
        """Return all agents that have not ended."""
        agents = [RunningAgent(**one) for one in self._ask("running")["agents"]]
        if any(one.state == PENDING for one in agents):
            detail = self._why_pending()
            agents = [
                replace(one, detail=detail) if one.state == PENDING else one for one in agents
            ]
        return agents

    def drain(self, names: Sequence[str]) -> None:
        """Drain agents. Ray ends those that have no process."""
        self._ask("drain", names=[*names])

    def stop(self, names: Sequence[str]) -> None:
        """Kill agents and their actors, including those that do not answer."""
        self._ask("stop", names=[*names])

    def _why_pending(self) -> str:
        nodes = self._ask("nodes")["nodes"]
        place = self._fleet.place
        labels: Mapping[str, str] = {} if isinstance(place, str) else place
        needed = needs(self._fleet.resources)
        for node in nodes:
            has_labels = labels.items() <= node.get("Labels", {}).items()
            if has_labels and all(node["Resources"].get(key, 0) >= needed[key] for key in needed):
                return NO_ROOM
        wanted = [*(f"{value:g} {key}" for key, value in needed.items())]
        wanted += [f"the label {key}={value}" for key, value in labels.items()]
        return f"no node of the Ray cluster has {' and '.join(wanted) or 'a process'}"

    def _ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Return the driver's reply; start the driver if there is none. Raises Refused."""
        if self._driver is None:
            self._driver = _Driver(self._namespace)
        try:
            reply = self._driver.ask({"do": do, **fields})
        except Refused:
            self._driver = None
            raise
        if "error" in reply:
            raise Refused(str(reply["error"]))
        return reply


def needs(resources: Resources) -> dict[str, float]:
    """Return what an agent needs, by Ray's names of resources."""
    needed = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory or 0}
    return {key: value for key, value in needed.items() if value}


class _Driver:
    """The process that talks to Ray. Raises ConfigurationError without a cluster."""

    def __init__(self, namespace: str) -> None:
        self._address = os.environ.get("RAY_ADDRESS", "")
        _probe(self._address)
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the driver's
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gymwire.fleet.ray_driver", str(theirs.fileno()), namespace],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the command
            )
        self._file = self._socket.makefile("rb")
        parts = (self._process, self._file, self._socket, self._output)
        self._end = weakref.finalize(self, _end, *parts)
        try:
            reply = self._receive(CONNECT_S)
            if "error" in reply:
                raise Refused(str(reply["error"]))
        except Refused as error:
            self._end()
            raise _no_cluster(self._address, str(error)) from None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to a request. Raises Refused, and ends the driver, if it gets none."""
        try:
            # A driver that has ended does not take the request; `_receive` says so.
            with contextlib.suppress(ConnectionError):
                self._socket.sendall(json.dumps(request, default=str).encode() + b"\n")
            return self._receive(ANSWER_S)
        except Refused:
            self._end()
            raise

    def _receive(self, at_most_s: float) -> dict[str, Any]:
        self._socket.settimeout(at_most_s)
        try:
            line = self._file.readline()
        except TimeoutError:
            raise Refused(
                f"Ray does not answer within {at_most_s:g} s. Its last words: {self._said()}"
            ) from None
        except ConnectionError:
            line = b""
        if not line:
            status = self._process.wait()
            raise Refused(
                f"Ray has ended its driver ({meaning(status)}), which happens when the cluster "
                f"fails. Its last words: {self._said()}"
            )
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _said(self) -> str:
        return last_line(self._output)[:1000]


def _end(process: subprocess.Popen[bytes], *files: IO[bytes] | socket.socket) -> None:
    process.kill()
    process.wait()
    for each in files:
        each.close()


def _probe(address: str) -> None:
    """Check that something listens at HOST:PORT: Ray itself would try for two minutes."""
    match = re.fullmatch(r"(.+):(\d{1,5})", address)
    if match is None or "://" in address:
        return
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), PROBE_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, why: str) -> ConfigurationError:
    where = f"at {address} (RAY_ADDRESS)" if address else "on this machine (RAY_ADDRESS is not set)"
    return ConfigurationError(
        f"Cannot connect to a Ray cluster {where}: {why.rstrip('.')}. Set RAY_ADDRESS to the "
        f"HOST:PORT of its head, or run this on one of its nodes."
    )
