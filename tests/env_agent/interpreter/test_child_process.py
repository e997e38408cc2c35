"""What a process may do wrong, what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from gymnasium.vector import AutoresetMode

from gymwire.env_agent.elsewhere import EnvironmentGone
from gymwire.env_agent.interpreter import child_process
from gymwire.env_agent.interpreter.child import frames
from gymwire.env_agent.interpreter.child_errors import RaisedInChild
from gymwire.env_agent.interpreter.child_factory import ChildFactory
from gymwire.env_agent.interpreter.child_process import ChildProcess, describe_status, environment
from gymwire.env_agent.interpreter.process_watch import (
    MAX_LINE,
    MAX_LINES,
    MAX_READ,
    Output,
    ProcessWatch,
)
from gymwire.protocol.errors import ConfigurationError
from tests.chaos.fleet import until
from tests.processes import PATIENCE_S

PLAIN = "tests.plain_envs:Plain"
MISBEHAVING = f"""#!{sys.executable}
import os, runpy, sys, time
program = runpy.run_path(sys.argv[2])["load"]()
from gymwire_child import channel, frames, packing
answers = 0

class Channel(channel.Channel):
    def answer(self, kind, number, index, body):
        global answers
        answers += 1
        if answers == AFTER:
            self.flush()
            CODE
        super().answer(kind, number, index, body)

program.Channel = Channel
program.main(*map(int, sys.argv[3:]))
"""
HELLO, RESET, STEP = 1, 5, 6  # hello, load, make, compile, reset, step


@pytest.fixture
def misbehave(tmp_path: Path) -> Callable[[int, str], ChildFactory]:
    """Return a factory whose processes do something else at one of their answers."""

    def make(after: int, code: str) -> ChildFactory:
        script = tmp_path / "python"
        code = code.strip().replace("\n", "\n            ")
        script.write_text(MISBEHAVING.replace("AFTER", str(after)).replace("CODE", code))
        script.chmod(0o755)
        return ChildFactory("a", PLAIN, str(script), {})

    return make


FRAME = "os.write(self._written_to, frames.HEADER.pack({}, {}, {}, 0) + {})"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("os.write(self._written_to, os.urandom(4096))", "broke the protocol"),
        ("os.write(self._written_to, b'HTTP/1.1 200 OK\\r\\n\\r\\n')", "broke the protocol"),
        (FRAME.format(2**32 - 1, "frames.VALUE", "number", "b''"), "4294967295 bytes"),
        (FRAME.format(0, 77, "number", "b''"), "kind 77"),
        (FRAME.format(0, "frames.STEP", "number", "b''"), "kind 1"),
        (FRAME.format(1, "frames.VALUE", "number + 1", "b'\\xc0'"), "instead of"),
        (FRAME.format(3, "frames.COMPACT", "number", "b'abc'"), "bytes of observation"),
        (FRAME.format(100, "frames.VALUE", "number", "b'abc'") + "; os._exit(7)", "exit status 7"),
        ("os.close(self._written_to); time.sleep(600)", "closed its connection"),
        ("os.close(self._written_to); os.close(1); os.close(2); os._exit(9)", "exit status 9"),
    ],
)
def test_a_violation_ends_this_session_only(
    misbehave: Callable[[int, str], ChildFactory], code: str, why: str
) -> None:
    other = ChildFactory("a", PLAIN, sys.executable, {}).make_first()
    env = misbehave(STEP, code).make_first()
    with contextlib.closing(other), contextlib.closing(env):
        pid = env.reset(seed=1)[1]["pid"]
        with pytest.raises(EnvironmentGone, match=why):
            env.step(np.int64(0))
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(EnvironmentGone, match=why):
            env.reset(seed=1)
        other.reset(seed=1)
        assert other.step(np.int64(0))[1] == 0.0


@pytest.mark.parametrize(
    "end",
    [
        (b"\xc3", 1.0, b"\xc2\xc2\x80"),
        (frames.FLOAT, 1.0, b"\xc2\xc0\x80"),
        (frames.FLOAT, 1.0, b"\xc2\xc2\x81"),
        (frames.NUMPY_FLOAT, 1.0, b"\x00\x01\x80"),
    ],
)
@pytest.mark.parametrize("method", ["step", "step_raw"])
def test_a_compact_answer_with_unknown_bytes_ends_the_session(
    misbehave: Callable[[int, str], ChildFactory], end: tuple[bytes, float, bytes], method: str
) -> None:
    body = bytes(3 * 4) + frames.COMPACT_END.pack(*end)
    env = misbehave(STEP, f"return super().answer(frames.COMPACT, number, index, {body!r})")
    made: Any = env.make_first()
    with contextlib.closing(made):
        made.reset(seed=1)
        with pytest.raises(EnvironmentGone, match="A step has an unknown kind of reward"):
            getattr(made, method)(np.int64(0))


OBJECTS = "packing.pack((frames.MARK, 'objects', [], [1], None))"


@pytest.mark.parametrize(
    "body",
    [
        "b'\\xc1'", "b''", "b'\\xdd\\xff\\xff\\xff\\xff'", "b'\\x91' * 300 + b'\\xc0'",
        "packing.pack((frames.MARK, 'named', 'x y', ['a'], [1]))",
        "packing.pack((frames.MARK, 'objects', [-2, 3], [1]))",
        "packing.pack((frames.MARK, 'nothing', 3))",
        "packing.pack([frames.MARK, (frames.MARK, 'reordered')])",
        f"packing._head(b'\\xdf', 1) + {OBJECTS} + b'\\xc0'",
        "packing.pack((frames.MARK, 'x' * 10_000))",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["VALUE", "RAISED"])
def test_a_malformed_value_ends_the_session(
    misbehave: Callable[[int, str], ChildFactory], body: str, kind: str
) -> None:
    code = f"return super().answer(frames.{kind}, number, index, {body})"
    env = misbehave(STEP, code).make_first()
    with contextlib.closing(env):
        env.reset(seed=1)
        with pytest.raises(EnvironmentGone, match="broke the protocol: it sent a malformed") as why:
            env.step(np.int64(0))
        assert len(str(why.value)) < 500


PACKETS = """
import fcntl, termios
fd = self._written_to
fcntl.fcntl(fd, fcntl.F_SETFL, os.O_WRONLY | os.O_DIRECT)
data = packing._head(packing._LIST, 2) + packing.pack(b"x" * 3_000_000)
data = frames.HEADER.pack(len(data) + 9, frames.VALUE, number, 0) + data
for at in range(5_000):
    os.write(fd, data[2 * at : 2 * at + 2])
