"""`gymwire record`: play episodes, and save them as a Minari dataset."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gymwire.cli import policies
from gymwire.cli.connection import SessionOptions, naming, open_env
from gymwire.cli.interruption import held, waiting
from gymwire.cli.output import Output
from gymwire.cli.terminal import counted
from gymwire.learner_agent.training.checked_env import CheckedEnv
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.extras import missing

FOLDER_VARIABLE = "MINARI_DATASETS_PATH"  # where Minari has its datasets
RANDOM = "random actions"


@dataclass(frozen=True, kw_only=True)
class Options(SessionOptions):
    """The options of `gymwire record`."""

    episodes: int
    policy: str | None
    out: Path | None


class InterruptibleEnv(CheckedEnv):
    """An environment for whose calls a signal need not wait."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment. Raises EnvironmentFailed."""
        with waiting():
            return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Run a step. Raises EnvironmentFailed."""
        with waiting():
            return super().step(action)


def command(options: Options, output: Output) -> int:
    """Play episodes, and save those that were complete. Returns the exit status."""
    with naming(options, "out"):
        path = _checked(options.out)
    with _datasets_in(path.parent):
        _record(options, path, output)
    return 0


def _checked(path: Path | None) -> Path:
    """Return where to save. Raises ConfigurationError if nothing can be saved there."""
    if path is None:
        raise ConfigurationError("Nowhere to save: pass --out FOLDER, such as cartpole-random-v0.")
    if any(find_spec(name) is None for name in ("minari", "h5py", "jax", "PIL")):
        raise ConfigurationError(missing("Datasets need minari", "minari"))
    from minari.dataset.minari_dataset import parse_dataset_id

    path = path.absolute()
    try:
        parse_dataset_id(path.name)
    except (ValueError, TypeError):  # a name without a version is a TypeError
        raise ConfigurationError(
            f"{path.name!r} cannot be the name of a dataset. Use letters, digits, '_', '-' and a "
            f"version, such as cartpole-random-v0."
        ) from None
    if path.exists():
        raise ConfigurationError(f"{path} exists. Name a new folder.")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path}: there is no folder {path.parent}. Make it first.")
    return path


@contextmanager
def _datasets_in(folder: Path) -> Iterator[None]:
    """Let Minari keep its datasets, and its temporary files, in this folder."""
    before = os.environ.get(FOLDER_VARIABLE)
    os.environ[FOLDER_VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER_VARIABLE]
        if before is not None:
            os.environ[FOLDER_VARIABLE] = before


def _record(options: Options, path: Path, output: Output) -> None:
    from minari import DataCollector

    env = open_env(options, output)
    done = steps = 0
    try:
        env.spec = env.served_spec  # the dataset is one of this environment, not of its proxy
        with naming(options, "policy"):
            policy = policies.load(options.policy, env, options.seed)
        # An interrupted write of Minari's would make its temporary files useless.
        with held():
            # Losslessly: a picture must come out as it was.
            checked = InterruptibleEnv(env, str(options.address))
            collector = DataCollector(checked, record_infos=False, jpeg_encoding=False)
            try:
                while done < options.episodes:
                    # An episode needs a seed of its own, with which it can be played again.
                    seed = secrets.randbits(31) if options.seed is None else options.seed + done
                    observation, info = collector.reset(seed=seed)
                    over, length = False, 0
                    while not over:
                        with waiting():
                            action = policy(observation, info)
                        observation, _, terminated, truncated, info = collector.step(action)
                        over, length = bool(terminated or truncated), length + 1
                    done, steps = done + 1, steps + length
            finally:
                if done:
                    _save(collector, options, path)
                    episodes = counted(done, "episode")
                    output.say(f"Saved {episodes} ({counted(steps, 'step')}) in {path}.")
                collector.close()  # removes its temporary files
    finally:
        env.close()
        output.result(
            address=options.address,
            broker=options.broker,
            seed=options.seed,
            policy=options.policy,
            complete=done == options.episodes,
            episodes=done,
            steps=steps,
            out=str(path) if done else None,
        )


def _save(collector: object, options: Options, path: Path) -> None:
    # Minari would save the steps of an episode that was interrupted as an episode.
    vars(collector)["_buffer"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants an author, a permalink and so on
        collector.create_dataset(  # type: ignore[attr-defined]
            path.name,
            algorithm_name=options.policy or RANDOM,
            description=f"Recorded with gymwire at the address {options.address}.",
        )
