"""The thread that starts processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import pytest
import structlog

from gymwire.env_agent.interpreter.process_watch import Output, ProcessWatch
from tests.processes import PATIENCE_S

COMMAND = ["/bin/sleep", "600"]


def descriptors() -> list[str]:
    return sorted(one.name for one in Path("/proc/self/fd").iterdir())


class Watch(ProcessWatch):
    """Counts the events that its thread has handled."""

    handled = threading.Semaphore(0)

    def _read(self, *args: Any) -> None:
        super()._read(*args)
        self.handled.release()


def end(watch: Watch) -> None:
    """Start a process that prints nothing and ends, and wait until its pipes are closed."""
    ended = threading.Event()
    process, *pipes = watch.start(["/bin/true"], {}, lambda process: ended.set())
    assert ended.wait(PATIENCE_S)
    process.wait()
    for _ in (process.stdout, process.stderr):
        assert watch.handled.acquire(timeout=PATIENCE_S)
    for pipe in pipes:
        os.close(pipe)


class Robbed(Watch):
    """Reads what a process has printed before the thread does, as the process itself can."""

    stolen: bytes = b""

    def _read(self, stream: IO[bytes], output: Output) -> None:
        self.stolen = self.stolen or os.read(stream.fileno(), 1 << 16)
        super()._read(stream, output)


PRINTS_TWICE = """
import os, sys
os.write(1, b"one\\n")
os.read(int(sys.argv[1]), 1)
os.write(1, b"two\\n")
"""


def test_a_process_that_reads_its_output_back_does_not_stop_the_thread() -> None:
    watch = Robbed("lab/child")
    ended = threading.Event()
    with structlog.testing.capture_logs() as logs:
        process, *pipes = watch.start(
            [sys.executable, "-c", PRINTS_TWICE], {}, lambda process: ended.set()
        )
        assert watch.handled.acquire(timeout=PATIENCE_S)
        os.write(pipes[1], b"1")
        assert ended.wait(PATIENCE_S)
        for _ in range(3):  # the second line, and the end of both streams
            assert watch.handled.acquire(timeout=PATIENCE_S)
    process.wait()
    for pipe in pipes:
        os.close(pipe)
    assert watch.stolen == b"one\n"
    assert [row["text"] for row in logs] == ["two"]


def test_a_thread_that_cannot_be_started_is_started_with_the_next_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    watch = Watch("lab/child")
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            watch.start(COMMAND, {}, lambda process: None)
    assert descriptors() == before
    ends = threading.Thread(target=end, args=[watch], daemon=True)
    ends.start()
    ends.join(PATIENCE_S)
    assert not ends.is_alive()


@pytest.mark.parametrize("name", ["pipe", "set_blocking", "pidfd_open"])
def test_a_process_that_cannot_be_watched_is_ended(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch("lab/child")
    end(watch)  # now the thread has what it needs
    made: list[subprocess.Popen[bytes]] = []
    popen, called = subprocess.Popen, getattr(os, name)
    calls = iter([False, True] if name == "pipe" else [True])

    def fail(*args: Any) -> Any:
        if next(calls, False):
            raise OSError(24, "Too many open files")
        return called(*args)

    def start(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        made.append(popen(*args, **kwargs))
        return made[-1]

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        patch.setattr(subprocess, "Popen", start)
        with pytest.raises(OSError, match="Too many open files"):
            watch.start(COMMAND, {}, lambda process: None)
    assert len(made) == (name != "pipe")
    assert all(process.returncode is not None for process in made)
    assert descriptors() == before
    end(watch)  # it still works
