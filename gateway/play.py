"""Playing an environment by hand: one WebSocket of JSON is one session.

The page sends `{"reset": {"seed": 1}}` or `{"act": ACTION}`. Each answer has the observation, the
frame if the environment renders, and after a step also reward, terminated and truncated; or an
`error`. The first answer has the JSON Schema of the action space.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from gymwire.gateway.access import visitor_of
from gymwire.gateway.app import Gateway
from gymwire.gateway.pictures import data_url, png, render_mode
from gymwire.gateway.proxies import Player, act, open_proxy, spaces_at
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.json_values import JsonMismatch, parsed, schema_of, to_json

UNSUPPORTED = 1003  # the reason for closing after a message of bytes (RFC 6455 §7.4)


async def play(gateway: Gateway, socket: WebSocket) -> None:
    """Play at the address in the query of the WebSocket, until it ends."""
    visitor = visitor_of(socket)
    address = socket.query_params.get("address", "")

    def open_() -> ProxyEnv:
        *_, metadata = spaces_at(gateway, visitor, address)
        return open_proxy(gateway, visitor, address, render_mode=render_mode(metadata))

    await socket.accept()
    player = Player(open_)
    try:
        await socket.send_json(await _answer(player, _describe))
        while (message := await socket.receive())["type"] == "websocket.receive":
            text = message.get("text")
            if text is None:
                await socket.close(UNSUPPORTED, "Send text messages.")
                return
            await socket.send_json(await _answer(player, partial(_do, text)))
    except WebSocketDisconnect:
        return
    finally:
        await player.close()


async def _answer(player: Player, use: Any) -> Any:
    try:
        return await player.run(use)
    except (GymwireError, JsonMismatch) as error:
        return {"error": str(error)}


def _describe(env: ProxyEnv) -> dict[str, Any]:
    return {"action": schema_of(env.action_space), "space": str(env.action_space)}


def _do(text: str, env: ProxyEnv) -> dict[str, Any]:
    match parsed(text):
        case {"reset": dict(given)}:
            observation, info = env.reset(seed=given.get("seed"))
            reply: dict[str, Any] = {"step": 0, "info": to_json(info)}
        case {"act": given}:
            observation, reply = act(env, given)
        case _:
            raise JsonMismatch('A request is {"reset": {"seed": …}} or {"act": …}.')
    return reply | _shown(env, observation)


def _shown(env: ProxyEnv, observation: Any) -> dict[str, Any]:
    reply: dict[str, Any] = {}
    picture = png(observation)
    if picture is None:
        reply["observation"] = to_json(observation)
    else:
        reply["frame"] = data_url(picture)
    if env.render_mode is not None:
        frame = env.render()
        picture = png(frame)
        if picture is None:
            reply["text"] = str(frame)
        else:
            reply["frame"] = data_url(picture)
    return reply
