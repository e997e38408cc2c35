"""Learners: their interface, the choice of one for an environment, saving and loading."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from numpy.typing import NDArray

from gymwire.learner_agent.training.price_bandits import PriceAgent
from gymwire.learner_agent.training.q_learning import QLearner
from gymwire.protocol.errors import ConfigurationError, NoLearnerFits

# 80 MB of float64. Steps over a network would never fill a larger table.
LARGEST_TABLE = 10_000_000
MAX_METADATA = 1024 * 1024  # bytes of a saved learner in addition to its parameters


class Learner(Protocol):
    """The interface of an agent that acts and learns one step at a time."""

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        """Return the action to take after `observation` and its `info`."""

    def learn(
        self,
        observation: Any,
        action: Any,
        reward: float,
        next_observation: Any,
        terminated: bool,
        truncated: bool,
        info: Mapping[str, Any],
    ) -> None:
        """Learn from one step: `action`, taken after `observation`, led to the other values."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the learned parameters as numeric arrays, in fresh memory."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Replace the learned parameters by those that `state` of another learner returned.

        Raises:
            ValueError: impossible values.
        """


def learner_for(
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    seed: int | None = None,
) -> PriceAgent | QLearner:
    """Return a new learner for an environment with these spaces.

    Args:
        observation_space: the environment's observation space.
        action_space: the environment's action space.
        seed: seeds the learner's own generator.

    Raises:
        NoLearnerFits: no learner handles these spaces; the text lists those that are handled.
    """
    match observation_space, action_space:
        case Discrete(n=1), MultiDiscrete(shape=(2,)):
            n_goods, n_prices = action_space.nvec.tolist()
            first_good, first_price = action_space.start.tolist()
            if n_goods * n_prices <= LARGEST_TABLE:
                return PriceAgent(
                    n_goods, n_prices, first_good=first_good, first_price=first_price, seed=seed
                )
        case Discrete(), Discrete():
            if int(observation_space.n) * int(action_space.n) <= LARGEST_TABLE:
                return QLearner(observation_space, action_space, seed=seed)
    raise NoLearnerFits(
        f"No learner fits the observation space {_shortened(observation_space)} with the action "
        f"space {_shortened(action_space)}. Supported: Discrete observations and actions, with "
        "Q-learning; Discrete(1) observations and MultiDiscrete([goods, prices]) actions, with the "
        f"price agent; each with at most {LARGEST_TABLE:,} pairs. For other spaces, train your own "
        "learner on gymwire.ProxyEnv."
    )


def save(learner: Learner, path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Save the learned parameters to a file, in .npz format whatever its name.

    The file appears, or replaces an existing one, only when it is complete.

    Args:
        learner: the learner to save.
        path: the file.
        metadata: JSON-serializable values to store as well. The learner's class is added.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    note = json.dumps({**metadata, "learner": type(learner).__name__})
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, metadata=np.array(note), **learner.state())


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for a learner. It replaces an existing one only when it is complete.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    unfinished = Path(f"{os.fspath(path)}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot save the learner to {os.fspath(path)}: {error.strerror or error}."
        ) from error


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Return whether this is a file that `save` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "metadata.npy" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def load_for(
    path: str | os.PathLike[str],
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    seed: int | None = None,
) -> PriceAgent | QLearner:
    """Return the learner that `save` wrote to a file, for an environment with these spaces.

    Raises:
        NoLearnerFits: no learner handles these spaces.
        ConfigurationError: as `load`.
    """
    try:
        learner = learner_for(observation_space, action_space, seed)
    except NoLearnerFits:
        raise NoLearnerFits(
            f"{os.fspath(path)}{_origin(path)} cannot play this environment, which has the "
            f"observation space {_shortened(observation_space)} and the action space "
            f"{_shortened(action_space)}. Saved learners play environments with Discrete "
            "observations and actions, and price markets. Play it where it was trained, or use a "
            "policy for this environment."
        ) from None
    load(learner, path)
    return learner


def _origin(path: str | os.PathLike[str]) -> str:
    """Return in parentheses what a saved learner is, and where it was trained; "" if unknown."""
    try:
        with Path(path).open("rb") as opened, zipfile.ZipFile(opened) as archive:
            if archive.getinfo("metadata.npy").file_size > MAX_METADATA:
                return ""
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                metadata = json.loads(str(file["metadata"]))
        kind, address = metadata["learner"], metadata.get("address")
    except Exception:  # noqa: BLE001 - of a file that may hold anything
        return ""
    return f" (a {kind} trained at {address!r:.100})" if address else f" (a {kind})"


def load(learner: Learner, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load the parameters that `save` wrote into a learner, and return the file's metadata.

    Raises:
        ConfigurationError: the file cannot be read, or its content does not fit `learner`, which
            then stays unchanged.
    """
    try:
        # np.load would leave the file open if the archive is damaged.
        with Path(path).open("rb") as opened:
            if not zipfile.is_zipfile(opened):  # NumPy's own error would suggest unpickling
                raise ValueError("it is not an .npz file")
            _check_sizes(learner, opened)
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                metadata = json.loads(str(file["metadata"]))
                state = {name: file[name] for name in learner.state()}
        kind = type(learner).__name__
        if metadata["learner"] != kind:
            raise ValueError(
                f"it was saved by a {metadata['learner']}, but this environment needs a {kind}"
            )
        for name, own in learner.state().items():
            loaded = state[name]
            if (loaded.shape, loaded.dtype) != (own.shape, own.dtype):
                raise ValueError(
                    f"its {name} is {loaded.dtype} {loaded.shape}, "
                    f"but this environment needs {own.dtype} {own.shape}"
                )
            if not np.isfinite(loaded).all():
                raise ValueError(f"its {name} contains values that are not finite")
        learner.restore(state)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot read {os.fspath(path)}: {error.strerror or error}."
        ) from error
    except Exception as error:  # of a file that may hold anything
        raise ConfigurationError(
            f"Cannot load {os.fspath(path)}{_origin(path)} into this learner: {error}."
        ) from error
    return dict(metadata)


def _check_sizes(learner: Learner, file: BinaryIO) -> None:
    """Raise ValueError if an archive unpacks to far more than the learner has."""
    most = MAX_METADATA + sum(own.nbytes for own in learner.state().values())
    with zipfile.ZipFile(file) as archive:
        if sum(one.file_size for one in archive.infolist()) > most:
            raise ValueError(f"it holds more than {most:,} bytes, the most for this environment")


def _shortened(space: gymnasium.Space[Any]) -> str:
    text = " ".join(repr(space).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
