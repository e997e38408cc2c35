"""The list of all doors."""

from __future__ import annotations

from gymwire.gateway import metrics, page, websocket
from gymwire.gateway.app import Door

DOORS: tuple[Door, ...] = (page.routes, metrics.routes, websocket.routes)
