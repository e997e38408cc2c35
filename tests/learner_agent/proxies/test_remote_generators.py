"""Draws from a proxy's np_random advance the environment's own generator, as they do locally."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import StickyAction

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.learner_agent.proxies.remote_generators import RemoteGenerators
from gymwire.protocol import generators
from gymwire.protocol.errors import DecodingError, EnvironmentFailed, EnvironmentLost, MoveError
from gymwire.protocol.messages import Call
from tests.offered_vectors import make_wrapped_keeping
from tests.processes import programs
from tests.sameness import assert_same
from tests.typed_envs import Typed

WRAPPED = "tests.offered_vectors:make_wrapped_keeping"
OFFERS = f"""
[[offer]]
address = "typed"
env = "tests.typed_envs:Typed"
[[offer]]
address = "own"
env = "CartPole-v1"
[[offer]]
address = "wrapped"
env = "{WRAPPED}"
[[offer]]
address = "elsewhere"
env = "{WRAPPED}"
python = "{sys.executable}"
"""


@pytest.fixture(scope="module")
def broker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = tmp_path_factory.mktemp("generators") / "offers.toml"
    config.write_text(OFFERS)
    with programs() as started:
        started.env_agent(broker_url, "--config", str(config))
        yield broker_url


def _drawn(env: Any) -> Iterator[Any]:
    """Use an environment and draw from its generator, in all orders; yield what both return."""
    env.reset(seed=4)
    kept = env.np_random
    yield env.np_random.random()
    yield kept.integers(1000, size=3)
    yield env.step(1)[0], env.step(1)[1]
    yield kept.normal(), kept.choice(5, 2), kept.permutation(4), kept.bytes(3)
    yield env.step(1)[:2]
    yield env.step(1)[:2]
    yield kept.bit_generator.state
    yield env.reset()[0]
    yield kept.random(), env.np_random_seed
    yield env.reset(seed=9)[0]
    yield kept.random(), kept.bit_generator.state, env.np_random.random(), kept.random()
    yield env.step(1)[:2], kept.random()
    kept = env.np_random
    env.np_random = np.random.default_rng(5)
    yield kept.random(), env.np_random.random(), kept.random()
    yield env.step(1)[:2]
    yield env.np_random.random(), env.np_random_seed
    state = env.np_random.bit_generator.state
    yield env.np_random.random()
    env.np_random.bit_generator.state = state
    yield env.np_random.random(), env.step(1)[:2]
    yield copy.copy(env.np_random).random(), env.np_random.random(), env.step(1)[:2]
    yield copy.deepcopy(env.np_random).random(), pickle.loads(pickle.dumps(env.np_random)).random()
    env.np_random = np.random.Generator(np.random.MT19937(3))
    yield env.np_random.random(), env.step(1)[:2], env.np_random.random()


@pytest.mark.parametrize("options", [{}, {"direct": "never"}, {"on_lost": "replay"}])
def test_a_single_environment_draws_the_same_as_locally(broker: str, options: Any) -> None:
    with ProxyEnv("typed", broker, **options) as remote:
        for here, there in zip(_drawn(Typed()), _drawn(remote), strict=True):
            assert_same(there, here)


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_vector_draws_the_same_as_locally(broker: str, sessions: int) -> None:
    def drawn(envs: Any) -> Iterator[Any]:
        envs.reset(seed=4)
        for _ in range(3):
            yield envs.np_random[1].random(), [one.normal() for one in envs.np_random]
            yield envs.step(np.zeros(3, int))[:2]
            yield envs.get_attr("np_random")[2].integers(9), envs.np_random_seed
            yield [one.random() for one in envs.call("np_random")]

    remote = ProxyVectorEnv("typed", 3, broker, sessions=sessions)
    for here, there in zip(drawn(SyncVectorEnv([Typed] * 3)), drawn(remote), strict=True):
        assert_same(there, here)
    remote.step_async(np.zeros(3, int))
    with pytest.raises(MoveError):
        remote.np_random[0].random()
    remote.step_wait()
    remote.close()


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_reset_with_a_seed_replaces_the_generators_of_those_that_it_resets(
    broker: str, sessions: int
) -> None:
    def drawn(envs: Any) -> Iterator[Any]:
        envs.reset(seed=4)
        for seed, mask in ((7, None), ([None, 3, None], None), ([1, None, 1], [True, True, False])):
            kept = envs.np_random
            yield [one.random() for one in kept]
            options = None if mask is None else {"reset_mask": np.array(mask)}
            envs.reset(seed=seed, options=options)
            yield [one.random() for one in kept]
            yield [one.random() for one in envs.np_random], [one.random() for one in kept]
            yield envs.step(np.zeros(3, int))[:2]

    local = SyncVectorEnv([Typed] * 3, autoreset_mode="Disabled")
    remote = ProxyVectorEnv("typed", 3, broker, sessions=sessions, autoreset_mode="Disabled")
    for here, there in zip(drawn(local), drawn(remote), strict=True):
        assert_same(there, here)
    remote.close()


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_vector_class_of_its_own_has_one_generator_in_each_session(
    broker: str, sessions: int
) -> None:
    remote = ProxyVectorEnv("own", 4, broker, sessions=sessions)
    locals_ = [gymnasium.make_vec("CartPole-v1", 4 // sessions) for _ in range(sessions)]
    remote.reset(seed=3)
    for i, one in enumerate(locals_):
        one.reset(seed=3 + i * 4 // sessions)
    kept, kept_here = remote.np_random, [one.np_random for one in locals_]
    for seed in (None, 8):
        assert [one.random() for one in kept] == [one.random() for one in kept_here]
        observations = remote.reset(seed=seed)[0]
        here = [
            one.reset(seed=None if seed is None else seed + i * 4 // sessions)[0]
            for i, one in enumerate(locals_)
        ]
        assert_same(observations, np.concatenate(here))
    assert [one.random() for one in kept] == [one.random() for one in kept_here]
    assert_same(remote.reset()[0], np.concatenate([one.reset()[0] for one in locals_]))
    remote.close()


@pytest.mark.parametrize("address", ["wrapped", "elsewhere"])
@pytest.mark.parametrize("sessions", [1, 2])
def test_vectors_in_gymnasiums_wrappers_draw_the_same_as_locally(
    broker: str, address: str, sessions: int
) -> None:
    def drawn(envs: Any) -> Iterator[Any]:
        yield envs.reset(seed=4)[0]
        for _ in range(2):
            kept = envs.np_random
            yield kept[3].random(), [one.normal() for one in kept], envs.np_random_seed
            yield envs.step(np.zeros(4, int))[:2], envs.np_random[1].integers(9)
            yield envs.reset()[0]
        envs.reset(seed=7)
        yield [one.random() for one in (*kept, *envs.np_random)], envs.step(np.zeros(4, int))[0]

    with ProxyVectorEnv(address, 4, broker, sessions=sessions) as remote:
        for here, there in zip(drawn(make_wrapped_keeping(4)), drawn(remote), strict=True):
            assert_same(there, here)
        for number, state in enumerate(one.bit_generator.state for one in remote.np_random):
            call = Call("each-get", "np_random")
            assert_same(remote.access_each(call, [number]), [{"value": state}])


def test_sticky_actions_repeat_as_locally(broker: str) -> None:
    def repeated(env: gymnasium.Env[Any, Any]) -> list[float]:
        sticky = StickyAction(env, 0.25)
        sticky.reset(seed=1)
        return [float(sticky.step(i % 10)[1]) for i in range(30)]

    with ProxyEnv("typed", broker) as remote:
        assert repeated(remote) == repeated(Typed())


def test_a_replay_repeats_the_draws(broker_url: str) -> None:
    def rewards(env: Any, between: Callable[[], None]) -> list[Any]:
        env.reset(seed=2)
        found: list[Any] = [env.step(0)[1], env.np_random.random(), env.step(0)[1]]
        found.append(env.np_random.random())
        between()
        return [*found, env.step(0)[1], env.np_random.random()]

    serve = "--address", "drawing", "--env", "tests.typed_envs:Typed"
    with programs() as started:
        first = started.env_agent(broker_url, *serve)
        with ProxyEnv("drawing", broker_url, on_lost="replay") as remote:

            def replace() -> None:
                started.env_agent(broker_url, *serve)
                first.kill()

            assert rewards(remote, replace) == rewards(Typed(), lambda: None)


# --- the rules, without processes -----------------------------------------------------------------


class Remote:
    """An environment's generator, and a log of the requests."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(1)
        self.log: list[str] = []
        self.failure: Exception | None = None
        self.states: list[Any] = []
        self.all = RemoteGenerators(self.read, self.write, "'here'")
        self.all.make(self.read())
        self.log.clear()

    def read(self) -> list[Any]:
        self.all.before_request() if self.log else None
        self.log.append("read")
        return self.states or [generators.describe(self.generator)]

    def write(self, states: Any) -> None:
        self.all.before_request()  # as the calls of a proxy do
        self.log.append("write")
        if self.failure is not None:
            raise self.failure
        self.generator.bit_generator.state = states[0]


