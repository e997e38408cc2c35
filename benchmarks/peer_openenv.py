"""CartPole served by OpenEnv: its FastAPI server under uvicorn, its WebSocket client.

    python -m benchmarks.peer_openenv                    (the server of one CartPole)
    python -m benchmarks.peer_openenv SESSIONS SLEEP_S   (of environments whose steps sleep)

The names of OpenEnv are looked up as the program runs, since it is an extra.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import gymnasium

from benchmarks.environments import Sleeper
from benchmarks.harness import Running, Side
from benchmarks.local import ENV_ID
from benchmarks.processes import part


def side() -> Side:
    """One CartPole over OpenEnv, without a broker in between."""
    return Side("OpenEnv", _open)


@contextlib.contextmanager
def _open() -> Iterator[Running]:
    connect = import_module("openenv.core").GenericEnvClient
    with part(__name__) as (url, pid), asyncio.Runner() as runner:
        env = connect(base_url=url)
        result: Any = None

        # Its client is asynchronous. The synchronous wrapper it has adds a thread, and a sixth to
        # the time of a step; the event loop is run for each step instead.
        async def one_step() -> None:
            nonlocal result
            if result is None or result.done:
                result = await env.reset()
            cart = result.observation["cart"]
            result = await env.step({"push": 1 if cart[2] + 0.5 * cart[3] > 0 else 0})

        async def close() -> None:
            await env.close()

        try:
            yield Running(lambda: runner.run(one_step()), {"env": pid})
        finally:
            runner.run(close())


def rounds(sessions: int, sleep_s: float, number: int) -> tuple[float, list[Sequence[float]]]:
    """Step so many sessions at once, so many times; the environments sleep `sleep_s` each time.

    Returns:
        How long it took to open and reset them, and for each round when each step ended, in seconds
        after the start of the round.
    """
    with part(__name__, sessions, sleep_s) as (url, _):
        return asyncio.run(_rounds(url, sessions, number))


async def _rounds(url: str, sessions: int, number: int) -> tuple[float, list[Sequence[float]]]:
    connect = import_module("openenv.core").GenericEnvClient
    clock = time.perf_counter
    began = clock()
    envs = [connect(base_url=url, connect_timeout_s=60.0) for _ in range(sessions)]
    await asyncio.gather(*(env.reset(seed=1) for env in envs))
    opening_s = clock() - began

    async def step(env: Any) -> float:
        await env.step({"push": 0})
        return clock() - began

    measured: list[Sequence[float]] = []
    for _ in range(number):
        began = clock()
        measured.append(await asyncio.gather(*map(step, envs)))
    await asyncio.gather(*(env.close() for env in envs))
    return opening_s, measured


def _app(sessions: int, sleep_s: float | None) -> Any:
    create_model = import_module("pydantic").create_model
    interfaces = import_module("openenv.core.env_server.interfaces")
    types = import_module("openenv.core.env_server.types")
    http_server = import_module("openenv.core.env_server.http_server")
    push = create_model("Push", __base__=types.Action, push=(int, ...))
    cart = create_model("Cart", __base__=types.Observation, cart=(list[float], ...))

    def init(self: Any) -> None:
        interfaces.Environment.__init__(self)
        self.env = gymnasium.make(ENV_ID) if sleep_s is None else Sleeper(sleep_s)

    def reset(self: Any, seed: int | None = None, **_: object) -> Any:
        observation, _info = self.env.reset(seed=seed)
        return cart(cart=observation.tolist(), done=False)

    def step(self: Any, action: Any, **_: object) -> Any:
        observation, reward, terminated, truncated, _info = self.env.step(action.push)
        return cart(cart=observation.tolist(), reward=reward, done=terminated or truncated)

    environment = type(
        "CartPole",
        (interfaces.Environment,),
        {
            "__init__": init,
            "reset": reset,
            "step": step,
            "state": property(lambda _: types.State()),
            "SUPPORTS_CONCURRENT_SESSIONS": True,
        },
    )
    return http_server.create_fastapi_app(environment, push, cart, max_concurrent_envs=sessions)


def _serve(sessions: int = 1, sleep_s: float | None = None) -> None:
    uvicorn = import_module("uvicorn")
    listening = socket.create_server(("127.0.0.1", 0), backlog=max(128, sessions))
    app = _app(sessions, sleep_s)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))

    def tell_when_ready() -> None:
        while not server.started:
            time.sleep(0.01)
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)

    threading.Thread(target=tell_when_ready, daemon=True).start()
    server.run(sockets=[listening])


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:2]), *map(float, sys.argv[2:3]))
