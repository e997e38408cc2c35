"""Whether a URL leads to this host."""

from __future__ import annotations

import socket
from typing import Any

from gymwire.protocol.address import is_local


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
