"""Which spaces PPO can be trained with; this needs no framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Text,
    Tuple,
)

from gymwire.learner_agent.training.ppo import misfit

BOX, TWO = Box(-1, 1, (3,)), Discrete(2)
IMAGE = Box(0, 255, (3, 84, 84), np.uint8)


@pytest.mark.parametrize(
    ("observations", "actions"),
    [
        (BOX, TWO),
        (Box(-np.inf, np.inf, (2, 2), np.float64), Box(-2, 2, (1,))),
        (IMAGE, MultiDiscrete([2, 3])),
        (Box(0, 255, (8, 8, 3), np.uint8), MultiBinary(3)),
        (Discrete(9), TWO),
        (MultiDiscrete([2, 3]), TWO),
        (MultiBinary((2, 3)), TWO),
        (Dict({"a": BOX, "b": TWO, "c": IMAGE, "d": MultiBinary(2)}), TWO),
    ],
)
def test_these_spaces_fit(observations: Any, actions: Any) -> None:
    assert misfit(observations, actions) == ""


@pytest.mark.parametrize(
    ("observations", "actions", "why"),
    [
        (Tuple([BOX]), TWO, "observation_space is a Tuple"),
        (Text(3), TWO, "observation_space is a Text"),
        (Sequence(BOX), TWO, "observation_space is a Sequence"),
        (Graph(BOX, None), TWO, "observation_space is a Graph"),
        (Dict({"a": BOX, "b": Dict({"c": BOX})}), TWO, "observation_space['b'] is a Dict"),
        (Dict({"a": Box(0, 255, (8, 8, 3), np.uint8)}), TWO, "a Dict's image of less than 36 × 36"),
        (Box(0, 1, ()), TWO, "observation_space is a Box without dimensions"),
        (Discrete(3, start=1), TWO, "observation_space is a Discrete that does not start at 0"),
        (
            MultiDiscrete(np.array([[2, 3]])),
            TWO,
            "observation_space is a MultiDiscrete of 2 dimensions",
        ),
        (BOX, Discrete(3, start=-1), "action_space is a Discrete that does not start at 0"),
        (BOX, MultiDiscrete([3], start=[1]), "action_space is a MultiDiscrete that does not"),
        (BOX, MultiDiscrete(np.array([[2, 3]])), "action_space is a MultiDiscrete of 2 dimensions"),
        (BOX, MultiBinary((2, 2)), "action_space is a MultiBinary of 2 dimensions"),
        (BOX, Box(-np.inf, 1, (1,)), "action_space is a Box without finite bounds"),
        (BOX, Box(0, 3, (1,), np.int64), "action_space is a Box of int64"),
        (BOX, Dict({"a": TWO}), "action_space is a Dict"),
        (BOX, OneOf([TWO]), "action_space is a OneOf"),
    ],
)
def test_the_reason_names_the_space_that_does_not_fit(
    observations: Any, actions: Any, why: str
) -> None:
    assert why in misfit(observations, actions)
