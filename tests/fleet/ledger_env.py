"""CartPole that writes down what it executes, one file for each environment."""

from __future__ import annotations

import os
import uuid
from typing import Any

from gymnasium.envs.classic_control import CartPoleEnv


class Ledger(CartPoleEnv):
    """Appends a line to its file for each reset and step; the info of `reset` names the file."""

    def __init__(self, render_mode: str | None = None, *, folder: str) -> None:
        super().__init__(render_mode=render_mode)
        self.path = os.path.join(folder, f"{os.getpid()}-{uuid.uuid4().hex}")  # noqa: PTH118
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        os.write(self._file, f"reset {seed}\n".encode())
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "ledger": self.path, "pid": os.getpid()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        os.write(self._file, f"step {action}\n".encode())
        result: tuple[Any, float, bool, bool, dict[str, Any]] = super().step(action)  # type: ignore[no-untyped-call]
        return result

    def close(self) -> None:
        os.close(self._file)
        super().close()  # type: ignore[no-untyped-call]
