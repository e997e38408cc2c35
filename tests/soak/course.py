"""The phases of a soak: what is measured in each, what is printed, and what fails."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gymwire.learner_agent.client.connection import BrokerConnection
from tests.chaos.fleet import Part, resident, until
from tests.soak.kinds import KINDS, WITHOUT_LIMITS
from tests.soak.place import CARTPOLE, PICTURE, SLOW, Site, site

# The p99 of a phase over the mean p99 of the undisturbed phases around it: the median of all
# phases with the same hostile peers.
P99_TIMES = 2.0
# How much a broker or an env agent may grow at its peak over its size at the start.
MEMORY_BYTES = 512 * 1024 * 1024
MIB = 1024 * 1024
ELSEWHERE = ", elsewhere"  # ends the name of a phase in which another broker is attacked
STUCK_S = 60.0  # how long to wait for a program that a phase, or a busy machine, has frozen
Say = Callable[[str], None]


class Memory(NamedTuple):
    """Bytes of one process: resident, proportional, and the most resident since `reset_peak`."""

    rss: int
    pss: int
    peak: int

    @classmethod
    def of(cls, part: Part) -> Memory:
        facts = Path(f"/proc/{part.pid}/status").read_text()
        rollup = Path(f"/proc/{part.pid}/smaps_rollup").read_text()
        return cls(resident(part.pid), _kib(rollup, "Pss:"), _kib(facts, "VmHWM:"))


class Cpu(NamedTuple):
    """Seconds that a process has computed, and that its threads were ready but had no core."""

    used_s: float
    waited_s: float

    @classmethod
    def of(cls, part: Part) -> Cpu:
        fields = Path(f"/proc/{part.pid}/stat").read_text().rpartition(")")[2].split()
        waited = 0
        for path in Path(f"/proc/{part.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # the thread has just ended
                waited += int(path.read_text().split()[1])
        return cls((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), waited / 1e9)


class Attackers(NamedTuple):
    """The hostile peers of a phase. `elsewhere`: whether they attack another broker."""

    kinds: tuple[str, ...] = ()
    elsewhere: bool = False

    @property
    def name(self) -> str:
        if not self.kinds:
            return "undisturbed"
        name = self.kinds[0] if len(self.kinds) == 1 else "all"
        return name + ELSEWHERE * self.elsewhere


class Phase(NamedTuple):
    """What one phase measured. `cpu`: of each program, as shares of the phase's duration."""

    attackers: Attackers
    report: dict[str, Any]
    memory: dict[str, Memory]
    cpu: dict[str, Cpu]

    @property
    def name(self) -> str:
        return self.attackers.name


def plan(kinds: Sequence[str], rounds: int, elsewhere: bool) -> list[Attackers]:
    """Return the phases: each kind alone, then all, with an undisturbed phase around each.

    With `elsewhere`, all kinds then attack another broker on this machine: what the honest learner
    notices of that is the machine's part, and not gymwire's. All phases are repeated `rounds`
    times.
    """
    disturbed = [Attackers((kind,)) for kind in kinds]
    if len(kinds) > 1:
        disturbed.append(Attackers(tuple(kinds)))
    if elsewhere:
        disturbed.append(Attackers(tuple(kinds), elsewhere=True))
    phases = [Attackers()]
    for each in disturbed * rounds:
        phases += [each, Attackers()]
    return phases


def run(
    folder: Path,
    *,
    minutes: float,
    seed: int,
    say: Say,
    kinds: Sequence[str] = tuple(KINDS),
    rounds: int = 1,
    elsewhere: bool = False,
    times_count: bool = True,
) -> bool:
    """Run all phases and print the table. Returns whether everything held.

    `elsewhere`: see `plan`. `times_count`: whether step times decide, too. If they do not, hostile
    peers compute like all others, because on a busy machine they would hardly run otherwise.
    """
    phases = plan(kinds, rounds, elsewhere)
    strangers = {kind: kind not in WITHOUT_LIMITS for kind in kinds}
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(site(folder, strangers))
        arguments = (str(folder), made.url)
        learner = made.part("learner", "tests.soak.learner", *arguments, str(seed))
        learner.says("learning", 1, STUCK_S)
        churn = made.part("churn", "tests.soak.churn", *arguments, str(seed))
        hostile = other = Hostile(made, gives_way=times_count)
        if elsewhere:
            (folder / "elsewhere").mkdir(exist_ok=True)
            away = stack.enter_context(site(folder / "elsewhere", strangers))
            other = Hostile(away, gives_way=times_count)
        others = {"learner": learner}
        if times_count:
            others["neighbour"] = made.part("neighbour", "tests.soak.neighbour")
        start = {name: Memory.of(part) for name, part in made.measured.items()}
        measured = []
        faults: list[str] = []
        phase_s = minutes * 60 / len(phases)
        for number, attackers in enumerate(phases, 1):
            attacked = other if attackers.elsewhere else hostile
            attacked.run(attackers.kinds)
            programs = {**made.measured, **others, "hostile": attacked.part}
            measured.append(_phase(programs, made, attackers, number, phase_s))
            attacked.run(())
            dead = [name for name, part in made.measured.items() if not part.alive]
            if dead:
                faults = [f"ended beside {measured[-1].name}: {', '.join(dead)}"]
                break
        _say_times(measured, say)
        _say_medians(measured, say)
        _say_memory(start, measured, say)
        _say_cpu(measured, say)
        _say_attempts(_rows(hostile.part), say)
        faults += find_faults(start, measured, times_count)
        if any("Traceback" in each.part.text() for each in (hostile, other)):
            faults.append("a hostile peer failed, see hostile.log: nothing was tested beside it")
        if not faults or not faults[0].startswith("ended"):
            faults += _end(churn, say) + _slots_left(made)
    for fault in faults:
        say(f"FAILED: {fault}")
    return not faults


