"""What the broker and the learner learn about an environment before its first step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete

from gymwire.env_agent import description
from gymwire.env_agent.bounded_cache import BoundedCache
from gymwire.env_agent.description import MAX_METADATA, describe
from gymwire.protocol import values


class Plain(gymnasium.Env[int, int]):
    observation_space = action_space = Discrete(2)  # type: ignore[assignment]

    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata


def described(metadata: dict[str, Any]) -> dict[str, Any]:
    return describe(Plain(metadata), "plain").metadata


METADATA: list[dict[str, Any]] = [
    {"a": 1},
    {"a": True},
    {"a": 1.0},
    {"a": np.float64(1)},
    {"a": 0.0},
    {"a": -0.0},
    {"a": float("nan")},
    {"a": None},
    {"a": [1, "b"]},
    {"a": ["b", 1]},
    {"a": (1, "b")},
    {"a": {"b": 1}},
    {"a": ["b", {"c": [True]}]},
    {"a": 1, "b": 2},
    {"b": 2, "a": 1},
    {"a": [[[[[1]]]]]},
    {},
]


def test_metadata_that_differ_in_anything_have_descriptions_of_their_own() -> None:
    for _ in range(2):  # the second time, those of plain values are known
        for metadata in METADATA:
            expected = values.encode(values.opaque(metadata, root="metadata")[0])
            assert values.encode(described(metadata)) == expected


def test_equal_metadata_of_plain_values_are_converted_once() -> None:
    one, other = ({"render_modes": ["rgb_array"], "render_fps": 50} for _ in range(2))
    assert described(one) is described(other)
    other["render_fps"] = 30
    assert described(other) == {"render_modes": ["rgb_array"], "render_fps": 30}


def test_metadata_that_contain_themselves_are_described() -> None:
    endless: dict[str, Any] = {"a": []}
    endless["a"].append(endless["a"])
    assert list(described(endless)) == ["a"]


def test_the_number_of_known_metadata_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "_METADATA", BoundedCache(MAX_METADATA))
    for number in range(2 * MAX_METADATA):
        described({"a": number})
    assert len(description._METADATA) <= MAX_METADATA
