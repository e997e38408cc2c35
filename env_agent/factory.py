"""From what a user writes after `--env` to environments."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from protocol.errors import ConfigurationError

Env = gymnasium.Env[Any, Any]


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
            return gymnasium.make(self.name, render_mode=render_mode, **merged)
        if render_mode is not None:
            merged["render_mode"] = render_mode
        made = self.make_one(**merged)
        if not isinstance(made, gymnasium.Env):
            raise ConfigurationError(
                f"{self.name} returned a {type(made).__name__}, not a gymnasium.Env: check the "
                f"class or factory that the env agent was started with."
            )
        return made

    def make_vector(
        self, num_envs: int, mode: AutoresetMode, render_mode: str | None, kwargs: Mapping[str, Any]
    ) -> VectorEnv[Any, Any, Any]:
        """A vector: the environment's own where it registers one, else a SyncVectorEnv."""
        merged = {**self.kwargs, **kwargs}
        if self.make_one is None:
            spec = gymnasium.spec(self.name)
            if spec.vector_entry_point is not None:
                made = gymnasium.make_vec(
                    self.name,
                    num_envs=num_envs,
                    vectorization_mode="vector_entry_point",
                    render_mode=render_mode,
                    **merged,
                )
                if made.metadata.get("autoreset_mode") == mode:
                    return made
                made.close()
        elif _makes_vectors(self.make_one):
            return self.make_one(num_envs=num_envs, **merged)  # type: ignore[no-any-return]
        return SyncVectorEnv(
            [lambda: self.make(render_mode, kwargs)] * num_envs, autoreset_mode=mode
        )


def _makes_vectors(make_one: Callable[..., Any]) -> bool:
    return isinstance(make_one, type) and issubclass(make_one, VectorEnv)


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
            f"There is no environment {name!r} here: {str(error).rstrip('.')}. If another package "
            f"registers it, write --env package:{name}; for a class of your own, "
            f"--env package.module:MyEnv."
        ) from None
    entry_point = spec.entry_point
    if isinstance(entry_point, str):
        _import(entry_point.partition(":")[0], name)
