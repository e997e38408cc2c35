"""The spec of the environment that is served, not of the proxy that a learner has."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec


def served_spec(remote: Mapping[str, Any], proxy: EnvSpec | None) -> EnvSpec | None:
    """Return the spec with which Gymnasium makes the served environment here.

    Only what this process has registered can be made: the id comes from another party, and must not
    import a module.

    Args:
        remote: the remote environment's spec, as OPENED describes it.
        proxy: the proxy's spec, whose id and limits are those of `remote`; None if that has none.

    Returns:
        The spec; without an entry point, `gymnasium.make` names the id that is not registered here.
    """
    if proxy is None:
        return None
    known = gymnasium.registry.get(proxy.id)
    kwargs = remote.get("kwargs")
    return replace(
        proxy if known is None else copy.deepcopy(known),
        entry_point=None if known is None else known.entry_point,
        reward_threshold=proxy.reward_threshold,
        nondeterministic=proxy.nondeterministic,
        max_episode_steps=proxy.max_episode_steps,
        order_enforce=proxy.order_enforce,
        disable_env_checker=proxy.disable_env_checker,
        kwargs=dict(kwargs) if isinstance(kwargs, dict) else {},
    )
