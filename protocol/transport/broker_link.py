"""An agent's link to its broker: a ZeroMQ connection, and a lane beside it where there may be one.

A lane is a Unix socket to a broker of the same host and user, over which frames pass without the
threads of libzmq (docs/protocol.md §9.12). Which way a frame takes makes no difference to either
side; the ZeroMQ connection says who is there and alive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import ConnectionFailed, GymwireError
from gymwire.protocol.messages import Attach, Attached, Welcome
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.interface import LinkEvent
from gymwire.protocol.transport.unix import UnixDealer


class BrokerLink:
    """What `Dealer` is, over either way. Used from one thread.

    `eager`: a lane is dialled as soon as the broker says where; else by the first `approach`.
    """

    def __init__(self, dealer: Dealer, *, eager: bool = False) -> None:
        self.url = dealer.url
        self._dealer = dealer
        self._eager = eager
        self._offer: tuple[str, bytes] = ("", b"")  # of a lane: where, and the ticket
        self._coming: UnixDealer | None = None  # dialled; the broker has not answered yet
        self._lane: UnixDealer | None = None
        self._held: deque[bytes | memoryview] = deque()  # came by ZeroMQ while there was a lane
        self._take(dealer)

    def _take(self, way: Dealer | UnixDealer) -> None:
        """Send and receive this way from now on."""
        self._way: Dealer | UnixDealer = way
        # A step calls these two: the way's own methods, with nothing in between.
        self.send: Callable[..., bool] = way.send
        self.receive: Callable[[], bytes | memoryview | None] = way.receive
        if self._held:
            self.receive = self._receive_held

    def _receive_held(self) -> bytes | memoryview | None:
        if not self._held:
            self._take(self._way)
            return self._way.receive()
        return self._held.popleft()

    def send_hello(self, hello: bytes | bytearray, wait: bool = False) -> bool:
        """Send HELLO, which is about the ZeroMQ connection. As `Dealer.send`."""
        return self._dealer.send(hello, wait)

    # --- the lane ---------------------------------------------------------------------------------

    def handle_welcome(self, welcome: Welcome) -> None:
        """The broker has said where a lane may be dialled, or that there is none."""
        offer = (welcome.local_channel, welcome.attach_token)
        if offer != self._offer:
            self._leave_lane()
            self._offer = offer
        if self._eager:
            self.open_local_channel()

    def open_local_channel(self) -> None:
        """Dial a lane, if there can be one and is none yet; waits for a tick at most."""
        self._eager = True
        url, ticket = self._offer
        if not url or self._lane is not None or self._coming is not None:
            return
        try:
            coming = UnixDealer(url)
        except ConnectionFailed:  # another user's broker; or it has just ended
            self._offer = ("", b"")
            return
        self._coming = coming
        coming.send(PLAIN.encode(Attach(ticket)))
        self._see_coming(wait=True)

    def _see_coming(self, *, wait: bool = False) -> None:
        """The broker takes newcomers in when it gets to it, if it does."""
        coming = self._coming
        if coming is None or not (wait or coming.poll()):
            return
        frame = coming.receive()
        if frame is not None and _says_attached(frame):
            self._lane, self._coming = coming, None
            self._hold()
            self._take(coming)
        elif frame is not None or not coming.up:
            self._leave_lane()

    def _leave_lane(self) -> None:
        for one in (self._coming, self._lane):
            if one is not None:
                one.close()
        self._coming = self._lane = None
        self._offer = ("", b"")
        if self._way is not self._dealer:
            self._take(self._dealer)

    def _hold(self) -> None:
        """Take in what has come by ZeroMQ meanwhile."""
        while self._dealer.poll():
            frame = self._dealer.receive()
            if frame is not None:
                self._held.append(frame)

    # --- what a dealer has ------------------------------------------------------------------------

    def link_events(self) -> list[LinkEvent]:
        """Connections made and lost since the last call.

        The loss of a lane counts as a connection made anew: the broker must be told who is here,
        and what was in flight is sent again.
        """
        events = self._dealer.link_events()
        self._see_coming()
        lane = self._lane
        if lane is not None:
            if lane.up:
                self._hold()
                self._take(lane)
            else:
                self._leave_lane()
                events.append(LinkEvent(True, -1))
        return events

    @property
    def takes_pieces(self) -> bool:
        """Whether frames may be sent in pieces."""
        return self._lane is not None

    @property
    def has_buffered(self) -> bool:
        """Whether a frame may be here that a poll of `waitable` does not see."""
        return bool(self._held) or self._way.has_buffered

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Whether a frame is there within `timeout_s`."""
        return bool(self._held) or self._way.poll(timeout_s)

    @property
    def handshake_hint(self) -> str:
        """Why the broker may be hanging up on each handshake; "" if it does not."""
        return self._dealer.handshake_hint

    @property
    def waitable(self) -> Any:
        """The socket, for a poll over several."""
        return self._way.waitable

    def close(self, linger_s: float = 0.0) -> None:
        """Close; what was sent last has `linger_s` seconds to leave."""
        self._leave_lane()
        self._dealer.close(linger_s)


def _says_attached(frame: bytes | memoryview) -> bool:
    try:
        return isinstance(PLAIN.decode(frame), Attached)
    except GymwireError:
        return False
