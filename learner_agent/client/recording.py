"""What an episode needs to be played again elsewhere (docs/protocol.md §7.14).

An episode is the state of the environment's generator before its reset, or its seed; the options of
the reset; and the actions since. Replayed, each answer must have the digest that it had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from gymwire.protocol import values
from gymwire.protocol.errors import ReplayMismatch

MAX_STEPS = 1_000_000


class Recording:
    """One episode so far. Requests are kept as bytes: the caller may change its arrays after."""

    def __init__(self) -> None:
        self.generator: Any = None  # the state before the reset, if the reset had no seed
        self._reset: bytes | None = None
        self._actions: list[bytes] = []
        self._digests: list[bytes] = []

    def reset(self, generator: Any, seed: Any, options: Any, answer: Any) -> None:
        """A reset was answered: a new episode begins."""
        self.generator = generator
        self._reset = values.encode([seed, options])
        self._actions.clear()
        self._digests = [digest(answer)]

    def step(self, action: bytes, answer: Any) -> None:
        """A step was answered."""
        self._actions.append(action)
        self._digests.append(digest(answer))

    @property
    def steps(self) -> int:
        """How many steps the episode has."""
        return len(self._actions)

    def replay(self, reset: Callable[[Any, Any], Any], step: Callable[[Any], Any]) -> None:
        """Play the episode again with these. Raises ReplayMismatch, which says where it differs."""
        if self._reset is None:
            return
        self._compare("reset", 0, reset(*values.decode(self._reset)))
        for number, action in enumerate(self._actions, 1):
            self._compare(f"step {number}", number, step(values.decode(action)))

    def _compare(self, what: str, index: int, answer: Any) -> None:
        if digest(answer) != self._digests[index]:
            raise ReplayMismatch(
                f"The episode could not be continued at another env agent: played again, its "
                f"{what} came out differently (of {self.steps} steps). The environment is not "
                f'deterministic, or the agents run different versions of it; use on_lost="raise".'
            )


def digest(answer: Any) -> bytes:
    """A digest of what `reset` or `step` returned, types and bits included."""
    return hashlib.blake2b(values.encode(answer), digest_size=16).digest()
