"""Applications in front of an address that speak for one visitor each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from gymwire.gateway.access import visitor_of
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
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        try:
            app = await self._app(visitor_of(HTTPConnection(scope)))
        except GymwireError as error:
            app = refusal = PlainTextResponse(f"{error}\n", 503)
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(refusal)
                return
        await app(scope, receive, send)

    async def _app(self, visitor: Visitor) -> ASGIApp:
        async with self._making:
            if visitor.name not in self._apps:
                self._apps[visitor.name] = await self._make(visitor)
        return self._apps[visitor.name]
