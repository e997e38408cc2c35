"""A training beside a local copy of its environment: both must return the same."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gymwire import ProxyEnv
from gymwire.protocol.errors import BrokerUnreachable, EnvironmentLost
from tests.chaos.chain import ACTIONS, ChainEnv
from tests.sameness import assert_same


@dataclass
class Course:
    """Goes on through episodes of a remote ChainEnv, one request at each `advance`.

    `answered` and `lost`: arguments of `chain.judge`. `lost_at`: monotonic seconds of each loss.
    """

    env: ProxyEnv
    name: str
    seed: int
    episode: int = 50  # steps after which it is cut
    slow: tuple[tuple[int, float], ...] = ()
    hold: bool = False
    size: int = 32
    answered: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    lost_at: list[float] = field(default_factory=list)
    unreachable_at: list[float] = field(default_factory=list)
    steps: int = 0
    longest_s: float = 0.0
    why_lost: str = ""

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._local = ChainEnv(size=self.size)
        self._episodes = 0
        self._label = ""
        self._left = 0

    def advance(self) -> None:
        """Step, or reset when that is due, and compare with the local environment.

        Raises AssertionError, and whatever a reset raises while no agent offers the address; call
        it again in that case.
        """
        start = time.monotonic()
        if self._left == 0:
            self._reset()
        else:
            self._left -= 1
            action = self._rng.randrange(ACTIONS)
            expected = self._local.step(action)
            got = self._ask(lambda: self.env.step(action))
            if got is not None:
                assert_same(expected, got, f"{self._label}, step {expected[4]['step']}")
                self.steps += 1
                if expected[2]:
                    self._left = 0
        self.longest_s = max(self.longest_s, time.monotonic() - start)

    def _reset(self) -> None:
        # The same label again until it has been answered, so that the same bytes go out.
        label = f"{self.name}-{self._episodes + 1}"
        seed = self.seed * 1000 + self._episodes
        options = {"label": label, "slow": [list(row) for row in self.slow], "hold": self.hold}
        self._label = label
        self.answered.setdefault(label, 0)
        expected = self._local.reset(seed=seed, options=options)
        got = self._ask(lambda: self.env.reset(seed=seed, options=options))
        self._episodes += 1
        if got is not None:
            assert_same(expected, got, f"{label}, reset")
            self._left = self.episode

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Return the answer, however long the broker is away, or None if the session is lost."""
        while True:
            try:
                got = call()
            except BrokerUnreachable:
                self.unreachable_at.append(time.monotonic())
            except EnvironmentLost as error:
                self.lost_at.append(time.monotonic())
                self.why_lost = str(error)
                self.lost[self._label] = self.answered.pop(self._label)
                self._left = 0
                return None
            else:
                self.answered[self._label] += 1
                return got
