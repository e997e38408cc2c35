"""CartPole served by OpenEnv: its FastAPI server under uvicorn, its WebSocket client.

    python -m benchmarks.peer_openenv      (the server)

The names of OpenEnv are looked up as the program runs, since it is an extra.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import gymnasium

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


def _app() -> Any:
    create_model = import_module("pydantic").create_model
    interfaces = import_module("openenv.core.env_server.interfaces")
    types = import_module("openenv.core.env_server.types")
    http_server = import_module("openenv.core.env_server.http_server")
    push = create_model("Push", __base__=types.Action, push=(int, ...))
    cart = create_model("Cart", __base__=types.Observation, cart=(list[float], ...))

    def init(self: Any) -> None:
        interfaces.Environment.__init__(self)
        self.env = gymnasium.make(ENV_ID)

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
        },
    )
    return http_server.create_fastapi_app(environment, push, cart)


def _serve() -> None:
    uvicorn = import_module("uvicorn")
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(_app(), log_level="warning"))

    def tell_when_ready() -> None:
        while not server.started:
            time.sleep(0.01)
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)

    threading.Thread(target=tell_when_ready, daemon=True).start()
    server.run(sockets=[listening])


if __name__ == "__main__":
    _serve()
