"""A process with its own interpreter: requests to it, its answers, and its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import structlog

from gymwire.env_agent.elsewhere import EnvironmentGone
from gymwire.env_agent.interpreter import child, child_errors, child_values
from gymwire.env_agent.interpreter.child import COMPACT, HEADER, HEADER_SIZE, RAISED, STEP, VALUE
from gymwire.env_agent.interpreter.process_watch import ProcessWatch
from gymwire.protocol import values
from gymwire.protocol.codec import MAX_MESSAGE
from gymwire.protocol.errors import (
    ConfigurationError,
    ProtocolError,
)

OLDEST = (3, 7)  # the oldest Python that runs `child.py`
# Any Python can run it, but older ones than `OLDEST` cannot read `child.py`.
_ASK_VERSION = "import sys; sys.stdout.write('Python %d.%d' % sys.version_info[:2])"
START_S = 30.0  # for an interpreter to start, without the imports of the environment
END_S = 2.0  # for a process that has closed its connection, or whose environments are closed
CLOSE_S = 10.0  # for an environment to close
_CHUNK = 1 << 16
_MAX_CHUNK = 1 << 20
_NUMBERS = 1 << 32
_pack_header, _unpack_header = HEADER.pack, HEADER.unpack_from

Answer = tuple[int, bytes]
"""The kind of an answer, and its frame with the header."""


class ChildProcess:
    """A process that runs one environment, or those of one vector. Use it in one thread.

    Attributes:
        lost: why the process is lost; "" if it is not.
    """

    def __init__(self, watch: ProcessWatch, python: str, address: str) -> None:
        """Start the interpreter `python`. Raises ConfigurationError."""
        self.lost = ""
        self._address = address
        self._log = structlog.get_logger()
        self._ended = threading.Event()
        self._pipes = threading.Lock()  # held to close them, and to use them in another thread
        self._is_woken = False
        self._is_closing = False
        self._is_closed = False
        self._open: set[int] = set()  # the indices of its environments
        self._number = 0
        self._unanswered: deque[int] = deque()
        self._abandoned: set[int] = set()
        self._answers: dict[int, Answer] = {}  # that arrived before they were asked for
        self._arrived = b""
        command = [python, "-u", str(Path(child.__file__).resolve())]
        try:
            self._process, self._in, self._out = watch.start(
                command, environment(os.environ), self._on_end
            )
        except OSError as error:
            raise ConfigurationError(
                f"The interpreter {python} cannot be started: {_why_not(python, error)}"
            ) from None
        self._patience_s: float | None = START_S
        try:
            kind, data = self._read(0)
            hello = values.decode(data[HEADER_SIZE:])
            assert kind == VALUE
            assert type(hello) is list
        except (EnvironmentGone, ProtocolError, AssertionError) as error:
            self.kill()
            raise ConfigurationError(
                f"{python} did not start as a Python interpreter of version 3.7 or later"
                f"{f' ({self.lost})' if self.lost else ''}. Check --python; the log shows what it "
                f"printed."
            ) from error
        self._patience_s = None
        self._log.debug("process started", address=address, pid=self._process.pid, python=hello[0])

    # --- requests ---------------------------------------------------------------------------------

    def begin(self, index: int, kind: int, body: bytes) -> int:
        """Send a request to the environment with this index; return its number."""
        self._number = number = (self._number + 1) % _NUMBERS
        self._send(HEADER.pack(len(body), kind, number, index) + body)
        self._unanswered.append(number)
        return number

    def finish(self, number: int) -> Answer:
        """Wait for the answer to a request.

        Raises EnvironmentGone, or what the environment raised.
        """
        answer = self._answers.pop(number, None)
        while answer is None:
            if not self._unanswered:
                self._raise_lost()
            first = self._unanswered.popleft()
            answer = self._read(first)
            if first != number:
                if first in self._abandoned:
                    self._abandoned.discard(first)
                else:
                    self._answers[first] = answer
                answer = None
        if answer[0] == RAISED:
            raise child_errors.build(child_values.decode(answer[1][HEADER_SIZE:]))
        return answer

    def step(self, index: int, action: bytes) -> Answer:
        """Step with a raw action: `begin` and `finish`, with fewer calls."""
        if self._unanswered:
            return self.finish(self.begin(index, STEP, action))
        self._number = number = (self._number + 1) % _NUMBERS
        self._send(_pack_header(len(action), STEP, number, index) + action)
        data = self._receive(_CHUNK)
        if len(data) > HEADER_SIZE:
            length, kind, got, _ = _unpack_header(data)
            if got == number and kind == COMPACT and len(data) == HEADER_SIZE + length:
                return kind, data
        self._arrived = data
        self._unanswered.append(number)
        return self.finish(number)

    def abandon(self, number: int) -> None:
        """Drop the answer to a request, which has arrived or will."""
        if self._answers.pop(number, None) is None:
            self._abandoned.add(number)

    def make(self, index: int, *args: Any) -> Any:
        """Make an environment, and return what the process says about it."""
        facts = self.call(index, "make", *args)
        self._open.add(index)
        return facts

    def call(self, index: int, name: str, *args: Any) -> Any:
        """Call a method of an environment, and return its value. Raises what `finish` raises."""
        return self.value(self.finish(self.begin_call(index, name, *args)))

    def begin_call(self, index: int, name: str, *args: Any) -> int:
        """Send the request to call a method; return its number. Raises EncodingError."""
        return self.begin(index, child.CALL, values.encode([name, list(args)], root=name))

    def value(self, answer: Answer) -> Any:
        """Return the value of an answer. Raises DecodingError."""
        if answer[0] != VALUE:
            self.violation(f"an answer of kind {answer[0]} instead of a value")
        return child_values.decode(answer[1][HEADER_SIZE:])

    # --- frames -----------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        if self._is_closed:
            self._raise_lost()
        try:
            sent = os.write(self._out, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._raise_lost()
        if sent < len(data):
            self._send_slowly(memoryview(data)[sent:])

    def _send_slowly(self, data: memoryview) -> None:
        """Send what the pipe takes, and read the answers for which the process waits."""
        poller = select.poll()
        poller.register(self._in, select.POLLIN)
        poller.register(self._out, select.POLLOUT)
        while data:
            if self._in in dict(poller.poll()):
                self._arrived += self._receive(_MAX_CHUNK)
                if len(self._arrived) > 2 * MAX_MESSAGE:
                    self.violation("answers without end, and reads no request")
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                continue
            except OSError:
                self._raise_lost()

    def _read(self, number: int) -> Answer:
        """Return the next frame, which must answer the request with this number."""
        data = self._arrived or self._receive(_CHUNK)
        while len(data) < HEADER_SIZE:
            data += self._receive(_CHUNK)
        length, kind, got, _ = HEADER.unpack_from(data)
        if length > MAX_MESSAGE:
            self.violation(f"an answer of {length} bytes; the maximum is {MAX_MESSAGE}")
        if got != number or not COMPACT <= kind <= RAISED:
            self.violation(f"an answer of kind {kind} with number {got} instead of {number}")
        end = HEADER_SIZE + length
        if len(data) == end:
            self._arrived = b""
        elif len(data) > end:
            self._arrived, data = data[end:], data[:end]
        else:
            parts, left, self._arrived = [data], end - len(data), b""
            while left:
                parts.append(self._receive(min(left, _MAX_CHUNK)))
                left -= len(parts[-1])
            data = b"".join(parts)
        return kind, data

    def _receive(self, most: int) -> bytes:
        data = b""
        if not self._is_closed and (self._patience_s is None or self._is_readable()):
            data = os.read(self._in, most)
        if not data or self._is_woken:
            self._raise_lost()
        return data

    def _is_readable(self) -> bool:
        assert self._patience_s is not None
        poller = select.poll()
        poller.register(self._in, select.POLLIN)
        return bool(poller.poll(1000 * self._patience_s))

    # --- the end ----------------------------------------------------------------------------------

    def violation(self, what: str) -> NoReturn:
        """End the process because of what it sent. Raises EnvironmentGone."""
        self.lost = self.lost or f"its process broke the protocol: it sent {what}"
        self._raise_lost()

    def _raise_lost(self) -> NoReturn:
        """Make sure that the process has ended, and raise EnvironmentGone."""
        if not self.lost and not self._ended.wait(END_S):
            self.lost = self.lost or "its process closed its connection, or did not answer in time"
        self.kill()
        self.lost = self.lost or f"its process {describe_status(self._process.returncode)}"
        raise EnvironmentGone(f"The environment is lost: {self.lost}.")

    def _on_end(self, process: subprocess.Popen[bytes]) -> None:
        """Reap the process; called in the thread of the watch."""
        if not self._is_closing:
            kill_group(process.pid)  # what the environment started
        status = process.wait()
        if not self._is_closing:
            self.lost = self.lost or f"its process {describe_status(status)}"
            self._log.warning("process died", address=self._address, why=self.lost)
        self._ended.set()
        if not self._is_closing:
            self._wake()

    def _wake(self) -> None:
        """End a read that waits: what the process has started may hold the other end of its pipe.

        A process of another group than the one that was killed survives.
        """
        with self._pipes, contextlib.suppress(OSError):
            if not self._is_closed:
                self._is_woken = True
                other_end = os.open(f"/proc/self/fd/{self._in}", os.O_WRONLY | os.O_NONBLOCK)
                try:
                    os.write(other_end, b"1")
                finally:
                    os.close(other_end)

    def close(self, index: int) -> None:
        """Close an environment; with the last one the process ends. Raises what it raises."""
        if index not in self._open:
            return
        try:
            if not self.lost:
                self._patience_s = CLOSE_S
                self.call(index, "close")
                self._patience_s = None
        finally:
            self._open.discard(index)
            if not self._open:
                self._end()

    def _end(self) -> None:
        """End the process, which has nothing more to do."""
        self._is_closing = True
        self._close_pipes()
        if not self._ended.wait(END_S):
            self.kill()

    def kill(self) -> None:
        """End the process at once, with all processes that it started."""
        self._is_closing = True
        if not self._ended.is_set():
            kill_group(self._process.pid)
            self._ended.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        with self._pipes:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._in)
                os.close(self._out)


def check_version(python: str) -> None:
    """Raise ConfigurationError if an interpreter says that it is too old."""
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        asked = subprocess.run(
            [python, "-c", _ASK_VERSION],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(os.environ),
            timeout=START_S,
            check=False,
        )
        name, version = asked.stdout.decode().split()
        if name == "Python" and tuple(map(int, version.split("."))) < OLDEST:
            raise ConfigurationError(
                f"{python} is Python {version}, which is too old: --python needs version "
                f"{'.'.join(map(str, OLDEST))} or later."
            )


def kill_group(pid: int) -> None:
    """Kill a process that was not reaped yet, and those that it started."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for another interpreter: none of gymwire's or of this interpreter."""
    return {
        name: value
        for name, value in variables.items()
        if not name.startswith("GYMWIRE_") and name not in ("PYTHONHOME", "__PYVENV_LAUNCHER__")
    }


def _why_not(python: str, error: OSError) -> str:
    """Return why an interpreter cannot be started, and what to do."""
    if not Path(python).is_dir():
        return f"{error}. Check --python."
    inside = Path(python) / "bin/python"
    return f"it is a folder. Give --python {inside if inside.is_file() else 'a program'}."


def describe_status(status: int | None) -> str:
    """Describe how a process ended, as the rest of a sentence."""
    if status is None or status >= 0:
        return f"ended with exit status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"
