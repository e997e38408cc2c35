"""`python -m tests.chaos --seconds N --seed S`: inject faults, and report what survived."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos import bounds, long_step, loss_latency, storm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, help="duration (default 60)")
    add("--seed", type=int, default=1, help="seed of the faults")
    add("--keys", action="store_true", help="encrypt all connections with CURVE")
    add("--sessions", type=int, help="instead: measure the bounds after this many sessions")
    add("--greedy", type=int, metavar="N", help="instead: measure steps beside a flood, N times")
    add("--loss-latency", type=int, metavar="N", help="instead: time until losses show, N times")
    add("--long-step", type=float, metavar="SECONDS", help="instead: run a step of this duration")
    add("--case", action="append", choices=long_step.CASES, help="with --long-step: only this case")
    add("--folder", type=Path, help="folder for the logs and the ledger, which stay there")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="gymwire-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    say(f"seed {options.seed}; logs and ledger in {folder}")
    if options.sessions is not None:
        return 0 if bounds.run(folder, sessions=options.sessions, say=say) else 1
    if options.greedy is not None:
        return 0 if bounds.step_times(folder, rounds=options.greedy, say=say) else 1
    if options.loss_latency is not None:
        return 0 if loss_latency.run(folder, rounds=options.loss_latency, say=say) else 1
    if options.long_step is not None:
        names = options.case or list(long_step.CASES)
        return 0 if long_step.run(folder, seconds=options.long_step, names=names, say=say) else 1
    survived = storm.run(
        folder, seconds=options.seconds, seed=options.seed, keys=options.keys, say=say
    )
    return 0 if survived else 1


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the report


if __name__ == "__main__":
    sys.exit(main())
