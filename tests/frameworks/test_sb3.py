"""Stable-Baselines3 on remote environments equals Stable-Baselines3 on local ones."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.protocol.errors import (
    AttributeDenied,
    BatchSizeError,
    ConfigurationError,
    EnvironmentClosed,
    EnvironmentFailed,
    MoveError,
    NoFreeSlot,
    ResetNeeded,
)
from tests.conformance.agents import RightAgent, serving
from tests.frameworks.envs import Choices, Masked, Mixed, Reach, timed
from tests.processes import programs
from tests.sameness import assert_same
from tests.sampling import sampled, thorough

REASON = "Stable-Baselines3 is not installed; ./run pytest tests/frameworks installs it"
pytestmark = pytest.mark.skipif(find_spec("sb3_contrib") is None, reason=REASON)

if TYPE_CHECKING:
    from sb3_contrib import MaskablePPO
    from stable_baselines3 import DQN, PPO, SAC, HerReplayBuffer
    from stable_baselines3.common.callbacks import EvalCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

    from gymwire.sb3 import ProxyVecEnv


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Import PyTorch where these tests run, and not in each process that collects them."""
    global MaskablePPO, DQN, PPO, SAC, HerReplayBuffer, EvalCallback
    global DummyVecEnv, VecEnv, VecMonitor, VecNormalize, ProxyVecEnv
    import torch
    from sb3_contrib import MaskablePPO
    from stable_baselines3 import DQN, PPO, SAC, HerReplayBuffer
    from stable_baselines3.common.callbacks import EvalCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

    from gymwire.sb3 import ProxyVecEnv

    torch.set_num_threads(1)


MAKERS: dict[str, Callable[[], Any]] = {
    "cartpole": partial(gymnasium.make, "CartPole-v1"),
    "reach": Reach,
    "masked": Masked,
    "mixed": Mixed,
    "timed": timed,
    "choices": Choices,
}
NAMES = {
    "cartpole": "CartPole-v1",
    "reach": "tests.frameworks.envs:Reach",
    "masked": "tests.frameworks.envs:Masked",
    "mixed": "tests.frameworks.envs:Mixed",
    "timed": "tests.frameworks.envs:timed",
    "choices": "tests.frameworks.envs:Choices",
}
EXPOSED = ["compute_reward", "level", "scaled", "calls", "asked"]
SLOTS = 4
BUFFER_SIZE = 1000  # more than are trained; HerReplayBuffer makes a dict for each by itself
SYNC = {"vectorization_mode": "sync"}
WAYS = sampled([(1, "never"), (3, "never"), (3, "always")], 2)


