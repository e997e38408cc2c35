"""Find out whether another thread uses the client: it must be used from one thread at a time.

A call only sets an attribute. The stacks of other threads are examined only if that attribute is
set already.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

OURS = "gymwire.learner_agent."
LEAVE_S = 2.0  # how long another thread may take to leave a call that it must leave
PAUSE_S = 0.005


def is_elsewhere(is_such: Callable[[FrameType], bool]) -> bool:
    """Return whether such a frame is on the stack of another thread."""
    return any(_numbers_in(is_such))


def threads_in(is_such: Callable[[FrameType], bool]) -> list[threading.Thread]:
    """Return the other threads on whose stack such a frame is."""
    found = set(_numbers_in(is_such))
    return [thread for thread in threading.enumerate() if thread.ident in found]


def _numbers_in(is_such: Callable[[FrameType], bool]) -> Iterator[int]:
    here = threading.get_ident()
    stacks = sys._current_frames()  # noqa: SLF001 - public but for its name
    for ident, last in stacks.items():
        if ident != here and last.f_code is not stay.__code__ and is_on_stack(last, is_such):
            yield ident


def is_on_stack(last: FrameType, is_such: Callable[[FrameType], bool]) -> bool:
    """Return whether such a frame is on the stack whose last frame this is."""
    found: FrameType | None = last
    while found is not None:
        if is_such(found):
            return True
        found = found.f_back
    return False


def is_ours(frame: FrameType) -> bool:
    """Return whether a frame is one of the learner agent's."""
    return str(frame.f_globals.get("__name__", "")).startswith(OURS)


def wait_while(is_used: Callable[[], bool]) -> bool:
    """Wait while another thread uses something, for at most LEAVE_S; return whether it has left."""
    deadline = time.monotonic() + LEAVE_S
    while is_used():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_S)
    return True


def stay() -> NoReturn:
    """Stop this thread until the process ends. `is_elsewhere` and `threads_in` leave it out.

    For daemon threads at exit: an exception could end the process with SIGABRT, because Python
    aborts if another thread writes a traceback while it closes stderr.
    """
    lock = threading.Lock()
    while True:  # the second call waits
        lock.acquire()
