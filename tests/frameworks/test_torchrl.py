"""The collector of examples/torchrl_collector.py sees the same on remote and local environments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gymwire import ProxyEnv, ProxyVectorEnv

REASON = "TorchRL is not installed; .ci/groups torch installs it"
with warnings.catch_warnings(action="ignore"):  # its own, at import
    pytest.importorskip("torchrl", reason=REASON, exc_type=ImportError)
    from examples.torchrl_collector import collect


pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # TorchRL's own
    pytest.mark.timeout(600),  # imports take long on a busy machine
]


def assert_same_batches(here: list[Any], there: list[Any]) -> None:
    assert len(here) == len(there) > 1
    for ours, theirs in zip(here, there, strict=True):
        assert sorted(map(str, ours.keys(True, True))) == sorted(map(str, theirs.keys(True, True)))
        assert bool((ours == theirs).all())
    assert any(bool(batch["next", "done"].any()) for batch in here)


@pytest.mark.parametrize("direct", ["never", "always"])
def test_one_environment(serve: Callable[..., None], direct: str) -> None:
    serve("torchrl-cartpole", "CartPole-v1")
    here = collect(gymnasium.make("CartPole-v1"), 192)
    assert_same_batches(here, collect(ProxyEnv("torchrl-cartpole", direct=direct), 192))


def test_a_vector_in_the_mode_same_step(serve: Callable[..., None]) -> None:
    serve("torchrl-cartpole", "CartPole-v1")
    mode = AutoresetMode.SAME_STEP
    local = SyncVectorEnv([partial(gymnasium.make, "CartPole-v1")] * 4, autoreset_mode=mode)
    kwargs = {"vectorization_mode": "sync"}
    remote = ProxyVectorEnv("torchrl-cartpole", 4, autoreset_mode=mode, env_kwargs=kwargs)
    assert_same_batches(collect(local, 256), collect(remote, 256))


def test_other_autoreset_modes_are_refused_by_torchrl(serve: Callable[..., None]) -> None:
    serve("torchrl-cartpole", "CartPole-v1")
    with (
        ProxyVectorEnv("torchrl-cartpole", 2) as envs,
        pytest.raises(RuntimeError, match="SAME_STEP or DISABLED"),
    ):
        collect(envs, 64)
