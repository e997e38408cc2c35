"""Environments of other packages are served as they are, equal to the bit.

The packages are large, so that only a few of them are installed with the tests. Each has a stand-in
that is always tested.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import itertools
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.protocol.errors import EnvironmentFailed, MoveError
from gymwire.protocol.messages import Call
from gymwire.protocol.remote_space import CALL, RemoteSpace
from tests import offered_vectors
from tests.offered_spaces import SPACES, Odd
from tests.processes import programs
from tests.sameness import assert_same
from tests.sampling import sampled

REAL_POOLS = """
import envpool

def make(num_envs):
    return envpool.make("CartPole-v1", env_type="gymnasium", num_envs=num_envs, seed=3)

def make_any(**kwargs):
    return envpool.make("CartPole-v1", env_type="gymnasium", **kwargs)

def make_one():
    return envpool.make("CartPole-v1", env_type="gymnasium")
"""
OFFERS = {
    "pool": "tests.offered_vectors:make_pool",
    "any-pool": "tests.offered_vectors:make_any_pool",
    "two": "tests.offered_vectors:make_two",
    "slow-pool": "tests.offered_vectors:make_slow_pool",
    "old-pool": "tests.offered_vectors:make_old_pool",
    "frames": "tests.offered_vectors:tests/Frames-v0",
    "madeframes": "tests.offered_vectors:tests/MadeFrames-v0",
    "nextstepframes": "tests.offered_vectors:tests/NextStepFrames-v0",
    "madenextstepframes": "tests.offered_vectors:tests/MadeNextStepFrames-v0",
    "walkers": "tests.offered_vectors:Walkers",
}
OFFERS["odd"] = "tests.offered_spaces:Odd"
REAL = {
    "fetch": "minigrid:MiniGrid-Fetch-5x5-N2-v0",
    "empty": "minigrid:MiniGrid-Empty-5x5-v0",
    "babyai": "minigrid:BabyAI-GoToRedBallGrey-v0",
    "pong": "ale_py:ALE/Pong-v5",
    "parking": "highway_env:parking-v0",
    "real-pool": "pools.py:make",
    "real-any-pool": "pools.py:make_any",
    "real-one": "pools.py:make_one",
}
PACKAGES = {"pools.py": "envpool"}
THERE = "there-"  # before the address of one in a process with its own interpreter
RUN_THERE = [
    *("pool", "any-pool", "two", "old-pool", "slow-pool", "frames", "walkers"),
    *("real-pool", "real-any-pool", "real-one", "pong"),
]


WRAPPED = """
[[offer]]
address = "flat"
env = "minigrid:MiniGrid-Empty-5x5-v0"
wrap = ["minigrid.wrappers:FlatObsWrapper"]
"""


def _package(env: str) -> str:
    module = env.partition(":")[0]
    return PACKAGES.get(module, module)


@pytest.fixture(scope="module")
def broker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with the stand-ins, and the environments of the installed packages."""
    folder: Path = tmp_path_factory.mktemp("other_libraries")
    (folder / "pools.py").write_text(REAL_POOLS)
    installed = {a: e for a, e in REAL.items() if importlib.util.find_spec(_package(e))}
    offers = [
        f'[[offer]]\naddress = "{a}"\nenv = "{e.replace("pools.py", str(folder / "pools.py"))}"\n'
        for a, e in {**OFFERS, **installed}.items()
    ]
    offers += [
        one.replace('address = "', f'address = "{THERE}') + f'python = "{sys.executable}"\n'
        for one in offers
        if one.partition('address = "')[2].partition('"')[0] in RUN_THERE
    ]
    offers += [WRAPPED] if importlib.util.find_spec("minigrid") else []
    (folder / "offers.toml").write_text("".join(offers))
    with programs() as started:
        started.env_agent(broker_url, "--threads", "2", "--config", str(folder / "offers.toml"))
        yield broker_url


