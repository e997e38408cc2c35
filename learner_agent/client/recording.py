"""Recordings of episodes, for replay at another env agent (docs/protocol.md §7.14).

A recording holds the state of the environment's generator before the reset, or the seed; the
options of the reset; and the actions since. In a replay, each result must have the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

from gymwire.protocol import values
from gymwire.protocol.errors import ReplayMismatch

DIGEST_SIZE = 16  # bytes


class Episode(NamedTuple):
    """How an episode began, and its steps. It keeps requests as bytes: the caller may change them.

    `generator`: the state of the environment's generator before the reset, if that had no seed.
    """

    generator: Any
    reset: bytes
    digest: bytes
    steps: list[tuple[bytes, bytes]]  # action and digest of the result; or a state and b""


Position = tuple[Episode | None, int]


class Recording:
    """One episode so far.

    Attributes:
        position: the episode and the number of its steps; it changes in a single assignment. An
            earlier position can be restored: the steps after it do not count then.
    """

    def __init__(self) -> None:
        self.position: Position = None, 0

    def reset(self, generator: Any, seed: Any, options: Any, answer: Any) -> None:
        """Start a new episode with a reset and its result."""
        reset = values.encode([seed, options])
        self.position = Episode(generator, reset, digest(answer), []), 0

    def step(self, action: bytes, answer: Any) -> None:
        """Add a step and its result."""
        episode, count = self.position
        assert episode is not None
        episode.steps[count:] = [(action, digest(answer))]
        self.position = episode, count + 1

    def draw(self, state: Any) -> None:
        """Add that the caller has set the generator to a state, as draws do."""
        episode, count = self.position
        if episode is not None:
            episode.steps[count:] = [(values.encode(state), b"")]
            self.position = episode, count + 1

    @property
    def generator(self) -> Any:
        """The generator's state before the reset, if the reset had no seed."""
        episode = self.position[0]
        return None if episode is None else episode.generator

    @property
    def steps(self) -> int:
        """The number of steps of the episode."""
        return self.position[1]

    def replay(
        self,
        reset: Callable[[Any, Any], Any],
        step: Callable[[Any], Any],
        set_generator: Callable[[Any], None],
    ) -> None:
        """Repeat the episode with these functions. Raises ReplayMismatch if a result differs."""
        episode, count = self.position
        if episode is None:
            return
        self._compare("reset", episode.digest, reset(*values.decode(episode.reset)))
        for number, (action, expected) in enumerate(episode.steps[:count], 1):
            if not expected:
                set_generator(values.decode(action))
                continue
            self._compare(f"step {number}", expected, step(values.decode(action)))

    def _compare(self, what: str, expected: bytes, answer: Any) -> None:
        if digest(answer) != expected:
            raise ReplayMismatch(
                f"The episode of {self.steps} steps cannot continue at another env agent: in the "
                f"replay, its {what} had a different result. The environment is not deterministic, "
                f'or the agents run different versions of it. Use on_lost="raise".'
            )


def digest(answer: Any) -> bytes:
    """Return a digest of what `reset` or `step` returned, including types and bits."""
    return hashlib.blake2b(values.encode(answer), digest_size=DIGEST_SIZE).digest()
