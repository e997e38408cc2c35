"""A connection to a broker that many tasks of one event loop use at the same time.

One of the waiting tasks is the reader: it waits for input, receives, runs the timers and wakes the
tasks that have got their answers. When its own answer has come, another one becomes the reader. So
there is no background task, and while no task waits, nothing runs, as with a blocking connection.
"""

from __future__ import annotations

import copy
import math
import selectors
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, ClassVar

from gymwire.learner_agent.aio.calls import anyio, current_number, future_factory, suspend
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.session import Data, RemoteSession
from gymwire.learner_agent.client.session_timers import Repeats
from gymwire.learner_agent.client.waiting import TICK_S, Source, timers_pause, wait
from gymwire.protocol.codec import Frame, Header
from gymwire.protocol.errors import BrokerUnreachable, GymwireError
from gymwire.protocol.step_codec import Step
from gymwire.protocol.transport.dealer import Dealer

DIAL_S = 0.005  # between two attempts to send HELLO while the connection is being made
SETUP_S = 0.02  # the shortest pause between two checks of direct connections that are being made
MAX_TOGETHER = 32  # requests that are sent together; more would wait for each other


class _Waiter:
    """A task that waits in a call.

    Attributes:
        until: the condition that it waits for; None: that of a session, which wakes it.
        error: the exception that ends the waiting.
    """

    __slots__ = ("_future", "_input", "_is_woken", "error", "until")

    def __init__(self, until: Callable[[], bool] | None = None) -> None:
        self.until = until
        self.error: BaseException | None = None
        self._is_woken = False
        self._future: Any = None
        self._input: Input | None = None  # what the reader waits for instead of the future

    def wake(self, error: BaseException | None = None) -> None:
        """Let the task check what it waits for; or end its waiting with an exception."""
        self.error = self.error or error
        self._is_woken = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
        if self._input is not None:
            self._input.interrupt()

    def check(self) -> None:
        """Wake the task if its condition is met."""
        if self._is_woken or self.until is None:
            return
        try:
            if self.until():
                self.wake()
        except GymwireError as error:
            self.wake(error)

    def pause(self, future: Any, timeout_s: float) -> None:
        """Suspend the call until `wake`, for at most `timeout_s` seconds."""
        if not self._is_woken:
            self._future = future
            suspend(future if timeout_s == math.inf else _within(timeout_s, future), self)
        self._future, self._is_woken = None, False

    def read(self, source: Input, timeout_s: float) -> None:
        """Suspend the call until `wake` or input, for at most `timeout_s` seconds."""
        if not self._is_woken:
            self._input = source
            try:
                suspend(source.wait(timeout_s), self)
            finally:
                self._input = None
        self._is_woken = False


async def _within(timeout_s: float, future: Any) -> None:
    with anyio.move_on_after(timeout_s):
        await future


class Input:
    """Waits for input on several paths, through one descriptor that stands for all of them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._watched: list[Any] = []
        self._scope: Any = None

    def watch(self, paths: Sequence[Any]) -> None:
        """Wait for these paths from now on, also in a `wait` that is under way."""
        # A path that has lost its connection has no descriptor until it is connected again.
        waitables = [one for one in (path.waitable for path in paths) if one != -1]
        if waitables == self._watched:
            return
        self.renew()
        self._watched = waitables
        for one in waitables:
            self._selector.register(one if isinstance(one, int) else one.FD, selectors.EVENT_READ)

    def renew(self) -> None:
        """Ask the kernel again with the next `watch`: a new connection may have an old number."""
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
        self._watched = []

    async def wait(self, timeout_s: float) -> None:
        """Wait until there is input, or there may be, for at most `timeout_s` seconds."""
        with anyio.move_on_after(timeout_s) as self._scope:
            await anyio.wait_readable(self._selector.fileno())

    def interrupt(self) -> None:
        """End the `wait` that is under way."""
        self._scope.cancel()

    def close(self) -> None:
        """Free the descriptor."""
        self._selector.close()


class AioDealer(Dealer):
    """A ZeroMQ connection that suspends the call where a Dealer blocks."""

    def send(self, frame: bytes | bytearray, wait: bool = False) -> bool:
        """Send one frame: now, or with `wait` soon after the connection has been made."""
        if super().send(frame):
            return True
        if wait:
            suspend(anyio.sleep(DIAL_S))
        return wait and super().send(frame)

    def receive(self) -> bytes | memoryview | None:
        """Return the next frame, or None after a pause without one."""
        if not self.poll():
            suspend(anyio.sleep(DIAL_S))
            if not self.poll():
                return None
        return super().receive()


class AioSession(RemoteSession):
    """A session of an `AioConnection`: its errors and replies reach the task that waits for it."""

    connection: AioConnection
    is_timed = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.opener = current_number()  # the call that has opened it

    def step(self, action: Any, timeout_s: float | None = None) -> Step:
        """Step as a RemoteSession does, but suspend the call instead of blocking."""
        exchange = self.exchange
        frame = exchange.begin_step(action)
        if frame is None:
            return super().step(action, math.inf if timeout_s is None else timeout_s)
        request = exchange.request
        try:
            if self.paths.direct is None:
                self.connection.send_together(frame)
            else:
                self.paths.serve_others(self.connection.clock())
                self.path.send(frame)
                self.connection.take_in()
            if timeout_s is None and exchange.reply is None:
                self.connection.let_others_read(self)
            if exchange.reply is None:
                self._wait(timeout_s)
            reply = exchange.reply
            step = None if reply is None else exchange.finish_step(reply[1])
            return self._take(self._read_step) if step is None else step
        except BaseException as error:
            exchange.end_with(request, error)
            raise

    def receive(self, header: Header, data: Data) -> bool:
        """Handle a frame of this session; return whether it is the reply to the request."""
        answered = super().receive(header, data)
        if answered:
            self.connection.wake(self)
        else:
            self.connection.note_news()
        return answered

    def fail(self, error: GymwireError) -> None:
        """Raise an exception in the task that waits for this session now, or does so next."""
        super().fail(error)
        self.connection.wake(self)

    def tick(self, now: float, repeats: Repeats) -> None:
        """Run the session's timers."""
        try:
            super().tick(now, repeats)
        except GymwireError as error:
            self.connection.wake(self, error)


