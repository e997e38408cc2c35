"""Measure everything, print tables, and keep the figures as JSON and as a picture."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import many, peers
from benchmarks.harness import measure
from benchmarks.picture import draw
from benchmarks.suites import SUITES

MANY = "many"  # measured in its own way
NAMES = (*SUITES, MANY)


def main() -> None:
    """Run the suites that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", help=f"{', '.join(NAMES)}; all of them when none is named"
    )
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side (default 9)")
    parser.add_argument(
        "--starts", type=int, default=3, help="starts of each side, which share them (default 3)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios here")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(NAMES):
        parser.error(f"no suite {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")

    console = Console()
    for line in peers.installed()[1]:
        print(line, file=sys.stderr)
    processors = os.sched_getaffinity(0)
    results: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    for name in options.suites or NAMES:
        if name == MANY:
            os.sched_setaffinity(0, processors)
            starts = many.slow_steps(options.starts)
            console.print(many.table(starts))
            results.append({"title": name, "starts": many.as_json(starts)})
            figures += [*many.figures(starts), *many.costs()]
        for suite in SUITES[name]() if name in SUITES else ():
            os.sched_setaffinity(0, {max(processors)} if suite.pinned else processors)
            result = measure(
                suite.title,
                suite.sides,
                rounds=options.rounds,
                calls=suite.calls,
                starts=options.starts,
            )
            console.print(result.table())
            results.append(result.as_json())
            figures += [
                {"figure": one.name, "target": one.target, "measured": one.value(result)}
                for one in suite.figures
            ]
    table = Table("figure", "target", "measured")
    for row in figures:
        table.add_row(row["figure"], row["target"], f"{row['measured']:.2f}")
    console.print(table)
    if options.json:
        machine = {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "processors": len(processors),
        }
        document = {"machine": machine, "figures": figures, "results": results}
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False))
    if options.plot:
        draw(figures, options.plot)


if __name__ == "__main__":
    main()
