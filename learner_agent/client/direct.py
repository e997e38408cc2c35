"""The direct way to an env agent, beside the one through the broker (docs/protocol.md §9)."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import ConnectionFailed, DecodingError, GymwireError
from gymwire.protocol.messages import Kind, Resume
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport.interface import Transport
from gymwire.protocol.transport.registry import dial_first, usable

LOOK_S = 0.002  # how often connections that are being made are looked at


class DirectLink:
    """A connection to the env agent of one session. `up`: requests may go this way now.

    `denied`: the agent will not have it.
    """

    def __init__(
        self, offer: Mapping[str, Any], sid: int, nonce: bytes, key: KeyPair | None
    ) -> None:
        server_key = offer.get("key") or None
        if server_key is not None and key is None:
            raise ConnectionFailed("The env agent's direct endpoint asks for a key.")
        self.dealer: Transport = dial_first(
            _choose(offer), key=key if server_key else None, server_key=server_key
        )
        self.up = self.denied = False
        self._owes_resume = False
        self._resume = PLAIN.encode(Resume(nonce), sid)

    def accept(self, data: bytes | memoryview) -> None:
        """Take a frame that is not a reply: RESUMED opens this way."""
        try:
            if codec.read_header(data).kind is Kind.RESUMED:
                self.up = True
        except GymwireError:
            return

    def watch(self) -> bool:
        """Follow the connection. True: it went down since the last call."""
        was_up = self.up
        for event in self.dealer.link_events():
            self.up, self._owes_resume = False, event.up
            self.denied = self.denied or bool(event.denied)
        if self._owes_resume:
            self._owes_resume = not self.dealer.send(self._resume)
        if not self.up and self.dealer.poll():
            data = self.dealer.receive()
            if data is not None:
                self.accept(data)
        return was_up and not self.up

    def close(self) -> None:
        """Close the connection."""
        self.dealer.close(linger_s=0.3)


def attach(links: Sequence[DirectLink], wait_s: float) -> None:
    """Wait until all of these are up, but for those that cannot be within `wait_s`."""
    deadline = time.monotonic() + wait_s
    coming = links
    while True:
        for link in coming:
            link.watch()
        coming = [link for link in coming if not link.up and not link.denied]
        if not coming or time.monotonic() > deadline:
            return
        coming[0].dealer.poll(LOOK_S)


def _choose(offer: Mapping[str, Any]) -> list[str]:
    """The endpoints that may be dialled from here, the nearest first. Raises DecodingError."""
    urls = offer.get("urls")
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls) or not urls:
        raise DecodingError("The env agent's direct endpoint has no URL.")
    same_host = offer.get("host") == socket.gethostname()
    return usable(urls, same_host=same_host, keyed=bool(offer.get("key")))