class AioConnection(BrokerConnection):
    """A BrokerConnection for calls (`calls.run`) of the tasks of one event loop."""

    session_type: ClassVar[type[RemoteSession]] = AioSession
    input_type: ClassVar[type[Input]] = Input

    def __init__(self, url: str, **options: Any) -> None:
        self._by_session: dict[RemoteSession, _Waiter] = {}
        self._others: dict[_Waiter, _Waiter] = {}  # those that wait for anything else
        self._reader: _Waiter | None = None
        self._has_news = False  # whether a frame has arrived that may concern `_others`
        self._timers_at = 0.0
        self._gathered: list[Frame] = []  # what will be sent before the event loop waits
        self._is_gathering = False  # whether a task will send it
        self._input = self.input_type()
        self._new_future = future_factory()
        try:
            super().__init__(url, **{"dial": AioDealer, **options})
        except BaseException:
            self._input.close()
            raise

    # --- what ends the waiting of a task ----------------------------------------------------------

    def wake(self, session: RemoteSession, error: BaseException | None = None) -> None:
        """Wake the task that waits for this session, if there is one; see `_Waiter.wake`."""
        waiter = self._by_session.get(session)
        if waiter is not None:
            waiter.wake(error)

    def note_news(self) -> None:
        """Note that a frame may concern any task that waits."""
        self._has_news = True

    def _receive_from_broker(self, header: Header, data: Data) -> bool:
        self._has_news = True
        return super()._receive_from_broker(header, data)

    def _fail(self, error: GymwireError) -> None:
        """End the waiting of all tasks that this exception concerns."""
        waiters = list(self._others)
        if not isinstance(error, BrokerUnreachable):  # a session has its own patience
            waiters += self._by_session.values()
        for waiter in waiters:
            waiter.wake(copy.copy(error))

    # --- requests of many tasks at the same time --------------------------------------------------

    def send_together(self, frame: Frame) -> None:
        """Send a frame to the broker, with those of the tasks that run before the event loop waits.

        Each call of the kernel takes long, and wakes the broker.
        """
        if self._reader is None:  # no other task waits: most likely there is none
            self.link.send(frame)
            return
        self._gathered.append(frame)
        if len(self._gathered) >= MAX_TOGETHER:
            self._send_gathered()
            self.take_in()
        if not self._is_gathering:
            try:
                suspend(self._gather())
            finally:
                self.take_in()

    async def _gather(self) -> None:
        """Let the other tasks that can run now add their frames, and send all of them."""
        self._is_gathering = True
        try:
            await anyio.sleep(0)
        finally:
            self._is_gathering = False
            self._send_gathered()

    def _send_gathered(self) -> None:
        frames, self._gathered = self._gathered, []
        if not self.closed:
            self.link.send_all(frames)

    # --- waiting ----------------------------------------------------------------------------------

    def wait(
        self,
        until: Callable[[], bool],
        deadline: float | None = None,
        sources: Iterable[Source] = (),
    ) -> bool:
        """Suspend the call until a condition holds, as `BrokerConnection.wait` blocks."""
        return self._begin_wait(until, deadline, sources or (self,), None, TICK_S)

    def waiting(
        self,
        until: Callable[[], bool],
        deadline: float | None,
        *,
        sources: Iterable[Source],
        run_timers: Callable[[float], None],
        clock: Callable[[], float],
        tick_s: float = TICK_S,
        longest_pause_s: float = math.inf,
    ) -> bool:
        """Suspend the call until a condition holds, as `waiting.wait` blocks."""
        return self._begin_wait(until, deadline, sources, run_timers, tick_s)

    def _begin_wait(
        self,
        until: Callable[[], bool],
        deadline: float | None,
        sources: Iterable[Source],
        run_timers: Callable[[float], None] | None,
        tick_s: float,
    ) -> bool:
        """Suspend the call. `run_timers`: None: those of the connection, which the reader runs."""
        self.check_open()
        self.take_in()
        if until():
            return True
        (source,) = sources
        waiter = _Waiter(None if isinstance(source, AioSession) else until)
        waiters: dict[Any, _Waiter] = self._others
        key: Any = waiter
        if isinstance(source, AioSession):
            waiters, key = self._by_session, source
        waiters[key] = waiter
        try:
            return self._wait(waiter, until, deadline, run_timers, tick_s)
        finally:
            self._leave(waiters, key)

    def let_others_read(self, session: AioSession) -> None:
        """Suspend the call until something has arrived for its session, if another task reads.

        This is the first part of most waits, with the least work and the fewest objects.
        """
        self.check_open()
        if self._reader is None:
            return
        waiter = self._by_session[session] = _Waiter()
        try:
            waiter.pause(self._new_future(), math.inf)
        finally:
            self._leave(self._by_session, session)
        if waiter.error is not None and not session.ready:
            raise waiter.error

    def _leave(self, waiters: dict[Any, _Waiter], key: Any) -> None:
        """End the waiting of a task."""
        waiter = waiters.pop(key)
        if self._reader is waiter:
            self._reader = None
        if self._reader is None:
            self._choose_reader()
        if self.closed and self._reader is None:
            self._input.close()

    def _wait(
        self,
        waiter: _Waiter,
        until: Callable[[], bool],
        deadline: float | None,
        run_timers: Callable[[float], None] | None,
        tick_s: float,
    ) -> bool:
        end = math.inf if deadline is None else deadline
        pause_s = math.inf if run_timers is None else max(tick_s, SETUP_S)
        while True:
            left_s = min(max(end - self.clock(), 0.0), pause_s)
            if self._reader is None:
                self._reader = waiter
            if self._reader is waiter:
                self._input.watch([one.path for one in self._sources()])
                waiter.read(self._input, min(left_s, TICK_S))
            else:
                waiter.pause(self._new_future(), left_s)
            if self.closed:
                raise waiter.error or self.link.closed_error()
            if self._reader is waiter:
                self._receive()
            if run_timers is not None:
                run_timers(self.clock())
            if until():
                return True
            if waiter.error is not None:
                raise waiter.error
            if self.clock() >= end:
                return False

    def _choose_reader(self) -> None:
        """Wake a waiting task, which becomes the reader then.

        The last one of those that wait for sessions: where steps take equally long, its reply
        comes last, and each change of the reader costs two changes of tasks.
        """
        waiters = self._by_session or self._others
        if waiters:
            next(reversed(waiters.values())).wake()

    def _sources(self) -> list[Source]:
        """Return the connections over which frames can arrive now."""
        links = [one for one in self.direct_links.all if one.transport.waitable != -1]
        return [self, *links]

    def take_in(self) -> None:
        """Receive what the reader would not notice.

        While libzmq sends, it may also receive, and its descriptor does not signal that.
        """
        if self.closed:
            return
        paths = [one.path for one in self._sources()]
        for path in paths:
            if path.has_buffered or (not isinstance(path.waitable, int) and path.poll()):
                self._receive()
                return
        if self._reader is not None:
            self._input.watch(paths)

    def _receive(self) -> None:
        """Receive what has arrived, run the timers that are due, and wake whom that concerns."""
        try:
            wait(
                lambda: False,
                self.clock(),
                sources=self._sources(),
                run_timers=self._run_timers,
                clock=self.clock,
            )
        except GymwireError as error:
            self._fail(error)
        if self._has_news:
            self._has_news = False
            for waiter in self._others:
                waiter.check()
        if self._reader is not None:
            self._input.watch([one.path for one in self._sources()])

    def _run_timers(self, now: float) -> None:
        if now >= self._timers_at:
            self.tick(now)
            self._input.renew()
            self._timers_at = now + timers_pause(self.clock() - now, self.contact.ping_s)

    # --- sessions and the end ---------------------------------------------------------------------

    def close_others(self, sids: Collection[int]) -> None:
        """Close the sessions that this call has opened, except these: tasks share a connection."""
        number = current_number()
        foreign = [
            one.sid
            for one in self._sessions.values()
            if isinstance(one, AioSession) and one.opener != number
        ]
        super().close_others({*sids, *foreign})

    def close(self, *, goodbye: bool = True) -> None:
        """Leave the broker, which ends the sessions that are still open. Idempotent."""
        if not self.closed:
            self._fail(self.link.closed_error())
        super().close(goodbye=goodbye)
        if self._reader is None:
            self._input.close()
