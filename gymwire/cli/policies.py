"""What `--policy` names: a function or class of the user, a saved learner or a saved model."""

from __future__ import annotations

import importlib
import json
import re
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import structlog

from gymwire.env_agent import env_names
from gymwire.learner_agent.training import learners
from gymwire.protocol.errors import ConfigurationError, GymwireError
from gymwire.protocol.extras import missing

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecNormalize

Env = gymnasium.Env[Any, Any]
Policy = Callable[[Any, Mapping[str, Any]], Any]
"""A function that takes an observation and its info, and returns an action."""

MODEL = ".zip"  # the suffix of a saved model
LEARNER = ".npz"  # the usual one of a saved learner
MAX_DATA = 64 * 1024 * 1024  # bytes of the settings of a model


def load(text: str | None, env: Env, seed: int | None) -> Policy:
    """Return the policy that a text names; None is the policy of random actions.

    A class is called with the observation space and the action space of the environment. Loading a
    policy runs its code, but that of a learner which `gymwire train` saved runs none.

    Raises:
        ConfigurationError: there is no such policy, or it does not fit the environment.
        NoLearnerFits: it is a saved learner, and none can play the environment.
    """
    if text is None:
        env.action_space.seed(seed)
        return lambda observation, info: env.action_space.sample()
    if text.endswith(LEARNER) and not Path(text).exists():
        raise ConfigurationError(f"Cannot read {text}: there is no such file.")
    if text.endswith(LEARNER) or learners.is_saved(text):
        return learners.load_for(text, env.observation_space, env.action_space, seed).best
    if text.endswith(MODEL):
        return _model(Path(text), env)
    if text.endswith(".py"):
        raise ConfigurationError(
            f"{text} is a file. Also name the class or function in it, such as {text}:my_policy."
        )
    name, _, attribute = text.rpartition(":")
    if not name or not attribute:
        raise ConfigurationError(
            f"{text!r} is not a policy. Write module:NAME or ./file.py:NAME of a function or a "
            f"class, or name the file of a learner that gymwire train has saved, or the {MODEL} "
            f"file of a Stable-Baselines3 model."
        )
    with _naming(text):
        found: Any = _module(name)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigurationError(f"{name} has no function or class {attribute!r}.")
    choose: Any = found
    if isinstance(found, type):
        with _naming(text):
            choose = found(env.observation_space, env.action_space)
        if not callable(choose):
            raise ConfigurationError(
                f"{text} is not a policy, since its objects cannot be called. Name a function that "
                f"takes an observation and returns an action, or a class with such a __call__."
            )

    def act(observation: Any, info: Mapping[str, Any]) -> Any:
        with _naming(text):
            return choose(observation)

    return act


@contextmanager
def _naming(text: str) -> Iterator[None]:
    """Let what the user's code raises be an error that shows the user's code only."""
    try:
        yield
    except GymwireError:
        raise
    except Exception as error:
        said = f"{text} raised {type(error).__name__}: {error}"
        raise ConfigurationError(f"{said}\n\n{indent(_trace(error), '    ')}") from error


def _trace(error: Exception) -> str:
    """Return the traceback of an error, without what is above the user's code."""
    above = (__file__, env_names.__file__, importlib.__file__, "<frozen importlib")
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(above):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()


def _module(name: str) -> Any:
    """Import a module or a file. Raises ConfigurationError if there is none."""
    env_names.add_current_folder()
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"There is no module {error.name!r}. Start the command in the folder that contains "
                f"it, or install its package."
            ) from None
    path = Path(name)
    if not path.is_file():
        raise ConfigurationError(f"There is no file {name}.")
    return env_names.load_file(path)


# --- models of Stable-Baselines3 ------------------------------------------------------------------


