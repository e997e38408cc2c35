"""The collector of examples/tianshou_collector.py sees the same remotely and locally."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import pytest

from gymwire import ProxyEnv
from tests.sameness import assert_same

REASON = "Tianshou is not installed; .ci/groups torch installs it"
with warnings.catch_warnings(action="ignore"):  # its own, at import
    pytest.importorskip("tianshou", reason=REASON, exc_type=ImportError)
    from examples.tianshou_collector import collect


pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Tianshou's own
    pytest.mark.timeout(600),  # imports take long on a busy machine
]


def columns(buffer: Any) -> dict[str, Any]:
    names = ["obs", "act", "rew", "terminated", "truncated", "obs_next"]
    return {name: getattr(buffer, name)[: len(buffer)] for name in names}


@pytest.mark.parametrize("direct", ["never", "always"])
def test_remote_and_local_environments_fill_the_same_buffer(
    serve: Callable[..., None], direct: str
) -> None:
    serve("tianshou-cartpole", "CartPole-v1")
    here = collect([partial(gymnasium.make, "CartPole-v1")] * 3, 200)
    there = collect([partial(ProxyEnv, "tianshou-cartpole", direct=direct)] * 3, 200)
    assert_same(columns(here), columns(there), "buffer")
    assert here.done.any()
