"""The network in memory for an event loop: input is waited for in its time, not in real time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import anyio.lowlevel

from gymwire.learner_agent.aio.connection import AioConnection, Input


class VirtualInput(Input):
    """Passes the network's time instead of waiting."""

    def watch(self, paths: Sequence[Any]) -> None:
        self._watched = list(paths)

    def renew(self) -> None:
        pass

    async def wait(self, timeout_s: float) -> None:
        with anyio.CancelScope() as self._scope:
            self._watched[0].poll(timeout_s)
            await anyio.lowlevel.checkpoint()


class VirtualConnection(AioConnection):
    input_type: ClassVar[type[Input]] = VirtualInput
