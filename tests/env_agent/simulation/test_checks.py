"""What a program reports of its state is checked."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Sequence, Text

from gymwire.env_agent.simulation.checks import StateCheck, copy_state
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


@pytest.mark.parametrize(
    "reward",
    [0, True, -1.5, 2**64 - 1, np.inf, np.float32(1), np.array(2), np.ones(1), np.ones((1, 1))],
)
def test_a_number_is_a_reward(reward: Any) -> None:
    StateCheck(PAIR).check(State(ZEROS, reward))


@pytest.mark.parametrize("nan", [float("nan"), np.float32("nan"), np.array([np.nan])])
def test_a_reward_that_is_nan_is_called_so(nan: Any) -> None:
    with pytest.raises(UsageError, match=r"^exchange: the reward is NaN\. Pass a number\.$"):
        StateCheck(PAIR).check(State(ZEROS, nan))


WRONG: dict[str, list[Any]] = {
    "reward": [
        *(np.array("1"), np.zeros(0), np.zeros(3), None, "1", [1.0], [[1], []], {}, object()),
        *(1j, 10**400, -(10**5000)),
    ],
    "terminated": [1, 0.0, "yes", [[True], []], *map(np.array, (1, 0.3, "yes", [True]))],
    "truncated": [None, np.datetime64("2020"), np.float64(0.3), np.zeros(2, bool)],
    "info": [[("at", 1)], 0, "x"],
}


@pytest.mark.parametrize(
    ("field", "i"), [(field, i) for field, values in WRONG.items() for i in range(len(values))]
)
def test_a_wrong_reward_flag_or_info_is_named(field: str, i: int) -> None:
    state = State(ZEROS, **{field: WRONG[field][i]})
    with pytest.raises(UsageError, match=rf"^exchange: (the )?{field} "):
        StateCheck(PAIR).check(state)


@pytest.mark.parametrize(
    "flag", [True, np.bool_(True), np.array(True)], ids=["bool", "scalar", "array"]
)
def test_scalars_of_bool_are_flags(flag: Any) -> None:
    StateCheck(PAIR).check(State(ZEROS, terminated=flag, truncated=flag))


def test_an_info_that_cannot_be_copied_is_named() -> None:
    with pytest.raises(UsageError, match=r"^exchange: info cannot be copied: TypeError: .*lock"):
        copy_state(State(ZEROS, info={"lock": threading.Lock()}))
