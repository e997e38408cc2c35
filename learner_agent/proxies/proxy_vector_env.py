"""A vector of Gymnasium environments that only forwards: the real ones live at env agents."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from gymwire.learner_agent.client.connection import Channel
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.learner_agent.client.truncating_group import TruncatingGroup
from gymwire.learner_agent.proxies import options as opening
from gymwire.learner_agent.proxies import parts as vector_parts
from gymwire.learner_agent.proxies.options import OF_PARENTS, spec_of_proxy
from gymwire.protocol import generators, spaces, values, vector_infos
from gymwire.protocol.errors import (
    BatchSizeError,
    ConfigurationError,
    EncodingError,
    EnvironmentClosed,
    EnvironmentLost,
    MoveError,
    ProtocolError,
    ResetNeeded,
)
from gymwire.protocol.messages import (
    Call,
    Kind,
    Message,
    Percept,
    Render,
    RenderedFrame,
    Reset,
    Result,
    Status,
)

Step = tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]


class ProxyVectorEnv(VectorEnv[Any, Any, Any]):
    """A vector of environments at env agents, used through a broker as if it were here.

    It behaves as what `gymnasium.make_vec` makes for the remote environment: its own kind of vector
    where it registers one that has this autoreset mode, a SyncVectorEnv otherwise, and always with
    `env_kwargs={"vectorization_mode": "sync"}`. What `reset` and `step` return is fresh and the
    caller's own. A copy (`copy.deepcopy`, `pickle`) and a forked process get sessions of their own,
    which need a `reset`. Used from one thread.

    The environments are spread over the sessions in order and as evenly as can be, the first
    sessions having one more; the broker gives each session to the least loaded worker. Through
    `send` and `recv` the sessions go on independently of each other.

    Args:
        address: what is offered, e.g. "cartpole"; default: the variable GYMWIRE_ADDRESS.
        num_envs: how many environments, at least 1.
        broker: its URL; default: the variable GYMWIRE_BROKER, else tcp://127.0.0.1:5555.
        sessions: over how many sessions they are spread, at most `num_envs`.
        autoreset_mode: when an environment whose episode ended is reset.
        render_mode: "rgb_array", "ansi" or another that the remote environments can do.
        env_kwargs: keyword arguments for the remote environments' constructor.
        timeout_s: the longest silence of the broker that is tolerated. A long step is not silence.
        step_timeout_s: the longest that one call may take; None: as long as it takes.
        wait_s: how much longer the broker may take to appear, the address to be offered, and a slot
            to become free.
        direct: "auto" goes past the broker where the env agents allow it and can be reached,
            "never" does not, "always" raises where it cannot.
        on_lost: what happens when an env agent is lost in the middle of a step. "raise":
            EnvironmentLost. "truncate": the episodes of its environments end, with truncated, the
            reward 0, the last observation known and `infos["env_lost"]`, and a new session is
            opened for them (within `timeout_s`), with fresh seeds. They begin anew there as after
            any other end: in the next step, in the same one (`final_obs`), or with `reset_mask`.
        key: the file of this agent's key pair; default: the variable GYMWIRE_KEY, else none.
        broker_key: the broker's public key or its file; default: GYMWIRE_BROKER_KEY, else none.

    Raises:
        ConfigurationError: no address, "human" as render mode, or more sessions than environments.
        AddressError: a malformed address or URL.
        BrokerUnreachable, VersionMismatch, Denied: there is no getting through to the broker.
        AddressUnknown, NoFreeSlot: the address cannot be used now.
        EnvironmentFailed: the remote environments could not be made.
    """

    def __init__(
        self,
        address: str | None = None,
        num_envs: int = 1,
        broker: str | None = None,
        *,
        sessions: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
        step_timeout_s: float | None = None,
        wait_s: float = 0.0,
        direct: str = "auto",
        on_lost: str = "raise",
        key: str | os.PathLike[str] | None = None,
        broker_key: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, count in (("num_envs", num_envs), ("sessions", sessions)):
            if not isinstance(count, int):
                raise ConfigurationError(
                    f"{name} must be an int, not {count!r:.100}: the order is "
                    f"ProxyVectorEnv(address, num_envs, broker)."
                )
        if not 1 <= sessions <= num_envs:
            raise ConfigurationError(
                f"{num_envs} environments in {sessions} sessions: there must be at least one "
                f"session, and one environment in each."
            )
        if render_mode == "human":
            raise ConfigurationError('Remote environments open no window here: use "rgb_array".')
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise ConfigurationError(
                f"autoreset_mode must be one of {modes}, not {autoreset_mode!r:.100}."
            ) from None
        self._kwargs = opening.keywords(
            address,
            broker,
            env_kwargs,
            on_lost,
            ("raise", "truncate"),
            num_envs=num_envs,
            sessions=sessions,
            autoreset_mode=self.autoreset_mode.value,
            render_mode=render_mode,
            timeout_s=timeout_s,
            step_timeout_s=step_timeout_s,
            wait_s=wait_s,
            direct=direct,
            key=key,
            broker_key=broker_key,
        )
        self.num_envs = num_envs
        self._step_timeout_s = step_timeout_s
        self._open()
        first, opened = self._group[0], self._group[0].opened
        self.single_observation_space = spaces.build(
            opened.single_observation_space, root="single_observation_space"
        )
        self.single_action_space = spaces.build(
            opened.single_action_space, root="single_action_space"
        )
        if sessions == 1:
            self.observation_space = first.observation_space
            self.action_space = first.action_space
        else:
            self.observation_space = batch_space(self.single_observation_space, num_envs)
            self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {**opened.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = opened.render_mode
        self.spec: EnvSpec | None = spec_of_proxy(opened.spec, self._kwargs)

    def _open(self) -> None:
        kwargs = self._kwargs
        channel = opening.connect(kwargs)
        parts = vector_parts.slices(self.num_envs, kwargs["sessions"])
        try:
            make_group = (
                partial(TruncatingGroup, self.autoreset_mode)
                if kwargs["on_lost"] == "truncate"
                else SessionGroup
            )
            self._group = make_group(channel, parts, repr(kwargs["address"]), self._open_all)
        except BaseException:
            channel.close()
            raise
        self._alone = len(parts) == 1 and kwargs["on_lost"] != "truncate"
        self._pid = os.getpid()
        self._observations: list[Any] = [None] * len(parts)  # the last ones of each session
        self._forget_steps()

    def _open_all(
        self, channel: Channel, sizes: Sequence[int], wait_s: float | None
    ) -> list[RemoteSession]:
        kwargs = self._kwargs
        mode = kwargs["autoreset_mode"]
        sessions = opening.open_all(channel, kwargs, sizes, mode, wait_s=wait_s)
        for has in (session.opened.metadata.get("autoreset_mode") for session in sessions):
            if has != mode:
                for session in sessions:
                    session.close(wait=False)
                raise ProtocolError(
                    f"The env agent at {kwargs['address']!r} opened a vector in the autoreset mode "
                    f"{has!r}; {mode!r} was asked for."
                )
        return sessions

    def _forget_steps(self) -> None:
        """Nothing is under way any more; whatever still arrives is dropped."""
        self._waiting: list[int] = []  # sessions whose step is under way, in the order of sending
        self._stepping = False  # whether that is all of them, by step_async
        self._received: dict[int, Message] = {}  # their percepts, not handed over yet
        self._timed_out: bytes | None = None  # the actions of a step() that may be called again

    # --- gymnasium.vector.VectorEnv ---------------------------------------------------------------

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in all environments, or in those of `options["reset_mask"]`.

        A step that is under way is given up: its answer will be dropped. After an EnvironmentLost
        new sessions are opened for those that were lost.

        Args:
            seed: environment i gets `seed + i`, or `seed[i]`. Vectors of an environment's own kind
                take an int as they see fit.
            options: for the environments. `reset_mask`: bool (num_envs,), at least one True.

        Returns:
            Observations, batched as `observation_space`, and infos.

        Raises:
            BatchSizeError: not one seed for each environment, or not one item of the mask.
            TypeError: a mask that is no array of bools.
            EnvironmentFailed, EnvironmentLost, RequestTimeout, BrokerUnreachable: as `step`.
        """
        self._check_usable()
        group = self._group
        # The int of a vector of an environment's own kind is for that vector to interpret.
        whole = len(group) == 1 and isinstance(seed, int)
        seeds = [seed] if whole else vector_parts.split_seed(seed, group.slices)
        wishes = vector_parts.split_options(options, group.slices)
        self._forget_steps()
        requests = {i: Reset(seeds[i], wish) for i, wish in wishes.items()}
        infos: list[dict[str, Any]] = [{} for _ in group.slices]
        casts: list[vector_infos.Casts] = [{} for _ in group.slices]
        for i, status in group.reset(requests, self._step_timeout_s).items():
            assert type(status) is Status
            self._observations[i] = status.observation
            infos[i], casts[i] = vector_infos.from_wire(status.info)
        if len(group) == 1:
            return self._observations[0], infos[0]
        observation = vector_parts.join(self.single_observation_space, self._observations)
        return observation, vector_parts.join_infos(infos, group.sizes, casts)

    def step(self, actions: Any) -> Step:
        """Let every environment do one step, exactly once.

        The actions travel as they are, never clipped or cast. Interrupted or timed out, the same
        call again waits on for the same step.

        Returns:
            Observations, batched as `observation_space`; rewards, float64 (num_envs,); terminated
            and truncated, bool (num_envs,); and infos, as Gymnasium merges them.

        Raises:
            BatchSizeError: not one action for each environment; nothing was sent.
            EncodingError: these actions cannot travel; nothing was sent.
            ResetNeeded, EnvironmentClosed, MoveError: out of turn.
            EnvironmentFailed: an environment raised, and which; all sessions have answered.
            EnvironmentLost: an env agent is gone, and which environments with it.
            RequestTimeout: after `step_timeout_s`.
            BrokerUnreachable: after `timeout_s` of silence.
        """
        if self._timed_out is None:
            if self._alone:
                return self._step_alone(actions)
            self._check_new_step(actions)
        else:
            self._check_usable(Kind.ACT)
            if values.encode(actions, root="actions") != self._timed_out:
                raise MoveError(
                    "The step before is still under way, with other actions. Call step_wait(), or "
                    "step() with the same actions, to go on waiting for it; or call reset()."
                )
        try:
            if not self._stepping:
                self._send_all(actions)
            return self.step_wait(self._step_timeout_s)
        finally:
            self._timed_out = values.encode(actions) if self._waiting else None

    def _step_alone(self, actions: Any) -> Step:
        """A step of a vector in one session: what `step_async` and `step_wait` do, at once."""
        if self.closed or self._pid != os.getpid():
            self._check_usable(Kind.ACT)
        self._check_idle()
        vector_parts.check_size(self.single_action_space, actions, self.num_envs)
        try:
            step = self._group.step(actions, self._step_timeout_s)
        except (MoveError, EncodingError, EnvironmentLost):
            raise  # what may be under way is not this step
        except BaseException:
            if not self._group.settled:
                self._waiting, self._stepping = [0], True
                self._timed_out = values.encode(actions)
            raise
        self._observations[0] = step[0]
        return step

    def step_async(self, actions: Any) -> None:
        """Send the actions of all environments, and do not wait. Raises what `step` raises."""
        self._check_new_step(actions)
        self._send_all(actions)

    def _check_new_step(self, actions: Any) -> None:
        self._check_usable(Kind.ACT)
        self._check_idle()
        vector_parts.check_size(self.single_action_space, actions, self.num_envs)

    def _send_all(self, actions: Any) -> None:
        """Send the actions of all environments, or the rest of them after an interrupt."""
        if len(self._group) == 1:
            self._group.prepare_steps([0])
            self._group.begin_step(0, actions)
            self._waiting = [0]
        else:
            self._send(dict(enumerate(self._group.slices)), actions)
        self._stepping = True

    def step_wait(self, timeout_s: float | None = None) -> Step:
        """Wait for the step that `step_async` began, and return it as `step` does.

        Raises RequestTimeout after `timeout_s`; the next call waits on.
        """
        self._check_usable(Kind.ACT)
        if not self._stepping:
            raise MoveError("step_wait() without step_async(): no step is under way.")
        group = self._group
        try:
            if len(group) > 1:
                group.wait_for_steps(self._not_received(), timeout_s)
            for i in self._not_received():
                percept = group.finish_step(i, timeout_s)
                self._received[i] = percept
        except Exception:
            if group.settled:
                group.drop_replies()
                self._forget_steps()
            raise
        # In the order of the sessions; forgotten last: interrupted, the same call gets it again.
        step = self._joined({i: self._received[i] for i in self._waiting})
        self._forget_steps()
        return step

    def _not_received(self) -> list[int]:
        return [i for i in self._waiting if i not in self._received]

    # --- stragglers -------------------------------------------------------------------------------

    def send(self, actions: Any, env_ids: ArrayLike) -> None:
        """Send actions to some of the environments, and do not wait.

        Args:
            actions: a batch; item i is for environment `env_ids[i]`.
            env_ids: int (n,), in any order; made of whole sessions, since one session's
                environments step together. With as many sessions as environments any ids will do.

        Raises:
            BatchSizeError: ids that do not fit the actions, the vector or its sessions.
            MoveError: one of them is still in its step. And what `step` raises before it sends.
        """
        self._check_usable(Kind.ACT)
        if self._stepping:
            raise MoveError("A step of all environments is under way: call step_wait() first.")
        places = vector_parts.split_ids(env_ids, self._group.slices)
        vector_parts.check_size(self.single_action_space, actions, sum(map(len, places.values())))
        for i in places:
            if i in self._waiting or i in self._received:
                raise MoveError(
                    f"The step before of {self._group.names(i)} was not handed over yet: call "
                    f"recv() first."
                )
        self._send(places, actions)

    def recv(self, min_envs: int = 1, timeout_s: float | None = None) -> Step:
        """Wait until `min_envs` environments have done what was sent to them; return all that have.

        Whoever was ready first comes first. Which is which is in `infos["env_id"]`, int64 (n,).
        Otherwise as `step`. Raises RequestTimeout after `timeout_s`, BatchSizeError if fewer are
        under way, and what `step` raises; nothing of what arrived is lost by that.
        """
        self._check_usable(Kind.ACT)
        if self._stepping:
            raise MoveError("A step of all environments is under way: call step_wait() for it.")
        under_way = sum(self._group.sizes[i] for i in {*self._waiting, *self._received})
        if not 1 <= min_envs <= under_way:
            raise BatchSizeError(
                f"recv() of {min_envs} environments: {under_way} have been sent an action."
            )
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        group = self._group
        while True:
            for i in [i for i in self._not_received() if group.step_ready(i)]:
                try:
                    percept = group.finish_step(i)
                except Exception:
                    self._waiting.remove(i)
                    raise
                self._received[i] = percept
            self._waiting = self._not_received()
            if sum(group.sizes[i] for i in self._received) >= min_envs:
                break
            group.wait_for_step(self._waiting, deadline)
        step = self._joined(self._received)
        ids = [np.arange(group.slices[i].start, group.slices[i].stop) for i in self._received]
        step[4]["env_id"] = np.concatenate(ids)
        self._received = {}
        return step

    # --- attributes, pictures, the end ------------------------------------------------------------

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment. Raises AttributeDenied unless it is handed out."""
        return self._attribute(Call("call", name, args, kwargs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every environment. Raises AttributeDenied unless it is handed out."""
        found = self._attribute(Call("get", name))
        return tuple(map(generators.build, found)) if name == "np_random" else found

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every environment: a list or tuple has one value for each.

        Raises BatchSizeError, and AttributeDenied unless it is handed out.
        """
        if not isinstance(values, (list, tuple)):
            values = [values] * self.num_envs
        if len(values) != self.num_envs:
            raise BatchSizeError(f"{len(values)} values for {self.num_envs} environments.")
        if name == "np_random":
            values = [generators.describe(value) for value in values]
        parts = enumerate(self._group.slices)
        self._ask({i: Call("set", name, (values[part],)) for i, part in parts})

    def _attribute(self, call: Call) -> tuple[Any, ...]:
        found: list[Any] = []
        for reply in self._ask(dict.fromkeys(range(len(self._group)), call)):
            assert type(reply) is Result
            value = reply.value["value"] if call.mode == "get" else reply.value
            # What is no tuple is that of a vector which is no collection of environments.
            found += value if type(value) is tuple else [value]
        return tuple(found)

    @property  # type: ignore[misc]  # read-only, as SyncVectorEnv's
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Generators in the states that those of the remote environments have now.

        To draw from them leaves the remote ones where they are.
        """
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds of the remote environments' generators, -1 where unknown."""
        return self.get_attr("np_random_seed")

    def render(self) -> tuple[Any, ...] | None:
        """What the environments render, a frame each; None without a render mode."""
        frames: list[Any] = []
        for reply in self._ask(dict.fromkeys(range(len(self._group)), Render())):
            assert type(reply) is RenderedFrame
            if reply.frame is None:
                return None
            frames += reply.frame
        return tuple(frames)

    def close_extras(self, **kwargs: Any) -> None:
        """End the sessions and free their slots; never waits for a step."""
        if self._pid != os.getpid():
            OF_PARENTS.append(self._group.channel)
        else:
            self._group.close()

    def __enter__(self) -> ProxyVectorEnv:
        """For `with`, as a `gymnasium.Env` has it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        group = self.__dict__.get("_group")
        if group is None or self.closed or sys.is_finalizing():
            return
        if self._pid != os.getpid():
            OF_PARENTS.append(group.channel)
        else:
            group.channel.close()  # says goodbye, and waits for nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (type(self), self._kwargs)

    # --- requests ---------------------------------------------------------------------------------

    def _check_usable(self, kind: Kind | None = None) -> None:
        if self.closed:
            raise EnvironmentClosed("This vector of environments is closed; make a new one.")
        if self._pid != os.getpid():
            if kind is Kind.ACT:
                raise ResetNeeded(
                    "These environments were made before the process forked, and their episodes "
                    "belong to the parent process. Call reset() first: it opens new sessions."
                )
            OF_PARENTS.append(self._group.channel)
            self._open()
        if kind is not None:
            self._group.check(kind)

    def _check_idle(self) -> None:
        if self._waiting or self._received:
            raise MoveError(
                "A step is still under way. Wait for it with step_wait() after step_async(), with "
                "recv() after send(); or give it up with reset()."
            )

    def _send(self, places: Mapping[int, slice | NDArray[np.intp]], actions: Any) -> None:
        """Send its part of the actions to each session. Nothing is sent if one cannot travel."""
        if type(actions) is not np.ndarray:
            values.check(actions, root="actions")
        self._group.prepare_steps(places)
        for i, part in places.items():
            if i in self._waiting:  # it was sent before an interrupt
                continue
            action = vector_parts.take(self.single_action_space, actions, part)
            self._group.begin_step(i, action)
            self._waiting.append(i)

    def _ask(self, requests: Mapping[int, Message]) -> list[Message]:
        self._check_usable()
        self._check_idle()
        return list(self._group.ask(requests, self._step_timeout_s).values())

    def _joined(self, percepts: Mapping[int, Message]) -> Step:
        """The percepts of some sessions as those of one vector, in their order."""
        parts: list[Percept] = []
        for i, percept in percepts.items():
            assert type(percept) is Percept
            self._observations[i] = percept.observation
            parts.append(percept)
        read = [vector_infos.from_wire(part.info) for part in parts]
        if len(self._group) == 1:
            one = parts[0]
            return one.observation, one.reward, one.terminated, one.truncated, read[0][0]
        infos, casts = zip(*read, strict=True)
        return (
            vector_parts.join(self.single_observation_space, [part.observation for part in parts]),
            np.concatenate([part.reward for part in parts]),
            np.concatenate([part.terminated for part in parts]),
            np.concatenate([part.truncated for part in parts]),
            vector_parts.join_infos(infos, [self._group.sizes[i] for i in percepts], casts),
        )


def _remake(cls: type[ProxyVectorEnv], kwargs: dict[str, Any]) -> ProxyVectorEnv:
    return cls(**kwargs)
