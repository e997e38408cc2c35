"""The proxies with which doors that speak JSON play for a visitor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from gymnasium import Space

from gymwire.gateway.app import TIMEOUT_S, Gateway
from gymwire.gateway.tokens import Visitor
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.protocol import spaces
from gymwire.protocol.errors import AddressUnknown
from gymwire.protocol.json_values import from_json, to_json


class Closable(Protocol):
    """A proxy, or a connection to the broker."""

    def close(self) -> None:
        """Close it."""


Held = TypeVar("Held", bound=Closable)
Result = TypeVar("Result")


def open_proxy(gateway: Gateway, visitor: Visitor, address: str, **options: Any) -> ProxyEnv:
    """Open a session for a visitor, in the thread that will use it. Raises what ProxyEnv does."""
    known = gateway.credentials(visitor)
    return ProxyEnv(address, gateway.broker, timeout_s=TIMEOUT_S, **known, **options)


def act(env: ProxyEnv, given: Any) -> tuple[Any, dict[str, Any]]:
    """Run one step with an action in JSON; return the observation, and the rest of it in JSON.

    Raises JsonMismatch for an action that is not in its space, and what `step` raises.
    """
    action = from_json(env.action_space, given, "action")
    observation, reward, terminated, truncated, info = env.step(action)
    return observation, {
        "reward": to_json(reward),
        "terminated": to_json(terminated),
        "truncated": to_json(truncated),
        "info": to_json(info),
    }


def spaces_at(
    gateway: Gateway, visitor: Visitor, address: str
) -> tuple[Space[Any], Space[Any], dict[str, Any]]:
    """Return the observation space, the action space and the metadata of an address.

    Raises AddressUnknown, and what connecting to the broker raises.
    """
    connection = gateway.connect(visitor)
    try:
        found = connection.find(address)
    finally:
        connection.close()
    if not found:
        raise AddressUnknown(
            f"No env agent offers {address!r} at {gateway.broker}. `gymwire ls` lists what is on "
            f"offer."
        )
    first = found[0]
    return (
        spaces.build(first["observation_space"], root="observation_space"),
        spaces.build(first["action_space"], root="action_space"),
        first["metadata"],
    )


class OwnThread(Generic[Held]):
    """A visitor's proxy or connection to the broker, used in one thread of its own.

    Args:
        open_: opens it, when it is first needed.
    """

    def __init__(self, open_: Callable[[], Held]) -> None:
        self._open = open_
        self._held: Held | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="player")

    async def run(self, use: Callable[[Held], Result]) -> Result:
        """Return what `use` returns for it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._use, use)

    def _use(self, use: Callable[[Held], Result]) -> Result:
        if self._held is None:
            self._held = self._open()
        return use(self._held)

    async def close(self) -> None:
        """Close it, if it is open, after what is under way."""
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self._thread, self._close))
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        if self._held is not None:
            self._held.close()


Player = OwnThread[ProxyEnv]
"""One session of a visitor."""
