"""The program that talks to Ray for the engine `ray`: `python -m gymwire.fleet.ray_driver FD NAME`.

Each agent is a process under a named, detached actor, which Ray restarts. Ray carries only commands
and states: agents connect to the broker, and sessions bypass Ray. The engine sends requests, lines
of JSON, over the socket with the descriptor FD; this program ends when the engine closes it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.util

from gymwire.fleet.engine import (
    PENDING,
    RESTARTING,
    SPREAD,
    AgentFile,
    AgentPlan,
    Resources,
    RunningAgent,
)
from gymwire.fleet.processes import AgentProcess, spec_of
from gymwire.fleet.state import place_files
from gymwire.protocol.errors import Refused

TICK_S = 0.1
REPORT_S = 3.0  # for an actor's report; an actor that has no process yet does not answer
ORDER_S = 30.0  # for an actor that has a process to accept a command
MAX_ERROR = 300  # characters of an error of Ray
CLEAN = 'read -r _; rm -rf -- "$0"'  # for sh: remove a folder once the standard input ends
# The states in Ray's table of actors in which an actor has no process.
UNPLACED = {"DEPENDENCIES_UNREADY": PENDING, "PENDING_CREATION": PENDING, "RESTARTING": RESTARTING}


class RayAgent:
    """The actor of one agent, on the node that Ray has chosen.

    It restarts the agent's process when that dies. Ray restarts the actor, from its plan, when the
    actor or its node dies; the process ends with its actor.
    """

    def __init__(self, plan: AgentPlan) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="gymwire-fleet-"))  # for this user only
        # If this process is killed, its files, such as the key, must not stay on the node.
        self._cleaner = subprocess.Popen(
            ["sh", "-c", CLEAN, str(self._home)], stdin=subprocess.PIPE, start_new_session=True
        )
        files = place_files(plan.files, self._home, copy=True)
        self._lock = threading.Lock()
        spec = spec_of(plan, files, self._home / "log")
        self._process = AgentProcess(spec, time.monotonic())
        threading.Thread(target=self._supervise, daemon=True).start()

    def _supervise(self) -> None:
        pause = threading.Event()
        while not self._process.is_over:
            pause.wait(TICK_S)
            with self._lock:
                self._process.tick(time.monotonic())
        shutil.rmtree(self._home, ignore_errors=True)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    def report(self) -> RunningAgent:
        """Return the state of the agent."""
        with self._lock:
            return self._process.report()

    def drain(self) -> None:
        """Drain the agent; then the actor ends, too."""
        with self._lock:
            self._process.drain(time.monotonic())

    def stop(self) -> None:
        """Kill the agent; then the actor ends, too."""
        with self._lock:
            self._process.stop()
        shutil.rmtree(self._home, ignore_errors=True)  # Ray kills this actor next


class RayDriver:
    """The agents on the nodes of a Ray cluster: that of RAY_ADDRESS, or of this machine.

    `namespace`: of the actors of this fleet.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._started: dict[str, Any] = {}  # actors that this process has made, by their names
        ray.init(address="auto", log_to_driver=False, configure_logging=False)

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a request asks for, and return the reply."""
        names: Sequence[str] = request.get("names", ())
        try:
            match request["do"]:
                case "start":
                    self.start([_plan(fields) for fields in request["agents"]])
                case "running":
                    return {"agents": [asdict(one) for one in self.running()]}
                case "drain":
                    self.drain(names)
                case "stop":
                    self.stop(names)
                case "nodes":
                    return {"nodes": [node for node in ray.nodes() if node["Alive"]]}
        except Refused as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - the engine reports it
            return {"error": f"Ray failed: {text_of(error)}"}
        return {}

    def start(self, agents: Sequence[AgentPlan]) -> None:
        """Make an actor for each agent; Ray places them when there is room."""
        for plan in agents:
            options: dict[str, Any] = {}
            if plan.place == SPREAD:
                options["scheduling_strategy"] = "SPREAD"
            elif not isinstance(plan.place, str):
                options["label_selector"] = dict(plan.place)
            if plan.resources.memory is not None:
                options["memory"] = plan.resources.memory
            if plan.runtime_env:
                options["runtime_env"] = dict(plan.runtime_env)
            actor = ray.remote(RayAgent).options(
                name=plan.name,
                namespace=self._namespace,
                lifetime="detached",
                max_restarts=-1,
                num_cpus=plan.resources.cpus,
                num_gpus=plan.resources.gpus,
                **options,
            )
            try:
                self._started[plan.name] = actor.remote(plan)
            except Exception as error:  # noqa: BLE001 - such as a name that is in use
                raise Refused(f"Ray did not start {plan.name}: {text_of(error)}") from None

    def running(self) -> list[RunningAgent]:
        """Return all agents that have not ended.

        Raises Refused, once, for an agent that this process has started and Ray could not create.
        """
        # Ray does not list an actor that it could not create, but its handle has the reason.
        actors = self._started | self._actors()
        reports = {name: actor.report.remote() for name, actor in actors.items()}
        answered = _wait(reports.values(), REPORT_S)
        unplaced = {} if len(answered) == len(reports) else self._unplaced()
        found = []
        for name, report in reports.items():
            state = unplaced.get(name, RESTARTING)
            agent = RunningAgent(name, state, detail="Ray has found no node with room for it yet")
            if report in answered:
                try:
                    agent = ray.get(report)
                except ray.exceptions.ActorDiedError as error:
                    self._started.pop(name, None)
                    if not error.actor_init_failed:
                        continue
                    why = str(error).strip().splitlines()[-1]  # that of the traceback
                    raise Refused(f"Ray cannot start {name}: {why[:MAX_ERROR]}") from None
                except (
                    ray.exceptions.ActorUnschedulableError,
                    ray.exceptions.RuntimeEnvSetupError,
                ) as error:
                    self._started.pop(name, None)
                    raise Refused(f"Ray cannot start {name}: {text_of(error)}") from None
                except ray.exceptions.RayError:
                    agent = RunningAgent(name, RESTARTING, detail="Ray is restarting its actor")
            elif name not in unplaced:
                agent = RunningAgent(name, RESTARTING, detail="its actor does not answer")
            found.append(agent)
        return found

    def drain(self, names: Sequence[str]) -> None:
        """Drain agents. Ray ends those that have no process."""
        self._order("drain", names)

    def stop(self, names: Sequence[str]) -> None:
        """Kill agents and their actors, including those that do not answer."""
        self._order("stop", names)
        for name, actor in self._actors().items():
            if name in names:
                ray.kill(actor, no_restart=True)

    def _order(self, order: str, names: Sequence[str]) -> None:
        actors = {name: actor for name, actor in self._actors().items() if name in names}
        unplaced = self._unplaced().keys() & actors.keys()
        for name in unplaced:
            ray.kill(actors.pop(name), no_restart=True)
        _wait([getattr(actor, order).remote() for actor in actors.values()], ORDER_S)

    def _actors(self) -> dict[str, Any]:
        """Return the handles of all actors that have not ended, with or without a node."""
        found = {}
        for one in ray.util.list_named_actors(all_namespaces=True):
            if one["namespace"] == self._namespace:
                with contextlib.suppress(ValueError):  # it has ended meanwhile
                    found[one["name"]] = ray.get_actor(one["name"], namespace=self._namespace)
        return found

    def _unplaced(self) -> dict[str, str]:
        """Return the states of the agents that have no process now, by their names."""
        # The public ray.util.state needs Ray's dashboard.
        from ray._private import state

        return {
            str(row["Name"]): UNPLACED[row["State"]]
            for row in state.actors().values()
            if row["ActorClassName"] == RayAgent.__name__ and row["State"] in UNPLACED
        }


def _plan(fields: dict[str, Any]) -> AgentPlan:
    """Return a plan from its fields."""
    files = [
        AgentFile(one["variable"], one["text"], None if one["path"] is None else Path(one["path"]))
        for one in fields["files"]
    ]
    changes = {
        "arguments": tuple(fields["arguments"]),
        "files": tuple(files),
        "folder": Path(fields["folder"]),
        "resources": Resources(**fields["resources"]),
    }
    return AgentPlan(**{**fields, **changes})


def text_of(error: BaseException) -> str:
    """Return an error of Ray, which may have many lines, as one short line."""
    text = " ".join(str(error).split())
    return text[:MAX_ERROR] if text else type(error).__name__


def _wait(references: Any, timeout_s: float) -> set[Any]:
    """Return the references whose results have arrived within this time."""
    waiting = list(references)
    if not waiting:
        return set()
    return set(ray.wait(waiting, num_returns=len(waiting), timeout=timeout_s)[0])


def main(descriptor: int, namespace: str) -> None:
    """Connect to the cluster, and answer requests until the engine closes the socket."""
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rw") as file:

        def reply(fields: Mapping[str, Any]) -> None:
            file.write(json.dumps(fields, default=str) + "\n")
            file.flush()

        try:
            driver = RayDriver(namespace)
        except Exception as error:  # noqa: BLE001 - the engine reports it
            reply({"error": text_of(error)})
            return
        reply({})
        for line in file:
            reply(driver.answer(json.loads(line)))


if __name__ == "__main__":
    # Ray finds the class of the actors by the name of its module.
    from gymwire.fleet import ray_driver

    ray_driver.main(int(sys.argv[1]), sys.argv[2])
