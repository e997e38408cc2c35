"""Recordings of episodes, for replay at another env agent (docs/protocol.md §7.14).

A recording holds the state of the environment's generator before the reset, or the seed; the
options of the reset; and the actions since. In a replay, each result must have the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from gymwire.protocol import values
from gymwire.protocol.errors import ReplayMismatch

DIGEST_SIZE = 16  # bytes


class Recording:
    """One episode so far. It keeps requests as bytes, because the caller may change its arrays."""

    def __init__(self) -> None:
        self.generator: Any = None  # the state before the reset, if the reset had no seed
        self._reset: bytes | None = None
        self._actions: list[bytes] = []
        self._digests: list[bytes] = []

    def reset(self, generator: Any, seed: Any, options: Any, answer: Any) -> None:
        """Start a new episode with a reset and its result."""
        self.generator = generator
        self._reset = values.encode([seed, options])
        self._actions.clear()
        self._digests = [digest(answer)]

    def step(self, action: bytes, answer: Any) -> None:
        """Add a step and its result."""
        self._actions.append(action)
        self._digests.append(digest(answer))

    @property
    def steps(self) -> int:
        """The number of steps of the episode."""
        return len(self._actions)

    def replay(self, reset: Callable[[Any, Any], Any], step: Callable[[Any], Any]) -> None:
        """Repeat the episode with these functions. Raises ReplayMismatch if a result differs."""
        if self._reset is None:
            return
        self._compare("reset", 0, reset(*values.decode(self._reset)))
        for number, action in enumerate(self._actions, 1):
            self._compare(f"step {number}", number, step(values.decode(action)))

    def _compare(self, what: str, index: int, answer: Any) -> None:
        if digest(answer) != self._digests[index]:
            raise ReplayMismatch(
                f"The episode cannot continue at another env agent: in the replay, its {what} had "
                f"another result (of {self.steps} steps). The environment is not deterministic, or "
                f'the agents run different versions of it. Use on_lost="raise".'
            )


def digest(answer: Any) -> bytes:
    """Return a digest of what `reset` or `step` returned, including types and bits."""
    return hashlib.blake2b(values.encode(answer), digest_size=DIGEST_SIZE).digest()
