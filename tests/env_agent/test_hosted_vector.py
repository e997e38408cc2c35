"""Vectors that are made after the pattern of an earlier one."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict
from fractions import Fraction
from functools import partial
from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gymwire.env_agent import failure_reports, hosted_vector
from gymwire.env_agent.hosted_vector import MAX_ENVS, MAX_PATTERNS, HostedVector
from gymwire.env_agent.interpreter.child.results import WrongResult
from gymwire.protocol import spaces
from gymwire.protocol.errors import UnsupportedSpaceError
from tests.rich_envs import Level
from tests.sameness import assert_same
from tests.sampling import sampled
from tests.space_zoo import ZOO

MODE = AutoresetMode.NEXT_STEP


class Env(gymnasium.Env[Any, Any]):
    """Observes samples of its space."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012 - Gymnasium's way

    def __init__(self, space: Space[Any], render_mode: str | None = None) -> None:
        self.observation_space = spaces.build(spaces.describe(space))
        self.action_space = Discrete(2)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 1.0, bool(action), False, {}


def _played(envs: Any) -> list[Any]:
    actions = np.arange(envs.num_envs) % 2
    return copy.deepcopy([envs.reset(seed=3), *(envs.step(actions) for _ in range(3))])


@pytest.mark.parametrize(
    ("name", "num_envs"),
    sampled(product(sorted(ZOO.keys() - {"box-widest"}), [1, 3, MAX_ENVS + 1]), 2),
)
def test_a_vector_equals_gymnasiums(name: str, num_envs: int) -> None:
    makers = [partial(Env, ZOO[name], "rgb_array")] * num_envs
    for _ in range(2):  # the second one is made after the pattern of the first
        try:
            theirs = SyncVectorEnv(makers, copy=False, autoreset_mode=MODE)
        except Exception as error:  # noqa: BLE001 - such spaces cannot be batched
            with pytest.raises(type(error)):
                HostedVector(makers, MODE)
            return
        made = HostedVector(makers, MODE)
        assert vars(made).keys() - vars(theirs).keys() == {"cast"}
        for key in vars(theirs).keys() - {"env_fns", "envs"}:
            assert_same(vars(made)[key], vars(theirs)[key], key)
        assert made.single_observation_space is made.envs[0].observation_space
        assert made.single_action_space is made.envs[0].action_space
        assert_same(_played(made), _played(theirs))


class Odd(Env):
    """Observes samples of another space at action 1, ends its episode at 2 and 5, raises at 3."""

    def __init__(self, space: Space[Any], other: Space[Any]) -> None:
        super().__init__(space)
        self.action_space = Discrete(6)
        self.other = spaces.build(spaces.describe(other))
        self.other.seed(1)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation = (self.other if action == 1 else self.observation_space).sample()
        if action == 3:
            raise KeyError("three")
        info = {"action": action, "nested": {"half": 0.5 * action}, "text": "two"}
        known = [{}, info, {"nested": {}, "nothing": None}, {}, {"action": 1.5}, {"action": False}]
        return observation, 0.5 * action, bool(action == 2), action == 5, known[int(action)]


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(
    ("space", "other"),
    [
        (Box(-1, 1, (2,), np.float32), Box(-1, 1, (2,), np.float64)),
        (Box(-1, 1, (2,), np.float32), Box(-1, 1, (1,), np.float32)),
        (Box(0, 9, (2,), np.int64), Box(-1, 1, (2,), np.float32)),
        (Box(0, 9, (), np.int64), Discrete(9)),
        (Discrete(9), Box(0, 9, (), np.int64)),
        (Dict(a=Discrete(9)), Dict(a=Box(0, 9, (), np.int64))),
    ],
)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_vector_steps_as_gymnasiums(
    space: Space[Any], other: Space[Any], mode: AutoresetMode, num_envs: int
) -> None:
    makers = [partial(Odd, space, other)] * num_envs
    theirs = SyncVectorEnv(makers, copy=False, autoreset_mode=mode)
    results: list[list[Any]] = []
    for envs in (theirs, HostedVector(makers, mode)):
        found: list[Any] = []
        results.append(found)
        envs.reset(seed=3)
        same: Any = [[n] * num_envs for n in (0, 0, 1, 0, 2, 0, 3, 0, 2, 2, 4, 5)]
        mixed = np.random.default_rng(5).integers(0, 6, (40, num_envs)).tolist()
        odd: Any = ([0] * (num_envs + 1), [], 0)
        for actions in (np.array(one, int) for one in (*same, *odd, *mixed)):
            try:
                found.append(copy.deepcopy(envs.step(actions)))
            except Exception as raised:  # noqa: BLE001 - to compare it
                error: Any = raised.__context__ if isinstance(raised, WrongResult) else raised
                details = failure_reports.request_failed(error, envs).details
                found.append((type(error), str(error), details.get("env_index")))
            if found[-1][0] is AssertionError:  # the episode of one has ended without a reset
                envs.reset(seed=4)
            kept = ("_env_obs", "_observations", "_rewards", "_terminations", "_autoreset_envs")
            found.append(copy.deepcopy([vars(envs)[name] for name in kept]))
    assert_same(results[0], results[1])


