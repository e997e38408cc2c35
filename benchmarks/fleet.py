"""How quickly a fleet starts and heals, and whether its size makes a step slower.

    python -m benchmarks.fleet --on local       (at most five minutes, on a quiet machine)
    python -m benchmarks.fleet --on ray         (starts a cluster of its own on this machine)

Each number of agents, and of open sessions, is measured on the way down and again on the way up, so
that a drift of the machine's speed concerns all of them. Meanwhile a loop of the lowest priority
(SCHED_IDLE) runs on each processor: otherwise idle agents would keep the processors of a virtual
machine awake, and steps would be faster with more agents.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import ours
from benchmarks.processes import part
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv

ROOT = Path(__file__).parents[1]
MODULE = "benchmarks.fleet"
ADDRESS = "it"
MANY = 8  # agents, while open sessions are counted
STEPS, TURNS = 2000, 3  # of a measurement: steps of a session, and sessions
BUSY_S = 0.001  # what a step computes while the steps of all agents are counted
COUNT_S = 5.0  # for how long they are counted
WAIT_S = 240.0  # for agents to start
PAUSE_S = 0.01  # between two looks at the broker's list

FLEET = """
[fleet]
name = "benchmark-{pid}"
broker = "{url}"
grace_s = 1

[agents]
count = {agents}
cpus = 0

[[offer]]
address = "it"
env = "benchmarks.environments:Worker"
max_sessions = {slots}
"""

Figures = dict[str, Any]


class Fleet:
    """A fleet under test.

    Args:
        path: its fleet.toml.
        engine: as `--on` takes it.
        url: its broker.
    """

    def __init__(self, path: Path, engine: str, url: str) -> None:
        self.url = url
        self._path, self._engine = path, engine

    def start(self, action: str, *options: str) -> subprocess.Popen[str]:
        """Start a command."""
        command = [sys.executable, "-m", "gymwire", "fleet", action, str(self._path)]
        command += ["--on", self._engine, "--json", "--log-level", "warning", *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, action: str, *options: str) -> Mapping[str, Any]:
        """Run a command; return its JSON object. Raises RuntimeError if it fails."""
        return self.end(self.start(action, *options))

    @staticmethod
    def end(process: subprocess.Popen[str]) -> Mapping[str, Any]:
        """Wait for a command; return its JSON object. Raises RuntimeError if it fails."""
        output, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{process.args!r} failed:\n{errors}")
        found: Mapping[str, Any] = json.loads(output)
        return found

    def scale(self, agents: int) -> None:
        """Scale it, and wait until the others have ended."""
        self.run("scale", "--agents", str(agents), "--wait", str(WAIT_S))
        with contextlib.closing(BrokerConnection(self.url)) as connection:
            while len(pids(connection)) != agents:
                time.sleep(PAUSE_S)


def pids(connection: BrokerConnection) -> set[int]:
    """Return the process ids of all agents that are ready."""
    return {one["pid"] for one in connection.find(ADDRESS) if one["state"] == "ready"}


def start(fleet: Fleet, agents: int) -> Figures:
    """Start the fleet, and kill one agent."""
    began = time.monotonic()
    command = fleet.start("up", "--wait", str(WAIT_S))
    with ProxyEnv(ADDRESS, fleet.url, wait_s=WAIT_S) as env:
        env.reset(seed=1)
        first_s = time.monotonic() - began
    fleet.end(command)
    last_s = time.monotonic() - began
    with contextlib.closing(BrokerConnection(fleet.url)) as connection:
        before = pids(connection)
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        while len(pids(connection) - {killed}) < agents:
            time.sleep(PAUSE_S)
    return {
        "agents": agents,
        "s from up to the first session": first_s,
        "s from up to the last agent": last_s,
        "s to heal after SIGKILL": time.monotonic() - began,
    }


def p50_us(url: str) -> float:
    """Return the median of a direct step, over several sessions in turn."""
    turns = []
    for _ in range(TURNS):
        with ProxyEnv(ADDRESS, url, direct="always", wait_s=10) as env:
            env.reset(seed=1)
            action, stamps = np.int64(0), np.empty(STEPS + 1, np.int64)
            stamps[0] = time.perf_counter_ns()
            for step in range(1, STEPS + 1):
                env.step(action)
                stamps[step] = time.perf_counter_ns()
        turns.append(float(np.median(np.diff(stamps))) / 1e3)
    return statistics.median(turns)


def by_agents(fleet: Fleet, numbers: Sequence[int]) -> Figures:
    """Measure a step with each number of agents, from the most to the fewest and back."""
    found: dict[int, list[float]] = {number: [] for number in numbers}
    for number in (*reversed(numbers), *numbers):
        fleet.scale(number)
        with awake():
            found[number].append(p50_us(fleet.url))
    return ratios(found)


def by_sessions(fleet: Fleet, numbers: Sequence[int]) -> Figures:
    """Measure a step with each number of open sessions, from the fewest to the most and back.

    The others are idle sessions of another process.
    """
    found: dict[int, list[float]] = {number: [] for number in numbers}
    with awake(), contextlib.ExitStack() as stack:
        opened, holders = 1, []
        for number in numbers:
            holder = stack.enter_context(contextlib.ExitStack())
            if number > opened:
                holder.enter_context(part(MODULE, "--hold", number - opened, fleet.url))
            opened = number
            holders.append(holder)
            found[number].append(p50_us(fleet.url))
        for number, holder in zip(reversed(numbers), reversed(holders), strict=True):
            found[number].append(p50_us(fleet.url))
            holder.close()
    return ratios(found)


def ratios(found: Mapping[int, Sequence[float]]) -> Figures:
    """Return the p50s, and their ratios to those of the least number on the same way."""
    least = found[min(found)]
    return {
        str(number): {
            "p50 µs": statistics.mean(each),
            "ratio": statistics.mean(a / b for a, b in zip(each, least, strict=True)),
        }
        for number, each in found.items()
    }


def steps_per_s(fleet: Fleet, numbers: Sequence[int]) -> Figures:
    """Count the steps of as many learners as there are agents."""
    found = {}
    for number in numbers:
        fleet.scale(number)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(tempfile.NamedTemporaryFile())
            file.truncate(8 * number)
            counts = np.memmap(file.name, np.int64, "r+", shape=(number,))
            for index in range(number):
                stack.enter_context(part(MODULE, "--learn", index, file.name, fleet.url))
            before, began = counts.sum(), time.perf_counter()
            time.sleep(COUNT_S)
            found[str(number)] = float((counts.sum() - before) / (time.perf_counter() - began))
    return found


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep all processors awake."""
    with contextlib.ExitStack() as stack:
        for _ in os.sched_getaffinity(0):
            stack.enter_context(part(MODULE, "--keep"))
        yield


