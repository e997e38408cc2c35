"""OpenEnv servers in front of addresses: `gymwire web --openenv ADDRESS`.

The server of an address is at `/openenv/ADDRESS`. It is OpenEnv's own (`openenv.core.env_server`);
here are only the environments that it makes, one for each WebSocket, and the models of their
messages. An action is `{"action": …}` and an observation `{"observation": …}`, in the JSON of
`gymwire.protocol.json_values`. OpenEnv's `done` is terminated or truncated; both are in the
metadata, with the info.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from gymnasium import Space
from openenv.core.env_server import http_server, interfaces, types
from pydantic import WithJsonSchema, create_model
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp

from gymwire.gateway.app import Door, Gateway
from gymwire.gateway.proxies import act, open_proxy, spaces_at
from gymwire.gateway.tokens import Visitor
from gymwire.gateway.visitor_apps import VisitorApps
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.protocol.errors import GymwireError, ResetNeeded, UsageError
from gymwire.protocol.json_values import JsonMismatch, from_json, schema_of, to_json

# How requests over HTTP are answered that fail with these errors.
_STATUSES: dict[type[Exception], int] = {JsonMismatch: 422, UsageError: 409, GymwireError: 502}


def door(addresses: Sequence[str]) -> Door:
    """Return the door with an OpenEnv server for each of these addresses."""

    def routes(gateway: Gateway) -> list[BaseRoute]:
        return [Mount(f"/openenv/{one}", app=_server(gateway, one)) for one in addresses]

    return routes


def _server(gateway: Gateway, address: str) -> ASGIApp:
    async def make(visitor: Visitor) -> ASGIApp:
        return await asyncio.to_thread(_make_app, gateway, address, visitor)

    return VisitorApps(make)


def _make_app(gateway: Gateway, address: str, visitor: Visitor) -> ASGIApp:
    """Return OpenEnv's application for an address. Raises what `spaces_at` raises."""
    observation, action, _ = spaces_at(gateway, visitor, address)

    class Served(_ProxyEnvironment):
        actions = action
        observed = _model("Observation", types.Observation, "observation", observation)

        def open(self) -> ProxyEnv:
            return open_proxy(gateway, visitor, address)

        def get_metadata(self) -> Any:
            about = f"The environment at the gymwire address {address}"
            return types.EnvironmentMetadata(name=address, description=about)

    made = http_server.create_fastapi_app(
        Served,
        _model("StepAction", types.Action, "action", action),
        Served.observed,
        max_concurrent_envs=gateway.share,
        env_name=address,
    )
    for kind, status in _STATUSES.items():
        made.add_exception_handler(kind, partial(_answer, status))
    app: ASGIApp = made
    return app


async def _answer(status: int, _: Request, error: Exception) -> Response:
    """Answer an HTTP request that has failed; the WebSocket's errors are OpenEnv's own."""
    return JSONResponse({"detail": str(error)}, status)


# Not named Action: verifiers takes a schema with this title for that of a server with MCP tools.
def _model(name: str, base: Any, field: str, space: Space[Any]) -> Any:
    value = Annotated[Any, WithJsonSchema(schema_of(space))]
    return create_model(name, __base__=base, **{field: (value, ...)})


class _ProxyEnvironment(interfaces.Environment):
    """An environment of OpenEnv over a proxy, which is opened by the first request."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    actions: Space[Any]
    observed: Any

    def __init__(self) -> None:
        super().__init__()
        self._proxy: ProxyEnv | None = None
        self._episode_id: str | None = None
        self._steps = 0

    def open(self) -> ProxyEnv:
        """Open the proxy."""
        raise NotImplementedError

    def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> Any:
        """Start an episode. Further fields of the request are the options of Gymnasium's reset."""
        if self._proxy is None:
            self._proxy = self.open()
        observation, info = self._proxy.reset(seed=seed, options=options or None)
        self._episode_id, self._steps = episode_id, 0
        rest = {"terminated": False, "truncated": False, "info": to_json(info)}
        return self._observation(observation, rest)

    def step(self, action: Any, timeout_s: float | None = None, **_: Any) -> Any:
        """Run one step."""
        if self._proxy is None:
            from_json(self.actions, action.action, "action")
            raise ResetNeeded(
                "Send a reset before the first step, over the same WebSocket (/ws): requests to "
                "/reset and /step share no episode."
            )
        observation, rest = act(self._proxy, action.action)
        self._steps += 1
        return self._observation(observation, rest)

    @property
    def state(self) -> Any:
        """The episode and the number of its steps."""
        return types.State(episode_id=self._episode_id, step_count=self._steps)

    def close(self) -> None:
        """Close the session."""
        if self._proxy is not None:
            self._proxy.close()

    def _observation(self, value: Any, rest: dict[str, Any]) -> Any:
        # NaN and infinite rewards are texts here, and stay in the metadata.
        is_number = isinstance(rest.get("reward"), int | float)
        reward = float(rest.pop("reward")) if is_number else None
        return self.observed.model_construct(
            observation=to_json(value),
            done=rest["terminated"] or rest["truncated"],
            reward=reward,
            metadata=rest,
        )
