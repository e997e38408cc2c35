"""The random generators of environments and vectors as learners use them, without sockets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from gymwire.env_agent.adapters import vectors
from gymwire.env_agent.hosted_vector import HostedVector
from gymwire.env_agent.runners.runner import Runner
from gymwire.learner_agent.proxies.remote_generators import RemoteGenerators
from gymwire.protocol import generators
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Call
from tests.offered_vectors import Keeping, KeepingFrames
from tests.sameness import assert_same

Make = Callable[[], Any]
READ_ONLY = "env that keeps its own"
BITS = ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"]


class Own(np.random.Generator):
    """A subclass, as a library may have one."""


class Copying(Keeping):
    """An environment that shows a copy of its generator, and takes a copy of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)

    @property
    def np_random(self) -> Any:
        return copy.deepcopy(self.random)

    @np_random.setter
    def np_random(self, value: Any) -> None:
        self.random = copy.deepcopy(value)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        return self.random.random(2), {}


class ReadOnly(Copying):
    """An environment whose generator cannot be replaced."""

    @property  # type: ignore[misc]
    def np_random(self) -> Any:
        return self.random


class AsAsync(SyncVectorEnv):  # type: ignore[type-arg, unused-ignore]
    """A vector that reaches its environments only by messages, as AsyncVectorEnv does."""

    def get_attr(self, name: str) -> tuple[Any, ...]:
        return copy.deepcopy(super().get_attr(name))

    def set_attr(self, name: str, values: Any) -> None:
        super().set_attr(name, copy.deepcopy(values))


def wrapped(make: Make, times: int = 1) -> Any:
    made = make()
    for _ in range(times):
        made = RecordEpisodeStatistics(made)
    return made


sync = partial(SyncVectorEnv, [Keeping] * 2)
of_wrapped = partial(SyncVectorEnv, [lambda: TimeLimit(Keeping(), 9)] * 2)
frames = partial(KeepingFrames, 2)


def by_messages() -> Any:
    return vectors.AdaptedVector(AsAsync([Keeping] * 2), AutoresetMode.NEXT_STEP)


def adapted() -> Any:
    return vectors.AdaptedVector(frames(), AutoresetMode.NEXT_STEP)


VECTORS: dict[str, Make] = {
    "sync": sync,
    "hosted": partial(HostedVector, [Keeping] * 2, AutoresetMode.NEXT_STEP),
    "wrapped": partial(wrapped, sync),
    "wrapped twice": partial(wrapped, sync, 2),
    "of wrapped": of_wrapped,
    "both": partial(wrapped, of_wrapped),
    "copies": partial(SyncVectorEnv, [Copying] * 2),
    "own": frames,
    "own, wrapped": partial(wrapped, adapted),
    "own, adapted": adapted,
}
ENVS: dict[str, Make] = {
    "env": Keeping,
    "wrapped env": lambda: TimeLimit(Keeping(), 9),
    "env that copies": Copying,
    READ_ONLY: ReadOnly,
}
MADE = {**VECTORS, **ENVS}


def found_in(env: Any) -> list[Any]:
    """Return the generators of an environment or vector that is here."""
    found = env.np_random
    return [*found] if isinstance(found, tuple) else [found]


def read(runner: Runner) -> Any:
    return runner.access(Call("get", "np_random"))["value"]


def write(runner: Runner, *args: Any) -> None:
    runner.access(Call("set", "np_random", args))


def proxy_of(runner: Runner) -> RemoteGenerators:
    """Return generators as a proxy of this environment or vector has them."""
    is_vector = runner.kind == "vector"

    def states() -> Any:
        found = read(runner)
        return found if type(found) is tuple else (found,)

    def set_states(found: Any) -> None:
        write(runner, [*found] if is_vector else found[0], True)

    made = RemoteGenerators(states, set_states)
    made.make(states())
    return made


def give(env: Any, found: list[np.random.Generator]) -> None:
    """Replace the generators of an environment or vector that is here."""
    if hasattr(env.unwrapped, "set_attr"):
        env.unwrapped.set_attr("np_random", found)
    else:
        env.np_random = found[0]


