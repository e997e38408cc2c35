"""Which steps the reader executes itself."""

from __future__ import annotations

from typing import Any

import pytest

from gymwire.env_agent.slot import FAST_STEP, SHORT_STEP, SLOW_STEP, STEPS_ALONE, Slot


def _slot() -> Slot:
    nothing: Any = None
    return Slot(nothing, nothing, nothing, nothing, frozenset(), nothing)


@pytest.mark.parametrize(
    ("seconds", "at_first", "alone"),
    [
        (FAST_STEP / 2, True, True),
        ((FAST_STEP + SHORT_STEP) / 2, False, True),
        ((SHORT_STEP + SLOW_STEP) / 2, False, False),
        (SLOW_STEP * 1000, False, False),
    ],
)
def test_steps_of_a_session_that_steps_alone_may_be_longer(
    seconds: float, at_first: bool, alone: bool
) -> None:
    slot = _slot()
    for _ in range(STEPS_ALONE - 1):
        slot.note_step(seconds)
        assert slot.is_fast == at_first
    slot.note_step(seconds)
    assert slot.is_fast == alone
    slot.turn, slot.steps_alone = 1, 0  # another session has sent a request
    slot.note_step(seconds)
    assert slot.is_fast == at_first