@pytest.fixture(autouse=True)
def _advice_ignored() -> Iterator[None]:
    """The packages warn of much that does not concern us."""
    shared = dict(VectorEnv.metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    VectorEnv.metadata.clear()
    VectorEnv.metadata.update(shared)


def require(address: str) -> None:
    """Skip unless the package is installed."""
    address = address.removeprefix(THERE)
    if address in REAL:
        package = _package(REAL[address])
        pytest.importorskip(package, reason=f"{package} is not installed")


def assert_same_course(local: Any, remote: Any, actions: Any, *, seed: int | None = 11) -> None:
    """Fail unless both return the same at each of 60 steps, after two resets."""
    actions.seed(3)
    for again in (seed, None):
        seeds: dict[str, Any] = {} if again is None else {"seed": again}  # some take none
        starts = local.reset(**seeds), remote.reset(**seeds)
        for _, info in starts:
            info.pop("action", None)  # parking's is a sample of a generator that nobody seeds
        assert_same(*starts, "reset")
        for step in range(30):
            action = actions.sample()
            expected = local.step(action)
            assert_same(expected, remote.step(action), f"step {step}")
            if isinstance(remote, ProxyEnv) and (expected[2] or expected[3]):
                break


@pytest.mark.parametrize("address", ["pong", "parking"])
def test_an_environment_of_another_package_is_the_same_to_the_bit(
    broker: str, address: str
) -> None:
    require(address)
    local = gymnasium.make(REAL[address])
    with ProxyEnv(address, broker) as remote, local:
        assert remote.observation_space == local.observation_space
        assert_same_course(local, remote, local.action_space)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("address", ["parking"])
def test_a_vector_of_an_environment_with_a_module_is_the_same_to_the_bit(
    broker: str, address: str, mode: AutoresetMode
) -> None:
    require(address)
    make = partial(gymnasium.make, REAL[address])
    local = SyncVectorEnv([make, make], autoreset_mode=mode)
    remote = ProxyVectorEnv(address, 2, broker, autoreset_mode=mode)
    with remote, closing(local):
        assert remote.single_observation_space == local.single_observation_space
        assert_same_course(local, remote, local.action_space)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("address", ["frames", "madeframes", "pong", "there-frames", "there-pong"])
def test_a_registered_vector_class_gets_the_requested_autoreset_mode(
    broker: str, address: str, mode: AutoresetMode
) -> None:
    require(address)
    bare = address.removeprefix(THERE)
    name = {"frames": "tests/Frames-v0", "madeframes": "tests/MadeFrames-v0"}.get(bare)
    local = gymnasium.make_vec(name or REAL[bare], 2, autoreset_mode=mode)
    remote = ProxyVectorEnv(address, 2, broker, autoreset_mode=mode)
    with remote, closing(local):
        assert remote.metadata["autoreset_mode"] == mode
        assert remote.observation_space == local.observation_space
        assert remote.single_action_space == local.single_action_space
        assert_same_course(local, remote, local.action_space)


@pytest.mark.parametrize(
    "address", ["pool", "old-pool", "pong", "real-pool", "there-pool", "there-real-pool"]
)
def test_infos_of_several_sessions_have_the_ids_of_the_whole_vector(
    broker: str, address: str
) -> None:
    require(address)
    with ProxyVectorEnv(address, 5, broker, sessions=2) as remote:
        ids = remote.reset()[1]["env_id"]
        actions = remote.action_space.sample()
        infos = remote.step(actions)[4]
        for found in (ids, infos["env_id"], infos.get("players", infos)["env_id"]):
            assert_same(found, np.arange(5, dtype=np.int32))
        remote.send(actions[3:], [3, 4])
        infos = remote.recv(2)[4]
        for found in (infos["env_id"], infos.get("players", infos)["env_id"]):
            assert list(found) == [3, 4]


@pytest.mark.parametrize("address", ["nextstepframes", "madenextstepframes"])
def test_a_vector_class_with_one_mode_is_used_for_this_mode(broker: str, address: str) -> None:
    with ProxyVectorEnv(address, 2, broker) as remote:
        assert remote.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
        assert remote.observation_space.shape == (2, 4, 3, 3)
    with ProxyVectorEnv(address, 2, broker, autoreset_mode="SameStep") as remote:
        assert remote.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
        assert remote.observation_space.shape == (2, 6, 6, 3)


def test_the_failure_of_a_vector_class_is_reported(broker: str) -> None:
    require("pong")
    with pytest.raises(EnvironmentFailed, match="Invalid autoreset_mode: Disabled"):
        ProxyVectorEnv("pong", 2, broker, autoreset_mode="Disabled")


def _local_pool(address: str, num_envs: int) -> Any:
    address = address.removeprefix(THERE)
    if address in OFFERS:
        kind = offered_vectors.OldPool if address == "old-pool" else offered_vectors.Pool
        return kind(num_envs)
    envpool = importlib.import_module("envpool")
    more = {"seed": 3} if address == "real-pool" else {}
    return envpool.make("CartPole-v1", env_type="gymnasium", num_envs=num_envs, **more)


@pytest.mark.parametrize(
    ("address", "num_envs"),
    [
        ("pool", 1),
        ("pool", 3),
        ("any-pool", 3),
        ("two", 2),
        ("old-pool", 3),
        ("real-pool", 1),
        ("real-pool", 4),
        ("real-any-pool", 4),
        ("real-one", 1),
        *((f"{THERE}{address}", 2) for address in ("pool", "any-pool", "two", "old-pool")),
        *((f"{THERE}{address}", 4) for address in ("real-pool", "real-any-pool")),
        (f"{THERE}real-one", 1),
    ],
)
def test_a_vector_of_another_library_is_the_same_to_the_bit(
    broker: str, address: str, num_envs: int
) -> None:
    require(address)
    local = _local_pool(address, num_envs)
    with ProxyVectorEnv(address, num_envs, broker) as remote:
        assert remote.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
        assert remote.single_observation_space == local.observation_space
        assert remote.observation_space == batch_space(local.observation_space, num_envs)
        assert remote.action_space == batch_space(local.action_space, num_envs)
        seed = None if address.endswith("old-pool") else 11
        assert_same_course(local, remote, remote.action_space, seed=seed)


@pytest.mark.parametrize("address", ["pool", "real-pool", "there-pool", "there-real-pool"])
def test_sessions_of_a_pool_are_joined_with_their_nested_infos(broker: str, address: str) -> None:
    require(address)
    parts = [_local_pool(address, 2), _local_pool(address, 1)]
    with ProxyVectorEnv(address, 3, broker, sessions=2) as remote:
        observation, infos = remote.reset()
        resets = [part.reset() for part in parts]
        assert_same(np.concatenate([reset[0] for reset in resets]), observation)
        for _ in range(6):
            observation, _, _, _, infos = remote.step(np.ones(3, np.int64))
            steps = [part.step(np.ones(n, np.int64)) for part, n in zip(parts, (2, 1), strict=True)]
            assert_same(np.concatenate([step[0] for step in steps]), observation)
            assert_same(_joined([step[4] for step in steps]), infos)


def _joined(infos: list[Any]) -> Any:
    if isinstance(infos[0], dict):
        joined = {key: _joined([one[key] for one in infos]) for key in infos[0]}
        if "env_id" in joined:  # those of the whole vector
            joined["env_id"] = np.arange(len(joined["env_id"]), dtype=np.int32)
        return joined
    return np.concatenate(infos)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_hand_written_vector_there_is_the_same_to_the_bit(
    broker: str, mode: AutoresetMode
) -> None:
    here = ProxyVectorEnv("walkers", 3, broker, autoreset_mode=mode)
    there = ProxyVectorEnv("there-walkers", 3, broker, autoreset_mode=mode)
    with here, there:
        assert here.metadata == there.metadata
        assert_same_course(here, there, there.action_space)
        assert_same(here.reset(seed=[4, 5, 6]), there.reset(seed=[4, 5, 6]))
        if mode is not AutoresetMode.SAME_STEP:
            options = {"reset_mask": np.array([True, False, True])}
            assert_same(here.reset(options=dict(options)), there.reset(options=dict(options)))


@pytest.mark.parametrize("address", ["two", "there-two"])
def test_a_vector_of_another_size_is_refused_with_advice(broker: str, address: str) -> None:
    with pytest.raises(EnvironmentFailed, match=r"made 2 .* requested 3\..*a parameter num_envs"):
        ProxyVectorEnv(address, 3, broker)
    with pytest.raises(EnvironmentFailed, match="only makes vectors"):
        ProxyEnv(address, broker)


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("address", ["pool", "there-pool"])
def test_the_pictures_of_a_pool_are_an_array(broker: str, sessions: int, address: str) -> None:
    with ProxyVectorEnv(address, 2, broker, sessions=sessions) as remote:
        remote.reset()
        remote.step(np.ones(2, np.int64))
        assert_same((np.full((2, 2, 3), 1, np.uint8),) * sessions, remote.render())


@pytest.mark.parametrize("address", ["slow-pool", "there-slow-pool"])
def test_an_asynchronous_pool_is_refused_with_advice(broker: str, address: str) -> None:
    with pytest.raises(
        EnvironmentFailed, match=r"3 environments .* returns only 1. Leave batch_size"
    ):
        ProxyVectorEnv(address, 3, broker)


@pytest.mark.parametrize("address", ["odd", "parking"])
def test_the_methods_of_goals_are_exposed(broker: str, address: str) -> None:
    require(address)
    local: Any = Odd() if address == "odd" else gymnasium.make(REAL[address]).unwrapped
    goals = np.random.default_rng(1).random((2, 6))
    with ProxyEnv(address, broker) as remote:
        assert_same(
            local.compute_reward(*goals, {}), remote.get_wrapper_attr("compute_reward")(*goals, {})
        )
        if address == "odd":
            assert remote.get_wrapper_attr("compute_terminated")(goals[0], goals[0], {}) is True
            assert remote.get_wrapper_attr("compute_truncated")(*goals, {}) is False
            found = ProxyVectorEnv("odd", 2, broker)
            with found:
                assert found.call("compute_truncated", *goals, {}) == (False, False)


def _local(address: str) -> Any:
    return Odd(address) if address in SPACES else gymnasium.make(REAL[address])


def _at(address: str) -> dict[str, Any]:
    if address not in SPACES:
        return {"address": address}
    return {"address": "odd", "env_kwargs": {"name": address}}


@pytest.mark.parametrize("address", [*SPACES, "fetch", "empty", "babyai"])
def test_an_environment_with_other_spaces_is_the_same_to_the_bit(broker: str, address: str) -> None:
    require(address)
    local = _local(address)
    with ProxyEnv(broker=broker, **_at(address)) as remote, closing(local):
        assert_same_course(local, remote, local.action_space)


@pytest.mark.parametrize(
    ("address", "sessions"),
    sampled(itertools.product([*SPACES, "fetch", "empty", "babyai"], [1, 2]), 3),
)
def test_a_vector_with_other_spaces_is_the_same_to_the_bit(
    broker: str, address: str, sessions: int
) -> None:
    require(address)
    make = partial(_local, address)
    local = SyncVectorEnv([make, make])
    remote = ProxyVectorEnv(num_envs=2, broker=broker, sessions=sessions, **_at(address))
    with remote, closing(local):
        assert_same_course(local, remote, local.action_space)
        for space, other in (
            (remote.observation_space, local.observation_space),
            (remote.single_observation_space, local.single_observation_space),
        ):
            if sessions == 1 and address != "disc":
                space.seed(4)
                other.seed(4)
                assert_same(other.sample(), space.sample())
                assert space.contains(other.sample())


@pytest.mark.parametrize("address", [*SPACES, "fetch", "empty", "babyai"])
def test_a_space_samples_and_contains_what_the_local_one_does(broker: str, address: str) -> None:
    require(address)
    local = _local(address)
    other = SPACES["pair"].sample()
    with ProxyEnv(broker=broker, **_at(address)) as remote:
        for mine, theirs in (
            (local.observation_space, remote.observation_space),
            (local.action_space, remote.action_space),
            (copy.deepcopy(local.observation_space), copy.deepcopy(remote.observation_space)),
        ):
            theirs.seed(8)
            mine.seed(8)
            for _ in range(5):
                value = mine.sample()
                assert_same(value, theirs.sample())
                assert theirs.contains(value) == mine.contains(value)
                assert theirs.contains(other) == mine.contains(other)
            assert not theirs.contains(object())
        kept = pickle.loads(pickle.dumps(remote.observation_space))
        assert kept == remote.observation_space
        if address in ("only-words", "disc"):
            with pytest.raises(MoveError, match="only the env agent knows"):
                kept.sample()


def test_spaces_are_sent_as_the_nearest_of_gymnasium(broker: str) -> None:
    with ProxyEnv(broker=broker, **_at("named")) as remote:
        assert type(remote.observation_space) is Box
        assert remote.observation_space == SPACES["named"]
    with ProxyEnv(broker=broker, **_at("disc")) as remote:
        assert isinstance(remote.observation_space, RemoteSpace)
        assert repr(remote.observation_space) == "RemoteSpace(tests.offered_spaces.Disc)"
        assert remote.observation_space.shape == (2,)
        assert remote.observation_space.dtype == np.float32
        assert not remote.observation_space.contains(np.ones(2, np.float32))
        assert remote.observation_space.contains(np.zeros(2, np.float32))
    with pytest.raises(MoveError, match=r"no longer exists|closed"):
        remote.observation_space.sample()


@pytest.mark.parametrize(
    "args",
    [
        ("observation_space.colours", "sample", ()),
        ("unwrapped", "sample", ()),
        ("observation_space", "__init__", ()),
        ("observation_space", "sample"),
    ],
)
def test_only_the_methods_of_spaces_can_be_called_so(broker: str, args: tuple[Any, ...]) -> None:
    with ProxyEnv(broker=broker, **_at("disc")) as remote, pytest.raises(EnvironmentFailed):
        remote._owner.request(Call("call", CALL, args))


def test_a_wrapper_that_needs_minigrids_own_space_is_applied_at_the_env_agent(broker: str) -> None:
    wrappers = pytest.importorskip("minigrid.wrappers", reason="minigrid is not installed")

    def make() -> Any:
        return wrappers.FlatObsWrapper(gymnasium.make(REAL["empty"]))

    with ProxyEnv("flat", broker) as remote, closing(make()) as local:
        assert remote.observation_space == local.observation_space
        assert_same_course(local, remote, local.action_space)
    local = SyncVectorEnv([make, make])
    with ProxyVectorEnv("flat", 2, broker) as vector, closing(local):
        assert_same_course(local, vector, local.action_space)
