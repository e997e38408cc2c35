"""Parse and check addresses of environments and URLs of brokers (docs/protocol.md §2)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from gymwire.protocol.errors import AddressError

DEFAULT_BROKER = "tcp://127.0.0.1:5555"

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?(/[a-z0-9]([a-z0-9._-]*[a-z0-9])?)*")
_IDENTITY = re.compile(r"[a-z2-7]{16}")
_HOST = re.compile(r"\*|[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%a-z]+\]")
MAX_LENGTH = 128
MAX_PORT = 65535
MAX_COMPARED = 4096
MIN_SIMILARITY = 0.4  # of an address that is suggested for an unknown one: 1 is equal


class Address(NamedTuple):
    """An address; in a pinned address (`cartpole@<identity>`) also the env agent's identity."""

    name: str
    identity: str | None = None

    def __str__(self) -> str:
        return self.name if self.identity is None else f"{self.name}@{self.identity}"


def parse_address(text: str) -> Address:
    """Parse `name` or `name@identity`. Raises AddressError with an example."""
    if not isinstance(text, str):
        raise AddressError(f"An address must be a str such as 'cartpole', not {text!r:.200}.")
    name, at, identity = text.partition("@")
    if len(name) > MAX_LENGTH or not _NAME.fullmatch(name):
        raise AddressError(
            f"{text[:200]!r} is not an address: use lower-case letters, digits and . _ - in parts "
            f"joined by /, such as 'cartpole' or 'lab/price-market' (at most {MAX_LENGTH} "
            f"characters)."
        )
    if at and not _IDENTITY.fullmatch(identity):
        raise AddressError(
            f"{text[:200]!r} has no identity after the @. Give the identity of an env agent, 16 "
            f"characters of a-z and 2-7, as `gymwire ls` shows it."
        )
    return Address(name, identity or None)


def check_url(url: str, *, bind: bool = False) -> str:
    """Check a ZeroMQ URL, `tcp://HOST:PORT` or `ipc://PATH`, and return it.

    With `bind`, HOST and PORT may be `*`. Raises AddressError.
    """
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if separator and scheme == "ipc" and rest and "\0" not in rest:
        return url
    if separator and scheme == "tcp":
        host, colon, port = rest.rpartition(":")
        if colon and _HOST.fullmatch(host) and (bind or host != "*"):
            if bind and port == "*":
                return url
            if port.isascii() and port.isdecimal():
                if (0 if bind else 1) <= int(port) <= MAX_PORT:
                    return url
                raise AddressError(
                    f"{url!r:.200} has no valid port: use one from 1 to {MAX_PORT}, as in "
                    f"{DEFAULT_BROKER}."
                )
    raise AddressError(
        f"{url!r:.200} is not a broker URL: write tcp://HOST:PORT, such as {DEFAULT_BROKER}, "
        f"or ipc://PATH."
    )


def is_local(url: str) -> bool:
    """Return whether only this host can reach a checked URL: loopback or ipc."""
    scheme, _, rest = url.partition("://")
    if scheme == "ipc":
        return True
    host = rest.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known address most similar to `name`, or None if none is similar.

    Addresses are similar if they have many pairs of adjacent characters in common. At most
    MAX_COMPARED characters of known addresses are compared, since peers choose them.
    """
    wanted, best, found, left = _pairs(name), MIN_SIMILARITY, None, MAX_COMPARED
    for one in known:
        left -= len(one)
        if left < 0:
            break
        pairs = _pairs(one)
        similarity = 2 * len(wanted & pairs) / (len(wanted) + len(pairs))
        if similarity > best:
            best, found = similarity, one
    return found


def _pairs(name: str) -> set[tuple[str, str]]:
    marked = f"^{name}$"
    return set(pairwise(marked))
