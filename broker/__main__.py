"""`gymwire broker`: run a broker."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from gymwire.broker.policy_file import PolicyFile
from gymwire.broker.server import Server
from gymwire.protocol import logs
from gymwire.protocol.address import DEFAULT_BROKER
from gymwire.protocol.command_line import Parser, seconds
from gymwire.protocol.errors import ConfigurationError, GymwireError
from gymwire.protocol.security.keys import load


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="gymwire broker",
        description="Introduce learner agents to env agents, and relay between them.",
    )
    made.add_argument(
        "--bind",
        action="append",
        metavar="URL",
        help=f"listen here: tcp://HOST:PORT or ipc://PATH; may be repeated "
        f"(default {DEFAULT_BROKER})",
    )
    made.add_argument(
        "--key", metavar="FILE", help="the broker's secret key (default: GYMWIRE_KEY, else none)"
    )
    made.add_argument(
        "--policy",
        type=Path,
        metavar="FILE.toml",
        help="which keys may offer and use what; read again when it changes (default: any key may)",
    )
    made.add_argument(
        "--insecure",
        action="store_true",
        help="listen beyond this host without keys: anyone who reaches the port may do anything",
    )
    made.add_argument(
        "--lease",
        type=seconds,
        default=30.0,
        metavar="S",
        help="seconds for which a session waits for a learner that vanished (default 30)",
    )
    made.add_argument(
        "--no-local-channels",
        action="store_true",
        help="relay by ZeroMQ only, also within this host, where a Unix socket is faster",
    )
    logs.add_options(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or Ctrl-C. Returns the exit status."""
    options = parser().parse_args(arguments)
    logs.configure("broker", form=options.log_format, level=options.log_level)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        key_file = options.key or os.environ.get("GYMWIRE_KEY") or None
        if options.policy is not None and key_file is None:
            raise ConfigurationError("--policy is about keys: give the broker's own with --key.")
        server = Server(
            options.bind or [DEFAULT_BROKER],
            key=None if key_file is None else load(Path(key_file)),
            policy=None if options.policy is None else PolicyFile(options.policy),
            insecure=options.insecure,
            lease_s=options.lease,
            lanes=not options.no_lanes,
        )
    except GymwireError as error:
        print(f"broker: {error}", file=sys.stderr)  # noqa: T201 - the CLI's error output
        return 2
    server.run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
