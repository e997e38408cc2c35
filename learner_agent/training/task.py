"""The training task: setup, execute and teardown, on any Gymnasium environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from gymwire.learner_agent.training.learners import Learner

# 20 updates per second look smooth; more would slow the training down.
PROGRESS_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """The progress of a training, for a progress bar or a log line.

    Attributes:
        step: the number of steps done.
        steps: the number of steps to do.
        episodes: the number of episodes that have ended.
        recent_reward: the mean reward per step over the last 1000 steps, or fewer at the start.
        steps_per_s: steps per second since the start.
    """

    step: int
    steps: int
    episodes: int
    recent_reward: float
    steps_per_s: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """The rewards and episodes of a training.

    Attributes:
        rewards: the reward of each step, float64 (n_steps,).
        episode_ends: the number of steps done when each episode ended, int64 (n_episodes,). Later
            steps belong to an unfinished episode.
        seconds: the duration of all steps, resets and learning included.
        reset_info: the info of the first reset. Some environments put the true values in it that
            a learner should find.
    """

    rewards: NDArray[np.float64]
    episode_ends: NDArray[np.int64]
    seconds: float
    reset_info: Mapping[str, Any]

    @property
    def steps_per_s(self) -> float:
        """Steps per second of wall time; 0 without steps."""
        return self.rewards.size / self.seconds if self.seconds > 0 else 0.0

    @property
    def episode_returns(self) -> NDArray[np.float64]:
        """The sum of rewards of each ended episode, float64 (n_episodes,)."""
        return np.diff(np.concatenate([[0.0], np.cumsum(self.rewards)])[self._bounds])

    @property
    def episode_lengths(self) -> NDArray[np.int64]:
        """The steps of each ended episode, int64 (n_episodes,)."""
        return np.diff(self._bounds)

    @property
    def final_rewards(self) -> NDArray[np.float64]:
        """The reward of the last step of each ended episode, float64 (n_episodes,)."""
        return self.rewards[self.episode_ends - 1]

    @property
    def _bounds(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(1, np.int64), self.episode_ends])


class TrainingTask:
    """Trains a learner in an environment for a number of steps.

    `run` calls `setup`, `execute` and, even after an error, `teardown`. After an interrupted run,
    `result` returns what was done until then.

    Args:
        env: any Gymnasium environment. The task closes it.
        learner: the learner, which chooses the actions.
        steps: the number of steps, at least 1.
        seed: seeds the first reset of the environment. Later resets have no seed.
        on_progress: called at most every 0.05 s, and after the last step.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        learner: Learner,
        steps: int,
        seed: int | None = None,
        on_progress: Callable[[TrainingProgress], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        self._env, self._learner, self._seed = env, learner, seed
        self._on_progress, self._clock = on_progress, clock
        self._rewards = np.empty(steps)
        self._episode_ends: list[int] = []
        self._done = 0
        self._seconds = 0.0
        self._observation: Any = None
        self._info: Mapping[str, Any] = {}
        self._reset_info: Mapping[str, Any] = {}

    def run(self) -> TrainingResult:
        """Train, and return the result."""
        try:
            self.setup()
            self.execute()
        finally:
            self.teardown()
        return self.result()

    def setup(self) -> None:
        """Reset the environment with the seed of the task."""
        self._observation, self._info = self._env.reset(seed=self._seed)
        self._reset_info = self._info

    def execute(self) -> None:
        """Run the steps, and reset after each episode except at the last step."""
        env, learner, rewards, clock = self._env, self._learner, self._rewards, self._clock
        steps, observation, info = rewards.size, self._observation, self._info
        start = clock()
        next_progress = start
        try:
            for step in range(steps):
                action = learner.act(observation, info)
                next_observation, reward, terminated, truncated, info = env.step(action)
                rewards[step] = reward
                self._done = step + 1
                learner.learn(
                    observation,
                    action,
                    float(reward),
                    next_observation,
                    terminated,
                    truncated,
                    info,
                )
                observation = next_observation
                if terminated or truncated:
                    self._episode_ends.append(step + 1)
                    if step + 1 < steps:
                        observation, info = env.reset()
                if self._on_progress is not None and (now := clock()) >= next_progress:
                    next_progress = now + PROGRESS_EVERY_S
                    self._on_progress(self._progress(now - start))
        finally:
            self._seconds = clock() - start
        if self._on_progress is not None:
            self._on_progress(self._progress(self._seconds))

    def teardown(self) -> None:
        """Close the environment."""
        self._env.close()

    def result(self) -> TrainingResult:
        """Return the result of the steps done so far."""
        return TrainingResult(
            rewards=self._rewards[: self._done].copy(),
            episode_ends=np.array(self._episode_ends, np.int64),
            seconds=self._seconds,
            reset_info=self._reset_info,
        )

    def _progress(self, seconds: float) -> TrainingProgress:
        done = self._done
        return TrainingProgress(
            step=done,
            steps=self._rewards.size,
            episodes=len(self._episode_ends),
            recent_reward=float(self._rewards[max(0, done - 1000) : done].mean()),
            steps_per_s=done / seconds if seconds > 0 else 0.0,
        )
