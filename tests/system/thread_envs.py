"""Environments for the tests of a thread for each session."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Discrete

PATIENCE_S = 60.0


class InOneThread(gymnasium.Env[Any, Any]):
    """Fails if it is used in another thread than that which has made it.

    The info of `reset` tells whether that is the main thread, and its observation is 1 if so.
    `step` returns the number of steps.
    """

    observation_space = Discrete(100)
    action_space = Discrete(100)
    closed = 0  # environments that were closed in their thread

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._steps = 0

    def _check(self) -> None:
        if self._thread != threading.get_ident():
            raise AssertionError("used in another thread")

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self._check()
        return int(threading.current_thread() is threading.main_thread()), {"closed": self.closed}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self._check()
        self._steps += 1
        return self._steps % 100, 0.0, False, False, {}

    def render(self) -> Any:
        self._check()

    def close(self) -> None:
        self._check()
        InOneThread.closed += 1


class Together(InOneThread):
    """Each step waits until `parties` environments are in a step."""

    barrier: threading.Barrier | None = None
    lock = threading.Lock()

    def __init__(self, parties: int) -> None:
        super().__init__()
        with Together.lock:
            if Together.barrier is None:
                Together.barrier = threading.Barrier(parties)

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert Together.barrier is not None
        Together.barrier.wait(PATIENCE_S)
        return super().step(action)


class Stuck(InOneThread):
    """A step with the action 1 waits for the file `gate`, and makes `{gate}.entered` first."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self._gate = Path(gate)

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if action == 1:
            Path(f"{self._gate}.entered").touch()
            while not self._gate.exists():
                threading.Event().wait(0.02)
        return super().step(action)


class AsyncTogether(gymnasium.Env[Any, Any]):
    """Each step waits until `parties` environments are in a step, in one event loop."""

    observation_space = action_space = Discrete(100)
    waiting = 0
    turn: asyncio.Event | None = None

    def __init__(self, parties: int) -> None:
        self._parties = parties
        self._loop = asyncio.get_running_loop()
        if AsyncTogether.turn is None:
            AsyncTogether.turn = asyncio.Event()

    async def reset(self, *, seed: Any = None, options: Any = None) -> tuple[int, dict[str, Any]]:  # type: ignore[override]
        return 0, {}

    async def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        assert asyncio.get_running_loop() is self._loop
        turn = AsyncTogether.turn
        assert turn is not None
        AsyncTogether.waiting += 1
        if AsyncTogether.waiting == self._parties:
            AsyncTogether.waiting, AsyncTogether.turn = 0, asyncio.Event()
            turn.set()
        await asyncio.wait_for(turn.wait(), PATIENCE_S)
        return action, 0.0, False, False, {}
