"""Stable-Baselines3 trains several remote agents through SuperSuit as it trains local ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from gymwire import ProxyParallelEnv
from tests.frameworks.agent_envs import Pursuit
from tests.sameness import assert_same

REASON = "SuperSuit is not installed; .ci/groups torch installs it"
with warnings.catch_warnings(action="ignore"):  # its own, at import
    pytest.importorskip("supersuit", reason=REASON, exc_type=ImportError)
    import supersuit
    from stable_baselines3 import PPO
    from stable_baselines3.common.utils import set_random_seed


pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # SuperSuit's own
    pytest.mark.timeout(600),  # imports take long on a busy machine
]


def train(env: Any, copies: int) -> dict[str, Any]:
    vector = supersuit.pettingzoo_env_to_vec_env_v1(env)
    vector = supersuit.concat_vec_envs_v1(vector, copies, base_class="stable_baselines3")
    assert vector.num_envs == 2 * copies
    set_random_seed(7)  # not PPO's argument: SuperSuit's vector has no `seed`
    vector.venv.reset(seed=3)
    model = PPO("MlpPolicy", vector, n_steps=32, batch_size=32, n_epochs=2).learn(200)
    vector.close()
    return {name: value.numpy() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize("copies", [1, 2])
def test_remote_and_local_training_end_with_the_same_weights(
    serve: Callable[..., None], copies: int
) -> None:
    serve("supersuit-game", "tests.frameworks.agent_envs:Pursuit")
    here = train(Pursuit(), copies)
    assert_same(here, train(ProxyParallelEnv("supersuit-game"), copies), "weights")
