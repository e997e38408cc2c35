"""Remote environments for Stable-Baselines3. Needs the extra `gymwire[sb3]`."""

from gymwire.learner_agent.adapters.sb3 import ProxyVecEnv

__all__ = ["ProxyVecEnv"]