data, unread = data[10_000:], bytearray(4)
while not fcntl.ioctl(fd, termios.FIONREAD, unread) and any(unread):
    time.sleep(0.001)
with open("/proc/%d/maps" % os.getppid()) as maps:
    data += packing.pack(len(maps.readlines()))
while data:
    data = data[os.write(fd, data):]
return
"""


def test_an_answer_in_tiny_pieces_takes_no_map_of_memory_for_each(
    misbehave: Callable[[int, str], ChildFactory],
) -> None:
    env: Any = misbehave(STEP, PACKETS).make_first()
    with contextlib.closing(env):
        env.reset(seed=1)
        before = len(Path("/proc/self/maps").read_text().splitlines())
        assert env.step(np.int64(0))[1] < before + 500


FLOOD = """
super().answer(kind, number, index, body)
self.flush()
while True:
    os.write(self._written_to, bytes(1 << 16))
"""


def test_answers_to_an_unread_request_take_linear_time(
    misbehave: Callable[[int, str], ChildFactory], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = misbehave(RESET, FLOOD).make_first()
    with contextlib.closing(env):
        env.reset(seed=1)
        monkeypatch.setattr(child_process, "MAX_MESSAGE", 1 << 25)
        begun = time.thread_time()
        with pytest.raises(EnvironmentGone, match="without reading its requests"):
            env.reset(options={"long": bytes(1 << 20)})
        assert time.thread_time() - begun < 3.0


STUCK = """
super().answer(kind, number, index, body)
self.flush()
time.sleep(600)
"""
DRIP = """
os.write(self._written_to, frames.HEADER.pack(1 << 20, frames.VALUE, number, 0))
while True:
    os.write(self._written_to, b"x")
    time.sleep(0.05)
"""
BYTES = """
super().answer(kind, number, index, body)
self.flush()
while True:
    os.write(self._written_to, b"x")
