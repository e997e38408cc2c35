"""Measure everything, print tables, and keep the figures as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import peers, suites
from benchmarks.harness import Result, Side, measure


def main() -> None:
    """Run the suites that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", help="cartpole, observations, vectors; all when none is named"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default 7)")
    parser.add_argument("--calls", type=int, default=3000, help="steps in a turn (default 3000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    known = {"cartpole", "observations", "vectors"}
    if unknown := set(options.suites) - known:
        parser.error(f"no suite {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")

    console = Console()
    wanted = set(options.suites) or known
    results: list[Result] = []

    def run(title: str, sides: list[Side], calls: int, reference: str | None = None) -> None:
        results.append(measure(title, sides, rounds=options.rounds, calls=max(calls, 10)))
        console.print(results[-1].table(reference))

    if "cartpole" in wanted:
        for line in peers.installed()[1]:
            print(line, file=sys.stderr)
        run("CartPole", suites.cartpole(), options.calls)
    if "observations" in wanted:
        for name, n_bytes in suites.OBSERVATION_BYTES.items():
            run(name, suites.observations(n_bytes), options.calls // 3)
    if "vectors" in wanted:
        run("64 CartPoles", suites.vectors(64), options.calls // 20)

    if options.json:
        figures = {
            "machine": {"platform": platform.platform(), "python": platform.python_version()},
            "results": [result.as_json() for result in results],
        }
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
