"""Unix stream sockets between the processes of one host (docs/protocol.md §9.6).

A step over ZeroMQ passes through a thread of libzmq at either end, each way; here the two ends
speak to the kernel themselves. The classes have the methods of `Dealer` and `Router` that direct
sessions and lanes use; nobody proves a key here: the kernel says which user the other side is.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gymwire.protocol.codec import Pieces
from gymwire.protocol.errors import ConfigurationError, ConnectionFailed
from gymwire.protocol.transport.interface import MAX_MESSAGE, TICK_MS, Delivery, LinkEvent
from gymwire.protocol.transport.stream import NOW, Stream

SCHEME: Final = "unix://"
CAN_LISTEN = hasattr(select, "epoll") and hasattr(socket, "SO_PEERCRED")  # Linux
MARK: Final = 2  # the first byte of the routing ids made here

MAX_PEERS = 1024
LOOK_EVERY = 64  # frames of one peer after which newcomers are looked for

_IN: Final = 1  # select.EPOLLIN, looked up for each frame


class UnixDealer(Stream):
    """A dialling socket: one connection to one agent of this host.

    It connects again, when it can, at each `link_events`. Used from one thread. Raises
    ConnectionFailed if nobody listens there, or nobody that this user may speak to.
    """

    def __init__(self, url: str, *, max_message: int = MAX_MESSAGE) -> None:
        super().__init__(max_message)
        self.url = url
        self._path = url.removeprefix(SCHEME)
        self._events: list[LinkEvent] = []
        why = self._connect()
        if why:
            raise ConnectionFailed(f"Cannot dial {url}: {why}.")

    def _connect(self) -> str:
        """Dial; returns why that has failed, "" if it has not."""
        if not hasattr(socket, "AF_UNIX") or not self._path.startswith("/"):
            return "that is no path of a socket here"
        with contextlib.ExitStack() as stack:
            try:
                sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                sock.setblocking(False)  # where nobody takes newcomers in, connect would wait
                sock.connect(self._path)
            except (OSError, ValueError) as error:
                return getattr(error, "strerror", None) or str(error)
            stack.pop_all()
        self.start(sock, TICK_MS)
        self._events.append(LinkEvent(True, -1))
        return ""

    def end(self) -> None:
        """Close the connection; `link_events` makes another."""
        if self.up:
            self._events.append(LinkEvent(False, -1))
        super().end()

    def send(self, frame: bytes | bytearray | Pieces, wait: bool = False) -> bool:
        """Send one frame, waiting for a tick at most while the other side does not read.

        With `wait`, a tick passes, too, while there is no connection.
        False: there is no connection at present, or its queue is full.
        """
        if not self.up:
            if wait:
                time.sleep(TICK_MS / 1000)
            return False
        return not self.write_closed and self.write(frame, 0)

    def receive(self) -> bytes | memoryview | None:
        """The next frame, or None after a tick without one; at once if `link_events` says why."""
        if not self.up:
            if not self._events:
                time.sleep(TICK_MS / 1000)
            return None
        if self.unsent is not None:
            self.flush_pending(0)
        return self.read(0)

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Whether a frame, or a part of one, is there within `timeout_s`."""
        if self.has_buffered:
            return True
        if not self.up:
            time.sleep(timeout_s)
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def link_events(self) -> list[LinkEvent]:
        """Connections made and lost since the last call."""
        if not self.up:
            self._connect()
        elif self.unsent is not None:
            self.flush_pending(NOW)
        events, self._events = self._events, []
        return events

    @property
    def waitable(self) -> int:
        """The descriptor, for a poll over several; -1 without a connection."""
        return self.sock.fileno()

    def close(self, linger_s: float = 0.0) -> None:
        """Close. The kernel delivers what was sent."""
        super().end()


class _Peer(Stream):
    """One who has dialled."""

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


Received = tuple[bytes, None, bytes | memoryview]
"""The sender's routing id, nothing else that is known of it, and the frame."""