@pytest.mark.parametrize(
    ("name", "bits"),
    [*product([one for one in MADE if one != READ_ONLY], BITS), (READ_ONLY, BITS[0])],
)
def test_draws_through_a_proxy_are_those_of_the_environment_itself(name: str, bits: str) -> None:
    here, there = (MADE[name]() for _ in "ab")
    kind = getattr(np.random, bits)
    for env in (here, there) if name != READ_ONLY else ():
        give(env, [np.random.Generator(kind(number)) for number in (1, 2)])
    runner = Runner(there)
    assert_same(here.reset()[0], runner.reset(None, None)[0])
    remote = proxy_of(runner)
    for _ in range(2):
        for mine, theirs in zip(found_in(here), remote.all, strict=True):
            assert mine.random() == theirs.random()
            assert_same(
                mine.integers(9, size=3, dtype=np.uint32),
                theirs.integers(9, size=3, dtype=np.uint32),
            )
        if "copies" in name:  # a proxy's draws advance the environment's generator all the same
            give(here, [generators.build(one.own_state) for one in remote.all])
        remote.before_request()
        actions = here.action_space.sample()
        assert_same(here.step(actions)[0], runner.step(actions)[0])
        assert_same(here.reset()[0], runner.reset(None, None)[0])
        if "copies" not in name and name != READ_ONLY:
            assert here.np_random_seed == there.np_random_seed


@pytest.mark.parametrize("name", ["sync", "wrapped", "both", "own", "own, wrapped", "env"])
def test_a_generator_continues_in_place_unless_it_is_replaced(name: str) -> None:
    runner = Runner(MADE[name]())
    runner.reset(3, None)
    before = found_in(runner.env)
    states = [generators.describe(Own(np.random.PCG64(n))) for n in range(len(before))]
    value = states if runner.kind == "vector" else states[0]
    write(runner, value, True)
    assert all(a is b for a, b in zip(found_in(runner.env), before, strict=True))
    assert [one.bit_generator.state for one in before] == states
    write(runner, value)
    assert all(a is not b for a, b in zip(found_in(runner.env), before, strict=True))
    assert [one.bit_generator.state for one in found_in(runner.env)] == states


def test_a_generator_of_a_subclass_stays() -> None:
    env = Keeping()
    env.np_random = own = Own(np.random.SFC64(1))
    runner = Runner(env)
    state = generators.describe(np.random.Generator(np.random.SFC64(2)))
    write(runner, state, True)
    assert env.np_random is own
    assert read(runner)["state"]["state"].tolist() == state["state"]["state"].tolist()


@pytest.mark.parametrize("name", ["sync", "wrapped", "copies", "own", "env", "env that copies"])
def test_a_state_of_another_kind_replaces_the_generator(name: str) -> None:
    runner = Runner(MADE[name]())
    runner.reset(3, None)
    count = len(found_in(runner.env))
    states = [generators.describe(np.random.Generator(np.random.Philox(n))) for n in range(count)]
    write(runner, states if runner.kind == "vector" else states[0], True)
    assert_same([one.bit_generator.state for one in found_in(runner.env)], states)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_missing_generator_is_not_read_but_set(in_place: bool) -> None:
    class Without(gymnasium.Env[Any, Any]):
        observation_space = action_space = Keeping.action_space
        np_random: Any = None

    state = generators.describe(np.random.default_rng(5))
    for env, value in ((Without(), state), (wrapped(lambda: SyncVectorEnv([Without])), [state])):
        runner = Runner(env)
        with pytest.raises(
            AttributeError, match=r"np_random is a NoneType, but only a numpy\.rand"
        ):
            read(runner)
        assert runner.read_generator() is None
        if in_place:
            write(runner, value, True)
        else:
            runner.access(Call("each-set", "np_random", ([0], state)))
        assert read(runner) in (state, (state,))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", ["sync", "wrapped", "of wrapped", "own", "own, wrapped"])
def test_a_list_of_states_has_one_for_each_generator(name: str, in_place: bool) -> None:
    runner = Runner(VECTORS[name]())
    runner.reset(3, None)
    before = found_in(runner.env)
    states = read(runner)
    state = generators.describe(np.random.default_rng(5))
    wrong: list[Any] = [[], [state] * 3, state, None, "ab", 2]
    for one in wrong if "own" in name else [*wrong, [state]]:
        with pytest.raises(
            ValueError, match=r"np_random of this vector takes a list of 2 states, .* not "
        ):
            write(runner, one, in_place)
    with pytest.raises(DecodingError, match="Not the state of a random generator"):
        write(runner, [state, {**state, "state": None}], in_place)
    assert all(a is b for a, b in zip(found_in(runner.env), before, strict=True))
    assert_same(read(runner), states)


def test_a_vector_with_one_generator_takes_the_first_state() -> None:
    states = [generators.describe(np.random.default_rng(n)) for n in (8, 9)]
    for value in (states, states[:1]):
        runner = Runner(frames())
        runner.reset(3, None)
        write(runner, value, True)
        assert read(runner) == states[0]


