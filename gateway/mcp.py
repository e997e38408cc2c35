"""Environments as tools of language models: `gymwire web --mcp ADDRESS`.

The MCP server of an address is at `/mcp/ADDRESS` (streamable HTTP). Each client has a session of
its own, from its first tool call until it ends its MCP session or is idle for half an hour. Values
are in the JSON of `gymwire.protocol.json_values`; frames and observations that are pictures are
images.
"""

# No `from __future__ import annotations`: the SDK reads the annotations of the tools.

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Annotated, Any

import anyio
import structlog
from gymnasium import Space
from mcp.server.fastmcp import Context, FastMCP, Image
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import WithJsonSchema
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp

from gymwire.gateway import proxies
from gymwire.gateway.app import Door, Gateway
from gymwire.gateway.pictures import png, render_mode
from gymwire.gateway.proxies import Player, open_proxy, spaces_at
from gymwire.gateway.tokens import Visitor
from gymwire.gateway.visitor_apps import VisitorApps
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.protocol.json_values import schema_of, to_json

MAX_WHY = 300  # characters
_LOST = (ClientDisconnect, anyio.BrokenResourceError, anyio.ClosedResourceError)


class SdkLog(logging.Handler):
    """Writes what the SDK reports to the log of gymwire: one line, without a traceback.

    A client that disconnects is not an error.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        error = record.exc_info[1] if record.exc_info else None
        why = "" if error is None else f"{type(error).__name__}: {error}"
        log = structlog.get_logger()
        write = log.debug if _is_lost(error) else log.warning
        write("mcp request failed", text=record.getMessage()[:MAX_WHY], why=why[:MAX_WHY])


def _is_lost(error: BaseException | None) -> bool:
    """Return whether an exception says no more than that the client has gone."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_lost, error.exceptions))
    return isinstance(error, _LOST)


def door(addresses: Sequence[str]) -> Door:
    """Return the door with an MCP server for each of these addresses."""
    sdk = logging.getLogger("mcp")
    sdk.handlers, sdk.propagate = [SdkLog(logging.ERROR)], False

    def routes(gateway: Gateway) -> list[BaseRoute]:
        return [Mount(f"/mcp/{one}", app=_Servers(gateway, one)) for one in addresses]

    return routes


class _Servers(VisitorApps):
    """The MCP servers of an address, one for each visitor, each with a task that runs it."""

    def __init__(self, gateway: Gateway, address: str) -> None:
        super().__init__(self._start)
        self._gateway, self._address = gateway, address
        self._tasks: list[asyncio.Task[None]] = []

    async def _start(self, visitor: Visitor) -> ASGIApp:
        found = await asyncio.to_thread(spaces_at, self._gateway, visitor, self._address)
        server = _make_server(self._gateway, self._address, visitor, *found)
        app: ASGIApp = server.streamable_http_app()
        running: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks.append(asyncio.create_task(_run(server, running)))
        await running
        return app

    async def aclose(self) -> None:
        """End all sessions."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _run(server: FastMCP[Player], running: asyncio.Future[None]) -> None:
    async with server.session_manager.run():
        running.set_result(None)
        await asyncio.Event().wait()


def _make_server(
    gateway: Gateway,
    address: str,
    visitor: Visitor,
    observation: Space[Any],
    action: Space[Any],
    metadata: dict[str, Any],
) -> FastMCP[Player]:
    """Return the MCP server of an address."""
    mode = render_mode(metadata)
    open_ = partial(open_proxy, gateway, visitor, address, render_mode=mode)
    server: FastMCP[Player] = FastMCP(
        f"gymwire {address}",
        instructions=(
            f"An environment for reinforcement learning, at the gymwire address {address}. Call "
            f"reset first, then act until terminated or truncated is true, then reset again. "
            f"Observations have this JSON Schema: {schema_of(observation)}"
        ),
        lifespan=lambda _: _player(open_),
        streamable_http_path="/",
        log_level="ERROR",
        max_sessions=gateway.share,
        # The guard of the gateway has checked Host, Origin and the token.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    _add_tools(server, action, mode)
    return server


@contextlib.asynccontextmanager
async def _player(open_: Callable[[], ProxyEnv]) -> AsyncIterator[Player]:
    """Hold the player of one client: the server enters this once for each MCP session."""
    player = Player(open_)
    try:
        yield player
    finally:
        await player.close()


def _add_tools(server: FastMCP[Player], action_space: Space[Any], mode: str | None) -> None:
    @server.tool()
    async def reset(
        ctx: Context[Any, Player], seed: int | None = None, options: dict[str, Any] | None = None
    ) -> Any:
        """Start an episode. The same seed gives the same episode for the same actions."""

        def use(env: ProxyEnv) -> Any:
            observation, info = env.reset(seed=seed, options=options)
            return _shown(observation, {"info": to_json(info)})

        return await _player_of(ctx).run(use)

    @server.tool()
    async def act(
        ctx: Context[Any, Player],
        action: Annotated[Any, WithJsonSchema(schema_of(action_space))],
    ) -> Any:
        """Run one step of the episode with this action."""

        def use(env: ProxyEnv) -> Any:
            return _shown(*proxies.act(env, action))

        return await _player_of(ctx).run(use)

    @server.tool()
    async def call(
        ctx: Context[Any, Player],
        name: str,
        args: list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call an exposed method of the environment, or read an exposed attribute.

        An unknown name is an error that lists the exposed ones.
        """

        def use(env: ProxyEnv) -> Any:
            # getattr would also find what the proxy itself has: __init__, its keys, its token.
            found = env._attributes.get_exposed(name)  # noqa: SLF001
            value = found(*(args or ()), **(kwargs or {})) if callable(found) else found
            return {"value": to_json(value)}

        return await _player_of(ctx).run(use)

    if mode is not None:

        @server.tool()
        async def render(ctx: Context[Any, Player]) -> Any:
            """Show the environment as it is now."""
            return await _player_of(ctx).run(lambda env: _frame(env.render()))


def _player_of(ctx: Context[Any, Player]) -> Player:
    player: Player = ctx.request_context.lifespan_context
    return player


def _shown(observation: Any, rest: dict[str, Any]) -> Any:
    """Return what a tool returns for an observation: a picture as an image, before the rest."""
    picture = png(observation)
    if picture is not None:
        return [Image(data=picture, format="png"), rest]
    return {"observation": to_json(observation), **rest}


def _frame(frame: Any) -> Any:
    picture = png(frame)
    return str(frame) if picture is None else Image(data=picture, format="png")
