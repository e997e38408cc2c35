"""A process with its own interpreter: requests to it, its answers, and its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from gymwire.env_agent.elsewhere import EnvironmentGone
from gymwire.env_agent.interpreter import child, child_errors, child_values
from gymwire.env_agent.interpreter.child.frames import (
    CALL,
    COMPACT,
    HEADER,
    HEADER_SIZE,
    RAISED,
    STEP,
    VALUE,
)
from gymwire.env_agent.interpreter.process_watch import ProcessWatch
from gymwire.protocol import logs, values
from gymwire.protocol.codec import MAX_MESSAGE
from gymwire.protocol.errors import (
    ConfigurationError,
    DecodingError,
    ProtocolError,
)

PROGRAM = str(Path(child.__file__).resolve().with_name("__main__.py"))
OLDEST = (3, 7)  # the oldest Python that runs `child`
# Every Python can run this. Those before OLDEST cannot parse `child`.
_ASK_VERSION = "import sys; sys.stdout.write('Python %d.%d' % sys.version_info[:2])"
START_S = 30.0  # for an interpreter to start, without the imports of the environment
END_S = 2.0  # for a process that has closed its connection, or whose environments are closed
CLOSE_S = 10.0  # for an environment to close
_CHUNK = 1 << 16
_MAX_REASON = 300  # characters
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
        self._log = logs.logger()
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
        self._arrived = bytearray()
        self._in = self._out = -1  # the process may end before this thread knows its pipes
        command = [python, "-u", PROGRAM]
        try:
            self._process, self._in, self._out = watch.start(
                command, environment(os.environ), self._on_end
            )
        except (OSError, RuntimeError) as error:
            raise ConfigurationError(_why_not(python, error)) from None
        self._deadline: float | None = time.monotonic() + START_S
        try:
            kind, data = self._read(0)
            hello = values.decode(data[HEADER_SIZE:])
            if kind != VALUE or type(hello) is not list or not hello:
                raise DecodingError("The greeting is malformed.")
        except (EnvironmentGone, ProtocolError) as error:
            self.kill()
            raise ConfigurationError(
                f"{python} did not start as a Python interpreter of version "
                f"{'.'.join(map(str, OLDEST))} or later"
                f"{f' ({self.lost})' if self.lost else ''}. Check --python; the log shows what it "
                f"printed."
            ) from error
        self._deadline = None
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
            # Not in a variable: the traceback would keep the exception and the answer alive.
            raise self._exception(answer)
        return answer

    def step(self, index: int, action: bytes) -> Answer:
        """Step with a raw action: `begin` and `finish`, with fewer calls."""
        if self._unanswered or self._is_closed:
            return self.finish(self.begin(index, STEP, action))
        self._number = number = (self._number + 1) % _NUMBERS
        request = _pack_header(len(action), STEP, number, index) + action
        try:
            sent = os.write(self._out, request)
        except OSError:
            sent = 0
        if sent < len(request):
            self._send(request[sent:])
        data = os.read(self._in, _CHUNK)
        if len(data) > HEADER_SIZE:
            length, kind, got, _ = _unpack_header(data)
            if got == number and kind == COMPACT and len(data) == HEADER_SIZE + length:
                return kind, data
        if not data or self._is_woken:
            self._raise_lost()
        self._arrived += data
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
        return self.begin(index, CALL, values.encode([name, list(args)], root=name))

    def value(self, answer: Answer, tensors: set[str] | None = None) -> Any:
        """Return the value of an answer; `tensors` is that of `child_values.decode`."""
        if answer[0] != VALUE:
            self.violation(f"an answer of kind {answer[0]} instead of a value")
        return self._decode(answer, tensors)

    def _exception(self, answer: Answer) -> Exception:
        try:
            return child_errors.build(self._decode(answer))
        except DecodingError as error:
            self.violation(f"a malformed exception: {error}")

    def _decode(self, answer: Answer, tensors: set[str] | None = None) -> Any:
        try:
            return child_values.decode(answer[1][HEADER_SIZE:], tensors)
        except DecodingError as error:
            self.violation(f"a malformed value: {error}")

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
        with self._polled():
            while data:
                if self._in in self._poll(poller):
                    self._arrived += self._read_polled()
                    if len(self._arrived) > 2 * MAX_MESSAGE:
                        self.violation("answers without end, without reading its requests")
                try:
                    data = data[os.write(self._out, data) :]
                except BlockingIOError:
                    continue
                except OSError:
                    self._raise_lost()

    def _read(self, number: int) -> Answer:
        """Return the next frame, which must answer the request with this number."""
        arrived = self._arrived
        while len(arrived) < HEADER_SIZE:
            arrived += self._receive()
        length, kind, got, _ = HEADER.unpack_from(arrived)
        if length > MAX_MESSAGE:
            self.violation(f"an answer of {length} bytes; the maximum is {MAX_MESSAGE}")
        if got != number or not COMPACT <= kind <= RAISED:
            self.violation(f"an answer of kind {kind} with number {got} instead of {number}")
        end = HEADER_SIZE + length
        # In one buffer: an answer may arrive in tiny pieces, each of which would take a page.
        while len(arrived) < end:
            arrived += self._receive()
        data = bytes(arrived if len(arrived) == end else arrived[:end])
        del arrived[:end]
        return kind, data

    def _receive(self) -> bytes:
        if self._deadline is not None and not self._is_closed:
            return self._receive_in_time()
        data = b"" if self._is_closed else os.read(self._in, _CHUNK)
        if not data or self._is_woken:
            self._raise_lost()
        return data

    def _receive_in_time(self) -> bytes:
        poller = select.poll()
        poller.register(self._in, select.POLLIN)
        with self._polled():
            while True:
                self._poll(poller)
                if data := self._read_polled():
                    return data

    def _poll(self, poller: select.poll) -> dict[int, int]:
        """Wait for events, until the deadline if there is one. Raises EnvironmentGone then."""
        left_ms = None if self._deadline is None else 1000 * (self._deadline - time.monotonic())
        ready = poller.poll(left_ms) if left_ms is None or left_ms > 0 else []
        if not ready:
            self._raise_lost("its process did not answer in time")
        return dict(ready)

    @contextlib.contextmanager
    def _polled(self) -> Iterator[None]:
        """Let no read block: the process can read its answers back itself (/proc/self/fd)."""
        os.set_blocking(self._in, False)
        try:
            yield
        finally:
            if not self._is_closed:
                os.set_blocking(self._in, True)

    def _read_polled(self) -> bytes:
        """Return what has arrived, which may be nothing."""
        try:
            data = os.read(self._in, _CHUNK)
        except BlockingIOError:
            return b""
        if not data or self._is_woken:
            self._raise_lost()
        return data

    # --- the end ----------------------------------------------------------------------------------

    def violation(self, what: str) -> NoReturn:
        """End the process because of what it sent. Raises EnvironmentGone."""
        what = what[:_MAX_REASON].rstrip(".")
        self.lost = self.lost or f"its process broke the protocol: it sent {what}"
        self._raise_lost()

    def _raise_lost(self, why: str = "its process closed its connection") -> NoReturn:
        """Make sure that the process has ended, and raise EnvironmentGone.

        `why`: the reason if the process has not ended on its own.
        """
        if not self.lost and not self._ended.wait(END_S):
            self.lost = self.lost or why
        self.kill()
        self.lost = self.lost or f"its process {describe_status(self._process.returncode)}"
        raise EnvironmentGone(self.lost)

    def _on_end(self, process: subprocess.Popen[bytes]) -> None:
        """Reap the process if the kernel permits; called in the thread of the watch."""
        kill_group(process.pid)  # what the environment started
        status = process.poll()
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
                self._deadline = time.monotonic() + CLOSE_S
                self.call(index, "close")
        finally:
            self._deadline = None
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
        """End the process at once, with its process group.

        A tracer may keep a process that was killed from ending. Then this returns after END_S.
        """
        self._is_closing = True
        if not self._ended.is_set():
            kill_group(self._process.pid)
            if not self._ended.wait(END_S):
                self.lost = self.lost or "its process was killed, but has not ended yet"
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
    """Kill a process that was not reaped yet, and its process group."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for another interpreter: none of gymwire's or of this interpreter."""
    return {
        name: value
        for name, value in variables.items()
        if not name.startswith("GYMWIRE_") and name not in ("PYTHONHOME", "__PYVENV_LAUNCHER__")
    }


def _why_not(python: str, error: OSError | RuntimeError) -> str:
    """Return why an interpreter cannot be started, and what to do."""
    if getattr(error, "filename", None) is None:  # not because of the program
        return (
            f"The env agent cannot start a process for this session: {error}. Lower "
            f"--max-sessions, or raise the limits on open files (ulimit -n) and processes "
            f"(ulimit -u)."
        )
    if not Path(python).is_dir():
        return f"The interpreter {python} cannot be started: {error}. Check --python."
    inside = Path(python) / "bin/python"
    return (
        f"The interpreter {python} cannot be started: it is a folder. Give --python "
        f"{inside if inside.is_file() else 'a program'}."
    )


def describe_status(status: int | None) -> str:
    """Describe how a process ended, as the rest of a sentence."""
    if status is None:
        return "ended with an unknown status, which a debugger or another tracer holds"
    if status >= 0:
        return f"ended with exit status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"
