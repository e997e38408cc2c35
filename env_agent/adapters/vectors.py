"""Vector environments of other libraries, such as EnvPool, as Gymnasium's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from gymnasium import Space
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from gymwire.env_agent.closing import closed_on_error
from gymwire.env_agent.interpreter.child.failures import WrongTarget
from gymwire.env_agent.interpreter.child.vectors import check_gym_vector
from gymwire.protocol import logs, spaces
from gymwire.protocol.errors import ConfigurationError

_MODES = {mode.name.replace("_", "").lower(): mode for mode in AutoresetMode}


class AdaptedVector(VectorEnv[Any, Any, Any]):
    """A vector whose spaces, spec and metadata are what Gymnasium expects.

    Everything else is the wrapped vector's own: `step` is its method, and `reset` passes only the
    arguments that were given.

    Args:
        env: the vector of another library.
        mode: its autoreset mode.
    """

    _is_made = False

    def __init__(self, env: Any, mode: AutoresetMode) -> None:
        self._env = env
        self.num_envs = count(env)
        self.metadata = {**getattr(env, "metadata", {}), "autoreset_mode": mode}
        self.render_mode = getattr(env, "render_mode", None)
        spec = getattr(env, "spec", None)
        self.spec = spec if isinstance(spec, EnvSpec) else None
        self.single_observation_space, self.observation_space = spaces_of(env, "observation_space")
        self.single_action_space, self.action_space = spaces_of(env, "action_space")
        vars(self)["step"] = env.step
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        # What a learner sets is an attribute of the wrapped vector.
        if not self._is_made or isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
        else:
            self._set(name, value)

    def _set(self, name: str, value: Any) -> None:
        setattr(self._env, name, value)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Reset all environments. Some vectors take no seed, and some no options."""
        given = {"seed": seed, "options": options}
        return self._env.reset(**{k: value for k, value in given.items() if value is not None})

    def render(self) -> Any:
        """Return what the vector renders."""
        return self._env.render()

    def close(self, **_: Any) -> None:
        """Close the vector."""
        self._env.close()

    @property
    def np_random(self) -> Any:
        """The generator of the vector."""
        return self._env.np_random

    @np_random.setter
    def np_random(self, value: Any) -> None:
        self._env.np_random = value

    @property
    def np_random_seed(self) -> Any:
        """The seed of this generator."""
        return self._env.np_random_seed

    def __getattr__(self, name: str) -> Any:
        # Called for names that Python does not find, also while __init__ has not finished.
        if name == "_env":
            raise AttributeError(name)
        return getattr(self._env, name)


def count(env: Any) -> int:
    """Return the number of environments. EnvPool 0.8 has it only in its `config`."""
    return int(env.num_envs if hasattr(env, "num_envs") else env.config["num_envs"])


def spaces_of(env: Any, name: str) -> tuple[Space[Any], Space[Any]]:
    """Return the spaces of one environment and of the vector. EnvPool has only the former.

    Raises UnsupportedSpaceError if the space of the vector would be too large.
    """
    batched = getattr(env, name)
    single = getattr(env, f"single_{name}", batched)
    if batched != single:
        return single, batched
    num_envs = count(env)
    spaces.check_batched(single, num_envs, root=name)
    return single, batch_space(single, num_envs)


def adapt(
    made: Any, name: str, adapted: Callable[[Any, AutoresetMode], AdaptedVector] = AdaptedVector
) -> VectorEnv[Any, Any, Any]:
    """Return a vector with an autoreset mode that it declares, or that is assumed.

    If this raises, what the factory returned is closed.

    Args:
        made: what the factory returned.
        name: the factory's name.
        adapted: wraps a vector that is not as Gymnasium expects it.

    Raises:
        ConfigurationError: it is not a vector, is one of gym before 0.26, has `async def` methods,
            or returns only some of its environments in a step.
        UnsupportedSpaceError: the space of the vector would be too large.
    """
    with closed_on_error([made]):
        mode = _mode(made, name)
        is_usual = isinstance(made, VectorEnv) and isinstance(made.spec, EnvSpec | None)
        single = getattr(made, "single_observation_space", None)
        if not is_usual or made.observation_space == single:
            return adapted(made, mode)
        # Some classes write the mode of their last vector into the dict that all vectors share.
        made.metadata = {**made.metadata, "autoreset_mode": mode}
        return made  # type: ignore[no-any-return]