def test_states_are_read_once_and_written_once() -> None:
    remote, local = Remote(), np.random.default_rng(1)
    (generator,) = remote.all.all
    assert [generator.random(), generator.random()] == [local.random(), local.random()]
    assert remote.log == []
    remote.all.before_request()
    remote.all.before_request()
    assert remote.log == ["write"]
    assert remote.generator.random() == local.random()
    assert generator.random() == local.random()
    assert remote.log == ["write", "read"]


def test_without_draws_nothing_is_sent() -> None:
    remote = Remote()
    for _ in range(3):
        remote.all.before_request()
    assert remote.log == []


def test_after_an_interrupt_the_next_request_writes_again() -> None:
    remote = Remote()
    remote.all.all[0].random()
    remote.failure = TimeoutError()
    with pytest.raises(TimeoutError):
        remote.all.before_request()
    remote.failure = None
    remote.all.before_request()
    assert remote.log == ["write", "write"]


def test_a_lost_session_is_left_to_the_request_itself() -> None:
    remote = Remote()
    remote.all.all[0].random()
    remote.failure = EnvironmentLost("gone")
    remote.all.before_request()
    remote.all.before_request()
    assert remote.log == ["write"]


def test_a_refused_state_raises_once() -> None:
    remote = Remote()
    remote.all.all[0].random()
    remote.failure = EnvironmentFailed("no")
    with pytest.raises(EnvironmentFailed):
        remote.all.before_request()
    remote.all.before_request()


