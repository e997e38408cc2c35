"""The training task: its loop, its results, and its clean-up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from gymwire.learner_agent.training.task import TrainingProgress, TrainingResult, TrainingTask


class CountingEnv(gymnasium.Env[Any, Any]):
    """Episodes of three steps. The reward is the number of the step; the observation counts all."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.observation_space, self.action_space = Discrete(1000), Discrete(2)
        self.resets: list[int | None] = []
        self.steps = self.in_episode = self.closed = 0
        self.fail_at = fail_at

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        self.resets.append(seed)
        self.in_episode = 0
        return self.steps, {"resets": len(self.resets)}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.in_episode += 1
        if self.steps == self.fail_at:
            raise RuntimeError("the env broke")
        terminated = self.in_episode == 3
        return self.steps, float(self.in_episode), terminated, False, {"step": self.steps}

    def close(self) -> None:
        self.closed += 1


class Recorder:
    """A learner that only records its calls."""

    def __init__(self) -> None:
        self.acts: list[tuple[Any, Mapping[str, Any]]] = []
        self.lessons: list[tuple[Any, ...]] = []

    def act(self, observation: Any, info: Mapping[str, Any]) -> int:
        self.acts.append((observation, info))
        return len(self.acts) % 2

    def learn(self, *lesson: Any) -> None:
        self.lessons.append(lesson)

    def state(self) -> dict[str, NDArray[Any]]:
        return {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        pass


def ticking() -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += 1.0


def test_the_result_has_the_rewards_episodes_and_returns_of_the_environment() -> None:
    result = TrainingTask(CountingEnv(), Recorder(), 8).run()
    assert result.rewards.tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert result.episode_returns.tolist() == [6, 6]
    assert result.episode_lengths.tolist() == [3, 3]
    assert result.ended_best.tolist() == [True, True]
    assert result.recent_return == 6


def test_a_training_without_a_finished_episode_has_no_returns() -> None:
    result = TrainingTask(CountingEnv(), Recorder(), 2).run()
    assert result.episode_returns.size == result.episode_lengths.size == 0
    assert result.ended_best.size == 0
    assert result.recent_return is None


def test_only_the_first_reset_is_seeded_and_the_last_step_is_not_followed_by_one() -> None:
    env = CountingEnv()
    TrainingTask(env, Recorder(), 6, seed=9).run()
    assert env.resets == [9, None]


def test_the_learner_acts_on_the_reset_and_learns_from_the_step_that_ended_the_episode() -> None:
    recorder = Recorder()
    TrainingTask(CountingEnv(), recorder, 4).run()
    assert recorder.acts[2:] == [(2, {"step": 2}), (3, {"resets": 2})]
    assert recorder.lessons[2] == (2, 1, 3.0, 3, True, False, {"step": 3})
    assert recorder.lessons[3] == (3, 0, 1.0, 4, False, False, {"step": 4})


def test_the_info_of_the_first_reset_is_kept() -> None:
    assert TrainingTask(CountingEnv(), Recorder(), 8).run().reset_info == {"resets": 1}


def test_the_step_rate_uses_the_given_clock() -> None:
    clock = ticking()
    result = TrainingTask(CountingEnv(), Recorder(), 8, clock=lambda: next(clock)).run()
    assert (result.seconds, result.steps_per_s) == (1.0, 8.0)


def test_progress_is_reported_now_and_then_and_after_the_last_step() -> None:
    reports: list[TrainingProgress] = []
    times = iter([0.0, 0.01, 0.02, 0.03, 0.5, 0.51, 0.52, 1.0])
    TrainingTask(
        CountingEnv(), Recorder(), 6, on_progress=reports.append, clock=lambda: next(times)
    ).run()
    assert [progress.step for progress in reports] == [1, 4, 6]
    assert reports[-1] == TrainingProgress(
        step=6, steps=6, episodes=2, recent_return=6.0, recent_reward=2.0, steps_per_s=6.0
    )


def test_the_environment_is_closed_after_the_training() -> None:
    env = CountingEnv()
    TrainingTask(env, Recorder(), 3).run()
    assert env.closed == 1


def test_an_environment_that_fails_is_closed_and_the_steps_before_are_in_the_result() -> None:
    env = CountingEnv(fail_at=5)
    task = TrainingTask(env, Recorder(), 8)
    with pytest.raises(RuntimeError, match="the env broke"):
        task.run()
    assert env.closed == 1
    assert task.result().rewards.tolist() == [1, 2, 3, 1]
    assert task.result().episode_lengths.tolist() == [3]


def test_a_result_does_not_share_memory_with_the_task() -> None:
    task = TrainingTask(CountingEnv(), Recorder(), 4)
    task.setup()
    task.execute()
    before = task.result().rewards
    before[:] = 0
    assert np.array_equal(task.result().rewards, [1, 2, 3, 1])


def test_a_training_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        TrainingTask(CountingEnv(), Recorder(), 0)


def test_an_episode_ended_best_if_its_last_reward_is_positive_and_its_largest() -> None:
    rewards = np.array([0.0, 1.0, 1.0, 1.0, -1.0, 5.0, 7.0, 5.0, 2.0, -1.0, 0.0, 9.0])
    result = TrainingResult.of_one_env(rewards, [2, 4, 6, 8, 9, 10, 11], 1.0, {})
    assert result.ended_best.tolist() == [True, False, True, False, True, False, False]
    assert result.episode_returns.tolist() == [1, 2, 4, 12, 2, -1, 0]


def test_the_recent_return_is_the_mean_of_the_last_hundred_episodes() -> None:
    returns = [1000.0] * 50 + [1.0] * 99 + [2.0]
    ends = [*range(1, 151)]
    assert TrainingResult.of_one_env(np.array(returns), ends, 1.0, {}).recent_return == 1.01


def test_a_time_limit_ends_the_training_after_the_step_in_which_it_is_reached() -> None:
    env, clock = CountingEnv(), ticking()
    task = TrainingTask(env, Recorder(), 8, time_limit_s=3.0, clock=lambda: next(clock))
    assert task.run().rewards.size == 3
    assert env.closed == 1
