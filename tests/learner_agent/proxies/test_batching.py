"""Infos, actions and ids of several sessions are split and joined as those of one vector."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Text, Tuple
from gymnasium.vector import VectorEnv

from gymwire.env_agent.hosted_vector import HostedVector
from gymwire.learner_agent.adapters import single_infos
from gymwire.learner_agent.proxies import batching
from gymwire.protocol import spaces, vector_infos
from gymwire.protocol.errors import BatchSizeError
from gymwire.protocol.remote_space import RemoteSpace
from tests.sameness import assert_same

SPACE = Dict({"a": Discrete(3), "b": Tuple([Box(-1, 1, (2,)), Text(4)])})
BATCH = {"a": np.arange(3), "b": (np.ones((3, 2), np.float32), ("x", "y", "z"))}


def test_a_class_derived_from_dict_is_split_and_joined_by_the_parts_of_its_batch() -> None:
    batch = Dict({"a": MultiDiscrete([3, 3, 3]), "b": Tuple([Text(4)] * 3)})
    space = batching.layout(RemoteSpace("lab:Parts", "action_space"), spaces.describe(batch))
    actions = {"a": np.arange(3), "b": ("x", "y", "z")}
    batching.check_size(space, actions, 3)
    parts = [batching.take(space, actions, part) for part in batching.slices(3, 2)]
    assert_same(parts[1], {"a": np.array([2]), "b": ("z",)})
    assert_same(batching.join(space, parts), actions)
    with pytest.raises(BatchSizeError, match=r"actions\['b'\] has a length of 2, but there are 3"):
        batching.check_size(space, {**actions, "b": ("x", "y")}, 3)


def merged(infos: list[dict[str, Any]], cls: type[Any] = VectorEnv) -> tuple[Any, Any]:
    """Return the infos of a vector of these environments, and the casts it made."""
    vector: Any = object.__new__(cls)
    vector.num_envs, vector.cast = len(infos), {}
    joined: dict[str, Any] = {}
    for i, info in enumerate(infos):
        joined = vector._add_info(joined, info, i)
    return joined, vector.cast


@pytest.mark.parametrize(
    "infos",
    [
        [{}, {}, {}, {}],
        [{"x": 1}, {}, {"y": 2.5}, {"x": 3}],
        [{"x": 0.5}, {"x": 1}, {"x": 1}, {"x": 0.25}],
        [{"x": 1}, {"x": 0.75}, {"x": 0.5}, {"x": 2}],
        [{"x": "a"}, {}, {"x": None}, {}],
        [{}, {"n": {"m": {"x": np.ones(2)}}}, {"n": {"k": True}}, {"n": {"m": {"x": np.ones(2)}}}],
        [{"final_obs": np.ones(2), "final_info": {"x": 1}}, {}, {}, {"final_obs": np.zeros(2)}],
        [{"env_id": 7}, {"env_id": 7}, {"deep": {"env_id": 7}}, {"env_id": 7}],
        [{}, {}, {"x": np.array(["a", None], object)}, {}],
    ],
    ids=range(9),
)
def test_infos_of_two_sessions_join_as_those_of_one_vector(infos: list[dict[str, Any]]) -> None:
    parts, casts = [], []
    for half in (infos[:2], infos[2:]):
        part, cast = vector_infos.from_wire(vector_infos.to_wire(*merged(half, HostedVector)))
        parts.append(part)
        casts.append(cast)
    assert_same(batching.join_infos(parts, [2, 2], casts), merged(infos)[0])


@pytest.mark.parametrize(
    "values",
    [
        [np.arange(3), np.arange(2), np.arange(3), np.arange(0)],
        [np.arange(3), np.arange(1), np.arange(1), np.arange(3)],  # NumPy would repeat one item
        [1, np.arange(2), 2, np.arange(2)],
        [1, 2**70, 2, -(2**63) - 1],
        [2**70, 1, 2**64, 3],
        [0.5, 2**2000, 1.5, 2],
        [1, "a", 2, None],
        [1, {"x": 1}, {"x": 2}, 3],
        [{"x": 1, "y": {"z": "a"}}, {"x": 2}, None, {"x": np.arange(2)}],
        [None, {"x": 1}, {"x": 2}, None],
    ],
    ids=range(10),
)
@pytest.mark.parametrize("sizes", [[4], [2, 2], [1, 3], [1, 1, 1, 1]], ids=str)
def test_values_that_gymnasium_cannot_merge_come_to_each_environment(
    values: list[Any], sizes: list[int]
) -> None:
    infos = [{"x": value, "deep": {"x": value}} for value in values]
    rest = [*infos]
    parts, casts = [], []
    for size in sizes:
        own, rest = rest[:size], rest[size:]
        part, cast = vector_infos.from_wire(vector_infos.to_wire(*merged(own, HostedVector)))
        parts.append(part)
        casts.append(cast)
    joined = batching.join_infos(parts, sizes, casts)
    found = list(single_infos.split(joined, range(4), 4).values())
    assert_same(found, infos)


@pytest.mark.parametrize("dtype", [np.int32, np.uint64, np.int8])
def test_ids_of_a_vector_class_become_those_of_the_whole_vector(dtype: Any) -> None:
    parts: list[dict[str, Any]] = [{"env_id": np.arange(n, dtype=dtype)} for n in (2, 1)]
    parts = [{**part, "players": {**part, "lives": np.ones(len(part["env_id"]))}} for part in parts]
    before = deepcopy(parts)
    for firsts in (None, [5, 3]):
        expected = np.array([0, 1, 2] if firsts is None else [5, 6, 3], dtype)
        joined = batching.join_infos(parts, [2, 1], firsts=firsts)
        assert_same(
            joined, {"env_id": expected, "players": {"env_id": expected, "lives": np.ones(3)}}
        )
    assert_same(parts, before)
    for other in ([[0.0, 1.0], [0.0]], [["a", "b"], ["a"]], [[[0], [1]], [[0]]]):
        joined = batching.join_infos([{"env_id": np.array(one)} for one in other], [2, 1])
        assert_same(joined, {"env_id": np.array(other[0] + other[1])})


def test_infos_that_do_not_match_become_objects() -> None:
    parts = [{"x": np.ones((2, 3))}, {"x": np.zeros((1, 4))}]
    joined = batching.join_infos(parts, [2, 1])["x"]
    assert joined.dtype == object
    assert [item.shape for item in joined] == [(3,), (3,), (4,)]


@pytest.mark.parametrize(("sessions", "sizes"), [(1, [7]), (3, [3, 2, 2]), (7, [1] * 7)])
def test_environments_are_spread_evenly(sessions: int, sizes: list[int]) -> None:
    parts = batching.slices(7, sessions)
    assert [part.stop - part.start for part in parts] == sizes
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(7))


def test_actions_are_taken_part_by_part() -> None:
    expected = {"a": np.array([1, 2]), "b": (np.ones((2, 2), np.float32), ("y", "z"))}
    assert_same(batching.take(SPACE, BATCH, slice(1, 3)), expected)
    assert_same(batching.take(SPACE, BATCH, np.array([1, 2])), expected)


@pytest.mark.parametrize(
    ("actions", "why"),
    [
        ({**BATCH, "a": np.arange(2)}, r"actions\['a'\] has a length of 2"),
        ({**BATCH, "b": (np.ones((3, 2)), ("x",))}, r"actions\['b'\]\[1\] has a length of 1"),
        ({**BATCH, "b": (np.ones((3, 2)),)}, "tuple of 2"),
        ([BATCH] * 3, "must be a dict"),
        ({**BATCH, "a": 1}, "has no length"),
    ],
)
def test_a_batch_of_another_size_is_refused(actions: Any, why: str) -> None:
    batching.check_size(SPACE, BATCH, 3)
    with pytest.raises(BatchSizeError, match=why):
        batching.check_size(SPACE, actions, 3)


def test_a_seed_of_another_type_is_named() -> None:
    with pytest.raises(TypeError, match=r"seed must be None, an int, or a list .* not 1\.5"):
        batching.split_seed(1.5, [slice(0, 2)])