@pytest.fixture(scope="module")
def broker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a broker, and an env agent that offers all of these environments."""
    offers = [
        f'[[offer]]\naddress = "sb3-{address}"\nenv = "{name}"\nexpose = {EXPOSED}\n'
        f"max_sessions = {SLOTS}"
        for address, name in NAMES.items()
    ]
    config: Path = tmp_path_factory.mktemp("sb3") / "offers.toml"
    config.write_text("\n".join(offers))
    with programs() as started:
        started.env_agent(broker_url, "--config", str(config), "--direct", "host")
        yield broker_url


@pytest.fixture
def opened(broker: str) -> Iterator[Callable[..., ProxyVecEnv]]:
    """Makes remote vectors that are closed after the test."""
    made: list[ProxyVecEnv] = []

    def make(address: str, n_envs: int = 3, **options: Any) -> ProxyVecEnv:
        if address == "cartpole":  # its own vector class draws other initial states
            options.setdefault("env_kwargs", SYNC)
        made.append(ProxyVecEnv(f"sb3-{address}", n_envs, broker, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def local(address: str, n_envs: int = 3) -> DummyVecEnv:
    return DummyVecEnv([MAKERS[address]] * n_envs)


Make = Callable[..., "ProxyVecEnv"]


# --- training -------------------------------------------------------------------------------------


def weights(model: Any) -> dict[str, Any]:
    return {name: value.numpy() for name, value in model.policy.state_dict().items()}


@functools.cache
def trained_here(train: Callable[[VecEnv], Any], address: str, n_envs: int) -> Any:
    """Return the model after training on local environments."""
    return train(local(address, n_envs))


def assert_same_training(
    train: Callable[[VecEnv], Any], address: str, n_envs: int, there: VecEnv
) -> None:
    """Fail unless training on both ends with the same weights, which are not the first ones."""
    ours, theirs = trained_here(train, address, n_envs), train(there)
    assert_same(weights(ours), weights(theirs), "weights")
    assert ours.num_timesteps == theirs.num_timesteps > 0
    assert ours._n_updates > 0


def ppo(envs: VecEnv, steps: int = 200) -> Any:
    return PPO("MlpPolicy", envs, n_steps=32, batch_size=32, n_epochs=2, seed=7).learn(steps)


def dqn(envs: VecEnv) -> Any:
    model = DQN(
        "MlpPolicy",
        envs,
        buffer_size=BUFFER_SIZE,
        learning_starts=32,
        batch_size=16,
        train_freq=8,
        seed=7,
    )
    return model.learn(200)


def sac_her(envs: VecEnv, *, copy_info_dict: bool) -> Any:
    model = SAC(
        "MultiInputPolicy",
        envs,
        buffer_size=BUFFER_SIZE,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "copy_info_dict": copy_info_dict},
        learning_starts=60,
        batch_size=16,
        train_freq=4,
        policy_kwargs={"net_arch": [16]},
        seed=7,
    )
    return model.learn(150)


def maskable_ppo(envs: VecEnv) -> Any:
    return MaskablePPO("MlpPolicy", envs, n_steps=32, batch_size=32, n_epochs=2, seed=7).learn(150)


@pytest.mark.parametrize(("n_envs", "direct"), WAYS)
@pytest.mark.parametrize(
    ("address", "train"),
    [
        ("cartpole", ppo),
        ("cartpole", dqn),
        thorough("reach", partial(sac_her, copy_info_dict=False)),
        ("reach", partial(sac_her, copy_info_dict=True)),
        ("masked", maskable_ppo),
    ],
    ids=["PPO", "DQN", "SAC-HER", "SAC-HER-infos", "MaskablePPO"],
)
def test_remote_and_local_training_end_with_the_same_weights(
    opened: Make, address: str, train: Callable[[VecEnv], Any], n_envs: int, direct: str
) -> None:
    assert_same_training(train, address, n_envs, opened(address, n_envs, direct=direct))


@pytest.mark.parametrize("direct", ["never", thorough("always")])
@pytest.mark.parametrize(
    ("address", "train"),
    [
        ("cartpole", ppo),
        thorough("reach", partial(sac_her, copy_info_dict=True)),
        ("masked", maskable_ppo),
    ],
    ids=["PPO", "SAC-HER-infos", "MaskablePPO"],
)
def test_training_on_proxies_in_a_dummy_vec_env_is_the_same(
    broker: str, address: str, train: Callable[[VecEnv], Any], direct: str
) -> None:
    there = DummyVecEnv([partial(ProxyEnv, f"sb3-{address}", broker, direct=direct)] * 2)
    assert_same_training(train, address, 2, there)
    there.close()


def test_training_over_several_sessions_is_the_same(opened: Make) -> None:
    assert_same_training(ppo, "cartpole", 3, opened("cartpole", sessions=2))


@pytest.mark.parametrize(("n_envs", "direct"), WAYS)
def test_training_with_vec_normalize_and_vec_monitor_is_the_same(
    opened: Make, tmp_path: Path, n_envs: int, direct: str
) -> None:
    pairs = []
    for envs in (local("cartpole", n_envs), opened("cartpole", n_envs, direct=direct)):
        normalized = VecNormalize(VecMonitor(envs))
        model = ppo(normalized)
        path = tmp_path / "normalize.pkl"
        normalized.save(str(path))
        loaded = VecNormalize.load(str(path), envs)
        episodes = [(one["r"], one["l"]) for one in model.ep_info_buffer]
        assert episodes
        statistics = normalized.obs_rms.mean, normalized.ret_rms.var, loaded.obs_rms.var
        pairs.append([weights(model), episodes, statistics])
    assert_same(pairs[0], pairs[1])


@pytest.mark.parametrize(("n_envs", "direct"), WAYS)
def test_eval_callback_finds_the_same(
    opened: Make, tmp_path: Path, n_envs: int, direct: str
) -> None:
    found = []
    ours = local("cartpole", n_envs), local("cartpole", 1)
    theirs = [opened("cartpole", number, direct=direct) for number in (n_envs, 1)]
    for number, (envs, other) in enumerate([ours, theirs]):
        other.seed(3)
        log = tmp_path / str(number)
        callback = EvalCallback(
            VecMonitor(other), eval_freq=20, log_path=str(log), n_eval_episodes=3, verbose=0
        )
        PPO("MlpPolicy", VecMonitor(envs), n_steps=32, batch_size=32, seed=7).learn(100, callback)
        results = np.load(log / "evaluations.npz")
        found.append({name: results[name] for name in results.files})
    assert_same(found[0], found[1])
    assert len(found[0]["results"])


@pytest.mark.parametrize(("n_envs", "direct"), WAYS)
def test_a_saved_model_goes_on_the_same(
    opened: Make, tmp_path: Path, n_envs: int, direct: str
) -> None:
    found = []
    for envs in (local("cartpole", n_envs), opened("cartpole", n_envs, direct=direct)):
        ppo(envs).save(tmp_path / "model")
        loaded = PPO.load(tmp_path / "model", envs)
        envs.seed(11)
        loaded.set_random_seed(5)
        loaded.learn(100)
        found.append(weights(loaded))
    assert_same(found[0], found[1])


def test_a_vector_class_of_the_environments_own_is_used_as_well(opened: Make) -> None:
    envs = opened("cartpole", 8, env_kwargs={})
    for seed in (None, 3):
        if seed is not None:
            envs.seed(seed)
        before, ends = envs.reset(), 0
        for _ in range(60):
            after, rewards, dones, infos = envs.step(np.ones(8, np.int64))
            assert (rewards.dtype, rewards.tolist()) == (np.float32, [1.0] * 8)
            for i, info in enumerate(infos):
                assert ("terminal_observation" in info) == dones[i]
                assert (abs(after[i]) <= 0.05).all() or not dones[i]
                last = info.get("terminal_observation", after[i])
                assert last[0] == pytest.approx(before[i, 0] + 0.02 * before[i, 1], abs=1e-6)
            before, ends = after, ends + dones.sum()
        assert ends
    assert ppo(envs).num_timesteps


# --- what a VecEnv does ---------------------------------------------------------------------------


def in_order(value: Any) -> Any:
    """Return the value with plain dicts whose keys are sorted: a vector joins them in its order."""
    if isinstance(value, dict):
        return {key: in_order(value[key]) for key in sorted(value)}
    return [in_order(one) for one in value] if isinstance(value, list) else value


def assert_same_up_to_order(here: Any, there: Any, path: str = "value") -> None:
    assert_same(in_order(here), in_order(there), path)


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("address", ["cartpole", "reach", "mixed", "timed", "choices"])
def test_steps_and_infos_are_those_of_a_dummy_vec_env(
    opened: Make, address: str, sessions: int
) -> None:
    here, there = local(address), opened(address, sessions=sessions)
    assert there.observation_space == here.observation_space
    assert there.action_space == here.action_space
    here.seed(4)
    there.seed(4)
    assert_same_up_to_order(here.reset(), there.reset())
    assert_same_up_to_order(here.reset_infos, there.reset_infos)
    here.action_space.seed(6)
    ends = 0
    for step in range(60):
        actions: Any = [here.action_space.sample() for _ in range(3)]
        if address != "choices":
            actions = np.array(actions)
        ours, theirs = here.step(actions), there.step(actions)
        assert_same_up_to_order([*ours], [*theirs], f"step {step}")
        assert_same_up_to_order(here.reset_infos, there.reset_infos)
        ends += int(ours[2].sum())
    assert ends


def test_a_reset_without_infos_replaces_those_of_an_earlier_one(opened: Make) -> None:
    envs = opened("cartpole")
    envs.reset()
    envs.reset_infos = [{"old": True} for _ in range(3)]
    dones = np.zeros(3, bool)
    while not dones.any():  # the poles fall soon
        dones = envs.step(np.zeros(3, int))[2]
    assert envs.reset_infos == [{} if done else {"old": True} for done in dones]


def test_a_vec_env_is_made_with_a_seed(opened: Make) -> None:
    here = local("mixed")
    here.seed(21)
    assert_same(here.reset(), opened("mixed", seed=21).reset())


def test_seeds_and_options_are_used_once(opened: Make) -> None:
    here, there = local("mixed"), opened("mixed")
    for envs in (here, there):
        envs.seed(2)
        envs.set_options({"a": 1})
    for _ in range(3):
        assert_same(here.reset(), there.reset())
        assert_same_up_to_order(here.reset_infos, there.reset_infos)
    assert there.reset_infos[0]["options"] is None


def test_options_hold_arrays(opened: Make) -> None:
    here, there = local("mixed"), opened("mixed")
    start = np.arange(3)
    for envs in (here, there):
        envs.seed(2)
        envs.set_options([{"start": start}, {"start": start + 1}, {"start": start.copy()}])
    assert_same(here.reset(), there.reset())
    assert_same_up_to_order(here.reset_infos, there.reset_infos)


def test_each_environment_has_options_of_its_own(opened: Make) -> None:
    here, there = local("mixed"), opened("mixed", sessions=2)
    for _ in range(2):
        for envs in (here, there):
            envs.seed(2)
            envs.set_options([{"a": 1}, {"b": 2}, {"a": 1}])
        assert_same(here.reset(), there.reset())
        assert_same_up_to_order(here.reset_infos, there.reset_infos)


@pytest.mark.parametrize("options", [{"reset_mask": 1}, [{}, {"reset_mask": np.ones(3, bool)}, {}]])
def test_an_option_that_a_vector_takes_for_itself_is_an_error(opened: Make, options: Any) -> None:
    envs = opened("mixed", seed=2)
    with pytest.raises(ConfigurationError, match="cannot have an option reset_mask"):
        envs.set_options(options)
    assert_same(envs.reset(), opened("mixed", seed=2).reset())


def test_seeds_that_are_no_sequence_reach_their_environments(opened: Make) -> None:
    here, there = local("mixed"), opened("mixed")
    for envs in (here, there):
        envs._seeds = [9, 3, 3]
    assert_same(here.reset(), there.reset())


INDICES: list[Any] = [None, 1, [2, 0], range(2), [], [-1], [1, 1]]


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("indices", INDICES, ids=str)
def test_attributes_of_some_environments(opened: Make, indices: Any, sessions: int) -> None:
    here, there = local("mixed"), opened("mixed", sessions=sessions)
    for number in range(3):
        for envs in (here, there):
            envs.set_attr("level", number + 5, indices=number)
    assert there.get_attr("level") == [5, 6, 7]
    assert there.get_attr("level", indices) == here.get_attr("level", indices)
    called = there.env_method("scaled", 3, indices=indices, plus=1)
    assert called == here.env_method("scaled", 3, indices=indices, plus=1)
    assert there.get_attr("calls") == here.get_attr("calls")  # the others were not called
    there.set_attr("level", [1], indices)
    here.set_attr("level", [1], indices)
    assert there.get_attr("level") == here.get_attr("level")


def test_an_attribute_is_set_behind_the_wrappers_that_lack_it(opened: Make) -> None:
    there = opened("timed")
    there.set_attr("level", 8, indices=2)
    assert there.env_method("scaled", 1) == [1, 1, 8]


def test_a_method_that_is_read_can_be_called_and_has_attr_calls_none(opened: Make) -> None:
    there = opened("mixed")
    assert there.has_attr("scaled")
    assert there.has_attr("level")
    methods = there.get_attr("scaled", [2])
    assert there.get_attr("calls") == [0, 0, 0]
    assert methods[0](4) == 4
    assert there.get_attr("calls") == [0, 0, 1]


def test_what_is_not_there_or_not_exposed_is_no_attribute(opened: Make) -> None:
    there = opened("mixed")
    assert not there.has_attr("compute_reward")  # exposed, but this environment has none
    assert not there.has_attr("_observe")
    with pytest.raises(AttributeDenied, match="--expose _observe"):
        there.get_attr("_observe")
    with pytest.raises(EnvironmentFailed, match="compute_reward"):
        there.get_attr("compute_reward")
    with pytest.raises(IndexError):
        there.get_attr("level", 3)


def test_the_spec_and_the_spaces_are_those_of_the_served_environment(opened: Make) -> None:
    there = opened("cartpole")
    assert [one.id for one in there.get_attr("spec", [0, 1])] == ["CartPole-v1"] * 2
    assert there.get_attr("action_space") == [there.action_space] * 3
    assert there.has_attr("render_mode")
    assert there.get_attr("render_mode") == [None] * 3


def test_generators_are_read_and_set(opened: Make) -> None:
    there = opened("mixed", seed=1)
    there.reset()
    there.set_attr("np_random", np.random.default_rng(5), indices=1)
    expected = np.random.default_rng(5).random()
    assert there.get_attr("np_random", 1)[0].random() == expected
    assert there.get_attr("np_random", 0)[0].random() != expected


@pytest.mark.parametrize("sessions", [1, 2])
def test_draws_from_a_generator_that_is_read_reach_the_environment(
    opened: Make, sessions: int
) -> None:
    def drawn(envs: Any) -> Iterator[Any]:
        envs.seed(1)
        envs.reset()
        kept = envs.get_attr("np_random")
        for _ in range(2):
            yield [one.random() for one in kept], [g.random() for g in envs.get_attr("np_random")]
            yield envs.get_attr("np_random", [2, 0])[0].random(), kept[2].random()
            yield envs.step([1] * 3)[:2]
        envs.set_attr("np_random", np.random.default_rng(5), indices=1)
        yield [one.random() for one in kept], envs.get_attr("np_random", 1)[0].random()
        yield envs.step([1] * 3)[:2]

    for here, there in zip(
        drawn(local("mixed")), drawn(opened("mixed", sessions=sessions)), strict=True
    ):
        assert_same(there, here)


def test_wrappers_at_the_env_agent_are_found(opened: Make) -> None:
    there = opened("timed")
    wrappers = gymnasium.wrappers
    assert there.env_is_wrapped(wrappers.TimeLimit) == [True] * 3
    assert there.env_is_wrapped(gymnasium.Wrapper, [2, 0]) == [True] * 2
    assert there.env_is_wrapped(wrappers.ClipAction) == [False] * 3


def test_pictures(opened: Make) -> None:
    there = opened("mixed", render_mode="rgb_array")
    there.set_attr("level", 9, indices=1)
    assert [int(one[0, 0, 0]) for one in there.get_images()] == [1, 9, 1]
    tiled = there.render()
    assert tiled is not None
    assert tiled.shape == (4, 6, 3)
    assert opened("mixed", render_mode="ansi").env_method("render", indices=[1]) == ["x"]


def test_no_pictures_without_a_render_mode(opened: Make) -> None:
    with pytest.warns(UserWarning, match="rgb_array"):
        assert opened("mixed").get_images() == [None] * 3


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda envs: pickle.loads(pickle.dumps(envs))])
def test_a_copy_has_sessions_of_its_own(opened: Make, clone: Any) -> None:
    there = opened("mixed", 2)
    there.reset()
    other = clone(there)
    try:
        with pytest.raises(ResetNeeded):
            other.step(np.zeros(2, np.int64))
        other.seed(1)
        there.seed(1)
        assert_same(there.reset(), other.reset())
        there.set_attr("level", 4)
        assert other.get_attr("level") == [1, 1]
    finally:
        other.close()


def test_closing_frees_the_slots_and_refuses_more(opened: Make) -> None:
    there = opened("mixed", SLOTS, sessions=SLOTS)
    with pytest.raises(NoFreeSlot):
        opened("mixed")
    there.close()
    there.close()
    with pytest.raises(EnvironmentClosed):
        there.reset()
    opened("mixed").reset()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (1, None, "the reward None, which is not an array of 3 numbers"),
        (1, ["much"] * 3, "the reward ['much', 'much', 'much'], which"),
        (1, np.ones(4), "the reward array([1., 1., 1., 1.]), which"),
        (1, np.array(["much"] * 3), "'<U4'), which is not an array of 3 numbers"),
        (2, None, "None as terminated, which is not an array of 3 bools"),
        (3, "no", "'no' as truncated, which is not an array of 3 bools"),
    ],
)
def test_a_wrong_reward_or_flag_is_the_environments_fault(
    opened: Make, monkeypatch: pytest.MonkeyPatch, place: int, value: Any, said: str
) -> None:
    envs = opened("cartpole")
    step = [envs.reset(), np.ones(3), np.zeros(3, bool), np.zeros(3, bool), {}]
    step[place] = value
    monkeypatch.setattr(ProxyVectorEnv, "step_wait", lambda _: tuple(step))
    with pytest.raises(EnvironmentFailed) as caught:
        envs.step_wait()
    assert str(caught.value).startswith(
        "The environment at 'sb3-cartpole' failed in step(): it returned "
    )
    assert said in str(caught.value)


def test_a_step_is_awaited_once_and_abandoned_by_reset(opened: Make) -> None:
    there = opened("mixed", seed=1)
    first = there.reset()
    there.step_async(np.zeros(3, np.int64))
    there.seed(1)
    assert_same(first, there.reset())
    with pytest.raises(MoveError):
        there.step_wait()
    with pytest.raises(BatchSizeError):
        there.step(np.zeros(2, np.int64))


def test_env_agents_without_vectors_can_be_trained_on() -> None:
    with programs() as started:
        _, url = started.broker()
        with serving(RightAgent, url):
            envs = ProxyVecEnv("corridor", 3, url, seed=1, on_lost="truncate", wait_s=30)
            model = PPO("MlpPolicy", envs, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
            model.learn(48)
            assert model.num_timesteps == 48
            assert envs.env_is_wrapped(gymnasium.wrappers.TimeLimit) == [False] * 3
            assert not envs.has_attr("action_masks")
            envs.close()


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ({"num_envs": 8}, "is n_envs"),
        ({"autoreset_mode": "NextStep"}, "is always SameStep"),
        ({"exact_infos": False}, "are always exact"),
    ],
)
def test_an_option_of_another_vector_is_an_error_that_says_what_to_do(
    option: dict[str, Any], advice: str
) -> None:
    with pytest.raises(TypeError, match=f"ProxyVecEnv has no option .* {advice}"):
        ProxyVecEnv("cartpole", **option)
