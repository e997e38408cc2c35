"""The addresses of the host in a URL."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from gymwire.protocol.address import is_local
from gymwire.protocol.outside_exceptions import is_from_outside

CYCLE_S = 2.0  # the shortest time between two attempts at the same address
PROBE_S = 1.0  # how long an address may take to accept a connection
LOOK_UP_EVERY_S = 30.0  # a look-up may block for seconds


def addresses_of(url: str) -> list[str]:
    """Return one URL for each address of the host; this URL if there are not several."""
    scheme, _, rest = url.partition("://")
    host = rest.rpartition(":")[0]
    if scheme != "tcp" or host == "*" or host.startswith("["):
        return [url]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return [url]
    addresses = dict.fromkeys(str(address[0]) for _, _, _, _, address in found)
    if len(addresses) < 2:
        return [url]
    return [url_with(url, one) for one in addresses]


def url_with(url: str, address: str) -> str:
    """Return the URL of the same port of this address."""
    port = url.rpartition(":")[2]
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def first_reachable(url: str) -> str:
    """Return the URL of the first address of the host that accepts connections, or this URL."""
    addresses = addresses_of(url)
    for one in addresses if len(addresses) > 1 else ():
        host, _, port = one.removeprefix("tcp://").rpartition(":")
        with contextlib.suppress(OSError):
            socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
            return one
    return url


class DialPlan:
    """The URLs to dial in turn, because libzmq tries only the first address of a name.

    The first is the given URL, whose name libzmq looks up for each attempt.

    Attributes:
        current: the URL that is being dialed.
    """

    def __init__(self, url: str) -> None:
        self.current = url
        self._url = url
        self._left: list[str] = []  # the rest of this cycle
        self._addresses: list[str] = [url]
        self._look_up_at = 0.0
        self._next_cycle = 0.0

    def attempt_failed(self, now: float) -> bool:
        """Choose the URL to dial after a failed attempt; return whether it is another one."""
        if not self._left:
            if now < self._next_cycle:
                return False
            self._next_cycle = now + CYCLE_S
            if now >= self._look_up_at:
                self._look_up_at = now + LOOK_UP_EVERY_S
                self._addresses = addresses_of(self._url)
            several = len(self._addresses) > 1
            self._left = [*self._addresses, self._url] if several else [self._url]
        former, self.current = self.current, self._left.pop(0)
        return self.current != former


def is_this_host(url: str) -> bool:
    """Return whether a checked URL leads to this host. It may have to look its name up."""
    if is_local(url):
        return True
    host = url.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    return any(_is_own_address(family, address) for family, _, _, _, address in found)


def _is_own_address(family: socket.AddressFamily, address: Any) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)  # sends nothing: the kernel only checks the address
    except OSError:
        return False
    return True


def unknown_host(url: str) -> str:
    """Return why the host of this URL cannot be resolved, as the rest of a sentence; else ""."""
    if url.startswith("tcp://"):
        host = url.removeprefix("tcp://").rpartition(":")[0].strip("[]")
        try:
            socket.getaddrinfo(host, None)
        except UnicodeError:
            return f"the host {host!r} is not a valid name"
        except OSError as error:
            if is_from_outside(error):
                raise
            return f"the host {host!r} is unknown ({error.strerror})"
    return ""
