"""`gymwire web`: run the gateway for browsers and other programs without ZeroMQ."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gymwire.cli.connection import BrokerOptions, naming
from gymwire.cli.output import Output
from gymwire.protocol.address import is_local, parse_address
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.extras import missing

if TYPE_CHECKING:
    from gymwire.gateway import app


@dataclass(frozen=True, kw_only=True)
class Options(BrokerOptions):
    """The options of `gymwire web`."""

    listen: tuple[str, int]
    token_file: Path | None
    origin: tuple[str, ...]
    openenv: tuple[str, ...]
    mcp: tuple[str, ...]


def command(options: Options, output: Output) -> int:
    """Run the gateway until Ctrl-C, SIGTERM or SIGHUP. Returns the exit status."""
    try:
        from gymwire.gateway import app, doors, server, tokens
        from gymwire.gateway.access import Access
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("gymwire"):
            raise
        raise ConfigurationError(missing(f"`gymwire web` needs {error.name}", "web")) from None
    key, broker_key = options.credentials()
    visitors: tuple[tokens.Visitor, ...] = ()
    if options.token_file is not None:
        with naming(options, "token_file"):
            visitors = tokens.load(options.token_file, key)
    with naming(options, "listen"):
        host, port = options.listen
        listener = server.listen(host, port)
        if not visitors and not is_local(f"tcp://{f'[{host}]' if ':' in host else host}:{port}"):
            listener.close()
            raise ConfigurationError(
                f"Refusing to listen at {host} without tokens: anyone who reaches this port could "
                f"use and offer environments. Give --token-file FILE with a table [token.NAME] for "
                f"each user."
            )
    access = Access(visitors, tokens.Visitor("this host", key), options.origin)
    gateway = app.Gateway(options.broker, broker_key, access)
    with listener:
        server.run(app.make_app(gateway, [*doors.DOORS, *_asked(options)]), listener)
    server.leave(0)
    return 0


def _asked(options: Options) -> Iterator[app.Door]:
    """Return the doors for which there are options. Raises AddressError, ConfigurationError."""
    for name in ("openenv", "mcp"):
        addresses = getattr(options, name)
        if not addresses:
            continue
        with naming(options, name):
            for address in addresses:
                parse_address(address)
            try:
                module = importlib.import_module(f"gymwire.gateway.{name}")
            except ModuleNotFoundError as error:
                raise ConfigurationError(missing(f"--{name} needs {error.name}", name)) from None
        yield module.door(sorted(addresses, key=len, reverse=True))  # lab/cart before lab