def keep() -> None:
    """Run when nothing else does."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    print("ready", flush=True)
    for _ in count():
        continue


def learn(index: int, counts: str, url: str) -> None:
    """Step until SIGTERM, and count the steps in one place of a file."""
    steps = np.memmap(counts, np.int64, "r+")
    with ProxyEnv(ADDRESS, url, env_kwargs={"busy_s": BUSY_S}, direct="always", wait_s=10) as env:
        env.reset(seed=1)
        print("ready", flush=True)
        for _ in count():
            env.step(np.int64(0))
            steps[index] += 1


def hold(sessions: int, url: str) -> None:
    """Open idle sessions, and wait for SIGTERM."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.closing(ours.crowded(url, sessions, "direct, same host")) as envs:
        envs.reset(seed=1)
        print("ready", flush=True)
        signal.pause()


@contextlib.contextmanager
def engine(kind: str, agents: int, folder: str) -> Iterator[None]:
    """Prepare an engine; all processes inherit its variables."""
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    os.environ["XDG_STATE_HOME"] = folder
    if kind != "ray":
        yield
        return
    from ray.cluster_utils import Cluster

    head = {"num_cpus": agents, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield
    finally:
        cluster.shutdown()


def measure(kind: str, agents: Sequence[int], sessions: Sequence[int]) -> Figures:
    """Measure everything."""
    most, cores = max(agents), len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gw-"))
        stack.enter_context(engine(kind, most, folder))
        url = f"tcp://127.0.0.1:{ours.free_port()}"
        stack.enter_context(ours.program("gymwire.broker", "--bind", url))
        path = Path(folder) / "fleet.toml"
        # One agent alone must have room for all sessions.
        slots = max(sessions) + 8
        path.write_text(FLEET.format(pid=os.getpid(), url=url, agents=most, slots=slots))
        fleet = Fleet(path, kind, url)
        stack.callback(fleet.run, "down")
        figures = {"engine": kind, "start": start(fleet, most)}
        figures["agents"] = by_agents(fleet, sorted(agents))
        fleet.scale(min(MANY, most))
        figures["sessions"] = by_sessions(fleet, sorted(sessions))
        figures["steps/s"] = steps_per_s(fleet, [*range(1, min(2 * cores, most) + 1)])
    return figures


def tables(figures: Figures) -> Iterator[Table]:
    """Yield what was measured."""
    started = Table("figure", "", title=f"A fleet on {figures['engine']}")
    for name, value in figures["start"].items():
        started.add_row(name, f"{value:.1f}" if isinstance(value, float) else str(value))
    yield started
    for name in ("agents", "sessions"):
        table = Table(name, "p50 µs", f"× {min(figures[name], key=int)}", title="A direct step")
        for number, each in figures[name].items():
            table.add_row(number, f"{each['p50 µs']:.0f}", f"{each['ratio']:.2f}")
        yield table
    title = f"Steps of {BUSY_S * 1e3:g} ms, {len(os.sched_getaffinity(0))} processors"
    total = Table("agents and learners", "steps/s", title=title)
    for number, value in figures["steps/s"].items():
        total.add_row(number, f"{value:,.0f}")
    yield total


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--on", choices=("local", "ray"), default="local")
    parser.add_argument("--agents", type=_numbers, default=[1, 8, 32], metavar="N,…")
    parser.add_argument("--sessions", type=_numbers, default=[1, 100, 1000], metavar="N,…")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    figures = measure(options.on, options.agents, options.sessions)
    console = Console()
    for table in tables(figures):
        console.print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # sessions and processes are closed
    match sys.argv[1:]:
        case ["--keep"]:
            keep()
        case ["--hold", sessions, url]:
            hold(int(sessions), url)
        case ["--learn", index, counts, url]:
            learn(int(index), counts, url)
        case _:
            main()
