"""`Simulation`: offers a program that owns its loop as an environment."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from numbers import Real
from types import TracebackType
from typing import Any, Self

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Tuple

from gymwire.env_agent.agent import Agent
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.simulation.checks import StateCheck, copy_state
from gymwire.env_agent.simulation.turns import Command, State, Turns
from gymwire.env_agent.transports import DirectSettings
from gymwire.protocol.address import DEFAULT_BROKER, check_url, parse_address
from gymwire.protocol.errors import ConfigurationError, UsageError
from gymwire.protocol.security import keys
from gymwire.protocol.transport.dealer import Dealer, LivenessConnection
from gymwire.protocol.transport.handshake import CONNECT_S
from gymwire.protocol.transport.unix import CAN_LISTEN

STOP_S = 5.0  # how long `close` waits for the end of the env agent


class Simulation:
    """Offers a program that owns its loop, such as a game or a robot, as an environment.

    For example::

        with Simulation("game", observation_space, action_space) as simulation:
            while game.is_running:
                command = simulation.exchange(observation, reward, terminated)
                if command.reset:
                    game.restart(command.seed)
                else:
                    game.advance(command.action)

    The env agent runs in a thread of its own. One learner at a time uses the simulation; `reset`,
    `step` and `render` of its proxy are executed in `exchange`, in the program's thread.

    Args:
        address: the address under which to offer the simulation.
        observation_space: the space of the observations.
        action_space: the space of the actions.
        broker: the broker's URL. Default: the variable GYMWIRE_BROKER, else
            tcp://127.0.0.1:5555.
        default_action: the action of a command when there is none from a learner.
        timeout_s: how long `exchange` waits for the next request of a learner, in seconds; 0 for a
            program that must not wait, such as a robot; None: as long as the learner takes. It does
            not wait without a learner.
        render: returns an RGB image, an array of shape (height, width, 3) and dtype uint8.
        metadata: the environment's metadata; its `render_modes` follow from `render`.
        wait_s: how much longer to wait for the broker to start, in seconds; 2.5 s are always
            allowed.
        key: the env agent's key file. Default: the variable GYMWIRE_KEY.
        broker_key: the broker's public key or its file. Default: the variable GYMWIRE_BROKER_KEY.

    Raises:
        AddressError: a malformed address or URL.
        BrokerUnreachable, Denied, VersionMismatch, AddressTaken: the broker cannot be used.
        ConfigurationError: an argument is wrong.
    """

    def __init__(  # noqa: PLR0913 - a public constructor, whose arguments are options
        self,
        address: str,
        observation_space: Space[Any],
        action_space: Space[Any],
        broker: str = "",
        *,
        default_action: Any = None,
        timeout_s: float | None = None,
        render: Callable[[], Any] | None = None,
        metadata: dict[str, Any] | None = None,
        wait_s: float = 0.0,
        key: str | os.PathLike[str] | None = None,
        broker_key: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, space in (
            ("observation_space", observation_space),
            ("action_space", action_space),
        ):
            if not isinstance(space, Space):
                raise ConfigurationError(f"{name} must be a gymnasium.Space, not {space!r:.100}.")
        self.observation_space = observation_space
        self.action_space = action_space
        if render is not None and not callable(render):
            raise ConfigurationError(f"render must be a function, not {render!r:.100}.")
        render_modes = [] if render is None else ["rgb_array"]
        self.metadata = {**(metadata or {}), "render_modes": render_modes}
        self._default_action = default_action
        self._timeout_s = _limit("timeout_s", timeout_s)
        self._render = render
        self._must_render = False
        self._frame: Any = None
        self._render_failure: BaseException | None = None
        self._turns = Turns()
        self._news = threading.Condition()
        self._ended = ""  # why no request is answered anymore
        self._failure: BaseException | None = None
        self._user: SimulationEnv | None = None
        self._user_thread = 0
        self._agent = self._make_agent(address, broker, wait_s, keys.credentials(key, broker_key))
        self._thread = threading.Thread(target=self._serve, name="simulation", daemon=True)
        self._thread.start()
        self._agent.offering.wait()
        if self._failure is not None:
            raise self._failure
        self._check_state = StateCheck(observation_space).check

    def _make_agent(
        self, address: str, broker: str, wait_s: float, mine: keys.Credentials
    ) -> Agent:
        if parse_address(address).identity is not None:
            raise ConfigurationError(f"Cannot offer {address!r}: it must not contain @identity.")
        broker = broker or os.environ.get("GYMWIRE_BROKER") or DEFAULT_BROKER
        check_url(broker)
        factory = Factory(address, self._make_env)
        agent = Agent(
            [Service(address, factory, max_sessions=1)],
            partial(Dealer, broker, key=mine.key, server_key=mine.broker_key),
            partial(LivenessConnection, broker, key=mine.key, server_key=mine.broker_key),
            key=mine.key,
            direct=DirectSettings(None) if CAN_LISTEN and mine.key is None else None,
            wait_s=CONNECT_S + wait_s,
            grace_s=STOP_S,
        )
        agent.on_stop = self._stop
        return agent

    def _make_env(self, render_mode: str | None = None) -> SimulationEnv:
        return SimulationEnv(self, render_mode)

    def _serve(self) -> None:
        try:
            self._agent.run()
        except BaseException as error:  # noqa: BLE001 - raised in the program's thread
            self._failure = error
        finally:
            self._agent.offering.set()  # the constructor waits for it
            with self._news:
                self._news.notify_all()

    # --- the program's thread ---------------------------------------------------------------------

    @property
    def has_learner(self) -> bool:
        """Whether a learner uses the simulation, from its first reset until it leaves."""
        return self._turns.has_learner

    def exchange(
        self,
        observation: Any,
        reward: Any = 0.0,
        terminated: bool = False,
        truncated: bool = False,
        info: dict[str, Any] | None = None,
    ) -> Command:
        """Report the present state, and return what to do next.

        The state answers the request that the last command came from: the first state after a
        `reset`, or what the learner's step returns. Without a learner the state is ignored, and
        while a learner has sent no request, `timeout_s` decides how long to wait for one. Rewards
        that are reported meanwhile are added up for its next step; an episode that ends meanwhile
        ends in its next step, whose action is not used.

        Args:
            observation: an element of the observation space. It is copied. It may exceed the
                bounds of a Box.
            reward: the reward since the last call: a number, or an array of one, but not NaN.
                A Python integer has at most 64 bits.
            terminated: whether the episode has reached a terminal state.
            truncated: whether the episode ends for another reason, such as a time limit.
            info: more about the state, as in Gymnasium. It is copied.

        Raises:
            UsageError: an argument is wrong, the first state of an episode is its end, or the
                simulation is closed. A wrong state reaches no learner.
            GymwireError: why the env agent has ended.
        """
        state = State(observation, reward, terminated, truncated, info)
        self._check_state(state)
        state = copy_state(state)
        with self._news:
            self._check_serving()
            self._turns.report(state)
            self._news.notify_all()
            return self._next_command(self._timeout_s)

    def wait_for_learner(self, timeout_s: float | None = None) -> bool:
        """Wait until a learner resets the simulation; return False after `timeout_s` seconds."""
        limit_s = _limit("timeout_s", timeout_s)
        with self._news:
            self._news.wait_for(self._has_news, limit_s)
            self._check_serving()
            return self.has_learner

    def _has_news(self) -> bool:
        return self.has_learner or self._failure is not None or bool(self._ended)

    def _next_command(self, timeout_s: float | None) -> Command:
        """Return the next command. Call it with the lock held."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._check_serving()
            if self._must_render:
                self._render_now()
            command = self._turns.take()
            if command is not None:
                return command
            left = None if until is None else until - time.monotonic()
            if not self.has_learner or (left is not None and left <= 0):
                return Command(self._default_action, has_learner=self.has_learner)
            self._news.wait(left)

    def _render_now(self) -> None:
        """Render for the learner: in the program's thread, as most graphics libraries require."""
        assert self._render is not None
        self._render_failure = None
        try:
            self._frame = self._render()
        except BaseException as error:
            self._render_failure = error
            raise
        finally:
            self._must_render = False
            self._news.notify_all()

    def _check_serving(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise UsageError(f"This simulation is closed: {self._ended}")

    def close(self, why: str = "the program has closed it.") -> None:
        """Withdraw the offer, end the learner's session, and stop the env agent."""
        self._stop(why)
        self._thread.join(STOP_S)

    def _stop(self, why: str) -> None:
        with self._news:
            self._ended = self._ended or why
            self._news.notify_all()
        self._agent.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.close(f"its program raised {type(error).__name__}: {error}".removesuffix(": "))

    # --- the env agent's thread -------------------------------------------------------------------

    def begin_use(self, env: SimulationEnv) -> None:
        """Let an environment use the simulation, if it is the only one of its session.

        The simulation has one slot, so a session that still uses it has ended during a step, whose
        result nobody awaits.

        Raises ConfigurationError if another environment of this session uses it.
        """
        thread = threading.get_ident()  # each session has its own
        with self._news:
            if self._user is not None and self._user_thread == thread:
                raise ConfigurationError(
                    "A simulation is one world, which one learner at a time can use as one "
                    "environment. Open it with num_envs=1, or start the program several times."
                )
            self._leave()
            self._user, self._user_thread = env, thread

    def end_use(self, env: SimulationEnv) -> None:
        """End the use by an environment, if another one has not taken its place."""
        with self._news:
            if self._user is env:
                self._leave()

    def _leave(self) -> None:
        self._user, self._must_render = None, False
        self._turns.leave()
        self._news.notify_all()

    def request(self, env: SimulationEnv, command: Command) -> State:
        """Make a request of an environment, and wait for the program's answer.

        Raises UsageError for an action without an episode, and RuntimeError if the program ends.
        """
        with self._news:
            self._check_user(env)
            self._turns.ask(command)
            self._news.notify_all()
            while (reply := self._turns.take_reply()) is None:
                self._wait_for_program(env)
            return reply

    def render(self, env: SimulationEnv) -> Any:
        """Return an image that the program renders in its next `exchange`.

        Raises RuntimeError if the program ends, or cannot render.
        """
        with self._news:
            self._check_user(env)
            self._must_render = True
            self._news.notify_all()
            while self._must_render:
                self._wait_for_program(env)
            frame, self._frame = self._frame, None
            if (failure := self._render_failure) is not None:
                why = f"{type(failure).__name__}: {failure}".removesuffix(": ")
                raise RuntimeError(f"The program could not render: {why}") from failure
            return frame

    def _wait_for_program(self, env: SimulationEnv) -> None:
        if self._ended:
            raise RuntimeError(f"The simulation is over: {self._ended}")
        self._news.wait()
        self._check_user(env)

    def _check_user(self, env: SimulationEnv) -> None:
        if self._user is not env:
            raise RuntimeError("This session has ended: another learner uses the simulation now.")


class SimulationEnv(gymnasium.Env[Any, Any]):
    """The environment that a learner's session uses: it hands requests over to the program."""

    def __init__(self, simulation: Simulation, render_mode: str | None) -> None:
        self.observation_space = simulation.observation_space
        self.action_space = simulation.action_space
        self.metadata = simulation.metadata
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigurationError(
                f"This simulation has no render mode {render_mode!r}. Its program must pass "
                f"`render`, which supports 'rgb_array'."
            )
        self.render_mode = render_mode
        self._simulation = simulation
        simulation.begin_use(self)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Ask the program for a new episode; return its first observation and info.

        Raises UsageError, without a request to the program, if the options are not a dict.
        """
        if not isinstance(options, dict | None):
            raise UsageError(
                f"The options of a reset must be a dict or None, not {options!r:.100}."
            )
        super().reset(seed=seed)
        state = self._simulation.request(self, Command(reset=True, seed=seed, options=options))
        return state.observation, state.info or {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Hand the action to the program; return the state that it reports next.

        Raises UsageError, without a request to the program, for an action outside the space.
        """
        state = self._simulation.request(self, Command(_checked(action, self.action_space)))
        info = state.info or {}
        return state.observation, state.reward, state.terminated, state.truncated, info

    def render(self) -> Any:
        """Return an image that the program renders; None without a render mode."""
        return None if self.render_mode is None else self._simulation.render(self)

    def close(self) -> None:
        """End the use of the simulation."""
        self._simulation.end_use(self)


def _checked(action: Any, space: Space[Any]) -> Any:
    """Return an action in the form that the space contains. Raises UsageError if there is none.

    For a Box, also in a Dict or Tuple, it may be a list or have another precision, such as float64.
    """
    with contextlib.suppress(TypeError, ValueError):  # for nested lists of different lengths
        converted = _converted(action, space)
        if space.contains(converted):
            return converted
    raise UsageError(f"The action {action!r:.100} is not in the action space {space!r:.200}.")


def _converted(action: Any, space: Space[Any]) -> Any:
    """Return an action with the dtype of each Box. Raises TypeError or ValueError."""
    if isinstance(space, Dict) and isinstance(action, dict) and action.keys() == {*space.spaces}:
        return {key: _converted(part, space.spaces[key]) for key, part in action.items()}
    if isinstance(space, Tuple) and isinstance(action, tuple | list):
        return tuple(_converted(*pair) for pair in zip(action, space.spaces, strict=True))
    if not isinstance(space, Box):
        return action
    array, is_exact = np.asarray(action), space.dtype.kind in "iu"
    if array.dtype.kind not in ("biu" if is_exact else "biuf"):
        raise TypeError(array.dtype)
    with np.errstate(over="ignore"):
        converted = array.astype(space.dtype, copy=False)
    if is_exact and not np.array_equal(converted, array):
        raise ValueError("out of range")
    return converted


def _limit(name: str, seconds: float | None) -> float | None:
    """Return how long to wait at most, None without a limit. Raises ConfigurationError."""
    if seconds is None:
        return None
    if not (isinstance(seconds, Real) and seconds >= 0):
        raise ConfigurationError(
            f"{name} must be None or a number of seconds of 0 or more, not {seconds!r:.100}."
        )
    return None if seconds > threading.TIMEOUT_MAX else float(seconds)
