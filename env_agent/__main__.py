"""`gymwire serve`: offer environments under addresses."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gymwire.env_agent import config
from gymwire.env_agent.agent import MAX_THREADS, Agent
from gymwire.env_agent.host import Service
from gymwire.env_agent.transports import DirectSettings
from gymwire.env_agent.workers import Supervisor
from gymwire.protocol import logs
from gymwire.protocol.address import DEFAULT_BROKER, check_url
from gymwire.protocol.command_line import Parser, count, seconds
from gymwire.protocol.errors import ConfigurationError, GymwireError, UsageError
from gymwire.protocol.security import keys
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport.dealer import Dealer, LivenessConnection
from gymwire.protocol.transport.unix import CAN_LISTEN

WITHIN_HOST, NEVER = "host", "never"  # for --direct


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="gymwire serve",
        description="Own Gymnasium environments and offer them under an address.",
    )
    made.add_argument("--address", metavar="NAME", help="the address to offer, e.g. lab/cartpole")
    made.add_argument(
        "--env",
        metavar="ENV",
        help="a Gymnasium id (CartPole-v1, module:Id-v0), or a class or factory (module:MyEnv, "
        "./file.py:MyEnv)",
    )
    made.add_argument(
        "--env-kwargs", metavar="JSON", default="{}", help="keyword arguments for the environment"
    )
    made.add_argument(
        "--max-sessions",
        type=count,
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
        default=os.environ.get("GYMWIRE_BROKER") or DEFAULT_BROKER,
        help=f"the broker's URL (default: GYMWIRE_BROKER, else {DEFAULT_BROKER})",
    )
    made.add_argument(
        "--wait",
        type=seconds,
        default=0.0,
        metavar="S",
        help="wait this much longer for the broker to appear ('inf': for ever)",
    )
    made.add_argument(
        "--direct",
        metavar="URL",
        default=WITHIN_HOST,
        help="who may go past the broker: 'host', learners of this host (the default; with keys "
        "nobody); tcp://HOST:PORT, those of others, too, for which each thread and worker takes "
        "the next port ('*': any); or 'never'",
    )
    made.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="sessions that can be in a step at the same time (default: all, 8 at most)",
    )
    made.add_argument(
        "--workers",
        type=count,
        default=1,
        metavar="N",
        help="serve with N processes, which share --max-sessions; one that dies is replaced",
    )
    made.add_argument(
        "--pin",
        action="store_true",
        help="keep each worker on a processor of its own: faster for cheap environments that one "
        "learner steps together, since the kernel tends to wake them all on one (Linux)",
    )
    made.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # this is worker number N
    made.add_argument("--tell-once", type=Path, help=argparse.SUPPRESS)  # see _is_first_to_tell
    made.add_argument(
        "--grace",
        type=seconds,
        default=10.0,
        metavar="S",
        help="on SIGTERM, seconds for which running sessions may finish (default 10)",
    )
    made.add_argument(
        "--insecure",
        action="store_true",
        help="with --direct: listen beyond this host without keys",
    )
    keys.add_options(made)
    logs.add_options(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or Ctrl-C. Returns the exit status."""
    options = parser().parse_args(arguments)
    logs.configure("env_agent", form=options.log_format, level=options.log_level)
    try:
        check_url(options.broker)
        if options.workers > 1 and options.worker is None:
            return _supervise(sys.argv[1:] if arguments is None else arguments, options.workers)
        mine = keys.credentials(options.key, options.broker_key)
        if options.pin:
            _pin(options.worker or 0)
        services = _services(options)
        agent = Agent(
            services,
            partial(Dealer, options.broker, key=mine.key, server_key=mine.broker_key),
            partial(LivenessConnection, options.broker, key=mine.key, server_key=mine.broker_key),
            key=mine.key,
            direct=_direct(options, mine.key),
            threads=options.threads,
            wait_s=2.5 + options.wait,
            grace_s=options.grace,
        )
        agent.install_signals()
        if options.worker is not None:
            threading.Thread(
                target=_end_with_parent, args=(agent, options.tell_once), daemon=True
            ).start()
        agent.run()
    except GymwireError as error:
        if _is_first_to_tell(options.tell_once):
            print(f"env_agent: {error}", file=sys.stderr)  # noqa: T201 - the CLI's error output
        return 2
    return 0


def _is_first_to_tell(token: Path | None) -> bool:
    """Whether no other worker says the same: all start alike, and one removes their token."""
    try:
        if token is not None:
            token.unlink()
    except FileNotFoundError:
        return False
    return True


def _pin(worker: int) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigurationError("--pin works on Linux only: leave it out here.")
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[worker % len(processors)]})


def _end_with_parent(agent: Agent, token: Path | None) -> None:
    """The supervisor holds the other end of standard input, and never writes.

    If it was killed, the workers' token is left for them to remove.
    """
    while os.read(0, 4096):  # sys.stdin's lock would be in the way when the interpreter ends
        continue
    if token is not None:
        token.unlink(missing_ok=True)
    agent.stop()


def _supervise(arguments: Sequence[str], workers: int) -> int:
    supervisor = Supervisor(arguments, workers)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, _: supervisor.stop(got))
    return supervisor.run()


def _direct(options: argparse.Namespace, key: KeyPair | None) -> DirectSettings | None:
    if options.direct == WITHIN_HOST:
        return DirectSettings(None) if CAN_LISTEN and key is None else None
    if options.direct == NEVER:
        return None
    try:
        url = check_url(options.direct, bind=True)
    except UsageError:
        url = ""
    if not url.startswith("tcp://"):
        raise ConfigurationError(
            f"--direct {options.direct}: write tcp://HOST:PORT, such as tcp://127.0.0.1:5600, or * "
            f"as the port for any (a socket for this host comes with it); 'host'; or 'never'."
        )
    if options.worker and not url.endswith(":*"):
        threads = options.threads or MAX_THREADS
        head, _, port = url.rpartition(":")
        url = f"{head}:{int(port) + options.worker * threads}"
    return DirectSettings(url, key, options.insecure)


def _services(options: argparse.Namespace) -> list[Service]:
    if options.config is not None:
        if options.address or options.env:
            raise ConfigurationError("Give either --config or --address and --env, not both.")
        return _share(config.load(options.config), options)
    if not options.address or not options.env:
        raise ConfigurationError(
            "What shall be offered? Give --address NAME and --env ENV, or --config FILE. Example: "
            "gymwire serve --address cartpole --env CartPole-v1"
        )
    one = config.service(
        address=options.address,
        env=options.env,
        env_kwargs=config.parse_kwargs(options.env_kwargs),
        max_sessions=options.max_sessions,
        allow=options.allow,
        strict_infos=options.strict_infos,
    )
    return _share([one], options)


def _share(services: list[Service], options: argparse.Namespace) -> list[Service]:
    """The slots of each service that this worker serves."""
    if options.worker is None:
        return services
    count, index = options.workers, options.worker
    if any(one.max_sessions < count for one in services):
        raise ConfigurationError(
            f"{count} workers need --max-sessions {count} at least: one for each."
        )
    return [
        replace(one, max_sessions=(one.max_sessions + count - 1 - index) // count)
        for one in services
    ]


if __name__ == "__main__":
    sys.exit(main())
