"""Environments that take until a file exists, for the tests of how an env agent ends."""

from __future__ import annotations

import atexit
import threading
from pathlib import Path
from typing import Any

from tests.odd_envs import Odd, Result


class Gated(Odd):
    """Waits in one of its methods: makes the file `{gate}.entered`, then waits for `gate`."""

    def __init__(self, render_mode: str | None = None, *, gate: str, where: str) -> None:
        self._gate, self._where = Path(gate), where
        self._wait("constructor")
        atexit.register(self._wait, "exit")
        super().__init__(render_mode)

    def _wait(self, where: str) -> None:
        if where == self._where:
            Path(f"{self._gate}.entered").touch()
            while not self._gate.exists():
                threading.Event().wait(0.05)

    def step(self, action: Any) -> Result:
        self._wait("step")
        return super().step(action)

    def close(self) -> None:
        self._wait("close")
        super().close()
