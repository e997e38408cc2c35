"""The PPO of examples/skrl_ppo.py ends with the same weights on remote and local vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import gymnasium
import pytest

from gymwire import ProxyVectorEnv
from tests.sameness import assert_same

REASON = "skrl is not installed; .ci/groups torch installs it"
with warnings.catch_warnings(action="ignore"):  # its own, at import
    pytest.importorskip("skrl", reason=REASON, exc_type=ImportError)
    from examples.skrl_ppo import train


pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # skrl's own
    pytest.mark.timeout(600),  # imports take long on a busy machine
]


@pytest.mark.parametrize("direct", ["never", "always"])
def test_remote_and_local_training_end_with_the_same_weights(
    serve: Callable[..., None], direct: str
) -> None:
    serve("skrl-cartpole", "CartPole-v1")
    here = train(gymnasium.make_vec("CartPole-v1", 4), 70)
    with ProxyVectorEnv("skrl-cartpole", 4, direct=direct) as envs:
        assert_same(here, train(envs, 70), "weights")
