"""Vectors that a class or factory makes in another interpreter equal those made here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller
from typing import Any

import numpy as np
import pytest
import structlog
from gymnasium import spaces
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from gymwire.env_agent import failure_reports
from gymwire.env_agent.adapters import vectors as adapters
from gymwire.env_agent.description import describe
from gymwire.env_agent.elsewhere import EnvironmentGone, why_gone
from gymwire.env_agent.factory import resolve
from gymwire.env_agent.interpreter import child_spaces, child_values
from gymwire.env_agent.interpreter.child import libraries, packing
from gymwire.env_agent.interpreter.child.hosted_vector import HostedOwnVector
from gymwire.env_agent.interpreter.child.spaces import read_space
from gymwire.env_agent.interpreter.child.vectors import VECTOR
from gymwire.env_agent.interpreter.child_errors import RaisedInChild
from gymwire.env_agent.interpreter.child_factory import ChildFactory
from gymwire.env_agent.interpreter.child_process import ChildProcess
from gymwire.env_agent.interpreter.child_vector import MAX_NUM_ENVS, ONE, AdaptedOwnVector
from gymwire.env_agent.results import unpack
from gymwire.env_agent.runners.holders import find_holder
from gymwire.env_agent.runners.runner import Runner
from gymwire.protocol import generators
from gymwire.protocol.errors import (
    ConfigurationError,
    DecodingError,
    EncodingError,
    UnsupportedSpaceError,
)
from gymwire.protocol.messages import Call
from gymwire.protocol.values import convert, decode, encode
from tests import offered_vectors
from tests.sameness import assert_same

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode
VECTORS = "tests.offered_vectors"
Make = Callable[..., Any]
SEEDS = {
    "Keeping": (3, 4), "make_keeping": (3, 4), "make_wrapped_keeping": (3, 4), "KeepingFrames": 3
}  # fmt: skip


@pytest.fixture(autouse=True)
def _shared_metadata_restored() -> Iterator[None]:
    """Some vectors write into the metadata that all vectors share."""
    shared = dict(VectorEnv.metadata)
    yield
    VectorEnv.metadata.clear()
    VectorEnv.metadata.update(shared)


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes vectors after the first one, as an env agent does; they are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(factory: Any, num_envs: int, mode: AutoresetMode, **kwargs: Any) -> Any:
            factory.make_first().close()
            made = factory.make_vector(num_envs, mode, kwargs.pop("render_mode", None), kwargs)
            stack.callback(made.close)
            return made

        yield make


def there(env: str, python: str = sys.executable, spaces: str | None = None) -> ChildFactory:
    return ChildFactory("lab/vector", env, python, {}, spaces)


def assert_same_result(vectors: Sequence[Runner], act: Callable[[Runner], Any]) -> None:
    """Fail unless what `act` makes two vectors return is sent as the same, with the same reports.

    `act` returns the result of `reset` or `step`.
    """
    sent: list[Any] = []
    for one in vectors:
        *values, infos = act(one)
        if len(values) > 1:  # of a reset, the runner has done this
            infos = one.wire_infos(infos)
        converted, opaque, reports = convert([*values, infos], root="values")
        kinds = [(path, kind.rpartition(".")[2], became) for path, kind, became in reports]
        sent.append((decode(encode(converted)), opaque, kinds))
    assert_same(sent[0], sent[1])


def assert_same_course(here: Any, there: Any, *, seed: Any = 3) -> None:
    """Fail unless two vectors look the same, and return the same at each of 40 steps."""
    assert describe(here, "x") == describe(there, "x")
    both = Runner(here), Runner(there)
    here.action_space.seed(5)
    for given in (seed, None):
        assert_same_result(both, methodcaller("reset", given, None))
        for _ in range(20):
            assert_same_result(both, methodcaller("step", here.action_space.sample()))


@pytest.mark.parametrize(
    ("env", "num_envs", "mode"),
    [
        *((f"{VECTORS}:{name}", 3, mode) for mode in AutoresetMode for name in ("Walkers",)),
        *((f"{VECTORS}:make_mode_walkers", 1, mode) for mode in AutoresetMode),
        (f"{VECTORS}:make_walkers", 4, NEXT_STEP),
        (f"{VECTORS}:make_pool", 3, NEXT_STEP),
        (f"{VECTORS}:make_any_pool", 3, NEXT_STEP),
        (f"{VECTORS}:make_two", 2, NEXT_STEP),
        (f"{VECTORS}:make_sync", 2, NEXT_STEP),
        (f"{VECTORS}:tests/Frames-v0", 2, SAME_STEP),
        (f"{VECTORS}:tests/Frames-v0", 2, DISABLED),
        (f"{VECTORS}:tests/MadeFrames-v0", 2, SAME_STEP),
        (f"{VECTORS}:tests/TextFrames-v0", 2, NEXT_STEP),
        (f"{VECTORS}:make_undeclared", 2, NEXT_STEP),
        ("CartPole-v1", 3, NEXT_STEP),
    ],
)
def test_a_vector_equals_one_made_here(
    make: Make, env: str, num_envs: int, mode: AutoresetMode
) -> None:
    made = make(there(env), num_envs, mode)
    assert isinstance(made, AdaptedOwnVector)
    assert_same_course(make(resolve(env, {}), num_envs, mode), made)


def test_a_vector_whose_reset_takes_nothing_equals_one_made_here(make: Make) -> None:
    env = f"{VECTORS}:make_old_pool"
    with structlog.testing.capture_logs() as logs:
        vectors = [make(one, 3, NEXT_STEP) for one in (resolve(env, {}), there(env))]
    assert_same_course(*vectors, seed=None)
    assumed = [log["assumed"] for log in logs if "declares no autoreset mode" in log["event"]]
    assert assumed == ["NextStep"] * 4  # of the first and the second vector, here and there
    for vector in vectors:
        with pytest.raises(Exception, match="unexpected keyword argument 'seed'"):
            vector.reset(seed=1)


@pytest.mark.parametrize("mode", [NEXT_STEP, DISABLED])
def test_seeds_and_options_arrive(make: Make, mode: AutoresetMode) -> None:
    env = f"{VECTORS}:Walkers"
    both = [Runner(make(one, 3, mode)) for one in (resolve(env, {}), there(env))]
    mask = np.array([True, False, True])
    for seed, options in (([4, 5, 6], {"height": 2.5}), (None, {"reset_mask": mask}), (7, {})):
        assert_same_result(both, methodcaller("reset", seed, options))


@pytest.mark.filterwarnings("ignore:.*is not an instance of AutoresetMode:UserWarning")
@pytest.mark.filterwarnings("ignore:.*share an object:UserWarning")
def test_a_class_with_another_mode_is_not_used(make: Make) -> None:
    env = f"{VECTORS}:tests/NextStepFrames-v0"
    local, remote = (make(one, 2, SAME_STEP) for one in (resolve(env, {}), there(env)))
    assert not isinstance(remote, AdaptedOwnVector)
    assert remote.single_observation_space.shape == (6, 6, 3)
    assert_same_course(local, remote)


def test_a_learner_can_choose_single_environments(make: Make) -> None:
    modes = {"vectorization_mode": "sync"}
    remote = make(there("CartPole-v1"), 2, NEXT_STEP, **modes)
    assert not isinstance(remote, AdaptedOwnVector)
    assert_same_course(make(resolve("CartPole-v1", {}), 2, NEXT_STEP, **modes), remote)
    with pytest.raises(ConfigurationError, match=r'cannot have vectorization_mode="async"'):
        make(there("CartPole-v1"), 2, NEXT_STEP, vectorization_mode="async")


def test_the_error_of_a_class_that_refuses_a_mode_is_reported() -> None:
    with pytest.raises(RaisedInChild, match="SAME_STEP") as caught:
        there(f"{VECTORS}:tests/TextFrames-v0").make_vector(2, SAME_STEP, None, {})
    assert type(caught.value).__name__ == "KeyError"


@pytest.mark.parametrize(
    ("env", "num_envs", "mode", "why"),
    [
        ("make_two", 3, NEXT_STEP, "made 2 .* requested 3. .*a parameter num_envs"),
        ("make_pool", 3, SAME_STEP, r"'NextStep'.* 'SameStep'\. Give the factory .*autoreset_mode"),
        ("make_slow_pool", 3, NEXT_STEP, "returns only 1. Leave batch_size"),
        ("make_walkers", 3, NEXT_STEP, "takes no keyword argument 'wings'"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused_as_here(
    env: str, num_envs: int, mode: AutoresetMode, why: str
) -> None:
    kwargs = {"wings": 2} if "wings" in why else {}
    for factory in (resolve(f"{VECTORS}:{env}", {}), there(f"{VECTORS}:{env}")):
        with contextlib.suppress(ConfigurationError):  # an asynchronous pool cannot be described
            factory.make_first().close()
        with pytest.raises((ConfigurationError, TypeError), match=why):
            factory.make_vector(num_envs, mode, None, kwargs)


@pytest.mark.parametrize("is_described", [True, False])
def test_it_makes_no_single_environment(is_described: bool) -> None:
    factory = there(f"{VECTORS}:make_walkers")
    if is_described:
        factory.make_first().close()
    with pytest.raises(ConfigurationError, match="make_walkers only makes vectors of environments"):
        factory.make(None, {})


def test_a_factory_that_makes_no_vector_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"a Kinds, which is not a vector.* 'num_envs'"):
        there("tests.env_agent.interpreter.test_child_vector:make_none").make_first()


def make_none(num_envs: int) -> Any:
    from tests.plain_envs import Kinds

    return Kinds()


def test_attributes_are_those_of_the_vector(make: Make) -> None:
    for factory in (resolve(f"{VECTORS}:Walkers", {}), there(f"{VECTORS}:Walkers")):
        vector = make(factory, 2, NEXT_STEP, gravity=2.5, render_mode="ansi")
        runner = Runner(vector)
        runner.reset(3, None)
        assert vector.render_mode == "ansi"
        assert [len(text) > 4 for text in runner.render()] == [True, True]
        assert runner.access(Call("get", "gravity", [], {})) == {"value": 2.5}
        runner.access(Call("set", "gravity", [0.5], {}))
        rewards = runner.step(np.ones((2, 2), np.float32))[1]
        places = runner.access(Call("call", "lift", [7.0], {"which": 1}))
        assert_same(rewards, (0.5 * places[:, 1]).astype(np.float32))
        assert runner.access(Call("each-get", "gravity", [[0, 1]], {})) == ({"value": 0.5},) * 2
        assert runner.access(Call("each-has", "wings", [[0, 1]], {})) == (False, False)
        with pytest.raises(ValueError, match="does not consist of single environments"):
            runner.access(Call("each-get", "gravity", [[1]], {}))
        with pytest.raises(Exception, match="wings") as caught:
            runner.access(Call("get", "wings", [], {}))
        assert failure_reports.request_failed(caught.value, vector).details["type"] == (
            "AttributeError"
        )


@pytest.mark.parametrize("env", [f"{VECTORS}:Walkers", f"{VECTORS}:make_sync", "CartPole-v1"])
def test_generators_are_read_and_set(make: Make, env: str) -> None:
    both = [Runner(make(one, 2, NEXT_STEP)) for one in (resolve(env, {}), there(env))]
    assert_same_result(both, methodcaller("reset", 3, None))
    states = [one.read_generator() for one in both]
    assert_same(*states)
    given = [generators.describe(np.random.default_rng(n)) for n in (8, 9)]
    for again in ((), (True,)):
        for one in both:
            one.access(Call("set", "np_random", (given, *again), {}))
        assert_same(*[one.read_generator() for one in both])
        assert both[1].read_generator() != states[1]
        assert_same_result(both, methodcaller("reset", None, None))


@pytest.mark.parametrize(
    "maker", ["Keeping", "make_keeping", "make_wrapped_keeping", "KeepingFrames"]
)
def test_environments_keep_their_generators(make: Make, maker: str) -> None:
    env, action = f"{VECTORS}:{maker}", np.zeros(2, np.int64)
    both = [
        Runner(make(one, 2, NEXT_STEP, render_mode="rgb_array"))
        for one in (resolve(env, {}), there(env))
    ]
    assert_same_result(both, methodcaller("reset", 3, None))
    states = [generators.describe(np.random.default_rng(n)) for n in (8, 9)]
    if maker == "KeepingFrames":
        del states[1:]
    for one in both:
        one.access(Call("set", "np_random", (states, True)))
        assert_same(one.access(Call("get", "np_random_seed"))["value"], SEEDS[maker])
    assert_same_result(both, methodcaller("step", action))
    before = both[0].read_generator()
    for one in both:
        one.render_unnoticed()
        assert_same(one.read_generator(), before)
        assert_same(one.access(Call("get", "np_random_seed"))["value"], SEEDS[maker])
    assert_same_result(both, methodcaller("step", action))
    for one in both:
        one.access(Call("set", "np_random", (states,)))  # other generators, which are not kept
    assert_same_result(both, methodcaller("step", action))
    other = generators.describe(np.random.Generator(np.random.MT19937(1)))
    for one in both:
        one.access(Call("set", "np_random", ([other] * len(states), True)))
    assert_same_result(both, methodcaller("step", action))
    assert_same_result(both, methodcaller("reset", None, None))
    numbers = [0, 1] if maker == "KeepingFrames" else [1]  # the vector has one generator
    for one in both:
        rest = one.read_generator()
        assert one.access(Call("each-set", "np_random", (numbers, states[0])))[0] is None
        found = one.access(Call("each-get", "np_random", (numbers,)))
        assert_same(found, ({"value": states[0]},) * len(numbers))
        if maker != "KeepingFrames":
            assert_same(one.read_generator(), (rest[0], states[0]))
    assert_same_result(both, methodcaller("step", action))
    assert_same_result(both, methodcaller("reset", None, None))


def test_only_gymnasiums_wrappers_of_vectors_are_looked_through() -> None:
    frames: Any = offered_vectors.KeepingFrames(2)
    frames.env = offered_vectors.make_keeping(2)
    for env, name, is_each in (
        (frames, "np_random", False),
        (frames.env, "np_random", True),
        (RecordEpisodeStatistics(frames.env), "np_random", True),
        (RecordEpisodeStatistics(frames.env), "episode_count", False),
        (RecordEpisodeStatistics(frames.env), "gravity", True),
    ):
        assert HostedOwnVector(env, None, ()).has_each(name) is is_each
        assert find_holder(env, name)[1] is is_each


def test_attributes_of_wrapped_vectors_are_those_of_wrappers_and_environments(make: Make) -> None:
    env = f"{VECTORS}:make_wrapped_keeping"
    both = [Runner(make(one, 2, NEXT_STEP)) for one in (resolve(env, {}), there(env))]
    for one in both:
        assert one.access(Call("call", "add", (4,))) == 4
        one.access(Call("set", "count", (2,)))
        assert one.access(Call("get", "count")) == {"value": 2}
        assert one.access(Call("get", "episode_count")) == {"value": 0}
        one.access(Call("set", "gravity", ([1.0, 2.0],)))
        assert one.access(Call("get", "gravity")) == {"value": (1.0, 2.0)}
        assert one.access(Call("call", "has_wrapper_attr", ("gravity",))) == (True, True)
        with pytest.raises(Exception, match="wings"):
            one.access(Call("get", "wings"))


def test_each_environment_of_gymnasiums_own_vector_has_attributes(make: Make) -> None:
    env = f"{VECTORS}:make_sync"
    both = [Runner(make(one, 2, NEXT_STEP)) for one in (resolve(env, {}), there(env))]
    for one in both:
        one.access(Call("set", "gravity", [[9.0, 1.5]], {}))
        assert_same(one.access(Call("get", "gravity", [], {})), {"value": (9.0, 1.5)})
        assert one.access(Call("call", "has_wrapper_attr", ["x"], {})) == (False, False)


def test_a_vector_without_any_package(make: Make, python: str) -> None:
    factory = there("tests.plain_envs:make_flock", python)
    vector = make(factory, 3, NEXT_STEP, ground=0.75)
    assert vector.single_observation_space == Box(-9, 9, (2,), np.float32)
    assert vector.observation_space == Box(-9, 9, (3, 2), np.float32)
    assert vector.action_space == MultiDiscrete([10] * 3)
    runner = Runner(vector)
    observations, infos = runner.reset([1, 2, 3], {"first": 1})
    assert_same(observations, np.array([[1, 0.75]] * 3, np.float32))
    assert infos["seed"] == [1, 2, 3]
    actions = np.array([0, 1, 2])
    observations, rewards, terminated, truncated, infos = runner.step(actions)
    assert_same(observations, np.array([[1, 0.75], [2, 0.75], [3, 0.75]], np.float32))
    assert_same(rewards, np.array([0.0, 1.0, 2.0]))
    assert_same(terminated, np.array([False, False, True]))
    assert_same(truncated, np.zeros(3, np.bool_))
    assert (infos["batch"], set(infos["kinds"])) in (("list", {"int"}), ("ndarray", {"int64"}))
    assert runner.access(Call("call", "average", [2.0], {})) == 4.0
    assert runner.render() == ["1", "2", "3"]


@pytest.mark.parametrize("kind", ["Flock", "make_flock"])
def test_a_crash_in_a_step_ends_only_this_session(make: Make, bare_python: str, kind: str) -> None:
    factory = there(f"tests.plain_envs:{kind}", bare_python)
    vector, other = (Runner(make(factory, 2, NEXT_STEP)) for _ in range(2))
    for one in (vector, other):
        one.reset(1, None)
    with pytest.raises(RaisedInChild, match="not to my taste"):
        vector.step(np.array([0, 8]))
    assert_same(vector.step(np.array([0, 1]))[1], np.array([0.0, 1.0]))
    for _ in range(2):
        with pytest.raises(EnvironmentGone, match="SIGKILL"):
            vector.step(np.array([0, 9]))
    assert "SIGKILL" in vector.lost == why_gone(vector.env)
    with pytest.raises(EnvironmentGone):
        vector.access(Call("get", "ground", [], {}))
    assert other.lost == ""
    assert_same(other.step(np.array([0, 1]))[1], np.array([0.0, 1.0]))


def test_close_closes_the_vector_and_ends_the_process(bare_python: str) -> None:
    with structlog.testing.capture_logs() as logs:
        vector: Any = there("tests.plain_envs:Flock", bare_python).make_vector(
            2, NEXT_STEP, None, {}
        )
        process = vector._env._process._process
        for _ in range(2):
            vector.close()
    assert process.returncode == 0
    assert [log["text"] for log in logs if log["event"] == "environment printed"] == [
        "the flock is gone"
    ]


def test_the_spaces_of_one_environment_can_be_given(make: Make) -> None:
    given = "tests.env_agent.interpreter.test_child_vector:Given"
    vector = make(there(f"{VECTORS}:Walkers", spaces=given), 2, NEXT_STEP)
    assert vector.single_observation_space == Given.observation_space
    assert vector.observation_space == Box(-5, 5, (2, 3), np.float64)
    assert vector.action_space == Box(-2, 2, (2, 2), np.float32)
    assert vector.observation_space.contains(vector.reset(seed=1)[0])


class Given:
    """The spaces that an operator gives."""

    observation_space = Box(-5, 5, (3,), np.float64)
    action_space = Box(-2, 2, (2,), np.float32)


@pytest.mark.parametrize("num_envs", [0, -1, 2**40, 2.0, float("inf"), "two", None, True])
def test_a_wrong_number_of_environments_is_malformed(
    make: Make, num_envs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ChildProcess.make

    def lie(process: ChildProcess, *args: Any) -> Any:
        return {**original(process, *args), "num_envs": num_envs}

    monkeypatch.setattr(ChildProcess, "make", lie)
    with pytest.raises(DecodingError, match=r"describes its environment wrongly: it has .* env"):
        make(there(f"{VECTORS}:Walkers"), 2, NEXT_STEP)


@pytest.mark.parametrize("env", ["make_pool", "tests/Frames-v0"])
def test_another_number_of_environments_is_refused_before_their_spaces_are_batched(
    make: Make, env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, batched = ChildProcess.make, list[int]()

    def lie(process: ChildProcess, *args: Any) -> Any:
        facts = original(process, *args)
        has_several = facts["kind"] == VECTOR and args[-1] != list(ONE)
        return {**facts, "num_envs": MAX_NUM_ENVS} if has_several else facts

    def note(space: Any, count: int) -> Any:
        batched.append(count)
        return batch_space(space, count)

    monkeypatch.setattr(ChildProcess, "make", lie)
    monkeypatch.setattr(adapters, "batch_space", note)
    with pytest.raises(ConfigurationError, match=f"made {MAX_NUM_ENVS} environments, but the lear"):
        make(there(f"{VECTORS}:{env}"), 2, SAME_STEP if "Frames" in env else NEXT_STEP)
    assert {*batched} <= {1}


def test_a_first_vector_whose_spaces_would_be_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, space = ChildProcess.make, read_space(Box(0, 1, (256,)))
    seen = dict.fromkeys(["observation_space", "single_observation_space"], space)

    def lie(process: ChildProcess, *args: Any) -> Any:
        return {**original(process, *args), **seen, "num_envs": MAX_NUM_ENVS}

    monkeypatch.setattr(ChildProcess, "make", lie)
    with pytest.raises(UnsupportedSpaceError, match=f"There are {MAX_NUM_ENVS} environments"):
        there(f"{VECTORS}:make_pool").make_first()


def test_malformed_attributes_end_the_session(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = make(there(f"{VECTORS}:make_sync"), 2, NEXT_STEP)
    assert vector.get_attr("gravity") == (9.8, 9.8)
    monkeypatch.setattr(vector._env, "_call", lambda *_: 5)
    with pytest.raises(EnvironmentGone, match="broke the protocol: it sent 5 as attributes"):
        vector.get_attr("gravity")
    assert why_gone(vector)


def test_bounds_that_are_all_equal_are_sent_as_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "np", np)
    large = Box(0, 255, (1024, 4, 84, 84), np.uint8)  # 28 MiB for each of four arrays
    assert len(packing.pack(read_space(large))) < 2000
    mixed = np.array([0.0, 1.0], np.float32)
    for space in (
        Box(-1, 1, (3,)),
        Box(-np.inf, mixed),
        Box(mixed, np.inf),
        Box(0, 1, ()),
        Box(np.zeros((0, 2), np.float32), np.ones((0, 2), np.float32)),
        Box(-0.0, 0.0, (2,), np.float64),
    ):
        built = child_spaces.build(packing.unpack(packing.pack(read_space(space))), "space")
        assert_same(vars(built), {**vars(space), "_np_random": None})


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_registered_vector_of_another_size_is_refused(make: Make, elsewhere: bool) -> None:
    env = f"{VECTORS}:tests/SevenFrames-v0"
    factory = there(env) if elsewhere else resolve(env, {})
    with pytest.raises(ConfigurationError, match=r"made 7 environments, .* requested 2"):
        make(factory, 2, NEXT_STEP)


def test_a_result_that_is_too_short_is_named(make: Make, bare_python: str) -> None:
    made = make(there("tests.plain_envs:ShortFlock", bare_python), 2, NEXT_STEP)
    made.reset()
    with pytest.raises(ValueError, match="must return 5 values"):
        unpack(made.step(np.zeros(2, np.int64)), "step")


@pytest.mark.parametrize("n", [np.empty((2**17, 0)), np.ones(33), [1] * 33, 2**40])
def test_the_size_of_a_multi_binary_is_bounded(n: Any) -> None:
    found = [{"class": "lab.MultiBinary", "inside": 0, "n": n, "shape": (1,)}]
    with pytest.raises(DecodingError):
        child_spaces.build(found, "space")


class Even(Discrete):
    """A space of a class that is not Gymnasium's."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """What a process reports about a space."""
    monkeypatch.setattr(libraries, "np", np)
    return lambda space: packing.unpack(packing.pack(read_space(space)))


