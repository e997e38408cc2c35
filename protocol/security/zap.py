"""Check keys: a thread that answers libzmq's authentication requests (ZAP, ZeroMQ RFC 27).

It fails closed. A socket whose domain is not registered refuses everyone. If the thread fails, the
process ends, because it must not continue without the check.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence

import zmq
from zmq.utils import z85

from gymwire.protocol import logs
from gymwire.protocol.security.keys import identity

EXIT_STATUS = 70
Allow = Callable[[bytes], bool]
"""Returns whether the owner of a public key (z85) may connect. It runs in the thread: keep it pure
and fast."""


class Authenticator(threading.Thread):
    """Checks the keys for all sockets of a process. `socket`: a REP bound to ZAP's endpoint."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        super().__init__(name="zap", daemon=True)
        self._socket = socket
        self._allow: dict[str, Allow] = {}

    def admit(self, domain: str, allow: Allow) -> None:
        """Let `allow` decide who connects to the sockets of this domain."""
        self._allow[domain] = allow

    def forget(self, domain: str) -> None:
        """Stop answering for this domain."""
        self._allow.pop(domain, None)

    def run(self) -> None:
        """Answer requests until the context ends."""
        try:
            while True:
                self._socket.send_multipart(answer(self._socket.recv_multipart(), self._allow))
        except zmq.ContextTerminated:
            return
        except BaseException as error:  # noqa: BLE001 - whatever it was, no key is checked now
            logs.logger().critical(
                "key check failed, ending this process", error=type(error).__name__
            )
            os._exit(EXIT_STATUS)


def answer(request: Sequence[bytes], allow: Mapping[str, Allow]) -> list[bytes]:
    """Return the reply to one request of libzmq; it sets the user id to the public key, z85."""
    version, number, domain, address, _routing_id, mechanism, *credentials = request
    if mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
        key = z85.encode(credentials[0])
        may_connect = allow.get(domain.decode("utf-8", "replace"))
        if may_connect is not None and may_connect(key):
            return [version, number, b"200", b"OK", key, b""]
        logs.logger().warning(
            "key refused",
            identity=identity(key),
            key=key.decode("ascii"),
            peer=address.decode("utf-8", "replace"),
        )
    return [version, number, b"400", b"unknown key", b"", b""]
