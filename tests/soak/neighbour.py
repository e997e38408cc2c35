"""`python -m tests.soak.neighbour`: compute without a pause, and use nothing of gymwire.

It runs in all phases, so that the undisturbed ones are measured beside a busy process, too. At
nice 19 it takes only what the measured programs leave. It ends with its parent.
"""

from __future__ import annotations

import os


def main() -> None:
    os.nice(19)
    parent = os.getppid()
    while os.getppid() == parent:
        sum(range(100_000))


if __name__ == "__main__":
    main()
