"""Waiting for several transports at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import zmq

from gymwire.protocol.errors import EnvironmentClosed
from gymwire.protocol.transport.interface import Waitable

# Plain integers: pyzmq takes longer to convert its enums.
EVENTS, POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)


def wait_among(sockets: Sequence[Waitable], timeout_s: float) -> list[int]:
    """Wait until some sockets have input; return their indices.

    `timeout_s`: how long to wait at most, rounded up to whole milliseconds: rounded down, a caller
    that waits for less than one would compute until then.

    Raises EnvironmentClosed if a signal handler closes one of them meanwhile.
    """
    buffered = [i for i, socket in enumerate(sockets) if socket.has_buffered]
    if len(buffered) == len(sockets):
        return buffered
    # The others, too: what is buffered may be a part of a frame whose rest never comes.
    timeout_ms = 0 if buffered else math.ceil(timeout_s * 1000)
    polled = [(socket.waitable, POLLIN) for socket in sockets]
    try:
        ready = [socket for socket, _ in zmq.zmq_poll(polled, timeout=timeout_ms)]
    except zmq.ZMQError as error:
        if error.errno != zmq.ENOTSOCK:
            raise
        raise EnvironmentClosed("A connection was closed while it was waited for.") from None
    if not (ready or buffered):
        return []
    return [i for i, (socket, _) in enumerate(polled) if socket in ready or i in buffered]
