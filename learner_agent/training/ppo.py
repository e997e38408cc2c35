"""PPO of Stable-Baselines3, for environments that no demo learner fits (extra `sb3`)."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

from gymwire.learner_agent.training.checked_env import fault
from gymwire.learner_agent.training.learners import replacing
from gymwire.learner_agent.training.task import (
    PROGRESS_EVERY_S,
    TrainingProgress,
    TrainingResult,
    recent_mean,
)
from gymwire.protocol.errors import ConfigurationError, EnvironmentFailed

if TYPE_CHECKING:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecEnv

BATCH = 64  # steps
ROLLOUT = 8 * BATCH  # steps of all environments between two updates
RECENT_STEPS = 1000
MIN_IMAGE = 36  # pixels on each side that the convolutional network needs


def is_installed() -> bool:
    """Return whether Stable-Baselines3 is installed."""
    return importlib.util.find_spec("stable_baselines3") is not None


def misfit(observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> str:
    """Return why PPO cannot be trained with these spaces; "" if it can."""
    for key, space in _parts(observation_space).items():
        if why := _misfit_of_observation(space, in_dict=bool(key)):
            return f"observation_space{key} {why}"
    if why := _misfit_of_action(action_space):
        return f"action_space {why}"
    return ""


def _parts(space: gymnasium.Space[Any]) -> Mapping[str, gymnasium.Space[Any]]:
    if isinstance(space, Dict):
        return {f"[{key!r}]": part for key, part in space.spaces.items()}
    return {"": space}


def _misfit_of_observation(space: gymnasium.Space[Any], *, in_dict: bool) -> str:
    match space:
        case Box():
            if not space.shape:
                return "is a Box without dimensions"
            if in_dict and _is_image(space) and not _fits_network(space):
                return f"is a Dict's image of less than {MIN_IMAGE} × {MIN_IMAGE} pixels"
        case Discrete() | MultiDiscrete():
            return _misfit_of_numbers(space)
        case MultiBinary():
            pass
        case _:
            return f"is a {type(space).__name__}"
    return ""


def _misfit_of_action(space: gymnasium.Space[Any]) -> str:
    match space:
        case Box():
            if not np.issubdtype(space.dtype, np.floating):
                return f"is a Box of {space.dtype}"
            if not space.shape:
                return "is a Box without dimensions"
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                return "is a Box without finite bounds"
        case Discrete() | MultiDiscrete():
            return _misfit_of_numbers(space)
        case MultiBinary():
            if len(space.shape) != 1:
                return f"is a MultiBinary of {len(space.shape)} dimensions"
        case _:
            return f"is a {type(space).__name__}"
    return ""


def _misfit_of_numbers(space: Discrete | MultiDiscrete) -> str:
    if np.any(space.start != 0):
        return f"is a {type(space).__name__} that does not start at 0"
    if np.ndim(space.start) > 1:
        return f"is a MultiDiscrete of {np.ndim(space.start)} dimensions"
    return ""


def _is_image(space: gymnasium.Space[Any]) -> bool:
    """Return whether Stable-Baselines3 takes this for an image."""
    return (
        isinstance(space, Box)
        and len(space.shape) == 3
        and space.dtype == np.uint8
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


def _fits_network(space: gymnasium.Space[Any]) -> bool:
    return min(sorted(space.shape or (0,))[1:]) >= MIN_IMAGE  # the smallest is the channels


class PPOTask:
    """Trains a PPO model for a number of steps, as `TrainingTask` trains a demo learner.

    After an interrupted run, `result` returns what was done until then, and `save` saves it. The
    same seed gives the same model, if the environments draw from `np_random` and `time_limit_s` is
    not reached.

    Args:
        envs: the environments. The task closes them.
        steps: the number of steps of all environments together, at least 1. PPO learns from many
            steps at once, so it may do a few more.
        seed: seeds the environments and the model.
        load: a saved model to continue with. Such a file runs code when it is loaded.
        on_progress: called at most every 0.05 s.
        time_limit_s: stop after this long, in seconds.
        clock: returns the time in seconds.
        address: the address of the environments, for the text of errors.

    Raises:
        ConfigurationError: `load` cannot be loaded, or is of other spaces.
    """

    model: PPO

    def __init__(
        self,
        envs: VecEnv,
        steps: int,
        seed: int,
        *,
        load: str | os.PathLike[str] | None = None,
        on_progress: Callable[[TrainingProgress], None] | None = None,
        time_limit_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        address: str = "",
    ) -> None:
        self._envs, self._steps, self._address = envs, steps, address
        self.on_progress, self._time_limit_s, self._clock = on_progress, time_limit_s, clock
        self._rewards: list[NDArray[np.float32]] = []  # of each step of the vector
        self._returns: list[float] = []
        self._lengths: list[int] = []
        self._ended_best: list[bool] = []
        self._running = _Running(envs.num_envs)
        self._seconds = 0.0
        self._start = self._next_progress = 0.0
        self.model = _make(envs, steps, seed) if load is None else _load(load, envs, steps, seed)

    def run(self) -> TrainingResult:
        """Train, and return the result."""
        self._start = self._next_progress = self._clock()
        try:
            with one_thread(self._envs.observation_space):
                self.model.learn(self._steps, callback=self._after_step)
        except EnvironmentFailed as error:
            if not error.args[0].startswith("The environment at "):
                said = f"The environment at {self._address!r} failed: {error.args[0]}"
                error.args = (said, *error.args[1:])
            raise
        finally:
            self._seconds = self._clock() - self._start
            self._remove_log_folder()
            self._envs.close()
        return self.result()

    def _remove_log_folder(self) -> None:
        """Remove the folder that Stable-Baselines3 makes for its log, if it has written none."""
        if "SB3_LOGDIR" not in os.environ:
            with suppress(AttributeError, OSError):  # it may have made none yet
                Path(self.model.logger.get_dir()).rmdir()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the model to a file. Raises ConfigurationError if it cannot be written."""
        with replacing(path) as file:
            self.model.save(file)

    def result(self) -> TrainingResult:
        """Return the result of the steps done so far."""
        rewards = np.concatenate(self._rewards) if self._rewards else np.empty(0)
        return TrainingResult(
            rewards.astype(np.float64),
            np.array(self._returns, np.float64),
            np.array(self._lengths, np.int64),
            np.array(self._ended_best, np.bool_),
            self._seconds,
            self._envs.reset_infos[0] if self._rewards else {},
        )

    def _after_step(self, locals_: Mapping[str, Any], _: Mapping[str, Any]) -> bool:
        """Record a step of the vector. Returns whether to go on."""
        rewards, dones = locals_["rewards"], locals_["dones"]
        self._check_finite("the reward", rewards)  # the network would become one of NaN
        observations = locals_["new_obs"]
        is_dict = isinstance(observations, dict)
        for part in observations.values() if is_dict else (observations,):
            self._check_finite("an observation with the number", part)
        self._rewards.append(rewards.copy())
        for total, length, ended_best in self._running.add(rewards, dones):
            self._returns.append(total)
            self._lengths.append(length)
            self._ended_best.append(ended_best)
        seconds = self._clock() - self._start
        if self.on_progress is not None and seconds >= self._next_progress - self._start:
            self._next_progress = self._start + seconds + PROGRESS_EVERY_S
            self.on_progress(self._progress(seconds))
        return seconds < self._time_limit_s

    def _check_finite(self, what: str, batch: NDArray[Any]) -> None:
        """Raise EnvironmentFailed if a number in a batch is NaN or infinite."""
        if not np.isfinite(batch).all():
            [wrong, *_] = batch[~np.isfinite(batch)]
            raise fault(self._address, f"{what} {wrong}, from which PPO cannot learn", "step")

    def _progress(self, seconds: float) -> TrainingProgress:
        num_envs = self._envs.num_envs
        done = len(self._rewards) * num_envs
        recent = max(1, RECENT_STEPS // num_envs)
        return TrainingProgress(
            step=min(done, self._steps),
            steps=self._steps,
            episodes=len(self._returns),
            recent_return=recent_mean(self._returns),
            recent_reward=float(np.mean(self._rewards[-recent:])),
            steps_per_s=done / seconds if seconds > 0 else 0.0,
        )


class _Running:
    """The episodes that have not ended yet, one in each environment."""

    def __init__(self, num_envs: int) -> None:
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._best = np.zeros(num_envs)  # the largest reward, or 0

    def add(self, rewards: NDArray[Any], dones: NDArray[np.bool_]) -> list[tuple[float, int, bool]]:
        """Add a step.

        Returns the return and length of each ended episode, and whether its last reward is its
        highest and positive.
        """
        self._returns += rewards
        self._lengths += 1
        ended = [
            (float(self._returns[i]), int(self._lengths[i]), bool(rewards[i] > self._best[i]))
            for i in np.flatnonzero(dones)
        ]
        np.maximum(self._best, rewards, out=self._best)
        for values in (self._returns, self._lengths, self._best):
            values[dones] = 0
        return ended


def _sizes(num_envs: int, steps: int) -> dict[str, int]:
    """Return the steps of each environment between two updates, and the steps of a batch."""
    n_steps = BATCH * max(1, ROLLOUT // BATCH // num_envs)
    n_steps = min(n_steps, max(2, -(-steps // num_envs)))
    rollout = n_steps * num_envs
    return {"n_steps": n_steps, "batch_size": rollout if rollout % BATCH else BATCH}


@contextmanager
def one_thread(observation_space: gymnasium.Space[Any]) -> Iterator[None]:
    """Let PyTorch compute in one thread, unless there are images.

    The threads of a small network wait for each other more than they compute: on a host whose
    processors are busy, one thread is many times as fast. OMP_NUM_THREADS is obeyed.
    """
    import torch

    before = torch.get_num_threads()
    is_small = not any(_is_image(space) for space in _parts(observation_space).values())
    if is_small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make(envs: VecEnv, steps: int, seed: int) -> PPO:
    from stable_baselines3 import PPO
    from stable_baselines3.common.utils import LinearSchedule

    policy = "MlpPolicy"
    if isinstance(envs.observation_space, Dict):
        policy = "MultiInputPolicy"
    elif _is_image(envs.observation_space) and _fits_network(envs.observation_space):
        policy = "CnnPolicy"
    return PPO(
        policy,
        envs,
        learning_rate=LinearSchedule(1e-3, 1e-4, 1.0),
        seed=seed,
        device="cpu" if policy == "MlpPolicy" else "auto",
        **_sizes(envs.num_envs, steps),
    )


def _load(path: str | os.PathLike[str], envs: VecEnv, steps: int, seed: int) -> PPO:
    from stable_baselines3 import PPO

    try:
        with Path(path).open("rb") as file:
            model = PPO.load(file, envs, **_sizes(envs.num_envs, steps))
        model.set_random_seed(seed)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot read {os.fspath(path)}: {error.strerror or error}."
        ) from error
    except Exception as error:  # of unpickling: anything
        raise ConfigurationError(
            f"Cannot load {os.fspath(path)} as a PPO model for this environment: {error}"
        ) from error
    return model
