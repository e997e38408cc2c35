"""`gymwire keygen NAME`: create a CURVE key pair."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gymwire.protocol.command_line import Parser
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.security import keys


def parser() -> Parser:
    """Return the parser of the command line."""
    made = Parser(prog="python -m gymwire.protocol", description="Tools for keys.")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    keygen = commands.add_parser("keygen", help="create a key pair for a broker or an agent")
    keygen.add_argument("name", metavar="NAME", help="the files will be NAME.key and NAME.pub")
    keygen.add_argument(
        "--dir", type=Path, default=Path(), metavar="DIR", help="folder (default: the current one)"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = parser().parse_args(arguments)
    try:
        secret_path, public_path = keys.generate(options.name, options.dir)
        public = keys.load(secret_path).public
    except GymwireError as error:
        print(f"keygen: {error}", file=sys.stderr)  # noqa: T201 - the CLI's error output
        return 2
    print(  # noqa: T201 - the CLI's output
        f"secret key  {secret_path}\n"
        f"            keep it on this host, readable only by you: --key {secret_path}\n"
        f"public key  {public_path}\n"
        f"            {public.decode('ascii')}\n"
        f"            a broker's: send it to its agents (--broker-key {public_path.name})\n"
        f"            an agent's: send it to the broker's operator (docs/security.md)\n"
        f"identity    {keys.identity(public)}\n"
        f"            pins an env agent with this key: ADDRESS@{keys.identity(public)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
