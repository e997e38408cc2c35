"""The training task: setup, execute and teardown, on any Gymnasium environment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from gymwire.learner_agent.training.learners import Learner

# 20 updates per second look smooth; more would slow the training down.
PROGRESS_EVERY_S = 0.05
RECENT_EPISODES = 100


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """The progress of a training, for a progress bar or a log line.

    Attributes:
        step: the number of steps done.
        steps: the number of steps to do.
        episodes: the number of episodes that have ended.
        recent_return: the mean return of the last 100 of them, or fewer at the start; None before
            the first.
        recent_reward: the mean reward per step over the last 1000 steps, or fewer at the start.
        steps_per_s: steps per second since the start.
    """

    step: int
    steps: int
    episodes: int
    recent_return: float | None
    recent_reward: float
    steps_per_s: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """The rewards and episodes of a training.

    Attributes:
        rewards: the reward of each step, float64 (n_steps,).
        episode_returns: the sum of rewards of each ended episode, float64 (n_episodes,).
        episode_lengths: the steps of each ended episode, int64 (n_episodes,).
        ended_best: whether the last reward of each ended episode is positive, and larger than all
            others of the episode, bool (n_episodes,).
        seconds: the duration of all steps, resets and learning included.
        reset_info: the info of the first reset. Some environments put the true values in it that
            a learner should find.
    """

    rewards: NDArray[np.float64]
    episode_returns: NDArray[np.float64]
    episode_lengths: NDArray[np.int64]
    ended_best: NDArray[np.bool_]
    seconds: float
    reset_info: Mapping[str, Any]

    @classmethod
    def of_one_env(
        cls,
        rewards: NDArray[np.float64],
        episode_ends: Sequence[int],
        seconds: float,
        reset_info: Mapping[str, Any],
    ) -> TrainingResult:
        """Return the result of a training in one environment.

        Args:
            rewards: the reward of each step.
            episode_ends: the number of steps done when each episode ended. Later steps belong to an
                unfinished episode.
            seconds: the duration.
            reset_info: the info of the first reset.
        """
        episodes = [rewards[begin:end] for begin, end in pairwise((0, *episode_ends))]
        return cls(
            rewards,
            np.array([one.sum() for one in episodes], np.float64),
            np.array([one.size for one in episodes], np.int64),
            np.array([one[-1] > max(0.0, one[:-1].max(initial=0.0)) for one in episodes], np.bool_),
            seconds,
            reset_info,
        )

    @property
    def steps_per_s(self) -> float:
        """Steps per second of wall time; 0 without steps."""
        return self.rewards.size / self.seconds if self.seconds > 0 else 0.0

    @property
    def recent_return(self) -> float | None:
        """The mean return of the last 100 episodes, or fewer; None if none has ended."""
        return recent_mean(self.episode_returns)


def recent_mean(returns: Sequence[float] | NDArray[np.float64]) -> float | None:
    """Return the mean of the last 100 returns, or fewer; None if there are none."""
    return float(np.mean(returns[-RECENT_EPISODES:])) if len(returns) else None


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
        time_limit_s: do not begin another step after this long, in seconds.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        learner: Learner,
        steps: int,
        seed: int | None = None,
        on_progress: Callable[[TrainingProgress], None] | None = None,
        time_limit_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        self._env, self._learner, self._seed = env, learner, seed
        self.on_progress, self._time_limit_s, self._clock = on_progress, time_limit_s, clock
        self._rewards = np.empty(steps)
        self._episode_ends: list[int] = []
        self._returns: list[float] = []
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
        next_progress, end = start, start + self._time_limit_s
        is_watched = self.on_progress is not None or end < math.inf
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
                    begin = self._episode_ends[-1] if self._episode_ends else 0
                    self._episode_ends.append(step + 1)
                    self._returns.append(float(rewards[begin : step + 1].sum()))
                    if step + 1 < steps:
                        observation, info = env.reset()
                if not is_watched:
                    continue
                now = clock()
                if self.on_progress is not None and now >= next_progress:
                    next_progress = now + PROGRESS_EVERY_S
                    self.on_progress(self._progress(now - start))
                if now >= end:
                    break
        finally:
            self._seconds = clock() - start
        if self.on_progress is not None:
            self.on_progress(self._progress(self._seconds))

    def teardown(self) -> None:
        """Close the environment."""
        self._env.close()

    def result(self) -> TrainingResult:
        """Return the result of the steps done so far."""
        return TrainingResult.of_one_env(
            self._rewards[: self._done].copy(), self._episode_ends, self._seconds, self._reset_info
        )

    def _progress(self, seconds: float) -> TrainingProgress:
        done = self._done
        return TrainingProgress(
            step=done,
            steps=self._rewards.size,
            episodes=len(self._episode_ends),
            recent_return=recent_mean(self._returns),
            recent_reward=float(self._rewards[max(0, done - 1000) : done].mean()),
            steps_per_s=done / seconds if seconds > 0 else 0.0,
        )