"""


@pytest.mark.parametrize(("after", "code"), [(STEP, DRIP), (RESET, STUCK), (RESET, BYTES)])
def test_a_process_has_so_long_to_close_whatever_it_sends(
    misbehave: Callable[[int, str], ChildFactory],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    code: str,
) -> None:
    monkeypatch.setattr(child_process, "CLOSE_S", 0.5)
    monkeypatch.setattr(child_process, "END_S", 0.1)
    env: Any = misbehave(after, code).make_first()
    pid = env.reset(seed=1)[1]["pid"]
    if code != DRIP:
        with contextlib.suppress(BlockingIOError):
            while True:  # so that the request to close does not fit
                os.write(env._process._out, bytes(1 << 16))
    with pytest.raises(EnvironmentGone, match="in time"):
        env.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_process_that_reads_its_answer_back_does_not_delay_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stolen: list[bytes] = []

    def poll(process: ChildProcess, *args: Any) -> Any:
        ready = polled(process, *args)
        if not stolen:
            stolen.append(os.read(process._in, 1 << 16))  # as the process could, from its end
        return ready

    monkeypatch.setattr(child_process, "CLOSE_S", 0.5)
    env = ChildFactory("a", PLAIN, sys.executable, {}).make_first()
    polled = ChildProcess._poll
    monkeypatch.setattr(ChildProcess, "_poll", poll)
    env.reset(seed=1)
    with pytest.raises(EnvironmentGone):
        env.close()
    assert stolen


@pytest.mark.parametrize(
    "code",
    [
        "os.write(self._written_to, b'hello')\n            os._exit(0)",
        "return super().answer(frames.RAISED, number, index, body)",
        "return super().answer(frames.VALUE, number, index, packing.pack(None))",
        "return super().answer(frames.VALUE, number, index, packing.pack([]))",
        "return super().answer(frames.VALUE, number, index, b'')",
    ],
)
def test_a_wrong_greeting_is_no_interpreter(
    misbehave: Callable[[int, str], ChildFactory], code: str
) -> None:
    with pytest.raises(ConfigurationError, match="did not start as a Python interpreter"):
        misbehave(HELLO, code).make_first()


def test_what_the_environment_started_ends_with_a_process_that_crashed() -> None:
    env = ChildFactory("a", PLAIN, sys.executable, {}).make_first()
    with contextlib.closing(env):
        pid = env.reset(seed=1)[1]["pid"]
        with pytest.raises(EnvironmentGone, match="SIGKILL"):
            env.step(np.int64(9))  # starts a process that inherits all descriptors
        deadline = time.monotonic() + PATIENCE_S
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(pid, 0)
                time.sleep(0.01)
            pytest.fail("it still runs")


LEAVING = """
import subprocess
class Leaving:
    observation_space = action_space = type("Space", (), {"n": 3})()
    def reset(self, seed=None, options=None):
        command = ["/bin/sleep", "600"]
        started = [subprocess.Popen(command, start_new_session=new) for new in (False, True)]
        print("started", flush=True)
        return 0, {"pids": [one.pid for one in started]}
    def step(self, action):
        return 0, 0.0, False, False, {}
"""


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_what_the_environment_started_ends_with_its_process_or_holds_nothing_open(
    tmp_path: Path,
) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    factory = ChildFactory("a", f"{tmp_path}/leaving.py:Leaving", sys.executable, {})
    factory.make_first().close()  # afterwards the thread that watches has all that it needs
    before = descriptors()
    env = factory.make_first()
    ends, stays = env.reset(seed=1)[1]["pids"]
    env.close()
    try:
        until(lambda: not Path(f"/proc/{ends}/fd/0").exists(), "what it started has ended")
        until(lambda: descriptors() <= before, "all descriptors are closed")
        assert Path(f"/proc/{stays}/fd/0").exists()
    finally:
        for pid in (ends, stays):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


BUSY = """
class Busy:
    observation_space = action_space = type("Space", (), {"n": 3})()
    def reset(self, seed=None, options=None):
        return 0, {}
    def step(self, action):
        return 0, 0.0, False, False, {}
    def close(self):
        raise ValueError("busy")
"""


def test_the_process_of_a_vector_ends_although_its_environments_cannot_be_closed(
    tmp_path: Path,
) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    factory = ChildFactory("a", f"{tmp_path}/busy.py:Busy", sys.executable, {})
    vector = factory.make_vector(3, AutoresetMode.NEXT_STEP, None, {})
    pid = vector.envs[0]._process._process.pid  # type: ignore[attr-defined]
    with pytest.raises(RaisedInChild, match="busy"):
        vector.close()
    assert not Path(f"/proc/{pid}").exists()


SEPARATE = """
import os, signal, sys
class Separate:
    def __init__(self, at):
        self.observation_space = self.action_space = type("Space", (), {"n": 3})()
        self.at = at
        self.start("make")
    def reset(self, seed=None, options=None):
        self.start("reset")
        return 0, {}
    def step(self, action):
        self.start("step")
    def start(self, at):
        if at == self.at:
            pid = os.fork()
            if pid == 0:
                os.setsid()
                with open(PATH, "w") as file:
                    file.write(str(os.getpid()))
                os.kill(os.getppid(), signal.SIGKILL)
                signal.pause()
            signal.pause()
