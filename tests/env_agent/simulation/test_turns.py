"""What a learner's requests and a program's states do to each other, without threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gymwire.env_agent.simulation import turns as turns_module
from gymwire.env_agent.simulation.turns import Command, State, Turns
from gymwire.errors import UsageError

RESET = Command(reset=True, seed=7, options={"level": 2})


def in_episode() -> Turns:
    """Return turns in which the learner has got the first state of an episode."""
    turns = Turns()
    turns.ask(RESET)
    assert turns.take() is RESET
    turns.report(State("start"))
    assert turns.take_reply() == State("start")
    return turns


def test_a_reset_reaches_the_program_and_returns_its_next_state() -> None:
    turns = Turns()
    assert not turns.has_learner
    turns.ask(RESET)
    assert turns.has_learner
    assert turns.take_reply() is None
    assert turns.take() is RESET
    turns.report(State("start", info={"level": 2}))
    assert turns.take_reply() == State("start", info={"level": 2})
    assert turns.take_reply() is None


def test_a_step_returns_the_first_state_after_the_program_got_its_action() -> None:
    turns = in_episode()
    turns.report(State("before", 0.0))
    turns.ask(Command(3))
    assert turns.take_reply() is None
    assert turns.take() == Command(3)
    turns.report(State("after", 1.5))
    assert turns.take_reply() == State("after", 1.5)


def test_a_command_that_was_not_answered_is_given_again() -> None:
    turns = in_episode()
    turns.ask(Command(3))
    assert turns.take() == turns.take() == Command(3)


def test_rewards_that_no_step_waited_for_are_added_in_their_order() -> None:
    turns = in_episode()
    for reward in (0.1, 0.2, 0.3):
        turns.report(State("between", reward))
    turns.ask(Command(0))
    turns.take()
    turns.report(State("after", 0.4))
    reply = turns.take_reply()
    assert reply is not None
    assert reply.reward == 0.3 + (0.2 + (0.1 + 0.4))


@pytest.mark.parametrize(
    "reward", [np.uint8(200), np.int8(100), np.array([200], np.uint8), np.True_]
)
def test_sums_of_rewards_do_not_overflow(reward: Any) -> None:
    turns = in_episode()
    for _ in range(3):
        turns.report(State("between", reward))
    turns.ask(Command(0))
    turns.take()
    turns.report(State("after", reward))
    reply = turns.take_reply()
    assert reply is not None
    assert reply.reward == 4 * int(np.sum(reward))


def test_the_rewards_that_are_kept_for_a_silent_learner_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns_module, "MAX_REWARDS", 4)
    turns = in_episode()
    for reward in range(10):
        turns.report(State("between", 10**reward))
        assert len(turns._rewards) < 4
    turns.ask(Command(0))
    turns.take()
    turns.report(State("after", 10**10))
    reply = turns.take_reply()
    assert reply is not None
    assert reply.reward == 11_111_111_111


def test_a_reward_is_passed_on_as_it_is() -> None:
    turns, reward = in_episode(), object()
    turns.ask(Command(0))
    turns.take()
    turns.report(State("after", reward))
    reply = turns.take_reply()
    assert reply is not None
    assert reply.reward is reward


@pytest.mark.parametrize("asked_first", [False, True])
def test_an_episode_that_ends_between_two_steps_ends_in_the_next_one(asked_first: bool) -> None:
    turns = in_episode()
    turns.report(State("between", 1.0))
    if asked_first:  # the program has not got the action yet when it reports the end
        turns.ask(Command(3))
    turns.report(State("end", 2.0, terminated=True))
    turns.report(State("a new world, which nobody asked for", 99.0))
    if not asked_first:
        turns.ask(Command(3))
    assert turns.take_reply() == State("end", 3.0, terminated=True)
    assert turns.take() is None
    with pytest.raises(UsageError, match=r"The episode has ended.*call reset\(\) first"):
        turns.ask(Command(0))


def test_states_after_the_end_of_an_episode_count_for_nothing() -> None:
    turns = in_episode()
    turns.ask(Command(0))
    turns.take()
    turns.report(State("end", 1.0, truncated=True))
    assert turns.take_reply() == State("end", 1.0, truncated=True)
    turns.report(State("alone", 50.0))
    turns.ask(RESET)
    turns.take()
    turns.report(State("start"))
    turns.take_reply()
    turns.ask(Command(1))
    turns.take()
    turns.report(State("after", 2.0))
    assert turns.take_reply() == State("after", 2.0)


def test_a_reset_in_an_episode_forgets_its_rewards_and_its_end() -> None:
    turns = in_episode()
    turns.report(State("end", 9.0, terminated=True))
    turns.ask(RESET)
    assert turns.take() is RESET
    turns.report(State("start"))
    assert turns.take_reply() == State("start")
    turns.ask(Command(1))
    turns.take()
    turns.report(State("after", 1.0))
    assert turns.take_reply() == State("after", 1.0)


def test_a_step_needs_an_episode() -> None:
    with pytest.raises(UsageError, match="call reset"):
        Turns().ask(Command(0))


@pytest.mark.parametrize("end", [State("end", terminated=True), State("end", truncated=True)])
def test_an_episode_cannot_begin_with_its_end(end: State) -> None:
    turns = Turns()
    turns.ask(RESET)
    turns.take()
    with pytest.raises(UsageError, match="neither terminated nor truncated"):
        turns.report(end)
    assert turns.take() is RESET
    turns.report(State("start"))
    assert turns.take_reply() == State("start")


def test_a_learner_that_leaves_leaves_nothing_behind() -> None:
    turns = in_episode()
    turns.ask(Command(3))
    turns.take()
    turns.leave()
    assert not turns.has_learner
    assert turns.take() is None
    turns.report(State("alone", 5.0))
    assert turns.take_reply() is None
