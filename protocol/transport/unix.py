"""Unix stream sockets between the processes of one host (docs/protocol.md §9.6).

A step over ZeroMQ passes through one thread of libzmq in each process. Here both sides call the
kernel themselves. Nobody proves a key: the kernel reports the user on the other side.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gymwire.protocol.codec import MAX_MESSAGE, Pieces
from gymwire.protocol.errors import ConfigurationError, ConnectionFailed
from gymwire.protocol.outside_exceptions import is_from_outside
from gymwire.protocol.transport.interface import (
    SEND_ALL_S,
    TICK_MS,
    Delivery,
    LinkEvent,
    Received,
    Waitable,
)
from gymwire.protocol.transport.open_files import allow_more
from gymwire.protocol.transport.private_folder import check_private_socket
from gymwire.protocol.transport.stream import NOW, Stream

SCHEME: Final = "unix://"
CAN_LISTEN = hasattr(select, "epoll") and hasattr(socket, "SO_PEERCRED")  # Linux
MARK: Final = 2  # the first byte of the routing ids that `UnixRouter` makes

MAX_PEERS = 16_384  # by default; the limit on descriptors is usually reached before
BACKLOG = 1024  # connections that wait until they are accepted
# To wait for one peer alone is the fastest way to wait. The router does so if there is only
# this peer, or if the others have sent nothing while this one has sent LONE_AFTER frames.
LONE_AFTER = 1000
LONE_FRAMES = 64  # frames of this peer after which to wait for all, and for new connections,
LONE_S = 0.00025  # and the time after which to do so if there are other peers

_IN: Final = 1  # select.EPOLLIN, without the attribute look-up per frame


class UnixDealer(Stream):
    """A Unix stream `Transport`: one connection to a process of this host.

    Each `link_events` reconnects it if it is down. A peer chose the URL, so it must name a socket
    in a private folder of gymwire, where this user or root listens. Raises ConnectionFailed.
    """

    takes_pieces = True
    handshake_hint = ""

    def __init__(self, url: str, *, max_message: int = MAX_MESSAGE) -> None:
        super().__init__(max_message)
        self.url = url
        self._path = url.removeprefix(SCHEME)
        self._events: list[LinkEvent] = []
        self._connect()

    def _connect(self) -> None:
        """Connect. Raises ConnectionFailed."""
        if not CAN_LISTEN:
            raise ConnectionFailed(f"Cannot dial {self.url}: its Unix sockets need Linux.")
        check_private_socket(self.url)
        with contextlib.ExitStack() as stack:
            try:
                sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                sock.setblocking(False)  # connect would wait for a listener that does not accept
                sock.connect(self._path)
            except OSError as error:
                if is_from_outside(error):
                    raise
                why = error.strerror or error
                raise ConnectionFailed(f"Cannot dial {self.url}: {why}.") from None
            if not _is_ours(sock):
                raise ConnectionFailed(f"Cannot dial {self.url}: another user listens there.")
            stack.pop_all()
        self.start(sock, TICK_MS)
        self._events.append(LinkEvent(True, -1))

    def end(self) -> None:
        """Close the connection; `link_events` makes a new one."""
        if self.up:
            self._events.append(LinkEvent(False, -1))
        super().end()

    def send(self, frame: bytes | bytearray | Pieces, wait: bool = False) -> bool:
        """Send one frame, waiting a tick at most while the other side does not read.

        Without a connection, `wait` sleeps for a tick. Returns False if there is no connection or
        its queue is full.
        """
        if not self.up:
            if wait:
                time.sleep(TICK_MS / 1000)
            return False
        return self.write(frame, 0)

    def send_all(self, frames: Sequence[bytes | bytearray], wait: bool = False) -> bool:
        """Send several frames, as `send` does, with fewer calls of the kernel.

        Returns False, and drops the rest of the frames, if there is no connection, or the other
        side does not read for a tick; with `wait`, for SEND_ALL_S.
        """
        return self.up and self.write_all(frames, 0, SEND_ALL_S if wait else 0.0)

    def receive(self) -> bytes | memoryview | None:
        """Return the next frame, or None after a tick; at once if `link_events` has news."""
        if not self.up:
            if not self._events:
                time.sleep(TICK_MS / 1000)
            return None
        if self.unsent is not None:
            self.flush_pending(NOW if self.poll() else 0)
        return self.read(0)

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Return whether a frame, or a part of one, arrives within `timeout_s`."""
        if self.has_buffered:
            return True
        if not self.up:
            time.sleep(timeout_s)
            return False
        return self.wait_for_input(timeout_s * 1000)

    def link_events(self) -> list[LinkEvent]:
        """Return the connections made and lost since the last call; reconnect if necessary."""
        if not self.up:
            with contextlib.suppress(ConnectionFailed):
                self._connect()
        elif self.unsent is not None:
            self.flush_pending(NOW)
        events, self._events = self._events, []
        return events

    @property
    def waitable(self) -> int:
        """The file descriptor, for `polling.wait_among`; -1 without a connection."""
        return self.sock.fileno()

    @property
    def signals(self) -> Sequence[Waitable] | None:
        """What has input if there is news; None if something must be sent or dialed again."""
        return (self,) if self.up and self.unsent is None else None

    def close(self, linger_s: float = 0.0) -> None:
        """Close the connection. The kernel delivers what was sent."""
        super().end()