def test_environments_that_share_a_generator_keep_it() -> None:
    shared = np.random.default_rng(3)
    vector = sync()
    vector.set_attr("np_random", shared)
    runner = Runner(wrapped(lambda: vector))
    states = [generators.describe(np.random.default_rng(n)) for n in (8, 9)]
    write(runner, states, True)
    assert all(one is shared for one in vector.get_attr("np_random"))
    assert read(runner) == (states[1], states[1])
    write(runner, states)
    assert read(runner) == tuple(states)


def test_a_generator_that_cannot_be_replaced_is_set_in_place() -> None:
    runner = Runner(ReadOnly())
    state = generators.describe(np.random.default_rng(5))
    write(runner, state, True)
    assert read(runner) == state
    with pytest.raises(AttributeError, match="np_random"):
        write(runner, state)


def test_a_generator_of_an_old_kind_is_neither_read_nor_set_in_place() -> None:
    vector: Any = sync()
    old = np.random.RandomState(3)
    vector.envs[1].np_random = old
    runner = Runner(wrapped(lambda: vector))
    state = generators.describe(np.random.default_rng(5))
    for call in (partial(read, runner), partial(write, runner, [state, state], True)):
        with pytest.raises(AttributeError, match="np_random is a RandomState, but only"):
            call()
    assert vector.envs[1].np_random is old
    assert vector.envs[0].np_random.bit_generator.state != state


# --- watching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
def test_rendering_for_a_watcher_leaves_no_trace(name: str) -> None:
    class Replacing(Keeping):
        """Also replaces its generator when it renders."""

        def render(self) -> Any:
            frame = super().render()
            self.np_random = np.random.default_rng(1)
            return frame

    here, there = (MADE[name]() for _ in "ab")
    runner = Runner(there)
    for seed in (3, None):
        assert_same(here.reset(seed=seed)[0], runner.reset(seed, None)[0])
        assert runner.render_unnoticed() is not None
        actions = here.action_space.sample()
        assert_same(here.step(actions)[0], runner.step(actions)[0])
    env = Replacing()
    runner = Runner(env)
    runner.reset(3, None)
    before = env.np_random
    runner.render_unnoticed()
    assert env.np_random is before


def test_pictures_of_all_environments_may_be_one_array() -> None:
    vector: Any = frames()
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    vector.render = lambda: pictures
    assert_same(Runner(vector).render_unnoticed(1), pictures[1])
    for nothing in (None, ()):
        vector.render = lambda nothing=nothing: nothing
        assert not Runner(vector).render_unnoticed(1)


# --- some environments of a vector ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["sync", "wrapped", "of wrapped", "both", "copies", "by messages"])
def test_some_generators_are_read_and_set(name: str) -> None:
    runner = Runner({**VECTORS, "by messages": by_messages}[name]())
    runner.reset(3, None)
    before = read(runner)
    state = generators.describe(np.random.Generator(np.random.SFC64(9)))
    assert_same(
        runner.access(Call("each-get", "np_random", ([1, 0],))),
        ({"value": before[1]}, {"value": before[0]}),
    )
    assert runner.access(Call("each-set", "np_random", ([1], state))) == (None,)
    assert_same(read(runner), (before[0], state))
    assert runner.access(Call("each-set", "np_random", ([], before[0]))) == ()
    runner.access(Call("each-get", "np_random", ([1], before[0])))  # reads only
    assert_same(read(runner), (before[0], state))


@pytest.mark.parametrize("name", ["own", "own, wrapped"])
def test_the_one_generator_of_a_vector_is_that_of_all(name: str) -> None:
    runner = Runner(VECTORS[name]())
    runner.reset(3, None)
    state = generators.describe(np.random.default_rng(9))
    assert runner.access(Call("each-set", "np_random", ([0, 1], state))) == (None, None)
    assert runner.access(Call("each-get", "np_random", ([0, 1],))) == ({"value": state},) * 2
    with pytest.raises(ValueError, match="does not consist of single environments"):
        runner.access(Call("each-get", "np_random", ([1],)))


def test_other_attributes_of_a_wrapped_vector_are_those_of_its_environments() -> None:
    runner = Runner(VECTORS["both"]())
    runner.reset(3, None)
    assert runner.access(Call("each-set", "gravity", ([1], 2.0))) == (None,)
    assert runner.access(Call("each-has", "gravity", ([0, 1],))) == (False, True)
    assert runner.access(Call("each-get", "gravity", ([1],))) == ({"value": 2.0},)
    assert runner.access(Call("each-call", "has_wrapper_attr", ([1], "gravity"))) == (True,)
    limit = f"{TimeLimit.__module__}:TimeLimit"
    assert runner.access(Call("each-wrapped", limit, ([1, 0],))) == (True, True)
    assert runner.access(Call("each-get", "episode_count", ([0, 1],))) == ({"value": 0},) * 2
