"""Who may connect: the thread that answers libzmq's questions about keys (ZAP, ZeroMQ RFC 27).

It fails closed. A socket whose domain nobody answers for refuses everyone, and if the thread ever
died, the process ends: it must not go on with a door that nobody watches.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence

import structlog
import zmq
from zmq.utils import z85

from gymwire.protocol.security.keys import identity

EXIT_STATUS = 70
Allow = Callable[[bytes], bool]
"""Whether the owner of this public key (z85) may connect. Called in the thread, so: pure, quick."""


class Authenticator(threading.Thread):
    """Answers for all keyed sockets of a process. `socket`: a REP, bound to ZAP's endpoint."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        super().__init__(name="zap", daemon=True)
        self._socket = socket
        self._allow: dict[str, Allow] = {}

    def admit(self, domain: str, allow: Allow) -> None:
        """From now on, ask `allow` about who connects to the sockets of this domain."""
        self._allow[domain] = allow

    def forget(self, domain: str) -> None:
        """The domain's socket is closed."""
        self._allow.pop(domain, None)

    def run(self) -> None:
        """The thread."""
        try:
            while True:
                self._socket.send_multipart(answer(self._socket.recv_multipart(), self._allow))
        except zmq.ContextTerminated:
            return
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody watches the door now
            structlog.get_logger().critical(
                "the key check has failed, so this process ends", error=type(error).__name__
            )
            os._exit(EXIT_STATUS)


def answer(request: Sequence[bytes], allow: Mapping[str, Allow]) -> list[bytes]:
    """The reply to one question of libzmq. The user id that it sets is the public key, z85."""
    version, number, domain, address, _routing_id, mechanism, *credentials = request
    if mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
        key = z85.encode(credentials[0])
        asked = allow.get(domain.decode("utf-8", "replace"))
        if asked is not None and asked(key):
            return [version, number, b"200", b"OK", key, b""]
        structlog.get_logger().warning(
            "a key was refused",
            identity=identity(key),
            key=key.decode("ascii"),
            peer=address.decode("utf-8", "replace"),
        )
    return [version, number, b"400", b"this key is not known here", b"", b""]
