"""Remote environments for asynchronous code. Needs the extra `gymwire[aio]`."""

from gymwire.learner_agent.aio.proxy_env import Connection, ProxyEnv

__all__ = ["Connection", "ProxyEnv"]
