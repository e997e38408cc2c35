"""A Gymnasium environment that only forwards: the real one lives at an env agent."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gymwire.learner_agent.client import session_token
from gymwire.learner_agent.client.connection import Channel
from gymwire.learner_agent.client.recording import Recording
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.session_token import SessionToken
from gymwire.learner_agent.client.timings import Timings
from gymwire.learner_agent.proxies import options as opening
from gymwire.learner_agent.proxies.options import OF_PARENTS, spec_of_proxy
from gymwire.protocol import generators, logs, values
from gymwire.protocol.errors import (
    AddressUnknown,
    AttributeDenied,
    ConfigurationError,
    EnvironmentClosed,
    EnvironmentFailed,
    EnvironmentLost,
    NoFreeSlot,
    ProtocolError,
    ResetNeeded,
)
from gymwire.protocol.messages import (
    Act,
    Call,
    Message,
    Render,
    RenderedFrame,
    Reset,
    Result,
    Status,
)
from gymwire.protocol.step_codec import Step


class ProxyEnv(gymnasium.Env[Any, Any]):
    """One environment at an env agent, used through a broker as if it were here.

    `reset` and `step` return what the remote environment returned, with the very types, fresh and
    the caller's own. Attributes and methods of the remote environment that its operator hands out
    (`action_masks` and the like, and what `--allow` names) are there under their own names.

    A copy (`copy.deepcopy`, `pickle`) and a forked process get a session of their own, which needs
    a `reset`. Used from one thread.

    Args:
        address: what is offered, e.g. "cartpole"; default: the variable GYMWIRE_ADDRESS.
        broker: its URL; default: the variable GYMWIRE_BROKER, else tcp://127.0.0.1:5555.
        render_mode: "rgb_array", "ansi" or another that the remote environment can do. For "human"
            and the `_list` modes use `gymnasium.make("gymwire:gymwire/Proxy-v0", ...)`.
        env_kwargs: keyword arguments for the remote environment's constructor.
        timeout_s: the longest silence of the broker that is tolerated. A long step is not silence.
        step_timeout_s: the longest that one call may take; None: as long as it takes.
        wait_s: how much longer the broker may take to appear, the address to be offered, and a slot
            to become free.
        direct: "auto" goes past the broker where the env agent allows it and can be reached;
            "never"; "always" raises ConnectionFailed where that is not possible.
        on_lost: what happens when the env agent is lost in the middle of an episode. "raise":
            EnvironmentLost. "replay": a new session is opened at another agent of the address (for
            `timeout_s` at most), the episode is played again there, each answer compared with the
            one before, and the waiting call goes on; ReplayMismatch if one differs. Costs a
            round trip more for each reset without a seed.
        key: the file of this agent's key pair; default: the variable GYMWIRE_KEY, else none.
        broker_key: the broker's public key or its file; default: GYMWIRE_BROKER_KEY, else none.
        channel: a connection to use instead of an own one to `broker`; the caller closes it.

    Raises:
        ConfigurationError: no address, or "human" as render mode.
        AddressError: a malformed address or URL.
        BrokerUnreachable, VersionMismatch, Denied: there is no getting through to the broker.
        AddressUnknown, NoFreeSlot: the address cannot be used now.
        EnvironmentFailed: the remote environment could not be made.
    """

    # What gymnasium.make sees before an instance exists, when this class is registered itself.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"]}  # noqa: RUF012 - as gymnasium.Env declares it

    def __init__(
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
        key: str | os.PathLike[str] | None = None,
        broker_key: str | os.PathLike[str] | None = None,
        channel: Channel | None = None,
        _session: RemoteSession | None = None,
    ) -> None:
        self._closed = False
        if render_mode == "human":
            raise ConfigurationError(
                "A remote environment opens no window here: use gymnasium.make("
                "'gymwire:gymwire/Proxy-v0', render_mode='human', ...), which shows it."
            )
        self._kwargs = opening.keywords(
            address,
            broker if channel is None else channel.url,
            env_kwargs,
            on_lost,
            ("raise", "replay"),
            render_mode=render_mode,
            timeout_s=timeout_s,
            step_timeout_s=step_timeout_s,
            wait_s=wait_s,
            direct=direct,
            key=key,
            broker_key=broker_key,
        )
        self._recording = Recording() if on_lost == "replay" else None
        self._step_timeout_s = step_timeout_s
        self._owns_channel = channel is None
        if _session is None:
            self._open(channel)
        else:
            self._adopt(_session)
        opened = self._session.opened
        self.observation_space = self._session.observation_space
        self.action_space = self._session.action_space
        self.metadata = opened.metadata
        self.render_mode = opened.render_mode
        self._spec = spec_of_proxy(opened.spec, self._kwargs)

    def _open(self, channel: Channel | None, *, wait_s: float | None = None) -> None:
        """Open a session on this channel, or on a new one."""
        kwargs = self._kwargs
        made = None
        if channel is None:
            made = channel = opening.connect(kwargs)
            self._owns_channel = True
        try:
            (session,) = opening.open_all(channel, kwargs, [0], wait_s=wait_s)
        except BaseException:
            if made is not None:
                made.close()
            raise
        self._adopt(session)

    def _adopt(self, session: RemoteSession) -> None:
        self._session: RemoteSession = session
        self._pid = os.getpid()
        self._methods: set[str] = set()
        names = session.opened.limits.get("attributes", [])
        self._remote_names = frozenset(names if isinstance(names, list) else [])

    # --- gymnasium.Env ----------------------------------------------------------------------------

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Let the remote environment do one step, exactly once.

        The action travels as it is, never clipped or cast. Interrupted or timed out, the same call
        again waits on for the same step.

        Raises:
            ResetNeeded, EnvironmentClosed: out of turn.
            EncodingError: this action cannot travel; nothing was sent.
            EnvironmentFailed: the remote environment raised; also an instance of what it raised,
                where that is an exception of Python or Gymnasium.
            EnvironmentLost: the env agent is gone, and the episode with it.
            RequestTimeout: after `step_timeout_s`.
            BrokerUnreachable: after `timeout_s` of silence.
        """
        if self._closed or self._pid != os.getpid():
            self._check_usable(Act(action))
        if self._recording is not None:
            return self._step_recorded(action, self._recording)
        return self._session.step(action, self._step_timeout_s)

    @property
    def is_timed(self) -> bool:
        """Whether `timed_step` can tell where the time goes."""
        return self._recording is None and self._session.is_timed

    def timed_step(self, action: Any) -> tuple[Step, Timings | None]:
        """`step`, and where its time went; None where the env agent cannot tell.

        For measuring only: it costs a little more, waits as long as it takes, and with
        `on_lost="replay"` tells nothing. Interrupted, it cannot be repeated: reset.
        """
        if not self.is_timed:
            return self.step(action), None
        self._check_usable(Act(action))
        return self._session.timed_step(action)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode. Raises what `step` raises.

        After an EnvironmentLost this opens a new session, so that training can go on: with a fresh
        environment, whose generator is seeded anew.
        """
        lost = self._session.exchange.lost is not None
        if lost and not self._closed and self._pid == os.getpid():
            self._open(self._session.channel)
        recording = self._recording
        if recording is None:
            return self._reset(seed, options)
        generator = None
        while True:
            try:
                if seed is None:
                    generator = self._generator_state()
                answer = self._reset(seed, options)
            except EnvironmentLost:
                self._replay(recording)
                if generator is not None:
                    self._restore(generator)
                continue
            recording.reset(generator, seed, options, answer)
            return answer

    def _reset(self, seed: Any, options: Any) -> tuple[Any, dict[str, Any]]:
        status = self._request(Reset(seed, options))
        assert type(status) is Status
        return status.observation, status.info

    def _generator_state(self) -> Any:
        """The state of the remote environment's generator, None if it has none to show."""
        try:
            return self._get("np_random")
        except (EnvironmentFailed, AttributeDenied):
            return None

    def _restore(self, generator: Any) -> None:
        self._request(Call("set", "np_random", (generator,)))

    def _step_recorded(self, action: Any, recording: Recording) -> Step:
        encoded = values.encode(action, root="action")
        while True:
            try:
                step = self._session.step(action, self._step_timeout_s)
            except EnvironmentLost:
                self._replay(recording)
                continue
            recording.step(encoded, step)
            return step

    def _replay(self, recording: Recording) -> None:
        """Bring a new session to where the lost one was. Raises EnvironmentLost if none is had."""
        lost = self._session.exchange.lost
        deadline = time.monotonic() + self._kwargs["timeout_s"]
        log = logs.logger()
        log.warning("session lost, replaying", address=self._kwargs["address"], why=lost)
        while True:
            try:
                self._open(self._session.channel, wait_s=0.0)
                if recording.generator is not None:
                    self._restore(recording.generator)
                recording.replay(self._reset, lambda action: self._session.step(action))
            except (AddressUnknown, NoFreeSlot, EnvironmentLost) as error:
                if time.monotonic() > deadline:
                    raise EnvironmentLost(
                        f"The session is lost ({lost}), and for {self._kwargs['timeout_s']:g} s no "
                        f"other agent could take the episode over: {error}"
                    ) from error
                time.sleep(0.1)
                continue
            log.info("episode replayed", address=self._kwargs["address"], steps=recording.steps)
            return

    # --- going on in another process --------------------------------------------------------------

    def session_token(self) -> bytes:
        """What another process needs to go on with this session after this one has ended.

        It is good for the request after the last one answered: take a new one after each step that
        you may want to go on from. Whoever has it can use the session: keep it secret. The session
        waits for the broker's lease, also if this process ends in good order, unless it is closed.
        """
        self._check_usable(Reset())
        session, exchange = self._session, self._session.exchange
        session.channel.keeps_sessions = True
        kwargs = {
            k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in self._kwargs.items()
        }
        return SessionToken(
            kwargs,
            exchange.sid,
            session.wish.nonce,
            exchange.seq - session.pending,
            exchange.state,
            session.wish.challenge,
            session.signer,
        ).encode()

    @classmethod
    def resume(cls, token: bytes) -> ProxyEnv:
        """Go on, in the middle of an episode, with the session of a process that has ended.

        If that process had sent its next request, that was executed; the same call again gets its
        answer. Raises ConfigurationError if the token is none; EnvironmentLost if the session has
        ended; Denied if it is in use, another key's, or not the pinned agent's; MoveError if the
        token is older than that.
        """
        kept = session_token.decode(token)
        channel = opening.connect(kept.kwargs)
        try:
            session = channel.resume(kept)
            env = cls(**kept.kwargs, channel=channel, _session=session)
        except BaseException:
            channel.close(goodbye=False)  # another attempt, or another token, may do better
            raise
        env._owns_channel = True
        return env

    def render(self) -> Any:
        """What the remote environment renders: an array, a str, or None."""
        frame = self._request(Render())
        assert type(frame) is RenderedFrame
        return frame.frame

    def close(self) -> None:
        """End the session and free its slot. Idempotent; never waits for a step."""
        if self._closed:
            return
        self._closed = True
        if self._pid != os.getpid():
            OF_PARENTS.append(self._session.channel)
            return
        try:
            self._session.close()
        finally:  # interrupted, too: nobody can close it any more
            if self._owns_channel:
                self._session.channel.close()

    def __del__(self) -> None:
        session = self.__dict__.get("_session")
        if session is None or self._closed or sys.is_finalizing():
            return
        if self._pid != os.getpid():
            OF_PARENTS.append(session.channel)
        elif self._owns_channel:
            session.channel.close()  # says goodbye, and waits for nothing

    # --- what else an environment has -------------------------------------------------------------

    @property
    def spec(self) -> EnvSpec | None:
        """The remote environment's spec; its `make` makes another proxy. None if it has none."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:
        remote = self._spec
        if value is not None and remote is not None:
            # gymnasium.make brings its own; learners read the remote environment's limits in it.
            value = replace(
                value,
                reward_threshold=remote.reward_threshold,
                nondeterministic=remote.nondeterministic,
                max_episode_steps=remote.max_episode_steps,
            )
        self._spec = value

    @property
    def np_random(self) -> np.random.Generator:
        """A generator in the state that the remote environment's has now.

        To draw from it leaves the remote one where it is; to set it sets the remote one.
        """
        return generators.build(self._get("np_random"))

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self._request(Call("set", "np_random", (generators.describe(value),)))

    @property
    def _np_random(self) -> np.random.Generator:  # type: ignore[override]
        return self.np_random  # read by gymnasium's environment checker

    @property
    def np_random_seed(self) -> int:
        """The seed of the remote environment's generator, -1 if it is unknown."""
        return self._get("np_random_seed")  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        # Called for what was not found otherwise; before __init__ is through, for everything.
        if name.startswith("_") or "_remote_names" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name not in self._remote_names:
            raise AttributeDenied(
                f"{name!r} is no attribute that the env agent at {self._kwargs['address']!r} hands "
                f"out; its operator can, with --allow {name}. Now allowed: "
                f"{', '.join(sorted(self._remote_names))}."
            )
        return self._get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_remote_names", ()) and not hasattr(type(self), name):
            self._request(Call("set", name, (value,)))
        else:
            super().__setattr__(name, value)

    def _get(self, name: str) -> Any:
        if name not in self._methods:
            result = self._request(Call("get", name))
            assert type(result) is Result
            match result.value:
                case {"value": value}:
                    return value
                case {"method": True}:
                    self._methods.add(name)
                case _:
                    raise ProtocolError(f"The env agent's answer for {name!r} is not understood.")
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = self._request(Call("call", name, args, kwargs))
        assert type(result) is Result
        return result.value

    # --- sessions ---------------------------------------------------------------------------------

    def _request(self, message: Message) -> Message:
        self._check_usable(message)
        return self._session.request(message, self._step_timeout_s)

    def _check_usable(self, message: Message) -> None:
        if self._closed:
            raise EnvironmentClosed(
                f"{_verb(message)} after close: this environment is closed; make a new one."
            )
        if self._pid != os.getpid():
            self._leave_to_parent(message)

    def _leave_to_parent(self, message: Message) -> None:
        """This process is a fork of the one that opened the session: it needs its own."""
        if type(message) is Act:
            raise ResetNeeded(
                "This environment was made before the process forked, and its episode belongs to "
                "the parent process. Call reset() first: it opens a session for this one."
            )
        OF_PARENTS.append(self._session.channel)
        self._open(None)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            "_spec": self._spec,
            "observation_space": self.observation_space,
            "action_space": self.action_space,
        }
        return _remake, (type(self), self._kwargs), state


def make_proxy(
    address: str | None = None,
    broker: str | None = None,
    *,
    render_mode: str | None = None,
    **kwargs: Any,
) -> gymnasium.Env[Any, Any]:
    """What `gymnasium.make("gymwire:gymwire/Proxy-v0", ...)` calls.

    Takes the arguments of ProxyEnv. With `render_mode="human"` frames are fetched and shown in a
    window here; with "rgb_array_list" or "ansi_list" they are fetched and collected.
    """
    if render_mode == "human":
        env = ProxyEnv(address, broker, render_mode="rgb_array", **kwargs)
        return gymnasium.wrappers.HumanRendering(env)
    if render_mode is not None and render_mode.endswith("_list"):
        env = ProxyEnv(address, broker, render_mode=render_mode.removesuffix("_list"), **kwargs)
        return gymnasium.wrappers.RenderCollection(env)
    return ProxyEnv(address, broker, render_mode=render_mode, **kwargs)


def _remake(cls: type[ProxyEnv], kwargs: dict[str, Any]) -> ProxyEnv:
    return cls(**kwargs)


def _verb(message: Message) -> str:
    return "step" if type(message) is Act else type(message).__name__.lower()
