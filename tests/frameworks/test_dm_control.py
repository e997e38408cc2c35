"""A task of dm_control's suite, served as it is, equals the local one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from gymwire import ProxyEnv, ProxyVectorEnv
from tests.sameness import assert_same

REASON = "dm_control is not installed; .ci/groups torch installs it"
with warnings.catch_warnings(action="ignore"):  # its own, at import
    pytest.importorskip("dm_control", reason=REASON, exc_type=ImportError)
    from dm_control import suite


os.environ.setdefault("MUJOCO_GL", "disabled")  # no display is needed
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # dm_control's own
    pytest.mark.timeout(600),  # imports take long on a busy machine
]


NAMES = {"domain_name": "cartpole", "task_name": "swingup"}
KWARGS = '{"domain_name": "cartpole", "task_name": "swingup", "task_kwargs": {"time_limit": 1}}'


@pytest.mark.parametrize("direct", ["never", "always"])
def test_an_episode_is_the_same(serve: Callable[..., None], direct: str) -> None:
    serve("dm-swingup", "dm_control.suite:load", "--env-kwargs", KWARGS)
    local = suite.load(**NAMES, task_kwargs={"random": 5, "time_limit": 1})
    with ProxyEnv("dm-swingup", direct=direct) as remote:
        assert isinstance(remote.observation_space, Dict)
        assert isinstance(remote.action_space, Box)
        first, _ = remote.reset(seed=5)
        assert_same(dict(local.reset().observation), first)
        draws = np.random.default_rng(1)
        for _ in range(100):
            action = draws.uniform(-1, 1, 1)
            made = local.step(action)
            observation, reward, terminated, truncated, info = remote.step(action)
            assert_same(dict(made.observation), observation)
            assert (made.reward, made.last(), made.discount) == (
                reward,
                truncated,
                info["discount"],
            )
            assert not terminated
        assert truncated


def test_a_vector_is_stepped_with_one_message(serve: Callable[..., None]) -> None:
    serve("dm-swingup", "dm_control.suite:load", "--env-kwargs", KWARGS)
    locals_ = [suite.load(**NAMES, task_kwargs={"random": 5 + i}) for i in range(2)]
    with ProxyVectorEnv("dm-swingup", 2) as remote:
        first, _ = remote.reset(seed=5)
        for i, local in enumerate(locals_):
            assert_same({k: v[i] for k, v in first.items()}, dict(local.reset().observation))
        for _ in range(20):
            observations, rewards, *_ = remote.step(np.full((2, 1), 0.5))
            for i, local in enumerate(locals_):
                made = local.step(np.full(1, 0.5))
                assert_same({k: v[i] for k, v in observations.items()}, dict(made.observation))
                assert rewards[i] == made.reward
