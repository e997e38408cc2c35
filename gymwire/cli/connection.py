"""What the commands share that connect to a broker: their options, and how they connect."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymwire.cli.output import Output
from gymwire.protocol.errors import (
    AddressUnknown,
    ConfigurationError,
    EnvironmentFailed,
    UsageError,
)
from gymwire.protocol.security import keys

if TYPE_CHECKING:
    from gymwire.learner_agent.client.connection import BrokerConnection
    from gymwire.learner_agent.proxies.proxy_env import ProxyEnv

NO_ADDRESS = "No address given: pass ADDRESS, or set GYMWIRE_ADDRESS."


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """The options of every command.

    Attributes:
        origins: the option, argument or variable that a value came from, by keyword; nothing for
            defaults.
    """

    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LogOptions(CommandOptions):
    """The options of every command that writes a log."""

    log_format: str
    log_level: str


@dataclass(frozen=True, kw_only=True)
class BrokerOptions(LogOptions):
    """The options of every command that connects to a broker."""

    broker: str
    key: Path | None
    broker_key: str | None

    def credentials(self) -> keys.Credentials:
        """Return both keys. Raises ConfigurationError, which names the key that is wrong."""
        if self.key is not None:
            with naming(self, "key"):
                keys.load(self.key)
        if self.broker_key is not None:
            with naming(self, "broker_key"):
                keys.load_public(self.broker_key)
        return keys.credentials(self.key, self.broker_key)


@dataclass(frozen=True, kw_only=True)
class AgentOptions(BrokerOptions):
    """The options of every command that may wait for a broker."""

    wait_s: float


@dataclass(frozen=True, kw_only=True)
class AskingOptions(AgentOptions):
    """The options of every command that asks a broker for something."""

    timeout_s: float


@dataclass(frozen=True, kw_only=True)
class LearnerOptions(AskingOptions):
    """The options of every command that asks a broker for something once, and prints it."""

    json: bool


@dataclass(frozen=True, kw_only=True)
class SessionOptions(LearnerOptions):
    """The options of every command that opens a session."""

    address: str | None
    env_kwargs: dict[str, Any]
    seed: int | None


@contextmanager
def naming(options: CommandOptions, keyword: str) -> Iterator[None]:
    """Let a UsageError within name the option or the variable that the value came from.

    Unless it names an option itself.
    """
    try:
        yield
    except UsageError as error:
        if keyword in options.origins and not error.args[0].startswith("--"):
            error.args = (f"{options.origins[keyword]}: {error.args[0]}", *error.args[1:])
        raise


@contextmanager
def connected(options: AskingOptions) -> Iterator[BrokerConnection]:
    """Connect to the broker. Raises ConfigurationError, and what BrokerConnection raises."""
    from gymwire.learner_agent.client.connection import BrokerConnection

    options.credentials()
    connection = BrokerConnection(
        options.broker,
        timeout_s=options.timeout_s,
        wait_s=options.wait_s,
        key=options.key,
        broker_key=options.broker_key,
    )
    with closing(connection):
        yield connection


def open_env(options: SessionOptions, output: Output, render_mode: str | None = None) -> ProxyEnv:
    """Return the environment at the address; a terminal shows that the command waits for it.

    Raises what ProxyEnv raises.
    """
    from gymwire.learner_agent.proxies.proxy_env import ProxyEnv

    with opening(options, output) as (address, keywords), warnings.catch_warnings():
        # `run` refuses such an environment.
        warnings.filterwarnings("ignore", r".*which is not in its render_modes")
        return ProxyEnv(address, options.broker, render_mode=render_mode, **keywords)


@contextmanager
def shortening(options: LogOptions) -> Iterator[None]:
    """Leave the traceback out of an EnvironmentFailed within, unless --log-level is debug.

    If no session can be opened, the reason is most often a wrong --env-kwargs, for which one
    sentence is enough.
    """
    try:
        yield
    except EnvironmentFailed as error:
        if error.remote_traceback and options.log_level != "debug":
            error.remote_traceback = ""
            error.args = (f"{error.args[0]} (--log-level debug shows the traceback.)",)
        raise


@contextmanager
def opening(options: SessionOptions, output: Output) -> Iterator[tuple[str, dict[str, Any]]]:
    """Show on a terminal that the command opens a session, and explain if that fails.

    Yields the address, and the keyword arguments of a proxy. Raises ConfigurationError.
    """
    if options.address is None:
        raise ConfigurationError(f"{NO_ADDRESS} `gymwire ls` lists the addresses on offer.")
    options.credentials()
    keywords = {
        "env_kwargs": options.env_kwargs,
        "timeout_s": options.timeout_s,
        "wait_s": options.wait_s,
        "key": options.key,
        "broker_key": options.broker_key,
    }
    try:
        with (
            shortening(options),
            output.errors.status(f"opening {options.address} at {options.broker} …"),
        ):
            yield options.address, keywords
    except AddressUnknown as error:
        if "address" in options.origins:
            raise
        raise ConfigurationError(
            f"{NO_ADDRESS} The default cannot be used: {error.args[0]}"
        ) from error
