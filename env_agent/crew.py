"""The threads of one serving loop: one reads from the transports, the others execute requests.

Each session has an executor: the thread that makes, uses and closes its environment. The loop's own
thread is the executor of one session, and each further session gets a thread of its own.

At any time one thread is the *reader*. It alone uses the transports, the tables of sessions and the
fields of `Crew`. It either executes a request itself, or gives it to another executor as a *job*.
The result of a job is a *sequel*, which the reader calls. While the reader executes something
itself, its role may be taken away from it: see `Crew.relieve`.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import threading
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gymwire.env_agent.many_threads import ThreadSettings
from gymwire.env_agent.memory import LARGE_MESSAGES
from gymwire.protocol.outside_exceptions import until_returned
from gymwire.protocol.transport.interface import Received, Waitable
from gymwire.protocol.transport.polling import wait_among

CurrentRequest = tuple[int, int, float]
"""A request that is being executed: sid, seq, and since when (monotonic seconds)."""

CLOSING = 0  # in the place of the request number: the environment of an ended session closes

# Enough for the C code of simulators. Less than a huge page, of which Linux may back any stack.
STACK_BYTES = 1024 * 1024
KEPT = 8  # threads without a session that each loop keeps for its next sessions
PAUSE_S = 0.02  # a reader that executes one request for longer is relieved,
IDLE_PAUSE_S = 0.1  # or for longer than this after a pause of all environments
RESTS_S = 1.0  # how long `Relief` rests at most
MAX_JOBS = 4  # unfinished requests of one session; the learner repeats further ones later

_numbers = itertools.count(1)  # of the threads
_starting = threading.Lock()  # `threading.stack_size` is a setting of the whole process


class Executor:
    """A thread that makes, uses and closes the environment of one session at a time.

    Attributes:
        inbox: the jobs that it has not begun.
        jobs: how many jobs it was given whose sequel the reader has not called yet.
        handed: the frame that came with the reader's role.
        lent: holds what this thread executes itself while it is the reader, as `lent[0]`. Whoever
            removes it is the reader: this thread afterwards, or `Crew.relieve`.
        current_request: what is being executed, other than the requests of an open session: that a
            session opens or closes, or is rendered; or None. May be read from any thread.
        is_dismissed: whether the thread ends.
    """

    __slots__ = ("_awake", "current_request", "handed", "inbox", "is_dismissed", "jobs", "lent")

    def __init__(self) -> None:
        self.inbox: deque[Job] = deque()
        self.jobs = 0
        self.handed: Received | None = None
        self.lent: dict[int, object] = {}
        self.current_request: CurrentRequest | None = None
        self.is_dismissed = False
        self._awake = threading.Lock()
        self._awake.acquire()

    def wait(self) -> None:
        """Wait until `wake` is called, or return if it was called since the last `wait`."""
        self._awake.acquire()

    def wake(self) -> None:
        """End the present or next `wait`. May be called from any thread."""
        try:  # noqa: SIM105 - `contextlib.suppress` takes longer than the rest
            self._awake.release()
        except RuntimeError:  # it is awake already
            pass


Sequel = Callable[[Executor], None]
"""What remains to be done after a job. Its argument is the reader, in whose thread it is called."""


@dataclass(slots=True)
class Reply:
    """The sequel of most jobs: to send a reply by the path of its request."""

    path: bytes
    frame: bytes | bytearray
    send: Callable[[Sequence[tuple[bytes, bytes | bytearray]]], None]

    def __call__(self, me: Executor) -> None:
        """Send the reply."""
        self.send([(self.path, self.frame)])


Job = Callable[[], Sequel | None]
"""Something that one executor does. It must not raise, nor use what only the reader may use."""


class Wakeup:
    """Something to poll together with sockets, which any thread can make readable."""

    has_buffered = False

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    @property
    def waitable(self) -> int:
        """The file descriptor, for `polling.wait_among`."""
        return self._read.fileno()

    def notify(self) -> None:
        """Make it readable."""
        with contextlib.suppress(OSError):  # full, and so readable; or closed
            self._write.send(b"x")

    def clear(self) -> None:
        """Make it unreadable."""
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)

    def close(self) -> None:
        """Free the descriptors."""
        self._read.close()
        self._write.close()


class Order(threading.Event):
    """An event that also ends the waiting of a crew's reader."""

    def __init__(self, crew: Crew) -> None:
        super().__init__()
        self._crew = crew

    def set(self) -> None:
        """Set it. May be called from any thread."""
        super().set()
        if (wakeup := self._crew.wakeup) is not None:
            wakeup.notify()


