"""The list of all doors."""

from __future__ import annotations

from gymwire.gateway import websocket
from gymwire.gateway.app import Door

DOORS: tuple[Door, ...] = (websocket.routes,)
