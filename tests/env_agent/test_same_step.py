"""CartPole's own vector with SameStep: dynamics, episodes and infos are those of CartPole."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gymwire.env_agent.adapters.same_step import SameStepCartPole
from gymwire.env_agent.factory import Factory
from tests.sameness import assert_same

SAME = AutoresetMode.SAME_STEP


def made(num_envs: int, mode: AutoresetMode = SAME, **kwargs: Any) -> Any:
    return Factory("CartPole-v1").make_vector(num_envs, mode, None, kwargs)


def test_only_this_mode_takes_the_class_and_the_spec_stays_the_registered_one() -> None:
    vector = made(3)
    assert type(vector) is SameStepCartPole
    assert vector.metadata["autoreset_mode"] is SAME
    registered = gymnasium.spec("CartPole-v1").vector_entry_point
    assert vector.spec is not None
    assert vector.spec.vector_entry_point == registered
    assert type(made(3, AutoresetMode.NEXT_STEP)) is not SameStepCartPole
    assert isinstance(made(3, AutoresetMode.DISABLED), SyncVectorEnv)
    assert isinstance(made(3, vectorization_mode="sync"), SyncVectorEnv)


@pytest.mark.parametrize("num_envs", [1, 3, 17])
@pytest.mark.parametrize("limit", [7, 500])
def test_each_environment_is_a_cart_pole_that_starts_again_in_its_last_step(
    num_envs: int, limit: int
) -> None:
    vector: Any = made(num_envs, max_episode_steps=limit)
    single: Any = [gymnasium.make("CartPole-v1", max_episode_steps=limit) for _ in range(num_envs)]
    first, _ = vector.reset(seed=4)
    assert first.flags.c_contiguous
    for i, env in enumerate(single):
        env.reset()
        env.unwrapped.state = vector.state[:, i].copy()
    draw, ends = np.random.default_rng(5), 0
    for _ in range(120):
        actions = draw.integers(0, 2, num_envs)
        observations, rewards, terminated, truncated, infos = vector.step(actions)
        assert observations.dtype == first.dtype == np.float32
        assert observations.flags.c_contiguous
        for i, env in enumerate(single):
            observation, reward, *done, _ = env.step(actions[i])
            assert (rewards[i], terminated[i], truncated[i]) == (reward, *done)
            if any(done):
                ends += 1
                assert infos["_final_obs"][i]
                np.testing.assert_allclose(infos["final_obs"][i], observation, rtol=1e-6)
                assert (abs(observations[i]) <= 0.05).all()
                env.reset()
                env.unwrapped.state = vector.state[:, i].copy()
            else:
                assert not (infos and infos["_final_obs"][i])
                np.testing.assert_allclose(observations[i], observation, rtol=1e-6)
    assert ends > num_envs


def test_infos_have_the_form_of_those_of_a_sync_vector() -> None:
    own, sync = (
        made(3, max_episode_steps=4),
        made(3, max_episode_steps=4, vectorization_mode="sync"),
    )
    for vector in (own, sync):
        vector.reset(seed=1)
    for _ in range(9):
        ours, theirs = (vector.step(np.array([0, 1, 0]))[4] for vector in (own, sync))
        for infos in (ours, theirs):
            if infos:
                infos["final_obs"] = [one.shape for one in infos["final_obs"]]
        assert_same(ours, theirs)


def test_seeded_vectors_are_the_same_and_initial_bounds_count() -> None:
    vectors = made(4), made(4)
    starts = [one.reset(seed=8, options={"low": 0.01, "high": 0.02})[0] for one in vectors]
    assert_same(*starts)
    assert ((starts[0] >= 0.01) & (starts[0] <= 0.02)).all()
    actions = np.ones(4, np.int64)
    for _ in range(40):
        a, b = (one.step(actions) for one in vectors)
        assert_same(a, b)
        if a[4]:
            assert ((a[0] >= 0.01) & (a[0] <= 0.02)).all()


def test_a_mask_is_refused_instead_of_ignored() -> None:
    vector = made(2)
    vector.reset(seed=1)
    with pytest.raises(ValueError, match="vectorization_mode"):
        vector.reset(options={"reset_mask": np.array([True, False])})
