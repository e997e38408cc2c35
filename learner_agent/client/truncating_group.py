"""Sessions that end and begin anew when their env agent is lost, as episodes do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate

from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.protocol import dialogue, logs
from gymwire.protocol.errors import AddressUnknown, EnvironmentLost, NoFreeSlot, ResetNeeded
from gymwire.protocol.messages import Kind, Message, Percept, Reset, Status

AGAIN_S = 0.1  # between attempts to open another session


class TruncatingGroup(SessionGroup):
    """A group in which the environments of a lost session are truncated.

    The percept of a lost session has the last observation known, zeros as rewards, truncated, and
    `env_lost` among its infos. Its environments begin anew, in a session at another agent, as
    `mode` has it: in the next step, whose actions are ignored; in the same one; or by a reset.
    """

    def __init__(self, mode: AutoresetMode, *args: Any) -> None:
        super().__init__(*args)
        self._mode = mode
        self._ended: set[int] = set()  # were truncated, and have not begun anew yet
        self._last: list[Any] = [None] * len(self)
        self._reward_dtype = np.dtype(np.float64)

    def check(self, kind: Kind) -> None:
        """Raise MoveError unless all sessions that live may send this request now."""
        for i, session in enumerate(self._sessions):
            exchange = session.exchange
            if exchange.lost is None and exchange.pending is None and i not in self._ended:
                dialogue.check_request(exchange.state, kind)

    # --- steps ------------------------------------------------------------------------------------

    def prepare_steps(self, sessions: Iterable[int]) -> None:
        """Open new sessions for those that have ended and are to step now.

        Raises ResetNeeded if it is the caller who resets, EnvironmentLost if no agent is found.
        """
        for i in self._ended.intersection(sessions):
            if self._mode is AutoresetMode.DISABLED:
                raise ResetNeeded(
                    f"The episodes of {self.names(i)} have ended, because the env agent was lost: "
                    f'reset them first, with options={{"reset_mask": …}}.'
                )
            if self._is_lost(i):
                self._replace(i)

    def begin_step(self, i: int, actions: Any) -> None:
        """Send a session its actions, or a reset if it begins anew."""
        if i in self._ended:
            self._sessions[i].begin(_fresh_reset())
        elif not self._is_lost(i):
            super().begin_step(i, actions)

    def step_ready(self, i: int) -> bool:
        """Whether the percept is there, or the loss that makes one."""
        waits = self._mode is not AutoresetMode.SAME_STEP
        return self._sessions[i].ready or (waits and self._is_lost(i))

    def wait_for_step(self, waiting: Sequence[int], deadline: float | None) -> None:
        """Wait for one of these. In SAME_STEP mode the lost ones begin anew first."""
        for i in waiting:
            while self._is_lost(i):
                self._ended.add(i)
                self._replace(i)
                if not self._is_lost(i):
                    self._sessions[i].begin(_fresh_reset())
        try:
            self.wait_for_one(waiting, deadline)
        except EnvironmentLost:
            return  # seen by `step_ready`, or replaced by the next call

    def finish_step(self, i: int, timeout_s: float | None = None) -> Message:
        """The percept of a session; if it is lost, the one that says so."""
        self.wait_for_steps([i], timeout_s)
        if not self._sessions[i].ready:
            self._ended.add(i)
            return self._truncated(i)
        reply = self.finish(i)
        if type(reply) is Percept:
            self._reward_dtype = getattr(reply.reward, "dtype", self._reward_dtype)
            self._keep(i, reply.observation)
            return reply
        assert type(reply) is Status
        self._ended.discard(i)
        same = self._mode is AutoresetMode.SAME_STEP
        percept = self._truncated(i, reply) if same else self._percept(i, False, reply)
        self._keep(i, reply.observation)
        return percept

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a step that failed is still to come."""
        if self._mode is AutoresetMode.SAME_STEP and self.lost:
            return False
        return not any(one.exchange.pending for one in self._sessions if not one.exchange.lost)

    # --- reset ------------------------------------------------------------------------------------

    def reset(self, requests: Mapping[int, Reset], timeout_s: float | None) -> dict[int, Message]:
        """Reset these sessions, new ones in the place of those that are lost."""
        for i, request in requests.items():
            mask = (request.options or {}).get("reset_mask")
            if mask is not None and not mask.all() and (i in self._ended or self._is_lost(i)):
                raise ResetNeeded(
                    f"The env agent of {self.names(i)} was lost: they begin anew together, so "
                    f"reset_mask must have True for all of them."
                )
        replies: dict[int, Message] = {}
        asked: set[int] = set()
        while missing := [i for i in requests if i not in replies]:
            for i in missing:
                if self._is_lost(i):
                    asked.discard(i)
                    self._replace(i)
            for i in missing:
                if i not in asked and not self._is_lost(i):
                    self._sessions[i].begin(requests[i])
                    asked.add(i)
            try:
                self.wait_for_all(missing, timeout_s)
            except EnvironmentLost:
                continue
            for i in missing:
                status = replies[i] = self.finish(i)
                assert type(status) is Status
                self._keep(i, status.observation)
        self._ended.difference_update(requests)
        return replies

    # --- loss -------------------------------------------------------------------------------------

    def _is_lost(self, i: int) -> bool:
        return self._sessions[i].exchange.lost is not None

    def _keep(self, i: int, observation: Any) -> None:
        # That of a single session is handed to the caller as it is, who may write into it.
        self._last[i] = deepcopy(observation) if len(self) == 1 else observation

    def _replace(self, i: int) -> None:
        """Open another session in the place of a lost one. Raises EnvironmentLost."""
        why, timeout_s = self._sessions[i].exchange.lost, self.connection.timeout_s
        deadline = time.monotonic() + timeout_s
        logs.logger().warning("session lost, opening another", envs=self.names(i), why=why)
        while True:
            try:
                self.reopen([i], wait_s=0.0)
                return
            except (AddressUnknown, NoFreeSlot, EnvironmentLost) as error:
                if time.monotonic() > deadline:
                    raise EnvironmentLost(
                        f"Lost: {self.names(i)} of {self.num_envs} ({why}), and for {timeout_s:g} "
                        f"s no other agent could take their place: {error}"
                    ) from error
                time.sleep(AGAIN_S)

    def _truncated(self, i: int, status: Status | None = None) -> Percept:
        """The end of a session's episodes; `status`: how the next ones have begun already."""
        size, last = self.sizes[i], self._last[i]
        infos: dict[str, Any] = _of_all(size, env_lost=np.ones(size, np.bool_))
        if status is None:
            return self._percept(i, True, Status(deepcopy(last), infos))
        final = np.empty(size, object)
        for k, observation in enumerate(iterate(self._sessions[i].observation_space, last)):
            final[k] = deepcopy(observation)
        infos |= _of_all(size, final_obs=final, final_info=deepcopy(infos))
        # What is beside the infos of a vector says where in them objects are.
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


def _fresh_reset() -> Reset:
    # A seed, since a vector of its own kind may begin all over again without one.
    return Reset(secrets.randbits(31), None)


def _of_all(size: int, **infos: Any) -> dict[str, Any]:
    """Infos that all environments have, with their masks."""
    made: dict[str, Any] = {}
    for key, value in infos.items():
        made[key], made[f"_{key}"] = value, np.ones(size, np.bool_)
    return made
