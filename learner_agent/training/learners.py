"""What a learner is, which one fits an environment, and files that keep what one has learnt."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from numpy.typing import NDArray

from gymwire.learner_agent.training.price_bandits import PriceAgent
from gymwire.learner_agent.training.q_learning import QLearner
from gymwire.protocol.errors import ConfigurationError, NoLearnerFits

# 80 MB of float64: larger tables are never filled by steps that come over a network.
LARGEST_TABLE = 10_000_000


class Learner(Protocol):
    """Something that acts and learns, one step at a time."""

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
        """Learn from a step: `action`, after `observation`, led to all the rest."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was learnt as fresh numeric arrays."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from another learner's `state()`. Raises ValueError when it makes no sense."""


def learner_for(
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    seed: int | None = None,
) -> PriceAgent | QLearner:
    """Return the learner that fits an environment's spaces, seeded with `seed`.

    Raises NoLearnerFits, which says what would fit.
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
        f"space {_shortened(action_space)}. What would fit: Discrete observations and actions, for "
        "Q-learning; or Discrete(1) with MultiDiscrete([goods, prices]), for the price agent; "
        f"either of them with at most {LARGEST_TABLE:,} pairs. For anything else, train a learner "
        "of your own on learner_agent.ProxyEnv."
    )


def save(learner: Learner, path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Write what was learnt to `path`, an .npz file whatever its name, replacing a file in one go.

    Args:
        metadata: what to remember beside it, JSON-able; the learner's kind is added.

    Raises ConfigurationError when the file cannot be written.
    """
    note = json.dumps({**metadata, "learner": type(learner).__name__})
    unfinished = Path(f"{os.fspath(path)}.unfinished")
    try:
        with unfinished.open("wb") as file:
            np.savez_compressed(
                file, allow_pickle=False, metadata=np.array(note), **learner.state()
            )
        unfinished.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot save what was learnt to {os.fspath(path)}: {error.strerror or error}."
        ) from error


def load(learner: Learner, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Let `learner` go on from a file that `save` wrote, and return the file's metadata.

    Raises ConfigurationError when there is no such file, or what it holds does not fit `learner`.
    """
    try:
        # Opened here, because np.load leaves a file open in which it finds a broken archive.
        with Path(path).open("rb") as opened:
            if not zipfile.is_zipfile(opened):  # NumPy's own words would advise to unpickle it
                raise ValueError("it is no .npz file")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                metadata = json.loads(str(file["metadata"]))
                state = {name: file[name] for name in learner.state()}
        kind = type(learner).__name__
        if metadata["learner"] != kind:
            raise ValueError(f"it was learnt by a {metadata['learner']}, not by a {kind}")
        for name, own in learner.state().items():
            loaded = state[name]
            if (loaded.shape, loaded.dtype) != (own.shape, own.dtype):
                raise ValueError(
                    f"its {name} is {loaded.dtype} {loaded.shape}, "
                    f"where this environment needs {own.dtype} {own.shape}"
                )
            if not np.isfinite(loaded).all():
                raise ValueError(f"its {name} holds values that are not finite")
        learner.restore(state)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot read {os.fspath(path)}: {error.strerror or error}."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigurationError(
            f"{os.fspath(path)} does not hold what this learner could go on from: {error}"
        ) from error
    return dict(metadata)


def _shortened(space: gymnasium.Space[Any]) -> str:
    text = " ".join(repr(space).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