def _mode(made: Any, name: str) -> AutoresetMode:
    """Return the autoreset mode of a vector. Raises ConfigurationError, as `adapt` does."""
    check_of_gym(made, name)
    needed = ("observation_space", "action_space", "reset", "step", "close")
    config = getattr(made, "config", None)
    config = config if isinstance(config, Mapping) else {}
    is_counted = hasattr(made, "num_envs") or "num_envs" in config
    if not (is_counted and all(hasattr(made, one) for one in needed)):
        raise ConfigurationError(
            f"{name} returned {type(made).__name__}, not a gymnasium.vector.VectorEnv. Check the "
            f"class or factory that the env agent was started with."
        )
    methods = ("reset", "step", "render", "close")
    waiting = [one for one in methods if inspect.iscoroutinefunction(getattr(made, one, None))]
    if waiting:
        raise ConfigurationError(
            f"{name} made a {type(made).__name__} with `async def` methods, but a vector without "
            f"--python cannot be asynchronous. Remove `async` from {', '.join(waiting)}, or let "
            f"the factory make single environments, which may be asynchronous."
        )
    num_envs, batch_size = count(made), config.get("batch_size")
    if batch_size not in (None, num_envs):  # an asynchronous EnvPool
        raise ConfigurationError(
            f"{name} made a vector of {num_envs} environments of which each step returns only "
            f"{batch_size}. Leave batch_size out. Learners that do not wait for the slowest "
            f"environments open several sessions, and use send() and recv()."
        )
    mode = declared_mode(made)
    if mode is None:
        mode = AutoresetMode.NEXT_STEP
        logs.logger().warning(
            "vector environment declares no autoreset mode", env=name, assumed=mode.value
        )
    return mode


def warn_of_equal_seeds(made: VectorEnv[Any, Any, Any], name: str) -> None:
    """Warn of two open vectors that were made with the same seed, as EnvPool's factories do.

    Such vectors ignore the seed of a reset, so both contain the same environments. There is one
    warning for each name: a learner may choose the seeds.
    """
    config = getattr(made, "config", None)
    seed = config.get("seed") if isinstance(config, Mapping) else None
    if type(seed) is not int:
        return
    key = name, seed
    if key in _LAST and name not in _WARNED:
        _WARNED.add(name)
        logs.logger().warning("vectors of several sessions have the same seed", env=name, seed=seed)
    _LAST[key] = made


_LAST: WeakValueDictionary[tuple[str, int], Any] = WeakValueDictionary()
_WARNED: set[str] = set()


def check_of_gym(made: Any, name: str) -> None:
    """Raise ConfigurationError if this is a vector of gym before 0.26."""
    try:
        check_gym_vector(made)
    except WrongTarget as error:
        raise ConfigurationError(f"{name}: {error}.") from None


def check_request(
    made: VectorEnv[Any, Any, Any],
    name: str,
    num_envs: int,
    mode: AutoresetMode,
    *,
    takes_num_envs: bool,
) -> None:
    """Raise ConfigurationError if a factory has made another vector than the learner requested."""
    check_number(name, made.num_envs, num_envs, takes_num_envs=takes_num_envs)
    check_mode(made, name, mode)


def check_mode(made: VectorEnv[Any, Any, Any], name: str, mode: AutoresetMode) -> None:
    """Raise ConfigurationError if a vector has another autoreset mode than requested."""
    has = made.metadata["autoreset_mode"]
    if has != mode:
        raise ConfigurationError(
            f"{name} made a vector with the autoreset mode {has.value!r}, but the learner "
            f"requested {mode.value!r}. Give the factory a parameter autoreset_mode and pass it on."
        )


def check_number(name: str, has: Any, num_envs: int, *, takes_num_envs: bool) -> None:
    """Raise ConfigurationError if a vector has another number of environments than requested."""
    if has != num_envs:
        advice = "" if takes_num_envs else " Give the factory a parameter num_envs."
        raise ConfigurationError(
            f"{name} made {has!r:.100} environments, but the learner requested {num_envs}.{advice}"
        )


def declared_mode(made: Any) -> AutoresetMode | None:
    """Return the autoreset mode that a vector declares, by Gymnasium's enum or as a text."""
    metadata = getattr(made, "metadata", None) or {}
    shared = () if metadata is VectorEnv.metadata else (metadata.get("autoreset_mode"),)
    for found in (getattr(made, "autoreset_mode", None), *shared):
        for text in (getattr(found, "value", found), getattr(found, "name", None)):
            known = str(text).replace("_", "").replace("-", "").replace(" ", "").lower()
            if known in _MODES:
                return _MODES[known]
    return None
