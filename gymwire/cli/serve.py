"""`gymwire serve`: serve environments under addresses."""

from __future__ import annotations

import gc
import os
import signal
import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from gymwire.cli.connection import AgentOptions, naming
from gymwire.cli.kinds import NEVER, WITHIN_HOST
from gymwire.cli.output import Output
from gymwire.env_agent import config, signals
from gymwire.env_agent.agent import MAX_THREADS, Agent
from gymwire.env_agent.environments import Service
from gymwire.env_agent.memory import limit_arenas
from gymwire.env_agent.recorder import Recorder
from gymwire.env_agent.transports import DirectSettings
from gymwire.env_agent.workers import Supervisor, die_with_supervisor
from gymwire.protocol.errors import ConfigurationError, GymwireError
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport.dealer import Dealer, LivenessConnection
from gymwire.protocol.transport.handshake import CONNECT_S
from gymwire.protocol.transport.unix import CAN_LISTEN

MIB = 1024 * 1024  # bytes


@dataclass(frozen=True, kw_only=True)
class Options(AgentOptions):
    """The options of `gymwire serve`.

    Attributes:
        worker: the number of this process, if it is one of several workers.
        report_once: the pipe from which one of the workers reads a byte before it prints the
            error that stops them all.
        arguments: the command's arguments, with which workers are started.
    """

    address: str | None
    env: str | None
    env_kwargs: dict[str, Any]
    config: Path | None
    max_sessions: int | None
    expose: tuple[str, ...]
    wrap: tuple[str, ...]
    strict_infos: bool
    watchable: bool
    watch_rate: int
    python: str | None
    spaces: str | None
    direct: str
    threads: int | None
    workers: int
    pin: bool
    grace_s: float
    insecure: bool
    record: Path | None
    record_limit: int
    worker: int | None
    report_once: int | None
    arguments: tuple[str, ...] = ()


def command(options: Options, output: Output) -> int:
    """Serve until Ctrl-C, SIGTERM or SIGHUP. Returns the exit status."""
    if options.pin and options.workers == 1:
        raise ConfigurationError("--pin is for several workers: pass --workers N, or leave it out.")
    if options.workers > 1 and options.worker is None:
        return _supervise(options)
    if options.workers > 1:
        # Not in a fleet: the kernel acts when the thread that started this process ends, which may
        # be before the process of that thread ends.
        die_with_supervisor()
    limit_arenas()
    recorder: Recorder | None = None
    try:
        if options.record is not None:
            with naming(options, "record"):
                recorder = Recorder(options.record, options.record_limit * MIB)
        agent = make_agent(options, recorder)
        agent.install_signals()
        # A collection holds up all sessions, and modules are never garbage.
        gc.freeze()
        gc.set_threshold(10_000)
        if options.worker is not None:
            agent.agent_pid = os.getppid()
            threading.Thread(target=_end_with_parent, args=(agent,), daemon=True).start()
        agent.run()
    except GymwireError:
        if _is_first_to_report(options.report_once):
            raise
        return 2
    finally:
        if recorder is not None:
            recorder.close()
    return signals.STOPPED if agent.stopped and options.worker is not None else 0


def make_agent(options: Options, recorder: Recorder | None = None) -> Agent:
    """Return an env agent that is ready to run. Raises GymwireError."""
    mine = options.credentials()
    if options.pin:
        _pin(options.worker or 0)
    services = [replace(one, recorder=recorder) for one in make_services(options)]
    return Agent(
        services,
        partial(Dealer, options.broker, key=mine.key, server_key=mine.broker_key),
        partial(LivenessConnection, options.broker, key=mine.key, server_key=mine.broker_key),
        key=mine.key,
        direct=direct_settings(options, mine.key),
        threads=options.threads,
        wait_s=CONNECT_S + options.wait_s,
        grace_s=options.grace_s,
    )


