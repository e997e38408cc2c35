"""Who reads and who executes among the threads of a serving loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gymwire.env_agent.crew import KEPT, Crew, Executor, Order, Relief, Reply, Sequel, Wakeup

PATIENCE_S = 20.0


class Reader:
    """A crew whose readers do nothing but note that they read, and call sequels."""

    def __init__(self) -> None:
        self.readers: list[Executor] = []
        self.reads = threading.Condition()
        self.crew = Crew(self.read)

    def read(self, me: Executor) -> None:
        with self.reads:
            if me not in self.readers[-1:]:
                self.readers.append(me)
                self.reads.notify_all()
            if me is not self.crew.own and not self.crew.is_over:
                self.crew.collect(me)
                if self.crew.reader is me:
                    self.crew.wait(0.01)

    def wait_for_reader(self, number: int) -> Executor:
        with self.reads:
            assert self.reads.wait_for(lambda: len(self.readers) > number, PATIENCE_S)
            return self.readers[number]

    def collect(self) -> None:
        """Wait, as the loop's own thread, until no job is unfinished."""
        for _ in range(int(PATIENCE_S / 0.01)):
            self.crew.collect(self.crew.own)
            if not self.crew.outside:
                return
            self.crew.wait(0.01)
        raise AssertionError("a job did not end")


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    with made.reads:  # so that no thread waits for `wakeup` now
        made.crew.end()
        if made.crew.wakeup is not None:
            made.crew.wakeup.close()


def other(reader: Reader) -> Executor:
    """Return an executor whose thread is not the loop's own."""
    assert reader.crew.assign(reader.crew.own) is reader.crew.own
    executor = reader.crew.assign(reader.crew.own)
    assert executor is not None
    assert executor is not reader.crew.own
    return executor


def test_a_job_runs_in_its_executors_thread_and_its_sequel_in_the_readers(reader: Reader) -> None:
    crew, executor = reader.crew, other(reader)
    threads: list[int] = []

    def job() -> Sequel:
        threads.append(threading.get_ident())
        return lambda me: threads.append(threading.get_ident() if me is crew.own else 0)

    for _ in range(3):
        crew.execute(crew.own, executor, job, alone=False)
        reader.collect()
    here = threading.get_ident()
    assert threads[1::2] == [here] * 3
    assert len(set(threads[::2])) == 1
    assert here not in threads[::2]


def test_the_reader_executes_a_job_of_its_own_at_once_if_its_session_is_alone(
    reader: Reader,
) -> None:
    ran: list[int] = []
    own = reader.crew.own
    reader.crew.execute(own, own, lambda: ran.append(threading.get_ident()), alone=True)
    assert ran == [threading.get_ident()]
    assert reader.crew.reader is own
    assert not reader.crew.outside


def test_another_thread_reads_before_the_reader_executes_beside_other_sessions(
    reader: Reader,
) -> None:
    crew = reader.crew
    ran: list[int] = []
    crew.execute(crew.own, crew.own, lambda: ran.append(1), alone=False)
    assert not ran  # the job waits until this thread has returned to `run`
    assert reader.wait_for_reader(0) is not crew.own
    crew.end_job(crew.own, crew.own.inbox.popleft()())
    assert ran == [1]


def test_the_role_is_handed_over_together_with_a_frame(reader: Reader) -> None:
    executor = other(reader)
    reader.crew.execute(reader.crew.own, executor, lambda: None, alone=False)
    reader.collect()
    assert reader.crew.is_idle(executor)
    frame = (b"", None, b"frame")
    reader.crew.hand_over(reader.crew.own, executor, frame)
    assert reader.wait_for_reader(0) is executor
    assert executor.handed == frame
    assert not reader.crew.is_idle(executor)


