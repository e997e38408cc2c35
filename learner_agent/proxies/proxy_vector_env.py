"""A Gymnasium vector that forwards every call to environments at env agents."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike

from gymwire import __version__
from gymwire.learner_agent.client.plain_group import PlainGroup
from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.learner_agent.proxies import batching
from gymwire.learner_agent.proxies.attributes import declares
from gymwire.learner_agent.proxies.interrupts import (
    close_alone,
    keeps_replies,
    keeps_replies_itself,
)
from gymwire.learner_agent.proxies.options import INHERITED_CONNECTIONS, VectorProxyOptions, remake
from gymwire.learner_agent.proxies.remote_generators import RemoteGenerators
from gymwire.learner_agent.proxies.rounds import in_rounds
from gymwire.learner_agent.proxies.vector_sessions import open_group
from gymwire.learner_agent.proxies.vector_steps import VectorStep, VectorSteps
from gymwire.protocol import capabilities, generators, remote_space
from gymwire.protocol.errors import (
    AttributeDenied,
    BatchSizeError,
    EnvironmentClosed,
    ProtocolError,
    ResetNeeded,
)
from gymwire.protocol.messages import Call, Message, Render, RenderedFrame, Reset, Result


class ProxyVectorEnv(VectorEnv[Any, Any, Any]):
    """A vector of environments at env agents, used through a broker as if it were local.

    It behaves like the vector that `gymnasium.make_vec` makes for the remote environment: the
    environment's own vector class if it registers one, else a SyncVectorEnv (always, with
    `env_kwargs={"vectorization_mode": "sync"}`). A SyncVectorEnv is also used if the only autoreset
    mode of that class is not the requested one (that of CartPole has SameStep, too); if the class
    takes `autoreset_mode` but rejects the value, its error is raised. `reset` and `step` return
    fresh memory that belongs to the caller. A copy (`copy.deepcopy`, `pickle`) and a forked process
    use sessions of their own, which must be reset first. Use it from one thread at a time; any
    thread may close it.

    The environments are spread over the sessions in order and as evenly as possible; the first
    sessions have one more. The broker assigns each session to the least loaded worker. With `send`
    and `recv`, the sessions step independently of each other. If the env agent has no vectors, as
    some in other languages, each environment has a session of its own, and `sessions` is ignored.

    Args:
        address: the address of the environments, e.g. "cartpole". Default: the variable
            GYMWIRE_ADDRESS.
        num_envs: the number of environments, at least 1.
        broker: the broker's URL. Default: the variable GYMWIRE_BROKER, else tcp://127.0.0.1:5555.
        sessions: the number of sessions to spread them over, at most `num_envs`.
        autoreset_mode: when to reset an environment whose episode has ended.
        exact_infos: whether infos hold what each environment returned. Gymnasium casts the values
            under a key to the dtype of the first one; with this option, values of several dtypes
            come in an array of objects.
        render_mode: "rgb_array", "ansi" or another mode of the remote environments.
        env_kwargs: keyword arguments for the constructor of the remote environments.
        timeout_s: raise if the broker sends nothing for this long, in seconds, at least 0.5. A
            slow step does not count as silence.
        step_timeout_s: maximum duration of one call, in seconds, and of the opening of a session
            after a slot is free. None: no limit.
        wait_s: how much longer to wait for the broker to start, for the address to be offered, and
            for free slots, in seconds.
        direct: "auto": bypass the broker if the env agents can be reached directly. "never": always
            relay through the broker. "always": raise ConnectionFailed if an env agent cannot be
            reached directly.
        on_lost: what to do if an env agent is lost during a step. "raise": raise EnvironmentLost.
            "truncate": end the episodes of its environments, with `truncated`, reward 0, the last
            known observation and `infos["env_lost"]`, and open a new session for them within
            `timeout_s`, with new seeds. Their next episodes start as after any other end: in the
            next step, in the same step (with `final_obs`), or by `reset_mask`.
        key: the file with this agent's key pair. Default: the variable GYMWIRE_KEY, else no key.
        broker_key: the broker's public key or its file. Default: the variable GYMWIRE_BROKER_KEY,
            else no key.

    Raises:
        ConfigurationError: no address, or an option with an impossible value.
        AddressError: the address or the URL is malformed.
        BrokerUnreachable, VersionMismatch, Denied: the broker cannot be used.
        AddressUnknown, NoFreeSlot: the address cannot be used now.
        EnvironmentFailed: the remote environments could not be made.
    """

    def __init__(  # noqa: PLR0913 - a public constructor, with every option by name
        self,
        address: str | None = None,
        num_envs: int = 1,
        broker: str | None = None,
        *,
        sessions: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        exact_infos: bool = False,
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
        options = VectorProxyOptions(
            address=address or "",
            broker=broker or "",
            num_envs=num_envs,
            sessions=sessions,
            autoreset_mode=autoreset_mode,
            exact_infos=exact_infos,
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
        self._options = options
        self._group: SessionGroup
        self._steps: VectorSteps
        self._pid: int
        self._step_timeout_s = step_timeout_s
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(options.autoreset_mode)
        self._open()
        first, opened = self._group[0], self._group[0].opened
        first.space_calls.connect(self._ask_space)
        self.single_observation_space = self._steps.single_observation_space
        self.single_action_space = self._steps.single_action_space
        if len(self._group) == 1 and opened.num_envs:
            self.observation_space = first.space("observation_space")
            self.action_space = first.space("action_space")
        else:
            self.observation_space = batch_space(self.single_observation_space, num_envs)
            self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {**opened.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = opened.render_mode
        self.spec: EnvSpec | None = options.spec_for(opened.spec)
        self._is_made = True  # last: from now on, other names are refused

    @property
    def is_recorded(self) -> bool:
        """Whether the env agent's operator records any of the sessions."""
        return self._has_limit("recorded")

    @property
    def is_watchable(self) -> bool:
        """Whether the env agent's operator lets others watch any of the sessions."""
        return self._has_limit("watchable")

    def _has_limit(self, name: str) -> bool:
        group = self._group
        return any(group[i].opened.limits.get(name) is True for i in range(len(group)))

    def _open(self) -> None:
        """Connect and open all sessions."""
        connection = self._options.connect()
        try:
            connection.exact_infos = self._options.exact_infos
            group = open_group(self._options, connection)
            steps = VectorSteps(group, single_request=type(group) is SessionGroup)
            # All at once, and in another dict, as in `SessionOwner`.
            opened = {"_group": group, "_steps": steps, "_pid": os.getpid(), "closed": self.closed}
            object.__setattr__(self, "__dict__", {**self.__dict__, **opened})
        except BaseException:
            used = self.__dict__.get("_group")
            if used is None or used.connection is not connection:
                connection.close()
            raise

    # --- gymnasium.vector.VectorEnv ---------------------------------------------------------------

    @keeps_replies
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in all environments, or in those of `options["reset_mask"]`.

        A step in progress is abandoned: its reply will be dropped. After EnvironmentLost, new
        sessions replace the lost ones.

        Args:
            seed: environment i gets `seed + i` or `seed[i]`. An environment's own vector class may
                interpret an int differently.
            options: passed to the environments. `reset_mask`: bool (num_envs,), at least one True.

        Returns:
            Observations, batched as `observation_space`, and infos.

        Raises:
            BatchSizeError: the seeds or the mask do not have one item for each environment.
            TypeError: the mask is not an array of bools.
            EnvironmentFailed, EnvironmentLost, RequestTimeout, BrokerUnreachable: as `step`.
        """
        self._check_usable()
        parts = self._group.slices
        # In a single session, the remote vector itself interprets an int.
        whole = len(parts) == 1 and isinstance(seed, int)
        seeds = [seed] if whole else batching.split_seed(seed, parts)
        split = batching.split_options(options, parts)
        if seed is not None:
            self._release_generators(batching.seeded(seed, options, self.num_envs))
        requests = {i: Reset(seeds[i], part) for i, part in split.items()}
        return self._steps.reset(requests, self._step_timeout_s)

    @keeps_replies_itself
    def step(self, actions: Any) -> VectorStep:
        """Run one step of every environment, exactly once.

        After an interrupt or a RequestTimeout, the same call with the same actions continues to
        wait for the same step.

        Args:
            actions: a batch with one action for each environment, sent as it is, neither clipped
                nor cast.

        Returns:
            Observations, batched as `observation_space`; rewards, float64 (num_envs,); terminated
            and truncated, bool (num_envs,); and infos, as Gymnasium merges them.

        Raises:
            BatchSizeError: not one action for each environment; nothing was sent.
            EncodingError: the actions cannot be serialized; nothing was sent.
            ResetNeeded, EnvironmentClosed, MoveError: `step` is not allowed now.
            EnvironmentFailed: an environment raised; the text and `env_index` name it. All sessions
                have replied.
            EnvironmentLost: an env agent is gone; the text names its environments.
            RequestTimeout: after `step_timeout_s`.
            BrokerUnreachable: after `timeout_s` of silence.
        """
        if self.closed or self._pid != os.getpid():
            self._check_usable(steps=True)
        steps = self._steps
        steps.begin_call()
        try:  # as `keeps_replies`, which would be a call more
            step = steps.step(actions, self._step_timeout_s)
            steps.in_call = False
            return step
        except BaseException as error:
            steps.undo(error)
            raise

    @keeps_replies_itself
    def step_async(self, actions: Any) -> None:
        """Send the actions of all environments without waiting. Raises what `step` raises."""
        if self.closed or self._pid != os.getpid():
            self._check_usable(steps=True)
        steps = self._steps
        steps.begin_call()
        try:  # as in `step`
            steps.begin(actions)
            steps.in_call = False
        except BaseException as error:
            steps.undo(error)
            raise

    @keeps_replies_itself
    def step_wait(self, timeout_s: float | None = None) -> VectorStep:
        """Wait for the step that `step_async` sent, and return what `step` returns.

        Raises RequestTimeout after `timeout_s`, in seconds; the next call continues to wait.
        """
        if self.closed or self._pid != os.getpid():
            self._check_usable(steps=True)
        steps = self._steps
        steps.begin_call()
        try:  # as in `step`
            step = steps.wait(timeout_s)
            steps.in_call = False
            return step
        except BaseException as error:
            steps.undo(error)
            raise

    @keeps_replies
    def send(self, actions: Any, env_ids: ArrayLike) -> None:
        """Send actions to some of the environments without waiting.

        Args:
            actions: a batch; item i is for environment `env_ids[i]`.
            env_ids: int (n,), in any order. The environments of one session step together, so name
                all of them or none. With as many sessions as environments, any ids are valid.

        Raises:
            BatchSizeError: the ids do not match the actions, the vector or its sessions.
            MoveError: one of the environments is still in a step. Also what `step` raises before it
                sends.
        """
        self._check_usable(steps=True)
        self._steps.send(actions, env_ids)

    @keeps_replies
    def recv(self, min_envs: int = 1, timeout_s: float | None = None) -> VectorStep:
        """Wait until `min_envs` of the environments that were sent actions have stepped.

        Args:
            min_envs: how many environments to wait for, at least 1.
            timeout_s: how long to wait, in seconds. None: no limit.

        Returns:
            What `step` returns, for all environments that have stepped, in the order in which they
            finished. `infos["env_id"]`, int64 (n,), has their numbers.

        Raises:
            BatchSizeError: fewer environments are in a step.
            RequestTimeout: after `timeout_s`. No reply is lost by this or other errors of `step`.
        """
        self._check_usable(steps=True)
        return self._steps.receive(min_envs, timeout_s)

    @keeps_replies
    def render(self) -> tuple[Any, ...] | None:
        """Return one frame for each environment; None without a render mode."""
        frames: list[Any] = []
        for i, reply in enumerate(self._ask(dict.fromkeys(range(len(self._group)), Render()))):
            assert type(reply) is RenderedFrame
            if reply.frame is None:
                return None
            if isinstance(reply.frame, list | tuple):
                frames += reply.frame
            elif isinstance(reply.frame, np.ndarray) and reply.frame.ndim:  # EnvPool's
                frames += list(reply.frame)
            else:
                raise self._malformed(f"picture for {self._group.names(i)}")
        return tuple(frames)

    # --- attributes -------------------------------------------------------------------------------

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, and return the results.

        Raises AttributeDenied if the env agent does not expose it.
        """
        if name == "np_random":  # no method, as in a SyncVectorEnv
            return self.np_random
        return self._access(Call("call", name, args, kwargs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment.

        Raises AttributeDenied if the env agent does not expose it.
        """
        return self.np_random if name == "np_random" else self._access(Call("get", name))

    @keeps_replies
    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every environment.

        Args:
            name: the attribute.
            values: a list or tuple with one value for each environment, or one value for all.

        Raises:
            BatchSizeError: the list does not have one value for each environment.
            AttributeDenied: the env agent does not expose the attribute.
        """
        is_each = isinstance(values, (list, tuple))
        if is_each and len(values) != self.num_envs:
            raise BatchSizeError(f"{len(values)} values for {self.num_envs} environments.")
        if name == "np_random":
            given = values if is_each else [values] * self.num_envs
            values, is_each = [generators.describe_new(one) for one in given], True
            self._release_generators(range(self.num_envs))
        # A vector that does not consist of single environments must not get a list of equal values.
        parts = [(values[part] if is_each else values,) for part in self._group.slices]
        self._ask({i: Call("set", name, part) for i, part in enumerate(parts)})

    @keeps_replies
    @in_rounds
    def access_each(self, call: Call, env_ids: Sequence[int]) -> list[Any]:
        """Apply a CALL to some of the environments only; other libraries' vectors need that.

        Args:
            call: in one of `capabilities.EACH_MODES`, with the arguments for each environment.
            env_ids: the numbers of the environments, in any order. One that is there n times is
                called n times, by one request after the other.

        Returns:
            A result for each of `env_ids`, in their order: docs/protocol.md §4.1.3.

        Raises:
            VersionMismatch: the env agent is of a release that cannot do this.
            AttributeDenied: the env agent does not expose the attribute.
            IndexError: there is no such environment.
        """
        if not all(0 <= one < self.num_envs for one in env_ids):
            raise IndexError(f"env_ids must be from 0 to {self.num_envs - 1}, not {[*env_ids]}.")
        if call.mode == "each-set" and call.name == "np_random":
            self._release_generators(env_ids)
        if isinstance(self._group, PlainGroup):
            self._check_usable()
            self._steps.check_idle()
            return self._group.access_each(call, env_ids, self._step_timeout_s)
        places: dict[int, list[int]] = {}
        for place, one in enumerate(env_ids):
            part = next(i for i, part in enumerate(self._group.slices) if one < part.stop)
            places.setdefault(part, []).append(place)
        requests: dict[int, Message] = {}
        for i, own in places.items():
            session, start = self._group[i], self._group.slices[i].start
            capabilities.require(
                capabilities.EACH,
                capabilities.common(session.opened.limits.get("capabilities") or ()),
                who=f"the env agent at {self._options.address!r}",
                theirs="a release before gymwire 0.2.0",
                ours=f"gymwire {__version__}",
            )
            requests[i] = replace(call, args=([env_ids[one] - start for one in own], *call.args))
        found: list[Any] = [None] * len(env_ids)
        for own, reply in zip(places.values(), self._ask(requests), strict=True):
            assert type(reply) is Result
            if type(reply.value) is not tuple or len(reply.value) != len(own):
                raise self._malformed(f"answer about the attribute {call.name!r}")
            for place, value in zip(own, reply.value, strict=True):
                found[place] = value
        return found

    def _attribute(self, call: Call) -> tuple[Any, ...]:
        found: list[Any] = []
        for reply in self._ask(dict.fromkeys(range(len(self._group)), call)):
            assert type(reply) is Result
            match call.mode, reply.value:
                case "get", {"value": value}:
                    pass
                case "get", _:
                    raise self._malformed(f"value of the attribute {call.name!r}")
                case _, value:
                    pass
            # An environment's own vector class may return a single value for all environments.
            found += value if type(value) is tuple else [value]
        return tuple(found)

    _access = keeps_replies(_attribute)

    @keeps_replies
    def _ask_space(self, path: str, method: str, args: tuple[Any, ...]) -> Any:
        (reply,) = self._ask({0: Call("call", remote_space.CALL, (path, method, args))})
        assert type(reply) is Result
        return reply.value

    def _malformed(self, what: str) -> ProtocolError:
        return ProtocolError(f"The env agent at {self._options.address!r} sent a malformed {what}.")

    @property  # type: ignore[misc]  # read-only, as SyncVectorEnv's
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The remote environments' generators: drawing from one advances that of its environment.

        Code that draws through a `bit_generator` (numba, Cython) is not supported.
        """
        if self._steps.generators is None:
            read, write = self._read_generators, self._write_generators
            remote = RemoteGenerators(read, write, repr(self._options.address))
            remote.make(read())
            self._steps.generators = remote
        return self._steps.generators.give()

    def _generator_states(self) -> tuple[Any, ...]:
        self._check_usable(steps=True)
        return self._attribute(Call("get", "np_random"))

    _read_generators = keeps_replies(_generator_states)

    def _release_generators(self, env_ids: Iterable[int]) -> None:
        if (remote := self._steps.generators) is not None:
            numbers = batching.generators_of(env_ids, len(remote.all), self._group.slices)
            remote.release(numbers, self._generator_states)

    @keeps_replies
    def _write_generators(self, states: Sequence[Any]) -> None:
        parts = enumerate(batching.generator_parts(len(states), self._group.slices))
        self._ask({i: Call("set", "np_random", ([*states[part]], True)) for i, part in parts})

    @property
    @keeps_replies
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds of the remote environments' generators, -1 where unknown."""
        return self.get_attr("np_random_seed")

    # --- the sessions -----------------------------------------------------------------------------

    @property
    def undoable(self) -> VectorSteps:
        """What makes the replies of a call available again if an exception ends it."""
        return self._steps

    def _ask(self, requests: Mapping[int, Message]) -> list[Message]:
        """Send each of these sessions a request, and return the replies."""
        self._check_usable()
        self._steps.check_idle()
        return list(self._group.ask(requests, self._step_timeout_s).values())

    def _check_usable(self, *, steps: bool = False) -> None:
        """Raise unless requests may be sent. In a forked process, open sessions of its own."""
        if self.closed:
            raise EnvironmentClosed("This vector of environments is closed. Make a new one.")
        if self._pid == os.getpid():
            return
        if steps:
            raise ResetNeeded(
                "These environments were made before the process forked, and their episodes belong "
                "to the parent process. Call reset() first: it opens sessions for this process."
            )
        INHERITED_CONNECTIONS.append(self._group.connection)
        self._open()

    @keeps_replies_itself
    def close_extras(self, **kwargs: Any) -> None:
        """End the sessions and free their slots; never waits for a step."""
        if self._pid != os.getpid():
            INHERITED_CONNECTIONS.append(self._group.connection)
        else:
            close_alone(self._steps, self._group.connection, self._group.close)

    def __enter__(self) -> ProxyVectorEnv:
        """Return the vector itself, as `gymnasium.Env` does."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the vector."""
        self.close()

    def __del__(self) -> None:
        group = self.__dict__.get("_group")
        if group is None or self.closed or sys.is_finalizing():
            return
        if self._pid != os.getpid():
            INHERITED_CONNECTIONS.append(group.connection)
        else:
            group.connection.close()  # sends BYE and does not wait

    def __setattr__(self, name: str, value: Any) -> None:
        if "_is_made" not in self.__dict__ or name in self.__dict__ or declares(type(self), name):
            super().__setattr__(name, value)
            return
        raise AttributeDenied(
            f"The vector has no attribute {name!r}. Set it in the remote environments with "
            f"set_attr({name!r}, …), or declare it in a subclass."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return remake, (type(self), self._options.as_kwargs())