class UnixRouter:
    """A listening socket for this user's processes, and root's. Sends never block.

    `ended(rid)` is called when a peer's connection has ended. `watched`: a descriptor that ends the
    waiting of `receive`, too, as long as it can be read. `max_first`: bytes of a frame of a peer
    who is not admitted (`admit`). Raises ConfigurationError.
    """

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
        self._tell_ended = ended
        self._max_peers = max_peers
        self._max_message = max_message
        self._max_first = max_first or max_message
        self._tick_ms = tick_ms
        self._tick_s = tick_ms / 1000
        self._peers: dict[bytes, _Peer] = {}
        self._by_fd: dict[int, _Peer] = {}
        self._turns: deque[_Peer] = deque()  # who may have a frame, in fair order
        self._only: _Peer | None = None  # the one peer, if there is one and it is owed nothing
        self._frames_left = 0  # how many of its frames come before newcomers are looked for
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        try:
            self._listener.bind(url.removeprefix(SCHEME))
            self._listener.listen(MAX_PEERS)
        except OSError as error:
            self._listener.close()
            raise ConfigurationError(
                f"Cannot listen at {url}: {error.strerror or error}. The environment variable "
                f"TMPDIR chooses another folder."
            ) from None
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        # Once for each newcomer: at the limit of descriptors one that cannot be let in would keep
        # the loop awake.
        self._epoll.register(self._listener, select.EPOLLIN | select.EPOLLET)
        self._watched = watched
        if watched >= 0:
            self._epoll.register(watched, select.EPOLLIN)

    @property
    def has_buffered(self) -> bool:
        """Whether frames may be here that the kernel does not know of any more."""
        return bool(self._turns)

    def receive(self, wait: bool = True) -> Received | None:
        """The next frame, or None after a tick (without `wait`: now) without one."""
        only = self._only
        if only is not None and self._frames_left and wait:
            # To wait in the reading itself is the fastest.
            self._frames_left -= 1
            frame = only.read(0)
            if frame is not None:
                if only.has_buffered:
                    self._frames_left = 0
                    self._turns.append(only)
                return only.rid, None, frame
            self._frames_left = 0
            if not only.up:
                self._end(only)
            return None
        if not self._turns:
            events = self._poll(self._tick_s if wait and self._only is None else 0, 64)
            ready = self._by_fd.get(events[0][0]) if len(events) == 1 else None
            if ready is None or events[0][1] != _IN:
                self._look(events)
            else:  # the usual case: one has something to say
                frame = self._read(ready)
                if frame is not None:
                    return ready.rid, None, frame
        while self._turns:
            peer = self._turns.popleft()
            frame = self._read(peer)
            if frame is not None:
                return peer.rid, None, frame
        if self._only is not None and wait:
            self._frames_left = LOOK_EVERY
            return self.receive()
        return None

    def _read(self, peer: _Peer) -> bytes | memoryview | None:
        frame = peer.read(NOW) if peer.up else None
        if frame is not None and peer.has_buffered:
            self._turns.append(peer)
        if not peer.up:
            self._end(peer)
        return frame

    def _look(self, events: Sequence[tuple[int, int]]) -> None:
        """See who has something to say, can be told something, or wants to come in."""
        for fd, event in events:
            peer = self._by_fd.get(fd)
            if peer is None:
                if fd != self._watched:
                    self._let_in()
                continue
            if event & select.EPOLLOUT and peer.flush_pending(NOW) and peer.up:
                self._epoll.modify(fd, select.EPOLLIN)
                self._choose_only()
            if event & ~select.EPOLLOUT or not peer.up:
                self._turns.append(peer)
        if not events:
            self._let_in()

    def _let_in(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # nobody, or no descriptor is left: later
                return
            if len(self._peers) >= self._max_peers or not _is_ours(sock):
                sock.close()
                continue
            # Nobody is ever shown it, and a ZeroMQ peer, who chooses its own, cannot guess it.
            rid = bytes((MARK,)) + os.urandom(15)
            peer = _Peer(sock, rid, self._epoll, self._max_first, self._tick_ms)
            self._peers[rid] = self._by_fd[peer.fd] = peer
            self._choose_only()

    def _choose_only(self) -> None:
        sole = len(self._peers) == 1 and self._watched < 0
        only = next(iter(self._peers.values())) if sole else None
        self._only = None if only is None or only.unsent is not None else only

    def _end(self, peer: _Peer) -> None:
        if self._peers.pop(peer.rid, None) is not None:
            if self._by_fd[peer.fd] is peer:  # the kernel gives a descriptor out again
                del self._by_fd[peer.fd]
            self._choose_only()
            self._tell_ended(peer.rid)

    def send(self, rid: bytes, frame: bytes | bytearray | memoryview | Pieces) -> Delivery:
        """Send one frame to the peer of this routing id, now or not at all.

        What the kernel does not take of a frame is kept and sent when it does; meanwhile the
        connection is FULL.
        """
        peer = self._peers.get(rid)
        if peer is None or peer.write_closed:
            return Delivery.UNREACHABLE
        if not peer.write(frame, NOW):
            return Delivery.UNREACHABLE if peer.write_closed else Delivery.FULL
        if peer.unsent is not None:
            self._epoll.modify(peer.sock, select.EPOLLIN | select.EPOLLOUT)
            self._only = None
        return Delivery.DONE

    def admit(self, rid: bytes) -> None:
        """Take large frames, too, from this peer."""
        if rid in self._peers:
            self._peers[rid].max_message = self._max_message

    def hang_up(self, rid: bytes) -> None:
        """End this peer's connection, if it is there."""
        peer = self._peers.get(rid)
        if peer is not None:
            peer.end()
            self._end(peer)

    @property
    def waitable(self) -> int:
        """A descriptor for a poll over several."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close all connections. The kernel delivers what was sent."""
        self._tell_ended = lambda _rid: None
        for peer in list(self._peers.values()):
            peer.end()
        self._listener.close()
        self._epoll.close()


def _is_ours(sock: socket.socket) -> bool:
    """Whether the other side is this user, or root."""
    _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())
