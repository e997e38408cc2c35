"""`python -m tests.soak.neighbour`: compute without a pause, and use nothing of gymwire.

It runs in all phases, so that the undisturbed ones are measured beside a busy process, too. It
takes only what the measured programs leave, and ends with its parent.
"""

from __future__ import annotations

import os

from tests.soak.place import compute_last


def main() -> None:
    compute_last()
    parent = os.getppid()
    while os.getppid() == parent:
        sum(range(100_000))


if __name__ == "__main__":
    main()
