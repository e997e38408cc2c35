"""Checks of what environments with several agents return, and errors about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class WrongResult(ValueError):
    """An environment has returned something wrong, and the text says what."""


def unpack(result: Any, method: str, names: tuple[str, ...]) -> Any:
    """Return the values that a method of a ParallelEnv has returned. Raises WrongResult."""
    is_right = isinstance(result, (tuple, list))
    if not is_right or len(result) != len(names):
        found = len(result) if is_right else type(result).__name__
        raise WrongResult(
            f"{method}() of a ParallelEnv must return {len(names)} values ({', '.join(names)}), "
            f"not {found}."
        )
    return result


def by_agent(values: Any, name: str, whose: str) -> dict[Any, Any]:
    """Return a copy of values by agent, as a dict. Raises WrongResult.

    Args:
        values: a dict, or another mapping: some environments return a defaultdict.
        name: what the text calls them.
        whose: what has returned them, or has them as an attribute.
    """
    if not isinstance(values, (dict, Mapping)):
        raise WrongResult(f"{name} of {whose} must be a dict by agent, not {values!r:.100}.")
    return dict(values)
