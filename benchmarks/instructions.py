"""Count the machine instructions of a step of this checkout and of another one.

`./run python -m benchmarks.instructions OTHER_CHECKOUT` runs the env agent, then the learner of
both checkouts under valgrind, which must be installed. Instructions of user code do not depend on
the load of the machine, so this finds differences that are too small for a clock. It misses what
the kernel and the caches cost. The waiting loops make counts vary by a few per cent.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
from pathlib import Path

from benchmarks.before_after import CASES, HERE, Checkout

STEPS = (300, 1500)  # two runs; their difference excludes the start
COLLECTED = re.compile(r"Collected : (\d+)")


def instructions(checkout: Checkout, case: tuple[str, str], part: str) -> float:
    """Return the instructions per step of one part: "env agent" or "learner"."""
    few, many = (_total(checkout, case, part, steps) for steps in STEPS)
    return (many - few) / (STEPS[1] - STEPS[0])


def _total(checkout: Checkout, case: tuple[str, str], part: str, steps: int) -> int:
    with tempfile.NamedTemporaryFile("r") as log:
        valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        counted = [*valgrind, f"--log-file={log.name}", sys.executable]
        plain = [sys.executable]
        with contextlib.ExitStack() as stack:
            url = checkout.start_broker(stack)
            checkout.start_agent(stack, url, case[0], counted if part == "env agent" else plain)
            checkout.run_learner(url, steps, [case], counted if part == "learner" else plain)
        return int(COLLECTED.findall(log.read())[-1])


def main() -> None:
    """Count the instructions of each case and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("other", type=Path, help="the other checkout of gymwire")
    options = parser.parse_args()
    sides = [Checkout(HERE), Checkout(options.other.resolve())]
    print(f"{'case':30} {'part':10} {'this':>8} {'other':>8} {'ratio':>6}")
    for name, case in CASES.items():
        for part in ("env agent", "learner"):
            ours, others = (instructions(side, case, part) for side in sides)
            print(f"{name:30} {part:10} {ours:8.0f} {others:8.0f} {ours / others:6.3f}")


if __name__ == "__main__":
    main()
