"""A connection to a broker for an event loop: nothing blocks, and what waits is bounded."""

from __future__ import annotations

from typing import Any, cast

import zmq

from gymwire.protocol.transport.backlog import Backlog
from gymwire.protocol.transport.dealer import KEEP, Dealer
from gymwire.protocol.transport.interface import Delivery


class LoopDealer(Dealer):
    """A `Dealer` whose `descriptor` an event loop watches.

    The descriptor only signals changes: after it has, and after each `offer`, receive until there
    is nothing left.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._backlog = Backlog()

    @property
    def descriptor(self) -> int:
        """A descriptor that becomes readable once on new input."""
        return cast(int, self._socket.getsockopt(zmq.FD))

    def offer(self, frame: bytes) -> Delivery:
        """Send one frame now or not at all.

        FULL: too many frames, or too many bytes, wait for the broker. UNREACHABLE: there may be no
        connection.
        """
        size, mark = len(frame), None
        if size >= KEEP and not self._backlog.has_room(size):
            return Delivery.FULL
        try:
            if size < KEEP:
                self._socket.send(frame, zmq.DONTWAIT)
                return Delivery.DONE
            if self._backlog.needs_mark(size):
                marked = zmq.Frame(frame, track=True, copy=False, copy_threshold=0)
                self._socket.send(marked, zmq.DONTWAIT, copy=False, track=True)
                mark = marked.tracker
            else:
                self._socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return Delivery.UNREACHABLE
        self._backlog.sent(size, mark)
        return Delivery.DONE

    def take(self) -> bytes | None:
        """Return the next frame, or None if there is none."""
        try:
            return self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None
