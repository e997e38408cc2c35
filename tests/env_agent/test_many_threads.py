"""How an env agent adapts its process to thousands of threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from gymwire.env_agent.crew import Crew, Executor, Relief
from gymwire.env_agent.many_threads import (
    MAX_SWITCH_S,
    ThreadSettings,
    allow_waiting,
    waiting_buckets,
)


@pytest.fixture
def settings() -> Iterator[ThreadSettings]:
    made = ThreadSettings()
    yield made
    made.restore()


def test_with_many_threads_each_may_keep_the_interpreter_for_longer(
    settings: ThreadSettings,
) -> None:
    usual_s = sys.getswitchinterval()
    settings.adapt(320)
    assert sys.getswitchinterval() == pytest.approx(10 * usual_s)
    settings.adapt(1_000_000)
    assert sys.getswitchinterval() == pytest.approx(MAX_SWITCH_S)
    settings.adapt(2)
    assert sys.getswitchinterval() == pytest.approx(usual_s)


def test_linux_has_a_bucket_for_each_waiting_thread() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()  # only a process with several threads has a table of its own
    try:
        before = waiting_buckets()
        if before <= 0:
            pytest.skip("this kernel has one table of waiting threads for all processes")
        allow_waiting(2 * before - 1)
        assert waiting_buckets() == 2 * before
        allow_waiting(2)
        assert waiting_buckets() == 2 * before, "the table never shrinks"
    finally:
        done.set()
        other.join()


class BusyCrew(Crew):
    """A crew with as many executors as are wanted, none of which has a thread."""

    def __init__(self, executors: int) -> None:
        super().__init__(lambda me: None)
        self.executors = {Executor(): None for _ in range(executors)}
        self.looked_at = threading.Semaphore(0)

    def relieve(self) -> bool:
        self.looked_at.release()
        return True


def test_the_thread_that_relieves_readers_adapts_the_process_to_all_crews() -> None:
    usual_s = sys.getswitchinterval()
    crews = [BusyCrew(100), BusyCrew(220)]
    relief = Relief(crews)
    relief.start()
    try:
        for _ in range(2):  # it adapts the process between the two
            crews[1].looked_at.acquire()
        assert sys.getswitchinterval() == pytest.approx(10 * usual_s)
    finally:
        relief.stop()
        relief.join()
    assert sys.getswitchinterval() == pytest.approx(usual_s)
