"""Vectors that a class, a factory or a registered id makes."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from .failures import WrongTarget, describe_exception
from .libraries import classes, vector_classes
from .making import make
from .signatures import parameters

VECTOR = "vector"  # a vector that the environment's own library makes


def check_gym_vector(made: Any) -> None:
    """Raise WrongTarget if this is a vector of gym before 0.26."""
    if isinstance(made, getattr(sys.modules.get("gym.vector"), "VectorEnv", ())):
        bare: Any = getattr(made, "unwrapped", made)
        names, others = parameters(bare.reset)
        if "return_info" in names or not ("seed" in names or others):
            raise WrongTarget(
                f"the class or factory made a {type(made).__name__} of gym before 0.26, whose "
                f"vectors cannot be served. Install gym 0.26, or let the factory make a single "
                f"environment: gymwire makes the vector"
            )


def makes_vectors(target: Any) -> bool:
    """Return whether this is a class of vectors, or a function with a parameter `num_envs`.

    An environment of Gymnasium or gym may have such a parameter, too.
    """
    if inspect.isclass(target):
        if issubclass(target, vector_classes()):
            return True
        if issubclass(target, classes("Env")):
            return False
    return callable(target) and "num_envs" in parameters(target)[0]


def make_vector(
    target: Any, render_mode: str | None, kwargs: dict[str, Any], num_envs: int, mode: str | None
) -> tuple[Any, dict[str, Any] | None]:
    """Make a vector, in this autoreset mode if there is a choice.

    Also return what the env agent must know: whether this is the class that is registered with an
    id, whether the maker takes `num_envs`, and why it refused the mode, if it did. None: there is
    no vector class for an id.
    """
    if isinstance(target, str):
        return _make_registered_vector(target, render_mode, kwargs, num_envs, mode)
    names, others = parameters(target)
    if mode is not None and "autoreset_mode" in names:
        kwargs["autoreset_mode"] = _autoreset_mode(mode)
    takes_num_envs = "num_envs" in names or others
    if takes_num_envs:
        kwargs["num_envs"] = num_envs
    facts = {"is_registered": False, "takes_num_envs": takes_num_envs, "refused": None}
    return make(target, render_mode, kwargs), facts


def _autoreset_mode(text: str | None) -> Any:
    modes: Any = getattr(sys.modules.get("gymnasium.vector"), "AutoresetMode", None)
    return text if modes is None else modes(text)


def _make_registered_vector(
    name: str, render_mode: str | None, kwargs: dict[str, Any], num_envs: int, mode: str | None
) -> tuple[Any, dict[str, Any] | None]:
    """Make a vector of the class that is registered with an id, as `factory.py` does."""
    try:
        registration: Any = importlib.import_module("gymnasium.envs.registration")
    except ImportError:
        return None, None
    name = name.rpartition(":")[2]
    entry = getattr(registration.registry.get(name), "vector_entry_point", None)
    if entry is None or not hasattr(registration, "VectorizeMode"):  # before gymnasium 1.0
        return None, None
    if isinstance(entry, str):
        entry = registration.load_env_creator(entry)
    names, others = parameters(entry)
    kwargs.update(num_envs=num_envs, vectorization_mode="vector_entry_point")
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    facts: dict[str, Any] = {"is_registered": True, "takes_num_envs": True, "refused": None}
    if "autoreset_mode" in names or others:
        pid = os.getpid()
        try:
            more = dict(kwargs, autoreset_mode=_autoreset_mode(mode))
            return registration.make_vec(name, **more), facts
        except Exception as error:  # it may take the mode in another form, or have only one
            if os.getpid() != pid or not ("autoreset_mode" in names or type(error) is TypeError):
                raise
            if "autoreset_mode" in names:
                facts["refused"] = describe_exception(error)
    return registration.make_vec(name, **kwargs), facts