def test_spaces_that_are_not_gymnasiums_own_are_found_at_their_paths(
    read: Callable[[Any], Any],
) -> None:
    parts = Tuple((Discrete(2), spaces.Sequence(Even(4)), Dict(z=Even(2), a=Box(0, 1))))
    own = f"{__name__}.Even"
    assert child_spaces.foreign(read(Dict(b=parts, c=Even(2))), "space") == [
        ('space["b"][1].feature_space', own, "Discrete"),
        ('space["b"][2]["z"]', own, "Discrete"),
        ('space["c"]', own, "Discrete"),
    ]


def test_a_space_that_cannot_be_read_is_named(read: Callable[[Any], Any]) -> None:
    found = read(Dict(a=Discrete(2), b=Tuple((Discrete(2), Discrete(3)))))
    del found[-1]["n"]
    with pytest.raises(DecodingError, match=r'^space\["b"\]\[1\] is a .*no known space\.$'):
        child_spaces.build(found, "space")
    deep = [{"class": "gymnasium.Tuple", "inside": 1}] * 1000
    with pytest.raises(DecodingError, match="is nested deeper than"):
        child_spaces.build(deep, "space")
    for inside in (2**70, -1, "x"):
        with pytest.raises(DecodingError):
            child_spaces.build([{"class": "gymnasium.Tuple", "inside": inside}], "space")


