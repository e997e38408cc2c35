"""gymwire's own sides: a broker, env agents and proxies, each process as its users start it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal
from unittest import mock

import gymnasium

from benchmarks.harness import Running, Side
from benchmarks.local import ENV_ID, cartpole_steps, vector_steps
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.learner_agent.proxies.proxy_vector_env import ProxyVectorEnv

TOGETHER = 1000  # idle sessions that one vector opens

# Between hosts all parts use ZeroMQ over tcp; on one host they use Unix sockets by default.
SessionPath = Literal[
    "relayed, same host",
    "relayed, between hosts",
    "direct, same host",
    "direct, between hosts",
]


@contextlib.contextmanager
def service(
    env: str,
    path: SessionPath,
    *,
    workers: int = 1,
    slots: int = 8,
    env_kwargs: Mapping[str, Any] | None = None,
    options: Sequence[str] = (),
) -> Iterator[tuple[str, dict[str, int]]]:
    """Start a broker and an env agent that offers `env` as "it"; yield URL and process ids.

    `options`: further options of the env agent.
    """
    with contextlib.ExitStack() as stack:
        url = f"tcp://127.0.0.1:{free_port()}"
        channels = [] if path.endswith("same host") else ["--no-local-channels"]
        broker = stack.enter_context(program("gymwire.broker", "--bind", url, *channels))
        arguments = ["--address", "it", "--env", env, "--broker", url, "--wait", "10"]
        arguments += ["--max-sessions", str(slots), "--workers", str(workers)]
        arguments += ["--env-kwargs", json.dumps(dict(env_kwargs or {})), *options]
        if workers > 1:
            arguments.append("--pin")
        if path.startswith("direct"):
            arguments += ["--direct", "tcp://127.0.0.1:*"]
        agent = stack.enter_context(program("gymwire.env_agent", *arguments))
        until_offered(url, "it", slots=slots)
        yield url, {"broker": broker.pid, "env agent": agent.pid}


def free_port() -> int:
    """Return a TCP port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def program(name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m NAME` until the context ends; `gymwire web` is such a name, too."""
    command = [sys.executable, "-m", *name.split(), "--log-level", "warning", *arguments]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_offered(url: str, *addresses: str, slots: int = 1) -> None:
    """Wait until there are so many slots at each address, which all loops of all workers offer."""
    connection = BrokerConnection(url, wait_s=120)
    with contextlib.closing(connection):
        for address in addresses:
            deadline = time.monotonic() + 120
            while sum(entry["capacity"] for entry in connection.find(address)) < slots:
                if time.monotonic() > deadline:
                    raise RuntimeError("The env agent did not come up; see its output.")


def on_host_of(path: SessionPath) -> contextlib.AbstractContextManager[object]:
    """Learners on the agent's host would use its Unix socket: pretend to be on another host."""
    if path == "direct, between hosts":
        return mock.patch(
            "gymwire.learner_agent.client.direct.socket.gethostname", return_value="another-host"
        )
    return contextlib.nullcontext()


def _direct(path: SessionPath) -> str:
    return "always" if path.startswith("direct") else "never"


def cartpole(path: SessionPath) -> Side:
    """One CartPole."""
    return one(f"gymwire {path}", path, ENV_ID, cartpole_steps)


def picture(path: SessionPath, shape: tuple[int, ...], dtype: str) -> Side:
    """One environment whose observation is large."""
    kwargs = {"shape": list(shape), "dtype": dtype}
    return one(f"gymwire {path}", path, "benchmarks.environments:Picture", always_0, kwargs)


def always_0(env: gymnasium.Env[Any, Any]) -> Callable[[], object]:
    """Return a call that does one step with action 0."""
    env.reset(seed=1)
    action = env.action_space.sample() * 0
    step = env.step
    return lambda: step(action)


def one(
    name: str,
    path: SessionPath,
    env: str,
    stepper: Callable[[gymnasium.Env[Any, Any]], Callable[[], object]],
    env_kwargs: Mapping[str, Any] | None = None,
    idle: int = 0,
    options: Sequence[str] = (),
) -> Side:
    """One session in use, and `idle` sessions open beside it; `options`: of the env agent."""
    return Side(name, partial(_open_one, path, env, stepper, env_kwargs, idle, options))


@contextlib.contextmanager
def _open_one(
    path: SessionPath,
    env: str,
    stepper: Callable[[gymnasium.Env[Any, Any]], Callable[[], object]],
    env_kwargs: Mapping[str, Any] | None,
    idle: int,
    options: Sequence[str],
) -> Iterator[Running]:
    with contextlib.ExitStack() as stack:
        url, pids = stack.enter_context(
            service(env, path, env_kwargs=env_kwargs, slots=8 + idle, options=options)
        )
        for _ in range(idle):  # on connections of their own, as those of other learners
            connection = stack.enter_context(contextlib.closing(BrokerConnection(url)))
            stack.enter_context(ProxyEnv("it", direct="never", connection=connection))
        with on_host_of(path):
            proxy = stack.enter_context(ProxyEnv("it", url, direct=_direct(path)))
        yield Running(stepper(proxy), pids)


def crowd(
    path: SessionPath,
    busy: int,
    idle: int,
    env: str,
    stepper: Callable[[Any], Callable[[], object]],
    env_kwargs: Mapping[str, Any] | None = None,
) -> Side:
    """Return a side that steps a vector with a session for each environment, beside idle ones."""
    name = f"gymwire {path}, {busy:,} of {busy + idle:,}"
    return Side(name, partial(_open_crowd, path, busy, idle, env, stepper, env_kwargs), busy)


@contextlib.contextmanager
def _open_crowd(
    path: SessionPath,
    busy: int,
    idle: int,
    env: str,
    stepper: Callable[[Any], Callable[[], object]],
    env_kwargs: Mapping[str, Any] | None,
) -> Iterator[Running]:
    with contextlib.ExitStack() as stack:
        slots = busy + idle
        url, pids = stack.enter_context(service(env, path, slots=slots, env_kwargs=env_kwargs))
        for first in range(0, idle, TOGETHER):
            stack.enter_context(contextlib.closing(crowded(url, min(TOGETHER, idle - first), path)))
        yield Running(
            stepper(stack.enter_context(contextlib.closing(crowded(url, busy, path)))), pids
        )


def crowded(url: str, sessions: int, path: SessionPath) -> ProxyVectorEnv:
    """Return a vector with a session for each environment."""
    return ProxyVectorEnv(
        "it",
        sessions,
        url,
        sessions=sessions,
        direct=_direct(path),
        wait_s=20,  # some serving loops may not have offered yet
    )


def asynchronous(url: str, sessions: int, path: SessionPath, rounds: int) -> tuple[float, Any]:
    """Step asynchronous environments on one connection, each in a task of its own.

    Return the seconds until all were open and reset, and for each round the seconds from its start
    until the step of each had ended.
    """
    import asyncio

    from gymwire.aio import Connection, ProxyEnv

    ended_s: list[list[float]] = [[] for _ in range(rounds)]
    opening_s = 0.0

    async def main() -> None:
        nonlocal opening_s
        began = time.perf_counter()
        async with contextlib.AsyncExitStack() as stack:
            connection = await stack.enter_async_context(Connection(url, wait_s=20))
            envs = [
                ProxyEnv("it", connection=connection, direct=_direct(path)) for _ in range(sessions)
            ]

            async def start(env: ProxyEnv) -> None:
                await env.open()
                await env.reset(seed=1)

            async def step(env: ProxyEnv, ended: list[float]) -> None:
                await env.step(0)
                ended.append(time.perf_counter() - began)

            async with asyncio.TaskGroup() as group:
                for env in envs:
                    group.create_task(start(env))
            opening_s = time.perf_counter() - began
            for ended in ended_s:
                began = time.perf_counter()
                async with asyncio.TaskGroup() as group:
                    for env in envs:
                        group.create_task(step(env, ended))

    asyncio.run(main())
    return opening_s, ended_s


def vector(
    path: SessionPath,
    num_envs: int,
    *,
    sessions: int = 1,
    workers: int = 1,
    env: str = ENV_ID,
    stepper: Callable[[Any], Callable[[], object]] = vector_steps,
    own: bool = False,
) -> Side:
    """Return a side that steps a vector over sessions; `own`: the environment's own vector."""
    name = f"gymwire {path}, {sessions} × {num_envs // sessions}{', its own' if own else ''}"
    kwargs = {"vectorization_mode": "sync"} if env == ENV_ID and not own else None
    opened = partial(_open_vector, path, num_envs, sessions, workers, env, stepper, kwargs)
    return Side(name, opened, num_envs)


@contextlib.contextmanager
def _open_vector(
    path: SessionPath,
    num_envs: int,
    sessions: int,
    workers: int,
    env: str,
    stepper: Callable[[Any], Callable[[], object]],
    env_kwargs: Mapping[str, Any] | None,
) -> Iterator[Running]:
    with service(env, path, workers=workers, slots=max(8, workers)) as (url, pids):
        with on_host_of(path):
            envs = ProxyVectorEnv(
                "it",
                num_envs,
                url,
                sessions=sessions,
                direct=_direct(path),
                env_kwargs=env_kwargs,
            )
        with contextlib.closing(envs):
            yield Running(stepper(envs), pids)
