"""The sessions of one vector on one connection, each with some of its environments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from gymnasium import Space

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.exchange import Exchange
from gymwire.learner_agent.client.failures import lost_because
from gymwire.learner_agent.client.readiness import Sources, all_ready, one_ready
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.steps_ahead import Outbox
from gymwire.protocol import dialogue
from gymwire.protocol.errors import (
    EnvironmentFailed,
    EnvironmentLost,
    GymwireError,
    RequestTimeout,
)
from gymwire.protocol.messages import Kind, Message, Reset
from gymwire.protocol.step_codec import Step


class SessionGroup:
    """The sessions of a vector. Errors name environments by their number in the whole vector.

    Args:
        connection: the connection to the broker.
        slices: which environments of the vector each session has.
        where: the address, as errors name it.
        open_all: opens sessions, from the number of environments of each and `wait_s`, as
            `BrokerConnection.open_all` does.

    Attributes:
        where: the address, as errors name it.
        undo_log: what `undo` restores: for each exchange the last number returned before the call.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        slices: Sequence[slice],
        where: str,
        open_all: Callable[[BrokerConnection, Sequence[int], float | None], list[RemoteSession]],
    ) -> None:
        self.connection = connection
        self.slices = slices
        self.sizes = [part.stop - part.start for part in slices]
        self.num_envs = slices[-1].stop
        self.where = where
        self._open_all = open_all
        self._sessions = self._open(self.sizes)
        self.undo_log: dict[Exchange, int] = {}
        self._before: Any = None  # what the `undo` of a subclass restores

    def _open(self, sizes: Sequence[int], wait_s: float | None = None) -> list[RemoteSession]:
        sessions = self._open_all(self.connection, sizes, wait_s)
        for session in sessions:
            session.reads_ahead = len(self.sizes) > 1
        return sessions

    def __len__(self) -> int:
        return len(self._sessions)

    def __getitem__(self, i: int) -> RemoteSession:
        return self._sessions[i]

    def names(self, i: int) -> str:
        """Return the environments of a session, as errors name them."""
        return _names(self.slices[i])

    def _chosen(self, indices: Iterable[int]) -> list[RemoteSession]:
        return [self._sessions[i] for i in indices]

    def single_space(self, name: str) -> Space[Any]:
        """Return the space of one environment. `name`: that of the vector's."""
        return self._sessions[0].build_space(f"single_{name}")

    # --- requests ---------------------------------------------------------------------------------

    def check(self, kind: Kind) -> None:
        """Raise EnvironmentLost or MoveError unless all sessions may send this request now."""
        states = set()
        for session in self._sessions:  # once: they are not in the caches of the processor
            exchange = session.exchange
            if exchange.lost is not None:
                raise self.lost_error()
            states.add(exchange.state)
        for state in states:
            dialogue.check_request(state, kind)

    def ask(self, requests: Mapping[int, Message], timeout_s: float | None) -> dict[int, Message]:
        """Send a request to each of these sessions, and return the replies."""
        if any(self[i].exchange.lost is not None for i in requests):
            raise self.lost_error()
        for i, request in requests.items():
            self._sessions[i].begin(request)
        self.wait_for_all(requests, self.deadline_of(timeout_s))
        return self.take(requests)

    def take(self, sessions: Collection[int]) -> dict[int, Message]:
        """Return the replies of these sessions, which have arrived: all of them or an exception.

        If replies stand for exceptions, raise the first of them; none of the replies stays.
        """
        try:
            replies = {i: self.read(i) for i in sessions}
        except GymwireError as error:
            if self.is_failure(error):
                self.mark_returned(sessions)
            raise
        self.mark_returned(sessions)
        return replies

    # --- which replies the caller has -------------------------------------------------------------

    def begin_call(self) -> None:
        """Begin a call of the vector: from now on, `undo` returns to this moment."""
        self.undo_log, self._before = {}, None

    def mark_returned(self, sessions: Collection[int]) -> None:
        """Record that the caller has the replies of these sessions that have arrived."""
        answered: dict[Exchange, int] = {}
        for i in sessions:
            exchange = self._sessions[i].exchange
            if exchange.reply is not None:
                answered[exchange] = exchange.returned
        self.undo_log = {**answered, **self.undo_log}
        for exchange in answered:
            exchange.mark_returned()

    def undo(self) -> None:
        """Make the replies that the present call has marked as returned available again."""
        for exchange, returned in self.undo_log.items():
            exchange.returned = returned

    def is_failure(self, error: BaseException) -> bool:
        """Return whether a session's last reply stands for this exception."""
        return any(one.exchange.is_failure(error) for one in self._sessions)

    def wait_for_all(self, waiting: Collection[int], deadline: float | None) -> None:
        """Wait for the replies of these sessions. Raises RequestTimeout and EnvironmentLost."""
        self._wait(all_ready(self.connection, self._chosen(waiting)), waiting, deadline)

    def deadline_of(self, timeout_s: float | None) -> float | None:
        """Return when this timeout ends, as a reading of the connection's clock."""
        return None if timeout_s is None else self.connection.clock() + timeout_s

    def wait_for_one(self, waiting: Sequence[int], deadline: float | None) -> None:
        """Wait until one of these sessions has its reply.

        `deadline`: a reading of the connection's clock. Raises RequestTimeout and EnvironmentLost.
        """
        self._wait(one_ready(self._chosen(waiting)), waiting, deadline)

    def _wait(
        self, until: Callable[[], bool], waiting: Collection[int], deadline: float | None
    ) -> None:
        """Wait until a condition holds. Raises RequestTimeout and EnvironmentLost."""
        try:
            if self.connection.wait(until, deadline, Sources(self._chosen(waiting))):
                return
        except EnvironmentLost:
            raise self.lost_error() from None
        pending = [one.exchange.pending for one in self._chosen(waiting)]
        resets = all(one is not None and one.kind == Kind.RESET for one in pending)
        drop = "" if resets else ", or call reset() to drop the results"
        raise RequestTimeout(
            f"No reply yet from {', '.join(map(self.names, waiting))} of {self.num_envs} at "
            f"{self.where}. Call again to keep waiting{drop}. If they never come, close() and make "
            f"a new proxy."
        )

    def read(self, i: int, timeout_s: float | None = None) -> Message:
        """Wait for the reply to a session's pending request, and return it.

        It stays until `mark_returned`, even if it stands for the exception that this raises.
        """
        try:
            return self._sessions[i].peek(timeout_s)
        except (EnvironmentLost, EnvironmentFailed) as error:
            raise self._named(i, error) from None

    def _named(self, i: int, error: EnvironmentLost | EnvironmentFailed) -> GymwireError:
        """Return an error of one session as an error of this vector."""
        if isinstance(error, EnvironmentLost):
            return self.lost_error(i)
        return _located(error, self.slices[i].start, self.names(i), self.num_envs)

    def reset(self, requests: Mapping[int, Reset], timeout_s: float | None) -> dict[int, Message]:
        """Reset these sessions; if they are all, open new ones in the place of lost ones first."""
        self.connection.drain()  # sessions that are lost together are opened again together
        if self.lost and len(requests) < len(self):
            raise self.lost_error()
        while self.lost:  # another may be lost in the meantime
            self.reopen(self.lost)
        return self.ask(requests, timeout_s)

    # --- steps ------------------------------------------------------------------------------------

    def prepare_steps(self, sessions: Iterable[int]) -> None:
        """Prepare these sessions for a step. Raises before anything of the step is sent."""

    def begin_step(self, i: int, actions: Any, outbox: Outbox) -> None:
        """Send a session its actions, by the outbox."""
        outbox.add(self._sessions[i], actions)

    def step(self, actions: Any, timeout_s: float | None) -> Step:
        """Let the only session do one step, on the fast path."""
        session = self._sessions[0]
        exchange = session.exchange
        self.undo_log = {exchange: exchange.returned}
        try:
            return session.step(actions, timeout_s)
        except (EnvironmentLost, EnvironmentFailed) as error:
            raise self._named(0, error) from None

    def step_ready(self, i: int) -> bool:
        """Return whether `read_step` does not have to wait."""
        return self._sessions[i].exchange.reply is not None

    def wait_for_step(self, waiting: Sequence[int], deadline: float | None) -> None:
        """Wait until the step of one of these sessions has ended."""
        self.wait_for_one(waiting, deadline)

    def wait_for_steps(self, waiting: Sequence[int], timeout_s: float | None) -> None:
        """Wait until `step_ready` for all of these. Raises RequestTimeout and EnvironmentLost."""
        self.wait_for_all(waiting, self.deadline_of(timeout_s))

    def _wait_until_ready(
        self,
        waiting: Sequence[int],
        timeout_s: float | None,
        wait: Callable[[Sequence[int], float | None], None],
    ) -> None:
        """Call `wait` with the sessions that are not `step_ready`, until all of these are."""
        deadline = self.deadline_of(timeout_s)
        while missing := [i for i in waiting if not self.step_ready(i)]:
            wait(missing, deadline)

    def read_step(self, i: int, timeout_s: float | None = None) -> Message:
        """Wait for the percept of a session, and return it; it stays until `end_steps`."""
        return self.read(i, timeout_s)

    def end_steps(self, percepts: Mapping[int, Message]) -> None:
        """Record that the caller has these percepts, which `read_step` returned."""
        self.mark_returned(percepts)

    @property
    def is_idle(self) -> bool:
        """Whether no session is lost, and none has a request without a reply."""
        return not self.lost and not any(one.exchange.unanswered for one in self._sessions)

    # --- loss and end -----------------------------------------------------------------------------

    @property
    def lost(self) -> list[int]:
        """The indices of the sessions that are lost."""
        return [i for i, one in enumerate(self._sessions) if one.exchange.lost is not None]

    def lost_error(self, i: int | None = None) -> EnvironmentLost:
        """Return the error that names the lost sessions. `i`: one that was just lost, or None."""
        lost = self.lost or ([] if i is None else [i])
        names = ", ".join(map(self.names, lost)) or "environments"
        first = self[lost[0]].exchange if lost else None
        why = (first and first.lost) or "the env agent is gone"
        episodes, sessions = "Their episodes", "new sessions for them"
        if sum(self.sizes[one] for one in lost) == 1:
            episodes, sessions = "Its episode", "a new session for it"
        return lost_because(
            first.ended_by if first else "",
            f"Lost: {names} of {self.num_envs} at {self.where}: {why.rstrip('.')}. "
            f"{episodes} cannot be recovered.",
            f"Call reset() to open {sessions}.",
        )

    def reopen(self, lost: Sequence[int], *, wait_s: float | None = None) -> None:
        """Open new sessions in the place of lost ones, all or none."""
        sessions, replaced = [*self._sessions], [self._sessions[i] for i in lost]
        try:
            made = self._open([self.sizes[i] for i in lost], wait_s)
            for i, session in zip(lost, made, strict=True):
                sessions[i] = session
            self._sessions = sessions
        finally:  # after an exception, those that were made
            self.connection.close_others({one.sid for one in self._sessions})
        for session in replaced:
            session.close()

    def close(self) -> None:
        """End the sessions and leave the broker; never waits for a step."""
        try:
            for session in self._sessions:
                session.close()
        finally:  # even if interrupted: no later call closes it
            self.connection.close()


def _names(part: slice) -> str:
    if part.stop - part.start == 1:
        return f"environment {part.start}"
    return f"environments {part.start} to {part.stop - 1}"


def _located(error: EnvironmentFailed, start: int, names: str, num_envs: int) -> EnvironmentFailed:
    """Say in an error of a session's environments, the first of which is `start`, which failed."""
    if error.env_index is not None:
        error.env_index += start
        names = f"environment {error.env_index}"
    error.args = (f"In {names} of {num_envs}: {error.args[0]}",)
    return error