LONG = "k" * 100_000


@pytest.mark.parametrize("key", [LONG, LONG.encode(), 3])
@pytest.mark.parametrize("wrong", [{"class": LONG}, {"class": "m.Box", "n": 2, "dtype": LONG}])
def test_long_names_are_cut_where_paths_and_errors_repeat_them(
    key: Any, wrong: dict[str, Any]
) -> None:
    found = [{"class": "gymnasium.Dict", "inside": 1, "keys": [key]}]
    with pytest.raises(DecodingError) as raised:
        child_spaces.build([*found, {"inside": 0, **wrong}], "space")
    assert raised.value.path.startswith("space[")
    assert len(str(raised.value)) < 1000
    even = {"class": LONG, "inside": 0, "n": 2}
    ((path, kind, _),) = child_spaces.foreign([*found, even], "space")
    assert len(path) + len(kind) < 1000


@pytest.mark.parametrize("dtype", [np.uint8, object])
def test_an_array_of_too_many_rows_without_items_has_no_form(
    monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    monkeypatch.setattr(libraries, "np", np)
    most = np.empty((2**18, 0), dtype)
    assert child_values.decode(packing.pack(most)).shape == most.shape
    more: Any = child_values.decode(packing.pack(np.empty((2**18 + 1, 0), dtype)))
    assert type(more).__name__ == "ndarray"
    assert type(more) is not np.ndarray


@pytest.mark.parametrize(
    "value",
    [
        np.full(2**20, 300, np.uint16),
        [np.full(2**19, 300, np.uint16)] * 2,
        {"a": (np.zeros((2**18, 1), np.uint8),)},
        np.full(2**18, "a"),
    ],
    ids=["large", "several", "rows", "text"],
)
def test_lists_in_the_place_of_arrays_are_bounded(value: Any) -> None:
    with pytest.raises(EncodingError, match="without NumPy"):
        child_values.without_numpy(value)
    small = [np.arange(3), np.float32(2), {"a": (np.zeros((1, 2), np.uint8), "b")}]
    assert child_values.without_numpy(small) == [[0, 1, 2], 2.0, {"a": ([[0, 0]], "b")}]
    frame = np.zeros((1080, 1920, 3), np.uint8)
    assert len(child_values.without_numpy(frame.ravel())) == frame.size


def test_an_environment_keeps_its_generator() -> None:
    env = f"{VECTORS}:Keeping"
    found = []
    state = generators.describe(np.random.default_rng(8))
    for factory in (resolve(env, {}), there(env)):
        made: Any = factory.make_first()
        with contextlib.closing(made):
            runner = Runner(made)
            runner.reset(3, None)
            runner.access(Call("set", "np_random", (state, True)))
            runner.render_unnoticed()
            seed = runner.access(Call("get", "np_random_seed"))
            found.append((seed, runner.read_generator(), runner.step(0)))
    assert_same(found[0], found[1])
    assert found[0][0] == {"value": 3}


@pytest.mark.parametrize("version", [21, 25, 26])
def test_vectors_of_gym_before_0_26_are_refused(
    make: Make, python: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = "tests.plain_envs:make_vector_of_gym"
    factory = ChildFactory("a", env, python, {"version": version})
    if version == 26:
        assert make(factory, 2, NEXT_STEP).num_envs == 2
        return
    monkeypatch.setitem(sys.modules, "gym.vector", sys)  # removes what the factory adds here
    for one in (factory, resolve(env, {"version": version})):
        why = rf"{env}: .* a VectorOfGym{version} of gym before 0\.26, .* makes the vector\.$"
        with pytest.raises(ConfigurationError, match=why):
            one.make_first()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_gymnasiums_wrappers_of_vectors_pass_generators_on(count: int) -> None:
    env: VectorEnv[Any, Any, Any] = offered_vectors.make_keeping(2, "rgb_array")
    bare = Runner(offered_vectors.make_keeping(2, "rgb_array"))
    for _ in range(count):
        env = RecordEpisodeStatistics(env)
    wrapped = Runner(env)
    states = [generators.describe(np.random.default_rng(n)) for n in (8, 9)]
    for one in (bare, wrapped):
        one.reset(3, None)
        for more in ((True,), ()):
            one.access(Call("set", "np_random", (states, *more)))
            assert one.read_generator() == tuple(states)
        one.reset(None, None)
        before = one.read_generator()
        one.render_unnoticed()
        assert one.read_generator() == before
        assert one.access(Call("get", "render_mode"))["value"]
        one.access(Call("set", "gravity", ([1.0, 2.0],)))
        assert one.access(Call("get", "gravity")) == {"value": (1.0, 2.0)}
    if count:
        assert wrapped.access(Call("get", "episode_count")) == {"value": 0}
    for one in (bare, wrapped):
        one.close()
