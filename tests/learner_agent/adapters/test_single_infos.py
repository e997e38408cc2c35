"""Splitting the infos of a vector undoes what Gymnasium does when it merges them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from gymwire.learner_agent.adapters import single_infos
from tests.sameness import assert_same

VALUES: dict[str, Any] = {
    "bool": True,
    "int": 2**60,
    "float": 0.1,
    "float32": np.float32(0.1),
    "uint8": np.uint8(7),
    "vector": np.arange(3.0),
    "matrix": np.ones((2, 2), np.int8),
    "text": "a",
    "none": None,
    "list": [1, "x"],
    "dict": {"deeper": {"x": 1, "y": "z"}, "empty": {}},
    "empty": {},
    "_hidden": 5,
    "final_obs": np.zeros(2, np.float32),
}


def merged(infos: list[dict[str, Any]]) -> dict[str, Any]:
    vector: VectorEnv[Any, Any, Any] = VectorEnv()
    vector.num_envs = len(infos)
    found: dict[str, Any] = {}
    for number, info in enumerate(infos):
        found = vector._add_info(found, info, number)
    return found


def in_order(value: Any) -> Any:
    """Return it with sorted keys: the merged infos have those of the first environment first."""
    return {k: in_order(value[k]) for k in sorted(value)} if isinstance(value, dict) else value


@pytest.mark.parametrize("num_envs", [1, 2, 5])
@pytest.mark.parametrize("draw", range(20))
def test_each_environment_gets_its_own_info_back(num_envs: int, draw: int) -> None:
    random = np.random.default_rng(draw)
    infos = [
        {key: value for key, value in VALUES.items() if random.random() < 0.5}
        for _ in range(num_envs)
    ]
    found = single_infos.split(merged(infos), range(num_envs), num_envs)
    assert_same([in_order(found[i]) for i in range(num_envs)], [in_order(one) for one in infos])


def test_only_the_infos_of_the_chosen_environments_are_returned() -> None:
    infos = merged([{"a": {"b": i}} if i != 3 else {} for i in range(5)])
    assert single_infos.split(infos, [1, 3, 4], 5) == {
        1: {"a": {"b": 1}},
        3: {},
        4: {"a": {"b": 4}},
    }


def test_the_arrays_are_memory_of_their_own() -> None:
    infos = merged([{"a": np.zeros(2)}, {"a": np.ones(2)}])
    first, second = single_infos.split(infos, range(2), 2).values()
    first["a"][:] = 5
    assert infos["a"][0].tolist() == [0, 0]
    assert second["a"].base is None


def test_a_vector_of_its_own_kind_may_say_one_thing_for_all() -> None:
    infos = {"players": np.arange(3), "level": 4, "names": ("a", "b", "c"), "more": "xyz"}
    assert single_infos.split(infos, range(3), 3) == {
        i: {"players": i, "level": 4, "names": name, "more": "xyz"} for i, name in enumerate("abc")
    }
