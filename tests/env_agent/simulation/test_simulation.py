"""Programs that own their loop, used by a learner over a real broker."""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import structlog
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple

from gymwire import ProxyEnv, ProxyVectorEnv, Simulation
from gymwire.cli.check import Verdict, judge
from gymwire.env_agent.simulation.simulation import _checked
from gymwire.errors import (
    BrokerUnreachable,
    ConfigurationError,
    EnvironmentFailed,
    GymwireError,
    NoFreeSlot,
    UsageError,
)
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.observing import observe, stop_agent
from tests.processes import PATIENCE_S
from tests.time_limits import times_out

POSITION = Box(-100.0, 100.0, (1,), np.float64)
MOVES = Discrete(3)


class Walker:
    """A program that walks to 3: its loop, and what it has seen."""

    def __init__(self, url: str, *, renders: bool = False, **options: Any) -> None:
        self.address = f"walker-{uuid.uuid4().hex[:8]}"
        if renders:
            options["render"] = self.render
        self.simulation = Simulation(self.address, POSITION, MOVES, url, **options)
        self.position = 0.0
        self.threads: set[int] = set()
        self.commands: list[Any] = []

    def loop(self, until: Callable[[], bool]) -> None:
        """Serve in this thread."""
        reward = 0.0
        while not until():
            self.threads.add(threading.get_ident())
            end = abs(self.position) >= 3
            observation = np.array([self.position])
            command = self.simulation.exchange(observation, reward, end, info={"at": self.position})
            observation[:] = np.nan  # the program may use its memory again
            self.commands.append(command)
            if command.reset:
                self.position = float(command.seed or 0)
                reward = 0.0
            elif command.action is not None:
                self.position += command.action - 1
                reward = float(command.action)

    def render(self) -> Any:
        """Return an image of one color, which shows the position."""
        self.threads.add(threading.get_ident())
        return np.full((4, 5, 3), int(self.position) + 100, np.uint8)


