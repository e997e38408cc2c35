"""A cache of what sessions share, which is bounded in number and in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from gymwire.env_agent import bounded_cache, description, hosted_vector, known_spaces
from gymwire.env_agent.bounded_cache import BoundedCache
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.sessions import SessionHost
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Open, Opened

MAX_SIZE = 4_000_000
SESSIONS = 30
numbers: Iterator[int] = iter(range(1, 1_000_000))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_cache, "MAX_SIZE", MAX_SIZE)
    for module, name in (
        (known_spaces, "_KNOWN"),
        (hosted_vector, "_PATTERNS"),
        (description, "_METADATA"),
    ):
        monkeypatch.setattr(module, name, BoundedCache[Any](64))


def test_it_holds_so_many_values_and_bytes() -> None:
    cache = BoundedCache[int](3)
    for number in range(7):
        cache.keep(number, -number, 1)
        assert cache.get(number) == -number
        assert len(cache) <= 3
    cache.keep("large", 1, MAX_SIZE - 1)
    assert (len(cache), cache.get(6), cache.get("large")) == (2, -6, 1)
    cache.keep("more", 2, 1)
    assert (len(cache), cache.get("large"), cache.get("more")) == (1, None, 2)


def test_a_value_that_is_too_large_removes_no_other() -> None:
    cache = BoundedCache[int](3)
    cache.keep("small", 1, 1)
    cache.keep("large", 2, MAX_SIZE + 1)
    assert (cache.get("small"), cache.get("large"), cache.get(None)) == (1, None, None)


def test_a_value_that_is_kept_again_counts_once() -> None:
    cache = BoundedCache[int](3)
    for _ in range(3):
        cache.keep("same", 1, MAX_SIZE // 2)
    assert (len(cache), cache.get("same")) == (1, 1)


class Large(gymnasium.Env[Any, Any]):
    """An environment with a large part that no other instance has."""

    observation_space: gymnasium.Space[Any] = Discrete(2)
    action_space = Discrete(2)

    def __init__(self, part: str = "") -> None:
        number = next(numbers)
        match part:
            case "metadata":
                self.metadata = {"render_modes": [], "it": number.to_bytes(400_000, "little")}
            case "text":
                self.metadata = {"render_modes": [], "it": f"{number:040000}"}
            case "bounds":
                low = np.random.default_rng(number).random(100_000, dtype=np.float32)
                self.observation_space = Box(low, low + 1, dtype=np.float32)
            case "buffers":
                self.observation_space = Box(-1, number, (100_000,), np.float32)
            case "numbers":
                self.observation_space = MultiDiscrete(np.arange(100_000) + number)
            case "keys":
                self.observation_space = Dict({f"{number:0400000}": Discrete(2)})


@pytest.mark.parametrize(
    ("part", "num_envs", "caches"),
    [
        ("metadata", 0, "host"),
        ("text", 0, "host metadata"),
        ("bounds", 0, "host spaces"),
        ("bounds", 1, "host spaces patterns"),
        ("numbers", 0, "host spaces"),
        ("keys", 0, "host spaces"),
        ("buffers", 1, "patterns"),  # their bounds are equal, so that their description is short
    ],
)
def test_what_sessions_leave_behind_is_bounded(part: str, num_envs: int, caches: str) -> None:
    host = SessionHost([Service("large", Factory("tests:Large", Large))])
    for sid in range(1, SESSIONS + 1):
        request = Open(
            "large",
            bytes(16),
            env_kwargs={"part": part},
            num_envs=num_envs,
            autoreset_mode="NextStep" if num_envs else "",
        )
        opened = PLAIN.decode(host.open(sid, 1, request, None))
        assert isinstance(opened, Opened), opened
        slot = host.slots[sid]
        host.remove(slot)
        host.close(slot)
    kept = {
        "host": len(host._known),
        "spaces": len(known_spaces._KNOWN),
        "patterns": len(hosted_vector._PATTERNS),
        "metadata": len(description._METADATA),
    }
    assert all(kept[name] < SESSIONS / 2 for name in caches.split()), kept
