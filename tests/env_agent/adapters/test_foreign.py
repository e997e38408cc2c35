"""Environments of old gym and of dm_env, by stand-ins with the same interfaces."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import structlog
from gymnasium import spaces

from gymwire.env_agent.environments import Environments, Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.interpreter.child import libraries
from gymwire.env_agent.interpreter.child.dm_envs import DmEnv
from gymwire.env_agent.interpreter.child.hosted import Hosted
from gymwire.env_agent.runners.runner import Runner
from gymwire.errors import ConfigurationError
from gymwire.protocol import generators
from gymwire.protocol.messages import Call, Open
from tests.sameness import assert_same


class Space:
    """A space of another library: only attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


BOX = Space(
    low=np.full(2, -1, np.float32),
    high=np.ones(2, np.float32),
    shape=(2,),
    dtype=np.dtype("float32"),
)


class GymEnv:
    """The base class of the package gym."""


class Old(GymEnv):
    """An environment of gym 0.21."""

    metadata = {  # noqa: RUF012 - as old gym declares it
        "render.modes": ["rgb_array"],
        "video.frames_per_second": 30,
    }
    observation_space = BOX
    action_space = Space(n=3, shape=(), dtype=np.dtype("int64"))
    spec = "not Gymnasium's"

    def __init__(self, limit: bool = False) -> None:
        self.limit, self.seeds, self.count, self.closed = limit, list[int](), 0, False

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def reset(self) -> Any:
        self.count = 0
        return np.zeros(2, np.float32)

    def step(self, action: int) -> Any:
        self.count += 1
        info = {"TimeLimit.truncated": True} if self.limit and self.count == 3 else {"n": 1}
        return np.full(2, self.count, np.float32), float(action), self.count == 3, info

    def render(self, mode: str = "human") -> Any:
        return np.full((1, 1, 3), len(mode), np.uint8)

    def close(self) -> None:
        self.closed = True


class Newer(Old):
    """An environment of gym 0.26."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gym declares it

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.count = 0
        return np.zeros(2, np.float32), {"seed": seed, "options": options}

    def step(self, action: int) -> Any:
        return np.ones(2, np.float32), 1.0, False, True, {}

    def render(self) -> Any:  # type: ignore[override]
        return np.zeros((1, 1, 3), np.uint8)


class Drawing(Newer):
    """An environment that draws from a generator of its own, which may be of an old kind."""

    def __init__(self, old: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unwrapped = self
        self.np_random: Any = np.random.RandomState(3) if old else np.random.default_rng(3)


class DmBase:
    """The base class of the package dm_env."""


class TimeStep:
    """A time step of dm_env."""

    def __init__(self, observation: Any, reward: Any, discount: Any, is_last: bool) -> None:
        self.observation, self.reward, self.discount = observation, reward, discount
        self._is_last = is_last

    def last(self) -> bool:
        return self._is_last


class Dm(DmBase):
    """An environment of dm_env, whose last step has this discount."""

    def __init__(self, discount: float = 0.0) -> None:
        self.discount, self.count = discount, 0
        self.task: Any = types.SimpleNamespace(_random=np.random.RandomState(0))

    def observation_spec(self) -> Any:
        specs = {
            "speed": Space(shape=(), dtype=np.dtype("float64")),
            "at": Space(shape=(2,), dtype=np.dtype("float32"), minimum=-1.0, maximum=1.0),
            "kind": Space(shape=(), dtype=np.dtype("int32"), num_values=4, minimum=0, maximum=3),
        }
        return types.MappingProxyType(specs)

    def action_spec(self) -> Any:
        return Space(shape=(2,), dtype=np.dtype("float64"), minimum=-1.0, maximum=1.0)

    def _observe(self) -> Any:
        draw = self.task._random.random_sample()
        return {"speed": draw, "at": np.ones(2, np.float32), "kind": np.int32(2)}

    def reset(self) -> Any:
        self.count = 0
        return TimeStep(self._observe(), None, None, False)

    def step(self, action: Any) -> Any:
        self.count += 1
        is_last = self.count == 2
        discount = self.discount if is_last else 1.0
        return TimeStep(self._observe(), float(action[0]), discount, is_last)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the packages gym and dm_env seem to be imported."""
    for name, attributes in (("gym", {"Env": GymEnv}), ("dm_env", {"Environment": DmBase})):
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)


def make(maker: Any, render_mode: str | None = None, **kwargs: Any) -> Any:
    """Make an environment as a session does, after the first one for the offer."""
    service = Service("old", Factory("tests:Old", maker))
    environments = Environments([service])
    environments.describe(service, 1, None)
    request = Open("old", bytes(16), render_mode, kwargs)
    return environments.make(service, request).env


def test_an_environment_of_gym_0_21_gets_its_seed_and_returns_five_values() -> None:
    env = make(Old)
    assert env.observation_space == spaces.Box(-1.0, 1.0, (2,), np.float32)
    assert env.action_space == spaces.Discrete(3)
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 30}
    assert_same(env.reset(seed=7), (np.zeros(2, np.float32), {}))
    assert env.seeds == [7]
    for count in (1, 2):
        expected = (np.full(2, count, np.float32), 2.0, False, False, {"n": 1})
        assert_same(env.step(2), expected)
    assert env.step(0)[2:] == (True, False, {"n": 1})
    env.close()
    assert env.closed


