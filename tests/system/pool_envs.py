"""Environments that report their process, for the tests of pools and direct sessions."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from tests.odd_envs import Odd, Patient, Result


class Located(Odd):
    """Its infos name its process."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"pid": os.getpid()}

    def step(self, action: Any) -> Result:
        return (*super().step(action)[:4], {"pid": os.getpid()})


class Doomed(Located):
    """Can be made `lives` times in all processes together; then making it ends the process."""

    def __init__(self, render_mode: str | None = None, *, made: str, lives: int) -> None:
        with Path(made).open("ab") as file:
            file.write(b".")
        if Path(made).stat().st_size > lives:
            os._exit(3)
        super().__init__(render_mode)


class Entered(Patient):
    """Makes the file `{gate}.entered` when a step begins."""

    def step(self, action: Any) -> Result:
        Path(f"{self._gate}.entered").touch()
        return super().step(action)


class Locked(Patient):
    """As `Entered`, but `gate` is a pipe: a step lasts until it is written to.

    It does not release the interpreter's lock.
    """

    def step(self, action: Any) -> Result:
        Path(f"{self._gate}.entered").touch()
        ctypes.PyDLL(None).open(str(self._gate).encode(), os.O_RDONLY)
        return super().step(action)


class Deadly(Odd):
    """Cannot be made: its constructor raises."""

    def __init__(self) -> None:
        raise RuntimeError("the simulator's licence has expired")
