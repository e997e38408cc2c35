"""Interleaved measurement: every side in turn, round after round, compared round by round.

A machine's speed drifts within seconds, by more than what is to be measured. Figures are therefore
never compared across runs: in each round every side takes its turn, a ratio is formed within the
round, and the median over the rounds is what counts. One start in five or ten is slower by half in
all its rounds, by where the memory of its processes happens to lie: so all sides are restarted
after a part of the rounds.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Running:
    """A side that is up and can be measured.

    Attributes:
        step: does one step, or one round trip, and blocks until it is done.
        processes: process ids by role, of processes whose CPU time is of interest.
    """

    step: Callable[[], object]
    processes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things compared.

    Attributes:
        name: what the tables call it.
        open: starts it; the end of the context ends it and its processes.
        steps_per_call: environment steps in one `step()`, more than 1 for vectors.
    """

    name: str
    open: Callable[[], contextlib.AbstractContextManager[Running]]
    steps_per_call: int = 1


@dataclass(frozen=True, slots=True)
class Round:
    """One side's turn in one round. Times are of one `step()` call.

    Attributes:
        p50_us, p99_us, mean_us: microseconds.
        cpu_us: CPU microseconds per call, by the roles of `Running.processes`.
        memory_kib: resident memory after the turn, by the same roles.
    """

    p50_us: float
    p99_us: float
    mean_us: float
    cpu_us: Mapping[str, float]
    memory_kib: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """What one run measured; `rounds` has one list per side, all of the same length."""

    title: str
    calls: int
    steps_per_call: Mapping[str, int]
    rounds: Mapping[str, Sequence[Round]]

    def p50_us(self, side: str) -> float:
        """Return the median of the rounds' p50, in µs."""
        return statistics.median(round_.p50_us for round_ in self.rounds[side])

    def p99_us(self, side: str) -> float:
        """Return the median of the rounds' p99, in µs."""
        return statistics.median(round_.p99_us for round_ in self.rounds[side])

    def steps_per_s(self, side: str) -> float:
        """Environment steps per second: the median over the rounds, from their means."""
        mean_us = statistics.median(round_.mean_us for round_ in self.rounds[side])
        return self.steps_per_call[side] * 1e6 / mean_us

    def ratio(self, side: str, over: str, *, less: str | None = None) -> float:
        """How many times the p50 of `over` the p50 of `side` is; the median over the rounds.

        With `less`, that side's p50 in the same round is taken off `side` first: what is left of a
        step when the environment's own time is not counted.
        """
        taken_off = [r.p50_us for r in self.rounds[less]] if less else [0.0] * self.n_rounds
        return statistics.median(
            (a.p50_us - off) / b.p50_us
            for a, b, off in zip(self.rounds[side], self.rounds[over], taken_off, strict=True)
        )

    def overhead_ratio(self, side: str, local: str, over: str, over_local: str) -> float:
        """How many times `over - over_local` `side - local` is, in p50; median over the rounds."""
        first, second, third, last = (self.rounds[one] for one in (side, local, over, over_local))
        return statistics.median(
            (a.p50_us - b.p50_us) / (c.p50_us - d.p50_us)
            for a, b, c, d in zip(first, second, third, last, strict=True)
        )

    def speedup(self, side: str, over: str) -> float:
        """How many times the steps per second of `over` those of `side` are, round by round."""
        width = self.steps_per_call[side] / self.steps_per_call[over]
        return statistics.median(
            width * b.mean_us / a.mean_us
            for a, b in zip(self.rounds[side], self.rounds[over], strict=True)
        )

    def cpu_us(self, side: str, role: str) -> float:
        """CPU microseconds per call of one of the side's processes; the median over the rounds."""
        return statistics.median(round_.cpu_us[role] for round_ in self.rounds[side])

    def memory_kib(self, side: str, role: str) -> float:
        """Resident memory of one of the side's processes; the median over the rounds."""
        return statistics.median(round_.memory_kib[role] for round_ in self.rounds[side])

    @property
    def n_rounds(self) -> int:
        """How many rounds there were."""
        return len(next(iter(self.rounds.values())))

    def as_json(self) -> dict[str, Any]:
        """Return the whole result as a value for `json.dumps`."""
        return asdict(self)

    def table(self, reference: str | None = None) -> Table:
        """Return a table with a row per side; `reference`: the side to give multiples of."""
        table = Table(title=f"{self.title}: {self.n_rounds} rounds of {self.calls} calls")
        table.add_column("side")
        headings = ["p50 µs", "p99 µs", "steps/s", *([f"× {reference}"] if reference else [])]
        for heading in headings:
            table.add_column(heading, justify="right")
        for side in self.rounds:
            cells = [f"{self.p50_us(side):.1f}", f"{self.p99_us(side):.1f}"]
            cells.append(f"{self.steps_per_s(side):,.0f}")
            if reference:
                cells.append(f"{self.ratio(side, reference):.2f}")
            table.add_row(side, *cells)
        return table


def measure(
    title: str,
    sides: Sequence[Side],
    *,
    rounds: int,
    calls: int,
    starts: int = 1,
    warm_up: int = 200,
) -> Result:
    """Open all sides, run them in turn, and close them; all that so many times.

    Args:
        title: what is measured.
        sides: at least one; their names must differ.
        rounds: how often each side has its turn, over all starts.
        calls: calls of `step()` in a turn.
        starts: how often all sides are opened.
        warm_up: calls before each turn that are not counted: caches cool down while others run.
    """
    collected: dict[str, list[Round]] = {side.name: [] for side in sides}
    for numbers in np.array_split(range(rounds), min(starts, rounds)):
        with contextlib.ExitStack() as stack:
            running = [(side.name, stack.enter_context(side.open())) for side in sides]
            for number in numbers:
                # Every other round backwards, so that no side always follows the same one.
                for name, side in running if number % 2 == 0 else reversed(running):
                    collected[name].append(_turn(side, calls, min(warm_up, calls)))
    return Result(title, calls, {side.name: side.steps_per_call for side in sides}, collected)


def _turn(running: Running, calls: int, warm_up: int) -> Round:
    step, clock = running.step, time.perf_counter_ns
    for _ in range(warm_up):
        step()
    stamps = np.empty(calls + 1, np.int64)
    cpu_before = {role: cpu_time_ns(pid) for role, pid in running.processes.items()}
    stamps[0] = clock()
    for call in range(1, calls + 1):
        step()
        stamps[call] = clock()
    cpu_us = {
        role: (cpu_time_ns(pid) - cpu_before[role]) / calls / 1e3
        for role, pid in running.processes.items()
    }
    memory = {role: memory_kib(pid) for role, pid in running.processes.items()}
    times_us = np.diff(stamps) / 1e3
    p50, p99 = np.percentile(times_us, (50, 99))
    return Round(float(p50), float(p99), float(times_us.mean()), cpu_us, memory)


def cpu_time_ns(pid: int) -> int:
    """Return the CPU time of all threads of a process, in nanoseconds. Linux only."""
    return sum(
        int((task / "schedstat").read_text().split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir()
    )


def memory_kib(pid: int) -> float:
    """Return the resident memory of a process, in KiB. Linux only."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024
