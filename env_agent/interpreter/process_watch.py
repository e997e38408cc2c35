"""The thread that starts processes, logs what they print, and notices their end."""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import IO, Any

from gymwire.protocol import logs

MAX_LINE = 2_000  # characters of a line in the log
MAX_LINES = 50  # of a stream that are looked at within one interval; the others are counted
LINES_EVERY_S = 1.0
MAX_READ = 1 << 16
PROCESS_FILES = 5  # descriptors for each process: requests, answers, its end, and two outputs
# Between two attempts to reap a process that has ended and that a tracer still holds.
REAP_EVERY_S = 1.0
MAX_LAST_READS = 16  # after a process has ended: a pipe holds 64 KiB (one read), at most 1 MiB


Started = tuple[subprocess.Popen[bytes], int, int]
"""A process, the descriptor to read its answers from, and one for requests, which never blocks."""


class Output:
    """Logs a stream line by line, at most MAX_LINES in each interval; empty lines are not logged.

    `log` is called with the text of each line, and with a text about those that are left out.
    """

    def __init__(self, log: Callable[[str], Any], clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._rest = b""
        self._lines = 0  # of the interval
        self._left_out = 0
        self._until = 0.0

    def feed(self, data: bytes) -> None:
        """Log the lines that are complete; b"" ends the stream."""
        now = self._clock()
        if now >= self._until:
            self._log_left_out()
            self._lines, self._until = 0, now + LINES_EVERY_S
        *lines, rest = (self._rest + data).split(b"\n", MAX_LINES - self._lines)
        self._lines += len(lines)
        if self._lines == MAX_LINES:
            # A process may print millions of lines: those that are left out are only counted.
            self._left_out += rest.count(b"\n")
            rest = rest[rest.rfind(b"\n") + 1 :]
        if rest and (not data or len(rest) > MAX_LINE):
            if self._lines < MAX_LINES:
                self._lines += 1
                lines.append(rest)
            else:
                self._left_out += 1
            rest = b""
        self._rest = rest
        for line in lines:
            if text := line.decode("utf-8", "replace").rstrip()[:MAX_LINE]:
                self._log(text)
        if not data:
            self._log_left_out()

    def _log_left_out(self) -> None:
        if self._left_out:
            self._log(f"({self._left_out} more lines within {LINES_EVERY_S:g} s are left out)")
        self._left_out = 0


class ProcessWatch:
    """Starts processes for one address, in a thread of its own that lives as long as this process.

    The kernel ends a process that was started by a thread with that thread (PR_SET_PDEATHSIG), so
    the thread of a session must not start one.

    The processes start in the working directory in which this object was made, also if another
    environment has changed it since.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._folder: Path | None = None  # None: it was removed.
        with contextlib.suppress(OSError):
            self._folder = Path.cwd()
        self._log = logs.logger()
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        # Processes that have ended. The kernel gives a process first to its tracer, such as a
        # debugger, which may take it at any time or never.
        self._unreaped: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        on_end: Callable[[subprocess.Popen[bytes]], None],
    ) -> Started:
        """Start a process with two pipes to it.

        Raises OSError, or RuntimeError if the thread cannot be started.

        Args:
            command: the program and its arguments; the descriptors of requests and answers and
                the id of this process are appended.
            env: its environment variables.
            on_end: called in the thread with a process that has ended and is not reaped yet; it
                must not wait for it, because a tracer may hold the process.
        """
        started: Future[Started] = Future()

        def start() -> None:
            try:
                started.set_result(self._start(command, env, on_end))
            except BaseException as error:  # noqa: BLE001 - raised by `result`
                started.set_exception(error)

        with self._lock:
            if self._wake is None:
                self._wake = self._start_thread()
            self._tasks.put(start)
            self._wake.send(b"1")
        return started.result()

    def _start_thread(self) -> socket.socket:
        """Start the thread; return the socket that wakes it. Raises OSError, or RuntimeError."""
        with contextlib.ExitStack() as undo:
            wake, mine = map(undo.enter_context, socket.socketpair())
            self._selector.register(mine, selectors.EVENT_READ, partial(self._execute, mine))
            undo.callback(self._selector.unregister, mine)
            threading.Thread(target=self._run, name="processes", daemon=True).start()
            undo.pop_all()
        return wake

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(REAP_EVERY_S if self._unreaped else None):
                if self._selector.get_map().get(key.fd) is not key:
                    continue  # an event before this one has closed it
                try:
                    key.data()
                except Exception as error:  # noqa: BLE001 - a bug must not end it
                    self._log.error(
                        "unexpected error, a bug in gymwire",
                        error=f"{type(error).__name__}: {error}",
                    )
            self._unreaped = [one for one in self._unreaped if one.poll() is None]

    def _execute(self, mine: socket.socket) -> None:
        for _ in mine.recv(1 << 12):
            self._tasks.get()()

    def _start(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        on_end: Callable[[subprocess.Popen[bytes]], None],
    ) -> Started:
        # The folder may be gone, or closed to this user (`sudo -u`). The process then starts in the
        # agent's present folder.
        is_usable = self._folder is not None and os.access(self._folder, os.X_OK)
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            theirs_in, ours_out = os.pipe()
            theirs.callback(os.close, theirs_in)
            undo.callback(os.close, ours_out)
            ours_in, theirs_out = os.pipe()
            theirs.callback(os.close, theirs_out)
            undo.callback(os.close, ours_in)
            process = subprocess.Popen(
                [*command, str(theirs_in), str(theirs_out), str(os.getpid())],
                cwd=self._folder if is_usable else None,
                env=env,
                pass_fds=[theirs_in, theirs_out],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C is the env agent's
            )
            undo.callback(_end, process)
            os.set_blocking(ours_out, False)
            ends = os.pidfd_open(process.pid)
            undo.callback(os.close, ends)
            outputs: list[tuple[IO[bytes], Output]] = []
            ended = partial(self._ended, ends, process, on_end, outputs)
            self._selector.register(ends, selectors.EVENT_READ, ended)
            undo.callback(self._selector.unregister, ends)
            for stream, level in ((process.stdout, "info"), (process.stderr, "warning")):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                log = partial(
                    getattr(self._log, level), "environment printed", address=self._address
                )
                output = Output(lambda text, log=log: log(text=text), time.monotonic)  # type: ignore[misc]
                read = partial(self._read, stream, output)
                self._selector.register(stream, selectors.EVENT_READ, read)
                undo.callback(self._selector.unregister, stream)
                outputs.append((stream, output))
            undo.pop_all()
        return process, ours_in, ours_out

    def _read(self, stream: IO[bytes], output: Output) -> None:
        data = b""
        try:
            data = os.read(stream.fileno(), MAX_READ)
        except BlockingIOError:  # the process itself has read it back (/proc/self/fd/1)
            return
        except OSError:
            pass  # as at its end
        self._feed(stream, output, data)

    def _feed(self, stream: IO[bytes], output: Output, data: bytes) -> None:
        output.feed(data)
        if not data:
            self._selector.unregister(stream)
            stream.close()

    def _ended(
        self,
        ends: int,
        process: subprocess.Popen[bytes],
        on_end: Callable[[subprocess.Popen[bytes]], None],
        outputs: list[tuple[IO[bytes], Output]],
    ) -> None:
        """Log the remaining output of a process that has ended, and close its pipes.

        What the process has started may hold their other ends for as long as it likes.
        """
        self._selector.unregister(ends)
        os.close(ends)
        self._unreaped.append(process)
        on_end(process)
        for stream, output in outputs:
            for _ in range(MAX_LAST_READS):
                if not stream.closed:
                    self._read(stream, output)
            if not stream.closed:
                self._feed(stream, output, b"")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was just started, and close its pipes."""
    with process:
        process.kill()