def _model(path: Path, env: Env) -> Policy:
    algorithm = _algorithm(path)
    if find_spec("stable_baselines3") is None:
        raise ConfigurationError(missing(f"{path} is played with Stable-Baselines3", "sb3"))
    import stable_baselines3

    model = getattr(stable_baselines3, algorithm).load(path, device="cpu")
    statistics = _statistics(path)
    for name in ("observation_space", "action_space"):
        learned, found = getattr(model, name), getattr(env, name)
        allowed = [found, _channels_first(found)]
        if statistics is not None and name == "observation_space":
            _check_statistics(*statistics, found)
            normalized = statistics[1].observation_space  # normalized images have other bounds
            allowed += [normalized, _channels_first(normalized)]
        if learned not in allowed:
            mine, its = (" ".join(str(space).split()) for space in (learned, found))
            raise ConfigurationError(
                f"{path} was trained with the {name} {mine}, but this environment has {its}. "
                f"Play it where it was trained, or use another model."
            )

    def act(observation: Any, info: Mapping[str, Any]) -> Any:
        if statistics is not None:
            observation = statistics[1].normalize_obs(observation)
        action = model.predict(observation, deterministic=True)[0]
        return action[()] if isinstance(action, np.ndarray) else action  # a number has no axes

    return act


def _statistics(model: Path) -> tuple[Path, VecNormalize] | None:
    """Return the file with the statistics of a model's VecNormalize, and what it holds.

    None if there is no such file beside the model. Raises ConfigurationError if it holds something
    else.
    """
    from stable_baselines3.common.save_util import load_from_pkl
    from stable_baselines3.common.vec_env import VecNormalize

    # A CheckpointCallback saves NAME_500_steps.zip and NAME_vecnormalize_500_steps.pkl.
    checkpoint = re.sub(r"_(?=\d+_steps$)", "_vecnormalize_", model.stem)
    names = (f"{checkpoint}.pkl", f"{model.stem}_vecnormalize.pkl", "vecnormalize.pkl")
    path = next((one for name in names if (one := model.with_name(name)).is_file()), None)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            found = load_from_pkl(file)
    except Exception as error:  # noqa: BLE001 - of unpickling: anything
        raise ConfigurationError(f"Cannot load {path}: {error}.") from None
    if not isinstance(found, VecNormalize):
        raise ConfigurationError(f"{path} holds no VecNormalize, but {type(found).__name__}.")
    structlog.get_logger().info("observations normalized", statistics=str(path))
    return path, found


def _check_statistics(path: Path, statistics: VecNormalize, space: gymnasium.Space[Any]) -> None:
    """Raise ConfigurationError if observations of this space cannot be normalized with these."""
    if _shapes(statistics.observation_space) != _shapes(space):
        raise ConfigurationError(
            f"{path} has the statistics of {statistics.observation_space}, and this environment "
            f"has {space}. Move the file away if it is not the model's."
        )


def _shapes(space: gymnasium.Space[Any]) -> Any:
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: _shapes(part) for key, part in space.spaces.items()}
    return space.shape


def _channels_first(space: gymnasium.Space[Any]) -> gymnasium.Space[Any]:
    """Return the space with each image as Stable-Baselines3 trains on it: its channels first."""
    from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
    from stable_baselines3.common.vec_env import VecTransposeImage

    if isinstance(space, gymnasium.spaces.Dict):
        parts = {key: _channels_first(part) for key, part in space.spaces.items()}
        return gymnasium.spaces.Dict(parts)
    if is_image_space(space) and not is_image_space_channels_first(space):
        return VecTransposeImage.transpose_space(space)  # type: ignore[no-any-return]
    return space


def _algorithm(path: Path) -> str:
    """Return the class that saved a model: the file does not name it, but its policy and settings.

    Raises ConfigurationError if the file is not a model, or of an unknown kind.
    """
    try:
        with zipfile.ZipFile(path) as file, file.open("data") as data:
            settings = json.loads(data.read(MAX_DATA))
        policy = settings["policy_class"]["__module__"]
    except FileNotFoundError:
        raise ConfigurationError(f"There is no file {path}.") from None
    except Exception as error:  # noqa: BLE001 - the file may hold anything
        raise ConfigurationError(f"{path} is not a Stable-Baselines3 model: {error}.") from None
    if policy == "stable_baselines3.common.policies":
        return "PPO" if "clip_range" in settings else "A2C"
    for name in ("dqn", "sac", "td3"):
        if policy == f"stable_baselines3.{name}.policies":
            return name.upper()
    raise ConfigurationError(
        f"{path} holds a policy of {policy}, which gymwire cannot choose a class for. Load it in a "
        f"function of your own, and pass --policy module:NAME."
    )
