"""A vector that a library or the user's own code makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .asynchronous import settled
from .failures import WrongTarget, is_not
from .generators import GENERATOR, continued
from .hosted import Hosted
from .libraries import classes, vector_classes
from .spaces import SPACES, read_space
from .vectors import VECTOR, check_gym_vector


class HostedOwnVector(Hosted):
    """A vector that a library or the user's own code makes."""

    def __init__(self, env: Any, render_mode: str | None, given: Any) -> None:
        config = getattr(env, "config", None)
        self._config: Any = config if isinstance(config, Mapping) else {}
        for name in (*SPACES, "num_envs", "reset", "step", "close"):
            if not hasattr(env, name) and not (name == "num_envs" and name in self._config):
                raise WrongTarget(is_not(env, "a vector", name))
        check_gym_vector(env)
        super().__init__(env, render_mode, given)

    def facts(self) -> dict[str, Any]:
        """Return what the env agent must know, as attributes."""
        env, facts = self.env, super().facts()
        for name in SPACES:
            space = getattr(env, "single_" + name, self._spaces[name])
            facts["single_" + name] = read_space(space)
        if any(getattr(env, "metadata", None) is one.metadata for one in vector_classes()):
            facts["metadata"].pop("autoreset_mode", None)  # another vector's, as in `vectors.py`
        # EnvPool 0.8 has the number only in its `config`.
        num_envs = env.num_envs if hasattr(env, "num_envs") else self._config["num_envs"]
        mode = getattr(env, "autoreset_mode", None)
        facts.update(kind=VECTOR, num_envs=int(num_envs), autoreset_mode=mode)
        facts["batch_size"] = self._config.get("batch_size")
        return facts

    def _results(self, result: Any) -> Any:
        return settled(result)

    def reset(self, seed: Any, options: Any) -> Any:
        """Reset all environments, with the arguments that the env agent's own vectors get."""
        is_usual = isinstance(self.env, vector_classes())
        given = {
            name: value
            for name, value in (("seed", seed), ("options", options))
            if value is not None or (is_usual and self._reset_takes[name])
        }
        result = settled(self.env.reset(**given))
        self._check_spaces()
        return result

    def has_each(self, name: str) -> bool:
        """Return whether `get_attr` reaches an attribute, as in `runners/holders.py`."""
        env, wrappers = self.env, classes("VectorWrapper", ".vector")
        while isinstance(env, wrappers) and (name == GENERATOR or not hasattr(env, name)):
            env = env.env
        return hasattr(env, "get_attr")

    def get_attr(self, name: str) -> list[Any]:
        """Return an attribute of each environment, as `get` does."""
        return [self._described(name, one) for one in self._holder("get_attr").get_attr(name)]

    def set_attr(self, name: str, values: Any, kept: list[bool]) -> None:
        """Set an attribute of each environment, as `set` does; `kept`: who keeps its generator."""
        env = self._holder("get_attr")
        if kept:
            old = [one if keeps else None for one, keeps in zip(env.get_attr(name), kept)]
            values = list(map(continued, old, values))
            if all(a is b for a, b in zip(env.get_attr(name), values)):
                return
        env.set_attr(name, values)
