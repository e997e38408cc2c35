"""The options of `gymwire web`, a part of the table of options."""

from __future__ import annotations

from gymwire.cli import kinds
from gymwire.cli.option import Option

DEFAULT_LISTEN = "127.0.0.1:8080"

OPTIONS = (
    Option(
        keyword="listen",
        kind=kinds.HOST_AND_PORT,
        commands=("web",),
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help="where to listen; beyond this host only with --token-file",
    ),
    Option(
        keyword="token_file",
        kind=kinds.FILE,
        commands=("web",),
        metavar="FILE",
        help="a TOML file with the tokens of those who may connect, and the key of each",
    ),
    Option(
        keyword="origin",
        kind=kinds.TEXT,
        commands=("web",),
        default=(),
        metavar="URL",
        help="an origin, such as http://127.0.0.1:8000, whose pages may connect from a browser",
        repeats=True,
    ),
    Option(
        keyword="openenv",
        kind=kinds.TEXT,
        commands=("web",),
        default=(),
        metavar="ADDRESS",
        help="serve the environment at this address as an OpenEnv server, at /openenv/ADDRESS",
        repeats=True,
    ),
    Option(
        keyword="mcp",
        kind=kinds.TEXT,
        commands=("web",),
        default=(),
        metavar="ADDRESS",
        help="serve the environment at this address as tools of MCP, at /mcp/ADDRESS",
        repeats=True,
    ),
)
