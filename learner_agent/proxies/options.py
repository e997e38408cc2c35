"""The options of ProxyEnv and ProxyVectorEnv: checked once, and used to connect and to open."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar, TypeVar

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.patience import LEAST_TIMEOUT_S
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol.address import DEFAULT_BROKER, check_url, parse_address
from gymwire.protocol.errors import AddressError, ConfigurationError
from gymwire.protocol.messages import EnvKind
from gymwire.protocol.security.keys import KeyPair

T = TypeVar("T")

LISTED = "`gymwire ls` lists the addresses on offer."

INHERITED_CONNECTIONS: list[BrokerConnection] = []
"""Connections of a parent process. A forked child must neither use nor close them: it keeps them
here, so that they are not collected."""


@dataclass(frozen=True, kw_only=True)
class ProxyOptions:
    """The options of a proxy. ProxyEnv and ProxyVectorEnv describe them.

    An empty `address` or `broker` is replaced by the variable GYMWIRE_ADDRESS or GYMWIRE_BROKER.

    Raises:
        AddressError: a malformed address or URL.
        ConfigurationError: no address, or a value that an option cannot have.
    """

    CONNECTION: ClassVar[type[BrokerConnection]] = BrokerConnection
    SHARES: ClassVar[bool] = True  # whether the proxies that a thread makes share a connection
    KIND: ClassVar[str] = EnvKind.ENV
    ON_LOST: ClassVar[tuple[str, ...]] = ("raise", "replay")
    HUMAN_HINT: ClassVar[str] = (
        "Use gymnasium.make('gymwire:gymwire/Proxy-v0', render_mode='human', ...), which fetches "
        "the frames and shows them."
    )

    address: str
    broker: str
    render_mode: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 60.0
    step_timeout_s: float | None = None
    wait_s: float = 0.0
    direct: str = "auto"
    on_lost: str = "raise"
    key: str | os.PathLike[str] | KeyPair | None = None
    broker_key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.render_mode == "human":
            raise ConfigurationError(
                f"A remote environment cannot open a window on this machine. {self.HUMAN_HINT}"
            )
        address = _resolve(self.address, "GYMWIRE_ADDRESS", "", _check_address)
        if not address:
            raise ConfigurationError(
                "No address given. Pass one, such as ProxyEnv('cartpole'), or set "
                f"GYMWIRE_ADDRESS. {LISTED}"
            )
        broker = broker_url(self.broker)
        if self.on_lost not in self.ON_LOST:
            choices = " or ".join(f'"{choice}"' for choice in self.ON_LOST)
            raise ConfigurationError(f"on_lost must be {choices}, not {self.on_lost!r:.100}.")
        if not isinstance(self.env_kwargs, Mapping):
            raise ConfigurationError(
                f"env_kwargs must be a dict of keyword arguments, such as {{'map_name': '8x8'}}, "
                f"not {self.env_kwargs!r:.100}."
            )
        _check_seconds("timeout_s", self.timeout_s, least=LEAST_TIMEOUT_S)
        _check_seconds("wait_s", self.wait_s)
        if self.step_timeout_s is not None:
            _check_seconds("step_timeout_s", self.step_timeout_s)
        resolved = {"address": address, "broker": broker, "env_kwargs": dict(self.env_kwargs)}
        for name, value in resolved.items():
            object.__setattr__(self, name, value)  # the only place that sets a field

    def as_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments that make another proxy like this one; paths as str."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in values.items()}

    def connect(self) -> BrokerConnection:
        """Connect to the broker.

        Raises:
            BrokerUnreachable, Denied, VersionMismatch, ConfigurationError.
        """
        return self.CONNECTION(
            self.broker,
            timeout_s=self.timeout_s,
            wait_s=self.wait_s,
            key=self.key,
            broker_key=self.broker_key,
        )

    def open_sessions(
        self,
        connection: BrokerConnection,
        num_envs: Sequence[int] = (0,),
        *,
        autoreset_mode: str = "",
        wait_s: float | None = None,
        kind: str = "",
    ) -> list[RemoteSession]:
        """Open sessions at the same time.

        Args:
            connection: the connection that they use.
            num_envs: the number of environments in each session; 0 for a plain environment.
            autoreset_mode: the mode of the vectors.
            wait_s: how long to wait for a free slot, in seconds; None: as long as the option says.
            kind: the kind of environment; by default that of the proxy.

        Raises:
            What `BrokerConnection.open_all` raises.
        """
        return connection.open_all(
            self.address,
            num_envs,
            render_mode=self.render_mode,
            env_kwargs=self.env_kwargs,
            autoreset_mode=autoreset_mode,
            direct=self.direct,
            wait_s=wait_s,
            timeout_s=self.step_timeout_s,
            kind=kind or self.KIND,
        )

    def warn_of_render_mode(self, metadata: Mapping[str, Any]) -> None:
        """Warn as `gymnasium.make` does if an environment does not have the render mode.

        `metadata`: the environment's, which its env agent shapes.
        """
        known, mode = metadata.get("render_modes"), self.render_mode
        if not isinstance(mode, str) or not isinstance(known, list | tuple):
            return
        modes = [one for one in known if type(one) is str]
        if mode.removesuffix("_list") not in modes:  # Gymnasium collects the frames of a mode
            gymnasium.logger.warn(
                "The environment at %r was opened with render_mode=%r, which is not in its "
                "render_modes (%.200s).",
                self.address,
                mode,
                modes,
            )

    def spec_for(self, remote: Mapping[str, Any]) -> EnvSpec | None:
        """Return a spec whose `make` makes another proxy like this one.

        Args:
            remote: the remote environment's spec, as OPENED describes it.

        Returns:
            The spec, with the id and limits of `remote`; None if `remote` has no usable id.
        """
        match remote:
            case {
                "id": str(env_id),
                "reward_threshold": float() | int() | None as reward_threshold,
                "nondeterministic": bool(nondeterministic),
                "max_episode_steps": int() | None as max_episode_steps,
                "order_enforce": bool(order_enforce),
                "disable_env_checker": bool(disable_env_checker),
            }:
                pass
            case _:
                return None
        try:
            return EnvSpec(
                id=env_id,
                entry_point="gymwire.learner_agent.proxies.proxy_env:make_proxy",
                reward_threshold=reward_threshold,
                nondeterministic=nondeterministic,
                max_episode_steps=max_episode_steps,
                order_enforce=order_enforce,
                disable_env_checker=disable_env_checker,
                kwargs=self.as_kwargs(),
            )
        except (gymnasium.error.Error, ValueError):  # also a version of too many digits for int()
            return None


@dataclass(frozen=True, kw_only=True)
class VectorProxyOptions(ProxyOptions):
    """The options of a ProxyVectorEnv: those of every proxy and four more. Raises the same."""

    KIND: ClassVar[str] = EnvKind.VECTOR
    ON_LOST: ClassVar[tuple[str, ...]] = ("raise", "truncate")
    HUMAN_HINT: ClassVar[str] = 'Use render_mode="rgb_array" and show the frames yourself.'

    num_envs: int = 1
    sessions: int = 1
    autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP
    exact_infos: bool = False

    def __post_init__(self) -> None:
        for name, count in (("num_envs", self.num_envs), ("sessions", self.sessions)):
            if not isinstance(count, int):
                raise ConfigurationError(
                    f"{name} must be an int, not {_shown(count)}. The order of the arguments is "
                    f"ProxyVectorEnv(address, num_envs, broker)."
                )
            if count < 1:
                raise ConfigurationError(f"{name} must be 1 or more, not {_shown(count)}.")
        if self.sessions > self.num_envs:
            raise ConfigurationError(
                f"Cannot spread {_shown(self.num_envs)} environments over {_shown(self.sessions)} "
                f"sessions: there must be at least one environment in each."
            )
        try:
            mode = AutoresetMode(self.autoreset_mode)
        except ValueError:
            modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise ConfigurationError(
                f"autoreset_mode must be one of {modes}, not {self.autoreset_mode!r:.100}."
            ) from None
        object.__setattr__(self, "autoreset_mode", mode.value)
        super().__post_init__()


def broker_url(broker: str) -> str:
    """Return this URL or, if it is empty, that of GYMWIRE_BROKER or the default.

    Raises AddressError.
    """
    return _resolve(broker, "GYMWIRE_BROKER", DEFAULT_BROKER, check_url)


def _resolve(value: str, variable: str, default: str, check: Callable[[str], object]) -> str:
    """Return `value`, or else what the variable holds, or else `default`. Raises AddressError."""
    if value:
        check(value)
        return value
    found = os.environ.get(variable)
    if not found:
        return default
    try:
        check(found)
    except AddressError as error:
        raise AddressError(f"In the environment variable {variable}: {error}") from None
    return found


def _check_address(text: str) -> None:
    """Raise AddressError if this is not an address, and say what lists those on offer."""
    try:
        parse_address(text)
    except AddressError as error:
        hint = " Pass the URL of a broker as broker=." if "://" in str(text) else ""
        raise AddressError(f"{error}{hint} {LISTED}") from None


def _check_seconds(name: str, value: object, least: float = 0.0) -> None:
    """Raise ConfigurationError unless `value` is a number of seconds in the allowed range."""
    with suppress(OverflowError):  # an integer that is too large to be added to a time
        if isinstance(value, Real) and float(value) >= least:
            return
    raise ConfigurationError(
        f"{name} must be a number of seconds of {least:g} or more, not {_shown(value)}."
    )


def _shown(value: object) -> str:
    """Return the start of a value's `repr`, for an error, or its type if it has none."""
    try:
        return repr(value)[:100]
    except ValueError:  # an integer of more than 4,300 digits
        return f"an integer of {value.bit_length()} bits" if type(value) is int else "such a value"


def remake(cls: type[T], kwargs: dict[str, Any]) -> T:
    """Make a copy of a proxy from its `as_kwargs`; copy.deepcopy copies these, too."""
    return cls(**kwargs)
