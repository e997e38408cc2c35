"""The training task: setup, execute, teardown, on any Gymnasium environment, remote or local."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from gymwire.learner_agent.training.learners import Learner

# Twenty pictures a second look alive; more would only slow the training down.
PROGRESS_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is: what a progress bar or a log line shows.

    Attributes:
        step: steps done, of `steps`.
        episodes: episodes ended.
        recent_reward: mean reward per step over the last 1000 steps, or as many as there are.
        steps_per_s: since the start.
    """

    step: int
    steps: int
    episodes: int
    recent_reward: float
    steps_per_s: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """What came of a training.

    Attributes:
        rewards: float64 (n_steps,), each step's reward.
        episode_ends: int64 (n_episodes,), the number of steps done when each episode ended; steps
            after the last are of an episode that the training left unfinished.
        seconds: how long the steps took, with resets and learning.
        reset_info: the info of the first reset, in which some environments tell the truth by which
            a learner can be judged.
    """

    rewards: NDArray[np.float64]
    episode_ends: NDArray[np.int64]
    seconds: float
    reset_info: Mapping[str, Any]

    @property
    def steps_per_s(self) -> float:
        """Steps per second of wall time; 0 when nothing was done."""
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
    """Lets a learner act in an environment and learn from it for a number of steps.

    `run()` is setup, execute and teardown in that order, the last one whatever happens. After a run
    that was interrupted, `result()` still tells what was done.

    Args:
        env: any Gymnasium environment; the task closes it.
        learner: acts and learns.
        steps: how many steps to train, at least 1.
        seed: seeds the environment's first reset; later ones go on from there.
        on_progress: called with a `Progress` at most every 0.05 s, and after the last step.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        learner: Learner,
        steps: int,
        seed: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if steps < 1:
            raise ValueError(f"a training takes at least 1 step, not {steps}")
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
        """Reset the environment with the task's seed."""
        self._observation, self._info = self._env.reset(seed=self._seed)
        self._reset_info = self._info

    def execute(self) -> None:
        """Do the steps, with a reset after each episode that ends before the last of them."""
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
        """Return what was done so far."""
        return TrainingResult(
            rewards=self._rewards[: self._done].copy(),
            episode_ends=np.array(self._episode_ends, np.int64),
            seconds=self._seconds,
            reset_info=self._reset_info,
        )

    def _progress(self, seconds: float) -> Progress:
        done = self._done
        return Progress(
            step=done,
            steps=self._rewards.size,
            episodes=len(self._episode_ends),
            recent_reward=float(self._rewards[max(0, done - 1000) : done].mean()),
            steps_per_s=done / seconds if seconds > 0 else 0.0,
        )
