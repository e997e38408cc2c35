"""The process that supervises a fleet on this machine: `python -m gymwire.fleet.supervisor FOLDER`.

It listens at the Unix socket of the fleet's state folder, for one request per connection: a line of
JSON, which it answers with another one. It ends when its last agent has ended. Agents end with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gymwire.fleet.processes import AgentProcess, ProcessSpec

SOCKET = "socket"
TICK_S = 0.1
REQUEST_S = 5.0  # for how long a client may take to send its request
UNUSED_S = 30.0  # for how long it waits for its first agent
READY = b"ready\n"


class FleetSupervisor:
    """The agents of a fleet on this machine.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._agents: dict[str, AgentProcess] = {}
        self._clock = clock
        self._signals = 0
        self._empty_until = clock() + UNUSED_S

    @property
    def is_over(self) -> bool:
        """Whether all agents have ended."""
        return not self._agents and (self._signals > 0 or self._clock() >= self._empty_until)

    def tick(self) -> None:
        """Check all agents. After a signal drain them; after the second one kill them."""
        for agent in self._agents.values():
            if self._signals > 1:
                agent.stop()
            elif self._signals:
                agent.drain(self._clock())
        for name, agent in [*self._agents.items()]:
            agent.tick(self._clock())
            if agent.is_over:
                del self._agents[name]

    def on_signal(self, number: int, frame: object = None) -> None:
        """Note a signal for the next `tick`: this interrupts code that starts or ends agents."""
        self._signals += 1

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for, and return the reply."""
        names: Sequence[str] = request.get("names", ())
        agents = [self._agents[name] for name in names if name in self._agents]
        match request["do"]:
            case "start":
                for spec in request["agents"]:
                    if spec["name"] not in self._agents and not self._signals:
                        agent = AgentProcess(ProcessSpec(**spec), self._clock())
                        self._agents[spec["name"]] = agent
                        self._empty_until = 0.0
            case "drain":
                for one in agents:
                    one.drain(self._clock())
            case "stop":
                for one in agents:
                    one.stop()
        self.tick()
        return {"agents": [asdict(agent.report()) for agent in self._agents.values()]}


def serve(connection: socket.socket, supervisor: FleetSupervisor) -> None:
    """Answer the request of one connection."""
    with connection, connection.makefile("rwb") as file:
        connection.settimeout(REQUEST_S)
        line = file.readline()
        if not line:
            return
        try:
            reply = supervisor.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - the client reports it
            reply = {"error": f"{type(error).__name__}: {error}"}
        file.write(json.dumps(reply).encode() + b"\n")


def main(folder: Path) -> None:
    """Supervise until the last agent has ended, in a process without a parent."""
    if os.fork():
        os._exit(0)
    supervisor = FleetSupervisor()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, supervisor.on_signal)
    path = folder / SOCKET
    path.unlink(missing_ok=True)  # of a supervisor that was killed
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(str(path))
        listener.listen()
        selector.register(listener, selectors.EVENT_READ)
        os.write(sys.stdout.fileno(), READY)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # `up` waits for the end of the pipe
        while not supervisor.is_over:
            if selector.select(TICK_S):
                connection, _ = listener.accept()
                with contextlib.suppress(OSError):  # the client has gone
                    serve(connection, supervisor)
            supervisor.tick()
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
