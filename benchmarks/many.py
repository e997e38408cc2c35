"""Thousands of sessions at once: slow steps beside OpenEnv's, and what a session costs.

    python -m benchmarks.many COUNT      (so many bare environments, to measure their memory)

All sides run one after another in each start: none has to share the processors with another.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv
from rich.table import Table

from benchmarks import ours, peer_openenv, peers
from benchmarks.environments import Sleeper
from benchmarks.harness import cpu_time_ns
from benchmarks.processes import part

SESSIONS = 2048
SLEEP_S = 1.0  # what a step of each takes
ROUNDS = 3  # steps of all sessions, in each start
FEW, MORE, MOST = 100, 1_000, 10_000  # open sessions, between which costs are compared
BATCH = 500  # sessions whose opening is measured together, less than a full bucket of the broker
ENV = "benchmarks.environments:Sleeper"
PATHS: list[ours.SessionPath] = ["direct, same host", "relayed, same host"]
OPENENV = "OpenEnv"
AIO = "gymwire.aio relayed, same host"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a side. All times in seconds.

    Attributes:
        opening_s: until all sessions were open and reset.
        rounds_s: of each round, until the last of its steps had ended.
        p99_s: from the start of a round to the end of a step, the 99th percentile of all steps.
    """

    opening_s: float
    rounds_s: Sequence[float]
    p99_s: float

    @property
    def round_s(self) -> float:
        """The median round."""
        return statistics.median(self.rounds_s)


Starts = Mapping[str, Sequence[Start]]


def _ours(path: ours.SessionPath) -> Start:
    """One vector with a session for each environment.

    The caller of a vector gets the results of all its steps at once: each takes the whole round.
    """
    kwargs = {"sleep_s": SLEEP_S}
    with ours.service(ENV, path, slots=SESSIONS, env_kwargs=kwargs) as (url, _):
        began = time.perf_counter()
        envs = ours.crowded(url, SESSIONS, path)
        with contextlib.closing(envs):
            envs.reset(seed=1)
            opening_s = time.perf_counter() - began
            actions, rounds_s = np.zeros(SESSIONS, np.int64), []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                envs.step(actions)
                rounds_s.append(time.perf_counter() - began)
    return Start(opening_s, rounds_s, max(rounds_s))


def _asynchronous(path: ours.SessionPath) -> Start:
    """One task for each environment, all on one connection."""
    kwargs = {"sleep_s": SLEEP_S}
    with ours.service(ENV, path, slots=SESSIONS, env_kwargs=kwargs) as (url, _):
        opening_s, rounds = ours.asynchronous(url, SESSIONS, path, ROUNDS)
    return _start(opening_s, rounds)


def _openenv() -> Start:
    return _start(*peer_openenv.rounds(SESSIONS, SLEEP_S, ROUNDS))


def _start(opening_s: float, rounds: Sequence[Sequence[float]]) -> Start:
    steps_s = [step_s for ended_s in rounds for step_s in ended_s]
    return Start(opening_s, [max(ended_s) for ended_s in rounds], float(np.percentile(steps_s, 99)))


def slow_steps(starts: int) -> Starts:
    """Measure all sides in turn, so many times."""
    sides: dict[str, Callable[[], Start]] = {
        f"gymwire {path}": partial(_ours, path) for path in PATHS
    }
    if find_spec("anyio") and find_spec("greenlet"):
        sides[AIO] = partial(_asynchronous, "relayed, same host")
    if any(side.name == OPENENV for side in peers.installed()[0]):
        sides[OPENENV] = _openenv
    found: dict[str, list[Start]] = {name: [] for name in sides}
    for number in range(starts):
        for name in list(sides) if number % 2 == 0 else reversed(sides):
            found[name].append(sides[name]())
    return found


def table(starts: Starts) -> Table:
    """Return a table with a row for each side: medians over the starts."""
    shown = Table("side", "open and reset, s", "round, s", "p99 of a step, s")
    shown.title = f"{SESSIONS:,} sessions whose steps take {SLEEP_S:g} s"
    for name, measured in starts.items():
        medians = [
            statistics.median(one.opening_s for one in measured),
            statistics.median(one.round_s for one in measured),
            statistics.median(one.p99_s for one in measured),
        ]
        shown.add_row(name, *(f"{median:.2f}" for median in medians))
    return shown


def as_json(starts: Starts) -> dict[str, Any]:
    """Return everything that was measured as a value for `json.dumps`."""
    return {name: [asdict(one) for one in measured] for name, measured in starts.items()}


