"""Lanes: Unix sockets beside the ZeroMQ connections of peers on this host (docs/protocol.md §9.12).

Frames over a lane spare the threads of libzmq at either end. Whose lane it is shows a ticket, which
was told over the peer's ZeroMQ connection and so only to the holder of its key, if it has one.
"""

from __future__ import annotations

from collections.abc import Collection

from gymwire.broker.tables import Peer
from gymwire.protocol.codec import KIND_AT, PLAIN, Frame
from gymwire.protocol.messages import Attached, Kind
from gymwire.protocol.transport.interface import Delivery, Received
from gymwire.protocol.transport.private_folder import PrivateFolder
from gymwire.protocol.transport.router import Router
from gymwire.protocol.transport.unix import SCHEME, UnixRouter

LOOK_EVERY = 16  # frames after which ZeroMQ is looked at though the lanes never rest
MAX_LANES = 4096
MAX_ATTACH = 64  # bytes; what a connection says before it is somebody's lane


class Lanes:
    """The lanes of a broker's peers, and its way to receive over both them and ZeroMQ.

    `of`: the lane of each peer that has one, by its routing id. `owners`: routing id and key of the
    peer whose lane it is. Raises ConfigurationError.
    """

    def __init__(self, router: Router, *, max_lanes: int, max_message: int) -> None:
        self.of: dict[bytes, bytes] = {}
        self.owners: dict[bytes, tuple[bytes, bytes | None]] = {}
        self._router = router
        self._turn = 0
        self._lanes_next = False
        self._folder = PrivateFolder()
        try:
            self._unix = UnixRouter(
                f"{SCHEME}{self._folder.path}/lanes",
                ended=self._ended,
                max_message=max_message,
                max_first=MAX_ATTACH,
                max_peers=min(max_lanes, MAX_LANES),
                watched=router.descriptor,
            )
        except BaseException:
            self._folder.remove()
            raise
        self.url = self._unix.url
        self.send, self._receive_here = self._unix.send, self._unix.receive

    def receive(self) -> Received | None:
        """The next frame, or None after a tick without one. What came over a lane has no origin."""
        router = self._router
        self._turn = turn = (self._turn + 1) % LOOK_EVERY
        if (router.may_have_unsignalled_input or not turn) and router.has_input():
            # Both have something to say, it may be: they take turns.
            self._lanes_next = not self._lanes_next
            received = self._receive_here(wait=False) if self._lanes_next else None
            return router.receive() if received is None else received
        received = self._receive_here()
        if received is None and router.has_input():
            return router.receive()
        return received

    def open(self, lane: bytes, peer: Peer) -> None:
        """This is the peer's lane now, and any other of its is not any more."""
        former = self.of.get(peer.rid)
        if former is not None:
            self._unix.hang_up(former)
        self.of[peer.rid], self.owners[lane] = lane, (peer.rid, peer.key)
        self._unix.admit(lane)
        self._unix.send(lane, PLAIN.encode(Attached()))

    def deliver(self, rid: bytes, frame: Frame | memoryview) -> bool:
        """Send a frame of the broker's own, if this peer has a lane and the frame may take it."""
        lane = self.of.get(rid)
        if lane is None or frame[KIND_AT] == Kind.PING:  # that tries the ZeroMQ connection
            return False
        return self._unix.send(lane, frame) is Delivery.DONE

    def hang_up(self, lane: bytes) -> None:
        """End this lane."""
        self._unix.hang_up(lane)

    def keep(self, peers: Collection[bytes]) -> None:
        """End the lanes of all but these peers."""
        for rid in [rid for rid in self.of if rid not in peers]:
            self._unix.hang_up(self.of[rid])

    def _ended(self, lane: bytes) -> None:
        owner = self.owners.pop(lane, None)
        if owner is not None and self.of.get(owner[0]) == lane:
            del self.of[owner[0]]

    def close(self) -> None:
        """Close all lanes. The kernel delivers what was sent."""
        self._unix.close()
        self._folder.remove()
