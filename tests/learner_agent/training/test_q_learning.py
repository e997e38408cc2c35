"""Tabular Q-learning: its updates, its exploration, and its results."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete

from gymwire.learner_agent.training.q_learning import QLearner
from gymwire.learner_agent.training.task import TrainingResult, TrainingTask

# Gymnasium 1.4 knows Taxi as v4 alone, earlier ones as v3.
TAXI = "Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3"


def learner(**kwargs: Any) -> QLearner:
    return QLearner(Discrete(3), Discrete(2), **kwargs)


def trained(env_id: str, steps: int, seed: int = 0) -> tuple[QLearner, TrainingResult]:
    env = gymnasium.make(env_id)
    assert isinstance(env.observation_space, Discrete)
    assert isinstance(env.action_space, Discrete)
    q = QLearner(env.observation_space, env.action_space, seed=seed)
    return q, TrainingTask(env, q, steps, seed).run()


def test_the_first_update_counts_in_full_and_later_ones_less() -> None:
    q = learner(rate_decay=0.5)
    q.learn(0, 1, 4.0, 1, True, False, {})
    assert q.values[0, 1] == 4.0
    q.learn(0, 1, 0.0, 1, True, False, {})
    assert q.values[0, 1] == pytest.approx(4.0 - 4.0 / 2**0.5)


def test_a_terminal_step_has_no_future_value() -> None:
    q = learner()
    q.values[1] = 10.0
    q.learn(0, 0, 1.0, 1, True, False, {})
    assert q.values[0, 0] == 1.0


def test_a_truncated_step_has_a_future_value() -> None:
    q = learner(discount=0.5)
    q.values[1] = 10.0
    q.learn(0, 0, 1.0, 1, False, True, {})
    assert q.values[0, 0] == 6.0


def test_the_maximum_over_the_next_state_considers_only_masked_actions() -> None:
    q = learner(discount=1.0)
    q.values[1] = [5.0, 9.0]
    q.learn(0, 0, 0.0, 1, False, False, {"action_mask": np.array([1, 0], np.int8)})
    assert q.values[0, 0] == 5.0


def test_masked_actions_are_never_taken() -> None:
    q = learner(seed=0)
    q.values[0] = [9.0, 0.0]
    info = {"action_mask": np.array([0, 1], np.int8)}
    assert {q.act(0, info) for _ in range(50)} == {1}
    q.steps = 10**9
    assert {q.act(0, info) for _ in range(50)} == {1}


@pytest.mark.parametrize("mask", [np.zeros(2, np.int8), np.ones(3, np.int8), "both", None])
def test_an_unusable_mask_is_ignored(mask: Any) -> None:
    q = learner(seed=0)
    assert {q.act(0, {"action_mask": mask}) for _ in range(50)} == {0, 1}


def test_the_start_of_the_spaces_is_respected() -> None:
    q = QLearner(Discrete(2, start=-4), Discrete(2, start=7), seed=0)
    assert {q.act(-3, {}) for _ in range(50)} == {7, 8}
    q.learn(-3, 8, 1.0, -4, True, False, {})
    assert q.values.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_epsilon_decays_from_1_to_its_limit() -> None:
    q = learner(final_epsilon=0.02, exploration_steps=100)
    assert q.epsilon == 1.0
    q.steps = 10**6
    assert q.epsilon == pytest.approx(0.02)


def test_ties_are_broken_at_random() -> None:
    q = learner(seed=0, final_epsilon=0.0)
    q.steps = 10**9
    assert {q.act(0, {}) for _ in range(50)} == {0, 1}


def test_it_learns_frozen_lake() -> None:
    _, result = trained("FrozenLake-v1", 30_000)
    n = result.episode_returns.size // 10
    assert result.episode_returns[:n].mean() < 0.1
    assert result.episode_returns[-n:].mean() > 0.5  # the best possible is about 0.74


def test_it_learns_taxi() -> None:
    _, result = trained(TAXI, 40_000)
    n = result.episode_returns.size // 10
    assert result.episode_returns[-n:].mean() > 5  # the best possible is about 8
    assert result.ended_best[-n:].mean() > 0.95


def test_the_same_seed_gives_the_same_result_bit_for_bit() -> None:
    (one, one_result), (other, other_result) = (trained("FrozenLake-v1", 3_000) for _ in range(2))
    assert one.values.tobytes() == other.values.tobytes()
    assert one_result.episode_lengths.tolist() == other_result.episode_lengths.tolist()


def test_a_restored_learner_continues_where_the_saved_one_stopped() -> None:
    one, _ = trained("FrozenLake-v1", 2_000)
    other = QLearner(Discrete(16), Discrete(4))
    other.restore(one.state())
    assert other.values.tobytes() == one.values.tobytes()
    assert (other.steps, other.epsilon) == (2_000, one.epsilon)