class _Peer(Stream):
    """An accepted connection."""

    def __init__(
        self, sock: socket.socket, rid: bytes, epoll: select.epoll, max_message: int, tick_ms: int
    ) -> None:
        super().__init__(max_message)
        self.rid = rid
        self.fd = sock.fileno()
        self._epoll = epoll
        self.start(sock, tick_ms)
        epoll.register(sock, select.EPOLLIN)

    def end(self) -> None:
        if self.up:
            self._epoll.unregister(self.sock)
        super().end()


class UnixRouter:
    """A Unix stream `Listener` for processes of this user and of root. Sends never block.

    Args:
        url: `unix://PATH`.
        ended: called with the routing id of each connection that has ended.
        max_message: bytes of a received frame; a larger one ends its connection.
        max_first: the same, until `admit` is called for the peer.
        max_peers: connections at once; more are closed.
        tick_ms: how long `receive` waits.
        watched: another descriptor that ends the waiting of `receive` while it is readable.

    Attributes:
        buffered: the peers that may have buffered frames, in fair order.

    Raises ConfigurationError.
    """

    takes_pieces = True
    mark = MARK

    def __init__(
        self,
        url: str,
        *,
        ended: Callable[[bytes], None] = lambda _rid: None,
        max_message: int = MAX_MESSAGE,
        max_first: int | None = None,
        max_peers: int = MAX_PEERS,
        tick_ms: int = TICK_MS,
        watched: int = -1,
    ) -> None:
        self.url = url
        self.urls = [url]
        self._on_ended = ended
        self._max_peers = max_peers
        self._max_message = max_message
        self._max_first = max_first or max_message
        self._tick_ms = tick_ms
        self._tick_s = tick_ms / 1000
        self._peers: dict[bytes, _Peer] = {}
        self._by_fd: dict[int, _Peer] = {}
        self.buffered: deque[_Peer] = deque()
        self._may_accept = False  # a connection may be waiting for a descriptor to become free
        self._lone: _Peer | None = None  # the peer to wait for alone,
        self._lone_frames = 0  # for how many more frames,
        self._lone_until = math.inf  # and until when, in monotonic seconds
        self._last: _Peer | None = None  # the sender of the last frame that was not waited for so,
        self._in_a_row = 0  # and how many such frames before that one are from the same peer
        self._lone_after: float = math.inf  # how many suffice to wait for it alone
        allow_more()  # many peers may connect
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        try:
            self._listener.bind(url.removeprefix(SCHEME))
            self._listener.listen(BACKLOG)
        except OSError as error:
            self._listener.close()
            raise ConfigurationError(
                f"Cannot listen at {url}: {error.strerror or error}. The environment variable "
                f"TMPDIR chooses another folder."
            ) from None
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        # Edge-triggered: at the limit of descriptors, a connection that cannot be accepted would
        # keep the loop awake.
        self._epoll.register(self._listener, select.EPOLLIN | select.EPOLLET)
        self._watched = watched
        if watched >= 0:
            self._epoll.register(watched, select.EPOLLIN)

    @property
    def has_buffered(self) -> bool:
        """Whether frames may be buffered here, where the kernel no longer reports them."""
        return bool(self.buffered)

    def receive(self, wait: bool = True) -> Received | None:
        """Return the next frame, or None after a tick (without `wait`: at once) without one."""
        lone = self._lone
        if lone is not None and wait:
            frame = lone.read(0)
            if frame is None:
                self._lone = None
                self._forget_ended(lone)
                return None
            self._lone_frames -= 1
            if lone.has_buffered:
                self.buffered.append(lone)
                self._lone = None
            elif not self._lone_frames or (
                self._lone_until < math.inf and time.monotonic() >= self._lone_until
            ):
                self._lone = None
            return lone.rid, None, frame
        self._lone = None
        if self.buffered:
            return self._receive_buffered()
        events = self._poll(self._tick_s if wait else 0, 64)
        ready = None
        if len(events) == 1:
            ((fd, event),) = events
            ready = self._by_fd.get(fd) if event == _IN else None
        if ready is None:
            self._handle_events(events)
            return self._receive_buffered()
        frame = ready.read(NOW)  # the usual case: one peer is readable
        if frame is None:
            self._forget_ended(ready)
            return None
        if ready.has_buffered:
            self.buffered.append(ready)
        if self._watched < 0:
            self._count(ready)
        return ready.rid, None, frame

    def _receive_buffered(self) -> Received | None:
        """Return the next frame of the peers that may have one, or None."""
        while self.buffered:
            peer = self.buffered.popleft()
            frame = peer.read(NOW) if peer.up else None
            if frame is not None:
                if peer.has_buffered:
                    self.buffered.append(peer)
                self._count(peer)
                return peer.rid, None, frame
            self._forget_ended(peer)
        return None

    def _count(self, peer: _Peer) -> None:
        """Count a frame of this peer, and wait for it alone if the last ones were its, too."""
        if peer is self._last:
            self._in_a_row += 1
        else:
            self._last, self._in_a_row = peer, 0
        if self._in_a_row >= self._lone_after and not self.buffered:
            self._wait_alone(peer)

    def _wait_alone(self, peer: _Peer) -> None:
        """Wait for this peer alone in the next calls of `receive`."""
        if peer.unsent is None:  # else epoll must report that it can be sent
            self._lone, self._lone_frames = peer, LONE_FRAMES
            self._lone_until = time.monotonic() + LONE_S if len(self._peers) > 1 else math.inf

    def _handle_events(self, events: Sequence[tuple[int, int]]) -> None:
        """Handle epoll events: readable peers, writable peers, new connections."""
        for fd, event in events:
            peer = self._by_fd.get(fd)
            if peer is None:
                if fd != self._watched:
                    self._accept()
                continue
            if event & select.EPOLLOUT and peer.flush_pending(NOW) and peer.up:
                self._epoll.modify(fd, select.EPOLLIN)
            if event & ~select.EPOLLOUT or not peer.up:
                self.buffered.append(peer)
        if not events and self._may_accept:
            self._accept()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                self._may_accept = not isinstance(error, BlockingIOError)
                return
            if len(self._peers) >= self._max_peers or not _is_ours(sock):
                sock.close()
                continue
            # Never shown to anyone, so that a ZeroMQ peer, which chooses its own, cannot guess it.
            rid = bytes((MARK,)) + os.urandom(15)
            peer = _Peer(sock, rid, self._epoll, self._max_first, self._tick_ms)
            self._peers[rid] = self._by_fd[peer.fd] = peer
            self._peers_changed()

    def _peers_changed(self) -> None:
        """Wait for all peers until one of them sends alone again."""
        self._lone = self._last = None
        if self._watched < 0:
            self._lone_after = 0 if len(self._peers) == 1 else LONE_AFTER

    def _forget_ended(self, peer: _Peer) -> None:
        """Forget this peer if its connection has ended."""
        if not peer.up:
            self._end(peer)

    def _end(self, peer: _Peer) -> None:
        if self._peers.pop(peer.rid, None) is not None:
            if self._by_fd[peer.fd] is peer:  # the kernel reuses descriptors
                del self._by_fd[peer.fd]
            self._peers_changed()
            self._on_ended(peer.rid)

    def send(self, rid: bytes, frame: bytes | bytearray | memoryview | Pieces) -> Delivery:
        """Send one frame to the peer with this routing id, now or not at all.

        If the kernel accepts only a part, the rest is sent later; until then the peer is FULL.
        """
        peer = self._peers.get(rid)
        if peer is None or peer.write_closed:
            return Delivery.UNREACHABLE
        if not peer.write(frame, NOW):
            return Delivery.UNREACHABLE if peer.write_closed else Delivery.FULL
        if peer.unsent is not None:
            self._await_writable(peer)
        return Delivery.DONE

    def send_all(self, rid: bytes, frames: Sequence[bytes | bytearray | memoryview]) -> Delivery:
        """Send several frames to a peer, as `send` does, with fewer calls of the kernel.

        If not all were sent, the first of them may have been.
        """
        peer = self._peers.get(rid)
        if peer is None or peer.write_closed:
            return Delivery.UNREACHABLE
        is_done = peer.write_all(frames, NOW)
        if peer.unsent is not None:
            self._await_writable(peer)
        if is_done:
            return Delivery.DONE
        return Delivery.UNREACHABLE if peer.write_closed else Delivery.FULL

    def _await_writable(self, peer: _Peer) -> None:
        self._epoll.modify(peer.sock, select.EPOLLIN | select.EPOLLOUT)
        self._lone = None

    def admit(self, rid: bytes) -> None:
        """Accept frames of up to `max_message` bytes from this peer."""
        if rid in self._peers:
            self._peers[rid].max_message = self._max_message

    def hang_up(self, rid: bytes) -> None:
        """Close this peer's connection, if there is one."""
        peer = self._peers.get(rid)
        if peer is not None:
            peer.end()
            self._end(peer)

    @property
    def waitable(self) -> int:
        """The file descriptor, for `polling.wait_among`."""
        return self._epoll.fileno()

    @property
    def signals(self) -> Sequence[Waitable] | None:
        """What has input if there is something to do; None while a connection waits outside."""
        return None if self._may_accept else (self,)

    def close(self, linger_s: float = 0.0) -> None:
        """Close all connections. The kernel delivers what was sent."""
        self._on_ended = lambda _rid: None
        for peer in list(self._peers.values()):
            peer.end()
        self._listener.close()
        self._epoll.close()


def _is_ours(sock: socket.socket) -> bool:
    """Return whether the process on the other side belongs to this user or to root."""
    _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())
