"""Offers as an operator writes them: on the command line or in a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import resolve
from gymwire.protocol.address import parse_address
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.files import read_text

KEYS = {
    "address": str,
    "env": str,
    "env_kwargs": dict,
    "max_sessions": int,
    "expose": list,
    "strict_infos": bool,
}
DEFAULT_SLOTS = 8


def service(
    *,
    address: str,
    env: str,
    env_kwargs: Mapping[str, Any] | None = None,
    max_sessions: int = DEFAULT_SLOTS,
    expose: Sequence[str] = (),
    strict_infos: bool = False,
) -> Service:
    """Return the service that one offer describes. Raises AddressError and ConfigurationError."""
    check_address(address)
    if max_sessions < 1:
        raise ConfigurationError(f"max_sessions must be 1 or more, not {max_sessions}.")
    factory = resolve(env, env_kwargs or {})
    return Service(address, factory, max_sessions, tuple(expose), strict_infos)


def check_address(address: str) -> None:
    """Raise AddressError or ConfigurationError if nothing can be offered under this address."""
    if parse_address(address).identity is not None:
        raise ConfigurationError(
            f"{address!r}: an env agent offers an address without @identity. Leave that part out."
        )


def load(path: Path) -> list[Service]:
    """Return the services of a TOML file with one `[[offer]]` table for each address.

    Raises AddressError and ConfigurationError.
    """
    try:
        document = tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise ConfigurationError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from None
    tables = document.pop("offer", None)
    if document or not isinstance(tables, list) or not tables:
        raise ConfigurationError(
            f"{path} must contain one [[offer]] table for each address, and nothing else. Its keys "
            f"are {', '.join(KEYS)}; only address and env are required."
        )
    services = [_offer(path, index, table) for index, table in enumerate(tables, 1)]
    addresses = [one.address for one in services]
    twice = {address for address in addresses if addresses.count(address) > 1}
    if twice:
        raise ConfigurationError(f"{path}: {min(twice)!r} is offered twice.")
    return services


def _offer(path: Path, index: int, table: object) -> Service:
    where = f"{path}, offer {index}"
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where}: [[offer]] must be a table, not {type(table).__name__}.")
    for key, value in table.items():
        if key not in KEYS:
            raise ConfigurationError(f"{where}: unknown key {key!r}. Use {', '.join(KEYS)}.")
        if type(value) is not KEYS[key]:
            raise ConfigurationError(
                f"{where}: {key} must be a {KEYS[key].__name__}, not {type(value).__name__}."
            )
    for key in ("address", "env"):
        if key not in table:
            raise ConfigurationError(f"{where}: {key} is missing.")
    return service(**table)
