"""A process that an environment forks ends by its exception, wherever the environment forks it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gymwire.env_agent import closing
from gymwire.env_agent.environments import Environments, Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.hosted_vector import HostedVector
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.watching import Watching
from gymwire.protocol.dialogue import State
from gymwire.protocol.messages import Open
from tests.processes import PATIENCE_S

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
NEXT_STEP = AutoresetMode.NEXT_STEP


class Fork:
    """Forks once; the copy raises an error.

    Attributes:
        closed: the numbers of the environments that this process has closed.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.pid = 0
        self.closed: list[int] = []

    def __call__(self) -> None:
        if not self.pid:
            self.pid = os.fork()
            if not self.pid:
                raise self.error

    def status(self) -> int | None:
        """Return the exit status of the copy; None if it runs on."""
        poller = select.poll()
        ends = os.pidfd_open(self.pid)
        poller.register(ends, select.POLLIN)
        has_ended = poller.poll(1000 * PATIENCE_S)
        os.close(ends)
        if not has_ended:
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return status if has_ended else None


class Env(gymnasium.Env[Any, Any]):
    """Forks at one place."""

    observation_space = action_space = Discrete(3)

    def __init__(self, fork: Fork, place: str, render_mode: str | None = None) -> None:
        self.fork, self.place, self.render_mode = fork, place, render_mode
        if render_mode is not None:
            self.at("init")

    def at(self, place: str) -> None:
        if place == self.place:
            self.fork()

    @property
    def spec(self) -> None:  # type: ignore[override]
        self.at("spec")

    def render(self) -> Any:
        self.at("render")

    def close(self) -> None:
        if not self.fork.pid:
            self.at("close")
        self.fork.closed.append(os.getpid())


class Waits(Env):
    """Is asynchronous."""

    async def step(self, action: Any) -> Any:  # type: ignore[override]
        self.at("step")
        task = asyncio.create_task(self.background())
        await asyncio.wait([task])
        return 1, 0.0, False, False, {}

    async def background(self) -> None:
        self.at("background")


def _close(fork: Fork) -> None:
    closing.close(Env(fork, "close"))


def _close_vector(fork: Fork) -> None:
    vector = HostedVector([lambda: Env(fork, "close")] * 2, NEXT_STEP)
    closing.close(vector)
    assert fork.closed == [os.getpid()] * 2


def _service(fork: Fork, place: str) -> Service:
    kwargs = {"fork": fork, "place": place}
    return Service("a", Factory("env", Env, kwargs), watchable=True, watch_modes=["ansi"])


def _read_property(fork: Fork) -> None:
    SessionHost([_service(fork, "spec")]).make(1, 1, Open("a", b""), None)


def _watch(fork: Fork) -> None:
    env = Env(fork, "render")
    session = SimpleNamespace(last_seq=1, sid=1, state=State.EPISODE)
    runner = SimpleNamespace(render_unnoticed=lambda index: env.render())
    slot: Any = SimpleNamespace(session=session, executor=SimpleNamespace(), runner=runner)
    host: Any = SimpleNamespace(requests=SimpleNamespace(max_message=1 << 20))
    watching = Watching(host, None, lambda frame: None, lambda: 0.0)  # type: ignore[arg-type]
    view: Any = None
    watching._render(slot, 0, view)


def _make_watchable(fork: Fork) -> None:
    service = _service(fork, "init")
    Environments([service]).make(service, Open("a", b""))


def _make_vector(fork: Fork) -> None:
    def make_one(**_: Any) -> Any:
        return Env(fork, "")

    def make_some(num_envs: int, autoreset_mode: Any = None) -> Any:
        if autoreset_mode is not None:
            fork()
        return SyncVectorEnv([make_one] * num_envs)

    _make_registered(make_one, make_some)


def _make_registered(make_one: Any, make_some: Any) -> None:
    spec = EnvSpec("Forks-v0", entry_point=make_one, vector_entry_point=make_some)
    gymnasium.registry["Forks-v0"] = spec
    try:
        Factory("Forks-v0").make_vector(2, NEXT_STEP, None, {})
    finally:
        del gymnasium.registry["Forks-v0"]


def _make_vector_with_any_keywords(fork: Fork) -> None:
    def make_one(**_: Any) -> Any:
        return Env(fork, "")

    def make_some(num_envs: int, **keywords: Any) -> Any:
        if "autoreset_mode" in keywords:
            fork()
        return SyncVectorEnv([make_one] * num_envs)

    _make_registered(make_one, make_some)


def _step(fork: Fork, place: str) -> None:
    env = Factory("waits", Waits, {"fork": fork, "place": place}).make(None, {})
    for _ in range(2):  # in threads, because these wait forever if a copy reads their messages
        thread = threading.Thread(target=env.step, args=(1,), daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def _step_asynchronously(fork: Fork) -> None:
    _step(fork, "step")


def _run_in_the_background(fork: Fork) -> None:
    _step(fork, "background")


@pytest.mark.parametrize(
    ("use", "error", "status"),
    [
        (_close, SystemExit(3), 3),
        (_close_vector, SystemExit(3), 3),
        (_read_property, SystemExit(3), 3),
        (_watch, SystemExit(3), 3),
        (_make_watchable, OSError("no program"), 1),
        (_make_vector, OSError("no program"), 1),
        (_make_vector_with_any_keywords, TypeError("no program"), 1),
        (_step_asynchronously, SystemExit(3), 3),
        (_run_in_the_background, SystemExit(3), 3),
        (_run_in_the_background, OSError("no program"), 1),
    ],
)
def test_a_copy_ends_by_its_exception(
    use: Callable[[Fork], None], error: BaseException, status: int
) -> None:
    pid, fork = os.getpid(), Fork(error)
    try:
        use(fork)
    finally:
        if os.getpid() != pid:
            os._exit(99)
    assert fork.status() == status


@pytest.mark.parametrize("error", [SystemExit("the end"), OSError("no program")])
def test_a_copy_ends_although_it_cannot_write(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open("w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
    test_a_copy_ends_by_its_exception(_close, error, 1)


def test_what_a_copy_has_printed_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = tmp_path / "printed"
    with printed.open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        print("the end", end="")  # noqa: T201 - this process has it in its buffer, too
        test_a_copy_ends_by_its_exception(_close, SystemExit(3), 3)
        assert printed.read_text() == "the end"
