"""From what a user writes after `--env` to environments."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, VectorizeMode
from gymnasium.vector import AutoresetMode, VectorEnv

from env_agent.hosted_vector import HostedVector
from protocol.errors import ConfigurationError

Env = gymnasium.Env[Any, Any]
Vector = VectorEnv[Any, Any, Any]


@dataclass(frozen=True)
class Factory:
    """Makes environments: from a Gymnasium id, or from a class or function of the user's."""

    name: str
    make_one: Callable[..., Any] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def make(self, render_mode: str | None, kwargs: Mapping[str, Any]) -> Env:
        """One environment. What its constructor raises is passed on."""
        merged = {**self.kwargs, **kwargs}
        if self.make_one is None:
            merged.pop("vectorization_mode", None)
            return gymnasium.make(self.name, render_mode=render_mode, **merged)
        if self.makes_vectors:
            raise ConfigurationError(
                f"{self.name} makes vectors of environments only: open it with ProxyVectorEnv."
            )
        if render_mode is not None:
            merged["render_mode"] = render_mode
        made = self.make_one(**merged)
        if not isinstance(made, gymnasium.Env):
            raise ConfigurationError(
                f"{self.name} returned {type(made).__name__}, not a gymnasium.Env: check the "
                f"class or factory that the env agent was started with."
            )
        return made

    def make_first(self) -> Env | Vector:
        """What shows the spaces: one environment, or a vector of one if it makes only vectors."""
        if self.make_one is not None and self.makes_vectors:
            return _from_factory(self.make_one, self.name, 1, None, dict(self.kwargs))
        return self.make(None, {})

    @property
    def makes_vectors(self) -> bool:
        """Whether this is a VectorEnv class, or a function that takes `num_envs`."""
        make = self.make_one
        if isinstance(make, type):
            return issubclass(make, VectorEnv)
        return make is not None and _takes(make, "num_envs")

    def make_vector(
        self,
        num_envs: int,
        mode: AutoresetMode,
        render_mode: str | None,
        kwargs: Mapping[str, Any],
    ) -> Vector:
        """A vector, as `gymnasium.make_vec` makes it: of the environment's own kind if it has one.

        Where that kind has another autoreset mode, or `vectorization_mode="sync"` is among the
        keyword arguments, it is a SyncVectorEnv. What a constructor raises is passed on.
        """
        merged = {**self.kwargs, **kwargs}
        if self.make_one is None:
            return _registered(self.name, num_envs, mode, render_mode, merged)
        if self.makes_vectors:
            if render_mode is not None:
                merged["render_mode"] = render_mode
            return _from_factory(self.make_one, self.name, num_envs, mode, merged)
        return _sync([lambda: self.make(render_mode, kwargs)] * num_envs, mode)


def _registered(
    name: str,
    num_envs: int,
    mode: AutoresetMode,
    render_mode: str | None,
    kwargs: dict[str, Any],
) -> Vector:
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    own = gymnasium.spec(name).vector_entry_point is not None
    wanted = VectorizeMode(
        kwargs.pop("vectorization_mode", "vector_entry_point" if own else "sync")
    )
    if wanted is VectorizeMode.ASYNC:
        raise ConfigurationError(
            'vectorization_mode is "sync" or "vector_entry_point" here; for several processes, let '
            "the env agent have several workers and open as many sessions."
        )
    if wanted is VectorizeMode.VECTOR_ENTRY_POINT:
        made = gymnasium.make_vec(name, num_envs=num_envs, vectorization_mode=wanted, **kwargs)
        if made.metadata.get("autoreset_mode") == mode:
            return made
        made.close()
    return _sync([lambda: gymnasium.make(name, **kwargs)] * num_envs, mode)


def _sync(makers: Sequence[Callable[[], Env]], mode: AutoresetMode) -> Vector:
    # Observations go on the wire before the next step, so they need no copy of their own.
    made = HostedVector(makers, copy=False, autoreset_mode=mode)
    made.spec = made.envs[0].spec
    return made


def _from_factory(
    make: Callable[..., Any],
    name: str,
    num_envs: int,
    mode: AutoresetMode | None,
    kwargs: dict[str, Any],
) -> Vector:
    if mode is not None and _takes(make, "autoreset_mode"):
        kwargs["autoreset_mode"] = mode
    made = make(num_envs=num_envs, **kwargs)
    if not isinstance(made, VectorEnv):
        raise ConfigurationError(
            f"{name} returned {type(made).__name__}, not a gymnasium.vector.VectorEnv: check the "
            f"class or factory that the env agent was started with."
        )
    has = made.metadata.get("autoreset_mode")
    if mode is not None and (has != mode or made.num_envs != num_envs):
        made.close()
        raise ConfigurationError(
            f"{name} made {made.num_envs} environments in the autoreset mode "
            f"{getattr(has, 'value', has)!r}; {num_envs} in {mode.value!r} were asked for."
        )
    return made


def _takes(make: Callable[..., Any], parameter: str) -> bool:
    try:
        return parameter in inspect.signature(make).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False


def resolve(name: str, kwargs: Mapping[str, Any]) -> Factory:
    """Understand `CartPole-v1`, `module:Id-v0` or `package.module:MyEnv`.

    Modules are found as Python finds them, and in the current folder. Raises ConfigurationError.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    module_name, colon, attribute = name.partition(":")
    if colon:
        module = _import(module_name, name)
        target = module
        for part in attribute.split("."):
            target = getattr(target, part, None)
        if target is not None:
            if not callable(target):
                raise ConfigurationError(f"{name}: {attribute} is neither a class nor a factory.")
            return Factory(name, target, kwargs)
        if attribute not in gymnasium.registry:
            raise ConfigurationError(
                f"{name}: the module {module_name!r} has no {attribute!r}, and registers no "
                f"environment of that id either. Check the spelling."
            )
    else:
        _check_registered(name)
    return Factory(name, None, kwargs)


def _import(module_name: str, name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if missing == module_name or module_name.startswith(f"{missing}."):
            hint = "install its package here, or start the env agent in the folder that holds it"
        else:
            hint = f"{module_name} needs it: pip install {missing.partition('.')[0]}"
        raise ConfigurationError(f"{name}: there is no module {missing!r}; {hint}.") from None
    except Exception as error:
        raise ConfigurationError(
            f"{name}: importing {module_name!r} raised {type(error).__name__}: {error}"
        ) from error


def _check_registered(name: str) -> None:
    try:
        spec: EnvSpec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise ConfigurationError(
            f"There is no environment {name!r} here: {str(error).rstrip('.?')}. If another package "
            f"registers it, write --env package:{name}; for a class of your own, "
            f"--env package.module:MyEnv."
        ) from None
    entry_point = spec.entry_point
    if isinstance(entry_point, str):
        _import(entry_point.partition(":")[0], name)
