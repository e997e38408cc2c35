"""How the text of an option or a variable becomes a value.

The modules that know addresses and keys are imported when they are needed: they bring Gymnasium
with them, and `gymwire --help` must not wait for that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WITHIN_HOST, NEVER = "host", "never"  # values of --direct
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        name: its name in the documentation.
        read: turns a text into a value. Raises ValueError or UsageError if it cannot.
        choices: all texts that it accepts, if there are only a few.
        completes: what a shell offers to complete: "", "file" or "dir".
    """

    name: str
    read: Callable[[str], object]
    choices: tuple[str, ...] = ()
    completes: str = ""


def _whole_number(text: str, least: int, most: float = math.inf) -> int:
    if text.isascii() and text.isdecimal() and least <= int(text) <= most:
        return int(text)
    bounds = f"of {least} or more" if most == math.inf else f"from {least} to {most}"
    raise ValueError(f"expected a whole number {bounds}, got {text!r:.50}")


def natural(text: str) -> int:
    """Return a whole number of 0 or more. Raises ValueError."""
    return _whole_number(text, 0)


def count(text: str) -> int:
    """Return a whole number of 1 or more. Raises ValueError."""
    return _whole_number(text, 1)


def watch_rate(text: str) -> int:
    """Return a whole number from 1 to the highest rate of frames. Raises ValueError."""
    from gymwire.env_agent.environments import MAX_WATCH_RATE

    return _whole_number(text, 1, MAX_WATCH_RATE)


def seconds(text: str) -> float:
    """Return seconds, 0 or more; "inf" is allowed. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise ValueError(f"expected seconds, 0 or more, got {text!r}")
    return value


def positive_seconds(text: str) -> float:
    """Return seconds, more than 0; "inf" is allowed. Raises ValueError."""
    value = seconds(text)
    if not value > 0:
        raise ValueError(f"expected more than 0 seconds, got {text!r}")
    return value


def timeout_seconds(text: str) -> float:
    """Return seconds, at least `LEAST_TIMEOUT_S`; "inf" is allowed. Raises ValueError."""
    from gymwire.learner_agent.client.patience import LEAST_TIMEOUT_S

    value = seconds(text)
    if not value >= LEAST_TIMEOUT_S:
        raise ValueError(f"expected at least {LEAST_TIMEOUT_S:g} seconds, got {text!r}")
    return value


def flag(text: str) -> bool:
    """Return whether a flag is set by its variable. Raises ValueError."""
    if text.lower() not in (*_YES, *_NO):
        raise ValueError(f"expected 1 or 0, got {text!r}")
    return text.lower() in _YES


def url(text: str) -> str:
    """Return the URL of a broker. Raises AddressError."""
    from gymwire.protocol.address import check_url

    return check_url(text)


def bind_url(text: str) -> str:
    """Return a URL to listen at; host and port may be `*`. Raises AddressError."""
    from gymwire.protocol.address import check_url

    return check_url(text, bind=True)


def direct(text: str) -> str:
    """Return "host", "never" or a URL tcp://HOST:PORT to listen at. Raises ValueError."""
    if text in (WITHIN_HOST, NEVER):
        return text
    from gymwire.protocol.errors import UsageError

    try:
        if bind_url(text).startswith("tcp://"):
            return text
    except UsageError:
        pass
    raise ValueError(
        f"expected 'host', 'never' or tcp://HOST:PORT (such as tcp://127.0.0.1:5600; * as the port "
        f"means any free port), got {text!r}"
    )


def address(text: str) -> str:
    """Return an address, with or without an identity. Raises AddressError."""
    from gymwire.protocol.address import parse_address

    return str(parse_address(text))


def offered_address(text: str) -> str:
    """Return an address to offer. Raises AddressError, which explains the order of arguments."""
    from gymwire.protocol.errors import AddressError

    try:
        return address(text)
    except AddressError as error:
        raise AddressError(
            f"{error} The address comes first, then the environment: gymwire serve cartpole "
            f"CartPole-v1."
        ) from None


def host_and_port(text: str) -> tuple[str, int]:
    """Return the host and the port of HOST:PORT or [IPv6]:PORT. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    valid = port.isascii() and port.isdecimal() and int(port) <= 65535
    if not (colon and bare and valid) or (":" in bare) != (host != bare):
        raise ValueError(f"expected HOST:PORT, such as 127.0.0.1:8080, got {text!r}")
    return bare, int(port)


def json_object(text: str) -> dict[str, object]:
    """Return the keyword arguments in a JSON object. Raises ValueError."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"this is not JSON ({error}). Write it like '{{\"is_slippery\": false}}'"
        ) from None
    except RecursionError:
        raise ValueError("this is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object of keyword arguments, got {text[:100]}")
    return value


def choice(*texts: str) -> Kind:
    """Return the kind of value that is one of these texts."""

    def read(text: str) -> str:
        if text not in texts:
            raise ValueError(f"expected one of {', '.join(texts)}, got {text!r}")
        return text

    return Kind(" or ".join(texts), read, choices=texts)


TEXT = Kind("text", str)
FLAG = Kind("flag", flag)
NATURAL = Kind("whole number", natural)
COUNT = Kind("whole number", count)
WATCH_RATE = Kind("whole number", watch_rate)
SECONDS = Kind("seconds", seconds)
POSITIVE_SECONDS = Kind("seconds", positive_seconds)
TIMEOUT_SECONDS = Kind("seconds", timeout_seconds)
URL = Kind("URL", url)
BIND_URL = Kind("URL", bind_url)
HOST_AND_PORT = Kind("host and port", host_and_port)
DIRECT = Kind("host, never or URL", direct, choices=(WITHIN_HOST, NEVER))
ADDRESS = Kind("address", address)
OFFERED_ADDRESS = Kind("address", offered_address)
JSON_OBJECT = Kind("JSON object", json_object)
FILE = Kind("file", Path, completes="file")
FOLDER = Kind("folder", Path, completes="dir")
FILE_OR_KEY = Kind("file or key", str, completes="file")
