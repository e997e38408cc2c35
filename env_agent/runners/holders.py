"""Find the vector that has an attribute, inside Gymnasium's wrappers."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import VectorWrapper

from gymwire.env_agent.interpreter.child.generators import GENERATOR
from gymwire.env_agent.interpreter.child_vector import AdaptedOwnVector


def find_holder(env: Any, name: str) -> tuple[Any, bool]:
    """Return the vector that has an attribute, and whether its `get_attr` and `set_attr` reach it.

    It is `env` or a vector inside Gymnasium's wrappers, which pass `np_random` on, but not
    `get_attr` and `set_attr`.
    """
    while isinstance(env, VectorWrapper) and (name == GENERATOR or not hasattr(env, name)):
        env = env.env
    is_each = env.has_each(name) if isinstance(env, AdaptedOwnVector) else hasattr(env, "get_attr")
    return env, is_each
