"""`python -m env_agent`: offer environments under addresses."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from env_agent import config
from env_agent.agent import Agent
from protocol import logs
from protocol.address import DEFAULT_BROKER, check_url
from protocol.errors import ConfigurationError, GymwireError
from protocol.transport import Dealer


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m env_agent",
        description="Own Gymnasium environments and offer them under an address.",
    )
    made.add_argument("--address", metavar="NAME", help="the address to offer, e.g. lab/cartpole")
    made.add_argument(
        "--env",
        metavar="ENV",
        help="a Gymnasium id (CartPole-v1, module:Id-v0), or a class or factory (module:MyEnv)",
    )
    made.add_argument(
        "--env-kwargs", metavar="JSON", default="{}", help="keyword arguments for the environment"
    )
    made.add_argument(
        "--max-sessions",
        type=int,
        default=config.MAX_SESSIONS,
        metavar="N",
        help=f"learners at once (default {config.MAX_SESSIONS})",
    )
    made.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="an attribute or method of the environment that learners may use; may be repeated",
    )
    made.add_argument(
        "--strict-infos",
        action="store_true",
        help="fail on info values that cannot travel, instead of sending their repr",
    )
    made.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with several offers")
    made.add_argument(
        "--broker",
        metavar="URL",
        default=os.environ.get("GYMWIRE_BROKER", DEFAULT_BROKER),
        help=f"the broker's URL (default: GYMWIRE_BROKER, else {DEFAULT_BROKER})",
    )
    made.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="S",
        help="wait this much longer for the broker to appear ('inf': for ever)",
    )
    made.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="sessions that can be in a step at the same time (default: all, 8 at most)",
    )
    made.add_argument(
        "--grace",
        type=float,
        default=10.0,
        metavar="S",
        help="on SIGTERM, seconds for which running sessions may finish (default 10)",
    )
    logs.add_options(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or Ctrl-C. Returns the exit status."""
    options = parser().parse_args(arguments)
    logs.configure("env_agent", form=options.log_format, level=options.log_level)
    try:
        check_url(options.broker)
        services = _services(options)
        agent = Agent(
            services,
            lambda: Dealer(options.broker),
            threads=options.threads,
            wait_s=2.5 + options.wait,
            grace_s=options.grace,
        )
        agent.install_signals()
        agent.run()
    except GymwireError as error:
        print(f"env_agent: {error}", file=sys.stderr)  # noqa: T201 - the CLI's error output
        return 2
    return 0


def _services(options: argparse.Namespace) -> list[config.Service]:
    if options.config is not None:
        if options.address or options.env:
            raise ConfigurationError("Give either --config or --address and --env, not both.")
        return config.load(options.config)
    if not options.address or not options.env:
        raise ConfigurationError(
            "What shall be offered? Give --address NAME and --env ENV, or --config FILE. Example: "
            "python -m env_agent --address cartpole --env CartPole-v1"
        )
    one = config.service(
        address=options.address,
        env=options.env,
        env_kwargs=config.parse_kwargs(options.env_kwargs),
        max_sessions=options.max_sessions,
        allow=options.allow,
        strict_infos=options.strict_infos,
    )
    return [one]


if __name__ == "__main__":
    sys.exit(main())
