"""A Gymnasium environment that forwards every call to an environment at an env agent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import get_ident
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gymwire.learner_agent.client import session_token
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.timings import Timings
from gymwire.learner_agent.proxies.attributes import RemoteAttributes, declares, warn_wrapper
from gymwire.learner_agent.proxies.interrupts import (
    Undoable,
    keeps_replies,
    keeps_replies_itself,
    kept_for_getattr,
    raise_kept,
)
from gymwire.learner_agent.proxies.options import ProxyOptions, remake
from gymwire.learner_agent.proxies.remote_generators import RemoteGenerators
from gymwire.learner_agent.proxies.replay import EpisodeReplay
from gymwire.learner_agent.proxies.served_spec import served_spec
from gymwire.learner_agent.proxies.session_owner import SessionOwner
from gymwire.protocol import generators
from gymwire.protocol.messages import Act, Render, RenderedFrame
from gymwire.protocol.outside_exceptions import is_from_outside
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.step_codec import Step


class ProxyEnv(gymnasium.Env[Any, Any]):
    """One environment at an env agent, used through a broker as if it were local.

    `reset` and `step` return exactly what the remote environment returned: the same types, in
    fresh memory that belongs to the caller. Attributes and methods that the env agent exposes
    (`action_masks` and similar by default, others with `--expose NAME`) are available under their
    own names. Reading or setting others raises AttributeDenied; a subclass declares attributes of
    its own in its class body.

    A copy (`copy.deepcopy`, `pickle`) and a forked process use a session of their own, which must
    be reset first. Use it from one thread at a time; any thread may close it.

    Args:
        address: the address of the environment, e.g. "cartpole". Default: the variable
            GYMWIRE_ADDRESS.
        broker: the broker's URL. Default: the variable GYMWIRE_BROKER, else tcp://127.0.0.1:5555.
        render_mode: "rgb_array", "ansi" or another mode of the remote environment. For "human" and
            the `_list` modes use `gymnasium.make("gymwire:gymwire/Proxy-v0", ...)`.
        env_kwargs: keyword arguments for the remote environment's constructor.
        timeout_s: raise if the broker sends nothing for this long, in seconds, at least 0.5. A
            slow step does not count as silence.
        step_timeout_s: maximum duration of one call, in seconds, and of the opening of a session
            after a slot is free. None: no limit.
        wait_s: how much longer to wait for the broker to start, for the address to be offered, and
            for a free slot, in seconds.
        direct: "auto": bypass the broker if the env agent can be reached directly. "never": always
            relay through the broker. "always": raise ConnectionFailed if the env agent cannot be
            reached directly.
        on_lost: what to do if the env agent is lost during an episode. "raise": raise
            EnvironmentLost. "replay": open a session at another env agent of the address, trying
            for up to `timeout_s`; replay the episode there, compare each reply with the recorded
            one, and go on with the waiting call. Raises ReplayMismatch if a reply differs. Costs
            one more round trip for each reset without a seed.
        key: this agent's key pair, or the file with it. Default: the variable GYMWIRE_KEY, else no
            key.
        broker_key: the broker's public key or its file. Default: the variable GYMWIRE_BROKER_KEY,
            else no key.
        connection: an existing connection to use, which the caller closes. Default: the proxies
            that one thread makes with the same `broker`, `timeout_s` and key share one.

    Raises:
        ConfigurationError: no address, or an option with an impossible value.
        AddressError: the address or the URL is malformed.
        BrokerUnreachable, VersionMismatch, Denied: the broker cannot be used.
        AddressUnknown, NoFreeSlot: the address cannot be used now.
        EnvironmentFailed: the remote environment could not be made.
    """

    # What gymnasium.make reads before an instance exists, if this class itself is registered.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"]}  # noqa: RUF012 - as gymnasium.Env declares it

    _OPTIONS: ClassVar[type[ProxyOptions]] = ProxyOptions

    def __init__(  # noqa: PLR0913 - a public constructor, with every option by name
        self,
        address: str | None = None,
        broker: str | None = None,
        *,
        render_mode: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
        step_timeout_s: float | None = None,
        wait_s: float = 0.0,
        direct: str = "auto",
        on_lost: str = "raise",
        key: str | os.PathLike[str] | KeyPair | None = None,
        broker_key: str | os.PathLike[str] | None = None,
        connection: BrokerConnection | None = None,
    ) -> None:
        options = self._OPTIONS(
            address=address or "",
            broker=(broker if connection is None else connection.url) or "",
            render_mode=render_mode,
            env_kwargs={} if env_kwargs is None else env_kwargs,
            timeout_s=timeout_s,
            step_timeout_s=step_timeout_s,
            wait_s=wait_s,
            direct=direct,
            on_lost=on_lost,
            key=key,
            broker_key=broker_key,
        )
        owner = SessionOwner(options, connection=connection)
        try:
            self._use(owner)
            options.warn_of_render_mode(self.metadata)
        except BaseException:
            owner.close()
            raise

    def _use(self, owner: SessionOwner) -> None:
        self._owner = owner
        opened = owner.session.opened
        self.observation_space = owner.session.space("observation_space")
        self.action_space = owner.session.space("action_space")
        self.metadata = opened.metadata
        self.render_mode = opened.render_mode
        self._spec = owner.options.spec_for(opened.spec)
        attributes = RemoteAttributes(owner)
        owner.session.space_calls.connect(attributes.ask_space)
        replays = owner.options.on_lost == "replay"
        self._replay = EpisodeReplay(owner, attributes) if replays else None
        self._calls: Undoable = self._replay or owner
        self._attributes = attributes  # last: from now on, exposed names are remote

    # --- gymnasium.Env ----------------------------------------------------------------------------

    @keeps_replies_itself
    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Run one step of the remote environment, exactly once.

        After an interrupt or a RequestTimeout, the same call with the same action continues to wait
        for the same step.

        Args:
            action: sent as it is, neither clipped nor cast.

        Returns:
            Observation, reward, terminated, truncated and info, as the remote `step` returned them.

        Raises:
            ResetNeeded, EnvironmentClosed: `step` is not allowed now.
            EncodingError: the action cannot be serialized; nothing was sent.
            EnvironmentFailed: the remote environment raised. The error is also an instance of the
                remote exception's type if that is one of Python's or Gymnasium's.
            EnvironmentLost: the env agent is gone, and the episode with it.
            RequestTimeout: after `step_timeout_s`.
            BrokerUnreachable: after `timeout_s` of silence.
        """
        owner, replay = self._owner, self._replay
        use = owner.use
        if owner.closed or owner.is_inherited:
            owner.check_usable(Act(action))
        if (
            owner.in_call
            or use.caller is not None
            or use.thread_id != get_ident()
            or replay is not None
            or owner.generators is not None
        ):
            self._calls.begin_call()
        else:  # the same, without a call
            owner.in_call = True
            use.caller = owner
            owner.returned = owner.exchange.returned
        try:  # as `keeps_replies`, which would be a call more
            if replay is not None:
                step = replay.step(action)
            else:
                step = owner.session.step(action, owner.options.step_timeout_s)
            owner.in_call = False
            owner.use.caller = None
            return step
        except BaseException as error:
            self._calls.undo(error)
            raise

    @property
    def is_timed(self) -> bool:
        """Whether `timed_step` measures where the time of a step goes."""
        return self._replay is None and self._session.is_timed

    @property
    def is_recorded(self) -> bool:
        """Whether the env agent's operator records this session."""
        return self._session.opened.limits.get("recorded") is True

    @property
    def is_watchable(self) -> bool:
        """Whether the env agent's operator lets others watch this session."""
        return self._session.opened.limits.get("watchable") is True

    @keeps_replies
    def timed_step(self, action: Any) -> tuple[Step, Timings | None]:
        """Step as `step` does, and measure where the time went.

        For measurements only: it adds overhead, ignores `step_timeout_s`, and cannot be repeated
        after an interrupt (call `reset`).

        Returns:
            What `step` returns, and the timings; None if the env agent takes no time stamps or
            `on_lost` is "replay".
        """
        if not self.is_timed:
            return self.step(action), None
        self._owner.check_usable(Act(action))
        return self._session.timed_step(action)

    @keeps_replies
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, and return its first observation and info. Raises what `step` raises.

        After EnvironmentLost this opens a new session with a new environment, which has a new
        random state.
        """
        self._owner.reopen_if_lost()
        if seed is not None:
            self._release_generator()
        return (self._owner if self._replay is None else self._replay).reset(seed, options)

    @keeps_replies
    def render(self) -> Any:
        """Return what the remote environment renders: an array, a str, or None."""
        frame = self._owner.request(Render())
        assert type(frame) is RenderedFrame
        return frame.frame

    @keeps_replies_itself
    def close(self) -> None:
        """End the session and free its slot. Idempotent; never waits for a step."""
        self._owner.close()

    # --- resuming in another process --------------------------------------------------------------

    def session_token(self) -> bytes:
        """Return a token with which another process can resume this session after this one ends.

        The token is valid for the request after the last one that was answered: take a new token
        after each step from which you may want to go on. Keep it secret: anybody with the token can
        use the session. The broker keeps the session for the duration of its lease, even if this
        process exits normally, unless the environment is closed.
        """
        if self._owner.generators is not None:
            self._owner.generators.before_request()
        return self._owner.token()

    @classmethod
    def resume(cls, token: bytes) -> ProxyEnv:
        """Resume a session from its token, in the middle of an episode.

        If the process that held the session had sent its next request already, the environment has
        executed it; the same call now returns its reply.

        Raises:
            ConfigurationError: the token is malformed.
            EnvironmentLost: the session has ended.
            Denied: the session is in use, belongs to another key, or is not at the pinned agent.
            MoveError: the session has executed more than one request since the token was made.
        """
        kept = session_token.decode(token)
        options = cls._OPTIONS(**kept.kwargs)
        connection = options.connect()
        env = cls.__new__(cls)
        try:
            env._use(SessionOwner(options, resumed=connection.resume(kept)))  # noqa: SLF001 - of this class
        except BaseException:
            connection.close(goodbye=False)  # keeps the session for another attempt
            raise
        return env

    # --- attributes -------------------------------------------------------------------------------

    @property
    def spec(self) -> EnvSpec | None:
        """The remote environment's spec, None if it has none. Its `make` makes another proxy."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:
        remote = self._spec
        if value is not None and remote is not None:
            # gymnasium.make sets its own spec; learners expect the remote limits in it.
            value = replace(
                value,
                reward_threshold=remote.reward_threshold,
                nondeterministic=remote.nondeterministic,
                max_episode_steps=remote.max_episode_steps,
            )
        self._spec = value

    @property
    def served_spec(self) -> EnvSpec | None:
        """The served environment's own spec, or None. Its `make` makes that environment locally.

        Assign it to `spec` before a wrapper stores it, such as Minari's DataCollector.
        """
        opened = self._session.opened.spec
        return served_spec(opened, self._owner.options.spec_for(opened))

    @property
    @kept_for_getattr
    def np_random(self) -> np.random.Generator:
        """The remote environment's generator: drawing from it advances that one.

        Code that draws through its `bit_generator` (numba, Cython) is not supported. Assigning a
        generator sets the remote one to its state. A reference that was kept from before that, or
        from before a reset with a seed, is no longer the environment's generator.
        """
        remote = self._owner.generators
        if remote is None:
            where = repr(self._owner.options.address)
            remote = RemoteGenerators(self._read_generator, self._write_generator, where)
            remote.make(self._read_generator())
            self._owner.generators = remote
        return remote.give()[0]

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self._set_generator(generators.describe_new(value), in_place=False)

    def _generator_state(self) -> list[Any]:
        return [self._attributes.get("np_random")]

    _read_generator = keeps_replies(_generator_state)

    def _release_generator(self) -> None:
        if self._owner.generators is not None:
            self._owner.generators.release([0], self._generator_state)

    def _write_generator(self, states: Sequence[Any]) -> None:
        self._set_generator(states[0], in_place=True)

    @keeps_replies
    def _set_generator(self, state: Any, *, in_place: bool) -> None:
        if not in_place:
            self._release_generator()
        replay = self._replay
        (self._attributes if replay is None else replay).set_generator(state, in_place=in_place)

    @property
    def _np_random(self) -> np.random.Generator:  # type: ignore[override]
        return self.np_random  # read by gymnasium's environment checker

    @property
    @kept_for_getattr
    @keeps_replies
    def np_random_seed(self) -> int:
        """The seed of the remote environment's generator, -1 if it is unknown."""
        return self._attributes.get("np_random_seed")  # type: ignore[no-any-return]

    @property
    def _session(self) -> RemoteSession:
        return self._owner.session

    @property
    def undoable(self) -> Undoable:
        """What makes the replies of a call available again if an exception ends it."""
        return self._calls

    def __getattr__(self, name: str) -> Any:
        # Called for names that Python does not find, also while __init__ has not finished.
        raise_kept(self, name)
        attributes = self.__dict__.get("_attributes")
        if name.startswith("_") or attributes is None:
            warn_wrapper(name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return attributes.get_exposed(name)

    def __setattr__(self, name: str, value: Any) -> None:
        attributes = self.__dict__.get("_attributes")
        if attributes is None or name in self.__dict__ or declares(type(self), name):
            super().__setattr__(name, value)
        else:
            attributes.set_exposed(name, value)

    def has_wrapper_attr(self, name: str) -> bool:
        """Return whether the proxy or the remote environment has this attribute."""
        if self._has_own(name):
            return True
        try:
            getattr(self, name)
        except AttributeError as error:
            if is_from_outside(error):
                raise
            return False
        return True

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute. Raises AttributeDenied if it is not exposed, also without `force`.

        A wrapper asks without `force`, and would otherwise set an attribute of its own, which the
        remote environment does not see.
        """
        if not force and declares(type(self), name) and not self._has_own(name):
            return False
        setattr(self, name, value)
        return True

    def _has_own(self, name: str) -> bool:
        return name in self.__dict__ or hasattr(type(self), name)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            "_spec": self._spec,
            "observation_space": self.observation_space,
            "action_space": self.action_space,
        }
        return remake, (type(self), self._owner.options.as_kwargs()), state


def make_proxy(
    address: str | None = None,
    broker: str | None = None,
    *,
    render_mode: str | None = None,
    **kwargs: Any,
) -> gymnasium.Env[Any, Any]:
    """Make a proxy for `gymnasium.make("gymwire:gymwire/Proxy-v0", ...)`.

    Takes the arguments of ProxyEnv and these render modes as well: "human" fetches frames and shows
    them in a local window; "rgb_array_list" and "ansi_list" fetch and collect them.
    """
    if render_mode == "human":
        env = ProxyEnv(address, broker, render_mode="rgb_array", **kwargs)
        return gymnasium.wrappers.HumanRendering(env)
    if render_mode is not None and render_mode.endswith("_list"):
        env = ProxyEnv(address, broker, render_mode=render_mode.removesuffix("_list"), **kwargs)
        return gymnasium.wrappers.RenderCollection(env)
    return ProxyEnv(address, broker, render_mode=render_mode, **kwargs)
