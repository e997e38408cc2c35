"""`python -m tests.soak.hostile FOLDER URL`: run the kinds that each line of standard input names.

A line holds names of kinds, or nothing; each line replaces the one before. With `--give-way`, the
program gives way to all others, because a real hostile peer computes on a host of its own. It ends
when its standard input ends.
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import zmq

from tests.soak.kinds import KINDS, REFUSALS, NoAnswer
from tests.soak.place import Place, compute_last

AGAIN_S = 0.5  # the pause after an attempt that was refused


def attack(place: Place, name: str, stop: threading.Event) -> None:
    """Run one kind until it is stopped. What a refused attempt raises ends that attempt only."""
    row: dict[str, Any] = {"kind": name, "rounds": 0, "no answer": 0}
    while not stop.is_set():
        try:
            with closing(KINDS[name](place, name)) as pauses:  # type: ignore[type-var]
                for pause_s in pauses:
                    row["rounds"] += 1
                    if stop.wait(pause_s):
                        break
        except (NoAnswer, zmq.ZMQError):
            row["no answer"] += 1
            stop.wait(AGAIN_S)
    row["refusals"] = REFUSALS.pop(name, 0)
    print(json.dumps(row), flush=True)  # noqa: T201 - the parent process reads this


def main() -> None:
    if "--give-way" in sys.argv[3:]:
        compute_last()
    place = Place(Path(sys.argv[1]), sys.argv[2])
    running: list[tuple[threading.Thread, threading.Event]] = []
    for line in sys.stdin:
        for _, stop in running:
            stop.set()
        for thread, _ in running:
            thread.join()
        running = []
        for name in line.split():
            stop = threading.Event()
            thread = threading.Thread(target=attack, args=(place, name, stop), daemon=True)
            running.append((thread, stop))
            thread.start()
        print("running", line.strip(), flush=True)  # noqa: T201 - the parent waits for this


if __name__ == "__main__":
    main()
