"""Observe a broker for each visitor at most once a second, however many pages show it."""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.observing import Observation, observe
from gymwire.protocol.errors import GymwireError

Form = TypeVar("Form")
Result = TypeVar("Result")

EVERY_S = 1.0
ANSWER_S = 5.0  # how long the broker may take


class Observer:
    """Asks the broker for one visitor, over one connection, in a thread of its own.

    Args:
        connect: connects to the broker; it may raise GymwireError.
    """

    def __init__(self, connect: Callable[[], BrokerConnection]) -> None:
        self._connect = connect
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="observer")
        self._asking = asyncio.Lock()
        self._connection: BrokerConnection | None = None
        self._latest: Observation | GymwireError
        self._forms: dict[Callable[[Observation], Any], Any] = {}  # of the latest observation
        self._asked_at = -math.inf

    async def latest(self, form: Callable[[Observation], Form]) -> Form:
        """Return an observation that is at most a second old, in this form, or raise its error.

        A form is made once for each observation, and outside of the event loop: a broker may have
        many sessions.

        Raises Denied without the right `observe`, BrokerUnreachable, VersionMismatch and
        RequestTimeout.
        """
        async with self._asking:
            if time.monotonic() - self._asked_at >= EVERY_S:
                self._latest = await self._run(self._ask)
                self._forms = {}
                self._asked_at = time.monotonic()
            if isinstance(self._latest, GymwireError):
                raise copy.copy(self._latest)
            if form not in self._forms:
                self._forms[form] = await self._run(partial(form, self._latest))
            return cast(Form, self._forms[form])

    async def _run(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _ask(self) -> Observation | GymwireError:
        try:
            if self._connection is None:
                self._connection = self._connect()
            return observe(self._connection, ANSWER_S)
        except GymwireError as error:  # all pages that wait now get it, too
            self._close()
            return error

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def aclose(self) -> None:
        """Close the connection to the broker."""
        await self._run(self._close)
        self._thread.shutdown(wait=False)
