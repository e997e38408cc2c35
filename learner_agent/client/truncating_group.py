"""Groups of sessions that replace those of a lost env agent, and truncate their episodes."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate

from gymwire.learner_agent.client import replacing
from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.learner_agent.client.steps_ahead import Outbox
from gymwire.protocol import dialogue, logs
from gymwire.protocol.errors import EnvironmentLost, ResetNeeded
from gymwire.protocol.messages import Kind, Message, Percept, Reset, Status


class ReplacingGroup(SessionGroup):
    """A group that opens another session in the place of a lost one."""

    _mode: AutoresetMode
    _ended: Collection[int]  # the sessions that are to start again

    def check(self, kind: Kind) -> None:
        """Raise MoveError unless all sessions that are not lost may send this request now."""
        for i, session in enumerate(self._sessions):
            exchange = session.exchange
            if exchange.lost is None and exchange.unanswered is None and i not in self._ended:
                dialogue.check_request(exchange.state, kind)

    @property
    def is_idle(self) -> bool:
        """Whether no session has a request without a reply; lost ones need none."""
        if self._mode is AutoresetMode.SAME_STEP and self.lost:
            return False
        return not any(one.exchange.unanswered for one in self._sessions if not one.exchange.lost)

    def wait_for_steps(self, waiting: Sequence[int], timeout_s: float | None) -> None:
        """Wait until `step_ready` for all of these; a loss must be seen at once."""
        self._wait_until_ready(waiting, timeout_s, self.wait_for_step)

    def _reset_all(
        self, requests: Mapping[int, Message], timeout_s: float | None
    ) -> dict[int, Message]:
        """Reset these sessions, after opening new ones in the place of lost ones."""
        asked: set[int] = set()
        while True:
            for i in requests:
                if self._is_lost(i):
                    asked.discard(i)
                    self._replace(i)
            for i in requests:
                if i not in asked and not self._is_lost(i):
                    self._sessions[i].begin(requests[i])
                    asked.add(i)
            with suppress(EnvironmentLost):
                self.wait_for_all(requests, self.deadline_of(timeout_s))
                break
        return self.take(requests)

    def _is_lost(self, i: int) -> bool:
        return self._sessions[i].exchange.lost is not None

    def _kept(self, observation: Any) -> Any:
        # The caller gets a single session's observation itself, and may write into it.
        return deepcopy(observation) if len(self) == 1 else observation

    def _replace(self, i: int) -> None:
        """Open another session in the place of a lost one. Raises EnvironmentLost."""
        why, timeout_s = self._sessions[i].exchange.lost, self.connection.timeout_s
        logs.logger().warning("session lost, opening another", envs=self.names(i), why=why)
        replacing.open_another(
            self.connection,
            lambda: self.reopen([i], wait_s=0.0),
            timeout_s,
            f"Lost: {self.names(i)} of {self.num_envs} ({why}). For {timeout_s:g} s no other agent "
            f"could take their place",
        )


class TruncatingGroup(ReplacingGroup):
    """A group that truncates the environments of a lost session.

    The percept of a lost session has the last observation known, zeros as rewards, truncated, and
    `env_lost` among its infos. Its environments start again in a session at another env agent, at
    the time that `mode` says: in the next step, whose actions are ignored; in the same step; or
    with a reset by the caller.
    """

    def __init__(self, mode: AutoresetMode, *args: Any) -> None:
        super().__init__(*args)
        self._mode = mode
        self._ended: set[int] = set()  # truncated, and not started again yet
        self._last: list[Any] = [None] * len(self)
        self._reward_dtype = np.dtype(np.float64)

    # --- steps ------------------------------------------------------------------------------------

    def prepare_steps(self, sessions: Iterable[int]) -> None:
        """Open new sessions for those that have ended and are to step now.

        Raises ResetNeeded if the caller must reset them, and EnvironmentLost if no agent is found.
        """
        for i in self._ended.intersection(sessions):
            if self._mode is AutoresetMode.DISABLED:
                raise ResetNeeded(
                    f"The episodes of {self.names(i)} have ended, because the env agent was lost. "
                    f'Reset them first, with options={{"reset_mask": …}}.'
                )
            if self._is_lost(i):
                self._replace(i)

    def undo(self) -> None:
        """Make available again what the present call has marked as returned."""
        super().undo()
        if self._before is not None:
            self._ended, self._last = self._before

    def begin_step(self, i: int, actions: Any, outbox: Outbox) -> None:
        """Send a session its actions, or a reset if it starts again."""
        if i in self._ended:
            self._start_again(i)
        elif not self._is_lost(i):
            super().begin_step(i, actions, outbox)

    def step_ready(self, i: int) -> bool:
        """Return whether the percept has arrived, or a loss stands for it."""
        waits = self._mode is not AutoresetMode.SAME_STEP
        return self._sessions[i].ready or (waits and self._is_lost(i))

    def wait_for_step(self, waiting: Sequence[int], deadline: float | None) -> None:
        """Wait for one of these. In SAME_STEP mode the lost ones start again first."""
        for i in waiting:
            while self._is_lost(i):
                self._ended.add(i)
                self._replace(i)
            if i in self._ended:  # an interrupt may have come before its reset
                self._start_again(i)
        with suppress(EnvironmentLost):  # `step_ready` sees it, or the next call replaces it
            self.wait_for_one(waiting, deadline)

    def _start_again(self, i: int) -> None:
        """Reset a new session, unless it has been sent its reset."""
        if not self._sessions[i].pending:
            self._sessions[i].begin(fresh_reset())

    def read_step(self, i: int, timeout_s: float | None = None) -> Message:
        """Return the percept of a session; if it is lost, one that says so."""
        self.wait_for_steps([i], timeout_s)
        if not self._sessions[i].ready:
            return self._truncated(i)
        reply = self.read(i)
        if type(reply) is Percept:
            self._reward_dtype = getattr(reply.reward, "dtype", self._reward_dtype)
            return reply
        assert type(reply) is Status
        same = self._mode is AutoresetMode.SAME_STEP
        return self._truncated(i, reply) if same else self._percept(i, False, reply)

    def end_steps(self, percepts: Mapping[int, Message]) -> None:
        """Record that the caller has these percepts, and which environments have ended with them.

        A lost session has no reply to a request, and its percept ends its environments.
        """
        ended, last = set(self._ended), [*self._last]
        for i, percept in percepts.items():
            assert type(percept) is Percept
            if not self._sessions[i].ready:
                ended.add(i)
            else:
                ended.discard(i)
                last[i] = self._kept(percept.observation)
        self._before = self._ended, self._last
        super().end_steps(percepts)
        self._ended, self._last = ended, last

    # --- reset ------------------------------------------------------------------------------------

    def reset(self, requests: Mapping[int, Reset], timeout_s: float | None) -> dict[int, Message]:
        """Reset these sessions, after opening new ones in the place of lost ones."""
        for i, request in requests.items():
            mask = (request.options or {}).get("reset_mask")
            if mask is not None and not mask.all() and (i in self._ended or self._is_lost(i)):
                raise ResetNeeded(
                    f"The env agent of {self.names(i)} was lost, so they start again together. "
                    f"reset_mask must have True for all of them."
                )
        replies = self._reset_all(requests, timeout_s)
        last = [*self._last]
        for i, status in replies.items():
            assert type(status) is Status
            last[i] = self._kept(status.observation)
        self._before = self._ended, self._last
        self._ended, self._last = self._ended.difference(requests), last
        return replies

    def _truncated(self, i: int, status: Status | None = None) -> Percept:
        """Return the percept that ends a session's episodes.

        `status`: how the next episodes have started, if they have.
        """
        size, last = self.sizes[i], self._last[i]
        infos: dict[str, Any] = _of_all(size, env_lost=np.ones(size, np.bool_))
        if status is None:
            return self._percept(i, True, Status(deepcopy(last), infos))
        final = np.empty(size, object)
        for k, observation in enumerate(
            iterate(self._sessions[i].space("observation_space"), last)
        ):
            final[k] = deepcopy(observation)
        infos |= _of_all(size, final_obs=final, final_info=deepcopy(infos))
        # Infos in wire form may be [infos, places, casts], see vector_infos.
        begun = status.info[0] if type(status.info) is list and status.info else status.info
        if type(begun) is dict:
            begun.update(infos)
        return self._percept(i, True, status)

    def _percept(self, i: int, truncated: bool, status: Status) -> Percept:
        size = self.sizes[i]
        return Percept(
            status.observation,
            np.zeros(size, self._reward_dtype),
            np.zeros(size, np.bool_),
            np.full(size, truncated),
            status.info,
        )


def fresh_reset() -> Reset:
    """Return the reset of a new session."""
    # With a seed, because some vectors would repeat their first episodes without one.
    return Reset(secrets.randbits(31), None)


def _of_all(size: int, **infos: Any) -> dict[str, Any]:
    """Return infos that all environments have, with their masks."""
    made: dict[str, Any] = {}
    for key, value in infos.items():
        made[key], made[f"_{key}"] = value, np.ones(size, np.bool_)
    return made
