"""A group of plain sessions that truncates the episodes of a lost env agent, and replaces it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, iterate

from gymwire.learner_agent.client.plain_group import PlainGroup, infos_of_one, plain
from gymwire.learner_agent.client.steps_ahead import Outbox
from gymwire.learner_agent.client.truncating_group import ReplacingGroup, fresh_reset
from gymwire.protocol.dialogue import State
from gymwire.protocol.errors import EnvironmentLost
from gymwire.protocol.messages import Message, Percept, Reset, Status

LOST = {"env_lost": True}


class _Loss(Percept):
    """The last percept of an episode whose env agent was lost."""


class TruncatingPlainGroup(ReplacingGroup, PlainGroup):
    """A PlainGroup that does with a lost session what TruncatingGroup does.

    The loss ends the episode of the environment, and the group then goes on as after any other end.
    """

    _ended: frozenset[int]

    def __init__(self, mode: AutoresetMode, *args: Any) -> None:
        super().__init__(mode, *args)
        self._last: list[Any] = [None] * len(self)  # observations, as of a vector of one
        self._last_before = self._last

    def begin_call(self) -> None:
        """Begin a call of the vector: from now on, `undo` returns to this moment."""
        super().begin_call()
        self._last_before = self._last

    def undo(self) -> None:
        """Make available again what the present call has marked as returned."""
        super().undo()
        self._last = self._last_before

    # --- steps ------------------------------------------------------------------------------------

    def prepare_steps(self, sessions: Iterable[int]) -> None:
        """Open new sessions for those that have ended and are to step now.

        Raises ResetNeeded if the caller must reset them, and EnvironmentLost if no agent is found.
        """
        super().prepare_steps(sessions)
        for i in self._ended.intersection(sessions):
            if self._is_lost(i):
                self._replace(i)

    def begin_step(self, i: int, actions: Any, outbox: Outbox) -> None:
        """Send an environment its action, or a reset if its episode has ended."""
        if not self._is_lost(i):
            super().begin_step(i, actions, outbox)

    def _restart(self, i: int) -> Reset:
        is_new = self._sessions[i].exchange.state is State.READY
        return fresh_reset() if is_new else Reset()

    def _go_on(self, i: int) -> None:
        if not self._is_lost(i):
            super()._go_on(i)

    def step_ready(self, i: int) -> bool:
        """Return whether the percept has arrived, or a loss stands for it."""
        waits = self._mode is not AutoresetMode.SAME_STEP
        return super().step_ready(i) or (waits and self._is_lost(i))

    def wait_for_step(self, waiting: Sequence[int], deadline: float | None) -> None:
        """Wait for one of these. In SAME_STEP mode the lost ones start again first."""
        for i in waiting:
            while self._mode is AutoresetMode.SAME_STEP and self._is_lost(i):
                if i not in self._final:
                    self._final = {**self._final, i: self._loss(i)}
                self._replace(i)
            if i in self._final and not self._sessions[i].pending:
                self._sessions[i].begin(self._restart(i))
        with suppress(EnvironmentLost):  # `step_ready` sees it, or the next call replaces it
            super().wait_for_step(waiting, deadline)

    def read_step(self, i: int, timeout_s: float | None = None) -> Message:
        """Return the percept of an environment; if it is lost, one that says so."""
        self.wait_for_steps([i], timeout_s)
        if self._sessions[i].ready:
            return super().read_step(i, timeout_s)
        return Percept(
            deepcopy(self._last[i]),
            np.zeros(1),
            np.zeros(1, np.bool_),
            np.ones(1, np.bool_),
            infos_of_one(LOST),
        )

    def _final_info(self, final: Percept) -> dict[Any, Any]:
        found = super()._final_info(final)
        return {**LOST, **found} if type(final) is _Loss else found

    def _loss(self, i: int) -> Percept:
        (last,) = iterate(batch_space(self._space, 1), deepcopy(self._last[i]))
        return _Loss(last, 0.0, False, True, dict(LOST))

    def end_steps(self, percepts: Mapping[int, Message]) -> None:
        """Record that the caller has these percepts, and which episodes have ended with them."""
        last = [*self._last]
        for i, percept in percepts.items():
            assert type(percept) is Percept
            last[i] = self._kept(percept.observation)
        super().end_steps(percepts)
        self._last = last

    # --- reset ------------------------------------------------------------------------------------

    def reset(self, requests: Mapping[int, Reset], timeout_s: float | None) -> dict[int, Message]:
        """Reset these environments, after opening new sessions in the place of lost ones."""
        asked = {i: plain(request) for i, request in requests.items()}
        found = self._reset_all(asked, timeout_s)
        replies = {i: self._batched(requests[i], reply) for i, reply in found.items()}
        self._mark_reset(requests)
        last = [*self._last]
        for i, status in replies.items():
            assert type(status) is Status
            last[i] = self._kept(status.observation)
        self._last = last
        return replies
