"""`python -m tests.chaos --long-step SECONDS`: steps, and pauses, that last for minutes.

Each case has a broker, an env agent and a learner of its own, all with default settings.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gymwire import ProxyEnv
from tests.chaos.chain import judge
from tests.chaos.course import Course
from tests.chaos.fleet import ADDRESS, Fleet, fleet
from tests.processes import ROOT

BEFORE, AFTER = 3, 20  # requests before the long one, and after it


@dataclass(frozen=True)
class Case:
    """What happens during a long step, or a long pause between two steps.

    `hold`: the step keeps the interpreter's lock. `direct`: the session bypasses the broker.
    `idle`: the learner pauses between two steps; the step itself is short. `restart`: the broker
    is killed and replaced in the middle of the step, or just before the pause. `keys`: all
    connections use CURVE.
    """

    hold: bool = False
    direct: bool = False
    idle: bool = False
    restart: bool = False
    keys: bool = False


CASES = {
    "sleeps": Case(),
    "holds": Case(hold=True),
    "sleeps-direct": Case(direct=True),
    "holds-direct": Case(hold=True, direct=True),
    "idle": Case(idle=True),
    "sleeps-restart": Case(restart=True),
    "holds-restart": Case(hold=True, restart=True),
    "holds-restart-keys": Case(hold=True, restart=True, keys=True),
    "holds-direct-restart": Case(hold=True, direct=True, restart=True),
    "idle-restart": Case(idle=True, restart=True),
}


def go_through(case: Case, made: Fleet, seconds: float) -> float:
    """Run the case and return the duration of the step or the pause, in seconds.

    Raises AssertionError if a request was lost, executed twice or answered wrongly.
    """
    broker = made.broker()
    agent = made.env_agent(*(("--direct", "tcp://127.0.0.1:*") if case.direct else ()))
    direct = "always" if case.direct else "auto"

    def restart() -> None:
        broker.kill()
        broker.start()

    with ProxyEnv(ADDRESS, made.url, wait_s=5.0, direct=direct, **made.credentials) as env:
        slow = () if case.idle else ((BEFORE, seconds),)
        course = Course(env, "long", seed=1, slow=slow, hold=case.hold)
        for _ in range(BEFORE):
            course.advance()
        before = made.ledger.read_text().count("\n")
        began = time.monotonic()
        if case.idle:
            if case.restart:
                restart()
                agent.says("broker restarted")
            assert not threading.Event().wait(seconds)
            took = time.monotonic() - began
        else:
            striker = threading.Timer(0.4 * seconds, restart if case.restart else _nothing)
            striker.start()
            course.advance()
            took = time.monotonic() - began
            striker.join()
            assert took >= seconds, f"the step took {took:.1f} s only"
            assert made.ledger.read_text().count("\n") == before + 1
        for _ in range(AFTER):
            course.advance()
        assert course.why_lost == ""
        verdict = judge(made.ledger, course.answered, course.lost)
        assert verdict.faults == []
    return took


def _nothing() -> None: ...


def run(folder: Path, *, seconds: float, names: Sequence[str], say: Callable[[str], None]) -> bool:
    """All these cases at once, each in a process. Returns whether all survived."""
    started = {}
    for name in names:
        command = [sys.executable, "-m", "tests.chaos.long_step", name, str(seconds)]
        (folder / name).mkdir()
        started[name] = subprocess.Popen(
            [*command, str(folder / name)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
    survived = True
    for name, process in started.items():
        text, _ = process.communicate()
        survived &= process.returncode == 0
        say(f"{name:21} {text.strip() or 'NOT survived'}")
    return survived


def _one(name: str, seconds: float, folder: Path) -> None:
    with fleet(folder, keys=CASES[name].keys) as made:
        took = go_through(CASES[name], made, seconds)
        lines = made.ledger.read_text().count("\n")
    print(f"{took:7.1f} s, {lines} requests, each once")  # noqa: T201 - for `run`


if __name__ == "__main__":
    _one(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
