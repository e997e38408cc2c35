"""The turns of a learner and of a program that owns its loop: what each gets from the other.

Pure: no threads, no waiting. `Simulation` puts the two threads around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gymwire.protocol.errors import UsageError

MAX_REWARDS = 10_000  # that are kept apart while no step waits for them; then their sum is kept


@dataclass(frozen=True, slots=True)
class Command:
    """What the program must do next.

    Attributes:
        action: the learner's action; without one, the default action of the simulation.
        reset: whether to begin a new episode instead; `action` is None then.
        seed: the seed of the new episode, or None.
        options: the options of the new episode, or None.
        has_learner: whether a learner uses the simulation.
    """

    action: Any = None
    reset: bool = False
    seed: int | None = None
    options: dict[str, Any] | None = None
    has_learner: bool = True


@dataclass(frozen=True, slots=True)
class State:
    """The state of the program at a decision: the five values that a step returns."""

    observation: Any
    reward: Any = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] | None = None

    @property
    def is_end(self) -> bool:
        """Whether the episode ends in this state."""
        return self.terminated or self.truncated


class Turns:
    """Matches the requests of the learner with the states of the program.

    A step returns the first state that the program reports after it has got the action. Rewards of
    states that no step was waiting for are added to that of the next one. If the episode ends in
    such a state, the next step returns that state, and its action is not used.

    Attributes:
        has_learner: whether a learner has reset the simulation and not left it.
        reply: the state that answers the learner's request, until `take_reply`.
    """

    def __init__(self) -> None:
        self.leave()

    # --- the learner ------------------------------------------------------------------------------

    def leave(self) -> None:
        """End the learner's use of the simulation; its requests need no answer anymore."""
        self.has_learner = False
        self.reply: State | None = None
        self._request: Command | None = None  # the learner's, which the program has not got yet
        self._taken: Command | None = None  # the one that the program executes
        self._in_episode = False
        self._unseen: State | None = None  # the end of an episode that no step has returned yet
        self._rewards: list[Any] = []  # of states that no step was waiting for

    def ask(self, request: Command) -> None:
        """Make a request of the learner; `reply` will be its answer.

        Raises UsageError if it is an action and no episode runs.
        """
        if request.reset:
            self.has_learner = True
            self._in_episode, self._unseen, self._rewards = False, None, []
        elif not self._in_episode:
            raise UsageError("The episode has ended, so there is no step: call reset() first.")
        self.reply, self._request = None, request
        self._return_end()

    def take_reply(self) -> State | None:
        """Return the answer to the last request, and forget it; None: it has not come yet."""
        reply, self.reply = self.reply, None
        return reply

    # --- the program ------------------------------------------------------------------------------

    def report(self, state: State) -> None:
        """Report a state of the program. Raises UsageError if an episode would begin ended."""
        taken = self._taken
        if taken is not None and taken.reset:
            if state.is_end:
                raise UsageError(
                    "The first state of an episode cannot be its end: after a reset, report a "
                    "state that is neither terminated nor truncated."
                )
            self._in_episode = True
            self.reply = state
        elif taken is not None:
            self.reply = self._with_rewards(state)
            self._in_episode = not state.is_end
        elif self._in_episode and self._unseen is None:
            if state.is_end:
                self._unseen = self._with_rewards(state)
                self._return_end()
            else:
                self._rewards.append(state.reward)
                if len(self._rewards) == MAX_REWARDS:
                    self._rewards[:] = [_add(self._rewards[1:], self._rewards[0])]
        self._taken = None

    def take(self) -> Command | None:
        """Return the learner's next request, which the next `report` answers; None: there is none.

        If the last one was not answered, return it again.
        """
        if self._taken is None:
            self._taken, self._request = self._request, None
        return self._taken

    def _with_rewards(self, state: State) -> State:
        """Return the state, with the rewards of earlier states that no step returned."""
        reward = _add(self._rewards, state.reward)
        self._rewards = []
        return State(state.observation, reward, state.terminated, state.truncated, state.info)

    def _return_end(self) -> None:
        """Answer a step by the end of the episode that no step has returned yet."""
        request = self._request
        if self._unseen is not None and request is not None and not request.reset:
            self.reply, self._unseen, self._request = self._unseen, None, None
            self._in_episode = False


def _add(rewards: Iterable[Any], last: Any) -> Any:
    for one in rewards:
        last = _number(one) + _number(last)
    return last


def _number(reward: Any) -> Any:
    """Return Python's number for one of NumPy's: a sum of its small integers could overflow."""
    return reward.item() if hasattr(reward, "item") else reward
