"""The connection of a learner or env agent to its broker: ZeroMQ, and a local channel beside it.

The local channel is a Unix socket to a broker of the same host and user. It carries frames without
the threads of libzmq (docs/protocol.md §9.12). Which of the two carries a frame makes no difference
to either side; the ZeroMQ connection shows who is connected and alive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from gymwire.protocol.codec import PLAIN, Frame
from gymwire.protocol.errors import ConnectionFailed, EnvironmentClosed, GymwireError
from gymwire.protocol.messages import ATTACH_TOKEN_SIZE, Attach, Attached, Welcome
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.hosts import is_this_host
from gymwire.protocol.transport.interface import LinkEvent, Transport, Waitable
from gymwire.protocol.transport.unix import UnixDealer

_NO_CHANNEL = ("", b"")


class BrokerLink:
    """A `Transport` that sends and receives over the local channel while there is one.

    `dealer`: the ZeroMQ connection. `eager`: dial a local channel as soon as the broker offers one;
    otherwise the first `open_local_channel` does.
    """

    def __init__(self, dealer: Dealer, *, eager: bool = False) -> None:
        self.url = dealer.url
        self._dealer = dealer
        self._eager = eager
        self._endpoint = _NO_CHANNEL  # of a local channel: its URL and the attach token
        self._pending: UnixDealer | None = None  # dialed; the broker has not answered yet
        self._channel: UnixDealer | None = None
        self._backlog: deque[bytes | memoryview] = deque()  # received over ZeroMQ meanwhile
        self._use(dealer)

    def _use(self, path: Transport) -> None:
        """Send and receive over this connection from now on."""
        self._path = path
        # Every step calls these, so they are the connection's own methods.
        self.send: Callable[..., bool] = path.send
        self.send_all: Callable[..., bool] = path.send_all
        self.receive: Callable[[], bytes | memoryview | None] = path.receive
        if self._backlog:
            self.receive = self._receive_backlog

    def _receive_backlog(self) -> bytes | memoryview | None:
        if not self._backlog:
            self._use(self._path)
            return self._path.receive()
        return self._backlog.popleft()

    def send_hello(self, hello: bytes | bytearray, wait: bool = False) -> bool:
        """Send HELLO over ZeroMQ, because it is about that connection. Returns as `send`."""
        return self._dealer.send(hello, wait)

    # --- the local channel ------------------------------------------------------------------------

    def handle_welcome(self, welcome: Welcome) -> None:
        """Note whether, and where, the broker offers a local channel.

        The offer counts only if the broker runs on this host and the token has the right size: a
        broker must not make this side send arbitrary bytes to other sockets.
        """
        endpoint = (welcome.local_channel, welcome.attach_token)
        if endpoint != self._endpoint:
            self._drop_channel()
            if len(welcome.attach_token) == ATTACH_TOKEN_SIZE and is_this_host(self.url):
                self._endpoint = endpoint
        if self._eager:
            self.open_local_channel()

    def open_local_channel(self) -> None:
        """Dial a local channel if the broker offers one and there is none; wait a tick at most."""
        self._eager = True
        url, token = self._endpoint
        if not url or self._channel is not None or self._pending is not None:
            return
        try:
            pending = UnixDealer(url)
        except ConnectionFailed:  # the broker belongs to another user, or has just ended
            self._endpoint = _NO_CHANNEL
            return
        self._pending = pending
        pending.send(PLAIN.encode(Attach(token)))
        self._check_pending(wait=True)

    def _check_pending(self, *, wait: bool = False) -> None:
        """Use the pending channel once the broker has answered; it may be slow to accept."""
        pending = self._pending
        if pending is None or not (wait or pending.poll()):
            return
        frame = pending.receive()
        if frame is not None and _is_attached(frame):
            self._channel, self._pending = pending, None
            self._drain_dealer()
            self._use(pending)
        elif frame is not None or not pending.up:
            self._drop_channel()

    def _drop_channel(self) -> None:
        for one in (self._pending, self._channel):
            if one is not None:
                one.close()
        self._pending = self._channel = None
        self._endpoint = _NO_CHANNEL
        if self._path is not self._dealer:
            self._use(self._dealer)

    def _drain_dealer(self) -> None:
        """Receive what has arrived over ZeroMQ meanwhile."""
        while self._dealer.poll():
            frame = self._dealer.receive()
            if frame is not None:
                self._backlog.append(frame)

    def send_last(self, frame: Frame) -> None:
        """Send a frame before `close`: over ZeroMQ if the local channel has ended or is full."""
        if not self.send(frame):
            self._drop_channel()
            self.send(frame)

    def dial_again(self) -> None:
        """Connect again after the broker has denied the connection."""
        self._dealer.dial_again()

    # --- the rest of a transport ------------------------------------------------------------------

    def link_events(self) -> list[LinkEvent]:
        """Return the connections made and lost since the last call.

        The loss of the local channel counts as a new connection: the caller must send HELLO and
        repeat what was in flight.
        """
        events = self._dealer.link_events()
        self._check_pending()
        channel = self._channel
        if channel is not None:
            if channel.up:
                self._drain_dealer()
                self._use(channel)
            else:
                self._drop_channel()
                events.append(LinkEvent(True, -1))
        return events

    @property
    def takes_pieces(self) -> bool:
        """Whether `send` also accepts `Pieces`."""
        return self._path.takes_pieces

    @property
    def has_buffered(self) -> bool:
        """Whether a frame may be buffered here, where a poll of `waitable` does not see it."""
        return bool(self._backlog) or self._path.has_buffered

    @property
    def has_frame(self) -> bool:
        """Whether a whole frame is buffered, which `receive` returns without waiting."""
        return bool(self._backlog) or self._path.has_frame

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Return whether a frame arrives within `timeout_s`."""
        return bool(self._backlog) or self._path.poll(timeout_s)

    @property
    def handshake_hint(self) -> str:
        """Why the broker may be closing each handshake; "" if it does not."""
        return self._dealer.handshake_hint

    @property
    def waitable(self) -> Any:
        """The socket or descriptor, for `polling.wait_among`."""
        return self._path.waitable

    @property
    def signals(self) -> Sequence[Waitable] | None:
        """What has input if `receive` or `link_events` has news; None: call them regularly."""
        found = [one.signals for one in (self._dealer, self._channel) if one is not None]
        if self._backlog or self._pending is not None or None in found:
            return None
        return [one for signals in found if signals is not None for one in signals]

    def close(self, linger_s: float = 0.0) -> None:
        """Close both connections. Frames sent last have `linger_s` seconds to leave."""
        self._drop_channel()
        self._dealer.close(linger_s)
        self.send = self.send_all = self.receive = self._refuse

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise self.closed_error()

    def closed_error(self) -> EnvironmentClosed:
        """Return the error of every use after `close`."""
        return EnvironmentClosed(
            f"The connection of this environment to the broker at {self.url} has been closed. Make "
            f"a new one."
        )


def _is_attached(frame: bytes | memoryview) -> bool:
    try:
        return isinstance(PLAIN.decode(frame), Attached)
    except GymwireError:
        return False
