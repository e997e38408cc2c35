"""Checks of what environments with several agents return, and errors about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_USUAL = frozenset((bool, int, float))  # types of rewards and flags
_NUMERIC = "biuf"  # kinds of dtypes


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


def check_agents(values: dict[Any, Any], agents: Iterable[Any], name: str, whose: str) -> None:
    """Raise WrongResult if a value by agent is missing."""
    for agent in agents:
        if agent not in values:
            raise WrongResult(f"{name} of {whose} lack agent {agent!r:.100}: {values!r:.100}.")


def check_numbers(values: dict[Any, Any], name: str, whose: str) -> None:
    """Raise WrongResult if a reward by agent is not a number, or a flag neither True nor False.

    A reward may also be an array of numbers: an agent can have several objectives.
    """
    if _USUAL.issuperset(map(type, values.values())):
        return
    for agent, value in values.items():
        if type(value) not in _USUAL and not _is_numeric(value):
            what = "a number" if name.endswith("rewards") else "True or False"
            raise WrongResult(
                f"{name}[{agent!r:.100}] of {whose} must be {what}, not {value!r:.100}."
            )


def _is_numeric(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is not None:  # of NumPy, or of a library whose dtypes have no kinds, and no text
        return getattr(dtype, "kind", "f") in _NUMERIC
    if isinstance(value, (str, bytes)):  # `float` reads numbers from them
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
