"""The web application: the doors, and what they share.

A door is a module with one function `routes(gateway)`. To add one, write its module and add it to
the list in `gateway/doors.py`. A mounted application with a method `aclose` is closed with the
gateway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gymwire.gateway.access import Access, Guard, visitor_of
from gymwire.gateway.limits import MAX_OPEN, Limits
from gymwire.gateway.observer import Observer
from gymwire.gateway.tokens import Visitor
from gymwire.learner_agent.client.connection import BrokerConnection

TIMEOUT_S = 30.0  # how long the broker or an env agent may be silent


@dataclass(frozen=True, slots=True)
class Gateway:
    """What every door may use.

    `broker`: the broker's URL. `broker_key`: its public key, or None without keys. `access`: who
    may do what; `access.visitor_of(request).key` is the key to connect to the broker with.
    `observers`: by the name of the visitor.
    """

    broker: str
    broker_key: bytes | None
    access: Access
    observers: dict[str, Observer] = field(default_factory=dict)

    @property
    def share(self) -> int:
        """How many requests, WebSockets or sessions each visitor may have at once."""
        return max(1, MAX_OPEN // self.access.visitors)

    def credentials(self, visitor: Visitor) -> dict[str, Any]:
        """Return the keyword arguments with the keys of a visitor's connection to the broker."""
        key = self.broker_key
        return {"key": visitor.key, "broker_key": None if key is None else key.decode("ascii")}

    def connect(self, visitor: Visitor) -> BrokerConnection:
        """Connect to the broker for a visitor. Raises what BrokerConnection does."""
        return BrokerConnection(self.broker, timeout_s=TIMEOUT_S, **self.credentials(visitor))

    def observer_of(self, request: HTTPConnection) -> Observer:
        """Return what asks the broker for the visitor who has sent a request."""
        visitor = visitor_of(request)
        if visitor.name not in self.observers:
            self.observers[visitor.name] = Observer(partial(self.connect, visitor))
        return self.observers[visitor.name]


Door = Callable[[Gateway], Sequence[BaseRoute]]


def make_app(gateway: Gateway, doors: Sequence[Door]) -> ASGIApp:
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
            for observer in gateway.observers.values():
                await observer.aclose()

    app = Starlette(routes=routes, lifespan=lifespan)
    return Guard(Limits(app, gateway.share), gateway.access)


async def _health(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})
