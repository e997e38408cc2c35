"""The steps of a vector: actions split over its sessions, replies joined again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from gymwire.learner_agent.client import steps_ahead
from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.learner_agent.client.steps_ahead import Outbox
from gymwire.learner_agent.proxies import batching
from gymwire.learner_agent.proxies.interrupts import check_alone
from gymwire.learner_agent.proxies.remote_generators import RemoteGenerators
from gymwire.learner_agent.proxies.rounds import Rounds
from gymwire.protocol import values, vector_infos
from gymwire.protocol.errors import (
    BatchSizeError,
    DecodingError,
    GymwireError,
    MoveError,
    ProtocolError,
)
from gymwire.protocol.messages import Kind, Message, Percept, Reset, Status
from gymwire.protocol.outside_exceptions import is_from_outside

_ndarray = np.ndarray  # Python looks an attribute of this module up each time
VectorStep = tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]
_Stage = tuple[str, bool, list[int], dict[int, Message]]


class VectorSteps:
    """The sessions that are in a step, and the percepts that have arrived.

    A step passes through three stages: its sessions are `_awaited` once their actions are sent;
    their percepts are `_received`; finally all of them are returned together. An interrupt or a
    timeout leaves it at its stage, and the next call goes on from there. The sessions keep the
    replies until the percepts are returned, and `undo` makes them available again if an exception
    comes after that. The fields below are replaced, never changed in place, so that a reference to
    one is a copy of it.

    Args:
        group: the sessions.
        single_request: whether a vector in one session may step by a single call of
            `SessionGroup.step`. Not if the group itself acts on a loss.
    """

    def __init__(self, group: SessionGroup, *, single_request: bool) -> None:
        opened = group[0].opened
        self.single_observation_space = group.single_space("observation_space")
        self.single_action_space = group.single_space("action_space")
        self._actions = batching.layout(self.single_action_space, opened.action_space)
        self._observation = batching.layout(self.single_observation_space, opened.observation_space)
        # The first sizes of an array with an action for each environment; None: it takes no array.
        # `check_size` would ask abstract classes, in each step, whether the space is one of theirs.
        has_parts = isinstance(self._actions, (spaces.Dict, spaces.Tuple))
        self._batch = None if has_parts else (group.num_envs,)
        self._group = group
        self.rounds = Rounds(group)
        self._exact = group.connection.exact_infos
        self._is_single = single_request and len(group) == 1
        self._observations: list[Any] = [None] * len(group)  # the last one of each session
        self.in_call: object = False  # true while a call of the vector is under way
        self.generators: RemoteGenerators | None = None  # once somebody has asked for them
        self._failures = 0  # of the connection's sessions, when the actions had been sent
        self._before: _Stage | None = None  # the stage before the present call ended a step
        self._forget()

    def _forget(self) -> None:
        """Return to the state in which no step is in progress; late replies are dropped."""
        self._begun = ""  # the name of a call that sends actions and has not returned
        self._stepping = False  # whether the actions of a step of all environments were sent
        self._awaited: list[int] = []  # sessions in a step, in the order of sending
        self._received: dict[int, Message] = {}  # percepts that have not been returned yet

    def begin_call(self) -> None:
        """Begin a call of the vector: from now on, `undo` returns to this moment."""
        if self.in_call:
            check_alone(self)
        if self.generators is not None:
            self.generators.before_request()
        self.in_call = True
        self._before = None
        if self.rounds.finished is not None:
            self.rounds.drop_returned()
        self._group.begin_call()

    def end_call(self) -> None:
        """End a call of the vector."""
        self.in_call = False

    def undo(self, error: BaseException) -> None:
        """End a call with an exception.

        Unless it is a reply, or a reply is malformed, no reply counts as returned.
        """
        self.in_call = False
        if isinstance(error, ProtocolError) or self._group.is_failure(error):
            return
        self._group.undo()
        self.rounds.keep()
        if self._before is not None:
            self._begun, self._stepping, self._awaited, self._received = self._before

    @property
    def shared(self) -> object:
        """The same for all that the calls of one proxy use."""
        return self

    def check_idle(self) -> None:
        """Raise MoveError while a step is in progress."""
        if self._awaited or self._received:
            raise MoveError(
                "A step is still in progress. Wait for it with step_wait() after step_async(), or "
                "with recv() after send(); or abandon it with reset()."
            )

    def reset(
        self, requests: Mapping[int, Reset], timeout_s: float | None
    ) -> tuple[Any, dict[str, Any]]:
        """Abandon the steps in progress, reset these sessions, and return what `Env.reset` does."""
        group = self._group
        self._forget()
        infos: list[dict[str, Any]] = [{} for _ in group.slices]
        casts: list[vector_infos.Casts] = [{} for _ in group.slices]
        for i, status in group.reset(requests, timeout_s).items():
            assert type(status) is Status
            self._observations[i] = status.observation
            try:
                infos[i], casts[i] = vector_infos.from_wire(status.info, exact=self._exact)
            except DecodingError as error:
                raise self._malformed("malformed infos", [i], error) from None
        if len(group) == 1:
            return self._observations[0], infos[0]
        observation = batching.join(self._observation, self._observations)
        return observation, batching.join_infos(infos, group.sizes, casts, exact=self._exact)

    def _malformed(self, what: str, sessions: Iterable[int], error: Exception) -> DecodingError:
        names = ", ".join(map(self._group.names, sessions))
        why = f": {error}" if isinstance(error, ProtocolError) else "."
        return DecodingError(f"The env agent of {self._group.where} sent {what} for {names}{why}")

    def step(self, actions: Any, timeout_s: float | None) -> VectorStep:
        """Run one step of all environments, or continue to wait for an interrupted one."""
        if not self._is_single or self._begun:
            self._send_all("step", actions)
            return self.wait(timeout_s)
        # The fast path of a vector in one session.
        if self._awaited or self._received:
            self.check_idle()
        if type(actions) is not _ndarray or actions.shape[:1] != self._batch:
            batching.check_size(self._actions, actions, self._group.num_envs)
        step = self._group.step(actions, timeout_s)
        self._observations[0] = step[0]
        return step

    def begin(self, actions: Any) -> None:
        """Send the actions of all environments without waiting."""
        if self._is_single and not self._begun:
            self._send_single("step_async", actions)
        else:
            self._send_all("step_async", actions)
        self._before = "step_async", self._stepping, self._awaited, self._received
        self._begun = ""

    def _send_single(self, call: str, actions: Any) -> None:
        """Send the actions of a vector in one session: the fast path."""
        session = self._group[0]
        if not session.exchange.may_step:
            self._group.check(Kind.ACT)
        if self._awaited or self._received:
            self.check_idle()
        if type(actions) is not _ndarray or actions.shape[:1] != self._batch:
            batching.check_size(self._actions, actions, self._group.num_envs)
        self._begun = call
        steps_ahead.send_step(session, actions)
        self._awaited, self._stepping = [0], True

    def _send_all(self, call: str, actions: Any) -> None:
        """Send the actions of all environments; after an interrupt, those not sent yet.

        A session that is in the step already compares the actions, and raises MoveError if they
        are others.
        """
        group = self._group
        group.check(Kind.ACT)
        if self._begun != call:
            self.check_idle()
        batching.check_size(self._actions, actions, group.num_envs)
        self._begun = call
        if len(group) == 1:
            self._begin_steps([0], [(0, actions)])
        else:
            self._send(dict(enumerate(group.slices)), actions)
        self._awaited = [*range(len(group))]
        self._failures, self._stepping = group.connection.failures, True

    def wait(self, timeout_s: float | None) -> VectorStep:
        """Wait for the step that `begin` sent, and return it."""
        group = self._group
        if self._stepping and self._is_single and timeout_s is None:
            step = self._receive_single()
            if step is not None:
                return step
        if not self._stepping or self._failures != group.connection.failures:
            group.check(Kind.ACT)
        if not self._stepping and self._is_single and group[0].exchange.is_stepping:
            # A step of the fast path was interrupted. The same step() may still wait on.
            self._begun, self._stepping, self._awaited = self._begun or "step", True, [0]
        if not self._stepping:
            raise MoveError("No step is in progress: call step_async() before step_wait().")
        try:
            missing = self._missing()
            if len(group) > 1:
                group.wait_for_steps(missing, timeout_s)
            received = dict(self._received)
            for i in missing:
                received[i] = group.read_step(i, timeout_s)
            self._received = received
        except GymwireError as error:
            if group.is_failure(error):  # the step is over in all sessions
                group.mark_returned(self._awaited)
                self._end()
            raise
        percepts = {i: self._received[i] for i in self._awaited}  # in the order of the sessions
        step = self._joined(percepts)
        self._before = self._begun, self._stepping, self._awaited, self._received
        group.end_steps(percepts)
        self._forget()
        return step

    def _end(self) -> None:
        """End the step, as `undo` may undo."""
        self._before = self._begun, self._stepping, self._awaited, self._received
        self._forget()

    def _receive_single(self) -> VectorStep | None:
        """Wait for the step of a vector in one session: the fast path. None: use `read_step`."""
        session = self._group[0]
        exchange = session.exchange
        if not exchange.may_step:
            return None
        self._group.undo_log = {exchange: exchange.returned}
        try:
            step = steps_ahead.receive_step(session)
        except DecodingError:
            self._end()
            raise
        if step is not None:
            self._before = self._begun, self._stepping, self._awaited, self._received
            self._observations[0] = step[0]
            self._forget()
        return step

    def _missing(self) -> list[int]:
        return [i for i in self._awaited if i not in self._received]

    # --- some of the environments -----------------------------------------------------------------

    def send(self, actions: Any, env_ids: ArrayLike) -> None:
        """Send actions to some of the environments without waiting."""
        self._group.check(Kind.ACT)
        if self._stepping:
            raise MoveError("A step of all environments is in progress: call step_wait() first.")
        places = batching.split_ids(env_ids, self._group.slices)
        batching.check_size(self._actions, actions, sum(map(len, places.values())))
        for i in places:
            if i in self._awaited or i in self._received:
                raise MoveError(
                    f"The previous step of {self._group.names(i)} has not been returned yet: call "
                    f"recv() first."
                )
        self._begun = "send"
        self._send(places, actions)
        self._before = "send", self._stepping, self._awaited, self._received
        self._begun, self._awaited = "", [*self._awaited, *places]

    def _send(self, places: Mapping[int, slice | NDArray[np.intp]], actions: Any) -> None:
        """Send each session its part of the actions; nothing if one cannot be serialized."""
        if type(actions) is not _ndarray:
            values.check(actions, root="actions")
        self._begin_steps(
            places, ((i, batching.take(self._actions, actions, places[i])) for i in places)
        )

    def _begin_steps(self, sessions: Iterable[int], actions: Iterable[tuple[int, Any]]) -> None:
        """Send actions to sessions, those of each as soon as `actions` yields them."""
        group, outbox = self._group, Outbox()
        if not self._stepping:
            group.prepare_steps(sessions)
        try:
            for i, part in actions:
                group.begin_step(i, part, outbox)
        finally:
            if not group.connection.closed:  # by a signal handler, say
                outbox.flush()
        group.connection.check_open()

    def receive(self, min_envs: int, timeout_s: float | None) -> VectorStep:
        """Wait until `min_envs` environments have stepped; return all that have."""
        group = self._group
        group.check(Kind.ACT)
        if self._stepping:
            raise MoveError("A step of all environments is in progress: call step_wait() for it.")
        in_progress = sum(group.sizes[i] for i in {*self._awaited, *self._received})
        if not 1 <= min_envs <= in_progress:
            raise BatchSizeError(
                f"recv() cannot wait for {min_envs} environments: {in_progress} have been sent an "
                f"action."
            )
        deadline = group.deadline_of(timeout_s)
        while True:
            for i in [i for i in self._missing() if group.step_ready(i)]:
                try:
                    self._received = {**self._received, i: group.read_step(i)}
                except GymwireError as error:
                    if group.is_failure(error):
                        self._before = "", False, self._awaited, self._received
                        group.mark_returned([i])
                        self._awaited = [one for one in self._awaited if one != i]
                    raise
            self._awaited = self._missing()
            if sum(group.sizes[i] for i in self._received) >= min_envs:
                break
            group.wait_for_step(self._awaited, deadline)
        step = self._joined(self._received)
        ids = [np.arange(group.slices[i].start, group.slices[i].stop) for i in self._received]
        step[4]["env_id"] = np.concatenate(ids)
        self._before = "", False, self._awaited, self._received
        group.end_steps(self._received)
        self._received = {}
        return step

    def _joined(self, percepts: Mapping[int, Message]) -> VectorStep:
        """Join the percepts of some sessions, in their order, to those of one vector.

        Raises ProtocolError if they do not fit; then they count as returned.
        """
        try:
            return self._join(percepts)
        except (AttributeError, LookupError, TypeError, ValueError, ProtocolError) as error:
            if is_from_outside(error):
                raise
            self._group.mark_returned(percepts)
            awaited = [i for i in self._awaited if i not in percepts]
            self._forget()
            self._awaited = awaited
            raise self._malformed("a malformed percept", self._misfits(percepts), error) from error

    def _misfits(self, percepts: Mapping[int, Any]) -> list[int]:
        """Return the sessions whose percepts have wrong sizes; all if that is not known."""
        sizes = self._group.sizes
        return [
            i
            for i, one in percepts.items()
            for part in [(one.reward, one.terminated, one.truncated)]
            if any(getattr(array, "shape", ())[:1] != (sizes[i],) for array in part)
        ] or [*percepts]

    def _join(self, percepts: Mapping[int, Message]) -> VectorStep:
        parts: list[Percept] = [*percepts.values()]  # type: ignore[list-item]
        assert {*map(type, parts)} == {Percept}
        observations = [part.observation for part in parts]
        for i, observation in zip(percepts, observations, strict=True):
            self._observations[i] = observation
        infos = [part.info for part in parts]
        casts: list[vector_infos.Casts] | None = None
        if {*map(type, infos)} != {dict}:  # else `from_wire` would return each as it is
            read = [vector_infos.from_wire(info, exact=self._exact) for info in infos]
            infos, casts = [info for info, _ in read], [cast for _, cast in read]
        if len(self._group) == 1:
            one = parts[0]
            return one.observation, one.reward, one.terminated, one.truncated, infos[0]
        sizes = [self._group.sizes[i] for i in percepts]
        firsts = [self._group.slices[i].start for i in percepts]
        return (
            batching.join(self._observation, observations),
            np.concatenate([part.reward for part in parts]),
            np.concatenate([part.terminated for part in parts]),
            np.concatenate([part.truncated for part in parts]),
            batching.join_infos(infos, sizes, casts, exact=self._exact, firsts=firsts),
        )