class Hostile:
    """The program that runs the hostile peers of one site."""

    def __init__(self, made: Site, *, gives_way: bool) -> None:
        arguments = (str(made.folder), made.url, *["--give-way"] * gives_way)
        self.part = made.part("hostile", "tests.soak.hostile", *arguments)
        self._told = 0

    def run(self, kinds: Sequence[str]) -> None:
        """Run these kinds, and end those that ran before."""
        _tell(self.part, " ".join(kinds))
        self._told += 1
        self.part.says("running", self._told, STUCK_S)


def _phase(
    programs: dict[str, Part], made: Site, attackers: Attackers, number: int, phase_s: float
) -> Phase:
    """Measure for so many seconds; the hostile peers of the phase are running."""
    learner = programs["learner"]
    for part in made.measured.values():
        with contextlib.suppress(OSError):
            Path(f"/proc/{part.pid}/clear_refs").write_text("5")  # forget the peak
    before = {name: Cpu.of(part) for name, part in programs.items() if part.alive}
    began = time.monotonic()
    time.sleep(phase_s)
    took_s = time.monotonic() - began
    cpu = {
        name: Cpu(
            *(max(b - a, 0.0) / took_s for a, b in zip(before[name], Cpu.of(part), strict=True))
        )
        for name, part in programs.items()
        if part.alive and name in before
    }
    _tell(learner, "report")
    until(
        lambda: len(_rows(learner)) >= number or not learner.alive, "the learner reports", STUCK_S
    )
    alive = {name: part for name, part in made.measured.items() if part.alive}
    memory = {name: Memory.of(part) for name, part in alive.items()}
    return Phase(attackers, _rows(learner)[number - 1], memory, cpu)


def find_faults(
    start: dict[str, Memory], measured: Sequence[Phase], times_count: bool
) -> list[str]:
    """Return a sentence for each result, size or time that does not hold."""
    found = []
    for phase in measured:
        found += [f"beside {phase.name}: {text}" for text in phase.report["faults"]]
        for name, memory in phase.memory.items():
            more = memory.peak - start[name].rss
            if more > MEMORY_BYTES:
                found.append(f"beside {phase.name}: {name} grew by {more // MIB} MiB")
        for address in (CARTPOLE, PICTURE) if times_count and phase.attackers.kinds else ():
            if not phase.report[address]["steps"]:
                found.append(f"beside {phase.name}: no step at {address}")
    for name in _names(measured) if times_count else ():
        if name.endswith(ELSEWHERE):
            continue  # no hostile peer attacked what is measured
        for address in (CARTPOLE, PICTURE):
            if (times := _median(measured, name, address).times) > P99_TIMES:
                found.append(f"beside {name}: p99 at {address} is {times:.2f} times")
    return found


class Median(NamedTuple):
    """Medians of the phases with the same hostile peers. `p50` and `p99` in milliseconds."""

    p50: float
    p99: float
    times: float


def _median(measured: Sequence[Phase], name: str, address: str) -> Median:
    own = [number for number, phase in enumerate(measured) if phase.name == name]
    rows = [measured[number].report[address] for number in own]
    return Median(
        statistics.median(row["p50"] for row in rows),
        statistics.median(row["p99"] for row in rows),
        statistics.median(_times(measured, number, address) for number in own),
    )


def _names(measured: Sequence[Phase]) -> list[str]:
    """Return the names of the phases with hostile peers, each once."""
    return list(dict.fromkeys(phase.name for phase in measured if phase.attackers.kinds))


