"""`gymwire`: train against an address, see what is on offer, check, try."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from gymwire.learner_agent import commands
from gymwire.learner_agent.terminal import printable
from gymwire.protocol import logs
from gymwire.protocol.address import DEFAULT_BROKER, check_url, parse_address
from gymwire.protocol.command_line import Parser, count, natural, positive_seconds, seconds
from gymwire.protocol.errors import (
    BrokerUnreachable,
    EnvironmentFailed,
    EnvironmentLost,
    GymwireError,
    UsageError,
)
from gymwire.protocol.security import keys

PROGRAM = "learner_agent"
DEMO_ADDRESS = "price-market"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; `status` is the exit status that shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog=f"python -m {PROGRAM}",
        description="Train against environments that other agents offer.",
    )
    verbs = made.add_subparsers(required=True, metavar="COMMAND")

    verb = _verb(verbs, "train", commands.train, "train a learner that fits, and report")
    _environment(verb, DEMO_ADDRESS)
    verb.add_argument(
        "--steps", type=count, default=20_000, metavar="N", help="steps to train (default 20000)"
    )
    _seed(verb, "the same seed gives the same result (default: a random one, which is logged)")
    verb.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw curves, to a .png, .svg or .pdf"
    )
    verb.add_argument("--save", type=Path, metavar="FILE", help="keep what was learnt, as .npz")
    verb.add_argument("--load", type=Path, metavar="FILE", help="go on from what --save kept")

    verb = _verb(verbs, "ls", commands.ls, "show what is on offer")
    _connection(verb)

    verb = _verb(
        verbs,
        "check",
        commands.check,
        "run Gymnasium's environment checker, and show where the time of a step goes",
    )
    _environment(verb)
    verb.add_argument(
        "--steps", type=count, default=2000, metavar="N", help="steps to measure (default 2000)"
    )
    _seed(verb, "of the random policy")

    verb = _verb(verbs, "run", commands.run, "play episodes with a random policy")
    _environment(verb)
    verb.add_argument(
        "--episodes", type=count, default=10, metavar="N", help="how many (default 10)"
    )
    _seed(verb, "of the environment and the policy")
    verb.add_argument("--render", action="store_true", help="print each step's picture, as text")
    return made


def _verb(verbs: Any, name: str, command: Any, text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=f"{text}.")
    verb.set_defaults(command=command)
    return verb


def _environment(verb: argparse.ArgumentParser, default: str | None = None) -> None:
    fallback = os.environ.get("GYMWIRE_ADDRESS") or default
    verb.add_argument(
        "address",
        nargs="?" if fallback else None,
        default=fallback,
        type=_address,
        metavar="ADDRESS",
        help=(
            f"where (default: GYMWIRE_ADDRESS, else {default})"
            if default
            else "where; may be left out if GYMWIRE_ADDRESS says it"
        ),
    )
    verb.add_argument(
        "--env-kwargs",
        type=_kwargs,
        default={},
        metavar="JSON",
        help="keyword arguments for the environment",
    )
    _connection(verb)


def _connection(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--broker",
        type=_url,
        default=os.environ.get("GYMWIRE_BROKER") or DEFAULT_BROKER,
        metavar="URL",
        help=f"the broker's URL (default: GYMWIRE_BROKER, else {DEFAULT_BROKER})",
    )
    verb.add_argument(
        "--wait",
        type=seconds,
        default=0.0,
        metavar="S",
        help="wait this much longer for the broker, the address and a free slot ('inf': for ever)",
    )
    verb.add_argument(
        "--timeout",
        type=positive_seconds,
        default=60.0,
        metavar="S",
        help="seconds of silence after which the broker is given up (default 60)",
    )
    keys.add_options(verb)
    logs.add_options(verb)


def _seed(verb: argparse.ArgumentParser, text: str) -> None:
    verb.add_argument("--seed", type=natural, metavar="S", help=text)


# --- what an option may be ------------------------------------------------------------------------


def _url(text: str) -> str:
    try:
        return check_url(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _address(text: str) -> str:
    try:
        return str(parse_address(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _kwargs(text: str) -> dict[str, Any]:
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"this is not JSON ({error}): write it like '{{\"is_slippery\": false}}'"
        ) from None
    if not isinstance(kwargs, dict):
        raise argparse.ArgumentTypeError(f"a JSON object is needed, not {text[:100]}")
    return kwargs


# --- running it -----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 for a failure, 2 for wrong use."""
    options = parser().parse_args(arguments)
    logs.configure(PROGRAM, form=options.log_format, level=options.log_level)
    out, errors = Console(), Console(stderr=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return int(options.command(options, out, errors))
    except Interrupted as interrupted:
        return interrupted.status
    except GymwireError as error:
        print(f"{PROGRAM}: {_told(error)}", file=sys.stderr)  # noqa: T201 - the CLI's error output
        return 2 if isinstance(error, UsageError) else 1


def _told(error: GymwireError) -> str:
    """The error as it is printed; a traceback of the other side is set apart from our words."""
    if error.advice:  # for programs
        error.advice = _ADVICE.get(type(error), "")
    if isinstance(error, EnvironmentFailed) and error.remote_traceback:
        said, _, trace = str(error).partition("\n\n")
        return printable(f"{said}\n\n{textwrap.indent(trace, '    ')}")
    return printable(str(error))


_ADVICE: dict[type[GymwireError], str] = {
    EnvironmentLost: "Run the command again when an env agent offers the address (`python -m "
    "learner_agent ls` shows it), or with --wait SECONDS.",
    BrokerUnreachable: "Run the command again when the broker is back, or with a longer --timeout.",
}


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Unwind from wherever we are; a second signal ends the process at once."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    raise Interrupted(number)


if __name__ == "__main__":
    sys.exit(main())
