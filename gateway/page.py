"""The page for people: what the broker knows, live, sessions to watch, and games to play."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from gymwire.gateway.app import Gateway
from gymwire.gateway.observer import EVERY_S
from gymwire.gateway.play import play
from gymwire.gateway.watch import watch
from gymwire.learner_agent.client.observing import Observation
from gymwire.protocol.errors import GymwireError

STATIC = Path(__file__).parent / "static"


def routes(gateway: Gateway) -> list[BaseRoute]:
    """Return the routes of the page."""

    async def page(_: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def events(request: Request) -> Response:
        """Stream an observation each second, as server-sent events."""
        observer = gateway.observer_of(request)

        async def stream() -> AsyncIterator[str]:
            while not await request.is_disconnected():
                try:
                    state = await observer.latest(_as_json)
                except GymwireError as error:
                    state = json.dumps({"error": str(error)})
                yield f"data: {state}\n\n"
                await asyncio.sleep(EVERY_S)

        return StreamingResponse(stream(), media_type="text/event-stream")

    return [
        Route("/", page),
        Route("/events", events),
        WebSocketRoute("/play", partial(play, gateway)),
        WebSocketRoute("/watch", partial(watch, gateway)),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]


def _as_json(found: Observation) -> str:
    return json.dumps(found.as_json())
