"""A group of plain sessions that together are a vector, for env agents that have no vectors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.learner_agent.client.steps_ahead import Outbox
from gymwire.protocol import remote_space, vector_infos
from gymwire.protocol.errors import ResetNeeded
from gymwire.protocol.messages import (
    Call,
    Kind,
    Message,
    Percept,
    RenderedFrame,
    Reset,
    Result,
    Status,
)


class PlainGroup(SessionGroup):
    """Sessions with one plain environment each, which look like sessions with a vector of one.

    It does what Gymnasium's SyncVectorEnv does: it takes seeds and actions apart, batches what the
    environments return, and resets those whose episodes have ended when `mode` says so.
    """

    def __init__(self, mode: AutoresetMode, *args: Any) -> None:
        super().__init__(*args)
        self._mode = mode
        self._space = self.single_space("observation_space")
        self._actions = batch_space(self.single_space("action_space"), 1)
        # Both are replaced, never changed in place.
        self._ended: frozenset[int] = frozenset()  # episodes that have ended, without a reset since
        self._final: dict[int, Percept] = {}  # the last of an episode; a reset follows in the step

    def single_space(self, name: str) -> Space[Any]:
        """Return the space of one environment."""
        return self._sessions[0].build_space(name)

    # --- requests ---------------------------------------------------------------------------------

    def ask(self, requests: Mapping[int, Message], timeout_s: float | None) -> dict[int, Message]:
        """Send a request for a vector of one to each of these sessions, and return the replies."""
        replies = super().ask({i: plain(one) for i, one in requests.items()}, timeout_s)
        return {i: self._batched(requests[i], reply) for i, reply in replies.items()}

    def access_each(self, call: Call, envs: Sequence[int], timeout_s: float | None) -> list[Any]:
        """Apply a CALL in one of `capabilities.EACH_MODES` to some of the environments, each once.

        An environment has the attributes that its session may use, and no wrappers of Python.
        """
        match call.mode:
            case "each-wrapped":
                return [False] * len(envs)
            case "each-has":
                known = [self._sessions[i].opened.limits.get("attributes") for i in envs]
                return [isinstance(names, list) and call.name in names for names in known]
        plain = replace(call, mode=call.mode.removeprefix("each-"))
        found: list[Any] = []
        replies = super().ask(dict.fromkeys(envs, plain), timeout_s)
        for i in envs:
            reply = replies[i]
            assert type(reply) is Result
            found.append(reply.value)
        return found

    def reset(self, requests: Mapping[int, Reset], timeout_s: float | None) -> dict[int, Message]:
        """Reset these environments."""
        replies = super().reset(requests, timeout_s)
        self._mark_reset(requests)
        return replies

    def _mark_reset(self, sessions: Collection[int]) -> None:
        self._before = self._ended, self._final
        self._ended = self._ended.difference(sessions)
        self._final = {i: one for i, one in self._final.items() if i not in sessions}

    def undo(self) -> None:
        """Make available again what the present call has marked as returned."""
        super().undo()
        if self._before is not None:
            self._ended, self._final = self._before

    # --- steps ------------------------------------------------------------------------------------

    def prepare_steps(self, sessions: Iterable[int]) -> None:
        """Raise ResetNeeded if the caller must reset one of these environments."""
        ended = sorted(self._ended.intersection(sessions))
        if ended and self._mode is AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"The episodes of {', '.join(map(self.names, ended))} have ended. Reset them "
                f'first, with options={{"reset_mask": …}}.'
            )

    def begin_step(self, i: int, actions: Any, outbox: Outbox) -> None:
        """Send an environment its action, or a reset if its episode has ended."""
        session = self._sessions[i]
        if i in self._final:
            if session.pending:  # the reset that belongs to this step
                return
            self._final = {k: one for k, one in self._final.items() if k != i}
        if i in self._ended:
            session.begin(self._restart(i))
        else:
            outbox.add(session, next(iterate(self._actions, actions)))

    def _restart(self, i: int) -> Reset:
        """Return the reset with which the next episode of an environment begins."""
        return Reset()

    def step_ready(self, i: int) -> bool:
        """Return whether `read_step` does not have to wait."""
        self._go_on(i)
        return self._sessions[i].ready

    def _go_on(self, i: int) -> None:
        """Reset an environment in the step in which its episode has ended, if `mode` says so."""
        session = self._sessions[i]
        if self._mode is not AutoresetMode.SAME_STEP or not session.exchange.is_stepping:
            return
        reply = session.exchange.reply
        if i not in self._final and reply is not None and reply[0].kind is Kind.PERCEPT:
            percept = self.read(i)
            assert type(percept) is Percept
            if _has_ended(percept):
                self._final = {**self._final, i: percept}
        if i in self._final:
            session.begin(self._restart(i))

    def wait_for_step(self, waiting: Sequence[int], deadline: float | None) -> None:
        """Wait until one of these sessions has a reply."""
        for i in waiting:
            self._go_on(i)
        super().wait_for_step(waiting, deadline)

    def wait_for_steps(self, waiting: Sequence[int], timeout_s: float | None) -> None:
        """Wait until `step_ready` for all of these."""
        self._wait_until_ready(waiting, timeout_s, self.wait_for_all)

    def read_step(self, i: int, timeout_s: float | None = None) -> Message:
        """Return the percept of an environment, as that of a vector of one."""
        self.wait_for_steps([i], timeout_s)
        reply = self.read(i)
        info: dict[Any, Any] = {}
        if type(reply) is Percept:
            flags = reply.reward, reply.terminated, reply.truncated
        else:
            assert type(reply) is Status
            flags = 0.0, False, False
            final = self._final.get(i)
            if final is not None:
                flags = final.reward, final.terminated, final.truncated
                info = self._final_info(final)
        reward, terminated, truncated = flags
        return Percept(
            self._batch(reply.observation),
            np.array([reward], np.float64),
            np.array([terminated], np.bool_),
            np.array([truncated], np.bool_),
            infos_of_one(info, reply.info),
        )

    def _final_info(self, final: Percept) -> dict[Any, Any]:
        """Return the infos about an episode that has ended in this step."""
        return {"final_obs": final.observation, "final_info": final.info}

    def end_steps(self, percepts: Mapping[int, Message]) -> None:
        """Record that the caller has these percepts, and which episodes have ended with them."""
        ended = set(self._ended)
        for i, percept in percepts.items():
            assert type(percept) is Percept
            ended.discard(i)
            if _has_ended(percept) and self._mode is not AutoresetMode.SAME_STEP:
                ended.add(i)
        self._before = self._ended, self._final
        super().end_steps(percepts)
        self._ended = frozenset(ended)
        self._final = {i: one for i, one in self._final.items() if i not in percepts}

    # --- a vector of one --------------------------------------------------------------------------

    def _batched(self, request: Message, reply: Message) -> Message:
        """Return the reply of a vector of one."""
        match request, reply:
            case _, Status(observation, info):
                return Status(self._batch(observation), infos_of_one(info))
            case _, RenderedFrame(frame) if frame is not None:
                return RenderedFrame((frame,))
            case Call("get"), Result({"value": value}):
                return Result({"value": (value,)})
            case Call("call", name), Result(value) if name != remote_space.CALL:
                return Result((value,))
        return reply

    def _batch(self, observation: Any) -> Any:
        room: Any = create_empty_array(self._space, 1, np.zeros)
        return concatenate(self._space, [observation], room)


class _VectorOfOne(VectorEnv[Any, Any, Any]):
    """Gymnasium's own way to make the infos of a vector."""

    num_envs = 1

    def add(self, infos: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        """Return these infos with that of the environment."""
        return self._add_info(infos, info, 0)


_ONE = _VectorOfOne()


def infos_of_one(*infos: Any) -> Any:
    """Return the infos of a vector of one as they stand in a message."""
    made: dict[str, Any] = {}
    for info in infos:
        made = _ONE.add(made, info)
    return vector_infos.to_wire(made)


def _has_ended(percept: Percept) -> bool:
    return bool(np.any(percept.terminated) or np.any(percept.truncated))


def plain(request: Message) -> Message:
    """Translate a request for a vector of one into that for a plain environment."""
    match request:
        case Reset(seed, options):
            if options is not None:
                options = {key: one for key, one in options.items() if key != "reset_mask"}
            return Reset(seed[0] if isinstance(seed, list) else seed, options)
        case Call("set", args=(list() | tuple() as values, *more)):
            return replace(request, args=(values[0], *more))
    return request
