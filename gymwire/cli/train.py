"""`gymwire train`: train the built-in learner that fits the environment."""

from __future__ import annotations

import importlib.util
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from gymwire.cli import progress
from gymwire.cli.connection import SessionOptions, naming, open_env
from gymwire.cli.extras import install_line
from gymwire.cli.output import Json, Output
from gymwire.learner_agent.training import learners, report
from gymwire.learner_agent.training.learners import Learner
from gymwire.learner_agent.training.task import TrainingResult, TrainingTask
from gymwire.protocol.errors import ConfigurationError, GymwireError

PLOT_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Options(SessionOptions):
    """The options of `gymwire train`."""

    steps: int
    plot: Path | None
    save: Path | None
    load: Path | None


def command(options: Options, output: Output) -> int:
    """Train the learner that fits. Returns the exit status.

    A training that ends early is reported, saved and drawn as well.
    """
    check_files(options)  # before the training, not an hour later
    seed = secrets.randbits(32) if options.seed is None else options.seed
    env = open_env(options, output)
    try:
        learner = learners.learner_for(env.observation_space, env.action_space, seed)
        if options.load is not None:
            with naming(options, "load"):
                learners.load(learner, options.load)
    except GymwireError:
        env.close()
        raise
    structlog.get_logger().info(
        "training started",
        address=options.address,
        learner=type(learner).__name__,
        steps=options.steps,
        seed=seed,
    )
    meter = progress.meter(output.errors, str(options.address), options.steps)
    task = TrainingTask(env, learner, options.steps, seed, meter)
    try:
        task.run()
    finally:
        meter.close()
        result = task.result()
        if result.rewards.size:
            _conclude(result, learner, options, seed, output)
    return 0


def _conclude(
    result: TrainingResult, learner: Learner, options: Options, seed: int, output: Output
) -> None:
    name = type(learner).__name__
    done = f"{result.rewards.size:,}"
    if result.rewards.size < options.steps:
        done = f"only {done} of {options.steps:,}"
    output.say(f"\n{name} after {done} steps at {options.address}, seed {seed}\n")
    report.print_report(result, learner, output.text)
    output.result(
        address=options.address, broker=options.broker, learner=name, seed=seed,
        **summary(result, options.steps),
    )  # fmt: skip
    if options.save is not None:
        origin = {"address": options.address, "steps": result.rewards.size, "seed": seed}
        learners.save(learner, options.save, origin)
        output.say(f"The learner is saved in {options.save}; continue with --load.")
        output.result(saved=str(options.save))
    if options.plot is not None:
        report.plot(result, learner, options.plot)
        output.say(f"The plot is in {options.plot}.")
        output.result(plot=str(options.plot))


def summary(result: TrainingResult, steps_wanted: int) -> dict[str, Json]:
    """Return the figures of a training as docs/reference/command.md describes them."""
    returns = result.episode_returns
    return {
        "steps": int(result.rewards.size),
        "complete": result.rewards.size == steps_wanted,
        "seconds": result.seconds,
        "steps_per_s": result.steps_per_s,
        "episodes": int(returns.size),
        "reward_per_step": _tenths(result.rewards),
        "episode_return": _tenths(returns) if returns.size else None,
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
        raise ConfigurationError(
            f"Plots need matplotlib, which is not installed. Install it with: "
            f"{install_line('plot')}"
        )
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
        raise ConfigurationError(f"{path}: you may not write to the folder {folder}.")
