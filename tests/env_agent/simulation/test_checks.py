"""What a program reports of its state is checked."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Sequence, Text

from gymwire.env_agent.simulation.checks import StateCheck
from gymwire.env_agent.simulation.turns import State
from gymwire.protocol.errors import UsageError
from tests.offered_spaces import Disc

PAIR = Box(-1, 1, (2,), np.float32)
PARTS = Dict({"at": PAIR, "mode": Discrete(3)})
ZEROS = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (PAIR, ZEROS),
        (PAIR, ZEROS + 5),  # outside the bounds
        (PAIR, ZEROS.astype(np.float16)),
        (Box(0, 255, (2, 3), np.uint8), np.zeros((3, 2), np.uint8).T),
        (Box(-1, 1, (), np.float32), np.float32(0.5)),
        (Discrete(3), 2),
        (Discrete(3), np.int64(2)),
        (PARTS, {"at": ZEROS, "mode": 1}),
        (Sequence(Discrete(3)), (0, 2)),
        (Disc(-1, 1, (2,), np.float32), ZEROS),
    ],
)
def test_an_observation_of_the_right_form_is_accepted(space: Any, observation: Any) -> None:
    StateCheck(space).check(State(observation))


@pytest.mark.parametrize(
    ("space", "observation", "form"),
    [
        (PAIR, np.zeros(2), "of shape (2,) and dtype float64"),
        (PAIR, np.zeros(3, np.float32), "of shape (3,) and dtype float32"),
        (PAIR, [0.0, 0.0], "[0.0, 0.0] is not"),
        (PAIR, None, "None is not"),
        (Discrete(3), 3, "3 is not"),
        (Discrete(3), 1.0, "1.0 is not"),
        (Text(3), 7, "7 is not"),
        (PARTS, {"at": ZEROS}, "is not in the observation_space Dict"),
        (PARTS, {"at": np.zeros(2), "mode": 1}, "is not in the observation_space Dict"),
        (Sequence(Discrete(3)), 5, "5 is not"),
    ],
)
def test_an_observation_of_another_form_is_named(space: Any, observation: Any, form: str) -> None:
    with pytest.raises(UsageError, match=f"exchange: the observation .*{re.escape(form)}"):
        StateCheck(space).check(State(observation))


@pytest.mark.parametrize("reward", [0, True, -1.5, float("inf"), np.float32(1), np.zeros(3)])
def test_a_number_is_a_reward(reward: Any) -> None:
    StateCheck(PAIR).check(State(ZEROS, reward))


@pytest.mark.parametrize(
    "state",
    [
        *(
            State(ZEROS, reward)
            for reward in (
                *(float("nan"), np.float32("nan"), np.array([0.0, np.nan])),
                *(None, "1", [1.0], {}, object(), 1j),
            )
        ),
        State(ZEROS, terminated=1),  # type: ignore[arg-type]
        State(ZEROS, truncated=None),  # type: ignore[arg-type]
        State(ZEROS, truncated=np.zeros(2, bool)),  # type: ignore[arg-type]
        State(ZEROS, info=[("at", 1)]),  # type: ignore[arg-type]
    ],
)
def test_a_reward_flag_or_info_that_is_none_is_named(state: State) -> None:
    with pytest.raises(
        UsageError, match=r"exchange: (the reward .* a number|t.* True|info .* dict)"
    ):
        StateCheck(PAIR).check(state)


def test_numpys_flags_are_flags() -> None:
    StateCheck(PAIR).check(State(ZEROS, terminated=np.bool_(True)))  # type: ignore[arg-type]
