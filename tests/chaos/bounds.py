"""What is left after many sessions and a flood; step times beside greedy peers."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gymwire import ProxyEnv
from gymwire.learner_agent.client.connection import BrokerConnection
from tests.chaos.fleet import ADDRESS, Part, descriptors, fleet, resident, until
from tests.processes import ROOT

# What 10,000 sessions or a flood may leave behind in the broker or an env agent. It is what the
# allocator keeps of the most connections at once, 500 here; what has ended leaves nothing else.
MEMORY = 48 * 1024 * 1024
DESCRIPTORS = 16


class Use(NamedTuple):
    """Resident bytes and open descriptors of one process."""

    memory: int
    descriptors: int

    @classmethod
    def of(cls, part: Part) -> Use:
        return cls(resident(part.pid), descriptors(part.pid))

    def since(self, before: Use) -> Use:
        return Use(self.memory - before.memory, self.descriptors - before.descriptors)


def until_free(part: Part, most: int) -> None:
    """Wait until the process has no more descriptors open than that."""
    until(lambda: descriptors(part.pid) <= most, f"{part.log.name} frees its descriptors")


def until_given_back(part: Part, most: int) -> None:
    """Wait until the process has no more than so many bytes of memory.

    What a flood has sent may wait until its connection is closed, two seconds later.
    """
    until(lambda: resident(part.pid) <= most, f"{part.log.name} gives memory back")


def used_slots(url: str) -> int:
    with contextlib.closing(BrokerConnection(url)) as connection:
        return sum(offer["used"] for offer in connection.find(ADDRESS))


def open_and_close(url: str, sessions: int) -> None:
    """So many sessions, one after the other: used for a step, and closed."""
    with contextlib.closing(BrokerConnection(url)) as connection:
        for number in range(sessions):
            with ProxyEnv(ADDRESS, connection=connection) as env:
                env.reset(seed=number)
                env.step(1)


def open_and_abandon(url: str, sessions: int, together: int = 50) -> None:
    """Open this many sessions whose learners vanish without CLOSE or BYE."""
    for start in range(0, sessions, together):
        dealers = []
        for _ in range(min(together, sessions - start)):
            connection = BrokerConnection(url)
            connection.open(ADDRESS)
            dealers.append(connection.link)
        for dealer in dealers:
            dealer.close()  # as a crash would: no CLOSE, no BYE
        until(lambda: used_slots(url) == 0, "the slots of vanished learners are free", 60.0)


@contextlib.contextmanager
def greedy(url: str, *, reads: bool) -> Iterator[None]:
    """Run a peer that sends requests as fast as it can. `reads`: whether it reads the replies."""
    command = [
        sys.executable,
        "-m",
        "tests.chaos.greedy",
        url,
        *([] if reads else ["--no-reading"]),
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(10.0)


def p99_ms(env: ProxyEnv, steps: int) -> float:
    """Return the 99th percentile of the duration of a step, in milliseconds."""
    env.reset(seed=1)
    times = np.empty(steps)
    for i in range(steps):
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(i % 2)
        times[i] = time.perf_counter() - start
        if terminated or truncated:
            env.reset()
    return float(np.percentile(times, 99) * 1000)


def step_times(folder: Path, *, rounds: int, say: Callable[[str], None]) -> bool:
    """Compare the p99 of a CartPole step through the broker, alone and beside greedy peers.

    Returns whether the medians of the latter are at most twice that of the former.
    """
    peers = {"alone": None, "beside a greedy peer": True, "beside one that never reads": False}
    found: dict[str, list[float]] = {what: [] for what in peers}
    with fleet(folder) as made:
        made.broker()
        arguments = ["gymwire.env_agent", "--address", "cartpole", "--env", "CartPole-v1"]
        agent = Part(folder / "cartpole.log", [*arguments, "--broker", made.url])
        made.parts.append(agent)
        agent.says("offering")
        with ProxyEnv("cartpole", made.url, direct="never") as env:
            p99_ms(env, 1000)  # what is made once is made now
            for _ in range(rounds):
                for what, reads in peers.items():
                    beside = (
                        contextlib.nullcontext() if reads is None else greedy(made.url, reads=reads)
                    )
                    with beside:
                        found[what].append(p99_ms(env, 12_000))
    medians = {what: statistics.median(each) for what, each in found.items()}
    alone = medians["alone"]
    for what, p99 in medians.items():
        each = ", ".join(f"{one:.2f}" for one in found[what])
        say(f"p99 of a step {what:27} {p99:6.2f} ms, {p99 / alone:4.2f} times ({each})")
    return max(medians.values()) <= 2 * alone


def run(folder: Path, *, sessions: int, say: Callable[[str], None]) -> bool:
    """Measure all bounds and print them. Returns whether they hold."""
    kept = True
    with fleet(folder) as made:
        broker = made.broker("--lease", "2")
        agent = made.env_agent("--max-sessions", "500", "--threads", "2")
        parts = {"broker": broker, "env agent": agent}

        def measure(what: str, act: Callable[[], None]) -> None:
            nonlocal kept
            before = {name: Use.of(part) for name, part in parts.items()}
            start = time.monotonic()
            act()
            took_s = time.monotonic() - start
            for name, part in parts.items():
                most = before[name].descriptors + DESCRIPTORS
                until_free(part, most)
                more = Use.of(part).since(before[name])
                kept &= more.memory <= MEMORY
                say(
                    f"{what:36} {took_s:6.0f} s  {name:9}  {more.memory / 2**20:+6.1f} MiB  "
                    f"{more.descriptors:+3} descriptors"
                )

        def flood() -> None:
            with greedy(made.url, reads=False):
                time.sleep(10.0)

        measure("before: 200 sessions closed", lambda: open_and_close(made.url, 200))
        measure(f"{sessions} sessions closed", lambda: open_and_close(made.url, sessions))
        measure(f"{sessions} sessions abandoned", lambda: open_and_abandon(made.url, sessions, 500))
        measure("10 s of flood, answers never read", flood)
    return kept
