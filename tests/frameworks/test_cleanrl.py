"""The PPO of examples/cleanrl_ppo.py ends with the same weights on remote and local vectors."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import pytest

from gymwire import ProxyVectorEnv
from tests.sameness import assert_same
from tests.sampling import thorough

REASON = "PyTorch is not installed; ./run pytest tests/frameworks installs it"
pytestmark = pytest.mark.skipif(find_spec("torch") is None, reason=REASON)

if TYPE_CHECKING:
    from examples import cleanrl_ppo


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Import PyTorch where these tests run, and not in each process that collects them."""
    global cleanrl_ppo
    import torch

    from examples import cleanrl_ppo

    torch.set_num_threads(1)


@pytest.mark.parametrize("direct", ["never", thorough("always")])
@pytest.mark.parametrize(
    ("n_envs", "sessions", "mode"),
    [(1, 1, "sync"), (4, 1, "sync"), (4, 4, "sync"), (4, 1, "vector_entry_point")],
)
def test_remote_and_local_training_end_with_the_same_weights(
    serve: Callable[..., None], n_envs: int, sessions: int, mode: str, direct: str
) -> None:
    serve("cleanrl-cartpole", "CartPole-v1")
    local = gymnasium.make_vec("CartPole-v1", n_envs, vectorization_mode=mode)
    options: dict[str, Any] = {"env_kwargs": {"vectorization_mode": mode}}
    with ProxyVectorEnv(
        "cleanrl-cartpole", n_envs, sessions=sessions, direct=direct, **options
    ) as remote:
        here, there = cleanrl_ppo.train(local, 3), cleanrl_ppo.train(remote, 3)
    assert_same(here, there, "weights")
    assert all(np.isfinite(value).all() for value in here.values())


def test_it_learns(capsys: pytest.CaptureFixture[str]) -> None:
    cleanrl_ppo.train(gymnasium.make_vec("CartPole-v1", 8), 20)
    means = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert means[-1] > 2 * means[0]
