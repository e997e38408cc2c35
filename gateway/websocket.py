"""The door /ws: agents that speak the protocol over a WebSocket (docs/protocol.md §3.12).

One binary message is one frame. Each WebSocket has a connection of its own to the broker, with the
key of its visitor, and the gateway reads no frame. So the broker sees a peer like any other, and
applies its limits to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from functools import partial

import structlog
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from gymwire.gateway.access import visitor_of
from gymwire.gateway.app import Gateway
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.messages import Busy, BusyReason
from gymwire.protocol.transport.interface import Delivery
from gymwire.protocol.transport.loop_dealer import LoopDealer

SUBPROTOCOL = "gymwire"
MAX_WAITING = 64 * 1024 * 1024  # bytes for a peer that does not read; a larger frame waits alone
MAX_FRAMES = 1000  # that wait for it
CONNECT_S = 2.5  # how long the broker may take to answer a new connection
TICK_S = 0.25  # between two checks of the connection to the broker
RETRY_S = 0.02  # between two attempts to pass on a frame that the broker does not take
GIVE_UP_S = 1.0  # when such a frame is dropped
LINGER_S = 1.0  # that the last frame of a peer, such as BYE, has to reach the broker
_HELLO = bytes(PLAIN.encode(Busy(BusyReason.HELLO, 0.0)))
_UNSUPPORTED, _RESTART = 1003, 1012  # reasons for closing (RFC 6455 §7.4)


def routes(gateway: Gateway) -> Sequence[BaseRoute]:
    """Return the routes of this door."""
    return [WebSocketRoute("/ws", partial(_connect, gateway))]


async def _connect(gateway: Gateway, websocket: WebSocket) -> None:
    """Connect a WebSocket with the broker until one of them ends."""
    visitor = visitor_of(websocket)
    server_key = gateway.broker_key if visitor.key is not None else None
    try:
        dealer = LoopDealer(gateway.broker, key=visitor.key, server_key=server_key)
    except GymwireError as error:
        await _refuse(websocket, str(error))
        return
    try:
        why = await _connected(dealer)
        if why:
            structlog.get_logger().warning("no broker for a peer", peer=visitor.name, why=why)
            await _refuse(websocket, f"No broker answers at {gateway.broker}: {why}")
            return
        offered = websocket.scope.get("subprotocols", ())
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        structlog.get_logger().info("peer connected", peer=visitor.name)
        await _Peer(websocket, dealer).run()
        structlog.get_logger().info("peer disconnected", peer=visitor.name)
    finally:
        dealer.close(LINGER_S)


async def _refuse(websocket: WebSocket, text: str) -> None:
    await websocket.send_denial_response(PlainTextResponse(f"{text}\n", 503))


async def _connected(dealer: LoopDealer) -> str:
    """Wait until the broker has accepted the connection; return why it has not, or ""."""
    until = asyncio.get_running_loop().time() + CONNECT_S
    while True:
        for event in dealer.link_events():
            if event.up:
                return ""
            if event.denied:
                return event.denied
        if asyncio.get_running_loop().time() > until:
            return dealer.handshake_hint or f"timed out after {CONNECT_S:g} s."
        await asyncio.sleep(RETRY_S)


class _Peer:
    """One WebSocket and its connection to the broker."""

    def __init__(self, websocket: WebSocket, dealer: LoopDealer) -> None:
        self._websocket = websocket
        self._dealer = dealer
        self._frames: deque[bytes] = deque()  # for the WebSocket
        self._waiting = 0  # their bytes
        self._has_frames = asyncio.Event()

    async def run(self) -> None:
        """Pass frames on in both directions until the WebSocket ends."""
        loop, descriptor = asyncio.get_running_loop(), self._dealer.descriptor
        loop.add_reader(descriptor, self._receive)
        tasks = [asyncio.ensure_future(one) for one in (self._read(), self._write(), self._tick())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(descriptor)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            if not task.cancelled():
                task.result()

    async def _read(self) -> None:
        """Pass on what the peer sends; stop reading while the broker does not take it."""
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                frame = message.get("bytes")
                if frame is None:
                    await self._websocket.close(_UNSUPPORTED, "Send binary messages.")
                    return
                await self._pass_on(frame)

    async def _pass_on(self, frame: bytes) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + GIVE_UP_S
        while self._dealer.offer(frame) is not Delivery.DONE and loop.time() < until:
            await asyncio.sleep(RETRY_S)  # later the frame is lost, which §3.5 allows
        self._receive()

    async def _write(self) -> None:
        """Send the peer what the broker sends, as fast as it reads."""
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await self._has_frames.wait()
                frame = self._frames[0]
                await self._websocket.send_bytes(frame)
                self._frames.popleft()
                self._waiting -= len(frame)
                if not self._frames:
                    self._has_frames.clear()

    async def _tick(self) -> None:
        """Watch the connection to the broker.

        A new one needs HELLO: the gateway asks for it as the broker would. ZeroMQ reconnects under
        the same routing id, so the broker knows the peer again.
        """
        while True:
            await asyncio.sleep(TICK_S)
            for event in self._dealer.link_events():
                if event.denied:  # its key is not in the policy anymore
                    await self._websocket.close(_RESTART, event.denied[:100])
                    return
                if event.up:
                    self._keep(_HELLO)
            self._receive()

    def _receive(self) -> None:
        """Keep all frames of the broker that have arrived for the peer."""
        while (frame := self._dealer.take()) is not None:
            self._keep(frame)

    def _keep(self, frame: bytes) -> None:
        """Keep a frame for the peer, or drop it if too much waits already (§3.5)."""
        size = len(frame)
        full = self._waiting + size > MAX_WAITING or len(self._frames) >= MAX_FRAMES
        if full and self._frames:
            return
        self._frames.append(frame)
        self._waiting += size
        self._has_frames.set()
