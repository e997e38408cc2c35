"""Parts of a benchmark that run as operating-system processes of their own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def part(module: str, *arguments: object) -> Iterator[tuple[str, int]]:
    """Run `python -m MODULE ARGUMENTS` until the context ends.

    Yields:
        The first line that it printed, which says where it can be reached, and its process id.

    Raises:
        RuntimeError: it ended without printing a line.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"`{' '.join(command)}` ended before it was ready; see its output.")
        yield line, process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
