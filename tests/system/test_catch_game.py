"""The example of a game that owns its loop, played by a learner and without one."""

from __future__ import annotations

import os

import pytest

from examples.catch_game import ACTION_SPACE, OBSERVATION_SPACE, Catch
from gymwire import ProxyEnv
from tests.processes import PATIENCE_S, Programs
from tests.sameness import assert_same


@pytest.fixture
def game(programs: Programs, broker_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a game that runs in a process of its own."""
    monkeypatch.setenv("GYMWIRE_BROKER", broker_url)
    address = f"catch-{os.getpid()}"
    programs.start("examples.catch_game", address)
    return address


def test_a_learner_plays_the_game_as_if_it_were_local(game: str, broker_url: str) -> None:
    local = Catch()
    with ProxyEnv(game, broker_url, render_mode="rgb_array", wait_s=PATIENCE_S) as env:
        assert env.observation_space == OBSERVATION_SPACE
        assert env.action_space == ACTION_SPACE
        env.action_space.seed(3)
        for seed in range(3):
            local.restart(seed)
            assert_same(env.reset(seed=seed), (local.observe(), {}))
            ended = False
            while not ended:
                action = env.action_space.sample()
                reward, ended = local.advance(action)
                assert_same(env.step(action), (local.observe(), reward, ended, False, {}))
            assert_same(env.render(), local.picture())
    with ProxyEnv(game, broker_url, wait_s=PATIENCE_S) as env:  # the game has gone on
        assert env.reset(seed=0)[0] in OBSERVATION_SPACE
