"""Waiting for several transports at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

from gymwire.protocol.transport.interface import Waitable


def wait_among(sockets: Sequence[Waitable], timeout_s: float) -> list[int]:
    """Wait at most `timeout_s` until some sockets have input; return their indices."""
    buffered = [i for i, socket in enumerate(sockets) if socket.has_buffered]
    if buffered:
        return buffered
    polled = [(socket.waitable, zmq.POLLIN) for socket in sockets]
    ready = {_key(socket) for socket, _ in zmq.zmq_poll(polled, timeout=int(timeout_s * 1000))}
    return [i for i, (socket, _) in enumerate(polled) if _key(socket) in ready]


def _key(polled: Any) -> int:
    """Identify a polled object: libzmq returns a descriptor as a new int, a socket as itself."""
    return polled if isinstance(polled, int) else id(polled)
