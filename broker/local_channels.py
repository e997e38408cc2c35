"""Local channels: Unix sockets beside the ZeroMQ connections of peers on this host.

Frames over a local channel bypass libzmq's threads at both ends. An attach token proves which peer
a local channel belongs to: the broker sends it over the peer's ZeroMQ connection, so only the
holder of that peer's key, if it has one, knows it (docs/protocol.md §9.12).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from gymwire.protocol.codec import KIND_AT, PLAIN, Frame
from gymwire.protocol.messages import Attached, Kind
from gymwire.protocol.transport.interface import Delivery, Received
from gymwire.protocol.transport.private_folder import PrivateFolder
from gymwire.protocol.transport.router import Router
from gymwire.protocol.transport.unix import SCHEME, UnixRouter

ZMQ_CHECK_EVERY = 16  # frames between two checks of ZeroMQ while local channels are always busy
MAX_CHANNELS = 4096
MAX_ATTACH = 64  # bytes of a frame before the connection is attached to a peer
# Frames that are sent together. More would wait for each other: relaying each takes 10 µs.
MAX_BUNDLE = 16


class LocalChannels:
    """The local channels of a broker's peers, and reception over both them and ZeroMQ.

    `of`: routing id of a peer → id of its local channel. `owners`: id of a local channel → routing
    id and key of its peer. `buffered`: not empty while `has_buffered`. Raises ConfigurationError if
    the socket cannot be made.
    """

    def __init__(self, router: Router, *, max_channels: int, max_message: int) -> None:
        self.of: dict[bytes, bytes] = {}
        self.owners: dict[bytes, tuple[bytes, bytes | None]] = {}
        self._router = router
        self._turn = 0
        self._local_next = False
        self._folder = PrivateFolder()
        try:
            self._unix = UnixRouter(
                f"{SCHEME}{self._folder.path}/channels",
                ended=self._ended,
                max_message=max_message,
                max_first=MAX_ATTACH,
                max_peers=min(max_channels, MAX_CHANNELS),
                watched=router.descriptor,
            )
        except BaseException:
            self._folder.remove()
            raise
        self.url = self._unix.url
        self.send, self.send_all = self._unix.send, self._unix.send_all
        self.buffered: Collection[object] = self._unix.buffered
        self._receive_local = self._unix.receive

    def receive(self, wait: bool = True) -> Received | None:
        """Return the next frame, or None after a tick (without `wait`: at once) without one.

        A frame over a local channel has no origin.
        """
        router = self._router
        self._turn = turn = (self._turn + 1) % ZMQ_CHECK_EVERY
        if (router.may_have_unsignalled_input or not turn) and router.has_input():
            # Both may have frames: they take turns.
            self._local_next = not self._local_next
            received = self._receive_local(wait=False) if self._local_next else None
            return router.receive(wait) if received is None else received
        received = self._receive_local(wait)
        if received is None and router.has_input():
            return router.receive(wait)
        return received

    @property
    def has_buffered(self) -> bool:
        """Whether a frame may be buffered here, where a poll of `waitable` does not see it."""
        return bool(self.buffered)

    @property
    def waitable(self) -> int:
        """The descriptor of the local channels, for `polling.wait_among`."""
        return self._unix.waitable

    def attach(self, channel: bytes, rid: bytes, key: bytes | None) -> None:
        """Make this the local channel of a peer, instead of any other, and send ATTACHED."""
        former = self.of.get(rid)
        if former is not None:
            self._unix.hang_up(former)
        self.of[rid], self.owners[channel] = channel, (rid, key)
        self._unix.admit(channel)
        self._unix.send(channel, PLAIN.encode(Attached()))

    def deliver(self, rid: bytes, frame: Frame | memoryview) -> bool:
        """Send a frame from the broker itself, if this peer has a local channel.

        Returns whether it was sent. PING never is, since it tests the ZeroMQ connection.
        """
        channel = self.of.get(rid)
        if channel is None or frame[KIND_AT] == Kind.PING:
            return False
        return self._unix.send(channel, frame) is Delivery.DONE

    def hang_up(self, channel: bytes) -> None:
        """Close this connection."""
        self._unix.hang_up(channel)

    def detach(self, rid: bytes) -> None:
        """Close the local channel of this peer, if it has one."""
        if rid in self.of:
            self._unix.hang_up(self.of[rid])

    def keep(self, peers: Collection[bytes]) -> None:
        """Close the local channels of all but these peers."""
        for rid in [rid for rid in self.of if rid not in peers]:
            self._unix.hang_up(self.of[rid])

    def _ended(self, channel: bytes) -> None:
        owner = self.owners.pop(channel, None)
        if owner is not None and self.of.get(owner[0]) == channel:
            del self.of[owner[0]]

    def close(self) -> None:
        """Close all local channels. The kernel still delivers what was sent."""
        self._unix.close()
        self._folder.remove()


class RelayedFrame(NamedTuple):
    """A frame for the peer `to`. `channel`: the peer's local channel; None: it goes over ZeroMQ."""

    channel: bytes | None
    to: bytes
    frame: Frame | memoryview
    sender: bytes


class Bundle:
    """Frames that wait until those that have arrived with them can be sent, too.

    Each call of the kernel takes long, and wakes the receiver.

    Args:
        channels: the local channels.
        undelivered: called with each frame that was not sent, and why.

    Attributes:
        frames: the frames that wait; `send` must be called before the broker waits.
    """

    def __init__(
        self,
        channels: LocalChannels | None,
        undelivered: Callable[[RelayedFrame, Delivery], None],
    ) -> None:
        self.frames: list[RelayedFrame] = []
        self._channels = channels
        self._undelivered = undelivered

    def add(self, frame: RelayedFrame) -> None:
        """Send a frame now, or soon together with the next ones."""
        self.frames.append(frame)
        channels = self._channels
        if channels is None or not channels.buffered or len(self.frames) >= MAX_BUNDLE:
            self.send()

    def send(self) -> None:
        """Send the frames, those for one channel together."""
        if not self.frames or self._channels is None:
            return
        by_channel: dict[bytes, list[RelayedFrame]] = {}
        for one in self.frames:
            by_channel.setdefault(one.channel or b"", []).append(one)
        self.frames = []
        for channel, some in by_channel.items():
            delivery = self._channels.send_all(channel, [one.frame for one in some])
            for one in some if delivery is not Delivery.DONE else ():
                self._undelivered(one, delivery)
