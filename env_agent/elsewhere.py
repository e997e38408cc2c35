"""Environments that run elsewhere: in a process, or on a server, that may end by itself."""

from __future__ import annotations

from typing import Any

from gymnasium import Wrapper
from gymnasium.vector import SyncVectorEnv, VectorWrapper

from gymwire.protocol.errors import EnvironmentLost
from gymwire.protocol.messages import EndedBy


class EnvironmentGone(EnvironmentLost):
    """The process or the server of an environment has ended; its session with it.

    `why`: a clause.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"the environment is gone, because {why}", ended_by=EndedBy.ENVIRONMENT)


class RunsElsewhere:
    """The base of such environments and vectors."""

    @property
    def lost(self) -> str:
        """Why it is gone; "" if it is not."""
        raise NotImplementedError


def why_gone(env: Any) -> str:
    """Return why an environment or a vector is gone; "" if it is not, or does not run elsewhere."""
    while isinstance(env, Wrapper | VectorWrapper):
        env = env.env
    if isinstance(env, RunsElsewhere):
        return env.lost
    if isinstance(env, SyncVectorEnv):
        return next(filter(None, map(why_gone, env.envs)), "")
    return ""
