"""`gymwire train`: train the built-in learner that fits, or else PPO of Stable-Baselines3."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import secrets
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from gymwire.cli import progress
from gymwire.cli.connection import SessionOptions, naming, open_env, opening
from gymwire.cli.output import Json, Output
from gymwire.cli.policies import MODEL
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.learner_agent.training import learners, ppo, report
from gymwire.learner_agent.training.checked_env import CheckedEnv
from gymwire.learner_agent.training.task import TrainingResult, TrainingTask
from gymwire.protocol.errors import ConfigurationError, GymwireError, NoLearnerFits
from gymwire.protocol.extras import missing

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

PLOT_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Options(SessionOptions):
    """The options of `gymwire train`."""

    steps: int
    time_limit_s: float
    num_envs: int
    plot: Path | None
    save: Path | None
    load: Path | None


@dataclass(frozen=True)
class Training:
    """A training that is ready to run.

    Attributes:
        learner: the learner, for its report.
        task: the task.
        save: saves the learner.
        path: where to save it; None: nowhere.
    """

    learner: object
    task: TrainingTask | ppo.PPOTask
    save: Callable[[Path], None]
    path: Path | None

    @property
    def name(self) -> str:
        """The class of the learner."""
        return type(self.learner).__name__


def command(options: Options, output: Output) -> int:
    """Train the learner that fits. Returns the exit status.

    A training that ends early is reported, saved and drawn as well.
    """
    check_files(options)  # before the training, not an hour later
    seed = secrets.randbits(32) if options.seed is None else options.seed
    training = _prepare(options, seed, output)
    structlog.get_logger().info(
        "training started",
        address=options.address,
        learner=training.name,
        steps=options.steps,
        seed=seed,
    )
    meter = progress.meter(output.errors, str(options.address), options.steps)
    training.task.on_progress = meter
    try:
        training.task.run()
    finally:
        result = training.task.result()
        kept: list[str] = []
        try:  # before anything is printed, which a closed terminal or a full disk may prevent
            if result.rewards.size:
                _keep(result, training, options, seed, output, kept)
        finally:
            meter.close()
            if result.rewards.size:
                _report(result, training, options, seed, output)
            for line in kept:
                output.say(line)
    return 0


def _prepare(options: Options, seed: int, output: Output) -> Training:
    """Open the environment, and choose what to train in it."""
    env = open_env(options, output)
    try:
        try:
            learner = learners.learner_for(env.observation_space, env.action_space, seed)
        except NoLearnerFits as error:
            return _prepare_ppo(env, error, options, seed, output)
        if options.load is not None:
            with naming(options, "load"):
                learners.load(learner, options.load)
    except GymwireError:
        env.close()
        raise
    checked = CheckedEnv(env, str(options.address))
    task = TrainingTask(checked, learner, options.steps, seed, time_limit_s=options.time_limit_s)
    origin = {"address": options.address, "steps": options.steps, "seed": seed}

    def save(path: Path) -> None:
        steps = int(task.result().rewards.size)
        learners.save(learner, path, {**origin, "steps": steps})

    return Training(learner, task, save, options.save)


def _prepare_ppo(
    env: ProxyEnv, misfit: NoLearnerFits, options: Options, seed: int, output: Output
) -> Training:
    """Open a vector of environments in the place of `env`, and make a PPO model for it."""
    why = ppo.misfit(env.observation_space, env.action_space)
    if why:
        raise NoLearnerFits(f"{misfit} PPO does not fit either: {why}.")
    if not ppo.is_installed():
        need = f"Training at {options.address} needs Stable-Baselines3"
        raise ConfigurationError(missing(need, "sb3"))
    path = options.save or _new_file(str(options.address))
    if path.suffix != MODEL:
        with naming(options, "save"):
            raise ConfigurationError(f"{path} must end with {MODEL}, as every PPO model.")
    with output.errors.status("loading Stable-Baselines3 …"):  # takes seconds
        import_module("stable_baselines3")
    envs = _as_vector(env, options, output)
    try:
        with naming(options, "load"):
            task = ppo.PPOTask(
                envs,
                options.steps,
                seed,
                load=options.load,
                time_limit_s=options.time_limit_s,
                address=str(options.address),
            )
    except BaseException:
        envs.close()
        raise
    return Training(task.model, task, task.save, path)


def _as_vector(env: ProxyEnv, options: Options, output: Output) -> VecEnv:
    """Return `env` as a vector; to have several environments, close it and open another session."""
    if options.num_envs == 1:
        from stable_baselines3.common.vec_env import DummyVecEnv

        return DummyVecEnv([lambda: CheckedEnv(env, str(options.address))])
    env.close()
    from gymwire.env_agent.environments import MAX_NUM_ENVS
    from gymwire.sb3 import ProxyVecEnv

    sessions = math.ceil(options.num_envs / MAX_NUM_ENVS)
    with opening(options, output) as (address, keywords):
        return ProxyVecEnv(address, options.num_envs, options.broker, sessions=sessions, **keywords)


def _new_file(address: str) -> Path:
    """Return a file for a PPO model in the current folder that does not exist yet."""
    name = re.sub(r"[^a-z0-9._-]+", "-", address)
    path, number = Path(f"{name}{MODEL}"), 2
    while path.exists():
        path, number = Path(f"{name}-{number}{MODEL}"), number + 1
    check_writable(path)
    return path


def _report(
    result: TrainingResult, training: Training, options: Options, seed: int, output: Output
) -> None:
    done = f"{result.rewards.size:,}"
    if result.rewards.size < options.steps:
        done = f"only {done} of {options.steps:,}"
    output.say(f"\n{training.name} after {done} steps at {options.address}, seed {seed}\n")
    report.print_report(result, training.learner, output.text)


def _keep(
    result: TrainingResult,
    training: Training,
    options: Options,
    seed: int,
    output: Output,
    kept: list[str],
) -> None:
    """Save the learner and draw the plot, if wanted; add a line for each to `kept`."""
    output.result(
        address=options.address, broker=options.broker, learner=training.name, seed=seed,
        **summary(result, options.steps),
    )  # fmt: skip
    if training.path is not None:
        training.save(training.path)
        done = int(result.rewards.size)
        left = options.steps - done
        early = f", after only {done:,} of {options.steps:,} steps" if left > 0 else ""
        kept.append(
            f"The learner is saved in {training.path}{early}. Play with it: "
            f"{_command(options, 'run', '--policy', str(training.path))}"
        )
        if left > 0:
            path = str(training.path)
            more = ["--load", path, "--save", path, "--steps", str(left)]
            if "--num-envs" in options.origins.values():
                more += ["--num-envs", str(options.num_envs)]
            kept.append(f"Continue the training with: {_command(options, 'train', *more)}")
        output.result(saved=str(training.path))
    if options.plot is not None:
        report.plot(result, training.learner, options.plot, address=str(options.address), seed=seed)
        kept.append(f"The plot is in {options.plot}.")
        output.result(plot=str(options.plot))


def _command(options: Options, name: str, *more: str) -> str:
    """Return a command with these options that uses the same environment."""
    words = ["gymwire", name, str(options.address), *more]
    for option, value in (
        ("--env-kwargs", json.dumps(options.env_kwargs)),
        ("--broker", options.broker),
        ("--key", options.key),
        ("--broker-key", options.broker_key),
    ):
        if option in options.origins.values():  # a variable is set for the next command, too
            words += [option, str(value)]
    return shlex.join(words)


def summary(result: TrainingResult, steps_wanted: int) -> dict[str, Json]:
    """Return the figures of a training as docs/reference/command.md describes them."""
    returns = result.episode_returns
    return {
        "steps": int(result.rewards.size),
        "complete": result.rewards.size >= steps_wanted,
        "seconds": result.seconds,
        "steps_per_s": result.steps_per_s,
        "episodes": int(returns.size),
        "reward_per_step": _tenths(result.rewards),
        "episode_return": _tenths(returns) if returns.size else None,
        "recent_return": result.recent_return,
        "saved": None,
        "plot": None,
    }


def _tenths(values: NDArray[np.float64]) -> dict[str, Json]:
    first, last = report.early_and_late(values)
    return {"first_tenth": first, "last_tenth": last}


def check_files(options: Options) -> None:
    """Raise ConfigurationError if the plot or the learner could not be written."""
    if options.plot is not None:
        with naming(options, "plot"):
            check_plot(options.plot)
    if options.save is not None:
        with naming(options, "save"):
            check_writable(options.save)


def check_plot(path: Path) -> None:
    """Raise ConfigurationError if no plot could be drawn to `path`."""
    if path.suffix.lower() not in PLOT_FORMATS:
        raise ConfigurationError(f"{path} must end with one of {', '.join(PLOT_FORMATS)}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError(missing("Plots need matplotlib", "plot"))
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise ConfigurationError if the file cannot be written, and why."""
    folder = path.parent
    try:
        if not folder.is_dir():
            raise ConfigurationError(f"{path}: there is no folder {folder}. Make it first.")
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder. Name a file in it.")
    except OSError as error:  # such as a name that is too long
        raise ConfigurationError(f"{path}: {error.strerror}. Choose another name.") from None
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"{path}: you may not write to the folder {folder}. Choose another one."
        )
