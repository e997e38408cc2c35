"""What the broker and the learner learn about an environment before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from gymwire.env_agent.bounded_cache import BoundedCache
from gymwire.env_agent.factory import Env, Vector
from gymwire.protocol import values
from gymwire.protocol.errors import EncodingError

MAX_BOUNDS = 64 * 1024  # bytes of the bounds of one space in OFFER
MAX_METADATA = 64  # of different classes, for which it is known what they become,
MAX_DEPTH = 3  # and how deeply they may be nested
PER_BYTE = 128  # bytes of memory that metadata and their key may take for each byte when encoded
_ATOMS = {str, int, bool, type(None)}
MAX_KWARGS = 64 * 1024  # bytes of the keyword arguments in a spec, which only people read


@dataclass(frozen=True, slots=True)
class Description:
    """The spaces of an environment, and the facts that OFFER and OPENED carry.

    For a vector the `single_` spaces are those of one environment, otherwise None. `spec` and
    `metadata` contain only values that can be serialized. `left_out`: the keyword arguments that
    `spec` does not contain, because they are too large.
    """

    observation_space: Space[Any]
    action_space: Space[Any]
    single_observation_space: Space[Any] | None
    single_action_space: Space[Any] | None
    spec: dict[str, Any]
    metadata: dict[str, Any]
    render_mode: str | None
    left_out: list[str]


def describe(env: Env | Vector, name: str) -> Description:
    """Describe an environment or a vector; `name` is its id if it has no spec."""
    single_observation_space = single_action_space = None
    if isinstance(env, VectorEnv):
        single_observation_space = env.single_observation_space
        single_action_space = env.single_action_space
    spec, left_out = _spec(env, name)
    return Description(
        observation_space=env.observation_space,
        action_space=env.action_space,
        single_observation_space=single_observation_space,
        single_action_space=single_action_space,
        spec=spec,
        metadata=_metadata(env.metadata),
        render_mode=env.render_mode,
        left_out=left_out,
    )


def shorten(space: list[list[Any]]) -> list[list[Any]]:
    """Return the description of a space as OFFER carries it: large bounds only by their range.

    Bounds that differ per element may be larger than a broker accepts. A listing shows only their
    least and greatest value, and OPENED has all of them.
    """
    bounds = [one for node in space for one in node[3:] if type(one) is bytes]
    if sum(map(len, bounds)) <= MAX_BOUNDS:
        return space
    return [_SHORTEN.get(node[0], list)(node) for node in space]


def _shorten_box(node: list[Any]) -> list[Any]:
    kind, dtype, shape, low, high = node[:5]
    return [kind, dtype, shape, _extreme(np.min, dtype, low), _extreme(np.max, dtype, high)]


def _shorten_multi_discrete(node: list[Any]) -> list[Any]:
    kind, dtype, shape, nvec, start = node
    return [kind, dtype, shape, _extreme(np.max, dtype, nvec), _extreme(np.min, dtype, start)]


_SHORTEN: dict[str, Callable[[list[Any]], list[Any]]] = {
    "Box": _shorten_box,
    "MultiDiscrete": _shorten_multi_discrete,
}


def _extreme(of: Callable[[Any], Any], dtype: str, numbers: Any) -> Any:
    """Return the extreme of numbers that are described as the raw bytes of an array, or as one."""
    return of(np.frombuffer(numbers, dtype)).item() if type(numbers) is bytes else numbers


def _spec(env: Env | Vector, name: str) -> tuple[dict[str, Any], list[str]]:
    """Return the spec, and which keyword arguments are too large for it."""
    spec = env.spec
    if not isinstance(spec, EnvSpec):  # None, or what another library calls a spec
        return {"id": name}, []
    kwargs, left_out = _kwargs(spec.kwargs)
    fields = {
        "id": spec.id,
        "reward_threshold": spec.reward_threshold,
        "nondeterministic": spec.nondeterministic,
        "max_episode_steps": spec.max_episode_steps,
        "order_enforce": spec.order_enforce,
        "disable_env_checker": spec.disable_env_checker,
    }
    return values.opaque(fields, root="spec")[0] | {"kwargs": kwargs}, left_out


def _kwargs(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the keyword arguments that fit into MAX_KWARGS, and the names of the others."""
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    size = 0.0
    for name, value in given.items():
        if name == "render_mode":
            continue
        kept[name], nbytes = _sized(value)
        if size + nbytes > MAX_KWARGS:
            del kept[name]
            left_out.append(name)
        else:
            size += nbytes
    return kept, left_out


def _sized(value: Any) -> tuple[Any, float]:
    """Return a value that can be serialized, and how many bytes it has."""
    if _is_large(value):
        return None, math.inf
    value = values.opaque(value)[0]
    try:
        return value, len(values.encode(value))
    except EncodingError:  # it would take too much memory
        return None, math.inf


def _is_large(value: Any) -> bool:
    """Return whether the parts of a value have more than MAX_KWARGS bytes. Stops counting then."""
    left, waiting = MAX_KWARGS, [value]
    while waiting and left >= 0:
        one = waiting.pop()
        match one:
            case dict():
                waiting += [*one.keys(), *one.values()]
            case list() | tuple():
                waiting += one
            case np.ndarray():
                left -= one.nbytes
            case str() | bytes():
                left -= len(one)
        left -= 1
    return left < 0


_METADATA = BoundedCache[dict[str, Any]](MAX_METADATA)
"""What metadata have become that consist of plain values. All sessions of a class have the same."""


def _metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: v.value if isinstance(v, AutoresetMode) else v for k, v in metadata.items()}
    key = _key(plain)
    found = _METADATA.get(key)
    if found is None:
        found = values.opaque(plain, root="metadata")[0]
        if key is not None and not _is_large(plain):
            _METADATA.keep(key, found, len(values.encode(found)) * PER_BYTE)
    return found


def _key(value: Any, depth: int = 0) -> Hashable | None:
    """Return a key that is equal only for equal values of the same types; None: there is none."""
    kind = type(value)
    if kind is float:
        return kind, value.hex()  # which tells the zeros apart
    if kind in _ATOMS:
        return kind, value
    if depth > MAX_DEPTH or kind not in (list, dict):
        return None
    parts = value if kind is list else [one for item in value.items() for one in item]
    keys = [_key(one, depth + 1) for one in parts]
    return None if None in keys else (kind, *keys)
