"""The jobs of a fleet in SLURM's queue, through `squeue` and `scancel`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from gymwire.protocol.errors import Refused

COMMAND_S = 60.0  # for a command of SLURM
AT_ONCE = 500  # ids per command
FORMAT = "%i|%K|%T|%B|%S|%r|%k"
RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}


@dataclass(frozen=True)
class QueuedJob:
    """A job, or the task of an array job.

    Attributes:
        id: its id, such as 12 or 12_3.
        number: the number of its agent.
        is_waiting: whether it is not running yet.
        node: the name of its node; "": none yet.
        since: when it started or will start, in seconds since 1970; 0: unknown.
        reason: why it waits.
    """

    id: str
    number: int
    is_waiting: bool
    node: str
    since: float
    reason: str


class SlurmQueue:
    """This user's jobs in the queue of the cluster. All calls raise Refused."""

    def jobs(self, name: str) -> list[QueuedJob]:
        """Return the jobs of this name that have not ended."""
        output = _run("squeue", "--me", "--noheader", "--array", "--name", name, "--format", FORMAT)
        return [job_of(line) for line in output.splitlines() if _is_of_fleet(line)]

    def drain(self, ids: Sequence[str]) -> None:
        """Send SIGUSR1 to the processes of running jobs."""
        self._cancel(ids, "--signal=USR1")

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs that wait. One that has started meanwhile keeps running."""
        self._cancel(ids, "--state=PENDING")

    def kill(self, ids: Sequence[str]) -> None:
        """Kill jobs without a warning."""
        self._cancel(ids, "--signal=KILL")
        self._cancel(ids, "--state=PENDING")

    def _cancel(self, ids: Sequence[str], option: str) -> None:
        for first in range(0, len(ids), AT_ONCE):
            # --quiet: it is not an error that a job has ended meanwhile.
            _run("scancel", "--quiet", option, *ids[first : first + AT_ONCE])


def is_preempted(job: str) -> bool:
    """Return whether a running job has to make room for another one. Raises Refused."""
    shown = _run("scontrol", "show", "job", "--oneliner", job)
    return re.search(r"\bPreemptTime=\d", shown) is not None


def job_of(line: str) -> QueuedJob:
    """Return the job that a line of `squeue` in FORMAT describes."""
    job, index, state, node, start, reason, comment = line.split("|", 6)
    return QueuedJob(
        job,
        nth(comment, int(index) if index.isdecimal() else 0),
        state in WAITING,
        "" if node == "n/a" else node,
        0.0 if start == "N/A" else datetime.fromisoformat(start).timestamp(),
        "" if reason == "None" else reason,
    )


def _is_of_fleet(line: str) -> bool:
    """Return whether the engine has submitted this job: anybody may give a job this name."""
    return RANGES.fullmatch(line.split("|", 6)[6]) is not None


def ranges_text(numbers: Sequence[int]) -> str:
    """Return numbers as ranges: 1-3,5 for 1, 2, 3 and 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def nth(ranges: str, index: int) -> int:
    """Return one of the numbers that `ranges_text` has written."""
    for low, high in _bounds(ranges):
        if index <= high - low:
            return low + index
        index -= high - low + 1
    raise ValueError(f"{ranges} has no number {index}")


def _bounds(ranges: str) -> Iterator[tuple[int, int]]:
    for part in ranges.split(","):
        low, _, high = part.partition("-")
        yield int(low), int(high or low)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"SLURM does not answer: {error}.") from None
    if done.returncode:
        why = done.stderr.strip() or f"exit status {done.returncode}"
        raise Refused(f"{command[0]} failed: {why}. See `sinfo` and `scontrol ping`.")
    return done.stdout
