"""`python -m tests.soak --minutes N --seed S`: honest learners beside hostile peers, for long."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.soak import course
from tests.soak.kinds import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, help="duration (default 30)")
    add("--seed", type=int, default=1, help="seed of the honest learners")
    add("--rounds", type=int, default=3, help="phases per hostile peer (default 3)")
    add("--kind", action="append", choices=KINDS, help="only this hostile peer; repeatable")
    add(
        "--elsewhere",
        action="store_true",
        help="let all hostile peers also attack another broker, to show the machine's part",
    )
    add("--folder", type=Path, help="folder for keys and logs, which stay there")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="gymwire-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    say(f"seed {options.seed}; logs in {folder}")
    kinds = options.kind or list(KINDS)
    held = course.run(
        folder,
        minutes=options.minutes,
        seed=options.seed,
        say=say,
        kinds=kinds,
        rounds=options.rounds,
        elsewhere=options.elsewhere,
    )
    return 0 if held else 1


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the report


if __name__ == "__main__":
    sys.exit(main())
