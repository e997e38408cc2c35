"""The agent that trains on environments which other agents own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from gymwire.learner_agent.proxies.proxy_env import ProxyEnv as ProxyEnv
    from gymwire.learner_agent.proxies.proxy_vector_env import ProxyVectorEnv as ProxyVectorEnv

__all__ = ["ProxyEnv", "ProxyVectorEnv"]

gymnasium.register(
    id="gymwire/Proxy-v0",
    entry_point="gymwire.learner_agent.proxies.proxy_env:make_proxy",
    vector_entry_point="gymwire.learner_agent.proxies.proxy_vector_env:ProxyVectorEnv",
    # The env agent made the environment with its checks and its time limit: once is enough.
    order_enforce=False,
    disable_env_checker=True,
)


def __getattr__(name: str) -> Any:
    # Only when it is asked for: the import brings the sockets with it.
    if name == "ProxyEnv":
        from gymwire.learner_agent.proxies.proxy_env import ProxyEnv

        return ProxyEnv
    if name == "ProxyVectorEnv":
        from gymwire.learner_agent.proxies.proxy_vector_env import ProxyVectorEnv

        return ProxyVectorEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
