"""What one visitor may cost the gateway, whichever door it uses.

The bodies of requests and the text messages of WebSockets are JSON, which is decoded on the event
loop that all visitors share. So they are bounded, and bounded together with the number of requests
and WebSockets at once. The binary messages of /ws are not decoded; `server` bounds them.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from gymwire.gateway.tokens import Visitor

MAX_OPEN = 1000  # requests and WebSockets at once, over all visitors
MAX_JSON = 1024 * 1024  # bytes of a body, characters of a text message
MAX_FORM = 4096  # bytes of the body of a request without a token, which can only use /login
BODY_S = 10.0  # how long a body may take to arrive
_TOO_BIG = 1009  # a reason for closing (RFC 6455 §7.4)


class Limits:
    """The application behind these limits. `share`: how many of MAX_OPEN a visitor may have."""

    def __init__(self, app: ASGIApp, share: int) -> None:
        self._app = app
        self._share = share
        self._open: Counter[str] = Counter()  # by the name of the visitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        visitor: Visitor | None = scope["gymwire.visitor"]
        if visitor is None:
            await self._limited(scope, receive, send, MAX_FORM)
        elif self._open[visitor.name] >= self._share:
            text = (
                f"This gateway answers at most {self._share} requests and WebSockets of a visitor"
            )
            await refuse(scope, receive, send, 503, f"{text} at once. Close some of them.")
        else:
            self._open[visitor.name] += 1
            try:
                await self._limited(scope, receive, send, MAX_JSON)
            finally:
                self._open[visitor.name] -= 1

    async def _limited(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, *_short_texts(receive, send))
            return
        try:
            async with asyncio.timeout(BODY_S):
                body = await _body(receive, most)
        except TimeoutError:
            text = f"The body of a request must arrive within {BODY_S:g} s."
            await refuse(scope, receive, send, 408, text)
            return
        if body is None:
            text = f"The body of a request may have at most {most:,} bytes here."
            await refuse(scope, receive, send, 413, text)
            return
        await self._app(scope, _again(body, receive), send)


async def _body(receive: Receive, most: int) -> bytes | None:
    """Return the body of a request; None if it is too large, or the connection is lost."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most or message["type"] == "http.disconnect":
            return None
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that returns a body that has been read, and then what follows it."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return rest.pop() if rest else await receive()

    return receive_again


def _short_texts(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Return a `receive` that ends the WebSocket at a text that is too long, and its `send`."""
    is_closed = False

    async def receive_short() -> Message:
        nonlocal is_closed
        message = await receive()
        if len(message.get("text") or "") <= MAX_JSON:
            return message
        is_closed = True
        reason = f"A text message may have at most {MAX_JSON:,} characters."
        await send({"type": "websocket.close", "code": _TOO_BIG, "reason": reason})
        return {"type": "websocket.disconnect", "code": _TOO_BIG, "reason": reason}

    async def send_if_open(message: Message) -> None:
        if not is_closed:
            await send(message)

    return receive_short, send_if_open


async def refuse(scope: Scope, receive: Receive, send: Send, status: int, text: str) -> None:
    """Refuse a request with this status and text."""
    refusal = PlainTextResponse(f"{text}\n", status)
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).send_denial_response(refusal)
    else:
        await refusal(scope, receive, send)
