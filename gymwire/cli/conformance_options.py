"""The options of `gymwire conformance`, a part of the table of options."""

from __future__ import annotations

from gymwire.cli import kinds
from gymwire.cli.option import Option

COMMAND = "conformance"

OPTIONS = (
    Option(
        keyword="address",
        kind=kinds.ADDRESS,
        commands=(COMMAND,),
        metavar="ADDRESS",
        help="the address that the env agent offers; with --listen, by default the first one",
        positional=True,
    ),
    Option(
        keyword="listen",
        kind=kinds.BIND_URL,
        commands=(COMMAND,),
        metavar="URL",
        help="play the env agent's broker, at this URL, and run all checks; --key is then the "
        "broker's key",
        own_variable="GYMWIRE_CONFORMANCE_LISTEN",
    ),
    Option(
        keyword="wait_s",
        kind=kinds.SECONDS,
        commands=(COMMAND,),
        default="30",
        metavar="S",
        panel="Connection",
        help="seconds to wait for the broker, or with --listen for the env agent",
    ),
    Option(
        keyword="timeout_s",
        kind=kinds.POSITIVE_SECONDS,
        commands=(COMMAND,),
        default="10",
        metavar="S",
        panel="Connection",
        help="seconds that the env agent may take for one answer; a check takes six times as long "
        "at most",
    ),
)