"""


def _use(factory: ChildFactory) -> None:
    with contextlib.closing(factory.make_first()) as env:
        env.reset(seed=1)
        env.step(np.int64(0))


@pytest.mark.parametrize("at", ["make", "reset", "step"])
def test_a_crash_is_reported_although_what_it_started_lives_on_with_its_pipes(
    tmp_path: Path, at: str
) -> None:
    file, pid = tmp_path / "separate.py", tmp_path / "pid"
    file.write_text(SEPARATE.replace("PATH", repr(str(pid))))
    factory = ChildFactory("a", f"{file}:Separate", sys.executable, {"at": at})
    try:
        with pytest.raises(EnvironmentGone, match="SIGKILL"):
            _use(factory)
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


TRACED = """
import ctypes, os, signal, time
SEIZE, SET_TRACER = 0x4206, 0x59616D61
class Traced:
    observation_space = action_space = type("Space", (), {"n": 3})()
    def reset(self, seed=None, options=None):
        return 0, {}
    def step(self, action):
        libc, me = ctypes.CDLL(None), os.getpid()
        libc.prctl(SET_TRACER, -1, 0, 0, 0)
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            with open(PATH, "w") as file:
                file.write(str(os.getpid()))
            libc.ptrace(SEIZE, me, 0, 0)
            os.write(write, b"1")
            signal.pause()
        os.read(read, 1)
        os._exit(3)
"""


def test_a_process_that_a_tracer_holds_ends_its_own_session_only(tmp_path: Path) -> None:
    file, pid = tmp_path / "traced.py", tmp_path / "pid"
    file.write_text(TRACED.replace("PATH", repr(str(pid))))
    factory = ChildFactory("a", f"{file}:Traced", sys.executable, {})
    env = factory.make_first()
    held = env._process._process.pid  # type: ignore[union-attr]
    try:
        env.reset()
        with pytest.raises(EnvironmentGone, match="its process ended"):
            env.step(np.int64(0))
        env.close()
        factory.make_first().close()  # in the thread that watches, which waits for none of them
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    until(lambda: not Path(f"/proc/{held}").exists(), "the process that was traced has ended")


class Immortal(ProcessWatch):
    """Notices the end of no process."""

    def _ended(self, *args: Any) -> None:
        self._selector.unregister(args[0])


def test_a_session_does_not_wait_for_a_process_that_cannot_be_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_process, "END_S", 0.1)
    process = ChildProcess(Immortal("a"), sys.executable, "a")
    process.kill()
    with pytest.raises(EnvironmentGone, match="was killed, but has not ended yet"):
        process.call(0, "close")
    process._process.wait()


FORKING = """
import os, sys
class Forking:
    observation_space = action_space = type("Space", (), {"n": 9})()
    def reset(self, seed=None, options=None):
        return 0, {}
    def step(self, action):
        pid = os.fork()
        if pid == 0:
            sys.exit(int(action)) if action else 1 / 0
        return os.waitpid(pid, 0)[1] >> 8, 0.0, False, False, {}
