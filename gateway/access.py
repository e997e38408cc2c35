"""The one place that decides who may use the gateway, before any door sees a request.

Without tokens only programs of this host can reach the gateway, and a page of another site in a
browser of this host cannot use it: Host and Origin must name this host. With tokens, each request
needs one: in the header `Authorization: Bearer TOKEN`, in the WebSocket's list of subprotocols as
`gymwire.token.TOKEN`, or as the cookie that /login sets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from gymwire.gateway.tokens import Visitor, find, find_by_cookie
from gymwire.protocol.address import is_local

PUBLIC = ("/healthz", "/login")  # paths that need no token
COOKIE = "gymwire"
STREAM = "text/event-stream"
TOKEN_PROTOCOL = "gymwire.token."
_SAFE = ("GET", "HEAD")
# Pages load nothing from elsewhere, and no page of another site shows them in a frame.
_POLICY = b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'"
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>gymwire</title>
<meta name="viewport" content="width=device-width"><style>:root{{color-scheme:light dark}}
body{{font-family:system-ui;margin:3rem auto;max-width:24rem;padding:0 1rem}}</style>
<h1>gymwire</h1><form method="post"><p>{}</p><label>Token <input name="token" type="password"
autocomplete="current-password" required></label> <button>Sign in</button></form></html>"""


class Access:
    """Who may use the gateway.

    `visitors`: those with tokens; empty: everyone on this host is `local`. `origins`: other
    origins, such as http://127.0.0.1:8000, whose pages may use the gateway.
    """

    def __init__(
        self, visitors: Sequence[Visitor], local: Visitor, origins: Collection[str] = ()
    ) -> None:
        self._visitors = tuple(visitors)
        self._local = local
        self._origins = frozenset(one.lower().rstrip("/") for one in origins)

    @property
    def visitors(self) -> int:
        """How many visitors there may be."""
        return max(1, len(self._visitors))

    def visitor(self, request: HTTPConnection) -> Visitor | None:
        """Return who has sent this request; None if it has no valid token."""
        if not self._visitors:
            return self._local
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return find(token.strip(), self._visitors)
        for protocol in request.scope.get("subprotocols", ()):
            if protocol.startswith(TOKEN_PROTOCOL):
                return find(protocol.removeprefix(TOKEN_PROTOCOL), self._visitors)
        cookie = request.cookies.get(COOKIE)
        return None if cookie is None else find_by_cookie(cookie, self._visitors)

    def objection(self, request: HTTPConnection) -> str:
        """Return why a request is refused for every sender, as a sentence; "" if it is not."""
        host = request.headers.get("host", "").lower()
        if not self._visitors and not is_local(
            f"tcp://{host if _has_port(host) else f'{host}:80'}"
        ):
            # The name of another site may resolve to this host (DNS rebinding).
            return f"Without tokens, this gateway answers to names of this host only, not {host!r}."
        origin = request.headers.get("origin")
        may_change = request.scope["type"] == "websocket" or request.scope["method"] not in _SAFE
        if origin is None or not may_change or origin.lower() in self._origins:
            return ""
        with contextlib.suppress(ValueError):  # of an origin that is no URL
            if urlsplit(origin.lower()).netloc == host:
                return ""
        return (
            f"A page of {origin} may not use this gateway. Its operator can allow it with "
            f"--origin {origin}"
        )

    def routes(self) -> list[Route]:
        """Return the routes with which a browser exchanges a token for a cookie."""
        return [Route("/login", self._login, methods=["GET", "POST"])]

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(_LOGIN.format("This gateway needs a token."))
        body = await request.body()
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        visitor = find(given.strip(), self._visitors)
        if visitor is None:
            return HTMLResponse(_LOGIN.format("This token is not valid."), 403)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            COOKIE,
            visitor.cookie,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdecimal() and not host.endswith("]")


class Guard:
    """The application behind `access`: what is refused does not reach it.

    `visitor_of` returns the visitor of a request that does.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        refusal = self._refusal(request)
        if refusal is None:
            await self._app(scope, receive, _with_headers(request.scope, send))
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(refusal)
        else:
            await refusal(scope, receive, _with_headers(request.scope, send))

    def _refusal(self, request: HTTPConnection) -> Response | None:
        objection = self._access.objection(request)
        if objection:
            return PlainTextResponse(f"{objection}\n", 403)
        visitor = self._access.visitor(request)
        request.scope["gymwire.visitor"] = visitor
        if visitor is not None or request.scope["path"] in PUBLIC:
            return None
        if request.scope["type"] == "http" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        text = "This gateway needs a token: send the header `Authorization: Bearer TOKEN`.\n"
        return PlainTextResponse(text, 401, headers={"WWW-Authenticate": "Bearer"})


def visitor_of(request: HTTPConnection) -> Visitor:
    """Return who has sent a request that the guard has let through."""
    visitor = request.scope["gymwire.visitor"]
    assert isinstance(visitor, Visitor)
    return visitor


def _with_headers(scope: Scope, send: Send) -> Send:
    """Return a `send` that adds the headers, and notes a stream of events for the web server."""

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            if Headers(raw=message.get("headers", [])).get("content-type", "").startswith(STREAM):
                scope["gymwire.stream"] = True
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return send_more
