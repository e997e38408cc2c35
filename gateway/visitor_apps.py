"""Applications in front of an address that speak for one visitor each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from gymwire.gateway.access import visitor_of
from gymwire.gateway.limits import refuse
from gymwire.gateway.tokens import Visitor
from gymwire.protocol.errors import GymwireError


class VisitorApps:
    """An application that passes each request to that of its visitor.

    Args:
        make: makes a visitor's application, when it is first needed; it may raise GymwireError.
    """

    def __init__(self, make: Callable[[Visitor], Awaitable[ASGIApp]]) -> None:
        self._make = make
        self._apps: dict[str, ASGIApp] = {}
        self._making: dict[str, asyncio.Lock] = {}  # one each: a visitor may have to wait long

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        try:
            app = await self._app(visitor_of(HTTPConnection(scope)))
        except GymwireError as error:
            await refuse(scope, receive, send, 503, str(error))
            return
        await app(scope, receive, send)

    async def _app(self, visitor: Visitor) -> ASGIApp:
        async with self._making.setdefault(visitor.name, asyncio.Lock()):
            if visitor.name not in self._apps:
                self._apps[visitor.name] = await self._make(visitor)
        return self._apps[visitor.name]
