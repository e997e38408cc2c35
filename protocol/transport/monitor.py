"""Connection events of a ZeroMQ socket, and why a handshake fails."""

from __future__ import annotations

import errno
from typing import Any, cast

import zmq
from zmq.utils.monitor import recv_monitor_message

from gymwire.protocol.security.keys import KeyPair, identity
from gymwire.protocol.transport.interface import LinkEvent
from gymwire.protocol.transport.polling import EVENTS, POLLIN

HUNG_UP = 3  # handshakes that the other side closes in a row before `handshake_hint` reports it


class Monitor:
    """Reads the connection events of one socket without blocking.

    Args:
        socket: the socket.
        key: the key pair of a dialing socket, for the texts.
        listens: whether it is a listening socket. Its connections count as made when they are
            accepted: libzmq names the descriptor then, and not after the handshake.

    Attributes:
        failed_handshakes: how many handshakes of a dialing socket have failed in a row, without a
            reason from the other side.
        attempt_failed: whether a dialing socket waits before its next attempt to connect.
    """

    has_buffered = False

    _FAILED = (
        zmq.Event.HANDSHAKE_FAILED_AUTH,
        zmq.Event.HANDSHAKE_FAILED_PROTOCOL,
        zmq.Event.HANDSHAKE_FAILED_NO_DETAIL,
    )

    def __init__(
        self, socket: zmq.Socket[bytes], key: KeyPair | None = None, *, listens: bool = False
    ) -> None:
        self._watched = socket
        self._key = key
        self._fd = -1  # of a dialing socket's connection
        self._up = zmq.Event.ACCEPTED if listens else zmq.Event.HANDSHAKE_SUCCEEDED
        self._hung_up = 0
        self.failed_handshakes = 0
        self.attempt_failed = False
        events = self._up | zmq.Event.DISCONNECTED | zmq.Event.CONNECT_RETRIED
        if not listens:
            events |= zmq.Event.CONNECTED
        for event in self._FAILED:
            events |= event
        self._socket: zmq.Socket[bytes] = socket.get_monitor_socket(events)
        self._bare = cast(Any, self._socket)

    def close(self) -> None:
        """Stop watching. Idempotent."""
        try:
            self._watched.disable_monitor()
        except zmq.ZMQError:
            if not self._watched.closed:  # by a signal handler
                raise
        self._socket.close(linger=0)

    @property
    def waitable(self) -> zmq.Socket[bytes]:
        """The socket that `events` reads, for `polling.wait_among`."""
        return self._socket

    def events(self) -> list[LinkEvent]:
        """Return what has happened since the last call."""
        found: list[LinkEvent] = []
        try:
            # Socket.poll takes several times as long, and timers call this ten times a second.
            while self._bare.getsockopt(EVENTS) & POLLIN:
                message = recv_monitor_message(self._socket)
                event = self._link_event(zmq.Event(message["event"]), int(message["value"]))
                if event is not None:
                    found.append(event)
        except zmq.ZMQError:
            if not self._socket.closed:  # by a signal handler
                raise
        return found

    def _link_event(self, event: zmq.Event, value: int) -> LinkEvent | None:
        """Note what has happened, and return it if it concerns the whole connection."""
        if event == zmq.Event.CONNECT_RETRIED:
            self.attempt_failed = True
            return None
        if event == zmq.Event.CONNECTED:
            self._fd = value
            return None
        if event in self._FAILED:  # the value is an error number then
            return LinkEvent(False, -1, self._why(event, value))
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._hung_up = self.failed_handshakes = 0
            self.attempt_failed = False
            return LinkEvent(True, self._fd)
        return LinkEvent(event == self._up, value)

    def _why(self, event: zmq.Event, value: int) -> str:
        """Return why a handshake failed, or "" if a later one may succeed."""
        key = self._key
        if event == zmq.Event.HANDSHAKE_FAILED_AUTH:
            if key is None:
                return "it requires a key. Give --key and --broker-key (key= and broker_key=)."
            return (
                f"it does not know the key {key.public.decode('ascii')} (identity "
                f"{identity(key.public)}). Ask its operator to allow this key."
            )
        if event == zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
            if value != zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                return ""
            if key is None:
                return (
                    "it uses keys, and this side does not. Give --key and --broker-key (key= and "
                    "broker_key=); `gymwire keygen NAME` creates a key."
                )
            return (
                "it does not use keys, and this side does. Start it with --key, or use no keys "
                "on this side."
            )
        # A CURVE server does the same to a client with the wrong server key. So does a port
        # forwarder with nothing behind it, which may change.
        self.failed_handshakes += 1
        self._hung_up += value in (errno.EPIPE, errno.ECONNRESET)
        return ""

    @property
    def handshake_hint(self) -> str:
        """Why the other side may be closing each handshake; "" if it does not."""
        if self._hung_up < HUNG_UP:
            return ""
        if self._key is None:
            return (
                "it closes each handshake. If it uses keys, give --key and --broker-key (key= and "
                "broker_key=); `gymwire keygen NAME` creates a key. Otherwise, it is not a broker, "
                "or its host is overloaded."
            )
        return (
            "it closes each handshake. Either its public key is not the one given as --broker-key "
            "(broker_key=), or it does not use keys, or its host is overloaded."
        )
