"""`gymwire keygen NAME`: make a CURVE key pair."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gymwire.protocol.command_line import Parser
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.security import keys


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python -m gymwire.protocol", description="Tools for keys.")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    keygen = commands.add_parser("keygen", help="make a key pair for a broker or an agent")
    keygen.add_argument("name", metavar="NAME", help="the files will be NAME.key and NAME.pub")
    keygen.add_argument(
        "--dir", type=Path, default=Path(), metavar="DIR", help="where (default: the folder here)"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        secret_path, public_path = keys.generate(options.name, options.dir)
        public = keys.load(secret_path).public
    except GymwireError as error:
        print(f"keygen: {error}", file=sys.stderr)  # noqa: T201 - the CLI's error output
        return 2
    print(  # noqa: T201 - the CLI's output
        f"secret key  {secret_path}\n"
        f"            stays on this host and is read by you alone: --key {secret_path}\n"
        f"public key  {public_path}\n"
        f"            {public.decode('ascii')}\n"
        f"            is for others: a broker's for its agents (--broker-key {public_path.name}),\n"
        f"            an agent's for the broker's policy (docs/security.md)\n"
        f"identity    {keys.identity(public)}\n"
        f"            an agent's can be pinned: ADDRESS@{keys.identity(public)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