@pytest.mark.parametrize("states", [[{}], [None], [5, 5]], ids=str)
def test_a_wrong_state_is_the_agents_fault(states: list[Any]) -> None:
    remote = Remote()
    remote.all.before_request()
    remote.states = states
    with pytest.raises(DecodingError, match="The env agent of 'here' broke the protocol: "):
        remote.all.all[0].random()
    with pytest.raises(DecodingError, match="The env agent of 'here' broke the protocol: Not the"):
        remote.all.make(states)


@pytest.mark.parametrize(
    "name", [name for name in dir(np.random.Generator) if not name.startswith("_")]
)
def test_every_method_is_one_of_ours(name: str) -> None:
    """Another release of NumPy may have others, which must not draw unnoticed."""
    ours = type(Remote().all.all[0])
    assert getattr(ours, name) is not getattr(np.random.Generator, name)


@pytest.mark.parametrize("name", ["ctypes", "cffi", "capsule", "lock", "random_raw", "seed_seq"])
def test_drawing_through_the_bit_generator_raises(name: str) -> None:
    with pytest.raises(AttributeError, match="Draw with the generator's methods"):
        getattr(Remote().all.all[0].bit_generator, name)


def test_spawning_raises() -> None:
    with pytest.raises(NotImplementedError):
        Remote().all.all[0].spawn(2)
