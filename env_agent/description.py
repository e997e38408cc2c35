"""What the broker and the learner learn about an environment before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.vector import AutoresetMode, VectorEnv

from gymwire.env_agent.factory import Env, Vector
from gymwire.protocol import values

MAX_BOUNDS = 64 * 1024  # bytes of the bounds of one space in OFFER


@dataclass(frozen=True, slots=True)
class Description:
    """The spaces of an environment, and the facts that OFFER and OPENED carry.

    For a vector the `single_` spaces are those of one environment, otherwise None. `spec` and
    `metadata` contain only values that can be serialized.
    """

    observation_space: Space[Any]
    action_space: Space[Any]
    single_observation_space: Space[Any] | None
    single_action_space: Space[Any] | None
    spec: dict[str, Any]
    metadata: dict[str, Any]
    render_mode: str | None


def describe(env: Env | Vector, name: str) -> Description:
    """Describe an environment or a vector; `name` is its id if it has no spec."""
    single_observation_space = single_action_space = None
    if isinstance(env, VectorEnv):
        single_observation_space = env.single_observation_space
        single_action_space = env.single_action_space
    return Description(
        observation_space=env.observation_space,
        action_space=env.action_space,
        single_observation_space=single_observation_space,
        single_action_space=single_action_space,
        spec=_spec(env, name),
        metadata=_metadata(env.metadata),
        render_mode=env.render_mode,
    )


def shorten(space: list[list[Any]]) -> list[list[Any]]:
    """Return the description of a space as OFFER carries it: large bounds only by their range.

    Bounds that differ per element may be larger than a broker accepts. A listing shows only their
    least and greatest value, and OPENED has all of them.
    """
    bounds = [one for node in space if node[0] == "Box" for one in node[3:] if type(one) is bytes]
    if sum(map(len, bounds)) <= MAX_BOUNDS:
        return space
    return [_shorten_box(*node[1:5]) if node[0] == "Box" else node for node in space]


def _shorten_box(dtype: str, shape: list[int], low: Any, high: Any) -> list[Any]:
    if type(low) is bytes:
        low = np.frombuffer(low, dtype).min().item()
    if type(high) is bytes:
        high = np.frombuffer(high, dtype).max().item()
    return ["Box", dtype, shape, low, high]


def _spec(env: Env | Vector, name: str) -> dict[str, Any]:
    spec = env.spec
    if spec is None:
        return {"id": name}
    fields = {
        "id": spec.id,
        "reward_threshold": spec.reward_threshold,
        "nondeterministic": spec.nondeterministic,
        "max_episode_steps": spec.max_episode_steps,
        "order_enforce": spec.order_enforce,
        "disable_env_checker": spec.disable_env_checker,
        "kwargs": {k: v for k, v in spec.kwargs.items() if k != "render_mode"},
    }
    return values.opaque(fields, root="spec")[0]  # type: ignore[no-any-return]


def _metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: v.value if isinstance(v, AutoresetMode) else v for k, v in metadata.items()}
    return values.opaque(plain, root="metadata")[0]  # type: ignore[no-any-return]