def test_vectors_of_one_pattern_share_no_buffer() -> None:
    makers = [partial(Env, Dict(a=Box(0, 9, (3,)), b=Discrete(90)))] * 2
    one, other, third = (HostedVector(makers, MODE) for _ in range(3))
    before = _played(other)
    _played(one)
    assert_same(_played(other), before)
    assert_same(_played(third), before)
    buffers = [copy.copy(vars(each)) for each in (one, other, third)]
    for name in ("_rewards", "_terminations", "_truncations", "_autoreset_envs"):
        assert len({id(each[name]) for each in buffers}) == 3
    assert len({id(each["_observations"]["a"]) for each in buffers}) == 3


def test_environments_with_different_spaces_are_refused_as_by_gymnasium() -> None:
    makers = [partial(Env, Box(0, 1, (n,))) for n in (2, 3)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="observation"):
            HostedVector(makers, MODE)


@pytest.mark.parametrize("first", [0.5, 1])
def test_a_number_of_another_type_is_remembered_as_it_was(first: Any) -> None:
    envs = HostedVector([partial(Env, Discrete(2))] * 2, MODE)
    infos: dict[str, Any] = {}
    for index, value in enumerate((first, Level.LOW)):
        infos = envs._add_info(infos, {"level": value}, index)
    assert infos["level"].tolist() == [first, 3]
    assert envs.cast[id(infos["level"])] == [[1, Level.LOW]]


def test_the_number_of_patterns_is_bounded() -> None:
    for n in range(MAX_PATTERNS + 3):
        HostedVector([partial(Env, Discrete(n + 2))], MODE)
    assert len(hosted_vector._PATTERNS) <= MAX_PATTERNS


def test_a_vector_that_would_be_too_large_is_refused_after_its_first_environment() -> None:
    made: list[Env] = []

    def make() -> Env:
        made.append(Env(Box(0, 255, (210, 160, 3), np.uint8)))
        return made[-1]

    with pytest.raises(UnsupportedSpaceError, match="There are 1500 environments"):
        HostedVector([make] * 1500, MODE)
    assert len(made) == 1


class Wrong(Env):
    """Returns what it is told to, from `reset` and then from `step`; `start`: from each reset."""

    def __init__(self, start: Any, result: Any, space: Space[Any] | None = None) -> None:
        super().__init__(space or Box(0.0, 1.0, (3,)))
        self.starts, self.result = iter(start), result

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return next(self.starts)

    def step(self, action: Any) -> Any:
        return self.result


THREE, TWO = np.zeros(3, np.float32), np.zeros(2, np.float32)
RIGHT: Any = (THREE, 1.0, False, False, {})
ENDED: Any = (THREE, 1.0, True, False, {})
START: Any = (THREE, {})
FLAGS: list[tuple[Any, Any, str]] = [
    (TWO, False, "terminated, not array"),
    (None, False, "terminated, not None"),
    (False, None, "truncated, not None"),
    (False, "no", "truncated, not 'no'"),
    ("", False, "terminated, not ''"),
    (False, {}, "truncated, not {}"),
]
NUMBER, FLAG = "^step.* must return a number as the reward, not ", "must return True or False as "
LONG = "k" * 3000
SHAPE = r"must return observations of shape \(3,\), not "