class Crew:
    """The executors of one serving loop, and which of them is the reader.

    Only the reader may call the methods and read the fields, unless stated otherwise.

    Args:
        read: does the work of the reader for a while: until the role is handed over, or less.
        failed: called with whatever a thread raises instead; None: the thread ends with it.
        grows: whether to start threads. If not, the loop's own thread executes everything.

    Attributes:
        own: the loop's own thread.
        reader: the executor whose thread reads. Any thread may compare itself with it.
        executors: all threads, in the order of their start. May be read from any thread.
        outside: how many jobs were given away whose sequel was not called yet.
        is_over: whether all threads end.
        wakeup: becomes readable when a job ends while the reader waits; None before the first wait.
        rests: whether nothing happens and nothing is executed. May be read from any thread.
        on_activity: called by the reader when it rests no longer.
    """

    def __init__(
        self,
        read: Callable[[Executor], None],
        failed: Callable[[Executor, BaseException], None] | None = None,
        *,
        grows: bool = True,
    ) -> None:
        self.own = Executor()
        self.reader: Executor | None = self.own
        self.executors: dict[Executor, None] = {self.own: None}
        self.outside = 0
        self.is_over = False
        self.wakeup: Wakeup | None = None
        self.rests = False
        self.on_activity: Callable[[], None] = lambda: None
        self._read = read
        self._failed = failed
        self._grows = grows
        # those that wait, the one that began to wait last at the end
        self._idle: dict[Executor, None] = {}
        self._free = {self.own: None}  # those without a session
        self._ended: deque[tuple[Executor, Sequel | None]] = deque()  # jobs, by their executors
        self._is_waiting = False
        self._seen: object = None  # what was lent at the last call of `relieve`

    # --- every thread -----------------------------------------------------------------------------

    def run(self, me: Executor) -> None:
        """Read or execute jobs in this thread, until it is dismissed or all is over."""
        if self._failed is None:
            self._run_until_over(me, None)
        else:
            until_returned(lambda raised: self._run_until_over(me, raised))

    def _run_until_over(self, me: Executor, raised: BaseException | None) -> None:
        """Let `failed` handle what was raised, and read or execute jobs until all is over."""
        if raised is not None and self._failed is not None:
            self._failed(me, raised)
        while not (self.is_over or me.is_dismissed):
            if self.reader is me:
                self._read(me)
            elif me.inbox:
                self.end_job(me, me.inbox.popleft()())
            else:
                me.wait()

    def _run_thread(self, me: Executor) -> None:
        """Run a thread that was started without `threading.Thread`, so that it equals one."""
        threading.current_thread().name = f"session-{next(_numbers)}"
        sys.settrace(threading.gettrace())
        sys.setprofile(threading.getprofile())
        self.run(me)

    def end_job(self, me: Executor, sequel: Sequel | None) -> None:
        """Leave the sequel of a job to the reader. Called by the executor `me`."""
        self._ended.append((me, sequel))
        if self._is_waiting:
            self._is_waiting = False
            assert self.wakeup is not None
            self.wakeup.notify()

    # --- jobs -------------------------------------------------------------------------------------

    def execute(self, me: Executor, executor: Executor, job: Job, *, alone: bool) -> None:
        """Let an executor do a job, at once if it is the reader `me` and `alone`.

        Afterwards `me` may be the reader no longer.

        Args:
            me: the reader.
            executor: who does the job.
            job: the job.
            alone: whether the loop has no other session.
        """
        if executor is not me:
            self.give(executor, job)
            return
        other = None if alone else self._other()
        if other is not None:
            self.give(me, job)
            self.hand_over(me, other)
            return
        me.lent[0] = job
        self.finish(me, job())

    def give(self, executor: Executor, job: Job) -> None:
        """Give an executor a job. It is not the reader, or is about to hand that role over."""
        self._idle.pop(executor, None)
        executor.jobs += 1
        self.outside += 1
        executor.inbox.append(job)
        executor.wake()

    def finish(self, me: Executor, sequel: Sequel | None) -> None:
        """Call the sequel of what `me` has executed itself, or leave it to the new reader."""
        if not self.reclaim(me):
            self.end_job(me, sequel)
        elif sequel is not None:
            sequel(me)

    def reclaim(self, me: Executor) -> bool:
        """Return whether this thread still is the reader after it has executed something itself."""
        return me.lent.pop(0, None) is not None

    def collect(self, me: Executor) -> None:
        """Call the sequels of the jobs that have ended, while `me` is the reader.

        The replies among them are sent together.
        """
        ended = self._ended
        replies: list[Reply] = []
        while ended and self.reader is me:
            executor, sequel = ended.popleft()
            executor.jobs -= 1
            self.outside -= 1
            if not executor.jobs and executor is not me:
                self._idle[executor] = None
            if type(sequel) is Reply:
                replies.append(sequel)
                if not (ended and type(ended[0][1]) is Reply):
                    sequel.send([(one.path, one.frame) for one in replies])
                    replies = []
            elif sequel is not None:
                sequel(me)

    def announce_wait(self) -> bool:
        """Return whether the reader may wait; if so, the end of a job makes `wakeup` readable."""
        if self.wakeup is None:
            self.wakeup = Wakeup()
        self._is_waiting = True
        if self._ended:
            self._is_waiting = False
        return self._is_waiting

    def end_wait(self, *, woken: bool) -> None:
        """Note that the reader waits no longer; `woken`: because `wakeup` is readable."""
        self._is_waiting = False
        if woken and self.wakeup is not None:
            self.wakeup.clear()

    def wait(self, at_most_s: float) -> None:
        """Wait until a job ends."""
        if self.announce_wait() and self.wakeup is not None:
            self.end_wait(woken=bool(wait_among([self.wakeup], at_most_s)))

    def wait_for(
        self, signals: Sequence[Waitable] | None, at_most_s: float, orders: Iterable[Order]
    ) -> bool:
        """Wait until one of the signals has input or an order is given; return False then.

        Return False at once if there are no signals, or while jobs are done.
        """
        had_rested, self.rests = self.rests, False
        if signals is not None and at_most_s > 0 and not self.outside and self.announce_wait():
            ready = [len(signals)]  # an order may have come before there was a `wakeup`
            if self.wakeup is not None and not any(order.is_set() for order in orders):
                had_rested = self.rests = True
                ready = wait_among([*signals, self.wakeup], at_most_s)
            self.end_wait(woken=len(signals) in ready)
            self.rests = not ready
        if had_rested and not self.rests:
            self.on_activity()
        return self.rests

    # --- the role of the reader -------------------------------------------------------------------

    def is_idle(self, executor: Executor) -> bool:
        """Return whether this executor waits, and can become the reader."""
        return executor in self._idle

    def hand_over(self, me: Executor, to: Executor, handed: Received | None = None) -> None:
        """Make a waiting executor the reader, which handles the frame `handed` first."""
        self._idle.pop(to, None)
        if not me.jobs:
            self._idle[me] = None
        to.handed = handed
        self.reader = to  # from here on, only `to` may use anything
        to.wake()

    def relieve(self) -> bool:
        """Take the role from a reader that has executed something since the last call.

        Called regularly by one other thread. Returns whether the reader is executing something.
        """
        reader = self.reader
        if not self._grows:
            return False
        if reader is not None:
            executing = reader.lent.get(0)
            seen, self._seen = self._seen, executing
            if executing is None or executing is not seen:
                return executing is not None
            if not self.reclaim(reader):
                return False
            self._seen = None
            reader.jobs += 1
            self.outside += 1
            self.reader = None
        other = self._other()
        if other is None and self._ended:
            other = self._ended[0][0]  # no thread can be started, but this one has returned
        if other is not None:
            self.reader = other
            other.wake()
        return True

    # --- threads ----------------------------------------------------------------------------------

    def assign(self, me: Executor) -> Executor | None:
        """Return a thread for a new session, or None if the system permits no other thread."""
        own = self.own
        if not self._grows:
            return own
        executor = own if own in self._free else None
        if executor is None:
            executor = next((one for one in self._free if one is not me), None) or self._start()
        if executor is None and me in self._free:
            executor = me
        if executor is not None:
            self._free.pop(executor, None)
        return executor

    def release(self, executor: Executor) -> None:
        """Note that the session of this executor has ended."""
        self._free[executor] = None
        if len(self._free) > KEPT and executor in self._idle and executor is not self.own:
            del self._idle[executor], self._free[executor], self.executors[executor]
            executor.is_dismissed = True
            executor.wake()

    def end(self) -> None:
        """End all threads."""
        self.is_over = True
        for executor in self.executors:
            executor.wake()

    def _other(self) -> Executor | None:
        """Return a thread that can become the reader, or None."""
        if self._idle:
            return self._idle.popitem()[0]
        return self._start()

    def _start(self) -> Executor | None:
        if not self._grows:
            return None
        executor = Executor()
        with _starting:
            before = threading.stack_size(STACK_BYTES)
            try:
                # Not `Thread.start`, which waits until the new thread has held the interpreter: if
                # thousands of sessions open at once, that takes seconds.
                start_new_thread(self._run_thread, (executor,))
            except RuntimeError:  # the limit on threads or on memory
                return None
            finally:
                threading.stack_size(before)
        self.executors[executor] = self._free[executor] = None
        return executor


class Relief(threading.Thread):
    """Takes the role of the reader from threads that execute something for long.

    So a step that never ends keeps its own session waiting, and nothing else. It also returns
    memory to the system after large messages.
    """

    def __init__(self, crews: Sequence[Crew]) -> None:
        super().__init__(name="relief", daemon=True)
        self._crews = crews
        self._stopping = threading.Event()
        self._is_needed = threading.Event()
        for crew in crews:
            crew.on_activity = self._is_needed.set

    def run(self) -> None:
        """Run the thread."""
        pause_s, settings = IDLE_PAUSE_S, ThreadSettings()
        while not self._stopping.wait(pause_s):
            self._is_needed.clear()
            if all(crew.rests for crew in self._crews) and not self._stopping.is_set():
                self._is_needed.wait(RESTS_S)
            executing = [crew.relieve() for crew in self._crews]
            pause_s = PAUSE_S if any(executing) else IDLE_PAUSE_S
            settings.adapt(sum(len(crew.executors) for crew in self._crews))
            LARGE_MESSAGES.return_memory()
        settings.restore()

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()
        self._is_needed.set()