def test_a_reader_that_executes_for_long_is_relieved_and_its_sequel_called(reader: Reader) -> None:
    crew = reader.crew
    called: list[Executor] = []
    new: list[Executor] = []

    def job() -> Sequel:
        assert crew.relieve()
        assert not new
        assert crew.relieve()
        new.append(reader.wait_for_reader(0))
        return called.append

    crew.execute(crew.own, crew.own, job, alone=True)
    assert crew.reader is new[0] is not crew.own
    for _ in range(int(PATIENCE_S / 0.01)):
        if called:
            break
        threading.Event().wait(0.01)
    assert called == new


def test_a_reader_that_executes_many_short_jobs_or_none_is_not_relieved(reader: Reader) -> None:
    crew = reader.crew
    for _ in range(5):
        crew.execute(crew.own, crew.own, lambda: assert_relieved(crew, True), alone=True)
    for _ in range(5):
        assert_relieved(crew, False)
    assert crew.reader is crew.own


def assert_relieved(crew: Crew, executing: bool) -> None:
    assert crew.relieve() is executing


def test_the_thread_of_a_session_that_has_ended_serves_the_next_one(reader: Reader) -> None:
    executor = other(reader)
    reader.crew.execute(reader.crew.own, executor, lambda: None, alone=False)
    reader.collect()
    reader.crew.release(executor)
    assert reader.crew.assign(reader.crew.own) is executor
    reader.crew.release(reader.crew.own)
    assert reader.crew.assign(executor) is reader.crew.own


def test_few_threads_without_a_session_are_kept(reader: Reader) -> None:
    crew = reader.crew
    executors = [other(reader)]
    executors += [one for _ in range(3 * KEPT) if (one := crew.assign(crew.own)) is not None]
    assert len(set(executors)) == 3 * KEPT + 1
    for executor in executors:
        crew.execute(
            crew.own,
            executor,
            lambda executor=executor: lambda _me: crew.release(executor),  # type: ignore[misc]
            alone=False,
        )
    reader.collect()
    assert len(crew.executors) == KEPT + 1
    assert sum(executor.is_dismissed for executor in executors) == 2 * KEPT + 1


