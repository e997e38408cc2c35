"""Asynchronous environments: their methods return coroutines."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

_loop: Any = None  # the event loop, once it was needed


def settled(value: Any) -> Any:
    """Return a value, or the result of a coroutine, which runs in the event loop."""
    global _loop
    if not inspect.isawaitable(value):
        return value
    asyncio: Any = importlib.import_module("asyncio")
    if _loop is None:
        # Before Python 3.10, locks and queues belong to the event loop of the thread.
        is_old = sys.version_info < (3, 10)
        _loop = asyncio.get_event_loop() if is_old else asyncio.new_event_loop()

    async def wait() -> tuple[Any, BaseException | None]:
        try:
            return await value, None
        except BaseException as error:  # noqa: BLE001 - asyncio would leave its task unfinished
            return None, error

    result, error = _loop.run_until_complete(wait())
    if error is not None:
        raise error
    return result