class Learner(threading.Thread):
    """Runs a function in a thread of its own, as another process would."""

    def __init__(self, play: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._play = play
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._play()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def ended(self) -> bool:
        return not self.is_alive()

    def get(self) -> Any:
        self.join(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return self.result


def test_a_learner_resets_and_steps_a_program_that_owns_its_loop(broker_url: str) -> None:
    walker = Walker(broker_url)

    seen: list[Any] = []

    def play() -> None:
        with ProxyEnv(walker.address, broker_url) as env:
            assert env.observation_space == POSITION
            assert env.action_space == MOVES
            for seed in (0, 2):
                seen.append(env.reset(seed=seed))
                done = False
                while not done:
                    *percept, info = env.step(2)
                    seen.append((*percept, info))
                    done = percept[2]

    with walker.simulation:
        learner = Learner(play)
        walker.loop(learner.ended)
        learner.get()
    assert seen == [
        (np.array([0.0]), {"at": 0.0}),
        (np.array([1.0]), 2.0, False, False, {"at": 1.0}),
        (np.array([2.0]), 2.0, False, False, {"at": 2.0}),
        (np.array([3.0]), 2.0, True, False, {"at": 3.0}),
        (np.array([2.0]), {"at": 2.0}),
        (np.array([3.0]), 2.0, True, False, {"at": 3.0}),
    ]
    assert walker.threads == {threading.get_ident()}


def test_without_a_learner_the_program_continues_with_the_default_action(broker_url: str) -> None:
    with Walker(broker_url, default_action=1).simulation as simulation:
        commands = [simulation.exchange(np.zeros(1)) for _ in range(3)]
    assert {(one.action, one.reset, one.has_learner) for one in commands} == {(1, False, False)}


def test_a_program_that_must_not_wait_gets_the_default_action_meanwhile(broker_url: str) -> None:
    walker = Walker(broker_url, default_action=1, timeout_s=0.0)
    may_step = threading.Event()

    def play() -> Any:
        with ProxyEnv(walker.address, broker_url) as env:
            env.reset()
            may_step.wait(PATIENCE_S)
            return env.step(2)

    with walker.simulation as simulation:
        learner = Learner(play)
        is_reset = waits = False
        for _ in itertools.count():
            reward = 1.0 if waits and not may_step.is_set() else 0.0
            command = simulation.exchange(np.zeros(1), reward)
            is_reset |= command.reset
            if may_step.is_set():
                if command.action == 2:
                    break
            elif is_reset and not command.reset and command.has_learner:
                if waits:  # one more state with a reward was reported
                    may_step.set()
                assert command.action == 1
                waits = True
        simulation.exchange(np.ones(1), 5.0)
        observation, reward, *_ = learner.get()
    assert observation == np.ones(1)
    assert reward == 6.0


def test_a_learner_that_leaves_ends_the_wait_and_another_one_may_come(broker_url: str) -> None:
    walker = Walker(broker_url, default_action=1)

    def play() -> None:
        with ProxyEnv(walker.address, broker_url) as env:
            env.reset()
            env.step(2)

    with walker.simulation as simulation:
        for _ in range(2):
            learner = Learner(play)
            assert simulation.wait_for_learner(PATIENCE_S)
            walker.loop(lambda: not simulation.has_learner)
            learner.get()
    assert sum(command.reset for command in walker.commands) == 2
    assert walker.commands[-1].has_learner is False


def test_the_program_renders_in_its_own_thread(broker_url: str) -> None:
    walker = Walker(broker_url, renders=True)

    def play() -> Any:
        with ProxyEnv(walker.address, broker_url, render_mode="rgb_array") as env:
            env.reset(seed=2)
            return env.render()

    with walker.simulation:
        learner = Learner(play)
        walker.loop(learner.ended)
        assert learner.get().tolist() == np.full((4, 5, 3), 102).tolist()
    assert walker.threads == {threading.get_ident()}


@pytest.fixture
def _structlog_is_not_configured() -> Iterator[None]:
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    yield
    if before is not None:
        structlog.configure(**before)


@pytest.mark.usefixtures("_structlog_is_not_configured")
def test_a_render_mode_needs_a_program_that_renders(
    broker_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    walker = Walker(broker_url)
    with walker.simulation, pytest.raises(GymwireError, match="render mode 'rgb_array'"):
        ProxyEnv(walker.address, broker_url, render_mode="rgb_array")
    printed = capfd.readouterr()
    assert printed.out == ""  # which belongs to the program
    assert "session refused" in printed.err


def test_an_exception_in_the_program_reaches_the_learner(broker_url: str) -> None:
    walker = Walker(broker_url)

    def play() -> None:
        with ProxyEnv(walker.address, broker_url) as env:
            env.reset()
            env.step(2)

    def run() -> None:
        with walker.simulation as simulation:
            assert simulation.wait_for_learner(PATIENCE_S)
            walker.loop(lambda: bool(walker.commands and walker.commands[-1].action == 2))
            walker.position /= 0

    learner = Learner(play)
    with pytest.raises(ZeroDivisionError):
        run()
    with pytest.raises(EnvironmentFailed, match=r"The simulation is over.*ZeroDivisionError"):
        learner.get()


@pytest.mark.parametrize("action", ["text", 77, -1, None, {}, 1.0, [1], np.float64(1)], ids=repr)
def test_an_action_outside_the_space_does_not_reach_the_program(
    broker_url: str, action: Any
) -> None:
    walker = Walker(broker_url)

    def play() -> Any:
        with ProxyEnv(walker.address, broker_url) as env:
            env.reset(seed=1)
            with pytest.raises(EnvironmentFailed, match="is not in the action space Discrete"):
                env.step(action)
            env.reset(seed=1)
            return env.step(2)[0].tolist()

    with walker.simulation:
        learner = Learner(play)
        walker.loop(learner.ended)
        assert learner.get() == [2.0]
    assert {one.action for one in walker.commands} == {None, 2}


@pytest.mark.parametrize("options", [5, "text", [1]], ids=repr)
def test_options_that_are_no_dict_do_not_reach_the_program(broker_url: str, options: Any) -> None:
    walker = Walker(broker_url)

    def play() -> Any:
        with ProxyEnv(walker.address, broker_url) as env:
            with pytest.raises(EnvironmentFailed, match="options of a reset must be a dict or Non"):
                env.reset(options=options)
            return env.reset(seed=1, options={"a": [options]})[0].tolist()

    with walker.simulation:
        learner = Learner(play)
        walker.loop(learner.ended)
        assert learner.get() == [1.0]
    assert [one.options for one in walker.commands if one.reset] == [{"a": [options]}]


@pytest.mark.parametrize(
    ("action", "is_valid"),
    [
        (np.array([0.5, 1.0]), True),
        ([0, 1.0], True),
        (np.array([0.5, 1.5]), False),
        (np.array([0.5, np.nan], np.float32), False),
        (np.array([1e300, 0.0]), False),
        ([0.5, [1.0]], False),
        (np.array([0.5]), False),
        (["a", "b"], False),
        (np.array([0.5, 1j]), False),
        ({"a": 1}, False),
        (None, False),
    ],
    ids=repr,
)
def test_numbers_of_another_precision_become_those_of_the_box(action: Any, is_valid: bool) -> None:
    space = Box(-1.0, 1.0, (2,), np.float32)
    if is_valid:
        assert space.contains(_checked(action, space))
    else:
        with pytest.raises(UsageError, match="is not in the action space Box"):
            _checked(action, space)


@pytest.mark.parametrize(
    ("action", "space"),
    [
        (np.float32(0.5), Box(-1.0, 1.0, (), np.float32)),
        ([1, 2], Box(0, 255, (2,), np.uint8)),
        ({"gas": np.ones(1), "gear": 1}, Dict(gas=Box(0.0, 1.0), gear=Discrete(3))),
        ([1, [0.5]], Tuple([Discrete(3), Box(0.0, 1.0)])),
    ],
    ids=repr,
)
def test_numbers_become_those_of_each_box_of_a_space(action: Any, space: Space[Any]) -> None:
    with warnings.catch_warnings(action="error"):
        assert space.contains(_checked(action, space))


@pytest.mark.parametrize(
    ("action", "space"),
    [
        (np.array([2**32 + 1]), Box(0, 9, (1,), np.int32)),  # its last 32 bits are 1
        ([1, 256], Box(0, 255, (2,), np.uint8)),
        ({"gas": np.ones(1)}, Dict(gas=Box(0.0, 1.0), gear=Discrete(3))),
        ((1, ["1"]), Tuple([Discrete(3), Box(0.0, 1.0)])),
        (np.array(1), Tuple([Discrete(3), Box(0.0, 1.0)])),
        ([1, [1]], MultiDiscrete([3, 3])),
    ],
    ids=repr,
)
def test_what_a_space_cannot_contain_is_a_mistake_of_the_learner(
    action: Any, space: Space[Any]
) -> None:
    with pytest.raises(UsageError, match="is not in the action space"):
        _checked(action, space)


def test_an_exception_without_a_text_is_named(broker_url: str) -> None:
    walker = Walker(broker_url)

    def run() -> None:
        with walker.simulation:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    with pytest.raises(UsageError, match=r"closed: its program raised KeyboardInterrupt$"):
        walker.simulation.exchange(np.zeros(1))


def test_a_simulation_passes_the_checker(broker_url: str) -> None:
    walker = Walker(broker_url)
    verdicts: list[Verdict] = []

    def play() -> None:
        with ProxyEnv(walker.address, broker_url) as env:
            verdicts.append(judge(env))

    with walker.simulation as simulation:
        learner = Learner(play)
        while not learner.ended():
            simulation.exchange(np.zeros(1))
        learner.get()
    assert verdicts[0].failure is None


def test_a_wrong_state_is_raised_in_the_program_and_reaches_nobody(broker_url: str) -> None:
    walker = Walker(broker_url)

    def play() -> Any:
        with ProxyEnv(walker.address, broker_url) as env:
            env.reset()
            return env.step(2)

    with walker.simulation:
        learner = Learner(play)
        walker.loop(lambda: any(one.action is not None for one in walker.commands))
        with pytest.raises(UsageError, match=r"of shape \(2,\) and dtype float64 is not in"):
            walker.simulation.exchange(np.zeros(2))
        with pytest.raises(UsageError, match="the reward is NaN"):
            walker.simulation.exchange(np.zeros(1), float("nan"))
        walker.loop(learner.ended)
        assert learner.get()[0] == np.array([1.0])


def test_a_closed_simulation_says_so(broker_url: str) -> None:
    walker = Walker(broker_url)
    walker.simulation.close()
    with pytest.raises(UsageError, match="closed: the program has closed it"):
        walker.simulation.exchange(np.zeros(1))


def test_a_step_that_a_learner_has_given_up_does_not_keep_the_next_one_waiting(
    broker_url: str,
) -> None:
    walker = Walker(broker_url)
    may_go_on = threading.Event()

    def play() -> Any:
        first = ProxyEnv(walker.address, broker_url)
        first.reset()
        with times_out(first):
            first.step(2)
        first.close()
        with ProxyEnv(walker.address, broker_url, wait_s=PATIENCE_S) as env:
            threading.Timer(0.1, may_go_on.set).start()
            return env.reset(seed=2)[0].tolist(), env.step(0)[0].tolist()

    with walker.simulation:
        learner = Learner(play)
        walker.loop(lambda: bool(walker.commands and walker.commands[-1].action == 2))
        assert may_go_on.wait(PATIENCE_S)
        walker.loop(learner.ended)
        assert learner.get() == ([2.0], [1.0])


def test_a_picture_that_fails_is_reported_to_both_sides(broker_url: str) -> None:
    def fail() -> None:
        raise OSError("no display")

    walker = Walker(broker_url, render=fail)

    def play() -> Any:
        with ProxyEnv(walker.address, broker_url, render_mode="rgb_array") as env:
            env.reset()
            with pytest.raises(EnvironmentFailed, match="could not render: OSError: no display"):
                env.render()
            return env.step(2)[0].tolist()

    with walker.simulation as simulation:
        learner = Learner(play)
        assert simulation.wait_for_learner(PATIENCE_S)
        with pytest.raises(OSError, match="no display"):
            walker.loop(learner.ended)
        walker.loop(learner.ended)
        assert learner.get() == [1.0]


def test_a_render_that_is_no_function_is_named(broker_url: str) -> None:
    with pytest.raises(ConfigurationError, match="render must be a function, not array"):
        Walker(broker_url, render=np.zeros((2, 2, 3)))


def test_a_space_that_is_none_is_named() -> None:
    wrong: Any = 3
    for name in ("observation_space", "action_space"):
        spaces: dict[str, Any] = {"observation_space": Discrete(2), "action_space": Discrete(2)}
        with pytest.raises(ConfigurationError, match=f"^{name} must be a gymnasium.Space, not 3"):
            Simulation("a", **{**spaces, name: wrong})


def test_a_wait_for_a_learner_ends_when_an_operator_stops_the_simulation(broker_url: str) -> None:
    walker = Walker(broker_url)
    program = Learner(walker.simulation.wait_for_learner)
    with contextlib.closing(BrokerConnection(broker_url)) as connection:
        offers = observe(connection).offers
        (agent,) = [one.agent for one in offers if one.address == walker.address]
        stop_agent(connection, agent)
    with pytest.raises(UsageError, match="This simulation is closed: "):
        program.get()


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), "1"])
def test_a_wrong_limit_in_seconds_is_named(broker_url: str, seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout_s must be None or a number of seconds"):
        Walker(broker_url, timeout_s=seconds)
    walker = Walker(broker_url)
    with walker.simulation, pytest.raises(ConfigurationError, match="timeout_s must be"):
        walker.simulation.wait_for_learner(seconds)


def test_an_infinite_limit_is_none(broker_url: str) -> None:
    walker = Walker(broker_url, timeout_s=float("inf"))

    def play() -> Any:
        with ProxyEnv(walker.address, broker_url) as env:
            return env.reset(seed=2)[0].tolist()

    with walker.simulation as simulation:
        learner = Learner(play)
        assert simulation.wait_for_learner(float("inf"))
        walker.loop(lambda: not simulation.has_learner)
        assert learner.get() == [2.0]


@pytest.mark.parametrize("mode", ["human", "ansi", "rgb_array"])
def test_metadata_promise_no_render_mode_that_there_is_not(broker_url: str, mode: str) -> None:
    metadata = {"render_modes": [mode], "render_fps": 50}
    walker = Walker(broker_url, metadata=metadata)
    options: Any = {"broker": broker_url, "address": walker.address, "render_mode": mode}
    with walker.simulation, pytest.raises(GymwireError, match="render mode"):
        gymnasium.make("gymwire:gymwire/Proxy-v0", **options)
    with Walker(broker_url, metadata=metadata, renders=True).simulation as simulation:
        assert simulation.metadata == {"render_modes": ["rgb_array"], "render_fps": 50}


def test_one_learner_at_a_time_uses_one_world(broker_url: str) -> None:
    walker = Walker(broker_url)
    with (
        walker.simulation,
        ProxyEnv(walker.address, broker_url),
        contextlib.closing(BrokerConnection(broker_url)) as another,
    ):
        # A simulation has no option: only the other advice applies.
        advice = "start another env agent for this address. With `gymwire serve`, --max-sessions"
        with pytest.raises(NoFreeSlot, match=advice):
            ProxyEnv(walker.address, connection=another)
    walker = Walker(broker_url)
    with walker.simulation:
        for _ in range(2):
            with pytest.raises(EnvironmentFailed, match="one learner at a time"):
                ProxyVectorEnv(walker.address, 2, broker_url)

        def play() -> Any:
            with ProxyEnv(walker.address, broker_url) as env:
                return env.reset(seed=1)[0].tolist()

        learner = Learner(play)  # the next learner can use it
        walker.loop(learner.ended)
        assert learner.get() == [1.0]


def test_several_simulations_share_a_process(broker_url: str) -> None:
    walkers = [Walker(broker_url) for _ in range(2)]

    def play(walker: Walker) -> Any:
        with ProxyEnv(walker.address, broker_url) as env:
            env.reset(seed=1)
            return env.step(2)[0].tolist()

    learners = [Learner(lambda one=one: play(one)) for one in walkers]  # type: ignore[misc]
    programs = [
        Learner(lambda one=one, it=it: one.loop(it.ended))  # type: ignore[misc]
        for one, it in zip(walkers, learners, strict=True)
    ]
    assert [one.get() for one in learners] == [[2.0], [2.0]]
    for walker, program in zip(walkers, programs, strict=True):
        program.get()
        walker.simulation.close()


def test_what_prevents_the_offer_is_raised_at_once() -> None:
    with pytest.raises(BrokerUnreachable):
        Simulation("game", POSITION, MOVES, "ipc:///nonexistent/broker")
    with pytest.raises(ConfigurationError, match="@identity"):
        Simulation("game@jqc3nq5n7gicd6zf", POSITION, MOVES)