def test_a_time_limit_of_gym_0_21_truncates() -> None:
    env = make(Old, limit=True)
    env.reset()
    ends = [env.step(0)[2:] for _ in range(3)]
    assert ends == [(False, False, {"n": 1}), (False, False, {"n": 1}), (False, True, {})]


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("is_cut", [True, False])
def test_a_step_in_another_interpreter_becomes_what_it_becomes_here(
    kind: Any, is_cut: bool
) -> None:
    info = {"TimeLimit.truncated": is_cut, "n": 1}

    class Uses(Old):  # the same info in each step
        def step(self, action: int) -> Any:
            return kind([np.zeros(2, np.float32), 0.5, np.True_, info])

    here, there = make(Uses), Hosted(Uses(), None)
    here.reset()
    for _ in range(2):
        expected = (np.zeros(2, np.float32), 0.5, not is_cut, is_cut, {"n": 1})
        assert_same(here.step(0), expected)
        assert_same(there.step(0), expected)


@pytest.mark.parametrize(
    ("space", "result", "is_pair"),
    [
        (spaces.Box(0, 1, (3,)), (np.zeros(3, np.float32), [1]), True),
        (spaces.Discrete(3), (1, [1]), True),
        (BOX, (0.5, 0.25), False),
        (spaces.Tuple([spaces.Discrete(3), spaces.MultiDiscrete([2])]), (1, [1]), False),
    ],
)
def test_a_reset_in_another_interpreter_returns_a_pair_unless_its_space_has_two_parts(
    space: Any, result: Any, is_pair: bool
) -> None:
    class Resets(Old):
        observation_space = space

        def reset(self) -> Any:
            return result

    assert Hosted(Resets(), None).reset(None, None) == (result if is_pair else (result, {}))


class Result(NamedTuple):
    observation: Any
    info: Any


@dataclass
class Info:
    level: int = 1


@pytest.mark.parametrize(
    "result",
    [[1, {"a": 1}], Result(1, {"a": 1}), (1, Info()), (1, [("a", 1)]), (1, None), 1, (1, {}, 2)],
    ids=repr,
)
def test_what_a_reset_of_gymnasium_returns_is_not_changed_in_another_interpreter(
    result: Any,
) -> None:
    class Resets(gymnasium.Env[Any, Any]):
        observation_space = action_space = spaces.Discrete(3)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return result

        def step(self, action: Any) -> Any:
            return (1, 0.5, False, {})

    hosted = Hosted(Resets(), None)
    assert hosted.reset(None, None) is result
    assert hosted.step(0) == (1, 0.5, False, {})  # not old gym's: an error at the env agent


def test_the_generator_of_old_gym_is_the_one_that_it_draws_from() -> None:
    expected, runner = np.random.default_rng(3), Runner(make(Drawing))
    state = runner.access(Call("get", "np_random"))["value"]
    assert generators.build(state).random() == expected.random()
    env: Any = runner.env
    own = env.unwrapped._made
    for seed, in_place in ((4, (True,)), (5, ())):
        state = generators.describe(np.random.default_rng(seed))
        runner.access(Call("set", "np_random", (state, *in_place)))
        assert own.np_random.random() == np.random.default_rng(seed).random()
    runner = Runner(make(Newer))  # has none: Gymnasium makes one
    runner.access(Call("set", "np_random", (state,)))
    assert runner.access(Call("get", "np_random")) == {"value": state}


@pytest.mark.parametrize(
    "call",
    [
        Call("get", "np_random"),
        Call("set", "np_random", (generators.describe(np.random.default_rng(1)),)),
        Call("set", "np_random", (generators.describe(np.random.default_rng(1)), True)),
    ],
    ids=["get", "set", "set in place"],
)
def test_a_generator_of_an_old_kind_is_an_error_that_says_so(call: Call) -> None:
    env: Any = make(Drawing, old=True)
    own, access = env.unwrapped._made, Runner(env).access
    before = own.np_random
    with pytest.raises(AttributeError, match=r"np_random is a RandomState, but only a numpy\.rand"):
        access(call)
    assert own.np_random is before


def test_four_values_without_an_info_are_not_those_of_old_gym() -> None:
    class Forgets(Old):
        def step(self, action: int) -> Any:
            return np.zeros(2, np.float32), 0.0, False, False

    env = make(Forgets)
    env.reset()
    assert len(env.step(0)) == 4  # the session says that there must be five


def test_a_time_limit_of_gym_0_21_ends_no_episode_that_is_not_done() -> None:
    class Early(Old):
        def step(self, action: int) -> Any:
            return np.zeros(2, np.float32), 0.0, False, {"TimeLimit.truncated": True}

    env = make(Early)
    env.reset()
    assert env.step(0)[2:4] == (False, False)


