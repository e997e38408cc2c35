"""`gymwire broker`: run a broker."""

from __future__ import annotations

import gc
import signal
from dataclasses import dataclass
from pathlib import Path

from gymwire.broker.policy_file import PolicyFile
from gymwire.broker.server import Server
from gymwire.cli.connection import LogOptions, naming
from gymwire.cli.output import Output
from gymwire.protocol.ending_signals import StopEvent, ending_signals
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.security import keys
from gymwire.protocol.security.keys import KeyPair

RARELY = 1000  # collections of the middle generation before a full one


@dataclass(frozen=True, kw_only=True)
class Options(LogOptions):
    """The options of `gymwire broker`."""

    bind: tuple[str, ...]
    key: Path | None
    policy: Path | None
    insecure: bool
    lease_s: float
    no_local_channels: bool


def command(options: Options, output: Output) -> int:
    """Run a broker until Ctrl-C, SIGTERM or SIGHUP. Returns the exit status."""
    # A full collection stops the broker for 50 ms if it has 64,000 sessions. Its tables contain no
    # cycles, so rare ones suffice.
    gc.set_threshold(*gc.get_threshold()[:2], RARELY)
    stop = StopEvent()
    for number in ending_signals():
        signal.signal(number, lambda *_: stop.set())
    make_server(options).run(stop)
    return 0


def make_server(options: Options) -> Server:
    """Return a broker that listens. Raises ConfigurationError."""
    if options.policy is not None and options.key is None:
        with naming(options, "policy"):
            raise ConfigurationError(
                "A policy needs keys: also give the broker's own key, with --key FILE."
            )
    with naming(options, "key"):
        key: KeyPair | None = None if options.key is None else keys.load(options.key)
    with naming(options, "policy"):
        policy = None if options.policy is None else PolicyFile(options.policy)
    with naming(options, "bind"):
        return Server(
            options.bind,
            key=key,
            policy=policy,
            insecure=options.insecure,
            lease_s=options.lease_s,
            local_channels=not options.no_local_channels,
        )