def figures(starts: Starts) -> Iterator[dict[str, Any]]:
    """Yield the figures that have targets; ratios are formed within a start."""

    def median(name: str, value: Callable[[Start, Start], float], over: str = "") -> float:
        pairs = zip(starts[name], starts[over or name], strict=True)
        return statistics.median(value(one, other) for one, other in pairs)

    for name in starts:
        if name == OPENENV:
            continue
        yield _figure(
            f"{SESSIONS:,} slow steps, {name}: steps/s over the ideal",
            "≥ 0.7" if name == AIO else "≥ 0.75",
            median(name, lambda one, _: SLEEP_S / one.round_s),
        )
        if name == AIO:
            continue
        yield _figure(
            f"{SESSIONS:,} sessions, {name}: seconds to open and reset",
            "≤ 3",
            median(name, lambda one, _: one.opening_s),
        )
        if OPENENV not in starts:
            continue
        compared: list[tuple[str, str, Callable[[Start, Start], float]]] = [
            ("steps/s", "≥ 1.2", lambda one, other: other.round_s / one.round_s),
            (
                "p99 of a step less its sleep",
                "≤ 0.5",
                lambda one, other: (one.p99_s - SLEEP_S) / (other.p99_s - SLEEP_S),
            ),
            ("time to open and reset", "≤ 0.7", lambda one, other: one.opening_s / other.opening_s),
        ]
        for what, target, value in compared:
            figure = f"{SESSIONS:,} sessions: {what}, {name} / {OPENENV}"
            yield _figure(figure, target, median(name, value, OPENENV))


def costs() -> Iterator[dict[str, Any]]:
    """Yield what a session costs: memory, as a slope, and the broker's time for its OPEN."""
    path: ours.SessionPath = "relayed, same host"
    with contextlib.ExitStack() as stack:
        url, pids = stack.enter_context(ours.service(ENV, path, slots=MOST + BATCH))

        def add(sessions: int) -> float:
            """Open and reset so many more; return the broker's time for each OPEN, in µs."""
            began = cpu_time_ns(pids["broker"])
            envs = ours.crowded(url, sessions, path)
            stack.enter_context(contextlib.closing(envs))
            opening_ns = cpu_time_ns(pids["broker"]) - began
            envs.reset(seed=1)
            return opening_ns / sessions / 1e3

        add(FEW)
        among_few = add(BATCH)
        add(MORE - FEW - BATCH)
        before = {role: pss_kib(pid) for role, pid in pids.items()}
        for _ in range((MOST - MORE) // MORE):
            add(MORE)
        slope = {role: (pss_kib(pid) - before[role]) / (MOST - MORE) for role, pid in pids.items()}
        among_many = add(BATCH)
    bare = _bare_kib()
    between = f"between {MORE:,} and {MOST:,} sessions"
    yield _figure(
        f"KiB of the env agent per session, less its environment's, {between}",
        "≤ 64",
        slope["env agent"] - bare,
    )
    yield _figure(f"KiB of a bare environment, {between}", "–", bare)
    yield _figure(f"KiB of the broker per session, {between}", "≤ 4", slope["broker"])
    yield _figure(
        f"the broker's time for an OPEN with {MOST:,} sessions open, over {FEW}",
        "≤ 1.5",
        among_many / among_few,
    )


def _figure(name: str, target: str, measured: float) -> dict[str, Any]:
    return {"figure": name, "target": target, "measured": measured}


def pss_kib(pid: int, kind: str = "Pss") -> float:
    """Return the memory of a process, shared pages in part, in KiB. Linux only.

    `kind`: Pss_Anon: without that of files, whose part changes with the programs that share them.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return float(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no line {kind}.")


def _bare_kib() -> float:
    """Return the slope of the memory of environments that nobody serves, in KiB for each."""
    found = []
    for number in (MORE, MOST):
        with part(__name__, number) as (_, pid):
            found.append(pss_kib(pid))
    return (found[1] - found[0]) / (MOST - MORE)


def _hold(number: int) -> None:
    """Make so many environments, as an env agent does for the sessions of a vector, and wait."""
    kept = [SyncVectorEnv([Sleeper]) for _ in range(number)]
    for envs in kept:
        envs.reset(seed=1)
    print(len(kept), flush=True)
    for _ in count():
        time.sleep(60)


if __name__ == "__main__":
    _hold(int(sys.argv[1]))
