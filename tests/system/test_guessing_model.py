"""The example of a language model that plays many episodes at once."""

from __future__ import annotations

import pytest

from tests.processes import Programs
from tests.sampling import thorough

pytest.importorskip("anyio")
pytest.importorskip("greenlet")

import anyio

from examples.guessing_model import Model, play

EPISODES = 256


@pytest.mark.parametrize("backend", ["asyncio", thorough("trio")])
def test_a_model_plays_256_episodes_at_once(
    programs: Programs, broker_url: str, backend: str
) -> None:
    pytest.importorskip(backend)
    address = f"guess-{backend}"
    service = ("--env", "examples.guessing_model:Guess", "--address", address)
    programs.env_agent(broker_url, *service, "--max-sessions", str(EPISODES))
    model = Model()
    returns = anyio.run(play, address, broker_url, EPISODES, model, backend=backend)
    assert returns == [1.0] * EPISODES  # halving 1,000 numbers takes 10 guesses at most
    assert max(model.batches) > 1
    assert sum(model.batches) > EPISODES