def _is_first_to_report(pipe: int | None) -> bool:
    """Return whether to print the error: of workers, which all fail alike, only one does."""
    return pipe is None or os.read(pipe, 1) != b""


def _pin(worker: int) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigurationError("--pin works on Linux only. Leave it out on this system.")
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[worker % len(processors)]})


def _end_with_parent(agent: Agent) -> None:
    """Stop the agent when standard input ends: the supervisor holds its other end, unused."""
    while os.read(0, 4096):  # not sys.stdin, whose lock would block the end of the interpreter
        continue
    agent.end(drain=False)


def _supervise(options: Options) -> int:
    supervisor = Supervisor(options.arguments, options.workers, options.grace_s)
    for number in signals.ENDING:
        signal.signal(number, lambda got, _: supervisor.stop(got))
    return supervisor.run()


def direct_settings(options: Options, key: KeyPair | None) -> DirectSettings | None:
    """Return where this process listens for direct connections; None: nowhere."""
    if options.direct == WITHIN_HOST:
        return DirectSettings(None) if CAN_LISTEN and key is None else None
    if options.direct == NEVER:
        return None
    url = options.direct
    if options.worker and not url.endswith(":*"):
        head, _, port = url.rpartition(":")
        url = f"{head}:{int(port) + options.worker * (options.threads or MAX_THREADS)}"
    return DirectSettings(url, key, options.insecure)


def make_services(options: Options) -> list[Service]:
    """Return what this process offers. Raises AddressError and ConfigurationError."""
    if options.config is not None:
        if options.address or options.env:
            raise ConfigurationError(
                "Give either --config, or an address and an environment, not both."
            )
        _check_offer_options(options)
        with naming(options, "config"):
            return _share(config.load(options.config), options)
    if options.address and not options.env:
        raise ConfigurationError(
            f"No environment given for {options.address}: pass ADDRESS and ENV. Example: "
            f"gymwire serve cartpole CartPole-v1"
        )
    if not options.address or not options.env:
        raise ConfigurationError(
            "Nothing to serve: pass ADDRESS and ENV, or --config FILE. Example: "
            "gymwire serve cartpole CartPole-v1"
        )
    with naming(options, "address"):
        config.check_address(options.address)
    with naming(options, "spaces"):
        config.check_spaces(options.spaces, options.python)
    with naming(options, "wrap"):
        config.check_wrap(options.wrap, options.python)
    with naming(options, "env"):
        service = config.service(
            address=options.address,
            env=options.env,
            env_kwargs=options.env_kwargs,
            max_sessions=options.max_sessions,
            expose=options.expose,
            strict_infos=options.strict_infos,
            watchable=options.watchable,
            watch_rate=options.watch_rate,
            python=options.python,
            spaces=options.spaces,
            wrap=options.wrap,
        )
    return _share([service], options)


def _check_offer_options(options: Options) -> None:
    """Raise ConfigurationError if options of an offer are given together with a file of offers.

    Variables may be meant for other commands, so they only cause a warning.
    """
    given = {key: options.origins[key] for key in config.KEYS if key in options.origins}
    for key, origin in given.items():
        if origin.startswith("--"):
            raise ConfigurationError(
                f"{origin} has no effect on the offers of {options.config}. Set the key `{key}` of "
                f"each offer in that file instead."
            )
    if given and not options.worker:  # of several workers, only one warns
        structlog.get_logger().warning(
            "variables without effect on the offers of a file",
            variables=sorted(given.values()),
            config=str(options.config),
        )


def _share(services: list[Service], options: Options) -> list[Service]:
    """Return the services with the slots that this worker serves."""
    if options.worker is None:
        return services
    count, index = options.workers, options.worker
    for one in services:
        if one.max_sessions < count:
            raise ConfigurationError(
                f"{one.address}: {count} workers need `max_sessions` (--max-sessions) of {count} "
                f"or more: one session for each."
            )
    return [
        replace(one, max_sessions=(one.max_sessions + count - 1 - index) // count)
        for one in services
    ]
