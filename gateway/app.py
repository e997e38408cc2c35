"""The web application: the doors, and what they share.

A door is a module with one function `routes(gateway)`. To add one, write its module and add the
function to `DOORS`. A mounted application with a method `aclose` is closed with the gateway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gymwire.gateway.access import Access, Guard


@dataclass(frozen=True, slots=True)
class Gateway:
    """What every door may use.

    `broker`: the broker's URL. `broker_key`: its public key, or None without keys. `access`: who
    may do what; `access.visitor_of(request).key` is the key to connect to the broker with.
    """

    broker: str
    broker_key: bytes | None
    access: Access


Door = Callable[[Gateway], Sequence[BaseRoute]]
DOORS: tuple[Door, ...] = ()


def make_app(gateway: Gateway, doors: Sequence[Door] = DOORS) -> ASGIApp:
    """Return the application with these doors behind the gateway's access."""
    routes: list[BaseRoute] = [Route("/healthz", _health), *gateway.access.routes()]
    for door in doors:
        routes += door(gateway)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for route in routes:
                close = getattr(getattr(route, "app", None), "aclose", None)
                if close is not None:
                    stack.push_async_callback(close)
            yield

    return Guard(Starlette(routes=routes, lifespan=lifespan), gateway.access)


async def _health(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})
