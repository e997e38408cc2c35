"""`python -m tests.chaos --seconds N --seed S`: inject faults, and report what survived."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos import bounds, long_step, loss_latency, storm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same faults")
    parser.add_argument("--keys", action="store_true", help="all connections under CURVE")
    parser.add_argument("--sessions", type=int, help="instead: bounds, after so many sessions")
    parser.add_argument("--greedy", type=int, metavar="N", help="instead: steps beside a flood")
    parser.add_argument(
        "--loss-latency", type=int, metavar="N", help="instead: how soon losses show, N times"
    )
    parser.add_argument("--long-step", type=float, metavar="SECONDS", help="instead: such a step")
    parser.add_argument(
        "--case", action="append", choices=long_step.CASES, help="with --long-step: only this case"
    )
    parser.add_argument("--folder", type=Path, help="where logs and the ledger go and stay")
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
