"""Tabular Q-learning (Watkins, 1989) for Discrete observations and Discrete actions.

    Q(s, a) += rate · (reward + discount · max Q(s', ·) - Q(s, a))

After a terminal step the maximum is 0. After a truncated step it is not, because the episode could
have gone on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray


class QLearner:
    """A learner that estimates the value of each action in each state.

    It takes a random action with probability `epsilon`, else one with the highest value. Epsilon
    decays from 1 to `final_epsilon` exponentially. If the info has an `action_mask` (int8
    (n_actions,), 1 for useful actions, as in Taxi), only those actions are considered.

    Its actions depend only on `seed` and on what the environment returns.

    Args:
        observation_space: the environment's observation space, with any `start`.
        action_space: the environment's action space, with any `start`.
        seed: seeds the learner's own generator.
        rate_decay: the learning rate is `visits ** -rate_decay`, where `visits` counts the visits
            to the state. With 0.3, the first update counts in full, which suits deterministic
            environments, and later ones average over hundreds of visits, which suits random ones.
        discount: the discount factor, in [0, 1].
        exploration_steps: the time constant of epsilon, in steps.
        final_epsilon: the limit of epsilon, in [0, 1].

    Attributes:
        values: Q, float64 (n_states, n_actions).
        visits: the number of actions taken in each state, int64 (n_states,).
        steps: the number of steps learned from.
    """

    def __init__(
        self,
        observation_space: Discrete[Any],
        action_space: Discrete[Any],
        *,
        seed: int | None = None,
        rate_decay: float = 0.3,
        discount: float = 0.99,
        exploration_steps: float = 3_000,
        final_epsilon: float = 0.01,
    ) -> None:
        self.values = np.zeros((int(observation_space.n), int(action_space.n)))
        self.visits = np.zeros(int(observation_space.n), np.int64)
        self.steps = 0
        self.rate_decay, self.discount = rate_decay, discount
        self.exploration_steps, self.final_epsilon = exploration_steps, final_epsilon
        self._first_state, self._first_action = (
            int(observation_space.start),
            int(action_space.start),
        )
        self._all_actions = np.arange(self.values.shape[1])
        self._rng = np.random.default_rng(seed)

    @property
    def epsilon(self) -> float:
        """The present probability of a random action."""
        decay = math.exp(-self.steps / self.exploration_steps)
        return self.final_epsilon + (1 - self.final_epsilon) * decay

    def act(self, observation: Any, info: Mapping[str, Any]) -> int:
        """Return the action to take after `observation`."""
        if self._rng.random() >= self.epsilon:
            return self.best(observation, info)
        return self._one_of(self._allowed(info))

    def best(self, observation: Any, info: Mapping[str, Any]) -> int:
        """Return an action with the highest value."""
        actions = self._allowed(info)
        values = self.values[int(observation) - self._first_state, actions]
        # Break ties at random: always the first action might never leave the start.
        return self._one_of(actions[values == values.max()])

    def _one_of(self, actions: NDArray[np.intp]) -> int:
        return self._first_action + int(actions[self._rng.integers(actions.size)])

    def learn(
        self,
        observation: Any,
        action: int,
        reward: float,
        next_observation: Any,
        terminated: bool,
        truncated: bool,
        info: Mapping[str, Any],
    ) -> None:
        """Learn from one step. `info` belongs to `next_observation`."""
        state, column = int(observation) - self._first_state, action - self._first_action
        target = float(reward)
        if not terminated:
            next_values = self.values[int(next_observation) - self._first_state]
            target += self.discount * float(next_values[self._allowed(info)].max())
        self.visits[state] += 1
        rate = float(self.visits[state]) ** -self.rate_decay
        self.values[state, column] += rate * (target - self.values[state, column])
        self.steps += 1

    def state(self) -> dict[str, NDArray[Any]]:
        """Return `values`, `visits` and `steps`, in fresh memory."""
        return {
            "values": self.values.copy(),
            "visits": self.visits.copy(),
            "steps": np.array(self.steps),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` of a learner of the same size returned."""
        self.values, self.visits = state["values"].copy(), state["visits"].copy()
        self.steps = int(state["steps"])

    def _allowed(self, info: Mapping[str, Any]) -> NDArray[np.intp]:
        mask = info.get("action_mask")
        if isinstance(mask, np.ndarray) and mask.shape == self._all_actions.shape and mask.any():
            return np.flatnonzero(mask)
        return self._all_actions
