"""Processes that start in milliseconds: forks of one process that has imported everything.

`python -m MODULE` and `python -c CODE` take most of a second of CPU time for their imports. A
process started here runs the same module or code as `__main__`, with arguments, environment, folder
and descriptors of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
OTHERS = (  # what gymwire's programs import later
    "gymnasium.envs.classic_control.cartpole",
    "gymnasium.envs.toy_text.frozen_lake",
    "gymnasium.vector",
    "gymnasium.wrappers",
    "rich_click",
)


class Forked:
    """A process with those attributes and methods of `subprocess.Popen` that the tests use.

    `arguments`: the name of a module, or "-c" and code, and what follows them. `stdin`, `stdout`
    and `stderr` mean the same as for Popen. `descriptors`: its RLIMIT_NOFILE. Without `finalized`,
    the process ends after its exit handlers: to destroy its objects, it would have to copy the
    memory that it shares, which takes ten times as long as to start.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path = ROOT,
        stdin: int | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        descriptors: int | None = None,
        finalized: bool = True,
    ) -> None:
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self._lock = threading.Lock()
        with contextlib.ExitStack() as copied:  # closed when the process has its copies
            given = [0 if stdin is None else stdin, _number(stdout, 1), _number(stderr, 2)]
            if stdin == subprocess.PIPE:
                given[0], ours = os.pipe()
                copied.callback(os.close, given[0])
                self.stdin = os.fdopen(ours, "wb", 0)
            if stdout == subprocess.PIPE:
                ours, given[1] = os.pipe()
                copied.callback(os.close, given[1])
                self.stdout = os.fdopen(ours, "rb")
            if stderr == subprocess.STDOUT:
                given[2] = given[1]
            self._status, report = os.pipe()
            copied.callback(os.close, report)
            request = {
                "arguments": list(arguments),
                "env": dict(env),
                "cwd": str(cwd),
                "descriptors": descriptors,
                "finalized": finalized,
            }
            data = json.dumps(request).encode()
            socket.send_fds(_connection(), [data], [*given, report])
        self.pid = int(os.read(self._status, LINE))

    def __del__(self) -> None:
        os.close(self._status)

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raise `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            with self._lock:
                if self.returncode is None:
                    self.returncode = os.waitstatus_to_exitcode(int(os.read(self._status, LINE)))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run(
    arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path = ROOT, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a process to its end, without input; return its exit status and its output."""
    with (
        Path(os.devnull).open() as nothing,
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
    ):
        process = Forked(
            arguments, env=env, cwd=cwd, stdin=nothing.fileno(), stdout=output, stderr=errors
        )
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, status, output.read(), errors.read())


def _number(file: int | IO[Any] | None, inherited: int) -> int:
    if file is None:
        return inherited
    return file if isinstance(file, int) else file.fileno()


PR_SET_PDEATHSIG = 1
LINE = 16  # bytes: a fixed size, so that the process id and the exit status are two reads
_lock = threading.Lock()
_open: list[socket.socket] = []


def _connection() -> socket.socket:
    """Return the connection to the process that forks; start it at the first call."""
    with _lock:
        if not _open:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with there:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.prefork", str(there.fileno())],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[there.fileno()],
                    # Only one thread goes on in a fork, so there must be no others.
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""},
                )
            atexit.register(_end, process, here)
            _open.append(here)
        return _open[0]


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.wait()


# --- the process that forks -----------------------------------------------------------------------


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for each request until the connection closes; return the request in the fork."""
    running: dict[int, tuple[int, int]] = {}  # by pidfd: the process id, and the pipe for its end
    with connection, selectors.DefaultSelector() as ready:
        ready.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fd in running:
                    pid, report = running.pop(key.fd)
                    ready.unregister(key.fd)
                    os.close(key.fd)
                    _tell(report, os.waitpid(pid, 0)[1])
                    os.close(report)
                    continue
                data, numbers, _, _ = socket.recv_fds(connection, 1 << 20, 4)
                if not data:
                    raise SystemExit
                here = os.getpid()
                pid = os.fork()
                if pid == 0:
                    end_with(here)
                    for number in range(3):
                        os.dup2(numbers[number], number)
                    for descriptor, (_, report) in running.items():
                        os.close(descriptor)
                        os.close(report)
                    for number in numbers:
                        os.close(number)
                    request: dict[str, Any] = json.loads(data)
                    return request
                report = numbers.pop()
                for number in numbers:
                    os.close(number)
                descriptor = os.pidfd_open(pid)
                running[descriptor] = pid, report
                ready.register(descriptor, selectors.EVENT_READ)
                _tell(report, pid)


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, whatever ends the tests."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _tell(pipe: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it anymore
        os.write(pipe, str(number).rjust(LINE).encode())


def import_all() -> None:
    """Import what gymwire's programs import."""
    import gymwire

    for module in pkgutil.walk_packages(gymwire.__path__, "gymwire."):
        if module.name.endswith(("__main__", "sb3")):  # with PyTorch, a fork takes 5 times as long
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # a module that needs an extra
            if error.name is None or error.name.startswith("gymwire"):
                raise
    for name in OTHERS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection of each fork would copy all of it


def main() -> None:
    """Serve; in a fork, run what was asked for."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    end = End()
    atexit.register(end)  # before all others, so that it is called after them
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` may have started the tests
    import_all()
    request = serve(connection)
    os.environ.clear()
    os.environ.update(request["env"])
    if os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(os.environ["PYTHONWARNINGS"])  # type: ignore[arg-type]
    if os.environ.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    if request["descriptors"] is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["descriptors"],) * 2)
    os.chdir(request["cwd"])
    sys.path[:1] = [request["cwd"], *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    try:
        execute(request["arguments"])
    except SystemExit as ended:
        if request["finalized"] or not isinstance(ended.code, int | None):
            raise
        end.status = ended.code or 0
    else:
        end.status = None if request["finalized"] else 0


class End:
    """The last exit handler: ends the process at once if `status` is set."""

    status: int | None = None

    def __call__(self) -> None:
        if self.status is not None:
            with contextlib.suppress(OSError):  # Python's own end reports it
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(self.status)


def execute(arguments: list[str]) -> None:
    """Run a module or code as `__main__`."""
    sys.argv = arguments
    if sys.argv[0] == "-c":
        code = compile(sys.argv.pop(1), "<string>", "exec")
        sys.modules["__main__"] = main_module = types.ModuleType("__main__")
        exec(code, vars(main_module))
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