def _times(measured: Sequence[Phase], number: int, address: str) -> float:
    """Return the p99 of a phase over the mean p99 of the undisturbed phases around it."""
    around = [*measured[max(number - 1, 0) : number], *measured[number + 1 : number + 2]]
    rows = [phase.report[address] for phase in around if not phase.attackers.kinds]
    alone = [row["p99"] for row in rows if row["steps"]]
    if not alone:
        return float("inf")
    return float(measured[number].report[address]["p99"] / statistics.mean(alone))


def _end(churn: Part, say: Say) -> list[str]:
    """Let the churning learners end; return what failed."""
    assert churn.process.stdin is not None
    churn.process.stdin.close()
    try:
        churn.process.wait(2 * STUCK_S)
    except subprocess.TimeoutExpired:
        return ["the churning learners did not end"]
    (count,) = _rows(churn)
    say("churning learners: " + ", ".join(f"{n} {what}" for what, n in count.items()))
    return [f"{count['failed']} churning learners failed, see churn.log"] if count["failed"] else []


def _slots_left(made: Site) -> list[str]:
    """Wait until only the honest learner's sessions use slots; return where others still do."""
    deadline = time.monotonic() + STUCK_S
    with contextlib.closing(BrokerConnection(made.url, **made.of("alice"))) as connection:
        while True:
            used = {CARTPOLE: -1, PICTURE: -1, SLOW: 0}  # without the honest learner's own
            for offer in connection.find():
                used[offer["address"]] += offer["used"]
            found = [f"{n} slots of {address} stay in use" for address, n in used.items() if n > 0]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)


def _say_times(measured: Sequence[Phase], say: Say) -> None:
    say(f"{'phase':18} {'address':13} {'steps':>7} {'p50':>8} {'p99':>8} {'most':>9}  p99, times")
    for number, phase in enumerate(measured):
        for address in (CARTPOLE, PICTURE):
            row = phase.report[address]
            times = f"{_times(measured, number, address):6.2f}" if phase.attackers.kinds else ""
            say(
                f"{phase.name:18} {address:13} {row['steps']:7} {row['p50']:5.2f} ms "
                f"{row['p99']:5.2f} ms {row['most']:6.0f} ms  {times}"
            )


def _say_medians(measured: Sequence[Phase], say: Say) -> None:
    say(f"{'median of phases':18} {'address':13} {'p50':>8} {'p99':>8}  p99, times")
    for name in _names(measured):
        for address in (CARTPOLE, PICTURE):
            row = _median(measured, name, address)
            say(f"{name:18} {address:13} {row.p50:5.2f} ms {row.p99:5.2f} ms  {row.times:6.2f}")
    for name in _names(measured):
        if name.endswith(ELSEWHERE):
            attacked = name.removesuffix(ELSEWHERE)
            for address in (CARTPOLE, PICTURE):
                here, there = (_median(measured, each, address).p99 for each in (attacked, name))
                ratio = f"{attacked} / elsewhere"
                say(f"{ratio:18} {address:13} {'':8} {'':8}  {here / there:6.2f}")


def _say_cpu(measured: Sequence[Phase], say: Say) -> None:
    names = list(measured[0].cpu)
    say(f"{'computing / without a core, %':36}" + "".join(f"{name:>18}" for name in names))
    for phase in measured:
        cells = (" / ".join(f"{100 * each:.0f}" for each in phase.cpu[name]) for name in phase.cpu)
        say(f"{phase.name:36}" + "".join(f"{cell:>18}" for cell in cells))


def _say_attempts(rows: Sequence[dict[str, Any]], say: Say) -> None:
    for kind in dict.fromkeys(row["kind"] for row in rows):
        counts = ("rounds", "no answer", "refusals")
        rounds, silent, refusals = (
            sum(row[count] for row in rows if row["kind"] == kind) for count in counts
        )
        say(f"{kind:18} {rounds} rounds, {silent} without an answer, {refusals} refusals")


def _say_memory(start: dict[str, Memory], measured: Sequence[Phase], say: Say) -> None:
    say(f"{'resident / proportional / peak, MiB':36}" + "".join(f"{name:>24}" for name in start))
    for name, row in [("start", start), *((phase.name, phase.memory) for phase in measured)]:
        cells = (" / ".join(f"{each / MIB:.0f}" for each in row[part]) for part in row)
        say(f"{name:36}" + "".join(f"{cell:>24}" for cell in cells))


def _rows(part: Part) -> list[dict[str, Any]]:
    """Return the JSON objects in a program's output."""
    return [json.loads(line) for line in part.text().splitlines() if line.startswith("{")]


def _tell(part: Part, line: str) -> None:
    assert part.process.stdin is not None
    part.process.stdin.write(f"{line}\n".encode())
    part.process.stdin.flush()


def _kib(text: str, name: str) -> int:
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