def test_without_another_thread_a_session_is_refused_and_the_reader_executes(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    crew = reader.crew
    monkeypatch.setattr("gymwire.env_agent.crew.start_new_thread", fail)
    assert crew.assign(crew.own) is crew.own
    assert crew.assign(crew.own) is None
    ran: list[int] = []
    crew.execute(crew.own, crew.own, lambda: ran.append(1), alone=False)
    assert ran == [1]
    assert crew.reader is crew.own


def test_the_executor_returns_to_its_role_if_no_thread_can_relieve_it(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = reader.crew
    monkeypatch.setattr(crew, "_start", lambda: None)
    called: list[Executor] = []

    def job() -> Sequel:
        crew.relieve()
        crew.relieve()
        assert crew.reader is None
        return called.append

    crew.execute(crew.own, crew.own, job, alone=True)
    assert not called
    crew.relieve()
    assert crew.reader is crew.own
    crew.collect(crew.own)
    assert called == [crew.own]


def test_replies_that_are_ready_together_are_sent_together_and_in_their_order(
    reader: Reader,
) -> None:
    crew = reader.crew
    calls: list[Any] = []

    def reply(frame: bytes) -> Reply:
        return Reply(b"path", frame, lambda replies: calls.append([*replies]))

    def other_sequel(_me: Executor) -> None:
        calls.append("other")

    for sequel in (reply(b"1"), reply(b"2"), other_sequel, None, reply(b"3"), other_sequel):
        crew.own.jobs += 1
        crew.outside += 1
        crew.end_job(crew.own, sequel)
    crew.collect(crew.own)
    assert calls == [[(b"path", b"1"), (b"path", b"2")], "other", [(b"path", b"3")], "other"]
    assert (crew.own.jobs, crew.outside) == (0, 0)


def test_a_reader_that_loses_its_role_sends_no_more_replies(reader: Reader) -> None:
    crew = reader.crew
    calls: list[Any] = []

    def lose(_me: Executor) -> None:
        crew.reader = None

    last = Reply(b"", b"2", calls.append)
    for sequel in (Reply(b"", b"1", calls.append), lose, last):
        crew.own.jobs += 1
        crew.outside += 1
        crew.end_job(crew.own, sequel)
    crew.collect(crew.own)
    assert calls == [[(b"", b"1")]]
    crew.reader = crew.own
    crew.collect(crew.own)
    assert calls == [[(b"", b"1")], [(b"", b"2")]]


class Idle:
    """A crew whose reader waits for a signal or an order in a thread of its own."""

    def __init__(self, at_most_s: float) -> None:
        self.crew, self.signal = Crew(lambda me: None), Wakeup()
        self.orders = [Order(self.crew), Order(self.crew)]
        self.rested: list[bool] = []
        self._thread = threading.Thread(target=self._wait, args=(at_most_s,), daemon=True)

    def _wait(self, at_most_s: float) -> None:
        self.rested.append(self.crew.wait_for([self.signal], at_most_s, self.orders))

    def __enter__(self) -> Idle:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert self.crew.wakeup is not None
        self.crew.wakeup.close()
        self.signal.close()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("is_early", [False, True])
def test_an_order_ends_the_wait_of_an_idle_reader(number: int, is_early: bool) -> None:
    idle = Idle(at_most_s=1000.0)
    if is_early:
        idle.orders[number].set()
    with idle:
        idle.orders[number].set()
    assert idle.rested == [False]


def test_a_signal_and_the_end_of_a_job_end_the_wait_of_an_idle_reader() -> None:
    with Idle(at_most_s=1000.0) as idle:
        idle.signal.notify()
    assert idle.rested == [False]
    with Idle(at_most_s=1000.0) as idle:
        while not idle.crew.rests:
            pass
        idle.crew.end_job(idle.crew.own, None)
    assert idle.rested == [False]


def test_a_reader_does_not_wait_without_signals_or_while_others_execute() -> None:
    crew = Crew(lambda me: None)
    assert not crew.wait_for(None, 1000.0, [])
    assert not crew.wait_for([], 0.0, [])
    crew.outside = 1
    assert not crew.wait_for([], 1000.0, [])


def test_a_wait_that_nothing_ends_is_a_rest_and_the_next_activity_is_reported() -> None:
    active: list[bool] = []
    idle = Idle(at_most_s=0.001)
    idle.crew.on_activity = lambda: active.append(True)
    with idle:
        pass
    assert idle.rested == [True]
    assert idle.crew.rests
    assert active == []
    idle.crew.wait_for(None, 1000.0, [])
    assert active == [True]
    assert not idle.crew.rests
    idle.crew.wait_for(None, 1000.0, [])
    assert active == [True]


class Resting(Crew):
    """A crew that rests until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__(lambda me: None)
        self.rests = True
        self.relieved = threading.Event()

    def relieve(self) -> bool:
        self.relieved.set()
        return False


def test_readers_are_relieved_again_as_soon_as_one_crew_is_active(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gymwire.env_agent.crew.RESTS_S", 1000.0)
    crews = [Resting(), Resting()]
    relief = Relief(crews)
    relief.start()
    crews[0].rests = False
    crews[0].on_activity()
    assert crews[1].relieved.wait(PATIENCE_S)
    crews[0].rests = True
    relief.stop()
    relief.join(PATIENCE_S)
    assert not relief.is_alive()


def test_a_signal_handler_that_raises_while_a_failure_is_handled_ends_nothing() -> None:
    handled: list[str] = []

    def read(_me: Executor) -> None:
        if len(handled) == 4:
            crew.is_over = True
            raise ValueError("of the last one")
        raise ValueError("of a handler")

    def failed(_me: Executor, error: BaseException) -> None:
        handled.append(str(error))
        if len(handled) < 4:
            raise ValueError("of the next one")

    crew = Crew(read, failed)
    crew.run(crew.own)
    assert handled == ["of a handler", *["of the next one"] * 3, "of the last one"]
