"""Reinforcement-learning environments as a service: Gymnasium over ZeroMQ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymwire.learner_agent.proxies.proxy_env import ProxyEnv as ProxyEnv
    from gymwire.learner_agent.proxies.proxy_vector_env import ProxyVectorEnv as ProxyVectorEnv

__all__ = ["ProxyEnv", "ProxyVectorEnv", "__version__"]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name in ("ProxyEnv", "ProxyVectorEnv"):
        from gymwire import learner_agent

        return getattr(learner_agent, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
