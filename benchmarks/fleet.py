"""How quickly a fleet starts and heals, and whether its size makes a step slower.

    python -m benchmarks.fleet --on local       (at most five minutes, on a quiet machine)
    python -m benchmarks.fleet --on ray         (starts a cluster of its own on this machine)

The steps are those of one session at one agent throughout, while the fleet around them grows and
shrinks: two starts of one agent differ by more than what is to be measured. They are measured on
the way up and again on the way down, several times, and a ratio is formed on each way, so that a
drift of the machine's speed does not count. Meanwhile the learner and this agent share one
processor: a step takes longer when they run on two, and other agents, even if they are idle, make
the scheduler change its choice. The other agents may run on all processors.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
STEPS, TURNS = 500, 32  # of a measurement
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
        most: the largest number of agents.
    """

    def __init__(self, path: Path, engine: str, url: str, most: int) -> None:
        self.url, self.most = url, most
        self._path, self._engine = path, engine
        self._agents = 0  # as the last command has left it

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
        if agents == self._agents:
            return
        self._agents = agents
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


@contextlib.contextmanager
def session(fleet: Fleet) -> Iterator[ProxyEnv]:
    """Open the session whose steps are measured, at an agent that is then never drained."""
    fleet.scale(1)
    with contextlib.closing(BrokerConnection(fleet.url)) as connection:
        [pid] = pids(connection)
    before = os.sched_getaffinity(pid)
    with ProxyEnv(ADDRESS, fleet.url, direct="always", wait_s=10) as env:
        env.reset(seed=1)
        pin(pid, {max(before)})
        yield env
        pin(pid, before)


def pin(pid: int, processors: set[int]) -> None:
    """Let all threads of a process run on these processors only."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), processors)


def p50_us(env: ProxyEnv) -> float:
    """Return the median of a direct step: of the medians of many turns."""
    turns = []
    action, stamps = np.int64(0), np.empty(STEPS + 1, np.int64)
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(processors)})
    for _ in range(TURNS):
        stamps[0] = time.perf_counter_ns()
        for step in range(1, STEPS + 1):
            env.step(action)
            stamps[step] = time.perf_counter_ns()
        turns.append(float(np.median(np.diff(stamps))) / 1e3)
    os.sched_setaffinity(0, processors)
    return statistics.median(turns)


def up_and_down(
    numbers: Sequence[int], cycles: int, change: Callable[[int], object], env: ProxyEnv
) -> Figures:
    """Measure a step with each number of something; `change` makes it that many.

    `cycles`: how often to go up and down.
    """
    found: dict[int, list[float]] = {number: [] for number in numbers}
    for way in (numbers, numbers[::-1]) * cycles:
        for number in way:
            change(number)
            found[number].append(p50_us(env))
    return ratios(found)


def by_agents(fleet: Fleet, numbers: Sequence[int], cycles: int) -> Figures:
    """Measure a step with each number of agents."""
    with session(fleet) as env:
        return up_and_down(numbers, cycles, fleet.scale, env)


def by_sessions(fleet: Fleet, numbers: Sequence[int], cycles: int) -> Figures:
    """Measure a step with each number of open sessions."""
    with session(fleet) as env:
        fleet.scale(min(MANY, fleet.most))
        with contextlib.closing(Crowd(fleet.url)) as crowd:
            return up_and_down(numbers, cycles, crowd.grow_to, env)


class Crowd:
    """Idle sessions of other processes, beside the one that is measured."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._parts: list[tuple[int, contextlib.ExitStack]] = []

    def grow_to(self, number: int) -> None:
        """Open sessions, or close the latest, until `number` are open with the measured one."""
        while (count := 1 + sum(size for size, _ in self._parts)) > number:
            self._parts.pop()[1].close()
        if number > count:
            stack = contextlib.ExitStack()
            stack.enter_context(part(MODULE, "--hold", number - count, self._url))
            self._parts.append((number - count, stack))
        with contextlib.closing(BrokerConnection(self._url)) as connection:
            while sum(one["used"] for one in connection.find(ADDRESS)) != number:
                time.sleep(PAUSE_S)

    def close(self) -> None:
        """Close all of them."""
        self.grow_to(1)


def ratios(found: Mapping[int, Sequence[float]]) -> Figures:
    """Return the medians of the p50s, and of their ratios to those of the least number.

    A ratio compares figures of the same way. `low` and `high` are the least and the largest ratio:
    with six ways, the true median lies between them with a probability of 97 %.
    """
    least = found[min(found)]
    ways = {number: [a / b for a, b in zip(found[number], least, strict=True)] for number in found}
    return {
        str(number): {
            "p50 µs": statistics.median(each),
            "ratio": statistics.median(ways[number]),
            "low": min(ways[number]),
            "high": max(ways[number]),
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


def measure(kind: str, agents: Sequence[int], sessions: Sequence[int], cycles: int) -> Figures:
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
        fleet = Fleet(path, kind, url, most)
        stack.callback(fleet.run, "down")
        figures = {"engine": kind, "start": start(fleet, most)}
        figures["agents"] = by_agents(fleet, sorted(agents), cycles)
        figures["sessions"] = by_sessions(fleet, sorted(sessions), cycles)
        figures["steps/s"] = steps_per_s(fleet, [*range(1, min(2 * cores, most) + 1)])
    return figures


def tables(figures: Figures) -> Iterator[Table]:
    """Yield what was measured."""
    started = Table("figure", "", title=f"A fleet on {figures['engine']}")
    for name, value in figures["start"].items():
        started.add_row(name, f"{value:.1f}" if isinstance(value, float) else str(value))
    yield started
    for name in ("agents", "sessions"):
        heading = f"× {min(figures[name], key=int)}"
        table = Table(name, "p50 µs", heading, "from", "to", title="A direct step")
        for number, each in figures[name].items():
            cells = [f"{each[key]:.2f}" for key in ("ratio", "low", "high")]
            table.add_row(number, f"{each['p50 µs']:.0f}", *cells)
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
    parser.add_argument("--cycles", type=int, default=3, help="ways up and down (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    figures = measure(options.on, options.agents, options.sessions, options.cycles)
    console = Console()
    for table in tables(figures):
        console.print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # sessions and processes are closed
    match sys.argv[1:]:
        case ["--hold", sessions, url]:
            hold(int(sessions), url)
        case ["--learn", index, counts, url]:
            learn(int(index), counts, url)
        case _:
            main()