def _named(
    wrong: Wrong, right: Wrong, mode: AutoresetMode, said: str, actions: Space[Any] | None
) -> None:
    envs = [right, wrong]
    for env in envs:
        env.action_space = actions or env.action_space
    vector = HostedVector([lambda env=env: env for env in envs], mode)  # type: ignore[misc]

    def play() -> None:
        vector.reset()
        for _ in range(2):
            vector.step(vector.action_space.sample())

    with pytest.raises((ValueError, TypeError), match=said) as caught:
        play()
    details = failure_reports.request_failed(caught.value, vector).details
    assert (details["env_index"], details["type"]) in [(1, "ValueError"), (1, "TypeError")]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(
    ("result", "said"),
    [
        *(
            ((THREE, reward, False, False, {}), f"{NUMBER}{begin}")
            for reward, begin in [
                ("x", "'x'"),
                ("1", "'1'"),
                (b"1", "b'1'"),
                (None, "None"),
                (TWO, "array"),
                ([1.0], r"\[1\.0\]"),
                (object(), "<object"),
                (10**400, "1000"),
                (1j, "1j"),
                ({"a": 1}, "{'a': 1}"),
            ]
        ),
        *(
            ((THREE, 1.0, terminated, truncated, {}), FLAG + said)
            for terminated, truncated, said in FLAGS
        ),
        *(
            ((THREE, 1.0, False, False, info), f"must return a dict as the info, not {said}")
            for info, said in [([1], r"\[1\]"), ([], r"\[\]"), (None, "None")]
        ),
        ((THREE, 1.0, False, {}), "5 values .*, not 4"),
        (None, "5 values .*, not NoneType"),
        *(
            ((seen, 1.0, False, False, {}), f"^step.*{SHAPE}{said}")
            for seen, said in [
                (TWO, r"array.* of shape \(2,\)"),
                ([[1, 2], [3]], r"\[\[1, 2\], \[3\]\]"),
                (None, r"None\.$"),
                (object(), "<object"),
                ("abc", "'abc'"),
            ]
        ),
        ((THREE + 1j, 1.0, False, False, {}), "of dtype float32, not array.* of dtype complex64"),
    ],
)
@pytest.mark.parametrize("actions", [None, Dict(a=Discrete(2))], ids=["array", "dict"])
def test_what_a_step_returned_wrong_is_named(
    mode: AutoresetMode, result: Any, said: str, actions: Space[Any] | None
) -> None:
    _named(Wrong([START], result), Wrong([START] * 3, RIGHT), mode, said, actions)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(
    ("start", "said"),
    [
        ((TWO, {}), rf"^reset.*{SHAPE}array.* of shape \(2,\)"),
        ((None, {}), f"^reset.*{SHAPE}None"),
        ((object(), {}), f"^reset.*{SHAPE}<object"),
        ((THREE, [1]), r"^reset.* must return a dict as the info, not \[1\]"),
        ((THREE, None), "^reset.* must return a dict as the info, not None"),
        (None, "^reset.* must return 2 values .*, not NoneType"),
        ((THREE,), "^reset.* must return 2 values .*, not 1"),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_what_a_reset_returned_wrong_is_named(
    mode: AutoresetMode, start: Any, said: str, before: int
) -> None:
    """`before`: the number of resets that were right."""
    wrong = Wrong([*[START] * before, start], ENDED)
    _named(wrong, Wrong([START] * 3, RIGHT), mode, said, None)


@pytest.mark.parametrize(
    ("space", "seen", "said"),
    [
        (Discrete(3), 1.5, r"observations of dtype int64, not 1.5 of dtype float64"),
        (Discrete(3), None, r"observations of dtype int64, not None of dtype object"),
        (Dict(a=Discrete(3)), {}, r"a dict with the keys \['a'\] as observations, not {}"),
        (
            Dict(a=Tuple([Discrete(3), Box(0, 1, (3,))])),
            {"a": (1, TWO)},
            r'observations\["a"\]\[1\] of shape \(3,\), not array',
        ),
        (
            Dict(a=Tuple([Discrete(3), Discrete(3)])),
            {"a": (1,)},
            r'a tuple with the indices \[0, 1\] as observations\["a"\], not \(1,\)',
        ),
        (
            Dict({LONG: Box(0, 1, (3,))}),
            {LONG: TWO},
            r'must return observations\["k{200}"\] of shape \(3,\), not array',
        ),
        (Dict({LONG: Discrete(3)}), {}, r"a dict with the keys \['k{198} as observations, not {}"),
    ],
)
def test_the_wrong_part_of_an_observation_is_named(space: Space[Any], seen: Any, said: str) -> None:
    start: Any = (space.sample(), {})
    right = Wrong([start], (start[0], 1.0, False, False, {}), space)
    _named(Wrong([start], (seen, 1.0, False, False, {}), space), right, MODE, said, None)


@pytest.mark.parametrize(
    "result",
    [
        (THREE, Fraction(1, 4), 0, np.True_, UserDict(a=1)),
        [THREE.tolist(), np.array(0.25), np.array(False), 1.0, OrderedDict()],
        (THREE, np.float16(0.5), np.int8(0), np.uint8(1), {}),
    ],
)
def test_unusual_results_are_accepted_as_by_gymnasium(result: Any) -> None:
    makers = [partial(Wrong, [(THREE, UserDict(b=2))], result)] * 2
    vectors: list[Any] = [SyncVectorEnv(makers, autoreset_mode=MODE), HostedVector(makers, MODE)]
    theirs, ours = (
        copy.deepcopy([one.reset(), one.step(np.zeros(2, np.int64))]) for one in vectors
    )
    assert_same(ours, theirs)


def test_an_error_of_an_environments_own_step_stays_as_it_is() -> None:
    class Failing(Wrong):
        def step(self, action: Any) -> Any:
            raise ValueError("the arm is stuck")

    vector = HostedVector([partial(Failing, [START], None)] * 2, MODE)
    vector.reset()
    with pytest.raises(ValueError, match=r"^the arm is stuck$"):
        vector.step(np.zeros(2, np.int64))
