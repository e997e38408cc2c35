"""Offers as an operator writes them: on the command line or in a TOML file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gymwire.env_agent.environments import MAX_WATCH_RATE, WATCH_RATE, Service
from gymwire.env_agent.factory import Factory, resolve, resolve_wrapper
from gymwire.env_agent.failure_reports import CodeRaised
from gymwire.env_agent.forks import end_if_forked
from gymwire.env_agent.interpreter.child_factory import ChildFactory
from gymwire.protocol import logs
from gymwire.protocol.address import nearest, parse_address
from gymwire.protocol.errors import ConfigurationError, GymwireError
from gymwire.protocol.files import read_text

KEYS = {
    "address": str,
    "env": str,
    "env_kwargs": dict,
    "max_sessions": int,
    "expose": list,
    "strict_infos": bool,
    "watchable": bool,
    "watch_rate": int,
    "python": str,
    "spaces": str,
    "wrap": list,
}
KINDS = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    list: "a list of texts",
    dict: "a table",
}
DEFAULT_SLOTS = 64


def service(  # noqa: PLR0913 - these are the keys of an offer
    *,
    address: str,
    env: str,
    env_kwargs: Mapping[str, Any] | None = None,
    max_sessions: int | None = None,
    expose: Sequence[str] = (),
    strict_infos: bool = False,
    watchable: bool = False,
    watch_rate: int = WATCH_RATE,
    python: str | None = None,
    spaces: str | None = None,
    wrap: Sequence[str] = (),
) -> Service:
    """Return the service that one offer describes. Raises AddressError and ConfigurationError."""
    check_address(address)
    check_spaces(spaces, python)
    check_wrap(wrap, python)
    for name in expose:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigurationError(f"expose: {name!r:.100} cannot be the name of an attribute.")
    if max_sessions is None:
        max_sessions = DEFAULT_SLOTS if python is None else _processors()
    if max_sessions < 1:
        raise ConfigurationError(f"max_sessions must be 1 or more, not {max_sessions}.")
    if not 1 <= watch_rate <= MAX_WATCH_RATE:
        raise ConfigurationError(
            f"watch_rate must be from 1 to {MAX_WATCH_RATE} frames per second, not {watch_rate}."
        )
    factory: Factory | ChildFactory
    if python is not None:
        factory = ChildFactory(address, env, python, env_kwargs or {}, spaces)
    else:
        with logs.logged_if_long("importing environment", address=address, env=env):
            factory = replace(
                resolve(env, env_kwargs or {}), wrappers=tuple(map(resolve_wrapper, wrap))
            )
    return Service(
        address,
        factory,
        max_sessions,
        tuple(expose),
        strict_infos,
        watchable=watchable,
        watch_rate=watch_rate,
    )


def _processors() -> int:
    """Return how many processors this process may use: the slots of processes."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def check_address(address: str) -> None:
    """Raise AddressError or ConfigurationError if nothing can be offered under this address."""
    if parse_address(address).identity is not None:
        raise ConfigurationError(
            f"{address!r}: an env agent offers an address without @identity. Leave that part out."
        )


def check_spaces(spaces: str | None, python: str | None) -> None:
    """Raise ConfigurationError if spaces are given without an interpreter."""
    if spaces is not None and python is None:
        raise ConfigurationError(
            "Only an environment in another interpreter can be given its spaces. Also give "
            "`python` (--python), or leave `spaces` (--spaces) out."
        )


def check_wrap(wrap: Sequence[str], python: str | None) -> None:
    """Raise ConfigurationError if wrappers are given together with an interpreter."""
    if wrap and python is not None:
        raise ConfigurationError(
            "Wrappers work with environments of this interpreter only. Leave `wrap` (--wrap) out, "
            "and offer a factory that wraps the environment in the other interpreter."
        )


def load(path: Path) -> list[Service]:
    """Return the services of a TOML file with one `[[offer]]` table for each address.

    A bad offer is logged and left out. Raises ConfigurationError if no offer can be used.
    """
    try:
        document = tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise ConfigurationError(f"There is no file {path}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from None
    tables = document.pop("offer", None)
    if document or not isinstance(tables, list) or not tables:
        raise ConfigurationError(
            f"{path} must contain one [[offer]] table for each address, and nothing else. Its keys "
            f"are {', '.join(KEYS)}; only address and env are required."
        )
    return _without_bad_ones(path, tables)


def _without_bad_ones(path: Path, tables: Sequence[object]) -> list[Service]:
    """Return the services of these tables; log those that cannot be used.

    Raises the error of the first one, which is not logged, if none can be used.
    """
    services: dict[str, Service] = {}
    left_out: list[tuple[dict[str, Any], ConfigurationError]] = []
    pid = os.getpid()
    for index, table in enumerate(tables, 1):
        address = table.get("address") if isinstance(table, dict) else None
        where = f"{path}, offer {index}"
        where += f" ({address!r:.100})" if isinstance(address, str) else ""
        try:
            found = service(**_checked(where, table))
            if found.address in services:
                raise ConfigurationError(f"{where}: {found.address!r} is offered twice.")
            services[found.address] = replace(found, source=where)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the others can still be served
            end_if_forked(pid, error)
            failed = (
                error if isinstance(error, GymwireError) else CodeRaised("its code raised", error)
            )
            text = str(failed) if str(failed).startswith(where) else f"{where}: {failed}"
            facts = {"address": address, "why": text}
            if isinstance(failed, CodeRaised):
                facts |= {"why": f"{where}: {failed.why}", "traceback": failed.traceback}
            left_out.append((facts, ConfigurationError(text)))
    for facts, _ in left_out if services else left_out[1:]:
        logs.logger().error("offer left out", **facts)
    if not services:
        raise left_out[0][1]
    return [*services.values()]


def _checked(where: str, table: object) -> Mapping[str, Any]:
    """Return a table whose keys and types are right. Raises ConfigurationError."""
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where}: [[offer]] must be a table, not {type(table).__name__}.")
    for key, value in table.items():
        if key not in KEYS:
            near = nearest(key, KEYS)
            hint = f" Did you mean {near!r}?" if near else ""
            raise ConfigurationError(f"{where}: unknown key {key!r}.{hint} Use {', '.join(KEYS)}.")
        is_right = type(value) is KEYS[key]
        if isinstance(value, list):
            is_right = is_right and all(type(item) is str for item in value)
        if not is_right:
            expected = KINDS[KEYS[key]]
            raise ConfigurationError(f"{where}: {key} must be {expected}, not {value!r:.100}.")
    for key in ("address", "env"):
        if key not in table:
            raise ConfigurationError(f"{where}: {key} is missing.")
    return table