"""


@pytest.mark.parametrize(("action", "status"), [(3, 3), (0, 1)])
def test_a_copy_of_the_process_may_end_as_any_process(
    tmp_path: Path, action: int, status: int
) -> None:
    (tmp_path / "forking.py").write_text(FORKING)
    factory = ChildFactory("a", f"{tmp_path}/forking.py:Forking", sys.executable, {})
    with contextlib.closing(factory.make_first()) as env:
        env.reset()
        for _ in range(2):
            assert env.step(np.int64(action))[0] == status


PARENT = """
import sys, numpy, structlog
from gymwire.env_agent.elsewhere import EnvironmentGone
from gymwire.env_agent.interpreter.child_factory import ChildFactory
env = ChildFactory("a", "tests.plain_envs:Plain", sys.argv[1], {}).make_first()
print(env.reset(seed=1)[1]["pid"], flush=True)
env.step(numpy.int64(7))
"""
WITHOUT_CTYPES = f"""#!{sys.executable}
import runpy, sys
sys.modules["ctypes"] = None
runpy.run_path(sys.argv[2])["load"]().main(*map(int, sys.argv[3:]))
"""


@pytest.mark.parametrize("has_ctypes", [True, False])
def test_a_process_in_a_call_ends_with_its_env_agent(tmp_path: Path, has_ctypes: bool) -> None:
    python = sys.executable
    if not has_ctypes:
        (tmp_path / "python").write_text(WITHOUT_CTYPES)
        (tmp_path / "python").chmod(0o755)
        python = str(tmp_path / "python")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, python], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        lines = iter(parent.stdout.readline, b"")
        pid = next(int(line) for line in lines if line.strip().isdigit())
        os.kill(pid, 0)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and Path(f"/proc/{pid}/fd/0").exists():
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}/fd/0").exists()  # a zombie has no descriptors
    parent.stdout.close()


def test_what_it_prints_is_logged_with_the_address() -> None:
    with structlog.testing.capture_logs() as logs:
        env = ChildFactory("lab/plain", PLAIN, sys.executable, {}).make_first()
        env.reset(seed=1)
        env.step(np.int64(2))
        env.close()
    printed = [
        (row["log_level"], row["address"], row["text"])
        for row in logs
        if row["event"] == "environment printed"
    ]
    assert sorted(printed) == [
        ("info", "lab/plain", "first line"),
        ("info", "lab/plain", "second line"),
        ("warning", "lab/plain", "to the error output"),
    ]


def test_lines_are_cut_and_counted() -> None:
    lines: list[str] = []
    now = [0.0]
    output = Output(lines.append, lambda: now[0])
    output.feed(b"one\ntw")
    output.feed(b"o\n\n \nx" + b"y" * 2 * MAX_LINE)
    assert lines == ["one", "two", "x" + "y" * (MAX_LINE - 1)]
    output.feed(b"line\n" * 1000)
    assert len(lines) == MAX_LINES - 2  # two were empty
    now[0] += 1.5
    output.feed(b"last\xff")
    output.feed(b"")
    assert lines[MAX_LINES - 2 :] == [
        "(955 more lines within 1 s are left out)",
        "last\N{REPLACEMENT CHARACTER}",
    ]


def test_a_line_that_is_left_out_in_part_is_logged_whole_or_not_at_all() -> None:
    lines: list[str] = []
    now = [0.0]
    output = Output(lines.append, lambda: now[0])
    output.feed(b"line\n" * MAX_LINES + b"out\nbeg")
    now[0] += 1.5
    output.feed(b"un\n")
    assert lines[MAX_LINES:] == ["(1 more lines within 1 s are left out)", "begun"]


@pytest.mark.parametrize("line", [b"a\n", b"\n"])
def test_millions_of_short_lines_take_little_time(line: bytes) -> None:
    lines: list[str] = []
    output = Output(lines.append, lambda: 0.5)
    data = line * (MAX_READ // len(line))
    begun = time.thread_time()
    for _ in range(200):
        output.feed(data)
    assert time.thread_time() - begun < 0.5
    output.feed(b"")
    left_out = 200 * MAX_READ // len(line) - MAX_LINES
    assert lines[-1] == f"({left_out} more lines within 1 s are left out)"


class Late(ProcessWatch):
    """Returns a process when it has ended."""

    def start(self, command: Any, env: Any, on_end: Any) -> Any:
        ended = threading.Event()

        def end(process: Any) -> None:
            try:
                on_end(process)
            finally:
                ended.set()

        started = super().start(command, env, end)
        assert ended.wait(PATIENCE_S)
        return started


def test_a_process_may_end_before_its_pipes_are_known() -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(ConfigurationError):
        ChildProcess(Late("a"), "/bin/false", "a")
    assert [row["event"] for row in logs] == ["process died"]


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("no thread")])
def test_a_limit_of_the_system_is_not_blamed_on_the_interpreter(error: BaseException) -> None:
    watch = ProcessWatch("a")
    watch.start = lambda *_: fail(error)  # type: ignore[method-assign, assignment]
    with pytest.raises(ConfigurationError, match=r"Lower --max-sessions.*ulimit") as why:
        ChildProcess(watch, sys.executable, "a")
    assert str(error) in str(why.value)
    assert sys.executable not in str(why.value)


def test_variables_of_gymwire_and_of_this_interpreter_are_left_out() -> None:
    given = {"PATH": "/bin", "GYMWIRE_KEY": "k", "GYMWIRE_BROKER": "b", "PYTHONHOME": "/usr"}
    assert environment(given) == {"PATH": "/bin"}


def test_the_end_of_a_process_in_words() -> None:
    assert describe_status(3) == "ended with exit status 3"
    assert describe_status(-11) == "was ended by SIGSEGV"
    assert describe_status(-40) == "was ended by signal 40"
    assert describe_status(None).startswith("ended with an unknown status")
