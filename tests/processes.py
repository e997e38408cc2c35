"""Real brokers and env agents, started for a test and stopped after it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.prefork import ROOT as ROOT
from tests.prefork import Forked

PATIENCE_S = 60.0  # for what must happen, on a machine that may be busy
# `python -c` this: `gymwire`, but a training writes its first progress at once.
WRITES_PROGRESS = """
import sys
from gymwire.cli import main, progress
progress.LINE_AT_LEAST_S = progress.LINE_AT_MOST_S = 0.0
sys.exit(main())
"""


class Program:
    """A Python program in a process of its own, with its output line by line."""

    def __init__(self, *arguments: str, finalized: bool = False) -> None:
        self.arguments = arguments
        self.output: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = Forked(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SDL_VIDEODRIVER": "dummy", "PYTHONWARNINGS": "ignore"},
            finalized=finalized,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.output.append(line.decode())
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the first log line of this event."""
        return self._wait_for(event, lambda rows: len(rows) > 0)[0]

    def wait_until_all_offer(self, workers: int) -> None:
        """Wait until so many processes offer their environments."""
        self._wait_for("offering", lambda rows: len({row["pid"] for row in rows}) >= workers)

    def _wait_for(
        self, event: str, complete: Callable[[list[dict[str, Any]]], bool]
    ) -> list[dict[str, Any]]:
        """Return the log lines of this event once they are complete."""
        with self._news:
            self._news.wait_for(lambda: complete(self._rows(event)) or self._ended, PATIENCE_S)
            rows = self._rows(event)
        assert complete(rows), f"{self.arguments}: too few {event!r} in:\n{''.join(self.output)}"
        return rows

    def _rows(self, event: str) -> list[dict[str, Any]]:
        rows = []
        for line in self.output:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if row["event"] == event:
                    rows.append(row)
        return rows

    def wait(self) -> int:
        """Wait for the end. Returns the exit status."""
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            output = "".join(self.output)
            raise AssertionError(f"{self.arguments} has not ended:\n{output}") from None
        self._reader.join(PATIENCE_S)
        return status

    def kill(self) -> None:
        """Kill the process, as a power cut would."""
        self.process.kill()
        self.wait()

    def stop(self) -> None:
        """Stop the process in any state."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(2.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Programs:
    """Programs that are stopped together. `finalized`: Python ends them in its usual way."""

    def __init__(self, *, finalized: bool = False) -> None:
        self._finalized = finalized
        self._started: list[Program] = []

    def start(self, *arguments: str) -> Program:
        """Start `python -m ARGUMENTS`."""
        program = Program(*arguments, finalized=self._finalized)
        self._started.append(program)
        return program

    def broker(self, bind: str = "tcp://127.0.0.1:*", *options: str) -> tuple[Program, str]:
        """Start a broker. Returns it and its URL once it listens."""
        program = self.start("gymwire", "broker", "--bind", bind, "--log-format", "json", *options)
        return program, str(program.wait_for("broker listening")["urls"][0])

    def env_agent(self, broker: str, *options: str) -> Program:
        """Start an env agent, without direct connections. Returns it once all workers offer."""
        options = ("--direct", "never", *options)
        program = self.start(
            *("gymwire", "serve", "--broker", broker, "--log-format", "json", "--grace", "0"),
            *("--wait", f"{PATIENCE_S:g}", *options),
        )
        workers = options.index("--workers") + 1 if "--workers" in options else None
        program.wait_until_all_offer(1 if workers is None else int(options[workers]))
        return program

    def stop(self) -> None:
        """Stop all programs, the last one first."""
        for program in reversed(self._started):
            program.stop()


@contextlib.contextmanager
def programs(*, finalized: bool = False) -> Iterator[Programs]:
    """Yield a collection of programs that are stopped afterwards."""
    started = Programs(finalized=finalized)
    try:
        yield started
    finally:
        started.stop()
