"""Vectors of other libraries as Gymnasium's: their attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from structlog.testing import capture_logs

from gymwire.env_agent.adapters import vectors
from gymwire.env_agent.factory import Factory
from gymwire.protocol.errors import ConfigurationError
from tests.offered_vectors import OldPool, Pool


@pytest.mark.parametrize("kind", [Pool, OldPool])
def test_attributes_are_read_and_set_in_the_vector(kind: type[Pool] | type[OldPool]) -> None:
    pool = kind(2)
    adapted = vectors.adapt(pool, "pool")
    assert adapted is not pool
    adapted.lives = 3  # type: ignore[attr-defined]
    assert pool.lives == 3  # type: ignore[union-attr]
    pool.lives = 2  # type: ignore[union-attr]
    assert adapted.lives == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Pool, OldPool])
def test_the_generator_is_that_of_the_vector(kind: type[Pool] | type[OldPool]) -> None:
    pool = kind(2)
    adapted = vectors.adapt(pool, "pool")
    pool.np_random = generator = np.random.default_rng(3)
    assert adapted.np_random is generator
    assert adapted.np_random_seed == pool.np_random_seed
    adapted.np_random = other = np.random.default_rng(4)
    assert pool.np_random is other


def test_a_second_vector_with_the_same_seed_is_warned_of_once() -> None:
    class Seeded(OldPool):
        def __init__(self, num_envs: int, seed: int) -> None:
            super().__init__(num_envs)
            self.given = seed

        @property
        def config(self) -> dict[str, Any]:
            return {**super().config, "seed": self.given}

    def make(num_envs: int, seed: int) -> Seeded:
        return Seeded(num_envs, seed)

    factory = Factory("seeded", make)
    with capture_logs() as log:
        factory.make_vector(1, AutoresetMode.NEXT_STEP, None, {"seed": 42}).close()  # and dropped
        kept = [
            factory.make_vector(2, AutoresetMode.NEXT_STEP, None, {"seed": seed})
            for seed in (42, 43, 43, 43, 44, 44)  # a learner may choose the seeds
        ]
    assert len(kept) == 6
    warned = [(one["env"], one["seed"]) for one in log if "the same seed" in one["event"]]
    assert warned == [("seeded", 43)]


class AsyncPool(Pool):
    """A vector that awaits in a step."""

    async def step(self, actions: Any, env_id: Any = None) -> Any:  # type: ignore[override]
        """Step all."""
        return super().step(actions, env_id)


def test_an_asynchronous_vector_is_refused() -> None:
    text = r"AsyncPool with `async def` .* cannot be async.* Remove `async` from step, or let"
    with pytest.raises(ConfigurationError, match=text):
        vectors.adapt(AsyncPool(2), "pool")
