"""Tabular Q-learning (Watkins, 1989), for any Discrete observation and Discrete action.

    Q(s, a) += rate · (reward + discount · max Q(s', ·) - Q(s, a))

with nothing to come after a terminal step. A truncated episode is not over: its last step still
counts what could have come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray


class QLearner:
    """Learns the value of each action in each state, and takes the best one, or a random one.

    With probability `epsilon` an action is random; epsilon falls from 1 towards `final_epsilon`
    by a factor of e every `exploration_steps` steps learnt from. An `action_mask` in
    the info (int8 (n_actions,), 1 for what makes sense, as Taxi gives it) is respected.

    What it does depends only on `seed` and on what the environment returns.

    Args:
        observation_space, action_space: their `start` is respected.
        seed: seeds the learner's own generator.
        rate_decay: how fast the share of each surprise that is learnt falls with the number of
            visits to its state: `visits ** -rate_decay`. 0.3 lets a first surprise count in full,
            which deterministic worlds reward, and averages over hundreds, which slippery ones need.
        discount: what a reward is worth one step later, in [0, 1].
        exploration_steps: the time constant of epsilon, in steps.
        final_epsilon: where epsilon ends, in [0, 1].

    Attributes:
        values: float64 (n_states, n_actions), Q.
        visits: int64 (n_states,), how many actions were taken in each state.
        steps: int, how many steps were learnt from.
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
        """The probability of a random action now."""
        decay = math.exp(-self.steps / self.exploration_steps)
        return self.final_epsilon + (1 - self.final_epsilon) * decay

    def act(self, observation: Any, info: Mapping[str, Any]) -> int:
        """Return the action to take after `observation`, one of the action space."""
        actions = self._allowed(info)
        if self._rng.random() >= self.epsilon:
            values = self.values[int(observation) - self._first_state, actions]
            # Of equal values a random one: always taking the first would never leave the start.
            actions = actions[values == values.max()]
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
        """Learn from one step; `info` belongs to `next_observation`."""
        state, place = int(observation) - self._first_state, action - self._first_action
        target = float(reward)
        if not terminated:
            next_values = self.values[int(next_observation) - self._first_state]
            target += self.discount * float(next_values[self._allowed(info)].max())
        self.visits[state] += 1
        rate = float(self.visits[state]) ** -self.rate_decay
        self.values[state, place] += rate * (target - self.values[state, place])
        self.steps += 1

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was learnt, as fresh arrays: `values`, `visits` and `steps`."""
        return {
            "values": self.values.copy(),
            "visits": self.visits.copy(),
            "steps": np.array(self.steps),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state()` returned, of a learner of the same size."""
        self.values, self.visits = state["values"].copy(), state["visits"].copy()
        self.steps = int(state["steps"])

    def _allowed(self, info: Mapping[str, Any]) -> NDArray[np.intp]:
        mask = info.get("action_mask")
        if isinstance(mask, np.ndarray) and mask.shape == self._all_actions.shape and mask.any():
            return np.flatnonzero(mask)
        return self._all_actions