def test_an_environment_of_gym_0_22_gives_its_info() -> None:
    class WithInfo(Old):
        def reset(self, *, seed: Any = None, return_info: bool = False, options: Any = None) -> Any:
            assert return_info
            return np.zeros(2, np.float32), {"seed": seed}

    assert make(WithInfo).reset(seed=3)[1] == {"seed": 3}


def test_an_environment_of_gym_0_21_renders_in_the_mode_that_was_asked_for() -> None:
    env = make(Old, "rgb_array")
    assert env.render_mode == "rgb_array"
    assert env.render()[0, 0, 0] == len("rgb_array")


def test_options_that_reset_does_not_take_are_an_error() -> None:
    for maker in (Old, Dm):
        with pytest.raises(TypeError, match=rf"^The reset of {maker.__name__} takes no options\.$"):
            make(maker).reset(options={"level": 1})


class Seedless(Dm):
    """An environment of dm_env that takes no seed."""

    task: Any = None

    def __init__(self) -> None:
        self.count = 0

    def _observe(self) -> Any:
        return {"speed": 0.5, "at": np.ones(2, np.float32), "kind": np.int32(2)}


class SeedlessGym(GymEnv):
    """An environment of gym 0.26, whose base class has no method for seeds, that takes no seed."""

    metadata, observation_space, action_space = Newer.metadata, BOX, Newer.action_space

    def reset(self) -> Any:
        return np.zeros(2, np.float32), {"n": 1}


@pytest.mark.parametrize(("maker", "hosted"), [(Seedless, DmEnv), (SeedlessGym, lambda made: made)])
def test_a_seed_that_an_environment_does_not_take_is_logged_once(
    maker: Any, hosted: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "np", np)
    env, there = make(maker), Hosted(hosted(maker()), None)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            observation, info = env.reset(seed=1)
            assert_same(there.reset(1, None), (observation, info))
    assert [log["event"] for log in logs] == ["seed ignored"]
    assert capsys.readouterr().err == "The environment takes no seed.\n"


def test_an_environment_of_dm_env_may_have_a_method_for_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "np", np)
    seeds: list[int] = []
    monkeypatch.setattr(Seedless, "seed", lambda self, seed: seeds.append(seed), raising=False)
    make(Seedless).reset(seed=1)
    Hosted(DmEnv(Seedless()), None).reset(2, None)
    assert seeds == [1, 2]


def test_an_environment_of_gym_0_26_works_as_it_is() -> None:
    env = make(Newer, "rgb_array")
    assert env.render_mode == "rgb_array"
    expected = {"seed": 3, "options": {"a": 1}}
    assert env.reset(seed=3, options={"a": 1})[1] == expected
    assert env.step(1)[2:] == (False, True, {})
    assert env.render().shape == (1, 1, 3)


@pytest.mark.parametrize(("discount", "ends"), [(0.0, (True, False)), (1.0, (False, True))])
def test_an_episode_of_dm_env_terminates_with_discount_0_and_is_truncated_otherwise(
    discount: float, ends: tuple[bool, bool]
) -> None:
    env = make(Dm, discount=discount)
    assert env.action_space == spaces.Box(-1.0, 1.0, (2,), np.float64)
    assert [*env.observation_space.spaces] == ["speed", "at", "kind"]
    first = env.reset(seed=5)[0]
    assert first in env.observation_space
    assert_same(first, env.reset(seed=5)[0])
    assert env.step(np.full(2, 0.5))[1:] == (0.5, False, False, {"discount": 1.0})
    assert env.step(np.zeros(2))[2:] == (*ends, {"discount": discount})


def specs_are(specs: Any, observation: Any) -> type[Dm]:
    class Given(Dm):
        def observation_spec(self) -> Any:
            return specs

        def _observe(self) -> Any:
            return observation

    return Given


def test_a_list_of_specs_becomes_a_tuple_of_spaces() -> None:
    kinds: list[Any] = [
        Space(shape=(2,), dtype=np.dtype(name)) for name in ("bool", "int8", "float32")
    ]
    env = make(specs_are(kinds, [np.zeros(2, kind.dtype) for kind in kinds]))
    flags: Any = spaces.Box(np.zeros(2, np.bool_), np.ones(2, np.bool_), dtype=np.bool_)
    numbers = spaces.Box(-128, 127, (2,), np.int8), spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert env.observation_space == spaces.Tuple([flags, *numbers])
    assert env.reset()[0] in env.observation_space
    with pytest.raises(
        ValueError, match=r"^The observation must have 3 parts, as its spec has, not 1"
    ):
        make(specs_are(kinds, [True])).reset()


def test_a_spec_of_a_dtype_without_a_space_is_an_error_that_names_it() -> None:
    specs = {"name": Space(shape=(), dtype=np.dtype("U5"))}
    with pytest.raises(
        ConfigurationError, match=r"^Given: observation_spec\['name'\] has the dtype <U5, "
    ):
        make(specs_are(specs, None))


def test_anything_else_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigurationError, match=r"returned object, not a gymnasium\.Env"):
        make(object)
