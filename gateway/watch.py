"""Watching a session: one WebSocket of JSON is one watcher, with a connection to the broker.

The page sends `{"after": N}`, where N is the `request` of its last frame, first 0, and, for another
environment of a vector than the first, its number as `env`. Each message gets one answer: `request`
with a `frame` or a `text`; no `request` if there is nothing new; `waiting` if the environment has
been busy for a while; or an `error`. `envs` is the number of environments of a vector.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from gymwire.gateway.access import visitor_of
from gymwire.gateway.app import Gateway
from gymwire.gateway.pictures import data_url
from gymwire.gateway.proxies import OwnThread
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.observing import watch_session
from gymwire.protocol.errors import ConfigurationError, GymwireError, RequestTimeout
from gymwire.protocol.json_values import JsonMismatch, parsed
from gymwire.protocol.process_ids import SESSION_ID

ANSWER_S = 2.0  # how long to wait for a frame before the answer is `waiting`


async def watch(gateway: Gateway, socket: WebSocket) -> None:
    """Show the session that the query of the WebSocket names, until the page closes it."""
    session = socket.query_params.get("session", "")
    await socket.accept()
    watcher = OwnThread(partial(gateway.connect, visitor_of(socket)))
    try:
        while True:
            text = await socket.receive_text()
            await socket.send_json(await _answer(watcher, session, text))
    except WebSocketDisconnect:
        return
    finally:
        await watcher.close()


async def _answer(watcher: OwnThread[BrokerConnection], session: str, text: str) -> dict[str, Any]:
    try:
        sid, (after, env) = _sid_of(session), _request_of(text)
        frame = await watcher.run(
            lambda connection: watch_session(connection, sid, after, ANSWER_S, env=env)
        )
    except RequestTimeout:
        return {"waiting": True}
    except (GymwireError, JsonMismatch) as error:
        return {"error": str(error)}
    answer: dict[str, Any] = {"envs": frame.envs} if frame.envs else {}
    match frame.media_type:
        case "image/png":
            answer |= {"request": frame.request, "frame": data_url(frame.data)}
        case "text/plain":
            text = frame.data.decode("utf-8", "replace")
            answer |= {"request": frame.request, "text": text}
    return answer


def _sid_of(session: str) -> int:
    if len(session) != SESSION_ID or not set(session) <= set("0123456789abcdef"):
        raise ConfigurationError(f"{session!r:.50} is not the id of a session.")
    return int.from_bytes(bytes.fromhex(session))


def _request_of(text: str) -> tuple[int, int]:
    match parsed(text):
        case {"after": int(after), **rest} if 0 <= after < 2**53:
            env = rest.get("env", 0)
            if type(env) is int and 0 <= env < 2**31:
                return after, env
    raise ConfigurationError('A request is {"after": NUMBER} or {"after": NUMBER, "env": NUMBER}.')
