"""What every transport offers: `Transport` on the dialing side, `Listener` on the other.

A transport carries whole frames between two processes, in order, and loses them only together with
the connection. docs/protocol.md §3.4 and §9.6 say what each implementation puts on the wire.
`registry.py` holds the table of the implementations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import zmq

from gymwire.protocol.codec import Frame

TICK_MS = 100  # how long a blocking receive blocks, so that timers get their turn
SEND_ALL_S = 1.0  # how long `Transport.send_all` waits for room at most

Origin = zmq.Frame
"""What libzmq knows about a received frame; see `router.fd_of` and `router.public_key_of`."""

Received = tuple[bytes, Origin | None, bytes | memoryview]
"""The sender's routing id, the frame's origin (None: not received by ZeroMQ), and its bytes."""


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """A connection was made (`up`) or lost.

    Attributes:
        fd: the connection's file descriptor, as `router.fd_of` returns it, or -1.
        denied: why the other side refuses this connection, as a clause whose subject "it" is the
            other side; "" if it does not.
    """

    up: bool
    fd: int
    denied: str = ""


class Delivery(Enum):
    """The result of sending a frame from a listener."""

    DONE = "done"
    UNREACHABLE = "unreachable"  # the peer is not connected
    FULL = "full"  # the peer's queue is full, because the peer does not read


class Waitable(Protocol):
    """Something that `polling.wait_among` can wait for."""

    @property
    def has_buffered(self) -> bool:
        """Whether a frame may be buffered here, where a poll of `waitable` does not see it."""

    @property
    def waitable(self) -> Any:
        """A ZeroMQ socket or a file descriptor to poll for input."""


class Transport(Waitable, Protocol):
    """One connection, made by the side that dials. It reconnects without help.

    Use it from one thread.
    """

    @property
    def has_frame(self) -> bool:
        """Whether a whole frame is buffered, which `receive` returns without waiting."""

    @property
    def takes_pieces(self) -> bool:
        """Whether `send` also accepts `Pieces`."""

    @property
    def url(self) -> str:
        """The URL that was dialed."""

    @property
    def handshake_hint(self) -> str:
        """Why the other side may be closing each handshake, as `LinkEvent.denied`; else ""."""

    def send(self, frame: Frame, wait: bool = False) -> bool:
        """Send one frame: now, or with `wait` within a tick.

        Returns False, and drops the frame, if there is no connection or its queue is full.
        """

    def send_all(self, frames: Sequence[Frame], wait: bool = False) -> bool:
        """Send several frames in order, as `send` does, if possible with fewer calls of the kernel.

        With `wait`, it waits up to SEND_ALL_S for room in the queue of a connection. Returns False
        if a frame was dropped; the others may be dropped then, too.
        """

    def receive(self) -> bytes | memoryview | None:
        """Return the next frame, or None after a tick without one."""

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Return whether a frame, or a part of one, arrives within `timeout_s`."""

    def link_events(self) -> list[LinkEvent]:
        """Return the connections made and lost since the last call."""

    @property
    def signals(self) -> Sequence[Waitable] | None:
        """What has input if `receive` or `link_events` has news; None: call them regularly."""

    def close(self, linger_s: float = 0.0) -> None:
        """Close the connection. Frames sent last have `linger_s` seconds to leave."""


class Listener(Waitable, Protocol):
    """A listening socket with any number of peers, each known by a routing id. Sends never block.

    Use it from one thread.
    """

    @property
    def takes_pieces(self) -> bool:
        """Whether `send` also accepts `Pieces`."""

    urls: list[str]
    """The URLs that it listens at."""

    @property
    def mark(self) -> int:
        """The first byte of the routing ids that it makes; -1: peers choose theirs themselves."""

    def receive(self, wait: bool = True) -> Received | None:
        """Return the next frame, or None after a tick (without `wait`: at once) without one."""

    def send(self, rid: bytes, frame: Frame | memoryview) -> Delivery:
        """Send one frame to the peer with this routing id, now or not at all."""

    @property
    def signals(self) -> Sequence[Waitable] | None:
        """What has input if there is something to do; None: call all methods regularly."""

    def close(self, linger_s: float = 0.0) -> None:
        """Close all connections. Frames sent last have `linger_s` seconds to leave."""
